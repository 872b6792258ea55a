"""Selection of one of several equal deployments: by load, by prefix, and the same at every gateway."""

import random
import time
from contextlib import AsyncExitStack
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import Do, Script, Upstream, until
from tests.gateway.harness import Served, chat, completion, connect, gateway, message, post, whole
from tollway.domain.snapshot import Change
from tollway.gateway.prefix_routing import (
    ANCHOR_REQUESTS_MIN,
    BOUNDARIES,
    HOME_HOLD,
    TABLE_MAX,
    TRAFFIC_WINDOW,
    Load,
    Selector,
    find_home_by_weight,
    find_idlest_and_home,
    hash_prefixes,
)

HELD: Script = [Do.GATE, whole(completion())]


def loads(count: int) -> list[Load]:
    return [Load(f"dep_{number}") for number in range(count)]


class Choice(NamedTuple):
    place: int
    charged_tokens: float
    kind: int


def choose(selector: Selector, group: list[Load], prompt: bytes, session: int = 0) -> Choice:
    return Choice(*selector.choose(group, hash_prefixes(prompt, 0, 0), session, len(prompt), len(prompt) / 4))


def prompt(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@given(st.integers(0, 2**32 - 1), st.permutations(list(range(6))), st.integers(0, 5))
def test_home_of_an_anchor_is_the_same_in_any_order_and_moves_only_when_it_leaves(anchor: int, order: list[int], left: int) -> None:
    group = loads(6)
    shuffled = [group[index] for index in order]
    home = group[find_idlest_and_home(anchor, group)[1]]
    assert shuffled[find_idlest_and_home(anchor, shuffled)[1]] is home
    rest = [load for load in group if load is not group[left]]
    if home in rest:
        assert rest[find_idlest_and_home(anchor, rest)[1]] is home


def test_homes_are_spread_evenly() -> None:
    homes = [find_idlest_and_home(anchor * 2654435761 % 2**32, loads(4))[1] for anchor in range(8000)]
    assert all(abs(homes.count(index) / 8000 - 0.25) < 0.03 for index in range(4))


def test_two_gateways_send_the_turns_of_a_conversation_to_one_deployment() -> None:
    first, second = Selector(), Selector()
    turn, longer = prompt(1, 5000), prompt(1, 9000)
    here, there = loads(8), list(reversed(loads(8)))
    assert longer.startswith(turn)
    assert here[choose(first, here, turn).place].point == there[choose(second, there, longer).place].point


def test_prompts_of_different_salts_share_no_prefix() -> None:
    assert not set(hash_prefixes(prompt(1, 9000), 0, 1)) & set(hash_prefixes(prompt(1, 9000), 0, 2))


@given(st.integers(0, 300_000))
def test_prefix_is_known_at_each_boundary_that_a_prompt_reaches(length: int) -> None:
    prefixes = hash_prefixes(bytes(length), 0, 0)
    assert len(prefixes) == sum(boundary <= length for boundary in BOUNDARIES)


def test_system_prompt_that_everybody_sends_does_not_gather_everybody_at_one_deployment() -> None:
    selector, group, system = Selector(), loads(4), prompt(0, 2048)
    chosen = [choose(selector, group, system + prompt(number, 6000)).place for number in range(1, 801)]
    assert all(chosen.count(index) < 320 for index in range(4))


def test_prompt_goes_to_its_home_until_the_load_there_costs_more_than_the_prefix_saves() -> None:
    selector, group, text = Selector(), loads(4), prompt(3, 8000)
    home = choose(selector, group, text)
    assert home.charged_tokens == pytest.approx(2000.0 * (1 - HOME_HOLD)), "the home holds a part of it"
    group[home.place].send(2000.0 * HOME_HOLD - 100.0)
    assert choose(selector, group, text).place == home.place
    group[home.place].send(200.0)
    assert choose(selector, group, text).place != home.place


def test_session_stays_where_it_was_whatever_its_prompts_begin_with() -> None:
    selector, group = Selector(), loads(8)
    chosen = {choose(selector, group, prompt(number, 3000), session=77).place for number in range(20)}
    assert len(chosen) == 1


@given(st.lists(st.integers(0, 1_000_000), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_short_prompt_goes_to_the_shortest_queue(queues: list[int], shuffle: random.Random) -> None:
    selector, group = Selector(), loads(len(queues))
    for load, tokens in zip(group, queues, strict=True):
        load.send(float(tokens))
    shuffle.shuffle(group)
    best = choose(selector, group, b"short")
    assert group[best.place].queued_tokens == min(load.queued_tokens for load in group)


def test_queue_falls_when_answers_begin_and_never_below_nothing() -> None:
    load = Load("dep")
    load.send(100.0)
    load.send(50.0)
    load.begin_answer(100.0)
    assert load.queued_tokens == 50.0
    load.begin_answer(51.0)
    assert load.queued_tokens == 0.0


def test_prefix_that_carries_much_traffic_is_charged_in_full() -> None:
    selector, group, text = Selector(), loads(4), prompt(5, 4000)
    charged = [choose(selector, group, text).charged_tokens for _ in range(2 * ANCHOR_REQUESTS_MIN + 1)]  # 2 boundaries
    assert charged[0] == pytest.approx(1000.0 * (1 - HOME_HOLD)) and charged[-1] == 1000.0


def test_memory_of_prefixes_is_bounded() -> None:
    selector, group = Selector(), loads(2)
    for number in range(2 * TABLE_MAX):
        selector.choose(group, [2 * number, 2 * number + 1], 0, 4096, 1.0)
        if number % TRAFFIC_WINDOW == 0:
            assert len(selector._owners) <= TABLE_MAX + 2 and len(selector._owners_before) <= TABLE_MAX + 2
            assert len(selector._counts) <= 2 * TRAFFIC_WINDOW


async def test_requests_that_wait_for_their_first_token_are_charged_and_the_next_one_goes_elsewhere() -> None:
    first, second = Upstream(HELD, HELD), Upstream(HELD, HELD)
    async with first.listening(), second.listening(), gateway({"m": Served([first.url, second.url], one_tier=True)}) as running:
        async with connect(running.port) as one, connect(running.port) as two:
            one.send(message(chat()))
            await until(lambda: len(first.asked) + len(second.asked) == 1)
            two.send(message(chat()))
            await until(lambda: len(first.asked) + len(second.asked) == 2)
            assert (len(first.asked), len(second.asked)) == (1, 1)
            assert all(upstream.load.queued_tokens > 0 for upstream in running.plane.upstreams.all())
            first.gate.set()
            second.gate.set()
            assert [(await client.answer()).status for client in (one, two)] == [200, 200]
        await until(lambda: all(upstream.load.queued_tokens == 0 for upstream in running.plane.upstreams.all()))


async def test_charge_of_an_attempt_that_failed_is_released() -> None:
    broken, well = Upstream([Do.RST]), Upstream([whole(completion())])
    async with broken.listening(), well.listening(), gateway({"m": Served([broken.url, well.url], one_tier=True)}) as running:
        for _ in range(6):
            assert (await post(running.port, chat())).status == 200
        assert all(upstream.load.queued_tokens == 0 for upstream in running.plane.upstreams.all())


@pytest.mark.parametrize("alike", ["session", "windows"])
def test_86_tenant_that_makes_its_prompts_look_alike_does_not_overload_a_deployment(alike: str) -> None:
    selector, group = Selector(), loads(4)
    computed = [0.0] * 4  # tokens that wait at each deployment: nothing of these prompts is in a cache, and no answer begins meanwhile
    for _ in range(2000):
        if alike == "session":
            index, charged, _ = selector.choose(group, [], 77, 8000, 2000.0)
        else:
            index, charged, _ = selector.choose(group, [1, 2, 3], 0, 8000, 2000.0)
        group[index].send(charged)
        computed[index] += 2000.0
    assert max(computed) - min(computed) <= 10 * ANCHOR_REQUESTS_MIN * 2000.0
    assert max(computed) < 1.1 * sum(computed) / 4


async def test_deployment_that_came_back_lately_is_chosen_more_rarely_than_its_equal() -> None:
    returned, well = Upstream([whole(completion())]), Upstream([whole(completion())])
    async with returned.listening(), well.listening(), gateway({"m": Served([returned.url, well.url], one_tier=True)}) as running:
        (upstream,) = [upstream for upstream in running.plane.upstreams.all() if upstream.deployment.base_url == returned.url]
        later = time.monotonic() + 3600.0  # its share stays the first one, however long this test takes
        upstream.probed(is_ready=False, now=later)
        upstream.probed(is_ready=True, now=later)
        for _ in range(60):
            assert (await post(running.port, chat())).status == 200
        assert len(returned.asked) < 15


async def test_different_weights_are_shares_of_the_traffic_whatever_its_prefixes() -> None:
    canary, stable = Upstream([whole(completion())]), Upstream([whole(completion())])
    async with canary.listening(), stable.listening(), gateway({"m": Served([canary.url, stable.url], one_tier=True)}) as running:
        plane = running.plane
        (entry,) = [each for each in plane.directory.list_deployments() if each.deployment.base_url == stable.url]
        heavier = msgspec.structs.replace(entry, deployment=msgspec.structs.replace(entry.deployment, weight=3))
        plane.apply(Change(version=plane.version + 1, kind="deployment", id=entry.id, entry=heavier))
        for _ in range(80):
            assert (await post(running.port, chat(prompt_cache_key="one session"))).status == 200
        assert 4 <= len(canary.asked) <= 40, "a quarter, give or take four standard deviations"


async def test_requests_of_a_session_header_stay_with_one_deployment() -> None:
    engines = [Upstream([whole(completion())]) for _ in range(4)]
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(engine.listening())
        running = await stack.enter_async_context(gateway({"m": Served([engine.url for engine in engines], one_tier=True)}))
        for _ in range(ANCHOR_REQUESTS_MIN):
            assert (await post(running.port, chat(), x_session_id="one session")).status == 200
        assert sorted(len(engine.asked) for engine in engines) == [0, 0, 0, ANCHOR_REQUESTS_MIN]


def share_of(chosen: list[int], index: int) -> float:
    return chosen.count(index) / len(chosen)


@pytest.mark.parametrize("weights", [[95, 5], [50, 30, 20], [1, 1000]])
def test_shares_by_weight_are_kept_over_many_anchors(weights: list[int]) -> None:
    group = loads(len(weights))
    chosen = [find_home_by_weight(anchor * 2654435761 % 2**32, group, weights) for anchor in range(20_000)]
    for index, weight in enumerate(weights):
        assert share_of(chosen, index) == pytest.approx(weight / sum(weights), abs=0.01)


@given(st.integers(0, 2**32 - 1), st.permutations(list(range(4))))
def test_share_of_an_anchor_is_the_same_in_any_order_and_a_greater_weight_only_gains(anchor: int, order: list[int]) -> None:
    group, weights = loads(4), [70, 20, 7, 3]
    home = find_home_by_weight(anchor, group, weights)
    assert order[find_home_by_weight(anchor, [group[index] for index in order], [weights[index] for index in order])] == home
    assert find_home_by_weight(anchor, group, [70, 20, 7, 30]) in (home, 3)


def test_anchor_of_growing_turns_is_one_and_of_what_everybody_sends_none() -> None:
    selector, turn = Selector(), prompt(1, 1500)
    anchors = {selector.find_anchor(hash_prefixes(turn + prompt(2, more), 0, 0), 0, 2) for more in (0, 3000, 9000)}
    assert len(anchors) == 1 and 0 not in anchors
    assert selector.find_anchor([], 0, 2) == 0 and selector.find_anchor([], 77, 2) == 77
    assert [selector.find_anchor([5], 0, 2) for _ in range(2 * ANCHOR_REQUESTS_MIN)][-1] == 0


async def test_turns_of_a_conversation_stay_with_the_canary_or_without_it() -> None:
    conversations = 30  # with eight of them, one run in twenty has none at the canary
    answers = [[whole(completion())]] * (3 * conversations)
    first, canary = Upstream(*answers), Upstream(*answers)
    async with first.listening(), canary.listening(), gateway({"m": Served([first.url, canary.url], one_tier=True)}) as running:
        for upstream, weight in zip(running.plane.upstreams.of("m"), (70, 30), strict=True):
            upstream.deployment = msgspec.structs.replace(upstream.deployment, weight=weight)
        for conversation in range(conversations):
            text = prompt(conversation, 1500).hex()
            before = len(first.asked), len(canary.asked)
            for turn in range(3):
                assert (await post(running.port, chat(messages=[{"role": "user", "content": text + turn * "and more "}]))).status == 200
            asked = len(first.asked) - before[0], len(canary.asked) - before[1]
            assert asked in ((3, 0), (0, 3))
        assert first.asked and canary.asked
