"""GCRA in exact arithmetic: bursts, windows, holds and waiting times; limits that are mistakes."""

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.limits import (
    BY_NAME,
    DAY_NS,
    DIMENSIONS,
    MINUTE_NS,
    TOKENS_PER_MINUTE_MAX,
    Limits,
    find_model_problem,
    find_problem,
    gcra,
    make_rate,
)

ARRIVALS = st.lists(st.tuples(st.integers(0, MINUTE_NS // 4), st.integers(1, 20)), min_size=1, max_size=60)
SIZES = st.integers(1, TOKENS_PER_MINUTE_MAX)
WINDOWS = st.sampled_from([MINUTE_NS, DAY_NS])


@given(st.integers(1, 60), ARRIVALS)
def test_gcra_over_any_window_admits_at_most_burst_and_rate(size: int, arrivals: list[tuple[int, int]]) -> None:
    rate, tat, now, admitted = make_rate(size, MINUTE_NS), 0, 10**18, []
    for gap, units in arrivals:
        now += gap
        decision = gcra(tat, now, rate, units)
        if decision.admitted:
            admitted.append((now, units))
            tat = decision.tat
    for first, (start, _) in enumerate(admitted):
        total = 0
        for at, units in admitted[first:]:
            total += units
            assert total <= size + Fraction(size * (at - start), MINUTE_NS)


@given(SIZES, WINDOWS)
def test_gcra_with_an_idle_bucket_admits_its_whole_burst_and_not_one_unit_more(size: int, window_ns: int) -> None:
    now, rate = 10**18, make_rate(size, window_ns)
    assert gcra(0, now, rate, size).admitted
    assert not gcra(0, now, rate, size + 1).admitted
    assert gcra(0, now, rate, 1).remaining == size - 1


@given(SIZES, WINDOWS, st.integers(0, DAY_NS))
def test_gcra_with_a_whole_window_passed_is_idle_to_the_nanosecond(size: int, window_ns: int, start: int) -> None:
    rate = make_rate(size, window_ns)
    tat = gcra(0, start, rate, size).tat
    assert not gcra(tat, start + window_ns - 1, rate, size).admitted
    assert gcra(tat, start + window_ns, rate, size).admitted


@given(SIZES, WINDOWS, st.data())
def test_gcra_after_the_stated_wait_admits_and_a_nanosecond_earlier_does_not(size: int, window_ns: int, data: st.DataObject) -> None:
    now, rate = 10**18, make_rate(size, window_ns)
    charged, held = data.draw(st.integers(0, size)), data.draw(st.integers(0, size - 1))
    units = data.draw(st.integers(1, size - held))
    tat = now * rate.scale + charged * rate.cost
    refused = gcra(tat, now, rate, units, held)
    if not refused.admitted:
        assert refused.tat == tat, "a refusal changes nothing"
        later = now + refused.retry_after_ns
        assert gcra(tat, later, rate, units, held).admitted
        assert not gcra(tat, later - 1, rate, units, held).admitted
    else:
        assert refused.remaining == max(size - charged - held - units, 0)


def test_limits_have_one_field_for_each_dimension() -> None:
    assert set(Limits.__struct_fields__) == set(BY_NAME)
    assert list(Limits().to_dict()) == [dimension.name for dimension in DIMENSIONS]
    assert msgspec.json.encode(Limits(tokens_per_day=3)) == b'{"tokens_per_day":3}'


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda dimension: dimension.name)
def test_problem_of_a_value_out_of_range_names_the_dimension(dimension: object) -> None:
    name, size_max = dimension.name, dimension.size_max  # type: ignore[attr-defined]
    for size in (-1, 0, size_max + 1):
        problem = find_problem(Limits(**{name: size}))
        assert problem is not None and problem.dimension == name and str(size_max) in problem.message
    for size in (1, size_max):
        assert find_problem(Limits(**{name: size})) is None


@pytest.mark.parametrize(
    ("limits", "at_fault"),
    [
        ({"requests_per_minute": 11, "requests_per_day": 10}, "requests_per_minute"),
        ({"tokens_per_minute": 11, "tokens_per_day": 10}, "tokens_per_minute"),
        ({"input_tokens_per_minute": 11, "tokens_per_minute": 10}, "input_tokens_per_minute"),
        ({"output_tokens_per_day": 11, "tokens_per_day": 10}, "output_tokens_per_day"),
        ({"input_tokens_per_minute": 10, "output_tokens_per_minute": 10, "tokens_per_minute": 10, "tokens_per_day": 10}, None),
        ({"requests_per_minute": 10, "tokens_per_minute": 1}, None),
    ],
)
def test_problem_of_a_limit_that_another_makes_void_names_it(limits: dict[str, int], at_fault: str | None) -> None:
    problem = find_problem(Limits(**limits))
    assert (None if problem is None else problem.dimension) == at_fault


@pytest.mark.parametrize(
    ("of_all", "of_model", "at_fault"),
    [
        ({"tokens_per_day": 5}, {"tokens_per_day": 5}, None),
        ({"tokens_per_day": 5}, {"tokens_per_minute": 5, "output_tokens_per_day": 5}, None),
        ({"tokens_per_day": 5}, {"tokens_per_day": 6}, "tokens_per_day"),
        ({"tokens_per_day": 5}, {"tokens_per_minute": 6}, "tokens_per_minute"),
        ({"tokens_per_day": 5}, {"input_tokens_per_day": 6}, "input_tokens_per_day"),
        ({"concurrent_requests": 2}, {"concurrent_requests": 3}, "concurrent_requests"),
        ({"requests_per_minute": 2}, {"requests_per_day": 3}, None),
    ],
)
def test_problem_of_a_limit_on_a_model_that_the_limit_on_all_makes_void_names_both(
    of_all: dict[str, int], of_model: dict[str, int], at_fault: str | None
) -> None:
    problem = find_model_problem(Limits(**of_all), {"m": Limits(**of_model)})
    assert (None if problem is None else problem.dimension) == at_fault
    assert problem is None or f"of model m ({of_model[problem.dimension]})" in problem.message
