"""`python -m fuzz [PARSER ...] --seconds 60`: search every parser, guided by coverage; or with `--inputs N` bend so many inputs at
random. Prints a line each; `--record` appends them to reliability/results/R9.jsonl. New findings lie in fuzz/findings, to be committed
with the repair. Exit code 1 if there were any."""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fuzz import costs, parsers, seeds
from reliability import records

ROOT = Path(__file__).parent.parent
INPUT_BYTES_MAX = 4096
HANG_SECONDS = 10
"""One input takes microseconds; so long only if it never ends, or the machine sleeps."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Result of one parser. `edges`: lines and branches of ours that were reached, None if nobody counted."""

    parser: str
    method: str
    inputs: int
    failures: int
    seconds: float
    edges: int | None = None


def search(parser: str, seconds: int) -> Tried:
    """Run one search in a process of its own."""
    findings = seeds.FINDINGS / parser
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tollway-fuzz-") as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        command = [sys.executable, "-m", "fuzz.hunt", parser, str(corpus), str(findings)]
        options = [
            f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={HANG_SECONDS}", "-print_final_stats=1",
            "-rss_limit_mb=2048", f"-artifact_prefix={findings}/",
        ]  # fmt: skip
        ran = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=10 * seconds + 300)
    for line in ran.stderr.splitlines():
        if line.startswith(f"{parser}: "):
            print(f"  {line}")
    done = re.search(r"stat::number_of_executed_units: (\d+)", ran.stderr)
    if done is None and ran.returncode == 0:
        raise RuntimeError(f"the search of {parser} said nothing:\n{ran.stderr[-2000:]}")
    if ran.returncode:
        print(f"  {parser}: ended with {ran.returncode}: {ran.stderr.splitlines()[-1:]}")
    failures = len(set(findings.iterdir()) - before)
    if not any(findings.iterdir()):
        findings.rmdir()
    edges = [int(found) for found in re.findall(r"cov: (\d+)", ran.stderr)]
    inputs = int(done[1]) if done else 0
    return Tried(parser, "atheris", inputs, max(failures, int(ran.returncode != 0)), time.monotonic() - began, edges[-1] if edges else None)


def bend(parser: str, count: int, seed: int) -> Tried:
    """Feed the seeds and so many bent inputs to one parser; what broke it is kept."""
    began, failures, tried = time.monotonic(), 0, 0
    for data in itertools.chain(seeds.seeds(parser), seeds.inputs(parser, seed, count)):
        tried += 1
        try:
            parsers.PARSERS[parser](data)
        except Exception as error:  # whatever escapes is what is searched for
            failures += 1
            if failures <= 3:
                print(f"  {parser}: {type(error).__name__}: {str(error)[:100]}: {data[:200]!r}")
    return Tried(parser, "mutator", tried, failures, time.monotonic() - began)


def record(tried: Tried) -> None:
    """Append a line to the results, in the form of the other figures of reliability."""
    memory, cpu = costs.worst(tried.parser)
    why = costs.explain(tried.parser, cpu)
    if cpu is not None:
        print(f"  memory {memory} x the input, CPU {cpu} x the client's" + (f": {why}" if why else ""), flush=True)
    detail = {"edges": tried.edges, "memory_times_input": memory, "cpu_times_client": cpu} | ({"bounded_by": why} if why else {})
    began = time.time() - tried.seconds
    case = f"{tried.parser}, {tried.method}"
    is_dear = why is None and max(memory or 0.0, cpu or 0.0) > costs.TIMES_MAX
    records.record("R9", case=case, of="inputs", n=tried.inputs, failures=tried.failures + is_dear, began=began, detail=detail)


def main() -> int:
    """The command line; returns the exit code."""
    cli = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    cli.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of: {', '.join(parsers.PARSERS)}")
    cli.add_argument("--seconds", type=int, default=60, help="for each parser")
    cli.add_argument("--inputs", type=int, help="bend so many for each parser, without coverage")
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--record", action="store_true", help="append the results to reliability/results/R9.jsonl")
    options = cli.parse_args()
    unknown = set(options.parsers) - parsers.PARSERS.keys()
    if unknown:
        cli.error(f"no such parser: {', '.join(sorted(unknown))}")
    failures = 0
    for parser in options.parsers or parsers.PARSERS:
        tried = bend(parser, options.inputs, options.seed) if options.inputs else search(parser, options.seconds)
        reached = "" if tried.edges is None else f", {tried.edges} edges"
        print(f"{parser:17} {tried.inputs:>9} inputs in {tried.seconds:.0f} s{reached}, {tried.failures} failures", flush=True)
        failures += tried.failures
        if options.record:
            record(tried)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
