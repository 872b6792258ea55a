"""Realtime sessions: who gets one, what goes each way, what each response costs, and how a session ends."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import openai
import pytest

from tests.fakes import PATIENCE_SECONDS
from tests.gateway.harness import ADMIN_KEY, EXPIRED_KEY, KEY, NARROW_KEY, OTHER_KEY, UNKNOWN_KEY, Gateway, Served, gateway, post
from tests.gateway.test_test_keys import change
from tollway.domain.catalog import Guardrail
from tollway.domain.faults import Fault
from tollway.domain.limits import Limits
from tollway.domain.snapshot import Change
from tollway.domain.usage import Outcome, UsageSource
from tollway.gateway.dialects.realtime import OUTPUT_TOKENS_MAX
from tollway.gateway.edge.edge_policy import EdgePolicy
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.realtime.ends import FRAMES_AT_ONCE, FRAMES_PER_SECOND, End
from tollway.gateway.realtime.messages import read_client
from tollway.gateway.realtime.session import RESPONSES_BEGUN_MAX
from tollway.gateway.realtime_sessions import RealtimeBounds, RealtimeSessions
from tollway.wire import web_sockets
from tollway.wire.web_sockets import WebSocket

CREATE = {"type": "response.create"}


def usage(input: int, output: int, **audio: int) -> dict[str, Any]:
    return {
        "total_tokens": input + output, "input_tokens": input, "output_tokens": output,
        "input_token_details": {"cached_tokens": 2, "text_tokens": input, "audio_tokens": audio.get("audio_in", 0)},
        "output_token_details": {"text_tokens": output, "audio_tokens": audio.get("audio_out", 0)},
    }  # fmt: skip


def answers(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer of an engine to a message: a response of two deltas to each that asks for one."""
    if asked["type"] != "response.create":
        return []
    id = asked.get("response", {}).get("metadata", {}).get("id", "resp_1")
    deltas = [{"type": "response.output_text.delta", "response_id": id, "delta": text} for text in ("Hel", "lo")]
    done = {"id": id, "object": "realtime.response", "status": "completed", "usage": usage(12, 7, audio_in=3, audio_out=4)}
    return [
        {"type": "response.created", "response": {"id": id, "status": "in_progress"}},
        *deltas,
        {"type": "response.done", "response": done},
    ]


def feed(socket: WebSocket, data: bytes) -> list[bytes]:
    """All messages that these bytes complete."""
    found = socket.feed(data)
    while socket.has_more:
        found += socket.feed(b"")
    return found


@dataclass
class Engine:
    """An engine that speaks the protocol on loopback. `answer`: what it says to a message; `refusal`: its answer to a handshake."""

    answer: Callable[[dict[str, Any]], list[dict[str, Any]]] = answers
    refusal: bytes = b""
    heads: list[bytes] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)
    closed: list[tuple[int, str] | None] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    url: str = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Engine"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for writer in self.writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            key = web_sockets.accept(fields[b"sec-websocket-key"])
            writer.write(
                self.refusal
                or b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
                + key
                + b"\r\n\r\n"
            )
            socket = WebSocket(is_client=False)
            self.say(writer, socket, {"type": "session.created", "session": {"model": "upstream", "type": "realtime"}})
            while data := await reader.read(1 << 16):
                for message in feed(socket, data):
                    asked = msgspec.json.decode(message)
                    self.heard.append(asked)
                    for said in self.answer(asked):
                        self.say(writer, socket, said)
                writer.write(bytes(socket.out))
                socket.out.clear()
            self.closed.append(socket.closed)
        except ConnectionError:
            self.closed.append(None)

    def say(self, writer: asyncio.StreamWriter, socket: WebSocket, said: dict[str, Any]) -> None:
        socket.send(msgspec.json.encode(said))
        writer.write(bytes(socket.out))
        socket.out.clear()


@dataclass
class Caller:
    """A client that shows every message. `status`: of the answer to the handshake."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    headers: dict[str, str]
    body: bytes
    socket: WebSocket = field(default_factory=lambda: WebSocket(is_client=True, message_bytes_max=1 << 24))
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.body)["error"]
        return found

    def say(self, said: Any) -> None:
        self.socket.send(said if isinstance(said, bytes) else msgspec.json.encode(said))
        self.writer.write(bytes(self.socket.out))
        self.socket.out.clear()

    async def hear(self, type: str) -> dict[str, Any]:
        """The next message of a type; all before it are passed over."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                while self.messages:
                    message = self.messages.pop(0)
                    if message["type"] == type:
                        return message
                await self._read()

    async def end(self) -> int:
        """The code with which the session ends, after all messages."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.socket.closed is None:
                await self._read()
        return self.socket.closed[0]

    async def _read(self) -> None:
        data = await self.reader.read(1 << 16)
        assert data, f"the connection ended; {self.messages}"
        self.messages += [msgspec.json.decode(each) for each in feed(self.socket, data)]
        self.writer.write(bytes(self.socket.out))
        self.socket.out.clear()


@asynccontextmanager
async def call(running: Gateway, target: str = "/v1/realtime?model=m", key: str | None = KEY, **headers: str) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    fields = {
        "host": "gateway", "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(b"k" * 16).decode(),
    }  # fmt: skip
    if key is not None:
        fields["authorization"] = f"Bearer {key}"
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    writer.write(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = head.split("\r\n")[:-2]
        shown = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
        body = await reader.readexactly(int(shown.get("content-length", 0)))
        yield Caller(reader, writer, int(first.split()[1]), shown, body)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def serving(
    engine: Engine, bounds: RealtimeBounds | None = None, upstream_model: str = "upstream", **more: Any
) -> AsyncIterator[Gateway]:
    async with engine.listening(), gateway({"m": Served([engine.url], upstream_model=upstream_model)}, **more) as running:
        if bounds is not None:
            running.plane.realtime = RealtimeSessions(bounds)
        yield running
        async with asyncio.timeout(PATIENCE_SECONDS):
            while running.plane.realtime.count() or running.sink.owed:
                await asyncio.sleep(0.001)


async def test_official_client_holds_a_conversation_of_which_each_response_is_one_event() -> None:
    engine = Engine()
    async with serving(engine) as running:
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", websocket_base_url=f"ws://127.0.0.1:{running.port}/v1", api_key=KEY)
        async with client, client.realtime.connect(model="m") as connection:
            created = await connection.recv()
            assert created.type == "session.created" and created.session.model == "m", "the public name"
            await connection.session.update(session={"type": "realtime", "model": "m", "instructions": "Be brief."})
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
            await connection.conversation.item.create(item=item)
            for number in range(2):
                await connection.response.create(response={"metadata": {"id": f"resp_{number}"}})
                text = ""
                async for event in connection:
                    if event.type == "response.output_text.delta":
                        text += event.delta
                    elif event.type == "response.done":
                        break
                assert text == "Hello" and event.response.usage.output_tokens == 7
        final = await running.sink.settled(3)
        first, second, last = running.sink.finals
        for each in (first, second):
            assert (each.outcome, each.source, each.admit.endpoint) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL, "realtime")
            assert (each.used.input_tokens, each.used.output_tokens, each.used.cached_input) == (12, 7, 2)
            assert each.used.other is not None and each.used.other.audio_output == 4
        assert first.admit.request_id != second.admit.request_id
        assert (last.outcome, last.used.output_tokens) == (Outcome.CLIENT_CANCELLED, 0) and last is final, "the one admitted ahead"
    assert engine.heads[0].startswith(b"GET /v1/realtime?model=upstream HTTP/1.1\r\n") and KEY.encode() not in engine.heads[0]
    assert [each["type"] for each in engine.heard] == ["session.update", "conversation.item.create", "response.create", "response.create"]
    assert engine.heard[0]["session"]["model"] == "upstream"


def carriers_of(key: str) -> list[dict[str, str]]:
    """The ways in which a handshake carries a key, as headers."""
    protocols = f"realtime, openai-insecure-api-key.{key}, openai-beta.realtime-v1"
    ways = [{"authorization": f"Bearer {key}"}, {"x_api_key": key}, {"sec_websocket_protocol": protocols}]
    return [*ways, ways[0] | ways[2]]


async def test_40_key_by_subprotocol_is_the_same_credential_as_in_a_header_and_is_never_repeated() -> None:
    engine = Engine()
    async with serving(engine) as running:
        for key in (KEY, NARROW_KEY, EXPIRED_KEY, UNKNOWN_KEY, ADMIN_KEY):
            answered = set()
            for carrier in carriers_of(key):
                async with call(running, key=None, **carrier) as caller:
                    assert key not in f"{caller.headers}{caller.body!r}"
                    answered.add((caller.status, caller.error["code"] if caller.body else ""))
                    if caller.status == 101:
                        assert caller.headers["sec-websocket-accept"] == web_sockets.accept(base64.b64encode(b"k" * 16)).decode()
                        assert caller.headers.get("sec-websocket-protocol") == ("realtime" if "sec_websocket_protocol" in carrier else None)
                        await caller.hear("session.created")
            assert len(answered) == 1, (key, answered)
            assert (key == KEY) == (answered == {(101, "")})
    assert len(engine.heads) == len(carriers_of(KEY)) and not any(KEY.encode() in head for head in engine.heads)


async def test_40_keys_by_subprotocol_and_header_that_differ_are_refused() -> None:
    by_header, _, by_protocol, _ = carriers_of(KEY)
    others = carriers_of(OTHER_KEY)
    engine = Engine()
    async with serving(engine) as running:
        for first, second in ((by_protocol, others[0]), (by_protocol, others[1]), (by_header, others[2])):
            async with call(running, key=None, **first, **second) as caller:
                assert (caller.status, caller.error["code"]) == (400, "ambiguous_credentials")
    assert not engine.heads


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no key": ({"key": None}, 401, "invalid_api_key"),
    "unknown key": ({"key": UNKNOWN_KEY}, 401, "invalid_api_key"),
    "model that is not allowed": ({"key": NARROW_KEY}, 404, "model_not_found"),
    "unknown model": ({"target": "/v1/realtime?model=n"}, 404, "model_not_found"),
    "no model": ({"target": "/v1/realtime"}, 400, "missing_required_parameter"),
    "another version": ({"sec_websocket_version": "8"}, 426, "websocket_expected"),
    "no WebSocket": ({"upgrade": "", "connection": "close"}, 426, "websocket_expected"),
    "a short key": ({"sec_websocket_key": "aGVsbG8="}, 426, "websocket_expected"),
    "two keys": ({"sec_websocket_protocol": f"openai-insecure-api-key.{KEY}, openai-insecure-api-key.x"}, 400, "ambiguous_credentials"),
    "a script of another origin": ({"origin": "https://evil.example"}, 403, "origin_not_allowed"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_139_handshake_that_is_refused_reaches_no_engine(case: str) -> None:
    arguments, status, code = REFUSED[case]
    engine = Engine()
    async with serving(engine, rules=EdgePolicy(origins=frozenset({b"https://good.example"}))) as running:
        async with call(running, **arguments) as caller:
            assert (caller.status, caller.error["code"]) == (status, code)
        async with call(running, origin="https://good.example") as caller:
            assert caller.status == 101
    assert len(engine.heads) == 1


async def test_139_script_of_any_origin_is_refused_where_none_is_listed() -> None:
    async with serving(Engine()) as running, call(running, origin="https://good.example") as caller:
        assert caller.error["code"] == "origin_not_allowed"


LINK = {"type": "input_image", "image_url": "http://169.254.169.254/"}
WRONG: dict[str, tuple[Any, int | str]] = {
    "no JSON": (b"hello", "invalid_json"),
    "no object": (b"[]", "invalid_json"),
    "two types": (b'{"type":"response.create","type":"session.update"}', "duplicate_key"),
    "no type": ({"kind": "response.create"}, "invalid_value"),
    "another model": ({"type": "session.update", "session": {"model": "other"}}, "invalid_value"),
    "a tool of a server": (
        {"type": "session.update", "session": {"tools": [{"type": "mcp", "server_url": "http://10.0.0.1"}]}},
        "invalid_value",
    ),
    "a link inwards": (
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": [LINK]},
        },
        "invalid_image_url",
    ),
    "a link inwards beside a reference": (
        {"type": "conversation.item.create", "item": {"type": "item_reference", "id": "i", "content": [LINK]}},
        "invalid_value",
    ),
    "a link inwards in input that is no list": (
        {"type": "response.create", "response": {"input": {"type": "message", "role": "user", "content": [LINK]}}},
        "invalid_value",
    ),
    "a link inwards in other items": (
        {"type": "x", "session": {"items": [{"type": "message", "role": "user", "content": [LINK]}]}},
        "invalid_image_url",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_140_message_that_is_wrong_is_answered_with_an_error_and_not_passed_on(case: str) -> None:
    said, code = WRONG[case]
    engine = Engine()
    async with serving(engine) as running, call(running) as caller:
        caller.say(said)
        error = await caller.hear("error")
        assert error["error"]["code"] == code and "request id" in error["error"]["message"]
        caller.say(CREATE | {"event_id": "event_1"})
        await caller.hear("response.done")
        assert [each["type"] for each in engine.heard] == ["response.create"]


async def test_140_frames_that_are_too_long_binary_or_no_frames_end_the_session_with_their_code() -> None:
    async with serving(Engine(), RealtimeBounds(message_bytes_max=4096)) as running:
        for data, code in (
            (b'{"type":"x","a":"' + b"a" * 5000 + b'"}', web_sockets.TOO_BIG),
            (None, web_sockets.UNSUPPORTED_DATA),
            (b"", web_sockets.PROTOCOL_ERROR),
        ):
            async with call(running) as caller:
                await caller.hear("session.created")
                if data:
                    caller.say(data)
                else:  # a binary frame, or one without a mask
                    caller.writer.write(b"\x82\x81\x00\x00\x00\x00a" if data is None else b"\x81\x01a")
                assert await caller.end() == code


async def test_141_limits_answer_each_message_until_a_response_may_begin_again() -> None:
    engine = Engine()
    async with serving(engine, limits=Limits(requests_per_minute=2)) as running, call(running) as caller:
        caller.say(CREATE)
        await caller.hear("response.done")
        caller.say({"type": "input_audio_buffer.append", "audio": "AAAA"})
        caller.say(CREATE)
        await caller.hear("response.done")
        caller.say(CREATE | {"event_id": "mine"})
        error = (await caller.hear("error"))["error"]
        assert error["code"] == "rate_limit_exceeded" and error["event_id"] == "mine"
        assert [each["type"] for each in engine.heard] == ["response.create", "input_audio_buffer.append", "response.create"]
        async with call(running) as other:
            assert other.status == 429


async def test_141_revoked_key_ends_the_session_with_its_code() -> None:
    engine = Engine(lambda asked: answers(asked)[:2])
    async with serving(engine) as running, call(running) as caller:
        caller.say(CREATE)
        await caller.hear("response.output_text.delta")
        running.plane.apply(Change(version=running.plane.directory.version + 1, kind="key", id=f"key_{0:032x}", entry=None))
        assert await caller.end() == web_sockets.UNAUTHORIZED
        assert (await caller.hear("error"))["error"]["code"] == "invalid_api_key"
        await running.sink.settled(2)
        cut = next(each for each in running.sink.finals if each.used.output_tokens)
        assert (cut.used.output_tokens, cut.source) == (1, UsageSource.COUNTED)


async def test_drain_ends_a_session_once_its_response_has_ended() -> None:
    async with serving(Engine()) as running, call(running) as caller:
        caller.say(CREATE)
        await caller.hear("response.done")
        running.stop.set()
        assert await caller.end() == web_sockets.GOING_AWAY


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_engine_that_breaks_off_at_any_event_ends_the_session_as_failed(after: int) -> None:
    engine = Engine(lambda asked: answers(asked)[:after])
    async with serving(engine) as running, call(running) as caller:
        caller.say(CREATE)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not engine.heard:
                await asyncio.sleep(0.001)
        if after:
            await caller.hear(answers(CREATE)[after - 1]["type"])
        engine.writers[0].transport.abort()
        assert await caller.end() == web_sockets.FAILED
        assert (await caller.hear("error"))["error"]["code"] == "upstream_cut"
        await running.sink.settled(2 if after else 1)
        assert sorted(each.used.output_tokens for each in running.sink.finals)[-1] == max(after - 1, 0)


@dataclass
class DyingEngine(Engine):
    """An engine that dies once it has sent `left` bytes of its answer."""

    left: int = 0

    def say(self, writer: asyncio.StreamWriter, socket: WebSocket, said: dict[str, Any]) -> None:
        socket.send(msgspec.json.encode(said))
        data = bytes(socket.out)
        socket.out.clear()
        if said["type"] == "session.created":
            writer.write(data)
        elif self.left:
            writer.write(data[: self.left])
            self.left -= min(self.left, len(data))
            if not self.left:
                writer.close()


async def test_engine_that_dies_at_any_byte_never_shows_the_end_of_a_response() -> None:
    socket = WebSocket(is_client=False)
    for said in answers(CREATE):
        socket.send(msgspec.json.encode(said))
    cuts = range(1, len(socket.out), 5)
    engine = DyingEngine()
    async with serving(engine) as running:
        for engine.left in cuts:
            async with call(running) as caller:
                caller.say(CREATE)
                assert await caller.end() == web_sockets.FAILED
                assert "response.done" not in {message["type"] for message in caller.messages}
        outcomes = {final.outcome for final in running.sink.finals}
    assert Outcome.COMPLETED not in outcomes and Outcome.UPSTREAM_ERROR in outcomes


async def test_client_that_vanishes_ends_the_engine_s_side_and_pays_for_what_was_delivered() -> None:
    engine = Engine(lambda asked: answers(asked)[:3])
    async with serving(engine) as running:
        async with call(running) as caller:
            caller.say(CREATE)
            await caller.hear("response.output_text.delta")
        await running.sink.settled(2)
        assert {each.outcome for each in running.sink.finals} == {Outcome.CLIENT_CANCELLED}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not engine.closed:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 502, "upstream_error"),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", 503, "upstream_error"),
        (b"HTTP/1.1 101 X\r\nsec-websocket-accept: x\r\n\r\n", 502, "upstream_invalid"),
        (b"x" * 20_000, 502, "upstream_invalid"),
    ],
)
async def test_engine_that_takes_no_session_is_told_as_an_answer(refusal: bytes, status: int, code: str) -> None:
    async with serving(Engine(refusal=refusal)) as running, call(running) as caller:
        assert (caller.status, caller.error["code"]) == (status, code)
        assert (await running.sink.settled()).outcome is Outcome.UPSTREAM_ERROR


async def test_141_sessions_are_bounded_in_all_by_organization_and_in_time() -> None:
    async with serving(Engine(), RealtimeBounds(idle_seconds=0.1)) as running, call(running) as caller:
        assert await caller.end() == web_sockets.TIMED_OUT
    async with serving(Engine(), RealtimeBounds(organization_sessions_max=1)) as running, call(running):
        async with call(running) as other:
            assert (other.status, other.error["code"]) == (429, "rate_limit_exceeded")
        running.plane.realtime = RealtimeSessions(RealtimeBounds(sessions_max=0))
        async with call(running) as other:
            assert (other.status, other.error["code"]) == (503, "overloaded")


async def test_transcription_of_vllm_is_metered_by_its_own_report() -> None:
    said = {
        "session.update": [{"type": "session.created", "id": "sess-1", "created": 1}],
        "response.create": [{"type": "error", "error": "Unknown event type: response.create", "code": "unknown_event"}],
        "input_audio_buffer.commit": [
            {"type": "transcription.delta", "delta": "Hel"},
            {"type": "transcription.done", "text": "Hello", "usage": {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}},
        ],
    }
    engine = Engine(lambda asked: said.get(asked["type"], []))
    async with serving(engine) as running, call(running) as caller:
        caller.say({"type": "session.update", "model": "m"})
        caller.say({"type": "response.create"})
        assert (await caller.hear("error"))["error"] == "Unknown event type: response.create", "vLLM's errors are texts"
        caller.say({"type": "input_audio_buffer.commit", "final": True})
        await caller.hear("transcription.done")
        (final,) = running.sink.finals
        assert (final.used.input, final.used.output, final.outcome) == (40, 3, Outcome.COMPLETED)
    assert engine.heard[0]["model"] == "upstream"


async def test_model_whose_closed_guardrail_cannot_check_sessions_has_none() -> None:
    async with serving(Engine()) as running:
        (model,) = (each for each in running.plane.directory.list_models() if each.id == "m")
        change(running, msgspec.structs.replace(model, guardrail=Guardrail.CLOSED))
        async with call(running) as caller:
            assert (caller.status, caller.error["code"]) == (400, "endpoint_not_supported")


async def test_other_requests_are_served_beside_a_session_and_its_path_takes_no_post() -> None:
    async with serving(Engine()) as running, call(running):
        assert (await post(running.port, {"model": "m"}, path="/v1/realtime")).status == 405


async def test_141_end_that_does_not_read_stops_the_reading_of_the_other_one() -> None:
    flood = {"type": "response.output_audio.delta", "response_id": "r", "delta": "A" * 60_000}
    engine = Engine(lambda asked: [flood] * 600)
    async with serving(engine) as running, call(running) as caller:
        caller.writer.transport.pause_reading()
        caller.say(CREATE)
        (session,) = await until(lambda: set(running.plane.active.exchanges))
        await until(lambda: not session._engine._is_reading)
        caller.writer.transport.resume_reading()
        for _ in range(600):
            await caller.hear("response.output_audio.delta")


async def test_141_client_that_does_not_read_is_not_read_either_and_leaves_after_its_time() -> None:
    """Its pings and its wrong messages are answered too."""
    engine = Engine()
    async with serving(engine) as running, call(running) as caller:
        (session,) = await until(lambda: set(running.plane.active.exchanges))
        client, at = session._client, asyncio.get_running_loop().time()
        client.pause_writing()
        assert not client.is_reading and not session._engine.is_reading
        client.heard_at = session._engine.heard_at = at - 1_000
        session.tick(at)  # what is not read cannot be heard
        client.resume_writing()
        assert client.is_reading and session._engine.is_reading
        session.tick(at)
        caller.say(CREATE)
        await caller.hear("response.done")
        client.pause_writing()
        session.tick(client.slow_since + running.plane.realtime.bounds.write_stall_seconds + 1)
        await until(lambda: engine.closed)


async def test_140_thousands_of_frames_are_taken_in_turns_and_too_many_that_are_wrong_end_the_session() -> None:
    engine = Engine()
    async with serving(engine) as running:
        async with call(running) as caller:
            for number in range(500):
                caller.socket.send(b'{"type":"input_audio_buffer.append","n":%d}' % number)
            caller.say(CREATE)
            await caller.hear("response.done")
            assert [each.get("n") for each in engine.heard] == [*range(500), None]
        async with call(running) as caller:
            for _ in range(1_000):
                caller.socket.send(b"x")
            caller.say(CREATE)
            assert await caller.end() == web_sockets.POLICY
            assert len([each for each in caller.messages if each["type"] == "error"]) <= 200
    assert len(engine.heard) == 501


def test_one_turn_takes_care_of_few_frames_and_of_all_in_their_order() -> None:
    sending, taking = WebSocket(is_client=True), WebSocket(is_client=False)
    for number in range(100):
        sending.send(b"%d" % number)
        sending.ping()
    ending = WebSocket(is_client=False)
    ending.feed(bytes(sending.out))
    assert ending.has_more
    ending.close(web_sockets.NORMAL)
    assert not ending.has_more and not ending.feed(b"")
    found = [taking.feed(bytes(sending.out))]
    while taking.has_more:
        found.append(taking.feed(b""))
    assert max(map(len, found)) <= web_sockets.EVENTS_MAX
    assert [int(each) for turn in found for each in turn] == [*range(100)]
    sending.feed(bytes(taking.out))
    while sending.has_more:
        sending.feed(b"")
    assert sending.pongs == 100


@pytest.mark.parametrize("name", ["read_engine", "read_usage"])
async def test_error_that_nothing_expects_ends_the_session_and_what_was_admitted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(message: bytes) -> None:
        raise ValueError("planted")

    engine = Engine()
    async with serving(engine) as running, call(running) as caller:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        await caller.hear("session.created")
        monkeypatch.setattr(f"tollway.gateway.realtime.session.{name}", fail)
        caller.say(CREATE)
        assert await caller.end() == web_sockets.FAILED
        assert (await caller.hear("error"))["error"]["code"] == "internal_error"
        await until(lambda: engine.closed and running.sink.finals and not running.sink.owed)
        assert [str(each["exception"]) for each in reported] == ["planted"]
        running.log.close()
        running.log.text = b""  # the harness wants no such line


async def test_hard_budget_reserves_the_whole_context_whatever_other_requests_of_the_model_used() -> None:
    async with serving(Engine()) as running, call(running):
        (session,) = await until(lambda: set(running.plane.active.exchanges))
        most = session.call.input_tokens_max
        running.plane.budgets._lower_input(session.call)
        assert session.call.input_tokens_max == most > 100_000


async def test_time_of_a_response_counts_from_when_it_began() -> None:
    async with serving(Engine()) as running, call(running) as caller:
        (session,) = await until(lambda: set(running.plane.active.exchanges))
        request = session.call.request
        request.started -= 1_000
        request.received_at -= 1_000_000_000
        caller.say(CREATE)
        await caller.hear("response.done")
        found = running.plane.metrics.of_model("realtime", "m")
        assert found.duration.sum < 1_000 and found.first_token.sum < 1_000


async def until(found: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (value := found()):
            await asyncio.sleep(0.001)
    return value


@pytest.mark.parametrize("part", [b'"k":{}', b"[]", b"1"])
def test_129_long_message_that_takes_long_to_read_is_refused_before_it_is_parsed(part: bytes) -> None:
    if part.startswith(b'"'):
        parts = b"{" + b",".join(b'"k%d":1' % number for number in range(5_000)) + b"}"
    else:
        parts = b"[" + b",".join([part] * 60_000) + b"]"
    with pytest.raises(Fault, match="invalid_value"):
        read_client(b'{"type":"session.update","session":{"metadata":%b}}' % parts, "m", "m", MediaBounds())
    long = msgspec.json.encode({"type": "input_audio_buffer.append", "audio": "QUFB" * 200_000})
    assert read_client(long, "m", "m", MediaBounds()).content == long
    said = msgspec.json.encode({"type": "x", "text": 'He said: "a, b: [c], {d}", and so on. ' * 2_000})
    assert read_client(said, "m", "m", MediaBounds()).content == said


PING = b"\x89\x80\x00\x00\x00\x00"
"""A ping of a client, with a mask and without content."""


@pytest.mark.parametrize("content", [b"", b"a"], ids=["of-no-byte", "of-one-byte"])
def test_130_message_in_endless_frames_ends_the_session_after_a_bound(content: bytes) -> None:
    socket = WebSocket(is_client=False)
    first, more = (bytes((opcode, 0x80 | len(content))) + bytes(4) + content for opcode in (1, 0))
    assert feed(socket, first + more * (web_sockets.FRAMES_MAX - 1)) == [] and socket.closed is None
    socket.feed(more)
    assert socket.closed is not None and socket.closed[0] == web_sockets.TOO_BIG


def test_message_that_comes_in_many_reads_of_one_frame_is_whole() -> None:
    sending, taking = WebSocket(is_client=True), WebSocket(is_client=False)
    sending.send(b"x" * 5_000)
    assert b"".join(b"".join(feed(taking, sending.out[at : at + 1])) for at in range(len(sending.out))) == b"x" * 5_000
    assert taking.frames == 1


class Unheard:
    """An owner that does nothing, and a transport that notes whether it is read."""

    is_read = True

    def received(self, end: End, messages: list[bytes]) -> None: ...
    def lost(self, end: End) -> None: ...
    def paced(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


async def test_130_frames_of_a_client_beyond_its_pace_are_read_later_and_none_is_lost() -> None:
    other = Unheard()
    loop = asyncio.get_running_loop()
    end = End(WebSocket(is_client=False), other, is_paced=True)
    end.connection_made(other)  # type: ignore[arg-type]
    began = loop.time()
    end.data_received(PING * (int(FRAMES_AT_ONCE) + 60))
    for _ in range(50):
        await asyncio.sleep(0)
        taken = end.socket.frames
        assert taken <= FRAMES_AT_ONCE + web_sockets.EVENTS_MAX + (loop.time() - began) * FRAMES_PER_SECOND
        assert not other.is_read
    await until(lambda: end.socket.frames == FRAMES_AT_ONCE + 60 and other.is_read)


async def test_131_engine_that_begins_responses_without_end_is_left_and_each_is_ended() -> None:
    begun = [{"type": "response.created", "response": {"id": f"r{number}"}} for number in range(100)]
    async with serving(Engine(lambda asked: begun)) as running, call(running) as caller:
        caller.say(CREATE)
        assert await caller.end() == web_sockets.FAILED
        await until(lambda: not running.sink.owed)
        assert len(running.sink.finals) <= RESPONSES_BEGUN_MAX + 1
        assert not any(final.used.output for final in running.sink.finals)


async def test_133_output_that_an_engine_shows_and_does_not_report_is_held_to_what_a_response_can_have() -> None:
    shown = [{"type": "response.created", "response": {"id": "r"}}]
    shown += [{"type": "response.output_text.delta", "response_id": "r", "delta": ""}] * (OUTPUT_TOKENS_MAX + 100)
    shown += [{"type": "response.done", "response": {"id": "r", "status": "completed"}}]
    async with serving(Engine(lambda asked: shown)) as running, call(running) as caller:
        caller.say(CREATE)
        await caller.hear("response.done")
        (final,) = running.sink.finals
    assert (final.used.output, final.anomaly, final.source) == (OUTPUT_TOKENS_MAX, "usage_missing", UsageSource.COUNTED)
