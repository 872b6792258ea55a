"""Months of events on PostgreSQL: made ahead, dropped as a whole, never too early, and never without saying so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.control.metering.test_collect import take
from tests.link.samples import EPOCH, ORGANIZATION, admit, final, frames
from tests.storage.databases import PostgresTemplate, become_owner
from tollway.control.metering.collect import Ingested
from tollway.control.metering.retention import keep_months
from tollway.control.money import periods
from tollway.control.money.exports import export
from tollway.control.verification.verify import verify
from tollway.domain.faults import Fault
from tollway.domain.ids import REQUEST, new_id
from tollway.domain.periods import month_of, period_id
from tollway.domain.usage import Admit, Close, Record
from tollway.storage import partitions
from tollway.storage import schema_money as money
from tollway.storage.database import Database
from tollway.storage.partitions import MONTHS_AHEAD, MONTHS_BEHIND, Month
from tollway.storage.record_archive import Archive

DAY = 86_400_000_000
THIS = Month.of(EPOCH)

pytestmark = pytest.mark.postgres


@pytest.fixture
def database_url(postgres_template: PostgresTemplate, tmp_path: Path) -> Iterator[str]:
    with postgres_template.copied(tmp_path) as url:
        yield url


def request(at: int, number: int) -> list[Record]:
    """A request admitted at an instant, with an id as gateways make them."""
    of = admit(number, request_id=new_id(REQUEST, at, number), admitted_at=at)
    return [of, final(of)]


def keep(database: Database, months: int, now: int = EPOCH) -> list[dict[str, object]]:
    return list(keep_months(database, now=now, retention_months=months))


def rows_of(database: Database, table: str) -> int:
    with database.platform(write=False) as tx:
        found: int = tx.connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
        return found


def close_periods(database: Database) -> None:
    """As if every period had been closed: what closing takes is proven elsewhere."""
    with database.platform() as tx:
        frozen = "frozen_at = 1, closed_by = 'key_1', watermark_digest = '', report = '{\"epochs\": []}'"
        tx.connection.execute(sa.text(f"UPDATE billing_periods SET state = 'closing', {frozen}"))
        closed = (
            "closed_at = 1, events = 0, merkle_root = '', adjustments = 0, adjustments_digest = '', amounts = '{}', conditions_digest = '',"
            " period_hash = ''"
        )
        tx.connection.execute(sa.text(f"UPDATE billing_periods SET state = 'closed', {closed}"))


class TestMadeAhead:
    def test_each_month_once_and_events_lie_in_theirs(self, database: Database, archive: Archive) -> None:
        made = keep(database, 0)
        assert [line["month"] for line in made] == [str(THIS + number) for number in range(-MONTHS_BEHIND, MONTHS_AHEAD + 1)]
        assert keep(database, 0) == []
        ahead = (THIS + 1).start_at
        take(database, archive, frames([*request(EPOCH, 1), *request(ahead - 1, 2), *request(ahead, 3), *request(ahead + 1000, 4)]))
        assert [rows_of(database, month.partition) for month in (THIS, THIS + 1)] == [2, 2]
        assert rows_of(database, partitions.DEFAULT_PARTITION) == 0
        assert verify(database, archive).differences == []

    def test_what_came_before_its_month_was_made_is_moved_there(self, database: Database, archive: Archive) -> None:
        body = frames([*request(EPOCH, 1), *request(EPOCH + 1, 2)])
        take(database, archive, body)
        assert rows_of(database, partitions.DEFAULT_PARTITION) == 2
        close_periods(database)
        keep(database, 0)
        assert rows_of(database, partitions.DEFAULT_PARTITION) == 0
        assert rows_of(database, THIS.partition) == 2
        again = frames([*request(EPOCH, 1), *request(EPOCH, 3)], epoch=EPOCH + 1)
        assert take(database, archive, again, epoch=EPOCH + 1) == Ingested(5, events=1)

    def test_nothing_gets_into_one_of_them_past_a_closed_period(self, database: Database, archive: Archive) -> None:
        keep(database, 0)
        take(database, archive, frames(request(EPOCH, 1)))
        assert rows_of(database, THIS.partition) == 1
        close_periods(database)
        names = [column.name for column in money.usage_events.c]
        chosen = ["event_id || '0'" if name == "event_id" else name for name in names]
        copied = f"INSERT INTO {THIS.partition} ({', '.join(names)}) SELECT {', '.join(chosen)} FROM usage_events"
        with pytest.raises(sa.exc.DBAPIError, match="not open"), database.platform() as tx:
            tx.connection.execute(sa.text(copied))

    def test_one_that_was_detached_by_hand_accepts_no_event(self, database: Database, archive: Archive) -> None:
        keep(database, 0)
        with database.platform() as tx:
            become_owner(tx)
            tx.connection.execute(sa.text(f"ALTER TABLE usage_events DETACH PARTITION {THIS.partition}"))
        take(database, archive, frames(request(EPOCH, 1)))
        assert rows_of(database, THIS.partition) == 0
        assert rows_of(database, "usage_events") == 1

    @pytest.mark.parametrize("table", ["usage_events", THIS.partition, partitions.DEFAULT_PARTITION])
    def test_history_refuses_to_be_rewritten_in_each_of_them(self, database: Database, archive: Archive, table: str) -> None:
        at = EPOCH if table != partitions.DEFAULT_PARTITION else (THIS + 100).start_at
        take(database, archive, frames(request(EPOCH, 1)))  # to be moved: the default partition is taken off and put back
        keep(database, 0)
        take(database, archive, frames(request(at, 2), epoch=EPOCH + 1), epoch=EPOCH + 1)
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET output = 0", f"TRUNCATE {table}"):
            with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.platform() as tx:
                become_owner(tx)
                tx.connection.execute(sa.text(statement))
        assert rows_of(database, table) > 0


class TestRemoved:
    NUMBERS = range(-5, 1)
    AFTER = (THIS + 1).start_at
    BEGUN = (THIS + NUMBERS[0]).start_at
    """Epoch of the run that served the requests: nothing is admitted before its run began."""

    def used(self, database: Database, archive: Archive) -> None:
        """A request in each of six months, the last of which is now."""
        for number in self.NUMBERS:
            keep(database, 0, (THIS + number).start_at)
        records: list[Record] = []
        for number in self.NUMBERS:
            records += request((THIS + number).start_at + DAY, number + 100)
        take(database, archive, frames([*records, Close(at=self.AFTER)], epoch=self.BEGUN), epoch=self.BEGUN)

    def close_past(self, database: Database) -> None:
        """Close the months before this one, as an operator does."""
        for number in self.NUMBERS[:-1]:
            start_at = (THIS + number).start_at
            periods.close(database, period_id(ORGANIZATION, start_at), actor="key_1", now=self.AFTER)

    def test_months_that_are_over_for_long_enough_and_no_other(self, database: Database, archive: Archive) -> None:
        self.used(database, archive)
        close_periods(database)
        lines = keep(database, 2, (THIS + 1).start_at - 1)
        assert [(line["event"], line["month"]) for line in lines if line["event"] != "month_prepared"] == [
            ("month_removed", str(THIS + number)) for number in (-6, -5, -4, -3)
        ]
        assert rows_of(database, "usage_events") == 3
        assert keep(database, 2, (THIS + 1).start_at - 1) == []
        with database.platform(write=False) as tx:
            assert tx.connection.execute(sa.select(sa.func.sum(money.usage_rollups.c.requests))).scalar_one() == 3 * 6

    def test_nothing_unless_it_was_asked_for(self, database: Database, archive: Archive) -> None:
        self.used(database, archive)
        close_periods(database)
        assert not [line for line in keep(database, 0) if line["event"] == "month_removed"]
        assert rows_of(database, "usage_events") == 6

    def test_no_month_before_its_periods_are_closed(self, database: Database, archive: Archive) -> None:
        self.used(database, archive)
        lines = keep(database, 2, (THIS + 1).start_at - 1)
        assert {line["event"] for line in lines if line["month"] in [str(THIS + number) for number in (-5, -4, -3)]} == {"month_kept"}
        assert rows_of(database, "usage_events") == 6

    def test_verify_names_them_and_finds_nothing_missing(self, database: Database, archive: Archive) -> None:
        self.used(database, archive)
        self.close_past(database)
        with database.platform() as tx:
            for month in (THIS + -5, THIS + -4):
                partitions.drop_partition(tx, month, self.AFTER)
        report = verify(database, archive)
        assert report.differences == []
        assert report.removed == {str(THIS + -5): 1, str(THIS + -4): 1}
        assert report.events == 6

    def test_verify_finds_what_went_beside_them(self, database: Database, archive: Archive) -> None:
        self.used(database, archive)
        self.close_past(database)
        with database.platform() as tx:
            partitions.drop_partition(tx, THIS + -5, self.AFTER)
            become_owner(tx)
            tx.connection.execute(sa.text(f"ALTER TABLE usage_events DETACH PARTITION {(THIS + -4).partition}"))
            tx.connection.execute(sa.text("ALTER TABLE removed_months DISABLE TRIGGER USER"))
            tx.connection.execute(sa.text("UPDATE removed_months SET events = 2"))
        assert {difference.table for difference in verify(database, archive).differences} >= {"usage_events", "removed_months"}


def test_a_closed_period_keeps_its_root_but_can_no_longer_be_exported_or_proven(database: Database, archive: Archive) -> None:
    keep(database, 0)
    kept = request(EPOCH, 1)
    take(database, archive, frames([*kept, *request(EPOCH + 1, 2), Close(at=EPOCH + DAY)]))
    month = month_of(EPOCH, "UTC")
    closing = period_id(ORGANIZATION, month.start_at)
    root = periods.close(database, closing, actor="key_1", now=month.end_at).closed
    keep(database, 1, (THIS + 3).start_at)
    assert rows_of(database, "usage_events") == 0
    with database.platform(write=False) as tx:
        assert periods.get_period(tx, closing).closed == root
    assert isinstance(kept[0], Admit)
    with pytest.raises(Fault, match="conflict"), database.tenant(ORGANIZATION, write=False) as tx:
        periods.prove(tx, closing, kept[0].request_id)
    with pytest.raises(Fault, match="conflict"):
        export(lambda: database.tenant(ORGANIZATION, write=False), archive, closing, EPOCH)
    assert verify(database, archive).differences == []
