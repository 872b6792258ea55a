"""Instruments: strace and perf on a running target, callgrind on the request path alone.

strace counts system calls, exactly but slowly: use its counts, never its times. perf samples the program counter and
disturbs little: use its shares. callgrind counts instructions and feels no neighbour: use it to compare two states of
the code.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.flame import Stack, read_folded
from bench.machine import LOAD_CPU, NATIVE, Unavailable, get_tool, launch, stop

TOOL_SECONDS_MAX = 60.0
ROOT = Path(__file__).parent.parent
BUILD_SECONDS_MAX = 1800.0  # two minutes of CPU, on a machine that may be busy
CALLGRIND_SECONDS_MAX = 600.0  # it takes fifty times as long as the machine does
PERF_PER_SECOND = 1999  # not in step with anything that ticks in round milliseconds


@contextlib.contextmanager
def count_system_calls(pids: Sequence[int], output: Path) -> Iterator[dict[str, int]]:
    """Counts the system calls of these processes, all threads, while the block runs; the dict is filled when it ends.

    Raises `Unavailable` when strace is missing or may not attach.
    """
    strace = get_tool("strace", "strace")
    command = [strace, "-f", "-c", "-U", "calls,name", "-o", str(output)]
    for pid in pids:
        command += ["-p", str(pid)]
    log = output.with_suffix(".log")
    process = launch(command, cpu=LOAD_CPU, log=log)  # not real-time: the load that shares its CPU goes first
    counts: dict[str, int] = {}
    try:
        deadline = time.monotonic() + TOOL_SECONDS_MAX
        while not all(_is_traced(pid) for pid in pids):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"strace cannot attach: {log.read_text()[-300:]}")
            time.sleep(0.01)
        yield counts
        process.send_signal(signal.SIGINT)
        process.wait(TOOL_SECONDS_MAX)
    finally:
        stop(process.pid)
    counts |= parse_strace(output.read_text())


def parse_strace(text: str) -> dict[str, int]:
    """Calls by name from `strace -c -U calls,name`, without the total."""
    rows = re.findall(r"^ *(\d+) ([a-z_0-9]+)$", text, re.MULTILINE)
    return {name: int(calls) for calls, name in rows if name != "total"}


def sample_shares(pids: Sequence[int], seconds: float, output: Path) -> tuple[dict[str, float], str]:
    """Return where these processes spend their CPU time in the coming seconds: share (0 to 1) by binary ("kernel",
    "libc.so.6", ...), and the hottest functions as perf prints them. Raises `Unavailable` when perf is missing or may
    not sample.
    """
    perf = get_tool("perf", "linux-perf")
    record = [perf, "record", "-q", "-e", "cpu-clock", "-F", str(PERF_PER_SECOND), "-o", str(output)]
    record += ["-p", ",".join(map(str, pids)), "--", "sleep", str(seconds)]
    _run(record)
    shares = _run([perf, "report", "-i", str(output), "--stdio", "-q", "-F", "overhead,dso"])
    functions = _run([perf, "report", "-i", str(output), "--stdio", "-q", "-F", "overhead,dso,sym", "--percent-limit", "0.5"])
    return parse_perf(shares), "\n".join(line for line in functions.splitlines() if line.strip())


def parse_perf(text: str) -> dict[str, float]:
    """Share of samples (0 to 1) by binary from `perf report -F overhead,dso`."""
    shares: dict[str, float] = {}
    for percent, name in re.findall(r"^ *([0-9.]+)% +(\S+)", text, re.MULTILINE):
        binary = "kernel" if name.startswith("[kernel") else name
        shares[binary] = shares.get(binary, 0.0) + float(percent) / 100
    return shares


def build_form(form: str, directory: Path) -> Path:
    """Build the package in `form` (`pure`, `native`, `compiled`), once for each `directory`, and return the PYTHONPATH to run it with.
    Raises `Unavailable` when the C compiler is missing."""
    if form == "pure":
        return ROOT / "src"
    get_tool("gcc", "build-essential")
    built = directory / form
    if not built.is_dir():
        options = ["--leaves"] if form == "native" else []
        _run([sys.executable, str(ROOT / "scripts" / "native.py"), str(built), *options], BUILD_SECONDS_MAX)
    return built


def count_instructions(scenario: str, count: int, directory: Path, source: Path, *options: str) -> float:
    """Instructions of user space that `count` requests (of `bench.inside`, with `options`) cost, the warm-up left out, with the package in
    `source`. Raises `Unavailable` when valgrind is missing.
    """
    valgrind, compiler = get_tool("valgrind", "valgrind"), get_tool("gcc", "build-essential")
    library, output = directory / "collect.so", directory / f"callgrind-{scenario}.out"
    _run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(NATIVE / "collect.c")])
    command = [valgrind, "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={output}"]
    inside = [sys.executable, "-m", "bench.inside", scenario, str(count), "--collect", str(library), *options]
    _run([*command, *inside], CALLGRIND_SECONDS_MAX, source)
    return parse_callgrind(output.with_name(output.name + ".1").read_text())


def sample_stacks(scenario: str, count: int, directory: Path) -> tuple[dict[Stack, int], float]:
    """Return which of the gateway's functions are at work while `count` requests pass (of `bench.inside`), by stack; and the microseconds
    of CPU that one unit takes there.
    """
    output = directory / f"{scenario}.folded"
    said = _run([sys.executable, "-m", "bench.inside", scenario, str(count), "--folded", str(output)])
    return read_folded(output.read_text()), float(said.split()[0])


def parse_callgrind(text: str) -> float:
    """Instructions in a callgrind file. Raises ValueError when it has no total."""
    found = re.search(r"^(?:totals|summary): ([1-9]\d*)", text, re.MULTILINE)
    if found is None:
        raise ValueError("not a callgrind file with a total")
    return float(found.group(1))


def _run(command: list[str], seconds_max: float = TOOL_SECONDS_MAX, source: Path | None = None) -> str:
    process = launch(command, cpu=LOAD_CPU, env={"PYTHONPATH": str(source)} if source else None)
    try:
        output, _ = process.communicate(timeout=seconds_max)
    finally:
        stop(process.pid)
    if process.returncode:
        raise Unavailable(f"{' '.join(command[:2])} failed ({process.returncode})")
    return output


def _is_traced(pid: int) -> bool:
    tasks = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return not any("TracerPid:\t0\n" in status for status in tasks)
