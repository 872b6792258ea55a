"""Access tokens: what a token must say to be accepted, and for which API key it stands.

A token never carries rights of its own. It stands for one API key that the snapshot knows, so that revocation, limits, models and budgets
are those of the key, and end with it. Tokens of this platform name the key themselves (`key_id`). For a token of an organization's own
issuer, the rules of its identity provider decide: the first enabled rule whose matchers the claims meet.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

AUDIENCE = "tollway"
"""Audience (RFC 7519, section 4.1.3) of the tokens of this platform."""

TOKEN_TYPE = "at+jwt"
"""Type of the access tokens of this platform (RFC 9068, section 2.1)."""

LIFETIME_SECONDS = 900
"""Lifetime of an access token of this platform; shorter where the key or the assertion that it was made from ends before."""

FOREIGN_LIFETIME_SECONDS_MAX = 86_400
"""Longest lifetime (`exp` - `iat`) of a token of another issuer. Those of Kubernetes live for an hour by default, and for a day at most."""

CLOCK_SECONDS = 60
"""Difference of clocks that is tolerated where a token says from when on it is valid. Its end is never extended."""

SECONDS_MAX = 10**11
"""Bound on instants in tokens, in seconds: one beyond it is in milliseconds by mistake (RFC 7519, section 2, NumericDate)."""

MATCHERS_MAX = 16

MATCHERS_BYTES_MAX = 4096
"""Matchers of one rule as JSON, in bytes: a whole token has 8192, and all rules of a provider reach gateways in one line, which is
bounded."""

_CLAIM = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

Scalar = str | int | bool


class TokenInvalid(ValueError):
    """A token that is refused. Its text says why, in words that follow "The token is refused:", and holds no part of the token.
    `is_key_unknown`: the issuer may have a new key that is not known here yet."""

    def __init__(self, reason: str, *, is_key_unknown: bool = False) -> None:
        super().__init__(reason)
        self.is_key_unknown = is_key_unknown


class Jwk(msgspec.Struct, frozen=True, omit_defaults=True):
    """The public members of a JSON Web Key (RFC 7517; RFC 7518, section 6; RFC 8037). Empty members are absent."""

    kty: str
    kid: str = ""
    alg: str = ""
    use: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""
    n: str = ""
    e: str = ""


class FederationRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rule of an identity provider: a token whose claims meet all `matchers` stands for the key `key_id`."""

    key_id: str
    matchers: dict[str, Scalar]

    def matches(self, claims: Mapping[str, Any]) -> bool:
        """Return whether the claims meet every matcher."""
        return bool(self.matchers) and all(_meets(name, wanted, claims.get(name)) for name, wanted in self.matchers.items())


def find_matcher_error(matchers: Mapping[str, Scalar]) -> str | None:
    """Return why matchers cannot be those of a rule, in words that follow a colon; None if they can."""
    if not 1 <= len(matchers) <= MATCHERS_MAX:
        return f"a rule has 1 to {MATCHERS_MAX} matchers: the audience alone never suffices"
    if len(msgspec.json.encode(matchers)) > MATCHERS_BYTES_MAX:
        return f"the matchers of a rule have {MATCHERS_BYTES_MAX} bytes at most"
    prefix = matchers.get("sub")
    if isinstance(prefix, str) and prefix.endswith("*") and len(prefix) < 4:
        return "a prefix of the subject must have 3 characters at least"
    if not all(_CLAIM.fullmatch(name) for name in matchers):
        return "a claim has a name of 1 to 128 letters, digits and _.:/-"
    return None


def _meets(name: str, wanted: Scalar, value: object) -> bool:
    """Return whether a claim is as wanted: equal and of the same type; an array that has the text; or, for `sub` alone, a text with the
    prefix before a final asterisk."""
    if isinstance(value, list):
        return isinstance(wanted, str) and any(isinstance(each, str) and each == wanted for each in value)
    if name == "sub" and isinstance(wanted, str) and wanted.endswith("*"):
        return isinstance(value, str) and value.startswith(wanted[:-1])
    return type(value) is type(wanted) and value == wanted


def find_rule(rules: Sequence[FederationRule], claims: Mapping[str, Any]) -> FederationRule | None:
    """Return the first rule that the claims meet."""
    return next((rule for rule in rules if rule.matches(claims)), None)


def check_claims(claims: Mapping[str, Any], issuer: str, audience: str, now: int, lifetime_seconds_max: int) -> int:
    """Return the end of a token (UTC microseconds, exclusive) whose claims must name this issuer and this audience and be valid at `now`.
    Raises TokenInvalid."""
    if claims.get("iss") != issuer:
        raise TokenInvalid("its issuer is another one")
    audiences = claims.get("aud")
    if audiences != audience and not (isinstance(audiences, list) and audience in audiences):
        raise TokenInvalid("its audience is another one")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise TokenInvalid("it has no subject")
    issued, expires = _read_seconds(claims, "iat"), _read_seconds(claims, "exp")
    begins = _read_seconds(claims, "nbf") if "nbf" in claims else issued
    seconds = now / 1_000_000
    if max(issued, begins) > seconds + CLOCK_SECONDS:
        raise TokenInvalid("it is not valid yet")
    if expires <= seconds:
        raise TokenInvalid("it has expired")
    if expires - issued > lifetime_seconds_max:
        raise TokenInvalid(f"its lifetime is longer than {lifetime_seconds_max} seconds")
    return int(expires * 1_000_000)


def _read_seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < SECONDS_MAX:
        raise TokenInvalid(f"its claim {name} is missing or not an instant in seconds")
    return float(value)
