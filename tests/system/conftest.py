"""Fixtures that start real processes on loopback. Every process ends with its tests, and so do its children."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import ENVIRONMENT, Demo, Running, Start, is_alive, read_demo


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start("serve", "--listen", ..., directory=None, env=None)` runs `tollway serve --data-dir DIRECTORY ...`."""
    running: list[Running] = []

    def start(command: str, *arguments: str, directory: Path | None = None, env: dict[str, str] | None = None) -> Running:
        scratch = tmp_path_factory.mktemp(command)
        directory = directory or scratch / "data"
        out, err = scratch / "stdout", scratch / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tollway", command, "--data-dir", str(directory), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**ENVIRONMENT, **(env or {})},
                start_new_session=True,
            )
        running.append(Running(process, directory, out, err))
        return running[-1]

    try:
        yield start
    finally:
        for each in running:
            pids = each.list_descendants()
            try:
                each.stop()
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()
            for pid in pids:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def demo(start: Start) -> Demo:
    """One demo for all tests of a module."""
    return read_demo(start("demo", "--port", "0", "--control-port", "0", "--engine", "sim"))
