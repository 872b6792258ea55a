"""Background tasks of a real gateway process that fail: each runs again, is counted and reported, and does its work."""

import asyncio
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reliability import load
from reliability.bill_checks import Heard, lines_of_log
from reliability.load import Ask
from reliability.platforms import Apart, Part, Platform, apart
from reliability.processes import WAIT_SECONDS

pytestmark = pytest.mark.system

SCRIPT = str(Path(__file__).with_name("failing_tasks.py"))
RESTARTED = (
    "follower", "acknowledger", "shipper", "clock", "announce", "answer files", "upstream probes", "load reports", "cache events",
    "snapshot age", "leases", "limit_reports", "status", "cached responses", "free memory", "content log", "telemetry", "grpc server",
)  # fmt: skip


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def ask(platform: Platform, key: str) -> Heard:
    return asyncio.run(load.send(Ask("echo", "chat/completions", "A coin of silver", stream=True), platform.gateway_url, key))


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, Apart, str]]:
    """A platform whose gateway has every defect that a restart cures, and the URL of its internal listener."""
    arguments = (SCRIPT, ",".join(RESTARTED))
    with apart(tmp_path_factory.mktemp("failing"), gateway_arguments=arguments) as (platform, parts):
        (ready,) = [line for line in lines_of_log(parts.gateway.out) if line.get("event") == "ready"]
        yield platform, parts, str(ready["internal_url"])


def read_restarts(internal_url: str) -> dict[str, int]:
    text = httpx2.get(f"{internal_url}/metrics", trust_env=False, timeout=WAIT_SECONDS).text
    return {task: int(float(count)) for task, count in re.findall(r'tollway_task_restarts_total\{task="([\w ]+)"\} (\S+)', text)}


class TestEachTask:
    @pytest.mark.parametrize("task", RESTARTED)
    def test_failed_task_is_restarted_counted_and_reported(self, failing: tuple[Platform, Apart, str], task: str) -> None:
        _, parts, internal_url = failing
        until(lambda: read_restarts(internal_url)[task] == 1)

        def reports() -> list[dict[str, Any]]:
            return [line for line in lines_of_log(parts.gateway.out) if line.get("event") == "task_restarted" and line["task"] == task]

        until(reports)
        (report,) = reports()
        assert report["level"] == "error" and report["error"].startswith("AttributeError in failing_tasks.py:")
        assert "prompt text" not in parts.gateway.out.read_text()

    def test_no_other_task_runs_in_the_gateway(self, failing: tuple[Platform, Apart, str]) -> None:
        assert set(read_restarts(failing[2])) == set(RESTARTED)

    def test_failed_follower_applies_later_revocations(self, failing: tuple[Platform, Apart, str]) -> None:
        platform, _, _ = failing
        with platform.admin() as http:
            keys = f"/v1/organization/projects/{platform.tenant.project_id}/api_keys"
            made = http.post(keys, json={"name": "short-lived"}).json()
            until(lambda: ask(platform, made["value"]).status == 200)
            assert http.delete(f"{keys}/{made['id']}").status_code == 200
        until(lambda: ask(platform, made["value"]).status == 401)

    def test_failed_shipper_delivers_all_records(self, failing: tuple[Platform, Apart, str]) -> None:
        platform, _, _ = failing
        before = platform.count_billed_requests() or 0
        assert ask(platform, platform.tenant.api_key).ended == "complete"
        platform.wait_until_billed(before + 1)


def test_failed_check_of_a_connection_is_reported_and_no_task_ends(tmp_path: Path) -> None:
    with apart(tmp_path, gateway_arguments=(SCRIPT, "connection")) as (platform, parts):
        (ready,) = [line for line in lines_of_log(parts.gateway.out) if line.get("event") == "ready"]
        with socket.create_connection(("127.0.0.1", int(platform.gateway_url.rpartition(":")[2]))):
            until(lambda: [line for line in lines_of_log(parts.gateway.out) if line.get("event") == "callback_failed"])
        metrics = httpx2.get(f"{ready['internal_url']}/metrics", timeout=WAIT_SECONDS).text
        assert 'tollway_callback_failures_total{place="AttributeError in failing_tasks.py:' in metrics
        assert read_restarts(str(ready["internal_url"])).get("clock", 0) == 0, "a connection's check does not end the clock"


def test_log_goes_on_after_a_batch_that_failed(tmp_path: Path) -> None:
    with apart(tmp_path, gateway_arguments=(SCRIPT, "clock,log")) as (platform, parts):
        (ready,) = [line for line in lines_of_log(parts.gateway.out) if line.get("event") == "ready"]
        assert ask(platform, platform.tenant.api_key).ended == "complete"
        until(lambda: [line for line in lines_of_log(parts.gateway.out) if line.get("event") == "request" and line["status"] == 200])
        dropped = re.search(
            r"^tollway_log_lines_dropped_total (\S+)$",
            httpx2.get(f"{ready['internal_url']}/metrics", timeout=WAIT_SECONDS).text,
            re.MULTILINE,
        )
        assert dropped is not None and float(dropped[1]) == 1


class TestProcessEnds:
    @pytest.mark.parametrize("defect", ["server", "drain"])
    def test_failed_server_ends_the_process_with_code_1(self, tmp_path: Path, defect: str) -> None:
        with apart(tmp_path, gateway_arguments=(SCRIPT, "none")) as (_, parts):
            assert parts.gateway.end(signal.SIGTERM) == 0
            gateway = Part((SCRIPT, defect, *parts.gateway.arguments[2:]), tmp_path / "second")
            try:
                process = gateway.launch()
                if defect == "drain":
                    until(lambda: [line for line in lines_of_log(gateway.out) if line.get("event") == "ready"])
                    process.send_signal(signal.SIGTERM)
                assert process.wait(WAIT_SECONDS) == 1
                assert ("task_failed", "server") in [(line.get("event"), line.get("task")) for line in lines_of_log(gateway.out)]
            finally:
                gateway.discard()
