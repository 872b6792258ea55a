"""Blocking work of coroutines, in worker threads that are waited for."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def run_in_thread(function: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs) -> _T:
    """Return what a function that blocks returns, from a worker thread. A thread cannot be cancelled, so a caller that is cancelled waits
    for the function's end all the same: what the function works on can be closed, or used by the next run, afterwards. Raises what the
    function raises."""
    thread = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **keywords))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({thread})
        with suppress(Exception):  # that the caller was cancelled matters more than what the function met on its way out
            thread.result()
        raise
