"""Sums that wait in files are those that would have been in memory."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tollway.control.verification.ordered_sums import OrderedSums


@dataclass(slots=True)
class Number:
    value: int = 0

    def add(self, other: "Number") -> None:
        self.value += other.value


@given(st.lists(st.tuples(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3)), st.integers(0, 2**70))), st.integers(1, 9))
def test_every_key_comes_once_and_in_order_with_all_that_was_added(added: list[tuple[tuple[str, int], int]], keys_max: int) -> None:
    expected: Counter[tuple[str, int]] = Counter()
    with OrderedSums[tuple[str, int], Number](Number, keys_max) as sums:
        for key, value in added:
            sums.add(key, Number(value))
            expected[key] += value
        assert [(key, number.value) for key, number in sums.items()] == sorted(expected.items())
