"""Periods that are closed without being asked: those that are due and complete, and no others; one warning an hour while they wait.

One contract, on SQLite and on PostgreSQL.
"""

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tests.control.metering.test_collect import take
from tests.control.money.test_periods import OCTOBER, SEPTEMBER, declare_lost, ended, period_of
from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, frames
from tests.patience import PATIENCE_SECONDS
from tollway.control.gateways import epochs
from tollway.control.money import periods
from tollway.control.money.automatic_closing import ACTOR, DAY_US, OVERDUE_US, WARNING_US, close_due, count_overdue
from tollway.control.verification.verify import verify
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.periods import Bounds, PeriodState
from tollway.domain.usage import Close, Record, Tick
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

AFTER_DAYS = 3
DUE = SEPTEMBER.end_at + AFTER_DAYS * DAY_US
OTHERS = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}


class Look:
    """A control process' runs of the job, at instants of the test's choice. `lines`: the lines that it logged."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.overdue: int | None = None
        self.lines: list[Mapping[str, object]] = []
        self.is_stopping = False

    def at(self, now: int) -> int | None:
        """Run the job; returns how many periods are overdue."""
        ticks = iter(range(now, now + 1_000_000))
        self.overdue = close_due(
            self.database,
            AFTER_DAYS,
            holder="control_test",
            now=lambda: next(ticks),
            is_stopping=lambda: self.is_stopping,
            log=self.lines.append,
        )
        return self.overdue

    @property
    def events(self) -> list[object]:
        return [line["event"] for line in self.lines]


def state(database: Database, month: Bounds = SEPTEMBER, organization_id: str = ORGANIZATION) -> PeriodState:
    return period_of(database, month.start_at, organization_id).state


def test_a_period_is_closed_so_many_days_after_its_end_and_not_before(database: Database, archive: Archive) -> None:
    records = [*ended(1, EPOCH), *ended(2, EPOCH + 1, **OTHERS), *ended(3, OCTOBER.start_at), Tick(at=OCTOBER.end_at)]
    take(database, archive, frames(records), now=DUE - 2)
    look = Look(database)
    assert look.at(DUE - 1) == 0
    assert state(database) is PeriodState.OPEN and look.lines == []
    assert look.at(DUE) == 0
    assert state(database) is state(database, organization_id=OTHER_ORGANIZATION) is PeriodState.CLOSED
    assert state(database, OCTOBER) is PeriodState.OPEN, "over, perhaps, and not yet due"
    assert look.events == ["period_closed"] * 2
    closing = period_of(database, SEPTEMBER.start_at).closing
    assert closing is not None and closing.closed_by == ACTOR
    assert look.at(DUE + DAY_US) == 0 and len(look.lines) == 2
    assert verify(database, archive).differences == []


def test_several_months_are_closed_in_their_order(database: Database, archive: Archive) -> None:
    take(database, archive, frames([*ended(1, OCTOBER.start_at), *ended(2, EPOCH), Close(at=OCTOBER.start_at + 5)]))
    look = Look(database)
    assert look.at(OCTOBER.end_at + AFTER_DAYS * DAY_US) == 0
    assert [line["period_id"] for line in look.lines] == [period_of(database, month.start_at).id for month in (SEPTEMBER, OCTOBER)]


def test_missing_records_are_waited_for_and_told_of_once_an_hour(database: Database, archive: Archive) -> None:
    body = frames([*ended(1, EPOCH), *ended(2, EPOCH + 1, **OTHERS), *ended(3, OCTOBER.start_at), Tick(at=SEPTEMBER.end_at)])
    take(database, archive, body[:4])
    look = Look(database)
    assert look.at(DUE) == 2
    (line,) = look.lines
    assert (line["event"], line["periods"]) == ("periods_overdue", 2)
    assert NODE in str(line["detail"]) and "Records are missing" in str(line["detail"])
    with database.platform(write=False) as tx:
        assert count_overdue(tx, AFTER_DAYS, DUE + OVERDUE_US - 1) == 0, "the job may not have run since"
        assert count_overdue(tx, AFTER_DAYS, DUE + OVERDUE_US) == 2
    other = Look(database)
    other.at(DUE + WARNING_US - 1_000_000)
    look.at(DUE + WARNING_US - 1_000_000)
    assert len(look.lines) == 1 and other.lines == [], "once an hour, whichever process looks"
    look.at(DUE + WARNING_US + 1000)
    other.at(DUE + WARNING_US + 2000)
    assert other.lines == []
    assert look.events == ["periods_overdue"] * 2
    with database.platform(write=False) as tx:
        assert epochs.count_lost(tx) == 0, "that is for a person to say"
    assert state(database) is PeriodState.OPEN
    take(database, archive, body[4:], first_seq=5)
    assert look.at(DUE + 2 * WARNING_US) == 0
    assert look.events[2:] == ["period_closed"] * 2
    assert verify(database, archive).differences == []


def test_what_a_person_declared_lost_is_not_waited_for(database: Database, archive: Archive) -> None:
    take(database, archive, frames(ended(1, EPOCH)))
    look = Look(database)
    assert look.at(DUE) == 1
    with database.platform() as tx:
        declare_lost(tx, now=DUE)
    assert look.at(DUE + 1) == 0 and state(database) is PeriodState.CLOSED


def test_a_crash_or_a_stop_in_the_middle_is_gone_on_with(database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periods, "BLOCK_LEAVES", 4)
    monkeypatch.setattr(periods, "BLOCKS_PER_CALL", 2)
    records: list[Record] = []
    for number in range(1, 19):
        records += ended(number, EPOCH + number)
    take(database, archive, frames([*records, Close(at=EPOCH + 100)]))
    look, finish = Look(database), periods.close

    def close_once(*arguments: Any, **named: Any) -> Any:
        look.is_stopping = True
        return finish(*arguments, **named)

    monkeypatch.setattr(periods, "close", close_once)
    look.at(DUE)
    assert state(database) is PeriodState.CLOSING and look.events == []

    def die(*arguments: Any, **named: Any) -> Any:
        finish(*arguments, **named)
        raise KeyboardInterrupt

    look.is_stopping = False
    monkeypatch.setattr(periods, "close", die)
    with pytest.raises(KeyboardInterrupt):
        look.at(DUE)
    assert state(database) is PeriodState.CLOSING
    monkeypatch.setattr(periods, "close", finish)
    late = [*ended(50, EPOCH + 200), *ended(51, EPOCH + 201, **OTHERS)]
    take(database, archive, frames(late, node_id=OTHER_NODE), node_id=OTHER_NODE, now=DUE)
    assert Look(database).at(DUE) == 1, "of the other organization; what is frozen waits for nobody"
    assert state(database) is PeriodState.CLOSED
    assert state(database, organization_id=OTHER_ORGANIZATION) is PeriodState.OPEN
    assert verify(database, archive).differences == []


def test_two_processes_at_once_close_every_period_once(
    database_url: str, database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(periods, "BLOCK_LEAVES", 2)
    monkeypatch.setattr(periods, "BLOCKS_PER_CALL", 1)
    records: list[Record] = []
    for number in range(1, 40):
        records += ended(number, EPOCH + number, **(OTHERS if number % 3 else {}))
    take(database, archive, frames([*records, Close(at=EPOCH + 100)]))
    second = Database.open(database_url)
    looks = [Look(database), Look(second)]
    together, faults = threading.Barrier(2), list[BaseException]()

    def run(look: Look, now: int) -> None:
        try:
            together.wait(PATIENCE_SECONDS)
            look.at(now)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(look, DUE + 1_000_000 * number)) for number, look in enumerate(looks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    second.close()
    assert faults == []
    assert [look.overdue for look in looks] == [0, 0]
    assert sorted(str(line["organization_id"]) for look in looks for line in look.lines) == sorted([ORGANIZATION, OTHER_ORGANIZATION])
    assert state(database) is state(database, organization_id=OTHER_ORGANIZATION) is PeriodState.CLOSED
    assert verify(database, archive).differences == []


def test_what_one_period_breaks_on_keeps_no_other_open(database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    take(database, archive, frames([*ended(1, EPOCH), *ended(2, EPOCH + 1, **OTHERS), Close(at=EPOCH + 5)]))
    finish, broken = periods.close, period_of(database, SEPTEMBER.start_at).id

    def close_or_break(at: Database, period_id: str, **named: Any) -> Any:
        if period_id == broken:
            raise ZeroDivisionError
        return finish(at, period_id, **named)

    monkeypatch.setattr(periods, "close", close_or_break)
    look = Look(database)
    assert look.at(DUE) == 1
    assert state(database, organization_id=OTHER_ORGANIZATION) is PeriodState.CLOSED
    assert [line.get("detail") for line in look.lines if line["event"] == "periods_overdue"] == ["defect: ZeroDivisionError"]


def test_a_database_that_is_away_is_not_taken_for_nothing_to_do(
    database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 5)]))

    def away(*arguments: Any, **named: Any) -> Any:
        raise Fault(DATABASE_UNAVAILABLE)

    monkeypatch.setattr(periods, "close", away)
    look = Look(database)
    with pytest.raises(Fault, match="database_unavailable"):
        look.at(DUE)
    assert look.overdue is None and look.lines == []
