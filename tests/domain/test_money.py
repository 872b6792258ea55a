"""Money: prices and amounts are integers of pico-currency, read and written exactly (promise P3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.money import (
    PICO,
    UNIT_PRICE_PICO_MAX,
    format_amount,
    format_price_per_million,
    parse_amount,
    parse_price_per_million,
)


@given(st.integers(0, UNIT_PRICE_PICO_MAX))
def test_a_unit_price_survives_its_text(unit_pico: int) -> None:
    assert parse_price_per_million(format_price_per_million(unit_pico)) == unit_pico


@given(st.integers(-(10**30), 10**30))
def test_an_amount_s_text_is_exact_and_shortest(pico: int) -> None:
    text = format_amount(pico)
    whole, _, fraction = text.removeprefix("-").partition(".")
    assert int(whole) * PICO + int(fraction.ljust(12, "0")) == abs(pico)
    assert text.startswith("-") == (pico < 0)
    assert not fraction.endswith("0")


@given(st.integers(0, UNIT_PRICE_PICO_MAX))
def test_an_amount_survives_its_text(pico: int) -> None:
    assert parse_amount(format_amount(pico)) == pico


def test_the_price_of_a_million_tokens_is_a_whole_number_of_pico_a_token() -> None:
    assert parse_price_per_million("0.27") == 270_000
    assert parse_price_per_million("0.000001") == 1
    assert parse_price_per_million("10.500000000000") == 10_500_000, "zeros behind the sixth decimal say nothing"


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "1e3", "1.", ".5", "01", "1,5", " 1", "1 ", "1_000", "0.0000001", "NaN", "inf", "\u0661", "1.1234567890123", "9" * 13],
)
def test_anything_but_a_plain_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_price_per_million(text)


def test_a_price_above_the_highest_is_refused() -> None:
    assert parse_price_per_million("1000000") == UNIT_PRICE_PICO_MAX
    with pytest.raises(ValueError):
        parse_price_per_million("1000000.000001")
