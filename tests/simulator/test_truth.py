"""The truth log: one record per request that reached the engine, written before the answer is whole."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.simulator.running import CHAT, MESSAGES, Client, Running, chat, connect, post, send, streamed
from tollway.simulator import truth

SLOW = "itl@20"


async def read_chunks(client: Client, count: int) -> None:
    await client.reader.readuntil(b"\r\n\r\n")
    for _ in range(count + 1):  # the role chunk, too
        await client.reader.readuntil(b"data: ")


@pytest.mark.parametrize("fsync_each", [False, True])
async def test_a_completed_request_has_one_record_with_every_field(start: Callable[..., Running], fsync_each: bool) -> None:
    sim = start(fsync_each=fsync_each)
    usage = (await post(sim, CHAT, streamed(5), "abc")).events()[-2]["usage"]
    (record,) = sim.records()
    assert record == truth.TruthRecord(
        request_id="abc",
        attempt_id=record.attempt_id,
        model="sim-small",
        endpoint="chat",
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=0,
        completion_tokens=5,
        reasoning_tokens=0,
        delivered_tokens=5,
        ended="completed",
        finish_reason="length",
        terminator_sent=True,
        started_at_us=record.started_at_us,
        ended_at_us=record.ended_at_us,
    )
    assert record.started_at_us <= record.ended_at_us
    assert truth.read_unended(sim.log) == []


async def test_the_record_is_there_when_the_terminator_is(sim: Running) -> None:
    for number in range(50):
        answer = await post(sim, CHAT, chat(2, stream=number % 2 == 0), f"r{number}")
        assert answer.ended == "complete"
        assert len(sim.records()) == number + 1  # no waiting: it was written first


async def test_two_attempts_with_one_id_are_two_records(sim: Running) -> None:
    await post(sim, CHAT, chat(1), "same")
    await post(sim, CHAT, chat(1), "same")
    one, two = sim.records()
    assert one.request_id == two.request_id
    assert one.attempt_id != two.attempt_id


@pytest.mark.parametrize("vanish", [True, False])
async def test_a_client_that_leaves_mid_stream_stops_the_engine(sim: Running, vanish: bool) -> None:
    async with connect(sim) as client:
        send(client, CHAT, streamed(5000), fault=SLOW)
        await read_chunks(client, 3)
        (started,) = truth.read_unended(sim.log)
        assert started.request_id == "r"
        if vanish:
            client.vanish()
        else:
            client.writer.write_eof()
        record = await sim.record("r")
    assert record.ended == "aborted"
    assert 3 <= record.delivered_tokens <= record.completion_tokens < 5000
    assert record.terminator_sent is False
    await sim.wait_for(running=0)
    assert truth.read_unended(sim.log) == []


async def test_a_client_that_leaves_a_json_answer_is_charged_what_was_made(sim: Running) -> None:
    async with connect(sim) as client:
        send(client, CHAT, chat(5000), fault=SLOW)
        await sim.wait_for(running=1)
        await asyncio.sleep(0.1)
        client.vanish()
        record = await sim.record("r")
    assert (record.ended, record.delivered_tokens) == ("aborted", 0)
    assert 0 < record.completion_tokens < 5000


async def test_a_client_that_leaves_the_queue_made_nothing(start: Callable[..., Running]) -> None:
    sim = start(running_max=1)
    async with connect(sim) as first, connect(sim) as second:
        send(first, CHAT, streamed(5000), "first", SLOW)
        await sim.wait_for(running=1)
        send(second, CHAT, streamed(5000), "second", SLOW)
        await sim.wait_for(waiting=1)
        second.vanish()
        record = await sim.record("second")
    assert (record.ended, record.completion_tokens, record.cached_tokens) == ("aborted", 0, 0)
    await sim.wait_for(waiting=0)


async def test_a_client_that_does_not_read_is_charged_what_was_made_not_what_it_got(sim: Running) -> None:
    async with connect(sim) as client:
        send(client, CHAT, chat(30_000, stream=True), fault="itl@0")
        client.stop_reading()
        await sim.wait_for(running=0, exchanges=1)
        client.vanish()
        record = await sim.record("r")
    assert (record.ended, record.completion_tokens) == ("aborted", 30_000)
    assert 0 < record.delivered_tokens < 30_000


async def test_a_client_that_reads_late_gets_everything(sim: Running) -> None:
    async with connect(sim) as client:
        send(client, CHAT, chat(30_000, stream=True), fault="itl@0")
        client.stop_reading()
        await sim.wait_for(running=0, exchanges=1)
        client.read_again()
        answer = await client.receive()
    assert answer.ended == "complete"
    assert answer.body.count(b'"content":"') == 30_001
    assert (await sim.record("r")).delivered_tokens == 30_000


async def test_a_dripped_stream_is_not_over_before_its_last_drop(sim: Running) -> None:
    async with connect(sim) as client:
        send(client, CHAT, streamed(4), fault="drip@3")
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readuntil(b'"delta":{"content":"')
        assert sim.records() == []
        client.vanish()
        record = await sim.record("r")
    assert (record.ended, record.completion_tokens) == ("aborted", 4)
    assert record.delivered_tokens < 4


async def test_the_same_prompt_hits_the_cache_of_its_salt_only(sim: Running) -> None:
    long = {"messages": [{"role": "user", "content": "All work and no play. " * 50}]}
    cached = []
    for number, salt in enumerate(["a", "a", "b", "a"]):
        usage = (await post(sim, CHAT, chat(1, cache_salt=salt) | long, f"r{number}")).json()["usage"]
        record = await sim.record(f"r{number}")
        assert usage["prompt_tokens_details"]["cached_tokens"] == record.cached_tokens
        assert record.cached_tokens % 16 == 0
        assert record.cached_tokens < record.prompt_tokens
        cached.append(record.cached_tokens > 0)
    assert cached == [False, True, False, True]


async def test_every_request_of_a_crowd_has_its_record(start: Callable[..., Running]) -> None:
    sim = start(running_max=8, jitter_fraction=0.5)

    async def one(number: int) -> int:
        tokens = 1 + number % 7  # below every natural length, so exact in all dialects
        path = MESSAGES if number % 3 == 0 else CHAT
        assert (await post(sim, path, chat(tokens, stream=number % 2 == 0), f"r{number}")).ended == "complete"
        return tokens

    asked = await asyncio.gather(*(one(number) for number in range(100)))
    records = {record.request_id: record for record in sim.records()}
    assert len(records) == len(sim.records()) == 100
    for number, tokens in enumerate(asked):
        record = records[f"r{number}"]
        assert (record.ended, record.completion_tokens, record.delivered_tokens) == ("completed", tokens, tokens)


# Reading


def test_a_torn_last_line_is_not_a_record(tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    start = truth.StartRecord(request_id="r", attempt_id="a-1", model="m", endpoint="chat", prompt_tokens=1, started_at_us=1)
    line = msgspec.json.encode(start)
    path.write_bytes(line + b"\n" + line[:20])
    assert truth.read(path) == []
    assert truth.read_unended(path) == [start]


def test_what_is_not_a_truth_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    path.write_bytes(b'{"event":"party"}\n')
    with pytest.raises(msgspec.DecodeError):
        truth.read(path)
