"""R27: a year of billing in virtual time, whose books are computed again by other code. What happens in it: `tests/simulation/year.py`."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reliability import records
from reliability.records import Line
from scripts import postgres
from tests.simulation.year import Report, describe, empty_database, simulate

ALSO = {
    "documents that the stand-alone verifier replayed": "documents replayed by the stand-alone verifier",
    "FOCUS files": "FOCUS files",
    "accounts": "accounts",
    "transactions": "transactions of the ledger",
    "requests": "requests",
}
"""Names of the counts in which no difference may be, and how the page calls them."""


def measure(customers: int, months: int, database: str, seed: int) -> list[Line]:
    """Live the year on a database of its own, and keep what it came to."""
    began = time.time()
    with _scratch() as directory:
        if database == "postgres":
            with postgres.running() as url:
                report = _run(url, directory, seed, customers, months)
        else:
            report = _run(None, directory, seed, customers, months)
    print(describe(report), flush=True)
    periods = report.counts.get("periods closed", 0)
    also = {text: report.counts.get(name, 0) for name, text in ALSO.items()}
    detail = {"customers": customers, "months": months, "digest": report.digest, "differences": report.differences[:20]}
    failures = min(len(report.differences), periods)
    return [
        records.record(
            "R27",
            case=database,
            n=periods,
            failures=failures,
            of="billing periods",
            began=began,
            seed=seed,
            also=also,
            detail=detail,
        )
    ]


def _run(url: str | None, directory: Path, seed: int, customers: int, months: int) -> Report:
    with empty_database(url, directory) as opened:
        return simulate(opened, directory, seed=seed, customers=customers, months=months)


@contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="tollway-year-", dir=memory if memory.is_dir() else None))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
