"""The table of billing classes and the vector type hold the same classes, and the arithmetic of the vector covers all of them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.billing_classes import (
    BILLING_CLASSES,
    CLASS_TABLE,
    NOTHING,
    OTHER_CLASSES,
    QUANTITY_CLASSES,
    TEXT_CLASSES,
    BillingClass,
    Direction,
    OtherClasses,
    PerClass,
    Unit,
    UnitPrices,
    complete_prices,
    stated_prices,
    with_default_prices,
)

VALUES = st.integers(0, 2**70)


def vectors(values: st.SearchStrategy[int]) -> st.SearchStrategy[PerClass]:
    """Return vectors of any values, half of them without the classes that few requests use."""
    text = st.builds(PerClass, *(values for _ in range(len(BillingClass) - len(OTHER_CLASSES))))
    return text | st.builds(PerClass.from_values, st.tuples(*(values for _ in BillingClass)))


VECTORS = vectors(VALUES)


def test_fields_of_the_vector_are_the_classes_of_the_table() -> None:
    assert tuple(BillingClass) == tuple(row.billing_class for row in BILLING_CLASSES)
    assert PerClass.__struct_fields__ == (*TEXT_CLASSES, BillingClass.REQUEST, "other")
    assert OtherClasses.__struct_fields__ == OTHER_CLASSES


@given(st.tuples(*(VALUES for _ in BillingClass)))
def test_a_vector_holds_the_values_of_the_table_in_its_order(values: tuple[int, ...]) -> None:
    made = PerClass.from_values(values)
    assert made.values() == values
    assert [made.get(name) for name in BillingClass] == list(values)
    assert (made.other is None) == (not any(made.get(name) for name in OTHER_CLASSES))
    assert msgspec.json.decode(msgspec.json.encode(made), type=PerClass) == made


def test_every_token_class_has_a_direction_and_nothing_else_has() -> None:
    assert [row.billing_class for row in BILLING_CLASSES if (row.direction is None) == (row.unit is Unit.TOKEN)] == []


@given(VECTORS, VECTORS)
def test_arithmetic_covers_every_class(one: PerClass, other: PerClass) -> None:
    pairs = list(zip(one.values(), other.values(), strict=True))
    assert (one + other).values() == tuple(a + b for a, b in pairs)
    assert one.times(other).values() == tuple(a * b for a, b in pairs)
    assert one.times(other, 3).values() == (*(a * b for a, b in pairs[:-1]), (one.request + 3) * other.request)
    assert one.cost(other, 3) == one.times(other, 3).total
    assert one.total == sum(one.values())
    assert one.quantities() == tuple(one.get(billing_class) for billing_class in QUANTITY_CLASSES)
    assert dict(one.items()) == {billing_class: one.get(billing_class) for billing_class in BillingClass if one.get(billing_class)}
    assert (one.input_tokens, one.output_tokens) == (one.sum_of(Direction.INPUT), one.sum_of(Direction.OUTPUT))
    tokens = sum(one.get(row.billing_class) for row in BILLING_CLASSES if row.unit is Unit.TOKEN)
    assert sum(one.sum_of(direction) for direction in Direction) == tokens
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
    assert (PerClass.from_values(values).bits >> bits == 0) == all(0 <= value < 2**bits for value in values)


def test_a_zero_is_left_out_of_the_encoding() -> None:
    assert msgspec.json.encode(PerClass(input=1)) == b'{"input":1}'
    assert msgspec.json.encode(NOTHING) == b"{}"
    assert msgspec.json.encode(PerClass(other=OtherClasses(images=2))) == b'{"other":{"images":2}}'


def test_a_class_without_a_stated_price_has_the_default_of_its_row() -> None:
    stated = {BillingClass.INPUT: 3, BillingClass.OUTPUT: 9}
    tokens = OtherClasses(cache_write=3, audio_input=3, image_input=3, audio_output=9, image_output=9)
    assert with_default_prices(stated) == UnitPrices(input=3, cached_input=3, output=9, reasoning=9, request=0, other=tokens)
    assert with_default_prices({**stated, BillingClass.CACHED_INPUT: 0}).cached_input == 0


@given(vectors(st.integers(0, 3)))
def test_prices_are_read_back_from_what_is_stated_of_them(prices: UnitPrices) -> None:
    assert with_default_prices(stated_prices(prices)) == prices


def test_a_price_from_before_a_class_existed_has_its_default_and_states_what_it_stated() -> None:
    before = UnitPrices(input=3, cached_input=1, output=9, reasoning=8, request=7)
    now = complete_prices(before, 1)
    assert (now.get(BillingClass.AUDIO_INPUT), now.get(BillingClass.IMAGE_OUTPUT), now.get(BillingClass.IMAGES)) == (3, 9, 0)
    assert stated_prices(now) == dict(zip((*TEXT_CLASSES, BillingClass.REQUEST), (3, 1, 9, 8, 7), strict=True))
    assert complete_prices(before, CLASS_TABLE) is before


@pytest.mark.parametrize("missing", [BillingClass.INPUT, BillingClass.OUTPUT])
def test_a_required_class_without_a_price_is_an_error(missing: BillingClass) -> None:
    with pytest.raises(KeyError):
        with_default_prices({billing_class: 1 for billing_class in BillingClass if billing_class is not missing})
