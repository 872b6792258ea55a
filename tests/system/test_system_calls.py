"""Reads, writes and syncs of a request and a chunk: the part of their cost that no neighbour can blur, held to a bound.

The floor is two reads and two writes for a request, one of each for a chunk. Beyond it: ADMIT's write, and what is shared among the
requests of a commit. Calls that wait (epoll, futex) are not counted: how many there are depends on how busy the machine is.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import find_tool
from reliability.processes import ENVIRONMENT, WAIT_SECONDS

ROOT = Path(__file__).parents[2]
FLOOR = {"request": 4.0, "chunk": 2.0}
MOST = {"request": 5.9, "chunk": 2.3}

DATA_CALLS = (
    "read", "readv", "recvfrom", "recvmsg", "write", "writev", "pwrite64", "pwritev", "sendto", "sendmsg", "fsync", "fdatasync", "io_submit"
)  # fmt: skip
"""Calls that move bytes or make them durable."""

pytestmark = pytest.mark.system


@pytest.mark.parametrize("scenario", MOST)
def test_a_unit_of_work_costs_no_more_system_calls_than_it_must(scenario: str) -> None:
    for tool in ("strace", "gcc"):
        if find_tool(tool) is None:
            pytest.skip(f"{tool} is not installed")
    command = [sys.executable, "-m", "bench.profile", "tollway", scenario, "--system-calls"]
    env = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=2 * WAIT_SECONDS)
    if done.returncode == 2:
        pytest.skip(f"system calls cannot be counted here: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = {name: float(count) for count, name in re.findall(r"^ +(-?[0-9.]+)  (\w+)$", done.stdout, re.MULTILINE)}
    # Chunks that a busy machine reads together cost less than the floor; far below it, the profile has other names than ours.
    assert calls["read"] + calls["write"] > FLOOR[scenario] / 2, done.stdout
    assert sum(max(0.0, calls.get(name, 0.0)) for name in DATA_CALLS) <= MOST[scenario], done.stdout
