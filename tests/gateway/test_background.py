"""Supervision of background tasks: what ends is run again or ends the process, and one failed check harms nothing else."""

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.harness import Memory, plane
from tests.link.link_server import until
from tests.patience import PATIENCE_SECONDS
from tollway.domain.faults import Fault
from tollway.gateway import background as module
from tollway.gateway.background import BackgroundTasks
from tollway.gateway.edge.clock import Clock
from tollway.gateway.edge.edge import EdgeBounds
from tollway.log_lines import RequestLine, new_request_line
from tollway.native import FORM
from tollway.telemetry import LogWriter, Metrics

Alarms = list[tuple[str, dict[str, object]]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS_MIN", 0.001)
    monkeypatch.setattr(module, "RESTART_SECONDS_MAX", 0.004)


def make() -> tuple[BackgroundTasks, Metrics, Alarms]:
    alarms: Alarms = []
    metrics = Metrics()
    return BackgroundTasks(metrics, lambda event, fields: alarms.append((event, fields))), metrics, alarms


class TestRestart:
    async def test_task_that_raises_or_returns_is_run_again_after_growing_pauses(self) -> None:
        tasks, metrics, alarms = make()
        runs = 0

        async def run() -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                raise ValueError("a prompt")
            if runs > 4:
                await asyncio.Event().wait()

        tasks.start("poller", run)
        await until(lambda: runs == 5)
        assert metrics.task_restarts == {"poller": 4}
        assert {event for event, _ in alarms} == {"task_restarted"}
        assert [fields["pause_seconds"] for _, fields in alarms] == [0.001, 0.002, 0.004, 0.004]
        assert str(alarms[0][1]["error"]).startswith("ValueError in test_background.py:") and "prompt" not in str(alarms)
        assert alarms[1][1]["error"] == "it returned"
        assert b'tollway_task_restarts_total{task="poller"} 4.0' in metrics.render()
        await tasks.stop()

    async def test_steady_task_that_fails_begins_with_the_shortest_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "STEADY_SECONDS", 0.0)
        tasks, metrics, alarms = make()

        async def run() -> None:
            await asyncio.sleep(0)

        tasks.start("poller", run)
        await until(lambda: metrics.task_restarts["poller"] >= 3)
        await tasks.stop()
        assert {fields["pause_seconds"] for _, fields in alarms} == {0.001}

    async def test_task_that_something_else_cancels_is_run_again(self) -> None:
        tasks, metrics, _ = make()
        runs = 0

        async def run() -> None:
            nonlocal runs
            runs += 1
            async with asyncio.timeout(PATIENCE_SECONDS):  # its bookkeeping of cancellations must be right in later runs
                await asyncio.Event().wait()

        task = tasks.start("poller", run)
        for number in (1, 2):
            await until(lambda number=number: runs == number)
            task.cancel()
        await until(lambda: runs == 3)
        assert metrics.task_restarts == {"poller": 2} and not task.cancelling()
        await tasks.stop()
        assert task.cancelled()

    async def test_task_that_waits_for_one_thing_may_return(self) -> None:
        tasks, metrics, alarms = make()
        task = tasks.start("announce", lambda: asyncio.sleep(0), may_return=True)
        await task
        assert metrics.task_restarts == {"announce": 0} and alarms == []

    @pytest.mark.parametrize("may_return", [False, True])
    async def test_task_that_cannot_be_run_again_ends_the_process(self, may_return: bool) -> None:
        alarms: Alarms = []
        told: list[bool] = []
        tasks = BackgroundTasks(Metrics(), lambda event, fields: alarms.append((event, fields)), on_failure=lambda: told.append(True))

        async def run() -> None:
            if may_return:
                raise KeyError("x")

        await tasks.start("server", run, restarts=False, may_return=may_return)
        assert tasks.has_failed and told == [True]
        assert [event for event, _ in alarms] == ["task_failed"]


class TestCallbacks:
    async def test_failing_callback_is_counted_each_time_and_reported_once(self) -> None:
        tasks, metrics, alarms = make()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(tasks.report_callback)

        def fail() -> None:
            raise LookupError("a secret")

        for _ in range(3):
            loop.call_soon(fail)
        await until(lambda: sum(metrics.callback_failures.values()) == 3)
        (place,) = metrics.callback_failures
        assert place.startswith("LookupError in test_background.py:")
        assert alarms == [("callback_failed", {"error": place})]


class Failing:
    """An exchange or connection whose deadlines cannot be checked."""

    def __init__(self) -> None:
        self.ended: list[object] = []

    def tick(self, now: float) -> None:
        raise ZeroDivisionError

    def interrupt(self, fault: Fault) -> None:
        self.ended.append(fault.kind.code)

    def hang_up(self) -> None:
        self.ended.append("closed")

    def close_if_idle(self, *, is_rested: bool) -> None: ...


class TestClock:
    async def test_one_failed_check_ends_that_connection_and_exchange_alone(self) -> None:
        errors: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        with plane() as (made, _, _):
            memory = Memory(made, EdgeBounds(keep_alive_seconds=0.0))
            exchange, connection = Failing(), Failing()
            made.active.exchanges.add(exchange)  # type: ignore[arg-type]
            memory.edge.connections.add(connection)
            idle = memory.connect()
            clock = asyncio.create_task(Clock(memory.edge).run())
            await until(lambda: idle.is_over)
            await until(lambda: bool(exchange.ended and connection.ended))
            assert not clock.done()
            clock.cancel()
            made.active.exchanges.clear()
        assert exchange.ended[0] == "internal_error" and connection.ended[0] == "closed"
        assert {type(context["exception"]) for context in errors} == {ZeroDivisionError}

    @pytest.mark.skipif(FORM == "compiled", reason="compiled code takes a real log only: no defect can be planted in it")
    async def test_clock_whose_tick_failed_keeps_deadlines_once_it_runs_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tasks, metrics, _ = make()
        with plane() as (made, _, _):
            memory = Memory(made, EdgeBounds(keep_alive_seconds=0.0))
            real = made.log.flush
            calls = 0

            def flush() -> None:
                nonlocal calls
                calls += 1
                if calls <= 2:
                    raise ZeroDivisionError
                real()

            made.log = _Log(flush)  # type: ignore[assignment]
            tasks.start("clock", Clock(memory.edge).run)
            await until(lambda: calls > 2)
            idle = memory.connect()
            await until(lambda: idle.is_over)
            assert metrics.task_restarts == {"clock": 2}
            await tasks.stop()


class _Log:
    def __init__(self, flush: Any) -> None:
        self.flush = flush


def _line(model: str) -> RequestLine:
    ids = ("org_1", "proj_1", "key_1", model, "dep_1")
    return new_request_line("", "info", "request", "req_1", "f" * 32, 200, 1.5, "", *ids, 1, "completed", 0.5, 1, 2, 3, 4, 5, True, "")


class TestLog:
    def test_line_that_cannot_be_encoded_is_dropped_and_the_others_are_written(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        log = LogWriter(descriptor)
        bad = "\udc80"  # what a file name in another encoding becomes
        log.write({"event": "before"})
        log.take(_line(bad))
        log.take(_line("m"))
        log.write({"event": "alarm", "error": bad})
        log.write({"event": "after"})
        log.flush()
        log.take(_line("n"))
        log.close()
        os.close(descriptor)
        lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
        assert [line.get("model") or line["event"] for line in lines] == ["before", "m", "after", "n"]
        assert log.dropped == 2
