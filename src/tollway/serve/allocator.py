"""The C library's allocator, told to return large blocks to the operating system as soon as they are free.

glibc raises its threshold for blocks of their own (`mmap`) to the size of the largest one that was freed, up to 32 MiB. After one large
body the pieces of all later ones come from the heap, which small blocks between them keep from shrinking: a gateway kept 240 MiB of
answers that clients had abandoned. A fixed threshold costs a large body about 3 ms of CPU for each MiB more, and small messages nothing.
"""

import ctypes

LARGE_BLOCK_BYTES = 128 * 1024
"""Size from which a block is mapped by itself: what glibc begins with."""
_M_MMAP_THRESHOLD = -3
"""Parameter of mallopt(3)."""


def return_large_blocks() -> bool:
    """Fix the threshold for this process. Return False where the C library has no such parameter (musl, macOS), which is no error."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and set_option(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES) == 1
