"""`python conformance.py URL KEY`: what a program that was written for OpenAI or Anthropic does, done to a gateway.

Uses only what every line of the SDKs has (openai 1 to 3, anthropic 0 and 2), and nothing of ours: it runs under the interpreter of
whichever environment holds the line. Prints one JSON object a row: its name, and what went wrong or null.
"""

import base64
import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import openai

try:
    import anthropic
except ModuleNotFoundError:
    anthropic = None  # type: ignore[assignment]

ASK: Any = [{"role": "user", "content": "Say something."}]
TOOLS: Any = [{"type": "function", "function": {"name": "toll", "parameters": {"type": "object", "properties": {"road": {}}}}}]
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "toll", "strict": True, "schema": {"type": "object"}}}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
"""One pixel."""
IMAGE = f"data:image/png;base64,{PNG}"
Client = Any


def plain(client: Client) -> None:
    answer = client.chat.completions.create(model="m", messages=ASK)
    assert answer.choices[0].message.content == "Hello" and answer.usage.total_tokens == 7
    assert answer._request_id.startswith("req_")


def stream(client: Client) -> None:
    chunks = list(client.chat.completions.create(model="m", messages=ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "stop" and all(chunk.usage is None for chunk in chunks)


def stream_with_usage(client: Client) -> None:
    chunks = list(client.chat.completions.create(model="m", messages=ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


def tools(client: Client) -> None:
    message = client.chat.completions.create(model="m", messages=ASK, tools=TOOLS, tool_choice="auto").choices[0].message
    call = message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments)) == ("toll", {"road": "A1"})
    told = [*ASK, message, {"role": "tool", "tool_call_id": "call_1", "content": "250"}]
    assert client.chat.completions.create(model="m", messages=told).choices[0].message.content == "Hello"


def tools_streamed(client: Client) -> None:
    arguments = ""
    for chunk in client.chat.completions.create(model="m", messages=ASK, tools=TOOLS, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments += call.function.arguments or ""
    assert json.loads(arguments) == {"road": "A1"}


def json_schema(client: Client) -> None:
    answer = client.chat.completions.create(model="m", messages=ASK, response_format=SCHEMA)
    assert json.loads(answer.choices[0].message.content) == {"road": "A1", "cents": 250}


def vision(client: Client) -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}]
    assert client.chat.completions.create(model="m", messages=[{"role": "user", "content": content}]).choices[0].message.content


def embeddings(client: Client) -> None:
    """Unasked, the SDK wants base64 and decodes it; asked for floats, it gets floats."""
    answers = [
        client.embeddings.create(model="m", input=["a", "b"]),
        client.embeddings.create(model="m", input="a", encoding_format="float"),
    ]
    assert [len(answer.data) for answer in answers] == [2, 1]
    assert all(item.embedding == [0.5, -1.0, 0.25] for answer in answers for item in answer.data)


def embeddings_of_tokens(client: Client) -> None:
    """As LangChain sends them."""
    assert len(client.embeddings.create(model="m", input=[[1, 2, 3], [4]]).data) == 2


def completions(client: Client) -> None:
    assert client.completions.create(model="m", prompt="x").choices[0].text == "Hello"


SOUND = b"RIFF\x64\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x40\0\0\0" + bytes(64)


def transcripts(client: Client) -> None:
    file = ("a.wav", SOUND)
    assert client.audio.transcriptions.create(model="m", file=file).text == "Hello"
    assert client.audio.translations.create(model="m", file=file, temperature=0.5).text == "Hello"
    assert client.audio.transcriptions.create(model="m", file=file, response_format="text") == "Hello"
    events = list(client.audio.transcriptions.create(model="m", file=file, stream=True, include=["logprobs"]))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]


def speech(client: Client) -> None:
    asked = {"model": "m", "input": "Hello", "voice": "alloy"}
    assert client.audio.speech.create(**asked).content == b"sound"
    with client.audio.speech.with_streaming_response.create(**asked) as answer:
        assert b"".join(answer.iter_bytes()) == b"sound"


def files(client: Client) -> None:
    file = client.files.create(file=("a.jsonl", b"line\n" * 30_000), purpose="user_data")
    assert [each.id for each in client.files.list(purpose="user_data")] == [file.id]
    assert client.files.content(file.id).content == b"line\n" * 30_000
    assert client.files.retrieve(file.id).bytes == 150_000
    assert client.files.delete(file.id).deleted
    try:
        client.files.retrieve(file.id)
    except openai.NotFoundError as error:
        assert error.request_id.startswith("req_")
    else:
        raise AssertionError("a file that was deleted")


def batches(client: Client) -> None:
    lines = [
        {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": ASK}}
        for number in range(3)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("a.jsonl", content), purpose="batch")
    asked: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"job": "night"}}
    batch = client.batches.create(input_file_id=file.id, **asked)
    assert batch.id in [each.id for each in client.batches.list()]
    for _ in range(300):
        if batch.status in ("completed", "failed"):
            break
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts.completed, batch.metadata) == ("completed", 3, {"job": "night"}), batch
    output = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in output) == ["c-0", "c-1", "c-2"]
    assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in output} == {"Hello"}
    try:
        client.batches.cancel(batch.id)
    except openai.ConflictError:
        pass
    else:
        raise AssertionError("a batch that has ended was cancelled")


def images(client: Client) -> None:
    assert client.images.generate(model="m", prompt="x", n=2, size="256x256").data[1].b64_json


def moderations(client: Client) -> None:
    assert client.moderations.create(model="m", input="x").results[0].flagged is False


def image_edits(client: Client) -> None:
    pictures = [(f"{number}.png", base64.b64decode(PNG)) for number in range(2)]
    assert client.images.edit(model="m", prompt="x", image=pictures, size="256x256").data[0].b64_json


def models(client: Client) -> None:
    assert "m" in [model.id for model in client.models.list()]
    model = client.models.retrieve("org/name").model_dump()
    assert model["id"] == "org/name" and model["prices"][0]["unit_prices"]["input"] and "chat/completions" in model["endpoints"]


def errors(client: Client) -> None:
    once = client.with_options(max_retries=0)
    for kind, code, ask in (
        (openai.NotFoundError, "model_not_found", lambda: once.chat.completions.create(model="absent", messages=ASK)),
        (openai.BadRequestError, "invalid_value", lambda: once.chat.completions.create(model="m", messages=ASK, max_tokens=-1)),
        (openai.BadRequestError, "unknown_parameter", lambda: once.chat.completions.create(model="m", messages=ASK, extra_body={"x": 1})),
        (openai.AuthenticationError, "invalid_api_key", lambda: once.with_options(api_key="sk-x").models.list()),
        (openai.NotFoundError, "model_not_found", lambda: once.models.retrieve("absent")),
    ):
        try:
            ask()
        except kind as error:
            assert error.code == code and error.request_id.startswith("req_") and error.request_id in error.message
        else:
            raise AssertionError(f"no {kind.__name__}")


def retry(client: Client) -> None:
    """A refusal that passes is tried again by the SDK, when it is told to come back."""
    answer = client.with_options(max_retries=2).chat.completions.create(model="m", messages=[{"role": "user", "content": "busy"}])
    assert answer.choices[0].message.content == "Hello"


def cancel(client: Client) -> None:
    with client.chat.completions.create(model="m", messages=[{"role": "user", "content": "slow"}], stream=True) as running:
        for chunk in running:
            if chunk.choices[0].delta.content == "b":
                break


def responses(client: Client) -> None:
    answer = client.responses.create(model="m", input="Say something.", instructions="Be brief.")
    assert (answer.output_text, answer.status, answer.usage.total_tokens) == ("Hello", "completed", 7)
    assert answer._request_id.startswith("req_")


def responses_stream(client: Client) -> None:
    with client.responses.stream(model="m", input=[{"role": "user", "content": "Say something."}]) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        last = events.get_final_response()
    assert text == last.output_text == "Hello" and last.usage.output_tokens == 2


def responses_tools(client: Client) -> None:
    tool: Any = {"type": "function", "name": "toll", "parameters": {"type": "object", "properties": {"road": {}}}, "strict": False}
    answer = client.responses.create(model="m", input="Say something.", tools=[tool])
    (call,) = answer.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "toll", {"road": "A1"})
    told = [{"role": "user", "content": "Say something."}, call, {"type": "function_call_output", "call_id": call.call_id, "output": "250"}]
    assert client.responses.create(model="m", input=told).output_text == "Hello"


def responses_errors(client: Client) -> None:
    for asked in ({"previous_response_id": "resp_1"}, {"tools": [{"type": "web_search"}]}):
        try:
            client.responses.create(model="m", input="Say something.", **asked)
        except openai.BadRequestError as error:
            assert error.param == next(iter(asked))
        else:
            raise AssertionError(f"{asked} was not refused")


def responses_stored(client: Client) -> None:
    first = client.responses.create(model="m", input="Say something.", store=True)
    assert client.responses.retrieve(first.id).output_text == "Hello"
    second = client.responses.create(model="m", input="Again.", previous_response_id=first.id, store=True)
    assert [item.role for item in client.responses.input_items.list(second.id, order="asc")] == ["user", "assistant", "user"]
    for ask, kind in (
        (client.responses.cancel, openai.BadRequestError),
        (client.responses.delete, None),
        (client.responses.retrieve, openai.NotFoundError),
    ):
        try:
            ask(first.id)
        except openai.APIStatusError as error:
            assert kind is not None and isinstance(error, kind)
        else:
            assert kind is None


def responses_background(client: Client) -> None:
    answer = client.responses.create(model="m", input="Say something.", background=True)
    assert (answer.status, answer.output_text) == ("queued", "")
    for _ in range(300):
        if answer.status not in ("queued", "in_progress"):
            break
        time.sleep(0.1)
        answer = client.responses.retrieve(answer.id)
    assert (answer.status, answer.output_text) == ("completed", "Hello")
    assert client.responses.cancel(answer.id).status == "completed"


def responses_compact(client: Client) -> None:
    """As every line can ask, the older ones without a function of their own."""
    asked = {"model": "m", "input": [{"role": "user", "content": "Say something."}]}
    answer = client.post("/responses/compact", body=asked, cast_to=object)
    assert (answer["object"], [item["type"] for item in answer["output"]]) == ("response.compaction", ["compaction"])
    assert client.responses.create(model="m", input=[*answer["output"], *asked["input"]]).output_text == "Hello"
    if hasattr(client.responses, "compact"):
        assert client.responses.compact(**asked).usage.output_tokens == 2


def responses_count(client: Client) -> None:
    if hasattr(client.responses, "input_tokens"):
        assert client.responses.input_tokens.count(model="m", input="Say something.").input_tokens == 7


def claude_plain(client: Client) -> None:
    message = client.messages.create(model="m", max_tokens=9, messages=ASK)
    assert message.content[0].text == "Hello" and message.usage.output_tokens == 2
    assert message._request_id.startswith("req_")


def claude_stream(client: Client) -> None:
    with client.messages.stream(model="m", max_tokens=9, messages=ASK) as running:
        assert "".join(running.text_stream) == "Hello"
        assert running.get_final_message().usage.output_tokens == 2


def claude_tools(client: Client) -> None:
    tools = [{"name": "toll", "input_schema": {"type": "object"}}]
    whole = client.messages.create(model="m", max_tokens=9, messages=ASK, tools=tools)
    with client.messages.stream(model="m", max_tokens=9, messages=ASK, tools=tools) as running:
        streamed = running.get_final_message()
    assert [each.content[0].input for each in (whole, streamed)] == [{"road": "A1"}] * 2
    assert {each.stop_reason for each in (whole, streamed)} == {"tool_use"}


def claude_vision(client: Client) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    assert client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": content}]).content


def claude_batches(client: Client) -> None:
    params = {"model": "m", "max_tokens": 9, "messages": ASK}
    batch = client.messages.batches.create(requests=[{"custom_id": name, "params": params} for name in ("a", "b")])
    for _ in range(300):
        if batch.processing_status == "ended":
            break
        time.sleep(0.1)
        batch = client.messages.batches.retrieve(batch.id)
    assert batch.request_counts.succeeded == 2, batch
    texts = {each.custom_id: each.result.message.content[0].text for each in client.messages.batches.results(batch.id)}
    assert texts == {"a": "Hello", "b": "Hello"}
    assert batch.id in [each.id for each in client.messages.batches.list()]
    client.messages.batches.delete(batch.id)


def claude_count(client: Client) -> None:
    assert client.messages.count_tokens(model="m", messages=ASK).input_tokens == 7


def claude_errors(client: Client) -> None:
    for kind, ask in (
        (anthropic.NotFoundError, lambda: client.messages.create(model="absent", max_tokens=9, messages=ASK)),
        (anthropic.BadRequestError, lambda: client.messages.create(model="m", max_tokens=-1, messages=ASK)),
        (anthropic.AuthenticationError, lambda: client.with_options(api_key="sk-x").messages.create(model="m", max_tokens=9, messages=ASK)),
    ):
        try:
            ask()
        except kind as error:
            assert error.request_id.startswith("req_")
        else:
            raise AssertionError(f"no {kind.__name__}")


def claude_retry(client: Client) -> None:
    asked = [{"role": "user", "content": "busy"}]
    assert client.with_options(max_retries=2).messages.create(model="m", max_tokens=9, messages=asked).content[0].text == "Hello"


OPENAI: list[Callable[[Client], None]] = [
    plain, stream, stream_with_usage, tools, tools_streamed, json_schema, vision, embeddings, embeddings_of_tokens, completions, models,
    errors, retry, cancel, responses, responses_stream, responses_tools, responses_errors,
    responses_stored, responses_background, responses_compact, responses_count,
    transcripts, speech, images, image_edits, moderations, files, batches,
]  # fmt: skip
ANTHROPIC: list[Callable[[Client], None]] = [
    claude_plain, claude_stream, claude_tools, claude_vision, claude_count, claude_errors, claude_retry, claude_batches,
]  # fmt: skip


def main(url: str, key: str) -> None:
    """Do every row that the SDKs here can do."""
    clients: list[tuple[Client, list[Callable[[Client], None]]]] = []
    clients.append((openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30), OPENAI))
    if anthropic is not None:
        clients.append((anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=30), ANTHROPIC))
    for client, rows in clients:
        for row in rows:
            try:
                row(client)
                wrong = None
            except Exception:  # whatever an SDK raises is the answer of this row
                wrong = traceback.format_exc(limit=-3)
            print(json.dumps({"row": row.__name__, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
