"""The clock of the edge: deadlines of connections and exchanges, idle upstream connections, the date header, and the lag of the loop."""

import asyncio
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.edge.edge import Edge
from tollway.gateway.plane import REFUSAL_LINES_PER_SECOND_MAX


class Clock:
    """Checks every half second: deadlines, requests whose keys were revoked, idle pools, rate limit buckets that are full again, the date,
    overload of the process; and the lag of the loop.

    It ticks from timers of the loop and never from a task: a request that a deadline interrupts would otherwise run inside that task.
    `run` is the task that ends when a tick fails as a whole. A check of one connection that fails ends that connection alone.
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
        except Exception as error:
            self._fail(error)
        else:
            self._timer = loop.call_soon(self._go_on, slices)

    def _fail(self, error: Exception) -> None:
        """End `run` with an error, so that its supervisor restarts it or drains the process."""
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _tick(self) -> Iterator[None]:
        """Check everything once, deadlines first: they must hold whatever else fails."""
        edge, plane = self._edge, self._edge.plane
        now = edge.now = edge.loop.time()
        exchanges = list(plane.active.exchanges)
        for start in range(0, len(exchanges), self.SLICE):
            for exchange in exchanges[start : start + self.SLICE]:
                try:
                    exchange.tick(now)
                    if plane.directory.is_revoked(exchange.call.caller):
                        exchange.interrupt(Fault(faults.KEY_INVALID, message="The API key was revoked while the request ran."))
                except Exception as error:
                    self._isolate(error, exchange.interrupt, Fault(faults.INTERNAL))
            yield
        connections = list(edge.connections)
        for start in range(0, len(connections), self.SLICE):
            for connection in connections[start : start + self.SLICE]:
                try:
                    connection.tick(now)
                except Exception as error:
                    self._isolate(error, connection.hang_up)
            yield
        plane.shedder.check()
        plane.log.flush()
        if int(now) != self._last_second:
            self._last_second = int(now)
            edge.tell_date(formatdate(time.time(), usegmt=True).encode())
            plane.refusal_lines = REFUSAL_LINES_PER_SECOND_MAX
            edge.auth_failures.forget_idle(time.monotonic_ns())
            for upstream in list(plane.upstreams.all()):
                upstream.close_idle(now)

    def _isolate(self, error: Exception, end: Callable[..., None], *arguments: object) -> None:
        """End the one item whose check failed by `end(*arguments)`, so that all others keep their deadlines; report the error."""
        loop = self._edge.loop
        loop.call_exception_handler({"message": "a deadline could not be checked", "exception": error})
        loop.call_soon(end, *arguments)

    def _measure_lag(self) -> None:
        try:
            now = self._edge.loop.time()
            metrics = self._edge.plane.metrics
            if self._expected:
                lag = now - self._expected
                metrics.loop_lag_seconds_max = max(metrics.loop_lag_seconds_max, lag)
                metrics.status_lag_seconds_max = max(metrics.status_lag_seconds_max, lag)
                self._edge.plane.shedder.note_lag(lag)
            self._expected = now + self.LAG_PERIOD_SECONDS
            self._lag_timer = self._edge.loop.call_later(self.LAG_PERIOD_SECONDS, self._measure_lag)
        except Exception as error:
            self._fail(error)
