"""Reports of batches that have ended: a gateway reports them to control, which appends an event for each.

The directory of the batches records which are not reported yet, so an end is reported at least once, whatever process dies and however long
control is away. Gateways that share the directory may report the same end: the id of its event follows from the end.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

import httpx2
import msgspec

from tollway.domain.batches import ENDS_REPORTED_MAX, BatchEnd
from tollway.domain.faults import Fault
from tollway.link.control_client import new_control_client

REPORT_SECONDS = 2.0
"""Interval of reports: so much later than its end an event of a batch may be."""

REQUEST_SECONDS_MAX = 10.0
"""Deadline of one report; the next one states the same."""


class EndedBatches(Protocol):
    """Store in which ended batches are kept until they are reported to control. Its functions block, and raise Fault files_unavailable."""

    def list_ends(self, count_max: int) -> list[BatchEnd]:
        """Return batches that have ended and are not reported to control yet, at most `count_max`."""
        ...

    def forget_ends(self, ends: Iterable[BatchEnd]) -> None:
        """Note that these ends are reported to control."""
        ...


class BatchEndReporter:
    """Reports the ends of batches of one gateway. Use: `run()` as a task until it is cancelled, then `await close()`. `run` may be run
    again after it raised."""

    def __init__(self, source: EndedBatches, *, control_link_url: str, node_key: str, node_id: str) -> None:
        self._source = source
        self._path = f"/v1/link/batch_ends/{node_id}"
        self._client = new_control_client(control_link_url, node_key, REQUEST_SECONDS_MAX)

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            if not await self.report():
                await asyncio.sleep(REPORT_SECONDS)

    async def report(self) -> bool:
        """Report once. Returns whether there may be more: control took as many as one report has."""
        try:
            ends = await asyncio.to_thread(self._source.list_ends, ENDS_REPORTED_MAX)
            if not ends:
                return False
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                answer = await self._client.post(self._path, content=msgspec.json.encode({"batches": ends}))
            if answer.status_code != 200:
                return False
            await asyncio.to_thread(self._source.forget_ends, ends)
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError, Fault):
            return False  # the follower, or the worker of the batches, raises the alarm; the next report states the same
        return len(ends) == ENDS_REPORTED_MAX

    async def close(self) -> None:
        """Close the connection. Call it once `run` has ended."""
        await self._client.aclose()
