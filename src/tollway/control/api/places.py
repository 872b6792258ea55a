"""Places of concurrent requests, turns at the work, and rates: what one organization or gateway may take of a control process.

Theory of operation. A request takes a place when it arrives and gives it back while its body is awaited, so that slow clients hold none; it
takes one again when the body is there. Before the body is read it also counts against its **sharer**: the organization, whichever of its
keys it has; an operator's key; a gateway. The share is far below all places. Of the requests that an organization has, a few are worked
on at once (one, while others ask too) and the others wait for their turn, so that it never fills the worker threads that all share. While
others ask, an organization rests after each turn for as long as the turn took, a second at most: it works half of the time. While a request
of an operator is worked on, an organization that rested begins its next turn a little later: a revocation is a few statements that write.
A streamed answer takes a turn for each of its chunks, and has none while the client reads.
Requests of organizations are counted by rate as well. A credential is remembered by the organization that it was found to be of: with it, a
request counts against the share and the rate, and waits for its turn, before the database is asked whose it is. Refusals of one
organization are spaced out. A client at a public route, or with a credential that was not presented before, counts as unauthenticated: at
the public API those share by their network address, as the keys of an organization do.

A stream that gateways or pages of the console follow gives its place back once it begins, and counts against bounds of its own. Revocations
may use a reserve of places, and have a rate of their own. Health takes none. Everything runs in the event loop, so nothing is locked.
"""

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tollway.domain.faults import (
    ADMINISTRATION_RATE_LIMITED,
    CONCURRENCY_EXCEEDED,
    METHOD_UNSUPPORTED,
    OVERLOADED,
    ROUTE_UNKNOWN,
    Fault,
)

Chunk = TypeVar("Chunk")

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

REST_FACTOR = 1.0
"""Rest of an organization after a turn, as a multiple of the turn's time, while another sharer asks. Without it an operator's call takes
1.5 times as long as alone, and a revocation, which is two of them that write, 1.8 times."""

REST_SECONDS_MAX = 1.0
"""For an organization to rest after one turn: far below TURN_SECONDS_MAX, so that a long request refuses none of those that wait."""

HELD_SECONDS_MAX = 0.1
"""Time after its rest for which an organization begins no turn while a request of an operator is worked on. With operators who ask
without a pause it still has a few turns a second."""

SHARED_SECONDS = 0.5
"""Time after a request for which its sharer counts as one that asks. Health probes have no sharer."""

REFUSALS_PER_SECOND = 20.0
"""Refusals above its rate or share that an organization is given. Whoever asks again at once would have the event loop do nothing else."""

REFUSAL_SECONDS_MAX = 5.0
"""For a refusal to wait."""

TURN_SECONDS_MAX = 15.0
"""For a request to wait for its turn."""

CHUNK_TURN_SECONDS_MAX = 60.0
"""For a chunk of a streamed answer to wait for its turn. Whatever waited before it is gone after TURN_SECONDS_MAX, so that a stream
breaks off only behind a single request that takes longer."""

RECOGNIZED_MAX = 4096
"""Credentials whose sharer is remembered, those used last."""

NODE_REQUESTS_MAX = 16
"""Requests and followed streams of one gateway at once at the link. A gateway process holds four connections, and two processes run
while one takes over from the other."""

FOLLOWERS_MAX = 512
"""Streams of changes at once. A gateway follows one; each costs a descriptor and a few kilobytes."""

FOLLOWED_MAX = 8
"""Streams that one organization, or one operator, follows at once at the public API: a quarter of its share, so that pages that are left
open keep nobody of it from asking."""

_ROUTELESS = (ROUTE_UNKNOWN, METHOD_UNSUPPORTED)
"""Faults of requests that no route has taken, so that nobody was asked who sends them."""

ROUTELESS_SECONDS = 1.0
"""Time by which those of one address may be ahead of their pace: REFUSALS_PER_SECOND are answered without a wait."""


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
    """The places of one application. `caller_max`: the share of one sharer. `requests_per_minute`: the rate of one organization.
    `shares_addresses`: unauthenticated clients share by their address; not at the link, whose gateways may all come from one."""

    caller_max: int
    requests_per_minute: int
    clock: Callable[[], float] = time.monotonic
    shares_addresses: bool = False
    taken: int = 0
    followers: int = 0
    followed: Counter[str] = field(default_factory=Counter)
    """Streams that each sharer of the public API follows."""
    by_caller: Counter[str] = field(default_factory=Counter)
    working: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, deque[asyncio.Future[None]]] = field(default_factory=dict)
    rates: dict[tuple[str, bool], Rate] = field(default_factory=dict)
    recognized: dict[bytes, str] = field(default_factory=dict)
    refused_until: dict[str, float] = field(default_factory=dict)
    resting_until: dict[str, float] = field(default_factory=dict)
    preferred: int = 0
    """Requests of operators that are worked on."""
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
        if not self.is_shared(organization):
            return self.working[organization] < ORGANIZATION_WORK_MAX
        return self.working[organization] < SHARED_WORK_MAX and self.find_pause(organization) <= 0

    def is_shared(self, organization: str) -> bool:
        """Return whether another sharer than an organization asks too."""
        other = self.latest_of_another if self.latest is not None and self.latest.sharer == organization else self.latest
        return other is not None and self.clock() - other.at < SHARED_SECONDS

    def rest(self, organization: str, seconds: float) -> None:
        """Let an organization rest whose turn took so long, if others ask."""
        if not self.is_shared(organization):
            return
        now = self.clock()
        if len(self.resting_until) >= RECOGNIZED_MAX:
            self.resting_until = {each: until for each, until in self.resting_until.items() if until > now}
        self.resting_until[organization] = now + min(seconds * REST_FACTOR, REST_SECONDS_MAX)

    def find_rest(self, organization: str) -> float:
        """Return for how many seconds an organization rests from now on; 0 or less for one that does not."""
        return self.resting_until.get(organization, 0.0) - self.clock()

    def find_pause(self, organization: str) -> float:
        """Return for how many seconds an organization begins no turn from now on, as long as the requests of operators that are worked on
        last; 0 or less if it may."""
        return self.find_rest(organization) + (HELD_SECONDS_MAX if self.preferred else 0.0)

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
    """The place of one request. `address`: the client's. `is_health`: a probe, which waits for nobody. `release` gives back whatever it
    has."""

    places: Places
    is_revocation: bool = False
    address: str = ""
    is_health: bool = False
    _is_taken: bool = False
    _is_follower: bool = False
    _caller: str | None = None
    _followed: str | None = None
    _working: str | None = None
    _working_since: float = 0.0
    _is_preferred: bool = False
    sharer: str | None = None

    def take(self) -> None:
        """Take a place. Raises Fault OVERLOADED if there is none."""
        if self.places.taken >= REQUESTS_MAX + (REVOCATION_RESERVE if self.is_revocation else 0):
            raise Fault(OVERLOADED, message="The control plane is at capacity.")
        self.places.taken += 1
        self._is_taken = True

    @property
    def turn(self) -> str | None:
        """Return the sharer whose turn the request has; None without one."""
        return self._working

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
        if organization is None:  # credentials that many requests present at once are looked up for a few of them
            if self.places.shares_addresses:
                await self.admit_unauthenticated()
            else:
                await self.take_turn(digest.hex())
            organization = recognized.get(digest)
        if organization:
            self.sharer = organization
            self.places.charge(organization, is_revocation=self.is_revocation, count=0)
            self.count(organization)
            await self.take_turn(organization)

    async def admit_unauthenticated(self) -> None:
        """Count a request of which nobody is known against the share of its address, and wait for the turn of that. Raises Fault as `count`
        and `take_turn` do."""
        if self.places.shares_addresses and not self.is_health:
            sharer = f"address {self.address}"
            self.count(sharer)
            await self.take_turn(sharer)

    def remember(self, credential: bytes, organization: str = "") -> None:
        """Remember whose a credential was found to be; the empty string for an operator or a gateway, whose requests wait for no turn."""
        recognized, digest = self.places.recognized, hashlib.sha256(credential).digest()
        recognized.pop(digest, None)
        if len(recognized) >= RECOGNIZED_MAX:
            del recognized[next(iter(recognized))]
        recognized[digest] = organization

    def forget(self, credential: bytes) -> None:
        """Forget whose a credential was that is none any more: whoever still has it takes no part of that organization's share."""
        self.places.recognized.pop(hashlib.sha256(credential).digest(), None)

    def charge(self, organization: str, credential: bytes) -> None:
        """Count the request by the rate of its organization. Raises Fault ADMINISTRATION_RATE_LIMITED (429)."""
        self.remember(credential, organization)
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
            raise Fault(CONCURRENCY_EXCEEDED, message="Too many concurrent requests of this organization, key, gateway or address.")

    async def take_turn(self, organization: str, seconds_max: float = TURN_SECONDS_MAX) -> None:
        """Wait until so few requests of the organization are worked on that this one can be, unless it has the turn already. Revocations do
        not wait. Raises Fault OVERLOADED after `seconds_max`."""
        if self._working == organization:
            return
        self.end_turn()
        places = self.places
        if not self.is_revocation and not places.has_turn(organization):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue = places.waiting.setdefault(organization, deque())
            queue.append(turn)
            if len(queue) == 1 and not places.working[organization]:
                _wake_later(places, organization)
            try:
                async with asyncio.timeout(seconds_max):
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
        self._working_since = places.clock()

    async def stream(self, chunks: AsyncIterable[Chunk], organization: str) -> AsyncIterator[Chunk]:
        """Yield the chunks of an answer, each made in a turn of its own: none is held while the client reads. Raises Fault OVERLOADED where
        a chunk waited for longer than CHUNK_TURN_SECONDS_MAX."""
        made = aiter(chunks)
        while True:
            await self.take_turn(organization, CHUNK_TURN_SECONDS_MAX)
            try:
                chunk = await anext(made)
            except StopAsyncIteration:
                return
            finally:
                self.end_turn()
            yield chunk

    async def wait_to_refuse(self, fault: Fault) -> None:
        """Give back everything, and wait until the sharer may be given another refusal, if it asks more than it may, or for what
        is not there."""
        self.release()
        if fault.kind in _ROUTELESS and self.places.shares_addresses:
            await asyncio.sleep(max(0.0, self.places.pace_refusal(f"address {self.address}") - ROUTELESS_SECONDS))
        elif self.sharer is not None and fault.kind in (ADMINISTRATION_RATE_LIMITED, CONCURRENCY_EXCEEDED):
            await asyncio.sleep(self.places.pace_refusal(self.sharer))

    def follow(self) -> None:
        """Turn the request into a stream that is followed. Raises Fault OVERLOADED above FOLLOWERS_MAX; CONCURRENCY_EXCEEDED where its
        sharer follows FOLLOWED_MAX at the public API."""
        places = self.places
        if places.followers >= FOLLOWERS_MAX:
            raise Fault(OVERLOADED, message="Too many streams of changes are followed.")
        if places.shares_addresses and self._caller is not None:
            if places.followed[self._caller] >= FOLLOWED_MAX:
                raise Fault(
                    CONCURRENCY_EXCEEDED, message=f"There are {FOLLOWED_MAX} open streams already; close a page, or reload this one later."
                )
            places.followed[self._caller] += 1
            self._followed = self._caller
        places.followers += 1
        self._is_follower = True
        self.give_back()

    @property
    def is_follower(self) -> bool:
        """Return whether the request is a stream that is followed: it takes turns for what it reads, and has none while it waits."""
        return self._is_follower

    def release(self) -> None:
        """Give back everything: the request is over."""
        self.give_back()
        self.end_preference()
        if self._is_follower:
            self.places.followers -= 1
            self._is_follower = False
        if self._followed is not None:
            self.places.followed[self._followed] -= 1
            if not self.places.followed[self._followed]:
                del self.places.followed[self._followed]
            self._followed = None
        self._uncount()

    def prefer(self) -> None:
        """Let organizations that rested wait a little longer: the request is an operator's, and is worked on from now on."""
        self.places.preferred += 1
        self._is_preferred = True

    def end_preference(self) -> None:
        """Let them go on: the request is worked on no more."""
        places = self.places
        if self._is_preferred:
            self._is_preferred = False
            places.preferred -= 1
            if not places.preferred:
                for organization in list(places.waiting):
                    if not places.working[organization] and places.has_turn(organization):
                        _wake(places, organization)

    def end_turn(self) -> None:
        """Let the next request of the organization be worked on."""
        working, self._working = self._working, None
        if working is not None:
            self.places.rest(working, self.places.clock() - self._working_since)
            _end_turn(self.places, working)


def _end_turn(places: Places, organization: str) -> None:
    """End the turn of one request of the organization."""
    places.working[organization] -= 1
    _wake(places, organization)
    if not places.working[organization]:
        del places.working[organization]


def _wake(places: Places, organization: str) -> None:
    """Give the turn to the next requests of the organization that wait: to several where it may have more of them now than before."""
    queue = places.waiting.get(organization)
    while queue and places.has_turn(organization):
        turn = queue.popleft()
        if not turn.done():
            turn.set_result(None)
            places.working[organization] += 1
    if not queue:
        places.waiting.pop(organization, None)
    elif not places.working[organization]:
        _wake_later(places, organization)


def _wake_later(places: Places, organization: str) -> None:
    """Wake the requests of an organization that wait, of which none is worked on, once it has rested."""
    asyncio.get_running_loop().call_later(max(0.0, places.find_pause(organization)), _wake, places, organization)
