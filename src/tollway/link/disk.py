"""Every call of the operating system that the spool makes, in one place.

The spool's promises are about kill -9, power cuts and failing disks, and a test cannot produce these on demand. So everything
that link does to its directory goes through a `Disk`: by default the system's own calls, nothing in between, so that the
hot path pays one attribute. The simulation (tests/simulation) puts another machine under the same code.
"""

import asyncio
import fcntl
import mmap
import os
import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tollway.link.syncing import KernelSync


class Writer:
    """A thread that runs jobs one after the other, for code that must not wait for the disk."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Run `job` after all that were put before. It must not raise: an exception would end the thread."""
        self._jobs.put(job)

    def end(self) -> None:
        """No more jobs will come."""
        self._jobs.put(None)

    def join(self) -> None:
        """After `end`: wait until all jobs are done."""
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _read(path: Path, offset: int = 0, size: int = -1) -> bytes:
    """Bytes of a file from `offset` on, at most `size` unless that is -1. Raises FileNotFoundError."""
    with open(path, "rb", buffering=0) as file:
        if offset:
            file.seek(offset)
        return file.read(size)


def _unlink(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def _size(fd: int) -> int:
    return os.fstat(fd).st_size


def _modified_at(path: Path) -> float:
    """Seconds since 1970. Raises FileNotFoundError."""
    return path.stat().st_mtime


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


@dataclass(frozen=True, slots=True)
class Disk:
    """The calls, named as the system names them. Tests hand in failing ones; everything else takes the defaults."""

    pwrite: Callable[[int, bytes, int], int] = os.pwrite
    fdatasync: Callable[[int], None] = os.fdatasync
    fallocate: Callable[[int, int, int], None] = os.posix_fallocate
    fsync: Callable[[int], None] = os.fsync
    open: Callable[[Path, int, int], int] = os.open
    close: Callable[[int], None] = os.close
    flock: Callable[[int, int], None] = fcntl.flock
    map: Callable[[int, int], mmap.mmap] = mmap.mmap
    size: Callable[[int], int] = _size
    read: Callable[..., bytes] = _read
    exists: Callable[[Path], bool] = os.path.exists
    listdir: Callable[[Path], list[str]] = os.listdir
    mkdir: Callable[[Path, int], None] = os.mkdir
    rmdir: Callable[[Path], None] = os.rmdir
    replace: Callable[[Path, Path], None] = os.replace
    truncate: Callable[[Path, int], None] = os.truncate
    unlink: Callable[[Path], None] = _unlink
    modified_at: Callable[[Path], float] = _modified_at
    free_bytes: Callable[[Path], int] = _free_bytes
    getpid: Callable[[], int] = os.getpid
    start_writer: Callable[[], Writer] = Writer

    def open_kernel_sync(self, loop: asyncio.AbstractEventLoop) -> KernelSync | None:
        """Return an fdatasync that needs no thread; None where the system has none, and for a disk whose fdatasync a test replaced."""
        return KernelSync.open(loop) if self.fdatasync is os.fdatasync else None


DISK = Disk()
"""The real one."""
