"""The clock of the edge: deadlines of connections and exchanges, idle upstream connections, the date header, and the lag of the loop."""

import asyncio
import time
from email.utils import formatdate

from tollway.gateway.edge.edge import Edge
from tollway.gateway.plane import REFUSAL_LINES_PER_SECOND_MAX


class Clock:
    """Half a second, over and over: deadlines, idle pools, full buckets, the date. And how late the loop itself is."""

    PERIOD_SECONDS = 0.5
    LAG_PERIOD_SECONDS = 0.05
    SLICE = 500
    """Connections looked at without letting the loop go: well below a millisecond."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._expected = 0.0

    async def run(self) -> None:
        """Tick until cancelled."""
        edge, plane = self._edge, self._edge.plane
        last_second = 0
        self._lag()
        while True:
            edge.now = edge.loop.time()
            if int(edge.now) != last_second:
                last_second = int(edge.now)
                edge.tell_date(formatdate(time.time(), usegmt=True).encode())
                plane.refusal_lines = REFUSAL_LINES_PER_SECOND_MAX
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
