"""R12: a cluster is used without a break, and no process grows.

Slopes are those of Theil and Sen: the median of the slopes between all pairs of readings, which single readings do not bend. Their interval
is the one by Kendall's statistic (Sen 1968), so a machine that does other things widens it instead of failing the run.

A control process fills up before it stays about as it is. An operation that makes or revokes a key leaves some 300 objects in cycles,
nearly all of them parts of SQLAlchemy's statements, and 50,000 such objects wait for the garbage collector (`serve.garbage`), so that
memory rises and falls by some MiB between two searches. `tests/control/test_memory.py` counts the objects that stay: none. Threads begin
as they are needed. Hence a third of a run is the warm-up. Heaps of threads made such a process grow for as long as it was used, until
they became one (decision 0134)."""

import itertools
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import sqlalchemy as sa

from reliability.chaos import Operations, check_bills, end, read_attempts, traffic, wait_until_whole
from reliability.clusters import Cluster, cluster
from reliability.load import Sent
from reliability.processes import NO_TLS, WAIT_SECONDS
from reliability.records import Line, record

KEYS_MAX = 100
"""Valid keys of the administrator: gateways hold them in memory, and shall not grow by them."""
PERIOD_SECONDS = 5.0
WARM_UP_SHARE = 1 / 3
"""The administrator carries out up to 4 operations a second, which two control processes share: up to 400 each in a third of 600 s. Batches
of records come besides."""
MEMORY_SLOPE_MAX = 1.0
"""MiB an hour."""
ARENA_MIB = 1.0
"""Python takes memory from the system by arenas of this size: growth by less than one cannot be told from the last one being filled."""
NORMAL_95 = 1.96
MORE_MAX = {"descriptors": 8, "threads": 2, "tasks": 2}
"""Most by which counts may be higher at the end. Descriptors include the connections of the requests that run at that moment."""


@dataclass(slots=True)
class Readings:
    """Readings of one process: seconds since the start, and a value for each name."""

    at: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, at: float, values: Mapping[str, float]) -> None:
        """Add what was read at one moment."""
        self.at.append(at)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)


def measure(seconds: float, per_second: float, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed. `per_second`: requests to each gateway."""
    began = time.time()
    scratch = Path(tempfile.mkdtemp(prefix="tollway-soak-"))
    wrong, sent, readings, kept = run(scratch, seconds, per_second, seed)
    if wrong:
        print("\n".join([*wrong[:20], f"kept: {scratch}"]), flush=True)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    requests = sum(len(each.heard) for each in sent)
    slopes = {name: describe(each) for name, each in readings.items()}
    return [
        record(
            "R12",
            of="readings of a process",
            n=sum(len(each.at) for each in readings.values()),
            failures=len(wrong),
            also={"requests": requests},
            seed=seed,
            began=began,
            detail={
                "seconds": seconds,
                "offered_per_second": per_second * len(sent),
                **slopes,
                "bytes_for_1000_requests": {name: round(count * 1000 / max(1, requests)) for name, count in kept.items()},
            },
        )
    ]


def run(scratch: Path, seconds: float, per_second: float, seed: int) -> tuple[list[str], list[Sent], dict[str, Readings], dict[str, int]]:
    """Use a cluster for so long. Return what is wrong, what clients heard, the readings by process, and how much was kept, in bytes."""
    operations = Operations(living_max=KEYS_MAX)
    readings: dict[str, Readings] = {}
    with cluster(scratch) as held:
        wait_until_whole(held)
        before = _measure_kept(held)
        with traffic(held, seed, operations, per_second=per_second) as sent:
            _read_until(held, time.monotonic() + seconds, readings)
        wrong = find_growth(readings)
        wrong += [text for each in sent for text in each.wrong]
        heard = [each for part in sent for each in part.heard]
        wrong += [f"a request failed: {each}" for each in heard if each.ended not in ("complete", "left")]
        wrong += [f"{count} operations were answered {status}" for status, count in operations.statuses.items() if status != 200]
        check_bills(held, heard, wrong)
        assert len(read_attempts(held)) <= len(heard), "an engine heard of more requests than were sent"
        after = _measure_kept(held)
        wrong += end(held, operations)
    return wrong, sent, readings, {name: after[name] - before[name] for name in after}


# ---- Readings ---------------------------------------------------------------------------------------------------------


def _read_until(held: Cluster, deadline: float, readings: dict[str, Readings]) -> None:
    began = time.monotonic()
    pages = {f"gateway {number + 1}": (each.part, f"{each.internal_url}/metrics") for number, each in enumerate(held.gateways)}
    links = zip(held.controls, held.control_link_urls, strict=True)
    pages |= {f"control {number + 1}": (part, f"{url}/metrics") for number, (part, url) in enumerate(links)}
    while time.monotonic() < deadline:
        for name, (part, url) in pages.items():
            assert part.process is not None and part.process.poll() is None, part.out.read_text()[-2000:]
            readings.setdefault(name, Readings()).add(time.monotonic() - began, read_process(part.process.pid) | {"tasks": read_tasks(url)})
        time.sleep(PERIOD_SECONDS)


def read_process(pid: int) -> dict[str, float]:
    """Return resident memory in MiB, open descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"memory": int(status["VmRSS"].split()[0]) / 1024, "descriptors": descriptors, "threads": int(status["Threads"])}


def read_tasks(url: str) -> float:
    """Return the tasks of the event loop that a process states on its page of metrics."""
    page = httpx2.get(url, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS).text
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(("tollway_tasks ", "tollway_control_tasks ")))


def _measure_kept(held: Cluster) -> dict[str, int]:
    """Return the bytes that the spools, the archive and the database have."""
    engine = sa.create_engine(held.database.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        database = int(connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)
    spools = [path for gateway in held.gateways for path in (gateway.directory / "data").rglob("*.seg")]
    return {
        "spools": sum(path.stat().st_blocks * 512 for path in spools),
        "archive": sum(path.stat().st_size for path in held.archive.rglob("*.seg")),
        "database": database,
    }


# ---- Slopes -----------------------------------------------------------------------------------------------------------


def find_slope(at: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of Theil and Sen in units an hour, and the ends of its 95 % confidence interval. Needs three readings."""
    pairs = itertools.combinations(zip(at, values, strict=True), 2)
    slopes = sorted((later - earlier) / (end_at - start_at) * 3600 for (start_at, earlier), (end_at, later) in pairs)
    count = len(at)
    width = NORMAL_95 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(slopes) - width) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + width) / 2))
    return statistics.median(slopes), slopes[low], slopes[high]


def _settled(readings: Readings) -> int:
    """Return the index of the first reading after the warm-up."""
    return int(len(readings.at) * WARM_UP_SHARE)


def find_growth(readings: Mapping[str, Readings]) -> list[str]:
    """Return which process grows, and in what."""
    wrong = []
    for name, each in readings.items():
        start = _settled(each)
        if len(each.at) - start < 3:
            wrong.append(f"{name}: too few readings")
            continue
        slope, low, high = find_slope(each.at[start:], each.values["memory"][start:])
        hours = (each.at[-1] - each.at[start]) / 3600
        if low > MEMORY_SLOPE_MAX and low * hours > ARENA_MIB:
            wrong.append(f"{name}: its memory grows by {slope:.1f} MiB/h ({low:.1f} to {high:.1f})")
        for count, more_max in MORE_MAX.items():
            values = each.values[count]
            middle = len(values) * 2 // 3
            more = statistics.median(values[middle:]) - statistics.median(values[start:middle])
            if more > more_max:
                wrong.append(f"{name}: {more:.0f} more {count}")
    return wrong


def describe(readings: Readings) -> dict[str, str]:
    """Return the slope of the memory, and each value at the end of the warm-up and at the end."""
    start = _settled(readings)
    slope, low, high = find_slope(readings.at[start:], readings.values["memory"][start:])
    told = {"memory": f"{slope:.1f} MiB/h ({low:.1f} to {high:.1f})"}
    return told | {f"{name} from and to": f"{values[start]:.0f} {values[-1]:.0f}" for name, values in readings.values.items()}
