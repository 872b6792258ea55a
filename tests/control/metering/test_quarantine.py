"""Quarantine: what could not be rated is billed nowhere in silence. It keeps periods open until an operator rates it or writes it off.

One contract, on SQLite and on PostgreSQL.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tests.control.auditing.test_audit import verify_in_process
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.metering.test_collect import balances, count, state, take
from tests.control.money.test_periods import ACTOR, NOW, OCTOBER, SEPTEMBER, close, period_of
from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, PRICE, admit, exchanges, final, frames
from tests.patience import PATIENCE_SECONDS
from tests.storage.databases import add_price, become_owner, fill
from tollway.control.catalog import prices
from tollway.control.gateways.epochs import BlockerKind
from tollway.control.metering import quarantine, usage
from tollway.control.metering.quarantine import RESCAN_US, WaitingRecords
from tollway.control.metering.replay import replay
from tollway.control.money import corrections, exports, periods
from tollway.control.money.corrections import WantedAdjustment
from tollway.control.money.periods import Blocked
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.corrections import AdjustmentKind
from tollway.domain.faults import RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.money import AMOUNT_PICO_MAX, PICO
from tollway.domain.pages import PageWindow
from tollway.domain.periods import PeriodState
from tollway.domain.quarantine import QuarantinedRecord, QuarantineState
from tollway.domain.usage import TOKENS_MAX, ServiceTier, Tick
from tollway.storage import schema_money as money
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

COST = 100 * 270_000 + 20 * 27_000 + 30 * 1_100_000 + 4 * 1_100_000 + 5
"""The cost of each of the requests, in pico."""

LATER = msgspec.structs.replace(PRICE, id="price_" + "9" * 32, valid_from=EPOCH)
"""A price that records name before it exists here."""
samples.prove(LATER)

FLEX = msgspec.structs.replace(LATER, id="price_" + "8" * 32, tier=ServiceTier.FLEX)
"""One of another series, which does not follow the price of the others."""
samples.prove(FLEX)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with request.getfixturevalue(f"{request.param}_template").copied(tmp_path) as url:
        opened = Database.open(url)
        fill(opened)
        yield opened
        opened.close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def ingest(database: Database, archive: Archive, **changes: Any) -> None:
    """Ten records: requests 1, 3 and 5 can be rated; request 2 (record 4) has these changes; record 9 says that all of September came."""
    records = [*exchanges([1]), *exchanges([2], **{"price_version": LATER.id, **changes}), *exchanges([3, 5])]
    take(database, archive, frames([*records, Tick(at=SEPTEMBER.end_at)]))


def publish(database: Database) -> None:
    with database.platform() as tx:
        add_price(tx, LATER)


def rate(database: Database, seq: int = 4) -> QuarantinedRecord:
    with database.platform() as tx:
        return quarantine.rate_record(tx, NODE, EPOCH, seq, reason="the price exists now", actor=ACTOR, now=NOW)


FIRST, OTHER_KEY = Operator(ACTOR, KeyOrigin.FIRST), Operator("key_other", KeyOrigin.FIRST)
SECOND = Operator("key_second", KeyOrigin.SECOND)


def ask_write_off(
    database: Database, seq: int = 4, *, actor: Operator = FIRST, limit_pico: int = PICO, now: int = NOW
) -> QuarantinedRecord:
    with database.platform() as tx:
        return quarantine.write_off(tx, NODE, EPOCH, seq, reason="a test of the engine", actor=actor, limit_pico=limit_pico, now=now)


def write_off(database: Database, seq: int = 4) -> QuarantinedRecord:
    """Write a record off as two operators do who agree."""
    ask_write_off(database, seq)
    return ask_write_off(database, seq, actor=SECOND)


def blockers(database: Database, start_at: int = SEPTEMBER.start_at, organization_id: str = ORGANIZATION) -> list[tuple[BlockerKind, str]]:
    with database.platform(write=False) as tx:
        found = periods.list_blockers(tx, period_of(database, start_at, organization_id).id)
    return [(blocker.kind, blocker.text) for blocker in found]


class TestClosing:
    def test_close_with_a_quarantined_record_is_blocked(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        with pytest.raises(Blocked, match=r"wait in quarantine.*price_unknown"):
            close(database, SEPTEMBER.start_at)
        ((kind, text),) = blockers(database)
        assert kind is BlockerKind.RECORDS_QUARANTINED
        assert "a record is in quarantine (price_unknown, 4)" in text

    def test_close_after_rating_includes_the_request(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        rate(database)
        closed = close(database, SEPTEMBER.start_at).closed
        assert closed is not None and closed.events == 4
        assert verify(database, archive).differences == []

    def test_close_after_write_off_reports_it(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        write_off(database)
        closed = close(database, SEPTEMBER.start_at)
        assert closed.closed is not None and closed.closed.events == 3
        assert closed.closing is not None
        assert closed.closing.report["written_off"] == [
            {
                "node_id": NODE,
                "epoch": EPOCH,
                "records": 1,
                "first_seq": 4,
                "last_seq": 4,
                "reason": "a test of the engine",
                "actor": ACTOR,
                "approver": SECOND.key_id,
            }
        ]
        report = verify(database, archive)
        assert (report.differences, report.quarantined, report.written_off) == ([], 0, 1)

    def test_periods_of_other_organizations_stay_free(self, database: Database, archive: Archive) -> None:
        other = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}
        records = [*exchanges([1], **other), *exchanges([2], price_version=LATER.id), Tick(at=SEPTEMBER.end_at)]
        take(database, archive, frames(records))
        assert blockers(database, organization_id=OTHER_ORGANIZATION) == []
        assert close(database, SEPTEMBER.start_at, OTHER_ORGANIZATION).state is PeriodState.CLOSED

    def test_record_that_cannot_be_read_blocks_everybody_from_its_epoch_on(self, database: Database, archive: Archive) -> None:
        other = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}
        take(database, archive, frames([*exchanges([1]), *exchanges([2], **other), b"{}", Tick(at=SEPTEMBER.end_at)]))
        for organization_id in (ORGANIZATION, OTHER_ORGANIZATION):
            assert [kind for kind, _ in blockers(database, organization_id=organization_id)] == [BlockerKind.RECORDS_QUARANTINED]
        write_off(database, 5)
        assert blockers(database) == []

    def test_record_of_a_later_month_does_not_block(self, database: Database, archive: Archive) -> None:
        of = admit(2, price_version=LATER.id)
        take(database, archive, frames([*exchanges([1]), Tick(at=SEPTEMBER.end_at), of, final(of, ended_at=OCTOBER.start_at)]))
        assert blockers(database) == []
        assert close(database, SEPTEMBER.start_at).state is PeriodState.CLOSED

    def test_record_that_arrived_after_its_month_closed_blocks_the_next(self, database: Database, archive: Archive) -> None:
        at = OCTOBER.start_at
        late = exchanges([3], price_version=FLEX.id, service_tier=ServiceTier.FLEX)
        body = frames([*exchanges([1]), final(admit(2), ended_at=at), Tick(at=at), *late])
        take(database, archive, body[:4])
        close(database, SEPTEMBER.start_at)
        take(database, archive, body[4:], first_seq=5)
        assert [kind for kind, _ in blockers(database, OCTOBER.start_at)][-1] is BlockerKind.RECORDS_QUARANTINED
        with database.platform() as tx:
            add_price(tx, FLEX)
        rate(database, 6)
        with database.platform(write=False) as tx:
            booked = tx.connection.execute(sa.select(money.usage_events.c.period_at).where(money.usage_events.c.seq == 6)).scalar_one()
        assert booked == OCTOBER.start_at
        assert verify(database, archive).differences == []


def rate_waiting(database: Database, waiting: WaitingRecords, now: int = NOW) -> int:
    return waiting.rate(database, now=now, is_stopping=lambda: False)


class TestWaiting:
    """After a restore the database may be behind the archive."""

    def test_records_are_rated_without_an_operator_once_their_price_is_there(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        waiting = WaitingRecords()
        assert rate_waiting(database, waiting) == 0
        assert len(blockers(database)) == 1
        publish(database)
        assert rate_waiting(database, waiting, NOW + RESCAN_US) == 1
        assert blockers(database) == []
        with database.platform(write=False) as tx:
            record = quarantine.get_record(tx, NODE, EPOCH, 4)
        assert (record.state, record.resolution and record.resolution.actor) == (QuarantineState.RATED, quarantine.ACTOR)
        assert balances(database)[f"{ORGANIZATION}/unbilled/EUR"] == 4 * COST
        assert verify(database, archive).differences == []
        assert rate_waiting(database, waiting, NOW + 3 * RESCAN_US) == 0

    def test_records_are_looked_at_again_as_soon_as_something_was_published(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        waiting = WaitingRecords()
        rate_waiting(database, waiting)
        publish(database)
        assert rate_waiting(database, waiting) == 0  # the row was restored past the change channel: found within RESCAN_US
        with database.tenant(ORGANIZATION) as tx:
            prices.set_terms(tx, book_id=None, discount_bp=1, valid_from=None, now=NOW)
        assert rate_waiting(database, waiting) == 1

    def test_replay_rates_what_waited(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        assert replay(database, archive, NOW).rated == 0
        publish(database)
        assert replay(database, archive, NOW).rated == 1
        assert verify(database, archive).differences == []

    def test_more_than_a_page_of_records_is_rated(self, database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quarantine, "PAGE", 2)
        take(database, archive, frames([*exchanges(range(1, 6), price_version=LATER.id), Tick(at=SEPTEMBER.end_at)]))
        publish(database)
        assert rate_waiting(database, WaitingRecords()) == 5

    def test_records_that_no_gateway_can_have_written_wait_for_an_operator(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames([*exchanges([1]), b"{}", Tick(at=SEPTEMBER.end_at)]))
        assert rate_waiting(database, WaitingRecords()) == 0
        assert len(blockers(database)) == 1


class TestRated:
    def test_rated_record_is_billed_as_if_its_price_had_been_known(self, database: Database, archive: Archive, tmp_path: Path) -> None:
        ingest(database, archive)
        publish(database)
        record = rate(database)
        assert (record.state, record.resolution and record.resolution.actor) == (QuarantineState.RATED, ACTOR)
        assert balances(database)[f"{ORGANIZATION}/unbilled/EUR"] == 4 * COST
        report = verify(database, archive)
        assert (report.differences, report.events, report.quarantined) == ([], 4, 0)

    def test_rating_twice_is_one_posting(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        first = rate(database)
        before, transactions = state(database), count(database, money.ledger_transactions)
        assert rate(database) == first
        assert (state(database), count(database, money.ledger_transactions)) == (before, transactions)

    def test_two_operators_at_once_rate_once(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        faults: list[BaseException] = []

        def work() -> None:
            try:
                rate(database)
            except BaseException as error:
                faults.append(error)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_SECONDS)
        assert faults == []
        assert verify(database, archive).differences == []
        assert count(database, money.usage_events) == 4

    def test_crash_before_the_commit_leaves_it_open(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        before = state(database)

        class PowerCut(Exception):
            pass

        with pytest.raises(PowerCut), database.platform() as tx:
            quarantine.rate_record(tx, NODE, EPOCH, 4, reason="x", actor=ACTOR, now=NOW)
            raise PowerCut
        assert state(database) == before
        assert rate(database).state is QuarantineState.RATED
        assert verify(database, archive).differences == []

    def test_rating_without_the_price_is_refused_with_the_obstacle(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        with pytest.raises(Fault) as refused:
            rate(database)
        assert refused.value.kind is STATE_CONFLICT
        assert "price_unknown" in refused.value.message
        with database.platform(write=False) as tx:
            assert quarantine.find_obstacle(tx, quarantine.get_record(tx, NODE, EPOCH, 4)) == "price_unknown"
        publish(database)
        with database.platform(write=False) as tx:
            assert quarantine.find_obstacle(tx, quarantine.get_record(tx, NODE, EPOCH, 4)) is None

    def test_request_that_another_record_has_billed_can_only_be_written_off(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        take(database, archive, frames(exchanges([2]), OTHER_NODE), node_id=OTHER_NODE)
        publish(database)
        with pytest.raises(Fault) as refused:
            rate(database)
        assert "billed_already" in refused.value.message
        write_off(database)
        assert verify(database, archive).differences == []

    def test_amount_beyond_the_bound_is_quarantined_and_visible(self, database: Database, archive: Archive) -> None:
        dear = msgspec.structs.replace(
            PRICE, id="price_" + "d" * 32, valid_from=EPOCH, unit_prices=msgspec.structs.replace(PRICE.unit_prices, input=10**13)
        )
        with database.platform() as tx:
            add_price(tx, dear)
        of = admit(2, price_version=dear.id)
        assert TOKENS_MAX * 10**13 > AMOUNT_PICO_MAX
        take(database, archive, frames([of, final(of, used=Quantities(TOKENS_MAX, 0, 1, 0))]))
        with database.platform(write=False) as tx:
            (record,) = quarantine.list_records(tx, PageWindow(), state=None, organization_id=ORGANIZATION, reason=None).items
        assert (record.reason, record.event_id, record.served_at) == ("amount_too_large", samples.request_id(2), of.admitted_at + 250_000)
        assert verify(database, archive).quarantined == 1

    def test_event_of_a_record_whose_resolution_is_gone_is_found(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        rate(database)
        with database.platform() as tx:
            if database.is_sqlite:
                tx.connection.exec_driver_sql("DROP TRIGGER quarantine_resolutions_refuses_delete")
            else:
                become_owner(tx)
                tx.connection.exec_driver_sql("ALTER TABLE quarantine_resolutions DISABLE TRIGGER USER")
            tx.connection.exec_driver_sql("DELETE FROM quarantine_resolutions")
        assert "usage_events" in {difference.table for difference in verify(database, archive).differences}


class TestWrittenOff:
    def test_written_off_record_cannot_be_rated(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        first = write_off(database)
        assert write_off(database) == first
        with pytest.raises(Fault) as refused:
            rate(database)
        assert (refused.value.kind, refused.value.message) == (STATE_CONFLICT, "The record was written off.")
        report = verify(database, archive)
        assert (report.differences, report.events, report.written_off) == ([], 3, 1)

    def test_rated_record_cannot_be_written_off(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        rate(database)
        with pytest.raises(Fault) as refused:
            write_off(database)
        assert refused.value.kind is STATE_CONFLICT

    def test_record_of_unknown_amount_needs_two_persons(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        for actor in (FIRST, OTHER_KEY, FIRST):
            asked = ask_write_off(database, actor=actor, limit_pico=10**30)
            assert (asked.state, asked.write_off_requested_by) == (QuarantineState.OPEN, ACTOR)
        assert [kind for kind, _ in blockers(database)] == [BlockerKind.RECORDS_QUARANTINED]
        agreed = ask_write_off(database, actor=SECOND).resolution
        assert agreed is not None and (agreed.actor, agreed.approver) == (ACTOR, SECOND.key_id)
        assert blockers(database) == []

    def test_limit_counts_write_offs_and_corrections_of_one_day_together(self, database: Database, archive: Archive) -> None:
        ingest(database, archive)
        publish(database)
        credit = WantedAdjustment(event_id=samples.request_id(1), kind=AdjustmentKind.CREDIT, reason="r", credit_pico=5)
        limit_pico, day_us = COST + 4, 86_400_000_000
        with database.platform() as tx:
            assert corrections.ask(tx, credit, random_bits=1, actor=OTHER_KEY, limit_pico=limit_pico, now=NOW).state == "applied"
        assert ask_write_off(database, limit_pico=limit_pico).state is QuarantineState.OPEN
        resolution = ask_write_off(database, limit_pico=limit_pico, now=NOW + day_us).resolution
        assert resolution is not None and (resolution.actor, resolution.approver) == (ACTOR, None)
        with database.platform() as tx:
            asked = corrections.ask(tx, credit, random_bits=2, actor=FIRST, limit_pico=limit_pico, now=NOW)
        assert asked.state == "pending"

    @pytest.mark.parametrize("approver", ["NULL", f"'{ACTOR}'", "'key_other'", "'key_second'"])
    def test_database_refuses_what_two_persons_have_not_asked_for(self, database: Database, archive: Archive, approver: str) -> None:
        ingest(database, archive)
        for actor in (FIRST, OTHER_KEY):
            ask_write_off(database, actor=actor)
        columns = "(node_id, epoch, seq, state, reason, actor, resolved_at, approver)"
        values = f"('{NODE}', {EPOCH}, 4, 'written_off', 'r', '{ACTOR}', 1, {approver})"
        with pytest.raises(DBAPIError), database.platform() as tx:
            tx.connection.execute(sa.text(f"INSERT INTO quarantine_resolutions {columns} VALUES {values}"))

    def test_unknown_record_is_unknown(self, database: Database) -> None:
        with pytest.raises(Fault) as refused:
            write_off(database)
        assert refused.value.kind is RESOURCE_UNKNOWN


def test_receipt_of_a_quarantined_request_says_so(database: Database, archive: Archive) -> None:
    ingest(database, archive)
    with database.tenant(ORGANIZATION, write=False) as tx, pytest.raises(Fault) as refused:
        usage.get_receipt(tx, samples.request_id(2))
    assert refused.value.kind is STATE_CONFLICT
    assert "not billed until" in refused.value.message
    with database.tenant(OTHER_ORGANIZATION, write=False) as tx, pytest.raises(Fault) as refused:
        usage.get_receipt(tx, samples.request_id(2))
    assert refused.value.kind is RESOURCE_UNKNOWN
    publish(database)
    rate(database)
    with database.tenant(ORGANIZATION, write=False) as tx:
        assert usage.get_receipt(tx, samples.request_id(2)).event.seq == 4


class TestApi:
    def test_record_is_listed_alarmed_and_written_off(self, fresh_control: Running) -> None:
        tenant: TenantSetup = make_tenant(fresh_control, "alice")
        operator, node = fresh_control.operator(), fresh_control.node(NODE)
        body = b"".join(frames(exchanges([1], organization_id=tenant.organization_id)))
        assert node.put(f"/v1/link/records/{NODE}/{EPOCH}/1", content=body).status_code == 200
        (line,) = (line for line in fresh_control.lines if line["event"] == "records_quarantined")
        assert (line["quarantined"], line["reasons"]) == (1, "price_unknown")
        assert 'tollway_control_records_quarantined{reason="price_unknown"} 1.0' in node.get("/metrics").text
        (row,) = answered(operator.get("/v1/platform/quarantine", params={"state": "open"}))["data"]
        assert (row["id"], row["reason"], row["request_id"]) == (f"{NODE}/{EPOCH}/2", "price_unknown", samples.request_id(1))
        detail = answered(operator.get(f"/v1/platform/quarantine/{row['id']}"))
        assert detail["obstacle"] == "price_unknown" and PRICE.id in detail["payload"]
        path = f"/v1/platform/quarantine/{row['id']}"
        assert operator.post(f"{path}/rate", json={"reason": "again"}).status_code == 409
        assert operator.post(f"{path}/write_off", json={}).status_code == 400
        asked = answered(operator.post(f"{path}/write_off", json={"reason": "a drill"}))
        assert (asked["state"], asked["approver"]) == ("open", None)
        second = fresh_control.client(fresh_control.second_platform_key)
        for _ in range(2):
            written = answered(second.post(f"{path}/write_off", json={"reason": "agreed"}))
            assert (written["state"], written["resolution_reason"]) == ("written_off", "a drill")
            assert written["actor"] == asked["write_off_requested_by"] != written["approver"]
        assert 'tollway_control_records_quarantined{reason="price_unknown"} 0.0' in node.get("/metrics").text
        assert answered(operator.get("/v1/platform/quarantine", params={"state": "open"}))["data"] == []
        admin = fresh_control.client(tenant.admin_key)
        assert admin.get("/v1/platform/quarantine").status_code == 403
        receipt = admin.get(f"/v1/organization/requests/{samples.request_id(1)}")
        assert (receipt.status_code, "written off" in receipt.text) == (409, True)


class TestTheVerifier:
    def test_export_with_a_rated_record_agrees(self, database: Database, archive: Archive, tmp_path: Path) -> None:
        ingest(database, archive)
        publish(database)
        rate(database)
        close(database, SEPTEMBER.start_at)
        lines = self.export(database, archive)
        alone, batch = sorted((line for line in lines if b'"type":"transaction"' in line), key=lambda line: b'"events":3' in line)
        assert (b'"events":3' in batch) and (b'"events":1' in alone)
        file = tmp_path / "export"
        file.write_bytes(b"".join(lines))
        assert verify_in_process([str(file)]) == 0
        # Booked within its batch, or twice, it is not.
        file.write_bytes(b"".join(line for line in lines if line != alone))
        assert verify_in_process([str(file)]) == 1
        file.write_bytes(b"".join(line.replace(b'"events":3', b'"events":4') if line == batch else line for line in lines))
        assert verify_in_process([str(file)]) == 1

    def export(self, database: Database, archive: Archive) -> list[bytes]:
        def open_tx() -> Any:
            return database.tenant(ORGANIZATION, write=False)

        found = exports.export(open_tx, archive, period_of(database, SEPTEMBER.start_at).id, NOW)
        return list(found)
