"""Latency goals: the cheapest deployments serve while they are likely to answer in time."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import Upstream, until
from tests.gateway.harness import Gateway, Served, connect, gateway, healthy, message, post, streamed
from tollway.gateway.latency_goals import FirstTokenTimes, list_cheapest


def observed(*samples: tuple[float, float]) -> FirstTokenTimes:
    times = FirstTokenTimes()
    for tokens, seconds in samples:
        times.observe(tokens, seconds)
    return times


def test_nothing_is_expected_before_the_first_observation() -> None:
    assert FirstTokenTimes().expect(1e6) == 0.0


@given(st.floats(0.0, 2.0), st.floats(0.0, 0.01), st.lists(st.integers(1, 100_000), min_size=2, max_size=40, unique=True))
def test_times_on_a_line_are_expected_as_they_are(base: float, slope: float, tokens: list[int]) -> None:
    times = observed(*((count, base + slope * count) for count in tokens))
    for count in tokens:
        assert times.expect(count) == pytest.approx(base + slope * count, rel=1e-3, abs=1e-3)


def test_times_of_short_prompts_alone_do_not_condemn_a_long_one() -> None:
    times = observed(*[(10.0, 0.05)] * 20)
    assert times.expect(10_000.0) == pytest.approx(0.05)


def test_later_observations_outweigh_earlier_ones() -> None:
    times = observed(*[(100.0, 5.0)] * 50, *[(100.0, 0.1)] * 200)
    assert times.expect(100.0) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    ("costs", "expected", "is_trial", "left"),
    [
        ([1, 1, 5], [0.1, 0.2, 0.1], False, [0, 1]),
        ([1, 1, 5], [0.1, 3.0, 0.1], False, [0]),
        ([1, 1, 5], [3.0, 3.0, 0.1], False, [2]),
        ([1, 2, 5], [3.0, 3.0, 3.0], False, [0, 1, 2]),
        ([1, 1, 5], [3.0, 3.0, 0.1], True, [0, 1]),
    ],
)
def test_cheapest_that_is_in_time_is_left(costs: list[int], expected: list[float], is_trial: bool, left: list[int]) -> None:
    assert list_cheapest(costs, expected, 1.0, is_trial=is_trial) == left


def count_asked(running: Gateway, url: str) -> float:
    return sum(sum(each.chosen) for each in running.plane.upstreams.all() if each.deployment.base_url == url)


async def test_cheap_deployment_serves_all_until_its_queue_puts_the_goal_at_risk() -> None:
    cheap, dear = Upstream(healthy("cheap")), Upstream(healthy("dear"))
    async with (
        cheap.listening(),
        dear.listening(),
        gateway({"m": Served([cheap.url, dear.url], one_tier=True, latency_goal_ms=600_000, costs=[1, 9])}) as running,
    ):
        for _ in range(20):
            assert (await post(running.port, streamed())).text == "cheap"
        (upstream,) = [each for each in running.plane.upstreams.all() if each.deployment.base_url == cheap.url]
        texts = []
        for _ in range(30):
            for _ in range(100):  # anew each time: a trial observes how fast the idle engine of this test is
                upstream.first_token_times.observe(1000.0, 1000.0)  # a second for a token, which no busy machine takes
                upstream.first_token_times.observe(1.0, 0.0)
            upstream.load.report_tokens(50_000.0)  # anew each time: what was reported gets old
            texts.append((await post(running.port, streamed())).text)
        assert texts.count("dear") >= 20, "one in fifty tries the cheap one all the same"
        upstream.load.report_tokens(0.0)
        assert (await post(running.port, streamed())).text == "cheap", "its queue is short again"


async def test_costs_without_a_goal_count_for_nothing() -> None:
    cheap, dear = Upstream(healthy("cheap")), Upstream(healthy("dear"))
    async with cheap.listening(), dear.listening(), gateway({"m": Served([cheap.url, dear.url], one_tier=True, costs=[1, 9])}) as running:
        texts = {(await post(running.port, streamed())).text for _ in range(40)}
        assert texts == {"cheap", "dear"}


async def test_adapters_at_one_address_share_its_load_with_their_base() -> None:
    first, second = Upstream(healthy("first")), Upstream(healthy("second"))
    async with AsyncExitStack() as stack:
        for engine in (first, second):
            await stack.enter_async_context(engine.listening())
        base = Served([first.url, second.url], one_tier=True)
        running = await stack.enter_async_context(gateway({"m": base, "adapter": replace(base, upstream_model="lora-1")}))
        loads = {(each.deployment.base_url, id(each.load)) for each in running.plane.upstreams.all()}
        assert len(loads) == 2, "two engines, four deployments"
        assert len(running.plane.upstreams.list_alternatives()) == 2, "each engine is asked for its load once"
        (found,) = [each for each in running.plane.upstreams.all() if each.deployment.id == "dep-m-0"]
        found.load.report_tokens(100_000.0)
        texts = {(await post(running.port, streamed("adapter"))).text for _ in range(10)}
        assert texts == {"second"}
        assert b'"model":"lora-1"' in second.asked[0].body
        running.plane.upstreams.remove("dep-m-0")
        (left,) = [each for each in running.plane.upstreams.all() if each.deployment.id == "dep-adapter-0"]
        assert left.load is found.load


async def test_stream_of_a_model_with_a_goal_teaches_what_to_expect() -> None:
    only, other = Upstream(healthy("one")), Upstream(healthy("two"))
    async with (
        only.listening(),
        other.listening(),
        gateway({"m": Served([only.url, other.url], one_tier=True, latency_goal_ms=60_000, costs=[1, 9])}) as running,
        connect(running.port) as client,
    ):
        client.send(message(streamed()))
        await client.answer()
        (upstream,) = [each for each in running.plane.upstreams.all() if each.deployment.base_url == only.url]
        await until(lambda: upstream.first_token_times.expect(10.0) > 0.0)
        await asyncio.sleep(0)
