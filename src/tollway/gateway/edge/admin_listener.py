"""The internal listener: /metrics, /livez and /readyz for operators and probes. One request per connection.

It is for networks that the operator controls, and is bounded as if it were not: a request has `head_seconds` from the connection on, its
answer `write_stall_seconds` to be read, and at most `internal_connections_max` connections are open; one more is closed at once. No request
has a body here, so none is read: a request that announces one is answered by its head.
"""

import asyncio

from tollway.domain import faults
from tollway.gateway.edge.edge import REASONS, Edge
from tollway.gateway.edge.paths import INTERNAL_ROUTES, SmallAnswer, find_path
from tollway.wire.http import HttpRequest, RequestReader

_TEXT = b"content-type: text/plain\r\n"


class AdminListener:
    """The connections of the internal listener. `connect` makes the protocol of a new one."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.connections: set[AdminConnection] = set()

    def connect(self) -> "AdminConnection":
        """Return the protocol of a connection that was accepted."""
        return AdminConnection(self)

    def close(self) -> None:
        """Close all connections at once."""
        for connection in list(self.connections):
            connection.abort()


class AdminConnection(asyncio.Protocol):
    """A connection of the internal listener."""

    def __init__(self, listener: AdminListener) -> None:
        self._listener = listener
        self._edge = listener.edge
        self._reader = RequestReader(self._edge.http)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        edge, connections = self._edge, self._listener.connections
        if len(connections) >= edge.bounds.internal_connections_max:
            edge.plane.metrics.connections_refused += 1
            self.abort()
            return
        connections.add(self)
        self._timer = edge.loop.call_later(edge.bounds.head_seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        self._transport = None
        self._reader.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self._is_answered:
            return
        reader = self._reader
        requests = reader.feed(data)
        if requests:
            self._answer(self._respond(requests[0]), with_body=requests[0].method != b"HEAD")
        elif reader.fault is not None:
            self._answer(SmallAnswer(reader.fault.status, _TEXT, reader.fault.message.encode() + b"\n"))
        elif reader.open_request is not None and _has_body(reader.open_request):
            self._answer(self._respond(reader.open_request))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _respond(self, request: HttpRequest) -> SmallAnswer:
        render = INTERNAL_ROUTES.get(find_path(request))
        if render is None:
            return SmallAnswer(404, _TEXT, b"not found\n")
        if request.method not in (b"GET", b"HEAD") or _has_body(request) or request.body:
            return SmallAnswer(405, b"allow: GET, HEAD\r\n" + _TEXT, b"method not allowed, or a body\n")
        return render(self._edge.plane, request)

    def _answer(self, answer: SmallAnswer, *, with_body: bool = True) -> None:
        """Write the answer and close. A client that is still sending is listened to for a moment (RFC 9112 section 9.6)."""
        transport, bounds = self._transport, self._edge.bounds
        if transport is None:
            return
        self._is_answered = True
        transport.write(
            b"HTTP/1.1 %d %b\r\n%bconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (answer.status, REASONS.get(answer.status, b"Error"), answer.headers, len(answer.body), answer.body if with_body else b"")
        )
        is_sending = self._reader.fault is not None or self._reader.in_message
        if is_sending:
            transport.write_eof()
        else:
            transport.close()
        self._set_timer(bounds.linger_seconds if is_sending else bounds.write_stall_seconds)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._edge.loop.call_later(seconds, self.abort)

    def _give_up(self) -> None:
        """End a connection whose request did not come in time."""
        if self._reader.in_message:
            self._answer(SmallAnswer(408, _TEXT, faults.REQUEST_TIMEOUT.message.encode() + b"\n"))
        else:
            self.abort()


def _has_body(request: HttpRequest) -> bool:
    """Return whether a head announces a body."""
    return b"transfer-encoding" in request.headers or request.headers.get(b"content-length", b"0") != b"0"
