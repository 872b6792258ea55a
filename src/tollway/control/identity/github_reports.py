"""Reports of leaked secrets in the format of GitHub's secret scanning partner program.

A report is signed over its raw body (ECDSA on P-256 with SHA-256, DER in base64) with one of the keys that GitHub publishes, which two
headers name. The keys are fetched when they are first needed, when a report names one that is not known, and again after a while, by one
request at a time; those that were fetched stay in force while they cannot be fetched again. Nothing of a report is read before its
signature is verified.
"""

import asyncio
import base64
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tollway.control.identity import issuer_keys
from tollway.control.identity.issuer_keys import KeysUnavailable
from tollway.domain.faults import PARAMETER_INVALID, Blame, Fault, FaultKind
from tollway.domain.leaked_keys import REPORTED_MAX

GITHUB_KEYS_URL = "https://api.github.com/meta/public_keys/secret_scanning"
"""Address of GitHub's keys."""

KEPT_SECONDS = 3_600.0
"""Time after which keys are fetched again, so that one that was withdrawn is not believed for longer."""

STALE_SECONDS = 86_400.0
"""Time for which keys stay in force that cannot be fetched again."""

PAUSE_SECONDS = 30.0
"""Time between two fetches, whatever reports name: whoever invents names must not have GitHub asked for each."""

PUBLISHED_MAX = 32
"""Keys that are read of what is published, of about 200 bytes each. GitHub has two or three."""

BODY_BYTES_MAX = 512 * 1024
"""Longest body of a report: REPORTED_MAX secrets with long addresses."""

REPORTS_PER_MINUTE = 120
"""Verified reports of one control process: 12,000 secrets in a minute. A reporter that gets 429 sends again."""

SIGNATURE_INVALID = FaultKind(
    code="invalid_signature", status=401, blame=Blame.TENANT, message="The signature of the report is missing, or not one of its sender's."
)
REPORTER_KEYS_UNAVAILABLE = FaultKind(
    code="reporter_keys_unavailable",
    status=503,
    blame=Blame.PLATFORM,
    message="The keys with which reports are signed cannot be fetched right now.",
)
REPORTS_EXCEEDED = FaultKind(code="rate_limit_exceeded", status=429, blame=Blame.TENANT, message="Too many reports. Send them later.")


class GithubMatch(msgspec.Struct, frozen=True):
    """A secret that GitHub found. `type`: the name of the kind of secret, which the answer repeats. `url`: where it is, if public."""

    token: Annotated[str, msgspec.Meta(max_length=4096)]
    type: Annotated[str, msgspec.Meta(max_length=256)]
    url: str | None = None


class _PublishedKey(msgspec.Struct, frozen=True):
    key_identifier: Annotated[str, msgspec.Meta(max_length=256)]
    key: Annotated[str, msgspec.Meta(max_length=4096)]


def read_matches(document: object) -> list[GithubMatch]:
    """Return the secrets of a report, REPORTED_MAX at most. Raises Fault invalid_value, without a word of the report."""
    try:
        matches = msgspec.convert(document, list[GithubMatch])
    except msgspec.ValidationError:
        raise Fault(PARAMETER_INVALID, message="A report is an array of objects with token, type and url.") from None
    if len(matches) > REPORTED_MAX:
        raise Fault(PARAMETER_INVALID, message=f"A report may have at most {REPORTED_MAX} secrets.")
    return matches


def read_keys(document: Mapping[str, object]) -> dict[str, ec.EllipticCurvePublicKey]:
    """Return the keys on P-256 that a document publishes, by identifier. Raises KeysUnavailable if it publishes none."""
    try:
        published = msgspec.convert(document.get("public_keys"), list[_PublishedKey])[:PUBLISHED_MAX]
    except msgspec.ValidationError:
        raise KeysUnavailable("its answer publishes no keys") from None
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for each in published:
        try:
            key = load_pem_public_key(each.key.encode())
        except (ValueError, UnsupportedAlgorithm):
            continue
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            keys[each.key_identifier] = key
    if not keys:
        raise KeysUnavailable("its answer publishes no key on P-256")
    return keys


@dataclass(slots=True)
class GithubReports:
    """Verifies reports, for one event loop. `keys_url`: where the keys are published. `clock`: seconds that only grow."""

    keys_url: str
    log: Callable[[Mapping[str, object]], None]
    clock: Callable[[], float] = time.monotonic
    _keys: dict[str, ec.EllipticCurvePublicKey] = field(default_factory=dict)
    _fetched_at: float | None = None
    _asked_at: float | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _verified: deque[float] = field(default_factory=deque)

    async def verify(self, identifier: str, signature: str, body: bytes) -> None:
        """Return if `signature` (base64) is that of the key `identifier` over `body`. Raises Fault: invalid_signature,
        reporter_keys_unavailable, and rate_limit_exceeded for a report that is verified and one too many."""
        key = await self._find_key(identifier)
        try:
            key.verify(base64.b64decode(signature, validate=True), body, ec.ECDSA(SHA256()))
        except (ValueError, InvalidSignature):
            raise Fault(SIGNATURE_INVALID) from None
        now = self.clock()
        while self._verified and self._verified[0] <= now - 60:
            self._verified.popleft()
        if len(self._verified) >= REPORTS_PER_MINUTE:
            raise Fault(REPORTS_EXCEEDED, retry_after_seconds=60)
        self._verified.append(now)

    async def _find_key(self, identifier: str) -> ec.EllipticCurvePublicKey:
        if not self._is_fresh() or identifier not in self._keys:
            async with self._turn:
                if not self._is_fresh() or identifier not in self._keys:
                    await self._fetch()
        if self._fetched_at is None or self.clock() - self._fetched_at > STALE_SECONDS:
            raise Fault(REPORTER_KEYS_UNAVAILABLE, retry_after_seconds=int(PAUSE_SECONDS))
        key = self._keys.get(identifier)
        if key is None:
            raise Fault(SIGNATURE_INVALID)
        return key

    def _is_fresh(self) -> bool:
        return self._fetched_at is not None and self.clock() - self._fetched_at < KEPT_SECONDS

    async def _fetch(self) -> None:
        """Fetch the keys, unless that was tried less than PAUSE_SECONDS ago."""
        now = self.clock()
        if self._asked_at is not None and now - self._asked_at < PAUSE_SECONDS:
            return
        self._asked_at = now
        try:
            async with issuer_keys.bounded():
                # The address is the operator's own setting, which may lead to a mirror in a private network.
                keys = read_keys(await issuer_keys.read_object(self.keys_url, is_private_allowed=True))
        except (KeysUnavailable, TimeoutError) as error:
            self.log({"event": "reporter_keys_failed", "detail": str(error) or "it did not answer in time"})
            return
        self._keys, self._fetched_at = keys, self.clock()
