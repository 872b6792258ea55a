"""Large bodies and answers: what is held of them, for whom, and who is refused before anything is read."""

import asyncio
import ctypes
import socket
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from types import SimpleNamespace

import msgspec
import pytest

from tests.fakes import Do, Upstream, until
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    Client,
    Memory,
    Served,
    chat,
    completion,
    connect,
    gateway,
    message,
    plane,
    post,
    split_answers,
    whole,
)
from tests.patience import PATIENCE_SECONDS
from tollway.domain.limits import Limits
from tollway.gateway.buffers import BufferBounds
from tollway.gateway.edge.edge import EdgeBounds
from tollway.serve import allocator

MIB = 1024 * 1024
SMALL = BufferBounds(total_bytes_max=4 * MIB, key_bytes_max=2 * MIB, upstream_bytes_max=3 * MIB)
CHUNKED = message(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")


def announce(size: int, key: str = KEY) -> bytes:
    """The head of a request that announces a body of so many bytes."""
    return message(b"", key=key, content_length=str(size)).replace(b"content-length: 0\r\n", b"")


async def refuse(client: Client) -> tuple[int, str]:
    """Status and code of a refusal, after which the connection is closed."""
    answer = await client.answer()
    assert answer.headers["connection"] == "close"
    return answer.status, answer.error["code"]


async def test_74_body_beyond_the_budget_of_its_key_is_refused_before_it_is_read() -> None:
    async with gateway({}, buffers=SMALL) as running, connect(running.port) as first, connect(running.port) as second:
        first.send(announce(MIB + 1))
        await until(lambda: running.plane.buffers.total == MIB + 1)
        second.send(announce(MIB))
        assert await refuse(second) == (429, "rate_limit_exceeded")
        async with connect(running.port) as other:
            other.send(announce(MIB, OTHER_KEY))
            await until(lambda: running.plane.buffers.total == 2 * MIB + 1)
        first.vanish()
        await until(lambda: running.plane.buffers.total == 0)


async def test_74_body_that_no_budget_of_a_key_allows_is_too_large() -> None:
    async with gateway({}, buffers=SMALL) as running, connect(running.port) as client:
        client.send(announce(2 * MIB + 1))
        assert await refuse(client) == (413, "body_too_large")


async def test_74_body_beyond_the_budget_of_the_process_is_told_to_come_back() -> None:
    bounds = BufferBounds(total_bytes_max=2 * MIB, key_bytes_max=2 * MIB, upstream_bytes_max=2 * MIB)
    async with gateway({}, buffers=bounds) as running, connect(running.port) as first, connect(running.port) as second:
        first.send(announce(2 * MIB))
        await until(lambda: running.plane.buffers.total == 2 * MIB)
        second.send(announce(MIB, OTHER_KEY))
        answer = await second.answer()
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")


async def test_74_body_of_unknown_length_is_refused_when_it_passes_the_budget() -> None:
    async with gateway({}, buffers=SMALL) as running, connect(running.port) as client:
        client.send(CHUNKED)
        for _ in range(40):
            client.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await asyncio.sleep(0)
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        await until(lambda: running.plane.buffers.total == 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_74_answered_request_leaves_nothing_held(stream: bool) -> None:
    body = b'{"model":"m","stream":%b,"messages":[{"role":"user","content":"%b"}]}' % (b"true" if stream else b"false", b"x" * MIB)
    upstream = Upstream([Do.GATE, whole(completion("a" * 300_000))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, buffers=SMALL) as running, connect(running.port) as client:
        client.send(message(body))
        await until(lambda: bool(upstream.asked))
        assert running.plane.buffers.total > 2 * MIB, "once for the key and once for the upstream"
        upstream.gate.set()
        await client.answer()
        await until(lambda: running.plane.buffers.total == 0)
        assert all(each.account.bytes == 0 for each in running.plane.upstreams.all())


async def test_74_upstream_beyond_its_budget_is_passed_over() -> None:
    stuck, other = Upstream([Do.HOLD]), Upstream([whole(completion("other"))])
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * (MIB + MIB // 2) + b'"}]}'
    bounds = BufferBounds(upstream_bytes_max=2 * MIB)
    async with (
        stuck.listening(),
        other.listening(),
        gateway({"m": Served([stuck.url, other.url])}, buffers=bounds) as running,
        connect(running.port) as first,
        connect(running.port) as second,
    ):
        first.send(message(body))
        await until(lambda: bool(stuck.asked))
        second.send(message(body))
        assert (await second.answer()).json()["choices"][0]["message"]["content"] == "other"
        assert running.plane.metrics.ejections == {}


async def test_74_answers_beyond_the_budget_of_their_upstream_are_not_gathered() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n"
    upstream = Upstream([head + bytes(MIB), Do.HOLD])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, buffers=SMALL) as running, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(running.port)) for _ in range(6)]
        for each in clients:
            each.send(message(chat()))
        done, _ = await asyncio.wait([asyncio.ensure_future(each.answer()) for each in clients], return_when=asyncio.FIRST_COMPLETED)
        assert {(each.result().status, each.result().error["code"]) for each in done} == {(503, "overloaded")}
        assert sum(each.account.bytes for each in running.plane.upstreams.all()) <= SMALL.upstream_bytes_max


def stop_reading(client: Client) -> None:
    """Read no more, and let the kernel take little in the client's place: it would take a whole answer where its limits are high."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]


async def test_74_client_that_does_not_read_holds_one_answer() -> None:
    upstream = Upstream([whole(completion("a" * 16_000_000))])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        stop_reading(client)
        for _ in range(5):
            client.send(message(chat()))
        await until(lambda: len(upstream.asked) == 1 and not running.plane.metrics.running)
        await asyncio.sleep(0.2)
        assert len(upstream.asked) == 1 and running.plane.buffers.total > 0
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(5):
            assert (await client.answer()).status == 200
        await until(lambda: running.plane.buffers.total == 0)


async def test_13_last_answer_of_a_connection_waits_for_a_slow_reader() -> None:
    upstream = Upstream([whole(completion("a" * 16_000_000))])
    bounds = EdgeBounds(linger_seconds=0.1)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, edge_bounds=bounds) as running, connect(running.port) as client:
        stop_reading(client)
        client.send(message(chat(), connection="close"))
        await until(lambda: bool(upstream.asked) and not running.plane.metrics.running)
        await asyncio.sleep(1.5)  # the clock would have hung up on a connection that lingers
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        answer = await client.answer()
        assert (answer.status, answer.ended) == (200, "complete")


BROKEN = b'{"model":"m","messages":[' + b'{"role":"user","content":"a"},' * 5_000
"""A body of 150 KB that is no JSON."""


async def test_75_large_body_that_is_refused_has_used_its_request_rate() -> None:
    async with gateway({}, limits=Limits(requests_per_minute=1)) as running:
        async with connect(running.port) as client:
            client.send(message(BROKEN))
            assert (await client.answer()).status == 400
        async with connect(running.port) as client:
            client.send(announce(5_800_000))
            assert await refuse(client) == (429, "rate_limit_exceeded")


async def test_75_large_body_that_is_never_finished_has_used_its_request_rate() -> None:
    async with gateway({}, limits=Limits(requests_per_minute=1, requests_per_day=10)) as running:
        async with connect(running.port) as client:
            client.send(announce(5_800_000))
            await until(lambda: running.plane.buffers.total > 0)
        async with connect(running.port) as client:
            client.send(message(chat()))
            assert (await client.answer()).status == 429


async def test_75_large_body_counts_as_one_request_when_it_is_served() -> None:
    upstream = Upstream([whole(completion())])
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * MIB + b'"}]}'
    limits = Limits(requests_per_minute=3, requests_per_day=100, concurrent_requests=1)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=limits) as running, connect(running.port) as client:
        for _ in range(3):
            client.send(message(body))
            assert (await client.answer()).status == 200
        client.send(message(body))
        assert (await client.answer()).status == 429


async def test_75_uploads_count_as_concurrent_requests() -> None:
    with plane(limits=Limits(concurrent_requests=1)) as (made, _, _):
        memory = Memory(made)
        first, second = memory.connect(), memory.connect()
        first.feed(announce(MIB))
        second.feed(announce(MIB))
        (answer,) = split_answers(second.written)
        assert (answer.status, answer.error["message"][:28]) == (429, "Too many concurrent requests")
        first.close()
        await memory.settle()
        third = memory.connect()
        third.feed(announce(MIB))
        assert third.written == b""


KEPT_MIB = """
import sys
from pathlib import Path
from tollway.serve.allocator import return_large_blocks

def read_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)

if sys.argv[1] == "yes" and not return_large_blocks():
    sys.exit(3)
bytearray(b"x" * (32 << 20)).clear()  # the first large body
before = read_mib()
pieces, others = [], []
for _ in range(500):
    pieces.append(bytearray(b"x" * 200_000))
    others.append(bytearray(b"x" * 1_000))  # whatever else a process remembers meanwhile
pieces.clear()
print(read_mib() - before)
"""


def test_102_memory_of_large_messages_goes_back_to_the_system_once_they_are_over() -> None:
    kept = []
    for is_told in ("yes", "no"):
        done = subprocess.run((sys.executable, "-c", KEPT_MIB, is_told), capture_output=True, text=True, timeout=60)
        if done.returncode == 3:
            pytest.skip("the C library has no such parameter")
        assert done.returncode == 0, done.stderr
        kept.append(float(done.stdout))
    assert kept[0] < 10 < 20 < kept[1], "of 95 MiB"


async def test_102_free_pages_are_returned_once_memory_has_grown_and_grows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = iter((100, 150, 140, 104, 104, 110, 111, 105, 119, 118, 104, 104, 104, 104, 103, 103))
    seen: list[object] = []
    is_over = asyncio.Event()

    def read_resident_bytes() -> int:
        seen.append(next(mib, 0))
        if not seen[-1]:
            is_over.set()
        return int(str(seen[-1])) * MIB

    monkeypatch.setattr(allocator, "PERIOD_SECONDS", 0.0)
    monkeypatch.setattr(allocator, "LOOKS_UNTIL_REPEATED", 3)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=lambda _: seen.append("trimmed")))
    task = asyncio.create_task(allocator.return_free_pages(read_resident_bytes))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await is_over.wait()
    task.cancel()
    flood, repeated = [100, 150, 140, "trimmed", 104], [104, 110, 111, "trimmed", 105]
    assert seen[:-1] == [*flood, *repeated, 119, 118, "trimmed", 104, 104, 104, 104, "trimmed", 103, 103]


async def test_134_large_messages_are_read_in_turns_one_in_each_turn_of_the_loop() -> None:
    upstream = Upstream([whole(completion("a" * 2_000_000))])
    body = msgspec.json.encode(chat() | {"messages": [{"role": "user", "content": "a" * 2_000_000}]})
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        turns, waited, in_this_turn = running.plane.buffers.turns, Counter[str](), 0
        original = turns._read_next

        def read_next() -> None:
            nonlocal in_this_turn
            waited[type(turns._waiting[0]).__name__] += 1
            waited["at once"] = max(waited["at once"], len(turns._waiting))
            assert not in_this_turn
            in_this_turn += 1
            asyncio.get_running_loop().call_soon(end_turn)
            original()

        def end_turn() -> None:
            nonlocal in_this_turn
            in_this_turn = 0

        turns._read_next = read_next  # type: ignore[method-assign]
        answers = await asyncio.gather(*(post(running.port, body) for _ in range(4)))
        assert {(each.status, len(each.body) > 2_000_000) for each in answers} == {(200, True)}
        assert waited["Exchange"] and waited["ClientConnection"] and waited["at once"] > 1 and not turns._waiting
