"""Reports of what is used of limits: each gateway that counts in its own memory reports them to control, which shows the sum to tenants.

A report is whole: control replaces the one before. It holds at most USES_REPORTED_MAX limits, those with the largest part used, and is sent
only when it differs from the last one that control received. Nothing is decided by it. Gateways that share their counters in a store do not
report: control reads the store.
"""

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import httpx2
import msgspec

from tollway.domain.limits import USES_REPORTED_MAX, LimitUse
from tollway.link.control_client import new_control_client

REPORT_SECONDS = 2.0
"""Interval of reports, and so the age of what tenants are shown."""

REQUEST_SECONDS_MAX = 2.0
"""Deadline of one report; the next one states everything anew."""

YIELD_COUNTERS = 1_000
"""Counters that are read before other work of the loop has its turn."""


class ReportedCounters(Protocol):
    """Counters whose use is reported: the gateway's `counters.MemoryCounters`."""

    def iterate_uses(self, clock: Callable[[], int]) -> Iterator[tuple[float, LimitUse] | None]:
        """Yield what is used of each limit with the part of it that this is, None for an unused one."""
        ...


class LimitReporter:
    """Reports the limits of one gateway. Use: `run()` as a task until it is cancelled, then `await close()`. `run` may be run again after
    it raised."""

    def __init__(self, source: ReportedCounters, *, control_link_url: str, node_key: str, node_id: str) -> None:
        self._source = source
        self._path = f"/v1/link/limit_uses/{node_id}"
        self._reported: list[LimitUse] | None = None
        self._client = new_control_client(control_link_url, node_key, REQUEST_SECONDS_MAX)

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            uses = await self._collect()
            if uses != self._reported:
                self._reported = None
                try:
                    async with asyncio.timeout(REQUEST_SECONDS_MAX):
                        answer = await self._client.put(self._path, content=msgspec.json.encode({"uses": uses}))
                    if answer.status_code == 200:
                        self._reported = uses
                except (httpx2.HTTPError, httpx2.StreamError, TimeoutError):
                    pass  # the follower raises the alarm; the next report states the same and more
            await asyncio.sleep(REPORT_SECONDS)

    async def _collect(self) -> list[LimitUse]:
        found: list[tuple[float, LimitUse]] = []
        for count, each in enumerate(self._source.iterate_uses(time.monotonic_ns)):
            if each is not None:
                found.append(each)
            if count % YIELD_COUNTERS == YIELD_COUNTERS - 1:
                if len(found) > USES_REPORTED_MAX:
                    found = _keep_largest(found)
                await asyncio.sleep(0)
        return [use for _, use in _keep_largest(found)]

    async def close(self) -> None:
        """Close the connection. Call it once `run` has ended."""
        await self._client.aclose()


def _keep_largest(found: list[tuple[float, LimitUse]]) -> list[tuple[float, LimitUse]]:
    return heapq.nlargest(USES_REPORTED_MAX, found, key=lambda each: each[0])
