"""One client's connection: HTTP/1.1 as uvicorn speaks it.

httptools parses; an idle connection is closed after the keep-alive time; a client that half-closes counts as gone; one
request is answered at a time, pipelined ones wait.
"""

import asyncio
import hmac
import socket
import struct
import time
from collections import deque
from urllib.parse import parse_qsl

import httptools

from tollway.simulator import open_inference, realtime
from tollway.simulator.answering import Exchange
from tollway.simulator.dialects import JSON, anthropic_error, nested_error
from tollway.simulator.endpoints import ENDPOINTS, Request, Simulator
from tollway.simulator.outlet import content_type, head
from tollway.simulator.realtime import RealtimeSession
from tollway.simulator.requests import Refused
from tollway.simulator.truth import Ended

_HEAD_BYTES_MAX = 64 * 1024  # llhttp has no limit of its own


class Connection(asyncio.Protocol):
    """One client. Parses requests, answers the simple ones, hands the others to an exchange."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._session: RealtimeSession | None = None
        self._request: Request | None = None  # being answered
        self._pending: deque[Request] = deque()
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._refused = False  # the rest of what it sends is not read
        self._idle_since = 0.0
        self._watched = False
        self.paused = False
        self.chunked = True

    # What asyncio says

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's have no base class
        self._transport = transport
        self._simulator.connections.add(self)
        self._rest()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._session is not None:
            self._session.feed(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the request was answered as if it had not asked, as uvicorn does
        except httptools.HttpParserError:
            self._refuse(400, b"Invalid HTTP request received.")

    def eof_received(self) -> None:
        self.drop()  # a client that says no more is a client that left, for uvicorn too

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop()
        self._transport = None
        self._simulator.connections.discard(self)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._exchange is not None:
            self._exchange.writable()

    # What the parser says

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._head_bytes = 0
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._grow_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._simulator.settings.body_bytes_max:
            self._refuse(413, b"Request body too large.")

    def on_message_complete(self) -> None:
        if self._refused:
            return
        parser = self._parser
        request = Request(
            method=parser.get_method(),
            path=self._url.partition(b"?")[0],
            headers=self._headers,
            body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
            keep_alive=parser.should_keep_alive(),
            http_11=parser.get_http_version() == "1.1",
        )
        if self._request is not None:
            self._pending.append(request)
            if self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()  # one read may hold many requests; more of them can wait in the kernel
        else:
            self._serve(request)

    def _grow_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _HEAD_BYTES_MAX:
            self._refuse(431, b"Request header fields too large.")

    # Answers

    def _serve(self, request: Request) -> None:
        self._request = request
        self.chunked = request.http_11
        simulator = self._simulator
        try:
            self._authorize(request)
            if request.path == realtime.PATH and request.method == b"GET":
                self._open_session(request)
                return
            if request.method == b"POST" and open_inference.is_inference(request.path):
                asked = open_inference.read_request(request.path, request.body)
                self._converse(simulator.exchange(open_inference.TensorLine(self, asked), "completions", asked.as_completion(request)))
                return
            endpoint = ENDPOINTS.get(request.path)
            if request.method == b"POST" and endpoint is not None:
                _check_content_type(request)
                self._converse(simulator.exchange(self, endpoint, request))
                return
            if request.method == b"POST":
                status, kind, body = simulator.post(request)
            elif request.method == b"GET":
                status, kind, body = simulator.get(request.path)
            else:
                status, kind, body = 405, JSON, b'{"detail":"Method Not Allowed"}'
        except Refused as refused:
            status, kind, body = refused.status, JSON, _refusal(request.path, refused)
        self._answer(status, kind, body)

    def _open_session(self, request: Request) -> None:
        """Go on with events of the realtime API on this connection."""
        opening = realtime.accept(request.headers)
        model = dict(parse_qsl(self._url.partition(b"?")[2].decode("latin-1"))).get("model", "")
        session = RealtimeSession(self._simulator, request.headers, model, self.write, lambda reset: self.hang_up(reset=reset))
        self._session = session
        self.write(opening)
        session.begin()

    def _converse(self, exchange: Exchange) -> None:
        simulator = self._simulator
        if simulator.draining:
            exchange.refuse()
            raise Refused(500, "InternalServerError", "cannot schedule new futures after shutdown")
        self._exchange = exchange
        simulator.exchanges.add(exchange)
        if not exchange.begin():
            self._exchange = None
            simulator.over(exchange)
            raise Refused(503, "Service Unavailable", "The engine is currently busy. Please retry later.")

    def _authorize(self, request: Request) -> None:
        key = self._simulator.settings.api_key
        if key is None or not request.path.startswith(b"/v1/"):
            return
        expected = b"Bearer " + key.encode()
        if not hmac.compare_digest(request.headers.get(b"authorization", b""), expected):
            raise Refused(401, "", "Unauthorized")

    def _answer(self, status: int, kind: bytes, body: bytes) -> None:
        self.write(head(status, content_type(kind), len(body), int(time.time())) + body)
        self.answered(None, close=False)

    def _refuse(self, status: int, text: bytes) -> None:
        """Answers what is not a request that could be read to its end, and closes."""
        if self._refused:
            return
        self._refused = True
        self.drop()
        self.write(head(status, content_type(b"text/plain") + b"connection: close\r\n", len(text), int(time.time())) + text)
        self.hang_up(reset=False)

    # The line, as exchanges see it

    @property
    def unsent(self) -> bool:
        """There are bytes that the kernel has not taken."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, stale_seconds: float | None, *, close: bool) -> None:
        request, self._request = self._request, None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._simulator.over(exchange)
        if close or request is None or not request.keep_alive:
            self.hang_up(reset=False)
        elif stale_seconds is not None:
            self._refused = True  # whatever comes now arrives at a connection that is about to close
            simulator = self._simulator
            simulator.wheel.at(simulator.clock() + stale_seconds, lambda: self.hang_up(reset=False))
        elif self._pending:
            following = self._pending.popleft()
            if not self._pending and self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
            self._simulator.wheel.at(self._simulator.clock(), lambda: self._serve(following))
            self._request = following  # it is its turn, also if another one arrives before the wheel turns
        else:
            self._rest()

    def hang_up(self, *, reset: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()

    def drop(self, ended: Ended = "aborted") -> None:
        """Stops what is being made for a client that is gone, or hung up on."""
        exchange, self._exchange = self._exchange, None
        session, self._session = self._session, None
        if session is not None:
            self._refused = True
            session.close(ended)
        self._pending.clear()
        if exchange is not None:
            exchange.left(ended)
            self._simulator.over(exchange)

    # Keep-alive: one timer per connection, not per request

    def _rest(self) -> None:
        simulator = self._simulator
        self._idle_since = simulator.clock()
        if not self._watched:
            self._watched = True
            simulator.wheel.at(self._idle_since + simulator.settings.keep_alive_seconds, self._check_idle)

    def _check_idle(self) -> None:
        self._watched = False
        if self._transport is None or self._request is not None:
            return
        simulator = self._simulator
        due = self._idle_since + simulator.settings.keep_alive_seconds
        if due <= simulator.clock():
            self.hang_up(reset=False)
        else:
            self._watched = True
            simulator.wheel.at(due, self._check_idle)


def _check_content_type(request: Request) -> None:
    kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != JSON:
        raise Refused(400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed")


def _refusal(path: bytes, refused: Refused) -> bytes:
    if path.startswith(open_inference.BASE):
        return open_inference.render_error(refused.message)
    if refused.status == 401:
        return b'{"error":"Unauthorized"}'
    if path.startswith(b"/v1/messages"):
        return anthropic_error(refused.kind, refused.message)
    return nested_error(refused.status, refused.message, refused.kind, refused.param)
