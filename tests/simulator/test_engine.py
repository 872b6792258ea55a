"""Slots, the queue, and what a client sees of them."""

import asyncio
from collections.abc import Callable

from tests.simulator.running import CHAT, MESSAGES, Running, chat, connect, get, post, send, streamed

LONG = "itl@20"


async def test_a_full_engine_queues_and_a_full_queue_is_503(start: Callable[..., Running]) -> None:
    sim = start(running_max=1, queued_max=1)
    async with connect(sim) as running, connect(sim) as waiting:
        send(running, CHAT, streamed(20), "running", LONG)
        await sim.wait_for(running=1)
        send(waiting, CHAT, streamed(2), "waiting")
        await sim.wait_for(running=1, waiting=1)
        for path in (CHAT, MESSAGES):
            refused = await post(sim, path, chat(), f"refused{len(path)}")
            assert refused.status == 503
            assert refused.json()["error"]["message"].startswith("The engine is currently busy")
            assert "retry-after" not in refused.headers
            assert (await sim.record(f"refused{len(path)}")).ended == "rejected"
        assert (await running.receive()).ended == "complete"
        assert (await waiting.receive()).ended == "complete"
    assert (await sim.record("waiting")).ended == "completed"
    assert (await sim.state())["ended"] == {"rejected": 2, "completed": 2}


async def test_slots_are_given_in_order_of_arrival(start: Callable[..., Running]) -> None:
    sim = start(running_max=1)
    tasks = []
    async with connect(sim) as client:
        send(client, CHAT, streamed(5000), "first", LONG)  # it has the slot until its client leaves
        await sim.wait_for(running=1)
        for number in range(4):
            tasks.append(asyncio.create_task(post(sim, CHAT, streamed(1), f"r{number}")))
            await sim.wait_for(waiting=number + 1)
    await asyncio.gather(*tasks)
    assert [record.request_id for record in sim.records()] == ["first", "r0", "r1", "r2", "r3"]


async def test_a_waiting_stream_already_has_its_status_line(start: Callable[..., Running]) -> None:
    sim = start(running_max=1)
    async with connect(sim) as first, connect(sim) as second:
        send(first, CHAT, streamed(5000), "first", LONG)
        await sim.wait_for(running=1)
        send(second, CHAT, streamed(2), "second")
        assert (await second.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        await sim.wait_for(waiting=1)


async def test_the_gauges_show_running_and_waiting_and_blocks(start: Callable[..., Running]) -> None:
    sim = start(running_max=1, cache_blocks_max=1000)
    async with connect(sim) as first, connect(sim) as second:
        send(first, CHAT, streamed(5000), "first", LONG)
        send(second, CHAT, streamed(5000), "second", LONG)
        await sim.wait_for(running=1, waiting=1)
        text = (await get(sim, "/metrics")).body.decode()
        labels = '{engine="0",model_name="sim-small"}'
        assert f"vllm:num_requests_running{labels} 1.0\n" in text
        assert f"vllm:num_requests_waiting{labels} 1.0\n" in text
        assert f"vllm:kv_cache_usage_perc{labels} 0.314\n" in text  # 5000 + 14 tokens are 314 blocks
        assert (await get(sim, "/load")).json() == {"server_load": 2}


async def test_jitter_changes_no_token(start: Callable[..., Running]) -> None:
    plain, shaken = start(), start(jitter_fraction=1.0, seed=0)
    for sim in (plain, shaken):
        answer = await post(sim, CHAT, streamed(50))
        assert answer.events()[-2]["usage"]["completion_tokens"] == 50
