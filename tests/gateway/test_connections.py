"""Clients that are slow, gone, many, or several requests ahead; and a gateway that leaves."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest

from tests.fakes import Asked, Do, Script, Upstream, until
from tests.gateway.harness import (
    CHAT,
    DONE,
    END,
    KEY,
    STREAM_HEAD,
    UNKNOWN_KEY,
    Client,
    Memory,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    healthy,
    message,
    part,
    plane,
    post,
    split_answers,
    streamed,
    usage,
    whole,
)
from tests.patience import CLIENT_SECONDS, PATIENCE_SECONDS
from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import Outcome
from tollway.gateway.buffers import LARGE_BYTES, BufferBounds
from tollway.gateway.edge.client_connection import ClientConnection
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.edge.server import DrainBounds
from tollway.gateway.relay import Exchange, RelayBounds
from tollway.wire.http import HttpBounds

ALIVE = b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n"


# Gone


@pytest.mark.parametrize(
    "script",
    [[Do.HOLD], [STREAM_HEAD, Do.HOLD], [STREAM_HEAD, part(chunk("a", usage=usage(5, 1))), Do.HOLD]],
    ids=["before-headers", "after-headers", "mid-stream"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_60_a_client_that_leaves_has_its_upstream_aborted_and_pays_for_what_was_made(script: Script, stream: bool) -> None:
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        async with connect(running.port) as client:
            client.send(message(chat(stream=stream)))
            await until(lambda: bool(upstream.asked))
            delivered = stream and len(script) == 3
            if delivered:
                await client.reader.readuntil(b'"a"')
            client.vanish()
        await asyncio.wait_for(upstream.asked[0].left.wait(), PATIENCE_SECONDS)
        final = await running.sink.settled()
        assert (final.outcome, final.error, final.attempts) == (Outcome.CLIENT_CANCELLED, None, 1)
        assert final.used == (Quantities(5, 0, 1) if delivered else Quantities())
        assert running.plane.metrics.running == 0


@contextmanager
def silent_listener() -> Iterator[str]:
    """URL of a listener whose queue of connections is full, so that the kernel lets further ones wait."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


PATIENT = RelayBounds(connect_seconds=300.0)


async def test_60_client_that_leaves_while_the_engine_is_connected_to_ends_the_request_at_once() -> None:
    with silent_listener() as url:
        async with gateway({"m": Served([url])}, bounds=PATIENT) as running:
            async with connect(running.port) as client:
                client.send(message(streamed()))
                await until(lambda: bool(running.plane.active.exchanges))
                client.vanish()
            final = await running.sink.settled()
            assert (final.outcome, final.error, final.attempts, final.used) == (Outcome.CLIENT_CANCELLED, None, 1, Quantities())
            assert not running.plane.active.exchanges and running.plane.metrics.running == 0


async def test_drain_while_connecting_ends_the_request() -> None:
    with silent_listener() as url:
        async with gateway({"m": Served([url])}, bounds=PATIENT, drain=DrainBounds(grace_seconds=0.1)) as running:
            async with connect(running.port) as client:
                client.send(message(streamed()))
                await until(lambda: bool(running.plane.active.exchanges))
                running.stop.set()
                assert (await client.answer()).error["code"] == "draining"
            final = await running.sink.settled()
            assert (final.outcome, final.error) == (Outcome.UPSTREAM_ERROR, "draining")


async def test_total_deadline_while_connecting_ends_the_request() -> None:
    with silent_listener() as url:
        bounds = RelayBounds(connect_seconds=300.0, total_seconds=0.1)
        async with gateway({"m": Served([url])}, bounds=bounds) as running, connect(running.port) as client:
            client.send(message(streamed()))
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
            assert (await running.sink.settled()).outcome is Outcome.TIMEOUT


async def test_client_that_leaves_while_final_is_made_durable_loses_nothing() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        running.sink.durable = asyncio.Event()
        async with connect(running.port) as client:
            client.send(message(chat()))
            await until(lambda: bool(running.sink.finals))
            client.vanish()
        await until(lambda: running.plane.metrics.read("tollway_connections") == 0)
        running.sink.durable.set()
        assert (await running.sink.settled()).outcome is Outcome.COMPLETED
        await until(lambda: running.plane.metrics.running == 0)


async def test_a_client_that_closes_its_half_is_gone() -> None:
    upstream = Upstream([Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(chat()))
        await until(lambda: bool(upstream.asked))
        client.writer.write_eof()
        await asyncio.wait_for(upstream.asked[0].left.wait(), PATIENCE_SECONDS)
        assert (await running.sink.settled()).outcome is Outcome.CLIENT_CANCELLED


async def test_a_client_that_pipelines_and_leaves_is_noticed() -> None:
    upstream = Upstream([Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        async with connect(running.port) as client:
            client.send(message(chat()) * 3)
            await until(lambda: bool(upstream.asked))
            client.vanish()
        await asyncio.wait_for(upstream.asked[0].left.wait(), PATIENCE_SECONDS)
        await running.sink.settled()
        assert len(upstream.asked) == 1


# Slow


def stop_reading(client: Client) -> None:
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]


MEGABYTE = part(chunk("x" * 65_000)) * 16


async def test_13_a_reader_that_stops_pauses_its_upstream_and_memory_is_bounded() -> None:
    script: Script = [STREAM_HEAD, *[MEGABYTE] * 30, part(chunk(finish="stop")), part(DONE), END]
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        stop_reading(client)
        client.send(message(streamed()))
        written = -1
        while upstream.written != written:
            written = upstream.written
            await asyncio.sleep(0.3)
        assert 0 < written < 20 << 20, "the rest waits in the engine, not here"
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        answer = await client.answer()
        assert len(answer.text) == 30 * 16 * 65_000 and answer.events()[-1] == "[DONE]"
        assert (await post(running.port, streamed())).events()[-1] == "[DONE]", "the pooled connection hears again"
        assert upstream.connections == 1


async def test_13_a_reader_that_never_reads_on_is_hung_up_on() -> None:
    upstream = Upstream([STREAM_HEAD, *[MEGABYTE] * 60])
    bounds = EdgeBounds(write_stall_seconds=0.5)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, edge_bounds=bounds) as running, connect(running.port) as client:
        stop_reading(client)
        client.send(message(streamed()))
        await until(lambda: bool(upstream.asked))
        await asyncio.wait_for(upstream.asked[0].left.wait(), PATIENCE_SECONDS)
        assert (await running.sink.settled()).outcome is Outcome.CLIENT_CANCELLED


async def test_13_a_slow_reader_does_not_blame_its_upstream() -> None:
    """The exchange's clock is turned by hand: minutes pass while nothing moves because the client does not read."""
    script: Script = [STREAM_HEAD, *[MEGABYTE] * 30, part(chunk(finish="stop")), part(DONE), END]
    upstream, silent = Upstream(script), Upstream([Do.HOLD])
    async with upstream.listening(), silent.listening():
        models = {"m": Served([upstream.url]), "silent": Served([silent.url])}
        async with gateway(models) as running, connect(running.port) as client, connect(running.port) as other:
            exchanges = running.plane.active.exchanges
            stop_reading(client)
            client.send(message(streamed()))
            await until(lambda: any(isinstance(each, Exchange) and each.connection.paused for each in exchanges))
            now = asyncio.get_running_loop().time()
            for exchange in list(exchanges):
                for seconds in (0, 200, 400, 600):
                    exchange.tick(now + seconds)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert (await client.answer()).events()[-1] == "[DONE]"
            assert (await running.sink.settled()).outcome is Outcome.COMPLETED
            other.send(message(streamed("silent")))
            await until(lambda: bool(silent.asked))
            for exchange in list(exchanges):
                exchange.tick(now + 400)
            assert (await other.answer()).status == 504, "whom nobody keeps from it, and who says nothing, is blamed"


async def test_12_slow_heads_and_bodies_are_told_and_closed() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        head = memory.connect()
        head.feed(b"POST / HTTP/1.1\r\n")
        memory.tick(head, 14)
        head.feed(b"host: a\r\n")
        assert head.written == b""
        memory.tick(head, 2)
        body = memory.connect()
        body.feed(message(chat())[:-10])
        memory.tick(body, 9)
        assert body.written == b""
        memory.tick(body, 2)
        for connection in (head, body):
            (answer,) = split_answers(connection.written)
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")
            assert answer.headers["connection"] == "close" and connection.is_over
            assert not connection.aborted
            memory.tick(connection, 3)
            assert connection.aborted, "a client that does not take the hint is hung up on"


async def test_12_body_that_arrives_at_the_slowest_rate_ends_at_its_deadline() -> None:
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(body_seconds=60.0))
        connection = memory.connect()
        data = bytes(200_000)
        connection.feed(message(data)[: -len(data)])
        for start in range(0, 180_000, 3_000):
            assert connection.written == b""
            memory.tick(connection, 1.0)
            connection.feed(data[start : start + 3_000])
            await asyncio.sleep(0)  # a large body is read in turns
        memory.tick(connection, 1.0)
        (answer,) = split_answers(connection.written)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")


async def test_12_a_body_that_arrives_at_a_fair_rate_is_waited_for() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        connection = memory.connect()
        data = b'{"model":"m","messages":[{"content":"' + b"x" * 40_000 + b'"}]}'
        connection.feed(message(data)[: -len(data)])
        for start in range(0, len(data), 2000):
            memory.tick(connection, 1.5)
            connection.feed(data[start : start + 2000])
        await memory.settle()
        assert split_answers(connection.written)[0].status == 502


async def test_103_unfinished_small_body_is_held_for_keys_alone_and_within_their_budget() -> None:
    with plane(buffers=BufferBounds(key_bytes_max=LARGE_BYTES)) as (made, _, _):
        memory = Memory(made)
        data = message(chat(padding="x" * 40_000))
        unknown = memory.connect()
        unknown.feed(message(chat(), key=UNKNOWN_KEY)[:-10])
        own, another = memory.connect(), memory.connect()
        for connection in (own, another):
            connection.feed(data[:-10])
        for seconds in (0.5, 1.0):
            assert [each.written for each in (unknown, own, another)] == [b""] * 3
            memory.edge.now += seconds
            for connection in (unknown, own, another):
                memory.tick(connection, 0.0)
        assert [split_answers(each.written)[0].status for each in (unknown, another)] == [401, 429]
        assert unknown.is_over and another.is_over and own.written == b""
        assert made.buffers.total == len(data) - data.index(b"\r\n\r\n") - 4
        own.feed(data[-10:])
        await memory.settle()
        assert split_answers(own.written)[0].status == 400 and made.buffers.total == 0
        token = memory.connect()
        token.feed(b"POST /v1/oauth/token HTTP/1.1\r\nhost: a\r\ncontent-length: 20000\r\n\r\n{")
        memory.tick(token, 1.5)
        assert made.buffers.total == 20_000 and token.written == b""
        token.close()
        await memory.settle()
        assert made.buffers.total == 0


async def test_14_idle_connections_are_closed_without_a_word() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        fresh, used = memory.connect(), memory.connect()
        used.feed(ALIVE)
        for connection in (fresh, used):
            memory.tick(connection, 76)
            assert connection.is_over
        assert fresh.written == b""


async def test_14_connections_are_counted_in_all_and_by_address() -> None:
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(connections_max=3, connections_per_peer_max=2))
        first, second = memory.connect("a"), memory.connect("a")
        refused = memory.connect("a")
        other = memory.connect("b")
        also_refused = memory.connect("c")
        for connection in (refused, also_refused):
            (answer,) = split_answers(connection.written)
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1 and connection.is_over
        first.close()
        await memory.settle()
        again = memory.connect("a")
        for connection in (second, other, again):
            connection.feed(ALIVE)
            assert split_answers(connection.written)[0].status == 200
        assert made.metrics.connections_refused == 2


async def test_14_a_refused_connection_gets_one_answer_even_if_it_asks() -> None:
    async with gateway({}, edge_bounds=EdgeBounds(connections_max=1)) as running, connect(running.port) as first:
        first.send(ALIVE)
        assert (await first.answer("GET")).status == 200
        async with connect(running.port) as client:
            client.send(ALIVE)
            (answer,) = split_answers(await client.rest())
            assert answer.status == 503
        first.send(ALIVE)
        assert (await first.answer("GET")).status == 200


async def test_20_a_refusal_reaches_a_client_that_sends_its_whole_body_first() -> None:
    head = message(chat(), key=UNKNOWN_KEY, content_length="30000000").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def send_all_then_read(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=CLIENT_SECONDS) as client:
            client.sendall(head)
            client.sendall(bytes(30_000_000))
            return client.recv(65536)

    async with gateway({}) as running:
        (answer,) = split_answers(await asyncio.to_thread(send_all_then_read, running.port))
        assert answer.status == 401


async def test_20_a_refused_client_that_never_stops_sending_is_hung_up_on() -> None:
    async with gateway({}, edge_bounds=EdgeBounds(linger_seconds=0.3)) as running, connect(running.port) as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert (await client.answer("GET")).status == 400
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    client.send(b"x")
                    await client.writer.drain()
                    await asyncio.sleep(0.05)


# Ahead


async def test_14_pipelined_requests_are_answered_in_order() -> None:
    upstream = Upstream(healthy("one"), [whole(completion("two"))], healthy("three"))
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(streamed()) + message(chat()) + message(chat("absent")) + message(streamed()) + ALIVE)
        assert (await client.answer()).text == "one"
        assert (await client.answer()).json()["choices"][0]["message"]["content"] == "two"
        assert (await client.answer()).status == 404
        assert (await client.answer()).text == "three"
        assert (await client.answer("GET")).json() == {"status": "alive"}
        await running.sink.settled(3)
        assert upstream.connections == 1


@pytest.mark.parametrize("step", [0, 1, 100])
async def test_14_requests_that_arrive_while_another_is_answered_wait_for_their_turn(step: int) -> None:
    with plane() as (made, _, _):
        connection = await Memory(made).exchange(message(chat()) + message(chat("absent")) + ALIVE + message(chat()), step)
        assert [answer.status for answer in split_answers(connection.written)] == [502, 404, 200, 502]


async def test_101_request_that_arrives_between_two_pipelined_ones_does_not_overtake() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        connection = memory.connect()
        connection.feed(ALIVE + message(chat()) + ALIVE)
        connection.feed(message(chat("absent")) + ALIVE)  # before the loop has had a turn for the second one
        await memory.settle()
        assert [answer.status for answer in split_answers(connection.written)] == [200, 502, 200, 404, 200]


async def test_101_body_that_arrives_between_two_pipelined_requests_is_refused_in_its_turn() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        connection = memory.connect()
        connection.feed(ALIVE + message(chat()))
        connection.feed(b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 70000\r\n\r\n{")
        await memory.settle()
        assert [answer.status for answer in split_answers(connection.written)] == [200, 502, 401]


async def test_101_broken_bytes_between_two_pipelined_requests_are_answered_behind_them() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        connection = memory.connect()
        connection.feed(ALIVE + message(chat()))
        connection.feed(b"NO HTTP\r\n\r\n")
        await memory.settle()
        assert [answer.status for answer in split_answers(connection.written)] == [200, 502, 400]
        assert connection.is_over


async def test_14_far_ahead_is_not_read() -> None:
    with plane() as (made, _, _):
        memory = Memory(made, http=HttpBounds(pipelined_max=4))
        connection = memory.connect()
        connection.feed(message(chat()))
        fed = 1
        while connection.is_reading() and fed < 100:
            connection.feed(message(chat()))
            fed += 1
        assert fed == 5
        await memory.settle()
        assert [answer.status for answer in split_answers(connection.written)] == [502] * fed
        assert connection.is_reading()
        connection.feed(message(chat()))
        connection.feed(message(b'{"' + b"x" * 70_000 + b'"}')[:70_000])
        assert not connection.is_reading()
        await memory.settle()
        assert connection.is_reading()


async def test_14_too_many_requests_in_one_read_are_answered_up_to_the_bound() -> None:
    with plane() as (made, _, _):
        memory = Memory(made)
        connection = await memory.exchange(ALIVE * 100)
        answers = split_answers(connection.written)
        assert [answer.status for answer in answers] == [200] * 16 + [400]
        assert connection.is_over


EXPECTING = message(chat(), expect="100-continue")
EXPECTING_HEAD, EXPECTING_BODY = EXPECTING[: EXPECTING.index(b"\r\n\r\n") + 4], EXPECTING[EXPECTING.index(b"\r\n\r\n") + 4 :]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_client_that_waits_to_be_told_is_told() -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        for _ in range(2):
            client.send(EXPECTING_HEAD)
            assert await asyncio.wait_for(client.reader.readexactly(len(CONTINUE)), PATIENCE_SECONDS) == CONTINUE
            client.send(EXPECTING_BODY)
            assert (await client.answer()).status == 200
        client.send(EXPECTING)
        assert (await client.answer()).status == 200


async def test_a_client_that_waits_behind_another_request_is_told_when_its_turn_comes() -> None:
    upstream = Upstream([Do.GATE, whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(chat()) + EXPECTING_HEAD)
        await until(lambda: bool(upstream.asked))
        upstream.gate.set()
        assert (await client.answer()).status == 200
        assert await asyncio.wait_for(client.reader.readexactly(len(CONTINUE)), PATIENCE_SECONDS) == CONTINUE
        client.send(EXPECTING_BODY)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("change", "status"), [((KEY, UNKNOWN_KEY), 401), ((CHAT, "/nothing"), 404), ((CHAT, "/v1/../x"), 400)], ids=["401", "404", "400"]
)
async def test_a_client_that_waits_in_vain_is_told_that_too(change: tuple[str, str], status: int) -> None:
    with plane() as (made, _, _):
        connection = await Memory(made).exchange(EXPECTING_HEAD.replace(change[0].encode(), change[1].encode()))
        (answer,) = split_answers(connection.written)
        assert answer.status == status and connection.is_over


async def test_bodies_may_come_in_chunks_however_they_are_cut() -> None:
    body = message(chat()).partition(b"\r\n\r\n")[2]
    head = message(chat()).partition(b"content-length")[0] + f"authorization: Bearer {KEY}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        for size in (1, 7, 1000):
            pieces = [body[start : start + size] for start in range(0, len(body), size)]
            chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            client.send(head + chunks + b"0\r\nx-trailer: 1\r\n\r\n")
            assert (await client.answer()).status == 200
        sent: Any = {asked.body for asked in upstream.asked}
        assert len(sent) == 1
        assert upstream.connections == 1


async def test_connections_are_kept_on_both_sides() -> None:
    upstream = Upstream(healthy("a"))
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        for _ in range(20):
            client.send(message(streamed()))
            assert (await client.answer()).text == "a"
        assert upstream.connections == 1
        client.send(message(streamed(), connection="close"))
        answer = await client.answer()
        assert answer.headers["connection"] == "close" and await client.rest() == b""


async def test_http_1_0_gets_a_stream_that_ends_with_the_connection() -> None:
    upstream = Upstream(healthy("a"))
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        client.send(message(streamed()).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await client.answer()
        assert answer.text == "a" and answer.events()[-1] == "[DONE]" and "transfer-encoding" not in answer.headers


# Leaving


async def test_a_drain_lets_what_runs_finish_and_takes_nothing_new() -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.GATE, part(chunk("b", finish="stop")), part(DONE), END])
    bounds = DrainBounds(grace_seconds=20)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, drain=bounds) as running:
        async with connect(running.port) as busy, connect(running.port) as idle:
            busy.send(message(streamed()))
            await busy.reader.readuntil(b'"a"')
            running.stop.set()
            assert await idle.rest() == b""
            with pytest.raises(ConnectionError):
                async with connect(running.port) as late:
                    late.send(ALIVE)
                    assert (await late.answer("GET")).status, "neither refused nor answered"
            upstream.gate.set()
            rest = await busy.rest()
            assert b"[DONE]" in rest and rest.endswith(b"0\r\n\r\n")
        await asyncio.wait_for(running.done, PATIENCE_SECONDS)


async def test_a_drain_answers_the_request_that_is_on_its_way_on_a_kept_connection() -> None:
    async with gateway({}, drain=DrainBounds(grace_seconds=20)) as running:
        async with connect(running.port) as used, connect(running.port) as fresh:
            used.send(ALIVE)
            assert "connection" not in (await used.answer("GET")).headers
            running.stop.set()
            await until(lambda: running.plane.draining)
            await asyncio.sleep(0.1)
            for client in (used, fresh):
                client.send(ALIVE)
                answer = await client.answer("GET")
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await client.rest() == b""
        await asyncio.wait_for(running.done, PATIENCE_SECONDS)


async def test_a_drain_does_not_believe_the_clock_that_a_connection_has_rested() -> None:
    """The clock is coarse: what it saw rest for long may have been used a moment before the drain began."""
    with plane() as (made, _, _):
        memory = Memory(made)
        connection = await memory.exchange(ALIVE)
        memory.tick(connection, 10)
        idle = cast("ClientConnection", connection.protocol)
        idle.close_if_idle(is_rested=False)
        connection.feed(ALIVE)
        await memory.settle()
        _, answer = split_answers(connection.written)
        assert (answer.status, answer.headers["connection"]) == (200, "close") and connection.is_over
        other = await memory.exchange(ALIVE)
        memory.tick(other, 10)
        cast("ClientConnection", other.protocol).close_if_idle(is_rested=True)
        assert other.is_over


async def test_a_drain_waits_for_a_connection_that_came_in_the_same_moment() -> None:
    """A gateway that is asked to stop as it starts finds its first connections in the kernel's queue, and none that it knows of."""
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.GATE, part(chunk("b", finish="stop")), part(DONE), END])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, drain=DrainBounds(grace_seconds=20)) as running:
        running.stop.set()
        await asyncio.sleep(0)  # the loop runs once: the drain has begun, and closes the listener when the loop runs again
        with socket.create_connection(("127.0.0.1", running.port)) as early:
            early.sendall(message(streamed()))
            reader, writer = await asyncio.open_connection(sock=early)
            await asyncio.wait_for(reader.readuntil(b'"a"'), PATIENCE_SECONDS)
            assert not running.done.done(), "the gateway left, and would have closed its spool"
            upstream.gate.set()
            assert b"[DONE]" in await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
            writer.close()
        await asyncio.wait_for(running.done, PATIENCE_SECONDS)


async def test_a_drain_tells_what_does_not_finish_in_time() -> None:
    upstream = Upstream([STREAM_HEAD, part(chunk("a")), Do.HOLD])
    bounds = DrainBounds(grace_seconds=0.2)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, drain=bounds) as running, connect(running.port) as client:
        client.send(message(streamed()))
        await client.reader.readuntil(b'"a"')
        running.stop.set()
        rest = await client.rest()
        assert b'"draining"' in rest and b"[DONE]" not in rest
        await asyncio.wait_for(running.done, PATIENCE_SECONDS)
        assert (await running.sink.settled()).outcome is Outcome.UPSTREAM_ERROR


async def test_a_gateway_without_a_snapshot_or_a_spool_is_not_ready() -> None:
    with plane() as (made, sink, _):
        memory = Memory(made)
        ready = b"GET /readyz HTTP/1.1\r\nhost: gateway\r\n\r\n"
        assert split_answers((await memory.exchange(ready)).written)[0].status == 200
        sink.is_full = True
        assert split_answers((await memory.exchange(ready)).written)[0].status == 503
        sink.is_full = False
        for obstacle in (faults.SNAPSHOT_MISSING, faults.SNAPSHOT_OUTDATED):
            made.directory.obstacle = obstacle
            assert split_answers((await memory.exchange(ready)).written)[0].status == 503
            (answer,) = split_answers((await memory.exchange(message(chat()))).written)
            assert (answer.status, answer.error["code"]) == (503, obstacle.code) and int(answer.headers["retry-after"]) >= 1


def echo(asked: Asked) -> list[bytes]:
    """An answer with the id of its request."""
    (id,) = [line[14:] for line in asked.head.split(b"\r\n") if line.startswith(b"x-request-id: ")]
    return [whole(completion("right"), headers=b"X-Request-Id: %b\r\n" % id)]


OTHERS_ANSWER = [whole(completion("another tenant's"), headers=b"x-request-id: req_another\r\n")]


async def test_93_answer_with_the_id_of_another_request_is_not_relayed() -> None:
    upstream = Upstream(echo, OTHERS_ANSWER, echo)
    async with upstream.listening(), gateway({"m": Served([upstream.url], retry_started=False)}) as running:
        assert (await post(running.port, chat())).status == 200
        answer = await post(running.port, chat())
        assert answer.status == 502 and b"another" not in answer.body
        assert running.plane.metrics.unsolicited == {"dep-m-0": 1}
        assert [(await post(running.port, chat())).status for _ in range(2)] == [200, 200]
        assert upstream.connections == 3, "no connection is used again for a time"
    assert running.log.text.count(b'"upstream_unsolicited"') == 1


@pytest.mark.parametrize("status", [302, 400, 429, 500, 503])
async def test_93_refusal_with_the_id_of_another_request_is_not_relayed(status: int) -> None:
    refusal = {"error": {"message": "another tenant's prompt is too long", "type": "invalid_request_error"}}
    others = [whole(refusal, status, headers=b"x-request-id: req_another\r\n")]
    upstream = Upstream(echo, others, echo)
    async with upstream.listening(), gateway({"m": Served([upstream.url], retry_started=False)}) as running:
        assert (await post(running.port, chat())).status == 200
        answer = await post(running.port, chat())
        assert answer.status == 502 and b"another" not in answer.body
        assert running.plane.metrics.unsolicited == {"dep-m-0": 1}
        assert (await post(running.port, chat())).status == 200


async def test_ids_of_an_engine_that_never_repeated_ours_mean_nothing() -> None:
    upstream = Upstream(OTHERS_ANSWER)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        assert [(await post(running.port, chat())).status for _ in range(2)] == [200, 200]
        assert running.plane.metrics.unsolicited == {}
