"""Limits at several levels: one decision for all, the same as the rule decides for each; holds that cannot leak."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollway.domain.limits import DAY_NS, MINUTE_NS, LevelLimits, LimitLevel, Limits, gcra, make_rate
from tollway.gateway import memory_counters
from tollway.gateway.counters import EndUserLimits, Units
from tollway.gateway.limit import format_duration
from tollway.gateway.memory_counters import Counter, MemoryBound, MemoryCounters, MemoryHold, find_refusal

LEVELS = st.lists(st.integers(1, 9), min_size=1, max_size=3)
PAUSES = st.lists(st.integers(0, MINUTE_NS // 2), max_size=30)
ONE: Units = (1, 0, 0, 0, 0, 0)


def level(number: int, **limits: int | None) -> LevelLimits:
    levels = [each for each in LimitLevel if each is not LimitLevel.END_USER]
    return LevelLimits(levels[number], f"id_{number}", Limits(**limits))


def bind(counters: MemoryCounters, *levels: LevelLimits, now_ns: int = MINUTE_NS) -> MemoryBound:
    return counters.bind("org_1", levels, now_ns)


# Requests per minute and concurrent requests: buckets


@given(LEVELS, PAUSES)
def test_buckets_decide_as_the_rule_does_or_none_is_charged(sizes: list[int], pauses: list[int]) -> None:
    bound = bind(MemoryCounters(), *(level(number, requests_per_minute=size) for number, size in enumerate(sizes)))
    rates, tats, now = [make_rate(size, MINUTE_NS) for size in sizes], [0] * len(sizes), MINUTE_NS
    for pause in pauses:
        now += pause
        decisions = [gcra(tat, now, rate) for tat, rate in zip(tats, rates, strict=True)]
        before = [bucket.running for bucket in bound.buckets]
        left = bound.enter(now)
        waits = [decision.retry_after_ns for decision in decisions if not decision.admitted]
        if waits:
            assert left is None
            assert find_refusal(bound, ONE, now).wait_ns == max(waits)
            assert [bucket.running for bucket in bound.buckets] == before
        else:
            tats = [decision.tat for decision in decisions]
            assert left is not None and left[1] == min(decision.remaining for decision in decisions)
            assert left in [(size, decision.remaining) for size, decision in zip(sizes, decisions, strict=True)]
            tightest = bound.find_tightest(now)[0]
            assert tightest is not None and tightest.remaining == left[1]


@given(st.lists(st.tuples(st.none() | st.integers(1, 4), st.none() | st.integers(1, 3)), max_size=3), st.lists(st.booleans(), max_size=30))
def test_buckets_run_at_most_what_each_level_allows_and_a_refusal_takes_nothing(
    limits: list[tuple[int | None, int | None]], steps: list[bool]
) -> None:
    levels = [level(number, requests_per_minute=rate, concurrent_requests=most) for number, (rate, most) in enumerate(limits)]
    bound, running, taken = bind(MemoryCounters(), *levels), 0, 0
    for comes in steps:
        if comes:
            crowded = any(most is not None and running >= most for _, most in limits)
            spent = any(rate is not None and taken >= rate for rate, _ in limits)
            is_admitted = bound.enter(MINUTE_NS) is not None
            assert is_admitted == (not crowded and not spent)
            if not is_admitted:
                assert find_refusal(bound, ONE, MINUTE_NS).is_concurrency == crowded
            running += is_admitted
            taken += is_admitted
        elif running:
            running -= 1
            bound.leave()
        assert all(bucket.running == running for bucket in bound.buckets)


def test_bucket_that_callers_share_counts_all_of_them_until_it_is_idle_and_forgotten() -> None:
    counters, shared = MemoryCounters(), level(2, requests_per_minute=2)
    alone = bind(counters, shared)
    assert alone.enter(MINUTE_NS) == (2, 1)
    counters.forget_idle(MINUTE_NS)
    both = bind(counters, level(0, requests_per_minute=9), shared)
    (first,), (key, second) = alone.buckets, both.buckets
    assert second is first is not key
    assert both.enter(MINUTE_NS) == (2, 0)
    assert alone.enter(MINUTE_NS) is None
    alone.leave()
    counters.forget_idle(9 * MINUTE_NS)
    assert bind(counters, shared).buckets[0] is first, "one is still running"
    alone.leave()
    counters.forget_idle(9 * MINUTE_NS + 1)
    assert bind(counters, shared).buckets[0] is first, "looked a moment ago"
    counters.forget_idle(10 * MINUTE_NS)
    assert bind(counters, shared).buckets[0] is not first


# Everything else: counters with holds

DIMENSIONS = ("tokens_per_minute", "input_tokens_per_minute", "output_tokens_per_minute", "requests_per_day", "tokens_per_day")
INDEX = {"tokens": 1, "input_tokens": 2, "output_tokens": 3, "requests": 0}


@dataclass
class Run:
    """A request under way: what it holds, what it will have used, and when it was admitted."""

    caller: int
    units: Units
    used: Units
    hold: MemoryHold
    at: int


def units_of(input_tokens: int, output_tokens: int) -> Units:
    return 1, input_tokens + output_tokens, input_tokens, output_tokens, 0, 0


SHARES = st.tuples(st.integers(0, 100), st.integers(0, 100))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, 1), st.tuples(st.integers(0, 30), st.integers(0, 30)), SHARES),
        st.tuples(st.just("pass"), st.integers(0, MINUTE_NS + MINUTE_NS // 3)),
        st.tuples(st.just("end"), st.integers(0, 20)),
    ),
    max_size=40,
)
OWNERS = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.integers(1, 60) for name in DIMENSIONS},
        "requests_per_minute": st.integers(1, 8),
        "concurrent_requests": st.integers(1, 4),
    },
)


def taken(bounds: Sequence[MemoryBound], now: int) -> list[tuple[int, int]]:
    """List what is charged and what runs or is held, in every bucket and counter."""
    found = [(max(bucket.tat - now * bucket.scale, 0), bucket.running) for bound in bounds for bucket in bound.buckets]
    return found + [(counter.debt(now), counter.held) for bound in bounds for counter in bound.rates]


def refuses(counter: Counter, units: Units, now: int) -> bool:
    rate = make_rate(counter.size, counter.dimension.window_ns)
    return not gcra(counter.tat, now, rate, units[counter.quantity], counter.held).admitted


def bucket_refuses(bound: MemoryBound, now: int) -> bool:
    for bucket in bound.buckets:
        rate = make_rate(bucket.per_minute, MINUTE_NS)
        if bucket.running >= bucket.most or (bucket.cost and not gcra(bucket.tat, now, rate).admitted):
            return True
    return False


@settings(max_examples=400)
@given(OWNERS, OWNERS, OWNERS, STEPS)
def test_interleavings_of_admissions_and_ends_keep_every_limit_at_every_level(
    own: dict[str, int], other: dict[str, int], shared: dict[str, int], steps: list[tuple[object, ...]]
) -> None:
    """Two callers below one project: work admitted in any window is at most burst + rate x window, a request is admitted at all levels or
    at none, and holds are conserved."""
    counters, now = MemoryCounters(), 7 * DAY_NS
    project = level(2, **shared)
    bounds = [counters.bind("org_1", [level(0, **own), project], now), counters.bind("org_1", [level(1, **other), project], now)]
    running: list[Run] = []
    admitted: list[Run] = []

    def end(run: Run) -> None:
        running.remove(run)
        run.hold.settle(run.used, now)

    for step in steps:
        match step:
            case ("pass", int(pause)):
                now += pause
            case ("end", int(place)) if running:
                end(running[place % len(running)])
            case ("arrive", int(caller), tuple((int(input_tokens), int(output_tokens))), tuple((int(of_input), int(of_output)))):
                bound = bounds[caller]
                units = units_of(input_tokens, output_tokens)
                used = units_of(input_tokens * of_input // 100, output_tokens * of_output // 100)
                counters.list_standings(bound, now)  # charges old holds, as `reserve` does first
                before = taken(bounds, now)
                is_refused = any(refuses(counter, units, now) for counter in bound.rates) or bucket_refuses(bound, now)
                hold = counters.reserve(bound, units, now)
                assert hold.is_admitted != is_refused
                if is_refused:
                    assert taken(bounds, now) == before, "a refusal changes nothing"
                    refusal = find_refusal(bound, units, now)
                    if refusal.wait_ns is not None and not refusal.is_permanent:
                        assert refusal.wait_ns > 0
                else:
                    run = Run(caller, units, used, hold, now)
                    running.append(run)
                    admitted.append(run)
        for counter in {counter for bound in bounds for counter in bound.rates}:
            holders = [run for run in running if counter in run.hold.bound.rates]
            is_minute = counter.dimension.window_ns == MINUTE_NS
            assert counter.held == sum(run.units[counter.quantity] for run in holders if not (is_minute and run.hold.is_charged))
        for bucket in {bucket for bound in bounds for bucket in bound.buckets}:
            assert bucket.running == sum(bucket in run.hold.bound.buckets for run in running)
    for run in list(running):
        end(run)
    for bound in bounds:
        assert all(counter.held == 0 for counter in bound.rates)
        assert all(bucket.running == 0 for bucket in bound.buckets)
    _check_windows(bounds, admitted)


def _check_windows(bounds: Sequence[MemoryBound], admitted: Sequence[Run]) -> None:
    """Every rate of every level: what was admitted between any two admissions is at most its burst and what drains meanwhile."""
    seen: set[Counter] = set()
    for bound in bounds:
        for counter in bound.rates:
            if counter not in seen:
                seen.add(counter)
                runs = [(run.at, run.used[counter.quantity]) for run in admitted if counter in run.hold.bound.rates]
                _check_window(runs, counter.size, counter.dimension.window_ns)
        for bucket in bound.buckets:
            runs = [(run.at, 1) for run in admitted if bucket in run.hold.bound.buckets]
            _check_window(runs, bucket.per_minute, MINUTE_NS)


def _check_window(runs: Sequence[tuple[int, int]], size: int, window_ns: int) -> None:
    for first, (start, _) in enumerate(runs):
        total = 0
        for at, units in runs[first:]:
            total += units
            assert total <= size + Fraction(size * (at - start), window_ns)


def test_hold_that_used_less_returns_the_rest_at_once_and_one_that_used_more_is_charged_in_full() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    bound = bind(counters, level(0, tokens_per_minute=100))
    hold = counters.reserve(bound, units_of(50, 50), now)
    assert hold.is_admitted and not counters.reserve(bound, units_of(0, 1), now).is_admitted
    hold.settle(units_of(10, 10), now)
    assert bound.find_tightest(now)[1] == (100, 80, 12_000_000_000)
    hold = counters.reserve(bound, units_of(40, 40), now)
    assert hold.is_admitted
    hold.settle(units_of(100, 80), now)
    assert bound.find_tightest(now)[1] == (100, 0, 120_000_000_000)
    refusal = find_refusal(bound, units_of(1, 0), now)
    assert (refusal.used, refusal.wait_ns, refusal.is_permanent) == (200, 60_600_000_000, False)


def test_hold_of_a_long_stream_is_charged_after_a_minute_and_drains_from_there_on() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    bound = bind(counters, level(0, tokens_per_minute=100, tokens_per_day=1000))
    hold = counters.reserve(bound, units_of(0, 100), now)
    assert hold.is_admitted
    now += MINUTE_NS - 1
    assert not counters.reserve(bound, units_of(0, 1), now).is_admitted
    assert find_refusal(bound, units_of(0, 1), now).wait_ns is None, "nobody knows when the stream ends"
    now += 1
    assert not counters.reserve(bound, units_of(0, 1), now).is_admitted
    assert find_refusal(bound, units_of(0, 1), now).wait_ns == 600_000_000, "from here on it drains"
    now += MINUTE_NS // 2
    other = counters.reserve(bound, units_of(0, 50), now)
    assert other.is_admitted and not counters.reserve(bound, units_of(0, 1), now).is_admitted
    hold.settle(units_of(0, 120), now)
    per_minute, per_day = bound.rates
    assert (per_minute.held, per_minute.debt(now)) == (50, (50 + 20) * per_minute.cost)
    assert (per_day.held, -(-per_day.debt(now) // per_day.cost)) == (50, 120)


def test_refusal_names_the_level_that_holds_longest_and_one_that_never_admits_before_all() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    key, project = level(0, output_tokens_per_minute=10), level(2, tokens_per_minute=60)
    bound = bind(counters, key, project)
    hold = counters.reserve(bound, units_of(50, 10), now)
    assert hold.is_admitted
    hold.settle(units_of(50, 10), now)
    refusal = find_refusal(bound, units_of(30, 1), now)
    assert (refusal.owner, refusal.words, refusal.wait_ns) == (project, "tokens per minute", 31 * 1_000_000_000)
    refusal = find_refusal(bound, units_of(0, 10), now)
    assert (refusal.owner, refusal.wait_ns) == (key, 60_000_000_000)
    refusal = find_refusal(bound, units_of(0, 11), now)
    assert (refusal.owner, refusal.is_permanent) == (key, True)


@pytest.mark.parametrize("size", [7, 90_001, 1_000_000_000])
def test_counter_whose_limit_changes_keeps_what_was_used(size: int) -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    bound = bind(counters, level(0, tokens_per_minute=100, requests_per_minute=10))
    hold = counters.reserve(bound, units_of(5, 0), now)
    assert hold.is_admitted
    hold.settle(units_of(5, 0), now)
    changed = counters.bind("org_1", [level(0, tokens_per_minute=size, requests_per_minute=7)], now)
    requests, tokens, *_ = changed.find_tightest(now)
    assert tokens is not None and tokens[:2] == (size, size - 5)
    assert requests is not None and requests[:2] == (7, 6)
    assert changed.rates == bound.rates and changed.buckets[0] is bound.buckets[0]


def test_counter_that_is_idle_is_forgotten_and_one_that_is_charged_or_held_is_kept() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    bound = bind(counters, level(0, tokens_per_minute=100))
    hold = counters.reserve(bound, units_of(5, 5), now)
    assert hold.is_admitted
    counters.forget_idle(now + 2 * MINUTE_NS)
    assert bind(counters, level(0, tokens_per_minute=100)).rates == bound.rates, "it is held"
    hold.settle(units_of(5, 5), now + 3 * MINUTE_NS)
    counters.forget_idle(now + 3 * MINUTE_NS + MINUTE_NS // 20)
    assert bind(counters, level(0, tokens_per_minute=100)).rates == bound.rates, "it is charged"
    counters.forget_idle(now + 5 * MINUTE_NS)
    assert bind(counters, level(0, tokens_per_minute=100)).rates != bound.rates


def test_idle_counters_beyond_the_number_examined_at_a_time_are_forgotten_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_counters, "FORGET_MAX", 3)
    counters, now = MemoryCounters(), MINUTE_NS
    levels = [level(0, tokens_per_minute=100, concurrent_requests=1)._replace(id=f"key_{number}") for number in range(8)]
    holds = [counters.reserve(bind(counters, each), units_of(1, 1), now) for each in levels]
    left = []
    for hold in holds[1:]:
        assert hold.is_admitted
        hold.settle(units_of(0, 0), now)
    for _ in range(4):
        now += memory_counters.FORGET_NS
        counters.forget_idle(now)
        left.append((len(counters._buckets), len(counters._counters)))
    assert left == [(6, 6), (3, 3), (1, 1), (1, 1)]
    assert bind(counters, levels[0]).rates == holds[0].bound.rates if holds[0] else False, "what is held is kept"


EACH_END_USER = EndUserLimits("org_1", "proj_1", (("", Limits(requests_per_minute=2, tokens_per_day=100, concurrent_requests=3)),))


def test_end_users_are_counted_one_by_one_beside_the_other_levels() -> None:
    counters, now = MemoryCounters(b"key"), MINUTE_NS
    base = bind(counters, level(1, requests_per_minute=5))

    def ask(end_user: str, units: Units = ONE) -> MemoryHold:
        return counters.reserve(counters.bind_end_user(base, EACH_END_USER, end_user, now), units, now)

    assert [ask(name).is_admitted for name in ("ann", "ann", "ann", "bob", "\ud800")] == [True, True, False, True, True]
    assert not ask("cy", units_of(101, 0)).is_admitted
    refusal = find_refusal(counters.bind_end_user(base, EACH_END_USER, "ann", now), ONE, now)
    assert (refusal.owner.level, refusal.words) == (LimitLevel.END_USER, "requests per minute")
    assert "ann" not in refusal.owner.id and refusal.owner.id.startswith("proj_1:")
    assert ask("dan").is_admitted and not ask("eve").is_admitted, "the level admits five, and who is refused uses nothing of it"


def test_83_end_users_beyond_the_bound_are_counted_together_until_others_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_counters, "END_USERS_MAX", 10)
    counters, now = MemoryCounters(), MINUTE_NS

    def ask(number: int) -> bool:
        return counters.reserve(counters.bind_end_user(bind(counters), EACH_END_USER, f"user {number}", now), ONE, now).is_admitted

    assert all(ask(number) for number in range(10)) and counters.end_users_together == 0
    assert [ask(number) for number in range(10, 14)] == [True, True, False, False] and counters.end_users_together == 4
    assert ask(3), "who is known keeps its own counters"
    other = EACH_END_USER._replace(organization_id="org_2", project_id="proj_2")
    assert counters.reserve(counters.bind_end_user(bind(counters), other, "user 99", now), ONE, now).is_admitted
    assert counters.end_users_together == 4, "another organization has its own places"
    for hold in list(counters._holds):
        hold.settle((1, 0, 0, 0, 0, 0), now)
    now += 2 * MINUTE_NS
    assert [ask(number) for number in range(20, 24)] == [True] * 4 and counters.end_users_together == 4
    assert sum(len(table) for table in counters._end_users.values()) <= 10 + 1 + 1


def test_end_user_limits_that_change_keep_what_was_used() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    hold = counters.reserve(counters.bind_end_user(bind(counters), EACH_END_USER, "ann", now), units_of(60, 0), now)
    assert hold.is_admitted
    hold.settle(units_of(60, 0), now)
    wider = EACH_END_USER._replace(limits=(("", Limits(tokens_per_day=150)),))
    bound = counters.bind_end_user(bind(counters), wider, "ann", now)
    assert [counter.size for counter in bound.rates] == [150]
    assert not counters.reserve(bound, units_of(91, 0), now).is_admitted and counters.reserve(bound, units_of(90, 0), now).is_admitted


def test_end_user_has_limits_on_models_and_groups_beside_those_on_all_and_a_model_keeps_its_own_counts() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    of_all, of_large, of_group = Limits(requests_per_minute=4), Limits(requests_per_minute=1), Limits(requests_per_minute=3)
    large = EACH_END_USER._replace(limits=(("", of_all), ("large", of_large), ("group:g", of_group)))
    small = EACH_END_USER._replace(limits=(("", of_all), ("group:g", of_group)))

    def ask(of: EndUserLimits) -> bool:
        return counters.reserve(counters.bind_end_user(bind(counters), of, "ann", now), ONE, now).is_admitted

    assert [ask(each) for each in (large, small, large, small, small)] == [True, True, False, True, False]
    refusal = find_refusal(counters.bind_end_user(bind(counters), small, "ann", now), ONE, now)
    assert (refusal.owner.model, refusal.size) == ("group:g", 3)


def test_images_and_seconds_refuse_only_requests_that_have_them() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    bound = bind(counters, level(0, images_per_minute=6, audio_seconds_per_day=60, tokens_per_minute=100))
    images, sound = (1, 9, 9, 0, 4, 0), (1, 9, 9, 0, 0, 50)
    holds = [counters.reserve(bound, units, now) for units in (images, sound)]
    assert not counters.reserve(bound, images, now).is_admitted and find_refusal(bound, images, now).words == "images per minute"
    assert not counters.reserve(bound, sound, now).is_admitted and find_refusal(bound, sound, now).words == "audio seconds per day"
    assert find_refusal(bound, (1, 0, 0, 0, 7, 0), now).is_permanent
    for hold, used in zip(holds, ((1, 9, 9, 0, 10, 0), (1, 9, 9, 0, 0, 70)), strict=True):
        assert hold.is_admitted
        hold.settle(used, now)
    assert counters.reserve(bound, (1, 9, 9, 0, 0, 0), now).is_admitted, "both are overdrawn, and it has neither"
    assert [left and (left.size, left.remaining) for left in bound.find_tightest(now)] == [None, (100, 73), (6, 0), (60, 0)]


def test_limits_of_one_model_count_beside_those_of_all() -> None:
    counters, now = MemoryCounters(), MINUTE_NS
    bound = bind(counters, level(2, requests_per_minute=5), level(2, requests_per_minute=1, tokens_per_minute=10)._replace(model="large"))
    assert bound.enter(now) == (1, 0)
    assert bound.enter(now) is None
    assert find_refusal(bound, ONE, now).owner.model == "large"
    assert bind(counters, level(2, requests_per_minute=5)).enter(now) == (5, 3)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, b"0ms"),
        (999, b"999ms"),
        (1000, b"1s"),
        (1500, b"1.5s"),
        (8640, b"8.64s"),
        (360_000, b"6m0s"),
        (3_723_004, b"1h2m3.004s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(milliseconds: int, text: bytes) -> None:
    assert format_duration(milliseconds) == text
