"""Output of child processes: files of bounded size, and an echo to a terminal that never blocks a process."""

import os
import queue
import threading
from io import FileIO
from pathlib import Path

LOG_BYTES_MAX = 64 * 1024 * 1024
"""Size of one log file; the one before is kept beside it as `.1`. Whoever wants more reads the same lines from standard
output."""

TAIL_BYTES = 4096
"""Size of the newest output that is kept for the message when a child does not start."""

ECHO_CHUNKS_MAX = 256
"""Chunks (of at most 64 KiB) that wait for a slow terminal before the newest are dropped; the files have them all."""


class Log:
    """An appended file that is set aside at LOG_BYTES_MAX. `tail` holds its newest bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_private(path)
        self._bytes = self._file.tell()
        self.tail = b""

    def write(self, chunk: bytes) -> None:
        """Append `chunk`. A disk that is full loses log lines, never the process that they are about."""
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        try:
            if self._bytes + len(chunk) > LOG_BYTES_MAX:
                self._file.close()
                os.replace(self._path, self._path.with_name(self._path.name + ".1"))
                self._file = _open_private(self._path)
                self._bytes = 0
            self._bytes += self._file.write(chunk)
        except OSError:
            pass

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open_private(path: Path) -> FileIO:
    """Open a file to append to it; only its owner may read it."""
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


class Echo:
    """Copies chunks to a descriptor from a thread of its own, so that a paused terminal or a full pipe stops nobody."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._queue: queue.Queue[bytes | None] = queue.Queue(ECHO_CHUNKS_MAX)
        self._thread = threading.Thread(target=self._copy, name="echo", daemon=True)
        self._thread.start()

    def write(self, chunk: bytes) -> None:
        """Hand over `chunk`; dropped if ECHO_CHUNKS_MAX are waiting."""
        try:
            self._queue.put_nowait(chunk)
        except queue.Full:
            pass

    def close(self, seconds: float) -> None:
        """Write what is waiting, for at most `seconds`."""
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _copy(self) -> None:
        while (chunk := self._queue.get()) is not None:
            view = memoryview(chunk)
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError:
                return  # nobody reads any more
