"""Recovery: every request that a dead gateway had admitted gets the FINAL it is owed, and its epoch is closed.

Theory of operation. Everything that recovery writes is a function of what lies on disk and nothing else: no clock, no
randomness. FINALs are appended in the order of their ADMITs; their counts are the later of the last PROGRESS and the
slot of progress.map; `ended_at` is the latest instant seen in the segment. A FINAL that an earlier, itself
interrupted recovery wrote is found again as any other FINAL, and its `ended_at` is that same instant. So recovery may
be killed at any byte and run again, any number of times: the epoch ends in the same bytes. progress.map is removed
only after CLOSE is on disk, because until then it is still needed.

After a failed sync the kernel may call pages clean that the disk never got, and a later sync succeeds without them. An
epoch that noted such a failure (`failed`) has its segments copied into new files before anything is appended, so that a
sync means again what it says.

The newest begun segment is read (see `epochs`), and the few before it that a power cut may have left unsynced: if one is
lost or does not reach to where the next begins, nothing in those behind it was ever acknowledged, and it is taken for the
newest. A torn tail is cut: no record in it was ever acknowledged, because an acknowledgement follows the sync of all bytes
before it. A record that is wrong in another way than crashes leave behind (`wire.segments`) is damage: the epoch is marked
and left as it is, and what lies before the damage is still shipped.

What the dead process had written may lie in the page cache only. `closed` says that the epoch is complete on disk, so all
of it is synced before that is written.
"""

import array
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.usage import Admit, Close, Final, Outcome, Progress, Record, Tick, UsageSource, decode, encode
from tollway.link.disk import DISK, Disk
from tollway.link.epochs import (
    FORMAT,
    ClosedFile,
    EpochFiles,
    OpenRequest,
    SegmentStart,
    SpoolDamaged,
    create_segment,
    encode_start,
    find_node,
    first_start,
    is_start_lost,
    list_epochs,
    lock,
    parse_start,
    read_segment,
    sync_directory,
    write_all,
    write_file,
)
from tollway.wire.progress_slots import FIRST_TOKEN_WORD, RETRIES_WORD, SLOT_WORDS, TRAILER_BYTES, read_quantities
from tollway.wire.segments import HEAD_BYTES, Reader, Tail, extend

_SEGMENT_BYTES_MIN = 1 << 20
"""Size of a segment that recovery makes: the dead process' own may have been cut short."""

CountsUsage = Callable[[], Callable[[Admit], bool]]
"""Called once for each recovery. Returns what says whether what a request has noted counts that its process did not end; that raises
OSError where it cannot be found out."""


def count_all() -> Callable[[Admit], bool]:
    """Count what every request has noted."""
    return lambda admit: True


Alarm = Callable[[str, dict[str, object]], None]
"""Told of what a person must look at: the name of the event and its fields, without secrets."""


class Recovered(StrEnum):
    """Result of the recovery of an epoch."""

    CLOSED = "closed"
    DAMAGED = "damaged"


@dataclass(slots=True)
class _Requests:
    """The open requests of an epoch as far as it was read, and the latest instant seen."""

    by_id: dict[str, OpenRequest] = field(default_factory=dict)
    latest_at: int = 0
    is_closed: bool = False

    def take(self, seq: int, record: Record) -> None:
        """Follow one record. Raises ValueError for one that cannot stand here."""
        if self.is_closed:
            raise ValueError("a record after CLOSE")
        match record:
            case Admit():
                if record.request_id in self.by_id:
                    raise ValueError("admitted twice")
                self.by_id[record.request_id] = OpenRequest(seq, NOTHING, record)
                self.latest_at = max(self.latest_at, record.admitted_at)
            case Progress():
                request = self.by_id.get(record.request_id)
                if request is None:
                    raise ValueError("PROGRESS of a request that is not open")
                self.by_id[record.request_id] = _advance(request, record.used, record.retries)
            case Final():
                if self.by_id.pop(record.admit.request_id, None) is None:
                    raise ValueError("FINAL of a request that is not open")
                self.latest_at = max(self.latest_at, record.ended_at)
            case Tick():
                self.latest_at = max(self.latest_at, record.at)
            case Close():
                self.is_closed = True


def _advance(request: OpenRequest, used: Quantities, retries: int) -> OpenRequest:
    """Return the request with the later of two running totals: that of the later attempt, of one attempt the one that counts more, or
    `used`. Never a mixture: an engine's last report moves tokens from one class to another, and a maximum class by class would bill them
    in both."""
    if (request.retries, _total(request.used)) > (retries, _total(used)):
        return request
    return OpenRequest(request.seq, used, request.admit, retries)


def _total(used: Quantities) -> int:
    return used.input_tokens + used.output_tokens


def recover_dead(directory: Path, *, alarm: Alarm, disk: Disk = DISK, counts: CountsUsage = count_all) -> dict[int, Recovered]:
    """Recover every epoch of the spool at `directory` that is not closed and that no living process holds. `counts`: which of its requests
    are billed by what they had noted; the others, lines of batches without an answer, used nothing.

    An epoch that cannot be written to (disk full), or of which `counts` cannot find out what counts, is left for the next call, with an
    alarm: nothing of it is lost.
    """
    results: dict[int, Recovered] = {}
    for epoch in list_epochs(directory, disk):
        if epoch.is_closed() or epoch.is_damaged():
            continue
        # The spool's lock makes "the directory is there" and "its lock is held" one step for whoever makes an epoch.
        spool_lock = lock(directory / "lock", disk, wait=True)
        assert spool_lock is not None
        try:
            epoch_lock = lock(epoch.directory / "LOCK", disk, wait=False) if disk.exists(epoch.directory) else None
        finally:
            disk.close(spool_lock)
        if epoch_lock is None:
            continue
        try:
            results[epoch.number] = recover(epoch, alarm=alarm, counts=counts)
        except OSError as error:
            alarm("spool_recovery_failed", {"epoch": epoch.number, "error": str(error)})
        finally:
            disk.close(epoch_lock)
    return results


def recover(epoch: EpochFiles, *, alarm: Alarm, counts: CountsUsage = count_all) -> Recovered:
    """Give each open request of `epoch` its FINAL, then close it. The caller holds the epoch's lock. Raises OSError."""
    if epoch.is_closed():
        return Recovered.CLOSED
    try:
        return _recover(epoch, alarm, counts)
    except OSError:
        epoch.mark_failed()  # what this recovery wrote is in doubt as well
        raise


def _recover(epoch: EpochFiles, alarm: Alarm, counts: CountsUsage) -> Recovered:
    try:
        found = _read_end(epoch)
    except SpoolDamaged as damage:
        alarm("spool_damaged", {"epoch": epoch.number, "error": str(damage)})
        epoch.mark_damaged(damage.where, str(damage))
        return Recovered.DAMAGED
    if found is None:
        _remove_unbegun(epoch)
        return Recovered.CLOSED
    requests, end = found
    is_counted = counts()
    counted = set() if requests.is_closed else {id for id, request in requests.by_id.items() if is_counted(request.admit)}
    _settle_neighbours(epoch, end.start.number)
    if epoch.has_failed():
        _write_again(epoch)
    appender = _Appender(epoch, end, requests.latest_at)
    try:
        if not requests.is_closed:
            slots = _read_slots(epoch)
            owed = [_with_slot(request, slots) for request in sorted(requests.by_id.values(), key=lambda open: open.seq)]
            still_open = deque(request for request, _ in owed)
            for request, first_token_at in owed:
                final = Final(
                    admit=request.admit,
                    outcome=Outcome.GATEWAY_CRASH,
                    used=request.used if request.admit.request_id in counted else NOTHING,
                    source=UsageSource.RECOVERED,
                    ended_at=requests.latest_at,
                    first_token_at=first_token_at,
                )
                appender.append(encode(final), lambda: tuple(still_open))
                still_open.popleft()
            appender.append(encode(Close(at=requests.latest_at)), tuple)
        appender.sync()
        finish(epoch, appender.number, appender.offset, appender.seq)
    finally:
        appender.close()
    return Recovered.CLOSED


SEGMENTS_IN_DOUBT = 4
"""Segments that a power cut may leave unsynced: a commit covers the segment in use and those that were filled since the one
before it, and four hold all that can be owed."""


def _write_again(epoch: EpochFiles) -> None:
    """Have the bytes of all segments in files of their own again, durably. All: what a disk confirmed before its failure was noticed may
    be gone as well, and is still in memory. Written over in place they would not be safe: after a write that failed, ext4 calls blocks
    mapped that it still counts as never written, and they read as zeros after the next mount."""
    for number in reversed(epoch.list_segments()):
        path = epoch.segment_path(number)
        if data := read_segment(path, epoch.disk):
            write_file(path, data, epoch.disk)


def finish(epoch: EpochFiles, segment: int, end_offset: int, next_seq: int) -> None:
    """Give back unused space and mark the epoch closed, after its CLOSE. Every step may be repeated."""
    disk = epoch.disk
    disk.truncate(epoch.segment_path(segment), end_offset)
    for number in epoch.list_segments():
        if number > segment:
            disk.unlink(epoch.segment_path(number))
    disk.unlink(epoch.directory / "progress.map")
    write_file(epoch.directory / "closed", msgspec.json.encode(ClosedFile(next_seq)), disk)


@dataclass(frozen=True, slots=True)
class _End:
    """The end of an epoch's records: in which segment and where, what a torn write left behind, and what follows
    next."""

    start: SegmentStart
    offset: int
    data_end: int
    seq: int
    chain: bytes


def _read_end(epoch: EpochFiles) -> tuple[_Requests, _End] | None:
    """Find the newest segment that counts and read it; None if the epoch never began."""
    torn_starts: list[tuple[int, bytes]] = []  # files that have bytes but no whole header, newest first
    newest: tuple[_Requests, _End] | None = None
    above: SegmentStart | None = None
    doubtless, is_lost = 0, False
    for number in reversed(epoch.list_segments()):
        if above is not None and (number != above.number - 1 or number <= doubtless):
            break  # the one before was shipped, and removed; or is known to be synced
        path = epoch.segment_path(number)
        data = read_segment(path, epoch.disk)
        begun = parse_start(data)
        if newest is not None and begun is None and is_start_lost(data):
            newest, above, is_lost = None, None, True  # begun, and gone with the power: nothing behind it was ever acknowledged
        if not data:
            continue
        if above is not None:
            before = _read_before(epoch, data, above)
            if before is not None:
                newest = before
            if begun is None:
                break
            above = begun[0]
            continue
        if begun is None:
            torn_starts.append((number, data))
            continue
        start, offset = begun
        newest, above = _read_records(epoch, start, offset, data, torn_starts), start
        doubtless = start.number - SEGMENTS_IN_DOUBT
    if newest is None and torn_starts:
        number, data = torn_starts[-1]
        node_id = _node_of(epoch)
        if number != 1 or not encode_start(first_start(node_id, epoch.number)).startswith(data):
            raise SpoolDamaged(str(epoch.segment_path(number)), "the segment's header is wrong")
    if newest is None and is_lost:
        raise SpoolDamaged(str(epoch.directory), "no segment has a header")
    return newest


def _read_before(epoch: EpochFiles, data: bytes, following: SegmentStart) -> tuple[_Requests, _End] | None:
    """The segment before `following`, if it ends too early, as one that a power cut kept from being synced. None if it is
    complete; and if it is damaged, which is found again, and reported, when it is shipped."""
    try:
        begun = parse_start(data)
        read = begun and _read_records(epoch, *begun, data, [])
    except SpoolDamaged:
        return None
    return read if read and read[1].seq < following.first_seq else None


def _settle_neighbours(epoch: EpochFiles, number: int) -> None:
    """Take away what was begun after segment `number` and does not count, and make those before it durable."""
    disk = epoch.disk
    for other in epoch.list_segments():
        path = epoch.segment_path(other)
        if other > number and read_segment(path, disk):
            disk.unlink(path)
            sync_directory(epoch.directory, disk)
        elif number - SEGMENTS_IN_DOUBT < other < number:
            fd = disk.open(path, os.O_RDWR | os.O_CLOEXEC, 0)
            try:
                disk.fdatasync(fd)
            finally:
                disk.close(fd)


def _read_records(
    epoch: EpochFiles, start: SegmentStart, offset: int, data: bytes, torn_starts: Sequence[tuple[int, bytes]]
) -> tuple[_Requests, _End]:
    path = epoch.segment_path(start.number)
    if start.epoch != epoch.number:
        raise SpoolDamaged(str(path), f"the header names epoch {start.epoch}")
    requests = _Requests({request.admit.request_id: request for request in start.open}, latest_at=start.at)
    reader = Reader(start.first_seq, start.chain)
    try:
        for frame in reader.read(data, offset):
            requests.take(frame.seq, decode(frame.payload))
            offset = frame.end
    except ValueError as error:
        raise SpoolDamaged(f"{path} at {offset}", str(error)) from None
    if reader.tail is Tail.DAMAGED:
        raise SpoolDamaged(f"{path} at {offset}", "a wrong record stands before readable ones")
    for number, torn in torn_starts:
        # A header that was being written when the process died, or that a power cut tore before it was synced: nothing in its
        # segment was ever acknowledged.
        probe = Reader(reader.next_seq, reader.chain)
        if list(probe.read(torn)) or probe.tail is Tail.DAMAGED:
            raise SpoolDamaged(str(epoch.segment_path(number)), "the segment's header is wrong")
    return requests, _End(start, offset, len(data), reader.next_seq, reader.chain)


def _node_of(epoch: EpochFiles) -> str:
    """The node that the spool around `epoch` belongs to."""
    node_id = find_node(epoch.directory.parent, epoch.disk)
    if node_id is None:
        raise SpoolDamaged(str(epoch.directory.parent / "node.json"), "the file is missing")
    return node_id


def _remove_unbegun(epoch: EpochFiles) -> None:
    """Take away an epoch that died before its first header was whole: there never was a record in it."""
    disk = epoch.disk
    for name in disk.listdir(epoch.directory):
        disk.unlink(epoch.directory / name)
    with contextlib.suppress(FileNotFoundError):
        disk.rmdir(epoch.directory)
    sync_directory(epoch.directory.parent, disk)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Content of a slot of progress.map."""

    used: Quantities
    first_token_at: int | None
    retries: int


def _read_slots(epoch: EpochFiles) -> dict[int, _Slot]:
    """Return progress.map by ADMIT seq; nothing of one in another layout, so that its requests have what their PROGRESS records say."""
    words = array.array("Q")
    try:
        content = epoch.disk.read(epoch.directory / "progress.map")
    except FileNotFoundError:
        return {}
    if len(content) % (8 * SLOT_WORDS) != TRAILER_BYTES:
        return {}
    words.frombytes(content[:-TRAILER_BYTES])
    slots: dict[int, _Slot] = {}
    for slot in range(len(words) // SLOT_WORDS):
        seq = words[slot * SLOT_WORDS]
        if seq:
            at = slot * SLOT_WORDS
            slots[seq] = _Slot(read_quantities(words, slot), words[at + FIRST_TOKEN_WORD] or None, words[at + RETRIES_WORD])
    return slots


def _with_slot(request: OpenRequest, slots: dict[int, _Slot]) -> tuple[OpenRequest, int | None]:
    slot = slots.get(request.seq)
    if slot is None:
        return request, None
    return _advance(request, slot.used, slot.retries), slot.first_token_at


class _Appender:
    """Writes records behind the last whole one of a dead epoch, in further segments where one is full."""

    def __init__(self, epoch: EpochFiles, end: "_End", latest_at: int) -> None:
        self._epoch = epoch
        self._node_id = end.start.node_id
        self._latest_at = latest_at
        self._disk = disk = epoch.disk
        self.number = end.start.number
        self.offset = end.offset
        self.seq = end.seq
        self._chain = end.chain
        self._fd = disk.open(epoch.segment_path(self.number), os.O_RDWR | os.O_CLOEXEC, 0)
        self._size = disk.size(self._fd)
        if end.data_end > end.offset:
            write_all(self._fd, bytes(end.data_end - end.offset), end.offset, disk)
            disk.fdatasync(self._fd)

    def append(self, payload: bytes, still_open: Callable[[], tuple[OpenRequest, ...]]) -> None:
        """Write one record. `still_open`: the requests without FINAL before it, asked for if a segment begins here."""
        if self.offset + HEAD_BYTES + len(payload) > self._size:
            self._begin_next(still_open())
        self._chain, framed = extend(self._chain, self.seq, payload)
        write_all(self._fd, framed, self.offset, self._disk)
        self.seq += 1
        self.offset += len(framed)

    def _begin_next(self, still_open: tuple[OpenRequest, ...]) -> None:
        self.sync()
        header = encode_start(
            SegmentStart(
                format=FORMAT,
                node_id=self._node_id,
                epoch=self._epoch.number,
                number=self.number + 1,
                first_seq=self.seq,
                chain=self._chain,
                at=self._latest_at,
                open=still_open,
            )
        )
        path = self._epoch.segment_path(self.number + 1)
        if self._disk.exists(path):  # prepared by the dead process, or by a recovery that was interrupted
            fd = self._disk.open(path, os.O_RDWR | os.O_CLOEXEC, 0)
        else:
            fd = create_segment(path, max(self._size, _SEGMENT_BYTES_MIN, 2 * len(header)), self._disk)
        self._disk.close(self._fd)
        self._fd, self._size = fd, self._disk.size(fd)
        self.number += 1
        write_all(fd, header, 0, self._disk)
        self.offset = len(header)

    def sync(self) -> None:
        """Make what was written durable."""
        self._disk.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        self._disk.close(self._fd)
