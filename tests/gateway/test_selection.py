"""Selection of one of several equal deployments: by load, by prefix, and the same at every gateway."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import Do, Script, Upstream, until
from tests.gateway.harness import Served, chat, completion, connect, gateway, message, post, whole
from tollway.gateway.selection import (
    BOUNDARIES,
    TABLE_MAX,
    TRAFFIC_WINDOW,
    Candidate,
    Load,
    Role,
    Selector,
    find_home,
    hash_prefixes,
)

HELD: Script = [Do.GATE, whole(completion())]


def loads(count: int, weight: float = 1.0) -> list[Load]:
    return [Load(f"dep_{number}", weight) for number in range(count)]


def choose(selector: Selector, group: list[Load], prompt: bytes, session: int = 0, now: float = 0.0) -> Candidate:
    return selector.choose(group, hash_prefixes(prompt, 0, 0), session, len(prompt), len(prompt) / 4, now)


def prompt(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@given(st.integers(0, 2**32 - 1), st.permutations(list(range(6))), st.integers(0, 5))
def test_home_of_an_anchor_is_the_same_in_any_order_and_moves_only_when_it_leaves(anchor: int, order: list[int], left: int) -> None:
    group = loads(6)
    shuffled = [group[index] for index in order]
    home = group[find_home(anchor, group)]
    assert shuffled[find_home(anchor, shuffled)] is home
    rest = [load for load in group if load is not group[left]]
    if home in rest:
        assert rest[find_home(anchor, rest)] is home


def test_homes_follow_the_weights() -> None:
    group = [*loads(2), Load("dep_big", 2.0)]
    homes = [find_home(anchor * 2654435761 % 2**32, group) for anchor in range(8000)]
    assert all(abs(homes.count(index) / 8000 - share) < 0.03 for index, share in ((0, 0.25), (1, 0.25), (2, 0.5)))


def test_two_gateways_send_the_turns_of_a_conversation_to_one_deployment() -> None:
    first, second = Selector(), Selector()
    turn, longer = prompt(1, 5000), prompt(1, 9000)
    here, there = loads(8), list(reversed(loads(8)))
    assert longer.startswith(turn)
    assert here[choose(first, here, turn).index].id == there[choose(second, there, longer).index].id


def test_prompts_of_different_salts_share_no_prefix() -> None:
    assert not set(hash_prefixes(prompt(1, 9000), 0, 1)) & set(hash_prefixes(prompt(1, 9000), 0, 2))


@given(st.integers(0, 300_000))
def test_prefix_is_known_at_each_boundary_that_a_prompt_reaches(length: int) -> None:
    prefixes = hash_prefixes(bytes(length), 0, 0)
    assert len(prefixes) == sum(boundary <= length for boundary in BOUNDARIES)


def test_system_prompt_that_everybody_sends_does_not_gather_everybody_at_one_deployment() -> None:
    selector, group, system = Selector(), loads(4), prompt(0, 2048)
    chosen = [choose(selector, group, system + prompt(number, 6000), now=float(number * 100)).index for number in range(1, 801)]
    assert all(chosen.count(index) < 320 for index in range(4))


def test_prompt_goes_to_its_home_until_the_load_there_costs_more_than_the_prefix_saves() -> None:
    selector, group, text = Selector(), loads(4), prompt(3, 8000)
    home = choose(selector, group, text)
    assert home.role is Role.HOME
    group[home.index].send(1500.0, 0.0)  # of the 2000 tokens of the prompt the home holds 1600
    assert choose(selector, group, text).index == home.index
    group[home.index].send(200.0, 0.0)
    assert choose(selector, group, text).index != home.index


def test_session_stays_where_it_was_whatever_its_prompts_begin_with() -> None:
    selector, group = Selector(), loads(8)
    chosen = {choose(selector, group, prompt(number, 3000), session=77).index for number in range(20)}
    assert len(chosen) == 1


@given(st.lists(st.integers(0, 1_000_000), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_short_prompt_goes_to_the_shortest_queue(queues: list[int], shuffle: random.Random) -> None:
    selector, group = Selector(), loads(len(queues))
    for load, tokens in zip(group, queues, strict=True):
        load.send(float(tokens), 0.0)
    shuffle.shuffle(group)
    best = choose(selector, group, b"short")
    assert group[best.index].estimate(0.0) == min(load.estimate(0.0) for load in group)


def test_queue_falls_at_the_rate_that_reports_showed_and_never_below_nothing() -> None:
    load = Load("dep")
    load.report(10_000.0, 0.0)
    load.send(5_000.0, 0.5)
    load.report(7_000.0, 1.0)
    assert load.tokens_per_second == 8_000.0
    assert load.estimate(1.5) == 3_000.0
    assert load.estimate(9.0) == 0.0
    load.begin_answer(7_000.0)
    assert load.estimate(1.0) == 7_000.0, "the report has counted it already"


def test_queue_without_reports_falls_when_answers_begin() -> None:
    load = Load("dep")
    load.send(100.0, 0.0)
    load.send(50.0, 1.0)
    load.begin_answer(100.0)
    assert load.estimate(5.0) == 50.0


def test_memory_of_prefixes_is_bounded() -> None:
    selector, group = Selector(), loads(2)
    for number in range(2 * TABLE_MAX):
        selector.choose(group, (2 * number, 2 * number + 1), 0, 4096, 1.0, 0.0)
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
            now = 0.0
            assert all(upstream.load.estimate(now) > 0 for upstream in running.plane.upstreams.all())
            first.gate.set()
            second.gate.set()
            assert [(await client.answer()).status for client in (one, two)] == [200, 200]
        await until(lambda: all(upstream.load.estimate(0.0) == 0 for upstream in running.plane.upstreams.all()))


async def test_charge_of_an_attempt_that_failed_is_released() -> None:
    broken, well = Upstream([Do.RST]), Upstream([whole(completion())])
    async with broken.listening(), well.listening(), gateway({"m": Served([broken.url, well.url], one_tier=True)}) as running:
        for _ in range(6):
            assert (await post(running.port, chat())).status == 200
        assert all(upstream.load.estimate(0.0) == 0 for upstream in running.plane.upstreams.all())
