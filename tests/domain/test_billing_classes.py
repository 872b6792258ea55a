"""The table of billing classes and the vector type hold the same classes, and the arithmetic of the vector covers all of them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.billing_classes import (
    BILLING_CLASSES,
    NOTHING,
    QUANTITY_CLASSES,
    BillingClass,
    Direction,
    PerClass,
    Unit,
    UnitPrices,
    with_default_prices,
)

VALUES = st.integers(0, 2**70)
VECTORS = st.builds(PerClass, *(VALUES for _ in BillingClass))


def test_fields_of_the_vector_are_the_classes_of_the_table() -> None:
    assert PerClass.__struct_fields__ == tuple(BillingClass) == tuple(row.billing_class for row in BILLING_CLASSES)


def test_every_token_class_has_a_direction_and_nothing_else_has() -> None:
    assert [row.billing_class for row in BILLING_CLASSES if (row.direction is None) == (row.unit is Unit.TOKEN)] == []


@given(VECTORS, VECTORS)
def test_arithmetic_covers_every_class(one: PerClass, other: PerClass) -> None:
    pairs = list(zip(one.values(), other.values(), strict=True))
    assert (one + other).values() == tuple(a + b for a, b in pairs)
    assert one.times(other).values() == tuple(a * b for a, b in pairs)
    assert one.times(other, 3).values() == (*(a * b for a, b in pairs[:-1]), (one.request + 3) * other.request)
    assert one.total == sum(one.values())
    assert one.quantities() == tuple(one.get(billing_class) for billing_class in QUANTITY_CLASSES)
    assert dict(one.items()) == {billing_class: one.get(billing_class) for billing_class in BillingClass if one.get(billing_class)}
    assert (one.input_tokens, one.output_tokens) == (one.sum_of(Direction.INPUT), one.sum_of(Direction.OUTPUT))
    assert sum(one.sum_of(direction) for direction in Direction) == one.total - one.request
    for row in BILLING_CLASSES:
        billing_class, is_input, is_output = row.billing_class, row.direction is Direction.INPUT, row.direction is Direction.OUTPUT
        assert one.with_input_of(other).get(billing_class) == (other if is_input else one).get(billing_class)
        plain = 5 if billing_class is BillingClass.OUTPUT else 0
        assert one.with_plain_output(5).get(billing_class) == (plain if is_output else one.get(billing_class))
        assert one.with_request(5).get(billing_class) == (5 if billing_class is BillingClass.REQUEST else one.get(billing_class))
        if row.direction is not None:
            assert one.get(billing_class) <= one.highest_of(row.direction) <= one.sum_of(row.direction)


@given(st.lists(st.integers(-3, 2**40), min_size=len(BillingClass), max_size=len(BillingClass)), st.integers(1, 36))
def test_bits_show_whether_every_value_is_in_range(values: list[int], bits: int) -> None:
    assert (PerClass(*values).bits >> bits == 0) == all(0 <= value < 2**bits for value in values)


def test_a_zero_is_left_out_of_the_encoding() -> None:
    assert msgspec.json.encode(PerClass(input=1)) == b'{"input":1}'
    assert msgspec.json.encode(NOTHING) == b"{}"


def test_a_class_without_a_stated_price_has_the_default_of_its_row() -> None:
    stated = {BillingClass.INPUT: 3, BillingClass.OUTPUT: 9}
    assert with_default_prices(stated) == UnitPrices(input=3, cached_input=3, output=9, reasoning=9, request=0)
    assert with_default_prices({**stated, BillingClass.CACHED_INPUT: 0}).cached_input == 0


@pytest.mark.parametrize("missing", [BillingClass.INPUT, BillingClass.OUTPUT])
def test_a_required_class_without_a_price_is_an_error(missing: BillingClass) -> None:
    with pytest.raises(KeyError):
        with_default_prices({billing_class: 1 for billing_class in BillingClass if billing_class is not missing})
