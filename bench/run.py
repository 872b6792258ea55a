"""`python -m bench`: builds the rig, takes the figures, keeps the samples, renders docs/performance.md."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import resource
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from bench import machine, records, report
from bench.figures import BARE, DEFAULT, DIRECT, FIGURES, NGINX, TOLLWAY, Rig
from bench.instruments import build_form
from bench.load import LOAD_PRIORITY, Generator
from bench.records import COMPILED, Record, Run, Sample, Subject
from bench.targets import Target, external, start_bare, start_litellm, start_nginx, start_tollway, start_vllm_router

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
QUICK = ("request", "chunk", "syscalls")


def add_rig_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `python -m bench` and `python -m bench.profile` share."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each figure (default 5)")
    parser.add_argument(
        "--events",
        type=int,
        default=1_000_000,
        help="of the collector's figure: events stored at most, 100,000 to 10,000,000 (default 1,000,000)",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke of about a minute: few figures, one round, nothing kept")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more proxy; {port}, {upstream}, {upstream_port} and {key} in its command are filled in",
    )


@contextlib.contextmanager
def prepared(arguments: argparse.Namespace, record: Callable[[Subject | Sample], None]) -> Iterator[Rig]:
    """Builds the programs, starts the mock, and ends everything that was started when the block is left, however it
    is.
    """
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    # Everything that we start dies with us; a SIGTERM must take the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    others = dict(text.split("=", 1) for text in arguments.also)
    with tempfile.TemporaryDirectory(prefix="tollway-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        mock_program, generator_program = machine.build_native(directory)
        # Above the load, so that the accounts are taken at the edges of the window and not when the load yields.
        machine.take_place(machine.LOAD_CPU, LOAD_PRIORITY + 1)
        mock = machine.launch([str(mock_program), "0"], cpu=machine.LOAD_CPU, realtime_priority=LOAD_PRIORITY)
        stack.callback(machine.stop, mock.pid)
        assert mock.stdout is not None
        port = int(mock.stdout.readline().split()[1])
        yield Rig(
            directory=directory,
            generator=Generator(generator_program),
            mock=Target(DIRECT, port, None),
            starters={
                NGINX: start_nginx,
                BARE: start_bare,
                TOLLWAY: start_tollway,
                COMPILED: lambda own, upstream_url: start_tollway(own, upstream_url, COMPILED, build_form("compiled", directory)),
                "vllm-router": start_vllm_router,
                "litellm": start_litellm,
                **{name: external(name, command) for name, command in others.items()},
            },
            also=list(others),
            rounds=1 if arguments.quick else arguments.rounds,
            quick=arguments.quick,
            events=100_000 if arguments.quick else min(max(arguments.events, 100_000), 10_000_000),
            files_max=files_max,
            record=record,
            left_out=set(),
        )


def main() -> int:
    """Exit status 0 when every figure was taken and the gateway is in it (a missing peer is no failure), else 1."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="What the gateway costs, beside nginx.")
    parser.add_argument("--figures", default="", help=f"comma-separated, of: {', '.join(FIGURES)} (default: all but collector and profile)")
    parser.add_argument("--syscalls", action="store_true", help="only the system calls: exact, whatever else runs here")
    parser.add_argument("--render", action="store_true", help="measure nothing; render the page from the kept results")
    add_rig_arguments(parser)
    arguments = parser.parse_args()
    if arguments.render:
        _render()
        return 0
    chosen = ("syscalls",) if arguments.syscalls else QUICK if arguments.quick else DEFAULT
    names = [name for name in arguments.figures.split(",") if name] or chosen
    if unknown := set(names) - set(FIGURES):
        parser.error(f"unknown figures: {', '.join(sorted(unknown))}")
    try:
        return _take(arguments, names)
    except KeyboardInterrupt:
        print("interrupted; what was measured until now is kept", flush=True)
        return 130


def _take(arguments: argparse.Namespace, names: list[str] | tuple[str, ...]) -> int:
    began = datetime.datetime.now(datetime.UTC)
    taken: list[Record] = []
    path = RESULTS / f"{began:%Y-%m-%dT%H%M%SZ}.jsonl"

    def record(record: Record) -> None:
        taken.append(record)
        if isinstance(record, Sample):
            print(report.line_of(record), flush=True)
        if not arguments.quick:
            records.append(path, record)

    incomplete = False
    with prepared(arguments, record) as rig:
        command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
        described = machine.describe(rig.directory)
        record(Run(started_at=f"{began:%Y-%m-%dT%H:%M:%SZ}", command=command, rounds=rig.rounds, machine=described))
        for name in names:
            print(f"== {name}: {(FIGURES[name].__doc__ or '').splitlines()[0]}", flush=True)
            try:
                FIGURES[name](rig)
            except (machine.Unavailable, RuntimeError) as reason:
                print(f"left out: {name}: {reason}", flush=True)
                incomplete = True
        incomplete |= TOLLWAY in rig.left_out
    print("\n" + report.render([records.collect(taken)]))
    if not arguments.quick:
        _render()
        print(f"kept in {path}; rendered {PAGE}")
    return 1 if incomplete else 0


def _render() -> None:
    runs = [records.read(path) for path in sorted(RESULTS.glob("*.jsonl"))]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(report.render(runs))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
