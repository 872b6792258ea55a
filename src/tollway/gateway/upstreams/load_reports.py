"""Load reports: each engine is asked how much work waits at it, beside its requests.

A gateway sees only what it sent itself. Requests of other gateways, and those that reach an engine by another way, are known to the engine
alone. What it reports corrects the load by which deployments are chosen (`gateway.prefix_routing.Load`). Where it reports depends on its
kind (`engines.profile.LoadSource`). Engines that report nothing, or cannot be read, are chosen by what this gateway sent.

What must hold: only deployments that have an alternative are asked; at most REPORTS_PER_SECOND_MAX reports are asked for in a second and
QUERIES_MAX at a time; each has a deadline and a bound on its bytes; a report that cannot be understood changes nothing, and what an earlier
one said fades away.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec

from tollway.engines.profile import LoadSource
from tollway.gateway.upstreams.open_connections import is_exhausted
from tollway.gateway.upstreams.probes import JITTER, PROBES_MAX, ProbeRequest, open_probe
from tollway.wire.exposition import COUNT_MAX, sum_gauge
from tollway.wire.http import ResponseReader

TICK_SECONDS = 0.05
QUERIES_MAX = PROBES_MAX
REPORTS_PER_SECOND_MAX = 64
"""Reports asked for by one gateway. One costs about a millisecond of its time; in a larger fleet each engine is asked more rarely."""
REPORT_BYTES_MAX = 1 << 20
"""Largest report that is read. The metrics page of vLLM has 60 KiB per rank."""


class LoadQuery(NamedTuple):
    """A question for a report: the request, and how to understand the answer."""

    request: ProbeRequest
    source: LoadSource


class Reporting(Protocol):
    """An upstream, as load reports see it. `load_at`: when it is asked next, in seconds of the monotonic clock."""

    load_query: LoadQuery | None
    load_at: float

    def report_load(self, waiting: float | None, gateways: int) -> None:
        """Take a report: what waits, in the unit of its source; None if there was none that can be understood. So many `gateways` send
        to the engine."""
        ...

    def fade_load(self, seconds: float) -> None:
        """Let the last report fade for so many seconds."""
        ...


async def ask(query: LoadQuery) -> float | None:
    """Return how much an engine reports to wait at it, in the unit of its source; None if it reports nothing that can be understood within
    the deadline. Raises OSError if this process has no descriptor for a connection."""
    page = await read_page(query.request)
    if page is None:
        return None
    try:
        return read_report(page, query.source)
    except ValueError:
        return None


async def read_page(request: ProbeRequest) -> bytes | None:
    """Return what an engine answers, with status 200, within the deadline and REPORT_BYTES_MAX; else None. Raises OSError if this process
    has no descriptor for a connection."""
    reader = ResponseReader()
    try:
        async with asyncio.timeout(request.seconds), open_probe(request) as stream:
            while not reader.complete and not reader.broken and reader.body_bytes <= REPORT_BYTES_MAX:
                data = await stream.read(1 << 16)
                if not data:
                    reader.eof()
                    break
                reader.feed(data)
    except TimeoutError:
        return None
    except OSError as error:
        if is_exhausted(error):
            raise
        return None
    finally:
        reader.close()
    if not reader.complete or reader.broken or reader.status != 200 or reader.body_bytes > REPORT_BYTES_MAX:
        return None
    return b"".join(reader.body)


def read_report(body: bytes, source: LoadSource) -> float:
    """Return how much waits, as a report says it. Raises ValueError for one that cannot be understood."""
    if not source.list:
        return sum_gauge(body, source.name, source.labels.encode())
    try:
        elements = msgspec.json.decode(body)[source.list]
        values = [element[source.name] for element in elements]
    except (msgspec.DecodeError, KeyError, TypeError, IndexError, RecursionError):
        raise ValueError(f"a report without {source.list}") from None
    if not values or not all(type(value) in (int, float) and 0 <= value <= COUNT_MAX for value in values):
        raise ValueError(f"{source.name} is out of range")
    return float(sum(values))


async def run(
    upstreams: Callable[[], Iterable[Reporting]], gateways: Callable[[], int], interval_seconds: float, random: Callable[[], float]
) -> None:
    """Ask the upstreams until cancelled. `upstreams`: those of the moment that have an alternative. `gateways`: how many send to them, this
    one included. `interval_seconds`: between two reports of one. `random`: uniform in [0, 1)."""
    async with asyncio.TaskGroup() as group:
        under_way: set[asyncio.Task[None]] = set()

        async def query(upstream: Reporting, question: LoadQuery, interval: float) -> None:
            try:
                upstream.report_load(await ask(question), gateways())
            except OSError:
                pass  # our own shortage: asked again at the next interval
            finally:
                upstream.load_at = time.monotonic() + interval * (1 + JITTER * (2 * random() - 1))

        before = time.monotonic()
        while True:
            now = time.monotonic()
            asked = [upstream for upstream in upstreams() if upstream.load_query is not None]
            interval = max(interval_seconds, len(asked) / REPORTS_PER_SECOND_MAX)
            for upstream in asked:
                upstream.fade_load(now - before)
                if upstream.load_query is None or now < upstream.load_at or len(under_way) >= QUERIES_MAX:
                    continue
                upstream.load_at = float("inf")
                task = group.create_task(query(upstream, upstream.load_query, interval))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            before = now
            await asyncio.sleep(TICK_SECONDS)
