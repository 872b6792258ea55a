"""Requests per minute at several levels: one decision for all, the same as the rule decides for each."""

from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.limits import Decision, gcra, rate
from tollway.gateway.counters import Counters, enter, find_refusal

MINUTE_NS = 60_000_000_000
LEVELS = st.lists(st.integers(1, 9), min_size=1, max_size=3)
BOTH = st.tuples(st.none() | st.integers(1, 4), st.none() | st.integers(1, 3))
PAUSES = st.lists(st.integers(0, MINUTE_NS // 2), max_size=30)


@given(LEVELS, PAUSES)
def test_all_levels_decide_as_the_rule_does_or_none_is_charged(limits: list[int], pauses: list[int]) -> None:
    rates = tuple(rate(str(level), per_minute) for level, per_minute in enumerate(limits))
    levels, tats, now = Counters().bind(rates, ()), [0] * len(limits), MINUTE_NS
    for pause in pauses:
        now += pause
        decisions: list[Decision] = [gcra(tat, now, per_minute) for tat, per_minute in zip(tats, limits, strict=True)]
        before = [level[0].running for level in levels]
        left = enter(levels, now)
        refusals = [decision for decision in decisions if not decision.admitted]
        if refusals:
            assert left is None
            assert find_refusal(levels, now) == refusals[0].retry_after_ns
            assert [level[0].running for level in levels] == before
        else:
            tats = [decision.tat_ns for decision in decisions]
            assert left is not None and left[1] == min(decision.remaining for decision in decisions)
            assert left in [(limit, one.remaining) for limit, one in zip(limits, decisions, strict=True)]


@given(st.lists(st.tuples(st.none() | st.integers(1, 4), st.none() | st.integers(1, 3)), max_size=3), st.lists(st.booleans(), max_size=30))
def test_no_more_run_than_each_level_takes_and_a_refused_one_takes_nothing(
    limits: list[tuple[int | None, int | None]], steps: list[bool]
) -> None:
    rates = [rate(str(place), per_minute) for place, (per_minute, _) in enumerate(limits) if per_minute is not None]
    concurrent = [(str(place), most) for place, (_, most) in enumerate(limits) if most is not None]
    levels, running, taken = Counters().bind(rates, concurrent), 0, 0
    for comes in steps:
        if comes:
            crowded = any(running >= most for _, most in concurrent)
            spent = any(taken >= per_minute for _, per_minute, _, _ in rates)
            is_admitted = enter(levels, MINUTE_NS) is not None
            assert is_admitted == (not crowded and not spent)
            if not is_admitted:
                assert (find_refusal(levels, MINUTE_NS) is None) == crowded
            running += is_admitted
            taken += is_admitted
        elif running:
            running -= 1
            for level in levels:
                level[0].running -= 1
        assert all(level[0].running == running for level in levels)


def test_who_shares_a_bucket_counts_in_it_until_it_is_idle_and_forgotten() -> None:
    counters, shared = Counters(), rate("project", 2)
    (first,) = alone = counters.bind((shared,), ())
    assert enter(alone, MINUTE_NS) == (2, 1)
    counters.forget_idle(MINUTE_NS)
    key, second = both = counters.bind((rate("key", 9), shared), (("project", 3),))
    assert second[0] is first[0] is not key[0]
    assert enter(both, MINUTE_NS) == (2, 0)
    assert enter(alone, MINUTE_NS) is None
    first[0].running -= 1
    counters.forget_idle(9 * MINUTE_NS)
    assert counters.bind((shared,), ())[0][0] is first[0], "one is still running"
    first[0].running -= 1
    counters.forget_idle(9 * MINUTE_NS + 1)
    assert counters.bind((shared,), ())[0][0] is first[0], "looked a moment ago"
    counters.forget_idle(10 * MINUTE_NS)
    assert counters.bind((shared,), ())[0][0] is not first[0]
