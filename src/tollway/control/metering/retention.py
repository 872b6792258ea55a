"""Retention of events on PostgreSQL: partitions for the months ahead are made, months that are over for long enough are dropped.

A month goes as a whole, and only when it has been over for `retention_months` whole months and every period in which one of its events is
booked is closed: what is not closed still has to be proven. Rollups, ledger, the digests of closed periods and the archive stay.
"""

from collections.abc import Iterator

from tollway.storage import partitions
from tollway.storage.database import Database
from tollway.storage.partitions import MONTHS_AHEAD, MONTHS_BEHIND, Month


def keep_months(database: Database, *, now: int, retention_months: int) -> Iterator[dict[str, object]]:
    """Make what is missing and drop what may go; each as a transaction of its own. Yields a log line for each step.

    `retention_months`: 0 keeps everything. Raises Fault DATABASE_UNAVAILABLE; what was done until then stays done.
    """
    if database.is_sqlite:
        return
    current = Month.of(now)
    with database.platform() as tx:
        partitions.lock_partitions(tx)
        there = set(partitions.list_months(tx))
        gone = {removed.month for removed in partitions.list_removed(tx)}
    for number in range(-MONTHS_BEHIND, MONTHS_AHEAD + 1):
        month = current + number
        if month not in there and month not in gone:
            with database.platform() as tx:
                partitions.lock_partitions(tx)
                if month in partitions.list_months(tx):
                    continue
                partitions.make_partition(tx, month)
            yield {"event": "month_prepared", "month": str(month)}
    if not retention_months:
        return
    for month in sorted(there):
        if month + (1 + retention_months) > current:
            break
        with database.platform() as tx:
            partitions.lock_partitions(tx)
            if month not in partitions.list_months(tx):
                continue
            line: dict[str, object] = {"month": str(month)}
            if partitions.has_open_periods(tx, month):
                line |= {"event": "month_kept", "detail": "not all periods in which its events are booked are closed"}
            else:
                line |= {"event": "month_removed", "events": partitions.drop_partition(tx, month, now).events}
        yield line
