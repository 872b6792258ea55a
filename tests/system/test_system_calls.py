"""System calls of a request and a chunk: the part of their cost that no neighbour can blur, held to a bound.

The floor is two reads and two writes for a request, one of each for a chunk. Beyond it: ADMIT's write, and what is shared among the
requests of a commit or of a wake-up. nginx makes seven and three.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import find_tool
from reliability.running import ENVIRONMENT, WAIT_SECONDS

ROOT = Path(__file__).parents[2]
MOST = {"request": 6.3, "chunk": 3.3}

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
    found = re.search(r"^ +([0-9.]+)  all$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MOST[scenario], done.stdout
