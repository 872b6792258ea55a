"""The two ends of a session as asyncio protocols: a client's connection that was taken over, and a connection to an engine."""

import asyncio
import base64
from collections.abc import Callable
from typing import Final, Protocol

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.driver import Waiter
from tollway.wire import web_sockets
from tollway.wire.web_sockets import WebSocket

HEAD_BYTES_MAX: Final = 16 * 1024
"""Longest answer of an engine to a handshake."""


FRAMES_PER_SECOND: Final = 200.0
FRAMES_AT_ONCE: Final = 500.0
"""Frames of a client that are read in a second, and at once, if it sent none for a while; the next ones are read later. One costs the
event loop up to a tenth of a millisecond, however short it is. Speech is sent in 50 messages a second at most."""

LINGER_SECONDS: Final = 5.0
"""Time in which an end has to read what it was sent before its connection is closed."""


class Owner(Protocol):
    """Receives what happens at an end."""

    def received(self, end: "End", messages: list[bytes]) -> None:
        """Messages came, and perhaps the end of the connection (`End.closed`)."""
        ...

    def lost(self, end: "End") -> None:
        """The connection is gone."""
        ...

    def paced(self) -> None:
        """The other side of an end reads slower than it is sent, or has caught up (`End.slow_since`)."""
        ...


class End(asyncio.Protocol):
    """One end. `heard_at`: when bytes came last, or it was read again, in seconds of the loop's clock. `slow_since`: since when the other
    side reads slower than it is sent; None if it keeps up."""

    def __init__(self, socket: WebSocket, owner: Owner, *, is_paced: bool = False) -> None:
        """`is_paced`: of what the other side sends, FRAMES_PER_SECOND are taken at most."""
        self.socket = socket
        self._is_paced = is_paced
        self._counted = 0
        self._paid_until = 0.0
        self.heard_at = asyncio.get_running_loop().time()
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._is_reading = self._is_flowing = True
        self._turn: asyncio.Handle | None = None
        self.slow_since: float | None = None

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason of the end of the connection, if it has ended or is ending."""
        return self.socket.closed

    @property
    def is_open(self) -> bool:
        """Return whether messages can be sent."""
        return self._transport is not None and self.socket.closed is None

    @property
    def is_reading(self) -> bool:
        """Return whether the other side is read at all."""
        return self._is_reading

    @property
    def has_more(self) -> bool:
        """Return whether messages are still to come of what was read."""
        return self.socket.has_more

    def take(self, transport: asyncio.Transport) -> None:
        """Go on with a connection that another protocol had."""
        self._transport = transport
        transport.set_protocol(self)
        transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Hand over the first messages of what was read; the others in later turns of the loop."""
        messages = self.socket.feed(data)
        self._flush()
        if messages or self.socket.closed is not None:
            self._owner.received(self, messages)
        self._pace()

    def _pace(self) -> None:
        """Read no further while messages of what was read are to be handed over, or more frames came than are read in this time."""
        has_more = self.socket.has_more
        wait = self._find_wait() if self._is_paced else 0.0
        if (has_more or wait) and self._is_reading and self._turn is None:
            loop = asyncio.get_running_loop()
            self._turn = loop.call_later(wait, self._take_turn) if wait else loop.call_soon(self._take_turn)
        transport, is_wanted = self._transport, self._is_reading and not has_more and not wait
        if transport is None or transport.is_closing() or is_wanted is self._is_flowing:
            return
        self._is_flowing = is_wanted
        if is_wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _find_wait(self) -> float:
        """Charge the frames that came since the last call. Return for how many seconds nothing more is taken."""
        now, frames = asyncio.get_running_loop().time(), self.socket.frames
        self._paid_until = max(self._paid_until, now) + (frames - self._counted) / FRAMES_PER_SECOND
        self._counted = frames
        return max(self._paid_until - now - FRAMES_AT_ONCE / FRAMES_PER_SECOND, 0.0)

    def _take_turn(self) -> None:
        self._turn = None
        if self._is_reading:
            self._take(b"")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._is_paced and self._turn is not None:
            self._turn.cancel()
        self._owner.lost(self)

    def pause_writing(self) -> None:
        self.slow_since = asyncio.get_running_loop().time()
        self._owner.paced()

    def resume_writing(self) -> None:
        self.slow_since = None
        self._owner.paced()

    def send(self, message: bytes) -> None:
        """Send a message; nothing if the connection has ended."""
        self.socket.send(message)
        self._flush()

    def ping(self) -> None:
        """Ask whether the other side is there."""
        self.socket.ping()
        self._flush()

    def close(self, code: int, reason: str = "") -> None:
        """End the connection in order, once what was sent has left."""
        self.socket.close(code, reason)
        self._flush()
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.abort)

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def read(self, is_wanted: bool) -> None:
        """Read on, or nothing more until the next call."""
        if is_wanted == self._is_reading:
            return
        self._is_reading = is_wanted
        if is_wanted:
            self.heard_at = asyncio.get_running_loop().time()
        self._pace()

    def _flush(self) -> None:
        if self.socket.out and self._transport is not None:
            self._transport.write(bytes(self.socket.out))
        self.socket.out.clear()


class EngineEnd(End):
    """A connection to an engine: first the handshake, then messages."""

    def __init__(self, socket: WebSocket, owner: Owner, random_bits: Callable[[int], int]) -> None:
        super().__init__(socket, owner)
        self.key = base64.b64encode(random_bits(128).to_bytes(16, "big"))
        self._head = bytearray()
        self._is_open = False
        self._fault: Fault | None = None
        self._waiter = Waiter()

    def ask(self, head: bytes) -> Waiter:
        """Send the request. Await the result for the answer; it raises Fault for any but 101. `interrupt` ends the wait."""
        if self._transport is None:
            raise Fault(faults.UPSTREAM_CONNECT, detail="closed before a request was sent")
        self._transport.write(head)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        if self._is_open:
            super().data_received(data)
            return
        self._head += data
        head, blank, rest = bytes(self._head).partition(b"\r\n\r\n")
        if blank:
            self._head.clear()
            fault = self._read_head(head)
            if fault is not None:
                self._fail(fault)
                return
            self._is_open = True
            self._waiter.resume()
            if rest:
                super().data_received(rest)
        elif len(self._head) > HEAD_BYTES_MAX:
            self._fail(Fault(faults.UPSTREAM_INVALID, detail="no answer to the handshake"))

    def _read_head(self, head: bytes) -> Fault | None:
        first, *lines = head.split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if not first.startswith(b"HTTP/1.1 101 ") and first != b"HTTP/1.1 101":
            status = first[9:12]
            if status in (b"429", b"503"):
                return Fault(faults.UPSTREAM_REFUSED, retry_after_seconds=1, detail="the engine takes no session")
            if status == b"404":
                return Fault(faults.UPSTREAM_MISCONFIGURED, detail="the engine has no /v1/realtime")
            shown = status.decode("latin-1") if status.isdigit() else "no HTTP answer"
            return Fault(faults.UPSTREAM_FAILED, detail=f"handshake: {shown}")
        is_right = fields.get(b"sec-websocket-accept") == web_sockets.accept(self.key) and b"sec-websocket-extensions" not in fields
        return None if is_right else Fault(faults.UPSTREAM_INVALID, detail="an answer to another handshake")

    def _fail(self, fault: Fault) -> None:
        self._waiter.resume(fault)
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiter.resume(Fault(faults.UPSTREAM_FAILED, detail="the connection was closed before an answer"))
        super().connection_lost(exc)
