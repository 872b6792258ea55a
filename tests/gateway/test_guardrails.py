"""Guardrails: what is checked, what a denial and an outage mean for client and bill, and that nothing is sent before its verdict."""

import asyncio
import importlib.util
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from tests.fakes import Asked, Do, Script, Upstream, until
from tests.gateway.harness import (
    DONE,
    KEY,
    OTHER_KEY,
    STREAM_HEAD,
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
    usage_chunk,
    whole,
)
from tests.gateway.test_test_keys import change
from tollway.domain.catalog import Guardrail, GuardrailStages
from tollway.domain.usage import Outcome, billed
from tollway.gateway.buffers import BufferBounds
from tollway.gateway.guardrails import DOCUMENT_COPIES, GuardrailBounds, Guardrails, list_events
from tollway.gateway.response_cache import CacheBounds, ResponseCache
from tollway.link.guardrail_requests import ANSWER_BYTES_MAX, GuardrailRequests

EXAMPLE = Path(__file__).parents[2] / "docs" / "guardrail_example.py"
ALLOW: Script = [whole({"action": "allow"})]
DENY: Script = [whole({"action": "deny", "reason": "No\nsuch words."})]


@asynccontextmanager
async def guarded(
    engine: Upstream,
    url: str | None,
    mode: Guardrail = Guardrail.CLOSED,
    stages: GuardrailStages = GuardrailStages.BOTH,
    token: str | None = None,
    **bounds: Any,
) -> AsyncIterator[Gateway]:
    """A gateway whose model is checked by the service at `url`; None for a gateway without one."""
    async with engine.listening(), gateway({"m": Served([engine.url])}) as running:
        if url is not None:
            limits = GuardrailBounds(url=url, **{"window_bytes": 1024, "window_seconds": 30.0, **bounds})
            requests = GuardrailRequests(url=url, token=token, timeout_seconds=limits.timeout_seconds)
            running.plane.set_guardrails(Guardrails(limits, requests.ask))
        (model,) = (each for each in running.plane.directory.list_models() if each.id == "m")
        change(running, msgspec.structs.replace(model, guardrail=mode, guardrail_stages=stages))
        yield running
        if url is not None:
            await requests.close()


@contextmanager
def example(*words: str) -> Iterator[str]:
    """The service of the documentation, as it is shipped. Yields its URL."""
    spec = importlib.util.spec_from_file_location("guardrail_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.serve(0, list(words))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/check"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def by_stage(**scripts: Script) -> Callable[[Asked], Script]:
    """A service that answers each stage with its script, and allows the others."""
    return lambda asked: scripts.get(msgspec.json.decode(asked.body)["stage"], ALLOW)


async def test_documented_service_checks_requests_answers_and_streams_of_an_sdk() -> None:
    engine = Upstream(
        [whole(completion("a fine answer"))],
        [whole(completion("the secret-word"))],
        healthy(*["fine "] * 3),
        healthy("the sec", "ret-", "word"),
    )
    with example("secret-word") as url:
        async with guarded(engine, url) as running, openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
            asked = chat()
            answer = await client.chat.completions.create(**asked)
            assert answer.choices[0].message.content == "a fine answer"
            for content, used in (("say secret-word", 0), ("hello", 2)):
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": content}])
                assert refused.value.code == "content_policy_violation" and "forbidden word" in refused.value.message
                assert bool(used) is (len(engine.asked) == 2), "a denied request reaches no engine"
            stream = await client.chat.completions.create(**asked, stream=True)
            assert "".join([each.choices[0].delta.content or "" async for each in stream]) == "fine fine fine "
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(**asked, stream=True)
            assert refused.value.code == "content_policy_violation"
            await running.sink.settled(4)
            assert [(each.outcome, each.error) for each in running.sink.finals] == [
                (Outcome.COMPLETED, None),
                (Outcome.CLIENT_CANCELLED, "content_policy_violation"),
                (Outcome.COMPLETED, None),
                (Outcome.CLIENT_CANCELLED, "content_policy_violation"),
            ]
            denied = running.sink.finals[1]
            assert (denied.used.input, denied.used.output) == (5, 2) and billed(denied).output == 2, "what was generated is billed"
            assert billed(denied).request == 0
            assert running.plane.guardrails.verdicts[("request", "denied")] == 1
            text = running.plane.metrics.render().decode()
            assert 'tollway_guardrail_verdicts_total{result="denied",stage="stream"} 1.0' in text
        running.log.close()
        assert b"secret-word" not in running.log.text and b'"guardrail_ms":' in running.log.text


async def test_documents_name_the_request_and_hold_what_the_contract_says() -> None:
    service = Upstream(ALLOW)
    long = [STREAM_HEAD, part(chunk("a" * 1200)), Do.GATE, *healthy("b", "c")[1:]]
    engine = Upstream([whole(completion("Hello"))], long)
    async with service.listening(), guarded(engine, f"{service.url}/v1", token="t0ken") as running, connect(running.port) as client:
        first = await post(running.port, chat())
        client.send(message(streamed()))
        while len(service.asked) < 4:  # a request, an answer, a request, a window
            await asyncio.sleep(0.001)
        engine.gate.set()
        answer = await client.answer()
        assert answer.text == "a" * 1200 + "bc" and answer.events()[-1] == "[DONE]"
    documents = [msgspec.json.decode(each.body) for each in service.asked]
    assert b"authorization: bearer t0ken" in service.asked[0].head.lower() and service.asked[0].head.startswith(b"POST /v1 ")
    request, response, _, *windows = documents
    assert request["stage"] == "request" and request["request"] == chat() and request["version"] == 1
    assert response["request_id"] == request["request_id"] == first.headers["x-request-id"]
    assert response["response"] == first.json() and request["endpoint"] == "chat/completions"
    assert [each["window"] for each in windows] == list(range(len(windows))) and len(windows) >= 2
    assert [each["is_last"] for each in windows] == [False] * (len(windows) - 1) + [True]
    assert [each["previous_events"] for each in windows[1:]] == [each["events"] for each in windows[:-1]]
    texts = [event["choices"][0]["delta"].get("content", "") for each in windows for event in each["events"] if event["choices"]]
    assert "".join(texts) == answer.text


async def test_nothing_of_a_window_is_sent_before_its_verdict_and_a_denial_in_mid_stream_is_an_error_event() -> None:
    verdicts = iter([ALLOW, ALLOW, [Do.GATE, *DENY]])
    service = Upstream(lambda _: next(verdicts))
    engine = Upstream([STREAM_HEAD, part(chunk("first" * 300)), Do.GATE, part(chunk("second" * 300)), part(chunk("third")), Do.HOLD])
    async with service.listening(), guarded(engine, service.url) as running, connect(running.port) as client:
        client.send(message(streamed()))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        first = await client.reader.readuntil(b"}]}\n\n\r\n")
        assert b"first" in first
        engine.gate.set()
        while len(service.asked) < 3:
            await asyncio.sleep(0.001)
        service.gate.set()
        rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert b"second" not in rest and b"content_policy_violation" in rest and b"No such" not in rest and b"Nosuch words." in rest
        final = await running.sink.settled()
        assert (final.outcome, final.error) == (Outcome.CLIENT_CANCELLED, "content_policy_violation")
        assert final.used.output >= 2, "what was generated, not what was delivered"
        await engine.asked[0].left.wait()


FAILURES: dict[str, Script] = {
    "status": [whole({"action": "allow"}, status=500)],
    "redirect": [whole({"action": "allow"}, status=302, headers=b"location: http://127.0.0.1:1/\r\n")],
    "no JSON": [whole(b"allow")],
    "another action": [whole({"action": "perhaps"})],
    "too long": [whole({"action": "allow", "reason": "x" * ANSWER_BYTES_MAX})],
    "cut": [Do.FIN],
    "silent": [Do.HOLD],
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_service_that_does_not_answer_closes_or_opens_by_the_model(failure: str) -> None:
    for mode in (Guardrail.CLOSED, Guardrail.OPEN):
        service = Upstream(FAILURES[failure])
        async with (
            service.listening(),
            guarded(Upstream([whole(completion())]), service.url, mode, GuardrailStages.REQUEST, timeout_seconds=0.2) as running,
        ):
            answer = await post(running.port, chat())
            if mode is Guardrail.OPEN:
                assert answer.status == 200
            else:
                assert answer.status == 503 and answer.error["code"] == "guardrail_unavailable" and answer.headers["retry-after"]
                assert running.sink.admits == []
            assert running.plane.guardrails.verdicts == {("request", "failed"): 1}


@pytest.mark.parametrize("mode", [Guardrail.CLOSED, Guardrail.OPEN])
async def test_error_that_nothing_expects_in_the_check_of_a_window_is_no_verdict(mode: Guardrail) -> None:
    async def fail(document: bytes) -> bytes:
        raise ValueError("planted")

    async with guarded(Upstream(healthy("Hel", "lo")), None, mode, GuardrailStages.RESPONSE) as running:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        running.plane.set_guardrails(Guardrails(GuardrailBounds(url="http://x"), fail))
        answer = await post(running.port, chat(stream=True))
        if mode is Guardrail.OPEN:
            assert answer.status == 200 and answer.body.endswith(DONE)
        else:
            assert answer.error["code"] == "guardrail_unavailable"
        assert [str(each["exception"]) for each in reported] == ["planted"]


async def test_answer_that_cannot_be_checked_is_not_billed_where_nothing_of_it_was_sent() -> None:
    service = Upstream(by_stage(response=[Do.FIN], stream=[Do.FIN]))
    engine = Upstream([whole(completion())], healthy("Hello"))
    async with service.listening(), guarded(engine, service.url) as running:
        for body in (chat(), streamed()):
            answer = await post(running.port, body)
            assert answer.status == 503 and answer.error["code"] == "guardrail_unavailable"
        await running.sink.settled(2)
        for final in running.sink.finals:
            assert (final.outcome, final.error) == (Outcome.UPSTREAM_ERROR, "guardrail_unavailable")
            assert billed(final).output == 0


@pytest.mark.parametrize(("mode", "status"), [(Guardrail.CLOSED, 413), (Guardrail.OPEN, 200)])
async def test_request_beyond_the_bound_is_not_asked_about(mode: Guardrail, status: int) -> None:
    service = Upstream(ALLOW)
    async with (
        service.listening(),
        guarded(Upstream([whole(completion())]), service.url, mode, GuardrailStages.REQUEST, document_bytes_max=1024) as running,
    ):
        answer = await post(running.port, chat(user="x" * 2000))
        assert answer.status == status and service.asked == []
        assert status == 200 or answer.error["code"] == "content_too_long_to_check"


async def test_model_that_is_closed_refuses_where_its_gateway_has_no_guardrail() -> None:
    async with guarded(Upstream([whole(completion())]), None) as running:
        assert (await post(running.port, chat())).error["code"] == "guardrail_unavailable"


async def test_client_that_leaves_ends_the_check_and_pays_for_what_was_generated() -> None:
    service = Upstream(by_stage(stream=[Do.HOLD]))
    engine = Upstream([STREAM_HEAD, part(chunk("word" * 300)), part(usage_chunk(5, 3)), Do.HOLD])
    async with service.listening(), guarded(engine, service.url) as running:
        async with connect(running.port) as client:
            client.send(message(streamed()))
            while len(service.asked) < 2:
                await asyncio.sleep(0.001)
            client.vanish()
            final = await running.sink.settled()
        assert final.outcome is Outcome.CLIENT_CANCELLED and final.used.output
        await service.asked[1].left.wait()


async def test_engine_is_read_no_further_than_two_windows_while_one_is_checked() -> None:
    service = Upstream(by_stage(stream=[Do.GATE, *ALLOW]))
    words = ["w" * 2_000] * 50
    engine = Upstream(
        [STREAM_HEAD, *[part(chunk(word)) for word in words], part(chunk(finish="stop")), part(usage_chunk(5, 50)), part(DONE)]
    )
    async with service.listening(), guarded(engine, service.url, timeout_seconds=20.0) as running, connect(running.port) as client:
        client.send(message(streamed()))
        while len(service.asked) < 2:
            await asyncio.sleep(0.001)
        (exchange,) = running.plane.active.exchanges
        while not exchange.connection.paused:
            await asyncio.sleep(0.001)
        service.gate.set()
        answer = await client.answer()
        assert answer.text == "".join(words)


async def test_stored_answer_is_given_again_without_a_second_check() -> None:
    service = Upstream(ALLOW)
    async with service.listening(), guarded(Upstream(healthy("Hello")), service.url) as running:
        running.plane.response_cache = ResponseCache(CacheBounds())
        (model,) = (each for each in running.plane.directory.list_models() if each.id == "m")
        change(running, msgspec.structs.replace(model, response_cache_seconds=60))
        answers = [await post(running.port, streamed(), key=key, cache_control="max-age=60") for key in (KEY, OTHER_KEY)]
        asked = len(service.asked)
        assert [each.headers["x-tollway-cache"] for each in answers] == ["miss", "hit"] and asked == 2
        assert answers[0].events() == answers[1].events()


async def test_summary_of_a_compaction_is_checked_as_text_though_the_client_gets_it_encoded() -> None:
    engine = Upstream([whole(completion("the secret-word"))])
    with example("secret-word") as url:
        async with guarded(engine, url) as running:
            answer = await post(running.port, {"model": "m", "input": "hello"}, "/v1/responses/compact")
            assert (answer.status, answer.error["code"]) == (400, "content_policy_violation")
            assert len(engine.asked) == 1


async def test_address_of_a_cloud_s_metadata_gets_no_byte() -> None:
    requests = GuardrailRequests(url="http://0.0.0.0:9/", token="secret", timeout_seconds=1.0)
    assert await requests.ask(b"{}") is None
    await requests.close()
    for url in ("file:///etc/passwd", "http://user@host/", "http://host/?query", "host"):
        with pytest.raises(ValueError, match="url must be"):
            GuardrailBounds(url=url)


def test_events_are_the_json_of_their_data() -> None:
    stream = b'event: a\ndata: {"a":1}\n\n: comment\n\ndata: [DONE]\n\ndata: {"b":2}\n\n'
    assert [bytes(each) for each in list_events(stream)] == [b'{"a":1}', b'{"b":2}']


async def test_105_copies_for_the_guardrail_count_in_the_budget_of_the_key_and_beyond_it_nothing_is_copied() -> None:
    service = Upstream([Do.GATE, *ALLOW])
    body = msgspec.json.encode(chat() | {"messages": [{"role": "user", "content": "a" * 200_000}]})
    async with service.listening(), guarded(Upstream([whole(completion())]), service.url) as running, connect(running.port) as client:
        client.send(message(body))
        await until(lambda: len(service.asked) == 1)
        assert running.plane.buffers.total == (1 + DOCUMENT_COPIES) * len(body)
        service.gate.set()
        assert (await client.answer()).status == 200
        await until(lambda: running.plane.buffers.total == 0)
        running.plane.buffers.bounds = BufferBounds(key_bytes_max=2 * len(body) - 1)
        client.send(message(body, key=OTHER_KEY))
        refused = await client.answer()
        assert (refused.status, refused.error["code"]) == (413, "body_too_large"), "its copies alone are more than a key may have"
        assert len(service.asked) == 2 and running.plane.buffers.total == 0
