"""The Anthropic dialect, through the official SDK and by bytes: relayed to engines that speak it, metered like the others."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import msgspec
import pytest

from tests.fakes import Do, Script, Upstream
from tests.gateway.harness import KEY, STREAM_HEAD, Answer, Gateway, Memory, Served, gateway, plane, post, split_answers
from tests.patience import CLIENT_SECONDS
from tests.simulator.running import Running, simulator
from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import Outcome, UsageSource

FAULTS = ("sim-echo!cut@2", "sim-echo!error@2", "sim-echo!status@529", "sim-small!stall@1")
MESSAGES: Any = [{"role": "user", "content": "one two three four five six seven eight"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with simulator(tmp_path_factory.mktemp("simulator") / "truth.jsonl") as running:
        yield running


@pytest.fixture
async def running(engine: Running) -> AsyncIterator[Gateway]:
    models = {name: Served([engine.url]) for name in ("sim-echo", "sim-small", *FAULTS)}
    async with gateway(models | {"public": Served([engine.url], upstream_model="sim-echo")}) as made:
        yield made


def to(running: Gateway) -> anthropic.AsyncAnthropic:
    """A client of the official SDK that tries once."""
    return anthropic.AsyncAnthropic(base_url=running.url, api_key=KEY, max_retries=0, timeout=CLIENT_SECONDS)


@pytest.fixture
async def client(running: Gateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with to(running) as made:
        yield made


async def test_a_message_is_answered_and_metered(running: Gateway, client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(model="public", max_tokens=5, messages=MESSAGES)
    assert message.model == "public"
    assert message.stop_reason == "max_tokens"
    assert message._request_id is not None and message._request_id.startswith("req_")
    await running.sink.settled(1)
    final = running.sink.finals[0]
    assert (final.outcome, final.source) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL)
    assert final.used == Quantities(message.usage.input_tokens, message.usage.cache_read_input_tokens or 0, message.usage.output_tokens)
    assert final.admit.endpoint == "messages"


async def test_a_stream_is_relayed_to_its_terminator(running: Gateway, client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(model="public", max_tokens=6, messages=MESSAGES) as stream:
        text = "".join([part async for part in stream.text_stream])
        message = await stream.get_final_message()
    assert text and message.model == "public"
    await running.sink.settled(1)
    final = running.sink.finals[0]
    assert final.outcome is Outcome.COMPLETED
    assert final.used.output == message.usage.output_tokens == 6
    assert final.used.input + final.used.cached_input == message.usage.input_tokens


async def test_counting_tokens_is_relayed_and_costs_nothing(running: Gateway, client: anthropic.AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(model="sim-echo", messages=MESSAGES)
    assert counted.input_tokens > 0
    await running.sink.settled(1)
    assert running.sink.finals[0].used == Quantities()


async def test_errors_have_the_shape_that_the_sdk_knows(running: Gateway, client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await client.messages.create(model="nowhere", max_tokens=5, messages=MESSAGES)
    body: Any = unknown.value.body
    assert body["type"] == "error" and body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError):
        await client.with_options(api_key="tw_live_wrong").messages.create(model="sim-echo", max_tokens=5, messages=MESSAGES)
    with pytest.raises(anthropic.BadRequestError) as invalid:
        await client.messages.create(model="sim-echo", max_tokens=0, messages=MESSAGES)
    assert "max_tokens" in str(invalid.value)
    with pytest.raises(anthropic.APIStatusError):
        await client.messages.create(model="sim-echo!status@529", max_tokens=5, messages=MESSAGES)


@pytest.mark.parametrize("model", ["sim-echo!cut@2", "sim-echo!error@2"])
async def test_an_engine_that_breaks_off_ends_in_an_error_event(model: str, running: Gateway, client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APIStatusError):
        async for _ in await client.messages.create(model=model, max_tokens=6, messages=MESSAGES, stream=True):
            pass
    await running.sink.settled(1)
    final = running.sink.finals[0]
    assert final.outcome is Outcome.UPSTREAM_ERROR
    assert final.used.input > 0 and final.used.output >= 1


async def test_versions_go_on_unchanged_and_unknown_fields_pass(running: Gateway) -> None:
    answer = msgspec.json.encode({"type": "message", "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}})
    upstream = Upstream([b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer])
    new, beta = {"new_feature": {"on": True}}, {"anthropic-beta": "a,b"}
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as made, to(made) as client:
        await client.messages.create(model="m", max_tokens=5, messages=MESSAGES, extra_body=new, extra_headers=beta)
    asked = upstream.asked[0]
    assert b"\r\nanthropic-beta: a,b\r\n" in asked.head and b"\r\nanthropic-version: " in asked.head
    assert KEY.encode() not in asked.head
    assert msgspec.json.decode(asked.body)["new_feature"] == {"on": True}


START = (
    b'event: message_start\ndata: {"type":"message_start",'
    b'"message":{"model":"m","content":[],"usage":{"input_tokens":7,"output_tokens":0}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
)
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n\n'
FINISH = (
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n'
)
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
STREAM = START + DELTA + DELTA + FINISH + STOP


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


async def test_an_engine_that_dies_at_any_byte_is_never_a_success() -> None:
    places = range(0, len(STREAM), 5)
    scripts: list[Script] = [[STREAM_HEAD + framed(STREAM[:place]), Do.RST] for place in places]
    upstream = Upstream(*scripts, [STREAM_HEAD + framed(STREAM) + b"0\r\n\r\n", Do.FIN])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as made:
        async with to(made) as client:
            for _ in places:
                made.plane.retries._tokens = 0.0
                with pytest.raises(anthropic.APIError):
                    async for _ in await client.messages.create(model="m", max_tokens=6, messages=MESSAGES, stream=True):
                        pass
            async with client.messages.stream(model="m", max_tokens=6, messages=MESSAGES) as stream:
                assert (await stream.get_final_message()).usage.output_tokens == 2
        await made.sink.settled(len(places) + 1)
        assert {final.outcome for final in made.sink.finals[:-1]} == {Outcome.UPSTREAM_ERROR}
        assert made.sink.finals[-1].used == Quantities(input=7, output=2)


@pytest.mark.parametrize("reason", [b"null", b'"abort"'])
async def test_a_stream_that_its_engine_aborts_ends_with_an_error_and_is_no_success(reason: bytes) -> None:
    """A draining vLLM ends so what runs too long: a message_delta without a reason, and a message_stop."""
    aborted = START + DELTA + FINISH.replace(b'"end_turn"', reason) + STOP
    upstream = Upstream([STREAM_HEAD + framed(aborted) + b"0\r\n\r\n", Do.FIN])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as made:
        async with to(made) as client:
            with pytest.raises(anthropic.APIError):
                async for _ in await client.messages.create(model="m", max_tokens=6, messages=MESSAGES, stream=True):
                    pass
        await made.sink.settled(1)
    assert made.sink.finals[0].outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize("options", [5, "x", [1], {"include_usage": True}])
async def test_stream_options_of_another_api_are_forwarded_and_change_nothing(running: Gateway, options: Any) -> None:
    """An unknown field of any type is the engine's to validate; the gateway reads no meaning into it."""
    body = {"model": "sim-echo", "max_tokens": 5, "messages": MESSAGES, "stream": True, "stream_options": options}
    answer = await post(running.port, body, "/v1/messages")
    assert answer.status == 200 and b"event: message_stop" in answer.body


ODD_EVENTS: list[Any] = [
    {"type": "content_block_start", "index": "0", "content_block": []},
    {"type": "content_block_delta", "index": 0, "delta": ["a"]},
    {"type": "message_delta", "delta": [], "usage": None},
    {"type": "x.y-z", "delta": 7, "message": 7},
    {"type": 7, "delta": {}},
    {"progress": 1},
]


async def test_events_that_are_no_errors_are_relayed_whatever_their_shape() -> None:
    start = {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 9, "cache_read_input_tokens": []}}}
    end = [{"type": "message_delta", "delta": {"stop_reason": 7}, "usage": {"output_tokens": 3.0}}, {"type": "message_stop"}]
    sent = [start, *ODD_EVENTS, *end]
    data = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in sent)
    upstream = Upstream([STREAM_HEAD, framed(data), b"0\r\n\r\n"])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        answer = await post(running.port, {"model": "m", "max_tokens": 9, "stream": True, "messages": MESSAGES}, "/v1/messages")
        final = await running.sink.settled()
        anomalies = running.plane.metrics.anomalies
    lines = [line for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    assert [msgspec.json.decode(line[6:]) for line in lines] == sent
    names = [line for line in answer.body.split(b"\n") if line.startswith(b"event: ")]
    assert names[0] == b"event: message_start" and b"event: x.y-z" in names and len(names) == len(sent) - 2
    assert (final.outcome, final.used, final.source) == (Outcome.COMPLETED, Quantities(9, 0, 3), UsageSource.ENGINE_FINAL)
    assert anomalies == {"usage_invalid": 1}


ENTRIES = {
    "no key, large body": (401, "authentication_error", {"content-length": "100000"}),
    "body beyond the bound": (413, "request_too_large", {"content-length": str(1 << 40), "x-api-key": KEY}),
    "other media type": (415, "invalid_request_error", {"content-type": "text/plain", "content-length": "2", "x-api-key": KEY}),
    "compressed body": (415, "invalid_request_error", {"content-encoding": "gzip", "content-length": "2", "x-api-key": KEY}),
    "two credentials": (400, "invalid_request_error", {"authorization": "Bearer x", "x-api-key": KEY, "content-length": "2"}),
    "one header too large": (431, "invalid_request_error", {"x-padding": "a" * 100_000}),
    "too many headers": (431, "invalid_request_error", {f"x-{number}": "a" for number in range(200)}),
    "malformed framing": (400, "invalid_request_error", {"content-length": "-1"}),
    "other expectation": (417, "invalid_request_error", {"expect": "200-maybe", "content-length": "2"}),
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages?beta=true", "http://gateway/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("case", ENTRIES)
async def test_error_found_before_the_body_is_read_has_the_shape_of_the_path(case: str, path: str) -> None:
    status, type, headers = ENTRIES[case]
    with plane() as (made, _, _):
        fields = {"host": "gateway", "content-type": "application/json"} | headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        connection = await Memory(made).exchange(f"POST {path} HTTP/1.1\r\n{lines}\r\n{{}}".encode())
        (answer,) = split_answers(connection.written)
    assert answer.status == status
    check_shape(answer, type)


@pytest.mark.parametrize(
    ("request_line", "status", "type"),
    [
        ("GET /v1/messages HTTP/1.1", 405, "invalid_request_error"),
        ("POST /v1/messages/batches HTTP/1.1", 404, "not_found_error"),
        (f"POST /v1/messages?{'a' * 20_000} HTTP/1.1", 414, "invalid_request_error"),
    ],
)
async def test_error_of_a_route_below_messages_has_its_shape(request_line: str, status: int, type: str) -> None:
    with plane() as (made, _, _):
        connection = await Memory(made).exchange(f"{request_line}\r\nhost: gateway\r\n\r\n".encode())
        (answer,) = split_answers(connection.written)
    assert answer.status == status
    check_shape(answer, type)


async def test_error_of_a_pipelined_request_has_the_shape_of_its_own_path() -> None:
    with plane() as (made, _, _):
        first = b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n"
        second = b"POST /v1/messages HTTP/1.1\r\nhost: gateway\r\ncontent-length: -1\r\n\r\n"
        third = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n\r\n"
        answers = split_answers((await Memory(made).exchange(first + second + third)).written)
    assert [answer.status for answer in answers] == [200, 400]
    check_shape(answers[1], "invalid_request_error")


async def test_head_that_does_not_end_in_time_is_answered_in_the_shape_of_its_path() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        connection = memory.connect()
        connection.feed(b"POST /v1/messages HTTP/1.1\r\nhost: gat")
        memory.tick(connection, 60.0)
        (answer,) = split_answers(connection.written)
    assert answer.status == 408
    check_shape(answer, "invalid_request_error")


def check_shape(answer: Answer, type: str) -> None:
    """Fail unless an answer is Anthropic's error object, and carries its request id in the header that the SDK reads."""
    body = answer.json()
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["error"]["type"] == type
    assert answer.headers["request-id"] == body["request_id"]
