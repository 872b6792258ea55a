"""A process without a free descriptor: whom it blames, what it closes, and what it serves."""

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes import Upstream, until
from tests.gateway.harness import Memory, Served, chat, completion, connect, gateway, message, plane, split_answers, whole
from tollway.gateway.edge.clock import Clock
from tollway.gateway.edge.edge import REST_SECONDS, EdgeBounds

ALIVE = b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n"


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Take every descriptor that this process may still have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_72_request_without_a_descriptor_for_its_engine_blames_no_engine() -> None:
    first, second = Upstream([whole(completion("first"))]), Upstream([whole(completion("second"))])
    async with first.listening(), second.listening(), gateway({"m": Served([first.url, second.url])}) as running:
        async with connect(running.port) as client:
            client.send(ALIVE)
            assert (await client.answer("GET")).status == 200
            with no_free_descriptor():
                for _ in range(5):
                    client.send(message(chat()))
                    answer = await client.answer()
                    assert (answer.status, answer.error["code"]) == (503, "overloaded")
                    assert int(answer.headers["retry-after"]) >= 1
            assert running.plane.metrics.retries == 0 and not running.plane.metrics.ejections
            client.send(message(chat()))
            assert (await client.answer()).json()["choices"][0]["message"]["content"] == "first"
        assert second.asked == []
        assert running.plane.upstreams.connections.count == 1


async def test_72_idle_clients_make_way_for_a_request_that_needs_a_descriptor() -> None:
    upstream = Upstream([whole(completion("served"))])
    async with (
        upstream.listening(),
        gateway({"m": Served([upstream.url])}) as running,
        connect(running.port) as client,
        connect(running.port) as idle,
        connect(running.port) as other,
    ):
        for each in (client, idle, other):
            each.send(ALIVE)
            assert (await each.answer("GET")).status == 200
        await asyncio.sleep(REST_SECONDS + 2 * Clock.PERIOD_SECONDS)
        with no_free_descriptor():
            client.send(message(chat()))
            answer = await client.answer()
        assert answer.json()["choices"][0]["message"]["content"] == "served"
        assert await idle.rest() == b"" and await other.rest() == b""
        assert running.plane.metrics.connections_shed == 2


async def test_72_idle_connections_make_way_at_the_bound() -> None:
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(connections_max=3))
        idle, used, busy = memory.connect(), memory.connect(), memory.connect()
        busy.feed(message(chat())[:-5])
        memory.edge.now += 0.5
        used.feed(ALIVE)
        memory.edge.now += 0.6
        fresh = memory.connect()
        assert idle.aborted and not used.is_over and not busy.is_over
        fresh.feed(ALIVE)
        assert split_answers(fresh.written)[0].status == 200
        refused = memory.connect()
        assert split_answers(refused.written)[0].status == 503, "none of the others has been idle for long"
        await memory.settle()
        memory.edge.now += 2.0
        memory.connect().feed(ALIVE)
        await until(lambda: used.is_over)
        assert not busy.is_over and made.metrics.connections_shed == 2
