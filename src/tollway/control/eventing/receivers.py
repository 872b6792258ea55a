"""Receivers that are served side by side in one run of a job: webhook endpoints, and telemetry exports."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tollway.control.jobs import Turn
from tollway.worker_threads import run_in_thread

R = TypeVar("R")


async def serve_due(
    turn: Turn,
    seconds: float,
    find_due: Callable[[Sequence[R]], Sequence[R]],
    serve: Callable[[R], Awaitable[None]],
    note_interrupted: Callable[[R, BaseException], None],
) -> None:
    """Serve receivers, each by a task of its own, until none is due, `seconds` are over or the turn of the job is. `find_due`: called in a
    thread with those that are served now, returns others. `note_interrupted`: told what `serve` raised for one, which ends nothing of the
    others; `find_due` must leave that one out from then on. Raises what `find_due` raised, once all tasks are over."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    working: dict[asyncio.Future[None], R] = {}
    failure: Exception | None = None
    try:
        while True:
            if failure is None and loop.time() < ends_at and not turn.is_over():
                try:
                    for receiver in await run_in_thread(find_due, list(working.values())):
                        working[asyncio.ensure_future(serve(receiver))] = receiver
                except Exception as error:
                    failure = error
            if not working:
                break
            done, _ = await asyncio.wait(working, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                receiver, raised = working.pop(task), task.exception()
                if raised is not None:
                    note_interrupted(receiver, raised)
    finally:
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working)
    if failure is not None:
        raise failure
