"""Large bodies that other processes read: the same verdicts as in the gateway, and readers that fail, hang or are all busy."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import KEY, NOWHERE, Served, chat, completion, connect, gateway, message, plane, whole
from tests.gateway.test_flood import bent_bodies
from tests.patience import PATIENCE_SECONDS
from tollway.domain.catalog import CacheIsolation, Endpoint, Engine, UnknownParameters
from tollway.domain.faults import Fault
from tollway.domain.limits import Limits
from tollway.gateway import body_reader_pool, pipeline
from tollway.gateway.authorize import authorize
from tollway.gateway.body_reader_messages import Body, Examined, Offer, Refused, decode_answer, decode_task, encode_frame
from tollway.gateway.body_reader_pool import BodyReaders, Reader, check_spans, to_offer
from tollway.gateway.body_reader_process import examine
from tollway.gateway.buffers import BufferHold
from tollway.gateway.dialects.dialect import END_USER_CHARS_MAX
from tollway.gateway.plane import Plane
from tollway.gateway.request import Call, Caller, Request, RequestHead, new_request
from tollway.gateway.uploads import Upload
from tollway.native import FORM

BODIES = 3_000
LARGE = msgspec.json.encode(chat(messages=[{"role": "user", "content": "all the words, " * 10_000}]))
POLICIES = {"m": UnknownParameters.REFUSE, "d": UnknownParameters.DROP, "f": UnknownParameters.FORWARD}
MODELS = {name: Served([NOWHERE], unknown_parameters=policy, output_tokens_max=100) for name, policy in POLICIES.items()}
TRANSLATED = (Endpoint.RESPONSES, Endpoint.MESSAGES)
SAME = [name for name in Examined.__struct_fields__ if name not in ("price_id", "dropped", "end_user", "spans", "tags", "translated")]


def find_caller(made: Plane) -> Caller:
    """The sender of every request of these tests."""
    return pipeline.identify_sender(RequestHead(Endpoint.CHAT_COMPLETIONS, {b"x-api-key": KEY.encode()}), made)


def test_78_body_examined_by_a_reader_gets_the_same_verdict_as_in_the_gateway() -> None:
    verdicts: Counter[str] = Counter()
    with plane(MODELS) as (made, _, _):
        now_us = made.now_us()
        caller = find_caller(made)
        for endpoint, data in bent_bodies(5, BODIES):
            request = new_request("req_1", RequestHead(endpoint, {}), data, 0.0, now_us)

            def look_up(model: str, request: Request = request) -> Offer | None:
                grant = made.directory.find_grant(caller, model, request.endpoint, now_us)
                return None if grant is None else to_offer(grant)

            body = decode_task(encode_frame(Body(len(data), endpoint, made.media_bounds))[4:])
            answer = decode_answer(encode_frame(examine(body, data, look_up)[0])[4:])
            try:
                call = authorize(caller, request, made.directory, made.media_bounds)
            except Fault as fault:
                assert isinstance(answer, Refused), data
                found = answer.to_fault()
                assert (found.kind, found.param, found.message) == (fault.kind, fault.param, fault.message), data
                verdicts[fault.kind.code] += 1
            else:
                assert isinstance(answer, Examined), data
                assert [getattr(answer, name) for name in SAME] == [getattr(call, name) for name in SAME], data
                assert answer.dropped == tuple(call.dropped) and answer.price_id == call.price.id
                verdicts["sent"] += 1
    assert {"sent", "invalid_json", "duplicate_key", "invalid_value", "unknown_parameter"} <= verdicts.keys()


@pytest.mark.skipif(FORM == "compiled", reason="compiled classes do not name their members")
def test_reader_answers_with_every_member_of_a_call_that_a_body_decides() -> None:
    of_the_gateway = {
        "request", "caller", "grant", "model", "dialect", "price", "output_hold", "repeated", "charge", "answer_recorder",
        "budgets", "named_budgets", "response_keeper", "guard",
    }  # fmt: skip
    assert set(Call.__slots__) - of_the_gateway == set(Examined.__struct_fields__) - {"price_id", "spans", "tags"}


@pytest.mark.parametrize("user", ["u_1", "u" * 5_000_000])
async def test_end_user_of_a_large_body_is_limited(user: str) -> None:
    async with readers() as (made, alarms):
        with plane(MODELS, end_user_limits=Limits(requests_per_day=1)) as (at, _, _):
            body = msgspec.json.encode(chat(user=user, messages=[{"role": "user", "content": "all the words, " * 10_000}]))
            request = request_of(at, body)
            caller = find_caller(at)
            call = await made.authorize(caller, request, at.directory, at.media_bounds)
            assert call.end_user == authorize(caller, request, at.directory, at.media_bounds).end_user
            assert call.end_user is not None and len(call.end_user) <= END_USER_CHARS_MAX
        assert alarms == []


async def test_large_body_that_does_not_say_how_large_images_are_to_be_is_refused_where_these_are_priced_by_pixels() -> None:
    asked = {"model": "m", "prompt": "a gate", "user": "u" * 500_000}
    async with readers() as (made, _):
        with plane({"m": Served([NOWHERE], pixel_price=7)}) as (at, _, _):
            caller, head = find_caller(at), RequestHead(Endpoint.IMAGE_GENERATIONS, {})
            for size, pixels in (("20x10", 200), ("auto", None)):
                request = new_request("req_1", head, msgspec.json.encode(asked | {"size": size}), 0.0, at.now_us())
                try:
                    call = await made.authorize(caller, request, at.directory, at.media_bounds)
                except Fault as fault:
                    assert (pixels, fault.param) == (None, "size")
                else:
                    assert call.measure is not None and call.measure.pixels == pixels


@asynccontextmanager
async def readers(count: int = 1) -> AsyncIterator[tuple[BodyReaders, list[dict[str, object]]]]:
    """Readers, and the alarms that they raised."""
    alarms: list[dict[str, object]] = []
    made = BodyReaders(count, lambda _, fields: alarms.append(fields))
    try:
        yield made, alarms
    finally:
        await made.close()


def request_of(made: Plane, body: bytes) -> Request:
    """A request with this body."""
    return new_request("req_1", RequestHead(Endpoint.CHAT_COMPLETIONS, {}), body, 0.0, made.now_us())


async def test_78_large_bodies_are_answered_by_way_of_a_reader_and_small_ones_are_not() -> None:
    async with (
        Upstream(*[[whole(completion())]] * 3).listening() as upstream,
        gateway({"m": Served([upstream.url])}) as running,
        readers() as (made, _),
    ):
        running.plane.body_readers = made
        async with connect(running.port) as client:
            client.send(message(chat()))
            assert (await client.answer()).status == 200
            assert made.pids == []
            client.send(message(LARGE))
            assert (await client.answer()).status == 200
            (pid,) = made.pids
            client.send(message(LARGE[:-1] + b',"n":-1}'))
            answer = await client.answer()
            assert (answer.status, answer.error["param"]) == (400, "n")
            client.send(message(LARGE))
            assert (await client.answer()).status == 200
            assert made.pids == [pid]


def ask_large(model: str, path: str, **fields: object) -> bytes:
    """A request whose body is long and not of one piece."""
    text = "all the words, " * 20_000
    said: dict[str, object] = {"input": text} if path == "/v1/responses" else {"messages": [{"role": "user", "content": text}]}
    return message({"model": model, "max_output_tokens" if "input" in said else "max_tokens": 9} | said | fields, path)


WAYS = {
    "our fields follow": ("plain", "/v1/chat/completions", {}),
    "fields are replaced": ("renamed", "/v1/chat/completions", {"stream_options": {"include_usage": True}, "stream": True}),
    "fields are left out": ("dropping", "/v1/chat/completions", {"unheard_of": [1, 2], "user": "u", "nor of": {"this": "one"}}),
    "more fields than places are known of": ("dropping", "/v1/chat/completions", {f"unknown_{number}": 0 for number in range(300)}),
    "the prompt is salted": ("salted", "/v1/chat/completions", {}),
    "responses are translated": ("translated", "/v1/responses", {"instructions": "Be brief.", "metadata": {"a": "b"}}),
    "a number beyond 64 bits is repeated": (
        "translated",
        "/v1/responses",
        {"tools": [{"type": "function", "name": "f", "parameters": {"type": "integer", "maximum": 2**70, "multipleOf": 0.5}}]},
    ),
    "messages are translated and salted": ("translated", "/v1/messages", {"system": "Be brief."}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_78_engine_is_sent_the_same_large_body_whoever_reads_it(way: str) -> None:
    model, path, fields = WAYS[way]
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), readers() as (made, alarms):
        at = {
            "plain": Served([upstream.url]),
            "renamed": Served([upstream.url], upstream_model="vendor/model", output_tokens_max=100),
            "dropping": Served([upstream.url], unknown_parameters=UnknownParameters.DROP),
            "salted": Served([upstream.url], engine=Engine.LLAMACPP, cache_isolation=CacheIsolation.PROMPT),
            "translated": Served(
                [upstream.url], engine=Engine.LLAMACPP, cache_isolation=CacheIsolation.PROMPT, translated_endpoints=TRANSLATED
            ),
        }
        answers = []
        async with gateway(at) as running, connect(running.port) as client:
            for way_to_read in (made, None):
                running.plane.body_readers = way_to_read
                client.send(ask_large(model, path, **fields))
                answer = await client.answer()
                answers.append((answer.status, "all the words" in str(upstream.asked[-1].body)))
        with_reader, without = (msgspec.json.decode(asked.body) for asked in upstream.asked)
        assert with_reader == without
        assert answers[0] == answers[1] == (200 if "stream" not in fields else 502, True)
        assert alarms == []


FALLBACK_WAYS = ("our fields follow", "fields are left out", "more fields than places are known of", "responses are translated")


@pytest.mark.parametrize("way", FALLBACK_WAYS)
async def test_78_fallback_is_sent_the_same_large_body_whoever_reads_it(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path, fields = WAYS[way]
    busy, serving = Upstream([whole({"error": {"message": "busy", "code": 503}}, 503)]), Upstream([whole(completion())])
    async with busy.listening(), serving.listening(), readers() as (made, alarms):
        engine = Engine.LLAMACPP if model == "translated" else Engine.SIM
        at = {
            name: Served([url], engine=engine, unknown_parameters=UnknownParameters.DROP, translated_endpoints=TRANSLATED, fallbacks=then)
            for name, url, then in ((model, busy.url, ("b",)), ("b", serving.url, ()))
        }
        async with gateway(at) as running, connect(running.port) as client:
            for way_to_read in (None, made):
                if way_to_read is not None and FORM != "compiled":  # from here on nothing joins the body in this process
                    monkeypatch.delattr(Request, "read_body")
                running.plane.body_readers = way_to_read
                client.send(ask_large(model, path, **fields))
                assert (await client.answer()).headers["x-tollway-model"] == "b"
        without, with_reader = (msgspec.json.decode(asked.body) for asked in serving.asked)
        assert with_reader == without
        assert (without["model"], "all the words" in str(without)) == ("b", True)
        assert alarms == []


async def test_78_reader_that_names_places_that_cannot_be_fails_its_request() -> None:
    said = Examined("price", ("model", "messages"), (), None, None, 1, 1, False, 1, 1, True, True, None, (), (1, 5, 6, 20))
    assert check_spans(said.names, said.spans, 22) == said.spans
    assert check_spans(said.names, (), 22) == ()
    for spans in ((1, 5), (5, 1, 6, 20), (0, 5, 6, 20), (1, 5, 6, 22)):
        with pytest.raises(ValueError, match="places"):
            check_spans(said.names, spans, 22)


async def test_78_large_body_waits_for_an_engine_that_reads_slowly_and_holds_no_other_request() -> None:
    reading = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reading.wait()
        body = bytearray()
        while not body.endswith(b"}"):
            body += await reader.read(1 << 20)
        taken.append(len(body))
        writer.write(whole(completion()))
        await writer.drain()
        writer.close()

    taken: list[int] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    slow = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, Upstream([whole(completion())]).listening() as quick, readers() as (made, _):
        models = {"slow": Served([slow]), "m": Served([quick.url])}
        async with gateway(models) as running, connect(running.port) as client, connect(running.port) as other:
            running.plane.body_readers = made
            data = message(chat(model="slow", messages=[{"role": "user", "content": "x" * 20_000_000}]))
            for start in range(0, len(data), 1 << 18):
                client.send(data[start : start + (1 << 18)])
                await client.writer.drain()
            other.send(message(chat()))
            assert (await other.answer()).status == 200
            assert taken == []
            reading.set()
            assert (await client.answer()).status == 200
            assert taken[0] > 20_000_000


async def test_78_client_that_leaves_while_a_reader_starts_keeps_it_from_nobody() -> None:
    async with readers() as (made, alarms):
        with plane(MODELS) as (at, _, _):
            request, caller = request_of(at, LARGE), find_caller(at)
            upload = Upload(BufferHold(at.buffers), None)
            request.take_upload(upload, (LARGE[:70_000], LARGE[70_000:]))
            reading = asyncio.ensure_future(made.authorize(caller, request, at.directory, at.media_bounds))
            await asyncio.sleep(0)
            upload.release(0)
            assert (await reading).model.id == "m"
        assert alarms == [] and len(made.pids) == 1


async def test_78_body_of_a_reader_that_is_killed_is_read_by_another_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with plane(MODELS) as (made, _, _):
        async with readers() as (pool, alarms):
            caller, request = find_caller(made), request_of(made, LARGE)
            await pool.authorize(caller, request, made.directory, made.media_bounds)
            (killed,) = pool.pids
            os.kill(killed, signal.SIGKILL)
            call = await pool.authorize(caller, request, made.directory, made.media_bounds)
            assert call.model.id == "m" and pool.pids != [killed]
            assert pool.failures == len(alarms) == 1

            ask: Any = Reader.ask

            async def ask_killed(self: Reader, *asked: object) -> object:
                os.kill(self.pid, signal.SIGKILL)
                return await ask(self, *asked)

            monkeypatch.setattr(Reader, "ask", ask_killed)
            with pytest.raises(Fault, match="internal_error"):
                await pool.authorize(caller, request, made.directory, made.media_bounds)
            monkeypatch.undo()
            assert pool.failures == len(alarms) == 3
            assert (await pool.authorize(caller, request, made.directory, made.media_bounds)).model.id == "m", "its place is free again"


async def test_78_reader_that_hangs_is_ended_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with plane(MODELS) as (made, _, _):
        async with readers() as (pool, alarms):
            caller, request = find_caller(made), request_of(made, LARGE)
            await pool.authorize(caller, request, made.directory, made.media_bounds)
            (pid,) = pool.pids
            os.kill(pid, signal.SIGSTOP)
            monkeypatch.setattr(body_reader_pool, "READ_SECONDS_MAX", 0.2)
            with pytest.raises(Fault, match="overloaded"):
                await pool.authorize(caller, request, made.directory, made.media_bounds)
            monkeypatch.undo()
            await pool.authorize(caller, request, made.directory, made.media_bounds)
            assert pool.pids != [pid]
            assert alarms[0]["what"] == "took too long"


async def test_102_reader_that_has_read_much_is_replaced_once_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_reader_pool, "REST_SECONDS", 0.0)
    with plane(MODELS) as (made, _, _):
        async with readers() as (pool, alarms):

            async def read() -> None:
                await pool.authorize(find_caller(made), request_of(made, LARGE), made.directory, made.media_bounds)

            await read()
            await asyncio.sleep(0.05)
            await read()
            (first,) = pool.pids
            await asyncio.sleep(0.05)
            assert pool.pids == [first], "it has read little"
            monkeypatch.setattr(body_reader_pool, "WORN_BYTES", len(LARGE))
            await read()
            async with asyncio.timeout(PATIENCE_SECONDS):
                # A loop that is closed before the end of its child was handled complains of it.
                while pool.pids in ([], [first]) or Path(f"/proc/{first}").exists():
                    await asyncio.sleep(0.01)
            assert len(pool.pids) == 1 and not alarms


async def test_78_body_is_read_by_the_gateway_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_reader_pool.sys, "executable", "/nonexistent")
    with plane(MODELS) as (made, _, _):
        async with readers() as (pool, alarms):
            call = await pool.authorize(find_caller(made), request_of(made, LARGE), made.directory, made.media_bounds)
            assert call.model.id == "m"
            assert alarms[0]["what"] == "cannot be started"


async def test_78_organizations_take_turns_at_a_busy_reader() -> None:
    async with readers() as (pool, _):
        order: list[str] = []

        async def take(organization: str) -> None:
            await pool.take(organization)
            order.append(organization)

        await take("a")
        tasks = [asyncio.ensure_future(take(each)) for each in ("a", "a", "a", "b", "c", "b")]
        await asyncio.sleep(0)
        for _ in tasks:
            pool.give_back()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert order == ["a", "a", "b", "c", "a", "b", "a"]
        pool.give_back()


async def test_78_request_that_is_cancelled_while_it_waits_takes_nobody_s_turn() -> None:
    with plane(MODELS) as (made, _, _):
        async with readers() as (pool, _):
            await pool.take("first")
            left = asyncio.ensure_future(pool.authorize(find_caller(made), request_of(made, LARGE), made.directory, made.media_bounds))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            pool.give_back()
            call = await pool.authorize(find_caller(made), request_of(made, LARGE), made.directory, made.media_bounds)
            assert call.model.id == "m"
