"""Output of child processes: files of bounded size, and an echo to a terminal that never blocks a process."""

import json
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from tollway.settings import LogSection
from tollway.telemetry import new_line

LOG_BYTES_MAX = 64 * 1024 * 1024
"""Size of one log file, where no setting says another."""

TAIL_BYTES = 4096
"""Size of the newest output that is kept for the message when a child does not start."""

ECHO_CHUNKS_MAX = 256
"""Chunks (of at most 64 KiB) that wait for a slow terminal before the newest are dropped; the files have them all."""


class Log:
    """An appended file that is set aside at `bytes_max`; `kept` of these stay, as `.1`, `.2` and so on. `tail` holds the newest bytes.
    Without a path nothing is written."""

    def __init__(self, path: Path | None, bytes_max: int = LOG_BYTES_MAX, kept: int = 1) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._kept = kept
        self._file = None if path is None else _open_private(path)
        self._bytes = 0 if self._file is None else self._file.tell()
        self.tail = b""

    def write(self, chunk: bytes) -> None:
        """Append `chunk`. A disk that is full loses log lines, never the process that they are about."""
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        if self._path is None or self._file is None:
            return
        try:
            if self._bytes + len(chunk) > self._bytes_max:
                self._file.close()
                self._set_aside(self._path)
                self._file = _open_private(self._path)
                self._bytes = 0
            self._bytes += self._file.write(chunk)
        except (OSError, ValueError):  # a file that could not be opened again is closed
            pass

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _set_aside(self, path: Path) -> None:
        for number in range(self._kept, 0, -1):
            before = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            if before.exists():
                os.replace(before, path.with_name(f"{path.name}.{number}"))


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files in which a supervisor keeps what it and its children write. `is_kept`: False for none."""

    directory: Path
    is_kept: bool = True
    bytes_max: int = LOG_BYTES_MAX
    kept: int = 1

    @classmethod
    def of(cls, directory: Path, section: LogSection) -> "LogFiles":
        """Return the files that the settings ask for."""
        return cls(directory, section.files, section.file_bytes_max, section.files_kept)

    def open(self, name: str) -> Log:
        """Return the log of this name."""
        return Log(self.directory / name if self.is_kept else None, self.bytes_max, self.kept)

    def tell_where(self, program: str) -> str:
        """Return where a person finds what a program wrote."""
        return f"see {self.directory}/{program}.log and .err" if self.is_kept else "see what it wrote to standard output"


REPORT_LEVELS = {
    "crashed": "error",
    "killed": "warning",
    "replace_failed": "error",
    "supervisor_failed": "error",
    "waiting": "warning",
}
"""Levels of what a supervisor reports, by event; any other event has the level `info`."""


def encode_report(event: Mapping[str, object], at_us: int) -> bytes:
    """Return a supervisor's report as a line of its log, at an instant in UTC microseconds."""
    name = str(event["event"])
    fields = {key: value for key, value in event.items() if key != "event"}
    return json.dumps(new_line(at_us, REPORT_LEVELS.get(name, "info"), name, fields)).encode() + b"\n"


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
