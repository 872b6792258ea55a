"""The status of a gateway, which operators see at control: read every few seconds from what the gateway counts anyway."""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping

from tollway import __version__
from tollway.domain.gateway_statuses import (
    DEPLOYMENTS_REPORTED_MAX,
    STATUS_SECONDS,
    DeploymentStatus,
    Ejection,
    GatewayStatus,
)
from tollway.gateway.plane import Plane
from tollway.gateway.upstreams.upstream import Upstream

RATE_SAMPLES = round(60 / STATUS_SECONDS)
"""Samples of the counters between the first and the last of which a minute passes."""

YIELD_DEPLOYMENTS = 200
"""Deployments that are read before other work of the loop has its turn."""

Attempts = Mapping[str, tuple[int, int]]
"""Attempts that ended at each deployment since the process began, and those of them that ended in a fault."""


class StatusSource:
    """Reads the status of one gateway. `clock`: seconds of the monotonic clock."""

    def __init__(self, plane: Plane, clock: Callable[[], float] = time.monotonic) -> None:
        self._plane = plane
        self._clock = clock
        self._began = clock()
        self._samples: deque[tuple[float, Attempts]] = deque([(self._began, {})], maxlen=RATE_SAMPLES + 1)

    async def collect(self) -> tuple[GatewayStatus, list[DeploymentStatus]]:
        """Return the present status, and that of each deployment. Begins a new interval of the loop's lag. To be called every
        STATUS_SECONDS, by which rates are counted."""
        plane, now = self._plane, self._clock()
        metrics = plane.metrics
        attempts = _sum_attempts(metrics.attempts)
        since, before = self._samples[0]
        self._samples.append((now, attempts))
        minutes = max(now - since, STATUS_SECONDS) / 60
        deployments: list[DeploymentStatus] = []
        upstreams = list(plane.upstreams.all())
        for count, upstream in enumerate(upstreams, 1):
            deployments.append(self._read(upstream, now, attempts, before, minutes))
            if count % YIELD_DEPLOYMENTS == 0:
                await asyncio.sleep(0)
        reported = heapq.nlargest(DEPLOYMENTS_REPORTED_MAX, deployments, key=_rank)
        lag, metrics.status_lag_seconds_max = metrics.status_lag_seconds_max, 0.0
        age = metrics.find("tollway_snapshot_age_seconds")
        status = GatewayStatus(
            version=__version__,
            uptime_seconds=int(now - self._began),
            is_ready=plane.is_ready(),
            is_draining=plane.draining,
            connections=int(metrics.find("tollway_connections") or 0),
            running=metrics.running,
            waiting=plane.queues.count_waiting(),
            loop_lag_ms=round(lag * 1000),
            snapshot_age_ms=None if age is None or age < 0 else round(age * 1000),
            records_unshipped=int(metrics.find("tollway_shipper_records_unshipped") or 0),
            epochs_unshipped=int(metrics.find("tollway_shipper_epochs_unshipped") or 0),
            deployments_left_out=len(deployments) - len(reported),
        )
        return status, reported

    def _read(self, upstream: Upstream, now: float, attempts: Attempts, before: Attempts, minutes: float) -> DeploymentStatus:
        deployment = upstream.deployment
        ended, failed = attempts.get(deployment.id, (0, 0))
        ended_before, failed_before = before.get(deployment.id, (0, 0))
        return DeploymentStatus(
            id=deployment.id,
            weight=deployment.weight,
            running=upstream.running,
            limit=upstream.limit,
            waiting=self._plane.queues.count_waiting_for(deployment.model, test=deployment.test),
            requests_per_minute=round((ended - ended_before) / minutes),
            failures_per_minute=round((failed - failed_before) / minutes),
            is_ready=upstream.health.is_ready,
            ejections=tuple(
                Ejection(each.endpoint or "", each.reason, round((now - each.since) * 1000), max(0, round((each.until - now) * 1000)))
                for each in upstream.health.list_ejections()
            ),
        )


def _rank(status: DeploymentStatus) -> tuple[bool, int, int]:
    return bool(status.ejections) or not status.is_ready, status.running, status.requests_per_minute


def _sum_attempts(attempts: Mapping[tuple[str, str], int]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for (deployment_id, result), count in list(attempts.items()):
        ended, failed = found.get(deployment_id, (0, 0))
        found[deployment_id] = ended + count, failed + (0 if result == "ok" else count)
    return found
