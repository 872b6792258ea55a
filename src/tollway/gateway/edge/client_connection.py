"""Sockets, deadlines, drain: the edge of the gateway. Bytes become requests here and answers become bytes; nothing is decided about them.

One `ClientConnection` per client connection. It frames requests, runs the pipeline for each, and answers them in order. A clock of half a
second looks at every connection and exchange (`clock.Clock`): one loop over all of them costs less than a timer each, and a deadline that
holds to half a second is what a client can notice.

Every wait has a bound (`EdgeBounds`): a head that trickles, a body that starves, a connection that idles, a reader that does not read.
"""

import asyncio
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway import pipeline
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.dialects import infer
from tollway.gateway.dialects.table import find_error_dialect
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.edge import cors, edge_policy
from tollway.gateway.edge.edge import REST_SECONDS, Edge, TimedConnection
from tollway.gateway.edge.paths import ROUTES, Route, find_body_fault, find_path, find_route, find_route_fault
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Flow
from tollway.gateway.realtime.ends import End
from tollway.gateway.refusals import fault_headers
from tollway.gateway.request import ClientGone, Request, RequestHead, new_request
from tollway.gateway.uploads import Upload
from tollway.wire.client_certificates import find_forwarded
from tollway.wire.http import CREDENTIALS, NO_HEADERS, HttpRequest, RequestReader, chunk_size

READ_AHEAD_BYTES = 64 * 1024
"""Bytes read of requests that follow the one being answered. Beyond it the socket is not read until their turn comes; below it it is,
because only reading a socket shows that the client left."""

UNCHECKED_SECONDS = 1.0
"""Time from which the sender of a body that is not large, and not complete, is checked as that of a large one is. Most bodies come with
their heads, and are checked once, when they are read; without this, whoever has no key could hold as many as there are connections."""

_RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a socket discards what is unsent and resets the connection."""


class ClientConnection(asyncio.Protocol):
    """One client connection. Implements `ports.Client` for the request being answered."""

    __slots__ = (
        "_ahead_bytes",
        "_certificate",
        "_close_after",
        "_driver",
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
        "_unread",
        "_upload",
        "chunked",
        "committed",
        "gone",
    )

    def __init__(self, edge: Edge, peer: str | None = None) -> None:
        """`peer`: the address that the connection is from, where the socket does not show it (behind a proxy)."""
        self._edge = edge
        self._reader = RequestReader(edge.http)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[HttpRequest] | None = None
        self._request: HttpRequest | None = None
        self._flow: Flow | None = None
        self._driver: CoroutineDriver | None = None
        self._head: RequestHead | None = None
        self._peer = peer or ""
        self._certificate = b""
        self._paused_at = 0.0
        self._phase_at = edge.now
        self._phase_bytes = 0
        self._ahead_bytes = 0
        self.chunked = False
        self._close_after = False
        self._ending = False
        self._prechecked = False
        self._reading = True
        self._upload: Upload | None = None
        self._unread: BufferHold | None = None
        self.committed = False
        self.gone = False

    # Events of the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        edge = self._edge
        if not self._peer:
            peer = transport.get_extra_info("peername")
            self._peer = sys.intern(peer[0]) if isinstance(peer, tuple) else ""
        if edge.rules is not None and edge.rules.client_certificates:
            tls = transport.get_extra_info("ssl_object")
            self._certificate = b"" if tls is None else tls.getpeercert(binary_form=True) or b""
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
        if self._request is not None or self._queue:  # also between two requests, while the next one waits for its turn of the loop
            self._read_ahead(requests, len(data))
        elif requests:
            if len(requests) > 1:
                self._queue = deque(requests[1:])
            self._begin(requests[0])
        elif reader.fault is not None or reader.open_request is not None:
            if self._upload is not None:
                self._count_upload(self._upload)
            if not self._ending:
                self._look_at_reader()
            if self._upload is not None and reader.body_bytes > LARGE_BYTES and self._transport is not None:
                self._transport.pause_reading()
                self._edge.plane.buffers.turns.wait(self)

    def read_on(self) -> None:
        """Read the next part of a large body (`buffers.Paused`)."""
        transport = self._transport
        if self._reading and transport is not None and not transport.is_closing():
            transport.resume_reading()

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
        """The head is complete, the body is not. Check a large one before it fills memory, and let it be sent if it waits."""
        if self._prechecked:
            return
        length = request.headers.get(b"content-length")
        expects = b"expect" in request.headers
        if length is not None and int(length) <= LARGE_BYTES and not expects:
            return
        self._prechecked = True
        if self._admit_upload(request, 0 if length is None else int(length)) and expects and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_sender(self, request: HttpRequest) -> None:
        """Check who sends a body that is not large and has been awaited for a while, and hold memory for it. Routes that read small bodies
        know their sender by the body alone: theirs count for the process."""
        self._prechecked = True
        length = int(request.headers.get(b"content-length", b"0"))
        route = find_route(find_path(request))
        if route is None or not route.has_small_body:
            self._admit_upload(request, length)
            return
        plane = self._edge.plane
        upload = Upload(BufferHold(plane.buffers), None)
        try:
            upload.expect(length)
        except Fault as fault:
            self._write_fault(fault, close=True)
            return
        self._upload = upload

    def _admit_upload(self, request: HttpRequest, length: int) -> bool:
        """Check by its head who sends a large body of `length` bytes (0: not known), charge the request, and hold memory for it. Return
        False if it was refused."""
        is_arriving = self._request is None
        try:
            if not self._is_addressed(request):
                raise Fault(faults.HOST_UNKNOWN)
            path = find_path(request)
            route = find_route(path)
            if route is not None and route.has_small_body:
                raise Fault(faults.BODY_TOO_LARGE, message=f"The body must have a stated length of at most {LARGE_BYTES} bytes.")
            if route is None or (route.endpoint is None and not route.takes_upload):
                raise find_route_fault(path, None) or Fault(faults.ROUTE_UNKNOWN)
        except Fault as fault:
            self._write_fault(fault, close=True)
            return False
        plane = self._edge.plane
        try:
            head = self.read_head(request, route.endpoint or Endpoint.CHAT_COMPLETIONS)
            caller = pipeline.identify_sender(head, plane, is_file=route.endpoint is None)
        except Fault as fault:
            self._write_fault(self.throttle(fault, request.headers), close=is_arriving)
            return False
        try:
            self._upload = pipeline.admit_upload(caller, length, plane)
        except Fault as fault:
            self._write_fault(fault, close=is_arriving)
            return False
        return True

    def _count_upload(self, upload: Upload) -> None:
        """Count what has arrived of a large body. One that exceeds the budget is refused and read no further."""
        try:
            upload.count(self._reader.body_bytes)
        except Fault as fault:
            self._write_fault(fault, close=True)

    def _release_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.release(time.monotonic_ns())

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
        self._head = None
        self._reader.close()
        self._release_upload()
        if self._unread is not None:
            self._unread.release()
            self._unread = None
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.interrupt(ClientGone())

    def pause_writing(self) -> None:
        self._paused_at = self._edge.loop.time()
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        self._paused_at = 0.0
        if self._flow is not None:
            self._flow.resume()
        if self._unread is not None:
            self._unread.release()
            self._unread = None
            self._finished()

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
            head = self._head = self._dispatch(http)
            if head is None:
                return
        if head.body_beginning:
            _name_model(http, head.body_beginning)
        request = self.new_request(http, head, http.body)
        if self._upload is None and http.pieces and not self._admit_upload(http, sum(map(len, http.pieces))):
            return
        if self._upload is not None:
            request.take_upload(self._upload, http.pieces or (http.body,))
        http.body = b""  # the pipeline's from here on, which releases it when it can
        http.pieces = ()
        driver = self._driver = CoroutineDriver(edge.context.copy())
        driver.start(pipeline.answer(request, self, plane, driver))

    def _dispatch(self, http: HttpRequest) -> RequestHead | None:
        """Return the parsed head of a request for the pipeline. Return None if the request is not for it: then it has been answered by the
        handler of its route, or with a fault."""
        if not self._is_addressed(http):
            self._write_fault(Fault(faults.HOST_UNKNOWN))
            return None
        path = http.target
        route = ROUTES.get(path)
        if route is None:
            path = find_path(http)
            route = find_route(path)
        method = http.method
        if method == b"OPTIONS" and route is not None and self._answer_preflight(route):
            return None
        fault = find_route_fault(path, route)
        if route is None or fault is not None:
            if method == b"TRACE" and fault is not None and fault.kind is faults.ROUTE_UNKNOWN:
                fault = Fault(faults.METHOD_UNSUPPORTED)
            self._write_fault(fault or Fault(faults.ROUTE_UNKNOWN))
        elif not route.has_method(method):
            self._write_fault(Fault(faults.METHOD_UNSUPPORTED), headers=b"allow: %b\r\n" % route.methods)
        elif route.takes_upload and self._upload is None and http.pieces and not self._admit_upload(http, sum(map(len, http.pieces))):
            pass  # it has been answered
        elif route.handler is not None:
            route.handler(self, http, path)
        elif route.endpoint is not None:
            kind = find_body_fault(http.headers, route.endpoint)
            if kind is None:
                head = self.read_head(http, route.endpoint)
                if route.names_model:
                    head.body_beginning = infer.begin_body(path.replace(b"%2F", b"/").replace(b"%2f", b"/"))
                return head
            self._write_fault(Fault(kind))
        return None

    def new_request(self, http: HttpRequest, head: RequestHead, body: bytes) -> Request:
        """Return a request that is received now, with an id of its own."""
        edge = self._edge
        plane = edge.plane
        peer = head.address if edge.rules is not None and edge.rules.peers_logged else ""
        now_us = plane.now_us()
        return new_request(plane.request_ids.new(now_us), head, body, edge.loop.time(), now_us, peer)

    def take_upload(self) -> Upload | None:
        """Return what accounts for the large body of the request being answered, None for a small one. Whoever takes it releases it."""
        upload, self._upload = self._upload, None
        return upload

    def attach(self, driver: CoroutineDriver) -> None:
        """Interrupt this coroutine, which answers the request, if the client leaves or the gateway drains."""
        self._driver = driver

    def allows_origin(self, origin: bytes) -> bool:
        """Return whether scripts of this origin may connect."""
        rules = self._edge.rules
        return rules is not None and cors.allows_origin(rules, origin)

    def upgrade(self, headers: bytes, session: TimedConnection, end: End) -> Callable[[], None]:
        """Answer 101 with these header lines, and let `end` go on with the connection. Return what to call once that is gone."""
        edge, transport, peer = self._edge, self._transport, self._peer
        assert transport is not None
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n%b\r\n" % headers)
        edge.connections.discard(self)
        edge.connections.add(session)
        self._reader.close()
        self._transport = self._request = self._driver = self._head = None
        self.gone = True
        self._ending = True
        end.take(transport)
        return partial(edge.forget, session, peer)

    def answer_fault(self, fault: Fault) -> None:
        """Answer a request that did not become one of the pipeline's with a fault."""
        self._write_fault(fault)

    def _answer_preflight(self, route: Route) -> bool:
        """Answer the preflight of a browser whose script wants to call `route`. Return False if scripts are not admitted here."""
        rules = self._edge.rules
        if rules is None or not rules.origins:
            return False
        self.answer(200, b"allow: %b, OPTIONS\r\n%b" % (route.methods, cors.preflight_headers(rules, route.methods)), b"")
        return True

    def _is_addressed(self, http: HttpRequest) -> bool:
        """Return whether the request names a host that is served here, or a route that is served under any."""
        rules = self._edge.rules
        if rules is None or edge_policy.is_addressed(rules, http.headers.get(b"host", b"")):
            return True
        route = ROUTES.get(http.target)
        return route is not None and route.any_host

    def read_head(self, http: HttpRequest, endpoint: Endpoint) -> RequestHead:
        """Return what the head of a request says, with the client's certificate where one counts."""
        head = pipeline.read_head(http.headers, endpoint, self.find_address(http))
        rules = self._edge.rules
        if rules is not None:
            if self._certificate:
                head.certificate = self._certificate
            elif rules.certificate_header and edge_policy.is_trusted(rules, self._peer):
                head.certificate = find_forwarded(http.headers, rules.certificate_header)
        return head

    def find_address(self, http: HttpRequest) -> str:
        """Return the client's address: the peer's, or the one that trusted proxies report; empty if the socket has none."""
        rules = self._edge.rules
        if rules is None:
            return self._peer
        return edge_policy.find_client(rules, self._peer, http.headers.get(b"x-forwarded-for"))

    def _cors(self, request: HttpRequest | None) -> bytes:
        """Return the CORS header lines of the answer."""
        rules = self._edge.rules
        return b"" if rules is None or request is None else cors.cors_headers(rules, request.headers.get(b"origin"))

    def _finished(self) -> None:
        """The answer was written whole: the next request, or the end of the connection. Both wait until the client has read it, so that
        one that does not read holds one answer at most."""
        self._driver = None
        transport = self._transport
        if self._paused_at and transport is not None:
            self._unread = BufferHold(self._edge.plane.buffers)
            self._unread.take(transport.get_write_buffer_size())
            return
        if self._upload is not None:
            self._release_upload()
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
        self._reader.close()
        self._begin_phase()
        if transport.can_write_eof():  # TLS cannot; `connection: close` says it too
            transport.write_eof()
        if not self._reading:
            self._reading = True
            transport.resume_reading()

    # ports.Client, and routes.RoutedConnection

    @property
    def plane(self) -> Plane:
        return self._edge.plane

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        transport = self._transport
        if transport is not None:
            self.committed = True
            edge, request = self._edge, self._request
            if status == 401:
                self._close_unproven()
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

    def _close_unproven(self) -> None:
        """Close the connection after this answer, 401, if its client has shown nothing and a certificate would count: the next handshake
        asks for one of those that are trusted then, which may be more than at this one."""
        rules, request = self._edge.rules, self._request
        if rules is None or not rules.client_certificates or self._certificate or request is None:
            return
        if CREDENTIALS.isdisjoint(request.headers):
            self._close_after = True

    def begin_stream(self, headers: bytes) -> None:
        self.committed = True
        self._reader.release_parser()
        if self._upload is not None:
            self._release_upload()
        transport = self._transport
        if transport is not None:
            chunked = self.chunked = self._request is not None and self._request.minor_version == 1
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
            if self.chunked:
                transport.write(chunk_size(len(data)) + data + b"\r\n")
            else:
                transport.write(data)

    def send_chunks(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None:
            transport.write(data)

    def end_stream(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None:
            if self.chunked:
                transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
            else:
                transport.write(data)
        self._finished()

    def break_off(self) -> None:
        transport = self._transport
        self._close_after = True
        if transport is not None:
            # A reset, not a clean end: where the end of the connection ends the body, a client could take it for whole.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        self._finished()

    def throttle(self, fault: Fault, headers: Mapping[bytes, bytes]) -> Fault:
        edge = self._edge
        address = self._peer
        if edge.rules is not None:
            address = edge_policy.find_client(edge.rules, address, headers.get(b"x-forwarded-for"))
            if edge_policy.is_trusted(edge.rules, address):
                return fault  # a proxy that does not say for whom it asks: many, and the innocent are not to wait for the others
        return edge.auth_failures.throttle(fault, address, time.monotonic_ns())

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
        if fault.kind.status == 401:
            self._close_unproven()
        if self._transport is None:
            return
        request_id = pipeline.new_id(self._edge.plane)
        dialect = find_error_dialect(self._request.target if self._request is not None else self._reader.target)
        headers += b"content-type: application/json\r\ncache-control: no-store\r\n" + dialect.identify(request_id)
        headers += self._cors(self._request or self._reader.open_request)
        body = dialect.render_error(fault, request_id)
        head_only = self._request is not None and self._request.method == b"HEAD"
        self._transport.write(
            b"%b%b%b%bcontent-length: %d\r\n\r\n%b"
            % (
                self._edge.openings[fault.kind.status],
                headers,
                fault_headers(fault),
                b"connection: close\r\n" if self._close_after else b"",
                len(body),
                b"" if head_only else body,
            )
        )
        self._finished()

    def _begin_phase(self) -> None:
        self._phase_at = self._edge.now
        self._phase_bytes = 0

    def interrupt(self, fault: Fault) -> None:
        """End the request that is being answered, if there is one, with a fault."""
        if self._driver is not None:
            self._driver.interrupt(fault)

    def hang_up(self) -> None:
        """Close at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def tick(self, now: float) -> None:
        """Look at this connection's deadlines."""
        bounds = self._edge.bounds
        if self._paused_at and now - self._paused_at > bounds.write_stall_seconds and not self._is_being_read(now):
            self.hang_up()
        if self._request is not None:
            if self.committed:
                self._reader.release_head()  # a stream, and it lasts
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
        elif elapsed > bounds.body_seconds or (elapsed > bounds.body_grace_seconds and self._phase_bytes < elapsed * bounds.body_rate_min):
            self._write_fault(Fault(faults.REQUEST_TIMEOUT), close=True)
        elif elapsed > UNCHECKED_SECONDS and not self._prechecked:
            self._check_sender(self._reader.open_request)

    def _is_being_read(self, now: float) -> bool:
        """Return whether the client has read a tenth of what was left of a whole answer; it has as long again for the next tenth then."""
        unread, transport = self._unread, self._transport
        if unread is None or transport is None:
            return False
        left = transport.get_write_buffer_size()
        if left > unread.bytes * 0.9:
            return False
        unread.take(left - unread.bytes)
        self._paused_at = now
        return True

    def find_idle_since(self) -> float | None:
        """Return since when this connection waits for a request, in seconds of the edge's clock; None while it has or begins one."""
        return None if self._request is not None or self._ending or self._reader.in_message else self._phase_at

    def close_if_idle(self, *, is_rested: bool) -> None:
        """Drain: a busy connection is closed after its answer, one that has rested for REST_SECONDS at once. Until then its next request,
        or its first, may be on its way: a close would meet it, and its answer can say `connection: close` instead.

        `is_rested`: the drain itself has lasted so long. The clock's instants are half a second coarse, and coarser on a busy machine, so
        a connection that was used just before the drain may look as if it had rested.
        """
        self._close_after = True
        since = self.find_idle_since()
        if is_rested and since is not None and self._edge.now - since >= REST_SECONDS:
            self._end()


def _name_model(http: HttpRequest, beginning: bytes) -> None:
    """Let the body of a request begin with the model that its path names."""
    if http.pieces:
        http.pieces = (infer.name_model(http.pieces[0], beginning), *http.pieces[1:])
    else:
        http.body = infer.name_model(http.body, beginning)
