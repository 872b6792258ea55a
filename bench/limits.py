"""The cost of limits: `python -m bench.limits [--compiled]`.

A request through the gateway's own objects (`bench.inside`) without any limit, with requests per minute and concurrency at three levels,
and with tokens beside them at six levels: instructions under callgrind, which feel no neighbour, and microseconds of CPU, the least of
several turns. The difference to no limit is what limits cost.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.instruments import build_form, count_instructions
from bench.targets import Limited

REQUESTS_COUNTED = 400
REQUESTS_TIMED = 3000
TURNS = 3


def measure(source: Path, directory: Path) -> dict[Limited, tuple[float, float]]:
    """Return instructions and microseconds of CPU per request, by the limits that the caller has, with the package in `source`."""
    times: dict[Limited, list[float]] = {limited: [] for limited in Limited}
    for _ in range(TURNS):
        for limited in Limited:
            command = [sys.executable, "-m", "bench.inside", "request", str(REQUESTS_TIMED), "--limits", limited]
            said = subprocess.run(command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, timeout=120, check=True)
            times[limited].append(float(said.stdout.split()[0]))
    return {
        limited: (
            count_instructions("request", REQUESTS_COUNTED, directory, source, "--limits", limited) / REQUESTS_COUNTED,
            min(times[limited]),
        )
        for limited in Limited
    }


def main() -> None:
    """Print the cost of each kind of limits."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=main.__doc__)
    parser.add_argument("--compiled", action="store_true", help="measure the form that mypyc compiled")
    form = "compiled" if parser.parse_args().compiled else "pure"
    with tempfile.TemporaryDirectory(prefix="tollway-bench-") as directory:
        costs = measure(build_form(form, Path(directory)), Path(directory))
    base_instructions, base_us = costs[Limited.NONE]
    for limited, (instructions, cpu_us) in costs.items():
        more = f"{(instructions - base_instructions) / 1000:+.1f} thousand instructions, {cpu_us - base_us:+.1f} µs of CPU"
        print(f"{form}, {limited}: {instructions / 1000:.1f} thousand instructions, {cpu_us:.1f} µs of CPU a request ({more})")


if __name__ == "__main__":
    main()
