"""The internal listener: /metrics, /livez and /readyz for operators and probes. One request per connection."""

import asyncio

from tollway.gateway.edge.edge import REASONS
from tollway.gateway.edge.routes import find_path
from tollway.gateway.plane import Plane
from tollway.wire.http import HttpBounds, RequestReader


class AdminConnection(asyncio.Protocol):
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
        path = find_path(requests[0]) if requests else b""
        if path == b"/metrics":
            status, kind, body = 200, b"text/plain; version=0.0.4; charset=utf-8", self._plane.metrics.render()
        elif path == b"/livez":
            status, body = 200, b"ok\n"
        elif path == b"/readyz":
            ready = self._plane.is_ready()
            status, body = (200, b"ok\n") if ready else (503, b"not ready\n")
        self._transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (status, REASONS.get(status, b"Error"), kind, len(body), body)
        )
        self._transport.close()
