"""Rating: quantity x unit price, exact and independent of order (promise P3; invariants 5 and 7 of the money model)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.money import UNIT_PRICE_PICO_MAX
from tollway.domain.prices import PriceVersion, amounts, cost, find_price, rate
from tollway.domain.usage import Quantities

PRICES = st.integers(0, UNIT_PRICE_PICO_MAX)
TOKENS = st.integers(0, 4_000_000)
QUANTITIES = st.builds(Quantities, TOKENS, TOKENS, TOKENS, TOKENS)


def price(input: int = 3, cached: int = 1, output: int = 9, reasoning: int = 9, request: int = 0, valid_from: int = 0) -> PriceVersion:
    return PriceVersion(
        id=f"price_{valid_from}",
        list="book_1",
        model="m",
        currency="EUR",
        valid_from=valid_from,
        input_pico=input,
        cached_input_pico=cached,
        output_pico=output,
        reasoning_pico=reasoning,
        request_pico=request,
    )


VERSIONS = st.builds(price, PRICES, PRICES, PRICES, PRICES, PRICES)


def total(used: Quantities, requests: int, version: PriceVersion) -> int:
    return sum(line.amount_pico for line in rate(used, requests, version))


@given(QUANTITIES, st.integers(0, 1), VERSIONS)
def test_each_line_is_its_product_and_the_cost_is_their_sum(used: Quantities, requests: int, version: PriceVersion) -> None:
    lines = rate(used, requests, version)
    assert all(line.amount_pico == line.quantity * line.unit_pico and line.quantity > 0 for line in lines)
    assert len({line.billing_class for line in lines}) == len(lines)
    assert cost(used, requests, version) == total(used, requests, version)
    by_class = {str(line.billing_class): line.amount_pico for line in lines if line.amount_pico}
    assert {name: pico for name, pico in msgspec.structs.asdict(amounts(used, requests, version)).items() if pico} == by_class


@given(QUANTITIES, QUANTITIES, VERSIONS)
def test_rating_apart_or_together_costs_the_same(one: Quantities, other: Quantities, version: PriceVersion) -> None:
    both = Quantities(
        one.input + other.input, one.cached_input + other.cached_input, one.output + other.output, one.reasoning + other.reasoning
    )
    assert total(one, 0, version) + total(other, 0, version) == total(both, 0, version)


def test_an_amount_that_no_column_holds_is_an_error_and_not_a_wrong_number() -> None:
    for rating in (rate, amounts):
        with pytest.raises(OverflowError):
            rating(Quantities(output=2**31), 0, price(output=2**33))


def test_only_one_class_must_fit_a_column_not_their_sum() -> None:
    most = Quantities(input=2**31 - 1, output=2**31 - 1)
    found = amounts(most, 0, price(input=2**32, output=2**32))
    assert found.total > 2**63 > found.input == found.output


def test_the_version_of_admission_time_is_chosen() -> None:
    versions = [price(valid_from=10), price(valid_from=20)]
    assert find_price(versions, 9) is None
    assert find_price(versions, 10) is versions[0]
    assert find_price(versions, 19) is versions[0]
    assert find_price(versions, 20) is versions[1]
