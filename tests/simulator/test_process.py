"""The simulator as a process: how it says it is ready, takes a socket, drains, dies."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from tests.simulator.running import CHAT, PATIENCE_SECONDS, Running, chat, connect, get, post, send, streamed
from tollway.simulator import truth
from tollway.simulator.server import serve
from tollway.simulator.settings import SimulatorSettings

PROGRAM = """
import sys, msgspec
from tollway.simulator.server import run
from tollway.simulator.settings import SimulatorSettings
from pathlib import Path
chosen = msgspec.json.decode(sys.argv[1])
sys.exit(run(SimulatorSettings(truth_log=Path(chosen.pop("log")), **chosen)))
"""


class Spawn(Protocol):
    def __call__(self, *, pass_fds: tuple[int, ...] = (), **settings: Any) -> tuple[Running, "subprocess.Popen[bytes]"]:
        """Starts a process and waits for its ready line."""


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    log = tmp_path / "truth.jsonl"
    source = Path(__file__).parents[2] / "src"
    with ExitStack() as stack:

        def start(*, pass_fds: tuple[int, ...] = (), **settings: Any) -> tuple[Running, "subprocess.Popen[bytes]"]:
            chosen = {"log": str(log), "port": 0, "ttft_seconds": 0.001, "inter_token_seconds": 0.001} | settings
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, msgspec.json.encode(chosen).decode()],
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(source)},
                pass_fds=pass_fds,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            ready = msgspec.json.decode(process.stdout.readline())
            assert ready["event"] == "ready"
            return Running(ready["url"], int(ready["url"].rpartition(":")[2]), log), process

        yield start


async def exit_status(process: "subprocess.Popen[bytes]") -> int:
    return await asyncio.to_thread(process.wait, PATIENCE_SECONDS)


async def test_it_says_where_it_listens_and_stops_when_told(spawn: Spawn) -> None:
    sim, process = spawn()
    assert (await post(sim, CHAT, chat())).status == 200
    process.send_signal(signal.SIGTERM)
    assert await exit_status(process) == 0
    assert [record.ended for record in sim.records()] == ["completed"]


async def test_it_serves_on_a_socket_that_it_inherits(spawn: Spawn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sim, _ = spawn(fd=listener.fileno(), pass_fds=(listener.fileno(),))
        assert sim.port == listener.getsockname()[1]
        assert (await post(sim, CHAT, chat())).status == 200


async def test_draining_finishes_what_runs_refuses_what_comes_and_stays_healthy(spawn: Spawn) -> None:
    sim, process = spawn()
    async with connect(sim) as client, connect(sim) as stalled:
        send(client, CHAT, streamed(20), "running", "itl@20")
        send(stalled, CHAT, streamed(), "stalled", "stall@0")  # holds the drain open until everything was tried
        await sim.wait_for(running=2)
        process.send_signal(signal.SIGTERM)
        await sim.wait_for(draining=True)
        assert (await get(sim, "/health")).status == 200
        refused = await post(sim, CHAT, chat(), "late")
        assert refused.status == 500
        assert refused.json()["error"]["message"] == "cannot schedule new futures after shutdown"
        answer = await client.receive()
    assert answer.events()[-1] == "[DONE]"
    assert await exit_status(process) == 0
    assert {record.request_id: record.ended for record in sim.records()} == {
        "late": "rejected", "running": "completed", "stalled": "stall",
    }  # fmt: skip


async def test_what_outlasts_the_drain_ends_by_abort(spawn: Spawn) -> None:
    sim, process = spawn(drain_seconds=0.05, running_max=3)
    async with connect(sim) as stream, connect(sim) as whole, connect(sim) as stalled, connect(sim) as waiting:
        send(stream, CHAT, streamed(5000), "stream", "itl@20")
        send(whole, CHAT, chat(5000), "whole", "itl@20")
        send(stalled, CHAT, streamed(5000), "stalled", "stall@1")
        await sim.wait_for(running=3)
        send(waiting, CHAT, streamed(5000), "waiting")
        await sim.wait_for(waiting=1)
        process.send_signal(signal.SIGTERM)
        events = (await stream.receive()).events()
        assert events[-3]["choices"][0]["finish_reason"] == "abort"
        assert events[-1] == "[DONE]"
        assert (await whole.receive()).json()["choices"][0]["finish_reason"] == "abort"
        assert (await stalled.receive()).ended == "eof"
        events = (await waiting.receive()).events()
        assert [event["choices"][0]["finish_reason"] for event in events[:2]] == [None, "abort"]
    assert await exit_status(process) == 0
    records = {record.request_id: record for record in sim.records()}
    assert {name: record.ended for name, record in records.items()} == {
        "stream": "error", "whole": "error", "stalled": "stall", "waiting": "error",
    }  # fmt: skip
    assert events[-2]["usage"]["completion_tokens"] == records["waiting"].completion_tokens == 0
    assert records["stream"].delivered_tokens == records["stream"].completion_tokens > 0


async def test_a_killed_simulator_leaves_the_names_of_the_dead(spawn: Spawn) -> None:
    sim, process = spawn()
    await post(sim, CHAT, chat(), "done")
    async with connect(sim) as client:
        send(client, CHAT, streamed(5000), "dead", "itl@20")
        await client.reader.readuntil(b'"content":"')
        process.kill()
        await exit_status(process)
    assert [record.request_id for record in truth.read(sim.log)] == ["done"]
    assert [record.request_id for record in truth.read_unended(sim.log)] == ["dead"]


async def test_cancelled_it_hangs_up_and_says_so(tmp_path: Path) -> None:
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    log = tmp_path / "truth.jsonl"
    task = asyncio.create_task(serve(SimulatorSettings(port=0, truth_log=log), ready=url.set_result))
    sim = Running(await url, int((await url).rpartition(":")[2]), log)
    async with connect(sim) as client:
        send(client, CHAT, streamed(5000), fault="itl@20")
        await client.reader.readuntil(b'"content":"')
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.reader.read()  # until the end, which comes
    (record,) = sim.records()
    assert record.ended == "cut"
    assert truth.read_unended(log) == []


async def test_without_its_log_it_answers_nothing_and_gives_up(spawn: Spawn) -> None:
    sim, process = spawn(log="/dev/full")
    assert (await post(sim, CHAT, chat())).status == 0
    assert await exit_status(process) != 0


async def test_a_taken_port_is_an_error_and_not_a_hang(spawn: Spawn, tmp_path: Path) -> None:
    sim, _ = spawn()
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM, msgspec.json.encode({"log": str(tmp_path / "x"), "port": sim.port}).decode()],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert program.returncode != 0
    assert b"ready" not in program.stdout
