"""Real `tollway` processes as a test sees them: what they wrote, who their children are, how they end."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAIT_SECONDS = 90.0
"""Seconds to wait for something that must happen. Only so that a failure does not hang: nothing here measures speed."""

MIGRATE_SECONDS = 600.0
"""Seconds to wait for all migrations of a new database: work of seconds, which took more than 90 where others had the CPU."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that are made while something else starts: to read the authorities costs each 20 to 40 ms of CPU."""

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}


@dataclass(frozen=True, slots=True)
class Running:
    """A `tollway` process that was started, with its data directory and what it wrote."""

    process: "subprocess.Popen[bytes]"
    directory: Path
    stdout: Path
    stderr: Path

    def wait_for_file(self, name: str) -> dict[str, Any]:
        """The JSON file `name` of the data directory, once it is there."""
        path = self.directory / name
        self.wait_until(path.exists)
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for `condition`; fails with what the process said if it ends first or the wait is too long."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                what = "still running" if ended is None else f"exit code {ended}"
                raise AssertionError(f"tollway: {what}\n{self.stdout.read_text()}\n{self.stderr.read_text()}")
            time.sleep(0.02)

    def list_descendants(self) -> list[int]:
        """Process ids of the children, their children, and so on."""
        return list_descendants(self.process.pid)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(WAIT_SECONDS)


Start = Callable[..., Running]
"""`start("serve", "--listen", ..., directory=None, env=None, descriptors=None)` runs `tollway serve --data-dir DIRECTORY ...`."""


@contextmanager
def starting(scratch: Path) -> Iterator[Start]:
    """Start processes that end with the block, and their children too. What each writes lies in a directory of its own in `scratch`."""
    running: list[Running] = []

    def start(
        command: str,
        *arguments: str,
        directory: Path | None = None,
        env: dict[str, str] | None = None,
        descriptors: int | None = None,
    ) -> Running:
        place = scratch / f"{command}-{len(running)}"
        place.mkdir()
        directory = directory or place / "data"
        out, err = place / "stdout", place / "stderr"
        limited = [] if descriptors is None else ["/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*limited, sys.executable, "-m", "tollway", command, "--data-dir", str(directory), *arguments],
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
            end_all(pids)


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo with the simulated engine. `truth_log` is what the engine says it did."""

    running: Running
    gateway_url: str
    control_url: str
    api_key: str
    admin_key: str
    platform_key: str
    model: str

    @property
    def truth_log(self) -> Path:
        """The simulator's log."""
        return self.running.directory / "simulator" / "truth.jsonl"


def read_demo(running: Running) -> Demo:
    """The demo that `running` is, once it is ready."""
    body = running.wait_for_file("demo.json")
    names = ("gateway_url", "control_url", "api_key", "admin_key", "platform_key", "model")
    return Demo(running, **{name: body[name] for name in names})


def tollway(*arguments: str, env: dict[str, str] | None = None, wait_seconds: float = WAIT_SECONDS) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end. Raises `subprocess.TimeoutExpired` after `wait_seconds`."""
    return subprocess.run(
        [sys.executable, "-m", "tollway", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=wait_seconds,
        env={**ENVIRONMENT, **(env or {})},
    )


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter if it goes between opening and reading
        return False
    return state != "Z"


def end_all(pids: Iterable[int]) -> None:
    """SIGKILL to those that still run."""
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def list_descendants(pid: int) -> list[int]:
    """Process ids of the children of `pid`, their children, and so on."""
    return [each for child in _children(pid) for each in (child, *list_descendants(child))]


def _children(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(each) for each in children.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found
