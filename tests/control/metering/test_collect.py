"""The collector: whatever arrives, in whatever order, how often: one result, exact, and provable from the archive.

One contract, on SQLite and on PostgreSQL.
"""

import hashlib
import itertools
import random
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, PRICE, admit, exchanges, final, frames
from tests.patience import PATIENCE_SECONDS
from tests.storage.databases import SqliteTemplate, add_price, become_owner, fill
from tests.storage.stored_events import read_events
from tollway.control.metering import quarantine
from tollway.control.metering.batches import BatchRefused
from tollway.control.metering.collect import Gap, Ingested, collect
from tollway.control.verification import verify as verification
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import TEXT_CLASSES, Amounts, Quantities
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.prices import PriceVersion
from tollway.domain.rollups import UsageSums
from tollway.domain.usage import TOKENS_MAX, Close, Outcome, Progress, Record, Tick
from tollway.storage import rollups as stored_rollups
from tollway.storage import schema_money as money
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

NOW = EPOCH + 400 * 86_400_000_000
"""The time of the control plane: after everything that the samples say happened."""


def take(
    database: Database,
    archive: Archive,
    body: Sequence[bytes],
    first_seq: int = 1,
    node_id: str = NODE,
    epoch: int = EPOCH,
    now: int | None = None,
) -> Ingested:
    """Hand frames to the collector in a transaction of their own, at NOW, or at the latest instant that they name if that is later."""
    if now is None:
        instants = (int(found) for found in re.findall(rb'"(?:ended_at|at)":(\d+)', b"".join(body)))
        now = max([NOW, *(instant for instant in instants if instant < 2 * NOW)])
    with database.platform() as tx:
        return collect(tx, archive, node_id=node_id, epoch=epoch, first_seq=first_seq, body=b"".join(body), now=now)


def state(database: Database) -> str:
    """Return a digest of all that is money: events, lines, rollups, balances, quarantined records. Not how transactions group them."""
    digest = hashlib.sha256()
    tables: list[tuple[sa.Table, set[str]]] = [
        (money.usage_events, set()),
        (money.usage_rollups, set()),
        (money.balances, {"version", "changed_at"}),
        (money.event_conflicts, set()),
        (money.quarantined_records, set()),
        (money.epochs, set()),
    ]
    with database.platform(write=False) as tx:
        for table, ignored in tables:
            columns = [column for column in table.c if column.name not in ignored]
            for row in tx.connection.execute(sa.select(*columns).order_by(*table.primary_key)):
                digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()


def balances(database: Database) -> dict[str, int]:
    with database.platform(write=False) as tx:
        return {row.account_id: row.posted_pico for row in tx.connection.execute(sa.select(money.balances))}


def count(database: Database, table: sa.Table) -> int:
    with database.platform(write=False) as tx:
        found: int = tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        return found


class TestIngested:
    def test_cost_is_exact_to_the_pico_and_booked_on_both_sides(self, database: Database, archive: Archive) -> None:
        assert take(database, archive, frames(exchanges([1, 2, 3]))) == Ingested(7, events=3)
        cost = 100 * 270_000 + 20 * 27_000 + 30 * 1_100_000 + 4 * 1_100_000 + 5
        assert balances(database) == {
            f"{ORGANIZATION}/unbilled/EUR": 3 * cost,
            "platform/revenue:echo:input/EUR": -3 * 100 * 270_000,
            "platform/revenue:echo:cached_input/EUR": -3 * 20 * 27_000,
            "platform/revenue:echo:output/EUR": -3 * 30 * 1_100_000,
            "platform/revenue:echo:reasoning/EUR": -3 * 4 * 1_100_000,
            "platform/revenue:echo:request/EUR": -15,
        }
        assert verify(database, archive).differences == []

    def test_organizations_of_one_batch_are_booked_apart(self, database: Database, archive: Archive) -> None:
        other = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}
        take(database, archive, frames([*exchanges([1]), *exchanges([2], **other)]))
        found = balances(database)
        assert found[f"{OTHER_ORGANIZATION}/unbilled/USD"] == 100 + 20 * 27_000 + 30 * 3 + 4 * 1_100_000
        assert sum(pico for account, pico in found.items() if account.endswith("/USD")) == 0
        assert sum(pico for account, pico in found.items() if account.endswith("/EUR")) == 0
        assert count(database, money.ledger_transactions) == 2

    def test_what_costs_nothing_is_an_event_without_a_transaction(self, database: Database, archive: Archive) -> None:
        failed = final(admit(1), outcome=Outcome.UPSTREAM_ERROR, used=Quantities(100), first_token_at=None, error="upstream_cut")
        assert take(database, archive, frames([failed.admit, failed])).events == 1
        assert balances(database) == {}
        with database.platform(write=False) as tx:
            (event,) = read_events(tx)
        assert event.amounts == Amounts()

    def test_amounts_beyond_64_bits_stay_exact(self, database: Database, archive: Archive) -> None:
        dear = msgspec.structs.replace(
            PRICE,
            id="price_" + "d" * 32,
            valid_from=EPOCH,
            unit_prices=msgspec.structs.replace(PRICE.unit_prices, output=10**12 - 1, input=10**12),
        )
        with database.platform() as tx:
            add_price(tx, dear)
        tokens = 9_000_000
        records: list[Record] = []
        for number in range(1, 8):
            of = admit(number, price_version=dear.id)
            records += [of, final(of, used=Quantities(tokens, 0, tokens, 0))]
        body = frames(records)
        take(database, archive, body[:6])
        take(database, archive, body[6:], first_seq=7)  # rollups carry what is beyond a whole unit
        assert balances(database)[f"{ORGANIZATION}/unbilled/EUR"] == 7 * (2 * tokens * 10**12 - tokens + 5) > 2**63
        assert verify(database, archive).differences == []

    def test_records_that_are_no_finals_only_move_the_watermark(self, database: Database, archive: Archive) -> None:
        records = [admit(1), Progress(request_id=samples.request_id(1), used=Quantities(1)), Tick(at=EPOCH + 5)]
        assert take(database, archive, frames(records)) == Ingested(4)
        with database.platform(write=False) as tx:
            assert tx.connection.execute(sa.select(money.epochs.c.ticked_at)).scalar_one() == EPOCH + 5


class TestRedelivered:
    def test_ten_times_is_once(self, database: Database, archive: Archive) -> None:
        body = frames(exchanges([1, 2, 3]))
        take(database, archive, body)
        before = state(database)
        for _ in range(10):
            assert take(database, archive, body) == Ingested(7)
        assert state(database) == before

    def test_an_overlap_is_skipped_and_the_rest_taken(self, database: Database, archive: Archive) -> None:
        body = frames(exchanges([1, 2, 3]))
        take(database, archive, body[:3])
        assert take(database, archive, body[1:], first_seq=2) == Ingested(7, events=2)
        assert verify(database, archive).differences == []

    def test_a_retry_after_a_crash_before_the_commit_is_whole(self, database: Database, archive: Archive) -> None:
        body = frames(exchanges([1, 2]))
        take(database, archive, body[:2])

        class PowerCut(Exception):
            pass

        with pytest.raises(PowerCut), database.platform() as tx:
            collect(tx, archive, node_id=NODE, epoch=EPOCH, first_seq=3, body=b"".join(body[2:]), now=NOW)
            raise PowerCut
        assert verify(database, archive).differences == []
        assert take(database, archive, body[2:], first_seq=3) == Ingested(5, events=1)
        assert verify(database, archive).differences == []

    def test_two_senders_at_once_are_as_one(self, database: Database, archive: Archive) -> None:
        body = frames(exchanges(range(1, 61)))
        faults: list[BaseException] = []

        def send(seed: int) -> None:
            order, seq = random.Random(seed), 1
            try:
                while seq <= len(body):
                    size = order.randint(1, 17)
                    try:
                        seq = take(database, archive, body[seq - 1 : seq - 1 + size], first_seq=seq).next_seq
                    except Gap as gap:
                        seq = gap.next_seq
            except BaseException as error:
                faults.append(error)

        senders = [threading.Thread(target=send, args=(seed,)) for seed in (1, 2, 3)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(PATIENCE_SECONDS)
        assert faults == []
        assert count(database, money.usage_events) == 60
        assert verify(database, archive).differences == []


class TestRefused:
    def test_a_gap_names_the_record_to_go_on_from(self, database: Database, archive: Archive) -> None:
        body = frames(exchanges([1, 2, 3]))
        take(database, archive, body[:2])
        with pytest.raises(Gap) as refused:
            take(database, archive, body[3:], first_seq=4)
        assert refused.value.next_seq == 3

    @pytest.mark.parametrize("damage", ["flip", "cut", "swap", "leave_out", "garbage", "other_epoch", "zeros"])
    def test_what_is_not_the_continuation_changes_nothing(self, database: Database, archive: Archive, damage: str) -> None:
        body = frames(exchanges([1, 2, 3]))
        take(database, archive, body[:2])
        before, rest = state(database), body[2:]
        match damage:
            case "flip":
                rest[1] = rest[1][:-3] + bytes([rest[1][-3] ^ 1]) + rest[1][-2:]
            case "cut":
                rest[-1] = rest[-1][:-1]
            case "swap":
                rest[0], rest[1] = rest[1], rest[0]
            case "leave_out":
                del rest[1]
            case "garbage":
                rest.append(b"\x07" * 100)
            case "other_epoch":
                rest = frames(exchanges([1, 2, 3]), epoch=EPOCH + 1)[2:]
            case "zeros":
                rest.append(bytes(64))
        with pytest.raises(BatchRefused):
            take(database, archive, rest, first_seq=3)
        assert state(database) == before
        assert take(database, archive, body[2:], first_seq=3) == Ingested(7, events=2)

    def test_another_past_is_not_taken_for_ours(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames(exchanges([1])))
        with pytest.raises(BatchRefused):
            take(database, archive, frames(exchanges([9, 2])))

    def test_nothing_follows_close(self, database: Database, archive: Archive) -> None:
        body = frames([Close(at=EPOCH + 9), *exchanges([1])])
        take(database, archive, body[:1])
        before = state(database)
        with pytest.raises(BatchRefused):
            take(database, archive, body[1:], first_seq=2)
        assert state(database) == before


class TestPutAside:
    def test_another_content_under_a_known_id_never_changes_money(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames(exchanges([1])))
        before = balances(database)
        forged = [admit(1), final(admit(1), used=Quantities(999_999))]
        assert take(database, archive, frames(forged, node_id=OTHER_NODE), node_id=OTHER_NODE) == Ingested(3, conflicts=1)
        assert balances(database) == before
        assert verify(database, archive).differences == []

    def test_within_one_batch_the_first_counts(self, database: Database, archive: Archive) -> None:
        twice = [admit(1), final(admit(1)), final(admit(1)), final(admit(1), used=Quantities(7))]
        assert take(database, archive, frames(twice)) == Ingested(5, events=1, conflicts=1)
        assert verify(database, archive).differences == []

    def test_the_same_content_again_in_another_epoch_is_nothing(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames(exchanges([1])))
        before = balances(database)
        again = frames(exchanges([1]), epoch=EPOCH - 1)
        assert take(database, archive, again, epoch=EPOCH - 1) == Ingested(3)
        assert balances(database) == before
        assert verify(database, archive).differences == []

    @pytest.mark.parametrize(
        ("reason", "admit_changes", "final_changes"),
        [
            ("organization_unknown", {"organization_id": "org_" + "9" * 32}, {}),
            ("price_unknown", {"price_version": "price_" + "9" * 32}, {}),
            ("price_not_applicable", {"price_version": samples.OTHER_PRICE.id}, {}),
            ("price_not_applicable", {"model": "another"}, {}),
            ("invalid", {}, {"used": Quantities(input=TOKENS_MAX + 1)}),
            ("invalid", {}, {"used": Quantities(output=-1)}),
            ("invalid", {"outcome_policy": 99}, {}),
            ("invalid", {"project_id": "proj_\n"}, {}),
            ("invalid", {"key_id": "k\x00"}, {}),
            ("invalid", {"model": "m" * 129}, {}),
            ("invalid", {}, {"ended_at": 2**60}),
            ("invalid", {}, {"error": "e" * 65}),
        ],
    )
    def test_what_cannot_be_rated_is_kept_and_holds_up_nothing(
        self, database: Database, archive: Archive, reason: str, admit_changes: dict[str, Any], final_changes: dict[str, Any]
    ) -> None:
        of = admit(1, **admit_changes)
        body = frames([of, final(of, **final_changes), *exchanges([2])])
        assert take(database, archive, body) == Ingested(5, events=1, quarantined=1)
        with database.platform(write=False) as tx:
            assert tx.connection.execute(sa.select(money.quarantined_records.c.reason)).scalars().all() == [reason]
        assert take(database, archive, body) == Ingested(5)
        assert verify(database, archive).differences == []

    @pytest.mark.parametrize("payload", [b"{}", b"\xff\xfe", b'{"record":"refund","amount":1}', b"[" * 1000])
    def test_what_is_no_record_is_kept_too(self, database: Database, archive: Archive, payload: bytes) -> None:
        assert take(database, archive, frames([payload, *exchanges([2])])) == Ingested(4, events=1, quarantined=1)
        assert verify(database, archive).differences == []


class TestImmutable:
    # Months are removed by retention alone, on PostgreSQL alone: see test_retention.
    @pytest.mark.parametrize(
        "table", [table for table in money.APPEND_ONLY if table is not money.removed_months], ids=lambda table: table.name
    )
    def test_history_refuses_to_be_rewritten(self, database: Database, archive: Archive, table: sa.Table) -> None:
        forged = [admit(1), final(admit(1), used=Quantities(1))]
        take(database, archive, frames([*exchanges([1]), *forged, b"{}"]))
        with database.platform() as tx:
            for origin in KeyOrigin:  # what it would have cost is unknown, so two persons agree
                operator = Operator(f"key_{origin}", origin)
                quarantine.write_off(tx, NODE, EPOCH, 5, reason="not a record", actor=operator, limit_pico=0, now=NOW)
        column = next(iter(table.primary_key))
        for change in (table.delete(), table.update().values({column.name: column})):
            with pytest.raises(sa.exc.DBAPIError), database.platform() as tx:
                tx.connection.execute(change)
        assert count(database, table) > 0


class TestVerify:
    """Each table, when it lies, is found out."""

    def tampered(self, database: Database, archive: Archive, statement: str) -> set[str]:
        take(database, archive, frames(exchanges([1, 2, 3])))
        assert verify(database, archive).is_right
        with database.platform() as tx:
            for table in money.APPEND_ONLY:
                if database.is_sqlite:
                    for verb in ("update", "delete"):
                        tx.connection.exec_driver_sql(f"DROP TRIGGER {table.name}_refuses_{verb}")
                else:
                    become_owner(tx)
                    tx.connection.exec_driver_sql(f"ALTER TABLE {table.name} DISABLE TRIGGER USER")
            tx.connection.execute(sa.text(statement))
        return {difference.table for difference in verify(database, archive).differences}

    @pytest.mark.parametrize(
        ("table", "statement"),
        [
            ("usage_events", "UPDATE usage_events SET output = output + 1 WHERE seq = 2"),
            ("usage_events", f"UPDATE usage_events SET organization_id = '{OTHER_ORGANIZATION}' WHERE seq = 2"),
            ("usage_events", "UPDATE usage_events SET input_pico = 0 WHERE seq = 2"),
            ("usage_events", "DELETE FROM usage_events WHERE seq = 4"),
            ("usage_events", "UPDATE usage_events SET seq = 99 WHERE seq = 2"),
            ("usage_events", "UPDATE usage_events SET seq = 3 WHERE seq = 2"),
            ("usage_events", "UPDATE usage_events SET epoch = epoch + 1"),
            ("usage_events", "UPDATE usage_events SET event_id = 'req_x' WHERE seq = 2"),
            ("usage_rollups", "UPDATE usage_rollups SET requests = requests + 1 WHERE width_seconds = 3600"),
            ("usage_rollups", "UPDATE usage_rollups SET input_cost_pico = input_cost_pico - 1 WHERE width_seconds = 60"),
            ("usage_rollups", "DELETE FROM usage_rollups WHERE width_seconds = 86400"),
            ("balances", "UPDATE balances SET posted_pico = '1' WHERE account_id LIKE 'org%'"),
            ("ledger_entries", "UPDATE ledger_entries SET amount_pico = '7' WHERE line = 1"),
            ("ledger_transactions", "UPDATE ledger_transactions SET first_seq = first_seq + 1"),
            ("ledger_transactions", "UPDATE ledger_transactions SET last_seq = last_seq + 100"),
            ("ledger_transactions", "UPDATE ledger_transactions SET epoch = epoch + 1"),
            ("ledger_transactions", f"UPDATE ledger_transactions SET node_id = '{OTHER_NODE}'"),
            ("ledger_entries", "UPDATE ledger_transactions SET first_seq = first_seq + 2, events = 2"),
            ("event_conflicts", f"INSERT INTO event_conflicts VALUES ('{NODE}', {EPOCH}, 2, 'req_x', 'x', 'x', 0)"),
            ("quarantined_records", f"INSERT INTO quarantined_records VALUES ('{OTHER_NODE}', 1, 2, 'req_x', 'x', 'x', 0, NULL, NULL)"),
        ],
    )
    def test_a_changed_table_is_named(self, database: Database, archive: Archive, table: str, statement: str) -> None:
        if not database.is_sqlite:
            statement = statement.replace("'1'", "1").replace("'7'", "7")
        assert table in self.tampered(database, archive, statement)

    @pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
    def test_a_damaged_archive_is_named(self, database: Database, archive: Archive, tmp_path: Path, damage: str) -> None:
        take(database, archive, frames(exchanges([1, 2, 3])))
        path = tmp_path / "archive" / NODE / f"{EPOCH}.seg"
        data = path.read_bytes()
        match damage:
            case "flip":
                path.write_bytes(data[:900] + bytes([data[900] ^ 4]) + data[901:])
            case "cut":
                path.write_bytes(data[:-1])
            case "remove":
                path.unlink()
        assert "archive" in {difference.table for difference in verify(database, archive).differences}


# ---- Any order, any cut, any number of times --------------------------------------------------------------------------


def histories() -> st.SearchStrategy[dict[tuple[str, int], list[Record]]]:
    """Records of some nodes in some epochs, including conflicts and unknown organizations."""
    ends = st.builds(
        lambda outcome, input, output, org: (outcome, Quantities(input, 1, output, 0), org),
        st.sampled_from(list(Outcome)),
        st.integers(0, 5000),
        st.integers(0, 5000),
        st.sampled_from([(ORGANIZATION, PRICE), (OTHER_ORGANIZATION, samples.OTHER_PRICE), ("org_" + "9" * 32, PRICE)]),
    )
    epochs = [(NODE, EPOCH), (NODE, EPOCH + 7), (OTHER_NODE, EPOCH)]

    def build(plan: list[list[tuple[Outcome, Quantities, tuple[str, PriceVersion]]]]) -> dict[tuple[str, int], list[Record]]:
        numbers = itertools.count(1)
        history: dict[tuple[str, int], list[Record]] = {}
        for place, ended in zip(epochs, plan, strict=True):
            records: list[Record] = []
            for outcome, used, (organization_id, price) in ended:
                of = admit(next(numbers), organization_id=organization_id, price_version=price.id)
                records += [of, final(of, outcome=outcome, used=used)]
            history[place] = [*records, Close(at=EPOCH + 10**9)]
        return history

    return st.lists(st.lists(ends, max_size=6), min_size=3, max_size=3).map(build)


class TestAnyOrder:
    @settings(max_examples=12)
    @given(history=histories(), seed=st.integers(0, 2**32))
    def test_deliveries_in_any_order_have_one_result(
        self, sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory, history: Any, seed: int
    ) -> None:
        whole = {place: frames(records, *place) for place, records in history.items()}
        directory = tmp_path_factory.mktemp("order")
        with sqlite_template.copied(directory) as straight_url, sqlite_template.copied(directory) as shuffled_url:
            straight, shuffled = Database.open(straight_url), Database.open(shuffled_url)
            for database in (straight, shuffled):
                fill(database)
            first, second = Archive(directory / "a"), Archive(directory / "b")
            for (node_id, epoch), body in whole.items():
                take(straight, first, body, 1, node_id, epoch)
            order = random.Random(seed)
            reached = dict.fromkeys(whole, 1)
            while any(reached[place] <= len(body) for place, body in whole.items()):
                place = order.choice(list(whole))
                body = whole[place]
                start = order.randint(1, min(reached[place] + 1, len(body)))
                end = order.randint(start, min(start + 5, len(body)))
                try:
                    reached[place] = take(shuffled, second, body[start - 1 : end], start, *place).next_seq
                except Gap as gap:
                    assert gap.next_seq == reached[place] < start
            assert state(shuffled) == state(straight)
            for database, archive in ((straight, first), (shuffled, second)):
                report = verify(database, archive)
                assert report.differences == []
                assert report.epochs == 3
                assert report.events == count(database, money.usage_events)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(verification, "PIECE_RECORDS", seed % 5 + 1)
                    assert verify(database, archive) == report
            straight.close()
            shuffled.close()


class TestRollups:
    def test_token_classes_add_up_and_costs_equal_the_lines(self, database: Database, archive: Archive) -> None:
        records: list[Record] = []
        for number in range(1, 40):
            of = admit(number * 97_000, project_id=f"proj_{number % 3}", key_id=f"key_{number % 4}")
            records += [of, final(of, used=Quantities(number, number * 2, number * 3, number * 4))]
        take(database, archive, frames(records))
        with database.platform(write=False) as tx:
            by_width: dict[int, list[UsageSums]] = {}
            for key, sums in stored_rollups.iterate_rollups(tx):
                by_width.setdefault(key[1], []).append(sums)
            costs = [event.amounts.total for event in read_events(tx)]
        total = sum(number for number in range(1, 40))
        for sums in by_width.values():
            assert sum(group.requests for group in sums) == 39
            assert [sum(group.billed.get(name) for group in sums) for name in TEXT_CLASSES] == [
                total,
                total * 2,
                total * 3,
                total * 4,
            ]
            assert sum(group.amounts.total for group in sums) == sum(costs)
        assert set(by_width) == {60, 3600, 86400}
