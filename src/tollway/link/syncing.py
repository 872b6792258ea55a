"""An fdatasync without a thread: the kernel's asynchronous I/O (Linux io_submit(2), IOCB_CMD_FDSYNC since 4.18), reported by an eventfd.

A thread that waits in fdatasync must take the interpreter's lock back to say that it is done, from a loop that is busy holding it: two
hand-overs a commit, measured at 10 to 60 µs of CPU per request depending on the load (docs/decisions/0005). The kernel says the same
through a descriptor that the loop watches anyway. Where it cannot be had (another system, a sandbox without these calls, a filesystem
without them) `KernelSync.open` or `start` says so, and the spool's thread does the work.
"""

import asyncio
import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable
from typing import Self

_SYSCALLS = {
    "x86_64": {"io_setup": 206, "io_destroy": 207, "io_getevents": 208, "io_submit": 209},
    "aarch64": {"io_setup": 0, "io_destroy": 1, "io_submit": 2, "io_getevents": 4},
}
"""Numbers of system calls for which the C library has no wrappers."""
_FDSYNC = 3
_FLAG_RESFD = 1


class _Iocb(ctypes.Structure):
    """The C type struct iocb (linux/aio_abi.h), little-endian."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("reqprio", ctypes.c_int16),
        ("fildes", ctypes.c_uint32),
        ("buf", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved2", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


class _IoEvent(ctypes.Structure):
    """The C type struct io_event (linux/aio_abi.h)."""

    _fields_ = (("data", ctypes.c_uint64), ("obj", ctypes.c_uint64), ("res", ctypes.c_int64), ("res2", ctypes.c_int64))


class KernelSync:
    """At most one fdatasync at a time, begun with `start`; `done` is called in the loop with None or the error."""

    def __init__(self, loop: asyncio.AbstractEventLoop, context: int, event_fd: int) -> None:
        # PyDLL keeps the interpreter's lock: none of these calls waits for the disk.
        self._syscall = ctypes.PyDLL(None, use_errno=True).syscall
        self._numbers = _SYSCALLS[platform.machine()]
        self._loop = loop
        self._context = ctypes.c_ulong(context)
        self._event_fd = event_fd
        self._iocb = _Iocb(opcode=_FDSYNC, flags=_FLAG_RESFD, resfd=event_fd)
        self._iocbs = (ctypes.POINTER(_Iocb) * 1)(ctypes.pointer(self._iocb))
        self._event = _IoEvent()
        self._no_wait = (ctypes.c_long * 2)(0, 0)
        self._done: Callable[[OSError | None], None] | None = None
        loop.add_reader(event_fd, self._finished)

    @classmethod
    def open(cls, loop: asyncio.AbstractEventLoop) -> Self | None:
        """None if this system does not have it."""
        numbers = _SYSCALLS.get(platform.machine())
        if sys.platform != "linux" or numbers is None:
            return None
        context = ctypes.c_ulong(0)
        if ctypes.PyDLL(None, use_errno=True).syscall(numbers["io_setup"], 1, ctypes.byref(context)) != 0:
            return None
        return cls(loop, context.value, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def start(self, fd: int, done: Callable[[OSError | None], None]) -> bool:
        """Begin fdatasync of `fd`. False if the kernel would not take it; then `done` is not called."""
        self._iocb.fildes = fd
        self._done = done
        if self._syscall(self._numbers["io_submit"], self._context, 1, self._iocbs) == 1:
            return True
        self._done = None
        return False

    def _finished(self) -> None:
        try:
            os.read(self._event_fd, 8)
        except BlockingIOError:
            return
        event = self._event
        arguments = (self._context, 0, 1, ctypes.byref(event), ctypes.byref(self._no_wait))
        if self._syscall(self._numbers["io_getevents"], *arguments) != 1:
            return
        done, self._done = self._done, None
        assert done is not None
        done(None if event.res == 0 else OSError(-event.res, os.strerror(-event.res) if event.res < 0 else errno.errorcode[errno.EIO]))

    def close(self) -> None:
        """Give the context back. Waits for a sync that is still under way."""
        self._loop.remove_reader(self._event_fd)
        self._syscall(self._numbers["io_destroy"], self._context)
        os.close(self._event_fd)
