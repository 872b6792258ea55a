"""Reports of a gateway on itself: control keeps the latest of each gateway, and shows it to operators.

A report is whole, and replaces the one before. It goes by a request of its own beside the acknowledgement, so that a control of an earlier
version, which refuses fields that it does not know, takes acknowledgements as ever (docs/decisions/0137). Nothing is decided by it: one
that is lost is not repeated, because the next one says the same and more.
"""

import asyncio
from typing import Protocol

import httpx2
import msgspec

from tollway.domain.gateway_statuses import STATUS_SECONDS, DeploymentStatus, GatewayStatus
from tollway.link.control_client import new_control_client

REQUEST_SECONDS_MAX = 4.0
"""Deadline of one report, before the next one is due."""

UNKNOWN_SECONDS = 60.0
"""Pause after a control that does not know this report: one of an earlier version, which is replaced some time."""


class ReportedStatus(Protocol):
    """The source of reports: the gateway's `status.StatusSource`."""

    async def collect(self) -> tuple[GatewayStatus, list[DeploymentStatus]]:
        """Return the present status, and that of each deployment."""
        ...


class StatusReporter:
    """Reports the status of one gateway. Use: `run()` as a task until it is cancelled, then `await close()`. `run` may be run again after
    it raised."""

    def __init__(self, source: ReportedStatus, *, control_link_url: str, node_key: str, node_id: str) -> None:
        self._source = source
        self._path = f"/v1/link/statuses/{node_id}"
        self._client = new_control_client(control_link_url, node_key, REQUEST_SECONDS_MAX)

    async def run(self) -> None:
        """Report every STATUS_SECONDS until cancelled."""
        while True:
            pause = STATUS_SECONDS
            gateway, deployments = await self._source.collect()
            body = msgspec.json.encode({"gateway": gateway, "deployments": deployments})
            try:
                async with asyncio.timeout(REQUEST_SECONDS_MAX):
                    answer = await self._client.put(self._path, content=body)
                if answer.status_code == 404:
                    pause = UNKNOWN_SECONDS
            except (httpx2.HTTPError, httpx2.StreamError, TimeoutError):
                pass  # the follower raises the alarm
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close the connection. Call it once `run` has ended."""
        await self._client.aclose()
