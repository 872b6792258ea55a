"""The HTTP/1.1 protocol of the control plane's listeners: uvicorn's, made strict.

The gateway has a listener of its own (`gateway.edge`); this file holds the rules of the REST API and the link.
"""

import asyncio
import heapq
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tollway.domain import ids
from tollway.domain.faults import MALFORMED_HTTP, Fault
from tollway.wire.errors import openai_error

HEAD_SECONDS_MAX = 15.0
"""Deadline for the request line and headers to arrive, from the opening of the connection or the first byte of the next request."""

HEAD_BYTES_MAX = 64 * 1024
"""Bound on the target, header names and header values of a request together."""

IDLE_SECONDS_MIN = 1.0
"""Time without a request after which a connection may be closed to make way for another one."""

SHED_PART = 16
"""Part of the bound on connections that is closed at once, so that a flood of connections does not look through all of them each time."""

WRITE_SECONDS_MAX = 30.0
"""Deadline for a client to read on, once it has left more of an answer unread than the kernel and this process buffer."""

HEADERS_MAX = 100
"""Bound on the number of headers of a request."""

CHUNKS_MAX = 2_048
"""Chunks that a body may have beyond one for each CHUNK_BYTES_MIN of it. Each is a callback that copies what has gathered of the body:
40,000 of one byte, which come in one read, took 20 ms of the event loop."""

CHUNK_BYTES_MIN = 64
"""Clients that stream send chunks of hundreds of bytes, gateways some of 64 KiB."""


class StrictProtocol(HttpToolsProtocol):
    """Add to uvicorn's HTTP/1.1: bounds on connections, on the request head and on chunks, exactly one Host, no trailers, and
    OpenAI's error body for malformed requests.

    Trailers would otherwise join the headers, an `Authorization` among them. An exception raised in a callback of the parser becomes
    an error of the parser, which uvicorn answers with `send_400_response`."""

    _connections_max = 1 << 20
    _head_bytes = 0
    _head_complete = False
    _body_bytes = 0
    _chunks = 0
    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    @classmethod
    def bounded(cls, connections_max: int) -> "type[StrictProtocol]":
        """Return a protocol that keeps at most so many connections of its server open."""
        return type(cls.__name__, (cls,), {"_connections_max": connections_max})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first head and disable Nagle's algorithm. Above the bound, connections that have been idle longest
        are closed; without any, this one is."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if len(self.connections) > self._connections_max and not self._shed_idle():
            transport.abort()
            return
        # asyncio sets it only for sockets that were made with their protocol named, which inherited ones need not be. Without it
        # the body of an answer waits 40 ms for the client's delayed acknowledgement of its head (measured).
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deadline = self.loop.call_later(HEAD_SECONDS_MAX, transport.abort)

    def _shed_idle(self) -> int:
        """Close connections that wait for a request, those that have waited longest first; return how many."""
        latest = self.loop.time() - IDLE_SECONDS_MIN
        protocols = cast("set[StrictProtocol]", self.connections)
        idle = [each for each in protocols if each._is_idle() and each._idle_since <= latest]
        longest = heapq.nsmallest(max(1, self._connections_max // SHED_PART), idle, key=attrgetter("_idle_since"))
        for each in longest:
            self.connections.discard(each)
            each.transport.abort()
        return len(longest)

    def _is_idle(self) -> bool:
        """Return whether no request whose head has arrived is under way."""
        return bool(getattr(self.cycle, "response_complete", True))  # None before the first request

    def on_response_complete(self) -> None:
        """Note since when the connection is idle."""
        super().on_response_complete()
        self._idle_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines."""
        self._cancel_deadline()
        self._cancel_write_deadline()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the deadline of a client that does not read."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(WRITE_SECONDS_MAX, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel that deadline: the client has read."""
        super().resume_writing()
        self._cancel_write_deadline()

    def _cancel_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def data_received(self, data: bytes) -> None:
        """Interpret bytes. Bytes after an answered request that begin no other one, such as an empty line or the rest of a body that was
        refused, start a deadline too: they have ended the one of the idle connection."""
        super().data_received(data)
        if self._is_idle() and self._deadline is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEAD_SECONDS_MAX, self.transport.abort)

    def on_message_begin(self) -> None:
        """Start the deadline of this head."""
        super().on_message_begin()
        self._head_bytes, self._head_complete = 0, False
        self._body_bytes = self._chunks = 0
        self._cancel_deadline()
        self._deadline = self.loop.call_later(HEAD_SECONDS_MAX, self.transport.abort)

    def on_url(self, url: bytes) -> None:
        """Count and pass on a piece of the target. Raises HttpParserError above HEAD_BYTES_MAX."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count and pass on a header; drop a trailer. Raises ValueError above HEADERS_MAX."""
        if self._head_complete:
            return
        self._count(len(name) + len(value))
        if len(self.headers) >= HEADERS_MAX:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Require exactly one Host (RFC 9112 section 3.2; optional in HTTP/1.0) and pass the head on."""
        self._head_complete = True
        self._cancel_deadline()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0"):
            raise ValueError("a request must have exactly one Host header")
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Count a chunk. Raises ValueError for more than a body of its size has."""
        self._chunks += 1
        if self._chunks > CHUNKS_MAX + self._body_bytes // CHUNK_BYTES_MIN:
            raise ValueError("too many chunks")

    def on_body(self, body: bytes) -> None:
        """Count and pass on a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Send OpenAI's error body for MALFORMED_HTTP and close the connection."""
        body = openai_error(Fault(MALFORMED_HTTP))
        request_id = ids.new_id(ids.REQUEST, time.time_ns() // 1000, secrets.randbits(ids.RANDOM_BITS))
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _count(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > HEAD_BYTES_MAX:
            raise httptools.HttpParserError("the head is too large")

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class QuietServer(uvicorn.Server):
    """A server that does not handle signals: several share a process, which stops them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
