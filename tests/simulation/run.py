"""Run histories: `python -m tests.simulation.run [FIRST] [COUNT]`, or one with its trace: `... run --seed N`."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.simulation.history import Outcome, run_seed
from tests.simulation.planes import Ledger

SEEDS_KEPT = Path(__file__).with_name("seeds.txt")


def kept_seeds() -> list[int]:
    """Seeds that once failed: they are always run first."""
    lines = SEEDS_KEPT.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


def simulate(seeds: Iterable[int], *, failures_max: int = 5) -> dict[str, Any]:
    """Run seeds and report, as figure R2 of docs/reliability.md: one line of JSON. Stops after `failures_max` failing seeds."""
    began = time.perf_counter()
    failed: list[Outcome] = []
    n = kills = cuts = faults = admitted = steps = 0
    virtual_seconds = 0.0
    first = last = None
    ledger = Ledger()
    try:
        for seed in seeds:
            outcome = run_seed(seed, ledger)
            n, first, last = n + 1, seed if first is None else first, seed
            kills, cuts, faults = kills + outcome.kills, cuts + outcome.power_cuts, faults + outcome.faults
            admitted, steps = admitted + outcome.admitted, steps + outcome.steps
            virtual_seconds += outcome.virtual_seconds
            if outcome.failures:
                failed.append(outcome)
                print(explain(outcome), file=sys.stderr, flush=True)
                if len(failed) >= failures_max:
                    break
    finally:
        ledger.close()
    return {
        "figure": "R2",
        "commit": _commit(),
        "seeds": [first, last],
        "n": n,
        "failures": len(failed),
        "failing_seeds": [outcome.seed for outcome in failed],
        "bound95": 3 / n if n and not failed else None,
        "virtual_hours": round(virtual_seconds / 3600, 2),
        "kills": kills,
        "power_cuts": cuts,
        "faults": faults,
        "requests": admitted,
        "steps": steps,
        "wall_s": round(time.perf_counter() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def explain(outcome: Outcome, lines: int = 0) -> str:
    """Return what failed, the end of its trace, and how to see it again."""
    trace = outcome.trace[-lines:] if lines else ()
    replay = f"replay: python -m tests.simulation.run --seed {outcome.seed}"
    return "\n".join([f"seed {outcome.seed}: {outcome.failures[0] if outcome.failures else 'kept'}", *trace, replay])


def _commit() -> str:
    try:
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    import json

    if sys.argv[1:2] == ["--seed"]:
        one = Ledger()
        result = run_seed(int(sys.argv[2]), one)
        one.close()
        print(explain(result, 300))
        sys.exit(bool(result.failures))
    first_seed, count = (int(text) for text in [*sys.argv[1:], "0", "2000"][:2]) if len(sys.argv) != 2 else (int(sys.argv[1]), 2000)
    report = simulate(range(first_seed, first_seed + count))
    print(json.dumps(report))
    sys.exit(bool(report["failures"]))
