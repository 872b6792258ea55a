"""Costs of serving: time divided without loss, months without gaps, movements that sum to zero."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.billing_classes import NOTHING
from tollway.domain.periods import INSTANT_MAX, Bounds, Period, PeriodState, month_of
from tollway.domain.serving_costs import (
    HOUR_US,
    CostLine,
    DeploymentCost,
    cost_capacity,
    list_months,
    list_movements,
    month_at,
    month_bounds,
    month_of_period,
    share_out,
)

NAMES = st.text("abc", min_size=1, max_size=2)


def cost(valid_from: int, hour_pico: int, currency: str = "EUR") -> DeploymentCost:
    return DeploymentCost(
        id="cost_0",
        deployment_id="dep_0",
        valid_from=valid_from,
        created_at=0,
        currency=currency,
        hour_pico=hour_pico,
        unit_costs=NOTHING,
    )


@given(st.integers(0, 10**24), st.dictionaries(NAMES, st.integers(0, 10**18)))
def test_shares_come_to_the_whole_and_follow_the_weights(amount_pico: int, weights: dict[str, int]) -> None:
    shares = share_out(amount_pico, weights)
    assert sum(shares.values()) == amount_pico
    whole = sum(weights.values())
    if not whole:
        assert shares == {"": amount_pico}
    for name, weight in weights.items() if whole else ():
        assert abs(shares[name] - amount_pico * weight // whole) <= 1


@given(st.lists(st.tuples(NAMES, NAMES, st.sampled_from(["EUR", "USD"]), st.integers(0, 10**20))))
def test_movements_sum_to_zero_in_each_currency(lines: list[tuple[str, str, str, int]]) -> None:
    movements = list_movements([CostLine(*line) for line in lines])
    for currency in ("EUR", "USD"):
        of_currency = [each for each in movements if each.currency == currency]
        assert sum(each.amount_pico for each in of_currency) == 0
        assert sum(max(each.amount_pico, 0) for each in of_currency) == sum(line[3] for line in lines if line[2] == currency)


def test_time_costs_its_share_of_each_hour_at_the_cost_that_was_valid() -> None:
    series = [cost(HOUR_US, 7), cost(2 * HOUR_US, 0), cost(3 * HOUR_US, 10, "USD")]
    assert cost_capacity(series, Bounds(0, HOUR_US)) == {}
    assert cost_capacity(series, Bounds(0, 3 * HOUR_US)) == {"EUR": 7}
    assert cost_capacity(series, Bounds(HOUR_US + HOUR_US // 2, INSTANT_MAX - 1))["EUR"] == 3, "rounded down"
    assert cost_capacity(series, Bounds(0, 5 * HOUR_US)) == {"EUR": 7, "USD": 20}
    assert cost_capacity([], Bounds(0, HOUR_US)) == {}


def test_months_follow_each_other_and_contain_their_instants() -> None:
    months = list_months("2026-11", "2028-03")
    assert len(months) == 17 and months[-1] == "2028-03"
    for before, after in pairwise(months):
        assert month_bounds(before).end_at == month_bounds(after).start_at
        assert month_at(month_bounds(before).end_at - 1) == before


def test_period_counts_in_the_month_of_its_time_zone() -> None:
    for zone in ("UTC", "Pacific/Auckland", "America/Los_Angeles"):
        bounds = month_of(month_bounds("2026-11").start_at + 5 * 24 * HOUR_US, zone)
        period = Period(
            id="p",
            organization_id="o",
            currency="EUR",
            start_at=bounds.start_at,
            end_at=bounds.end_at,
            time_zone=zone,
            state=PeriodState.OPEN,
        )
        assert month_of_period(period) == "2026-11"
