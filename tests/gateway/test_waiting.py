"""Full deployments: who waits, who is refused at once, and what ends a wait."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from tests.fakes import Asked, Do, Script, Upstream, until
from tests.gateway.harness import PEPPER, Client, Gateway, Log, Served, chat, completion, connect, gateway, healthy, message, post, whole
from tollway.domain import keys
from tollway.domain.keys import KeyType
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import Change, KeyEntry, OrganizationEntry, ProjectEntry, change
from tollway.domain.usage import Outcome
from tollway.gateway.upstreams.concurrency import LATE_SAMPLES, PAUSE_SECONDS, ConcurrencyBounds, ConcurrencyLimit
from tollway.gateway.waiting import QueueBounds

HELD: Script = [Do.GATE, whole(completion())]
ONE = QueueBounds(concurrency_max=1, wait_seconds=60.0)
THREE = QueueBounds(concurrency_max=3, wait_seconds=60.0)
NEIGHBOUR = keys.new_key(KeyType.LIVE, bytes([9]) * keys.RANDOM_BYTES).secret


def results(running: Gateway) -> dict[str, int]:
    return running.plane.metrics.queue_results


async def until_waiting(running: Gateway, count: int) -> None:
    await until(lambda: running.plane.queues.count_waiting() == count)


async def with_one_running_and_one_waiting(
    play: Callable[[Gateway, Upstream, Client, Client], Awaitable[None]], bounds: QueueBounds = ONE
) -> None:
    """Run `play` while one request is at the engine, which answers once its gate is opened, and another one waits."""
    upstream = Upstream(HELD)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=bounds) as running:
        async with connect(running.port) as first, connect(running.port) as second:
            first.send(message(chat()))
            await until(lambda: len(upstream.asked) == 1)
            second.send(message(chat()))
            await until_waiting(running, 1)
            await play(running, upstream, first, second)
        await until(lambda: not running.plane.active.exchanges)
        assert running.plane.queues.count_waiting() == 0
        assert [upstream.running for upstream in running.plane.upstreams.all()] == [0]


async def test_request_waits_while_the_only_deployment_is_full_and_is_served_when_a_place_is_free() -> None:
    async def play(running: Gateway, upstream: Upstream, first: Client, second: Client) -> None:
        assert len(upstream.asked) == 1
        read = running.plane.metrics.read
        assert read("tollway_queue_waiting_tokens") > 0 and read("tollway_queue_oldest_wait_seconds") > 0
        upstream.gate.set()
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]
        assert len(upstream.asked) == 2
        assert results(running) == {"served": 1}
        assert read("tollway_queue_waiting_tokens") == read("tollway_queue_oldest_wait_seconds") == 0
        logs.append(running.log)

    logs: list[Log] = []
    await with_one_running_and_one_waiting(play)
    lines = [json.loads(line) for line in logs[0].text.splitlines()]
    assert [line.get("waited_ms", 0) > 0 for line in lines] == [False, True]


async def test_request_that_would_wait_too_long_is_refused_at_once_and_costs_nothing() -> None:
    async def play(running: Gateway, upstream: Upstream, first: Client, second: Client) -> None:
        refused = await post(running.port, chat())
        assert (refused.status, refused.error["code"]) == (503, "model_overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert results(running) == {"too_long": 1}
        assert len(running.sink.admits) == 1
        upstream.gate.set()
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]

    await with_one_running_and_one_waiting(play)


async def test_client_that_leaves_while_it_waits_gives_up_its_place_in_the_queue() -> None:
    async def play(running: Gateway, upstream: Upstream, first: Client, second: Client) -> None:
        second.vanish()
        await until_waiting(running, 0)
        upstream.gate.set()
        assert (await first.answer()).status == 200
        assert len(upstream.asked) == 1

    await with_one_running_and_one_waiting(play)


async def test_wait_beyond_the_bound_ends_with_503() -> None:
    async def play(running: Gateway, upstream: Upstream, first: Client, second: Client) -> None:
        answer = await second.answer()
        assert (answer.status, answer.error["code"]) == (503, "model_overloaded")
        assert results(running) == {"waited_in_vain": 1}
        upstream.gate.set()
        assert (await first.answer()).status == 200

    await with_one_running_and_one_waiting(play, QueueBounds(concurrency_max=1, wait_seconds=0.01))


async def test_41_key_that_is_revoked_while_its_request_waits_is_refused_and_the_next_one_gets_the_place() -> None:
    upstream = Upstream(lambda _: HELD if len(upstream.asked) in (1, 3) else [whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=ONE) as running:
        plane = running.plane
        add_neighbour(running)
        for number in (1, 3):  # the first two show how soon a place is free, so that more than one may wait for the second time
            first = asyncio.create_task(post(running.port, chat()))
            await until(lambda number=number: len(upstream.asked) == number)
            second = asyncio.create_task(post(running.port, chat()))
            await until_waiting(running, 1)
            if number == 1:
                upstream.gate.set()
                assert [(await each).status for each in (first, second)] == [200, 200]
                upstream.gate.clear()
        async with connect(running.port) as neighbour:
            neighbour.send(message(chat(), key=NEIGHBOUR))
            await until_waiting(running, 2)
            plane.apply(Change(version=plane.version + 1, kind="key", id=f"key_{0:032x}", entry=None))
            upstream.gate.set()
            assert [(await each).status for each in (first, second)] == [200, 401]
            assert (await neighbour.answer()).status == 200
        assert len(upstream.asked) == 4


async def test_drain_lets_requests_that_wait_be_served() -> None:
    async def play(running: Gateway, upstream: Upstream, first: Client, second: Client) -> None:
        running.stop.set()
        await until(lambda: running.plane.draining)
        upstream.gate.set()
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]

    await with_one_running_and_one_waiting(play)


async def test_what_does_not_fit_into_a_tier_goes_to_the_next_before_it_waits() -> None:
    preferred, reserve = Upstream(HELD), Upstream(healthy("reserve"), [whole(completion())])
    async with (
        preferred.listening(),
        reserve.listening(),
        gateway({"m": Served([preferred.url, reserve.url])}, queue=ONE) as running,
        connect(running.port) as first,
    ):
        first.send(message(chat()))
        await until(lambda: len(preferred.asked) == 1)
        assert (await post(running.port, chat(stream=True))).text == "reserve"
        assert results(running) == {}
        preferred.gate.set()
        assert (await first.answer()).status == 200


def add_neighbour(running: Gateway, queue_weight: int = 1) -> None:
    plane = running.plane
    for entry in (
        OrganizationEntry(id="org_b", currency="EUR", terms=(PriceTerms(0, "book_1"),), queue_weight=queue_weight),
        ProjectEntry(id="proj_b", organization_id="org_b"),
        KeyEntry(id="key_b", digest=keys.digest(PEPPER, NEIGHBOUR.encode()), type=KeyType.LIVE, project_id="proj_b"),
    ):
        plane.apply(change(plane.version + 1, entry))


async def test_85_organization_that_floods_a_full_model_is_told_429_and_its_neighbour_is_served_before_the_flood() -> None:
    def held_in_turn(asked: Asked) -> Script:
        return HELD if len(upstream.asked) <= 3 else [whole(completion())]

    upstream = Upstream(held_in_turn)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=THREE) as running:
        add_neighbour(running)
        flood = [asyncio.create_task(post(running.port, chat())) for _ in range(6)]
        await until_waiting(running, 3)
        async with connect(running.port) as neighbour:
            neighbour.send(message(chat(messages=[{"role": "user", "content": "neighbour"}]), key=NEIGHBOUR))
            await until_waiting(running, 4)
            refused = await post(running.port, chat())
            assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
            assert results(running) == {"over_share": 1}
            upstream.gate.set()
            assert (await neighbour.answer()).status == 200
        assert [(await each).status for each in flood] == [200] * 6
        assert any(b"neighbour" in asked.body for asked in upstream.asked[3:5])


async def test_organization_with_more_weight_is_served_more_while_both_wait() -> None:
    def held_in_turn(asked: Asked) -> Script:
        return HELD if len(upstream.asked) <= 3 else [whole(completion())]

    upstream = Upstream(held_in_turn)
    body = chat(messages=[{"role": "user", "content": "ourselves"}])
    others = chat(messages=[{"role": "user", "content": "neighbour"}])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=THREE) as running:
        add_neighbour(running, queue_weight=4)
        own = [asyncio.create_task(post(running.port, body)) for _ in range(6)]
        await until_waiting(running, 3)
        async with connect(running.port) as first, connect(running.port) as second:
            for number, client in enumerate((first, second), 4):
                client.send(message(others, key=NEIGHBOUR))
                await until_waiting(running, number)
            upstream.gate.set()
            assert [(await client.answer()).status for client in (first, second)] == [200, 200]
        assert [(await each).status for each in own] == [200] * 6
        assert sum(b"neighbour" in asked.body for asked in upstream.asked[3:6]) == 2


async def test_engine_that_answers_503_is_sent_no_more_than_it_took() -> None:
    busy: Script = [whole({"error": {"message": "busy", "code": 503}}, 503)]
    upstream = Upstream(HELD, HELD, busy, HELD)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=QueueBounds(wait_seconds=60.0)) as running:
        running_there = [asyncio.create_task(post(running.port, chat())) for _ in range(2)]
        await until(lambda: len(upstream.asked) == 2)
        waiting = []
        for count in (1, 2):
            waiting.append(asyncio.create_task(post(running.port, chat())))
            await until_waiting(running, count)
        assert [each.limit for each in running.plane.upstreams.all()] == [2]
        assert len(upstream.asked) == 3
        upstream.gate.set()
        assert [(await each).status for each in (*running_there, *waiting)] == [200] * 4


BUSY: Script = [whole({"error": {"message": "busy", "code": 503}}, 503)]
TWO = QueueBounds(concurrency_max=2, wait_seconds=60.0)


async def test_request_that_an_engine_refuses_for_its_load_waits_again_before_the_others_and_is_billed_once() -> None:
    def answer(asked: Asked) -> Script:
        number = len(upstream.asked)
        return HELD if number <= 2 else BUSY if number == 3 else [whole(completion())]

    upstream = Upstream(answer)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=THREE) as running:
        held = [asyncio.create_task(post(running.port, chat())) for _ in range(2)]
        await until(lambda: len(upstream.asked) == 2)
        refused = asyncio.create_task(post(running.port, chat(messages=[{"role": "user", "content": "refused once"}])))
        await until_waiting(running, 1)
        last = asyncio.create_task(post(running.port, chat()))
        await until_waiting(running, 2)
        assert not refused.done()
        assert [each.limit for each in running.plane.upstreams.all()] == [2]
        upstream.gate.set()
        assert [(await each).status for each in (*held, refused, last)] == [200] * 4
        assert (await refused).headers["x-tollway-attempts"] == "2"
        assert b"refused once" in upstream.asked[3].body, "before the one that came later"
        assert results(running) == {"served": 2}
        await running.sink.settled(4)
        assert [final.outcome for final in running.sink.finals] == [Outcome.COMPLETED] * 4


@pytest.mark.parametrize("why", ["its time is over", "nothing of ours runs there", "the retries are spent"])
async def test_request_that_an_engine_refuses_for_its_load_is_refused_at_once_where_waiting_is_of_no_use(why: str) -> None:
    upstream = Upstream(HELD, *[BUSY] * 5)
    queue = QueueBounds(concurrency_max=2, wait_seconds=1e-9 if why == "its time is over" else 60.0)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=queue) as running:
        first = asyncio.create_task(post(running.port, chat()))
        await until(lambda: len(upstream.asked) == 1)
        if why == "nothing of ours runs there":
            upstream.gate.set()
            assert (await first).status == 200
        if why == "the retries are spent":
            while running.plane.retries.spend():
                pass
        refused = await post(running.port, chat())
        assert (refused.status, refused.error["code"]) == (503, "upstream_error")
        assert len(upstream.asked) == 2
        assert results(running) == {}
        upstream.gate.set()
        assert (await first).status == 200


async def test_engine_that_refuses_a_request_again_and_again_is_asked_three_times() -> None:
    upstream = Upstream(lambda _: HELD if len(upstream.asked) <= 2 else BUSY)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=THREE) as running:
        held = [asyncio.create_task(post(running.port, chat())) for _ in range(2)]
        await until(lambda: len(upstream.asked) == 2)
        refused = asyncio.create_task(post(running.port, chat()))
        await until_waiting(running, 1)
        upstream.gate.set()
        assert [(await each).status for each in held] == [200] * 2
        assert (await refused).status == 503
        assert 2 < len(upstream.asked) <= 5


async def test_41_key_that_is_revoked_while_its_request_waits_again_is_refused() -> None:
    upstream = Upstream(lambda _: HELD if len(upstream.asked) == 1 else BUSY if len(upstream.asked) == 2 else [whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=TWO) as running:
        plane = running.plane
        first = asyncio.create_task(post(running.port, chat()))
        await until(lambda: len(upstream.asked) == 1)
        refused = asyncio.create_task(post(running.port, chat()))
        await until_waiting(running, 1)
        plane.apply(Change(version=plane.version + 1, kind="key", id=f"key_{0:032x}", entry=None))
        upstream.gate.set()
        assert ((await first).status, (await refused).status) == (200, 401)
        assert len(upstream.asked) == 2


async def test_client_that_leaves_while_its_request_waits_again_gives_up_its_place() -> None:
    upstream = Upstream(lambda _: HELD if len(upstream.asked) == 1 else BUSY)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=TWO) as running:
        first = asyncio.create_task(post(running.port, chat()))
        await until(lambda: len(upstream.asked) == 1)
        async with connect(running.port) as leaving:
            leaving.send(message(chat()))
            await until_waiting(running, 1)
            leaving.vanish()
            await until_waiting(running, 0)
        upstream.gate.set()
        assert (await first).status == 200
        assert len(upstream.asked) == 2
        await running.sink.settled(2)


def limited(limit: int = 100) -> ConcurrencyLimit:
    return ConcurrencyLimit(ConcurrencyBounds(concurrency_min=2, concurrency_max=limit))


def test_refusal_shrinks_the_bound_to_what_ran_beside_it_and_not_below_the_minimum() -> None:
    limit = limited()
    limit.refused(17, 0.0)
    assert limit.limit == 16
    limit.refused(40, 0.0)
    assert limit.limit == 16
    limit.refused(1, 0.0)
    assert limit.limit == 2


def test_answers_of_a_full_deployment_double_the_bound_again_after_a_pause() -> None:
    limit = limited(20)
    limit.refused(9, 0.0)
    limit.answered(PAUSE_SECONDS / 2)
    assert limit.limit == 8
    for _ in range(8):
        limit.answered(PAUSE_SECONDS)
    assert limit.limit == 16
    for _ in range(8):
        limit.answered(PAUSE_SECONDS)
    assert limit.limit == 20


def test_late_first_tokens_shrink_the_bound_and_long_prompts_alone_do_not() -> None:
    limit = limited()
    for _ in range(4 * LATE_SAMPLES):
        limit.observe_first_token(0.2, 1_000, 64, 0.0)
        limit.observe_first_token(9.0, 400_000, 64, 0.0)
    assert limit.limit == 100
    for _ in range(LATE_SAMPLES - 1):
        limit.observe_first_token(5.0, 1_000, 64, 0.0)
    assert limit.limit == 100
    limit.observe_first_token(5.0, 1_000, 64, 0.0)
    assert limit.limit == 56


@pytest.mark.parametrize("late_of_ten", [3, 4])
def test_few_late_first_tokens_among_punctual_ones_say_nothing(late_of_ten: int) -> None:
    limit = limited()
    for number in range(500):
        limit.observe_first_token(3.0 if number % 10 < late_of_ten and number else 0.1, 1_000, 64, 0.0)
    assert limit.limit == 100
