"""A coroutine that is resumed from I/O callbacks: the request path without tasks.

A request waits two or three times: for its engine's answer, for the end of a stream, for its record to be durable. With an
asyncio.Task each wait costs a future, a turn of the loop and a context switch of the task; measured, a seventh of a request's
instructions. Here the callback that has the result continues the coroutine itself: `CoroutineDriver` steps it, `Waiter` is what it
waits for.

Three guarantees:

1. Each step runs in the request's own `contextvars.Context`, whoever caused it, and never inside an asyncio task. For the second
   half, call `start` and `resume` from a callback of the loop (I/O, a timer, `call_soon`), not from a task; `interrupt` may be called from
   anywhere. A step inside a task would give that task to `asyncio.timeout`, which would then cancel the wrong one.
2. `interrupt` raises its error at whatever wait is current: a client that left, a drain, a deadline, a budget. A `ShieldedWaiter` (a FINAL
   that is being made durable) is not interrupted; the error is then raised at the next wait that is not shielded, as is one that arrives
   before the first wait. The first interruption that was not delivered yet counts.
3. A request awaits Waiters only. `in_task` runs anything else, such as opening a connection, in a task of its own, which an interruption
   cancels.

A coroutine that awaits a Waiter is resumed inside `resume`, before `resume` returns: the caller must have updated its own state
first. What a Waiter yields comes from an iterator in C, and an error is thrown into the coroutine where it waits, so that a wait costs no
frame of its own.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextvars import Context
from types import CoroutineType
from typing import Any, Final, TypeVar

from tollway.gateway.isolation import isolate

T = TypeVar("T")


class Waiter:
    """Awaited at most once, by one coroutine of a `CoroutineDriver`. `resume` may come first; then there is no waiting."""

    __slots__ = ("_error", "_is_over", "driver")

    is_shielded = False

    def __init__(self) -> None:
        self._is_over = False
        self._error: Exception | None = None
        self.driver: CoroutineDriver | None = None

    def resume(self, error: Exception | None = None) -> None:
        """End the wait, or raise `error` where it is awaited. Only the first call counts. Call it from a callback of the loop."""
        if self._is_over:
            return
        self._is_over = True
        driver, self.driver = self.driver, None
        if driver is not None:
            driver._step(error)
        else:
            self._error = error

    def abandon(self) -> None:
        """Make a later `resume` count for nothing: the wait was interrupted."""
        self._is_over = True
        self.driver = None

    def __await__(self) -> "Generator[Waiter, None, None]":
        if self._is_over:
            if self._error is not None:
                raise self._error
            return _NOTHING  # type: ignore[return-value]
        return iter((self,))  # type: ignore[return-value]


class ShieldedWaiter(Waiter):
    """A wait that cannot be interrupted."""

    __slots__ = ()

    is_shielded = True


_NOTHING: "Final[Iterator[Waiter]]" = iter(())
OVER: Final = Waiter()
"""Awaited where there is nothing to wait for."""
OVER.resume()


class CoroutineDriver:
    """Runs one coroutine to its end. Exceptions that it raises go to the loop's exception handler."""

    __slots__ = ("_context", "_coroutine", "_interruption", "_send", "_waiting")

    def __init__(self, context: Context) -> None:
        """`context`: the request's own, not entered by anybody else while a step runs."""
        self._context = context
        self._waiting: Waiter | None = None
        self._interruption: Exception | None = None

    def start(self, coroutine: Coroutine[Any, None, None]) -> None:
        """Run `coroutine` to its first wait. Call it once, from a callback of the loop."""
        if not isinstance(coroutine, CoroutineType):
            coroutine = isolate(coroutine)
        self._coroutine: Coroutine[Any, None, None] = coroutine
        self._send: Callable[[None], object] = coroutine.send
        self._step(None)

    def interrupt(self, error: Exception) -> None:
        """Raise `error` at the current wait, or at the next one that is not shielded. From inside a task this happens in the next turn of
        the loop."""
        if asyncio.current_task() is not None:
            asyncio.get_running_loop().call_soon(self.interrupt, error)
            return
        waiting = self._waiting
        if waiting is not None and waiting.driver is self and not waiting.is_shielded:
            waiting.abandon()
            self._step(error)
        elif self._interruption is None:
            self._interruption = error

    async def in_task(self, coroutine: Coroutine[Any, Any, T], release: Callable[[T], object] | None = None) -> T:
        """Return what `coroutine` returns, or raise what it raises; await this inside the driven coroutine only.

        The task sees the request's context variables and cannot change them. An interruption cancels it; a result that it produced
        nevertheless goes to `release`.
        """
        task = asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())
        waiter = Waiter()
        task.add_done_callback(lambda _: waiter.resume())
        try:
            await waiter
        except BaseException:
            task.cancel()
            task.add_done_callback(lambda task: _release(task, release))
            raise
        return task.result()

    def _step(self, error: Exception | None) -> None:
        try:
            waited = self._context.run(self._send, None) if error is None else self._context.run(self._coroutine.throw, error)
            while not isinstance(waited, Waiter) or (self._interruption is not None and not waited.is_shielded):
                waited = self._context.run(self._coroutine.throw, self._refuse(waited))
        except StopIteration:
            return
        except (Exception, asyncio.CancelledError) as raised:  # no other code would see it, and the caller has others to serve
            asyncio.get_running_loop().call_exception_handler({"message": "a request's coroutine failed", "exception": raised})
            return
        waited.driver = self
        self._waiting = waited

    def _refuse(self, waited: object) -> Exception:
        """The error to raise in place of a wait: the pending interruption, or that what is awaited is no Waiter."""
        error = self._interruption
        if isinstance(waited, Waiter) and error is not None:
            self._interruption = None
            waited.abandon()
            return error
        if asyncio.isfuture(waited):
            waited._asyncio_future_blocking = False  # the protocol between asyncio's futures and whoever steps a coroutine
        return RuntimeError("a request may await nothing but a Waiter: run the rest by CoroutineDriver.in_task")


def _release(task: "asyncio.Task[T]", release: Callable[[T], object] | None) -> None:
    """Dispose of the result of a task that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None and release is not None:
        release(task.result())
