"""Results of runs: one JSON line a figure and case, appended to results/<figure>.jsonl.

A line with failures is kept like any other: a record that forgets what went wrong proves nothing.
"""

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

RESULTS = Path(__file__).parent / "results"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one figure.

    `case`: which of its variants, such as the database. `n` trials (`of` says of what) had `failures`. `bound95`: what share of
    trials fails at most, with 95 % confidence: 3/n if none failed (the rule of three), else nothing is said. `also`: other counts in
    which none may fail. `detail`: whatever else a reader should know.
    """

    figure: str
    case: str
    of: str
    n: int
    failures: int
    bound95: float | None
    also: dict[str, int]
    seed: int | None
    commit: str
    started_at: str  # RFC 3339, UTC
    wall_s: float
    machine: str
    detail: dict[str, Any]


def record(
    figure: str,
    *,
    n: int,
    failures: int,
    of: str,
    began: float,
    case: str = "",
    seed: int | None = None,
    also: Mapping[str, int] | None = None,
    detail: Mapping[str, Any] | None = None,
    results: Path = RESULTS,
) -> Line:
    """Append a line for a run that began at `began` (seconds since 1970). For every figure that has a number, from wherever it was
    counted: a fuzzer, a flood, a test."""
    line = Line(
        figure=figure,
        case=case,
        of=of,
        n=n,
        failures=failures,
        bound95=bound95(n, failures),
        also=dict(also or {}),
        seed=seed,
        commit=_commit(),
        started_at=f"{datetime.fromtimestamp(began, UTC):%Y-%m-%dT%H:%M:%SZ}",
        wall_s=round(time.time() - began, 1),
        machine=describe_machine(),
        detail=dict(detail or {}),
    )
    results.mkdir(exist_ok=True)
    with (results / f"{figure}.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")
    return line


def bound95(n: int, failures: int) -> float | None:
    """With no failure in `n` trials, the share that fails is below 3/n with 95 % confidence; with one, there is no such short rule."""
    return None if failures or not n else float(f"{min(1.0, 3 / n):.3g}")


def read(results: Path = RESULTS) -> list[Line]:
    """Every line that is kept, in order of time. Raises msgspec's errors for one that is none."""
    decoder = msgspec.json.Decoder(Line)
    lines = [decoder.decode(text) for path in results.glob("*.jsonl") for text in path.read_bytes().splitlines()]
    return sorted(lines, key=lambda line: (line.started_at, line.figure, line.case))


def describe_machine() -> str:
    """Return what a reader must know of this machine, in a line."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cpus = len(os.sched_getaffinity(0))
    return f"{cpus} × {model}, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def _commit() -> str:
    """The commit that was tried, with a + where the tree has changes beside the results."""
    where = RESULTS.parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        is_changed = git("status", "--porcelain", "--", "src", "reliability", "tests", ":!reliability/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if is_changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
