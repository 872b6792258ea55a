"""Sockets, deadlines, drain: the edge of the gateway. Bytes become requests here and answers become bytes; nothing is decided about them.

One `Downstream` per client connection. It frames requests, runs the pipeline for each, and answers them in order. A clock of half a
second looks at every connection and exchange (`_Clock`): one loop over all of them costs less than a timer each, and a deadline that
holds to half a second is what a client can notice.

Every wait has a bound (`EdgeBounds`): a head that trickles, a body that starves, a connection that idles, a reader that does not read.
"""

import asyncio
import gc
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import unquote_to_bytes

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault, FaultKind
from tollway.gateway import entry, pipeline
from tollway.gateway.entry import EntryRules
from tollway.gateway.exchange import Head, new_request
from tollway.gateway.listener import Listener, OpeningBounds
from tollway.gateway.pipeline import ENDPOINTS, MODELS_TARGET, Plane
from tollway.gateway.ports import Flow
from tollway.gateway.running import Run
from tollway.gateway.strangers import Strangers
from tollway.wire.errors import anthropic_error, openai_error
from tollway.wire.http import NO_HEADERS, HttpBounds, HttpRequest, RequestReader, chunk_size

PRECHECK_BYTES = 64 * 1024
"""A body larger than this is read on only for a caller who authenticated by the head."""
READ_AHEAD_BYTES = 64 * 1024
"""Bytes read of requests that follow the one being answered. Beyond it the socket is not read until their turn comes; below it it is,
because only a socket that is read tells that the client left."""

REST_SECONDS = 1.0
"""A connection without a request for so long is not in use at this moment. A busy client's pauses and a network's delays are shorter."""

HEALTH_TARGETS = frozenset({b"/livez", b"/health", b"/v1/health", b"/readyz"})

_REASONS = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed",
    408: b"Request Timeout", 413: b"Content Too Large", 414: b"URI Too Long", 415: b"Unsupported Media Type", 417: b"Expectation Failed",
    421: b"Misdirected Request", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


class EdgeBounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may take of the edge's patience and room.

    `opening_seconds`: for a PROXY header, and again for a TLS handshake, where the door has them. `head_seconds`: from the first byte
    of a head to its end. `body_grace_seconds`, `body_rate_min`: after the grace, a body must have arrived at this many bytes per
    second. `keep_alive_seconds`: an idle connection; above the 60 s of common load balancers, so that they
    close first. `write_stall_seconds`: a client that does not read. `linger_seconds`: how long a refused client is still read from, so
    that the refusal is not destroyed by the reset that closing on unread bytes sends. `connections_max`, `connections_per_peer_max`: all
    and per address (0: no bound per address, as behind a load balancer every client is one).
    `failed_authentications_per_minute`: per address, before 401 becomes 429 (0: no bound); good keys pass whatever failed before.
    """

    opening_seconds: float = 10.0
    head_seconds: float = 15.0
    body_grace_seconds: float = 10.0
    body_rate_min: float = 1024.0
    keep_alive_seconds: float = 75.0
    write_stall_seconds: float = 30.0
    linger_seconds: float = 2.0
    connections_max: int = 20_000
    connections_per_peer_max: int = 0
    failed_authentications_per_minute: int = 120


class _Openings(dict[int, bytes]):
    """How answers begin, by status: good for as long as the date is."""

    def __init__(self, date: bytes) -> None:
        self._date = date

    def __missing__(self, status: int) -> bytes:
        opening = self[status] = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (status, _REASONS.get(status, b"Error"), self._date)
        return opening


class Edge:
    """All client connections of this process. `openings`: how an answer of a status begins at this moment."""

    def __init__(self, plane: Plane, bounds: EdgeBounds, http: HttpBounds, rules: EntryRules | None = None) -> None:
        """`rules`: None where nothing is asked of who comes in, as by default."""
        self.plane = plane
        self.bounds = bounds
        self.http = http
        self.rules = rules
        self.strangers = Strangers(bounds.failed_authentications_per_minute)
        self.connections: set[Downstream] = set()
        self.peers: dict[str, int] = {}
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        self.openings = _Openings(b"")

    def tell_date(self, date: bytes) -> None:
        """What stands in `date` (RFC 9110 section 6.6.1) from now on."""
        self.openings = _Openings(date)

    def admit(self, peer: str) -> bool:
        """Whether one more connection from this address has room; counts it if so."""
        most = self.bounds.connections_per_peer_max
        if most and self.rules is not None and self.rules.forwarded_for and entry.is_trusted(self.rules, peer):
            most = 0  # it carries the requests of many
        if len(self.connections) >= self.bounds.connections_max or (most and self.peers.get(peer, 0) >= most):
            return False
        self.peers[peer] = self.peers.get(peer, 0) + 1
        return True

    def leave(self, peer: str) -> None:
        """The connection is gone."""
        left = self.peers.get(peer, 1) - 1
        if left > 0:
            self.peers[peer] = left
        else:
            self.peers.pop(peer, None)


class Downstream(asyncio.Protocol):
    """One client connection. Implements `ports.Client` for the request being answered."""

    __slots__ = (
        "_ahead_bytes",
        "_chunked",
        "_close_after",
        "_edge",
        "_ending",
        "_flow",
        "_head",
        "_paused_at",
        "_peer",
        "_phase_at",
        "_phase_bytes",
        "_prechecked",
        "_queue",
        "_reader",
        "_reading",
        "_request",
        "_transport",
        "committed",
        "gone",
    )

    def __init__(self, edge: Edge, peer: str | None = None) -> None:
        """`peer`: the address that the connection is from, where the socket does not tell (behind a proxy)."""
        self._edge = edge
        self._reader = RequestReader(edge.http)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[HttpRequest] | None = None
        self._request: HttpRequest | None = None
        self._flow: Flow | None = None
        self._head: Head | None = None
        self._peer = peer or ""
        self._paused_at = 0.0
        self._phase_at = edge.now
        self._phase_bytes = 0
        self._ahead_bytes = 0
        self._chunked = False
        self._close_after = False
        self._ending = False
        self._prechecked = False
        self._reading = True
        self.committed = False
        self.gone = False

    # What the socket tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        edge = self._edge
        if not self._peer:
            peer = transport.get_extra_info("peername")
            self._peer = sys.intern(peer[0]) if isinstance(peer, tuple) else ""
        if not edge.admit(self._peer):
            self._peer = ""
            self.gone = True
            edge.plane.metrics.connections_refused += 1
            self._write_fault(Fault(faults.OVERLOADED, retry_after_seconds=1), close=True)
            return
        edge.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        reader = self._reader
        if not reader.in_message:
            self._phase_at = self._edge.now
            self._phase_bytes = 0
        self._phase_bytes += len(data)
        requests = reader.feed(data)
        if self._request is not None:
            self._read_ahead(requests, len(data))
        elif requests:
            if len(requests) > 1:
                self._queue = deque(requests[1:])
            self._begin(requests[0])
        elif reader.fault is not None or reader.open_request is not None:
            self._look_at_reader()

    def _read_ahead(self, requests: list[HttpRequest], size: int) -> None:
        """Requests, or parts of them, that came before the one being answered was done."""
        if requests:
            if self._queue is None:
                self._queue = deque()
            self._queue.extend(requests)
        self._ahead_bytes += size
        waiting = len(self._queue) if self._queue is not None else 0
        is_enough = self._ahead_bytes > READ_AHEAD_BYTES or waiting >= self._edge.http.pipelined_max
        if is_enough and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _look_at_reader(self) -> None:
        """Nothing is being answered or waits to be: a message that cannot be read ends the connection, a head may open its body."""
        reader = self._reader
        if reader.fault is not None:
            self._write_fault(Fault(reader.fault), close=True)
        elif reader.open_request is not None:
            self._body_coming(reader.open_request)

    def _body_coming(self, request: HttpRequest) -> None:
        """The head is complete, the body is not. Look at who sends it before it fills memory, and let it be sent if it waits."""
        if self._prechecked:
            return
        length = request.headers.get(b"content-length")
        expects = b"expect" in request.headers
        if length is not None and int(length) <= PRECHECK_BYTES and not expects:
            return
        self._prechecked = True
        try:
            if not self._is_addressed(request):
                raise Fault(faults.HOST_UNKNOWN)
            path = _find_path(request)
            endpoint = ENDPOINTS.get(path)
            if endpoint is None:
                raise Fault(_find_target_fault(path) or faults.ROUTE_UNKNOWN)
        except Fault as fault:
            self._write_fault(fault, close=True)
            return
        try:
            pipeline.precheck(pipeline.read_head(request.headers, endpoint), self._edge.plane)
        except Fault as fault:
            self._write_fault(self.judge(fault, request.headers), close=True)
            return
        if expects and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        edge = self._edge
        edge.connections.discard(self)
        if self._peer:
            edge.leave(self._peer)
        self.gone = True
        self._transport = None
        self._queue = None
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.client_gone()

    def pause_writing(self) -> None:
        self._paused_at = self._edge.loop.time()
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        self._paused_at = 0.0
        if self._flow is not None:
            self._flow.resume()

    # Requests, one at a time.

    def _begin(self, http: HttpRequest) -> None:
        self._request = http
        self.committed = False
        self._prechecked = False
        edge = self._edge
        plane = edge.plane
        if not http.keep_alive or plane.draining:
            self._close_after = True
        head = self._head
        if head is None or head.headers is not http.headers:
            head = self._head = self._read_head(http)
            if head is None:
                return
        peer = self._find_client(http) if edge.rules is not None else ""
        now_us = plane.now_us()
        request = new_request(plane.request_ids.new(now_us), head, http.body, edge.loop.time(), now_us, peer)
        http.body = b""  # the pipeline's from here on, which lets go of it when it can
        Run(pipeline.answer(request, self, plane))

    def _read_head(self, http: HttpRequest) -> Head | None:
        """What the head of a request for inference says; None if it is none, and answered."""
        if not self._is_addressed(http):
            self._write_fault(Fault(faults.HOST_UNKNOWN))
            return None
        path = http.target
        endpoint = ENDPOINTS.get(path)
        if endpoint is None:
            path = _find_path(http)
            endpoint = ENDPOINTS.get(path)
        if endpoint is not None and http.method == b"POST":
            content_type = http.headers.get(b"content-type", b"")
            if content_type != b"application/json" and not _is_json(content_type):
                self._write_fault(Fault(faults.MEDIA_TYPE_UNSUPPORTED))
            elif http.headers.get(b"content-encoding", b"identity").lower() != b"identity":
                self._write_fault(Fault(faults.CONTENT_CODING_UNSUPPORTED))
            else:
                return pipeline.read_head(http.headers, endpoint)
            return None
        self._answer_small(http, path)
        return None

    def _answer_small(self, http: HttpRequest, path: bytes) -> None:
        """Everything that is not inference: models, health, and what does not exist."""
        plane = self._edge.plane
        is_read = http.method in (b"GET", b"HEAD")
        if http.method == b"OPTIONS" and self._answer_options(path):
            return
        if path == MODELS_TARGET or path.startswith(MODELS_TARGET + b"/"):
            # A model's name may hold slashes, which SDKs escape.
            path = path.replace(b"%2F", b"/").replace(b"%2f", b"/")
            fault = _find_target_fault(path)
            if fault is not None:
                self._write_fault(Fault(fault))
            elif is_read:
                name = unquote_to_bytes(path[len(MODELS_TARGET) + 1 :])
                head = pipeline.read_head(http.headers, ENDPOINTS[b"/v1/chat/completions"])
                now_us, now = plane.now_us(), self._edge.loop.time()
                request = new_request(plane.request_ids.new(now_us), head, name, now, now_us, self._find_client(http))
                pipeline.list_models(request, self, plane)
            else:
                self._write_fault(Fault(faults.METHOD_UNSUPPORTED), headers=b"allow: GET, HEAD\r\n")
        elif path in ENDPOINTS:
            self._write_fault(Fault(faults.METHOD_UNSUPPORTED), headers=b"allow: POST\r\n")
        elif path not in HEALTH_TARGETS:
            unsupported = faults.METHOD_UNSUPPORTED if http.method == b"TRACE" else faults.ROUTE_UNKNOWN
            self._write_fault(Fault(_find_target_fault(path) or unsupported))
        elif not is_read:
            self._write_fault(Fault(faults.METHOD_UNSUPPORTED), headers=b"allow: GET, HEAD\r\n")
        elif path != b"/readyz":
            self.answer(200, b"content-type: application/json\r\n", b'{"status":"alive"}')
        else:
            ready = plane.is_ready()
            self.answer(200 if ready else 503, b"content-type: application/json\r\n", b'{"ready":%b}' % (b"true" if ready else b"false"))

    def _answer_options(self, path: bytes) -> bool:
        """Tell the browser of a script what it may send here, if scripts are welcome and there is anything at this path."""
        rules = self._edge.rules
        if rules is None or not rules.origins:
            return False
        if path in ENDPOINTS:
            methods = b"POST"
        elif path == MODELS_TARGET or path.startswith(MODELS_TARGET + b"/") or path in HEALTH_TARGETS:
            methods = b"GET, HEAD"
        else:
            return False
        self.answer(200, b"allow: %b, OPTIONS\r\n%b" % (methods, entry.preflight_headers(rules, methods)), b"")
        return True

    def _is_addressed(self, http: HttpRequest) -> bool:
        """Whether the request names a host that is served here. Health is told under any: probes know addresses, not names."""
        rules = self._edge.rules
        return rules is None or entry.is_addressed(rules, http.headers.get(b"host", b"")) or http.target in HEALTH_TARGETS

    def _find_client(self, http: HttpRequest) -> str:
        """The client's address, if the log is to have it."""
        rules = self._edge.rules
        if rules is None or not rules.peers_logged:
            return ""
        return entry.find_client(rules, self._peer, http.headers.get(b"x-forwarded-for"))

    def _cors(self, request: HttpRequest | None) -> bytes:
        """What the browser of the script that asked is told."""
        rules = self._edge.rules
        return b"" if rules is None or request is None else entry.cors_headers(rules, request.headers.get(b"origin"))

    def _finished(self) -> None:
        """The answer was written whole: the next request, or the end of the connection."""
        self._request = None
        self._phase_at = self._edge.now
        self._phase_bytes = 0
        if self._transport is None:
            return
        if self._close_after:
            self._end()
        elif self._queue:
            self._edge.loop.call_soon(self._next)
        else:
            self._ahead_bytes = 0
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()
            reader = self._reader
            if reader.fault is not None or reader.open_request is not None:
                self._look_at_reader()

    def _next(self) -> None:
        if self._queue and self._request is None and not self._ending and self._transport is not None:
            self._begin(self._queue.popleft())

    def _end(self) -> None:
        """Nothing more is answered here. A client that is still sending is listened to for a moment (RFC 9112 section 9.6)."""
        transport = self._transport
        if transport is None or self._ending:
            return
        self._ending = True
        self._queue = None
        if (self._reader.fault is None and not self._reader.in_message) or transport.is_closing():
            transport.close()
            return
        self._begin_phase()
        if transport.can_write_eof():  # TLS cannot; `connection: close` says it too
            transport.write_eof()
        if not self._reading:
            self._reading = True
            transport.resume_reading()

    # ports.Client

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        transport = self._transport
        if transport is not None:
            self.committed = True
            edge, request = self._edge, self._request
            transport.write(
                b"%b%b%b%bcontent-length: %d\r\n\r\n%b"
                % (
                    edge.openings[status],
                    headers,
                    self._cors(request) if edge.rules is not None else b"",
                    b"connection: close\r\n" if self._close_after else b"",
                    len(body),
                    b"" if request is not None and request.method == b"HEAD" else body,
                )
            )
        self._finished()

    def begin_stream(self, headers: bytes) -> None:
        self.committed = True
        self._reader.rest()
        transport = self._transport
        if transport is not None:
            chunked = self._chunked = self._request is not None and self._request.minor_version == 1
            if not chunked:
                self._close_after = True
            transport.write(
                b"%bcache-control: no-store\r\n%b%b%b%b\r\n"
                % (
                    self._edge.openings[200],
                    headers,
                    self._cors(self._request) if self._edge.rules is not None else b"",
                    b"connection: close\r\n" if self._close_after else b"",
                    b"transfer-encoding: chunked\r\n" if chunked else b"",
                )
            )
        if self._request is not None:
            self._request.headers = NO_HEADERS
        if not self._reader.keeps_head:
            self._head = None

    def send(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None:
            if self._chunked:
                transport.write(chunk_size(len(data)) + data + b"\r\n")
            else:
                transport.write(data)

    def end_stream(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None:
            if self._chunked:
                transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
            else:
                transport.write(data)
        self._finished()

    def judge(self, fault: Fault, headers: Mapping[bytes, bytes]) -> Fault:
        edge = self._edge
        address = self._peer
        if edge.rules is not None:
            address = entry.find_client(edge.rules, address, headers.get(b"x-forwarded-for"))
            if entry.is_trusted(edge.rules, address):
                return fault  # a proxy that does not say for whom it asks: many, and the innocent are not to wait for the others
        return edge.strangers.judge(fault, address, time.monotonic_ns())

    def attend(self, flow: Flow | None) -> None:
        self._flow = flow
        if flow is not None and self._paused_at:
            flow.pause()

    # Faults of framing, and the clock.

    def _write_fault(self, fault: Fault, *, headers: bytes = b"", close: bool = False) -> None:
        """Answer a fault found before a request reached its pipeline."""
        metrics = self._edge.plane.metrics
        metrics.count(metrics.refusals, fault.kind.code)
        if close or fault.kind.close:
            self._close_after = True
        if self._transport is None:
            return
        request_id = pipeline.new_id(self._edge.plane)
        headers += b"content-type: application/json\r\ncache-control: no-store\r\nx-request-id: %b\r\n" % request_id.encode()
        headers += self._cors(self._request or self._reader.open_request)
        render = anthropic_error if self._request is not None and self._request.target.startswith(b"/v1/messages") else openai_error
        body = render(fault, request_id)
        head_only = self._request is not None and self._request.method == b"HEAD"
        self._transport.write(
            b"%b%b%b%bcontent-length: %d\r\n\r\n%b"
            % (
                self._edge.openings[fault.kind.status],
                headers,
                pipeline.fault_headers(fault),
                b"connection: close\r\n" if self._close_after else b"",
                len(body),
                b"" if head_only else body,
            )
        )
        self._finished()

    def _begin_phase(self) -> None:
        self._phase_at = self._edge.now
        self._phase_bytes = 0

    def hang_up(self) -> None:
        """Close at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def tick(self, now: float) -> None:
        """Look at this connection's deadlines."""
        bounds = self._edge.bounds
        if self._paused_at and now - self._paused_at > bounds.write_stall_seconds:
            self.hang_up()
        if self._request is not None:
            if self.committed:
                self._reader.forget()  # a stream, and it lasts
                self._head = None
            return
        elapsed = now - self._phase_at
        if self._ending:
            if elapsed > bounds.linger_seconds:
                self.hang_up()
        elif not self._reader.in_message:
            if elapsed > bounds.keep_alive_seconds and self._transport is not None:
                self._transport.close()
        elif self._reader.open_request is None:
            if elapsed > bounds.head_seconds:
                self._write_fault(Fault(faults.REQUEST_TIMEOUT), close=True)
        elif elapsed > bounds.body_grace_seconds and self._phase_bytes < elapsed * bounds.body_rate_min:
            self._write_fault(Fault(faults.REQUEST_TIMEOUT), close=True)

    def close_if_idle(self, *, is_rested: bool) -> None:
        """Drain: a busy connection is closed after its answer, one that has rested for REST_SECONDS at once. Until then its next request,
        or its first, may be on its way: a close would meet it, and its answer can say `connection: close` instead.

        `is_rested`: the drain itself has lasted so long. The clock's instants are half a second coarse, and coarser on a busy machine, so
        a connection that was used just before the drain may look as if it had rested.
        """
        self._close_after = True
        is_idle = self._request is None and not self._reader.in_message
        if is_rested and is_idle and self._edge.now - self._phase_at >= REST_SECONDS:
            self._end()


def _find_path(http: HttpRequest) -> bytes:
    """The path of a target in origin form (or absolute form naming this Host), without its query."""
    target = http.target
    if not target.startswith(b"/"):
        for scheme in (b"http://", b"https://"):
            if target[: len(scheme)].lower() == scheme:
                host, slash, rest = target[len(scheme) :].partition(b"/")
                if host.lower() == http.headers.get(b"host", b"").lower():
                    target = slash + rest or b"/"
    return target.partition(b"?")[0]


def _find_target_fault(path: bytes) -> FaultKind | None:
    """Whether a path is one that two parsers may read differently: dot segments, encoded slashes, backslashes, NUL, bad UTF-8."""
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return faults.TARGET_INVALID
    if not path.startswith(b"/") or b"%2f" in path.lower() or "\\" in decoded or "\0" in decoded:
        return faults.TARGET_INVALID
    return faults.TARGET_INVALID if {".", ".."} & set(decoded.split("/")) else None


def _is_json(content_type: bytes) -> bool:
    """Whether a content-type says JSON in UTF-8."""
    media, _, rest = content_type.partition(b";")
    if media.strip().lower() != b"application/json":
        return False
    parameters = rest.strip().lower().replace(b'"', b"")
    return not parameters or parameters in (b"charset=utf-8", b"charset=utf8")


class _Clock:
    """Half a second, over and over: deadlines, idle pools, full buckets, the date. And how late the loop itself is."""

    PERIOD_SECONDS = 0.5
    LAG_PERIOD_SECONDS = 0.05
    SLICE = 500
    """Connections looked at without letting the loop go: well below a millisecond."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._expected = 0.0

    async def run(self) -> None:
        edge, plane = self._edge, self._edge.plane
        last_second = 0
        self._lag()
        while True:
            edge.now = edge.loop.time()
            if int(edge.now) != last_second:
                last_second = int(edge.now)
                edge.tell_date(formatdate(time.time(), usegmt=True).encode())
                plane.refusal_lines = pipeline.REFUSAL_LINES_PER_SECOND_MAX
                edge.strangers.forget_idle(time.monotonic_ns())
                for upstream in list(plane.upstreams.all()):
                    upstream.close_idle(edge.now)
            plane.log.flush()
            for items in (list(plane.active.exchanges), list(edge.connections)):
                for start in range(0, len(items), self.SLICE):
                    for item in items[start : start + self.SLICE]:
                        item.tick(edge.now)
                    await asyncio.sleep(0)
            await asyncio.sleep(self.PERIOD_SECONDS)

    def _lag(self) -> None:
        now = self._edge.loop.time()
        metrics = self._edge.plane.metrics
        if self._expected:
            metrics.loop_lag_seconds_max = max(metrics.loop_lag_seconds_max, now - self._expected)
        self._expected = now + self.LAG_PERIOD_SECONDS
        self._edge.loop.call_later(self.LAG_PERIOD_SECONDS, self._lag)


class _Internal(asyncio.Protocol):
    """The internal listener: /metrics, /livez, /readyz. For operators and probes only; one request per connection."""

    def __init__(self, plane: Plane, bounds: HttpBounds) -> None:
        self._plane = plane
        self._reader = RequestReader(bounds)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        requests = self._reader.feed(data)
        if self._transport is None or not (requests or self._reader.fault):
            return
        status, kind, body = 404, b"text/plain", b"not found\n"
        path = _find_path(requests[0]) if requests else b""
        if path == b"/metrics":
            status, kind, body = 200, b"text/plain; version=0.0.4; charset=utf-8", self._plane.metrics.render()
        elif path == b"/livez":
            status, body = 200, b"ok\n"
        elif path == b"/readyz":
            ready = self._plane.is_ready()
            status, body = (200, b"ok\n") if ready else (503, b"not ready\n")
        self._transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (status, _REASONS.get(status, b"Error"), kind, len(body), body)
        )
        self._transport.close()


class DrainBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How a gateway ends: new requests are still taken for `linger_seconds` (load balancers need time to look), running ones have
    `grace_seconds` in all; then the rest is told with an error and closed."""

    linger_seconds: float = 0.0
    grace_seconds: float = 110.0


async def serve(
    plane: Plane,
    *,
    listener: socket.socket,
    internal: socket.socket,
    stop: asyncio.Event,
    edge_bounds: EdgeBounds,
    http_bounds: HttpBounds,
    drain: DrainBounds,
    ready: asyncio.Event,
    rules: EntryRules | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until `stop` is set, then drain. The sockets belong to the caller's supervisor: they are only accepted from. `tls` is for
    the public one."""
    loop = asyncio.get_running_loop()
    edge = Edge(plane, edge_bounds, http_bounds, rules)
    clock = loop.create_task(_Clock(edge).run())
    plane.metrics.gauges["tollway_log_lines_dropped"] = lambda: plane.log.dropped
    plane.metrics.gauges["tollway_connections"] = lambda: len(edge.connections)
    await asyncio.sleep(0)
    public: asyncio.Server | Listener
    if tls is None and (rules is None or not rules.proxy_protocol):
        public = await loop.create_server(lambda: Downstream(edge), sock=listener, backlog=4096)
    else:
        public = _listen(edge, listener, tls)
    private = await loop.create_server(lambda: _Internal(plane, http_bounds), sock=internal, backlog=64)
    gc.collect()
    gc.freeze()
    ready.set()
    await stop.wait()
    await _drain(edge, public, drain)
    if isinstance(public, Listener):
        public.cancel()
    private.close()
    clock.cancel()
    for upstream in list(plane.upstreams.all()):
        upstream.close_idle(0.0, all=True)


def _listen(edge: Edge, listener: socket.socket, tls: ssl.SSLContext | None) -> Listener:
    """The public door where a connection has to be opened first."""
    bounds, metrics = edge.bounds, edge.plane.metrics

    def refused() -> None:
        metrics.connections_refused += 1

    opening = OpeningBounds(
        opening_seconds=bounds.opening_seconds,
        opening_max=bounds.connections_max,
        opening_per_peer_max=bounds.connections_per_peer_max,
    )
    return Listener(listener, lambda peer: Downstream(edge, peer), refused, rules=edge.rules or EntryRules(), tls=tls, bounds=opening)


async def _drain(edge: Edge, public: asyncio.Server | Listener, bounds: DrainBounds) -> None:
    """Not ready > linger > accept nothing more > let what runs finish > tell the rest."""
    edge.plane.draining = True
    deadline = edge.loop.time() + bounds.grace_seconds
    await asyncio.sleep(bounds.linger_seconds)
    public.close()
    closed_at = edge.loop.time()
    await asyncio.sleep(0.05)  # what the kernel handed over in the same turn of the loop becomes a connection only now
    while (edge.connections or (isinstance(public, Listener) and public.opening)) and edge.loop.time() < deadline:
        for connection in list(edge.connections):
            connection.close_if_idle(is_rested=edge.loop.time() - closed_at >= REST_SECONDS)
        await asyncio.sleep(0.05)
    for exchange in list(edge.plane.active.exchanges):
        exchange.fail(Fault(faults.DRAINING))
    for _ in range(20):
        if not edge.connections:
            return
        await asyncio.sleep(0.05)
    for connection in list(edge.connections):
        connection.hang_up()
