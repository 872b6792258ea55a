"""A machine in which nothing happens by itself: time moves from event to event, and one seeded Random makes every choice.

Theory of operation. The world holds one queue of events by virtual time. A process is an asyncio loop without a selector:
its callbacks are events like the disk's and the network's, in the order in which they were scheduled, so its FIFO promises
hold while everything from outside arrives whenever chance says. Tasks, futures and timeouts are asyncio's own.

What a gateway does in threads (`asyncio.to_thread`, the spool's writer) is a job. A job runs in one piece, or, in worlds
that are `preemptive`, in a real thread that holds the world's only baton and may hand it back at any disk call: then other
jobs and the loop go on in between. Only one thread ever runs, so a seed has one history.

Death. `Process.kill` is kill -9: nothing of the process runs on. Whatever is on its stacks is unwound by Killed, and its
disk refuses every call from then on, so that no `finally` of the product can do what a dead process cannot. A process dies
between two callbacks, or at a disk call when its fuse has burnt down.
"""

import asyncio
import heapq
import inspect
import threading
import zlib
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from random import Random
from typing import Any

from tollway.gateway.driver import CoroutineDriver

BEGAN_AT = 1_790_000_000.0
"""Beginning of virtual time, in seconds of UTC."""

STEP_SECONDS = 5e-6
"""Each event takes a little time, so that no two stand at one instant without end."""

STEPS_MAX = 400_000
"""A history that needs more does not come to rest."""

TRACE_LINES = 300
STEPS_OF_A_CALL = 1


class Killed(BaseException):
    """The process died here. Not an Exception: nothing may catch it and go on."""


class NoRest(AssertionError):
    """The world went on and on."""


class World:
    """Virtual time, chance, and what is going to happen."""

    def __init__(self, seed: int, *, preemptive: bool = False) -> None:
        self.chance = Random(seed)
        self.preemptive = preemptive
        self.now = 0.0
        self.steps = 0
        self.kills = 0
        self.faults = 0
        self.digest = 0
        self.failures: list[str] = []
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.fiber: Fiber | None = None
        self._queue: list[tuple[float, int, Process | None, Any]] = []
        self._count = 0
        self._dying: list[Process] = []

    def true_seconds(self) -> float:
        """Return the time in seconds of UTC by a clock that is right, as control's is."""
        return BEGAN_AT + self.now

    def true_clock(self) -> int:
        """Return the same time in microseconds."""
        return int(self.true_seconds() * 1e6)

    def note(self, text: str) -> None:
        """Say what happened, for whoever replays the seed; and fold it into the digest of this history."""
        self.digest = zlib.crc32(f"{self.now:.6f} {text}".encode(), self.digest)
        self.trace.append(f"{self.now:10.6f} {text}")

    def fail(self, text: str) -> None:
        """A promise was broken."""
        self.note(f"FAILED {text}")
        self.failures.append(text)

    def at(self, when: float, run: Callable[[], None]) -> None:
        """Have something happen outside of all processes."""
        self._push(when, None, run)

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        self._push(self.now + seconds, None, run)

    def latency(self, mean_seconds: float) -> float:
        """Draw a duration: mostly about the mean, sometimes very long."""
        draw = self.chance.random()
        return mean_seconds * (20 * draw if draw > 0.97 else 0.2 + 1.5 * draw)

    def _push(self, when: float, process: "Process | None", what: Any) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(when, self.now), self._count, process, what))

    def run(self, is_done: Callable[[], bool], seconds_max: float) -> bool:
        """Let things happen until `is_done`, or for so long. Says whether it is."""
        end = self.now + seconds_max
        queue = self._queue
        while not is_done():
            if not queue or queue[0][0] > end or self.failures:
                self.now = max(self.now, end) if not self.failures else self.now
                return is_done()
            when, _, process, what = heapq.heappop(queue)
            if process is not None and (not process.alive or what._cancelled):
                continue
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise NoRest(f"no rest after {STEPS_MAX} steps")
            if when > self.now:
                self.now = when
            self.now += STEP_SECONDS
            if process is None:
                what()
            elif process.burn():
                process.kill("between two callbacks")
            else:
                events._set_running_loop(process.loop)
                try:
                    what._run()
                finally:
                    events._set_running_loop(None)
            if self._dying:
                self._bury()
        return True

    def _bury(self) -> None:
        while self._dying:
            self._dying.pop().bury()


class Loop(asyncio.AbstractEventLoop):
    """The event loop of one process."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self._world = process.world
        self._told_at = 0.0

    def time(self) -> float:
        return self._world.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._process.alive

    def is_closed(self) -> bool:
        return not self._process.alive

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._world._push(self._world.now, self._process, handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._told_at = max(self._told_at, self._world.now + self._world.latency(50e-6))  # in order, but not at once
        self._world._push(self._told_at, self._process, handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        return self.call_at(self._world.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._world._push(when, self._process, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:  # type: ignore[override]
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        tasks = self._process.tasks
        tasks.append(task)
        if len(tasks) > 64:
            self._process.tasks = [each for each in tasks if not each.done()]
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        self._process.start_job(lambda: func(*args), lambda *end: self.call_soon_threadsafe(done, *end))
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self._process.alive and not isinstance(error, Killed):
            self._world.fail(f"{context.get('message')}: {error!r}")


class Process:
    """One process: a loop, its tasks and jobs, and whether it lives. `fuse`: calls and callbacks left to live."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.fuse: int | None = None
        self.lives_on_edges = False
        """True if beginning a file may light the fuse: a short time after it is when most can go wrong."""
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_death: list[Callable[[], None]] = []
        self.skew_seconds = 0.0
        self._fibers: list[Fiber] = []
        self._coroutines: list[Coroutine[Any, None, None]] = []
        self.loop = Loop(self)

    def burn(self) -> bool:
        """One more step: whether it was the last."""
        if self.fuse is None:
            return False
        self.fuse -= 1
        return self.fuse < 0

    def kill(self, where: str) -> None:
        """Kill it as kill -9 does. In the process itself, raise Killed behind it."""
        if not self.alive:
            return
        self.alive = False
        self.world.note(f"{self.name} dies {where}")
        for told in self.on_death:
            told()
        self.world._dying.append(self)
        if self.world.fiber is None and events._get_running_loop() is None:
            self.world._bury()

    def bury(self) -> None:
        """Unwind what was on its stacks; none of it can do anything any more."""
        events._set_running_loop(self.loop)
        try:
            for task in self.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with suppress(BaseException):
                        task.get_coro().close()  # type: ignore[union-attr]
            for coroutine in self._coroutines:
                with suppress(BaseException):
                    coroutine.close()
        finally:
            events._set_running_loop(None)
        for fiber in self._fibers:
            fiber.abandon()
        self.tasks.clear()
        self._coroutines.clear()
        self._fibers.clear()

    def run(self, coroutine: Coroutine[Any, None, None]) -> None:
        """Run a request as the gateway does: without a task, in the calls that bring its news."""
        self._coroutines.append(coroutine)
        if len(self._coroutines) > 64:
            self._coroutines = [each for each in self._coroutines if inspect.getcoroutinestate(each) != inspect.CORO_CLOSED]
        CoroutineDriver(copy_context()).start(coroutine)

    def start_job(self, run: Callable[[], Any], done: Callable[[Any, BaseException | None], object]) -> None:
        """Do something as a thread would. `done(result, error)` is not called if the process dies."""
        world = self.world
        if world.preemptive:
            fiber = Fiber(self, run, done)
            self._fibers = [each for each in self._fibers if not each.is_over]
            self._fibers.append(fiber)
            world.after(world.latency(50e-6), fiber.resume)
            return

        def in_one_piece() -> None:
            if self.alive:
                try:
                    result, error = run(), None
                except Killed:
                    self.world._bury()
                    return
                except BaseException as caught:
                    result, error = None, caught
                done(result, error)

        world.after(world.latency(100e-6), in_one_piece)

    def wait(self, is_over: Callable[[], bool]) -> None:
        """In a job: let others go on until something is so."""
        fiber = self.world.fiber
        while not is_over():
            assert fiber is not None, "a job in one piece would wait without end"
            fiber.pause(self.world.latency(200e-6))


_threads: list["_Thread"] = []


class _Thread:
    """A thread that waits for jobs, kept for the next one."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.back = threading.Semaphore(0)
        self.run: Callable[[], None] = lambda: None
        threading.Thread(target=self._work, name="fiber", daemon=True).start()

    def _work(self) -> None:
        while True:
            self.go.acquire()
            self.run()
            self.back.release()


class Fiber:
    """A job in a thread of its own that runs only while the world waits for it."""

    def __init__(self, process: Process, run: Callable[[], Any], done: Callable[[Any, BaseException | None], object]) -> None:
        self._process = process
        self._run = run
        self._done = done
        self._thread: _Thread | None = None
        self.is_over = False

    def resume(self) -> None:
        """Run it until it pauses or ends."""
        if self.is_over:
            return
        if self._thread is None:
            self._thread = _threads.pop() if _threads else _Thread()
            self._thread.run = self._work
        world = self._process.world
        assert world.fiber is None
        world.fiber = self
        self._thread.go.release()
        self._thread.back.acquire()
        world.fiber = None
        if self.is_over:
            _threads.append(self._thread)
            self._thread = None
        world._bury()

    def pause(self, seconds: float) -> None:
        """Within it: let the world go on for so long."""
        thread = self._thread
        assert thread is not None
        self._process.world.after(seconds, self.resume)
        thread.back.release()
        thread.go.acquire()
        if not self._process.alive:
            raise Killed

    def abandon(self) -> None:
        """Its process is dead: unwind it."""
        if self._thread is None:
            self.is_over = True
        elif not self.is_over and self._process.world.fiber is not self:
            while not self.is_over:
                self.resume()

    def _work(self) -> None:
        try:
            result, error = self._run(), None
        except BaseException as caught:
            result, error = None, caught
        self.is_over = True
        if self._process.alive:
            self._done(result, error)


class Writer:
    """The spool's thread (`link.disk.Writer`): jobs of a process, one after the other."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = False

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self._next()

    def end(self) -> None:
        pass

    def join(self) -> None:
        if self._process.world.fiber is None:
            while self._jobs:
                self._jobs.popleft()()
        else:
            self._process.wait(lambda: not self._busy and not self._jobs)

    def _next(self) -> None:
        if self._jobs and not self._busy:
            self._busy = True
            self._process.start_job(self._do, self._did)

    def _do(self) -> None:
        if self._jobs:  # else `join` has done it
            self._jobs.popleft()()

    def _did(self, _result: object, error: BaseException | None) -> None:
        self._busy = False
        if error is not None:
            self._process.world.fail(f"the writer's job raised {error!r}")
        self._next()
