"""Reading spools in tests, and disks that fail on purpose."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EIO, ENOSPC
from pathlib import Path

from tests.patience import PATIENCE_SECONDS
from tollway.domain.usage import Admit, Close, Final, Record, decode
from tollway.link.disk import Disk
from tollway.link.epochs import EpochFiles, Position, find_position, list_epochs, read_frames, read_start
from tollway.wire.segments import Reader, Tail


def no_alarm(event: str, fields: dict[str, object]) -> None:
    """Fail: nothing in the test warrants an alarm."""
    raise AssertionError(f"{event} {fields}")


@dataclass
class Alarms:
    """Alarms, collected."""

    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def __call__(self, event: str, fields: dict[str, object]) -> None:
        self.events.append((event, fields))

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


def read_epoch(epoch: EpochFiles) -> list[Record]:
    """Every record of an epoch, checked: frames whole, chain unbroken, seq dense."""
    numbers = epoch.list_segments()
    header = read_start(epoch.segment_path(numbers[0]))
    assert header is not None
    start, offset = header
    reader, position = Reader(start.first_seq, start.chain), Position(numbers[0], offset, start.first_seq)
    records: list[Record] = []
    while True:
        data, position = read_frames(epoch, position, None, 1 << 20)
        if not data:
            assert find_position(epoch, position.seq) is not None
            return records
        records += [decode(frame.payload) for frame in reader.read(data)]
        assert reader.tail is Tail.CLEAN
        assert reader.next_seq == position.seq


def read_only_epoch(directory: Path) -> list[Record]:
    """Every record of a spool with one epoch."""
    (epoch,) = list_epochs(directory)
    return read_epoch(epoch)


def admits(records: list[Record]) -> list[Admit]:
    return [record for record in records if isinstance(record, Admit)]


def finals(records: list[Record]) -> list[Final]:
    return [record for record in records if isinstance(record, Final)]


def assert_complete(records: list[Record]) -> None:
    """Exactly one FINAL for each ADMIT, after it; CLOSE at the end and only there."""
    assert isinstance(records[-1], Close)
    assert not any(isinstance(record, Close) for record in records[:-1])
    admitted = [record.request_id for record in admits(records)]
    ended = [record.admit.request_id for record in finals(records)]
    assert len(set(admitted)) == len(admitted)
    assert sorted(ended) == sorted(admitted)


class Killed(BaseException):
    """The process died here. Not an Exception: nothing may catch it and go on."""


class DyingDisk:
    """A disk under a process that dies at its `operation`-th operation; a write gets as far as its first half."""

    def __init__(self, operation: int) -> None:
        self.left = operation

    def _step(self) -> bool:
        self.left -= 1
        return self.left < 0

    def disk(self) -> Disk:
        def pwrite(fd: int, data: bytes, offset: int) -> int:
            if self._step():
                os.pwrite(fd, data[: len(data) // 2], offset)
                raise Killed
            return os.pwrite(fd, data, offset)

        def fdatasync(fd: int) -> None:
            if self._step():
                raise Killed
            os.fdatasync(fd)

        def fallocate(fd: int, offset: int, size: int) -> None:
            if self._step():
                raise Killed
            os.posix_fallocate(fd, offset, size)

        return Disk(pwrite, fdatasync, fallocate)


class SickDisk:
    """A disk that is full or broken on command. `syncs` counts fdatasync; `may_sync` holds it back while it is cleared."""

    def __init__(self) -> None:
        self.is_full = False
        self.fails_sync = False
        self.fails_write = False
        self.syncs = 0
        self.may_sync = threading.Event()
        self.may_sync.set()
        self.on_sync: Callable[[], None] = lambda: None

    def disk(self) -> Disk:
        def pwrite(fd: int, data: bytes, offset: int) -> int:
            if self.fails_write:
                raise OSError(EIO, "injected")
            return os.pwrite(fd, data, offset)

        def fdatasync(fd: int) -> None:
            assert self.may_sync.wait(PATIENCE_SECONDS)
            self.syncs += 1
            if self.fails_sync:
                raise OSError(EIO, "injected")
            os.fdatasync(fd)
            self.on_sync()

        def fallocate(fd: int, offset: int, size: int) -> None:
            if self.is_full:
                raise OSError(ENOSPC, "injected")
            os.posix_fallocate(fd, offset, size)

        return Disk(pwrite, fdatasync, fallocate)
