"""Operations on files of tenants: in threads of their own, bounded in all and for each organization, none awaited beyond a deadline.

A disk that hangs, or a lock that another process holds, keeps threads for as long as it lasts. They are not those that everything else of a
gateway shares (asyncio's), and one organization cannot have all of them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from tollway.domain.faults import CONCURRENCY_EXCEEDED, FILES_UNAVAILABLE, OVERLOADED, Fault

OPERATIONS_MAX: Final = 16
"""Operations at once in one gateway. Each takes a thread at a time."""

ORGANIZATION_OPERATIONS_MAX: Final = 4
"""Operations at once of one organization."""

OPERATION_SECONDS_MAX = 30.0
"""Longest wait of a client for an operation: many times what 32 MiB take on a slow disk."""

_T = TypeVar("_T")


class FileOperations:
    """The operations that run now. Used from one event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(OPERATIONS_MAX, thread_name_prefix="files")  # makes its threads once they are needed
        self._running: dict[asyncio.Task[Any], str] = {}

    def require_place(self, organization_id: str) -> None:
        """Raise Fault overloaded or rate_limit_exceeded unless the organization may begin an operation."""
        if list(self._running.values()).count(organization_id) >= ORGANIZATION_OPERATIONS_MAX:
            message = f"Too many operations on files: the organization may run {ORGANIZATION_OPERATIONS_MAX} at a time."
            raise Fault(CONCURRENCY_EXCEEDED, message=message, retry_after_seconds=1)
        if len(self._running) >= OPERATIONS_MAX:
            raise Fault(OVERLOADED, retry_after_seconds=1, detail="too many operations on files")

    def start(self, organization_id: str, operation: Coroutine[Any, Any, _T], release: Callable[[], None]) -> "asyncio.Task[_T]":
        """Begin an operation, for `wait_for`. It counts until it has ended, however long a client waits; then `release` is called."""
        task = asyncio.get_running_loop().create_task(operation)
        self._running[task] = organization_id

        def finish(task: "asyncio.Task[_T]") -> None:
            del self._running[task]
            release()

        task.add_done_callback(finish)
        return task

    async def in_thread(self, function: Callable[[], _T]) -> _T:
        """Return what a function that blocks returns. For operations alone."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)


async def wait_for(operation: "asyncio.Task[_T]") -> _T:
    """Return what an operation returns, or raise what it raises; Fault files_unavailable if it takes too long. It goes on then: its thread
    cannot be interrupted."""
    await asyncio.wait({operation}, timeout=OPERATION_SECONDS_MAX)
    if not operation.done():
        operation.add_done_callback(_report_late)
        raise Fault(FILES_UNAVAILABLE, retry_after_seconds=OPERATION_SECONDS_MAX, detail="an operation on files takes too long")
    return operation.result()


def _report_late(operation: "asyncio.Task[Any]") -> None:
    """Tell of an operation that nobody waits for any more only what no disk explains."""
    error = None if operation.cancelled() else operation.exception()
    if error is not None and not isinstance(error, Fault):
        operation.get_loop().call_exception_handler({"message": "a late operation on files failed", "exception": error})
