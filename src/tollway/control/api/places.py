"""Places of concurrent requests, turns at the work, and rates: what one organization or gateway may take of a control process.

Theory of operation. A request takes a place when it arrives and gives it back while its body is awaited, so that slow clients hold none; it
takes one again when the body is there. Before the body is read it also counts against its **sharer**: the organization, whichever of its
keys it has; an operator's key; a gateway. The share is far below all places. Of the requests that an organization has, a few are worked
on at once (one, while others ask too) and the others wait for their turn, so that it never fills the worker threads that all share.
Requests of organizations are counted by rate as well. A credential is remembered by the organization that it was found to be of: with it, a
request counts against the share and the rate, and waits for its turn, before the database is asked whose it is. Refusals of one
organization are spaced out.

A stream that gateways follow gives its place back once it begins, and counts against a bound of its own. Revocations may use a
reserve of places, and have a rate of their own. Health takes none. Everything runs in the event loop, so nothing is locked.
"""

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tollway.domain.faults import ADMINISTRATION_RATE_LIMITED, CONCURRENCY_EXCEEDED, OVERLOADED, Fault

REQUESTS_MAX = 256
"""Places of one application: more than the worker threads and any waiting list that still makes sense."""

REVOCATION_RESERVE = 32
"""Places beyond REQUESTS_MAX that only a DELETE may take, because a key that has leaked must be revocable at any load."""

CALLER_REQUESTS_MAX = 32
"""Requests of one organization, or of one operator's key, at once in the public API: an eighth of the places, and more than honest
clients of administration send."""

CALLER_REVOCATION_RESERVE = 4
"""Requests beyond that share that only a DELETE may be: whoever misuses a leaked key must not keep its owner from revoking it."""

ORGANIZATION_WORK_MAX = 3
"""Requests of one organization that are worked on at once, of about 40 worker threads, while no other sharer asks anything."""

SHARED_WORK_MAX = 1
"""The same while another sharer asks, whose requests each one at work delays by its share of the interpreter: with three an operator's call
takes four times as long as alone (`python -m reliability R18 --quiet`)."""

SHARED_SECONDS = 0.5
"""Time after a request for which its sharer counts as one that asks. Health probes have no sharer."""

REFUSALS_PER_SECOND = 20.0
"""Refusals above its rate or share that an organization is given. Whoever asks again at once would have the event loop do nothing else."""

REFUSAL_SECONDS_MAX = 5.0
"""For a refusal to wait."""

TURN_SECONDS_MAX = 15.0
"""For a request to wait for its turn."""

RECOGNIZED_MAX = 4096
"""Credentials whose sharer is remembered, those used last."""

NODE_REQUESTS_MAX = 16
"""Requests and followed streams of one gateway at once at the link. A gateway process holds four connections, and two processes run
while one takes over from the other."""

FOLLOWERS_MAX = 512
"""Streams of changes at once. A gateway follows one; each costs a descriptor and a few kilobytes."""


@dataclass(slots=True)
class Rate:
    """The requests that one sharer may send now: `left` of them at `at` (seconds), growing to a minute's worth."""

    left: float
    at: float


@dataclass(frozen=True, slots=True)
class Asked:
    """The last request of a sharer: when it came, in seconds."""

    sharer: str
    at: float


@dataclass(slots=True)
class Places:
    """The places of one application. `caller_max`: the share of one sharer. `requests_per_minute`: the rate of one organization."""

    caller_max: int
    requests_per_minute: int
    clock: Callable[[], float] = time.monotonic
    taken: int = 0
    followers: int = 0
    by_caller: Counter[str] = field(default_factory=Counter)
    working: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, deque[asyncio.Future[None]]] = field(default_factory=dict)
    rates: dict[tuple[str, bool], Rate] = field(default_factory=dict)
    recognized: dict[bytes, str] = field(default_factory=dict)
    refused_until: dict[str, float] = field(default_factory=dict)
    latest: "Asked | None" = None
    latest_of_another: "Asked | None" = None
    """The last request of another sharer than that of `latest`."""

    def note(self, sharer: str) -> None:
        """Note that a sharer asks now."""
        if self.latest is not None and self.latest.sharer != sharer:
            self.latest_of_another = self.latest
        self.latest = Asked(sharer, self.clock())

    def has_turn(self, organization: str) -> bool:
        """Return whether one more request of an organization may be worked on now."""
        other = self.latest_of_another if self.latest is not None and self.latest.sharer == organization else self.latest
        is_shared = other is not None and self.clock() - other.at < SHARED_SECONDS
        return self.working[organization] < (SHARED_WORK_MAX if is_shared else ORGANIZATION_WORK_MAX)

    def pace_refusal(self, organization: str) -> float:
        """Return for how many seconds a refusal of a request of an organization has to wait: for those before it."""
        now = self.clock()
        at = max(now, self.refused_until.get(organization, 0.0))
        if len(self.refused_until) >= RECOGNIZED_MAX:
            self.refused_until = {each: until for each, until in self.refused_until.items() if until > now}
        self.refused_until[organization] = min(at + 1 / REFUSALS_PER_SECOND, now + REFUSAL_SECONDS_MAX)
        return at - now

    def charge(self, organization: str, *, is_revocation: bool, count: int = 1) -> None:
        """Count a request of an organization; with `count` 0 see only whether there could be one. Raises Fault
        ADMINISTRATION_RATE_LIMITED."""
        now, per_second = self.clock(), self.requests_per_minute / 60
        rate = self.rates.get((organization, is_revocation))
        if rate is None:
            if len(self.rates) >= RECOGNIZED_MAX:
                self._forget_full(now)
            rate = self.rates[organization, is_revocation] = Rate(self.requests_per_minute, now)
        rate.left = min(float(self.requests_per_minute), rate.left + (now - rate.at) * per_second)
        rate.at = now
        if rate.left < 1:
            raise Fault(ADMINISTRATION_RATE_LIMITED, retry_after_seconds=(1 - rate.left) / per_second)
        rate.left -= count

    def _forget_full(self, now: float) -> None:
        """Drop the rates that have grown to a minute's worth: they are as new ones."""
        most = self.requests_per_minute
        self.rates = {key: rate for key, rate in self.rates.items() if rate.left + (now - rate.at) * most / 60 < most}


@dataclass(slots=True)
class Place:
    """The place of one request. `release` gives back whatever it has."""

    places: Places
    is_revocation: bool = False
    _is_taken: bool = False
    _is_follower: bool = False
    _caller: str | None = None
    _working: str | None = None
    sharer: str | None = None

    def take(self) -> None:
        """Take a place. Raises Fault OVERLOADED if there is none."""
        if self.places.taken >= REQUESTS_MAX + (REVOCATION_RESERVE if self.is_revocation else 0):
            raise Fault(OVERLOADED, message="The control plane is at capacity.")
        self.places.taken += 1
        self._is_taken = True

    def give_back(self) -> None:
        """Give the place, and the turn, back while the client is waited for."""
        if self._is_taken:
            self.places.taken -= 1
            self._is_taken = False
        self.end_turn()

    async def recognize(self, credential: bytes) -> None:
        """Count a request whose credential was last found to be of an organization against its share, and wait for its turn, before the
        database is asked whose it is. It proves nothing: whoever passes is still asked. Raises Fault as `count`, `charge` and
        `take_turn` do."""
        recognized, digest = self.places.recognized, hashlib.sha256(credential).digest()
        organization = recognized.get(digest)
        if organization is None:
            await self.take_turn(digest.hex())  # a credential that many requests present at once is looked up for a few of them
            organization = recognized.get(digest)
        if organization is not None:
            self.sharer = organization
            self.places.charge(organization, is_revocation=self.is_revocation, count=0)
            self.count(organization)
            await self.take_turn(organization)

    def forget(self, credential: bytes) -> None:
        """Forget whose a credential was that is none any more: whoever still has it takes no part of that organization's share."""
        self.places.recognized.pop(hashlib.sha256(credential).digest(), None)

    def charge(self, organization: str, credential: bytes) -> None:
        """Count the request by the rate of its organization. Raises Fault ADMINISTRATION_RATE_LIMITED (429)."""
        recognized, digest = self.places.recognized, hashlib.sha256(credential).digest()
        recognized.pop(digest, None)
        if len(recognized) >= RECOGNIZED_MAX:
            del recognized[next(iter(recognized))]
        recognized[digest] = organization
        self.places.charge(organization, is_revocation=self.is_revocation)

    def count(self, caller: str) -> None:
        """Count the request against its sharer, and against no other any more. Raises Fault CONCURRENCY_EXCEEDED (429) above the sharer's
        share."""
        self.sharer = caller
        self.places.note(caller)
        if self._caller == caller:
            return
        self._uncount()
        self._check_share(caller)
        self.places.by_caller[caller] += 1
        self._caller = caller

    def _uncount(self) -> None:
        if self._caller is not None:
            self.places.by_caller[self._caller] -= 1
            if not self.places.by_caller[self._caller]:
                del self.places.by_caller[self._caller]
            self._caller = None

    def _check_share(self, caller: str) -> None:
        if self.places.by_caller[caller] >= self.places.caller_max + (CALLER_REVOCATION_RESERVE if self.is_revocation else 0):
            raise Fault(CONCURRENCY_EXCEEDED, message="Too many concurrent requests of this organization, key or gateway.")

    async def take_turn(self, organization: str) -> None:
        """Wait until so few requests of the organization are worked on that this one can be, unless it has the turn already. Revocations do
        not wait. Raises Fault OVERLOADED after TURN_SECONDS_MAX."""
        if self._working == organization:
            return
        self.end_turn()
        places = self.places
        if not self.is_revocation and not places.has_turn(organization):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue = places.waiting.setdefault(organization, deque())
            queue.append(turn)
            try:
                async with asyncio.timeout(TURN_SECONDS_MAX):
                    await turn
            except BaseException as error:
                if turn.done() and not turn.cancelled():
                    _end_turn(places, organization)
                if isinstance(error, TimeoutError):
                    raise Fault(OVERLOADED, retry_after_seconds=1, message="The control plane is at capacity.") from None
                raise
        else:
            places.working[organization] += 1
        self._working = organization

    async def wait_to_refuse(self, fault: Fault) -> None:
        """Give back everything, and wait until the sharer may be given another refusal, if it asks more than it may."""
        self.release()
        if self.sharer is not None and fault.kind in (ADMINISTRATION_RATE_LIMITED, CONCURRENCY_EXCEEDED):
            await asyncio.sleep(self.places.pace_refusal(self.sharer))

    def follow(self) -> None:
        """Turn the request into a stream that is followed. Raises Fault OVERLOADED above FOLLOWERS_MAX."""
        if self.places.followers >= FOLLOWERS_MAX:
            raise Fault(OVERLOADED, message="Too many streams of changes are followed.")
        self.places.followers += 1
        self._is_follower = True
        self.give_back()

    def release(self) -> None:
        """Give back everything: the request is over."""
        self.give_back()
        if self._is_follower:
            self.places.followers -= 1
            self._is_follower = False
        self._uncount()

    def end_turn(self) -> None:
        """Let the next request of the organization be worked on."""
        working, self._working = self._working, None
        if working is not None:
            _end_turn(self.places, working)


def _end_turn(places: Places, organization: str) -> None:
    """Give the turn to the next requests of the organization that wait: to several where it may have more of them now than before."""
    places.working[organization] -= 1
    queue = places.waiting.get(organization)
    while queue and places.has_turn(organization):
        turn = queue.popleft()
        if not turn.done():
            turn.set_result(None)
            places.working[organization] += 1
    if not queue:
        places.waiting.pop(organization, None)
    if not places.working[organization]:
        del places.working[organization]
