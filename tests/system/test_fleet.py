"""The fleet of real processes: an engine that fails is shown as avoided, and a drain shows how far it is."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reliability.platforms import Platform, serve
from reliability.processes import NO_TLS, WAIT_SECONDS, Start, tollway

pytestmark = pytest.mark.system


def find_deployment(platform: Platform, model: str) -> dict[str, Any]:
    """Return the deployment of a model as control shows it."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    url = f"{platform.control_url}/v1/platform/fleet"
    answer = httpx2.get(url, params={"model": model}, headers=headers, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["data"]
    return dict(found)


def wait_for(platform: Platform, model: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the deployment of a model once a condition holds of it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition(found := find_deployment(platform, model)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_failing_engine_and_drain_are_shown_as_they_go(start: Start, tmp_path: Path) -> None:
    with serve(start, tmp_path) as (platform, _):
        data = ("--data-dir", str(platform.directory))
        headers = {"authorization": f"Bearer {platform.tenant.api_key}"}
        with httpx2.Client(base_url=platform.gateway_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as client:

            def ask(model: str) -> int:
                body = {"model": model, "messages": [{"role": "user", "content": "coin"}]}
                return client.post("/v1/chat/completions", json=body).status_code

            assert ask("echo") == 200
            assert wait_for(platform, "echo", lambda each: bool(each["requests_per_minute"]))["state"] == "serving"

            words = {"role": "user", "content": "toll " * 2_000}
            with client.stream(
                "POST", "/v1/chat/completions", json={"model": "slow", "messages": [words], "max_tokens": 2_000, "stream": True}
            ) as stream:
                chunks = stream.iter_raw()  # held: the request ends when it is forgotten
                next(chunks)
                id = wait_for(platform, "slow", lambda each: each["running"] == 1)["id"]
                drained = tollway("deployments", "drain", id, *data)
                assert drained.returncode == 0 and "no other deployment serves slow" in drained.stdout, drained.stderr
                shown = wait_for(platform, "slow", lambda each: each["gateways_current"] == 1)
                assert (shown["state"], shown["running"], shown["drain"]["effect"]) == ("draining", 1, "refused")
                assert ask("slow") == 503
            wait_for(platform, "slow", lambda each: each["state"] == "drained")

            platform.engine.end(signal.SIGKILL)
            assert ask("echo") >= 500
            shown = wait_for(platform, "echo", lambda each: each["state"] == "ejected")
            assert [each["reason"] for each in shown["ejections"]] == ["upstream_unreachable"] and shown["failures_per_minute"]
            status = tollway("deployments", "status", "--model", "echo", *data)
            assert "upstream_unreachable" in status.stdout, status.stderr
            platform.engine.start()
            deadline = time.monotonic() + WAIT_SECONDS
            while ask("echo") != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert wait_for(platform, "echo", lambda each: each["state"] == "serving")["ejections"] == []
