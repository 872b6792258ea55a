"""The truth log: what the engine really did, as JSON lines that outlive it. The only reference for usage records and
bills.

One `start` line when a request enters the engine and one `end` line when it has left, each by a single write(2) to
a file opened for appending: what was written survives `kill -9`, and a start without an end is a request that died
with the engine. A request that the engine turned away (queue full, draining, an injected status) has an `end` line
only, `ended: "rejected"`. What is refused before it reaches the engine (401, 400, 404) is not here.

The end line is in the file before the last byte of the answer leaves, so a client that saw an end can rely on
finding it here. fdatasync follows in groups (a power cut may lose the last `fsync_seconds`), or before each answer
ends with `fsync_each`.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

Ended = Literal["completed", "aborted", "error", "cut", "stall", "rejected"]


class StartRecord(msgspec.Struct, frozen=True, tag_field="event", tag="start"):
    """A request entered the engine (its queue or a slot)."""

    request_id: str
    attempt_id: str
    model: str
    endpoint: str
    prompt_tokens: int
    started_at_us: int


class TruthRecord(msgspec.Struct, frozen=True, tag_field="event", tag="end", omit_defaults=True):
    """A request left the engine.

    `request_id` is the X-Request-Id that came with it (else the random part of the answer's id), `attempt_id` is
    unique to this request in all lives of all simulators. `completion_tokens` were generated (reasoning included),
    `delivered_tokens` of them were handed to the socket by writes that were not cut short. `ended`: completed (the
    answer came to its planned end, whether or not a fault then kept the terminator back), aborted (the client
    left), error (the engine said so), cut (it hung up), stall (it fell silent until the client left or it was
    stopped), rejected. Token counts are what was generated, whatever a fault made the usage say. `units`: images that were made, seconds
    of sound that were read, or characters that were spoken. `pixels`: of these images together.
    """

    request_id: str
    attempt_id: str
    model: str
    endpoint: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    delivered_tokens: int
    ended: Ended
    finish_reason: str | None
    terminator_sent: bool
    started_at_us: int
    ended_at_us: int
    units: int = 0
    pixels: int = 0


class TruthLog:
    """Appends records. Opened with no path it keeps nothing.

    `lost` is called with the first error of the file; after it nothing is taken any more, because a reference that
    forgets must not go on.
    """

    def __init__(self, path: Path | None, *, fsync_each: bool, fsync_seconds: float, lost: Callable[[OSError], None]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = None if path is None else os.open(path, flags, 0o600)
        self._fsync_each = fsync_each
        self._fsync_seconds = fsync_seconds
        self._lost = lost
        self._failure: OSError | None = None
        self._encoder = msgspec.json.Encoder()
        self._sync_planned = False

    def append(self, record: StartRecord | TruthRecord) -> None:
        """Puts the record into the file. Raises OSError if it is not there, and then for every later one."""
        if self._fd is None:
            return
        if self._failure is not None:
            raise self._failure
        line = self._encoder.encode(record) + b"\n"
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, "truth log: short write")
            if self._fsync_each:
                os.fdatasync(self._fd)
        except OSError as error:
            self._fail(error)
            raise
        if not self._fsync_each and not self._sync_planned:
            self._sync_planned = True
            asyncio.get_running_loop().call_later(self._fsync_seconds, self._sync)

    def close(self) -> None:
        """Makes everything durable and closes the file. Raises OSError if it cannot."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if self._failure is None:
                os.fdatasync(fd)
        finally:
            os.close(fd)

    def _sync(self) -> None:
        self._sync_planned = False
        if self._fd is not None:
            # A duplicate, because the file may be closed while the thread works.
            done = asyncio.get_running_loop().run_in_executor(None, _sync_and_close, os.dup(self._fd))
            done.add_done_callback(self._synced)

    def _synced(self, done: "asyncio.Future[None]") -> None:
        if not done.cancelled() and isinstance(error := done.exception(), OSError):
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if self._failure is None:
            self._failure = error
            self._lost(error)


def _sync_and_close(fd: int) -> None:
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> list[TruthRecord]:
    """All end records, in the order in which requests ended. Raises msgspec.DecodeError if the file is not a truth
    log.
    """
    return [record for record in _records(path) if isinstance(record, TruthRecord)]


def read_unended(path: Path) -> list[StartRecord]:
    """The requests that entered the engine and never left it: running now, or killed with it."""
    open_records: dict[str, StartRecord] = {}
    for record in _records(path):
        if isinstance(record, StartRecord):
            open_records[record.attempt_id] = record
        else:
            open_records.pop(record.attempt_id, None)
    return list(open_records.values())


def _records(path: Path) -> list[StartRecord | TruthRecord]:
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # after the last newline: empty, or a line that a power cut tore
    decoder = msgspec.json.Decoder(StartRecord | TruthRecord)
    return [decoder.decode(line) for line in lines]
