"""The evaluation of routing, in short: what docs/routing.md says of the policies holds for a smaller load."""

import pytest

from bench.routing import POLICIES, Change, make_hot, make_unique, read_trace, simulate

REQUESTS = 600


@pytest.mark.parametrize("gateways", [1, 8])
def test_home_and_cost_on_unique_prompts_is_no_worse_than_power_of_two_and_random(gateways: int) -> None:
    arrivals = make_unique(1, REQUESTS)
    means = {policy: simulate(policy, arrivals, gateways, 1).mean for policy in ("home and cost", "power of two", "random")}
    assert means["home and cost"] <= min(means.values())


@pytest.mark.parametrize("gateways", [1, 8])
def test_home_and_cost_on_conversations_keeps_prefixes_and_answers_sooner(gateways: int) -> None:
    arrivals = read_trace(1, 2 * REQUESTS)
    results = {policy: simulate(policy, arrivals, gateways, 1) for policy in POLICIES}
    ours = results.pop("home and cost")
    by_requests, untold = results.pop("home and cost, requests reported"), results.pop("home and cost, no reports")
    exact, told = results.pop("exact index"), results.pop("home and cost, cache events")
    assert all(ours.mean < other.mean and ours.hit_rate > other.hit_rate for other in results.values())
    assert ours.hit_rate > 0.7 * exact.hit_rate and ours.mean < 1.2 * exact.mean
    assert told.hit_rate > 0.75 * exact.hit_rate and told.mean < 1.2 * exact.mean
    if gateways > 1:
        assert told.hit_rate > ours.hit_rate
        assert ours.mean < by_requests.mean < untold.mean


def test_home_and_cost_with_one_hot_prefix_spreads_it() -> None:
    arrivals = make_hot(0, 3 * REQUESTS)
    assert simulate("home and cost", arrivals, 8, 0).mean <= simulate("power of two", arrivals, 8, 0).mean


def test_engine_that_leaves_and_joins_takes_no_request_meanwhile_and_some_afterwards() -> None:
    arrivals = make_unique(2, REQUESTS, per_second=5.0)
    end = arrivals[-1].at
    leaves, joins = Change(0.0, 1, is_there=False), Change(end / 10, 1, is_there=True)
    alone = simulate("home and cost", arrivals, 1, 1, engines=2, changes=[leaves])
    back = simulate("home and cost", arrivals, 1, 1, engines=2, changes=[leaves, joins])
    assert back.mean < 0.5 * alone.mean
