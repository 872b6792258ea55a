"""Months of events, on PostgreSQL: each lies in a partition of its own, which is made ahead of time and can be dropped as a whole.

Theory of operation. `usage_events` is partitioned by ranges of its ids. A request's id is `req_` and a UUIDv7, which begins with 48 bits of
milliseconds, so the ids of a month are those between two prefixes. Partitions for the months around now are made by every control
process, at its start and daily, under an advisory lock: whoever comes second finds them. What is in no month's partition (the clock of a
gateway that is years off) lies in the default partition; when its month is made, it is moved there.

A partition inherits the triggers that refuse UPDATE and DELETE. Those of statements (TRUNCATE, INSERT) are not inherited, so each gets
its own; the collector inserts into it directly where a batch lies in one month, as it nearly always does. The functions of the database
that make and drop partitions run with the rights of the tables' owner, whose role control does not have. Dropping a
partition is the one way in which an event ever leaves the table; what went is written down in `removed_months`, for verification.

SQLite has one table, and none of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.schema_money import removed_months, usage_events
from tollway.storage.schema_periods import billing_periods

PARTITION_LOCK = 0x6D6F6E746873
"""PostgreSQL advisory lock ("months" in ASCII)."""

MONTHS_BEHIND = 1
"""At the very first start a gateway may still hold requests of last month."""

MONTHS_AHEAD = 3
"""A control process that could not make partitions for a quarter of a year has been heard of before."""

DEFAULT_PARTITION = "usage_events_default"


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month of UTC, by number: twelve times the year, plus 0 to 11."""

    number: int

    @classmethod
    def of(cls, at: int) -> "Month":
        """The month of an instant, up to the year 9999."""
        moment = datetime.fromtimestamp(at // 1_000_000, UTC)
        return cls(moment.year * 12 + moment.month - 1)

    def __add__(self, months: int) -> "Month":
        """Return the month that is `months` later."""
        return Month(self.number + months)

    @property
    def start_at(self) -> int:
        """Its first instant."""
        return int(datetime(self.number // 12, self.number % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

    @property
    def first_id(self) -> str:
        """Return what no id of an earlier month reaches, and every one of this or a later month does, compared by bytes."""
        return f"req_{self.start_at // 1000:012x}"

    def holds(self, event_id: str) -> bool:
        """Return whether an event of this id lies in the month's partition."""
        return self.first_id <= event_id < (self + 1).first_id

    @property
    def partition(self) -> str:
        """The name of its table."""
        return f"usage_events_{self}"

    def __str__(self) -> str:
        """Such as 2026_11."""
        return f"{self.number // 12:04d}_{self.number % 12 + 1:02d}"


@dataclass(frozen=True, slots=True)
class RemovedMonth:
    """A month that is not kept any more: how many events it had, and when it went."""

    month: Month
    events: int
    removed_at: int


def lock_partitions(tx: PlatformTx) -> None:
    """Nobody else makes or drops partitions until this transaction ends."""
    tx.connection.execute(sa.select(sa.func.pg_advisory_xact_lock(PARTITION_LOCK)))


def list_months(tx: PlatformTx) -> list[Month]:
    """The months that have a partition, in order. None on SQLite."""
    if tx.connection.dialect.name == "sqlite":
        return []
    names = tx.connection.exec_driver_sql(
        "SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid WHERE inhparent = 'usage_events'::regclass"
    )
    parts = (name.removeprefix("usage_events_").split("_") for (name,) in names if name != DEFAULT_PARTITION)
    return sorted(Month(int(year) * 12 + int(month) - 1) for year, month in parts)


def find_partition(tx: PlatformTx, first_id: str, last_id: str) -> str | None:
    """The month's partition that takes all ids from `first_id` to `last_id`, and is one until this transaction ends; None if there is no
    one such."""
    try:
        month = Month.of(int(first_id[4:16], 16) * 1000)
    except (ValueError, OverflowError):
        return None  # not ids of ours: the table itself knows where they belong
    if not (month.holds(first_id) and month.holds(last_id)):
        return None
    # The lock that an INSERT into the whole table takes: with it no partition can be detached, and be a table that nobody reads.
    tx.connection.exec_driver_sql(f"LOCK TABLE ONLY {usage_events.name} IN ROW EXCLUSIVE MODE")
    is_partition = tx.connection.exec_driver_sql(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'usage_events'::regclass AND inhrelid = to_regclass(%s)", (month.partition,)
    )
    return month.partition if is_partition.scalar_one() else None


def make_partition(tx: PlatformTx, month: Month) -> None:
    """Make the partition of a month that has none, and move there what lies in the default partition: events that are only moved need not
    be in an open period."""
    tx.connection.exec_driver_sql("SELECT make_event_month(%s, %s, %s)", (str(month), month.first_id, (month + 1).first_id))


def has_open_periods(tx: PlatformTx, month: Month) -> bool:
    """Return whether an event of the month is booked in a period that is not closed, whose proofs are still to be made."""
    of_month = sa.table(month.partition, sa.column("organization_id"), sa.column("period_at"))
    booked = sa.select(of_month.c.organization_id, of_month.c.period_at).distinct().subquery()
    is_open = sa.select(billing_periods.c.id).where(
        billing_periods.c.organization_id == booked.c.organization_id,
        billing_periods.c.start_at == booked.c.period_at,
        billing_periods.c.state != "closed",
    )
    return tx.connection.execute(sa.select(sa.exists(is_open))).scalar_one()


def drop_partition(tx: PlatformTx, month: Month, now: int) -> RemovedMonth:
    """Remove a month's events permanently, and record that they were removed."""
    events = tx.connection.exec_driver_sql(f"SELECT count(*) FROM {month.partition}").scalar_one()
    tx.connection.execute(removed_months.insert().values(start_at=month.start_at, events=events, removed_at=now))
    tx.connection.exec_driver_sql("SELECT drop_event_month(%s, %s)", (str(month), month.start_at))
    return RemovedMonth(month, events, now)


def list_removed(tx: Transaction) -> Sequence[RemovedMonth]:
    """The months whose events were removed, in order."""
    query = sa.select(removed_months).order_by(removed_months.c.start_at)
    return [RemovedMonth(Month.of(row.start_at), row.events, row.removed_at) for row in tx.connection.execute(query)]
