"""Hours of usage and closed periods as Parquet: an hour is written once it is closed, and again as a whole when an event comes later; a
period once. DuckDB reads them."""

import hashlib
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.control.metering.test_collect import balances, take
from tests.control.money.test_periods import SEPTEMBER, close
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_ORGANIZATION, OTHER_PRICE, admit, final, frames
from tollway.cli.operation import control
from tollway.control.metering import period_exports, usage_exports
from tollway.domain import ids
from tollway.domain.usage import Record, Tick
from tollway.settings import ControlSection, OperatorError
from tollway.storage import parquet_files
from tollway.storage import periods as stored_periods
from tollway.storage.database import Database
from tollway.storage.parquet_files import UsageFiles
from tollway.storage.record_archive import Archive
from tollway.storage.usage_hours import HOUR_US

HOUR = EPOCH - EPOCH % HOUR_US


def query(files: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask DuckDB about all hours, as the page has it."""
    page = Path(__file__).parents[3].joinpath("docs", "usage-files.md").read_text()
    named = page[page.index("SET VARIABLE") : page.index(";", page.index("SET VARIABLE"))]
    with duckdb.connect() as connection:
        connection.execute(named.replace("control/usage/hour=2026-11-30T*", f"{files}/hour=*"))
        return connection.execute(sql.replace("USAGE", "read_parquet(getvariable('files'))")).fetchall()


def write(database: Database, files: UsageFiles, now: int) -> list[tuple[object, object, object]]:
    """Run the job; return hour, events and whether it was replaced of each line."""
    lines = list(usage_exports.write_due(database, files, now, lambda: False))
    return [(line["hour"], line["events"], line["is_replaced"]) for line in lines]


def name(number: int) -> str:
    """The id of a request that is admitted in HOUR."""
    return ids.new_id(ids.REQUEST, EPOCH + number * 1000, number)


def exchange(number: int, **changes: Any) -> list[Record]:
    of = admit(number, request_id=name(number), **changes)
    return [of, final(of)]


def test_an_hour_is_written_when_it_is_closed_and_again_when_an_event_comes_later(
    database: Database, archive: Archive, tmp_path: Path
) -> None:
    directory = tmp_path / "usage"
    files, now = UsageFiles(directory), HOUR + HOUR_US + 1
    other = {"organization_id": OTHER_ORGANIZATION, "price_version": OTHER_PRICE.id}
    first = frames([*exchange(1), *exchange(2, **other)])
    take(database, archive, first)
    assert write(database, files, now) == [], "its gateway may have more of that hour"
    ticked = frames([*exchange(1), *exchange(2, **other), Tick(at=HOUR + 2 * HOUR_US), *exchange(3)])
    take(database, archive, ticked[len(first) : -2], first_seq=len(first) + 1)
    ((hour, events, is_replaced),) = write(database, files, now)
    assert (events, is_replaced) == (2, False) and str(hour).endswith(":00:00Z")
    assert write(database, files, now) == [], "what is written and whole is left alone"
    before = files.find_manifest(HOUR)
    take(database, archive, ticked[-2:], first_seq=len(ticked) - 1)
    assert write(database, files, now) == [(hour, 3, True)]
    manifest = files.find_manifest(HOUR)
    assert before is not None and manifest is not None and manifest.file != before.file
    (folder,) = (each for each in directory.iterdir() if each.is_dir())
    names = {"manifest.json", manifest.file}
    assert {each.name for each in folder.iterdir()} == {*names, before.file}, "the file before stays for whoever has read its manifest"
    assert query(directory, "SELECT count(*) FROM USAGE") == [(3,)]
    folder.joinpath("1.unfinished").touch()  # a process that was killed left this
    assert write(database, files, now) == [] and {each.name for each in folder.iterdir()} == names
    content = (folder / manifest.file).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest(), manifest.rows) == (manifest.bytes, manifest.sha256, 3)
    assert query(directory, "SELECT event_id FROM USAGE ORDER BY 1") == [(name(number),) for number in (1, 2, 3)]
    columns = [row[0] for row in query(directory, "DESCRIBE SELECT * FROM USAGE") if str(row[0]).endswith("_pico")]
    total = " + ".join(f"coalesce({each}, 0)::HUGEINT" for each in columns)
    by_owner = dict(query(directory, f"SELECT organization_id, sum({total}) FROM USAGE GROUP BY 1"))
    assert by_owner[ORGANIZATION] == balances(database)[f"{ORGANIZATION}/unbilled/EUR"], "the same as the ledger"
    assert by_owner[OTHER_ORGANIZATION] == balances(database)[f"{OTHER_ORGANIZATION}/unbilled/USD"]
    assert manifest.amount_pico == {"EUR": str(by_owner[ORGANIZATION]), "USD": str(by_owner[OTHER_ORGANIZATION])}
    kinds = dict(row[:2] for row in query(directory, "DESCRIBE SELECT ended_at, input, test FROM USAGE"))
    assert kinds == {"ended_at": "TIMESTAMP WITH TIME ZONE", "input": "BIGINT", "test": "BOOLEAN"}


def test_hours_that_an_outage_left_are_caught_up(database: Database, archive: Archive, tmp_path: Path) -> None:
    files = UsageFiles(tmp_path / "usage")
    take(database, archive, frames([*exchange(1), Tick(at=HOUR + 200 * HOUR_US)]))
    assert len(write(database, files, HOUR + HOUR_US)) == 1
    later = HOUR + 100 * HOUR_US
    written = write(database, files, later)
    assert len(written) == 99 and {events for _, events, _ in written} == {0}
    assert write(database, files, later) == []
    assert files.list_hours() == [HOUR + number * HOUR_US for number in range(100)]


def test_no_hour_is_lost_while_the_first_one_cannot_be_written(database: Database, archive: Archive, tmp_path: Path) -> None:
    files = UsageFiles(tmp_path / "usage")
    first = frames([*exchange(1)])
    take(database, archive, first)
    assert write(database, files, HOUR + HOUR_US) == [] and files.find_start() == HOUR, "its gateway may have more of that hour"
    assert write(database, files, HOUR + 3 * HOUR_US) == []
    take(database, archive, frames([*exchange(1), Tick(at=HOUR + 4 * HOUR_US)])[len(first) :], first_seq=len(first) + 1)
    assert [events for _, events, _ in write(database, files, HOUR + 3 * HOUR_US)] == [1, 0, 0]
    assert write(database, files, HOUR + 3 * HOUR_US) == [] and files.find_start() is None


def write_periods(database: Database, files: UsageFiles, now: int) -> list[tuple[object, object]]:
    """Run the job; return event and number of events of each line."""
    return [(line["event"], line.get("events")) for line in period_exports.write_closed(database, files, now, lambda: False)]


def test_a_closed_period_is_written_once_with_the_digests_of_its_close_and_comes_to_what_the_ledger_has(
    database: Database, archive: Archive, tmp_path: Path
) -> None:
    directory, now = tmp_path / "usage", SEPTEMBER.end_at
    files = UsageFiles(directory)
    assert write_periods(database, files, now) == [] and files.find_position() == now, "what was closed before is not written"
    other = {"organization_id": OTHER_ORGANIZATION, "price_version": OTHER_PRICE.id}
    take(database, archive, frames([*exchange(1), *exchange(2), *exchange(3, **other), Tick(at=now)]))
    assert write_periods(database, files, now) == [], "it is open"
    for owner in (ORGANIZATION, OTHER_ORGANIZATION):
        close(database, SEPTEMBER.start_at, owner)
    assert sorted(write_periods(database, files, now)) == [("usage_period_written", 1), ("usage_period_written", 2)]
    assert write_periods(database, files, now) == []
    for owner, currency, rows in ((ORGANIZATION, "EUR", 2), (OTHER_ORGANIZATION, "USD", 1)):
        with database.platform(write=False) as tx:
            period = stored_periods.find_period_at(tx, owner, SEPTEMBER.start_at)
        assert period is not None and period.closed is not None and period.closed.period_hash is not None
        manifest = files.find_period_manifest(period.id)
        assert manifest is not None
        content = directory.joinpath(f"period={period.id}", manifest.file).read_bytes()
        assert (manifest.bytes, manifest.sha256, manifest.rows) == (len(content), hashlib.sha256(content).hexdigest(), rows)
        assert (manifest.merkle_root, manifest.period_hash) == (period.closed.merkle_root.hex(), period.closed.period_hash.hex())
        assert {name: int(pico) for name, pico in manifest.amount_pico.items()} == {k: v for k, v in period.closed.amounts.items() if v}
        with duckdb.connect() as connection:
            found = connection.read_parquet(f"{directory}/period={period.id}/{manifest.file}")
            columns = " + ".join(f"coalesce({each}, 0)::HUGEINT" for each in found.columns if each.endswith("_pico"))
            counted = connection.sql(f"SELECT count(*), sum({columns}), min(organization_id), max(organization_id) FROM found").fetchall()
        assert counted == [(rows, balances(database)[f"{owner}/unbilled/{currency}"], owner, owner)]


def test_a_period_that_cannot_be_written_is_tried_again_and_holds_no_other_one_up(
    database: Database, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, now = UsageFiles(tmp_path / "usage"), SEPTEMBER.end_at
    files.put_position(now)
    other = {"organization_id": OTHER_ORGANIZATION, "price_version": OTHER_PRICE.id}
    take(database, archive, frames([*exchange(1), *exchange(2, **other), Tick(at=now)]))
    for owner in (ORGANIZATION, OTHER_ORGANIZATION):
        close(database, SEPTEMBER.start_at, owner)
    with monkeypatch.context() as changed:
        right = period_exports.list_ledger_revenue
        changed.setattr(
            period_exports, "list_ledger_revenue", lambda tx, each: right(tx, each) if each.organization_id == ORGANIZATION else []
        )
        assert sorted(write_periods(database, files, now)) == [("usage_period_refused", None), ("usage_period_written", 1)]
    assert write_periods(database, files, now + 1) == [("usage_period_written", 1)]
    assert write_periods(database, files, now + 2) == []


def test_without_pyarrow_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    assert control._usage_files(tmp_path, ControlSection()) is None
    assert control._usage_files(tmp_path, ControlSection(usage_parquet=True)) is not None
    monkeypatch.setattr(parquet_files.importlib, "import_module", missing)
    with pytest.raises(OperatorError, match=r"pip install tollway\[parquet\]"):
        control._usage_files(tmp_path, ControlSection(usage_parquet=True))
