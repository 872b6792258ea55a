"""The files of a gateway's spool: the directory, its epochs, their segments, and how they are read.

    <spool>/node.json              id of the node that writes here; made once, never changed
    <spool>/lock                   held for the moment in which an epoch is made or taken over
    <spool>/epoch-<start>/         one run of a gateway; <start> in microseconds is the epoch's number
        LOCK                       held (flock) by the process whose epoch it is, or that recovers it
        0001.seg 0002.seg ...      records, in preallocated files
        progress.map               what open requests have delivered so far, shared with the gateway's memory
        closed                     the epoch is complete: its last record is CLOSE, nothing will be added
        failed                     a write or a sync failed in this epoch: what is in memory may not be on disk
        damaged                    reading stopped at something that no crash explains: for a person to look at
        shipped                    how far control has acknowledged; advice only, control's word counts

A segment starts with a header that says where in the epoch's sequence it begins and which requests were open at that
moment, each with its ADMIT. So the newest segment alone shows how an epoch ended: recovery reads 64 MB, not a week of
traffic, and old segments can go as soon as control has them. Behind the header stand frames (`wire.segments`), then
zeros.

A file is a segment once its header is whole. Headers and records are written in order, and a commit syncs the old
segment before the new one, so a segment with records means that all before it are complete.
"""

import contextlib
import fcntl
import os
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import Admit
from tollway.link.disk import DISK, Disk
from tollway.wire.segments import HEAD_BYTES, PAYLOAD_BYTES_MAX, first_chain, has_lost_sector, parse_head

FORMAT = 1
"""Version of the header's format. A reader refuses a newer one."""

_HEADER = struct.Struct("<8sII")
_START_BYTES = 4096  # most headers are shorter: they name the requests open at that moment
_MAGIC = b"TWSPOOL\x01"
_EPOCH_NAME = re.compile(r"epoch-([0-9]{1,19})")
_SEGMENT_NAME = re.compile(r"([0-9]{4,9})\.seg")


class SpoolDamaged(Exception):
    """Bytes on disk that no crash of ours explains. `where` names file and offset, for the operator."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


class OpenRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request that had no FINAL yet when a segment began: the seq of its ADMIT, what it had used, the ADMIT, and how many upstreams were
    asked before the one that these counts are of."""

    seq: int
    used: Quantities
    admit: Admit
    retries: int = 0


class SegmentStart(msgspec.Struct, frozen=True, kw_only=True):
    """A segment's header: what follows is record `first_seq` of the epoch, whose predecessor had the value `chain`."""

    format: int
    node_id: str
    epoch: int
    number: int
    first_seq: int
    chain: bytes
    at: int
    open: tuple[OpenRequest, ...] = ()


class _Node(msgspec.Struct, frozen=True):
    node_id: str


class ClosedFile(msgspec.Struct, frozen=True):
    """Content of `closed`: the seq after CLOSE."""

    next_seq: int


class Shipped(msgspec.Struct, frozen=True):
    """Content of `shipped`: the seq that control expects next, and when that was learnt."""

    next_seq: int
    at: int


class Damage(msgspec.Struct, frozen=True):
    """Content of `damaged`: where, and what."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class EpochFiles:
    """One run of a gateway on disk."""

    directory: Path
    number: int
    disk: Disk = field(default=DISK, repr=False, compare=False)

    def segment_path(self, number: int) -> Path:
        """Return where segment `number` (1, 2, ...) lies."""
        return self.directory / f"{number:04d}.seg"

    def list_segments(self) -> list[int]:
        """Numbers of the segment files that exist, in order; the last ones may be prepared but not begun."""
        found = (_SEGMENT_NAME.fullmatch(name) for name in self.disk.listdir(self.directory))
        return sorted(int(match.group(1)) for match in found if match)

    def is_closed(self) -> bool:
        """Return whether nothing will be added any more."""
        return self.disk.exists(self.directory / "closed")

    def is_damaged(self) -> bool:
        """Return whether someone has to look at it before anything else is done to it."""
        return self.disk.exists(self.directory / "damaged")

    def has_failed(self) -> bool:
        """Return whether bytes of this epoch may be in the page cache and nowhere else, called clean."""
        return self.disk.exists(self.directory / "failed")

    def mark_failed(self) -> None:
        """Leave a note for recovery, as far as this disk takes one. It only has to live as long as the page cache does, so it is not
        synced."""
        try:
            self.disk.close(self.disk.open(self.directory / "failed", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError:
            pass  # a disk that takes no name takes no write either, and what is dirty stays so

    def mark_damaged(self, where: str, what: str) -> None:
        """Leave a note for a person. The records stay as they are."""
        write_file(self.directory / "damaged", msgspec.json.encode(Damage(where, what)), self.disk)


def list_epochs(directory: Path, disk: Disk = DISK) -> list[EpochFiles]:
    """Epochs of a spool, oldest first; none if there is no such directory."""
    if not disk.exists(directory):
        return []
    found = ((name, _EPOCH_NAME.fullmatch(name)) for name in disk.listdir(directory))
    return sorted(
        (EpochFiles(directory / name, int(match.group(1)), disk) for name, match in found if match), key=lambda epoch: epoch.number
    )


def find_node(directory: Path, disk: Disk = DISK) -> str | None:
    """The id of the node that writes here; None in a directory that was never used."""
    try:
        return msgspec.json.decode(disk.read(directory / "node.json"), type=_Node).node_id
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SpoolDamaged(str(directory / "node.json"), str(error)) from None


def write_node(directory: Path, node_id: str, disk: Disk = DISK) -> None:
    """Give the spool its node id, durably. Call it once, under the spool's lock."""
    write_file(directory / "node.json", msgspec.json.encode(_Node(node_id)), disk)


# ---- Locks and small files -------------------------------------------------------------------------------------------


def lock(path: Path, disk: Disk = DISK, *, wait: bool) -> int | None:
    """Take the lock file `path`; returns a descriptor that holds it until closed, or None if another process has it."""
    fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        disk.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        disk.close(fd)
        return None
    except BaseException:
        disk.close(fd)
        raise
    return fd


def sync_directory(path: Path, disk: Disk = DISK) -> None:
    """Make the names in a directory durable."""
    fd = disk.open(path, os.O_RDONLY | os.O_DIRECTORY, 0)
    try:
        disk.fsync(fd)
    finally:
        disk.close(fd)


def make_directory(path: Path, disk: Disk = DISK) -> None:
    """Make a directory and its parents, if need be, each durable in the one above; also if it was made by a process that
    died before it could see to that."""
    if not disk.exists(path):
        make_directory(path.parent, disk)
        with contextlib.suppress(FileExistsError):
            disk.mkdir(path, 0o700)
    with contextlib.suppress(PermissionError):  # a parent that we may not even read was not made by us
        sync_directory(path.parent, disk)


def write_file(path: Path, content: bytes, disk: Disk = DISK) -> None:
    """Put `content` at `path` as a whole or not at all, durably."""
    draft = path.with_name(f"{path.name}.{disk.getpid()}.draft")
    fd = disk.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, content, 0, disk)
        disk.fsync(fd)
    finally:
        disk.close(fd)
    disk.replace(draft, path)
    sync_directory(path.parent, disk)


def write_all(fd: int, data: bytes, offset: int, disk: Disk) -> None:
    """Call pwrite until all of `data` is written: the kernel may take less at a time."""
    while data:
        written = disk.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


# ---- Segments --------------------------------------------------------------------------------------------------------


def create_segment(path: Path, size_bytes: int, disk: Disk) -> int:
    """A preallocated file of zeros, durable in name and size; returns its descriptor. On error nothing is left
    behind."""
    fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        disk.fallocate(fd, 0, size_bytes)
        disk.fsync(fd)
        sync_directory(path.parent, disk)
    except BaseException:
        disk.close(fd)
        disk.unlink(path)
        raise
    return fd


def encode_start(start: SegmentStart) -> bytes:
    """A segment's header as it stands at the beginning of the file; records follow at once."""
    payload = msgspec.json.encode(start)
    return _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def first_start(node_id: str, epoch: int) -> SegmentStart:
    """The header of an epoch's first segment: nothing in it is left to chance, so that a torn one can be distinguished from
    damage."""
    return SegmentStart(format=FORMAT, node_id=node_id, epoch=epoch, number=1, first_seq=1, chain=first_chain(node_id, epoch), at=epoch)


def parse_start(data: bytes) -> tuple[SegmentStart, int] | None:
    """The header at the beginning of `data` and where records begin; None if there is no whole and right one."""
    if len(data) < _HEADER.size:
        return None
    magic, length, crc = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    if magic != _MAGIC or end > len(data) or zlib.crc32(data[_HEADER.size : end]) != crc:
        return None
    start = msgspec.json.decode(data[_HEADER.size : end], type=SegmentStart)
    if start.format > FORMAT:
        raise SpoolDamaged("segment header", f"format {start.format} is newer than this program's {FORMAT}")
    return start, end


def is_start_lost(data: bytes) -> bool:
    """Return whether the beginning of a segment is not there, as after a power cut that came before it was synced."""
    if not data.startswith(_MAGIC) or len(data) < _HEADER.size:
        return not any(data[: len(_MAGIC)])
    _, length, _ = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    return end > len(data) or has_lost_sector(data, 0, end)


def read_start(path: Path, disk: Disk = DISK) -> tuple[SegmentStart, int] | None:
    """The header of the segment at `path`, reading little more than it; None if it has not begun or is gone."""
    try:
        data = disk.read(path, 0, _START_BYTES)
        if len(data) < _HEADER.size:
            return None
        magic, length, _ = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            return None
        end = _HEADER.size + length
        return parse_start(data if end <= len(data) else disk.read(path, 0, end))
    except FileNotFoundError:
        return None


def read_segment(path: Path, disk: Disk = DISK) -> bytes:
    """The bytes of a segment up to its last byte that is not zero: a record never ends in one (payloads are JSON
    objects)."""
    return disk.read(path).rstrip(b"\0")


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two records of an epoch: record `seq` stands, or will stand, at `offset` of segment `segment`."""

    segment: int
    offset: int
    seq: int


FRAME_BYTES_MAX = HEAD_BYTES + PAYLOAD_BYTES_MAX
"""No frame is longer, so a read of this many bytes holds at least one."""


def read_frames(epoch: EpochFiles, position: Position, end: Position | None, bytes_max: int) -> tuple[bytes, Position]:
    """Whole frames from `position` on, at most `bytes_max` (FRAME_BYTES_MAX or more) bytes and not beyond `end`, and
    the position after them.

    Only lengths and seqs are looked at; whoever receives the bytes checks checksums and chain. Empty bytes: there is
    no more yet. Raises SpoolDamaged if the bytes cannot be frames of this epoch.
    """
    while True:
        path = epoch.segment_path(position.segment)
        try:
            data = epoch.disk.read(path, position.offset, bytes_max)
        except FileNotFoundError:
            raise SpoolDamaged(str(path), "the segment is missing") from None
        taken, seq = 0, position.seq
        while taken + HEAD_BYTES <= len(data) and (end is None or seq < end.seq):
            head = parse_head(data, taken)
            if head is None:
                break
            length, found, _ = head
            if found != seq:
                raise SpoolDamaged(f"{path} at {position.offset + taken}", f"record {found} stands where {seq} belongs")
            if taken + HEAD_BYTES + length > len(data):
                break
            taken, seq = taken + HEAD_BYTES + length, seq + 1
        if taken:
            return data[:taken], Position(position.segment, position.offset + taken, seq)
        if end is not None and seq >= end.seq:
            return b"", position
        following = read_start(epoch.segment_path(position.segment + 1), epoch.disk)
        if following is None:
            if end is not None or any(data[:HEAD_BYTES]):
                raise SpoolDamaged(f"{path} at {position.offset}", f"record {seq} is missing")
            return b"", position
        start, offset = following
        if start.first_seq != seq:
            raise SpoolDamaged(str(path), f"records {seq} to {start.first_seq - 1} are missing")
        position = Position(position.segment + 1, offset, seq)


def find_position(epoch: EpochFiles, seq: int) -> Position | None:
    """Return where record `seq` stands, or would stand next; None if no segment here reaches back to it.

    Raises SpoolDamaged if the epoch does not reach as far as `seq`, or is not readable up to it.
    """
    for number in reversed(epoch.list_segments()):
        header = read_start(epoch.segment_path(number), epoch.disk)
        if header is None or header[0].first_seq > seq:
            continue
        position = Position(number, header[1], header[0].first_seq)
        while position.seq < seq:
            end = Position(number, 0, seq)
            _, position = read_frames(epoch, position, end, 1 << 20)
        return position
    return None
