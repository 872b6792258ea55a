"""Active probes: each upstream is asked, beside its requests, whether it takes any.

An engine that starts, drains or is gone is found before a request fails at it, and one that came back is used at once. An upstream that is
not usable is asked more often. How an engine is asked stands in its profile (`engines.profile.ReadinessProbe`); engines of which nothing is
known are not asked.

What must hold: at most PROBES_MAX probes are under way, each with a deadline, and each reads at most a status line. A shortage of
descriptors of this process says nothing about an engine.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from tollway.domain.addresses import is_metadata_peer
from tollway.gateway.upstreams.open_connections import find_name_error, is_exhausted

RETURN_SECONDS = 0.5
"""Time between two probes of an upstream that is not usable."""
JITTER = 0.25
"""Part of an interval by which each one differs at random, so that gateways do not ask all at once."""
TICK_SECONDS = 0.1
PROBES_MAX = 64
STATUS_LINE_BYTES_MAX = 1024


class ProbeRequest(NamedTuple):
    """A probe: where it goes, and its bytes. `seconds`: deadline of the whole probe, its answer included. `refusals`: the
    statuses by which an engine says that it takes no requests."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    head: bytes
    seconds: float
    refusals: tuple[bytes, ...] = (b"503",)


class Probed(Protocol):
    """An upstream, as probes see it."""

    probe: ProbeRequest | None
    probe_at: float

    @property
    def is_doubted(self) -> bool:
        """True while the upstream is not usable, so that its return should be noticed soon."""
        ...

    def probed(self, is_ready: bool | None, now: float) -> None:
        """Take the result of a probe."""
        ...


@asynccontextmanager
async def open_probe(request: ProbeRequest) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request on a connection of its own; yield what is answered. Raises OSError, PermissionError among them for a name that
    resolved to an address that no engine may have: then nothing was sent there."""
    try:
        reader, writer = await asyncio.open_connection(request.host, request.port, ssl=request.tls, limit=STATUS_LINE_BYTES_MAX)
    except ValueError as error:
        raise find_name_error(error) from None
    try:
        if is_metadata_peer(writer.get_extra_info("peername")):
            raise PermissionError("the name resolved to an address that is not allowed")
        writer.write(request.head)
        yield reader
    finally:
        writer.transport.abort()


async def ask(request: ProbeRequest) -> bool | None:
    """Return whether an engine takes requests: False if it refuses (503 for most) or cannot be connected to, True for any other answer,
    None for none in time.

    Only such a status is an engine's word. Another status may be that of a proxy, or of a version without the path. Raises OSError if this
    process has no descriptor for a connection, which says nothing about the engine.
    """
    try:
        async with asyncio.timeout(request.seconds), open_probe(request) as reader:
            line = await reader.readuntil(b"\n")
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    except OSError as error:  # a failed handshake or look-up is one too
        if is_exhausted(error):
            raise
        return False
    return not {*line.split(b" ", 2)[1:2]}.intersection(request.refusals)


async def run(upstreams: Callable[[], Iterable[Probed]], interval_seconds: float, random: Callable[[], float]) -> None:
    """Probe the upstreams until cancelled. `upstreams`: those of the moment. `interval_seconds`: between two probes of one that is ready.
    `random`: uniform in [0, 1)."""
    async with asyncio.TaskGroup() as group:
        under_way: set[asyncio.Task[None]] = set()

        async def probe(upstream: Probed, request: ProbeRequest) -> None:
            try:
                upstream.probed(await ask(request), time.monotonic())
            except OSError:
                pass  # our own shortage: asked again at the next interval
            finally:
                interval = min(RETURN_SECONDS, interval_seconds) if upstream.is_doubted else interval_seconds
                upstream.probe_at = time.monotonic() + interval * (1 + JITTER * (2 * random() - 1))

        while True:
            now = time.monotonic()
            for upstream in list(upstreams()):
                if upstream.probe is None or now < upstream.probe_at or len(under_way) >= PROBES_MAX:
                    continue
                upstream.probe_at = float("inf")
                task = group.create_task(probe(upstream, upstream.probe))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.sleep(TICK_SECONDS)
