"""Billing periods: proven complete before they close, never changed after, and nothing lost between them.

One contract, on SQLite and on PostgreSQL.
"""

import secrets
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tests.control.metering.test_collect import balances, take
from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, admit, final, frames
from tests.merkle_paths import root_from
from tests.patience import PATIENCE_SECONDS
from tests.storage.databases import become_owner, fill
from tollway.control.approvals import SAME_ORIGIN
from tollway.control.gateways import epochs, losses
from tollway.control.metering.collect import Gap
from tollway.control.money import periods
from tollway.control.money.periods import Blocked
from tollway.control.verification.verify import verify
from tollway.domain import ids
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.epochs import Lost, LostRequest, LostRequestState
from tollway.domain.faults import Fault
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.nodes import RegisteredNode
from tollway.domain.pages import PageWindow
from tollway.domain.periods import Calendar, Period, PeriodState, month_of, period_id
from tollway.domain.proofs import EMPTY, encode_leaf, hash_leaf
from tollway.domain.usage import Close, Record, Tick
from tollway.storage import epochs as stored_epochs
from tollway.storage import lost_requests as stored_lost_requests
from tollway.storage import nodes as stored_nodes
from tollway.storage import periods as stored_periods
from tollway.storage import schema_money as money
from tollway.storage.database import Database, PlatformTx
from tollway.storage.record_archive import Archive
from tollway.wire.segments import first_chain

ACTOR = "key_" + "a" * 32
PERSON = Operator(ACTOR, KeyOrigin.FIRST)
OTHER_PERSON = Operator("key_" + "b" * 32, KeyOrigin.SECOND)
SEPTEMBER = month_of(EPOCH, "UTC")
OCTOBER = month_of(SEPTEMBER.end_at, "UTC")
NOVEMBER = month_of(OCTOBER.end_at, "UTC")
NOW = NOVEMBER.end_at + 1_000_000


def ended(number: int, at: int, **changes: Any) -> list[Record]:
    """ADMIT and FINAL of a request that ended at `at`."""
    of = admit(number, admitted_at=at - 1000, **changes)
    return [of, final(of, ended_at=at, first_token_at=None)]


def period_of(database: Database, start_at: int, organization_id: str = ORGANIZATION) -> Period:
    with database.platform(write=False) as tx:
        return periods.get_period(tx, period_id(organization_id, start_at))


def close(database: Database, start_at: int, organization_id: str = ORGANIZATION, now: int = NOW) -> Period:
    return periods.close(database, period_id(organization_id, start_at), actor=ACTOR, now=now)


def booked(database: Database) -> dict[str, int]:
    """The period of each event, by its id."""
    with database.platform(write=False) as tx:
        return {row.event_id: row.period_at for row in tx.connection.execute(sa.select(money.usage_events))}


class TestBooked:
    def test_in_the_month_in_which_it_ended(self, database: Database, archive: Archive) -> None:
        last, first = SEPTEMBER.end_at - 1, SEPTEMBER.end_at
        take(database, archive, frames([*ended(1, last), *ended(2, first), *ended(3, last)]))
        assert booked(database) == {
            samples.request_id(1): SEPTEMBER.start_at,
            samples.request_id(2): OCTOBER.start_at,
            samples.request_id(3): SEPTEMBER.start_at,
        }
        with database.platform(write=False) as tx:
            transactions = tx.connection.execute(sa.select(money.ledger_transactions).order_by(money.ledger_transactions.c.period_at)).all()
        assert [(row.period_at, row.events, row.first_seq, row.last_seq) for row in transactions] == [
            (SEPTEMBER.start_at, 2, 2, 6),
            (OCTOBER.start_at, 1, 4, 4),
        ]
        assert verify(database, archive).differences == []

    def test_in_the_time_zone_of_its_organization(self, database: Database, archive: Archive) -> None:
        with database.platform() as tx:
            tx.connection.execute(sa.text(f"UPDATE organizations SET time_zone = 'Europe/Berlin' WHERE id = '{OTHER_ORGANIZATION}'"))
        at = SEPTEMBER.end_at - 3600_000_000
        other = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}
        take(database, archive, frames([*ended(1, at), *ended(2, at, **other)]))
        berlin = month_of(at, "Europe/Berlin")
        assert booked(database) == {samples.request_id(1): SEPTEMBER.start_at, samples.request_id(2): berlin.start_at}
        assert period_of(database, berlin.start_at, OTHER_ORGANIZATION).time_zone == "Europe/Berlin"
        assert verify(database, archive).differences == []

    def test_in_the_next_period_if_its_own_is_frozen(self, database: Database, archive: Archive) -> None:
        body = frames([*ended(1, EPOCH), Tick(at=SEPTEMBER.end_at), *ended(2, EPOCH + 5), *ended(3, NOVEMBER.start_at)])
        take(database, archive, body[:3])
        closed = close(database, SEPTEMBER.start_at)
        assert closed.state is PeriodState.CLOSED
        take(database, archive, body[3:], first_seq=4)
        assert booked(database) == {
            samples.request_id(1): SEPTEMBER.start_at,
            samples.request_id(2): OCTOBER.start_at,
            samples.request_id(3): NOVEMBER.start_at,
        }
        assert period_of(database, SEPTEMBER.start_at) == closed
        assert verify(database, archive).differences == []


class TestClosing:
    def test_needs_a_record_of_every_epoch_past_the_end(self, database: Database, archive: Archive) -> None:
        body = frames([*ended(1, EPOCH), Tick(at=SEPTEMBER.end_at - 1), Tick(at=SEPTEMBER.end_at)])
        take(database, archive, body[:3])
        with pytest.raises(Blocked) as refused:
            close(database, SEPTEMBER.start_at)
        (blocker,) = refused.value.blockers
        assert (blocker.node_id, blocker.epoch, blocker.known_until) == (NODE, EPOCH, SEPTEMBER.end_at - 1)
        assert period_of(database, SEPTEMBER.start_at).state is PeriodState.OPEN
        take(database, archive, body[3:], first_seq=4)
        assert close(database, SEPTEMBER.start_at).state is PeriodState.CLOSED

    def test_or_its_close(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 10)]))
        period = close(database, SEPTEMBER.start_at)
        assert period.closing is not None
        assert [(row["node_id"], row["next_seq"], row["cover"]) for row in period.closing.report["epochs"]] == [(NODE, 4, "close")]

    def test_does_not_wait_for_epochs_that_began_later(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 10)]))
        later = SEPTEMBER.end_at + 5
        with database.platform() as tx:
            tx.connection.execute(
                money.epochs.insert().values(
                    node_id=OTHER_NODE, epoch=later, next_seq=1, chain=bytes(16), archive_bytes=0, first_seen_at=later, seen_at=later
                )
            )
        assert close(database, SEPTEMBER.start_at).state is PeriodState.CLOSED

    def test_notices_an_epoch_that_has_not_reported(self, database: Database, archive: Archive) -> None:
        """The gateway was restarted: it follows the snapshot, and nothing of its new epoch has come."""
        take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 10)]))
        with database.platform() as tx:
            stored_nodes.insert_node(tx, RegisteredNode(NODE, "gateway", EPOCH - 5))
            stored_nodes.put_ack(tx, NODE, 0, EPOCH - 5)
            tx.connection.execute(money.epochs.update().values(seen_at=EPOCH + 20))
        assert epochs_of(database) == []
        with database.platform() as tx:
            stored_nodes.put_ack(tx, NODE, 0, EPOCH + 20 + 61_000_000)
        (blocker,) = epochs_of(database)
        assert (blocker.node_id, blocker.epoch) == (NODE, None)
        with database.platform() as tx:
            (declared,) = declare_lost(tx)
        assert declared.state is LostRequestState.DECLARED
        assert close(database, SEPTEMBER.start_at).state is PeriodState.CLOSED

    def test_goes_in_order_and_only_back_in_time(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*ended(1, EPOCH), *ended(2, OCTOBER.start_at), Close(at=OCTOBER.start_at + 5)]))
        with pytest.raises(Fault, match="conflict") as refused:
            close(database, OCTOBER.start_at)
        assert "before it" in refused.value.message
        with pytest.raises(Fault, match="conflict") as refused:
            close(database, SEPTEMBER.start_at, now=SEPTEMBER.end_at - 1)
        assert "not ended" in refused.value.message
        close(database, SEPTEMBER.start_at, now=SEPTEMBER.end_at)
        assert close(database, OCTOBER.start_at).state is PeriodState.CLOSED
        assert verify(database, archive).differences == []

    def test_twice_is_once(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 10)]))
        assert close(database, SEPTEMBER.start_at) == close(database, SEPTEMBER.start_at, now=NOW + 9)

    def test_writes_down_what_the_month_comes_to(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*ended(1, EPOCH), *ended(2, EPOCH + 1), Close(at=EPOCH + 10)]))
        closed = close(database, SEPTEMBER.start_at).closed
        assert closed is not None
        assert (closed.events, closed.adjustments) == (2, 0)
        assert closed.amounts == {
            "input": 2 * 100 * 270_000,
            "cached_input": 2 * 20 * 27_000,
            "output": 2 * 30 * 1_100_000,
            "reasoning": 2 * 4 * 1_100_000,
            "request": 10,
        }
        assert sum(closed.amounts.values()) == balances(database)[f"{ORGANIZATION}/unbilled/EUR"]

    def test_is_gone_on_with_after_a_crash_in_the_middle(
        self, database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(periods, "BLOCK_LEAVES", 4)
        monkeypatch.setattr(periods, "BLOCKS_PER_CALL", 2)
        records: list[Record] = []
        for number in range(1, 19):
            records += ended(number, EPOCH + number)
        take(database, archive, frames([*records, Close(at=EPOCH + 100)]))
        states = [close(database, SEPTEMBER.start_at).state for _ in range(4)]
        assert states == [PeriodState.CLOSING, PeriodState.CLOSING, PeriodState.CLOSED, PeriodState.CLOSED]
        assert verify(database, archive).differences == []
        period = period_of(database, SEPTEMBER.start_at)
        assert period.closed is not None
        for number in range(1, 19):
            with database.tenant(ORGANIZATION, write=False) as tx:
                proof = periods.prove(tx, period.id, samples.request_id(number))
            assert proof.index == number - 1
            leaf = hash_leaf(encode_leaf(proof.leaf))
            assert root_from(leaf, proof.index, proof.tree_size, proof.path) == period.closed.merkle_root

    def test_tick_from_the_future_covers_nothing_beyond_the_instant_at_which_it_came(self, database: Database, archive: Archive) -> None:
        """A gateway whose clock is 40 days ahead cannot close a month of which records are still missing."""
        ahead = EPOCH + 40 * 86_400_000_000
        body = frames([*ended(1, EPOCH), Tick(at=ahead), *ended(2, EPOCH + 7), Tick(at=ahead + 9)])
        came_at = EPOCH + 60_000_000
        assert take(database, archive, body[:3], now=came_at).ahead_us == ahead - came_at
        with pytest.raises(Blocked):
            close(database, SEPTEMBER.start_at)
        take(database, archive, body[3:], first_seq=4, now=SEPTEMBER.end_at + 1)
        closed = close(database, SEPTEMBER.start_at)
        assert closed.closed is not None and closed.closed.events == 2
        assert closed.closing is not None and closed.closing.report["epochs"][0]["known_until"] == SEPTEMBER.end_at + 1
        assert verify(database, archive).differences == []

    def test_of_a_month_without_events_has_the_empty_root(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 10)]))
        cut_october(database)
        close(database, SEPTEMBER.start_at)
        closed = close(database, OCTOBER.start_at).closed
        assert closed is not None
        assert (closed.merkle_root, closed.events, closed.amounts) == (EMPTY, 0, {})


def ask_lost(tx: PlatformTx, *, node_id: str = NODE, epoch: int | None = None, reason: str = "r", now: int = NOW) -> list[LostRequest]:
    """Ask to declare what is missing of a gateway lost."""

    def new_id(kind: str) -> str:
        return ids.new_id(kind, now, secrets.randbits(ids.RANDOM_BITS))

    return losses.ask(tx, node_id=node_id, epoch=epoch, reason=reason, actor=PERSON, new_id=new_id, now=now)


def declare_lost(tx: PlatformTx, *, node_id: str = NODE, reason: str = "r", now: int = NOW) -> list[LostRequest]:
    """Declare what is missing of a gateway lost, with the approval of another person."""
    asked = ask_lost(tx, node_id=node_id, reason=reason, now=now)
    return [losses.decide(tx, request.id, ApprovalDecision.APPROVED, approver=OTHER_PERSON, now=now) for request in asked]


def cut_october(database: Database) -> None:
    """Make the period in which nothing was used."""
    calendar = Calendar(ORGANIZATION, "UTC")
    calendar.place(OCTOBER.start_at)
    with database.platform() as tx:
        stored_periods.insert_cut(tx, [calendar], NOW)


def epochs_of(database: Database) -> list[epochs.Blocker]:
    with database.platform(write=False) as tx:
        return periods.list_blockers(tx, period_id(ORGANIZATION, SEPTEMBER.start_at))


class TestLost:
    def test_covers_the_hole_and_is_named_in_the_report(self, database: Database, archive: Archive) -> None:
        body = frames([*ended(1, EPOCH), *ended(2, EPOCH + 7)])
        take(database, archive, body[:2])
        with database.platform() as tx:
            declare_lost(tx, reason="the disk is gone")
        closing = close(database, SEPTEMBER.start_at).closing
        assert closing is not None
        (row,) = closing.report["epochs"]
        assert (row["cover"], row["lost"]["reason"]) == ("lost", "the disk is gone")
        assert (row["lost"]["actor"], row["lost"]["approver"]) == (ACTOR, OTHER_PERSON.key_id)
        assert verify(database, archive).differences == []
        # And then it was found after all.
        take(database, archive, body[2:], first_seq=3)
        assert booked(database)[samples.request_id(2)] == OCTOBER.start_at
        with database.platform(write=False) as tx:
            (epoch,) = epochs.list_lost(tx)
            assert epoch.records_after_lost == 2
            assert epochs.count_lost(tx) == 1
        assert verify(database, archive).differences == []

    def test_is_not_declared_of_what_is_complete_or_unknown_or_lost(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*ended(1, EPOCH), Close(at=EPOCH + 10)]))
        take(database, archive, frames(ended(2, EPOCH), node_id=OTHER_NODE), node_id=OTHER_NODE)
        for node_id, epoch, code in ((NODE, EPOCH, "conflict"), (NODE, EPOCH + 1, "not_found"), (NODE, None, "conflict")):
            with pytest.raises(Fault, match=code), database.platform() as tx:
                ask_lost(tx, node_id=node_id, epoch=epoch)
        with database.platform() as tx:
            assert len(declare_lost(tx, node_id=OTHER_NODE)) == 1
        with pytest.raises(Fault, match="conflict"), database.platform() as tx:
            ask_lost(tx, node_id=OTHER_NODE, epoch=EPOCH)

    def test_is_declared_by_nobody_who_descends_from_the_key_that_asked(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames(ended(1, EPOCH)))
        minted = Operator("key_" + "c" * 32, KeyOrigin.FIRST)
        with database.platform() as tx:
            (asked,) = ask_lost(tx)
        for approver in (PERSON, minted):
            with pytest.raises(Fault, match="conflict") as refused, database.platform() as tx:
                losses.decide(tx, asked.id, ApprovalDecision.APPROVED, approver=approver, now=NOW)
            assert refused.value.message == SAME_ORIGIN
        with pytest.raises(Blocked) as blocked:
            close(database, SEPTEMBER.start_at)
        assert asked.id in blocked.value.blockers[0].text
        for epoch in (None, EPOCH):
            with pytest.raises(Fault, match="conflict") as refused, database.platform() as tx:
                ask_lost(tx, epoch=epoch)
            assert asked.id in refused.value.message, "one request of an epoch waits at a time"
        with database.platform() as tx:
            rejected = losses.decide(tx, asked.id, ApprovalDecision.REJECTED, approver=PERSON, now=NOW)
            assert rejected.state is LostRequestState.REJECTED
            assert epochs.count_lost(tx) == 0
        with pytest.raises(Fault, match="conflict"), database.platform() as tx:
            losses.decide(tx, asked.id, ApprovalDecision.APPROVED, approver=OTHER_PERSON, now=NOW)

    def test_is_not_declared_once_its_last_record_has_come(self, database: Database, archive: Archive) -> None:
        body = frames([*ended(1, EPOCH), Close(at=EPOCH + 10)])
        take(database, archive, body[:2])
        with database.platform() as tx:
            (asked,) = ask_lost(tx)
        take(database, archive, body[2:], first_seq=3)
        with pytest.raises(Fault, match="conflict"), database.platform() as tx:
            losses.decide(tx, asked.id, ApprovalDecision.APPROVED, approver=OTHER_PERSON, now=NOW)
        with database.platform(write=False) as tx:
            assert losses.list_requests(tx, PageWindow(limit=9), LostRequestState.PENDING).items == [asked]

    def test_that_nobody_approved_is_refused_by_the_database_and_found_by_verification(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames(ended(1, EPOCH)))
        alone = Lost(NODE, EPOCH, 3, "r", ACTOR, "", NOW)
        with database.platform() as tx:
            (asked,) = ask_lost(tx)
        with pytest.raises(DBAPIError, match="approved"), database.platform() as tx:
            stored_epochs.insert_lost(tx, alone)
        with pytest.raises(DBAPIError, match="another origin"), database.platform() as tx:
            stored_lost_requests.insert_decision(tx, asked, ApprovalDecision.APPROVED, PERSON, NOW)
        with database.platform() as tx:
            drop = "DROP TRIGGER loss_declared_by_approval" + ("" if database.is_sqlite else " ON lost_declarations")
            become_owner(tx)
            tx.connection.execute(sa.text(drop))
            stored_epochs.insert_lost(tx, alone)
        assert [difference.table for difference in verify(database, archive).differences] == ["lost_declarations"]


BOOK = "INSERT INTO ledger_transactions (id, organization_id, period_at, cause, node_id, epoch, first_seq, last_seq, events, booked_at)"


class TestTheDatabaseItself:
    """Refuses, whoever asks."""

    @pytest.fixture
    def closed(self, database: Database, archive: Archive) -> Period:
        take(database, archive, frames([*ended(1, EPOCH), *ended(2, OCTOBER.start_at), Close(at=OCTOBER.start_at + 1)]))
        return close(database, SEPTEMBER.start_at)

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE billing_periods SET merkle_root = watermark_digest WHERE state = 'closed'",
            "UPDATE billing_periods SET state = 'open' WHERE state = 'closed'",
            "UPDATE billing_periods SET end_at = end_at + 1 WHERE state = 'open'",
            "UPDATE billing_periods SET time_zone = 'Europe/Berlin' WHERE state = 'open'",
            "DELETE FROM billing_periods WHERE state = 'open'",
            "DELETE FROM billing_periods WHERE state = 'closed'",
            "UPDATE period_blocks SET events = 2",
            "DELETE FROM period_blocks",
            "INSERT INTO billing_periods (id, organization_id, start_at, end_at, time_zone, state, created_at)"
            " SELECT 'x', organization_id, start_at + 1, end_at, time_zone, 'open', 0 FROM billing_periods WHERE state = 'open'",
            f"{BOOK} SELECT 'x', organization_id, start_at, 'usage', 'n', 1, 1, 1, 1, 0 FROM billing_periods WHERE state = 'closed'",
            f"{BOOK} SELECT 'x', organization_id, start_at + 1, 'usage', 'n', 1, 1, 1, 1, 0 FROM billing_periods WHERE state = 'open'",
        ],
    )
    def test_keeps_what_is_closed_as_it_is(self, database: Database, closed: Period, statement: str) -> None:
        with pytest.raises(DBAPIError), database.platform() as tx:
            tx.connection.execute(sa.text(statement))

    def test_takes_no_event_into_a_closed_period(self, database: Database, closed: Period) -> None:
        names = [column.name for column in money.usage_events.c]
        chosen = ["'req_x'" if name == "event_id" else name for name in names]
        copied = f"INSERT INTO usage_events ({', '.join(names)}) SELECT {', '.join(chosen)} FROM usage_events WHERE period_at = :at"
        with pytest.raises(DBAPIError, match="not open"), database.platform() as tx:
            tx.connection.execute(sa.text(copied), {"at": SEPTEMBER.start_at})
        with database.platform() as tx:
            tx.connection.execute(sa.text(copied), {"at": OCTOBER.start_at})


class TestVerify:
    """Finds what somebody with all rights did to a closed period."""

    @pytest.fixture
    def opened(self, database: Database, archive: Archive) -> Database:
        take(database, archive, frames([*ended(1, EPOCH), *ended(2, EPOCH + 1), Tick(at=OCTOBER.start_at), *ended(3, EPOCH + 2)]))
        for table in ("billing_periods", "period_blocks", "usage_events", "ledger_transactions", "lost_declarations"):
            drop_triggers(database, table)
        return database

    @pytest.mark.parametrize(
        ("statement", "table"),
        [
            ("UPDATE billing_periods SET merkle_root = watermark_digest", "billing_periods"),
            ("UPDATE billing_periods SET events = 1", "billing_periods"),
            ("UPDATE billing_periods SET amounts = replace(amounts, '1', '2')", "billing_periods"),
            ("UPDATE billing_periods SET report = replace(report, '\"next_seq\": ', '\"next_seq\": 1')", "billing_periods"),
            ("UPDATE billing_periods SET adjustments = 1", "billing_periods"),
            ("UPDATE period_blocks SET hash = (SELECT watermark_digest FROM billing_periods WHERE state = 'closed')", "period_blocks"),
            ("DELETE FROM period_blocks", "period_blocks"),
            ("UPDATE usage_events SET period_at = period_at + 1 WHERE seq = 2", "usage_events"),
        ],
    )
    def test_finds_it(self, opened: Database, archive: Archive, statement: str, table: str) -> None:
        close(opened, SEPTEMBER.start_at)
        assert verify(opened, archive).differences == []
        with opened.platform() as tx:
            tx.connection.execute(sa.text(statement))
        assert table in [difference.table for difference in verify(opened, archive).differences]

    def test_finds_an_event_booked_late_without_reason(self, opened: Database, archive: Archive) -> None:
        cut_october(opened)
        with opened.platform() as tx:
            tx.connection.execute(sa.text(f"UPDATE usage_events SET period_at = {OCTOBER.start_at}"))
            tx.connection.execute(sa.text(f"UPDATE ledger_transactions SET period_at = {OCTOBER.start_at}"))
        assert "usage_events" in [difference.table for difference in verify(opened, archive).differences]


def drop_triggers(database: Database, table: str) -> None:
    """Drop the triggers of a table, as an attacker with all rights would do first."""
    with database.platform() as tx:
        if database.is_sqlite:
            names = tx.connection.execute(
                sa.text(f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = '{table}'")
            ).scalars()
            for name in names.all():
                tx.connection.execute(sa.text(f"DROP TRIGGER {name}"))
        else:
            become_owner(tx)
            tx.connection.execute(sa.text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))


@pytest.mark.postgres
def test_two_collectors_against_a_close_lose_and_mislay_nothing(postgres_template: Any, tmp_path: Path) -> None:
    """Events of September and October come from two gateways while September is closed again and again until it is."""
    archive = Archive(tmp_path / "archive")
    with postgres_template.copied(tmp_path) as url:
        database = Database.open(url)
        fill(database)
        seed = frames([*ended(1, EPOCH), Close(at=EPOCH + 1)], node_id="node_" + "2" * 32)
        take(database, archive, seed, node_id="node_" + "2" * 32)
        faults: list[BaseException] = []
        closes: list[PeriodState] = []

        def send(node_id: str, first: int) -> None:
            records: list[Record] = []
            for number in range(first, first + 60):
                records += ended(number, (EPOCH if number % 2 else OCTOBER.start_at) + number)
            body, seq = frames(records, node_id=node_id), 1
            try:
                while seq <= len(body):
                    try:
                        seq = take(database, archive, body[seq - 1 : seq + 5], first_seq=seq, node_id=node_id).next_seq
                    except Gap as gap:
                        seq = gap.next_seq
            except BaseException as error:
                faults.append(error)

        def shut() -> None:
            try:
                with database.platform() as tx:  # what a crash of both gateways would need
                    for node_id in (NODE, OTHER_NODE):
                        tx.connection.execute(
                            tx.insert(money.epochs)
                            .values(
                                node_id=node_id,
                                epoch=EPOCH,
                                next_seq=1,
                                chain=first_chain(node_id, EPOCH),
                                archive_bytes=0,
                                first_seen_at=0,
                                seen_at=0,
                            )
                            .on_conflict_do_nothing()
                        )
                for node_id in (NODE, OTHER_NODE):
                    with database.platform() as tx:
                        declare_lost(tx, node_id=node_id)
                closes.append(close(database, SEPTEMBER.start_at).state)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=send, args=(NODE, 100)), threading.Thread(target=send, args=(OTHER_NODE, 200))]
        threads.append(threading.Thread(target=shut))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert faults == []
        assert closes == [PeriodState.CLOSED]
        assert len(booked(database)) == 121
        assert verify(database, archive).differences == []
        with database.platform(write=False) as tx:
            page = periods.list_periods(tx, PageWindow(limit=10), organization_id=ORGANIZATION, state=PeriodState.OPEN)
        assert [period.start_at for period in page.items] == [OCTOBER.start_at]
        database.close()
