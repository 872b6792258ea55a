"""The figures. Each one starts its targets, measures them in turn (A B C A B C ...) and records samples; none of them
checks.

Turns matter more than length: on a shared machine the same program costs up to 1.7 times as much from one minute to
the next, so only the ratio of neighbours in the same round says anything. The report takes medians over rounds.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import collector
from bench.flame import by_file
from bench.flame import render as render_flames
from bench.instruments import build_form, count_instructions, count_system_calls, sample_shares, sample_stacks
from bench.load import Generator, Load, finish
from bench.machine import Unavailable, list_tree, measure_fdatasync_us, read_rss_bytes, stop
from bench.records import COMPILED, Sample, Subject
from bench.targets import Starter, Target

DIRECT = "direct"
NGINX = "nginx"
TOLLWAY = "tollway"
BARE = "bare"  # beside the two that every figure has, where the question is what a request or a chunk costs

SATURATED = Load(connections=32)
CHUNKS_10K = Load(connections=200, connections_per_second=100, warm_seconds=2.5, seconds=4, chunks=100, pace_us=20_000)
CHUNKS_50K = replace(CHUNKS_10K, connections=1000, connections_per_second=500)
SHORT_STREAM = Load(connections=64, chunks=10, pace_us=2_000)
LONG_PROMPT = Load(connections=4, body_bytes=400_000)  # about 100,000 tokens of English
PROBE = Load(connections=16, requests_per_second=200)  # what the others feel while long prompts pass

SCENARIOS = {"request": SATURATED, "chunk": CHUNKS_10K}
# The same two as fixed counts, and how many units one count stands for. strace slows a target tenfold: 1,000 chunks/s
# is what it follows without merging reads.
COUNTED = {
    "request": (replace(SATURATED, seconds=60, count=2000), 2000),
    "chunk": (Load(connections=20, seconds=60, count=20, chunks=100, pace_us=20_000), 2000),
}

# Requests under callgrind, and the units that they stand for: a stream of `inside.CHUNKS` counts once for its request.
INSTRUCTED = {"request": (1000, 1000), "chunk": (20, 20 * 100)}
TRACED = {"request, not sampled": "unsampled", "request, sampled": "sampled"}
"""Scenarios of instructions with traces, and how `inside` is asked for them."""
FORMS = {"pure": TOLLWAY, "native": "tollway native", "compiled": COMPILED}
"""Targets by the form of the package (`tollway.native.FORM`)."""

STACKED = {"request": 10_000, "chunk": 500}  # requests while stacks are sampled
FLAME_GRAPH = Path(__file__).parent.parent / "docs" / "flamegraph.svg"

STREAMS_OPEN = 9_000
STREAM_PACE_US = 1_000_000
FILES_RESERVE = 1_000  # descriptors of a gateway that are not streams
FDATASYNC_COUNT = 300
READY_SECONDS_MAX = 20.0  # from the first open port to the first twenty right answers


@dataclass(frozen=True, slots=True)
class Rig:
    """Shared state of the figures: the running mock, the programs that can be started, and where samples go."""

    directory: Path
    generator: Generator
    mock: Target
    starters: dict[str, Starter]
    also: Sequence[str]
    rounds: int
    quick: bool
    events: int  # that the collector's databases are filled with
    files_max: int
    record: Callable[[Subject | Sample], None]
    left_out: set[str]  # targets that could not be had, filled as that shows

    @contextlib.contextmanager
    def running(self, names: Sequence[str]) -> Iterator[list[Target]]:
        """These targets, started afresh; one that cannot be had is left out with a line that says why."""
        with contextlib.ExitStack() as stack:
            targets = []
            for name in names:
                if name == DIRECT:
                    targets.append(self.mock)
                    continue
                directory = self.directory / f"{name}-{len(list(self.directory.iterdir()))}"
                directory.mkdir()
                try:
                    target = self.starters[name](directory, f"http://127.0.0.1:{self.mock.port}")
                    assert target.pid is not None
                    stack.callback(stop, target.pid)
                    self._wait_until_right(target)
                except Unavailable as reason:
                    print(f"left out: {name}: {reason}", flush=True)
                    self.left_out.add(name)
                    continue
                self.record(Subject(name=target.name, version=target.version, command=target.command))
                targets.append(target)
            yield targets

    def _wait_until_right(self, target: Target) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while self.generator.measure(target, Load(connections=4, seconds=10, count=20))["errors"]:
            if time.monotonic() > deadline:
                raise Unavailable("it listens, but its answers are wrong")
            time.sleep(0.5)

    @property
    def compiled(self) -> list[str]:
        """The compiled form as a target, for figures of what it makes cheaper. A quick run does not build it: that takes minutes."""
        return [] if self.quick else [COMPILED]

    def fit(self, load: Load) -> Load:
        """The load, shortened when the run is a quick one."""
        return replace(load, seconds=min(load.seconds, 1.5)) if self.quick else load

    def sample(self, figure: str, scenario: str, target: Target, round_: int, values: dict[str, float]) -> None:
        """Records one measurement and shows it."""
        self.record(Sample(figure=figure, scenario=scenario, target=target.name, round=round_, values=values))


def request(rig: Rig) -> None:
    """CPU per JSON request, saturated."""
    _turns(rig, "request", [DIRECT, NGINX, BARE, TOLLWAY, *rig.compiled, *rig.also], {"saturated": SATURATED})


def chunk(rig: Rig) -> None:
    """CPU per relayed chunk. `plain`: the client asks for nothing; `usage`: it asks for running usage, so all relay
    it.
    """
    loads = {"10k/s plain": CHUNKS_10K, "50k/s plain": CHUNKS_50K}
    loads |= {"10k/s usage": replace(CHUNKS_10K, ask_usage=True), "50k/s usage": replace(CHUNKS_50K, ask_usage=True)}
    if rig.quick:
        loads = {"10k/s plain": CHUNKS_10K}
    _turns(rig, "chunk", [NGINX, BARE, TOLLWAY, *rig.compiled, *rig.also], loads)


def latency(rig: Rig) -> None:
    """Latency when the target's core is half busy, beside the mock alone at the same rate, and the disk's own fdatasync.

    The rate comes from the cost of a request at a like load. The cost when saturated would set it too high: a process
    that is never asleep serves many requests per wake-up, so half of its best rate keeps its core 80 to 90 % busy.
    """
    for scenario, load in {"json": SATURATED, "short stream": SHORT_STREAM}.items():
        with rig.running([NGINX, TOLLWAY, *rig.also]) as targets:
            rates = {}
            for target in targets:
                values = rig.generator.measure(target, rig.fit(load))
                like = replace(load, connections=512, requests_per_second=0.4 * values["requests"] / values["cpu_seconds"])
                rates[target.name] = 0.5e6 / rig.generator.measure(target, rig.fit(like))["us_per_request"]
            for round_ in range(rig.rounds):
                for target in targets:
                    paced = replace(rig.fit(load), connections=512, requests_per_second=rates[target.name])
                    values = rig.generator.measure(target, paced)
                    direct = rig.generator.measure(rig.mock, paced)
                    values |= {f"direct_{name}": value for name, value in direct.items()}
                    durations = sorted(measure_fdatasync_us(rig.directory, FDATASYNC_COUNT))
                    values["fdatasync_p50_us"] = statistics.median(durations)
                    values["fdatasync_p99_us"] = durations[int(0.99 * (len(durations) - 1))]
                    values["offered_per_second"] = rates[target.name]
                    rig.sample("latency", scenario, target, round_, values)


def memory(rig: Rig) -> None:
    """Resident memory of streams that are all open and alive, one chunk a second each; the gateway is fresh each
    time.
    """
    rig = replace(rig, rounds=min(rig.rounds, 3))
    streams = min(STREAMS_OPEN, (rig.files_max - FILES_RESERVE) // 2, 500 if rig.quick else STREAMS_OPEN)
    ramp_per_second = 1500
    ramp_seconds = streams / ramp_per_second
    load = Load(
        connections=streams,
        connections_per_second=ramp_per_second,
        warm_seconds=ramp_seconds + 2,
        seconds=5,
        chunks=int(ramp_seconds) + 60,
        pace_us=STREAM_PACE_US,
    )
    for round_ in range(rig.rounds):
        for name in [NGINX, TOLLWAY, *rig.also]:
            with rig.running([name]) as targets:
                for target in targets:
                    assert target.pid is not None
                    rig.generator.measure(target, Load(connections=4, warm_seconds=0, count=200))
                    idle_bytes = read_rss_bytes(target.pid)
                    values = rig.generator.measure(target, load, read_bytes=read_rss_bytes)
                    values["rss_idle_bytes"] = idle_bytes
                    values["streams"] = streams
                    rig.sample("memory", "open streams", target, round_, values)


def prompt(rig: Rig) -> None:
    """Prompts of 400 KB: their CPU, and what a small request beside them waits because of the longest pause they
    cause.
    """
    with rig.running([NGINX, TOLLWAY, *rig.also]) as targets:
        for round_ in range(rig.rounds):
            for target in targets:
                load = rig.fit(LONG_PROMPT)
                rig.sample("prompt", "400 KB", target, round_, rig.generator.measure(target, load))
                # Twenty a second: rare enough that the probe's maximum is one prompt's doing and not a queue's.
                background = rig.generator.spawn(target, replace(load, connections=1, requests_per_second=20, warm_seconds=0.5))
                try:
                    _read_loop_lag(target)  # the maximum since the last reading, so this one begins a new interval
                    values = rig.generator.measure(target, replace(rig.fit(PROBE), warm_seconds=1))
                    finish(background)
                finally:
                    stop(background.pid)
                kept = {name: values[name] for name in ("end_p50_us", "end_p99_us", "end_max_us", "errors")}
                rig.sample("prompt", "small beside 400 KB", target, round_, kept | _read_loop_lag(target))


def syscalls(rig: Rig) -> None:
    """System calls per request and per chunk. Counts, so no neighbour can disturb them."""
    with rig.running([NGINX, TOLLWAY, *rig.also]) as targets:
        for scenario in SCENARIOS:
            for target in targets:
                rig.sample("syscalls", scenario, target, 0, count_per_unit(rig, target, scenario))


def instructions(rig: Rig) -> None:
    """Instructions of user space per request and per chunk, without sockets, of each form of the gateway; no neighbour can disturb them."""
    for form, name in FORMS.items():
        source = build_form(form, rig.directory)
        for scenario, (count, units) in INSTRUCTED.items():
            counted = count_instructions(scenario, count, rig.directory, source)
            rig.record(Sample(figure="instructions", scenario=scenario, target=name, round=0, values={"instructions": counted / units}))
        count, units = INSTRUCTED["request"]
        for scenario, way in TRACED.items():
            counted = count_instructions("request", count, rig.directory, source, "--traces", way)
            rig.record(Sample(figure="instructions", scenario=scenario, target=name, round=0, values={"instructions": counted / units}))


def profile(rig: Rig) -> None:
    """CPU per request and per chunk: by the binary in which it was spent, and by our own files and functions (docs/flamegraph.svg)."""
    for scenario, count in STACKED.items():
        samples, cost_us = sample_stacks(scenario, count, rig.directory)
        shares = {name: share * cost_us for name, share in by_file(samples).items()}
        rig.sample("profile", scenario, Target("tollway, our files", 0, None), 0, shares)
        if scenario == "request" and not rig.quick:
            FLAME_GRAPH.write_text(render_flames(samples, f"A request through the gateway, without sockets: {cost_us:.0f} µs of CPU"))
    with rig.running([NGINX, TOLLWAY, *rig.also]) as targets:
        for scenario in SCENARIOS:
            for target in targets:
                values, _functions = shares_under(rig, target, scenario)
                rig.sample("profile", scenario, target, 0, values)


def peers(rig: Rig) -> None:
    """Other gateways that do more than nginx. LiteLLM is asked slowly, or it would only queue."""
    slow = Load(connections=8)
    slow_chunks = replace(CHUNKS_10K, connections=20, connections_per_second=20)
    rig = replace(rig, rounds=min(rig.rounds, 3))
    _turns(rig, "peers", [NGINX, TOLLWAY, *rig.compiled, "vllm-router"], {"saturated": SATURATED, "10k/s plain": CHUNKS_10K})
    _turns(rig, "peers", [NGINX, TOLLWAY, "litellm"], {"8 connections": slow, "1k/s plain": slow_chunks})


def count_per_unit(rig: Rig, target: Target, scenario: str) -> dict[str, float]:
    """System calls by name and in all, per request or chunk, most frequent first.

    The difference of a run and one twice as long: what the connections or the start cost falls out.
    """
    load, units = COUNTED[scenario]
    assert target.pid is not None
    counts = []
    for factor in (1, 2):
        with count_system_calls(list_tree(target.pid), rig.directory / "strace.txt") as calls:
            rig.generator.measure(target, replace(load, count=factor * load.count))
        counts.append(calls)
    difference = {name: (calls - counts[0].get(name, 0)) / units for name, calls in counts[1].items()}
    return {"all": sum(difference.values()), **dict(sorted(difference.items(), key=lambda item: -item[1]))}


def shares_under(rig: Rig, target: Target, scenario: str) -> tuple[dict[str, float], str]:
    """Microseconds of CPU per request or chunk by binary, most first, and perf's list of the hottest functions."""
    load = rig.fit(SCENARIOS[scenario])
    assert target.pid is not None
    values = rig.generator.measure(target, load)
    background = rig.generator.spawn(target, replace(load, seconds=load.seconds + 6))
    try:
        time.sleep(load.warm_seconds + 0.5)
        shares, functions = sample_shares(list_tree(target.pid), load.seconds, rig.directory / "perf.data")
        finish(background)
    finally:
        stop(background.pid)
    cost_us = values[f"us_per_{scenario}"]
    return {name: cost_us * share for name, share in sorted(shares.items(), key=lambda item: -item[1])}, functions


FIGURES: dict[str, Callable[[Rig], None]] = {
    "request": request,
    "chunk": chunk,
    "latency": latency,
    "memory": memory,
    "prompt": prompt,
    "syscalls": syscalls,
    "instructions": instructions,
    "peers": peers,
    "collector": collector.measure,
    "profile": profile,
}
DEFAULT = tuple(name for name in FIGURES if name not in ("collector", "profile"))


def _turns(rig: Rig, figure: str, names: Sequence[str], loads: dict[str, Load]) -> None:
    with rig.running(names) as targets:
        for round_ in range(rig.rounds):
            for scenario, load in loads.items():
                for target in targets:
                    rig.sample(figure, scenario, target, round_, rig.generator.measure(target, rig.fit(load)))


def _read_loop_lag(target: Target) -> dict[str, float]:
    if target.metrics_url is None:
        return {}
    with urllib.request.urlopen(target.metrics_url, timeout=10) as answer:
        found = re.search(rb"^tollway_event_loop_lag_seconds_max(?:\{[^}]*\})? (\S+)$", answer.read(), re.MULTILINE)
    return {"loop_lag_max_seconds": float(found.group(1))} if found else {}
