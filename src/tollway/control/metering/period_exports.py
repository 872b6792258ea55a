"""Closed billing periods as Parquet, for warehouses: derived from the database, never the source of truth.

A billing period has the events that are booked in it, and is written once, after its close: it never changes. Before a manifest names the
file, its rows are held to the number and the amounts with which the period was closed, and to the revenue that the ledger has for it.
"""

from collections.abc import Callable, Iterator, Mapping

from tollway.control.money import periods
from tollway.control.money.serving_costs import list_ledger_revenue
from tollway.domain.money import format_amount
from tollway.domain.periods import Period
from tollway.domain.serving_costs import RevenueKind
from tollway.storage import periods as stored_periods
from tollway.storage import usage_hours
from tollway.storage.database import Database
from tollway.storage.parquet_files import UsageFiles, WrittenRows

WRITTEN_MAX = 200
"""Periods that one run writes: what an outage left is caught up by the runs after it."""

PAGE = 500
"""Closed periods that are read at once."""

CLOSE_US = 3_600_000_000
"""Longest time from the instant that a close records to its commit: a period that was closed so long before the last one may be new."""


def write_closed(database: Database, files: UsageFiles, now: int, is_over: Callable[[], bool]) -> Iterator[Mapping[str, object]]:
    """Write the billing periods that were closed since the first run and are not written. Yield a line of the log for each. One whose rows
    are not those with which it was closed is tried again at each run, and holds no other one up."""
    position = files.find_position()
    if position is None:
        files.put_position(now)
        return
    reached, held, after, count = position, [], (0, ""), 0
    while not is_over() and count < WRITTEN_MAX:
        with database.platform(write=False) as tx:
            page = stored_periods.list_closed_since(tx, position - CLOSE_US, after=after, limit=PAGE)
        for period in page:
            assert period.closed is not None, "they are closed"
            if is_over() or count >= WRITTEN_MAX:
                break
            if files.find_period_manifest(period.id) is None:
                count += 1
                line, is_written = _write_period(database, files, period, now)
                held += [] if is_written else [period.closed.closed_at]
                yield line
            reached = max(reached, period.closed.closed_at)
            after = (period.closed.closed_at, period.id)
        if len(page) < PAGE:
            break
    files.put_position(min([reached, *held]))


def _write_period(database: Database, files: UsageFiles, period: Period, now: int) -> tuple[Mapping[str, object], bool]:
    """Write a period. Return the line of the log, and whether that is all that can be done about it."""
    name = {"period_id": period.id, "organization_id": period.organization_id}
    with database.platform(write=False) as tx:
        if not periods.is_kept(tx, list(stored_periods.iterate_blocks(tx, period.id))):
            return {"event": "usage_period_not_kept", **name}, True
        revenue_pico = sum(each.amount_pico for each in list_ledger_revenue(tx, period) if each.kind is RevenueKind.USAGE)

        def check(written: WrittenRows) -> None:
            assert period.closed is not None, "only a closed period is written"
            closed_pico = sum(period.closed.amounts.values())
            found = (written.rows, sum(written.amounts.values()))
            if found != (period.closed.events, closed_pico) or revenue_pico != closed_pico:
                said = f"it was closed with {period.closed.events} events of {format_amount(closed_pico)}, the ledger has"
                raise PeriodDiffers(f"{said} {format_amount(revenue_pico)}, and {found[0]} events come to {format_amount(found[1])}")

        try:
            manifest = files.write_period(period, usage_hours.iterate_period_events(tx, period), check, now)
        except PeriodDiffers as error:
            return {"event": "usage_period_refused", **name, "detail": f"{error} {period.currency}"}, False
    return {"event": "usage_period_written", **name, "events": manifest.rows}, True


class PeriodDiffers(Exception):
    """The events of a closed period are not those with which it was closed. The text has the sums."""
