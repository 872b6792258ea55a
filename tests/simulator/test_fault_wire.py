"""Every fault of the table, as a client sees it on the wire, and what the truth log says about it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.simulator.running import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    Answer,
    Running,
    chat,
    connect,
    content,
    post,
    send,
    streamed,
)

MESSAGE = {"model": "sim-small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}


def content_chunks(answer: Answer) -> int:
    """Content chunks of a chat stream that arrived whole."""
    whole = answer.body[: answer.body.rfind(b"\n\n") + 2]
    return whole.count(b'"delta":{"content":')


# Before the answer


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("nested", {"error": {"message": "Injected by the simulator.", "type": "Service Unavailable", "param": None, "code": 503}}),
        ("flat", {"object": "error", "message": "Injected by the simulator.", "type": "Service Unavailable", "param": None,
                  "code": 503}),
        ("string", {"error": "Injected by the simulator."}),
    ],
)  # fmt: skip
async def test_a_status_has_the_body_that_was_asked_for(sim: Running, style: str, expected: object) -> None:
    answer = await post(sim, CHAT, streamed(), fault=f"status@503:{style}:retry-after=7")
    assert (answer.status, answer.headers["retry-after"], answer.json()) == (503, "7", expected)
    record = await sim.record("r")
    assert (record.ended, record.completion_tokens, record.delivered_tokens) == ("rejected", 0, 0)


async def test_a_status_without_retry_after_has_none(sim: Running) -> None:
    answer = await post(sim, CHAT, chat(), fault="status@429")
    assert answer.status == 429
    assert "retry-after" not in answer.headers


async def test_a_status_speaks_the_dialect_of_its_api(sim: Running) -> None:
    answer = await post(sim, MESSAGES, MESSAGE, fault="status@500")
    assert answer.json()["type"] == "error"


async def test_a_captive_portal_is_html_with_200(sim: Running) -> None:
    answer = await post(sim, CHAT, chat(), fault="status@200:html")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html")
    assert b"<html>" in answer.body
    answer = await post(sim, CHAT, chat(), fault="status@502:empty")
    assert (answer.status, answer.body) == (502, b"")


@pytest.mark.parametrize(("fault", "ended"), [("drop", "reset"), ("drop:fin", "eof")])
async def test_a_dropped_request_gets_no_byte(sim: Running, fault: str, ended: str) -> None:
    answer = await post(sim, CHAT, streamed(), fault=fault)
    assert (answer.status, answer.ended) == (0, ended)
    assert (await sim.record("r")).ended == "cut"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_sends_nothing_until_the_client_leaves(sim: Running, stream: bool) -> None:
    async with connect(sim) as client:
        send(client, CHAT, chat(stream=stream), fault="hang")
        await sim.wait_for(running=1)
        client.vanish()
        assert await client.reader.read() == b""
    record = await sim.record("r")
    assert (record.ended, record.completion_tokens) == ("stall", 0)
    await sim.wait_for(running=0)


async def test_an_error_as_first_event_comes_with_200_and_done(sim: Running) -> None:
    answer = await post(sim, CHAT, streamed(), fault="error@0:503")
    error, done = answer.events()
    assert (answer.status, error["error"]["code"], done) == (200, 503, "[DONE]")
    record = await sim.record("r")
    assert (record.ended, record.completion_tokens, record.terminator_sent) == ("error", 0, True)


async def test_a_head_can_be_huge_or_untyped(sim: Running) -> None:
    answer = await post(sim, CHAT, streamed(), fault="huge-header@100+no-type")
    assert len(answer.headers["x-sim-padding"]) == 100 * 1024
    assert "content-type" not in answer.headers
    assert answer.events()[-1] == "[DONE]"


async def test_a_length_can_lie_both_ways(sim: Running) -> None:
    answer = await post(sim, CHAT, chat(), "long", fault="length:long")
    assert answer.ended == "eof"
    assert (await sim.record("long")).terminator_sent is False
    async with connect(sim) as client:
        send(client, CHAT, chat(), "short", fault="length:short")
        answer = await client.receive()
        assert answer.ended == "complete"
        assert await client.reader.readexactly(4) == b"ull}"


# In the middle


async def test_an_error_in_the_middle_follows_k_chunks_and_precedes_done(sim: Running) -> None:
    events = (await post(sim, CHAT, streamed(), fault="error@3")).events()
    assert len(events) == 1 + 3 + 2
    assert events[-2]["error"]["code"] == 500
    record = await sim.record("r")
    assert (record.ended, record.completion_tokens, record.delivered_tokens) == ("error", 3, 3)


async def test_an_error_in_a_messages_stream_is_its_own_event_and_the_last(sim: Running) -> None:
    events = (await post(sim, MESSAGES, MESSAGE | {"stream": True}, fault="error@3")).events()
    assert (events[-1]["type"], events[-1]["error"]["type"]) == ("error", "internal_error")
    assert (await sim.record("r")).terminator_sent is False


async def test_an_error_of_a_json_answer_is_a_status(sim: Running) -> None:
    answer = await post(sim, CHAT, chat(), fault="error@3")
    assert (answer.status, answer.json()["error"]["code"]) == (500, 500)
    assert (await sim.record("r")).completion_tokens == 3


@pytest.mark.parametrize(("suffix", "ended"), [("", "reset"), (":fin", "eof")])
@pytest.mark.parametrize("chunks", [0, 1, 5, 99])
async def test_a_cut_comes_after_exactly_k_chunks(sim: Running, chunks: int, suffix: str, ended: str) -> None:
    answer = await post(sim, CHAT, streamed(8), fault=f"cut@{chunks}{suffix}")
    tokens = min(chunks, 8)
    assert (answer.status, answer.ended, content_chunks(answer)) == (200, ended, tokens)
    assert b"[DONE]" not in answer.body
    record = await sim.record("r")
    assert (record.ended, record.completion_tokens, record.delivered_tokens) == ("cut", tokens, tokens)
    assert record.terminator_sent is False


@pytest.mark.parametrize("suffix", ["", ":fin"])
@pytest.mark.parametrize("limit", [0, 1, 100, 333, 1000, 100_000])
async def test_a_cut_by_bytes_is_exact(sim: Running, limit: int, suffix: str) -> None:
    whole = await post(sim, CHAT, streamed(8), "whole")
    answer = await post(sim, CHAT, streamed(8), "r", fault=f"cut-bytes@{limit}{suffix}")
    assert answer.ended == ("reset" if not suffix else "eof")
    sent = len(whole.body.replace(b"chatcmpl-whole", b"chatcmpl-r")) - len(b"data: [DONE]\n\n")
    assert len(answer.body) == min(limit, sent)
    record = await sim.record("r")
    assert (record.ended, record.terminator_sent) == ("cut", False)
    assert record.delivered_tokens == content_chunks(answer)


async def test_a_json_body_can_be_cut_too(sim: Running) -> None:
    answer = await post(sim, CHAT, chat(), fault="cut-bytes@50:fin")
    assert (answer.ended, len(answer.body)) == ("eof", 50)
    assert (await sim.record("r")).delivered_tokens == 0
    answer = await post(sim, CHAT, chat(), "s", fault="cut@2:fin")
    assert (answer.status, answer.ended) == (0, "eof")
    assert (await sim.record("s")).completion_tokens == 2


@pytest.mark.parametrize("chunks", [0, 3])
async def test_a_stall_keeps_its_slot_until_the_client_leaves(sim: Running, chunks: int) -> None:
    async with connect(sim) as client:
        send(client, CHAT, streamed(), fault=f"stall@{chunks}")
        await client.reader.readuntil(b"\r\n\r\n")
        for _ in range(chunks and chunks + 1):  # the role chunk comes with the first
            await client.reader.readuntil(b"\n\n")
        await sim.wait_for(running=1)
        assert sim.records() == []
    record = await sim.record("r")
    assert (record.ended, record.completion_tokens, record.delivered_tokens) == ("stall", chunks, chunks)
    await sim.wait_for(running=0)


async def test_an_abort_looks_like_success_but_for_its_reason(sim: Running) -> None:
    events = (await post(sim, CHAT, streamed(), fault="abort@3")).events()
    assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None] * 4 + ["abort"]
    assert events[-2]["usage"]["completion_tokens"] == 3
    assert events[-1] == "[DONE]"
    record = await sim.record("r")
    assert (record.ended, record.finish_reason, record.completion_tokens) == ("error", "abort", 3)
    whole = (await post(sim, CHAT, chat(), "j", fault="abort@99")).json()
    assert whole["choices"][0]["finish_reason"] == "abort"
    assert whole["usage"]["completion_tokens"] == 8


# At the end


async def test_a_stream_can_end_without_its_terminator(sim: Running) -> None:
    answer = await post(sim, CHAT, streamed(), fault="no-done")
    assert answer.ended == "complete"
    assert b"[DONE]" not in answer.body
    record = await sim.record("r")
    assert (record.ended, record.terminator_sent, record.completion_tokens) == ("completed", False, 8)
    events = (await post(sim, MESSAGES, MESSAGE | {"stream": True}, "m", fault="no-done")).events()
    assert events[-1]["type"] == "message_delta"


async def test_there_can_be_junk_after_done(sim: Running) -> None:
    events = (await post(sim, CHAT, streamed(), fault="junk")).events()
    assert events[-2:] == ["[DONE]", "junk after the end"]


async def test_the_finish_can_have_a_chunk_of_its_own(sim: Running) -> None:
    events = (await post(sim, CHAT, streamed(3), fault="finish-separate")).events()
    assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None] * 4 + ["length"]
    assert events[-3]["choices"][0]["delta"] == {}
    body = {"model": "sim-small", "prompt": "x", "max_tokens": 2, "ignore_eos": True, "stream": True}
    events = (await post(sim, COMPLETIONS, body, fault="finish-separate")).events()
    assert (events[-2]["choices"][0]["text"], events[-2]["choices"][0]["finish_reason"]) == ("", "length")


async def test_a_stale_connection_closes_unannounced_and_answers_nothing_more(sim: Running) -> None:
    async with connect(sim) as client:
        send(client, CHAT, chat(), "a", fault="stale@200")
        answer = await client.receive()
        assert (answer.ended, answer.headers.get("connection")) == ("complete", None)
        send(client, CHAT, chat(), "b")
        assert (await client.receive()).status == 0
    assert [record.request_id for record in sim.records()] == ["a"]


# Usage


@pytest.mark.parametrize(
    ("fault", "at_chunks", "at_end"),
    [
        ("usage:finish", [None, None, None, 3], None),
        ("usage:each", [0, 1, 2, 3], None),
        ("usage:missing", [None] * 4, None),
        ("usage:negative", [None] * 4, -1),
        ("usage:shrinking", [1000, 999, 998, 997], 997),
        ("usage:inflated", [None] * 4, 3000),
    ],
)
async def test_usage_can_be_anywhere_and_anything_but_the_log_is_right(
    sim: Running, fault: str, at_chunks: list[int | None], at_end: int | None
) -> None:
    events = (await post(sim, CHAT, streamed(3), fault=fault)).events()
    chunks = [event for event in events[:-1] if event["choices"]]
    assert [event["usage"]["completion_tokens"] if "usage" in event else None for event in chunks] == at_chunks
    ends = [event["usage"]["completion_tokens"] for event in events[:-1] if not event["choices"]]
    assert ends == ([] if at_end is None else [at_end])
    assert (await sim.record("r")).completion_tokens == 3


@pytest.mark.parametrize(("fault", "expected"), [("usage:missing", None), ("usage:negative", -1), ("usage:inflated", 8000)])
async def test_json_usage_can_be_wrong_too(sim: Running, fault: str, expected: int | None) -> None:
    usage = (await post(sim, CHAT, chat(), fault=fault)).json()["usage"]
    assert (usage and usage["completion_tokens"]) == expected
    usage = (await post(sim, MESSAGES, MESSAGE, fault=fault)).json().get("usage")
    assert (usage and usage["output_tokens"]) == expected
    usage = (await post(sim, EMBEDDINGS, {"model": "sim-small", "input": "x"}, fault=fault)).json()["usage"]
    assert (usage and usage["prompt_tokens"]) == (expected and (-1 if expected < 0 else 1000))


# Encoding


async def test_the_role_chunk_can_have_no_content(sim: Running) -> None:
    events = (await post(sim, CHAT, streamed(), fault="role-null")).events()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}


@pytest.mark.parametrize("fault", ["comments", "crlf", "drip", "drip@40", "batch@3", "batch@99", "comments+crlf+batch@2+drip@5"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_bent_encoding_carries_the_same_events(sim: Running, path: str, fault: str) -> None:
    body = streamed(8) if path == CHAT else MESSAGE | {"stream": True}
    straight = await post(sim, path, body, "a")
    bent = await post(sim, path, body, "b", fault)
    assert bent.ended == "complete"
    assert _without_identity(bent.events()) == _without_identity(straight.events())
    record = await sim.record("b")
    assert (record.delivered_tokens, record.terminator_sent) == (record.completion_tokens, True)


def _without_identity(events: list[Any]) -> list[Any]:
    for event in events:
        if isinstance(event, dict):
            for part in (event, event.get("message", {})):
                part.pop("id", None)
                part.pop("created", None)
    return events


async def test_comments_crlf_and_batches_are_really_there(sim: Running) -> None:
    assert b": keep-alive\n\ndata:" in (await post(sim, CHAT, streamed(), fault="comments")).body
    crlf = (await post(sim, CHAT, streamed(), fault="crlf")).body
    assert crlf.count(b"\r\n") == crlf.count(b"\n")
    chunks = (await post(sim, CHAT, streamed(8), fault="batch@4")).chunks
    assert [chunk.count(b"data:") for chunk in chunks] == [5, 4, 2]


async def test_a_dripped_json_body_arrives_whole(sim: Running) -> None:
    answer = await post(sim, CHAT, chat(), fault="drip@11")
    assert answer.json()["usage"]["completion_tokens"] == 8
    assert (await sim.record("r")).delivered_tokens == 8


async def test_a_line_can_be_huge(sim: Running) -> None:
    answer = await post(sim, CHAT, streamed(), fault="huge-line@200")
    assert max(len(line) for line in answer.body.split(b"\n")) > 200 * 1024
    assert len(content(answer.events())) == 32


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES])
@pytest.mark.parametrize("stream", [True, False])
async def test_bytes_can_be_no_text(sim: Running, path: str, stream: bool) -> None:
    body: dict[str, Any] = {"model": "sim-small", "max_tokens": 3, "stream": stream}
    body |= {"prompt": "x"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    answer = await post(sim, path, body, fault="utf8@1")
    with pytest.raises(UnicodeDecodeError):
        answer.body.decode()


async def test_an_event_can_be_half(sim: Running) -> None:
    events = (await post(sim, CHAT, streamed(4), fault="json@2")).events()
    assert [isinstance(event, str) for event in events] == [False, False, True, False, False, False, True]
    answer = await post(sim, CHAT, chat(), fault="json@1")
    assert not answer.body.endswith(b"}")


# Where faults come from


async def test_a_fault_can_ride_on_the_model_name(sim: Running) -> None:
    answer = await post(sim, CHAT, streamed(model="sim-small!cut@2:fin"))
    assert (answer.ended, content_chunks(answer)) == ("eof", 2)
    assert (await sim.record("r")).model == "sim-small!cut@2:fin"


async def test_faults_can_strike_by_chance_and_the_dice_are_seeded(start: Callable[..., Running]) -> None:
    sim = start(fault_rates=(("status@503", 0.3), ("status@500", 0.2)), seed=7)
    statuses = [(await post(sim, CHAT, chat(1), f"r{number}")).status for number in range(40)]
    assert set(statuses) == {200, 500, 503}
    again = start(fault_rates=(("status@503", 0.3), ("status@500", 0.2)), seed=7)
    assert [(await post(again, CHAT, chat(1), f"s{number}")).status for number in range(40)] == statuses
