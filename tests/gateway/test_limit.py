"""Requests per minute at several levels: one decision for all, the same as the rule decides for each."""

from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.limits import Decision, gcra, rate
from tollway.gateway.counters import Counters, take_requests

MINUTE_NS = 60_000_000_000
LEVELS = st.lists(st.integers(1, 9), min_size=1, max_size=3)
PAUSES = st.lists(st.integers(0, MINUTE_NS // 2), max_size=30)


@given(LEVELS, PAUSES)
def test_all_levels_decide_as_the_rule_does_or_none_is_charged(limits: list[int], pauses: list[int]) -> None:
    rates = tuple(rate(str(level), per_minute) for level, per_minute in enumerate(limits))
    levels, tats, now = Counters().bind(rates, ()), [0] * len(limits), MINUTE_NS
    for pause in pauses:
        now += pause
        decisions: list[Decision] = [gcra(tat, now, per_minute) for tat, per_minute in zip(tats, limits, strict=True)]
        per_minute, remaining, retry_after_ns = take_requests(levels.rates, now)
        refusals = [(limit, decision) for limit, decision in zip(limits, decisions, strict=True) if not decision.admitted]
        if refusals:
            limit, decision = refusals[0]
            assert (per_minute, remaining, retry_after_ns) == (limit, decision.remaining, decision.retry_after_ns)
        else:
            tats = [decision.tat_ns for decision in decisions]
            assert retry_after_ns == 0
            assert remaining == min(decision.remaining for decision in decisions)
            assert (per_minute, remaining) in [(limit, one.remaining) for limit, one in zip(limits, decisions, strict=True)]


def test_who_shares_a_bucket_counts_in_it_until_it_is_idle_and_forgotten() -> None:
    counters, shared = Counters(), rate("project", 2)
    first = counters.bind((shared,), ())
    assert take_requests(first.rates, MINUTE_NS) == (2, 1, 0)
    counters.forget_idle(MINUTE_NS)
    second = counters.bind((rate("key", 9), shared), (("project", 3),))
    assert second.rates[1][0] is first.rates[0][0] is second.concurrent[0][0]
    assert take_requests(second.rates, MINUTE_NS) == (2, 0, 0)
    assert take_requests(first.rates, MINUTE_NS)[2] > 0
    second.concurrent[0][0].running += 1
    counters.forget_idle(9 * MINUTE_NS)
    assert counters.bind((shared,), ()).rates[0][0] is first.rates[0][0], "one is still running"
    second.concurrent[0][0].running -= 1
    counters.forget_idle(9 * MINUTE_NS)
    assert counters.bind((shared,), ()).rates[0][0] is not first.rates[0][0]
