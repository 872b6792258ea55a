"""Processes with a low hard limit on open files, and more idle connections than that."""

import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import OpenAI

from reliability.processes import WAIT_SECONDS, Demo, Start, read_demo

pytestmark = pytest.mark.system

LIMIT, IDLE = 320, 400


@pytest.fixture(scope="module")
def small(start: Start) -> Demo:
    """A demo whose processes may open LIMIT files each."""
    return read_demo(start("demo", "--port", "0", "--control-port", "0", "--engine", "sim", descriptors=LIMIT))


@contextmanager
def idle_connections(url: str) -> Iterator[None]:
    """Hold IDLE connections open that send nothing. Those that the server closes are not opened again."""
    address = urlsplit(url)
    with ExitStack() as opened:
        for _ in range(IDLE):
            opened.enter_context(socket.create_connection((address.hostname or "", address.port or 0), timeout=WAIT_SECONDS))
        time.sleep(2.5)  # the servers take a connection for idle after a second, by a clock that is half a second coarse
        yield


def read_lines(demo: Demo, program: str) -> list[dict[str, object]]:
    """The JSON lines of a program's log."""
    lines = (demo.running.directory / "logs" / f"{program}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_72_limit_on_open_files_is_raised_in_every_process(demo: Demo) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for pid in (demo.running.process.pid, *demo.running.list_descendants()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"simulate" not in command:
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == min(hard, 1 << 20), command


@pytest.mark.parametrize("program", ["gateway", "control"])
def test_72_limit_on_open_files_that_is_too_low_is_reported_with_the_difference(small: Demo, program: str) -> None:
    (line,) = [each for each in read_lines(small, program) if each.get("event") == "descriptors_low"]
    assert line["level"] == "warning"
    assert f"is {LIMIT}" in str(line["detail"]) and "too low" in str(line["detail"])
    needed = 20_000 * 2 if program == "gateway" else 4_096 * 2
    assert str(needed + 128 + (64 if program == "gateway" else 0) - LIMIT) in str(line["detail"])


def test_72_idle_connections_beyond_the_limit_stop_neither_inference_nor_shipping(small: Demo) -> None:
    with (
        idle_connections(small.gateway_url),
        httpx2.Client(trust_env=False, timeout=WAIT_SECONDS) as http,
        OpenAI(base_url=f"{small.gateway_url}/v1", api_key=small.api_key, max_retries=0, http_client=http) as client,
    ):
        for _ in range(20):
            answer = client.chat.completions.create(model=small.model, messages=[{"role": "user", "content": "Count the coins."}])
            assert answer.choices[0].message.content
        headers = {"authorization": f"Bearer {small.admin_key}"}
        usage = f"{small.control_url}/v1/organization/usage/completions?start_time={int(time.time()) - 86_400}&limit=2"

        def count_billed() -> int:
            buckets = http.get(usage, headers=headers).json()["data"]
            return sum(result["num_model_requests"] for bucket in buckets for result in bucket["results"])

        small.running.wait_until(lambda: count_billed() == 20)


def test_72_idle_connections_beyond_the_limit_do_not_lock_operators_out(small: Demo) -> None:
    with idle_connections(small.control_url), httpx2.Client(trust_env=False, timeout=WAIT_SECONDS) as http:
        assert http.get(f"{small.control_url}/livez").status_code == 200
        headers = {"authorization": f"Bearer {small.platform_key}"}
        assert http.get(f"{small.control_url}/v1/platform/models", headers=headers).status_code == 200
