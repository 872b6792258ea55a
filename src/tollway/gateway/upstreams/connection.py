"""One connection to an engine."""

import asyncio
from typing import Protocol

from tollway.domain.catalog import Deployment
from tollway.wire.http import ResponseReader

DRAIN_BYTES_MAX = 64 * 1024
"""With how many bytes a connection may end a message whose content is complete."""


class Pool(Protocol):
    """What a connection asks of the upstream that it belongs to."""

    deployment: Deployment

    def put_idle(self, connection: "UpstreamConnection") -> None:
        """Keep a connection whose message ended cleanly."""
        ...

    def put_draining(self, connection: "UpstreamConnection") -> None:
        """Wait for the end of a message whose content is complete."""
        ...

    def is_draining(self, connection: "UpstreamConnection") -> bool:
        """Whether the end of a settled message is still awaited on this connection."""
        ...

    def forget(self, connection: "UpstreamConnection") -> None:
        """The connection is gone."""
        ...


class Sink(Protocol):
    """Who asked: told when bytes were read into the connection's reader, and when the connection is lost."""

    def received(self) -> None:
        """The reader has news."""
        ...

    def received_chunk(self, data: bytes) -> bool:
        """Bytes that begin with a chunk (`ResponseReader.between_chunks`). True if they were whole chunks and are dealt with; otherwise
        they go through the reader."""
        ...

    def lost(self) -> None:
        """The connection is gone; the reader holds what came before."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine."""

    __slots__ = ("_settled_bytes", "idle_since", "paused", "reader", "reused", "sink", "transport", "upstream")

    def __init__(self, upstream: "Pool") -> None:
        self.upstream = upstream
        self.reader = ResponseReader()
        self.sink: Sink | None = None
        self.transport: asyncio.Transport | None = None
        self.reused = False
        self.idle_since = 0.0
        self._settled_bytes = 0
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def ask(self, message: bytes, sink: Sink) -> None:
        """Send a request; `sink` hears of the answer."""
        assert self.transport is not None
        self.sink = sink
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        sink = self.sink
        if reader.between_chunks and sink is not None and sink.received_chunk(data):
            return
        reader.feed(data)
        if sink is not None:
            sink.received()
        else:
            self._unasked()

    def _unasked(self) -> None:
        """Bytes with nobody waiting: the end of a message already settled, or something that must not be trusted."""
        reader = self.reader
        reader.body.clear()  # settled: nobody takes it, and it must not gather
        if not self.upstream.is_draining(self) or reader.broken or reader.body_bytes > self._settled_bytes + DRAIN_BYTES_MAX:
            self.abort()
        elif reader.complete:
            self.upstream.put_idle(self)

    def eof_received(self) -> bool:
        self.reader.eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.forget(self)
        self.transport = None
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.lost()

    def abort(self) -> None:
        """Close at once: the engine sees a disconnect and stops working."""
        self.sink = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """Read nothing more until `resume`: the engine is slowed down by its own socket."""
        self.paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.paused = False
        if self.transport is not None:
            self.transport.resume_reading()

    def settle(self, now: float) -> None:
        """The answer was taken: back to the pool if the message ended cleanly, else wait a moment for its end, else close."""
        self.sink = None
        reader = self.reader
        if self.transport is None:
            return
        if self.paused:
            self.resume()  # its client's slowness must not deafen the next request on this connection
        if reader.complete and not reader.broken:
            if reader.keep_alive:
                self.idle_since = now
                self.upstream.put_idle(self)
            else:
                self.abort()
        else:
            self.idle_since = now
            self._settled_bytes = reader.body_bytes
            self.upstream.put_draining(self)
