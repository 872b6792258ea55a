"""Corrections: at the event's own price, once, never more back than was billed, with a second person above the limit.

One contract, on SQLite and on PostgreSQL.
"""

import os
import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from tests.control.harness import mint
from tests.control.metering.test_collect import balances, take
from tests.control.money.test_periods import ACTOR, NOW, OCTOBER, SEPTEMBER, close, drop_triggers, ended
from tests.link import samples
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_NODE, admit, exchanges, final, frames
from tests.patience import PATIENCE_SECONDS
from tests.storage.databases import SqliteTemplate, fill
from tollway.control.identity import keys
from tollway.control.metering import usage
from tollway.control.money import corrections
from tollway.control.money.corrections import WantedAdjustment
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.corrections import Adjustment, AdjustmentKind, AdjustmentState, ApprovalDecision
from tollway.domain.faults import Fault
from tollway.domain.ids import KEY, new_id
from tollway.domain.keys import RANDOM_BYTES, KeyOrigin, KeyType, Operator
from tollway.domain.roles import OPERATOR as OPERATOR_ROLE
from tollway.domain.rollups import UsageQuery
from tollway.domain.usage import Close, Outcome
from tollway.storage import corrections as stored
from tollway.storage.database import Database, PlatformTx
from tollway.storage.record_archive import Archive

OPERATOR = Operator(ACTOR, KeyOrigin.FIRST)
APPROVER = Operator("key_" + "b" * 32, KeyOrigin.SECOND)
LIMIT = 10**12
PEPPER = keys.Pepper(1, os.urandom(32))
COST = 100 * 270_000 + 20 * 27_000 + 30 * 1_100_000 + 4 * 1_100_000 + 5
EVENT = samples.request_id(1)
KEYS = ["key_" + digit * 32 for digit in "123"]
UNBILLED = f"{ORGANIZATION}/unbilled/EUR"
VOID = WantedAdjustment(event_id=EVENT, kind=AdjustmentKind.VOID, reason="a duplicate")
REPLACE = WantedAdjustment(event_id=EVENT, kind=AdjustmentKind.REPLACE, reason="miscounted", replacement=Quantities(50, 0, 30, 0, 1))


def credit(pico: int) -> WantedAdjustment:
    return WantedAdjustment(event_id=EVENT, kind=AdjustmentKind.CREDIT, reason="sorry", credit_pico=pico)


def credit_of(number: int, pico: int) -> WantedAdjustment:
    event_id = samples.request_id(number)
    return WantedAdjustment(event_id=event_id, kind=AdjustmentKind.CREDIT, reason="sorry", credit_pico=pico)


def seed(tx: PlatformTx, origin: KeyOrigin) -> Operator:
    """Store the key of the settings with this origin, as control does when it starts."""
    id, secret = new_id(KEY, NOW, list(KeyOrigin).index(origin)), mint(KeyType.PLATFORM)
    keys.seed_platform_key(tx, origin, secret, id=id, pepper=PEPPER, now=NOW)
    return Operator(id, origin)


@pytest.fixture
def taken(database: Database, archive: Archive) -> Database:
    """A database that ingested two requests."""
    take(database, archive, frames([*exchanges([1, 2]), Close(at=EPOCH + 9_000_000)]))
    return database


def ask(database: Database, wanted: WantedAdjustment, *, limit_pico: int = LIMIT, actor: Operator = OPERATOR, now: int = NOW) -> Adjustment:
    made = len(listed(database)) + 1
    with database.platform() as tx:
        return corrections.ask(tx, wanted, random_bits=made, actor=actor, limit_pico=limit_pico, now=now)


def decide(database: Database, adjustment: Adjustment, decision: ApprovalDecision, approver: Operator = APPROVER) -> Adjustment:
    with database.platform() as tx:
        return corrections.decide(tx, adjustment.id, decision, approver=approver, now=NOW)


def listed(database: Database) -> list[Adjustment]:
    with database.platform(write=False) as tx:
        return list(stored.iterate_adjustments(tx))


def refusal(database: Database, wanted: WantedAdjustment) -> str:
    with pytest.raises(Fault) as refused:
        ask(database, wanted)
    return f"{refused.value.kind.code}: {refused.value.message}"


class TestBooked:
    def test_a_void_takes_everything_back_at_the_original_price(self, taken: Database, archive: Archive) -> None:
        before = balances(taken)
        made = ask(taken, VOID)
        assert (made.state, made.amount_pico, made.period_at) == (AdjustmentState.APPLIED, -COST, SEPTEMBER.start_at)
        assert balances(taken) == {account: pico // 2 for account, pico in before.items()}
        assert verify(taken, archive).differences == []

    def test_they_count_where_groups_are_ordered_by_cost(self, database: Database, archive: Archive) -> None:
        """Those of a key that has most, in a span with its usage and in one that begins behind it."""
        records = [*exchanges([1], key_id=KEYS[0]), *exchanges([2, 3, 4], key_id=KEYS[1]), *exchanges([5, 6], key_id=KEYS[2])]
        take(database, archive, frames([*records, Close(at=EPOCH + 9_000_000)]))
        day = 86_400_000_000
        first, last = EPOCH - EPOCH % day, NOW - NOW % day
        query = UsageQuery(86_400, first, last + day, ("project_id", "key_id"), is_whole=True)

        def rank(query: UsageQuery, count: int, before_at: int | None = None) -> tuple[list[tuple[str, int, int]], int]:
            with database.tenant(ORGANIZATION, write=False) as tx:
                found = usage.rank_costs(tx, query, count=count, before_at=before_at)
            return [(each.group[1], each.value, each.before) for each in found.groups], found.count

        assert rank(query, 2) == ([(KEYS[1], 3 * COST, 0), (KEYS[2], 2 * COST, 0)], 3)
        for number in (2, 3, 4):
            ask(database, replace(VOID, event_id=samples.request_id(number)))
        assert rank(query, 2) == ([(KEYS[2], 2 * COST, 0), (KEYS[0], COST, 0)], 3)
        later = replace(query, start_at=last)
        assert rank(later, 9, first) == ([(KEYS[0], 0, COST), (KEYS[2], 0, 2 * COST), (KEYS[1], -3 * COST, 3 * COST)], 3)
        assert rank(later, 9) == ([(KEYS[1], -3 * COST, 0)], 1)

    def test_a_replace_bills_other_quantities_at_the_same_price(self, taken: Database, archive: Archive) -> None:
        made = ask(taken, REPLACE)
        assert made.amount_pico == 50 * 270_000 + 30 * 1_100_000 + 5 - COST
        found = balances(taken)
        assert found[UNBILLED] == 2 * COST + made.amount_pico
        assert found["platform/revenue:echo:input/EUR"] == -150 * 270_000
        assert found["platform/revenue:echo:cached_input/EUR"] == -20 * 27_000
        assert verify(taken, archive).differences == []

    def test_a_replace_may_bill_more(self, taken: Database, archive: Archive) -> None:
        made = ask(
            taken,
            WantedAdjustment(event_id=EVENT, kind=AdjustmentKind.REPLACE, reason="r", replacement=Quantities(10**6)),
        )
        assert made.amount_pico == 10**6 * 270_000 - COST > 0
        assert verify(taken, archive).differences == []

    def test_a_credit_is_borne_by_the_platform(self, taken: Database, archive: Archive) -> None:
        ask(taken, credit(1000))
        ask(taken, credit(COST - 1000))
        assert balances(taken)[UNBILLED] == COST
        assert balances(taken)["platform/credits:echo/EUR"] == COST
        assert refusal(taken, credit(1)) == "conflict: The credits of a request cannot exceed what it costs."
        assert verify(taken, archive).differences == []

    def test_in_an_open_period_when_that_of_the_event_is_closed(self, taken: Database, archive: Archive) -> None:
        closed = close(taken, SEPTEMBER.start_at)
        made = ask(taken, VOID)
        assert made.period_at == OCTOBER.start_at
        assert close(taken, SEPTEMBER.start_at) == closed
        october = close(taken, OCTOBER.start_at).closed
        assert october is not None
        assert (october.events, october.adjustments, october.adjustments_pico) == (0, 1, -COST)
        assert verify(taken, archive).differences == []


class TestRefused:
    def test_a_second_void_or_replace(self, taken: Database) -> None:
        ask(taken, REPLACE)
        assert refusal(taken, REPLACE) == refusal(taken, VOID) == "conflict: The quantities of this request have been replaced before."

    def test_anything_after_a_void(self, taken: Database) -> None:
        ask(taken, VOID)
        for wanted in (VOID, REPLACE, credit(1)):
            assert refusal(taken, wanted) == "conflict: The request has been voided."

    def test_a_request_of_a_test_key(self, taken: Database, archive: Archive) -> None:
        tried = admit(30, test=True)
        take(taken, archive, frames([tried, final(tried)], node_id=OTHER_NODE), node_id=OTHER_NODE)
        for wanted in (VOID, REPLACE, credit(1)):
            wanted = replace(wanted, event_id=tried.request_id)
            assert refusal(taken, wanted) == "conflict: The request was sent with a test key: it is never billed."

    def test_a_void_after_a_credit(self, taken: Database) -> None:
        ask(taken, credit(1))
        assert "conflict" in refusal(taken, VOID)
        assert "conflict" in refusal(taken, REPLACE)

    def test_more_credit_than_what_a_replaced_request_costs(self, taken: Database, archive: Archive) -> None:
        left = COST + ask(taken, REPLACE).amount_pico
        assert "conflict" in refusal(taken, credit(left + 1))
        ask(taken, credit(left))
        assert verify(taken, archive).differences == []

    def test_what_changes_nothing_or_is_unknown(self, database: Database, archive: Archive) -> None:
        free = final(admit(1), outcome=Outcome.UPSTREAM_ERROR, used=Quantities(100), first_token_at=None, error="upstream_cut")
        take(database, archive, frames([free.admit, free]))
        assert refusal(database, VOID) == "conflict: This would change nothing."
        assert "not_found" in refusal(database, WantedAdjustment(event_id=samples.request_id(9), kind=AdjustmentKind.VOID, reason="r"))
        assert "missing" in refusal(database, WantedAdjustment(event_id=EVENT, kind=AdjustmentKind.REPLACE, reason="r"))
        assert "missing" in refusal(database, WantedAdjustment(event_id=EVENT, kind=AdjustmentKind.CREDIT, reason="r"))


class TestFourEyes:
    def test_above_the_limit_nothing_moves_until_another_key_approves(self, taken: Database, archive: Archive) -> None:
        before = balances(taken)
        waiting = ask(taken, VOID, limit_pico=COST - 1)
        assert (waiting.state, waiting.period_at) == (AdjustmentState.PENDING, None)
        assert balances(taken) == before
        assert refusal(taken, credit(1)) == "conflict: Another correction of this request waits for approval."
        with pytest.raises(Fault, match="conflict"):
            decide(taken, waiting, ApprovalDecision.APPROVED, approver=OPERATOR)
        approved = decide(taken, waiting, ApprovalDecision.APPROVED)
        assert (approved.state, approved.approver) == (AdjustmentState.APPLIED, APPROVER.key_id)
        assert balances(taken)[UNBILLED] == COST
        for decision in ApprovalDecision:
            with pytest.raises(Fault, match="conflict"):
                decide(taken, waiting, decision)
        assert verify(taken, archive).differences == []

    def test_at_the_limit_one_key_is_enough(self, taken: Database) -> None:
        assert ask(taken, VOID, limit_pico=COST).state is AdjustmentState.APPLIED

    def test_a_limit_cannot_be_walked_around_in_small_steps(self, taken: Database) -> None:
        assert ask(taken, credit(600), limit_pico=1000).state is AdjustmentState.APPLIED
        assert ask(taken, credit(600), limit_pico=1000).state is AdjustmentState.PENDING

    def test_a_limit_holds_for_all_that_one_person_asks_for_on_a_day(self, taken: Database, archive: Archive) -> None:
        """With one request after the other, and with one key after the other that the same person has made."""
        day_us = 86_400_000_000
        other_key = Operator("key_other", KeyOrigin.FIRST)
        assert ask(taken, credit(600), limit_pico=1000).state is AdjustmentState.APPLIED
        waiting = ask(taken, credit_of(2, 600), limit_pico=1000, actor=other_key)
        assert waiting.state is AdjustmentState.PENDING
        decide(taken, waiting, ApprovalDecision.REJECTED, approver=other_key)
        assert ask(taken, credit_of(2, 400), limit_pico=1000, actor=other_key).state is AdjustmentState.APPLIED
        assert ask(taken, credit_of(2, 1), limit_pico=1000, actor=APPROVER).state is AdjustmentState.APPLIED, "another person's limit"
        assert ask(taken, credit_of(2, 1), limit_pico=1000).state is AdjustmentState.PENDING
        assert ask(taken, credit(400), limit_pico=1000, now=NOW + day_us).state is AdjustmentState.APPLIED, "another day"
        assert verify(taken, archive).differences == []

    def test_a_limit_holds_for_what_one_person_asks_for_at_once(self, taken: Database) -> None:
        """Each transaction alone would see the limit untouched."""
        states: list[str] = []

        def ask_for(number: int) -> None:
            with taken.platform() as tx:
                wanted = credit_of(number, 600)
                states.append(corrections.ask(tx, wanted, random_bits=number, actor=OPERATOR, limit_pico=1000, now=NOW).state)

        with taken.platform() as tx:
            seed(tx, KeyOrigin.FIRST)
        threads = [threading.Thread(target=ask_for, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert sorted(states) == ["applied", "pending"]

    def test_what_was_rejected_never_was(self, taken: Database, archive: Archive) -> None:
        rejected = decide(taken, ask(taken, VOID, limit_pico=0), ApprovalDecision.REJECTED, approver=OPERATOR)
        assert rejected.state is AdjustmentState.REJECTED
        assert ask(taken, VOID).state is AdjustmentState.APPLIED
        assert balances(taken)[UNBILLED] == COST
        assert verify(taken, archive).differences == []


MINTS = st.lists(st.integers(0, 30), max_size=6)


@given(mints=MINTS, start=st.integers(0, 3), asker=st.integers(0, 30), approver=st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_no_sequence_of_keys_made_from_one_key_approves_its_own_request(
    sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory, mints: list[int], start: int, asker: int, approver: int
) -> None:
    """Whoever holds one key, of the settings or made with one, makes any keys with it and with those, asks with one, approves with one."""
    with sqlite_template.copied(tmp_path_factory.mktemp("mints")) as url:
        database = Database.open(url)
        fill(database)
        with database.platform() as tx:
            roots = [seed(tx, origin) for origin in KeyOrigin]
            others = [make_key(tx, root, number) for number, root in enumerate(roots)]
            held = [[*roots, *others][start]]
            for number, maker in enumerate(mints, 2):
                held.append(make_key(tx, held[maker % len(held)], number))
        archive = Archive(tmp_path_factory.mktemp("mints"))
        take(database, archive, frames(exchanges([1])))
        waiting = ask(database, VOID, limit_pico=0, actor=held[asker % len(held)])
        with pytest.raises(Fault, match="conflict"):
            decide(database, waiting, ApprovalDecision.APPROVED, approver=held[approver % len(held)])
        (other,) = {root for root in roots if root.origin is not held[0].origin}
        assert decide(database, waiting, ApprovalDecision.APPROVED, approver=other).state is AdjustmentState.APPLIED
        database.close()


def make_key(tx: PlatformTx, maker: Operator, number: int) -> Operator:
    """Make an operator's key with another one, as the API does."""
    ingredients = keys.Ingredients(os.urandom(RANDOM_BYTES), PEPPER)
    made = keys.create_operator_key(
        tx, name=f"key {number}", role=OPERATOR_ROLE, maker=maker, id=new_id(KEY, NOW, 10 + number), ingredients=ingredients, now=NOW
    )
    assert made.key.origin is not None and made.key.created_by == maker.key_id
    return Operator(made.key.id, made.key.origin)


APPROVAL = "INSERT INTO adjustment_approvals SELECT"
FIRST_COLUMNS = "organization_id, event_id, project_id, key_id, model, kind"
LAST_COLUMNS = "reason, actor, needs_approval, created_at, actor_origin"
COPY = f"INSERT INTO usage_adjustments (id, {FIRST_COLUMNS}, amount_pico, {LAST_COLUMNS}) SELECT 'adj_x', {FIRST_COLUMNS}"
REST = f"{LAST_COLUMNS} FROM usage_adjustments"


class TestTheDatabaseItself:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE usage_adjustments SET amount_pico = -1",
            "DELETE FROM usage_adjustments",
            "UPDATE adjustment_approvals SET decision = 'rejected'",
            "DELETE FROM adjustment_approvals",
            f"{APPROVAL} id, actor, actor, 'approved', 1, 'second' FROM usage_adjustments WHERE kind = 'credit'",
            # An approval with another key that whoever asked could have made.
            f"{APPROVAL} id, actor, 'key_other', 'approved', 1, 'first' FROM usage_adjustments WHERE kind = 'credit'",
            # An approval by another key that says that yet another had asked for it.
            f"{APPROVAL} id, '{APPROVER.key_id}', actor, 'approved', 1, 'second' FROM usage_adjustments",
            f"{COPY}, -5, {REST} WHERE kind = 'void'",
            f"{COPY}, 5, {REST} WHERE kind = 'credit'",
        ],
    )
    def test_refuses(self, taken: Database, statement: str) -> None:
        decide(taken, ask(taken, VOID, limit_pico=0), ApprovalDecision.APPROVED)
        other = WantedAdjustment(event_id=samples.request_id(2), kind=AdjustmentKind.CREDIT, reason="r", credit_pico=5)
        ask(taken, other, limit_pico=0)
        with pytest.raises(DBAPIError), taken.platform() as tx:
            tx.connection.execute(sa.text(statement))

    def test_corrections_of_one_request_keep_their_order_though_the_clock_goes_back(self, taken: Database, archive: Archive) -> None:
        made = [ask(taken, REPLACE), ask(taken, credit(1), now=NOW - 5_000_000), ask(taken, credit(2), limit_pico=0, now=NOW - 9_000_000)]
        assert made == listed(taken)
        assert verify(taken, archive).differences == []

    def test_two_operators_at_once_void_once(self, taken: Database, archive: Archive) -> None:
        answers: list[str] = []

        def void(number: int) -> None:
            try:
                with taken.platform() as tx:
                    made = corrections.ask(tx, VOID, random_bits=number, actor=OPERATOR, limit_pico=LIMIT, now=NOW)
                answers.append(made.state)
            except Fault as fault:
                answers.append(fault.kind.code)

        threads = [threading.Thread(target=void, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert sorted(answers) == ["applied", "conflict", "conflict"]
        assert balances(taken)[UNBILLED] == COST
        assert verify(taken, archive).differences == []


class TestVerify:
    @pytest.mark.parametrize(
        ("statement", "table"),
        [
            ("UPDATE usage_adjustments SET amount_pico = amount_pico + 1", "usage_adjustments"),
            ("UPDATE usage_adjustments SET model = 'other'", "usage_adjustments"),
            ("UPDATE usage_adjustments SET event_id = 'req_9'", "usage_adjustments"),
            ("UPDATE usage_adjustments SET needs_approval = TRUE", "usage_adjustments"),
            (
                "DELETE FROM ledger_entries WHERE transaction_id = (SELECT id FROM ledger_transactions WHERE cause = 'adjustment')",
                "balances",
            ),
        ],
    )
    def test_finds_what_somebody_with_all_rights_did(self, taken: Database, archive: Archive, statement: str, table: str) -> None:
        for each in ("usage_adjustments", "ledger_transactions", "ledger_entries"):
            drop_triggers(taken, each)
        ask(taken, VOID)
        with taken.platform() as tx:
            tx.connection.execute(sa.text(statement))
        assert table in [difference.table for difference in verify(taken, archive).differences]


def test_late_and_corrected_and_closed_all_at_once(database: Database, archive: Archive) -> None:
    """The scenario of a bad month: a late event, a correction of it, and a correction of one in the closed period."""
    body = frames([*ended(1, EPOCH), Close(at=EPOCH + 1)])
    take(database, archive, body)
    close(database, SEPTEMBER.start_at)
    other = samples.OTHER_NODE
    take(database, archive, frames([*ended(2, EPOCH + 2), Close(at=EPOCH + 3)], node_id=other), node_id=other, now=OCTOBER.end_at + 10**13)
    late = WantedAdjustment(event_id=samples.request_id(2), kind=AdjustmentKind.CREDIT, reason="late", credit_pico=7)
    assert {ask(database, late).period_at, ask(database, VOID).period_at} == {OCTOBER.start_at}
    october = close(database, OCTOBER.start_at).closed
    assert october is not None
    assert (october.events, october.adjustments, october.adjustments_pico) == (1, 2, -COST - 7)
    assert sum(october.amounts.values()) + october.adjustments_pico == -7
    assert balances(database)[UNBILLED] == COST - 7
    assert verify(database, archive).differences == []
