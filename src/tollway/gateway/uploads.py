"""Large request bodies, from their head on: who sends one has authenticated, and paid a request of its rates, before it is read.

A body is refused by its head where the limits or the budget for buffered bytes say so. The request that was charged for it is given back
once the body has become a call, which `limit` charges in the same step; a body that becomes none, because it is broken, malicious or never
finished, has used its request.
"""

from tollway.domain.faults import Fault
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.counters import ONE_REQUEST
from tollway.gateway.memory_counters import MemoryHold

GROWTH_BYTES = 1024 * 1024
"""Steps in which a body of unknown length is counted."""


class Upload:
    """One large body. Each ends with `release`.

    `pieces`: the body, once it is complete; they are never joined on the event loop. `spans`: where each member of its top level begins
    and ends, in the order of `Call.names`, if a reader process found that (`body_reader_pool`); else empty.
    """

    __slots__ = ("_buffer", "_hold", "pieces", "spans")

    def __init__(self, buffer: BufferHold, hold: MemoryHold | None) -> None:
        """`hold`: the request that was charged; None where no limit applies."""
        self._buffer = buffer
        self._hold = hold
        self.pieces: tuple[bytes, ...] = ()
        self.spans: tuple[int, ...] = ()

    def expect(self, size: int) -> None:
        """Hold memory for a body of `size` bytes. Raises Fault body_too_large, rate_limit_exceeded or overloaded."""
        kind = self._buffer.grow_to(size)
        if kind is not None:
            raise Fault(kind, retry_after_seconds=None if kind.status == 413 else 1, detail="budget for buffered bytes")

    def expect_more(self, size: int) -> None:
        """Hold memory for `size` bytes beside the body. Raises as `expect` does."""
        self.expect(self._buffer.bytes + size)

    def count(self, size: int) -> None:
        """Count the bytes of a body of unknown length that have arrived. Raises as `expect` does."""
        if size > self._buffer.bytes:
            self.expect(max(LARGE_BYTES, -(-size // GROWTH_BYTES) * GROWTH_BYTES))

    @property
    def is_charged(self) -> bool:
        """Return whether a request is charged for it."""
        return self._hold is not None

    def charge(self, hold: MemoryHold | None) -> None:
        """Take over the request that was charged for a body that no request was charged for when it began."""
        assert self._hold is None
        self._hold = hold

    def refund(self, now_ns: int) -> None:
        """Give the request back that was charged: it is charged as a call now."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.refund(now_ns)

    def release(self, now_ns: int) -> None:
        """Hold nothing more. A request that was not given back stays charged."""
        self._buffer.release()
        self.pieces = ()
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.settle(ONE_REQUEST, now_ns)
