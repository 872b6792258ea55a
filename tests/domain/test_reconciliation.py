"""Reconciliation's arithmetic: tokens between readings land in the right hours, and each hour is classified by what it can prove."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.link.samples import admit, final
from tollway.domain.billing_classes import Quantities
from tollway.domain.reconciliation import (
    HOUR_US,
    RESETS_MAX,
    SPAN_HOURS_MAX,
    UNKNOWN_DEPLOYMENT,
    EngineHour,
    EngineUsage,
    HourState,
    Member,
    PromptCount,
    Reading,
    Row,
    Tolerance,
    compare,
    hour_of,
    split,
    sum_usage,
)
from tollway.domain.usage import Outcome

HOUR = 400_000 * HOUR_US
GAP_US = 180_000_000
SETTLED = HOUR + 100 * HOUR_US


class TestReadings:
    @given(st.integers(0, 3 * HOUR_US), st.integers(1, 5 * HOUR_US), st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 10**9))
    def test_all_tokens_and_all_time_fall_into_hours(self, at: int, span: int, first: int, prompt: int, out: int) -> None:
        found = split(Reading(HOUR + at, first, 7), Reading(HOUR + at + span, first + prompt, 7 + out), GAP_US)
        assert sum(each.prompt_tokens for each in found) == prompt
        assert sum(each.output_tokens for each in found) == out
        assert sum(each.covered_us for each in found) == span
        assert all(0 < each.covered_us <= HOUR_US and each.prompt_tokens >= 0 and each.output_tokens >= 0 for each in found)
        starts = [each.start_at for each in found]
        assert starts == sorted(set(starts)) and starts[0] == hour_of(HOUR + at) and starts[-1] == hour_of(HOUR + at + span - 1)
        assert not any(each.resets for each in found)

    @given(st.lists(st.tuples(st.integers(1, 30 * 60_000_000), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=30))
    def test_how_often_was_read_changes_no_sum(self, steps: list[tuple[int, int, int]]) -> None:
        readings = [Reading(HOUR, 0, 0)]
        for span, prompt, output in steps:
            last = readings[-1]
            readings.append(Reading(last.at + span, last.prompt_tokens + prompt, last.output_tokens + output))
        pieces = [each for before, after in pairwise(readings) for each in split(before, after, GAP_US)]
        assert sum(each.prompt_tokens for each in pieces) == readings[-1].prompt_tokens
        assert sum(each.output_tokens for each in pieces) == readings[-1].output_tokens
        assert sum(each.covered_us for each in pieces) == readings[-1].at - HOUR

    def test_a_smaller_value_is_a_start_and_counts_from_zero(self) -> None:
        (found,) = split(Reading(HOUR, 1000, 500), Reading(HOUR + 60_000_000, 30, 700), GAP_US)
        assert (found.prompt_tokens, found.output_tokens, found.resets) == (30, 700, 1)

    def test_a_start_across_the_edge_is_counted_once(self) -> None:
        found = split(Reading(HOUR - 30_000_000, 1000, 500), Reading(HOUR + 30_000_000, 40, 20), GAP_US)
        assert [each.resets for each in found] == [0, 1]
        assert [each.prompt_tokens for each in found] == [20, 20]

    def test_only_missed_readings_at_an_edge_make_an_estimate(self) -> None:
        def is_estimated(before: int, after: int) -> bool:
            found = split(Reading(HOUR + before * 1_000_000, 0, 0), Reading(HOUR + after * 1_000_000, 9, 9), GAP_US)
            return any(each.is_estimated for each in found)

        assert not is_estimated(-60, 1)
        assert not is_estimated(600, 3000)
        assert not is_estimated(3000, 3600)
        assert is_estimated(-600, 60)

    def test_what_is_no_later_or_far_too_late_says_nothing(self) -> None:
        assert split(Reading(HOUR, 1, 1), Reading(HOUR, 2, 2), GAP_US) == []
        assert split(Reading(HOUR, 1, 1), Reading(HOUR - 1, 2, 2), GAP_US) == []
        assert split(Reading(HOUR, 1, 1), Reading(HOUR + (SPAN_HOURS_MAX + 1) * HOUR_US, 2, 2), GAP_US) == []


class TestUsage:
    def test_the_prompt_of_several_choices_counts_as_often_as_the_engine_counts_it(self) -> None:
        (sums,) = sum_usage([final(admit(1, choices=3), ended_at=HOUR, first_token_at=HOUR), final(admit(2), ended_at=HOUR)]).values()
        assert (sums.input, sums.cached_input) == (200, 40)
        counted = {
            (prompt_count, counts_cached): sums.count_prompt(prompt_count, counts_cached=counts_cached)
            for prompt_count in PromptCount
            for counts_cached in (False, True)
        }
        assert counted == {
            (PromptCount.ONCE, False): 200,
            (PromptCount.ONCE, True): 240,
            (PromptCount.PER_CHOICE, False): 400,
            (PromptCount.PER_CHOICE, True): 480,
            (PromptCount.PER_CHOICE_AND_ONCE, False): 520,
            (PromptCount.PER_CHOICE_AND_ONCE, True): 600,
        }

    def test_input_counts_where_the_first_token_was_and_output_where_the_end_was(self) -> None:
        late = final(admit(1), ended_at=HOUR + 5, first_token_at=HOUR - 5, used=Quantities(100, 20, 30, 4))
        sums = sum_usage([late])
        dep = late.deployment_id or ""
        assert sums[HOUR - HOUR_US, dep, "echo"] == EngineUsage(input=100, cached_input=20)
        assert sums[HOUR, dep, "echo"] == EngineUsage(requests=1, output=34)

    def test_what_costs_an_engine_more_than_is_billed_is_counted(self) -> None:
        finals = [
            final(admit(1), ended_at=HOUR, first_token_at=None),
            final(admit(2), ended_at=HOUR, first_token_at=HOUR, outcome=Outcome.CLIENT_CANCELLED, attempts=2),
        ]
        (sums,) = sum_usage(finals).values()
        assert (sums.requests, sums.incomplete, sums.retried, sums.input, sums.output) == (2, 1, 1, 200, 68)

    def test_a_request_that_no_engine_heard_of_counts_nowhere_and_one_of_a_crash_by_its_model(self) -> None:
        unheard = final(admit(1), deployment_id=None, used=Quantities(), first_token_at=None)
        crashed = final(admit(2), deployment_id=None, outcome=Outcome.GATEWAY_CRASH, ended_at=HOUR, first_token_at=HOUR)
        assert list(sum_usage([unheard, crashed])) == [(HOUR, UNKNOWN_DEPLOYMENT, "echo")]


def engine(address: str = "a", prompt: int = 1_000_000, output: int = 500_000, **changes: object) -> EngineHour:
    values: dict[str, object] = {
        "counts_cached": True,
        "covered_us": HOUR_US,
        "is_estimated": False,
        "resets": 0,
        "samples": 60,
        "failures": 0,
    }
    return EngineHour(HOUR, address, prompt, output, **(values | changes))  # type: ignore[arg-type]


def used(prompt: int = 1_000_000, output: int = 500_000, cached: int = 0) -> EngineUsage:
    return EngineUsage(requests=10, input=prompt - cached, cached_input=cached, output=output)


def classified(
    engines: list[EngineHour], members: list[tuple[str, str, str]], usage: dict[tuple[str, str], EngineUsage], settled: int = SETTLED
) -> list[Row]:
    keyed = {(HOUR, deployment_id, model): sums for (deployment_id, model), sums in usage.items()}
    return compare(engines, [Member(HOUR, *member) for member in members], keyed, Tolerance(), settled)


ONE = [("a", "d1", "m")]


class TestJudgement:
    def test_equal_counts_are_ok_with_the_cache_on_the_right_side(self) -> None:
        (row,) = classified([engine()], ONE, {("d1", "m"): used(cached=900_000)})
        assert row.state is HourState.OK and row.prompt.drift == row.output.drift == 0
        (row,) = classified([engine(prompt=100_000, counts_cached=False)], ONE, {("d1", "m"): used(cached=900_000)})
        assert row.state is HourState.OK and row.prompt.drift == 0

    def test_an_engine_that_counts_a_prompt_once_per_choice_does_not_drift(self) -> None:
        usage = EngineUsage(requests=1, input=100_000, output=500_000, repeated_input=100_000, forked_input=100_000)
        for prompt_count, counted in (
            (PromptCount.ONCE, 100_000),
            (PromptCount.PER_CHOICE, 200_000),
            (PromptCount.PER_CHOICE_AND_ONCE, 300_000),
        ):
            (row,) = classified([engine(prompt=counted, prompt_count=prompt_count)], ONE, {("d1", "m"): usage})
            assert row.state is HourState.OK and row.prompt.drift == 0
            (row,) = classified([engine(prompt=counted + 50_000, prompt_count=prompt_count)], ONE, {("d1", "m"): usage})
            assert row.state is HourState.DRIFT

    def test_a_small_difference_is_tolerated_and_the_next_token_is_drift(self) -> None:
        for ledger, state in ((499_000, HourState.OK), (501_000, HourState.OK), (498_999, HourState.DRIFT), (501_001, HourState.DRIFT)):
            (row,) = classified([engine()], ONE, {("d1", "m"): used(output=ledger)})
            assert row.state is state and row.output.drift == 500_000 - ledger
        for ledger, state in ((99_900_000, HourState.OK), (99_899_999, HourState.DRIFT)):
            (row,) = classified([engine(prompt=100_000_000)], ONE, {("d1", "m"): used(prompt=ledger)})
            assert row.state is state
        assert row.prompt.drift_percent == 0.1

    def test_usage_without_an_engine_in_reach_is_not_observed_and_never_drift(self) -> None:
        for engines, members in (([], []), ([engine(covered_us=0, prompt=0, output=0, samples=0, failures=60)], ONE)):
            (row,) = classified(engines, members, {("d1", "m"): used()})
            assert row.state is HourState.NOT_OBSERVED
            assert row.prompt.engine is None and row.prompt.drift is None and row.prompt.drift_percent is None

    def test_an_engine_that_others_use_behind_our_back_is_drift_even_without_usage_of_ours(self) -> None:
        (row,) = classified([engine()], ONE, {})
        assert row.state is HourState.DRIFT and row.prompt.drift == 1_000_000

    def test_gaps_prove_nothing(self) -> None:
        for changes in ({"covered_us": HOUR_US - 1}, {"is_estimated": True}, {"resets": RESETS_MAX + 1}):
            (row,) = classified([engine(output=1, **changes)], ONE, {("d1", "m"): used()})
            assert row.state is HourState.PARTIAL

    def test_a_start_explains_what_the_engine_shows_too_little_and_not_what_it_shows_too_much(self) -> None:
        for ledger, state in ((500_000, HourState.OK), (600_000, HourState.PARTIAL), (400_000, HourState.DRIFT)):
            (row,) = classified([engine(resets=1)], ONE, {("d1", "m"): used(output=ledger)})
            assert row.state is state

    def test_an_hour_is_open_until_its_records_must_have_arrived(self) -> None:
        (row,) = classified([engine(output=1)], ONE, {("d1", "m"): used()}, settled=HOUR + HOUR_US - 1)
        assert row.state is HourState.OPEN
        (row,) = classified([engine(output=1)], ONE, {("d1", "m"): used()}, settled=HOUR + HOUR_US)
        assert row.state is HourState.DRIFT

    def test_one_engine_of_many_that_drifts_is_not_lost_in_the_sum(self) -> None:
        many = [engine(str(number)) for number in range(100)]
        members = [(str(number), f"d{number}", "m") for number in range(100)]
        usage = {(f"d{number}", "m"): used() for number in range(100)}
        usage["d7", "m"] = used(output=495_000)
        (row,) = classified(many, members, usage)
        assert row.state is HourState.DRIFT
        assert [line.deployment_ids for line in row.lines if line.state is HourState.DRIFT] == [("d7",)]

    def test_deployments_at_one_address_are_compared_together(self) -> None:
        members = [("a", "d1", "base"), ("a", "d2", "adapter")]
        usage = {("d1", "base"): used(600_000, 300_000), ("d2", "adapter"): used(400_000, 200_000)}
        (row,) = classified([engine()], members, usage)
        assert row.models == ("adapter", "base") and row.state is HourState.OK and len(row.lines) == 1

    def test_a_deployment_that_moved_within_the_hour_binds_both_addresses(self) -> None:
        engines = [engine("a", 700_000, 300_000, covered_us=HOUR_US // 2), engine("b", 300_000, 200_000, covered_us=HOUR_US // 2)]
        (row,) = classified(engines, [("a", "d1", "m"), ("b", "d1", "m")], {("d1", "m"): used()})
        assert row.state is HourState.OK and row.lines[0].addresses == ("a", "b")

    def test_tokens_of_a_crashed_gateway_may_be_any_engines(self) -> None:
        usage = {("d1", "m"): used(output=450_000), (UNKNOWN_DEPLOYMENT, "m"): EngineUsage(requests=1, output=50_000)}
        (row,) = classified([engine()], ONE, usage)
        assert row.state is HourState.OK and row.unattributed == 50_000 and row.output.drift == 0
        (row,) = classified([engine()], ONE, usage | {("d1", "m"): used(output=400_000)})
        assert row.state is HourState.DRIFT

    def test_models_that_share_nothing_have_rows_of_their_own(self) -> None:
        rows = classified([engine("a"), engine("b")], [("a", "d1", "m"), ("b", "d2", "n")], {("d1", "m"): used(), ("d2", "n"): used()})
        assert [row.models for row in rows] == [("m",), ("n",)]
