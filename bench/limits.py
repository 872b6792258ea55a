"""The cost of limits: `python -m bench.limits [--compiled]`.

A request through the gateway's own objects (`bench.inside`) without any limit, with requests per minute and concurrency at three levels,
and with tokens beside them at six levels, both counted in memory and by a Redis server: instructions under callgrind, which feel no
neighbour, and microseconds of CPU, the least of several turns. The difference to no limit is what limits cost. The CPU is the gateway's;
that of the server is not counted. With Redis a request is decided in another turn of the loop, and the kernel's part of asking it counts.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.instruments import build_form, count_instructions
from bench.machine import get_tool
from bench.targets import Limited

REQUESTS_COUNTED = 400
REQUESTS_TIMED = 3000
TURNS = 3


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """URL of a Redis server that listens on a socket of its own port on loopback and keeps nothing."""
    process = subprocess.Popen(
        [
            get_tool("redis-server", "redis-server"),
            "--port",
            str(port := _find_port()),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            directory,
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def measure(source: Path, directory: Path, redis_url: str) -> dict[str, tuple[float, float]]:
    """Return instructions and microseconds of CPU per request, by the limits that the caller has and where they are counted, with the
    package in `source`."""
    ways: dict[str, tuple[str, ...]] = {str(limited): ("--limits", limited) for limited in Limited}
    ways |= {f"{limited} in Redis": ("--limits", limited, "--store", redis_url) for limited in Limited if limited is not Limited.NONE}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, options in ways.items():
            command = [sys.executable, "-m", "bench.inside", "request", str(REQUESTS_TIMED), *options]
            said = subprocess.run(command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, timeout=120, check=True)
            times[way].append(float(said.stdout.split()[0]))
    return {
        way: (count_instructions("request", REQUESTS_COUNTED, directory, source, *options) / REQUESTS_COUNTED, min(times[way]))
        for way, options in ways.items()
    }


def main() -> None:
    """Print the cost of each kind of limits."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=main.__doc__)
    parser.add_argument("--compiled", action="store_true", help="measure the form that mypyc compiled")
    form = "compiled" if parser.parse_args().compiled else "pure"
    with tempfile.TemporaryDirectory(prefix="tollway-bench-") as directory, redis_server(Path(directory)) as redis_url:
        costs = measure(build_form(form, Path(directory)), Path(directory), redis_url)
    base_instructions, base_us = costs[Limited.NONE]
    for limits, (instructions, cpu_us) in costs.items():
        more = f"{(instructions - base_instructions) / 1000:+.1f} thousand instructions, {cpu_us - base_us:+.1f} µs of CPU"
        print(f"{form}, {limits}: {instructions / 1000:.1f} thousand instructions, {cpu_us:.1f} µs of CPU a request ({more})")


if __name__ == "__main__":
    main()
