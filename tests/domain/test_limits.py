"""GCRA: over any window of T minutes at most limit x (1 + T) pass, and a refusal says when to come back (invariant 10)."""

from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.limits import MINUTE_NS, REQUESTS_PER_MINUTE_MAX, gcra

ARRIVALS = st.lists(st.integers(0, MINUTE_NS // 4), min_size=1, max_size=200)


@given(st.integers(1, 60), ARRIVALS)
def test_no_window_admits_more_than_its_burst_and_its_rate(per_minute: int, gaps: list[int]) -> None:
    tat, now, admitted = 0, 10**18, []
    for gap in gaps:
        now += gap
        decision = gcra(tat, now, per_minute)
        if decision.admitted:
            admitted.append(now)
            tat = decision.tat_ns
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            window = admitted[last] - start
            assert (last - first + 1) <= per_minute + per_minute * window // MINUTE_NS + 1


@given(st.integers(1, REQUESTS_PER_MINUTE_MAX))
def test_an_idle_bucket_admits_its_whole_burst_and_not_one_more(per_minute: int) -> None:
    now = 10**18
    assert gcra(0, now, per_minute, per_minute).admitted
    assert not gcra(0, now, per_minute, per_minute + 1).admitted
    assert gcra(0, now, per_minute, 1).remaining == per_minute - 1


@given(st.integers(1, REQUESTS_PER_MINUTE_MAX), st.integers(0, MINUTE_NS))
def test_who_comes_back_when_told_is_admitted_and_a_moment_earlier_is_not(per_minute: int, ahead: int) -> None:
    now = 10**18
    refused = gcra(now + ahead, now, per_minute, per_minute)
    if not refused.admitted:
        assert refused.tat_ns == now + ahead, "a refusal changes nothing"
        later = now + refused.retry_after_ns
        assert gcra(now + ahead, later, per_minute, per_minute).admitted
        assert not gcra(now + ahead, later - 1, per_minute, per_minute).admitted
