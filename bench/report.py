"""Turns results into docs/performance.md. Pure: records in, text out.

Every table is taken from one run, the newest that has its scenario. A ratio is formed within a round, between samples
taken seconds apart, and only then is the median over rounds taken: dividing two medians would compare different
minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.records import COMPILED, Results, Sample

Reading = Callable[[dict[str, float]], float | None]
YARDSTICK = "nginx"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table. With `per`, it is the ratio to that target's reading in the same round."""

    title: str
    reading: Reading
    digits: int = 1
    per: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One scenario of a figure."""

    scenario: str
    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One figure of the page: its heading, what a reader must know, its tables."""

    figure: str
    title: str
    text: str
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Aim:
    """A number that we hold ourselves to. `column` is read for `target`."""

    sentence: str
    figure: str
    scenario: str
    column: Column
    most: float
    target: str = "tollway"


def value(name: str, scale: float = 1.0) -> Reading:
    """Reads one value by name."""
    return lambda values: values[name] * scale if name in values else None


def added(name: str) -> Reading:
    """Reads what a target adds to the mock alone at the same rate."""
    return lambda values: values[name] - values[f"direct_{name}"] if f"direct_{name}" in values and name in values else None


def bytes_per_stream(values: dict[str, float]) -> float | None:
    """KiB of memory that one open stream adds to the idle process."""
    return (values["rss_bytes"] - values["rss_idle_bytes"]) / 1024 / values["streams"] if "rss_bytes" in values else None


REQUEST_US = Column("µs CPU / request", value("us_per_request"))
REQUEST_RATIO = Column("× nginx", value("us_per_request"), 2, YARDSTICK)
CHUNK_US = Column("µs CPU / chunk", value("us_per_chunk"), 2)
CHUNK_RATIO = Column("× nginx", value("us_per_chunk"), 2, YARDSTICK)
CORE = Column("core busy", lambda values: values["cpu_seconds"] / values["seconds"] if "cpu_seconds" in values else None, 2)
LAG = (Column("lag p50 µs", value("lag_p50_us"), 0), Column("lag p99 µs", value("lag_p99_us"), 0))
RATE = Column("requests/s", lambda values: values["requests"] / values["seconds"], 0)
CHUNK_RATE = Column("chunks/s", lambda values: values["chunks"] / values["seconds"], 0)
CHUNK_COLUMNS = (CHUNK_US, CHUNK_RATIO, CHUNK_RATE, CORE, *LAG)
ADDED = (
    Column("offered/s", value("offered_per_second"), 0),
    Column("first byte p50 µs", added("first_p50_us"), 0),
    Column("first byte p99 µs", added("first_p99_us"), 0),
    Column("end p50 µs", added("end_p50_us"), 0),
    Column("fdatasync p50 µs", value("fdatasync_p50_us"), 0),
)
STREAM_KIB = Column("KiB / stream", bytes_per_stream)
INSTRUCTIONS = Column("thousand instructions", value("instructions", 1e-3))
OF_TOLLWAY = Column("× tollway", value("us_per_request"), 2, "tollway")
CHUNK_OF_TOLLWAY = Column("× tollway", value("us_per_chunk"), 2, "tollway")
REQUEST_OF_ROUTER = Column("× vllm-router", value("us_per_request"), 2, "vllm-router")
CHUNK_OF_ROUTER = Column("× vllm-router", value("us_per_chunk"), 2, "vllm-router")

EVENT_COLUMNS = (
    Column("events/s", lambda values: values["events"] / values["seconds"] if "events" in values else None, 0),
    Column("µs / event", value("us_per_event")),
    Column("× COPY", value("us_per_event"), 2, "COPY"),
    Column("of which µs CPU of the collector", lambda v: v["client_cpu_seconds"] / v["events"] * 1e6 if "events" in v else None),
)

SECTIONS = (
    Section(
        "request",
        "CPU per request",
        "JSON chat completions, 1.2 KB in and 0.9 KB out, 32 connections that ask again at once. *bare* is the floor of the"
        " language: a hundred lines of Python on the gateway's transports (`bench/bare.py`: uvloop, llhttp on both sides, the key"
        " looked up in a dict, bytes relayed) without limits, metering, log or metrics. What tollway costs beyond it is what the"
        " features cost. *tollway* is the package as plain Python, *tollway compiled* that of a wheel with native code (`make native`).",
        (
            Table(
                "saturated",
                "",
                (REQUEST_US, REQUEST_RATIO, RATE, CORE),
            ),
        ),
    ),
    Section(
        "chunk",
        "CPU per relayed chunk",
        "Server-sent events as vLLM writes them, 100 content chunks a stream at 50 tokens/s; the cost of the request,"
        " the role chunk, the usage chunk and `[DONE]` is in the figure. *Plain* is the headline: the client asks for"
        " no usage. The gateway asks the engine for running usage all the same, reads it and takes it out again, "
        "while nginx relays the shorter chunks. *Usage*: the client asks for running usage, so every proxy relays the"
        " same bytes. *bare*: the floor of the language, as above. Lag is the age of a chunk when it reaches the client.",
        (
            Table("10k/s plain", "10,000 chunks/s, 200 streams, plain", CHUNK_COLUMNS),
            Table("50k/s plain", "50,000 chunks/s, 1,000 streams, plain", CHUNK_COLUMNS),
            Table("10k/s usage", "10,000 chunks/s, 200 streams, usage", CHUNK_COLUMNS),
            Table("50k/s usage", "50,000 chunks/s, 1,000 streams, usage", CHUNK_COLUMNS),
        ),
    ),
    Section(
        "latency",
        "Added latency at half of the own capacity",
        "At the rate that keeps the target's core half busy. "
        "Open loop, timed from the moment at which a request was due; less what the mock alone takes at the same "
        "rate. The end of an answer waits until its usage record is on disk; beside it, what one such write costs on "
        "this disk with nothing else to do.",
        (
            Table("json", "JSON answers", ADDED),
            Table("short stream", "Streams of 10 chunks, 2 ms apart", ADDED),
        ),
    ),
    Section(
        "memory",
        "Memory of open streams",
        "A fresh process, then streams that are all open, each with one chunk a second. Without the kernel's socket buffers.",
        (
            Table(
                "open streams",
                "",
                (
                    Column("streams", value("streams"), 0),
                    Column("alive", value("alive"), 0),
                    Column("idle MiB", value("rss_idle_bytes", 2**-20)),
                    Column("MiB", value("rss_bytes", 2**-20)),
                    STREAM_KIB,
                    Column("lag p99 µs", value("lag_p99_us"), 0),
                ),
            ),
        ),
    ),
    Section(
        "prompt",
        "Long prompts",
        "400 KB of English, about 100,000 tokens, four at a time; then twenty a second, with small requests beside "
        "them that feel every pause.",
        (
            Table("400 KB", "The prompts", (REQUEST_US, REQUEST_RATIO)),
            Table(
                "small beside 400 KB",
                "Small requests beside them",
                (
                    Column("p50 µs", value("end_p50_us"), 0),
                    Column("p99 µs", value("end_p99_us"), 0),
                    Column("max µs", value("end_max_us"), 0),
                    Column("longest loop pause µs", value("loop_lag_max_seconds", 1e6), 0),
                ),
            ),
        ),
    ),
    Section(
        "collector",
        "Taking usage in",
        "The control plane's side of a record: a gateway's batches of 3,600 events through chain check, archive, deduplication, rating, "
        "rollups and postings, a commit each, on PostgreSQL (`tollway`) and SQLite, while so many events are stored; beside psycopg's "
        "`copy.write_row` of the finished rows of the same events into a table of the same columns, checks and indexes. Everything shares "
        "the machine: this process, the server, and whatever else runs. `tollway verify` takes 94 µs of CPU for each of 18,000 such events "
        "on SQLite (`python -m bench.verification`), and took 129 µs before its loops and its garbage collection were tuned; "
        "205,200 events took 24.6 s of CPU, 120 µs for each, on a machine busy with other work. "
        "Four fifths of the time per event are CPU of the collector itself, so a second batch of a node in flight, beside the one that "
        "waits for the database, could bring the figure of 1,000,000 events to 3.2 × COPY at best; it has not been built.",
        (
            Table("100,000 stored", "100,000 events stored", EVENT_COLUMNS),
            Table("1,000,000 stored", "1,000,000 events stored", EVENT_COLUMNS),
            Table("10,000,000 stored", "10,000,000 events stored", EVENT_COLUMNS),
            Table(
                "month",
                "A month of the busiest organization by day and model",
                (Column("events stored", value("stored"), 0), Column("groups", value("groups"), 0), Column("ms", value("month_ms"))),
            ),
        ),
    ),
    Section(
        "syscalls",
        "System calls",
        "Counted with strace over a fixed number of units; no neighbour can disturb them. Chunks at 1,000/s, so that "
        "strace keeps up: with more traffic, waits are shared among chunks and the figure falls.",
        (),
    ),
    Section(
        "instructions",
        "Instructions",
        "Instructions of user space, counted by callgrind over the request path in one process: the gateway's own"
        " objects, its spool and its log, between a client and an engine in memory. The same to a percent whatever"
        " else the machine does, so the figure to compare two states of the code by. One row for each form: Python alone, with the"
        " native extension, and with the hot modules compiled by mypyc as well (`make native`)."
        " Limits are part of it: `python -m bench.limits` counts them alone.",
        (
            Table("request", "Per request", (INSTRUCTIONS,)),
            Table("chunk", "Per chunk, with its share of the request", (INSTRUCTIONS,)),
            Table("request, not sampled", "Per request, where traces are exported, one that is not sampled", (INSTRUCTIONS,)),
            Table("request, sampled", "Per request, where traces are exported, one that is sampled, up to the exporter", (INSTRUCTIONS,)),
        ),
    ),
    Section(
        "peers",
        "Other gateways",
        "They do more than nginx and other things than Tollway; read the ratios as the price of a whole product.",
        (
            Table("saturated", "JSON, 32 connections", (REQUEST_US, REQUEST_RATIO, OF_TOLLWAY)),
            Table("10k/s plain", "10,000 chunks/s, 200 streams", (CHUNK_US, CHUNK_RATIO, CHUNK_OF_TOLLWAY)),
            Table("8 connections", "JSON, 8 connections", (REQUEST_US, REQUEST_RATIO, OF_TOLLWAY)),
            Table("1k/s plain", "1,000 chunks/s, 20 streams", (CHUNK_US, CHUNK_RATIO, CHUNK_OF_TOLLWAY)),
        ),
    ),
    Section(
        "profile",
        "Where the microseconds go",
        "µs of CPU by the binary in which they were spent (perf, cpu-clock); and of the request path without sockets by"
        " the file whose function was at work or had called into C (sampled). The same by function, as a flame graph:"
        " [flamegraph.svg](flamegraph.svg).",
        (),
    ),
)

AIMS = (
    Aim("CPU per request, compiled, × nginx", "request", "saturated", REQUEST_RATIO, 4.0, COMPILED),
    Aim("CPU per request, compiled, × vllm-router", "peers", "saturated", REQUEST_OF_ROUTER, 1.3, COMPILED),
    Aim("CPU per chunk at 10,000/s, compiled, × nginx", "chunk", "10k/s plain", CHUNK_RATIO, 1.5, COMPILED),
    Aim("CPU per chunk at 50,000/s, compiled, × nginx", "chunk", "50k/s plain", CHUNK_RATIO, 1.2, COMPILED),
    Aim("CPU per chunk at 10,000/s, compiled, × vllm-router", "peers", "10k/s plain", CHUNK_OF_ROUTER, 1.0, COMPILED),
    Aim("Time per ingested event, × COPY", "collector", "1,000,000 stored", EVENT_COLUMNS[2], 3.0),
    Aim("Thousand instructions per request, compiled", "instructions", "request", INSTRUCTIONS, 180.0, COMPILED),
    Aim("Thousand instructions per chunk, compiled", "instructions", "chunk", INSTRUCTIONS, 14.0, COMPILED),
    Aim("KiB of memory per open stream", "memory", "open streams", STREAM_KIB, 8.0),
)


def line_of(sample: Sample) -> str:
    """One line for a person who watches the run."""
    names = (
        "us_per_request",
        "us_per_chunk",
        "first_p50_us",
        "end_p50_us",
        "lag_p99_us",
        "rss_bytes",
        "us_per_event",
        "month_ms",
        "all",
        "instructions",
        "errors",
    )
    shown = "  ".join(f"{name} {sample.values[name]:.2f}" for name in names if name in sample.values)
    return f"{sample.figure:9s} {sample.scenario:20s} {sample.target:16s} {sample.round + 1}  {shown}"


def render(results: Sequence[Results]) -> str:
    """The page. `results` in order of time; a section without results is left out."""
    parts = [INTRODUCTION]
    if not results:
        parts.append("No results are kept yet.")
    newest = {(sample.figure, sample.scenario): result for result in results for sample in result.samples}
    aims = [_aim_row(aim, newest[aim.figure, aim.scenario]) for aim in AIMS if (aim.figure, aim.scenario) in newest]
    if rows := [row for row in aims if row]:
        head = ["Aim", "at most", "measured, median [least–most]", "held"]
        parts.append("## Where we stand\n\n" + _markdown(head, rows))
    used: list[Results] = []
    for section in SECTIONS:
        found = {scenario: result for (figure, scenario), result in newest.items() if figure == section.figure}
        if found:
            for result in found.values():
                used += [result] if result not in used else []
            parts.append(_section(section, found, used))
    parts += [_run(number, result) for number, result in enumerate(used, 1)]
    return "\n\n".join(parts) + "\n"


def spread(column: Column, samples: Sequence[Sample], target: str) -> list[float]:
    """The column's readings of one target, one per round."""
    by_round = {(sample.target, sample.round): column.reading(sample.values) for sample in samples}
    readings = []
    for (name, round_), reading in by_round.items():
        if name != target or reading is None:
            continue
        if column.per is None:
            readings.append(reading)
        elif yardstick := by_round.get((column.per, round_)):
            readings.append(reading / yardstick)
    return readings


def cell(readings: Sequence[float], digits: int) -> str:
    """`median [least–most]`, or one number where there was one round, or where all agree to the digit shown."""
    if not readings:
        return "–"
    low, middle, high = (f"{x:,.{digits}f}" for x in (min(readings), statistics.median(readings), max(readings)))
    return middle if low == high else f"{middle} [{low}–{high}]"


def _aim_row(aim: Aim, result: Results) -> list[str]:
    samples = [s for s in result.samples if (s.figure, s.scenario) == (aim.figure, aim.scenario)]
    readings = spread(aim.column, samples, aim.target)
    if not readings:
        return []
    held = "yes" if statistics.median(readings) <= aim.most else "**no**"
    return [aim.sentence, f"{aim.most:g}", cell(readings, aim.column.digits), held]


def _section(section: Section, results: dict[str, Results], used: list[Results]) -> str:
    """Render a figure from the results of each of its scenarios. `used`: the runs of the page, in the order of their numbers."""
    numbers = {scenario: used.index(result) + 1 for scenario, result in results.items()}
    parts = [f"## {section.title}\n\n{section.text} ({_name_runs(numbers.values())}.)"]
    is_of_one_run = len(set(numbers.values())) == 1
    samples = [s for scenario, result in results.items() for s in result.samples if (s.figure, s.scenario) == (section.figure, scenario)]
    for table in section.tables:
        of_table = [sample for sample in samples if sample.scenario == table.scenario]
        if not of_table:
            continue
        columns = [column for column in table.columns if any(spread(column, of_table, s.target) for s in of_table)]
        rows = [
            [target, *(cell(spread(column, of_table, target), column.digits) for column in columns)]
            for target in dict.fromkeys(sample.target for sample in of_table)
        ]
        run = "" if is_of_one_run else f" (run {numbers[table.scenario]})"
        title = f"{table.title}{run}:\n\n" if table.title else ""
        parts.append(title + _markdown(["target", *(column.title for column in columns)], rows))
    if not section.tables:
        for scenario in results:
            parts.append(_breakdown(scenario, [sample for sample in samples if sample.scenario == scenario]))
    if errors := sum(int(sample.values.get("errors", 0)) for sample in samples):
        parts.append(f"**{errors} answers were wrong or incomplete; these figures are not to be trusted.**")
    return "\n\n".join(parts)


def _name_runs(numbers: Iterable[int]) -> str:
    listed = sorted(set(numbers))
    return f"Run {listed[0]}" if len(listed) == 1 else f"Runs {', '.join(map(str, listed))}"


def _breakdown(scenario: str, samples: Sequence[Sample]) -> str:
    rows = []
    for sample in samples:
        parts = {name: amount for name, amount in sample.values.items() if name != "all" and amount >= 0.005}
        largest = sorted(parts.items(), key=lambda item: -item[1])[:8]
        total = sum(parts.values())
        rows.append([sample.target, f"{total:.2f}", ", ".join(f"{name} {amount:.2f}" for name, amount in largest)])
    return _markdown(["target", f"per {scenario}", "of which"], rows)


def _run(number: int, result: Results) -> str:
    run = result.run
    rows = [[name, text] for name, text in run.machine.items()]
    rows += [[subject.name, f"{subject.version}: {subject.command}"] for subject in result.subjects]
    rows.append(["Command", f"`{run.command}`, {run.rounds} rounds"])
    busy = [s.values["neighbour_cpu_seconds"] / s.values["seconds"] for s in result.samples if "neighbour_cpu_seconds" in s.values]
    if busy:
        rows.append(["Others on the target's CPU", f"{statistics.median(busy):.1%} of the time, at most {max(busy):.1%}"])
    for sample_figure, column in (("request", REQUEST_US), ("chunk", CHUNK_US)):
        readings = spread(column, [s for s in result.samples if s.figure == sample_figure], YARDSTICK)
        if len(readings) > 1:
            width = (max(readings) - min(readings)) / statistics.median(readings)
            rows.append([f"nginx against itself, {sample_figure}", f"{width:.0%} between its least and its most"])
    return f"## Run {number}, {run.started_at}\n\n" + _markdown(["what", "value"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


INTRODUCTION = """\
# Performance

What the gateway costs with everything switched on: authentication, limits, routing, metrics, one JSON log line per
request and a durable usage record. Rendered by `python -m bench --render` from `bench/results/`; `make bench`
measures again on your machine and `python -m bench --quick` tries it out in a minute.

How to read it. The yardstick is nginx with one worker, which checks a key, relays, and does nothing else: about what
the kernel asks of any proxy. One worker of each has a CPU for itself; an upstream that costs almost nothing and the
load generator share another. CPU is the time that the process tree spent on a CPU, by the scheduler's count, divided
by what reached the client in that time; on loopback it includes delivery to the peer. Targets take turns; every
figure is the median over rounds [least–most], and a ratio is formed within a round. Compare ratios of one run, never
microseconds of two: on a shared machine the same program costs up to 1.7 times as much from one minute to the next."""
