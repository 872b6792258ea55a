"""A blocking function is waited for, also by a caller that is cancelled."""

import asyncio
import threading

import pytest

from tests.patience import PATIENCE_SECONDS
from tollway.worker_threads import run_in_thread


async def test_result_and_error_of_the_function_are_those_of_the_call() -> None:
    assert await run_in_thread(max, 3, 5) == 5
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(divmod, 1, 0)


async def test_caller_that_is_cancelled_twice_ends_after_the_function() -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(PATIENCE_SECONDS)
        ended.set()

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(began.wait, PATIENCE_SECONDS)
    for _ in range(2):
        task.cancel()
        await asyncio.wait({task}, timeout=0.05)
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_caller_that_is_cancelled_hears_nothing_of_an_error_of_the_function() -> None:
    began, may_end = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(PATIENCE_SECONDS)
        raise OSError

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(began.wait, PATIENCE_SECONDS)
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
