"""A coroutine that is resumed from I/O callbacks: the request path without tasks.

A request waits two or three times: for its engine's answer, for the end of a stream, for its record to be durable. With an
asyncio.Task each wait costs a future, a turn of the loop and a context switch of the task; measured, a seventh of a request's
instructions. Here the callback that has the result continues the coroutine itself: `CoroutineDriver` steps it, `Waiter` is what it
waits for.

A coroutine that awaits a Waiter is resumed inside `resume`, before `resume` returns: the caller must have updated its own state
first. Whatever is not a Waiter is left to asyncio: a future resumes the driver by its callback, in a turn of the loop.
What a Waiter yields comes from an iterator in C, and an error is thrown into the coroutine where it waits, so that a wait costs no
frame of its own.
"""

import asyncio
from collections.abc import Coroutine, Generator, Iterator
from typing import Any


class Waiter:
    """Waited for at most once, by one coroutine of a `CoroutineDriver`. `resume` may come first; then there is no waiting."""

    __slots__ = ("_error", "_is_over", "run")

    def __init__(self) -> None:
        self._is_over = False
        self._error: Exception | None = None
        self.run: CoroutineDriver | None = None

    def resume(self, error: Exception | None = None) -> None:
        """The news is there: go on, or raise `error` where it is awaited. Only the first call counts."""
        if self._is_over:
            return
        self._is_over = True
        run, self.run = self.run, None
        if run is not None:
            run.go(None, error)
        else:
            self._error = error

    def __await__(self) -> "Generator[Waiter, None, None]":
        if self._is_over:
            if self._error is not None:
                raise self._error
            return _NOTHING  # type: ignore[return-value]
        return iter((self,))  # type: ignore[return-value]


_NOTHING: "Iterator[Waiter]" = iter(())
OVER = Waiter()
"""Awaited where there is nothing to wait for."""
OVER.resume()


class CoroutineDriver:
    """Runs a coroutine to its end, beginning at once. Whatever it raises is told to the loop's exception handler."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine = coroutine
        self.go()

    def go(self, future: object = None, error: Exception | None = None) -> None:
        """Take the next step, with `error` if there is one. For the Waiter, or the future, that the coroutine waits for."""
        try:
            waited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except StopIteration:
            return
        except Exception as raised:  # nobody else hears of it, and the caller has others to serve
            asyncio.get_running_loop().call_exception_handler({"message": "a request's coroutine failed", "exception": raised})
            return
        if type(waited) is Waiter:
            waited.run = self
        elif waited is None:
            asyncio.get_running_loop().call_soon(self.go)
        else:
            waited._asyncio_future_blocking = False  # the protocol between asyncio's futures and whoever steps a coroutine
            waited.add_done_callback(self.go)
