"""The exact cache of responses: an answer is given again to the same request of the same project, where its model and the request allow it.

Theory of operation. An answer is found by the digest of everything that it follows from: organization, project, endpoint, service tier,
the model as it is offered with its deployments, the bound on the output that a budget or `x-max-cost` sets, the headers that are passed on
to the engine, and the whole body in a canonical form (keys sorted, no white space). Nothing of one project can be found by another, and
after a change of the model or of its deployments nothing that was stored is found. Nothing is compared by meaning.

The cache is in memory, of one gateway, and ends with it. The answers used longest ago give way. An organization has a part of it at most,
so that none displaces the answers of others. An answer that is older than its model allows is not kept: `run` removes it.
"""

import asyncio
import hashlib
import json
import re
import time
from collections import OrderedDict
from typing import Final

import msgspec

from tollway.domain.answers import StoredAnswer
from tollway.gateway.answer_recorder import AnswerRecorder
from tollway.gateway.buffers import BufferHold
from tollway.gateway.directory import Directory
from tollway.gateway.ports import Client
from tollway.gateway.request import Call
from tollway.wire import bodies

HIT: Final = b"x-tollway-cache: hit\r\n"
MISS: Final = b"x-tollway-cache: miss\r\n"

_MAX_AGE = re.compile(rb"max-age=([0-9]{1,9})")
_ENTRY_BYTES: Final = 512
"""Bytes that an answer takes beside its own, about."""

EXPIRED_MAX: Final = 2_000
"""Expired answers that one turn removes: about a millisecond of the event loop."""
EXPIRED_SECONDS: Final = 1.0
"""Time between turns that remove expired answers."""


class CacheBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the cache. `total_bytes_max`: of all answers, 0 for no cache; `organization_bytes_max`: of those of one organization;
    `answer_bytes_max`: of one answer."""

    total_bytes_max: int = 64 * 1024 * 1024
    organization_bytes_max: int = 16 * 1024 * 1024
    answer_bytes_max: int = 256 * 1024


class _Entry(msgspec.Struct, frozen=True):
    organization_id: str
    answer: StoredAnswer
    stored_at: float
    lifetime_seconds: int
    size: int


class _Part(msgspec.Struct):
    """The answers of one organization, those used longest ago first."""

    keys: OrderedDict[bytes, None]
    bytes: int = 0


class ResponseCache:
    """The answers of one gateway. Instants are monotonic seconds."""

    def __init__(self, bounds: CacheBounds) -> None:
        self.bounds = bounds
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._parts: dict[str, _Part] = {}
        self._by_lifetime: dict[int, OrderedDict[bytes, None]] = {}

    def find(self, key: bytes, now: float, age_seconds_max: float) -> tuple[StoredAnswer, float] | None:
        """Return an answer that is at most so old, and its age; None if there is none."""
        entry = self._entries.get(key)
        if entry is None or now - entry.stored_at > age_seconds_max:
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self._parts[entry.organization_id].keys.move_to_end(key)
        self.hits += 1
        return entry.answer, now - entry.stored_at

    def store(self, key: bytes, organization_id: str, answer: StoredAnswer, now: float, lifetime_seconds: int) -> None:
        """Store an answer for so long. Those used longest ago give way: the organization's own where it has its part, else of any."""
        bounds, size = self.bounds, len(answer.body) + len(answer.headers) + _ENTRY_BYTES
        if size > min(bounds.total_bytes_max, bounds.organization_bytes_max) or len(answer.body) > bounds.answer_bytes_max:
            return
        self._remove(key)
        while (part := self._parts.get(organization_id)) is not None and part.bytes + size > bounds.organization_bytes_max:
            self._remove(next(iter(part.keys)))
        while self.bytes + size > bounds.total_bytes_max:
            self._remove(next(iter(self._entries)))
        self._entries[key] = _Entry(organization_id, answer, now, lifetime_seconds, size)
        part = self._parts.setdefault(organization_id, _Part(OrderedDict()))
        part.keys[key] = None
        part.bytes += size
        self._by_lifetime.setdefault(lifetime_seconds, OrderedDict())[key] = None
        self.bytes += size

    def remove_expired(self, now: float) -> None:
        """Remove answers that are older than their lifetime, EXPIRED_MAX at most. Those of one lifetime expire in the order in which they
        were stored, but for the time that their requests took."""
        left = EXPIRED_MAX
        for lifetime_seconds, keys in list(self._by_lifetime.items()):
            while keys and left:
                key = next(iter(keys))
                if now - self._entries[key].stored_at <= lifetime_seconds:
                    break
                self._remove(key)
                left -= 1

    async def run(self) -> None:
        """Remove expired answers until cancelled."""
        while True:
            self.remove_expired(time.monotonic())
            await asyncio.sleep(EXPIRED_SECONDS)

    def count(self) -> int:
        """Return how many answers are stored."""
        return len(self._entries)

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.bytes -= entry.size
        part = self._parts[entry.organization_id]
        part.bytes -= entry.size
        del part.keys[key]
        if not part.keys:
            del self._parts[entry.organization_id]
        of_lifetime = self._by_lifetime[entry.lifetime_seconds]
        del of_lifetime[key]
        if not of_lifetime:
            del self._by_lifetime[entry.lifetime_seconds]


class CachedAnswer:
    """The place of the answer to one request in the cache (`ports.ClaimedAnswer`). `answer`: the one that is stored; None for a request
    that is to be served."""

    def __init__(
        self, cache: ResponseCache, key: bytes, organization_id: str, now: float, age_seconds_max: float, lifetime_seconds: int
    ) -> None:
        """`lifetime_seconds`: of an answer that is stored."""
        found = cache.find(key, now, age_seconds_max)
        self.answer: StoredAnswer | None = None
        self.age_seconds = 0.0
        if found is not None:
            self.answer, self.age_seconds = found
        self._cache = cache
        self._key = key
        self._organization_id = organization_id
        self._now = now
        self._lifetime_seconds = lifetime_seconds
        self._kept: StoredAnswer | None = None

    def keep(self, answer: StoredAnswer | None) -> None:
        """Note an answer. It is stored by `release`, in the loop: this is called from a worker thread."""
        self._kept = answer

    def release(self) -> None:
        """Store the answer that was noted. It counts as old as its request."""
        if self._kept is not None:
            self._cache.store(self._key, self._organization_id, self._kept, self._now, self._lifetime_seconds)

    def clean_up(self) -> None:
        """Do nothing: nothing is on a disk."""


def open_cached(
    cache: ResponseCache, call: Call, client: Client, buffer: BufferHold, directory: Directory, now: float
) -> AnswerRecorder | None:
    """Return the recorder of a call whose model has a cache and whose request asks for it by `cache-control: max-age=SECONDS`; None for all
    others. `buffer`: for what is recorded."""
    request = call.request
    asked = request.headers.get(b"cache-control")
    if asked is None or request.upload is not None or request.conversation is not None or call.dialect.form_kinds is not None:
        return None
    directives = [each.strip().lower() for each in asked.split(b",")]
    if b"no-store" in directives or b"no-cache" in directives:
        return None
    ages = [int(match[1]) for match in map(_MAX_AGE.fullmatch, directives) if match is not None]
    if not ages or not min(ages):
        return None
    lifetime_seconds = call.model.response_cache_seconds
    age_seconds_max = min(*ages, lifetime_seconds)
    claimed = CachedAnswer(cache, find_key(call, directory), call.caller.organization.id, now, age_seconds_max, lifetime_seconds)
    headers = HIT + b"age: %d\r\n" % int(claimed.age_seconds)
    return AnswerRecorder(client, claimed, cache.bounds.answer_bytes_max, buffer, headers)


def find_key(call: Call, directory: Directory) -> bytes:
    """Return the digest of all that an answer follows from."""
    caller, request = call.caller, call.request
    body = json.dumps(bodies.read(request.body), sort_keys=True, separators=(",", ":"))
    revision = directory.digest_model(call.grant.model, caller)
    cap = "" if call.output_cap is None else str(call.output_cap)
    forwarded = json.dumps([request.headers.get(name, b"").hex() for name in call.dialect.forwarded_headers])
    parts = (caller.organization.id, caller.project.id, request.endpoint, call.price.tier, revision.hex(), cap, forwarded, body)
    return hashlib.sha256("\0".join(parts).encode()).digest()
