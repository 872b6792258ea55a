"""Budget for the bytes that this process holds for others: large request bodies and answers, in all and for each key and each upstream.

A message is counted from LARGE_BYTES on. Smaller ones cost nothing here and are bounded by the number of connections. A request body counts
for its API key from its head until its request ends, and once more for the upstream that it is sent to, because a translated one lies in
memory beside it until the engine has read it. A stream that is recorded counts for its API key. An answer that is held until it is whole
counts for its upstream, and one that its client has not read yet for the process.

Large messages are read in turns, so that many of them at once take no more of each turn of the event loop than one.
"""

import asyncio
from collections import deque
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec

from tollway.domain import faults
from tollway.domain.faults import FaultKind
from tollway.wire.http import WHOLE_BYTES_MAX

LARGE_BYTES = WHOLE_BYTES_MAX


class BufferBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Most bytes of large messages that are held: `total_bytes_max` by the process, `key_bytes_max` for one API key,
    `upstream_bytes_max` for one upstream. `readers`: processes that read large bodies; with 0 the gateway does."""

    total_bytes_max: int = 1024 * 1024 * 1024
    key_bytes_max: int = 256 * 1024 * 1024
    upstream_bytes_max: int = 512 * 1024 * 1024
    readers: int = 1


class Paused(Protocol):
    """The receiver of a large message that reads nothing for the moment."""

    def read_on(self) -> None:
        """Read again, unless there is another reason not to, or the end has come."""
        ...


class ReadTurns:
    """Receivers of large messages that have read a part and wait to read the next. In each turn of the event loop one reads."""

    def __init__(self) -> None:
        self._waiting: deque[Paused] = deque()

    def wait(self, receiver: Paused) -> None:
        """Call `receiver.read_on` in a turn of its own, soon: after those who wait already."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._read_next)
        self._waiting.append(receiver)

    def _read_next(self) -> None:
        receiver = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._read_next)
        receiver.read_on()


class Buffers:
    """The bytes that are held now. `total`: in all. `turns`: in which large messages are read."""

    def __init__(self, bounds: BufferBounds) -> None:
        self.total = 0
        self.bounds = bounds
        self.turns = ReadTurns()
        self._keys: WeakValueDictionary[str, BufferAccount] = WeakValueDictionary()

    def find_key(self, key_id: str) -> "BufferAccount":
        """Return the account of an API key. It lives as long as a hold on it."""
        account = self._keys.get(key_id)
        if account is None:
            account = self._keys[key_id] = BufferAccount(self, self.bounds.key_bytes_max, faults.UPLOADS_EXCEEDED)
        return account

    def add_upstream(self) -> "BufferAccount":
        """Return a new account for an upstream."""
        return BufferAccount(self, self.bounds.upstream_bytes_max, faults.UPSTREAM_RATE_LIMITED)


class BufferAccount:
    """Bytes that are held for one key or upstream. `fault`: of a request that would exceed `bytes_max`."""

    __slots__ = ("__weakref__", "buffers", "bytes", "bytes_max", "fault")

    def __init__(self, buffers: Buffers, bytes_max: int, fault: FaultKind) -> None:
        self.buffers = buffers
        self.bytes_max = bytes_max
        self.fault = fault
        self.bytes = 0


class BufferHold:
    """The bytes held for one message. `account`: None counts for the process alone."""

    __slots__ = ("_account", "_buffers", "bytes")

    def __init__(self, buffers: Buffers, account: BufferAccount | None = None) -> None:
        self._buffers = buffers
        self._account = account
        self.bytes = 0

    def grow_to(self, size: int) -> FaultKind | None:
        """Hold `size` bytes in place of fewer. Return the fault of a message that the budget does not suffice for, with nothing changed."""
        more, account, buffers = size - self.bytes, self._account, self._buffers
        if more <= 0:
            return None
        if account is not None and account.bytes + more > account.bytes_max:
            return faults.BODY_TOO_LARGE if size > account.bytes_max else account.fault
        if buffers.total + more > buffers.bounds.total_bytes_max:
            return faults.OVERLOADED
        self.take(more)
        return None

    def take(self, more: int) -> None:
        """Hold so many bytes more, whatever the budget is: they are there already."""
        self.bytes += more
        self._buffers.total += more
        if self._account is not None:
            self._account.bytes += more

    def release(self) -> None:
        """Hold nothing."""
        self.take(-self.bytes)
