"""Hedged requests: the first answer counts, the other attempt is aborted and costs nothing, and a budget bounds how many there are."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes import Asked, Do, Script, Upstream, until
from tests.gateway.harness import (
    STREAM_HEAD,
    Client,
    Gateway,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    healthy,
    message,
    part,
    post,
    streamed,
    usage,
    whole,
)
from tests.gateway.test_audio import sound
from tests.patience import PATIENCE_SECONDS
from tollway.domain.usage import Outcome
from tollway.gateway.relay import RelayBounds
from tollway.gateway.waiting import QueueBounds

AFTER_MS = 30
NEVER_MS = 500_000
SLOW: Script = [Do.HOLD]
BROKEN: Script = [whole({"error": {"message": "broken"}}, 500)]


def hedged(*upstreams: Upstream, after_ms: int = AFTER_MS, percent: int = 100, **more: Any) -> dict[str, Served]:
    return {"m": Served([each.url for each in upstreams], hedge_after_ms=after_ms, hedge_percent=percent, **more)}


def results(running: Gateway) -> dict[str, int]:
    return {result: count for (_, result), count in running.plane.metrics.hedges.items()}


def is_idle(running: Gateway) -> bool:
    upstreams = list(running.plane.upstreams.all())
    return not running.plane.active.exchanges and all(not each.running and not each.load.queued_tokens for each in upstreams)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_second_deployment_answers_for_one_that_is_slow_and_only_its_answer_is_billed(stream: bool) -> None:
    answer: Script = healthy("second", prompt=7) if stream else [whole(completion("second", prompt=7, completion=1))]
    slow, fast = Upstream(SLOW), Upstream(answer)
    async with slow.listening(), fast.listening(), gateway(hedged(slow, fast)) as running:
        answered = await post(running.port, chat(stream=stream))
        assert answered.status == 200 and b"second" in answered.body
        assert answered.headers["x-tollway-attempts"] == "2"
        assert answered.headers["x-tollway-deployment"] == "dep-m-1"
        await asyncio.wait_for(slow.asked[0].left.wait(), PATIENCE_SECONDS)
        final = await running.sink.settled()
        assert (final.outcome, final.deployment_id, final.attempts) == (Outcome.COMPLETED, "dep-m-1", 2)
        assert (final.used.input_tokens, final.used.output_tokens) == (7, 1)
        assert results(running) == {"won": 1}
        assert is_idle(running)
        ids = {asked.head.lower().split(b"x-request-id: ")[1].split(b"\r\n")[0] for asked in (slow.asked[0], fast.asked[0])}
        assert len(ids) == 2, "an engine may take a repeated id for the same request"


async def test_first_deployment_that_answers_after_all_wins_and_the_second_attempt_is_aborted() -> None:
    slow, slower = Upstream([Do.GATE, *healthy("first")]), Upstream(SLOW)
    async with slow.listening(), slower.listening(), gateway(hedged(slow, slower)) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await until(lambda: len(slower.asked) == 1)
        slow.gate.set()
        answer = await client.answer()
        assert (answer.status, answer.text) == (200, "first")
        assert (answer.headers["x-tollway-attempts"], answer.headers["x-tollway-deployment"]) == ("1", "dep-m-0")
        await asyncio.wait_for(slower.asked[0].left.wait(), PATIENCE_SECONDS)
        final = await running.sink.settled()
        assert (final.outcome, final.deployment_id, final.used.output_tokens) == (Outcome.COMPLETED, "dep-m-0", 1)
        assert results(running) == {"lost": 1}
        assert is_idle(running)


async def test_request_that_is_answered_in_time_is_not_hedged() -> None:
    first, second = Upstream(healthy("first")), Upstream(healthy("second"))
    async with first.listening(), second.listening(), gateway(hedged(first, second, after_ms=NEVER_MS)) as running:
        for _ in range(3):
            answer = await post(running.port, streamed())
            assert (answer.text, answer.headers["x-tollway-attempts"]) == ("first", "1")
        assert not second.asked and results(running) == {}


async def test_no_more_requests_are_hedged_than_the_budget_allows() -> None:
    slow, fast = Upstream([Do.GATE, *healthy("first")]), Upstream(healthy("second"))
    async with slow.listening(), fast.listening(), gateway(hedged(slow, fast, percent=50)) as running, connect(running.port) as client:
        client.send(message(streamed()))  # half of one request
        await until(lambda: results(running) == {"over_budget": 1})
        other = asyncio.ensure_future(post(running.port, streamed()))  # one of two, which may be the first one as well
        await until(lambda: results(running).get("won") == 1)
        assert len(fast.asked) == 1
        slow.gate.set()
        assert sorted([(await client.answer()).text, (await other).text]) == ["first", "second"]
        assert len(fast.asked) == 1


async def test_deployment_without_a_free_place_gets_no_hedge() -> None:
    held: Script = [Do.GATE, *healthy("held")]
    slow, full = Upstream(held), Upstream(held)
    one = QueueBounds(concurrency_max=1, wait_seconds=60.0)
    async with slow.listening(), full.listening(), connected(hedged(slow, full, after_ms=100), one) as clients:
        for client in clients:
            client.send(message(streamed()))  # both are at an engine, one each
        await until(lambda: len(slow.asked) == len(full.asked) == 1)
        await asyncio.sleep(0.3)
        assert len(slow.asked) == len(full.asked) == 1
        slow.gate.set()
        full.gate.set()
        assert [(await client.answer()).text for client in clients] == ["held", "held"]


@asynccontextmanager
async def connected(models: dict[str, Served], queue: QueueBounds) -> AsyncIterator[list[Client]]:
    async with gateway(models, queue=queue) as running, connect(running.port) as first, connect(running.port) as second:
        yield [first, second]


async def test_fault_of_one_attempt_leaves_the_answer_to_the_other() -> None:
    failing = Upstream([Do.GATE, *BROKEN])
    slow = Upstream([Do.GATE, *healthy("second")])
    async with failing.listening(), slow.listening(), gateway(hedged(failing, slow)) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await until(lambda: len(slow.asked) == 1)
        failing.gate.set()
        await until(lambda: ("dep-m-0", "upstream_error") in running.plane.metrics.attempts)
        slow.gate.set()
        assert (await client.answer()).text == "second"
        assert (await running.sink.settled()).deployment_id == "dep-m-1"


async def test_fault_before_the_hedge_is_retried_as_without_hedging() -> None:
    failing, other = Upstream(BROKEN), Upstream(healthy("second"))
    async with failing.listening(), other.listening(), gateway(hedged(failing, other, after_ms=NEVER_MS)) as running:
        assert (await post(running.port, streamed())).text == "second"
        assert running.plane.metrics.retries == 1 and results(running) == {}


async def test_request_that_fails_at_both_is_told_so_and_costs_nothing() -> None:
    first, second = Upstream([Do.GATE, *BROKEN]), Upstream([Do.GATE, *BROKEN])
    async with first.listening(), second.listening(), gateway(hedged(first, second)) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await until(lambda: len(second.asked) == 1)
        first.gate.set()
        second.gate.set()
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        final = await running.sink.settled()
        assert (final.outcome, final.used.output_tokens) == (Outcome.UPSTREAM_ERROR, 0)
        assert results(running) == {"failed": 1}


async def test_request_that_an_engine_refuses_ends_both_attempts() -> None:
    refusing = Upstream([Do.GATE, whole({"error": {"message": "This model's maximum context length is 5", "code": 400}}, 400)])
    slow = Upstream(SLOW)
    async with refusing.listening(), slow.listening(), gateway(hedged(refusing, slow)) as running, connect(running.port) as client:
        client.send(message(chat()))
        await until(lambda: len(slow.asked) == 1)
        refusing.gate.set()
        assert (await client.answer()).status == 400
        await asyncio.wait_for(slow.asked[0].left.wait(), PATIENCE_SECONDS)
        assert is_idle(running)


@pytest.mark.parametrize("ending", ["leaves", "deadline", "timeout"])
async def test_both_attempts_are_aborted_when_the_request_ends(ending: str) -> None:
    first, second = Upstream(SLOW), Upstream(SLOW)
    bounds = RelayBounds(first_token_seconds=0.5) if ending == "timeout" else RelayBounds()
    async with first.listening(), second.listening(), gateway(hedged(first, second), bounds=bounds) as running:
        async with connect(running.port) as client:
            client.send(message(streamed(), **({"x_request_timeout": "0.2"} if ending == "deadline" else {})))
            await until(lambda: len(second.asked) == 1 or bool(running.sink.finals))  # a busy machine may come to the end before it hedges
            if ending == "leaves":
                client.vanish()
            else:
                assert (await client.answer()).status == 504
        for asked in (*first.asked, *second.asked):
            await asyncio.wait_for(asked.left.wait(), PATIENCE_SECONDS)
        final = await running.sink.settled()
        assert final.outcome is (Outcome.TIMEOUT if ending == "timeout" else Outcome.CLIENT_CANCELLED)
        await until(lambda: is_idle(running))


async def test_what_the_aborted_attempt_reported_is_not_in_the_record() -> None:
    begun: Script = [STREAM_HEAD, part(chunk(usage=usage(1000, 0)) | {"choices": []}), Do.HOLD]
    first, second = Upstream(begun), Upstream(healthy("second", prompt=7))
    async with first.listening(), second.listening(), gateway(hedged(first, second)) as running:
        assert (await post(running.port, streamed())).status == 200
        final = await running.sink.settled()
        assert (final.used.input_tokens, final.used.output_tokens, final.anomaly) == (7, 1, None)


async def test_engine_that_echoes_ids_may_answer_either_attempt() -> None:
    def echo(asked: Asked) -> Script:
        id = asked.head.lower().split(b"x-request-id: ")[1].split(b"\r\n")[0]
        slow = [Do.GATE] if b"-2" not in id else []
        return [*slow, whole(completion(id.decode()), headers=b"x-request-id: " + id + b"\r\n")]

    first, second = Upstream(echo), Upstream(echo)
    async with first.listening(), second.listening(), gateway(hedged(first, second)) as running:
        assert b"-2" in (await post(running.port, chat())).body
        async with connect(running.port) as client:
            client.send(message(chat()))
            await until(lambda: len(first.asked) == 2)
            first.gate.set()
            assert (await client.answer()).status == 200


async def test_engine_that_cannot_be_reached_does_not_hold_up_the_first_answer() -> None:
    slow, dead = Upstream([Do.GATE, *healthy("first")]), Upstream(healthy("dead"))
    async with (
        slow.listening(),
        gateway({"m": Served([slow.url, "http://192.0.2.1:9"], hedge_after_ms=AFTER_MS, hedge_percent=100)}) as running,
    ):
        async with connect(running.port) as client:
            client.send(message(streamed()))
            await until(lambda: sum(each.running for each in running.plane.upstreams.all()) == 2)
            slow.gate.set()
            assert (await client.answer()).text == "first"
        assert not dead.asked
        await until(lambda: is_idle(running))


async def test_sound_is_never_committed_as_a_stream_of_events_before_it_begins() -> None:
    data = sound()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
    slow, slower = Upstream([Do.GATE, answer]), Upstream(SLOW)
    bounds = RelayBounds(commit_after_seconds=0.0)
    async with slow.listening(), slower.listening(), gateway(hedged(slow, slower), bounds=bounds) as running:
        asking = asyncio.ensure_future(post(running.port, {"model": "m", "input": "Hello", "voice": "alloy"}, "/v1/audio/speech"))
        await until(lambda: len(slower.asked) == 1)
        slow.gate.set()
        answered = await asking
        assert (answered.status, answered.headers["content-type"], answered.body) == (200, "audio/wav", data)
        await running.sink.settled()


async def test_attempt_whose_answer_is_no_stream_leaves_the_stream_to_the_other() -> None:
    wrong, other = Upstream([Do.GATE, whole(completion())]), Upstream([Do.GATE, *healthy("second")])
    async with wrong.listening(), other.listening(), gateway(hedged(wrong, other)) as running:
        asking = asyncio.ensure_future(post(running.port, streamed()))
        await until(lambda: len(other.asked) == 1)
        wrong.gate.set()
        await until(lambda: sum(each.running for each in running.plane.upstreams.all()) <= 1)
        other.gate.set()
        answered = await asking
        assert (answered.status, answered.text) == (200, "second")
        assert results(running) == {"won": 1}
