"""Serve one gateway process: the listeners, the clock, and the drain at its end."""

import asyncio
import gc
import socket
import ssl
from collections.abc import Callable
from functools import partial

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.background import BackgroundTasks
from tollway.gateway.edge.accepting import BatchAcceptor
from tollway.gateway.edge.admin_listener import AdminListener
from tollway.gateway.edge.client_connection import ClientConnection
from tollway.gateway.edge.clock import Clock
from tollway.gateway.edge.edge import REST_SECONDS, Edge, EdgeBounds
from tollway.gateway.edge.edge_policy import EdgePolicy
from tollway.gateway.edge.listener import Listener, OpeningBounds
from tollway.gateway.plane import Plane
from tollway.wire.http import HttpBounds


class DrainBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a drain: new requests are still accepted for `linger_seconds` (load balancers need time to look), running ones have
    `grace_seconds` in all; then the rest are answered with an error and closed."""

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
    background: BackgroundTasks,
    rules: EdgePolicy | None = None,
    tls: Callable[[], ssl.SSLContext] | None = None,
) -> None:
    """Serve until `stop` is set, then drain. The sockets belong to the caller's supervisor: they are only accepted from. `tls` gives the
    context of each new connection of the public one. The clock runs under `background` until the caller stops that."""
    loop = asyncio.get_running_loop()
    edge = Edge(plane, edge_bounds, http_bounds, rules)
    background.start("clock", Clock(edge).run)
    expose = plane.metrics.expose
    expose("tollway_log_lines_dropped", lambda: plane.log.dropped)
    connections = plane.upstreams.connections
    connections.most, connections.on_shortage = edge_bounds.connections_max, partial(_free_descriptors, edge)
    expose("tollway_buffered_bytes", lambda: plane.buffers.total)
    expose("tollway_connections", lambda: len(edge.connections))
    await asyncio.sleep(0)
    public: asyncio.Server | Listener
    if tls is None and (rules is None or not rules.proxy_protocol):
        listener.setblocking(False)
        acceptor = BatchAcceptor(listener, lambda: ClientConnection(edge))
        public = await loop.create_server(acceptor.connect, sock=listener, backlog=4096)
    else:
        public = _listen(edge, listener, tls)
    administration = AdminListener(edge)
    expose("tollway_internal_connections", lambda: len(administration.connections))
    private = await loop.create_server(administration.connect, sock=internal, backlog=64)
    gc.collect()
    gc.freeze()
    ready.set()
    await stop.wait()
    await _drain(edge, public, drain)
    if isinstance(public, Listener):
        public.cancel()
    private.close()
    administration.close()
    for upstream in list(plane.upstreams.all()):
        upstream.close_idle(0.0, all=True)


def _free_descriptors(edge: Edge) -> None:
    """Close what nobody waits for, so that a request gets a connection to its engine."""
    edge.plane.upstreams.close_all_idle()
    edge.shed_idle()


def _listen(edge: Edge, listener: socket.socket, tls: Callable[[], ssl.SSLContext] | None) -> Listener:
    """Return the public listener for connections with a PROXY header or TLS, which have to be opened first."""
    bounds, metrics = edge.bounds, edge.plane.metrics

    def refused() -> None:
        metrics.connections_refused += 1

    def is_full(opening: int) -> bool:
        return len(edge.connections) + opening >= bounds.connections_max and not edge.shed_idle()

    opening = OpeningBounds(
        opening_seconds=bounds.opening_seconds,
        opening_per_peer_max=bounds.connections_per_peer_max,
    )
    return Listener(
        listener, lambda peer: ClientConnection(edge, peer), refused, is_full, rules=edge.rules or EdgePolicy(), tls=tls, bounds=opening
    )


async def _drain(edge: Edge, public: asyncio.Server | Listener, bounds: DrainBounds) -> None:
    """Not ready > linger > accept nothing more > let what runs finish > interrupt the rest."""
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
    for connection in list(edge.connections):
        edge.loop.call_soon(connection.interrupt, Fault(faults.DRAINING))
    for _ in range(20):
        if not edge.connections:
            return
        await asyncio.sleep(0.05)
    for connection in list(edge.connections):
        connection.hang_up()
