"""An exception state of its own for a compiled coroutine. This module is never compiled.

The interpreter keeps the exception that a coroutine is handling with that coroutine's frame, and takes it off the thread while the
coroutine waits. A coroutine compiled by mypyc has no such frame: one that waits inside `except` or `__aexit__` leaves its exception with
whoever resumed it, and restores that caller's exception in another one later, which loses errors and corrupts memory. Driven
through a coroutine of the interpreter, it keeps both.
"""

from collections.abc import Coroutine
from typing import Any


async def isolate(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run `coroutine` to its end."""
    await coroutine
