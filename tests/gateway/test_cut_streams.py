"""Input of answers that an engine did not report to their end: streams that a client leaves, and answers without usage."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes import Do, Script, Upstream
from tests.gateway.harness import (
    COMPLETIONS,
    DONE,
    END,
    STREAM_HEAD,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    message,
    part,
    post,
    streamed,
    usage,
    usage_chunk,
    whole,
)
from tests.simulator.running import simulator
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Engine
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Anomaly, Final, Outcome, UsageSource, billed

REPORTING = [Engine.VLLM, Engine.SGLANG, Engine.DYNAMO]
SILENT = [Engine.LLAMACPP, Engine.TRTLLM, Engine.OPENAI]
LONG = [{"role": "user", "content": "word " * 100_000}]
BODY_BYTES = len(msgspec.json.encode(streamed(messages=LONG)))


def choice(index: int, content: str | None = None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    event = chunk(content, finish=finish, **more)
    event["choices"][0]["index"] = index
    return event


async def leave(script: Script, engine: Engine, *, taught: Script | None = None, **more: Any) -> tuple[Final, Upstream]:
    """Return how a stream is recorded whose client leaves when the script holds. `taught`: an answer that is completed before."""
    upstream = Upstream(*([] if taught is None else [taught]), [*script, Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=engine)}) as running:
        if taught is not None:
            assert (await post(running.port, streamed(messages=LONG))).status == 200
        async with connect(running.port) as client:
            client.send(message(streamed(messages=LONG, **more)))
            await client.reader.readuntil(b'"finish_reason":"stop"')
            client.vanish()
        final = await running.sink.settled(1 if taught is None else 2)
    assert final.outcome is Outcome.CLIENT_CANCELLED
    return final, upstream


def whole_stream(prompt: int, *words: str) -> Script:
    return [STREAM_HEAD, *(part(chunk(word)) for word in words), part(chunk(finish="stop")), part(usage_chunk(prompt, 1)), part(DONE), END]


@pytest.mark.parametrize("engine", REPORTING)
async def test_client_that_leaves_after_the_finish_pays_the_input_that_was_reported(engine: Engine) -> None:
    cached = {"prompt_tokens_details": {"cached_tokens": 60_000}}
    script = [
        STREAM_HEAD,
        part(chunk("a", usage=usage(100_000, 1) | cached)),
        part(chunk("b", usage=usage(100_000, 2) | cached)),
        part(chunk(finish="stop", usage=usage(100_000, 2) | cached)),
    ]
    final, upstream = await leave(script, engine)
    assert b'"continuous_usage_stats":true' in upstream.asked[0].body
    assert final.used == Quantities(40_000, 60_000, 2)
    assert final.source in (UsageSource.ENGINE_CONTINUOUS, UsageSource.ENGINE_FINAL)
    assert billed(final) == final.used


@pytest.mark.parametrize("engine", REPORTING)
async def test_client_that_leaves_one_of_several_choices_pays_the_prompt_and_every_event(engine: Engine) -> None:
    script = [
        STREAM_HEAD,
        part(choice(0, "a", usage=usage(100_000, 1))),
        part(choice(1, "b", usage=usage(100_000, 1))),
        part(choice(1, "c", usage=usage(100_000, 2))),
        part(choice(0, finish="stop", usage=usage(100_000, 1))),
    ]
    final, _ = await leave(script, engine, n=2)
    assert (final.used, final.source) == (Quantities(100_000, 0, 3), UsageSource.COUNTED)


async def test_total_of_all_choices_is_the_final_one() -> None:
    script = [
        STREAM_HEAD,
        part(choice(0, "a", usage=usage(5, 1)), choice(1, "b", usage=usage(5, 1))),
        part(choice(0, finish="stop", usage=usage(5, 1)), choice(1, "c", usage=usage(5, 2)), choice(1, finish="stop", usage=usage(5, 2))),
        part(usage_chunk(5, 3)),
        part(DONE),
        END,
    ]
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=Engine.VLLM)}) as running:
        answer = await post(running.port, streamed(n=2))
        final = await running.sink.settled()
        assert running.plane.metrics.anomalies == {}
    assert (final.used, final.source) == (Quantities(5, 0, 3), UsageSource.ENGINE_FINAL)
    assert not any("usage" in event for event in answer.events()[:-1])


async def test_several_prompts_are_asked_for_no_running_usage() -> None:
    event = {
        "id": "c",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}],
    }
    upstream = Upstream([STREAM_HEAD, part(event), part(usage_chunk(9, 1)), part(DONE), END])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=Engine.VLLM)}) as running:
        await post(running.port, {"model": "m", "prompt": ["a", "b"], "stream": True}, COMPLETIONS)
    assert b"continuous_usage_stats" not in upstream.asked[0].body, "each would report its own prompt"


@pytest.mark.parametrize("engine", SILENT)
async def test_client_that_leaves_an_engine_that_reports_nothing_pays_an_estimated_input(engine: Engine) -> None:
    script: Script = [STREAM_HEAD, part(chunk("a")), part(chunk("b", finish="stop"))]
    final, _ = await leave(script, engine)
    assert (final.used, final.source) == (Quantities(BODY_BYTES // 8, 0, 2), UsageSource.ESTIMATED), "nothing was learned yet"
    final, _ = await leave(script, engine, taught=whole_stream(100_000, "a"))
    assert final.source is UsageSource.ESTIMATED and 98_000 < final.used.input <= 100_000 and final.used.output == 2
    assert final.admit.outcome_policy == OUTCOME_POLICY_CURRENT == 5 and billed(final) == final.used


async def test_estimate_is_bounded_by_what_the_request_can_contain() -> None:
    body = streamed()
    upstream = Upstream(whole_stream(4000, "a"), [STREAM_HEAD, part(chunk("b", finish="stop")), part(DONE), END])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=Engine.OPENAI)}) as running:
        (known,) = running.plane.upstreams.of("m")
        await post(running.port, body)
        known._learned_tokens = known._learned_bytes * 10**6
        await post(running.port, body)
        final = await running.sink.settled(2)
    assert 0 < final.used.input < 10_000


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_completed_answer_without_usage_pays_the_request_and_an_estimated_input(stream: bool) -> None:
    silent = completion()
    del silent["usage"]
    script: Script = [STREAM_HEAD, part(chunk("a")), part(chunk("b", finish="stop")), part(DONE), END] if stream else [whole(silent)]
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=Engine.OPENAI)}) as running:
        assert (await post(running.port, chat(stream=stream))).status == 200
        final = await running.sink.settled()
    assert (final.source, final.anomaly) == (UsageSource.ESTIMATED, Anomaly.MISSING)
    paid = billed(final)
    assert paid.request == 1 and 0 < paid.input < 100 and paid.output == (2 if stream else 0)


@pytest.mark.parametrize("end", [Do.RST, Do.FIN])
async def test_fault_of_an_engine_lets_nobody_pay_an_estimate(end: Do) -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.GATE, end])
    async with (
        upstream.listening(),
        gateway({"m": Served([upstream.url], engine=Engine.OPENAI)}) as running,
        connect(running.port) as client,
    ):
        client.send(message(streamed(messages=LONG)))
        await client.reader.readuntil(b'"a"')
        upstream.gate.set()
        final = await running.sink.settled()
    assert (final.outcome, final.used, final.source) == (Outcome.UPSTREAM_ERROR, Quantities(output=1), UsageSource.COUNTED)


async def test_client_that_leaves_before_any_output_pays_no_estimate() -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("", role="assistant")), Do.HOLD])
    async with (
        upstream.listening(),
        gateway({"m": Served([upstream.url], engine=Engine.OPENAI)}) as running,
        connect(running.port) as client,
    ):
        client.send(message(streamed(messages=LONG)))
        await client.reader.readuntil(b"assistant")
        client.vanish()
        final = await running.sink.settled()
    assert (final.outcome, final.used) == (Outcome.CLIENT_CANCELLED, Quantities())


async def test_estimate_agrees_with_what_an_engine_computed(tmp_path: Path) -> None:
    """The simulator's truth log says how many tokens the prompt really had."""
    with simulator(tmp_path / "truth.jsonl") as sim:
        async with gateway({"m": Served([sim.url], upstream_model="sim-small!itl@5", engine=Engine.OPENAI)}) as running:
            for number in range(10):
                body = streamed(messages=[{"role": "user", "content": f"{number} " + "some words of a question " * 40}], max_tokens=2)
                assert (await post(running.port, body)).status == 200
            async with connect(running.port) as client:
                client.send(message(streamed(messages=[{"role": "user", "content": "other words of a question " * 60}], max_tokens=500)))
                head = await client.reader.readuntil(b"\r\n\r\n")
                await client.reader.readuntil(b"content")
                await client.reader.readuntil(b"\n\n")
                await client.reader.readuntil(b"\n\n")
                client.vanish()
            final = await running.sink.settled(11)
        truth = await sim.record(head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode())
    assert final.source is UsageSource.ESTIMATED and final.outcome is Outcome.CLIENT_CANCELLED
    assert 0.8 * truth.prompt_tokens < final.used.input < 1.2 * truth.prompt_tokens
    assert final.used.output <= truth.completion_tokens
