"""A coroutine that runs in the calls that bring its news: the request path without tasks.

A request waits two or three times: for its engine's answer, for the end of a stream, for its record to be durable. With an
asyncio.Task each wait costs a future, a turn of the loop and a context switch of the task; measured, a seventh of a request's
instructions. Here the callback that has the news goes on with the coroutine itself: `Run` steps it, `Pause` is what it waits for.

What follows from it. A coroutine that is awaiting a Pause is resumed inside `wake`, before `wake` returns: whoever calls it must have its
own state in order first. Whatever is not a Pause is left to asyncio: a future resumes the run by its callback, in a turn of the loop.
Nothing here can be cancelled; the request path ends what it waits for instead, by a fault or the client's leaving.
"""

import asyncio
from collections.abc import Coroutine, Generator
from itertools import repeat
from typing import Any


class Pause:
    """Waited for at most once, by one coroutine of a `Run`. `wake` may come first; then there is no waiting."""

    __slots__ = ("_fault", "_is_over", "run")

    def __init__(self) -> None:
        self._is_over = False
        self._fault: Exception | None = None
        self.run: Run | None = None

    def wake(self, fault: Exception | None = None) -> None:
        """The news is there: go on, or raise `fault` where it is awaited. Only the first call counts."""
        if self._is_over:
            return
        self._is_over = True
        run, self.run = self.run, None
        if run is None:
            self._fault = fault
        else:
            run.go(None, fault)

    def __await__(self) -> "Generator[Pause, None, None]":
        """Gives the Run this Pause, once, or nothing if it is over. No generator: its frame would be held for as long as a stream lasts."""
        if self._fault is not None:
            raise self._fault
        return repeat(self, 0 if self._is_over else 1)  # type: ignore[return-value]  # `await` needs an iterator only (PEP 492)


class Run:
    """Runs a coroutine to its end, beginning at once. Whatever it raises is told to the loop's exception handler."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine = coroutine
        self.go()

    def go(self, future: object = None, fault: Exception | None = None) -> None:
        """Take the next step, or have `fault` raised there. For the Pause, or the future, that the coroutine waits for."""
        try:
            waited = self._coroutine.send(None) if fault is None else self._coroutine.throw(fault)
        except StopIteration:
            return
        except Exception as error:  # nobody else hears of it, and the caller has others to serve
            asyncio.get_running_loop().call_exception_handler({"message": "a request's coroutine failed", "exception": error})
            return
        if type(waited) is Pause:
            waited.run = self
        elif waited is None:
            asyncio.get_running_loop().call_soon(self.go)
        else:
            waited._asyncio_future_blocking = False  # the protocol between asyncio's futures and whoever steps a coroutine
            waited.add_done_callback(self.go)
