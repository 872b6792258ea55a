"""The C library's allocator, set to return memory to the operating system: large blocks as soon as they are free, smaller ones once a
flood is over.

glibc raises its threshold for blocks of their own (`mmap`) to the size of the largest one that was freed, up to 32 MiB. After one large
body the pieces of all later ones come from the heap, which small blocks between them keep from shrinking: a gateway kept 240 MiB of
answers that clients had abandoned. A fixed threshold costs a large body about 3 ms of CPU for each MiB more, and small messages nothing.

Pieces of bodies and answers as sockets deliver them are smaller. To map those too (a threshold of 32 KiB) costs each body of 40 to 120 KB
20 to 45 µs of page faults. Instead the free pages between the blocks in use are returned when memory has grown and grows no more: 50 µs for
each MiB, once.

A control process works in up to fifty threads, and glibc gives each a heap of its own until there are eight for each core. What one of them
frees no other one uses: memory grows for as long as work moves from thread to thread (decision 0134). It has one heap, as its threads
take turns at the interpreter anyway.
"""

import asyncio
import ctypes
from collections.abc import Callable

from tollway.worker_threads import run_in_thread

LARGE_BLOCK_BYTES = 128 * 1024
"""Size from which a block is mapped by itself: what glibc begins with."""
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of mallopt(3)."""


def return_large_blocks() -> bool:
    """Fix the threshold for this process. Return False where the C library has no such parameter (musl, macOS), which is no error."""
    return _set_option(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def use_one_heap() -> bool:
    """Let threads that begin from now on share the heap of the main thread. Returns as `return_large_blocks`."""
    return _set_option(_M_ARENA_MAX, 1)


def _set_option(parameter: int, value: int) -> bool:
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and set_option(parameter, value) == 1


def trim() -> None:
    """Return free pages to the operating system now. Does nothing where the C library cannot. It takes 50 µs for each MiB, during which
    other threads wait for memory."""
    trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim_heap is not None:
        trim_heap(0)


GROWN_BYTES = 8 * 1024 * 1024
"""Growth of resident memory from which on a search for free pages is worth its time."""
PERIOD_SECONDS = 1.0
"""Time between two looks at resident memory. Free pages are returned once it has not grown from one look to the next."""
LOOKS_UNTIL_REPEATED = 20
"""Looks after which free pages are returned a second time: what was in use the first time may be free by then."""


async def return_free_pages(read_resident_bytes: Callable[[], int]) -> None:
    """Return free pages to the operating system whenever memory has grown and grows no more, until cancelled. Does nothing where the C
    library cannot (musl, macOS). `read_resident_bytes`: resident memory of this process."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        await asyncio.Event().wait()
        return
    settled = before = read_resident_bytes()
    looks_left = 0
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        now = read_resident_bytes()
        has_grown = settled + GROWN_BYTES <= now <= before
        if has_grown or looks_left == 1:
            await run_in_thread(trim, 0)
            now = settled = read_resident_bytes()
        looks_left = LOOKS_UNTIL_REPEATED if has_grown else max(0, looks_left - 1)
        settled, before = min(settled, now), now
