"""Deadlines of clients: what is told in time, what goes on to the engine, and what it costs."""

import asyncio

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
    whole,
)
from tests.gateway.test_waiting import HELD, with_one_running_and_one_waiting
from tests.patience import PATIENCE_SECONDS
from tollway.domain.catalog import Endpoint
from tollway.domain.usage import Outcome
from tollway.gateway.deadlines import INVALID, read_timeout
from tollway.gateway.request import INFINITE, RequestHead
from tollway.gateway.waiting import QueueBounds

ONE = QueueBounds(concurrency_max=1, wait_seconds=60.0)
SECONDS = "0.2"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (INFINITE, False)),
        ({b"x-request-timeout": b"2.5"}, (2.5, True)),
        ({b"x-envoy-expected-rq-timeout-ms": b"1500"}, (1.5, True)),
        ({b"x-stainless-read-timeout": b"600"}, (600.0, False)),
        ({b"x-stainless-timeout": b"600.0"}, (600.0, False)),
        ({b"x-request-timeout": b"30", b"x-stainless-read-timeout": b"600"}, (30.0, True)),
        ({b"x-request-timeout": b"30", b"x-stainless-read-timeout": b"5"}, (5.0, False)),
        ({b"x-stainless-timeout": b"NOT_GIVEN", b"x-envoy-expected-rq-timeout-ms": b"0"}, (INFINITE, False)),
        ({b"x-request-timeout": b"soon"}, (INVALID, True)),
        ({b"x-request-timeout": b"0"}, (INVALID, True)),
        ({b"x-request-timeout": b"-1"}, (INVALID, True)),
        ({b"x-request-timeout": b"1e3"}, (INVALID, True)),
        ({b"x-request-timeout": b"9999999"}, (INVALID, True)),
    ],
)
def test_shortest_time_that_a_head_names_counts(headers: dict[bytes, bytes], expected: tuple[float, bool]) -> None:
    head = RequestHead(Endpoint.CHAT_COMPLETIONS, headers)
    read_timeout(head)
    assert (head.timeout_seconds, head.bounds_whole_answer) == expected


async def test_timeout_that_is_no_number_of_seconds_is_refused_before_an_engine_is_asked() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        refused = await post(running.port, chat(), x_request_timeout="soon")
        assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "invalid_value", "x-request-timeout")
        assert not upstream.asked and not running.sink.admits


async def test_request_that_waits_for_a_place_is_refused_once_its_deadline_has_passed() -> None:
    upstream = Upstream(HELD)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, queue=ONE) as running:
        async with connect(running.port) as first:
            first.send(message(chat()))
            await until(lambda: len(upstream.asked) == 1)
            refused = await post(running.port, chat(), x_request_timeout=SECONDS)
            assert (refused.status, refused.error["code"]) == (504, "deadline_exceeded")
            assert running.plane.metrics.queue_results == {"waited_in_vain": 1}
            upstream.gate.set()
            assert (await first.answer()).status == 200
        assert len(upstream.asked) == len(running.sink.admits) == 1


async def test_request_that_would_wait_beyond_its_deadline_is_refused_at_once() -> None:
    async def play(running: Gateway, upstream: Upstream, first: Client, second: Client) -> None:
        refused = await post(running.port, chat(), x_request_timeout="1")
        assert (refused.status, refused.error["code"]) == (503, "model_overloaded")
        upstream.gate.set()
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]

    await with_one_running_and_one_waiting(play)


@pytest.mark.parametrize("script", [[Do.HOLD], [STREAM_HEAD, Do.HOLD]], ids=["silent", "begun"])
async def test_engine_that_does_not_answer_before_the_deadline_is_left_and_tried_nowhere_else(script: Script) -> None:
    upstream, other = Upstream(script), Upstream(healthy("late"))
    async with upstream.listening(), other.listening(), gateway({"m": Served([upstream.url, other.url])}) as running:
        late = await post(running.port, streamed(), x_request_timeout=SECONDS)
        assert (late.status, late.error["code"]) == (504, "deadline_exceeded")
        await asyncio.wait_for(upstream.asked[0].left.wait(), PATIENCE_SECONDS)
        assert not other.asked
        final = await running.sink.settled()
        assert (final.outcome, final.error) == (Outcome.CLIENT_CANCELLED, "deadline_exceeded")
        assert final.used.output_tokens == 0


async def test_stream_is_ended_at_its_own_deadline_and_not_at_that_of_an_sdk() -> None:
    begun: Script = [STREAM_HEAD, part(chunk("begun")), Do.GATE, *healthy("", "ended")[1:]]
    upstream = Upstream(begun)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        cut = await post(running.port, streamed(), x_request_timeout="2")  # time enough for what has begun on a busy machine
        assert cut.status == 200 and cut.events()[-1]["error"]["code"] == "deadline_exceeded"
        async with connect(running.port) as client:
            client.send(message(streamed(), x_stainless_read_timeout=SECONDS))
            await until(lambda: len(upstream.asked) == 2)
            await asyncio.sleep(1.5)  # three looks at the deadlines
            upstream.gate.set()
            assert (await client.answer()).text == "begunended"


async def test_what_is_left_of_the_time_goes_on_to_the_engine_and_that_of_an_sdk_does_not() -> None:
    def tell(asked: Asked) -> Script:
        return [whole(completion())]

    upstream = Upstream(tell)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        await post(running.port, chat(), x_request_timeout="30")
        await post(running.port, chat(), x_stainless_read_timeout="30")
        first, second = (each.head.lower() for each in upstream.asked)
        left = float(first.split(b"x-request-timeout: ")[1].split(b"\r\n")[0])
        assert 0 < left <= 30
        assert b"timeout" not in second
