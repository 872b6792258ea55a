"""Closing periods without being asked, a set number of days after their end.

It does what an operator would do with `tollway periods close`: every period that is due is brought to closed, oldest first, and what
is not complete is left alone. Nothing is ever declared lost here: that is a person's word. While records are missing, the periods that
wait for them are counted in a metric and told of once an hour. Any number of control processes may do it at once, and be killed while
they do: closing is repeatable, and only who stored the end of it says so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control import periods
from tollway.control.periods import Blocked, describe
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.periods import NEVER, PeriodState
from tollway.storage import periods as stored
from tollway.storage.database import Database
from tollway.storage.periods import Period

ACTOR = "automatic"
"""Who closed a period, where otherwise an operator's key stands."""

PAGE = 1000
"""Periods that are looked at in one query."""

WARNING_US = 3_600_000_000
"""Between two warnings: it takes a person to bring back a gateway's disk, or to give it up."""

DAY_US = 86_400_000_000

Log = Callable[[Mapping[str, object]], None]


@dataclass(slots=True, eq=False)
class Closing(Collector):
    """`after_days`: how long a period has been over when it is closed. `overdue`: how many were due at the last look and could not be
    closed; None before the first. One per control process."""

    after_days: int
    overdue: int | None = None
    _warned_at: int = field(default=NEVER, init=False)

    def collect(self) -> Iterator[Metric]:
        """Yield how many periods are overdue."""
        if self.overdue is not None:
            text = "Billing periods that are due to be closed and cannot be, because records are missing."
            yield GaugeMetricFamily("tollway_control_periods_overdue", text, self.overdue)

    def warn(self, now: int, line: Mapping[str, object], log: Log) -> None:
        """Log `line`, at most once in WARNING_US."""
        if now - self._warned_at >= WARNING_US:
            self._warned_at = now
            log(line)


def close_due(database: Database, closing: Closing, *, now: Callable[[], int], is_stopping: Callable[[], bool], log: Log) -> None:
    """Close every period that is due, as far as it can be; `is_stopping` is asked between two steps of a few seconds at most.

    Raises Fault DATABASE_UNAVAILABLE; what was done until then stays done.
    """
    due_before = now() - closing.after_days * DAY_US
    blocked: dict[tuple[int, int], str] = {}
    waiting: set[str] = set()
    overdue, last_id = 0, ""
    first: dict[str, object] = {}
    while page := _list_due(database, due_before, last_id):
        last_id = page[-1].id
        for period in page:
            if is_stopping():
                return
            reason = "" if period.organization_id in waiting else _close(database, period, blocked, now, is_stopping, log)
            if reason is None:
                continue
            overdue += 1
            waiting.add(period.organization_id)  # whose later periods cannot be closed before this one
            if not first:
                first = {"period_id": period.id, "organization_id": period.organization_id, "detail": reason}
    closing.overdue = overdue
    if overdue:
        closing.warn(now(), {"event": "periods_overdue", "periods": overdue, **first}, log)


def _list_due(database: Database, due_before: int, last_id: str) -> list[Period]:
    with database.platform(write=False) as tx:
        return stored.list_unclosed(tx, due_before, after=last_id, limit=PAGE)


def _close(
    database: Database,
    period: Period,
    blocked: dict[tuple[int, int], str],
    now: Callable[[], int],
    is_stopping: Callable[[], bool],
    log: Log,
) -> str | None:
    """Close one period; returns why it could not be, or None. `blocked`: what keeps others of the same time from it; asked for only
    once, and without taking the writer's place."""
    time = (period.start_at, period.end_at)
    try:
        if period.state is PeriodState.OPEN:
            if time not in blocked:
                with database.platform(write=False) as tx:
                    blockers = periods.list_blockers(tx, period.id)
                blocked[time] = describe(blockers) if blockers else ""
            if blocked[time]:
                return blocked[time]
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
