"""Rules of passwords and recovery codes."""

CHARACTERS_MIN, CHARACTERS_MAX = 12, 128
"""Length of a password. Length is what counts (NIST SP 800-63B, section 3.1.1.2); the bound keeps hashing cheap."""

DISTINCT_MIN = 5
"""Characters that differ in a password."""

NAME_CHARACTERS_MIN = 4
"""Shortest name in an address that a password must not contain: shorter ones occur in words."""

LENGTH_WRONG = f"The password must have {CHARACTERS_MIN} to {CHARACTERS_MAX} characters."
TOO_UNIFORM = f"The password must have at least {DISTINCT_MIN} different characters."
LIKE_ADDRESS = "The password must not contain your address."
"""Reasons for which a password is not accepted, as sentences."""

RECOVERY_CODES = 10
"""Recovery codes of one person, each for one sign-in without the authenticator app."""

RECOVERY_BYTES = 10
"""Random bytes of a recovery code: 80 bits, so that a plain digest of it can be stored."""

_RECOVERY_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def find_password_error(password: str, email: str) -> str | None:
    """Return why a password is not accepted, as a sentence; None if it is."""
    if not CHARACTERS_MIN <= len(password) <= CHARACTERS_MAX:
        return LENGTH_WRONG
    if len(set(password)) < DISTINCT_MIN:
        return TOO_UNIFORM
    name = email.partition("@")[0]
    if len(name) >= NAME_CHARACTERS_MIN and name in password.lower():
        return LIKE_ADDRESS
    return None


def make_recovery_code(random_bytes: bytes) -> str:
    """Return a recovery code from RECOVERY_BYTES random bytes, such as `k3m9-x2ab-...`."""
    number = int.from_bytes(random_bytes, "big")
    digits = []
    for _ in range(RECOVERY_BYTES * 8 // 5):
        number, digit = divmod(number, 32)
        digits.append(_RECOVERY_ALPHABET[digit])
    return "-".join("".join(digits[start : start + 4]) for start in range(0, len(digits), 4))
