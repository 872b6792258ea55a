"""Credits at control: granted, burned by usage, settled at the close of periods, and held to by prepaid budgets; on each database."""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest

from tests.control.harness import Running, TenantSetup, answered
from tests.control.metering.test_collect import balances, take
from tests.control.money.test_periods import NOVEMBER, NOW, OCTOBER, SEPTEMBER, close, drop_triggers, ended, period_of
from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, PROJECT, frames
from tests.storage.test_sign_in import is_waiting
from tollway.cli.app import run
from tollway.control import publish
from tollway.control.money import budgets, credits, periods
from tollway.control.money.credits import WantedGrant
from tollway.control.verification.verify import compare, verify
from tollway.domain import ids
from tollway.domain.budgets import LeaseGrant, LeaseRequest, name_place_budget
from tollway.domain.credits import (
    MINUTE_US,
    CreditGrant,
    CreditMove,
    CreditPlace,
    CreditScope,
    CreditUsage,
    GrantCategory,
    Topup,
    TopupInterval,
    TopupRule,
    find_next_topup,
)
from tollway.domain.faults import Fault
from tollway.domain.pages import PageWindow
from tollway.domain.periods import period_id
from tollway.domain.proofs import hash_statement
from tollway.domain.snapshot import BudgetEntry
from tollway.domain.usage import Final, Record, Tick, billed, encode
from tollway.storage import credits as stored_credits
from tollway.storage import platform_queries
from tollway.storage import topups as stored_topups
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive
from tollway.storage.schema_periods import billing_periods
from tollway.wire.segments import extend, first_chain

BEGIN = EPOCH // MINUTE_US * MINUTE_US
SUNDAY = int(datetime(2026, 11, 8, 10, tzinfo=UTC).timestamp()) * 10**6
PREPAID = ids.new_id(ids.BUDGET, EPOCH, 9)


def cost_of(final: Final) -> int:
    return billed(final).times(samples.PRICE.unit_prices).total


COST = cost_of(samples.final(samples.admit(1)))
"""Cost of each sample request."""


def add_grant(
    database: Database, amount_pico: int, number: int = 1, now: int = EPOCH, organization_id: str = ORGANIZATION, **terms: Any
) -> CreditGrant:
    wanted: dict[str, Any] = {
        "category": GrantCategory.PAID,
        "amount_pico": amount_pico,
        "currency": None,
        "cost_basis_bp": None,
        "priority": 0,
        "effective_at": None,
        "expires_at": None,
        "reference": "",
        "project_id": None,
        "model": "",
    } | terms
    with database.platform() as tx:
        return credits.create_grant(tx, organization_id, WantedGrant(**wanted), id=ids.new_id(ids.CREDIT_GRANT, EPOCH, number), now=now)


def left(database: Database) -> dict[str, int]:
    with database.tenant(ORGANIZATION, write=False) as tx:
        return {each.grant.id: each.left_pico for each in credits.list_standings(tx, ORGANIZATION)}


def moves(database: Database) -> list[tuple[str, CreditMove, int]]:
    with database.tenant(ORGANIZATION, write=False) as tx:
        page = credits.list_transactions(tx, ORGANIZATION, PageWindow(limit=100))
    return [(each.grant_id, each.move, each.amount_pico) for each in page.items]


def usable(database: Database) -> int:
    with database.tenant(ORGANIZATION, write=False) as tx:
        return credits.find_usable_credit(tx, ORGANIZATION, EPOCH + 10**6).pico


def redraw(database: Database) -> None:
    while credits.redraw_one(database, lambda: False):
        pass


def balance(database: Database, kind: str, owner: str = "platform") -> int:
    return balances(database).get(f"{owner}/{kind}/EUR", 0)


def set_prepaid(database: Database) -> None:
    with database.tenant(ORGANIZATION) as tx:
        budgets.set_prepaid(tx, is_prepaid=True, id=PREPAID, now=EPOCH)


def renew(
    database: Database,
    sequence: int,
    current: int,
    need: int,
    *,
    node_id: str = NODE,
    now: int = EPOCH,
    place: CreditPlace | None = None,
    of: str | None = None,
) -> LeaseGrant:
    """Ask for a lease: of the prepaid budget, or of its part for a place (`of`: under another id)."""
    request = LeaseRequest(budget_id=of or PREPAID, at=now, current_pico=current, need_pico=need)
    if place is not None:
        id = of or name_place_budget(PREPAID, place)
        request = msgspec.structs.replace(request, budget_id=id, project_id=place.project_id, model=place.model)
    with database.platform() as tx:
        return budgets.renew_leases(tx, node_id=node_id, epoch=EPOCH, sequence=sequence, requests=[request], now=now)[0]


def test_a_batch_of_several_organizations_draws_for_each_on_its_own_grants(database: Database, archive: Archive) -> None:
    first, second = add_grant(database, COST, 1), add_grant(database, 10 * COST, 2, priority=9)
    other = add_grant(database, 10 * COST, 3, organization_id=OTHER_ORGANIZATION)
    of_other = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}
    at = [EPOCH + 10**6, EPOCH + 2 * 10**6, OCTOBER.start_at + 10**6]
    records = [*ended(1, at[0]), *ended(2, at[0], **of_other), *ended(3, at[1]), *ended(4, at[2]), *ended(5, at[2], **of_other)]
    take(database, archive, frames(records))
    with database.platform(write=False) as tx:
        drawn = {(each.grant_id, each.period_at): each.drawn_pico for each in stored_credits.iterate_draws(tx)}
    expected = {
        (first.id, SEPTEMBER.start_at): COST,
        (second.id, SEPTEMBER.start_at): COST,
        (second.id, OCTOBER.start_at): COST,
    }
    assert {place: pico for place, pico in drawn.items() if place[0] != other.id} == expected
    assert {period_at for grant_id, period_at in drawn if grant_id == other.id} == {SEPTEMBER.start_at, OCTOBER.start_at}
    assert verify(database, archive).differences == []


class TestGrants:
    def test_109_credit_is_booked_burned_provisionally_and_settled_at_the_close_once(self, database: Database, archive: Archive) -> None:
        promised = add_grant(database, COST + 1, 1, category=GrantCategory.PROMOTIONAL)
        paid = add_grant(database, 10 * COST, 2)
        assert balance(database, "prepayments") == 10 * COST and balance(database, f"credit:{paid.id}", ORGANIZATION) == -10 * COST
        body = frames([*ended(1, EPOCH + 10**6), *ended(2, EPOCH + 2 * 10**6), Tick(at=SEPTEMBER.end_at)])
        take(database, archive, body)
        assert left(database) == {promised.id: 0, paid.id: 9 * COST + 1}, "of the same priority that of the lower cost basis burns first"
        assert balance(database, "unbilled", ORGANIZATION) == 2 * COST, "nothing is booked yet"
        assert verify(database, archive).differences == []
        close(database, SEPTEMBER.start_at)
        assert balance(database, "unbilled", ORGANIZATION) == 0
        assert (balance(database, f"credit:{promised.id}", ORGANIZATION), balance(database, f"credit:{paid.id}", ORGANIZATION)) == (
            0,
            -9 * COST - 1,
        )
        assert left(database) == {paid.id: 9 * COST + 1}
        assert sum(balances(database).values()) == 0
        close(database, SEPTEMBER.start_at)
        take(database, archive, body)
        assert left(database) == {paid.id: 9 * COST + 1}, "a second close and a second delivery change nothing"
        assert verify(database, archive).differences == []

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    def test_period_without_a_digest_of_credits_is_told_from_one_that_lost_it(self, database: Database, archive: Archive) -> None:
        add_grant(database, 10 * COST)
        take(database, archive, frames([*ended(1, EPOCH + 10**6), *ended(2, OCTOBER.start_at + 10**6), Tick(at=OCTOBER.end_at)]))
        for month in (SEPTEMBER, OCTOBER):
            close(database, month.start_at)
        assert verify(database, archive).differences == []
        drop_triggers(database, "billing_periods")
        for month, found in ((OCTOBER, ["billing_periods"]), (SEPTEMBER, [])):  # then all are as if closed before there were digests
            period = period_of(database, month.start_at)
            assert period.closed is not None and period.closed.credits_digest is not None
            without = replace(period, closed=replace(period.closed, credits_digest=None))
            values = {"credits_digest": None, "period_hash": hash_statement(periods.make_statement(without))}
            with database.platform() as tx:
                tx.connection.execute(billing_periods.update().where(billing_periods.c.id == period.id).values(values))
            assert [each.table for each in verify(database, archive).differences] == found

    def test_late_usage_takes_its_place_in_the_canonical_order_at_the_close(self, database: Database, archive: Archive) -> None:
        short = add_grant(database, COST, 1, expires_at=BEGIN + 10 * MINUTE_US)
        long = add_grant(database, COST, 2)
        early = samples.admit(1)
        later = samples.admit(2, admitted_at=BEGIN + 20 * MINUTE_US)
        first: list[Record | bytes] = [later, samples.final(later), early, samples.final(early), Tick(at=SEPTEMBER.end_at)]
        take(database, archive, frames(first))
        assert left(database) == {short.id: 0, long.id: 0}
        close(database, SEPTEMBER.start_at)
        assert {each: pico for each, move, pico in moves(database) if move is CreditMove.BURN} == {short.id: COST, long.id: COST}
        assert verify(database, archive).differences == []

    def test_credit_that_a_close_takes_from_a_later_period_is_not_usable_twice(self, database: Database, archive: Archive) -> None:
        first, second = add_grant(database, 10 * COST, 1), add_grant(database, 10 * COST, 2)
        september = [record for number in range(1, 10) for record in ended(number, EPOCH + number * 10**6)]
        october = ended(10, OCTOBER.start_at + 10**6)
        late = [record for number in (11, 12) for record in ended(number, EPOCH + number * 10**6)]
        sent = frames([*september, *october, *late, Tick(at=OCTOBER.start_at + 10**6)])
        before, after = len(september), len(september) + len(october)
        for part in (slice(0, before), slice(before, after), slice(after, None)):  # each draws on what the one before has left
            take(database, archive, sent[part], first_seq=part.start + 1)
        assert left(database) == {first.id: 0, second.id: 8 * COST}
        close(database, SEPTEMBER.start_at)
        assert usable(database) == 8 * COST, (
            "the usage of October has to burn the second grant, because that of September has burned the first"
        )
        redraw(database)
        assert left(database) == {second.id: 8 * COST} and usable(database) == 8 * COST
        assert not credits.redraw_one(database, lambda: False)
        assert verify(database, archive).differences == []

    def test_usage_that_arrives_while_draws_are_made_anew_is_drawn_once(
        self, database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = add_grant(database, 2 * COST, 1), add_grant(database, 10 * COST, 2)
        october = [record for number in (1, 2) for record in ended(number, OCTOBER.start_at + number * 10**6)]
        late = ended(3, EPOCH + 10**6)
        meanwhile = [
            [*ended(4, OCTOBER.start_at + 4 * 10**6), Tick(at=OCTOBER.start_at + 5 * 10**6)],
            [*ended(5, NOVEMBER.start_at + 5 * 10**6), Tick(at=NOVEMBER.end_at)],
        ]
        sent = frames([*october, *late, Tick(at=OCTOBER.start_at + 10**6), *meanwhile[0], *meanwhile[1]])
        take(database, archive, sent[:4])
        take(database, archive, sent[4:7], first_seq=5)
        assert left(database) == {first.id: 0, second.id: 9 * COST}
        close(database, SEPTEMBER.start_at)
        take(database, archive, sent[7:10], first_seq=8)
        assert usable(database) <= 8 * COST, "what October drew of the first grant is not usable twice"
        read = stored_credits.iterate_usage

        def read_and_take(*arguments: Any) -> Any:
            yield from read(*arguments)
            monkeypatch.setattr(stored_credits, "iterate_usage", read)
            take(database, archive, sent[10:], first_seq=11)

        monkeypatch.setattr(stored_credits, "iterate_usage", read_and_take)
        redraw(database)
        assert left(database) == {first.id: 0, second.id: 7 * COST} and usable(database) == 7 * COST
        with database.platform(write=False) as tx:
            drawn = {(each.grant_id, each.period_at): each.drawn_pico for each in stored_credits.iterate_draws(tx) if each.drawn_pico}
        assert drawn == {
            (first.id, SEPTEMBER.start_at): COST,
            (first.id, OCTOBER.start_at): COST,
            (second.id, OCTOBER.start_at): 2 * COST,
            (second.id, NOVEMBER.start_at): COST,
        }
        close(database, OCTOBER.start_at)
        close(database, NOVEMBER.start_at)
        assert verify(database, archive).differences == []

    @pytest.mark.postgres
    @pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
    def test_two_batches_at_once_are_kept_one_after_the_other_where_no_grant_is_open(self, database: Database) -> None:
        usage = credits.UsageSums({ORGANIZATION})
        usage._usage[ORGANIZATION, OCTOBER.start_at] = {CreditUsage(BEGIN, PROJECT, "echo"): COST}
        with database.platform() as tx:
            credits.put_topup_rule(tx, ORGANIZATION, TopupRule(COST, COST, 3600), EPOCH)
            stored_credits.put_redraw(tx, ORGANIZATION, OCTOBER.start_at, stored_credits.Redraw(SEPTEMBER.start_at, 0))

        def draw() -> None:
            with database.platform() as tx:
                credits.draw(tx, usage, EPOCH)

        with ThreadPoolExecutor(1) as threads:
            with database.platform() as first:
                credits.draw(first, usage, EPOCH)
                second = threads.submit(draw)
                while not is_waiting(database) and not second.done():
                    time.sleep(0.01)
            second.result()
        with database.platform(write=False) as tx:
            assert stored_credits.find_last_number(tx, ORGANIZATION) == 2

    def test_two_that_close_a_period_at_once_settle_it_once_however_many_statements_sum_it(
        self, database: Database, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stored_credits, "EVENTS_SUMMED", 2)
        grant = add_grant(database, 10 * COST)
        sent = [record for number in range(1, 5) for record in ended(number, EPOCH + number * 30 * 10**6)]
        take(database, archive, frames([*sent, Tick(at=SEPTEMBER.end_at)]))
        id = period_id(ORGANIZATION, SEPTEMBER.start_at)
        with database.platform() as tx:
            frozen = periods.freeze(tx, id, actor="key_a", now=NOW)
        with database.platform(write=False) as tx:
            usage = credits.sum_usage(tx, frozen)
            assert sum(usage.values()) == 4 * COST and len(usage) > 1
        close(database, SEPTEMBER.start_at)
        with database.platform() as tx:  # another process has summed and read the same
            assert periods._finish(tx, frozen, b"", usage, [], None, NOW) == period_of(database, SEPTEMBER.start_at)
        assert left(database) == {grant.id: 6 * COST}
        assert verify(database, archive).differences == []

    def test_rest_of_a_grant_that_expired_goes_to_breakage_and_of_a_voided_one_back_once(
        self, database: Database, archive: Archive
    ) -> None:
        expiring = add_grant(database, 5 * COST, 1, expires_at=BEGIN + 10 * MINUTE_US)
        voided = add_grant(database, 7 * COST, 2, priority=9, category=GrantCategory.GOODWILL)
        with database.platform() as tx:
            credits.void_grant(tx, ORGANIZATION, voided.id, EPOCH + MINUTE_US)
        with pytest.raises(Fault), database.platform() as tx:
            credits.void_grant(tx, ORGANIZATION, voided.id, EPOCH + 2 * MINUTE_US)
        body = frames(
            [
                *ended(1, EPOCH + 10**6),
                Tick(at=SEPTEMBER.end_at),
                *ended(2, OCTOBER.start_at),
                Tick(at=OCTOBER.end_at),
                *ended(3, NOVEMBER.start_at),
            ]
        )
        take(database, archive, body)
        close(database, SEPTEMBER.start_at)
        assert balance(database, "breakage") == 0, "a request of September that ends in October may still burn it"
        close(database, OCTOBER.start_at)
        booked = {(each, move): pico for each, move, pico in moves(database)}
        burned = booked[expiring.id, CreditMove.BURN]
        assert booked[expiring.id, CreditMove.EXPIRE] == 5 * COST - burned == -balance(database, "breakage")
        assert booked[voided.id, CreditMove.VOID] == 7 * COST and balance(database, "goodwill_expense") == 0
        assert left(database) == {}
        assert sum(balances(database).values()) == 0
        assert verify(database, archive).differences == []

    def test_grant_of_a_project_or_model_pays_for_its_requests_alone(self, database: Database, archive: Archive) -> None:
        of_project, of_model = add_grant(database, 10 * COST, 1), add_grant(database, 10 * COST, 2)
        with database.platform() as tx:  # the project and the model of the samples are in no catalog
            tx.connection.exec_driver_sql(f"UPDATE credit_grants SET project_id = '{PROJECT}' WHERE id = '{of_project.id}'")
            tx.connection.exec_driver_sql(f"""UPDATE credit_grants SET model = 'x', models = 'x' WHERE id = '{of_model.id}'""")
        take(database, archive, frames([*ended(1, EPOCH + 10**6)]))
        assert left(database) == {of_project.id: 9 * COST, of_model.id: 10 * COST}
        with database.tenant(ORGANIZATION, write=False) as tx:
            assert credits.find_usable_credit(tx, ORGANIZATION, EPOCH).pico == 0

    def test_altered_grants_draws_and_transactions_are_found(self, database: Database, archive: Archive) -> None:
        add_grant(database, 10 * COST)
        take(database, archive, frames([*ended(1, EPOCH + 10**6), Tick(at=SEPTEMBER.end_at)]))
        close(database, SEPTEMBER.start_at)
        for table, statement in (
            ("credit_transactions", f"UPDATE credit_grants SET amount_pico = '{11 * COST}'"),
            ("credit_draws", "UPDATE credit_draws SET drawn_pico = '1'"),
            ("credit_draws", "UPDATE credit_draws SET is_final = false"),
        ):
            with database.platform() as tx:
                tx.connection.exec_driver_sql(statement)
                found = _verify_in(tx, archive)
                tx.connection.rollback()
            assert table in found, statement


def _verify_in(tx: Any, archive: Archive) -> set[str]:
    return {each.table for each in compare(tx, archive).differences}


class TestPrepaid:
    def test_leases_are_granted_of_the_credit_and_never_beyond_it(self, database: Database, archive: Archive) -> None:
        set_prepaid(database)
        assert renew(database, 1, 0, 5).granted_pico == 0
        add_grant(database, 3 * COST)
        assert renew(database, 2, 0, 2 * COST).granted_pico == 2 * COST
        assert renew(database, 1, 0, 2 * COST, node_id=OTHER_NODE).granted_pico == COST
        take(database, archive, frames([*ended(1, EPOCH + 10**6)]))
        after = renew(database, 3, 2 * COST, COST)
        assert (after.granted_pico, after.limit_pico, after.spent_pico, after.free_pico) == (2 * COST, 3 * COST, COST, 0)
        add_grant(database, 5, 2)
        assert renew(database, 4, 2 * COST, COST).granted_pico == 2 * COST + 5
        assert verify(database, archive).differences == []

    def test_credit_with_a_scope_lets_the_requests_in_that_it_covers_and_no_others(self, database: Database, archive: Archive) -> None:
        set_prepaid(database)
        of_project = add_grant(database, 2 * COST, 1)
        with database.platform() as tx:  # the project of the samples is in no catalog
            tx.connection.exec_driver_sql(f"UPDATE credit_grants SET project_id = '{PROJECT}' WHERE id = '{of_project.id}'")
        place = CreditPlace(PROJECT, "echo")
        of_place = name_place_budget(PREPAID, place)
        assert renew(database, 1, 0, COST).granted_pico == 0, "it covers no request of another project"
        assert renew(database, 2, 0, 9 * COST, place=place).granted_pico == 2 * COST
        add_grant(database, COST, 2)
        assert renew(database, 1, 0, 9 * COST, node_id=OTHER_NODE).granted_pico == COST
        assert renew(database, 3, 2 * COST, 9 * COST, place=place).granted_pico == 2 * COST, "the other gateway has the rest"
        named = ended(1, EPOCH + 10**6, budgets=(of_place,))
        take(database, archive, frames(named))
        with database.tenant(ORGANIZATION, write=False) as tx:
            (standing,) = budgets.list_standings(tx, PageWindow(limit=9), include_archived=False, now=EPOCH).items
        assert (standing.spent_pico, standing.leased_pico, standing.limit.pico) == (COST, 2 * COST, 3 * COST)
        assert renew(database, 4, 2 * COST, 9 * COST, place=place).spent_pico == COST
        assert not renew(database, 5, 0, COST, place=CreditPlace(PROJECT, "other"), of=of_place).exists, "it is another place's"
        assert verify(database, archive).differences == []

    def test_void_is_told_to_gateways_by_the_transaction_that_ends_the_grant(self, database: Database) -> None:
        set_prepaid(database)
        grant = add_grant(database, 100)
        with database.platform() as tx:
            assert budgets.void_credit(tx, ORGANIZATION, grant.id, EPOCH).left_pico == 100
            assert tx.published_version is not None

    def test_credit_that_expires_is_not_leased_and_gateways_ask_again_then(self, database: Database) -> None:
        set_prepaid(database)
        expires_at = BEGIN + 5 * MINUTE_US
        add_grant(database, 100, 1, expires_at=expires_at)
        add_grant(database, 7, 2, effective_at=expires_at)
        before = renew(database, 1, 0, 60)
        assert (before.granted_pico, before.until_at) == (60, expires_at)
        assert renew(database, 2, 0, 60, now=expires_at).granted_pico == 7

    def test_second_delivery_and_a_closed_period_leave_the_limit_as_it_is(self, database: Database, archive: Archive) -> None:
        set_prepaid(database)
        add_grant(database, 3 * COST)
        body = frames([*ended(1, EPOCH + 10**6), Tick(at=SEPTEMBER.end_at)])
        take(database, archive, body)
        take(database, archive, body)
        close(database, SEPTEMBER.start_at)
        assert (renew(database, 1, COST, 0).limit_pico, renew(database, 2, COST, 9 * COST).granted_pico) == (3 * COST, 3 * COST)


class TestTopups:
    def test_more_is_asked_for_below_the_threshold_once_in_a_cool_off_and_granted_once(self, database: Database, archive: Archive) -> None:
        minute = MINUTE_US
        add_grant(database, 3 * COST)
        with database.platform() as tx:
            credits.put_topup_rule(tx, ORGANIZATION, TopupRule(2 * COST, 5 * COST, 3600), EPOCH)
        body = frames([record for number in range(1, 5) for record in ended(number, EPOCH + number * 10**6)])
        take(database, archive, body[:2], now=EPOCH + minute)
        assert topups(database) == [], "the threshold itself is not below it"
        take(database, archive, body[2:4], first_seq=3, now=EPOCH + 2 * minute)
        take(database, archive, body[:4], now=EPOCH + 3 * minute)
        take(database, archive, body[4:6], first_seq=5, now=EPOCH + 4 * minute)
        (first,) = topups(database)
        assert (first.amount_pico, first.usable_pico, first.requested_at) == (5 * COST, COST, EPOCH + 2 * minute)
        take(database, archive, body[6:], first_seq=7, now=EPOCH + 62 * minute)
        assert len(topups(database)) == 2, "after the cool-off it is asked for again, although nothing is left to draw on"
        granted = add_grant(database, 5 * COST, 2, EPOCH + 63 * minute, topup_id=first.id)
        assert {each.id: each.grant_id for each in topups(database)}[first.id] == granted.id
        for topup_id in (first.id, "topup_" + "0" * 32):
            with pytest.raises(Fault, match="conflict"):
                add_grant(database, 5 * COST, 3, EPOCH + 63 * minute, topup_id=topup_id)
        assert balance(database, "prepayments") == 8 * COST
        assert verify(database, archive).differences == []

    def test_more_is_asked_for_once_in_each_month_of_the_organization_and_for_those_that_passed_without_control(
        self, database: Database, archive: Archive
    ) -> None:
        with database.platform() as tx:
            made = credits.put_topup_rule(tx, ORGANIZATION, TopupRule(COST, 5 * COST, 3600, TopupInterval.MONTH), EPOCH)
        assert made.next_at == OCTOBER.start_at
        assert not credits.ask_for_due_topup(database, OCTOBER.start_at - 1)
        late = NOVEMBER.start_at + 5 * MINUTE_US  # no control process ran in October
        while credits.ask_for_due_topup(database, late):
            pass
        first, second = topups(database)
        assert (first.period_at, second.period_at) == (OCTOBER.start_at, NOVEMBER.start_at)
        assert (first.requested_at, first.amount_pico) == (late, 5 * COST)
        with database.platform() as tx:  # as another process that read the rule before, or one that a restore put back
            stored_topups.put_next(tx, ORGANIZATION, OCTOBER.start_at)
        while credits.ask_for_due_topup(database, late):
            pass
        assert len(topups(database)) == 2, "a period is asked for once"
        granted = add_grant(database, 5 * COST, 1, late, topup_id=first.id)
        assert {each.id: each.grant_id for each in topups(database)}[first.id] == granted.id
        take(database, archive, frames(ended(1, EPOCH + 10**6)), now=late + MINUTE_US)
        assert len(topups(database)) == 2, "the cool-off of the threshold counts from any top-up"
        with database.platform() as tx:
            changed = credits.put_topup_rule(tx, ORGANIZATION, TopupRule(0, COST, 3600, TopupInterval.MONTH), late)
        assert changed.next_at == NOVEMBER.end_at, "another amount changes no period"
        with database.platform() as tx:
            tx.connection.exec_driver_sql("UPDATE organizations SET archived_at = 1")
        assert not credits.ask_for_due_topup(database, NOVEMBER.end_at)
        assert verify(database, archive).differences == []

    def test_next_period_of_another_time_zone_begins_no_second_time(self) -> None:
        def at(*parts: int) -> int:
            return int(datetime(*parts, tzinfo=UTC).timestamp()) * 10**6  # type: ignore[arg-type,misc]

        of_berlin = at(2026, 10, 31, 23)
        assert find_next_topup(TopupInterval.MONTH, of_berlin, "UTC") == at(2026, 12, 1), "November has begun in Berlin"
        assert find_next_topup(TopupInterval.MONTH, at(2026, 10, 1), "Europe/Berlin") == of_berlin
        assert find_next_topup(TopupInterval.WEEK, at(2026, 11, 2), "UTC") == at(2026, 11, 9)

    def test_new_rule_asks_from_the_next_period_on_however_soon_that_begins(self, database: Database) -> None:
        for every in TopupInterval:
            soon = OCTOBER.end_at - 14 * 3600 * 10**6 if every is TopupInterval.MONTH else SUNDAY
            with database.platform() as tx:
                made = credits.put_topup_rule(tx, ORGANIZATION, TopupRule(0, COST, 3600, every), soon)
            assert made.next_at == (OCTOBER.end_at if every is TopupInterval.MONTH else SUNDAY + 14 * 3600 * 10**6)


def topups(database: Database) -> list[Topup]:
    with database.platform(write=False) as tx:
        return list(credits.list_topups(tx, PageWindow(limit=100), only_open=False).items)


class TestRoutes:
    def test_rule_of_top_ups_is_set_shown_and_ended_and_a_bad_one_is_refused(self, control: Running, alice: TenantSetup) -> None:
        operator, admin = control.client(control.platform_key), control.client(alice.admin_key)
        path = f"/v1/platform/organizations/{alice.organization_id}/credit_topup_rule"
        good = {"threshold": "10", "amount": "100", "cooloff_seconds": 3600}
        for wrong in (
            {"threshold": "0"},
            {"threshold": "-1"},
            {"threshold": None},
            {"amount": "-1"},
            {"amount": "0"},
            {"cooloff_seconds": 59},
            {"amount": "9300000"},
            {"every": "day"},
        ):
            assert operator.put(path, json=good | wrong).status_code == 400
        assert answered(admin.get("/v1/organization/credits"))["topup_rule"] is None
        assert answered(operator.put(path, json=good))["threshold"] == "10"
        assert answered(admin.get("/v1/organization/credits"))["topup_rule"]["cooloff_seconds"] == 3600
        monthly = answered(operator.put(path, json={"amount": "50", "every": "month"}))
        assert (monthly["threshold"], monthly["every"]) == (None, "month") and monthly["next_at"] > control.plane.now() // 10**6
        assert answered(admin.get("/v1/organization/credits"))["topup_rule"] == monthly
        assert admin.put(path, json=good).status_code == 403
        assert answered(operator.get("/v1/platform/credit_topups", params={"only_open": True}))["data"] == []
        answered(operator.delete(path))
        assert answered(admin.get("/v1/organization/credits"))["topup_rule"] is None

    def test_command_asks_for_credit_at_an_interval_and_takes_no_half_of_a_rule(
        self, control: Running, alice: TenantSetup, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def topup(*options: str) -> int:
            return run(["credits", "topup", alice.organization_id, *options, "--control-url", control.url, "--key", control.platform_key])

        assert topup("--every", "week", "--amount", "5", "--below", "2") == 0
        assert capsys.readouterr().out == "asks for 5 once less than 2 is usable and once in each week\n"
        for wrong in (["--amount", "5"], ["--every", "week"], ["--off", "--every", "week"], ["--every", "day", "--amount", "5"]):
            assert topup(*wrong) == 2, wrong
        assert topup("--off") == 0
        assert answered(control.client(alice.admin_key).get("/v1/organization/credits"))["topup_rule"] is None

    def test_operator_grants_and_the_organization_alone_sees_it(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        operator, admin, other = (control.client(key) for key in (control.platform_key, alice.admin_key, bob.admin_key))
        path = f"/v1/platform/organizations/{alice.organization_id}"
        body = {"category": "paid", "amount": "100", "reference": "Order 4711"}
        sent = {"idempotency-key": "order-4711"}
        made = answered(operator.post(f"{path}/credit_grants", json=body, headers=sent))
        again = answered(operator.post(f"{path}/credit_grants", json=body, headers=sent))
        assert made == again and (made["left"], made["cost_basis_percent"]) == ("100", 100)
        held = answered(operator.put(f"{path}/prepayment", json={"is_prepaid": True}))
        assert answered(operator.put(f"{path}/prepayment", json={"is_prepaid": True}))["budget_id"] == held["budget_id"]
        shown = answered(admin.get("/v1/organization/credits"))
        assert (shown["usable"], shown["is_prepaid"], [each["id"] for each in shown["data"]]) == ("100", True, [made["id"]])
        (budget,) = [each for each in answered(admin.get("/v1/organization/limits"))["budgets"] if each["id"] == held["budget_id"]]
        assert (budget["limit"], budget["left"], budget["is_prepaid"]) == ("100", "100", True)
        assert (
            operator.post(
                f"/v1/organization/budgets/{held['budget_id']}",
                json={"amount": "1"},
                headers={"openai-organization": alice.organization_id},
            ).status_code
            == 409
        )
        statement = answered(admin.get("/v1/organization/credits/statement"))["data"]
        assert [(each["move"], each["amount"]) for each in statement] == [("grant", "100")]
        assert answered(other.get("/v1/organization/credits"))["data"] == []
        assert answered(other.get("/v1/organization/credits/statement"))["data"] == []
        assert admin.post(f"{path}/credit_grants", json=body).status_code == 403
        foreign = f"/v1/platform/organizations/{bob.organization_id}/credit_grants/{made['id']}/void"
        assert operator.post(foreign).status_code == 404
        scoped = answered(operator.post(f"{path}/credit_grants", json=body | {"project_id": alice.project_id}))
        with control.plane.database.platform(write=False) as tx:
            entries = [each for each in platform_queries.iterate_entries(tx) if isinstance(each, BudgetEntry)]
            ((_, change),) = publish.find_changes(tx, publish.find_head(tx) - 1, 1) or ()
        (entry,) = [each for each in entries if each.id == held["budget_id"]]
        assert entry.scopes == (CreditScope(alice.project_id, ()),) and held["budget_id"].encode() in change
        part = entry.find_place(alice.project_id, "echo")
        assert part.id == name_place_budget(entry.id, CreditPlace(alice.project_id, "echo"))
        assert (part.place_project_id, part.model, entry.find_place(bob.project_id, "echo")) == (alice.project_id, "echo", entry)
        answered(operator.post(f"{path}/credit_grants/{scoped['id']}/void"))
        voided = answered(operator.post(f"{path}/credit_grants/{made['id']}/void"))
        assert voided["voided_at"] is not None
        assert answered(admin.get("/v1/organization/credits"))["usable"] == "0"
        assert answered(operator.put(f"{path}/prepayment", json={"is_prepaid": False}))["budget_id"] is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"amount": "0"},
            {"amount": "-1"},
            {"amount": "9300000"},
            {"category": "gift"},
            {"currency": "USD"},
            {"priority": 1001},
            {"cost_basis_percent": 101},
            {"expires_at": 60},
            {"expires_at": 4_000_000_001},
            {"effective_at": 60},
            {"project_id": "proj_00000000000000000000000000000000"},
            {"model": "nowhere"},
            {"model": "group:nowhere"},
            {"reference": "a\nb"},
        ],
    )
    def test_bad_grant_is_refused_before_anything_changes(self, control: Running, alice: TenantSetup, fields: dict[str, Any]) -> None:
        operator, admin = control.client(control.platform_key), control.client(alice.admin_key)
        before = answered(admin.get("/v1/organization/credits/statement"))["data"]
        path = f"/v1/platform/organizations/{alice.organization_id}/credit_grants"
        assert operator.post(path, json={"category": "paid", "amount": "10"} | fields).status_code in {400, 404}
        assert answered(admin.get("/v1/organization/credits/statement"))["data"] == before


class TestHistories:
    """Random histories of grants, usage, repeated deliveries, voids and closes, on each database."""

    @pytest.mark.parametrize("seed", [1, 2])
    def test_no_history_burns_more_than_there_is_or_leaves_the_ledger_unbalanced(
        self, database: Database, archive: Archive, seed: int
    ) -> None:
        chance = Random(seed)
        months = [SEPTEMBER, OCTOBER, NOVEMBER]
        set_prepaid(database)
        chain, records, sent, grants, now = frames_of(), 0, list[bytes](), list[CreditGrant](), EPOCH
        for step in range(1, 41):
            match chance.choice(["grant", "use", "use", "use", "repeat", "void", "lease", "pass"]):
                case "grant":
                    terms = {"priority": chance.randrange(2), "category": chance.choice(list(GrantCategory))}
                    expires_at = now // MINUTE_US * MINUTE_US + chance.randrange(1, 40 * 1440) * MINUTE_US
                    end, number = chance.choice([None, expires_at]), len(grants) + 1
                    grants.append(add_grant(database, chance.randrange(1, 4 * COST), number, now, expires_at=end, **terms))
                case "use":
                    at = chance.randrange(max(now - 3600_000_000, EPOCH), now + 1)
                    of = samples.admit(records, admitted_at=at)
                    records += 1
                    part = [chain.send(of), chain.send(samples.final(of, ended_at=min(at + 1000, now + 1000), first_token_at=None))]
                    take(database, archive, part, first_seq=len(sent) + 1, now=now + 1000)
                    sent += part
                case "repeat" if sent:
                    take(database, archive, sent, now=now + 1000)
                case "void" if grants:
                    with suppress(Fault), database.platform() as tx:
                        credits.void_grant(tx, ORGANIZATION, chance.choice(grants).id, now)
                case "lease":
                    with database.tenant(ORGANIZATION, write=False) as tx:
                        usable = credits.find_usable_credit(tx, ORGANIZATION, now)
                    granted = renew(database, step, 0, chance.randrange(2 * COST), now=now)
                    assert granted.granted_pico <= usable.pico
                case "pass":
                    now += chance.randrange(1, 9 * 86_400) * 1_000_000
                    part = [chain.send(Tick(at=now))]
                    take(database, archive, part, first_seq=len(sent) + 1, now=now)
                    sent += part
                    while months and now >= months[0].end_at:
                        with suppress(Fault):
                            close(database, months[0].start_at, now=now)
                        months.pop(0)
                        if chance.random() < 0.5:
                            redraw(database)
            assert all(pico >= 0 for pico in left(database).values())
            assert sum(balances(database).values()) == 0
        assert verify(database, archive).differences == []


def frames_of() -> Generator[bytes, Record, None]:
    """Take records one by one, and give each as the next frame of the epoch."""
    made = _frames()
    next(made)
    return made


def _frames() -> Generator[bytes, Record, None]:
    chain, seq, data = first_chain(NODE, EPOCH), 0, b""
    while True:
        record = yield data
        seq += 1
        chain, data = extend(chain, seq, encode(record))
