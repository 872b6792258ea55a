"""The supervisor with real children: what it starts it keeps running, replaces without a gap, and ends in order."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS
from tollway.serve.logs import LogFiles
from tollway.serve.supervisor import Event, Program, Supervisor
from tollway.settings import OperatorError

READY = "import json; print(json.dumps({'event': 'ready', 'pid': os.getpid()}), flush=True)"

SLEEPER = f"import os, time; {READY}; time.sleep(600)"
DEAF = f"import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; time.sleep(600)"
ANSWERER = f"""
import os, signal, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
{READY}
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(str(os.getpid()).encode())
"""


def program(name: str, script: str, *arguments: str, **more: object) -> Program:
    """A program of one Python script."""
    return Program(name=name, arguments=("-c", script, *arguments), **{"stop_seconds": 5.0, **more})  # type: ignore[arg-type]


class Events(list[Event]):
    """Reported events of a supervisor, and a way to wait for one."""

    async def wait_for(self, event: str, name: str, count: int = 1) -> Event:
        """The `count`-th event of this kind about this program."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(found := [e for e in self if e["event"] == event and e.get("name") == name]) < count:
                await asyncio.sleep(0.01)
        return found[count - 1]


@asynccontextmanager
async def supervising(logs: Path, echo: Callable[[bytes], None] | None = None) -> AsyncIterator[tuple[Supervisor, Events]]:
    events = Events()
    supervisor = Supervisor(LogFiles(logs), events.append, echo=echo)
    try:
        yield supervisor, events
    finally:
        await supervisor.stop()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_start_returns_each_ready_line_and_stop_leaves_no_process(tmp_path: Path) -> None:
    async with supervising(tmp_path) as (supervisor, _):
        ready = await supervisor.start([program("a", SLEEPER), program("b", SLEEPER)])
        pids = [ready["a"]["pid"], ready["b"]["pid"]]
        assert all(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)


async def test_a_killed_child_is_restarted_and_every_crash_in_a_row_waits_longer(tmp_path: Path) -> None:
    async with supervising(tmp_path) as (supervisor, events):
        first = (await supervisor.start([program("a", SLEEPER)]))["a"]["pid"]
        os.kill(first, signal.SIGKILL)
        second = (await events.wait_for("restarted", "a"))["pid"]
        assert second != first
        os.kill(second, signal.SIGKILL)
        await events.wait_for("restarted", "a", count=2)
        pauses = [event["restart_in_seconds"] for event in events if event["event"] == "crashed"]
        assert pauses == [0.1, 0.2]
        assert "SIGKILL" in events[0]["reason"]


async def test_a_connection_made_while_the_child_is_dead_is_answered_by_the_next_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with supervising(tmp_path) as (supervisor, events):
            answerer = program("a", ANSWERER, str(listener.fileno()), descriptors=(listener.fileno(),))
            first = (await supervisor.start([answerer]))["a"]["pid"]
            os.kill(first, signal.SIGKILL)
            await events.wait_for("crashed", "a")
            answer = await _ask(listener.getsockname())
            assert answer == (await events.wait_for("restarted", "a"))["pid"]


async def test_replace_starts_the_new_child_before_the_old_one_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with supervising(tmp_path) as (supervisor, events):
            answerer = program("a", ANSWERER, str(listener.fileno()), descriptors=(listener.fileno(),))
            first = (await supervisor.start([answerer]))["a"]["pid"]
            await supervisor.replace("a")
            assert not is_alive(first)
            assert await _ask(listener.getsockname()) == (await events.wait_for("replaced", "a"))["pid"]
            assert [event["event"] for event in events] == ["replaced"]  # a planned end is no crash


async def test_hangups_during_a_round_make_one_more_round(tmp_path: Path) -> None:
    async with supervising(tmp_path) as (supervisor, events):
        await supervisor.start([program("a", SLEEPER, replaced_on_hangup=True), program("b", SLEEPER)])
        supervisor.hang_up()
        await asyncio.sleep(0)
        for _ in range(3):
            supervisor.hang_up()
        last = await events.wait_for("replaced", "a", count=2)
        supervisor.hang_up()
        assert (await events.wait_for("replaced", "a", count=3))["old_pid"] == last["pid"]
        assert [event["name"] for event in events] == ["a"] * 3


async def test_replace_keeps_the_old_child_if_the_new_one_does_not_start(tmp_path: Path) -> None:
    marker = tmp_path / "broken"
    script = f"import os, pathlib, sys; pathlib.Path({str(marker)!r}).exists() and sys.exit('no luck'); {SLEEPER}"
    async with supervising(tmp_path) as (supervisor, events):
        first = (await supervisor.start([program("a", script)]))["a"]["pid"]
        marker.touch()
        await supervisor.replace("a")
        assert "no luck" in (await events.wait_for("replace_failed", "a"))["reason"]
        assert is_alive(first)


async def test_a_program_that_cannot_start_ends_the_start_and_says_why(tmp_path: Path) -> None:
    async with supervising(tmp_path) as (supervisor, _):
        with pytest.raises(OperatorError, match=r"(?s)bad did not start: exit code 1.*the reason"):
            await supervisor.start([program("good", SLEEPER), program("bad", "import sys; sys.exit('the reason')")])


async def test_a_program_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    async with supervising(tmp_path) as (supervisor, _):
        with pytest.raises(OperatorError, match="was not ready"):
            await supervisor.start([program("mute", "import time; time.sleep(600)", ready_seconds=0.5)])


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with supervising(tmp_path) as (supervisor, events):
        pid = (await supervisor.start([program("deaf", DEAF, stop_seconds=0.3)]))["deaf"]["pid"]
    assert not is_alive(pid)
    assert [event["event"] for event in events] == ["killed"]


async def test_stages_end_one_after_the_other(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = f"""
import os, signal, sys, time
def end(*_):
    time.sleep(0.3)
    with open({str(order)!r}, "a") as file: file.write(sys.argv[1])
    os._exit(0)
signal.signal(signal.SIGTERM, end)
{READY}
time.sleep(600)
"""
    async with supervising(tmp_path) as (supervisor, _):
        await supervisor.start([program("control", script, "2", stop_stage=1), program("gateway", script, "1", stop_stage=0)])
    assert order.read_text() == "12"


async def test_output_is_kept_and_echoed_line_by_line_without_the_ready_line(tmp_path: Path) -> None:
    echoed: list[bytes] = []
    script = f"import os, sys, time; print('before'); {READY}; print('after', flush=True); time.sleep(600)"
    async with supervising(tmp_path, echoed.append) as (supervisor, _):
        await supervisor.start([program("a", script)])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while b"after" not in b"".join(echoed):
                await asyncio.sleep(0.01)
    assert b"".join(echoed) == b"before\nafter\n"
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert [lines[0], json.loads(lines[1])["event"], lines[2]] == ["before", "ready", "after"]


async def test_children_of_a_killed_supervisor_end_by_themselves(tmp_path: Path) -> None:
    child = f"import os, time; from tollway.serve.parent import end_with_parent; end_with_parent(); {READY}; time.sleep(600)"
    script = f"""
import asyncio, json, pathlib
from tollway.serve.logs import LogFiles
from tollway.serve.supervisor import Program, Supervisor
async def main():
    supervisor = Supervisor(LogFiles(pathlib.Path({str(tmp_path)!r})), print)
    ready = await supervisor.start([Program(name="child", arguments=("-c", {child!r}))])
    print(ready["child"]["pid"], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    outer = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert outer.stdout is not None
    pid = int(await outer.stdout.readline())
    assert is_alive(pid)
    outer.kill()
    await outer.wait()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while is_alive(pid):
            await asyncio.sleep(0.01)


async def _ask(address: tuple[str, int]) -> int:
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection(*address)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return int(answer)
