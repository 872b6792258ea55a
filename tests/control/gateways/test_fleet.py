"""The fleet as gateways report it: loads are added up, old reports count no more, and a drain says what it does."""

import asyncio
from typing import Any

import pytest

from tests.control.harness import NODE_ID, Running, answered
from tests.control.test_routes import refused
from tollway.cli.app import run
from tollway.domain.gateway_statuses import STATUS_COUNTED_US, DeploymentStatus, Ejection, GatewayStatus
from tollway.link.status_reports import StatusReporter

OTHER_NODE = "node_" + "0" * 31 + "6"
FLEET, NODES = "/v1/platform/fleet", "/v1/platform/nodes"

GATEWAY = {
    "version": "1.0", "uptime_seconds": 60, "is_ready": True, "is_draining": False, "connections": 7, "running": 3, "waiting": 0,
    "loop_lag_ms": 4, "snapshot_age_ms": 1500, "records_unshipped": 2, "epochs_unshipped": 0, "deployments_left_out": 0,
}  # fmt: skip


def deployed(control: Running, model: str, count: int, **fields: Any) -> list[str]:
    """Add a model with so many deployments. Return their ids."""
    client = control.operator()
    answered(client.post("/v1/platform/models", json={"name": model, "endpoints": ["chat/completions"]}))
    body = {"model": model, "base_url": "http://127.0.0.1:9", "engine": "vllm", "upstream_model": model, **fields}
    return [answered(client.post("/v1/platform/deployments", json=body))["id"] for _ in range(count)]


def seen(id: str, **fields: Any) -> dict[str, Any]:
    """A deployment in a report."""
    load = {"weight": 1, "running": 0, "limit": 10, "waiting": 0, "requests_per_minute": 0, "failures_per_minute": 0}
    return {"id": id, "is_ready": True, "ejections": [], **load, **fields}


def report(control: Running, node_id: str, *deployments: dict[str, Any]) -> None:
    """Let a gateway live, and report."""
    node = control.node(node_id)
    answered(node.post("/v1/link/ack", json={"node_id": node_id, "version": 0}))
    answered(node.put(f"/v1/link/statuses/{node_id}", json={"gateway": GATEWAY, "deployments": list(deployments)}))


def fleet(control: Running, model: str) -> dict[str, dict[str, Any]]:
    """Deployments of a model, by id."""
    return {each["id"]: each for each in answered(control.operator().get(FLEET, params={"model": model}))["data"]}


def avoided(reason: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"endpoint": "", "reason": reason, "since_ms": 4_000, "retry_ms": 500, **fields}]


def test_loads_of_gateways_are_added_up_and_each_says_why_it_avoids_a_deployment(control: Running) -> None:
    first, second = deployed(control, "added-up", 2)
    assert fleet(control, "added-up")[first]["state"] == "unreported"
    load = {"running": 4, "waiting": 1, "requests_per_minute": 30, "failures_per_minute": 2}
    report(control, NODE_ID, seen(first, **load), seen(second, ejections=avoided("upstream_unreachable")))
    report(control, OTHER_NODE, seen(first, **load), seen(second))
    found = fleet(control, "added-up")
    busy, half = found[first], found[second]
    assert (busy["state"], busy["gateways"], busy["gateways_current"]) == ("serving", 2, 2)
    assert (busy["running"], busy["limit"], busy["waiting"], busy["requests_per_minute"], busy["failures_per_minute"]) == (8, 20, 2, 60, 4)
    (ejection,) = half["ejections"]
    assert (half["state"], ejection["node_id"], ejection["reason"], ejection["endpoint"]) == (
        "impaired",
        NODE_ID,
        "upstream_unreachable",
        None,
    )
    assert ejection["retry_at"] - ejection["since_at"] in (4, 5)
    report(control, OTHER_NODE, seen(second, is_ready=False))
    assert fleet(control, "added-up")[second]["state"] == "ejected"
    report(control, OTHER_NODE, seen(second, ejections=avoided("upstream_misconfigured", endpoint="embeddings")))
    assert fleet(control, "added-up")[second]["state"] == "impaired", "other endpoints are served"


def test_drain_says_where_requests_go_and_how_far_it_is(control: Running) -> None:
    client = control.operator()
    first, second = deployed(control, "to-drain", 2, region="eu")
    (alone,) = deployed(control, "alone", 1)
    report(control, NODE_ID, seen(first, running=8), seen(second, running=1), seen(alone))
    preview = {"effect": "moved", "others": 1, "others_in_region": 1, "free_places": 9}
    assert fleet(control, "to-drain")[first]["drain"] == preview
    assert fleet(control, "alone")[alone]["drain"] == {"effect": "refused", "others": 0, "others_in_region": 0, "free_places": 0}
    report(control, NODE_ID, seen(first, running=8), seen(second, running=9), seen(alone))
    assert fleet(control, "to-drain")[first]["drain"] == preview | {"effect": "crowded", "free_places": 1}
    answered(client.post(f"/v1/platform/deployments/{second}", json={"region": "us"}))
    assert fleet(control, "to-drain")[first]["drain"]["others_in_region"] == 0
    answered(client.post(f"/v1/platform/deployments/{first}", json={"weight": 0}))
    states = []
    for weight, running in ((1, 0), (0, 8), (0, 0)):
        report(control, NODE_ID, seen(first, weight=weight, running=running))
        found = fleet(control, "to-drain")[first]
        states.append((found["state"], found["gateways_current"], found["running"]))
    assert states == [("draining", 0, 0), ("draining", 1, 8), ("drained", 1, 0)]


def test_report_that_is_old_counts_no_more_and_its_age_is_shown(control: Running) -> None:
    (id,) = deployed(control, "old", 1)
    report(control, NODE_ID, seen(id, running=2))
    at = control.plane.now()
    with control.clock.set_to(at + STATUS_COUNTED_US + 1_000_000):
        answered(control.node(NODE_ID).post("/v1/link/ack", json={"node_id": NODE_ID, "version": 0}))
        assert fleet(control, "old")[id]["state"] == "unreported"
        node = next(each for each in answered(control.operator().get(NODES))["data"] if each["id"] == NODE_ID)
        assert node["seen_at"] - node["status"]["reported_at"] >= 20
    status = node["status"]
    assert (status["version"], status["connections"], status["loop_lag_ms"], status["snapshot_age_seconds"]) == ("1.0", 7, 4, 1)


def test_gateway_that_never_reported_is_shown_as_such_also_on_the_command_line(
    control: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = "node_" + "0" * 31 + "9"
    answered(control.node(silent).post("/v1/link/ack", json={"node_id": silent, "version": 0}))
    node = next(each for each in answered(control.operator().get(NODES))["data"] if each["id"] == silent)
    assert node["status"] is None
    (id,) = deployed(control, "on-the-command-line", 1)
    report(control, NODE_ID, seen(id, running=2, ejections=avoided("upstream_timeout")))
    where = ["--control-url", control.url, "--key", control.platform_key]
    assert run(["nodes", "list", *where]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows[silent].split()[-1] == "-" and rows[NODE_ID].split()[-1] == "2"
    assert run(["deployments", "status", "--model", "on-the-command-line", *where]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert (row[0], row[2], row[3], row[-2], row[-1]) == (id, "ejected", "2", "upstream_timeout", "refused")
    assert run(["deployments", "drain", id, *where]) == 0
    said = capsys.readouterr().out
    assert "2 requests run there" in said and "no other deployment serves on-the-command-line" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"gateway": GATEWAY | {"running": -1}},
        {"gateway": GATEWAY | {"prompt": "x"}},
        {"gateway": GATEWAY | {"version": "x" * 65}},
        {"deployments": [seen("dep_1", ejections=avoided("Not a code"))]},
        {"deployments": [seen("dep_1", ejections=avoided("upstream_error") * 40)]},
        {"deployments": [seen(f"dep_{number}") for number in range(501)]},
    ],
)
def test_80_malformed_reports_and_those_of_another_gateway_are_refused(control: Running, wrong: dict[str, Any]) -> None:
    path, body = f"/v1/link/statuses/{NODE_ID}", {"gateway": GATEWAY, "deployments": []}
    assert control.node().put(path, json=body | wrong).status_code == 400
    control.node(OTHER_NODE)
    refused(control.node().put(f"/v1/link/statuses/{OTHER_NODE}", json=body), 403, "node_mismatch")


class Source:
    """A gateway whose status is always the same."""

    async def collect(self) -> tuple[GatewayStatus, list[DeploymentStatus]]:
        load = {"weight": 1, "running": 1, "limit": 2, "waiting": 0, "requests_per_minute": 1, "failures_per_minute": 0}
        ejection = Ejection("chat/completions", "upstream_error", 10, 0)
        return GatewayStatus(**GATEWAY), [DeploymentStatus(id="dep_1", is_ready=True, ejections=(ejection,), **load)]  # type: ignore[arg-type]


async def test_reporter_of_a_gateway_brings_its_status(control: Running) -> None:
    node_id = "node_" + "0" * 31 + "7"
    control.node(node_id)
    reporter = StatusReporter(Source(), control_link_url=control.link_url, node_key=control.node_keys[node_id], node_id=node_id)
    task = asyncio.create_task(reporter.run())

    def find_status() -> Any:
        return next(each for each in answered(control.operator().get(NODES))["data"] if each["id"] == node_id)["status"]

    async with asyncio.timeout(30):
        while (status := await asyncio.to_thread(find_status)) is None:
            await asyncio.sleep(0.02)
    assert (status["running"], status["records_unshipped"], status["ready"]) == (3, 2, True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await reporter.close()
