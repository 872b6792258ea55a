"""Properties on which the gateway relies, held against real engines: usage, streams, caches, refusals, cancellation, death.

The engine's own account is the reference: what it reports is what is recorded, and when the client leaves it works no more.
"""

import asyncio
import os
import signal
from typing import Any

import anthropic
import openai
import pytest

from tests.engines.engine_processes import RealEngine, run_dynamo
from tests.fakes import PATIENCE_SECONDS
from tests.gateway.harness import COMPLETIONS, KEY, Gateway, Served, chat, connect, gateway, message, post, streamed
from tollway.domain.catalog import Engine
from tollway.domain.usage import Final, Outcome, UsageSource
from tollway.gateway.relay import RelayBounds

pytestmark = pytest.mark.engines

SPEAKS_MESSAGES = {Engine.LLAMACPP, Engine.DYNAMO, Engine.VLLM}
TOKENS = 6
LONG = "The toll road goes on and on, past the bridge and the tower and the field. " * 20


def serving(engine: RealEngine, **more: Any) -> dict[str, Served]:
    """Models of the gateway that this engine serves: `m` under another name, and one that it does not have."""
    return {
        "m": Served([engine.url], engine=engine.kind, upstream_model=engine.model, **more),
        "absent": Served([engine.url], engine=engine.kind, upstream_model="no-such-model"),
    }


def told(usage: dict[str, Any]) -> tuple[int, int, int]:
    """(input, cached, output) of a usage object of OpenAI's."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return usage["prompt_tokens"] - cached, cached, usage["completion_tokens"]


def recorded(final: Final) -> tuple[int, int, int]:
    return final.used.input, final.used.cached_input, final.used.output + final.used.reasoning


async def until_idle(engine: RealEngine) -> None:
    """Wait until the engine works at nothing, by its own word."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await asyncio.to_thread(engine.count_busy):
            await asyncio.sleep(0.05)


async def test_a_whole_answer_costs_what_the_engine_says(engine: RealEngine) -> None:
    async with gateway(serving(engine)) as running:
        for path, body in (("/v1/chat/completions", chat(max_tokens=TOKENS)), (COMPLETIONS, {"model": "m", "prompt": "One two"})):
            answer = await post(running.port, body | {"max_tokens": TOKENS}, path)
            assert answer.status == 200, answer.body
            assert answer.json()["model"] == "m"
            final = running.sink.finals[-1]
            assert recorded(final) == told(answer.json()["usage"]) and 0 < final.used.output <= TOKENS
            assert (final.outcome, final.source) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL)


@pytest.mark.parametrize("asks", [True, False], ids=["asks-for-usage", "does-not"])
async def test_a_stream_costs_what_the_engine_says_whether_or_not_the_client_asks(engine: RealEngine, asks: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if asks else {}
    async with gateway(serving(engine)) as running:
        answer = await post(running.port, streamed(max_tokens=TOKENS, **options))
        final = await running.sink.settled()
    *events, last = answer.events()
    assert last == "[DONE]" and answer.text
    assert {event["model"] for event in events} == {"m"}
    reports = [event["usage"] for event in events if event.get("usage")]
    assert len(reports) == int(asks)
    assert (final.outcome, final.source) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL)
    assert 0 < final.used.output <= TOKENS and final.used.input + final.used.cached_input > 5
    if asks:
        assert told(reports[0]) == recorded(final)


async def test_a_repeated_prompt_comes_from_the_cache_and_is_counted_apart(engine: RealEngine) -> None:
    async with gateway(serving(engine)) as running:
        body = chat(max_tokens=2) | {"messages": [{"role": "user", "content": LONG + engine.kind}]}
        for _ in range(2):
            assert (await post(running.port, body)).status == 200
        first, second = running.sink.finals
    assert first.used.cached_input < second.used.cached_input
    assert first.used.input + first.used.cached_input == second.used.input + second.used.cached_input


async def test_what_the_engine_refuses_is_told_without_naming_it(engine: RealEngine) -> None:
    async with gateway(serving(engine)) as running:
        odd = chat(max_tokens=TOKENS) | {"messages": [{"role": "user", "content": 5}]}
        refused = await post(running.port, odd)
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error"), refused.body
        too_long = chat(max_tokens=TOKENS) | {"messages": [{"role": "user", "content": "toll " * engine.context_tokens * 2}]}
        refused = await post(running.port, too_long)
        assert refused.status == engine.too_long_status, refused.body
        assert refused.error["code"] in ("context_length_exceeded", "invalid_request", "upstream_error")
        if engine.knows_models:
            absent = await post(running.port, chat("absent"))
            assert (absent.status, absent.error["code"]) == (502, "upstream_error")
            assert b"no-such-model" not in absent.body
        assert (await post(running.port, chat(max_tokens=1))).status == 200, "a refusal is no reason to shun it"
        assert {final.outcome for final in running.sink.finals[:-1]} == {Outcome.UPSTREAM_ERROR}
        assert all(not any(recorded(final)) for final in running.sink.finals[:-1])


async def read_events(running: Gateway, body: Any, count: int) -> None:
    """Read so many events of a stream, then leave."""
    async with connect(running.port) as client:
        client.send(message(body))
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(count + 1):
                await client.reader.readuntil(b"\n\n")
        client.vanish()


async def test_a_client_that_leaves_frees_the_engine_and_pays_for_what_was_made(engine: RealEngine) -> None:
    async with gateway(serving(engine)) as running:
        asked = engine.context_tokens * 3 // 4
        body = streamed(max_tokens=asked) | {"messages": [{"role": "user", "content": "Count from 1 to 500, in words."}]}
        await read_events(running, body, 5)
        final = await running.sink.settled()
        await until_idle(engine)
    assert final.outcome is Outcome.CLIENT_CANCELLED
    assert 4 <= final.used.output < asked


async def test_the_official_sdks_are_answered(engine: RealEngine) -> None:
    messages: Any = [{"role": "user", "content": "Say something."}]
    async with gateway(serving(engine)) as running:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(model="m", messages=messages, max_tokens=TOKENS, stream=True)
            assert [chunk async for chunk in stream][-1].choices[0].finish_reason in ("length", "stop")
        if engine.kind in SPEAKS_MESSAGES:
            async with anthropic.AsyncAnthropic(base_url=running.url, api_key=KEY, max_retries=0) as other:
                whole = await other.messages.create(model="m", max_tokens=TOKENS, messages=messages)
                assert whole.model == "m"
                assert running.sink.finals[-1].used.output == whole.usage.output_tokens > 0
                async with other.messages.stream(model="m", max_tokens=TOKENS, messages=messages) as events:
                    final = await events.get_final_message()
                assert final.stop_reason in ("max_tokens", "end_turn")
                assert running.sink.finals[-1].used.output == final.usage.output_tokens > 0
        assert {final.outcome for final in running.sink.finals} == {Outcome.COMPLETED}


async def test_an_engine_whose_worker_dies_in_mid_stream_is_never_a_success(tmp_path_factory: pytest.TempPathFactory) -> None:
    with run_dynamo(tmp_path_factory.mktemp("dying")) as engine:
        bounds = RelayBounds(idle_seconds=5.0, first_token_seconds=5.0)
        async with gateway(serving(engine), bounds=bounds) as running, connect(running.port) as client:
            client.send(message(streamed(max_tokens=1500)))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await client.reader.readuntil(b"\n\n")
            assert engine.worker is not None
            os.killpg(engine.worker.pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_SECONDS):
                rest = await client.reader.readuntil(b"\r\n0\r\n\r\n")
            final = await running.sink.settled()
        assert b"[DONE]" not in rest and b'data: {"error":{' in rest
        assert final.outcome in (Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT) and final.used.output > 0
