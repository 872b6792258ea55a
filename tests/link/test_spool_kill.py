"""Gateways killed at random moments: every request that was admitted ends exactly once, and none that a client was told of is lost."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.link.spools import admits, assert_complete, finals, no_alarm, read_epoch
from tests.patience import PATIENCE_SECONDS
from tollway.domain.usage import Outcome
from tollway.link.epochs import list_epochs
from tollway.link.recovery import recover_dead

ROOT = Path(__file__).parents[2]
LIVES = 8


@pytest.mark.system
def test_no_request_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    chance = random.Random(20261122)
    told: set[str] = set()
    for life in range(LIVES):
        told |= live_and_die(tmp_path, life, chance.uniform(0.02, 0.5))
    recover_dead(tmp_path, alarm=no_alarm)
    epochs = list_epochs(tmp_path)
    assert len(epochs) == LIVES
    completed: set[str] = set()
    crashed = 0
    for epoch in epochs:
        records = read_epoch(epoch)
        assert_complete(records)
        ended = finals(records)
        assert len({record.request_id for record in admits(records)}) == len(ended)
        completed |= {end.admit.request_id for end in ended if end.outcome is Outcome.COMPLETED}
        crashed += sum(end.outcome is Outcome.GATEWAY_CRASH for end in ended)
    assert told <= completed
    assert len(told) > 100, "the test must have put the spool to work"
    assert crashed > LIVES, "kills must have met requests in flight"


def live_and_die(directory: Path, life: int, seconds: float) -> set[str]:
    """Run one epoch of a gateway, ended by SIGKILL; returns the requests whose end it had told of."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    command = [sys.executable, str(ROOT / "tests/link/dying_gateway.py"), str(directory), str(life)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    guard = threading.Timer(60, child.kill)
    guard.start()
    try:
        assert child.stdout.readline() == b"ready\n"
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.extend(child.stdout or ()))
        reader.start()
        time.sleep(seconds)
        child.kill()
        reader.join(PATIENCE_SECONDS)
    finally:
        guard.cancel()
        child.kill()
        child.wait(PATIENCE_SECONDS)
        child.stdout.close()
    return {line.strip().decode() for line in lines if line.endswith(b"\n")}
