"""The clock of the edge: deadlines of connections and exchanges, idle upstream connections, the date header, and the lag of the loop."""

import asyncio
import time
from collections.abc import Iterator
from email.utils import formatdate

from tollway.gateway.edge.edge import Edge
from tollway.gateway.plane import REFUSAL_LINES_PER_SECOND_MAX


class Clock:
    """Checks every half second: deadlines, idle pools, rate limit buckets that are full again, the date; and the lag of the loop.

    It ticks from timers of the loop and never from a task: a request that a deadline interrupts would otherwise run inside that task.
    """

    PERIOD_SECONDS = 0.5
    LAG_PERIOD_SECONDS = 0.05
    SLICE = 500
    """Connections checked in one turn of the loop: well below a millisecond."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._expected = 0.0
        self._last_second = 0
        self._timer: asyncio.Handle | None = None
        self._lag_timer: asyncio.Handle | None = None
        self._failed: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Tick until cancelled. Raises whatever a tick raised; it may be run again then."""
        loop = self._edge.loop
        self._failed = loop.create_future()
        self._expected = 0.0
        self._lag_timer = loop.call_soon(self._measure_lag)
        self._timer = loop.call_soon(self._begin)
        try:
            await self._failed
        finally:
            for timer in (self._timer, self._lag_timer):
                timer.cancel()

    def _begin(self) -> None:
        self._go_on(self._tick())

    def _go_on(self, slices: Iterator[None]) -> None:
        """Do one slice of a tick; the next in the next turn of the loop, the next tick after PERIOD_SECONDS."""
        loop = self._edge.loop
        try:
            next(slices)
        except StopIteration:
            self._timer = loop.call_later(self.PERIOD_SECONDS, self._begin)
        except Exception as error:  # whoever awaits `run` decides what becomes of it
            if self._failed is not None and not self._failed.done():
                self._failed.set_exception(error)
        else:
            self._timer = loop.call_soon(self._go_on, slices)

    def _tick(self) -> Iterator[None]:
        edge, plane = self._edge, self._edge.plane
        edge.now = edge.loop.time()
        if int(edge.now) != self._last_second:
            self._last_second = int(edge.now)
            edge.tell_date(formatdate(time.time(), usegmt=True).encode())
            plane.refusal_lines = REFUSAL_LINES_PER_SECOND_MAX
            edge.auth_failures.forget_idle(time.monotonic_ns())
            for upstream in list(plane.upstreams.all()):
                upstream.close_idle(edge.now)
        plane.log.flush()
        for items in (list(plane.active.exchanges), list(edge.connections)):
            for start in range(0, len(items), self.SLICE):
                for item in items[start : start + self.SLICE]:
                    item.tick(edge.now)
                yield

    def _measure_lag(self) -> None:
        now = self._edge.loop.time()
        metrics = self._edge.plane.metrics
        if self._expected:
            metrics.loop_lag_seconds_max = max(metrics.loop_lag_seconds_max, now - self._expected)
        self._expected = now + self.LAG_PERIOD_SECONDS
        self._lag_timer = self._edge.loop.call_later(self.LAG_PERIOD_SECONDS, self._measure_lag)
