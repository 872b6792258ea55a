"""Inspection: what can be said of an epoch's records without touching them, damaged or not; also while it is being written.

Reading is strict up to the first place that is wrong: checksums, sequence, chain, and each segment's header against the end of the one
before. What follows such a place is salvaged: frames whose own checksum is right are read, wherever they stand, and marked unverified,
because nothing says any more that none is missing before them. A torn tail of an epoch that is not closed is what a crash leaves, and
no damage.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from tollway.domain.usage import Admit, Close, Final, Record, decode
from tollway.link.epochs import ClosedFile, EpochFiles, SegmentStart, Shipped, SpoolDamaged, parse_start, read_segment
from tollway.wire.segments import HEAD_BYTES, PAYLOAD_BYTES_MAX, Reader, Tail, parse_head

_PAYLOAD_BEGINS = b'{"record":"'
"""Every payload does (`domain.usage.encode`), so a frame after damage is found without trying every byte."""


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record and where its frame stands. `is_verified`: everything before it in the epoch is there and right."""

    segment: int
    offset: int
    seq: int
    is_verified: bool
    record: Record


@dataclass(frozen=True, slots=True)
class Problem:
    """A place that no crash explains: from `offset` of a segment on; what was expected there, and where reading could go on."""

    segment: int
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.segment:04d}.seg at {self.offset}: {self.what}"


@dataclass(slots=True)
class Inspection:
    """Contents of an epoch. `kinds`: verified records by kind. `open`: requests admitted without an end, in order, of all records that
    could be read. `next_seq`: of the record after the last verified one. `torn_bytes`: of a tail that a crash left."""

    kinds: Counter[str] = field(default_factory=Counter)
    unverified: int = 0
    segments: int = 0
    open: dict[str, Admit] = field(default_factory=dict)
    next_seq: int = 1
    torn_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Verified records that are here."""
        return self.kinds.total()


def inspect(epoch: EpochFiles) -> Inspection:
    """Read an epoch to its end. Raises OSError if the disk cannot be read."""
    found = Inspection()
    for _ in read_records(epoch, found):
        pass
    return found


def find_shipped(epoch: EpochFiles) -> int:
    """Return how many records control has acknowledged, as far as was noted here."""
    try:
        return msgspec.json.decode((epoch.directory / "shipped").read_bytes(), type=Shipped).next_seq - 1
    except (OSError, msgspec.DecodeError):
        return 0


def read_records(epoch: EpochFiles, found: Inspection) -> Iterator[FoundRecord]:
    """Every record that can be read, in the order of the files, noting in `found` what is met on the way."""
    numbers = epoch.list_segments()
    while numbers and not read_segment(epoch.segment_path(numbers[-1]), epoch.disk):
        numbers.pop()  # prepared ahead of need
    newest = numbers[-1] if numbers else 0
    reader: Reader | None = None
    last: Record | None = None
    size = 0
    for number in numbers:
        data = read_segment(epoch.segment_path(number), epoch.disk)
        size = len(data)
        begun, flaw = _parse_start(data)
        if begun is None or begun[0].epoch != epoch.number or begun[0].number != number:
            if begun is None and number == newest and not epoch.is_closed() and not any(_salvage(data, 0)):
                found.torn_bytes += len(data)  # a header that was being written
                continue
            found.problems.append(Problem(number, 0, flaw or "the segment's header is wrong"))
            reader = None
            yield from _take_unverified(found, number, data, 0)
            continue
        start, offset = begun
        if reader is None and not found.problems:
            found.open = {request.admit.request_id: request.admit for request in start.open}
        elif reader is not None and (reader.next_seq, reader.chain) != (start.first_seq, start.chain):
            gap = (
                f"records {reader.next_seq} to {start.first_seq - 1} are missing" if start.first_seq > reader.next_seq else "another chain"
            )
            found.problems.append(Problem(number, 0, f"{gap}: the segment begins with record {start.first_seq}"))
        found.segments += 1
        reader = Reader(start.first_seq, start.chain)
        is_verified = not found.problems
        for frame in reader.read(data, offset):
            record = _decode(frame.payload)
            if record is None:
                found.problems.append(Problem(number, offset, f"record {frame.seq} is none that this version knows"))
                is_verified = False
                offset = frame.end
                continue
            last = record
            _take(found, record, is_verified=is_verified)
            yield FoundRecord(number, offset, frame.seq, is_verified, record)
            offset = frame.end
        if is_verified:
            found.next_seq = reader.next_seq
        rest = len(data) - offset
        if reader.tail is Tail.TORN and number == newest and not epoch.is_closed():
            found.torn_bytes += rest
        elif reader.tail is not Tail.CLEAN:
            salvaged = next(_salvage(data, offset + 1), None)
            goes_on = "nothing behind it can be read" if salvaged is None else f"record {salvaged[1]} at {salvaged[0]} can be read again"
            found.problems.append(Problem(number, offset, f"record {reader.next_seq} is wrong; {goes_on}"))
            reader = None
            yield from _take_unverified(found, number, data, offset + 1)
    _check_end(epoch, found, newest, size, last)


def _check_end(epoch: EpochFiles, found: Inspection, newest: int, offset: int, last: Record | None) -> None:
    """A closed epoch ends in CLOSE, with the record that was noted."""
    if found.problems or not epoch.is_closed():
        return
    try:
        next_seq = msgspec.json.decode((epoch.directory / "closed").read_bytes(), type=ClosedFile).next_seq
    except (OSError, msgspec.DecodeError):
        return  # the note says that it is closed, whatever is in it
    if next_seq != found.next_seq:
        found.problems.append(Problem(newest, offset, f"the epoch was closed before record {next_seq}; record {found.next_seq} is missing"))
    elif last is not None and not isinstance(last, Close):
        found.problems.append(Problem(newest, offset, "the epoch was closed, and its last record is not CLOSE"))


def _parse_start(data: bytes) -> tuple[tuple[SegmentStart, int] | None, str]:
    """A segment's header and where records begin, or why not."""
    try:
        return parse_start(data), ""
    except (SpoolDamaged, ValueError) as error:
        return None, str(error)


def _decode(payload: bytes) -> Record | None:
    try:
        return decode(payload)
    except ValueError:
        return None


def _take(found: Inspection, record: Record, *, is_verified: bool) -> None:
    if is_verified:
        found.kinds[type(record).__name__.lower()] += 1
    else:
        found.unverified += 1
    if isinstance(record, Admit):
        found.open[record.request_id] = record
    elif isinstance(record, Final):
        found.open.pop(record.admit.request_id, None)


def _take_unverified(found: Inspection, number: int, data: bytes, offset: int) -> Iterator[FoundRecord]:
    for at, seq, record in _salvage(data, offset):
        _take(found, record, is_verified=False)
        yield FoundRecord(number, at, seq, False, record)


def _salvage(data: bytes, offset: int) -> Iterator[tuple[int, int, Record]]:
    """Frames from `offset` on that are right in themselves: where each stands, its seq, its record."""
    while (payload_at := data.find(_PAYLOAD_BEGINS, offset)) >= 0:
        offset, at = payload_at + 1, payload_at - HEAD_BYTES
        head = parse_head(data, at) if at >= 0 else None
        if head is None or not 0 < head[0] <= PAYLOAD_BYTES_MAX:
            continue
        end = payload_at + head[0]
        crc = int.from_bytes(data[at + 4 : at + 8], "little")
        if end > len(data) or zlib.crc32(data[payload_at:end], zlib.crc32(data[at + 8 : payload_at])) != crc:
            continue
        record = _decode(data[payload_at:end])
        if record is not None:
            yield at, head[1], record
            offset = end
