"""Contracts at control: agreed, charged when a period closes, booked, exported and computed again; on each database."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.control.auditing.test_audit import export, run
from tests.control.invoicing.parties import add_parties
from tests.control.invoicing.test_documents import document_of, draft, issue, refused, replay
from tests.control.metering.test_collect import balances, take
from tests.control.money.test_corrections import ask
from tests.control.money.test_credits import COST, add_grant
from tests.control.money.test_periods import NOVEMBER, NOW, OCTOBER, SEPTEMBER, close, ended, period_of
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_ORGANIZATION, PRICE, admit, final, frames, request_id
from tollway.control.invoicing import documents
from tollway.control.money import contracts, periods
from tollway.control.money.contracts import WantedContract
from tollway.control.money.corrections import WantedAdjustment
from tollway.control.verification.verify import verify
from tollway.domain import ids
from tollway.domain.contracts import (
    Commitment,
    Contract,
    ContractTerms,
    Fee,
    FreeUnits,
    Objective,
    Schedule,
    ServiceLevel,
    Tier,
    TieredPrice,
)
from tollway.domain.corrections import AdjustmentKind
from tollway.domain.faults import Fault
from tollway.domain.invoice_replay import find_differences
from tollway.domain.invoices import LineKind
from tollway.domain.pages import PageWindow
from tollway.domain.periods import PeriodState
from tollway.domain.usage import Outcome, Record, Tick
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

YEAR = 365 * 86_400 * 1_000_000


def agree(
    database: Database, since: int | None = EPOCH, until: int | None = None, *, number: int = 1, now: int = EPOCH, **terms: Any
) -> Contract:
    wanted = WantedContract(since, until, ContractTerms(**{"name": "Plan", "currency": "EUR", **terms}))
    with database.platform() as tx:
        return contracts.create(tx, ORGANIZATION, wanted, id=ids.new_id(ids.CONTRACT, now, number), now=now)


def kinds(database: Database, start_at: int) -> dict[str, int]:
    """Return what a closed period was charged, or what another one comes to so far, by kind of line."""
    period = period_of(database, start_at)
    with database.tenant(ORGANIZATION, write=False) as tx:
        return contracts.sum_by_kind(contracts.find_bill(tx, period).parts)


def use(database: Database, archive: Archive, records: Sequence[Record | bytes], until: int = NOVEMBER.end_at) -> None:
    take(database, archive, frames([*records, Tick(at=until)]))


def issue_file(database: Database, invoice_id: str) -> str:
    with database.platform(write=False) as tx:
        return documents.get_invoice(tx, invoice_id).document


def balance(database: Database, account: str) -> int:
    return balances(database).get(f"{account}/EUR", 0)


def test_161_closed_period_is_charged_by_its_contract_and_computed_again_by_everybody(
    database: Database, archive: Archive, tmp_path: Path
) -> None:
    made = agree(
        database,
        SEPTEMBER.start_at,
        OCTOBER.end_at,
        discount_bp=1_000,
        seats=2,
        fees=(Fee(name="Platform", amount_pico=10**12, is_per_seat=False), Fee(name="Seats", amount_pico=5 * 10**11, is_per_seat=True)),
        tiered_prices=(
            TieredPrice(
                model="echo",
                service_tier="standard",
                billing_class="output",
                schedule=Schedule.GRADUATED,
                tiers=(Tier(up_to=10, unit_price_pico=PRICE.unit_prices.output), Tier(up_to=None, unit_price_pico=1)),
            ),
        ),
        free_units=(FreeUnits(model="echo", service_tier="standard", billing_class="input", quantity=7),),
        minimum_pico=3 * COST,
        commitment=Commitment(amount_pico=10 * COST, is_prepaid=True),
        service_levels=(
            ServiceLevel(objective=Objective.AVAILABILITY, target_bp=9_900, credit_bp=500),
            ServiceLevel(objective=Objective.FIRST_TOKEN, target_bp=9_900, credit_bp=500, within_ms=1),
        ),
    )
    add_grant(database, COST)
    tried = admit(4, admitted_at=EPOCH + 4_000_000)
    failed = final(tried, outcome=Outcome.UPSTREAM_ERROR, ended_at=EPOCH + 5_000_000, first_token_at=EPOCH + 4_900_000)
    records = [*ended(1, EPOCH + 10**6), *ended(2, EPOCH + 2 * 10**6), *ended(3, EPOCH + 3 * 10**6), tried, failed]
    use(database, archive, [*records, *ended(5, OCTOBER.start_at + 5)])
    expected = kinds(database, SEPTEMBER.start_at)
    for month in (SEPTEMBER, OCTOBER):
        assert close(database, month.start_at).state is PeriodState.CLOSED
    charged = kinds(database, SEPTEMBER.start_at)
    assert charged == expected, "the preview of an open period is what it is closed with"
    assert {"tiered_price", "free_units", "discount", "service_credit", "platform_fee", "seat_fee", "prepayment"} <= set(charged)
    assert charged["platform_fee"] == 10**12 and charged["seat_fee"] == 10**12
    period = period_of(database, SEPTEMBER.start_at)
    assert period.closed is not None and period.closed.contracts_pico == sum(charged.values())
    assert balance(database, "platform/contract_revenue:platform_fee") == -2 * 10**12, "of both months"
    assert balance(database, "platform/deferred_revenue") == 0, "what was not used has lapsed"
    assert sum(balances(database).values()) == 0
    with database.platform(write=False) as tx:
        totals = periods.sum_totals(tx, [period])
    assert totals[period.id] == period.closed.total_pico
    assert verify(database, archive).differences == []
    path = tmp_path / "month.ndjson"
    for month in (SEPTEMBER, OCTOBER):
        path.write_bytes(b"".join(export((database, archive), month.start_at)))
        code, said = run(str(path))
        assert code == 0, said
    add_parties(database)
    (drafted,) = draft(database)
    issued = document_of(issue(database, drafted.id))
    bill = tmp_path / "invoice.json"
    bill.write_text(issue_file(database, drafted.id))
    path.write_bytes(b"".join(export((database, archive))))
    assert replay([str(path), str(bill)]) == 0
    assert list(find_differences(issued, export((database, archive)))) == []
    descriptions = [line.description for line in issued.lines if line.kind is LineKind.CONTRACT]
    assert descriptions == ["platform_fee: Platform", "seat_fee: Seats", "minimum", "prepayment"]
    assert {str(each.kind) for each in issued.allowances} == {"paid", "discount", "service_credit", "commitment"}
    assert verify(database, archive).differences == []
    lines = [json.loads(line) for line in export((database, archive))]
    (shown,) = [line for line in lines if line["type"] == "contract"]
    assert shown["id"] == made.id and shown["valid_until"] is None, "an end after the period is not shown"
    for line in lines:  # a discount that was not agreed
        if line["type"] == "contract_charge":
            line["parts"][0]["lines"][1]["amount_pico"] = "-1"
    path.write_text("".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines))
    code, said = run(str(path))
    assert code == 1 and "contract" in said, said


def test_correction_of_an_earlier_month_takes_nothing_of_a_discount(database: Database, archive: Archive, tmp_path: Path) -> None:
    agree(database, OCTOBER.start_at, discount_bp=5_000)
    use(database, archive, [*ended(1, EPOCH), *ended(2, OCTOBER.start_at + 5), *ended(3, OCTOBER.start_at + 6)])
    close(database, SEPTEMBER.start_at)
    for number in (1, 3):
        ask(database, WantedAdjustment(event_id=request_id(number), kind=AdjustmentKind.VOID, reason="r"))
    close(database, OCTOBER.start_at)
    assert kinds(database, OCTOBER.start_at) == {"discount": -COST}, "half of two requests: the one that was voided is owed no more"
    assert verify(database, archive).differences == []
    path = tmp_path / "month.ndjson"
    path.write_bytes(b"".join(export((database, archive), OCTOBER.start_at)))
    code, said = run(str(path))
    assert code == 0, said


def test_contract_that_is_made_late_is_charged_for_each_month_since_it_began(database: Database, archive: Archive) -> None:
    use(database, archive, ended(1, NOVEMBER.start_at + 5))
    agree(database, SEPTEMBER.start_at, now=NOVEMBER.start_at + 7, fees=(Fee(name="Platform", amount_pico=900, is_per_seat=False),))
    assert [period_of(database, month.start_at).state for month in (SEPTEMBER, OCTOBER)] == [PeriodState.OPEN] * 2
    with database.platform() as tx:
        ended_contract = contracts.end(
            tx, ORGANIZATION, ids.new_id(ids.CONTRACT, NOVEMBER.start_at + 7, 1), None, now=NOVEMBER.start_at + 8
        )
    assert ended_contract.valid_until == NOVEMBER.start_at + 1_000_000, "a whole second, as it is shown"


def test_month_without_usage_is_charged_its_fee_and_closed_before_later_ones(database: Database, archive: Archive) -> None:
    agree(database, SEPTEMBER.start_at, fees=(Fee(name="Platform", amount_pico=900, is_per_seat=False),))
    use(database, archive, ended(1, NOVEMBER.start_at + 5))
    with refused("before it"):
        close(database, NOVEMBER.start_at)
    for month in (SEPTEMBER, OCTOBER, NOVEMBER):
        closed = close(database, month.start_at).closed
        assert closed is not None and closed.contracts_pico == 900
    contracts.open_due_periods(database, NOW, lambda: False)
    assert period_of(database, NOVEMBER.end_at).state is PeriodState.OPEN, "the month of this instant is open"
    assert verify(database, archive).differences == []


def test_plan_that_changes_within_a_month_is_charged_by_parts(database: Database, archive: Archive) -> None:
    fee = (Fee(name="Platform", amount_pico=10**12 + 1, is_per_seat=False),)
    at = EPOCH + 10**6
    first = agree(database, SEPTEMBER.start_at, SEPTEMBER.end_at, fees=fee, commitment=Commitment(amount_pico=9 * COST, is_prepaid=False))
    with refused("overlaps"):
        agree(database, at, number=2, fees=fee)
    use(database, archive, [*ended(1, at - 1), *ended(2, at)])
    wanted = WantedContract(at, None, ContractTerms(name="Next", currency="EUR", fees=fee, discount_bp=5_000))
    period = period_of(database, SEPTEMBER.start_at)
    with database.tenant(ORGANIZATION, write=False) as tx:
        shown = contracts.preview_change(tx, period, wanted, now=EPOCH)
        for text, since in (("before the billing period", SEPTEMBER.start_at - 1), ("overlaps", SEPTEMBER.start_at)):
            with refused(text):
                contracts.preview_change(tx, period, wanted._replace(valid_from=since), now=EPOCH)
        assert contracts.preview_change(tx, period, wanted._replace(valid_from=period.end_at), now=EPOCH) == contracts.find_bill(tx, period)
    with database.platform() as tx:
        second = contracts.create(tx, ORGANIZATION, wanted, id=ids.new_id(ids.CONTRACT, EPOCH, 2), now=EPOCH, replaces=first.id)
        assert contracts.get(tx, ORGANIZATION, first.id).valid_until == at
    close(database, SEPTEMBER.start_at)
    assert kinds(database, SEPTEMBER.start_at) == {"platform_fee": 10**12 + 1, "discount": -(COST // 2), "true_up": 8 * COST}
    assert contracts.sum_by_kind(shown.parts) == kinds(database, SEPTEMBER.start_at), "the change comes to what was shown of it"
    with database.tenant(ORGANIZATION, write=False) as tx, refused("is closed"):
        contracts.preview_change(tx, period_of(database, SEPTEMBER.start_at), wanted, now=NOW)
    assert verify(database, archive).differences == []
    for instant in (SEPTEMBER.end_at, SEPTEMBER.start_at):  # in the closed month, and before it
        with refused("closed billing period"), database.platform() as tx:
            contracts.end(tx, ORGANIZATION, second.id, instant, now=NOW)
        with refused("closed billing period"):
            agree(database, instant - 1, instant, number=3)


def test_preview_of_a_draft_shows_a_month_under_other_terms_and_stores_nothing(database: Database, archive: Archive) -> None:
    use(database, archive, ended(1, EPOCH))
    close(database, SEPTEMBER.start_at)
    period = period_of(database, SEPTEMBER.start_at)
    wanted = WantedContract(SEPTEMBER.start_at, None, ContractTerms(name="Draft", currency="EUR", discount_bp=10_000))
    with database.tenant(ORGANIZATION, write=False) as tx:
        draft = contracts.make_contract(tx, ORGANIZATION, wanted, id="contract_draft", now=NOW)
        shown, without = contracts.preview(tx, period, [draft]), contracts.preview(tx, period, None)
    assert (shown.used_pico, shown.total_pico, without.total_pico) == (COST, 0, COST)
    with database.tenant(ORGANIZATION, write=False) as tx:
        assert contracts.list_contracts(tx, ORGANIZATION, PageWindow(limit=10)).items == []


def test_contracts_that_cannot_be_are_refused_before_anything_is_changed(database: Database) -> None:
    for text, since, until, terms in (
        ("billed in EUR", EPOCH, None, {"currency": "USD"}),
        ("ends after it begins", EPOCH, EPOCH, {}),
        ("closed billing period", EPOCH - 2 * YEAR, None, {}),
        ("discount", EPOCH, None, {"discount_bp": 20_000}),
    ):
        with refused(text):
            agree(database, since, until, **terms)
    with database.platform() as tx, pytest.raises(Fault):
        contracts.end(tx, OTHER_ORGANIZATION, "contract_unknown", None, now=EPOCH)
    made = agree(database, until=EPOCH + 10)
    with database.platform() as tx, refused("before that already"):
        contracts.end(tx, ORGANIZATION, made.id, EPOCH + 11, now=EPOCH)
    with database.tenant(OTHER_ORGANIZATION, write=False) as tx:
        with pytest.raises(Fault):
            contracts.get(tx, OTHER_ORGANIZATION, made.id)
        assert contracts.list_contracts(tx, OTHER_ORGANIZATION, PageWindow(limit=10)).items == []
