"""Streams as vLLM sends them, event by event."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.simulator.running import CHAT, COMPLETIONS, MESSAGES, Running, chat, content, post, streamed


async def test_a_chat_stream_has_vllms_events(sim: Running) -> None:
    answer = await post(sim, CHAT, streamed(3), "abc")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.ended == "complete"
    role, *middle, usage, done = answer.events()
    assert {event["id"] for event in [role, *middle, usage]} == {"chatcmpl-abc"}
    assert role["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]
    assert [event["choices"][0]["finish_reason"] for event in middle] == [None, None, "length"]
    assert all(event["choices"][0]["delta"]["content"] for event in middle)
    assert all("usage" not in event for event in middle)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + 3
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert done == "[DONE]"


async def test_without_stream_options_there_is_no_usage(sim: Running) -> None:
    events = (await post(sim, CHAT, chat(3, stream=True))).events()
    assert [event == "[DONE]" for event in events] == [False] * 4 + [True]
    assert all("usage" not in event for event in events[:-1])


async def test_running_usage_starts_at_zero_and_is_in_every_chunk(sim: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = (await post(sim, CHAT, streamed(3, stream_options=options))).events()
    assert [event["usage"]["completion_tokens"] for event in events[:-1]] == [0, 1, 2, 3, 3]


async def test_running_usage_needs_include_usage(sim: Running) -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    events = (await post(sim, CHAT, streamed(3, stream_options=options))).events()
    assert all("usage" not in event for event in events[:-1])


async def test_running_usage_of_several_choices_is_per_choice_and_the_last_is_the_sum(sim: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = (await post(sim, CHAT, streamed(2, n=2, stream_options=options))).events()
    assert [(e["choices"][0]["index"], e["usage"]["completion_tokens"]) for e in events[:-2]] == [
        (0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2),
    ]  # fmt: skip
    assert events[-2]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("per_chunk", [1, 3, 50])
async def test_chunks_hold_the_same_text_however_many_tokens_each(start: Callable[..., Running], per_chunk: int) -> None:
    sim = start(tokens_per_chunk=per_chunk)
    events = (await post(sim, CHAT, streamed(10))).events()
    whole = (await post(sim, CHAT, chat(10))).json()
    assert content(events) == whole["choices"][0]["message"]["content"]
    assert len(events) - 3 == -(-10 // per_chunk)
    assert events[-2]["usage"]["completion_tokens"] == 10


async def test_the_echo_model_says_the_last_message(sim: Running) -> None:
    text = 'Grüße, "Welt"\n🙂 done'
    body = {"model": "sim-echo", "messages": [{"role": "user", "content": text}], "stream": True}
    assert content((await post(sim, CHAT, body)).events()) == text
    parts = [{"type": "text", "text": "Grüße, "}, {"type": "text", "text": "Welt"}]
    whole = (await post(sim, CHAT, body | {"stream": False, "messages": [{"role": "user", "content": parts}]})).json()
    assert whole["choices"][0]["message"]["content"] == "Grüße, Welt"
    assert whole["choices"][0]["finish_reason"] == "stop"


async def test_reasoning_comes_first_and_is_counted(sim: Running) -> None:
    answer = await post(sim, CHAT, streamed(5), fault="reasoning@2")
    events = answer.events()
    deltas = [event["choices"][0]["delta"] for event in events[1:6]]
    assert [sorted(delta) for delta in deltas] == [["reasoning"]] * 2 + [["content"]] * 3
    assert events[-2]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert (await sim.record("r")).reasoning_tokens == 2


async def test_a_completion_stream_has_vllms_events(sim: Running) -> None:
    body = {"model": "sim-small", "prompt": "Once", "max_tokens": 3, "ignore_eos": True, "stream": True}
    *chunks, done = (await post(sim, COMPLETIONS, body, "abc")).events()
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in chunks} == {"cmpl-abc"}
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_every_prompt_of_a_batch_gets_its_choices(sim: Running) -> None:
    body = {"model": "sim-small", "prompt": ["one", "two"], "n": 2, "max_tokens": 2, "ignore_eos": True}
    whole = (await post(sim, COMPLETIONS, body)).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10, "prompt_tokens_details": None,
    }  # fmt: skip


async def test_a_messages_stream_has_anthropics_events_and_no_done(sim: Running) -> None:
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "stream": True}
    events = (await post(sim, MESSAGES, body, "abc")).events()
    assert [event["type"] for event in events] == [
        "message_start", "content_block_start", *["content_block_delta"] * 3, "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    message = events[0]["message"]
    assert message["id"] == "chatcmpl-abc"
    assert message["usage"] == {"input_tokens": (await sim.record("abc")).prompt_tokens, "output_tokens": 0}
    assert events[-2]["delta"] == {"stop_reason": "max_tokens"}
    assert events[-2]["usage"]["output_tokens"] == 3


async def test_a_messages_stream_closes_its_thinking_before_it_speaks(sim: Running) -> None:
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "stream": True}
    events = (await post(sim, MESSAGES, body, fault="reasoning@1")).events()
    assert [(event["type"], event.get("index")) for event in events[1:-2]] == [
        ("content_block_start", 0), ("content_block_delta", 0), ("content_block_delta", 0), ("content_block_stop", 0),
        ("content_block_start", 1), ("content_block_delta", 1), ("content_block_delta", 1), ("content_block_stop", 1),
    ]  # fmt: skip
    assert events[3]["delta"]["type"] == "signature_delta"


async def test_the_natural_length_ends_by_stop_and_the_limit_by_length(start: Callable[..., Running]) -> None:
    sim = start(output_tokens_min=5, output_tokens_max=5)
    natural: dict[str, Any] = {"model": "sim-small", "messages": [{"role": "user", "content": "x"}]}
    for limits, tokens, reason in (
        ({}, 5, "stop"),
        ({"max_tokens": 9}, 5, "stop"),
        ({"max_tokens": 4}, 4, "length"),
        ({"max_tokens": 9, "max_completion_tokens": 2}, 2, "length"),
        ({"max_tokens": 9, "ignore_eos": True}, 9, "length"),
    ):
        whole = (await post(sim, CHAT, natural | limits)).json()
        assert (whole["usage"]["completion_tokens"], whole["choices"][0]["finish_reason"]) == (tokens, reason)
