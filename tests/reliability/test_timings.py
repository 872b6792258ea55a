"""The comparison of two samples of times says what the books say of it, finds a difference that is there, and none that is not."""

import random

import pytest

from reliability.timings import compare, find_distance, find_distance_max, find_noticed_us, find_p


def test_the_distance_is_the_largest_between_the_two_distributions() -> None:
    assert find_distance([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert find_distance([1, 2], [3, 4]) == 1
    assert find_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert find_distance([1, 1, 1, 2], [1, 2, 2, 2]) == 0.5, "of values that are equal none is first"


@pytest.mark.parametrize(("alpha", "factor"), [(0.10, 1.22385), (0.05, 1.35810), (0.001, 1.94947)])
def test_the_distance_that_is_allowed_is_that_of_the_tables(alpha: float, factor: float) -> None:
    assert find_distance_max(alpha, 1000, 1000) == pytest.approx(factor * (2 / 1000) ** 0.5, rel=1e-4)
    assert find_p(find_distance_max(alpha, 1000, 1000), 1000, 1000) == pytest.approx(alpha, rel=1e-3)


def test_what_is_no_difference_at_all_is_likely() -> None:
    assert find_p(0.0, 1000, 1000) == 1.0 and find_p(1.0, 1000, 1000) < 1e-100


@pytest.mark.parametrize("seed", range(5))
def test_a_delay_is_found_and_none_is_not(seed: int) -> None:
    """Times as they are: a steep front and a long tail."""
    dice = random.Random(seed)
    a, b = ([40 + dice.expovariate(1 / 15) for _ in range(3000)] for _ in range(2))
    assert not compare(a, b, 0.001).is_told
    late = compare(a, [value + 20 for value in b], 0.001)
    assert late.is_told and late.p < 1e-9 and 18 < late.medians_differ_us < 22
    noticed = find_noticed_us(a, b, 0.001)
    assert noticed is not None and noticed <= 5
    assert find_noticed_us(a[:4], b[:4], 0.001) is None, "four are too few to notice anything"
