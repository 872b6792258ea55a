"""Verification of access tokens at a gateway: those of this platform, and those of organizations' own issuers. No I/O: all keys are in the
snapshot, which control keeps current.

The signature is verified before anything of the claims is believed. Which keys may have signed follows from `iss` and `aud` together,
so that a key of one issuer can never vouch for another one's token.
"""

from collections.abc import Iterable

import msgspec

from tollway.domain.snapshot import IssuerEntry, SigningKeyEntry
from tollway.domain.tokens import (
    AUDIENCE,
    FOREIGN_LIFETIME_SECONDS_MAX,
    LIFETIME_SECONDS,
    TOKEN_TYPE,
    TokenInvalid,
    check_claims,
    find_rule,
)
from tollway.wire.json_web_tokens import ReadToken, VerificationKey, load_key, read_token, verify


class VerifiedToken(msgspec.Struct, frozen=True):
    """A token that was verified: the key that it stands for, and its end (UTC microseconds, exclusive)."""

    key_id: str
    expires_at: int


class TrustedIssuers:
    """The issuers of one version of the snapshot. Their keys are loaded when a token first needs them."""

    def __init__(self, signing_keys: Iterable[SigningKeyEntry], issuers: Iterable[IssuerEntry]) -> None:
        self._signing_keys = {entry.id: entry for entry in signing_keys}
        self._own: dict[str, dict[str, VerificationKey]] = {}
        self._issuers = {(entry.issuer, entry.audience): entry for entry in issuers}
        self._loaded: dict[str, dict[str, VerificationKey]] = {}

    def verify(self, token: bytes, now_us: int) -> VerifiedToken:
        """Return what a token stands for. Raises TokenInvalid."""
        read = read_token(token)
        signing_key = self._signing_keys.get(read.key_id or "")
        if read.type == TOKEN_TYPE and signing_key is not None and read.claims.get("iss") == signing_key.issuer:
            return self._verify_own(read, signing_key, now_us)
        return self._verify_foreign(read, now_us)

    def _verify_own(self, read: ReadToken, signing_key: SigningKeyEntry, now_us: int) -> VerifiedToken:
        keys = self._own.get(signing_key.id)
        if keys is None:
            keys = self._own[signing_key.id] = {signing_key.id: load_key(signing_key.key)}
        verify(read, keys)
        expires_at = check_claims(read.claims, signing_key.issuer, AUDIENCE, now_us, LIFETIME_SECONDS)
        key_id = read.claims.get("key_id")
        if not isinstance(key_id, str):
            raise TokenInvalid("it names no key")
        return VerifiedToken(key_id, expires_at)

    def _verify_foreign(self, read: ReadToken, now_us: int) -> VerifiedToken:
        entry = self._find_issuer(read)
        keys = self._loaded.get(entry.id)
        if keys is None:
            keys = self._loaded[entry.id] = {key.id: key for key in map(load_key, entry.keys)}
        verify(read, keys)
        expires_at = check_claims(read.claims, entry.issuer, entry.audience, now_us, FOREIGN_LIFETIME_SECONDS_MAX)
        rule = find_rule(entry.rules, read.claims)
        if rule is None:
            raise TokenInvalid("no rule of its identity provider matches its claims")
        return VerifiedToken(rule.key_id, expires_at)

    def _find_issuer(self, read: ReadToken) -> IssuerEntry:
        issuer, audiences = read.claims.get("iss"), read.claims.get("aud")
        for audience in audiences if isinstance(audiences, list) else [audiences]:
            if isinstance(issuer, str) and isinstance(audience, str):
                entry = self._issuers.get((issuer, audience))
                if entry is not None:
                    return entry
        raise TokenInvalid("its issuer is not trusted for its audience")
