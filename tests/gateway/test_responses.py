"""OpenAI's responses, through the official SDK and by bytes: relayed to engines that speak it, metered like the others."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import openai
import pytest

from tests.fakes import Do, Script, Upstream
from tests.gateway.harness import KEY, STREAM_HEAD, Gateway, Served, gateway, post, whole
from tests.patience import CLIENT_SECONDS
from tests.simulator.running import Running, simulator
from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import Outcome, UsageSource

PATH = "/v1/responses"
INPUT = "one two three four five six seven eight"
FAULTS = ("sim-echo!cut@2", "sim-echo!error@2", "sim-echo!usage:missing")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with simulator(tmp_path_factory.mktemp("simulator") / "truth.jsonl") as running:
        yield running


@pytest.fixture
async def running(engine: Running) -> AsyncIterator[Gateway]:
    models = {name: Served([engine.url]) for name in ("sim-echo", "sim-small", *FAULTS)}
    async with gateway(models | {"public": Served([engine.url], upstream_model="sim-echo")}) as made:
        yield made


@pytest.fixture
async def client(running: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0, timeout=CLIENT_SECONDS) as made:
        yield made


async def test_response_is_answered_under_the_public_name_and_metered(running: Gateway, client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(
        model="public", input=INPUT, instructions="Be brief.", max_output_tokens=5, user="u", store=False
    )
    assert (response.model, response.status) == ("public", "incomplete")
    assert response.output_text
    await running.sink.settled(1)
    final = running.sink.finals[0]
    assert response.usage is not None
    cached = response.usage.input_tokens_details.cached_tokens
    assert (final.outcome, final.source) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL)
    assert final.used == Quantities(response.usage.input_tokens - cached, cached, response.usage.output_tokens)
    assert final.admit.endpoint == "responses"


async def test_stream_is_relayed_to_its_last_event_with_the_public_name(running: Gateway, client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="public", input=INPUT, max_output_tokens=6) as stream:
        events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    assert [getattr(event, "sequence_number", None) for event in events] == sorted(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert last.response.output_text == text and last.response.model == "public"
    await running.sink.settled(1)
    final = running.sink.finals[0]
    assert (final.outcome, final.source) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL)
    assert final.used.output == last.response.usage.output_tokens == 6
    assert final.used.input + final.used.cached_input == last.response.usage.input_tokens


async def test_input_is_counted_with_the_official_sdk(client: openai.AsyncOpenAI, running: Gateway) -> None:
    counted = await client.responses.input_tokens.count(model="public", input=INPUT, instructions="Be brief.")
    answered = await client.responses.create(model="public", input=INPUT, instructions="Be brief.")
    assert answered.usage is not None and counted.input_tokens == answered.usage.input_tokens
    await running.sink.settled(2)
    assert running.sink.finals[0].used == Quantities()


async def test_conversation_of_items_with_calls_of_a_tool_is_accepted(running: Gateway, client: openai.AsyncOpenAI) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is the weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "A call is needed."}], "encrypted_content": "x"},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain.", "annotations": []}]},
        {"role": "user", "content": "Thanks."},
    ]
    tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
    response = await client.responses.create(model="sim-echo", input=items, tools=[tool], max_output_tokens=4)
    assert response.output_text


@pytest.mark.parametrize("model", ["sim-echo!cut@2", "sim-echo!error@2"])
async def test_engine_that_breaks_off_ends_in_an_error_and_bills_what_was_delivered(
    model: str, running: Gateway, client: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.APIError):
        async for _ in await client.responses.create(model=model, input=INPUT, max_output_tokens=6, stream=True):
            pass
    await running.sink.settled(1)
    final = running.sink.finals[0]
    assert final.outcome is Outcome.UPSTREAM_ERROR
    assert final.used.output >= 1 and final.source is UsageSource.COUNTED


async def test_stream_without_a_usage_report_bills_what_was_counted(running: Gateway, client: openai.AsyncOpenAI) -> None:
    async for _ in await client.responses.create(model="sim-echo!usage:missing", input=INPUT, max_output_tokens=6, stream=True):
        pass
    await running.sink.settled(1)
    final = running.sink.finals[0]
    assert final.outcome is Outcome.COMPLETED and final.used.output == 6 and final.used.input > 0


REFUSED: list[tuple[str, Any, str]] = [
    ("store", True, "store"),
    ("previous_response_id", "resp_1", "previous_response_id"),
    ("conversation", "conv_1", "conversation"),
    ("background", True, "background"),
    ("prompt", {"id": "pmpt_1"}, "prompt"),
    ("tools", [{"type": "mcp", "server_label": "x", "server_url": "http://169.254.169.254"}], "tools"),
    ("tools", [{"type": "web_search"}], "tools"),
    ("input", [], "input"),
    ("input", [{"type": "item_reference", "id": "msg_1"}], "input[0].type"),
    ("input", [{"type": "computer_call_output", "output": {"image_url": "http://10.0.0.1/"}}], "input[0].type"),
    ("input", ["text"], "input[0]"),
    ("input", [{"role": "user", "content": "x", "image_url": "http://10.0.0.1/"}], "input[0].image_url"),
    ("input", [{"role": "user", "content": {"text": "x"}}], "input[0].content"),
    (
        "input",
        [{"role": "user", "content": [{"type": "input_image", "image_url": "http://169.254.169.254/"}]}],
        "input[0].content[0].image_url",
    ),
    ("input", [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}], "input[0].content[0].file_id"),
    ("input", [{"role": "user", "content": [{"type": "input_file", "file_url": "http://10.0.0.1/"}]}], "input[0].content[0].type"),
    (
        "input",
        [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "http://10.0.0.1/"}]}],
        "input[0].output[0].image_url",
    ),
    ("previous_response", {"output": []}, "previous_response"),
    ("previous_input_messages", [{"role": "system", "content": "x"}], "previous_input_messages"),
    ("max_output_tokens", 0, "max_output_tokens"),
    ("max_tokens", 5, "max_tokens"),
]


@pytest.mark.parametrize(("field", "value", "param"), REFUSED)
async def test_what_is_not_offered_is_refused_by_name(field: str, value: Any, param: str, running: Gateway) -> None:
    answer = await post(running.port, {"model": "sim-echo", "input": INPUT} | {field: value}, PATH)
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_engine_is_told_to_store_nothing_and_never_sees_what_concerns_a_platform() -> None:
    upstream = Upstream([whole({"object": "response", "status": "completed", "output": [], "usage": None})])
    body = {"model": "m", "input": "x", "user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "stream_options": {}}
    async with upstream.listening(), gateway({"m": Served([upstream.url], output_tokens_max=9)}) as made:
        assert (await post(made.port, body, PATH)).status == 200
    sent = msgspec.json.decode(upstream.asked[0].body)
    assert upstream.asked[0].head.startswith(b"POST /v1/responses ")
    sent.pop("cache_salt")
    assert sent == {"model": "m", "input": "x", "store": False, "max_output_tokens": 9}


def event(name: str, **members: Any) -> bytes:
    return f"event: {name}\n".encode() + b"data: " + msgspec.json.encode({"type": name, **members}) + b"\n\n"


USAGE = {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 2, "total_tokens": 9}
START = event("response.created", response={"model": "m", "status": "in_progress", "output": []})
DELTA = event("response.output_text.delta", delta="x", output_index=0)
LAST = event("response.completed", response={"model": "m", "status": "completed", "output": [], "usage": USAGE})
STREAM = START + DELTA + DELTA + LAST


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


async def test_engine_that_dies_at_any_byte_is_never_a_success() -> None:
    places = range(0, len(STREAM), 5)
    scripts: list[Script] = [[STREAM_HEAD + framed(STREAM[:place]), Do.RST] for place in places]
    upstream = Upstream(*scripts, [STREAM_HEAD + framed(STREAM + b"data: [DONE]\n\n") + b"0\r\n\r\n", Do.FIN])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as made:
        for _ in places:
            made.plane.retries._tokens = 0.0
            answer = await post(made.port, {"model": "m", "input": "x", "stream": True}, PATH)
            assert answer.status != 200 or (b"event: error" in answer.body and b"response.completed" not in answer.body)
        answer = await post(made.port, {"model": "m", "input": "x", "stream": True}, PATH)
        assert answer.body == STREAM
        await made.sink.settled(len(places) + 1)
        assert {final.outcome for final in made.sink.finals[:-1]} == {Outcome.UPSTREAM_ERROR}
        assert made.sink.finals[-1].used == Quantities(4, 3, 2)


BROKEN: dict[str, bytes] = {
    "failed": event("response.failed", response={"status": "failed", "error": {"code": "server_error", "message": "out of memory"}}),
    "an error": event("error", code="500", message="out of memory"),
    "an error object": b'data: {"error": {"message": "out of memory", "code": 500}}\n\n',
    "a last event without a response": event("response.completed"),
    "only [DONE]": b"data: [DONE]\n\n",
    "no JSON": b"data: {\n\n",
}


@pytest.mark.parametrize("case", BROKEN)
async def test_stream_that_fails_ends_in_an_error_event_that_clients_know(case: str) -> None:
    upstream = Upstream([STREAM_HEAD, framed(START + DELTA + BROKEN[case]), b"0\r\n\r\n"])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as made:
        answer = await post(made.port, {"model": "m", "input": "x", "stream": True}, PATH)
        final = await made.sink.settled()
    assert answer.body.startswith(START + DELTA + b"event: error\ndata: ")
    data = msgspec.json.decode(answer.body.rstrip().rpartition(b"data: ")[2])
    assert data["type"] == "error" and data["message"] == data["error"]["message"] and data["code"] == data["error"]["code"]
    assert (final.outcome, final.used.output) == (Outcome.UPSTREAM_ERROR, 1)


WHOLE: list[tuple[Any, int]] = [
    ({"status": "failed", "output": [], "error": {"code": "server_error", "message": "x"}}, 502),
    ({"status": "cancelled", "output": []}, 502),
    ({"status": "completed"}, 502),
    ({"object": "error", "message": "This model's maximum context length is 10 tokens.", "code": 400}, 400),
    ({"status": "completed", "output": [{"type": "function_call"}], "usage": USAGE}, 200),
]


@pytest.mark.parametrize(("body", "status"), WHOLE)
async def test_whole_answer_is_a_success_only_if_the_engine_finished_it(body: Any, status: int) -> None:
    upstream = Upstream([whole(body)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as made:
        assert (await post(made.port, {"model": "m", "input": "x"}, PATH)).status == status


REPORTS: list[tuple[Any, Quantities, str | None]] = [
    (USAGE | {"input_tokens_details": {"cached_tokens": 9}}, Quantities(0, 7, 2), "usage_invalid"),
    (USAGE | {"output_tokens_details": {"reasoning_tokens": 1}}, Quantities(4, 3, 1, 1), None),
    (USAGE | {"output_tokens_details": {"reasoning_tokens": 5}}, Quantities(4, 3, 2), "usage_invalid"),
    (USAGE | {"output_tokens": 1_000}, Quantities(4, 3, 9), "usage_inflated"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("usage", "billed", "anomaly"), REPORTS)
async def test_report_is_believed_member_by_member(usage: Any, billed: Quantities, anomaly: str | None, stream: bool) -> None:
    response = {"model": "m", "status": "completed", "output": [], "usage": usage}
    script: Script = [whole(response)]
    if stream:
        script = [STREAM_HEAD, framed(START + DELTA + DELTA + event("response.completed", response=response)), b"0\r\n\r\n"]
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as made:
        body = {"model": "m", "input": "x", "stream": stream, "max_output_tokens": 9}
        assert (await post(made.port, body, PATH)).status == 200
        final = await made.sink.settled()
        anomalies = made.plane.metrics.anomalies
    assert final.used == billed
    assert anomalies == ({} if anomaly is None else {anomaly: 1})
