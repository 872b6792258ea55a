"""A short form of the simulated year, on each database: two months of three customers. `python -m tests.simulation.year` is a whole one."""

from collections.abc import Callable
from pathlib import Path

from tests.simulation.year import describe, simulate
from tollway.storage.database import Database

_digests: set[str] = set()
"""Digests of all documents and balances, on each database that was tried in this process."""


def test_books_of_a_short_year_agree_with_what_was_sent_and_paid(
    database: Database, tmp_path: Path, tried: Callable[[str, int], None]
) -> None:
    report = simulate(database, tmp_path, seed=1, customers=3, months=2)
    assert not report.differences, describe(report)
    happened = {"documents, invoice", "documents, credit_note", "late requests", "grants, burn", "periods closed", "payments, payment"}
    assert happened <= report.counts.keys(), "a year in which nothing happens proves nothing"
    tried("documents of simulated years replayed from exports", report.counts["documents that the stand-alone verifier replayed"])
    _digests.add(report.digest)
    assert len(_digests) == 1, "a seed has one year, on whatever database"
