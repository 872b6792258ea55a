"""Closing periods without being asked, a set number of days after their end.

It does what an operator would do with `tollway periods close`: every period that is due is brought to closed, oldest first, and what
is not complete is left alone. Nothing is ever declared lost here: that is a person's word. While records are missing, the periods that
wait for them are counted in a metric and logged once an hour, by one process. It is a job that one control process does at a time; two at
once, or a kill in the middle, do no harm: closing is repeatable, and only the process that stored the end of it logs it.
"""

from collections.abc import Callable, Mapping

from tollway.control.gateways import epochs
from tollway.control.gateways.epochs import Blocker
from tollway.control.money import periods
from tollway.control.money.periods import Blocked, describe
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.periods import Period, PeriodState
from tollway.storage import jobs
from tollway.storage import periods as stored
from tollway.storage.database import Database, PlatformTx

ACTOR = "automatic"
"""Name of the closer in the record of a period, in the place of an operator's key id."""

PAGE = 1000
"""Periods that are looked at in one query."""

WARNING_US = 3_600_000_000
"""Length of the periods of the clock in which overdue periods are logged once: bringing back a gateway's disk takes a person."""

WARNING = "periods_overdue_warning"
"""Name under which `storage.jobs` records the hour of the latest warning."""

OVERDUE_US = 600_000_000
"""A period that has been due for so long counts as overdue: by then two runs of the job should have closed it."""

DAY_US = 86_400_000_000

Log = Callable[[Mapping[str, object]], None]


def close_due(
    database: Database,
    after_days: int,
    *,
    holder: str,
    now: Callable[[], int],
    is_stopping: Callable[[], bool],
    log: Log,
) -> int | None:
    """Close every period that is due, as far as it can be; `is_stopping` is asked between two steps of a few seconds at most.

    `after_days`: a period is due so many days after its end. `holder`: this control process, for the mark that a warning was logged.
    Returns how many periods are due and could not be closed, or None if it was stopped. Raises Fault DATABASE_UNAVAILABLE; what was done
    until then stays done.
    """
    due_before = now() - after_days * DAY_US
    blocked: dict[tuple[int, int], list[Blocker]] = {}
    waiting: set[str] = set()
    overdue, last_id = 0, ""
    first: dict[str, object] = {}
    while page := _list_due(database, due_before, last_id):
        last_id = page[-1].id
        for period in page:
            if is_stopping():
                return None
            reason = "" if period.organization_id in waiting else _close(database, period, blocked, now, is_stopping, log)
            if reason is None:
                continue
            overdue += 1
            waiting.add(period.organization_id)  # whose later periods cannot be closed before this one
            if not first:
                first = {"period_id": period.id, "organization_id": period.organization_id, "detail": reason}
    if overdue and _is_first_warning(database, holder, now()):
        log({"event": "periods_overdue", "periods": overdue, **first})
    return overdue


def count_overdue(tx: PlatformTx, after_days: int, now: int) -> int:
    """Return how many periods have been due for OVERDUE_US and are not closed: the same number in every control process."""
    return stored.count_unclosed(tx, now - after_days * DAY_US - OVERDUE_US)


def _is_first_warning(database: Database, holder: str, now: int) -> bool:
    """Return whether no process has warned in this hour, and record that this one does."""
    hour_at = now - now % WARNING_US
    with database.platform() as tx:
        if not jobs.take_lease(tx, WARNING, holder, period_at=hour_at, now=now, until_at=now):
            return False
        jobs.finish(tx, WARNING, holder, period_at=hour_at, now=now)
        return True


def _list_due(database: Database, due_before: int, last_id: str) -> list[Period]:
    with database.platform(write=False) as tx:
        return stored.list_unclosed(tx, due_before, after=last_id, limit=PAGE)


def _close(
    database: Database,
    period: Period,
    blocked: dict[tuple[int, int], list[Blocker]],
    now: Callable[[], int],
    is_stopping: Callable[[], bool],
    log: Log,
) -> str | None:
    """Close one period; returns why it could not be, or None. `blocked`: records that are missing of the same time, which keep the
    periods of everybody open; read once, and without taking the writer's place."""
    time = (period.start_at, period.end_at)
    try:
        if period.state is PeriodState.OPEN:
            with database.platform(write=False) as tx:
                if time not in blocked:
                    blocked[time] = epochs.list_blockers(tx, *time)
                blockers = blocked[time] or periods.list_quarantine_blockers(tx, period)
            if blockers:
                return describe(blockers)
        while period.state is not PeriodState.CLOSED:
            if is_stopping():
                return None
            at = now()
            period = periods.close(database, period.id, actor=ACTOR, now=at)
            if period.closed is not None and period.closed.closed_at == at:
                line = {"event": "period_closed", "period_id": period.id, "organization_id": period.organization_id, "key_id": ACTOR}
                log(line)
    except Blocked as found:
        return str(found)
    except Fault as fault:
        if fault.kind is DATABASE_UNAVAILABLE:
            raise
        return fault.message
    except Exception as error:  # a defect in one organization's period must not keep those of all others open
        return f"defect: {type(error).__name__}"
    return None
