"""Supervisor: starts processes, keeps them running, replaces them without a gap, and ends them in order.

Theory of operation. The supervisor owns the listening sockets and passes their descriptors on, so a child that dies
takes no connection in the backlog with it: the next one accepts them. A program (what to run) has at most one current
child (a process); only the death of a current child is a crash, and a crash is answered by a new child after a pause
that doubles from RESTART_SECONDS_MIN to RESTART_SECONDS_MAX and starts over once a child has lived STEADY_SECONDS.

    start    all programs at once, each until its ready line. One that fails here ends the whole start: nothing is
             retried while a person waits for the reason
    replace  (SIGHUP to us) a new child first, until it is ready; then it is current, and the old one gets SIGTERM
    stop     program by program in the order of `stop_stage`, so that gateways hand in their last records while control
             still listens; SIGTERM, `stop_seconds`, SIGKILL. A second SIGINT or SIGTERM to us kills all at once

A child says that it is ready by a line {"event": "ready", ...} on its standard output; all it writes is kept in
`logs/`. Children run in sessions of their own: a Ctrl-C in the terminal reaches only the supervisor, which then decides
the order. They end when we do, however we do (`parent.py`)."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio import FIRST_COMPLETED
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tollway.serve.logs import Log, LogFiles
from tollway.serve.parent import PARENT_ENV
from tollway.settings import OperatorError

RESTART_SECONDS_MIN = 0.1
"""A crash that does not come back should hardly be noticed ..."""
RESTART_SECONDS_MAX = 5.0
"""... and one that does must not eat the machine, yet be over soon once its cause is gone."""
STEADY_SECONDS = 10.0
"""A child that lived this long started well: its end is a new problem, not the old one again."""

LINE_BYTES_MAX = 65_536
"""Length limit of a child's line. Only the end of a longer line is echoed, and it cannot be the ready line."""

LAST_WORDS_SECONDS = 2.0
"""For a child that closed its output to be gone by itself."""

NOTICE_SECONDS = 15.0
"""Time after which a child that is not ready, and has not said why, is reported."""

WAITING_EVENTS = frozenset({"waiting", "waiting_for_database"})
"""Events by which a child that is not ready says what it waits for."""

KILL_SECONDS = 5.0
"""From SIGKILL to the end of the process: only a disk that hangs takes longer."""

Event = Mapping[str, Any]
Report = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Program to run: `arguments` follow the Python interpreter, `descriptors` are inherited, `environment` is added to
    ours.

    `ready_seconds`: until its ready line. `stop_seconds`: from SIGTERM to SIGKILL. `stop_stage`: lower ones end first.
    `replaced_on_hangup`: SIGHUP replaces it without a gap. `steps_log_level`: SIGUSR1 changes the level of its log.
    """

    name: str
    arguments: tuple[str, ...]
    descriptors: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 60.0
    stop_seconds: float = 10.0
    stop_stage: int = 1
    replaced_on_hangup: bool = False
    steps_log_level: bool = False


@dataclass(slots=True, eq=False)
class _Child:
    program: Program
    process: Process
    started_at: float  # monotonic seconds
    ready: asyncio.Future[dict[str, Any]]
    errors: Log
    pumps: list[asyncio.Task[None]] = field(default_factory=list)
    asked_to_end: bool = False
    has_said_why: bool = False


class Supervisor:
    """The programs of one installation and their current children. Lives in one event loop's main thread."""

    def __init__(self, logs: LogFiles, report: Report, *, echo: Callable[[bytes], None] | None = None) -> None:
        """`report` hears of each start, crash and stop; `echo` gets a copy of what children write to standard
        output."""
        self._logs = logs
        self._report = report
        self._echo = echo
        self._current: dict[str, _Child] = {}
        self._programs: dict[str, Program] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._pauses_seconds: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._children: set[_Child] = set()
        self._hangup: asyncio.Task[None] | None = None
        self._hung_up = False
        self.failed = False
        self._pipe_read, self._pipe_write = os.pipe()

    async def start(self, programs: Sequence[Program]) -> dict[str, dict[str, Any]]:
        """Start `programs` at once; return the ready line of each by name. Raises OperatorError if one does not become
        ready."""
        starts = [asyncio.ensure_future(self._spawn(program)) for program in programs]
        try:
            children = await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            raise
        for child in children:
            name = child.program.name
            self._programs[name] = child.program
            self._locks[name] = asyncio.Lock()
            self._adopt(child)
        return {child.program.name: child.ready.result() for child in children}

    async def replace(self, name: str) -> None:
        """Put a new child in place of the current one, without a gap. If the new one does not become ready, the old one
        stays."""
        async with self._locks[name]:
            old = self._current[name]
            try:
                new = await self._spawn(self._programs[name])
            except OperatorError as error:
                self._report({"event": "replace_failed", "name": name, "reason": error.message})
                return
            self._adopt(new)
            self._report({"event": "replaced", "name": name, "pid": new.process.pid, "old_pid": old.process.pid})
        await self._end(old)

    def hang_up(self) -> None:
        """Replace every program that is `replaced_on_hangup`, as SIGHUP asks. One round runs at a time; requests that arrive meanwhile
        cause one more round together, because a file to load (a certificate) may be newer than the one that this round has read."""
        self._hung_up = True
        if self._hangup is None or self._hangup.done():
            self._hangup = self._run_aside(self._replace_marked)

    def step_log_levels(self) -> None:
        """Let the children that can leave out one level more of their log lines, as SIGUSR1 asks."""
        for child in self._current.values():
            if child.program.steps_log_level:
                _signal(child.process, signal.SIGUSR1)

    async def _replace_marked(self) -> None:
        while self._hung_up:
            self._hung_up = False
            for name, program in list(self._programs.items()):
                if program.replaced_on_hangup:
                    await self.replace(name)

    async def stop(self) -> None:
        """End all children in the order of their stages. Returns when the last one is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stage in sorted({child.program.stop_stage for child in self._children}):
            await asyncio.gather(*(self._end(child) for child in list(self._children) if child.program.stop_stage == stage))
        os.close(self._pipe_write)
        os.close(self._pipe_read)

    def kill(self) -> None:
        """SIGKILL to every child: what a second Ctrl-C means. `stop` then finds them dead."""
        for child in self._children:
            _signal(child.process, signal.SIGKILL)

    def _run_aside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:  # a supervisor that no longer supervises must not look alive
            self.failed = True
            self._report({"event": "supervisor_failed", "reason": repr(error)})
            os.kill(os.getpid(), signal.SIGTERM)

    # ---- one child ---------------------------------------------------------------------------------------------------

    async def _spawn(self, program: Program) -> _Child:
        """A new child that has said it is ready. Raises OperatorError, with the end of its error output, if it does
        not."""
        environment = {**os.environ, **program.environment, PARENT_ENV: f"{os.getpid()}:{self._pipe_read}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what lies in the working directory is not code
            *program.arguments,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            pass_fds=(*program.descriptors, self._pipe_read),
            start_new_session=True,
            env=environment,
        )
        errors = self._logs.open(f"{program.name}.err")
        child = _Child(program, process, time.monotonic(), asyncio.get_running_loop().create_future(), errors)
        self._children.add(child)
        child.pumps += [asyncio.create_task(self._pump_output(child)), asyncio.create_task(_pump_errors(child))]
        notice = asyncio.get_running_loop().call_later(NOTICE_SECONDS, self._note_slow_start, child)
        try:
            await asyncio.wait_for(asyncio.shield(child.ready), program.ready_seconds)
        except (TimeoutError, EOFError) as error:
            late = isinstance(error, TimeoutError)
            if not late:
                # It closed its output, so it is ending. Its exit code is worth a moment: signalling a process that just died reaps it
                # behind the loop's back, and the loop then reports 255.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), LAST_WORDS_SECONDS)
            await self._end(child)
            why = f"was not ready after {program.ready_seconds:.0f} s" if late else f"did not start: {_describe(process)}"
            said = errors.tail.decode("utf-8", "replace").strip().splitlines()
            raise OperatorError("\n  ".join([f"{program.name} {why}", *said[-8:]]), hint=self._logs.tell_where(program.name)) from None
        except BaseException:
            _signal(process, signal.SIGKILL)
            await self._end(child)
            raise
        finally:
            notice.cancel()
        return child

    async def _pump_output(self, child: _Child) -> None:
        """Copy standard output to its log, and whole lines to `echo`: two children must not mix theirs.

        Lines are looked at only until the ready line, which is for us and not echoed. After it, chunks pass unread.
        """
        output = child.process.stdout
        assert output is not None
        log = self._logs.open(f"{child.program.name}.log")
        pending = b""
        while chunk := await output.read(65_536):
            log.write(chunk)
            whole, newline, rest = (pending + chunk).rpartition(b"\n")
            pending = rest[-LINE_BYTES_MAX:]
            if newline and not child.ready.done():
                self._show_waits(child, whole)
                whole = _take_ready(child, whole)
            if newline and whole and self._echo is not None:
                self._echo(whole + newline)
        log.close()
        if not child.ready.done():
            child.ready.set_exception(EOFError())

    def _show_waits(self, child: _Child, lines: bytes) -> None:
        """Report what a child that is not ready says it waits for, so that nobody waits without knowing for what."""
        for line in lines.split(b"\n"):
            event = _parse(line)
            if event.get("event") in WAITING_EVENTS:
                child.has_said_why = True
                reason, remedy = event.get("reason") or event.get("detail"), event.get("remedy")
                told = {"event": "waiting", "name": child.program.name, "reason": f"waits for {reason or 'its database'}"}
                self._report(told if remedy is None else {**told, "remedy": f"({remedy})"})

    def _note_slow_start(self, child: _Child) -> None:
        """Report a child that is not ready after NOTICE_SECONDS and has not said why."""
        if not child.ready.done() and not child.has_said_why:
            where = self._logs.tell_where(child.program.name)
            self._report({"event": "waiting", "name": child.program.name, "reason": f"is not ready after {NOTICE_SECONDS:.0f} s; {where}"})

    def _adopt(self, child: _Child) -> None:
        self._current[child.program.name] = child
        self._run_aside(lambda: self._watch(child))

    async def _watch(self, child: _Child) -> None:
        """Wait for the end of a current child and put another in its place, for as long as it takes."""
        await child.process.wait()
        name = child.program.name
        async with self._locks[name]:
            if self._current[name] is not child:
                return  # replaced on purpose
            self._children.discard(child)
            if time.monotonic() - child.started_at >= STEADY_SECONDS:
                self._pauses_seconds.pop(name, None)
            reason = _describe(child.process)
            while True:
                pause_seconds = min(RESTART_SECONDS_MAX, self._pauses_seconds.get(name, RESTART_SECONDS_MIN / 2) * 2)
                self._pauses_seconds[name] = pause_seconds
                self._report({"event": "crashed", "name": name, "reason": reason, "restart_in_seconds": pause_seconds})
                await asyncio.sleep(pause_seconds)
                try:
                    new = await self._spawn(child.program)
                except OperatorError as error:
                    reason = error.message
                    continue
                self._adopt(new)
                self._report({"event": "restarted", "name": name, "pid": new.process.pid})
                return

    async def _end(self, child: _Child) -> None:
        """SIGTERM (once), then SIGKILL; returns when the process is gone and its last words are in the log."""
        if not child.asked_to_end:
            child.asked_to_end = True
            _signal(child.process, signal.SIGTERM)
        try:
            await asyncio.wait_for(child.process.wait(), child.program.stop_seconds)
        except TimeoutError:
            self._report({"event": "killed", "name": child.program.name, "pid": child.process.pid})
            _signal(child.process, signal.SIGKILL)
            await asyncio.wait_for(child.process.wait(), KILL_SECONDS)
        await asyncio.wait(child.pumps, timeout=1.0)
        self._children.discard(child)
        if child.ready.done() and not child.ready.cancelled():
            child.ready.exception()  # looked at: whoever waited for it has gone on


async def run_until_signal(supervisor: Supervisor, begin: Coroutine[Any, Any, None]) -> None:
    """Run `begin`, which starts programs, then wait for SIGINT or SIGTERM, then stop everything in order.

    Raises what `begin` raises, after everything was stopped. A signal during `begin` cancels it.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def ask() -> None:
        if asked.is_set():
            supervisor.kill()
        asked.set()

    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, ask)
    loop.add_signal_handler(signal.SIGHUP, supervisor.hang_up)
    loop.add_signal_handler(signal.SIGUSR1, supervisor.step_log_levels)
    beginning = asyncio.create_task(begin)
    waiting = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({beginning, waiting}, return_when=FIRST_COMPLETED)
        if beginning.done():
            await beginning
            await waiting
    finally:
        for task in (beginning, waiting):
            task.cancel()
        await asyncio.gather(beginning, waiting, return_exceptions=True)
        await supervisor.stop()


async def _pump_errors(child: _Child) -> None:
    output = child.process.stderr
    assert output is not None
    while chunk := await output.read(65_536):
        child.errors.write(chunk)
    child.errors.close()


def _take_ready(child: _Child, lines: bytes) -> bytes:
    """`lines` without the ready line, if it is among them; then the child is ready."""
    others = []
    for line in lines.split(b"\n"):
        event = _parse(line)
        if event.get("event") == "ready" and not child.ready.done():
            child.ready.set_result(event)
        else:
            others.append(line)
    return b"\n".join(others)


def _parse(line: bytes) -> dict[str, Any]:
    if not line.startswith(b"{"):
        return {}
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _describe(process: Process) -> str:
    code = process.returncode
    if code is None:
        return "it closed its output"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _signal(process: Process, sign: signal.Signals) -> None:
    if process.returncode is not None:
        return
    try:
        process.send_signal(sign)
    except ProcessLookupError:
        pass  # it ended by itself, just now
