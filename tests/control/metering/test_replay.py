"""Replay: a database that was restored, however old, becomes what the archive says; and gateways take its snapshot."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.metering.test_collect import NOW, state, take
from tests.link.samples import EPOCH, NODE, OTHER_NODE, exchanges, frames
from tests.storage.databases import SqliteTemplate, fill
from tollway.control import publish
from tollway.control.metering.batches import BatchRefused
from tollway.control.metering.replay import VERSIONS_SKIPPED, replay
from tollway.control.verification.verify import verify
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive, ArchiveShort


@pytest.fixture
def restored(sqlite_template: SqliteTemplate, tmp_path: Path) -> Iterator[Database]:
    """Another database with the same tenants and prices, and no usage."""
    (tmp_path / "restored").mkdir()
    with sqlite_template.copied(tmp_path / "restored") as url:
        opened = Database.open(url)
        fill(opened)
        yield opened
        opened.close()


def live(database: Database, archive: Archive) -> None:
    """Three epochs of two nodes, in several batches."""
    body = frames(exchanges(range(8)))
    for start in range(0, len(body), 5):
        take(database, archive, body[start : start + 5], first_seq=start + 1)
    take(database, archive, frames(exchanges(range(8, 12)), epoch=EPOCH + 1), epoch=EPOCH + 1)
    take(database, archive, frames(exchanges(range(12, 15)), node_id=OTHER_NODE), node_id=OTHER_NODE)


def test_from_the_archive_alone_everything_is_as_it_was(database: Database, archive: Archive, restored: Database) -> None:
    live(database, archive)
    done = replay(restored, archive, NOW)
    assert (done.epochs, done.records, done.events, done.conflicts, done.quarantined) == (3, 30, 15, 0, 0)
    assert state(restored) == state(database)
    assert verify(restored, archive).differences == []


def test_only_what_the_backup_lacks_is_ingested_and_a_second_time_nothing(
    database: Database, archive: Archive, restored: Database, tmp_path: Path
) -> None:
    take(restored, Archive(tmp_path / "then"), frames(exchanges(range(3))))  # what the backup had
    live(database, archive)
    assert replay(restored, archive, NOW).events == 12
    assert replay(restored, archive, NOW).records == 0
    assert state(restored) == state(database)


def test_bytes_of_a_batch_that_was_never_ingested_whole_do_not_matter(database: Database, archive: Archive, restored: Database) -> None:
    live(database, archive)
    (_, _, size), *_ = (each for each in archive.list_epochs() if each[:2] == (NODE, EPOCH))
    archive.write(NODE, EPOCH, size, b"".join(frames(exchanges([99]))[:1])[:20])
    replay(restored, archive, NOW)
    assert state(restored) == state(database)


def test_verify_of_a_restored_database_counts_what_is_missing(
    database: Database, archive: Archive, restored: Database, tmp_path: Path
) -> None:
    take(restored, Archive(tmp_path / "then"), frames(exchanges(range(3))))  # what the backup had
    live(database, archive)
    report = verify(restored, archive)
    assert (report.is_right, report.differences, report.missing_epochs, report.missing_records) == (False, [], 3, 24)
    replay(restored, archive, NOW)
    assert verify(restored, archive).is_right


def test_a_damaged_archive_stops_there(database: Database, archive: Archive, restored: Database) -> None:
    live(database, archive)
    (_, _, size), *_ = (each for each in archive.list_epochs() if each[:2] == (NODE, EPOCH))
    archive.write(NODE, EPOCH, size // 2, b"\xff")
    with pytest.raises(BatchRefused, match="is damaged"):
        replay(restored, archive, NOW)


def test_an_archive_older_than_the_database_is_refused(database: Database, archive: Archive, tmp_path: Path) -> None:
    live(database, archive)
    older = Archive(tmp_path / "older")
    older.write(NODE, EPOCH, 0, b"".join(frames(exchanges([0]))))
    with pytest.raises(ArchiveShort):
        replay(database, older, NOW)


def test_gateways_that_know_more_than_the_backup_read_the_whole_snapshot(database: Database, archive: Archive) -> None:
    with database.platform(write=False) as tx:
        before = publish.find_head(tx)
    done = replay(database, archive, NOW)
    assert done.version == before + VERSIONS_SKIPPED
    with database.platform(write=False) as tx:
        for known in (before, before + 7):  # 7 changes are lost with the database
            assert publish.find_changes(tx, known, 100) is None
        assert publish.find_changes(tx, done.version, 100) == []
