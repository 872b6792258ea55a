"""Responses and messages of engines that have chat completions only: requests, answers and streams translated, refused or broken off."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import Do, Script, Upstream
from tests.gateway.harness import DONE, END, STREAM_HEAD, Served, chunk, completion, event, gateway, part, post, usage_chunk, whole
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import TRANSLATED_ENDPOINTS, Endpoint, Engine
from tollway.domain.faults import Fault
from tollway.domain.usage import Outcome, UsageSource, billed
from tollway.engines.table import ENGINES
from tollway.gateway.dialects import messages_as_chat, responses_as_chat
from tollway.gateway.dialects.answers import AnswerContext
from tollway.gateway.dialects.table import DIALECTS
from tollway.wire import sse

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
PNG = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"road": {"type": "string"}}}
CONTEXT = AnswerContext(
    ENGINES[Engine.OPENAI], "m", "m", input_tokens_max=1000, output_tokens_max=1000, prompts=1, sequences=1, hide_usage=True,
    hide_continuous=True, counting=True, repeated={"instructions": "Be brief."},
)  # fmt: skip
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}
CALL = {"type": "tool_use", "id": "a", "name": "b", "input": {}}


def served_by(upstream: Upstream) -> Served:
    return Served([upstream.url], translated_endpoints=tuple(TRANSLATED_ENDPOINTS))


# Requests


def test_message_with_everything_that_translates_becomes_a_chat_completion() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    asked = {
        "model": "m", "max_tokens": 9, "stream": True, "temperature": 0.5, "top_k": 3, "stop_sequences": ["x"],
        "metadata": {"user_id": "u"}, "min_p": 0.1, "thinking": {"type": "enabled", "budget_tokens": 1024},
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "system": [{"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "brief."}],
        "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": SCHEMA}},
        "tools": [{"name": "toll", "description": "d", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "See:"}, image]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "I ask."},
                {"type": "tool_use", "id": "t1", "name": "toll", "input": {"road": "A1"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": [{"type": "text", "text": "no"}, image]},
                {"type": "text", "text": "Well?"},
            ]},
        ],
    }  # fmt: skip
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    assert messages_as_chat.translate(asked, ["metadata"]) == {
        "model": "m", "max_tokens": 9, "stream": True, "temperature": 0.5, "top_k": 3, "stop": ["x"], "min_p": 0.1,
        "reasoning_effort": "high",
        "response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA, "strict": True}},
        "tools": [{"type": "function", "function": {"name": "toll", "description": "d", "parameters": SCHEMA}}],
        "tool_choice": "required", "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "See:"}, picture]},
            {"role": "assistant", "content": "I ask.", "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "toll", "arguments": '{"road":"A1"}'}},
            ]},
            {"role": "tool", "tool_call_id": "t1", "content": "no"},
            {"role": "user", "content": [picture, {"type": "text", "text": "Well?"}]},
        ],
    }  # fmt: skip


def test_response_with_everything_that_translates_becomes_a_chat_completion() -> None:
    url = f"data:image/png;base64,{PNG}"
    image = {"type": "input_image", "image_url": url}
    text = {"type": "text", "text": "See:"}
    asked = {
        "model": "m", "max_output_tokens": 9, "stream": True, "top_p": 0.5, "instructions": "Be brief.", "store": False, "user": "u",
        "include": ["reasoning.encrypted_content"], "parallel_tool_calls": False, "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "toll", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
        "tools": [{"type": "function", "name": "toll", "parameters": SCHEMA, "strict": False}],
        "tool_choice": {"type": "function", "name": "toll"}, "top_logprobs": None, "min_p": 0.1,
        "input": [
            {"role": "developer", "content": "In English."},
            {"role": "user", "content": [{"type": "input_text", "text": "See:"}, image | {"detail": "low"}]},
            {"type": "reasoning", "id": "r", "summary": []},
            {"type": "message", "role": "assistant", "id": "a", "status": "completed", "content": [
                {"type": "output_text", "text": "I ask.", "annotations": []},
            ]},
            {"type": "function_call", "call_id": "c1", "name": "toll", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "toll", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": [image]},
            {"type": "function_call_output", "call_id": "c2", "output": "250"},
            {"role": "user", "content": "Well?"},
        ],
    }  # fmt: skip
    calls = [{"id": id, "type": "function", "function": {"name": "toll", "arguments": "{}"}} for id in ("c1", "c2")]
    assert responses_as_chat.translate(asked, ["user"]) == {
        "model": "m", "max_tokens": 9, "stream": True, "top_p": 0.5, "min_p": 0.1, "reasoning_effort": "low", "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "toll", "schema": SCHEMA, "strict": True}},
        "tools": [{"type": "function", "function": {"name": "toll", "parameters": SCHEMA, "strict": False}}],
        "tool_choice": {"type": "function", "function": {"name": "toll"}}, "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be brief.\n\nIn English."},
            {"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]},
            {"role": "assistant", "content": "I ask.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": ""},
            {"role": "tool", "tool_call_id": "c2", "content": "250"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},
            {"role": "user", "content": "Well?"},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("endpoint", sorted(TRANSLATED_ENDPOINTS))
def test_every_field_of_a_translated_api_is_translated_dropped_or_refused(endpoint: Endpoint) -> None:
    dialect, module = DIALECTS[endpoint], messages_as_chat if endpoint is Endpoint.MESSAGES else responses_as_chat
    assert set(dialect.fields) == module._OWN_FIELDS | (dialect.not_forwarded & set(dialect.fields))
    assert dialect.translation is not None and dialect.translation.target is DIALECTS[Endpoint.CHAT_COMPLETIONS]


UNTRANSLATABLE: list[tuple[str, dict[str, Any], str]] = [
    (MESSAGES, {"max_tokens": 0}, "max_tokens"),
    (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    (MESSAGES, {"tools": [{"name": "a", "defer_loading": True}]}, "tools[0].defer_loading"),
    (MESSAGES, {"tool_choice": {"type": "other"}}, "tool_choice.type"),
    (MESSAGES, {"output_config": {"task_budget": {"total": 9}}}, "output_config.task_budget"),
    (MESSAGES, {"output_config": {"effort": "extreme"}}, "output_config.effort"),
    (MESSAGES, {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0]"),
    (MESSAGES, {"a_new_field": 1}, "a_new_field"),
    (MESSAGES, {"system": [{"type": "text", "text": 1}]}, "system[0].text"),
    (MESSAGES, {"messages": [{"role": "user", "content": [DOCUMENT]}]}, "messages[0].content[0].type"),
    (MESSAGES, {"messages": [{"role": "other", "content": "a"}]}, "messages[0].role"),
    (MESSAGES, {"messages": [{"role": "user", "content": [CALL]}]}, "messages[0].content[0].type"),
    (RESPONSES, {"truncation": "auto"}, "truncation"),
    (RESPONSES, {"top_logprobs": 2}, "top_logprobs"),
    (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include[0]"),
    (RESPONSES, {"tools": [{"type": "custom", "name": "a"}]}, "tools[0].type"),
    (RESPONSES, {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.type"),
    (RESPONSES, {"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    (RESPONSES, {"reasoning": {"budget": 9}}, "reasoning.budget"),
    (RESPONSES, {"input": [{"type": "custom_tool_call", "call_id": "a", "name": "b", "input": "c"}]}, "input[0].type"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "reasoning_text", "text": "a"}]}]}, "input[0].content[0].type"),
    (RESPONSES, {"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0].arguments"),
    (RESPONSES, {"input": [{"role": "other", "content": "a"}]}, "input[0].role"),
]  # fmt: skip


async def test_request_that_cannot_be_translated_is_refused_by_the_name_of_its_field_and_never_recorded() -> None:
    async with Upstream().listening() as upstream, gateway({"m": served_by(upstream)}) as running:
        for path, more, field in UNTRANSLATABLE:
            answer = await post(running.port, _ask(path) | more, path)
            error = answer.json()["error"]
            assert answer.status == 400 and f"'{field}'" in error["message"], (more, answer.body)
            assert path == MESSAGES or error["param"] == field
        body = {"model": "m", "messages": [{"role": "user", "content": [DOCUMENT]}]}
        counted = await post(running.port, body, f"{MESSAGES}/count_tokens")
        assert counted.status == 400 and "'messages[0].content[0].type'" in counted.json()["error"]["message"]
        assert running.sink.finals == [] and upstream.asked == []


def _ask(path: str, **more: Any) -> dict[str, Any]:
    own = {"max_tokens": 9, "messages": [{"role": "user", "content": "a"}]} if path == MESSAGES else {"input": "a"}
    return {"model": "m"} | own | more


# Answers


@pytest.mark.parametrize(
    ("finish", "more", "stop", "sequence", "status", "incomplete"),
    [
        ("stop", {}, "end_turn", None, "completed", None),
        ("stop", {"stop_reason": "x"}, "stop_sequence", "x", "completed", None),
        ("stop", {"stop_reason": 151645}, "end_turn", None, "completed", None),
        ("length", {}, "max_tokens", None, "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", {}, "refusal", None, "incomplete", {"reason": "content_filter"}),
        ("tool_calls", {}, "tool_use", None, "completed", None),
    ],
)
def test_reason_for_which_an_answer_ends_is_translated(
    finish: str, more: dict[str, Any], stop: str, sequence: str | None, status: str, incomplete: dict[str, str] | None
) -> None:
    message = {"role": "assistant", "content": "a"}
    body = msgspec.json.encode(completion(choices=[{"index": 0, "message": message, "finish_reason": finish} | more]))
    made = msgspec.json.decode(messages_as_chat.read_answer(body, CONTEXT).body)
    assert (made["stop_reason"], made["stop_sequence"]) == (stop, sequence)
    response = msgspec.json.decode(responses_as_chat.read_answer(body, CONTEXT).body)
    assert (response["status"], response["incomplete_details"]) == (status, incomplete)
    assert response["instructions"] == "Be brief."


def test_arguments_of_a_tool_that_are_no_object_are_a_fault_unless_the_length_cut_them() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "toll", "arguments": '{"road":'}}
    for finish, is_refused in (("tool_calls", True), ("length", False)):
        choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": finish}
        body = msgspec.json.encode(completion(choices=[choice]))
        if is_refused:
            with pytest.raises(Fault):
                messages_as_chat.read_answer(body, CONTEXT)
        else:
            assert msgspec.json.decode(messages_as_chat.read_answer(body, CONTEXT).body)["content"][0]["input"] == {}


# Streams


_texts = st.lists(st.text(min_size=1, max_size=5), max_size=3)


def _stream(reasoning: list[str], text: list[str], calls: list[list[str]], finish: str) -> list[bytes]:
    """Return the events of a chat stream."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in reasoning]
    deltas += [{"content": piece} for piece in text]
    for index, pieces in enumerate(calls):
        first = {"index": index, "id": f"c{index}", "type": "function", "function": {"name": "toll", "arguments": ""}}
        deltas.append({"tool_calls": [first]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces]
    events = [event(chunk() | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
    return [*events, event(chunk(finish=finish)), event(usage_chunk(5, 7)), DONE]


def _whole(reasoning: list[str], text: list[str], calls: list[list[str]], finish: str) -> bytes:
    """Return the same as a whole chat answer."""
    made = [
        {"id": f"c{index}", "type": "function", "function": {"name": "toll", "arguments": "".join(pieces)}}
        for index, pieces in enumerate(calls)
    ]
    message = {"role": "assistant", "content": "".join(text), "reasoning_content": "".join(reasoning), "tool_calls": made}
    same = {name: value for name, value in chunk().items() if name in ("id", "created", "model")}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    return msgspec.json.encode(
        same | {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}
    )


def _read_events(data: bytes) -> list[dict[str, Any]]:
    events = []
    for each in data.split(b"\n\n")[:-1]:
        name, found = each.split(b"\ndata: ", 1)
        events.append(msgspec.json.decode(found))
        assert name == b"event: " + events[-1]["type"].encode()
    return events


def _rebuild_message(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client of Anthropic's builds from a stream."""
    message = events[0]["message"]
    arguments = ""
    for each in events[1:]:
        match each["type"]:
            case "content_block_start":
                assert each["index"] == len(message["content"])
                message["content"].append(each["content_block"])
                arguments = ""
            case "content_block_delta":
                block, delta = message["content"][each["index"]], each["delta"]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                else:
                    name = delta["type"].removesuffix("_delta")
                    block[name] += delta[name]
            case "content_block_stop":
                if arguments:
                    message["content"][each["index"]]["input"] = msgspec.json.decode(arguments)
            case "message_delta":
                message |= each["delta"] | {"usage": each["usage"]}
    assert [each["type"] for each in events].count("message_stop") == 1 and events[-1]["type"] == "message_stop"
    return message


@given(_texts, _texts, st.lists(st.text(max_size=5), max_size=3), st.sampled_from(["stop", "length", "tool_calls"]))
@settings(max_examples=40, deadline=None)
def test_stream_reconstructs_to_the_whole_answer(reasoning: list[str], text: list[str], values: list[str], finish: str) -> None:
    """Held for both APIs, with the same usage."""
    calls = [['{"road"', ":", msgspec.json.encode(value).decode(), "}"] for value in values]
    events, body = _stream(reasoning, text, calls, finish), _whole(reasoning, text, calls, finish)
    for module in (messages_as_chat, responses_as_chat):
        stream, out = module.TRANSLATION.new_stream(CONTEXT), b""
        for each in events:
            assert not stream.terminated
            out += stream.read(each[:-2]) or b""
        answer = module.read_answer(body, CONTEXT)
        assert stream.terminated and stream.used == answer.used == Quantities(5, 0, 7)
        assert stream.source is answer.source is UsageSource.ENGINE_FINAL
        read = _read_events(out + stream.terminator)
        expected = msgspec.json.decode(answer.body)
        if module is messages_as_chat:
            assert _rebuild_message(read) == expected
        else:
            assert [each["sequence_number"] for each in read] == list(range(len(read)))
            assert read[-1]["type"] == f"response.{expected['status']}" and read[-1]["response"] == expected
            done = [each["item"] for each in read if each["type"] == "response.output_item.done"]
            assert done == expected["output"]


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_stream_cut_at_any_byte_never_shows_its_last_event(path: str) -> None:
    module = messages_as_chat if path == MESSAGES else responses_as_chat
    data = b"".join(_stream(["r"], ["a", "b"], [["{", "}"]], "tool_calls"))
    for place in range(len(data)):
        stream = module.TRANSLATION.new_stream(CONTEXT)
        out = b"".join(stream.read(each) or b"" for each in sse.EventReader().feed(data[:place]))
        assert not stream.terminated and stream.terminator == b""
        assert b"message_stop" not in out and b"response.completed" not in out


@pytest.mark.parametrize(
    "deltas",
    [
        [{"tool_calls": [{"index": 1, "function": {"name": "a"}}]}],
        [{"tool_calls": [{"index": 0, "function": {}}]}],
        [
            {"tool_calls": [{"index": 0, "function": {"name": "a"}}]}, {"content": "b"},
            {"tool_calls": [{"index": 0, "function": {"arguments": "c"}}]},
        ],
        [{"content": 1}],
        [{"tool_calls": [{"index": -1, "function": {"name": "a"}}]}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("module", [messages_as_chat, responses_as_chat])
def test_stream_of_another_shape_is_a_fault_of_the_engine(deltas: list[dict[str, Any]], module: Any) -> None:
    stream = module.TRANSLATION.new_stream(CONTEXT)
    with pytest.raises(Fault) as caught:
        for delta in deltas:
            stream.read(event(chunk() | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})[:-2])
    assert caught.value.kind.code.startswith("upstream_")


BROKEN: dict[str, list[Any]] = {
    "cut": [Do.RST],
    "ended": [END],
    "error": [part(event({"error": {"message": "died", "code": 500}})), part(DONE), END],
}


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@pytest.mark.parametrize("way", BROKEN)
async def test_translated_stream_that_breaks_off_ends_in_the_error_of_its_api_and_bills_what_was_delivered(way: str, path: str) -> None:
    script: Script = [STREAM_HEAD, part(chunk("Hel", role="assistant")), part(chunk("lo")), *BROKEN[way]]
    async with Upstream(script).listening() as upstream, gateway({"m": served_by(upstream)}) as running:
        answer = await post(running.port, _ask(path, stream=True), path)
        await running.sink.settled(1)
    last = answer.body.rstrip().rsplit(b"\n\n", 1)[1]
    assert last.startswith(b"event: error\n")
    assert b"message_stop" not in answer.body and b"response.completed" not in answer.body
    final = running.sink.finals[0]
    assert (final.outcome, final.used.output, final.source) == (Outcome.UPSTREAM_ERROR, 2, UsageSource.COUNTED)
    assert final.admit.endpoint == path.removeprefix("/v1/")


async def test_messages_are_translated_for_an_engine_that_has_none_under_the_caps_and_the_salt_of_chat_completions() -> None:
    async with Upstream([whole(completion("Hello"))], [whole(completion("Hello"))]).listening() as upstream:
        served = Served([upstream.url], engine=Engine.TRTLLM, upstream_model="up", output_tokens_max=50)
        async with gateway({"m": served}) as running:
            answer = await post(running.port, _ask(MESSAGES, metadata={"user_id": "u"}), MESSAGES)
            assert answer.json()["model"] == "m" and answer.json()["content"] == [{"type": "text", "text": "Hello"}]
            assert (await post(running.port, {"model": "m", "input": "a"}, RESPONSES)).status == 502, "relayed, because this engine has it"
            await running.sink.settled(2)
    first, second = upstream.asked
    assert first.head.startswith(b"POST /v1/chat/completions ") and b"anthropic-version" not in first.head
    sent = msgspec.json.decode(first.body)
    assert sent.pop("cache_salt")
    assert sent == {"model": "up", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    assert second.head.startswith(b"POST /v1/responses ")
    assert running.sink.finals[0].outcome is Outcome.COMPLETED


@pytest.mark.parametrize(("reason", "code"), [("length", "summary_incomplete"), ("content_filter", "content_policy_violation")])
async def test_summary_that_was_cut_is_no_compaction_and_what_was_generated_is_billed(reason: str, code: str) -> None:
    cut = completion(choices=[{"index": 0, "message": {"role": "assistant", "content": "half a"}, "finish_reason": reason}])
    upstream = Upstream([whole(cut)])
    async with upstream.listening(), gateway({"m": served_by(upstream)}) as running:
        answer = await post(running.port, {"model": "m", "input": "Hello"}, "/v1/responses/compact")
        assert (answer.status, answer.error["code"]) == (400, code)
        final = await running.sink.settled()
        assert (final.outcome, final.error, len(upstream.asked)) == (Outcome.CLIENT_CANCELLED, code, 1)
        assert billed(final).output > 0
