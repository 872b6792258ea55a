"""Selection of one of several deployments that serve a model equally well: the policy "home and cost".

The cost of a deployment for a request is the number of prompt tokens that it must compute before the first token of the answer: those that
wait there already, and those of this prompt that its prefix cache does not hold. Candidates are the *home* of the prompt's prefix, the
*owner* (the deployment to which this gateway last sent the longest known prefix of it), and OTHERS_MAX at random; the cheapest one is
chosen.

The home is found by rendezvous hashing, so all gateways agree on it without talking, and a deployment that leaves moves only its own
prefixes. The prefix by which it is found, the *anchor*, is the shortest one that carries less than a quarter of a deployment's share of the
model's traffic: a system prompt that everybody sends must not gather everybody at one deployment.

A prefix is known by checksums at BOUNDARIES. Beyond the first KiB only the last WINDOW_BYTES before each boundary are looked at, so a long
prompt costs no more than a short one. Two prompts that differ only where nothing is looked at, and shift nothing, count as one prefix: the
guess about a cache is wrong then and the prompt is computed, nothing else.

The load of a deployment is a fluid queue: it rises with what this gateway sends (times the number of gateways, because the others send as
much), falls at the rate at which the deployment was seen to compute, and is set by each report of the deployment's own.

Pure: time and randomness are arguments. What is remembered is bounded: TABLE_MAX prefixes and the counts of two windows of traffic.
"""

from collections.abc import Sequence
from enum import StrEnum
from math import log
from zlib import crc32

BOUNDARIES = tuple(1024 << doubling for doubling in range(9))
"""Lengths in bytes at which prefixes are compared, 1 KiB to 256 KiB."""
WINDOW_BYTES = 512
TABLE_MAX = 32_768
"""Prefixes whose owner is remembered in one generation; there are two. An entry is about 100 bytes."""
TRAFFIC_WINDOW = 4_096
"""Requests in which the traffic of prefixes is counted; two windows are looked at."""
ANCHOR_SHARE = 4
"""Part of the share of one deployment that one anchor may carry of the traffic: a quarter."""
ANCHOR_REQUESTS_MIN = 8
"""Requests that a prefix may always have: shares of less traffic say nothing."""
HOME_HOLD = 0.8
"""Part of a prompt that its home is taken to hold. It is more than homes hold on the average, because what is sent to a home is held there
for the next request. A value that follows the reports of engines was measured to be worse (docs/routing.md)."""
OTHERS_MAX = 8
"""Deployments weighed that are neither home nor owner. In a larger group they are a random sample, so that many gateways do not all see the
same one as the cheapest."""
_MASK = (1 << 64) - 1


class Role(StrEnum):
    """Reason for which a deployment was a candidate."""

    HOME = "home"
    OWNER = "owner"
    OTHER = "other"


class Load:
    """Load of one deployment, in prompt tokens. `id`: of the deployment, the same at every gateway. `weight`: its relative capacity.

    `queued_tokens`: prompt tokens that waited at `at` (seconds of the monotonic clock). `tokens_per_second`: the rate at which it was seen
    to compute them; 0 while unknown.
    """

    __slots__ = ("_reported_at", "_reported_tokens", "_sent_tokens", "at", "id", "queued_tokens", "salt", "tokens_per_second", "weight")

    def __init__(self, id: str, weight: float = 1.0) -> None:
        self.id = id
        self.salt = _mix(crc32(id.encode()) << 32 | crc32(id.encode(), 1))
        self.weight = weight
        self.queued_tokens = 0.0
        self.at = 0.0
        self.tokens_per_second = 0.0
        self._reported_at = 0.0
        self._reported_tokens = -1.0
        self._sent_tokens = 0.0

    def estimate(self, now: float) -> float:
        """Return how many prompt tokens wait at this instant."""
        queued = self.queued_tokens - self.tokens_per_second * (now - self.at)
        return queued if queued > 0.0 else 0.0

    def send(self, tokens: float, now: float) -> None:
        """Add `tokens` that were sent, by all gateways together."""
        queued = self.queued_tokens - self.tokens_per_second * (now - self.at)
        self.queued_tokens = tokens + queued if queued > 0.0 else tokens
        self.at = now
        self._sent_tokens += tokens

    def begin_answer(self, tokens: float) -> None:
        """Subtract `tokens` that were sent and are computed now. Where the deployment reports its queue, the report says so."""
        if self._reported_tokens < 0.0:
            self.queued_tokens = self.queued_tokens - tokens if self.queued_tokens > tokens else 0.0

    def report(self, tokens: float, now: float) -> None:
        """Take the deployment's own word on how many prompt tokens wait. Two reports of a queue that never emptied tell its rate."""
        seconds = now - self._reported_at
        if self._reported_tokens >= 0.0 and tokens > 0.0 and seconds > 0.0:
            computed = self._reported_tokens + self._sent_tokens - tokens
            if computed > 0.0:
                rate = computed / seconds
                known = self.tokens_per_second
                self.tokens_per_second = rate if not known else known + (rate - known) / 8
        self._reported_at = self.at = now
        self._reported_tokens = self.queued_tokens = tokens
        self._sent_tokens = 0.0


class Candidate:
    """A deployment as it was weighed. `index`: in its group. `cost`: tokens before the first one of the answer, over its weight.
    `uncached_tokens`: those of the prompt that it must compute itself."""

    __slots__ = ("cost", "index", "role", "uncached_tokens")

    def __init__(self, index: int, role: Role, cost: float, uncached_tokens: float) -> None:
        self.index = index
        self.role = role
        self.cost = cost
        self.uncached_tokens = uncached_tokens


def hash_prefixes(body: bytes, start: int, salt: int) -> list[int]:
    """Return a checksum of the prefix of a prompt at each of BOUNDARIES that it reaches; the prompt begins at `start`.

    `salt`: separates prompts whose prefixes no engine shares, 32 bits.
    """
    length = len(body) - start
    prefixes: list[int] = []
    checksum = salt
    begin = start
    for boundary in BOUNDARIES:
        if boundary > length:
            break
        end = start + boundary
        checksum = crc32(body[begin:end], checksum)
        prefixes.append(checksum)
        begin = end + boundary - WINDOW_BYTES
    return prefixes


def _mix(value: int) -> int:
    """Return 64 bits that depend on every bit of `value` (the finalizer of SplitMix64)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def find_home(anchor: int, group: Sequence[Load]) -> int:
    """Return the index of an anchor's home: weighted rendezvous hashing (Thaler and Ravishankar 1998), the same at every gateway."""
    best, home = -1.0, 0
    for index, load in enumerate(group):
        mixed = (anchor ^ load.salt) * 0x9E3779B97F4A7C15 & _MASK
        mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & _MASK
        score = load.weight / -log(((mixed >> 12) + 0.5) * 2.0**-52)
        if score > best:
            best, home = score, index
    return home


class Selector:
    """Memory of one gateway for the prompts of a model, and the choice by it."""

    __slots__ = ("_counted", "_counted_before", "_counts", "_counts_before", "_owners", "_owners_before")

    def __init__(self) -> None:
        self._owners: dict[int, Load] = {}
        self._owners_before: dict[int, Load] = {}
        self._counts: dict[int, int] = {}
        self._counts_before: dict[int, int] = {}
        self._counted = self._counted_before = 0

    def choose(
        self, group: Sequence[Load], prefixes: Sequence[int], session: int, prompt_bytes: int, tokens: float, now: float
    ) -> Candidate:
        """Return the candidate with the lowest cost for a prompt, and remember it as the owner of the prompt's prefixes.

        `group`: usable deployments, at least one, in random order. `prefixes`: of `hash_prefixes`. `session`: checksum of the session that
        the client named, which takes the place of the prefixes; 0 for none. `tokens`: about how many the prompt has.
        """
        if session:
            prefixes = (session,)
        anchor = session or (self._find_anchor(prefixes, len(group)) if prefixes else 0)
        best: Candidate | None = None
        for candidate in self.weigh(group, prefixes, anchor, session, prompt_bytes, tokens, now):
            if best is None or candidate.cost < best.cost:
                best = candidate
        assert best is not None
        load, owners = group[best.index], self._owners
        for prefix in prefixes:
            owners[prefix] = load
        if len(owners) > TABLE_MAX:
            self._owners_before, self._owners = owners, {}
        return best

    def weigh(
        self, group: Sequence[Load], prefixes: Sequence[int], anchor: int, session: int, prompt_bytes: int, tokens: float, now: float
    ) -> list[Candidate]:
        """Return the candidates for a prompt: home and owner if it has an `anchor`, then others. Changes nothing."""
        home, owner, held = -1, -1, 0.0
        if anchor:
            home = find_home(anchor, group)
            for level in range(len(prefixes) - 1, -1, -1):
                known = self._owners.get(prefixes[level]) or self._owners_before.get(prefixes[level])
                if known is not None:
                    held = HOME_HOLD if session else BOUNDARIES[level] / prompt_bytes
                    owner = group.index(known) if known in group else -1
                    break
        candidates: list[Candidate] = []
        if home >= 0:
            candidates.append(_weigh(group, home, Role.HOME, tokens, held if owner == home and held > HOME_HOLD else HOME_HOLD, now))
        if owner >= 0 and owner != home:
            candidates.append(_weigh(group, owner, Role.OWNER, tokens, held, now))
        for index in range(min(len(group), OTHERS_MAX)):
            if index not in (home, owner):
                candidates.append(_weigh(group, index, Role.OTHER, tokens, 0.0, now))
        return candidates

    def _find_anchor(self, prefixes: Sequence[int], deployments: int) -> int:
        """Count a prompt, and return the shortest prefix that carries little enough traffic; the longest one if each carries more."""
        if self._counted >= TRAFFIC_WINDOW:
            self._counts_before, self._counts = self._counts, {}
            self._counted_before, self._counted = self._counted, 0
        self._counted += 1
        most = max((self._counted + self._counted_before) // (ANCHOR_SHARE * deployments), ANCHOR_REQUESTS_MIN)
        counts, before = self._counts, self._counts_before
        for prefix in prefixes:
            count = counts.get(prefix, 0) + 1
            counts[prefix] = count
            if count + before.get(prefix, 0) <= most:
                return prefix
        return prefixes[-1]


def _weigh(group: Sequence[Load], index: int, role: Role, tokens: float, held: float, now: float) -> Candidate:
    load = group[index]
    uncached = tokens * (1.0 - held)
    return Candidate(index, role, (load.estimate(now) + uncached) / load.weight, uncached)
