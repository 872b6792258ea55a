"""One connection to an engine, as a small state machine over a parser that nobody else sees.

    NEW ──ask──▶ ACTIVE ──settle──▶ IDLE ──ask──▶ ACTIVE
                   │                  ▲
                   └────settle────▶ DRAINING            any ──close, lost──▶ CLOSED

A connection carries one request at a time. It is ACTIVE from the request until the answer was taken (`settle`). It becomes IDLE, and
goes back to its upstream's pool, only if the request was sent whole and the answer ended by its own framing, so that the two ends agree
on where the next message begins. If the answer's content is complete but its framing is not ([DONE] was seen, the last chunk was not),
the connection is DRAINING for a moment. Everything else closes it.
"""

import asyncio
import fcntl
import struct
import termios
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

from tollway.domain import faults
from tollway.domain.catalog import Deployment
from tollway.domain.faults import Fault
from tollway.gateway.buffers import BufferAccount
from tollway.wire.http import IDLE_END, ReceivedAnswer, ResponseReader

DRAIN_BYTES_MAX: Final = 64 * 1024
"""With how many bytes of body an engine may end a message whose content is complete."""

SEND_BYTES: Final = 256 * 1024
"""Part of a large body that is written in one turn of the loop: a tenth of a millisecond."""


class ConnectionState(StrEnum):
    """State of a connection."""

    __hash__ = str.__hash__  # Enum's own is a call into Python

    NEW = "NEW"
    ACTIVE = "ACTIVE"
    IDLE = "IDLE"
    DRAINING = "DRAINING"
    CLOSED = "CLOSED"


_NEW: Final = ConnectionState.NEW
_ACTIVE: Final = ConnectionState.ACTIVE
_IDLE: Final = ConnectionState.IDLE
_DRAINING: Final = ConnectionState.DRAINING
_CLOSED: Final = ConnectionState.CLOSED
_TRANSITIONS: Final[dict[ConnectionState, frozenset[ConnectionState]]] = {
    _NEW: frozenset({_ACTIVE, _CLOSED}),
    _ACTIVE: frozenset({_IDLE, _DRAINING, _CLOSED}),
    _IDLE: frozenset({_ACTIVE, _CLOSED}),
    _DRAINING: frozenset({_IDLE, _CLOSED}),
    _CLOSED: frozenset(),
}


class TransitionError(Exception):
    """A connection was asked to change to a state that cannot follow its own: a defect of the caller."""


class Sink(Protocol):
    """Takes the answer to one request."""

    def received(self, answer: ReceivedAnswer) -> None:
        """More of the answer was read."""
        ...

    def received_chunk(self, data: bytes) -> bool:
        """Take bytes that begin with a chunk, before they are parsed. Return True if they are whole chunks and were taken; otherwise they
        are parsed, and `received` is called."""
        ...

    def lost(self) -> None:
        """The connection is closed; `answer` has what came before."""
        ...


class Pool(Protocol):
    """The upstream that a connection belongs to. `account`: of the bytes that are held for it. `echoes_ids`: it has answered with the id of
    a request, so it always does."""

    deployment: Deployment
    account: BufferAccount
    echoes_ids: bool

    def put_idle(self, connection: "UpstreamConnection") -> bool:
        """Keep an idle connection for the next request. Return False if it must be closed."""
        ...

    def put_draining(self, connection: "UpstreamConnection") -> None:
        """Close the connection unless the end of its message arrives soon."""
        ...

    def forget(self, connection: "UpstreamConnection") -> None:
        """The connection left the state IDLE or DRAINING by being closed."""
        ...

    def learn_input(self, prompt_bytes: int, tokens: int) -> None:
        """Learn how many tokens the engine counts in the bytes of a request."""
        ...

    def estimate_input(self, prompt_bytes: int) -> int:
        """Return about how many tokens the engine counts in so many bytes of a request."""
        ...

    def count_open(self, change: int) -> None:
        """Count a connection that was opened (1) or lost (-1)."""
        ...

    def count_unsolicited(self) -> None:
        """Bytes arrived that are no answer to what was asked on their connection."""
        ...


_REFUSED: Final = 400
"""Status from which on an answer is a refusal, for which nobody has to read a body."""


def _count_unacknowledged(descriptor: int) -> int:
    """Return how many bytes of those that were sent the kernel of the other end has not acknowledged (SIOCOUTQ, tcp(7))."""
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
    return count


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine.

    `answer`: what was read of the answer to the last request. `settled_at`: when that answer was taken, in seconds of the monotonic clock.
    `paused`: whether nothing is read until `resume`.
    """

    __slots__ = (
        "_drained_from",
        "_is_full",
        "_is_large",
        "_reader",
        "_sink",
        "_transport",
        "_unsent",
        "answer",
        "paused",
        "requests",
        "settled_at",
        "state",
        "upstream",
    )

    def __init__(self, upstream: Pool) -> None:
        self.upstream = upstream
        self.state = _NEW
        self.requests = 0
        self.settled_at = 0.0
        self.paused = False
        self._reader = ResponseReader()
        self.answer: ReceivedAnswer = self._reader
        self._sink: Sink | None = None
        self._transport: asyncio.Transport | None = None
        self._drained_from = 0
        self._unsent: deque[bytes] | None = None
        self._is_full = False
        self._is_large = False

    def __repr__(self) -> str:
        return f"<UpstreamConnection {self.state} requests={self.requests}>"

    def _enter(self, state: ConnectionState) -> None:
        if state not in _TRANSITIONS[self.state]:
            raise TransitionError(f"{self!r} cannot become {state}")
        self.state = state

    # What an attempt at answering a request asks of it.

    def ask(self, message: bytes, sink: Sink, pieces: Sequence[bytes] = ()) -> None:
        """Send a request, whose answer goes to `sink`. `pieces`: what follows `message`, sent as fast as the engine reads it.

        Raises Fault upstream_unreachable if the engine has closed a new connection already, and TransitionError if another request is under
        way."""
        transport = self._transport
        if transport is None or self.state is _CLOSED:
            raise Fault(faults.UPSTREAM_CONNECT, detail="closed before a request was sent")
        self._enter(_ACTIVE)
        if self.requests:
            self._reader.restart()
        self.requests += 1
        self._sink = sink
        transport.write(message)
        if pieces:
            self._is_large = True
            self._unsent = deque(pieces)
            self._send_more()

    def _send_more(self) -> None:
        """Write the next pieces of a large body: SEND_BYTES in one turn of the loop, and none while the socket takes no more."""
        unsent, transport = self._unsent, self._transport
        if unsent is None or transport is None:
            return
        sent = 0
        while unsent and not self._is_full:
            if sent >= SEND_BYTES:
                asyncio.get_running_loop().call_soon(self._send_more)
                return
            piece = unsent.popleft()
            sent += len(piece)
            transport.write(piece)
        if not unsent:
            self._unsent = None

    def settle(self, now: float) -> None:
        """The answer was taken: keep the connection for another request, wait for the end of its message, or close it. Does nothing if
        the engine closed it before."""
        if self.state is _CLOSED:
            return
        self._sink = None
        self.settled_at = now
        if self.paused:
            self.resume()  # the next request must not wait because the client of this one was slow
        reader = self._reader
        if reader.complete or reader.broken:
            self._end_message()
        else:
            self._enter(_DRAINING)
            self._drained_from = reader.body_bytes
            self.upstream.put_draining(self)

    def _end_message(self) -> None:
        reader, transport = self._reader, self._transport
        is_clean = reader.complete and not reader.broken and reader.keep_alive
        # An engine may answer before it has read the request; what is still to be sent would follow the answer.
        if not is_clean or transport is None or self._unsent is not None or transport.get_write_buffer_size():
            self.close()
            return
        if self._is_large:
            if self._may_be_unread(transport):
                self.close()
                return
            self._is_large = False
        self._enter(_IDLE)
        if not self.upstream.put_idle(self):
            self.close()

    def _may_be_unread(self, transport: asyncio.Transport) -> bool:
        """Return whether the engine may have answered the large body that it was sent before it read it: it refused it, or has not
        acknowledged all of it. The next request would stand behind what is left."""
        if self.answer.status >= _REFUSED:
            return True
        connected = transport.get_extra_info("socket")
        return connected is not None and _count_unacknowledged(connected.fileno()) > 0

    def close(self) -> None:
        """Close at once: the engine sees a disconnect and stops working. The sink is not called."""
        self._sink = self._unsent = None
        self._leave()
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Read nothing more until `resume`: the engine is slowed down by its own socket."""
        self.paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self.paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    def release_parser(self) -> None:
        """Release the parser's memory if the answer is between two chunks; it is made again when it is needed."""
        self._reader.release_parser()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.upstream.count_open(1)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._send_more()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        sink = self._sink
        if sink is not None:
            if reader.between_chunks and sink.received_chunk(data):
                return
            reader.feed(data)
            sink.received(reader)
        elif self.state is _DRAINING:
            self._drain(data)
        elif self.state is not _CLOSED:
            if not IDLE_END.match(data):
                self.upstream.count_unsolicited()
            self.close()

    def _drain(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        reader.body.clear()
        if reader.complete or reader.broken:
            self._end_message()
        elif reader.body_bytes > self._drained_from + DRAIN_BYTES_MAX:
            self.close()

    def eof_received(self) -> bool:
        self._reader.eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._transport = self._unsent = None
        self._reader.close()
        self.upstream.count_open(-1)
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.lost()

    def _leave(self) -> None:
        if self.state is _CLOSED:
            return
        is_kept = self.state is _IDLE or self.state is _DRAINING
        self._enter(_CLOSED)
        if is_kept:
            self.upstream.forget(self)
