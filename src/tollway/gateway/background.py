"""Supervision of a gateway process's background tasks: those that keep the process correct while no request asks for it.

A request that fails is answered with an error. A background task that fails would be missed by nobody: a follower that stopped leaves
revoked keys valid, a clock that stopped leaves deadlines unchecked. So each such task runs under `BackgroundTasks`:

- A task that raises, returns, or is cancelled by something else than `stop` is run again, after a pause that doubles from
  RESTART_SECONDS_MIN to RESTART_SECONDS_MAX and starts over once the task ran for STEADY_SECONDS. Each restart is an alarm and is counted
  in `tollway_task_restarts_total`. What is run must therefore bring its own state in order when it begins.
- A task that cannot be run again (`restarts=False`) makes `has_failed` true and calls `on_failure`: the process drains, so `/readyz` turns
  red, and exits with code 1.
- An exception in a callback of the event loop, which belongs to no task, is an alarm too and is counted by the place where it arose.

An alarm names the type of an error and the place in the code, never its text, which may quote what a client sent.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from tollway.telemetry import Metrics, describe_error

RESTART_SECONDS_MIN = 0.1
"""A fault that passes is hardly noticed ..."""
RESTART_SECONDS_MAX = 5.0
"""... and one that stays costs little: a restart and a log line every five seconds."""
STEADY_SECONDS = 10.0
"""A task that ran for this long had begun well: its end is a new fault, not the last one again."""
REPORT_SECONDS = 10.0
"""Failures of callbacks at one place are reported at most once in this time, and always counted."""


class BackgroundTasks:
    """The background tasks of one gateway process. Use it from one event loop; call `stop` at the end."""

    def __init__(
        self, metrics: Metrics, alarm: Callable[[str, dict[str, object]], None], on_failure: Callable[[], object] = lambda: None
    ) -> None:
        """`alarm` is called with an event's name and its fields; `on_failure` when a task ended that cannot be run again."""
        self.has_failed = False
        self._metrics = metrics
        self._alarm = alarm
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported_at: dict[str, float] = {}
        self._is_stopping = False

    def start(
        self, name: str, run: Callable[[], Coroutine[Any, Any, None]], *, restarts: bool = True, may_return: bool = False
    ) -> asyncio.Task[None]:
        """Run `run()` as the task `name` until `stop`. `restarts`: whether it can be run again after it ended; `may_return`: whether
        returning is a good end, as of a task that waits for something to happen once."""
        if restarts:
            self._metrics.task_restarts.setdefault(name, 0)
        task = asyncio.get_running_loop().create_task(self._supervise(name, run, restarts, may_return), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        self._is_stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _supervise(self, name: str, run: Callable[[], Coroutine[Any, Any, None]], restarts: bool, may_return: bool) -> None:
        loop = asyncio.get_running_loop()
        pause_seconds = RESTART_SECONDS_MIN
        while True:
            began = loop.time()
            try:
                await run()
                if may_return:
                    return
                reason = "it returned"
            except asyncio.CancelledError:
                if self._is_stopping:
                    raise
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                reason = "it was cancelled"
            except Exception as error:
                reason = describe_error(error)
            if not restarts:
                self.has_failed = True
                self._alarm("task_failed", {"task": name, "error": reason})
                self._on_failure()
                return
            if loop.time() - began >= STEADY_SECONDS:
                pause_seconds = RESTART_SECONDS_MIN
            self._metrics.task_restarts[name] += 1
            self._alarm("task_restarted", {"task": name, "error": reason, "pause_seconds": pause_seconds})
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RESTART_SECONDS_MAX)

    def report_callback(self, _: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Report an exception that a callback of the event loop raised. It is the loop's exception handler, and raises nothing."""
        error = context.get("exception")
        place = describe_error(error) if isinstance(error, BaseException) else str(context.get("message"))
        self._metrics.count(self._metrics.callback_failures, place)
        now = asyncio.get_running_loop().time()
        if now - self._reported_at.get(place, -REPORT_SECONDS) >= REPORT_SECONDS:
            self._reported_at[place] = now
            self._alarm("callback_failed", {"error": place})
