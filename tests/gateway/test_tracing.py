"""Traces of requests: a span of the request, with one for each wait, attempt and check below it, and nothing of its content."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from tests.fakes import Do, Upstream, until
from tests.gateway.harness import KEY, ORGANIZATION, PROJECT, Served, chat, completion, gateway, healthy, post, streamed, whole
from tests.gateway.test_realtime import CREATE, Engine, call
from tests.gateway.test_test_keys import change
from tollway.domain.catalog import Guardrail, GuardrailStages
from tollway.gateway.guardrails import GuardrailBounds, Guardrails
from tollway.gateway.tracing import Tracer
from tollway.gateway.waiting import QueueBounds
from tollway.spans import Sampler, Span, SpanKind, TraceBounds

TRACE, PARENT = "0123456789abcdef0123456789abcdef", "00f067aa0ba902b7"


@asynccontextmanager
async def traced(served: dict[str, Served], queue: QueueBounds | None = None, **bounds: Any) -> AsyncIterator[tuple[Any, list[Span]]]:
    """A gateway that keeps the traces of `bounds`, by default none but failed ones."""
    spans: list[Span] = []
    async with gateway(served, queue=queue) as running:
        sampler = Sampler(TraceBounds(**{"sample_ratio": 0.0, **bounds}))
        running.plane.tracer = Tracer(sampler, spans.extend)
        yield running, spans


async def test_a_sampled_request_is_one_span_with_its_attempts_below_and_the_engine_below_these() -> None:
    failing, answering = Upstream([whole({"error": "broken"}, status=500)]), Upstream(healthy("Hello", " there", prompt=7))
    async with failing.listening(), answering.listening(), traced({"m": Served([failing.url, answering.url])}) as (running, spans):
        answer = await post(running.port, streamed(), traceparent=f"00-{TRACE}-{PARENT}-01")
        assert answer.status == 200
        final = await running.sink.settled()
    request, first, second = spans
    assert {span.trace_id for span in spans} == {TRACE}
    assert (request.parent_id, request.kind, request.name, request.error) == (PARENT, SpanKind.SERVER, "chat m", "")
    assert [(span.parent_id, span.kind, span.name) for span in (first, second)] == [(request.span_id, SpanKind.CLIENT, "chat m")] * 2
    assert (first.error, second.error) == ("upstream_error", "")
    assert request.attributes == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 2, "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "gen_ai.response.time_to_first_chunk": request.attributes["gen_ai.response.time_to_first_chunk"],
        "tollway.request.id": final.admit.request_id, "tollway.outcome": "completed", "tollway.organization.id": ORGANIZATION,
        "tollway.project.id": PROJECT, "tollway.key.id": final.admit.key_id,
    }  # fmt: skip
    assert second.attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "sim", "gen_ai.request.model": "m",
        "tollway.deployment.id": "dep-m-1", "tollway.attempt": 2,
    }  # fmt: skip
    assert [name for name, _ in second.events] == ["first token"] and not first.events
    assert request.start_us <= first.start_us <= first.end_us <= second.start_us <= second.end_us <= request.end_us
    for upstream, span in ((failing, first), (answering, second)):
        assert f"traceparent: 00-{TRACE}-{span.span_id}-01\r\n".encode() in upstream.asked[0].head


async def test_only_failed_and_slow_requests_are_kept_of_those_that_were_not_sampled() -> None:
    upstream = Upstream([whole(completion())], [whole({"error": "broken"}, status=500)])
    async with upstream.listening(), traced({"m": Served([upstream.url])}) as (running, spans):
        assert (await post(running.port, chat(), traceparent=f"00-{TRACE}-{PARENT}-00")).status == 200
        assert (await post(running.port, chat("unknown"))).status == 404
        assert spans == []
        assert (await post(running.port, chat())).status == 502
        assert [(span.error, span.name) for span in spans] == [("upstream_error", "chat m")] * 2
        assert b"-00\r\n" in upstream.asked[0].head and re.search(
            rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n", upstream.asked[1].head
        )


async def test_a_refusal_has_a_span_without_a_caller_and_no_trace_holds_a_secret_or_content() -> None:
    upstream = Upstream([whole(completion("the answer"))])
    async with upstream.listening(), traced({"m": Served([upstream.url])}, sample_ratio=1.0) as (running, spans):
        await post(running.port, chat(), key="tw_live_nobody")
        await post(running.port, chat())
    refused, answered = spans[0], spans[1]
    assert (refused.attributes["tollway.error_code"], refused.error, refused.parent_id) == ("invalid_api_key", "", "")
    assert refused.trace_id != answered.trace_id
    text = msgspec.msgpack.encode(spans)
    assert not any(secret in text for secret in (KEY.encode(), b"nobody", b"Say something", b"the answer"))


async def test_a_client_cannot_have_more_traces_kept_than_the_bound() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), traced({"m": Served([upstream.url])}, traces_per_second_max=0) as (running, spans):
        await post(running.port, chat(), traceparent=f"00-{TRACE}-{PARENT}-01")
        assert spans == [] and running.plane.tracer.sampler.suppressed == 1
    assert f"00-{TRACE}-".encode() in upstream.asked[0].head and b"-01\r\n" not in upstream.asked[0].head


async def test_kept_traces_are_the_examples_of_histograms_for_readers_of_open_metrics() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), traced({"m": Served([upstream.url])}, sample_ratio=1.0) as (running, spans):
        await post(running.port, chat())
        page = running.plane.metrics.render(is_open_metrics=True).decode()
        plain = running.plane.metrics.render().decode()
    line = next(line for line in page.splitlines() if "gen_ai_server_request_duration_seconds_bucket" in line and "#" in line)
    assert f'# {{trace_id="{spans[0].trace_id}"}} ' in line and page.endswith("# EOF\n")
    assert spans[0].trace_id not in plain


async def test_fallback_has_a_span_of_its_own_below_the_request_that_it_takes_the_place_of() -> None:
    failing, serving = Upstream([whole({"error": "broken"}, status=503)]), Upstream([whole(completion())])
    async with failing.listening(), serving.listening():
        models = {"m": Served([failing.url], fallbacks=("b",)), "b": Served([serving.url])}
        async with traced(models) as (running, spans):
            assert (await post(running.port, chat(), traceparent=f"00-{TRACE}-{PARENT}-01")).status == 200
    first, failed, following, answered = spans
    assert (first.parent_id, following.parent_id, first.trace_id) == (PARENT, first.span_id, following.trace_id)
    assert [(span.parent_id, span.error) for span in (failed, answered)] == [(first.span_id, "upstream_error"), (following.span_id, "")]
    assert (following.attributes["gen_ai.request.model"], len({span.span_id for span in spans})) == ("b", 4)


async def test_wait_in_the_queue_and_verdict_of_the_guardrail_have_spans_below_the_request() -> None:
    async def allow(document: bytes) -> bytes:
        return b'{"action":"allow"}'

    upstream = Upstream([Do.GATE, whole(completion())])
    async with (
        upstream.listening(),
        traced({"m": Served([upstream.url])}, QueueBounds(concurrency_max=1), sample_ratio=1.0) as (running, spans),
    ):
        running.plane.set_guardrails(Guardrails(GuardrailBounds(url="http://x"), allow))
        (model,) = (each for each in running.plane.directory.list_models() if each.id == "m")
        change(running, msgspec.structs.replace(model, guardrail=Guardrail.CLOSED, guardrail_stages=GuardrailStages.REQUEST))
        first, second = (asyncio.create_task(post(running.port, chat())) for _ in range(2))
        await until(lambda: running.plane.queues.count_waiting() == 1)
        upstream.gate.set()
        assert [(await each).status for each in (first, second)] == [200, 200]
    request, checked, waited, attempt = spans[-4:]
    assert [(span.name, span.kind, span.parent_id) for span in (checked, waited)] == [
        ("guardrail", SpanKind.CLIENT, request.span_id), ("queue", SpanKind.INTERNAL, request.span_id)
    ]  # fmt: skip
    assert request.start_us <= checked.start_us <= checked.end_us <= waited.start_us <= waited.end_us <= attempt.start_us
    assert [span.name for span in spans[:-4]] == ["chat m", "guardrail", "chat m"], "what does not wait has no span of a wait"


async def test_a_realtime_session_is_one_span_with_its_responses_below_and_the_engine_beside_them() -> None:
    engine = Engine()
    async with engine.listening(), traced({"m": Served([engine.url])}) as (running, spans):
        async with call(running, traceparent=f"00-{TRACE}-{PARENT}-01") as caller:
            for number in range(2):
                caller.say({**CREATE, "response": {"metadata": {"id": f"resp_{number}"}}})
                await caller.hear("response.done")
        final = await running.sink.settled(3)
        await until(lambda: len(spans) == 6)
    first, first_attempt, second, second_attempt, session, connected = spans
    assert {span.trace_id for span in spans} == {TRACE} and len({span.span_id for span in spans}) == 6
    assert (session.parent_id, session.kind, session.name, session.error) == (PARENT, SpanKind.SERVER, "realtime m", "")
    assert (connected.parent_id, connected.name, connected.kind) == (session.span_id, "realtime m", SpanKind.CLIENT)
    for span, attempt in ((first, first_attempt), (second, second_attempt)):
        assert (span.parent_id, span.kind, attempt.parent_id) == (session.span_id, SpanKind.INTERNAL, span.span_id)
        assert session.start_us <= span.start_us <= span.end_us <= session.end_us
        assert [name for name, _ in attempt.events] == ["first token"]
    assert first.attributes == {
        "gen_ai.operation.name": "realtime", "gen_ai.request.model": "m", "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 7, "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "gen_ai.response.time_to_first_chunk": first.attributes["gen_ai.response.time_to_first_chunk"],
        "tollway.request.id": running.sink.finals[0].admit.request_id, "tollway.outcome": "completed",
        "tollway.organization.id": ORGANIZATION, "tollway.project.id": PROJECT, "tollway.key.id": final.admit.key_id,
    }  # fmt: skip
    assert session.attributes == {
        "http.request.method": "GET", "http.route": "/v1/realtime", "http.response.status_code": 101,
        "gen_ai.operation.name": "realtime", "gen_ai.request.model": "m", "gen_ai.request.stream": True, "tollway.responses": 2,
        "tollway.request.id": first.attributes["tollway.request.id"],
        "tollway.organization.id": ORGANIZATION, "tollway.project.id": PROJECT, "tollway.key.id": final.admit.key_id,
    }  # fmt: skip
    assert f"traceparent: 00-{TRACE}-{connected.span_id}-01\r\n".encode() in engine.heads[0]


async def test_the_time_of_a_transcription_begins_with_its_first_text() -> None:
    said = [{"type": "transcription.delta", "delta": "Hel"}, {"type": "transcription.done", "text": "Hello"}]
    engine = Engine(lambda asked: said if asked["type"] == "input_audio_buffer.commit" else [])
    async with engine.listening(), traced({"m": Served([engine.url])}) as (running, spans):
        async with call(running) as caller:
            caller.say({"type": "session.update", "model": "m"})
            (session,) = running.plane.active.exchanges
            await until(lambda: session._ahead is not None)
            session._ahead.call.request.started -= 1_000
            caller.say({"type": "input_audio_buffer.commit", "final": True})
            await caller.hear("transcription.done")
        await running.sink.settled(2)
    assert spans == [], "it waited for sound, and was not slow"


async def test_of_a_realtime_session_that_was_not_sampled_what_failed_is_kept_and_what_was_never_used_is_not() -> None:
    engine, refusing = Engine(), Engine(refusal=b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
    async with engine.listening(), refusing.listening():
        models = {"m": Served([engine.url]), "broken": Served([refusing.url])}
        async with traced(models) as (running, spans):
            async with call(running) as caller:
                await caller.hear("session.created")
                (session,) = running.plane.active.exchanges
                session.call.request.started -= 1_000
            await running.sink.settled(1)
        assert spans == [], "a session is long, and the response that was admitted ahead was none"
        async with traced(models) as (running, spans):
            async with call(running, "/v1/realtime?model=broken") as caller:
                assert caller.status == 502
            async with call(running) as caller:
                await caller.hear("session.created")
                engine.writers[-1].transport.abort()
                await caller.end()
            await running.sink.settled(2)
            await until(lambda: len(spans) == 4)
    refused, attempt, session, connected = spans
    assert (refused.name, refused.error, refused.attributes["http.response.status_code"]) == ("realtime broken", "upstream_error", 502)
    assert (attempt.error, attempt.parent_id) == ("upstream_error", refused.span_id)
    assert session.error and session.attributes["http.response.status_code"] == 101
    assert (connected.parent_id, connected.error) == (session.span_id, "")


async def test_a_handshake_that_is_refused_before_a_response_is_admitted_is_counted_logged_and_traced_once() -> None:
    async with traced({}, sample_ratio=1.0) as (running, spans), call(running, key="tw_live_nobody") as caller:
        assert caller.status == 401
        assert running.plane.metrics.refusals == {"invalid_api_key": 1}
    (span,) = spans
    assert (span.attributes["tollway.error_code"], span.attributes["http.route"]) == ("invalid_api_key", "/v1/realtime")
