"""The arithmetic of shared counters: exactly that of `limits.gcra`, whatever the size of the limit."""

from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.limits import (
    DAY_NS,
    MINUTE_NS,
    TOKENS_PER_MINUTE_MAX,
    Dimension,
    LevelLimits,
    LimitLevel,
    Limits,
    Quantity,
    gcra,
    make_rate,
)
from tollway.domain.shared_limits import EMPTY, SharedCounter, drain, find_remaining, find_reset_us, find_wait_us

OWNER = LevelLimits(LimitLevel.PROJECT, "proj_1", Limits())
SIZES = st.one_of(st.integers(1, 20), st.integers(1, 1440 * TOKENS_PER_MINUTE_MAX))


@given(
    st.sampled_from([MINUTE_NS, DAY_NS]),
    SIZES,
    st.lists(st.tuples(st.integers(0, 2 * DAY_NS // 1000), st.floats(0, 1.2), st.floats(0, 1)), max_size=12),
)
def test_shared_rate_decides_as_gcra_does(window_ns: int, size: int, arrivals: list[tuple[int, float, float]]) -> None:
    counter = SharedCounter(OWNER, Dimension(name="x", quantity=Quantity.TOKENS, window_ns=window_ns, size_max=size), size)
    rate = make_rate(size, window_ns // 1000)  # with microseconds as the unit of time
    now, tat, state = 10**15, 0, EMPTY
    for pause, share, held_share in arrivals:
        now += pause
        units, held = int(size * share), int(size * held_share)
        decision = gcra(tat, now, rate, units, held)
        state = drain(state, pause, size, counter.window_us)._replace(held=held)
        left = find_remaining(state, size)
        assert (units <= left) == decision.admitted or left == 0 == units
        assert max(find_wait_us(state, counter, units), 0) == decision.retry_after_ns
        if decision.admitted:
            state, tat = state._replace(units=state.units + units), decision.tat
            assert find_remaining(state, size) == decision.remaining
        taken = max(tat - now * rate.scale, 0) + held * rate.cost
        assert find_reset_us(state, counter) == -(-taken // rate.scale)


def test_clock_that_steps_back_drains_nothing() -> None:
    state = EMPTY._replace(units=5, fraction=7)
    assert drain(state, -1_000_000, 60, 60_000_000) == state
