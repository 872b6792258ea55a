"""Places of concurrent requests: how many a control process works on at once, and how many of them one caller may take.

Theory of operation. A request takes a place when it arrives and gives it back while its body is awaited, so that slow clients hold none; it
takes one again when the body is there. Before the body is read it also counts against its caller, whose share is far below all
places. A stream that gateways follow gives its place back once it begins, and counts against a bound of its own. Revocations may use a
reserve of places. Health takes none. Everything runs in the event loop, so nothing is locked.
"""

from collections import Counter
from dataclasses import dataclass, field

from tollway.domain.faults import CONCURRENCY_EXCEEDED, OVERLOADED, Fault

REQUESTS_MAX = 256
"""Places of one application: more than the worker threads and any waiting list that still makes sense."""

REVOCATION_RESERVE = 32
"""Places beyond REQUESTS_MAX that only a DELETE may take, because a key that has leaked must be revocable at any load."""

CALLER_REQUESTS_MAX = 32
"""Requests of one key at once in the public API: an eighth of the places, and more than any honest client of administration sends."""

CALLER_REVOCATION_RESERVE = 4
"""Requests of a key beyond its share that only a DELETE may be: whoever misuses a leaked key must not keep its owner from revoking it."""

NODE_REQUESTS_MAX = 16
"""Requests and followed streams of one gateway's key at once at the link. A gateway process holds four connections, and two processes run
while one takes over from the other."""

FOLLOWERS_MAX = 512
"""Streams of changes at once. A gateway follows one; each costs a descriptor and a few kilobytes."""


@dataclass(slots=True)
class Places:
    """The places of one application. `caller_max`: the share of one key."""

    caller_max: int
    taken: int = 0
    followers: int = 0
    by_caller: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Place:
    """The place of one request. `release` gives back whatever it has."""

    places: Places
    is_revocation: bool = False
    _is_taken: bool = False
    _is_follower: bool = False
    _caller: str | None = None

    def take(self) -> None:
        """Take a place. Raises Fault OVERLOADED if there is none."""
        if self.places.taken >= REQUESTS_MAX + (REVOCATION_RESERVE if self.is_revocation else 0):
            raise Fault(OVERLOADED, message="The control plane is at capacity.")
        self.places.taken += 1
        self._is_taken = True

    def give_back(self) -> None:
        """Give the place back while the client is waited for."""
        if self._is_taken:
            self.places.taken -= 1
            self._is_taken = False

    def count(self, caller: str) -> None:
        """Count the request against its caller, a key id. Raises Fault CONCURRENCY_EXCEEDED (429) above the caller's share."""
        if self.places.by_caller[caller] >= self.places.caller_max + (CALLER_REVOCATION_RESERVE if self.is_revocation else 0):
            raise Fault(CONCURRENCY_EXCEEDED, message="Too many concurrent requests of this key.")
        self.places.by_caller[caller] += 1
        self._caller = caller

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
        if self._caller is not None:
            self.places.by_caller[self._caller] -= 1
            if not self.places.by_caller[self._caller]:
                del self.places.by_caller[self._caller]
            self._caller = None
