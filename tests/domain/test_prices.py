"""Rating: quantity x unit price, exact and independent of order (promise P3; invariants 5 and 7 of the money model)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.billing_classes import Quantities, UnitPrices
from tollway.domain.money import UNIT_PRICE_PICO_MAX
from tollway.domain.prices import PriceVersion, amounts, find_price, rate

PRICES = st.integers(0, UNIT_PRICE_PICO_MAX)
TOKENS = st.integers(0, 4_000_000)
QUANTITIES = st.builds(Quantities, TOKENS, TOKENS, TOKENS, TOKENS)
BILLED = st.builds(Quantities, TOKENS, TOKENS, TOKENS, TOKENS, st.integers(0, 1))


def price(input: int = 3, cached: int = 1, output: int = 9, reasoning: int = 9, request: int = 0, valid_from: int = 0) -> PriceVersion:
    return PriceVersion(
        id=f"price_{valid_from}",
        list="book_1",
        model="m",
        currency="EUR",
        valid_from=valid_from,
        unit_prices=UnitPrices(input, cached, output, reasoning, request),
    )


VERSIONS = st.builds(price, PRICES, PRICES, PRICES, PRICES, PRICES)


def total(billed: Quantities, version: PriceVersion) -> int:
    return sum(line.amount_pico for line in rate(billed, version.unit_prices))


@given(BILLED, VERSIONS)
def test_each_line_is_its_product_and_the_cost_is_their_sum(billed: Quantities, version: PriceVersion) -> None:
    lines = rate(billed, version.unit_prices)
    assert all(line.amount_pico == line.quantity * line.unit_pico and line.quantity > 0 for line in lines)
    assert len({line.billing_class for line in lines}) == len(lines)
    assert billed.times(version.unit_prices).total == total(billed, version)
    by_class = {line.billing_class: line.amount_pico for line in lines if line.amount_pico}
    assert dict(amounts(billed, version.unit_prices).items()) == by_class


@given(QUANTITIES, QUANTITIES, VERSIONS)
def test_rating_apart_or_together_costs_the_same(one: Quantities, other: Quantities, version: PriceVersion) -> None:
    assert total(one, version) + total(other, version) == total(one + other, version)


def test_an_amount_that_no_column_holds_is_an_error_and_not_a_wrong_number() -> None:
    for rating in (rate, amounts):
        with pytest.raises(OverflowError):
            rating(Quantities(output=2**31), UnitPrices(output=2**33))


def test_only_one_class_must_fit_a_column_not_their_sum() -> None:
    most = Quantities(input=2**31 - 1, output=2**31 - 1)
    found = amounts(most, UnitPrices(input=2**32, output=2**32))
    assert found.total > 2**63 > found.input == found.output


def test_the_version_of_admission_time_is_chosen() -> None:
    versions = [price(valid_from=10), price(valid_from=20)]
    assert find_price(versions, 9) is None
    assert find_price(versions, 10) is versions[0]
    assert find_price(versions, 19) is versions[0]
    assert find_price(versions, 20) is versions[1]
