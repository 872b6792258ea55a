"""Limits as clients see them: headers on every answer, refusals that say what to do, and reservations that end with their request."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest

from tests.fakes import Clock, Do, Recorder, Script, Upstream, until
from tests.gateway.harness import (
    DONE,
    EMBEDDINGS,
    END,
    KEY,
    NOWHERE,
    PROJECT,
    STREAM_HEAD,
    Answer,
    Gateway,
    Served,
    chat,
    chunk,
    completion,
    connect,
    driven,
    gateway,
    message,
    part,
    plane,
    post,
    streamed,
    usage,
    usage_chunk,
    whole,
)
from tollway.domain.catalog import Endpoint
from tollway.domain.limits import LevelLimits, LimitLevel, Limits
from tollway.gateway import pipeline
from tollway.gateway.request import RequestHead, new_request
from tollway.native import FORM

TOKENS = Limits(tokens_per_minute=10_000, tokens_per_day=20_000, input_tokens_per_minute=9_000, requests_per_day=50, concurrent_requests=5)


async def standings(running: Gateway, key: str = KEY) -> list[dict[str, Any]]:
    """Return how the limits of a key stand, as it sees them itself."""
    async with connect(running.port) as client:
        client.send(f"GET /v1/limits HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n\r\n".encode())
        answer = await client.answer("GET")
    assert answer.status == 200 and answer.json()["object"] == "list"
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def dimension(running: Gateway, name: str) -> dict[str, Any]:
    (found,) = [each for each in await standings(running) if each["dimension"] == name]
    return found


def stream_of(input_tokens: int, output_tokens: int) -> Script:
    events = [part(chunk("a")), part(chunk(finish="stop")), part(usage_chunk(input_tokens, output_tokens)), part(DONE), END]
    return [STREAM_HEAD, *events]


async def test_tokens_are_reserved_while_a_request_runs_and_settled_on_its_usage_when_it_ended() -> None:
    upstream = Upstream([Do.GATE, whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=TOKENS) as running, connect(running.port) as client:
        client.send(message(chat(max_tokens=400, n=2)))
        await until(lambda: bool(upstream.asked))
        reserved = await dimension(running, "tokens_per_minute")
        assert reserved["used"] == 0 and 800 < reserved["reserved"] <= 900
        assert reserved["remaining"] == 10_000 - reserved["reserved"]
        assert (await dimension(running, "concurrent_requests"))["reserved"] == 1
        upstream.gate.set()
        answer = await client.answer()
        assert answer.headers["x-ratelimit-limit-tokens"] == "9000", "the limit with the least left"
        assert 8_900 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 9_000
        assert answer.headers["x-ratelimit-reset-tokens"].endswith("ms")
        assert (answer.headers["x-ratelimit-limit-requests"], answer.headers["x-ratelimit-remaining-requests"]) == ("50", "49")
        settled = await dimension(running, "tokens_per_minute")
        assert settled["reserved"] == 0 and 0 < settled["used"] <= 50
        assert (await dimension(running, "input_tokens_per_minute"))["used"] <= 20
        assert (await dimension(running, "requests_per_day"))["used"] == 1
        assert (await dimension(running, "concurrent_requests"))["remaining"] == 5


async def test_input_that_an_engine_counts_in_its_first_event_is_held_no_longer_than_that() -> None:
    begin, rest = [STREAM_HEAD, part(chunk("a", usage=usage(7, 1)))], [part(chunk(finish="stop")), part(usage_chunk(7, 3)), part(DONE), END]
    upstream = Upstream([*begin, Do.GATE, *rest])
    long = streamed(messages=[{"role": "user", "content": "word " * 400}], max_tokens=100)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=TOKENS) as running, connect(running.port) as client:
        client.send(message(long))
        await client.reader.readuntil(b"\r\n\r\n")
        assert (await dimension(running, "input_tokens_per_minute"))["reserved"] == 7, "500 and more were reserved"
        assert (await dimension(running, "tokens_per_day"))["reserved"] == 107
        upstream.gate.set()
        await running.sink.settled()
        await _check_released(running, 10)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_headers_of_limits_are_on_streams_and_on_failures_after_admission(path: str) -> None:
    upstream = Upstream([whole({"error": "x"}, 500)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=TOKENS) as running:
        failed = await post(running.port, chat(max_tokens=10), path)
        assert failed.status == 502
        assert failed.headers["x-ratelimit-limit-tokens"] == "9000" and failed.headers["x-ratelimit-limit-requests"] == "50"
        if path == "/v1/messages":
            assert failed.headers["anthropic-ratelimit-tokens-limit"] == "9000"
            assert failed.headers["anthropic-ratelimit-requests-remaining"] == failed.headers["x-ratelimit-remaining-requests"] == "49"
            soon, later = (datetime.fromisoformat(failed.headers[f"anthropic-ratelimit-{kind}-reset"]) for kind in ("tokens", "requests"))
            assert soon < later, "a minute against a day"
        else:
            assert not any(name.startswith("anthropic-") for name in failed.headers)
        upstream.scripts = (stream_of(5, 1),)
        begun = await post(running.port, streamed(max_tokens=10))
        assert begun.headers["x-ratelimit-limit-tokens"] == "9000"


ENDS: dict[str, tuple[Script, dict[str, Any], int]] = {
    "complete": ([whole(completion(prompt=7, completion=3))], chat(), 10),
    "stream": (stream_of(7, 3), streamed(), 10),
    "upstream fails": ([whole({"error": "x"}, 500)], chat(), 0),
    "upstream is cut": ([STREAM_HEAD, part(chunk("a", usage=usage(7, 1))), Do.FIN], streamed(), 8),
    "upstream refuses": ([whole({"error": {"message": "no", "code": 400}}, 400)], chat(), 0),
}


@pytest.mark.parametrize("ending", ENDS)
async def test_reservation_is_released_however_the_upstream_ends(ending: str) -> None:
    script, body, used = ENDS[ending]
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=TOKENS) as running:
        await post(running.port, {**body, "max_tokens": 100})
        await _check_released(running, used)


async def _check_released(running: Gateway, used: int | None) -> None:
    for each in await standings(running):
        assert each["reserved"] == 0, each
    tokens = await dimension(running, "tokens_per_day")
    if used is not None:
        assert max(used - 1, 0) <= tokens["used"] <= used, "a token drains in four seconds"


@pytest.mark.parametrize("body", [chat(max_tokens=100), streamed(max_tokens=100)], ids=["json", "stream"])
async def test_reservation_is_released_when_the_client_leaves(body: dict[str, Any]) -> None:
    upstream = Upstream([Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=TOKENS) as running:
        async with connect(running.port) as client:
            client.send(message(body))
            await until(lambda: bool(upstream.asked))
            client.vanish()
            await running.sink.settled()
        await _check_released(running, None)


async def test_reservation_is_released_when_nothing_serves_the_model_or_nothing_can_be_metered() -> None:
    async with gateway({"m": Served([NOWHERE])}, limits=TOKENS) as running:
        assert (await post(running.port, chat(max_tokens=100))).status in (502, 503)
        await _check_released(running, 0)
        running.sink.is_full = True
        assert (await post(running.port, chat(max_tokens=100))).error["code"] == "metering_unavailable"
        await _check_released(running, 0)


@pytest.mark.skipif(FORM == "compiled", reason="compiled code calls relay directly: no defect can be planted there")
async def test_reservation_is_released_when_the_gateway_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(pipeline, "relay", fail)
    recorder, clock = Recorder(), Clock()
    with plane({}, clock=clock, limits=TOKENS) as (made, _, _):
        head = RequestHead(Endpoint.CHAT_COMPLETIONS, {b"authorization": b"Bearer " + KEY.encode()})
        request = new_request("req_1", head, msgspec.json.encode(chat(max_tokens=100)), 0.0, clock.now_us())
        await driven(lambda driver: pipeline.answer(request, recorder, made, driver))
        assert recorder.status == 500
        owner = LevelLimits(LimitLevel.PROJECT, PROJECT, TOKENS)
        now_ns = time.monotonic_ns()
        found = made.counters.list_standings(made.counters.bind("", [owner], now_ns), now_ns)
        assert {each.dimension.name: each.held for each in found} == dict.fromkeys([each.dimension.name for each in found], 0)
        assert {each.dimension.name: each.used for each in found}["requests_per_day"] == 1


async def refused(limits: Limits, body: dict[str, Any], *, after: int = 0, path: str = "/v1/chat/completions") -> Answer:
    """The answer to a request that follows `after` others, each with 20 input and 30 output tokens."""
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=limits) as running:
        for _ in range(after):
            assert (await post(running.port, body, path)).status == 200
        return await post(running.port, body, path)


async def test_refusal_for_tokens_names_limit_level_size_and_wait() -> None:
    answer = await refused(Limits(tokens_per_minute=200), chat(max_tokens=120), after=1)
    assert answer.status == 200, "what the first did not use came back"
    answer = await refused(Limits(tokens_per_minute=200), chat(max_tokens=120), after=2)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (429, "rate_limit_exceeded", "tokens")
    text = answer.error["message"]
    assert text.startswith(f"Rate limit reached for tokens per minute of project {PROJECT}: limit 200, used 100, requested 1"), text
    assert 1 <= int(answer.headers["retry-after"]) <= 30 and int(answer.headers["retry-after-ms"]) <= 30_000
    assert answer.headers["x-ratelimit-limit-tokens"] == "200" and "x-should-retry" not in answer.headers


async def test_refusal_of_a_request_larger_than_the_limit_says_that_trying_again_cannot_help() -> None:
    answer = await refused(Limits(output_tokens_per_minute=100), chat(max_tokens=101))
    assert (answer.status, answer.error["type"]) == (429, "tokens")
    assert answer.headers["x-should-retry"] == "false" and "retry-after" not in answer.headers
    assert f"asks for 101 output tokens per minute, and the limit of project {PROJECT} is 100" in answer.error["message"]
    assert answer.headers["x-ratelimit-remaining-tokens"] == "100"


async def test_refusal_for_requests_counts_them_by_day_and_by_minute() -> None:
    answer = await refused(Limits(requests_per_day=2), chat(), after=2)
    assert (answer.status, answer.error["type"]) == (429, "requests")
    assert "requests per day" in answer.error["message"] and int(answer.headers["retry-after"]) > 40_000
    assert answer.headers["x-ratelimit-reset-requests"][:3] in ("23h", "24h")
    answer = await refused(Limits(requests_per_minute=2), chat(), after=2)
    assert "requests per minute" in answer.error["message"] and int(answer.headers["retry-after"]) <= 30


async def test_output_that_nothing_bounds_is_reserved_as_far_as_the_limit_allows() -> None:
    assert (await refused(Limits(tokens_per_minute=300), chat())).status == 200
    assert (await refused(Limits(output_tokens_per_minute=10), chat())).status == 200


async def test_embeddings_reserve_input_alone() -> None:
    upstream = Upstream([whole({"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 9, "total_tokens": 9}})])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=Limits(output_tokens_per_minute=1)) as running:
        assert (await post(running.port, {"model": "m", "input": "text"}, EMBEDDINGS)).status == 200
        assert (await dimension(running, "output_tokens_per_minute"))["used"] == 0


async def test_input_estimate_follows_what_a_callers_requests_had() -> None:
    dense = {"model": "m", "messages": [{"role": "user", "content": "x" * 4000}], "max_tokens": 1}
    upstream = Upstream([whole(completion(prompt=4000, completion=1))], [Do.GATE, whole(completion(prompt=400, completion=1))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=Limits(input_tokens_per_day=100_000)) as running:
        await post(running.port, dense)
        async with connect(running.port) as client:
            client.send(message(dense))
            await until(lambda: len(upstream.asked) == 2)
            assert 4000 <= (await dimension(running, "input_tokens_per_day"))["reserved"] <= 4100
            upstream.gate.set()
            await client.answer()


async def test_concurrency_refusal_says_to_come_back_when_a_request_is_likely_to_have_ended() -> None:
    upstream = Upstream([whole(completion())], [Do.GATE, whole(completion())])
    limits = Limits(concurrent_requests=1)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=limits) as running, connect(running.port) as client:
        await post(running.port, chat())
        client.send(message(chat()))
        await until(lambda: len(upstream.asked) == 2)
        busy = await post(running.port, chat())
        assert busy.status == 429 and busy.error["message"].startswith(
            f"Too many concurrent requests: project {PROJECT} may run 1 at a time."
        )
        assert 50 <= int(busy.headers["retry-after-ms"]) < 1000, "the requests of this model take milliseconds"
        upstream.gate.set()
        await client.answer()


async def test_limits_page_names_the_level_that_binds_and_needs_a_key() -> None:
    upstream = Upstream([whole(completion(prompt=20, completion=30))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=TOKENS) as running:
        await post(running.port, chat())
        found = await standings(running)
        assert [each["dimension"] for each in found] == [
            "concurrent_requests", "tokens_per_minute", "input_tokens_per_minute", "requests_per_day", "tokens_per_day",
        ]  # fmt: skip
        assert all(each["binds"] and each["level"] == "project" and each["id"] == PROJECT and each["model"] is None for each in found)
        assert 86_300 * 2 // 100 < found[3]["reset_seconds"] <= 1728
        async with connect(running.port) as client:
            client.send(b"GET /v1/limits HTTP/1.1\r\nhost: gateway\r\n\r\n")
            assert (await client.answer("GET")).status == 401
            client.send(message(b"", "/v1/limits"))
            assert (await client.answer()).status == 405


@pytest.mark.parametrize(
    ("path", "naming"),
    [
        ("/v1/chat/completions", lambda name: {"user": name}),
        ("/v1/chat/completions", lambda name: {"safety_identifier": name, "user": "everybody"}),
        ("/v1/responses", lambda name: {"safety_identifier": name}),
        ("/v1/messages", lambda name: {"metadata": {"user_id": name}}),
        ("/v1/embeddings", lambda name: {"user": name}),
    ],
)
async def test_each_end_user_has_the_limits_of_its_project(path: str, naming: Callable[[str], dict[str, Any]]) -> None:
    bodies = {
        "/v1/responses": {"model": "m", "input": "hi"},
        "/v1/embeddings": {"model": "m", "input": "hi"},
        "/v1/messages": chat(max_tokens=9),
    }
    body = bodies.get(path, chat())
    upstream = Upstream([whole({"error": "x"}, 500)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, end_user_limits=Limits(requests_per_minute=1)) as running:
        assert (await post(running.port, {**body, **naming("ann@example.org")}, path)).status == 502
        refused = await post(running.port, {**body, **naming("ann@example.org")}, path)
        assert refused.status == 429 and refused.headers["x-ratelimit-limit-requests"] == "1" and "retry-after-ms" in refused.headers
        text = refused.json()["error"]["message"]
        assert "requests per minute of end user " in text and f" of project {PROJECT}" in text and "ann" not in text
        assert (await post(running.port, {**body, **naming("bob@example.org")}, path)).status == 502
        for _ in range(2):
            assert (await post(running.port, body, path)).status == 502, "whoever names no end user is not counted at this level"
