"""Streams, attempt by attempt, against engines that answer with scripted bytes.

What must hold in every case: a stream ends with [DONE] only if the engine's own was seen and FINAL is durable; any other end is an
error event or an error answer; exactly one FINAL; nothing is retried after the status line left.
"""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes import Clock, Do, Recorder, Script, Step, Upstream, until
from tests.gateway import certificates
from tests.gateway.harness import (
    DONE,
    EMBEDDINGS,
    END,
    KEY,
    STREAM_HEAD,
    Answer,
    Gateway,
    Served,
    chat,
    chunk,
    completion,
    connect,
    driven,
    event,
    gateway,
    healthy,
    message,
    part,
    plane,
    post,
    streamed,
    usage,
    usage_chunk,
    whole,
)
from tests.patience import PATIENCE_SECONDS
from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.faults import Fault
from tollway.domain.usage import Final, Outcome, UsageSource
from tollway.gateway import pipeline
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.relay import RelayBounds
from tollway.gateway.request import RequestHead, new_request
from tollway.wire.progress_slots import OUTPUT_WORD, SLOT_WORDS

SECOND = healthy("second")
ERROR = {"error": {"message": "secret sk-123 at http://10.0.0.1", "type": "x", "code": 500}}


def first_event(*more: Any) -> Script:
    """A stream that was committed to for sure: the rest of the script waits for the gate."""
    return [STREAM_HEAD, part(chunk("a")), Do.GATE, *more]


async def ask(script: Script, body: Any = None, **served: Any) -> tuple[Answer, Final, Gateway]:
    """The answer to a stream asked of one upstream that plays `script`, and how it was recorded."""
    upstream = Upstream(script)
    upstream.gate.set()
    async with upstream.listening(), gateway({"m": Served([upstream.url], **served)}) as running:
        answer = await post(running.port, body or streamed())
        return answer, await running.sink.settled(), running


def error_code(answer: Answer) -> str:
    """The code of the error that an answer is or ends with; fails if it looks like a success."""
    assert b"[DONE]" not in answer.body
    assert answer.ended == "complete", "the gateway lived on, so it must have told the client in band"
    if answer.status == 200:
        answer = Answer(0, {}, msgspec.json.encode(answer.events()[-1]))
    return str(answer.error["code"])


# The end of a stream


async def test_a_whole_stream_ends_with_done_and_one_record() -> None:
    answer, final, _ = await ask(healthy("Hello", " world"))
    assert answer.text == "Hello world" and answer.events()[-1] == "[DONE]"
    assert (final.outcome, final.source, final.used) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL, Quantities(input=5, output=2))
    assert final.attempts == 1 and final.deployment_id == "dep-m-0" and final.first_token_at is not None


BROKEN: dict[str, tuple[Script, str]] = {
    "cut-by-reset": ([part(chunk("b")), Do.RST], "upstream_cut"),
    "cut-by-end-of-connection": ([part(chunk("b")), Do.FIN], "upstream_cut"),
    "clean-end-without-done": ([part(chunk("b", finish="stop")), END], "upstream_cut"),
    "done-without-its-blank-line": ([b"d\r\ndata: [DONE]\n\r\n", END], "upstream_cut"),
    "error-event": ([part(ERROR), part(DONE), END], "upstream_error"),
    "error-event-and-done-at-once": ([part(chunk("b"), ERROR, DONE), END], "upstream_error"),
    "flat-error": ([part({"object": "error", "message": "m", "code": 503}), part(DONE), END], "upstream_error"),
    "flat-error-without-a-mark": ([part({"message": "m", "type": "Internal", "code": 503}), part(DONE), END], "upstream_error"),
    "named-error": ([part(b'event: error\ndata: {"text": "m"}\n\n'), part(DONE), END], "upstream_error"),
    "named-error-without-data": ([part(b"event: error\n: no worker is left\n\n"), part(DONE), END], "upstream_error"),
    "odd-error": ([part({"error": {"message": ["m"], "code": [503]}}), part(DONE), END], "upstream_error"),
    "string-error": ([part({"error": "boom"}), part(DONE), END], "upstream_error"),
    "error-beside-choices": ([part(chunk("b") | ERROR), part(DONE), END], "upstream_error"),
    "abort": ([part(chunk("", finish="abort")), part(DONE), END], "upstream_error"),
    "half-an-event": ([part(b'data: {"choices":[\n\n'), part(DONE), END], "upstream_invalid"),
    "not-json": ([part(b"data: hello\n\n"), part(DONE), END], "upstream_invalid"),
    "nested-beyond-reason": ([part(b'data: {"choices":' + b"[" * 20_000 + b"]" * 20_000 + b"}\n\n"), END], "upstream_invalid"),
    "invalid-utf-8": ([part(event(chunk("X")).replace(b"X", b"\xff\xfe")), part(DONE), END], "upstream_invalid"),
    "invalid-utf-8-with-running-usage": (
        [part(chunk("b", usage=usage(5, 1))) + part(event(chunk("X", usage=usage(5, 2))).replace(b"X", b"\xff\xfe")), part(DONE), END],
        "upstream_invalid",
    ),
    "bad-chunk": ([b"xyz\r\n", Do.HOLD], "upstream_cut"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
async def test_a_stream_broken_after_the_first_event_ends_with_an_error_event(case: str) -> None:
    script, code = BROKEN[case]
    second = Upstream(SECOND)
    upstream = Upstream(first_event(*script))
    async with upstream.listening(), second.listening(), gateway({"m": Served([upstream.url, second.url])}) as running:
        async with connect(running.port) as client:
            client.send(message(streamed()))
            await client.reader.readuntil(b'"a"')
            upstream.gate.set()
            rest = await client.reader.readuntil(b"0\r\n\r\n")
            assert b"sk-123" not in rest and b"10.0.0.1" not in rest and b"[DONE]" not in rest
            last = rest.split(b"data: ")[-1].partition(b"\n")[0]
            assert msgspec.json.decode(last)["error"]["code"] == code
            client.send(message(chat("absent")))
            assert (await client.answer()).status == 404, "the connection lives on"
        final = await running.sink.settled()
        assert (final.outcome, final.error, final.attempts) == (Outcome.UPSTREAM_ERROR, code, 1)
        assert not second.asked, "never retried after the status line left"


@pytest.mark.parametrize("case", BROKEN)
async def test_a_stream_broken_before_anything_was_sent_is_asked_elsewhere(case: str) -> None:
    script, _ = BROKEN[case]
    second = Upstream(SECOND)
    broken = [step for step in script if step != Do.HOLD]
    data = b"".join(step for step in broken if isinstance(step, bytes))
    steps: list[Step] = [step for step in broken if isinstance(step, Do)] or [Do.HOLD]
    upstream = Upstream([STREAM_HEAD + data, *steps])
    async with upstream.listening(), second.listening(), gateway({"m": Served([upstream.url, second.url])}) as running:
        answer = await post(running.port, streamed())
        if answer.text == "second":
            final = await running.sink.settled()
            assert (final.outcome, final.attempts, final.used) == (Outcome.COMPLETED, 2, Quantities(input=5, output=1))
        else:
            assert error_code(answer)  # its first event came in a read of its own, and was committed to


# Retries

EARLY: dict[str, tuple[Script, int, str, bool]] = {
    "reset": ([Do.RST], 502, "upstream_error", True),
    "closed": ([Do.FIN], 502, "upstream_error", True),
    "not-http": ([b"220 smtp ready\r\n", Do.HOLD], 502, "upstream_invalid", True),
    "status-500": ([whole(ERROR, 500)], 502, "upstream_error", True),
    "status-500-flat": ([whole({"message": "m", "code": 500}, 500)], 502, "upstream_error", True),
    "status-500-html": ([whole(b"<html>", 500)], 502, "upstream_error", True),
    "status-500-empty": ([whole(b"", 500)], 502, "upstream_error", True),
    "status-503": ([whole(ERROR, 503)], 502, "upstream_error", True),
    "status-429": ([whole(b"slow down", 429, b"retry-after: 1\r\n")], 503, "upstream_rate_limited", True),
    "status-401": ([whole(ERROR, 401)], 502, "upstream_error", True),
    "status-404": ([whole(ERROR, 404)], 502, "upstream_error", True),
    "64-redirect": ([whole(b"", 307, b"location: http://evil/\r\n")], 502, "upstream_invalid", True),
    "64-switching-protocols": ([b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", Do.HOLD], 502, "upstream_invalid", True),
    "64-flood-of-interim-answers": ([b"HTTP/1.1 103 X\r\na: b\r\n\r\n" * 10_000, Do.HOLD], 502, "upstream_invalid", True),
    "64-head-without-end": ([b"HTTP/1.1 200 X\r\n", b"x: y\r\n" * 200_000, Do.HOLD], 502, "upstream_invalid", True),
    "64-html": ([whole(b"<html>")], 502, "upstream_invalid", True),
    "64-gzip": ([whole(b"\x1f\x8b\x08", 200, b"content-encoding: gzip\r\n")], 502, "upstream_invalid", True),
    "64-no-content": ([b"HTTP/1.1 204 X\r\n\r\n"], 502, "upstream_error", True),
    "64-another-answer-behind": ([whole(completion()) + whole(completion("evil"))[:-9]], 502, "upstream_invalid", True),
    "64-length-too-short": ([whole(completion()) + b"}"], 502, "upstream_invalid", True),
    "64-length-too-long": ([whole(completion()).replace(b"content-length: ", b"content-length: 1"), Do.FIN], 502, "upstream_cut", True),
    "error-in-a-200": ([whole(ERROR)], 502, "upstream_error", True),
    "busy-in-a-200": ([whole({"error": {"message": "full", "code": 503}})], 503, "upstream_error", True),
    "status-400": ([whole({"error": {"message": "bad temperature", "code": 400}}, 400)], 400, "invalid_request", False),
    "status-400-context": (
        [whole({"message": "This model's maximum context length is 10 tokens."}, 400)], 400, "context_length_exceeded", False,
    ),
    "66-status-400-with-our-credential": ([whole({"message": "bad: Bearer sk-1"}, 400)], 400, "invalid_request", False),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", EARLY)
async def test_a_fault_before_the_answer_is_asked_elsewhere_or_told(case: str, stream: bool) -> None:
    script, status, code, retried = EARLY[case]
    body = chat(stream=stream)
    upstream, second = Upstream(script), Upstream(SECOND if stream else [whole(completion("second"))])
    async with upstream.listening(), second.listening():
        models = {"m": Served([upstream.url, second.url]), "alone": Served([upstream.url])}
        async with gateway(models) as running:
            answer = await post(running.port, body)
            alone = await post(running.port, body | {"model": "alone"})
            final = await running.sink.settled(2)
    if retried:
        assert answer.status == 200 and b"second" in answer.body
        assert running.sink.finals[0].attempts == 2 and running.sink.finals[0].outcome is Outcome.COMPLETED
    else:
        assert answer.status == status
    assert (alone.status, error_code(alone)) == (status, code)
    assert final.outcome is Outcome.UPSTREAM_ERROR and final.error == code and final.used == Quantities()
    assert b"sk-" not in alone.body and b"10.0.0.1" not in alone.body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("said", "told"),
    [(b"7", "7"), (b"999999999999", "60"), (b"soon", "1"), (b"-1", "1"), (b"Sun, 22 Nov 2026", "1"), (None, "1")],
)
async def test_an_overload_says_when_to_come_back(said: bytes | None, told: str, stream: bool) -> None:
    head = b"" if said is None else b"retry-after: " + said + b"\r\n"
    upstream = Upstream([whole({"error": {"message": "full", "code": 503}}, 503, head)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        answer = await post(running.port, chat(stream=stream))
    assert (answer.status, answer.headers["retry-after"]) == (503, told)


async def test_64_tls_to_a_server_that_speaks_none() -> None:
    second = Upstream(SECOND)
    async with second.listening(), Upstream([Do.FIN]).listening() as plain:
        served = Served([plain.url.replace("http:", "https:"), second.url])
        async with gateway({"m": served}, bounds=RelayBounds(connect_seconds=1.0)) as running:
            assert (await post(running.port, streamed())).text == "second"


@pytest.mark.parametrize(
    ("name", "days", "is_trusted", "is_served"),
    [("localhost", 1, True, True), ("elsewhere", 1, True, False), ("localhost", -1, True, False), ("localhost", 1, False, False)],
    ids=["right", "other-name", "expired", "untrusted"],
)
async def test_64_an_upstream_must_be_who_its_address_says(
    name: str, days: int, is_trusted: bool, is_served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificates.make(tmp_path / "its", name, days=days)
    trusted = files if is_trusted else certificates.make(tmp_path / "others", name)
    monkeypatch.setenv("SSL_CERT_FILE", trusted[0])  # what the machine trusts
    upstream = Upstream([whole(completion())])
    async with upstream.listening(certificates.server_side(files)), gateway({"m": Served([upstream.url], credential=b"sk-1")}) as running:
        answer = await post(running.port, chat())
        await running.sink.settled()
    if is_served:
        assert answer.status == 200
    else:
        assert (answer.status, error_code(answer)) == (502, "upstream_unreachable")
        assert not upstream.asked, "neither body nor credential may reach another server"


async def test_what_an_engine_may_have_begun_is_repeated_only_if_the_model_allows_it() -> None:
    upstream, second = Upstream([Do.RST]), Upstream(SECOND)
    async with upstream.listening(), second.listening():
        models = {
            "m": Served([upstream.url, second.url], retry_started=False),
            "gone": Served(["http://127.0.0.1:9", second.url], retry_started=False),
        }
        async with gateway(models) as running:
            assert error_code(await post(running.port, streamed())) == "upstream_error"
            assert not second.asked
            assert (await post(running.port, streamed("gone"))).text == "second", "a connection that was refused began nothing"


async def test_retries_have_a_budget_and_stale_connections_do_not_need_it() -> None:
    first, second = Upstream([Do.RST]), Upstream([Do.RST])
    async with first.listening(), second.listening(), gateway({"m": Served([first.url, second.url])}) as running:
        for _ in range(60):
            assert error_code(await post(running.port, streamed())) == "upstream_error"
        retries = running.plane.metrics.retries
        assert retries in (21, 22), "a reserve of ten, and a fifth of the requests"
        assert len(first.asked) + len(second.asked) == 60 + retries
    stale = Upstream(healthy("a"), [Do.RST], healthy("b"))
    async with stale.listening(), gateway({"m": Served([stale.url])}) as running:
        running.plane.retries._tokens = 0.0
        assert (await post(running.port, streamed())).text == "a"
        assert (await post(running.port, streamed())).text == "b"
        assert stale.connections == 2 and len(stale.asked) == 3
        final = await running.sink.settled(2)
        assert final.attempts == 2
        ids = [asked.head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0] for asked in stale.asked]
        assert len(set(ids)) == 3, "engines take a repeated id for the same request"


async def test_a_408_on_a_used_connection_is_taken_for_a_stale_one() -> None:
    closing = [whole(b"", 408, b"connection: close\r\n"), Do.FIN]
    upstream = Upstream([whole(completion())], closing, [whole(completion("again"))], closing)
    async with upstream.listening(), gateway({"m": Served([upstream.url], retry_started=False)}) as running:
        assert (await post(running.port, chat())).status == 200
        answer = await post(running.port, chat())
        assert answer.status == 200 and b"again" in answer.body
        assert running.plane.metrics.ejections == {} and len(upstream.asked) == 3


async def test_an_answer_broken_off_before_its_end_on_a_used_connection_is_not_taken_for_a_stale_one() -> None:
    upstream = Upstream([whole(completion())], [b"HTTP/1.1 20", Do.GATE, Do.RST], [whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url], retry_started=False)}) as running:
        assert (await post(running.port, chat())).status == 200
        asking = asyncio.ensure_future(post(running.port, chat()))
        await until(lambda: len(upstream.asked) == 2)
        await asyncio.sleep(0.7)  # the server's clock looks at the exchange in between
        upstream.gate.set()
        assert error_code(await asking) == "upstream_error"


# Commit


async def test_the_status_line_waits_for_the_first_event() -> None:
    upstream = Upstream([STREAM_HEAD, b": hello\n\n".join([b"9\r\n", b"\r\n"]), Do.GATE, *healthy("a")[1:]])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await until(lambda: bool(upstream.asked))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)
        upstream.gate.set()
        assert (await client.answer()).text == "a"


IMPATIENT = RelayBounds(commit_after_seconds=0.2, heartbeat_seconds=0.2)


@pytest.mark.parametrize("script", [healthy("a"), [whole(ERROR, 503)], [Do.RST]], ids=["stream", "refusal", "reset"])
async def test_after_a_while_the_status_line_leaves_anyway_and_comments_follow(script: Script) -> None:
    upstream, second = Upstream([Do.GATE, *script]), Upstream(SECOND)
    async with upstream.listening(), second.listening():
        async with gateway({"m": Served([upstream.url, second.url])}, bounds=IMPATIENT) as running, connect(running.port) as client:
            client.send(message(streamed()))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            await client.reader.readuntil(b": keepalive\n\n")
            upstream.gate.set()
            rest = await client.reader.readuntil(b"0\r\n\r\n")
            assert (b"[DONE]" in rest) is (len(script) > 1)
            assert (b'{"error":' in rest) is (len(script) == 1)
            await running.sink.settled()
        assert not second.asked


async def test_a_whole_answer_is_never_committed_early() -> None:
    upstream = Upstream([Do.GATE, whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, bounds=IMPATIENT) as running:
        asking = asyncio.ensure_future(post(running.port, chat()))
        await asyncio.sleep(0.8)
        upstream.gate.set()
        assert (await asking).json()["choices"][0]["message"]["content"] == "Hello"


# Silence

SHORT = RelayBounds(first_token_seconds=0.4, total_seconds=PATIENCE_SECONDS)
SHORT_BETWEEN = RelayBounds(first_token_seconds=PATIENCE_SECONDS, idle_seconds=0.4, total_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [([Do.HOLD], 504, ""), ([STREAM_HEAD, Do.HOLD], 504, ""), ([STREAM_HEAD, part(chunk("a")), Do.HOLD], 200, "a")],
    ids=["before-headers", "after-headers", "mid-stream"],
)
async def test_an_engine_that_falls_silent(script: Script, status: int, text: str) -> None:
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, bounds=SHORT_BETWEEN if text else SHORT) as running:
        answer = await post(running.port, streamed())
        assert (answer.status, error_code(answer)) == (status, "upstream_timeout")
        await until(lambda: bool(upstream.asked) and upstream.asked[0].left.is_set())
        final = await running.sink.settled()
        assert (final.outcome, final.used.output) == (Outcome.TIMEOUT, len(text))
        assert text == "" or answer.events()[0]["choices"][0]["delta"]["content"] == text


async def test_65_comments_without_end_are_bounded_by_the_whole_deadline() -> None:
    steps = [b"d\r\n: keepalive\n\n\r\n"] * 1_000_000
    upstream = Upstream([STREAM_HEAD, *steps])
    bounds = RelayBounds(total_seconds=0.5, first_token_seconds=0.5)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, bounds=bounds) as running:
        answer = await post(running.port, streamed())
        assert (answer.status, error_code(answer)) == (504, "upstream_timeout")


async def test_65_a_stream_without_end_is_cut_at_its_bound() -> None:
    upstream = Upstream([STREAM_HEAD, *[part(chunk("x" * 1000))] * 1_000_000])
    bounds = RelayBounds(stream_bytes_max=1_000_000)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, bounds=bounds) as running:
        answer = await post(running.port, streamed())
        assert error_code(answer) == "answer_too_large" and len(answer.body) < 3_000_000
        await until(lambda: upstream.asked[0].left.is_set())


async def test_65_an_answer_without_end_is_cut_at_its_bound() -> None:
    upstream = Upstream([b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n", *[b"x" * 10_000] * 900, Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, bounds=RelayBounds(answer_bytes_max=1_000_000)) as running:
        assert error_code(await post(running.port, chat())) == "answer_too_large"


LINE = b"200000\r\n" + b"data: " + b"x" * (0x200000 - 6) + b"\r\n"
TOO_LARGE: dict[str, tuple[Script, Any, RelayBounds]] = {
    "event": ([STREAM_HEAD, LINE, Do.HOLD], streamed(), RelayBounds(event_bytes_max=1_000_000)),
    "event-in-one-read": ([STREAM_HEAD + part(chunk("x" * 3000))], streamed(), RelayBounds(event_bytes_max=1000)),
    "stream": ([STREAM_HEAD + part(chunk("x" * 3000))], streamed(), RelayBounds(stream_bytes_max=1000)),
    "answer": ([whole(completion("x" * 3000))], chat(), RelayBounds(answer_bytes_max=1000)),
}


@pytest.mark.parametrize("case", TOO_LARGE)
async def test_an_answer_beyond_our_own_bounds_is_asked_once_and_blames_no_engine(case: str) -> None:
    script, body, bounds = TOO_LARGE[case]
    upstream, second = Upstream(script), Upstream(SECOND)
    async with upstream.listening(), second.listening(), gateway({"m": Served([upstream.url, second.url])}, bounds=bounds) as running:
        for _ in range(5):
            answer = await post(running.port, body)
            assert (answer.status, error_code(answer)) == (200 if case == "stream" else 502, "answer_too_large")
        assert (await running.sink.settled(5)).error == "answer_too_large"
        assert running.plane.metrics.ejections == {} and not running.plane.metrics.retries
    assert len(upstream.asked) == 5 and not second.asked


@pytest.mark.parametrize("kind", ["token-ids", "tool-call"])
async def test_an_event_of_several_mebibytes_is_relayed(kind: str) -> None:
    large = chunk("a", prompt_token_ids=list(range(100_000, 500_000))) if kind == "token-ids" else chunk("a" * 3_000_000)
    answer, final, _ = await ask([STREAM_HEAD, part(large), part(chunk(finish="stop")), part(usage_chunk(5, 1)), part(DONE), END])
    assert answer.events()[0] == large and final.outcome is Outcome.COMPLETED


@pytest.mark.parametrize(
    "junk", [part(chunk("late")), part(ERROR), part(b"data: {" + b"x" * 300_000 + b"\n\n"), b"HTTP/1.1 200 OK\r\n\r\n"]
)
@pytest.mark.parametrize("split", [False, True], ids=["same-read", "later-read"])
async def test_65_junk_after_done_is_dropped_and_poisons_no_later_answer(junk: bytes, split: bool) -> None:
    first = healthy("a")[:-1]
    script: Script = [*first, Do.GATE, junk, END] if split else [*first[:-1], part(DONE) + junk + END]
    upstream = Upstream(script, healthy("b"))
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        assert (await post(running.port, streamed())).text == "a"
        upstream.gate.set()
        await asyncio.sleep(0.05)
        assert (await post(running.port, streamed())).text == "b"
        await running.sink.settled(2)


# Usage


def reporting(*usages: Any, last: Any = None) -> Script:
    """A stream of chunks with these running reports (None: without one), a finish, and a last report if there is one."""
    steps: list[Any] = [STREAM_HEAD, *(part(chunk("w", usage=report)) for report in usages), part(chunk(finish="stop"))]
    return [*steps, *([part(usage_chunk(5, 0) | {"usage": last})] if last else []), part(DONE), END]


FINAL, CONTINUOUS, COUNTED = UsageSource.ENGINE_FINAL, UsageSource.ENGINE_CONTINUOUS, UsageSource.COUNTED
ESTIMATED = UsageSource.ESTIMATED  # of a request of about a hundred bytes
USAGES: dict[str, tuple[Script, Quantities, UsageSource, str | None]] = {
    "at-the-end": (reporting(None, None, last=usage(5, 2)), Quantities(5, 0, 2), FINAL, None),
    "cached-and-reasoning": (
        reporting(None, last=usage(5, 4, 3) | {"completion_tokens_details": {"reasoning_tokens": 1}}), Quantities(2, 3, 3, 1), FINAL, None,
    ),
    "on-every-chunk": (reporting(usage(5, 1), usage(5, 2), last=usage(5, 2)), Quantities(5, 0, 2), FINAL, None),
    "on-every-chunk-and-not-at-the-end": (reporting(usage(5, 1), usage(5, 2)), Quantities(5, 0, 2), CONTINUOUS, None),
    "60-missing": (reporting(None, None), Quantities(12, 0, 2), ESTIMATED, "usage_missing"),
    "60-negative-and-never-another": (reporting(None, None, last=usage(5, -1)), Quantities(5, 0, 2), COUNTED, "usage_invalid"),
    "60-negative": (reporting(usage(5, 1), usage(5, 2), last=usage(5, -1)), Quantities(5, 0, 2), CONTINUOUS, "usage_invalid"),
    "60-shrinking": (reporting(usage(5, 9), usage(5, 2), last=usage(5, 1)), Quantities(5, 0, 2), FINAL, "usage_shrinking"),
    "60-inflated": (reporting(None, last=usage(5, 2000)), Quantities(5, 0, 100), FINAL, "usage_inflated"),
    "60-beyond-all-bounds": (reporting(None, last=usage(5, 2**63)), Quantities(5, 0, 1), COUNTED, "usage_invalid"),
    "60-fractions": (
        reporting(None, last={"prompt_tokens": 1.5, "completion_tokens": 1}), Quantities(12, 0, 1), ESTIMATED, "usage_invalid",
    ),
    "60-more-cached-than-asked": (reporting(None, last=usage(5, 1, 9)), Quantities(0, 5, 1), FINAL, "usage_invalid"),
}  # fmt: skip


@pytest.mark.parametrize("case", USAGES)
async def test_usage_is_believed_as_far_as_it_can_be_true(case: str) -> None:
    script, used, source, anomaly = USAGES[case]
    answer, final, running = await ask(script, streamed(max_tokens=100))
    assert answer.events()[-1] == "[DONE]"
    assert (final.outcome, final.used, final.source) == (Outcome.COMPLETED, used, source)
    assert list(running.plane.metrics.anomalies) == ([anomaly] if anomaly else [])
    assert not any("usage" in event for event in answer.events()[:-1]), "the client did not ask for it"


async def test_events_are_counted_where_an_engine_says_nothing() -> None:
    answer, final, _ = await ask(reporting(None, None, None), engine=Engine.DYNAMO)
    assert (final.used, final.source) == (Quantities(10, 0, 3), ESTIMATED)
    assert answer.text == "www"


async def test_an_inflated_report_of_a_whole_answer_is_held_to_what_was_asked_for() -> None:
    body = completion(completion=5000)
    answer, final, running = await ask([whole(body)], chat(max_completion_tokens=10, n=2))
    assert answer.json()["usage"]["completion_tokens"] == 5000, "verbatim: the client may see what the engine claims"
    assert final.used == Quantities(5, 0, 20)
    assert running.plane.metrics.anomalies == {"usage_inflated": 1}


ASKED = {"include_usage": True}

REPORT: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "usage": usage(5, 2)}
ODD: dict[str, Any] = {
    "a usage chunk without choices": REPORT,
    "a usage chunk whose choices are null": REPORT | {"choices": None},
    "an event without choices": {"id": "c", "progress": {"done": 1}},
    "an event that says something": {"message": "the prompt was read"},
    "choices of another type": chunk("x") | {"choices": {"0": 1}},
    "a reason that is a number": chunk("x") | {"choices": [{"index": 0, "delta": {}, "finish_reason": 3}]},
    "content in parts": chunk() | {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "x"}]}}]},
    "a delta of another type": chunk() | {"choices": [{"index": 0, "delta": "x"}]},
    "an object of another type": chunk("x", object=7, id=[], created="now"),
    "usage of another type": chunk("x", usage=[]),
}


@pytest.mark.parametrize("case", ODD)
async def test_an_event_that_is_no_error_is_relayed_whatever_its_shape(case: str) -> None:
    odd = ODD[case]
    script = [STREAM_HEAD, part(chunk("a")), part(chunk("b")), part(odd), part(chunk(finish="stop")), part(REPORT), part(DONE), END]
    answer, final, _ = await ask(script, streamed(stream_options=ASKED))
    assert answer.events()[-1] == "[DONE]"
    assert (final.outcome, final.used, final.source) == (Outcome.COMPLETED, Quantities(5, 0, 2), FINAL)
    if case != "usage of another type":  # a running report that the client did not ask for
        assert odd in answer.events()[:-1] or "usage" in odd
    silent, _, _ = await ask(script, streamed())
    assert silent.events()[-1] == "[DONE]" and not any("usage" in event for event in silent.events()[:-1])


@pytest.mark.parametrize("choices", [{}, {"choices": None}, {"choices": []}], ids=["absent", "null", "empty"])
async def test_a_usage_chunk_with_any_choices_is_the_final_report(choices: dict[str, Any]) -> None:
    script = [STREAM_HEAD, part(chunk("a")), part(chunk("b", finish="stop")), part(REPORT | choices), part(DONE), END]
    answer, final, running = await ask(script, streamed(stream_options=ASKED))
    assert answer.events()[-2:] == [REPORT | choices, "[DONE]"]
    assert (final.outcome, final.used, final.source) == (Outcome.COMPLETED, Quantities(5, 0, 2), FINAL)
    assert running.plane.metrics.anomalies == {}


@pytest.mark.parametrize(
    "more",
    [{"object": 7}, {"choices": [{"finish_reason": {"type": "stop"}}]}, {"choices": [{"message": 7, "finish_reason": 1}]}, {"choices": {}}],
    ids=["object", "reason", "message", "choices"],
)
async def test_a_whole_answer_is_relayed_whatever_the_shape_of_what_is_not_read(more: dict[str, Any]) -> None:
    body = completion() | more
    answer, final, _ = await ask([whole(body)], chat())
    assert (answer.status, answer.json()) == (200, body)
    assert (final.outcome, final.source) == (Outcome.COMPLETED, FINAL) and final.used.output


@pytest.mark.parametrize(
    ("details", "used"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 128}}, Quantities(0, 126, 2)),
        ({"completion_tokens_details": {"reasoning_tokens": 317}}, Quantities(126, 0, 2)),
        ({"prompt_tokens_details": []}, Quantities(126, 0, 2)),
    ],
    ids=["cached", "reasoning", "list"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_report_with_an_impossible_detail_is_billed_by_its_totals(details: dict[str, Any], used: Quantities, stream: bool) -> None:
    report = usage(126, 2) | details
    body = completion() | {"usage": report}
    answer, final, running = await ask(reporting(None, None, last=report) if stream else [whole(body)], chat(stream=stream))
    assert answer.status == 200 and (final.used, final.source) == (used, FINAL)
    assert running.plane.metrics.anomalies == {"usage_invalid": 1}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_69_more_input_than_the_request_can_hold_is_not_billed(stream: bool) -> None:
    report = usage(2147483647, 2, 2147483000)
    body = completion() | {"usage": report}
    answer, final, running = await ask(reporting(None, None, last=report) if stream else [whole(body)], chat(stream=stream))
    assert answer.status == 200 and final.used.output == 2
    assert final.used.input + final.used.cached_input < 10_000, "the bytes of the body, and a template's text"
    assert running.plane.metrics.anomalies == {"usage_inflated": 1}


@pytest.mark.parametrize("case", ["at-the-end", "on-every-chunk", "on-every-chunk-and-not-at-the-end"])
async def test_a_client_that_asks_for_usage_gets_it_once_at_the_end(case: str) -> None:
    answer, _, _ = await ask(USAGES[case][0], streamed(stream_options=ASKED))
    reports = [event for event in answer.events()[:-1] if "usage" in event]
    if case == "on-every-chunk-and-not-at-the-end":
        assert reports == [], "nothing was reported with or after the finish"
        return
    assert reports == [answer.events()[-2]]
    assert reports[0]["choices"] == [] and reports[0]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("renamed", [False, True])
async def test_usage_on_the_finish_chunk_becomes_the_chunk_that_the_client_asked_for(renamed: bool) -> None:
    name = "up" if renamed else "m"
    script = [STREAM_HEAD, part(chunk("w", model=name)), part(chunk("x", finish="stop", usage=usage(5, 2), model=name)), part(DONE), END]
    served: dict[str, Any] = {"upstream_model": "up"} if renamed else {}
    answer, final, _ = await ask(script, streamed(stream_options=ASKED), **served)
    *_, finish, report, done = answer.events()
    assert finish["choices"][0]["finish_reason"] == "stop" and "usage" not in finish
    assert report == chunk(usage=usage(5, 2)) | {"choices": []} and done == "[DONE]"
    assert final.used == Quantities(5, 0, 2) and final.source is FINAL
    plain, _, _ = await ask(script, **served)
    assert plain.text == "wx" and not any("usage" in event for event in plain.events()[:-1])


async def test_a_client_that_asks_for_running_usage_gets_that_too() -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    answer, _, _ = await ask(USAGES["on-every-chunk"][0], streamed(stream_options=asked))
    assert [event["usage"]["completion_tokens"] for event in answer.events()[:-1] if "usage" in event] == [1, 2, 2]


async def test_what_was_delivered_is_noted_before_it_leaves() -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("a", usage=usage(5, 1))), part(chunk("b", usage=usage(5, 2))), Do.GATE, Do.RST])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await client.reader.readuntil(b'"b"')
        (slot,) = running.sink._taken
        assert running.sink.progress[slot * SLOT_WORDS + OUTPUT_WORD] == 2
        upstream.gate.set()
        final = await running.sink.settled()
        assert (final.outcome, final.used, final.source) == (Outcome.UPSTREAM_ERROR, Quantities(5, 0, 2), CONTINUOUS)


async def test_an_open_stream_holds_nothing_that_only_another_attempt_would_need() -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.GATE, part(chunk("b"), DONE), END])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await client.reader.readuntil(b'"a"')
        (exchange,) = running.plane.active.exchanges
        call, request = exchange.call, exchange.call.request
        assert (request.body, request.headers, request.traceparent, call.names) == (b"", {}, "", ())
        assert exchange.connection._reader._parser is None and exchange._client._reader._parser is None  # type: ignore[attr-defined]
        upstream.gate.set()
        await client.reader.readuntil(b"[DONE]\n\n")
        assert (await running.sink.settled()).outcome is Outcome.COMPLETED


# Metering


async def test_the_last_byte_leaves_only_after_final_is_durable() -> None:
    for body in (streamed(), chat()):
        upstream = Upstream(healthy("a") if body.get("stream") else [whole(completion())])
        async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
            running.sink.durable = asyncio.Event()
            client.send(message(body))
            await until(lambda running=running: bool(running.sink.finals))  # type: ignore[misc]
            await asyncio.sleep(0.05)
            before = await asyncio.wait_for(client.reader.read(1 << 16), PATIENCE_SECONDS) if body.get("stream") else b""
            assert b"[DONE]" not in before and (b'"a"' in before) is bool(body.get("stream"))
            running.sink.durable.set()
            if body.get("stream"):
                await client.reader.readuntil(b"[DONE]\n\n")
            else:
                assert (await client.answer()).status == 200


async def test_without_a_durable_final_there_is_no_success() -> None:
    for body, script in ((streamed(), healthy("a")), (chat(), [whole(completion())])):
        upstream = Upstream(script)
        async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
            running.sink.is_broken = True
            answer = await post(running.port, body)
            assert answer.status == (200 if body.get("stream") else 503)
            assert error_code(answer) == "metering_unavailable"
            running.sink.is_full = True
            refused = await post(running.port, body)
            assert (refused.status, error_code(refused)) == (503, "metering_unavailable")
            assert len(upstream.asked) == 1, "what cannot be metered is not asked"


# What of an event goes on


async def test_66_other_fields_of_an_event_are_dropped_and_its_data_is_one_line() -> None:
    odd = b'id: 7\nevent: evil\nretry: 1\n: note\ndata: {"choices":[{"index":0,\ndata: "delta":{"content":"a"}}]}\ndata\nevil: x\n\n'
    answer, final, _ = await ask([STREAM_HEAD, part(odd), part(DONE), END])
    assert answer.text == "a" and b"evil" not in answer.body and b"id:" not in answer.body
    assert final.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
async def test_line_ends_and_splits_change_nothing(step: int, end: bytes) -> None:
    whole_stream = b"".join(event(data) for data in (chunk("é"), chunk("b", finish="stop"), usage_chunk(5, 2))) + b": note\n\n" + DONE
    data = whole_stream.replace(b"\n", end)
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    recorder, final = await record([STREAM_HEAD, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), END])
    assert recorder.body == event(chunk("é")) + event(chunk("b", finish="stop")) + DONE
    assert recorder.ended and final.used == Quantities(5, 0, 2)


async def test_values_go_on_verbatim() -> None:
    odd = b'{ "choices" : [{"index":0,"delta":{"content":"\\u00e9\\/"},"x":1.50}], "extra":{"a":[1 , 2]},"usage":null }'
    answer, _, _ = await ask([STREAM_HEAD, part(b"data: " + odd + b"\n\n"), part(DONE), END], streamed(stream_options=ASKED))
    first = answer.body.partition(b"\n\n")[0].removeprefix(b"data: ")
    members = msgspec.json.decode(first, type=dict[str, msgspec.Raw])
    assert bytes(members["choices"]) == b'[{"index":0,"delta":{"content":"\\u00e9\\/"},"x":1.50}]'
    assert bytes(members["extra"]) == b'{"a":[1 , 2]}'


async def test_embeddings_are_answered_and_metered() -> None:
    body = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}], "model": "m", "usage": usage(7, 0)}
    async with Upstream([whole(body)]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        answer = await post(running.port, {"model": "m", "input": [[1, 2], [3]]}, EMBEDDINGS)
        assert answer.json() == body
        assert (await running.sink.settled()).used == Quantities(input=7)
        assert b"POST /v1/embeddings " in upstream.asked[0].head


# Without the edge: the phases alone, with a recorder for a client


async def record(script: Script) -> tuple[Recorder, Final]:
    """Return what a client is told of a stream asked of an upstream that plays `script`."""
    upstream, recorder, clock = Upstream(script), Recorder(), Clock()
    async with upstream.listening():
        with plane({"m": Served([upstream.url])}, clock=clock) as (made, sink, _):
            headers = {b"authorization": b"Bearer " + KEY.encode()}
            body = msgspec.json.encode(streamed())
            loop = asyncio.get_running_loop()
            request = new_request("req_1", RequestHead(Endpoint.CHAT_COMPLETIONS, headers), body, loop.time(), clock.now_us())
            async with asyncio.timeout(PATIENCE_SECONDS):
                await driven(lambda driver: pipeline.answer(request, recorder, made, driver))
            final = await sink.settled()
            for served in made.upstreams.all():
                served.close_idle(0.0, all=True)
    return recorder, final


async def test_a_draining_gateway_tells_running_streams() -> None:
    fault = Fault(faults.DRAINING)
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await client.reader.readuntil(b'"a"')
        (exchange,) = running.plane.active.exchanges
        exchange._driver.interrupt(fault)
        rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert b'"draining"' in rest and b"[DONE]" not in rest
        assert (await running.sink.settled()).outcome is Outcome.UPSTREAM_ERROR


async def test_edge_bounds_have_defaults_that_a_load_balancer_can_live_with() -> None:
    assert EdgeBounds().keep_alive_seconds > 60 > EdgeBounds().write_stall_seconds
