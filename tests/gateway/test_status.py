"""Reports of a gateway on itself and on its deployments: read from what it counts, and bounded."""

import time

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import NOWHERE, Served, chat, completion, gateway, plane, post, whole
from tollway import __version__
from tollway.domain.catalog import Engine
from tollway.domain.gateway_statuses import DEPLOYMENTS_REPORTED_MAX
from tollway.domain.snapshot import DeploymentEntry
from tollway.gateway import status
from tollway.gateway.status import StatusSource


async def test_status_tells_load_rates_and_ejections_with_their_reason() -> None:
    good = Upstream([whole(completion("good"))])
    now = [time.monotonic()]
    async with good.listening(), gateway({"m": Served([NOWHERE, good.url])}) as running:
        source = StatusSource(running.plane, lambda: now[0])
        for _ in range(6):
            assert (await post(running.port, chat())).status == 200
        running.plane.metrics.status_lag_seconds_max = 0.25
        now[0] += 30.0
        gateway_status, deployments = await source.collect()
        now[0] += 60.0
        _, later = await source.collect()
    assert (gateway_status.version, gateway_status.uptime_seconds, gateway_status.running) == (__version__, 30, 0)
    assert gateway_status.is_ready and not gateway_status.is_draining and gateway_status.loop_lag_ms >= 250
    assert (gateway_status.snapshot_age_ms, gateway_status.records_unshipped) == (None, 0), "this gateway has no link"
    bad, fine = sorted(deployments, key=lambda each: each.id)
    assert (fine.requests_per_minute, fine.failures_per_minute, fine.running, fine.ejections) == (12, 0, 0, ())
    (ejection,) = bad.ejections
    assert (ejection.endpoint, ejection.reason) == ("", "upstream_unreachable")
    assert bad.failures_per_minute == bad.requests_per_minute > 0
    assert {each.requests_per_minute for each in later if each.id == fine.id} == {4}, "6 within the 90 seconds since the first sample"


async def test_status_holds_the_deployments_that_matter_most_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "YIELD_DEPLOYMENTS", 7)
    with plane({"m": Served([NOWHERE])}) as (made, _, _):
        (upstream,) = made.upstreams.of("m")
        for number in range(DEPLOYMENTS_REPORTED_MAX + 10):
            deployment = msgspec.structs.replace(upstream.deployment, id=f"dep_{number}", engine=Engine.SIM)
            made.upstreams.put(DeploymentEntry(id=deployment.id, deployment=deployment))
        (busy,) = [each for each in made.upstreams.of("m") if each.deployment.id == "dep_505"]
        busy.running = 3
        found, deployments = await StatusSource(made).collect()
    assert len(deployments) == DEPLOYMENTS_REPORTED_MAX and found.deployments_left_out == 11
    assert (deployments[0].id, deployments[0].running) == ("dep_505", 3)
