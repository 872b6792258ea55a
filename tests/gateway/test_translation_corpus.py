"""One corpus of requests, served by an engine that has their API and by translation to its chat completions: the answers have the same
structure and usage, and a stream reconstructs to the whole answer. The engine is the simulator, which has both.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.gateway.harness import NOWHERE, Gateway, Served, gateway, post
from tests.simulator.running import Running, simulator
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import TRANSLATED_ENDPOINTS, Engine
from tollway.engines.table import ENGINES

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
TEXT = "one two three four five six seven eight"
TOOL_RESPONSES = {"type": "function", "name": "toll", "parameters": {"type": "object"}, "strict": False}
TOOL_MESSAGES = {"name": "toll", "input_schema": {"type": "object"}}
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


class Case(NamedTuple):
    """A request: its path, and its body without model and stream. `same_usage`: the engine counts its prompt alike in both APIs; it
    does not where one API writes the conversation in another way than the other."""

    path: str
    body: dict[str, Any]
    same_usage: bool = True


CORPUS: dict[str, Case] = {
    "responses: text": Case(RESPONSES, {"input": TEXT}),
    "responses: text that the length cuts": Case(RESPONSES, {"input": TEXT, "max_output_tokens": 3}),
    "responses: instructions": Case(RESPONSES, {"input": TEXT, "instructions": "Be brief.", "temperature": 0.5, "top_p": 0.5}),
    "responses: messages": Case(RESPONSES, {"input": [
        {"role": "user", "content": [{"type": "input_text", "text": "A1?"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "250", "annotations": []}]},
        {"role": "user", "content": TEXT},
    ]}),
    "responses: picture": Case(RESPONSES, {"input": [
        {"role": "user", "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}"}]},
        {"role": "user", "content": [{"type": "input_text", "text": TEXT}]},
    ]}, same_usage=False),
    "responses: tools and their results": Case(RESPONSES, {"tools": [TOOL_RESPONSES], "input": [
        {"role": "user", "content": TEXT},
        {"type": "function_call", "call_id": "c", "name": "toll", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "250"},
    ]}, same_usage=False),
    "responses: schema": Case(RESPONSES, {"input": TEXT, "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}),
    "messages: text": Case(MESSAGES, {"max_tokens": 99, "messages": [{"role": "user", "content": TEXT}]}),
    "messages: text that the length cuts": Case(MESSAGES, {"max_tokens": 3, "messages": [{"role": "user", "content": TEXT}]}),
    "messages: system": Case(MESSAGES, {"max_tokens": 9, "system": "Be brief.", "messages": [{"role": "user", "content": TEXT}]}),
    "messages: turns": Case(MESSAGES, {"max_tokens": 9, "messages": [
        {"role": "user", "content": "A1?"},
        {"role": "assistant", "content": [{"type": "text", "text": "250"}]},
        {"role": "user", "content": [{"type": "text", "text": TEXT}]},
    ]}),
    "messages: tools": Case(
        MESSAGES, {"max_tokens": 9, "tools": [TOOL_MESSAGES], "messages": [{"role": "user", "content": TEXT}]}, same_usage=False
    ),
}  # fmt: skip
VARYING = {"id", "created_at", "logprobs"}
"""Members that name one answer or its time, or that hold nothing here."""


def find_shape(value: Any) -> Any:
    """Return the structure of an answer: its objects without what names it, each other value by itself or, of a text, by its type."""
    if isinstance(value, dict):
        return {name: find_shape(member) for name, member in sorted(value.items()) if name not in VARYING}
    return [find_shape(each) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with simulator(tmp_path_factory.mktemp("simulator") / "truth.jsonl") as running:
        yield running


@pytest.fixture
async def running(engine: Running) -> AsyncIterator[Gateway]:
    models = {
        "native": Served([engine.url], upstream_model="sim-echo", engine=Engine.OPENAI),
        "translated": Served([engine.url], upstream_model="sim-echo", translated_endpoints=tuple(TRANSLATED_ENDPOINTS)),
    }
    async with gateway(models) as made:
        yield made


async def ask(running: Gateway, model: str, case: Case, *, stream: bool) -> Any:
    """Return a whole answer, or the one that a stream reconstructs to."""
    answer = await post(running.port, {"model": model, "stream": stream} | case.body, case.path)
    assert answer.status == 200, answer.body
    if not stream:
        return answer.json()
    events = [msgspec.json.decode(each.partition(b"\ndata: ")[2]) for each in answer.body.split(b"\n\n")[:-1]]
    return events[-1]["response"] if case.path == RESPONSES else rebuild_message(events)


def rebuild_message(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client of Anthropic's builds from a stream."""
    message: dict[str, Any] = events[0]["message"]
    for each in events[1:]:
        match each["type"]:
            case "content_block_start":
                message["content"].append(each["content_block"])
            case "content_block_delta" if each["delta"]["type"] == "text_delta":
                message["content"][each["index"]]["text"] += each["delta"]["text"]
            case "message_delta":
                message |= {name: value for name, value in each["delta"].items() if value is not None}
                message["usage"] |= each["usage"]
    return message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CORPUS)
async def test_translated_answer_has_the_structure_and_the_usage_of_the_native_one(name: str, stream: bool, running: Gateway) -> None:
    case = CORPUS[name]
    native, translated = [await ask(running, model, case, stream=stream) for model in ("native", "translated")]
    content = "output" if case.path == RESPONSES else "content"
    assert find_shape(native[content]) == find_shape(translated[content])
    for member in ("object", "status", "stop_reason", "incomplete_details"):
        assert native.get(member) == translated.get(member), member
    await running.sink.settled(2)
    one, other = (final.used for final in running.sink.finals)
    assert one.output == other.output and one.output_tokens == translated["usage"]["output_tokens"]
    if case.same_usage:
        assert one.input_tokens == other.input_tokens


@pytest.mark.parametrize("name", CORPUS)
async def test_translated_stream_reconstructs_to_the_whole_answer(name: str, running: Gateway) -> None:
    case = CORPUS[name]
    whole, streamed = [await ask(running, "translated", case, stream=stream) for stream in (False, True)]
    for answer in (whole, streamed):
        answer["model"] = answer.pop("usage") and None  # the second prompt is in the engine's cache
    assert find_shape(whole) == find_shape(streamed)


COUNTED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "responses": (f"{RESPONSES}/input_tokens", {"input": TEXT, "instructions": "Be brief."}, {"object": "response.input_tokens"}),
    "messages": (f"{MESSAGES}/count_tokens", {"messages": [{"role": "user", "content": TEXT}], "system": "Be brief."}, {}),
}


@pytest.mark.parametrize("api", COUNTED)
async def test_tokens_are_counted_alike_by_the_engine_and_by_its_tokenizer_and_bill_nothing(api: str, running: Gateway) -> None:
    path, body, rest = COUNTED[api]
    native, translated = [(await post(running.port, {"model": model} | body, path)).json() for model in ("native", "translated")]
    assert native.pop("context_management", None) is None or api == "messages"
    assert native == translated == {"input_tokens": translated["input_tokens"]} | rest
    await running.sink.settled(2)
    assert [final.used for final in running.sink.finals] == [Quantities()] * 2


async def test_tokens_cannot_be_counted_where_an_engine_has_neither_the_api_nor_a_tokenizer_of_conversations() -> None:
    for engine in Engine:
        profile = ENGINES[engine]
        async with gateway({"m": Served([NOWHERE], engine=engine, translated_endpoints=tuple(TRANSLATED_ENDPOINTS))}) as made:
            for path, body, _ in COUNTED.values():
                answer = await post(made.port, {"model": "m"} | body, path)
                assert answer.status == (502 if profile.tokenizes_messages else 400), (engine, answer.body)


async def test_count_of_an_input_that_cannot_be_translated_is_refused_by_name(running: Gateway) -> None:
    for more, param in (({"input": [{"type": "custom_tool_call", "call_id": "a", "name": "b", "input": "c"}]}, "input[0].type"),
                        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"stream": True}, "stream")):  # fmt: skip
        answer = await post(running.port, {"model": "translated", "input": TEXT} | more, f"{RESPONSES}/input_tokens")
        assert (answer.status, answer.error["param"]) == (400, param)
