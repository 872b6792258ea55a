"""State shared by all client connections of one gateway process: plane, bounds, counts per address, and the start of each answer."""

import asyncio
import heapq
from contextvars import copy_context
from operator import itemgetter
from typing import Protocol

import msgspec

from tollway.domain.faults import Fault
from tollway.gateway.edge import edge_policy
from tollway.gateway.edge.auth_failures import AuthFailureLimiter
from tollway.gateway.edge.edge_policy import EdgePolicy
from tollway.gateway.plane import Plane
from tollway.wire.http import HttpBounds

REST_SECONDS = 1.0
"""A connection without a request for so long is not in use at this moment. A busy client's pauses and a network's delays are shorter."""
SHED_PART = 16
"""Part of `connections_max` that is closed at once, so that a flood of connections does not look through all of them each time."""

REASONS = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed",
    408: b"Request Timeout", 413: b"Content Too Large", 414: b"URI Too Long", 415: b"Unsupported Media Type", 417: b"Expectation Failed",
    421: b"Misdirected Request", 426: b"Upgrade Required",
    429: b"Too Many Requests", 431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


class EdgeBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Per-client timeouts and connection limits.

    `opening_seconds`: for a PROXY header, and again for a TLS handshake, where the listener has them. `head_seconds`: from the first byte
    of a head to its end. `body_grace_seconds`, `body_rate_min`: after the grace, a body must have arrived at this many bytes per
    second. `body_seconds`: a whole body. `keep_alive_seconds`: an idle connection; above the 60 s of common load balancers, so that they
    close first. `write_stall_seconds`: a client that does not read. `linger_seconds`: how long a refused client is still read from, so
    that the refusal is not destroyed by the reset that closing on unread bytes sends. `connections_max`, `connections_per_peer_max`: all
    and per address (0: no bound per address, as behind a load balancer every client is one). `internal_connections_max`: at the internal
    listener, whose requests have `head_seconds` and whose answers have `write_stall_seconds`.
    `failed_authentications_per_minute`: per address, before 401 becomes 429 (0: no bound); good keys pass whatever failed before.
    """

    opening_seconds: float = 10.0
    head_seconds: float = 15.0
    body_grace_seconds: float = 10.0
    body_rate_min: float = 1024.0
    body_seconds: float = 900.0
    keep_alive_seconds: float = 75.0
    write_stall_seconds: float = 30.0
    linger_seconds: float = 2.0
    connections_max: int = 20_000
    connections_per_peer_max: int = 0
    internal_connections_max: int = 64
    failed_authentications_per_minute: int = 120


class _Openings(dict[int, bytes]):
    """Status line and date of answers, by status: valid for as long as the date is."""

    def __init__(self, date: bytes) -> None:
        self._date = date

    def __missing__(self, status: int) -> bytes:
        opening = self[status] = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (status, REASONS.get(status, b"Error"), self._date)
        return opening


class TimedConnection(Protocol):
    """A client connection as the clock and the drain see it."""

    def tick(self, now: float) -> None:
        """Check the connection's deadlines."""
        ...

    def find_idle_since(self) -> float | None:
        """Return since when the connection waits for a request, in seconds of the edge's clock; None while it has one or begins one."""
        ...

    def close_if_idle(self, *, is_rested: bool) -> None:
        """Close the connection, during a drain, once it has no request."""
        ...

    def interrupt(self, fault: Fault) -> None:
        """End the request that is being answered, if there is one, with a fault."""
        ...

    def hang_up(self) -> None:
        """Close the connection at once."""
        ...


class Edge:
    """All client connections of this process. `openings`: how an answer of a status begins at this moment."""

    def __init__(self, plane: Plane, bounds: EdgeBounds, http: HttpBounds, rules: EdgePolicy | None = None) -> None:
        """`rules`: None where nothing is asked of who comes in, as by default."""
        self.plane = plane
        self.bounds = bounds
        self.http = http
        self.rules = rules
        self.auth_failures = AuthFailureLimiter(bounds.failed_authentications_per_minute)
        self.connections: set[TimedConnection] = set()
        self.peers: dict[str, int] = {}
        self.context = copy_context()
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        self.openings = _Openings(b"")
        self._shed_at = -1.0

    def tell_date(self, date: bytes) -> None:
        """Set the `date` header (RFC 9110 section 6.6.1) of answers from now on."""
        self.openings = _Openings(date)

    def admit(self, peer: str) -> bool:
        """Return whether one more connection from this address is allowed; counts it if so."""
        most = self.bounds.connections_per_peer_max
        if most and self.rules is not None and self.rules.forwarded_for and edge_policy.is_trusted(self.rules, peer):
            most = 0  # it carries the requests of many
        if most and self.peers.get(peer, 0) >= most:
            return False
        if len(self.connections) >= self.bounds.connections_max and not self.shed_idle():
            return False
        self.peers[peer] = self.peers.get(peer, 0) + 1
        return True

    def shed_idle(self) -> int:
        """Close the connections that have waited longest for a request, a sixteenth of the bound at most; return how many. Descriptors or
        places are short, and whoever has a request goes before whoever holds a connection open.

        One call looks at all connections, so once none was idle for REST_SECONDS, none is looked for until the clock has moved on.
        """
        if self._shed_at == self.now:
            return 0
        idle = [(since, connection) for connection in self.connections if (since := connection.find_idle_since()) is not None]
        idle = [each for each in idle if self.now - each[0] >= REST_SECONDS]
        if not idle:
            self._shed_at = self.now
        longest = heapq.nsmallest(max(1, self.bounds.connections_max // SHED_PART), idle, key=itemgetter(0))
        for _, connection in longest:
            self.connections.discard(connection)
            connection.hang_up()
        self.plane.metrics.connections_shed += len(longest)
        return len(longest)

    def forget(self, connection: TimedConnection, peer: str) -> None:
        """A connection that another protocol had taken over is gone."""
        self.connections.discard(connection)
        self.leave(peer)

    def leave(self, peer: str) -> None:
        """The connection is gone."""
        left = self.peers.get(peer, 1) - 1
        if left > 0:
            self.peers[peer] = left
        else:
            self.peers.pop(peer, None)
