"""Codes of authenticator apps (TOTP, RFC 6238): six digits from a shared secret, another one every 30 seconds."""

import base64
import hmac
from urllib.parse import quote

SECRET_BYTES = 20
"""Length of a secret: that of the hash, as RFC 4226 section 4 recommends."""

STEP_SECONDS = 30
DIGITS = 6

DRIFT_STEPS = 1
"""Steps before and after the current one whose codes are accepted: clocks differ, and people type (RFC 6238, section 5.2)."""


def compute_code(secret: bytes, step: int, digits: int = DIGITS) -> str:
    """Return the code of a time step (RFC 4226, section 5.3, with SHA-1, which every authenticator app has)."""
    digest = hmac.digest(secret, step.to_bytes(8, "big"), "sha1")
    offset = digest[-1] & 0xF
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFF_FFFF
    return f"{number % 10**digits:0{digits}d}"


def find_step(secret: bytes, code: str, now: int, last_step: int | None) -> int | None:
    """Return the time step of a code that is valid at `now` (UTC microseconds); None if it is not.

    `last_step`: of the code that was accepted last. Codes up to it are refused, so that each counts once (RFC 6238, section 5.2)."""
    current = now // (STEP_SECONDS * 1_000_000)
    found = None
    for step in range(current - DRIFT_STEPS, current + DRIFT_STEPS + 1):
        is_right = hmac.compare_digest(compute_code(secret, step).encode(), code.encode())
        if is_right and (last_step is None or step > last_step):
            found = step
    return found


def encode_secret(secret: bytes) -> str:
    """Return a secret as people type it into an app: base32 without padding."""
    return base64.b32encode(secret).decode().rstrip("=")


def make_address(secret: bytes, account: str, issuer: str) -> str:
    """Return the `otpauth:` address that adds the secret to an app."""
    return f"otpauth://totp/{quote(issuer)}:{quote(account)}?secret={encode_secret(secret)}&issuer={quote(issuer)}"
