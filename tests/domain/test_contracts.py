"""Contracts: what they come to is integers that no order of events changes, gives back no more than is owed, and covers time once."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.contracts import (
    DEFERRED_REVENUE,
    NO_USAGE,
    Commitment,
    Contract,
    ContractPart,
    ContractTerms,
    Fee,
    FreeUnits,
    LineKind,
    Measure,
    Objective,
    Schedule,
    ServiceLevel,
    Sku,
    Standing,
    Tier,
    TieredPrice,
    UsageTotal,
    charge_part,
    describe,
    find_overlap,
    find_owed,
    find_owed_after,
    find_problem,
    list_movements,
    prorate,
    rate_tiers,
)
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.periods import Bounds

SPAN = Bounds(1_000, 31_000)
INPUT = Sku("large", "standard", "input")
OUTPUT = Sku("large", "standard", "output")
FIELDS = {"model": "large", "service_tier": "standard", "billing_class": "input"}

amounts = st.integers(0, 10**15)
quantities = st.integers(0, 10**9)
units = st.integers(0, 10**6)


def make_contract(terms: ContractTerms | None = None, *, since: int = 0, until: int | None = None, id: str = "contract_a") -> Contract:
    terms = terms or ContractTerms(name="Plan", currency="EUR")
    return Contract(id=id, organization_id="org_a", valid_from=since, valid_until=until, created_at=0, terms=terms)


def charge(contract: Contract, usage: dict[Sku, UsageTotal], owed: int | None = None, standing: Standing = Standing()) -> ContractPart:  # noqa: B008 (a value)
    used_pico = sum(total.amount_pico for total in usage.values())
    measures = [Measure(counted=100, met=90) for _ in contract.terms.service_levels]
    return charge_part(contract, SPAN, usage, measures, standing, used_pico if owed is None else owed)


def by_kind(part: ContractPart) -> dict[str, int]:
    return {str(line.kind): line.amount_pico for line in part.lines}


@st.composite
def tiers(draw: st.DrawFn) -> tuple[Tier, ...]:
    edges = sorted(draw(st.sets(st.integers(1, 10**6), max_size=4)))
    return tuple(Tier(up_to=edge, unit_price_pico=draw(units)) for edge in [*edges, None])


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    until = draw(st.none() | st.integers(SPAN.start_at + 1, SPAN.end_at + 10_000))
    since = draw(st.integers(0, SPAN.start_at if until is None else min(until, SPAN.end_at) - 1))
    can_commit = until is not None
    terms = ContractTerms(
        name="Plan",
        currency="EUR",
        discount_bp=draw(st.integers(0, 10_000)),
        tiered_prices=draw(
            st.just(()) | tiers().map(lambda each: (TieredPrice(**FIELDS, schedule=draw(st.sampled_from(Schedule)), tiers=each),))
        ),
        free_units=draw(
            st.just(()) | st.integers(1, 10**6).map(lambda each: (FreeUnits(**{**FIELDS, "billing_class": "output"}, quantity=each),))
        ),
        fees=draw(st.just(()) | st.integers(1, 10**13).map(lambda each: (Fee(name="Platform", amount_pico=each, is_per_seat=True),))),
        seats=3,
        minimum_pico=draw(amounts),
        commitment=draw(st.none() | st.builds(Commitment, amount_pico=st.integers(1, 10**15), is_prepaid=st.booleans()))
        if can_commit
        else None,
        service_levels=draw(
            st.just(())
            | st.integers(1, 10_000).map(lambda each: (ServiceLevel(objective=Objective.AVAILABILITY, target_bp=each, credit_bp=each),))
        ),
    )
    return make_contract(terms, since=since, until=until)


usages = st.fixed_dictionaries({}, optional={sku: st.builds(UsageTotal, st.integers(1, 10**7), amounts) for sku in (INPUT, OUTPUT)})


# ---- Properties ---------------------------------------------------------------------------------------------------------


@given(unit=units, a=quantities, b=quantities)
def test_the_cost_of_two_quantities_at_a_unit_price_is_the_cost_of_their_sum(unit: int, a: int, b: int) -> None:
    one = [Tier(up_to=None, unit_price_pico=unit)]
    for schedule in Schedule:
        assert rate_tiers(schedule, one, a) + rate_tiers(schedule, one, b) == rate_tiers(schedule, one, a + b) == unit * (a + b)


@given(steps=tiers(), quantity=st.integers(0, 2 * 10**6))
def test_graduated_prices_are_monotone_and_continuous_at_the_edges_of_tiers(steps: tuple[Tier, ...], quantity: int) -> None:
    def rate(count: int) -> int:
        return rate_tiers(Schedule.GRADUATED, steps, count)

    assert rate(quantity) <= rate(quantity + 1)
    for tier, following in pairwise(steps):
        assert tier.up_to is not None
        assert rate(tier.up_to) - rate(tier.up_to - 1) == tier.unit_price_pico
        assert rate(tier.up_to + 1) - rate(tier.up_to) == following.unit_price_pico


@given(steps=tiers(), quantity=st.integers(0, 2 * 10**6))
def test_volume_prices_are_those_of_the_table_for_all_units(steps: tuple[Tier, ...], quantity: int) -> None:
    (reached, *_) = [tier for tier in steps if tier.up_to is None or quantity <= tier.up_to]
    assert rate_tiers(Schedule.VOLUME, steps, quantity) == quantity * reached.unit_price_pico


@given(contract=contracts(), usage=usages, data=st.data())
def test_no_contract_gives_back_more_than_is_owed_and_its_bookings_sum_to_zero(
    contract: Contract, usage: dict[Sku, UsageTotal], data: st.DataObject
) -> None:
    assert find_problem(contract.terms, "EUR", ends=contract.valid_until is not None) is None
    used_pico = sum(total.amount_pico for total in usage.values())
    burned_pico = data.draw(st.integers(0, used_pico))
    owed_pico = find_owed(used_pico, 0, burned_pico)
    committed_pico = contract.terms.commitment.amount_pico if contract.terms.commitment else 0
    part = charge(contract, usage, owed_pico, Standing(5, data.draw(st.integers(0, committed_pico))))
    assert find_owed_after(owed_pico, part) >= 0, "usage never comes to less than nothing"
    assert part.net_pico >= 0 and used_pico - burned_pico + part.billed_pico >= 0
    assert all(line.amount_pico for line in part.lines)
    assert sum(each.amount_pico for each in list_movements([part])) == 0
    assert 0 <= part.standing.drawn_pico <= committed_pico
    assert msgspec.json.decode(msgspec.json.encode(describe(part)), type=ContractPart, strict=False) == part


@given(contract=contracts(), usage=usages)
def test_the_order_in_which_usage_is_listed_changes_nothing(contract: Contract, usage: dict[Sku, UsageTotal]) -> None:
    assert charge(contract, usage) == charge(contract, dict(reversed(usage.items())))


@given(amount=amounts, cuts=st.sets(st.integers(SPAN.start_at, SPAN.end_at), max_size=5))
def test_plans_that_change_at_any_instant_cover_time_once(amount: int, cuts: set[int]) -> None:
    bounds = sorted({SPAN.start_at, *cuts, SPAN.end_at})
    plans = [make_contract(since=start, until=until, id=f"contract_{start}") for start, until in pairwise(bounds)]
    covered = [plan.covers(SPAN) for plan in plans]
    assert sum(prorate(amount, part, SPAN) for part in covered if part is not None) == amount
    assert sum(part.end_at - part.start_at for part in covered if part is not None) == SPAN.end_at - SPAN.start_at
    for at, plan in enumerate(plans):
        others = [*plans[:at], *plans[at + 1 :]]
        part = plan.covers(SPAN)
        assert part is not None and find_overlap(others, part) is None


@given(spent=st.lists(st.integers(0, 10**13), min_size=1, max_size=6), committed=st.integers(1, 10**13), is_prepaid=st.booleans())
def test_a_commitment_comes_to_the_greater_of_what_was_committed_and_used(spent: list[int], committed: int, is_prepaid: bool) -> None:
    length = SPAN.end_at - SPAN.start_at
    spans = [Bounds(SPAN.start_at + at * length, SPAN.end_at + at * length) for at in range(len(spent))]
    terms = ContractTerms(name="Year", currency="EUR", commitment=Commitment(amount_pico=committed, is_prepaid=is_prepaid))
    contract = make_contract(terms, since=spans[0].start_at, until=spans[-1].end_at)
    standing, parts = Standing(), []
    for span, used_pico in zip(spans, spent, strict=True):
        usage = {INPUT: UsageTotal(used_pico, used_pico)}
        parts.append(charge_part(contract, span, usage, [], standing, used_pico))
        standing = parts[-1].standing
    assert sum(spent) + sum(part.billed_pico for part in parts) == max(committed, sum(spent))
    assert not any(each.amount_pico for each in list_movements(parts) if each.account == DEFERRED_REVENUE), "nothing stays deferred"


# ---- Cases --------------------------------------------------------------------------------------------------------------


def test_each_term_of_a_contract_makes_a_line() -> None:
    usage = {INPUT: UsageTotal(1_000, 100_000), OUTPUT: UsageTotal(100, 50_000)}
    cases: list[tuple[ContractTerms, dict[str, int]]] = [
        (ContractTerms(name="n", currency="EUR", discount_bp=1_500), {"discount": -22_500}),
        (
            ContractTerms(
                name="n",
                currency="EUR",
                tiered_prices=(
                    TieredPrice(
                        **FIELDS,
                        schedule=Schedule.GRADUATED,
                        tiers=(Tier(up_to=400, unit_price_pico=100), Tier(up_to=None, unit_price_pico=50)),
                    ),
                ),
            ),
            {"tiered_price": -30_000},
        ),
        (ContractTerms(name="n", currency="EUR", free_units=(FreeUnits(**FIELDS, quantity=300),)), {"free_units": -30_000}),
        (
            ContractTerms(name="n", currency="EUR", fees=(Fee(name="Platform", amount_pico=77, is_per_seat=False),)),
            {"platform_fee": 77},
        ),
        (
            ContractTerms(name="n", currency="EUR", seats=5, fees=(Fee(name="Seat", amount_pico=10, is_per_seat=True),)),
            {"seat_fee": 50},
        ),
        (ContractTerms(name="n", currency="EUR", minimum_pico=200_000), {"minimum": 50_000}),
        (
            ContractTerms(
                name="n",
                currency="EUR",
                service_levels=(ServiceLevel(objective=Objective.AVAILABILITY, target_bp=9_500, credit_bp=1_000),),
            ),
            {"service_credit": -15_000},
        ),
        (
            ContractTerms(
                name="n",
                currency="EUR",
                service_levels=(ServiceLevel(objective=Objective.FIRST_TOKEN, target_bp=9_000, credit_bp=1_000, within_ms=500),),
            ),
            {},  # 90 of 100 meet it
        ),
    ]
    for terms, lines in cases:
        assert by_kind(charge(make_contract(terms), usage)) == lines
        assert find_problem(terms, "EUR", ends=False) is None


def test_what_credit_has_paid_is_not_given_back() -> None:
    terms = ContractTerms(name="n", currency="EUR", discount_bp=5_000)
    usage = {INPUT: UsageTotal(1_000, 100_000)}
    assert find_owed(100_000, -10_000, 80_000) == 10_000
    part = charge(make_contract(terms), usage, 10_000)
    assert by_kind(part) == {"discount": -10_000} and part.net_pico == 90_000


def test_a_prepaid_commitment_is_deferred_drawn_and_lapses() -> None:
    terms = ContractTerms(name="n", currency="EUR", commitment=Commitment(amount_pico=1_000, is_prepaid=True))
    contract = make_contract(terms, since=SPAN.start_at, until=SPAN.end_at)
    part = charge(contract, {INPUT: UsageTotal(6, 600)})
    assert by_kind(part) == {"drawdown": -600, "prepayment": 1_000, "lapse": 400}
    assert {(each.account, each.amount_pico) for each in list_movements([part])} == {("unbilled", 400), ("breakage", -400)}


def test_terms_that_no_contract_can_have_are_refused_by_field() -> None:
    def make(**fields: object) -> ContractTerms:
        return ContractTerms(**{"name": "n", "currency": "EUR", **fields})  # type: ignore[arg-type]

    def price(*edges: int | None) -> tuple[TieredPrice, ...]:
        steps = tuple(Tier(up_to=edge, unit_price_pico=1) for edge in edges)
        return (TieredPrice(**FIELDS, schedule=Schedule.VOLUME, tiers=steps),)

    free = FreeUnits(**FIELDS, quantity=1)
    cases = [
        ("currency", make(currency="USD")),
        ("name", make(name=" ")),
        ("discount_bp", make(discount_bp=10_001)),
        ("seats", make(seats=-1)),
        ("seats", make(fees=(Fee(name="s", amount_pico=1, is_per_seat=True),))),
        ("minimum", make(minimum_pico=-1)),
        ("commitment", make(commitment=Commitment(amount_pico=1, is_prepaid=False))),  # without an end
        ("fees", make(fees=(Fee(name="", amount_pico=1, is_per_seat=False),))),
        ("fees", make(fees=(Fee(name="f", amount_pico=1, is_per_seat=False),) * 101)),
        ("fees", make(fees=(Fee(name="f", amount_pico=AMOUNT_PICO_MAX + 1, is_per_seat=False),))),
        ("fees", make(seats=2, fees=(Fee(name="f", amount_pico=AMOUNT_PICO_MAX, is_per_seat=True),))),
        ("tiered_prices", make(tiered_prices=price())),
        ("tiered_prices", make(tiered_prices=price(5))),
        ("tiered_prices", make(tiered_prices=price(5, 5, None))),
        ("tiered_prices", make(tiered_prices=price(None), free_units=(free,))),
        ("free_units", make(free_units=(FreeUnits(**FIELDS, quantity=0),))),
        ("service_levels", make(service_levels=(ServiceLevel(objective=Objective.AVAILABILITY, target_bp=0, credit_bp=1),))),
        ("service_levels", make(service_levels=(ServiceLevel(objective=Objective.FIRST_TOKEN, target_bp=1, credit_bp=1),))),
    ]
    for field, terms in cases:
        problem = find_problem(terms, "EUR", ends=False)
        assert problem is not None and problem.field == field and problem.text.endswith(".")
    assert find_problem(make(seats=2, fees=(Fee(name="f", amount_pico=AMOUNT_PICO_MAX, is_per_seat=False),)), "EUR", ends=False) is None


def test_a_contract_that_covers_nothing_of_a_period_charges_nothing_of_it() -> None:
    with pytest.raises(ValueError, match="not valid"):
        charge(make_contract(since=0, until=SPAN.start_at), {INPUT: NO_USAGE})
    assert LineKind.LAPSE not in {line.kind for line in charge(make_contract(), {}).lines}
