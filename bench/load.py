"""One measurement: the load generator against one target, and the target's CPU time taken at both edges of its
window.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.machine import LOAD_CPU, TARGET_CPU, launch, read_busy_seconds, read_cpu_seconds, stop
from bench.targets import Target

LOAD_PRIORITY = 1  # SCHED_FIFO, the same for mock and load, so that neither preempts the other
_decoder = msgspec.json.Decoder(dict[str, float])


@dataclass(frozen=True, slots=True)
class Load:
    """Order for the load generator; see native/lg.c. A `count` > 0 replaces the window of time by a fixed number of
    requests.
    """

    connections: int = 32
    warm_seconds: float = 1.0
    seconds: float = 3.0
    count: int = 0
    requests_per_second: float = 0.0
    connections_per_second: float = 0.0
    body_bytes: int = 1200
    chunks: int = 0
    pace_us: int = 0
    ask_usage: bool = False

    def arguments(self) -> list[str]:
        """Command-line arguments of lg."""
        flags = {
            "-c": self.connections,
            "-w": self.warm_seconds,
            "-t": self.seconds,
            "-n": self.count,
            "-r": self.requests_per_second,
            "-R": self.connections_per_second,
            "-b": self.body_bytes,
            "-S": self.chunks,
            "-i": self.pace_us,
        }
        return [word for flag, value in flags.items() for word in (flag, str(value))] + ["-u"] * self.ask_usage


@dataclass(frozen=True, slots=True)
class Generator:
    """The load generator's program."""

    program: Path

    def spawn(self, target: Target, load: Load) -> subprocess.Popen[str]:
        """Starts it against a target; `finish` reads its result."""
        command = [str(self.program), "-p", str(target.port), "-k", target.api_key, "-m", target.model]
        return launch([*command, *load.arguments()], cpu=LOAD_CPU, realtime_priority=LOAD_PRIORITY)

    def measure(self, target: Target, load: Load, read_bytes: Callable[[int], int] | None = None) -> dict[str, float]:
        """Runs the load to its end. What lg reports, and for a target with a process: `cpu_seconds` (of its tree,
        within the window), `neighbour_cpu_seconds` (time that others had on its CPU) and the quotients
        `us_per_request`, `us_per_chunk`.

        `read_bytes` is asked for the tree's memory when the window begins: `rss_bytes`.
        """
        process = self.spawn(target, load)
        try:
            _expect(process, "begin")
            rss_bytes = read_bytes(target.pid) if read_bytes and target.pid else None
            cpu_before, busy_before = _accounts(target)
            _expect(process, "end")
            cpu_after, busy_after = _accounts(target)
            values = finish(process)
        finally:
            stop(process.pid)
        if target.pid is not None:
            cpu = cpu_after - cpu_before
            values["cpu_seconds"] = cpu
            values["neighbour_cpu_seconds"] = max(0.0, busy_after - busy_before - cpu)
            values["us_per_request"] = cpu / max(1.0, values["requests"]) * 1e6
            if rss_bytes is not None:
                values["rss_bytes"] = rss_bytes
            if values["chunks"]:
                values["us_per_chunk"] = cpu / values["chunks"] * 1e6
        return values


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """The generator's closing line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            process.wait()
            return _decoder.decode(line)
    raise RuntimeError(f"the load generator ended without a result (exit {process.wait()})")


def _expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"the load generator said {line!r} instead of {word!r} (exit {process.poll()})")


def _accounts(target: Target) -> tuple[float, float]:
    if target.pid is None:
        return 0.0, 0.0
    return read_cpu_seconds(target.pid), read_busy_seconds(TARGET_CPU)
