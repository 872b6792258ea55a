"""The spool: where a gateway writes usage, so that neither kill -9 nor a power cut loses what is owed.

Theory of operation. Records are appended by the event loop's thread alone, so seq and chain need no lock. ADMIT is
written to the page cache before `admit` returns (it survives the death of the process). FINAL, PROGRESS and TICK are
collected and written by group commit: while no commit is in flight, a FINAL starts one; everything that arrives
meanwhile goes into the next. A commit is one pwrite by the loop and one fdatasync by the kernel in the background
(`syncing`), or by the single writer thread where that cannot be had, and ends in one call back into the loop, which
wakes all FINALs that it covered. The loop itself never waits for the disk.

Space. Segments are preallocated, the next one ahead of need. For each open request OWED_BYTES of preallocated space
are kept back, enough for its FINAL and for its place in the headers of the segments that those FINALs begin. A
request that would eat into that is refused, so a full disk stops new work and loses none that was admitted; making a
segment is tried again each second.

Failure. An error of pwrite or fdatasync says that the kernel may have dropped dirty pages; trying again would report
success for data that is gone. So nothing is tried again: `failed` is set, every waiting FINAL raises, no request is
admitted, and the process is expected to exit. The next one recovers what is on disk, and cuts a torn tail (`recovery`).

progress.map is memory shared with a file: a slot per open request, stored to by the relay for each chunk at the price
of a memory write, and there for recovery after kill -9. A slot's counts are cleared before the seq that claims it is
set, and the seq is cleared only after the FINAL was written, so that recovery can never read one request's counts as
another's.
"""

import asyncio
import itertools
import mmap
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path
from typing import Final, Self

from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import OVERLOADED, SPOOL_UNAVAILABLE, Fault
from tollway.domain.ids import NODE, RANDOM_BITS, new_id
from tollway.domain.usage import BUDGETS_MAX, Close, Progress, Tick, decode_admit, encode
from tollway.link.disk import DISK, Disk
from tollway.link.epochs import (
    FORMAT,
    EpochFiles,
    OpenRequest,
    Position,
    SegmentStart,
    create_segment,
    encode_start,
    find_node,
    first_start,
    list_epochs,
    lock,
    make_directory,
    sync_directory,
    write_all,
    write_node,
)
from tollway.link.recovery import Alarm, CountsUsage, count_all, finish, recover, recover_dead
from tollway.native import extend
from tollway.wire.progress_slots import RETRIES_WORD, SLOT_WORDS, TRAILER_BYTES, read_quantities
from tollway.wire.segments import HEAD_BYTES

ADMIT_BYTES_USUAL: Final = 640
"""Payload of an ADMIT that names no budgets: 150 bytes of names and at most 490 of ids, model name, endpoint and
numbers."""

ADMIT_BYTES_MAX: Final = ADMIT_BYTES_USUAL + 64 * BUDGETS_MAX
"""Payload of an ADMIT that names as many budgets as it may. Longer is a programming error."""

OWED_BYTES: Final = 4096
"""Kept back per open request. Its FINAL takes at most 1,120: an ADMIT, and outcome, counts, ids and instants. The
rest is its share of the headers of the segments that the FINALs of all open requests begin: with segment_bytes >=
1024 x slots_max a header (<= 768 a request) fits, and four segments hold all."""

OWED_PER_LONG_BYTE: Final = 5
"""Kept back for each byte by which the ADMIT of an open request exceeds ADMIT_BYTES_USUAL: it stands once in the FINAL,
in at most three headers because `_has_space` leaves half of each segment to FINALs, and once in the end of a segment
that is left unused because the FINAL did not fit."""

SLACK_BYTES: Final = 2048
"""Counted off each prepared segment: the part of its header that does not depend on open requests, and the end left
unused because the next record did not fit. And kept back at the end for TICK and CLOSE."""

BUFFER_BYTES_MAX: Final = 256 * 1024
"""Checkpoints waiting for a commit are written to the page cache when they reach this, so that a quiet disk bounds
memory."""

CLOSE_SECONDS_MAX = 10.0
"""A disk that takes longer to sync what one process can have in flight is not going to."""

CLOSE_POLL_SECONDS = 0.001
"""Interval at which `close` checks whether the last commit is done."""

RETRY_SECONDS = 1.0
"""After a segment could not be made because the disk was full."""

_SLOT_BYTES: Final = 8 * SLOT_WORDS
_ZERO_SLOT: Final = bytes(_SLOT_BYTES)
_extend: Final = extend


@dataclass(frozen=True, slots=True)
class SpoolOptions:
    """Sizes and rhythms. `slots_max`: most requests open at once (128 bytes of shared memory each; segment_bytes must
    be at least 1,024 times it). `gather_seconds`: how long a commit waits for company; 0 commits at once.
    `tick_seconds`: a sign of life in the record, which also commits what has no FINAL behind it."""

    segment_bytes: int = 64 << 20
    slots_max: int = 65_536
    gather_seconds: float = 0.0
    tick_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.slots_max < 1 or self.segment_bytes < max(1024 * self.slots_max, 16_384):
            raise ValueError("segment_bytes must be at least 16,384 and 1,024 times slots_max")


def needed_bytes(options: SpoolOptions) -> int:
    """Return the space that a new epoch needs before its first request: a segment, the progress map, and a little for small files."""
    return options.segment_bytes + options.slots_max * _SLOT_BYTES + (1 << 20)


@dataclass(slots=True)
class SpoolMetrics:
    """Plain numbers, read at scrape. `commit_seconds` counts from the start of an fdatasync until the loop receives its
    end."""

    commits: int = 0
    records: int = 0
    bytes_written: int = 0
    commit_seconds: float = 0.0
    commit_seconds_max: float = 0.0
    segments: int = 0
    refused: int = 0
    checkpoints_dropped: int = 0


Done = Callable[[Fault | None], None]
"""Told once: None, or why a FINAL cannot become durable. Must not raise."""


@dataclass(frozen=True, slots=True)
class _Commit:
    """One commit for the writer thread: files in the order in which they were written, the last one staying in
    use."""

    fds: tuple[int, ...]
    waiting: list[Done]
    position: Position


@dataclass(frozen=True, slots=True)
class _Segment:
    number: int
    fd: int


def _now_us() -> int:
    return time.time_ns() // 1000


class Spool:
    """The spool of one run of a gateway; implements `gateway.ports.UsageSink`. Made by `open`, used from one event loop
    only. `counts`: as for `recover_dead`, for whoever recovers an epoch in its directory."""

    def __init__(
        self,
        epoch: EpochFiles,
        node_id: str,
        fds: tuple[int, int],
        map_memory: mmap.mmap,
        *,
        clock: Callable[[], int],
        options: SpoolOptions,
        alarm: Alarm,
        counts: CountsUsage = count_all,
    ) -> None:
        start = first_start(node_id, epoch.number)
        self.epoch = epoch
        self.node_id = node_id
        self.counts = counts
        self.failed = asyncio.Event()
        self.metrics = SpoolMetrics(segments=1)
        self.progress = memoryview(map_memory).cast("B").cast("Q")
        self.committed = Position(1, len(encode_start(start)), 1)
        self._lock_fd, fd = fds
        self._map_memory = map_memory
        self._disk = disk = epoch.disk
        self._clock, self._options, self._alarm = clock, options, alarm
        self._loop = asyncio.get_running_loop()
        self._segment = _Segment(1, fd)
        self._chain, self._next_seq = start.chain, 1
        self._written = self._end = self.committed.offset
        self._buffer: list[bytes] = []
        self._retired: list[int] = []
        self._ready: deque[_Segment] = deque()
        self._preparing = False
        self._space = options.segment_bytes - self._end - SLACK_BYTES
        self._waiting: list[Done] = []
        self._committing = False
        self._free = list(range(options.slots_max - 1, -1, -1))
        self._freed: list[int] = []
        self._admits: list[bytes | None] = [None] * options.slots_max
        self._open = 0
        self._long_bytes = 0  # by which the ADMITs of open requests exceed ADMIT_BYTES_USUAL, in total
        self._is_full = False
        self._is_closing = False
        self._has_failed = False
        self._is_shut = False  # closing or failed: one look in the hot path
        self._writer = disk.start_writer()
        self._kernel = disk.open_kernel_sync(self._loop)
        self._prepare()
        self._ticker = self._loop.call_later(options.tick_seconds, self._tick)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        alarm: Alarm,
        node_id: str | None = None,
        clock: Callable[[], int] = _now_us,
        options: SpoolOptions | None = None,
        disk: Disk = DISK,
        counts: CountsUsage = count_all,
    ) -> Self:
        """Recover what dead processes left at `directory`, then begin a new epoch there. Call it in the event loop's
        thread, before serving: it waits for the disk.

        `node_id`: who this node is; None takes the one found there, or makes one. `clock` gives UTC microseconds.
        `alarm` is called with what a person must look at. `counts`: as for `recover_dead`. Raises OSError if the directory cannot be
        written (read-only, full), ValueError if it belongs to another node."""
        options = options or SpoolOptions()
        make_directory(directory, disk)
        spool_lock = lock(directory / "lock", disk, wait=True)
        assert spool_lock is not None
        try:
            found = find_node(directory, disk)
            if found is None:
                found = node_id or new_id(NODE, clock(), secrets.randbits(RANDOM_BITS))
                write_node(directory, found, disk)
            if node_id is not None and node_id != found:
                raise ValueError(f"the spool at {directory} belongs to {found}, not to {node_id}")
            epoch, epoch_lock = _make_epoch(directory, clock(), disk)
        finally:
            disk.close(spool_lock)
        try:
            recover_dead(directory, alarm=alarm, disk=disk, counts=counts)
            fd = create_segment(epoch.segment_path(1), options.segment_bytes, disk)
            try:
                map_memory = _create_map(epoch.directory / "progress.map", options.slots_max, disk)
                write_all(fd, encode_start(first_start(found, epoch.number)), 0, disk)
                disk.fdatasync(fd)
                return cls(epoch, found, (epoch_lock, fd), map_memory, clock=clock, options=options, alarm=alarm, counts=counts)
            except BaseException:
                disk.close(fd)
                raise
        except BaseException:
            epoch.mark_failed()
            disk.close(epoch_lock)
            raise

    # ---- What the gateway asks for (gateway.ports.UsageSink) ---------------------------------------------------------

    @property
    def open_requests(self) -> int:
        """Requests admitted whose FINAL has not been handed in."""
        return self._open

    def is_writable(self) -> bool:
        """Return whether a request could be admitted now."""
        return not self._is_shut and self._has_space()

    def admit(self, admit: bytes) -> int:
        """Write ADMIT to the page cache; returns the request's slot of `progress`, zeroed. See the port for the
        contract."""
        if len(admit) > ADMIT_BYTES_MAX:
            raise ValueError(f"an ADMIT of {len(admit)} bytes; ids and model name are bounded, so this cannot be one")
        long_bytes = max(len(admit) - ADMIT_BYTES_USUAL, 0)
        if self._is_shut or not self._has_space(long_bytes):
            self.metrics.refused += 1
            raise Fault(SPOOL_UNAVAILABLE, detail="the spool is closing, failing or out of space")
        if not self._free:
            self.metrics.refused += 1
            raise Fault(OVERLOADED, detail="every slot of the spool is taken")
        seq = self._append(admit)
        self._flush()
        if self._is_shut:
            raise Fault(SPOOL_UNAVAILABLE, detail="ADMIT could not be written")
        slot = self._free.pop()
        at = slot * _SLOT_BYTES
        self._map_memory[at : at + _SLOT_BYTES] = _ZERO_SLOT
        self.progress[slot * SLOT_WORDS] = seq
        self._admits[slot] = admit
        self._open = opened = self._open + 1
        self._long_bytes += long_bytes
        if self._space < self._options.segment_bytes + opened * OWED_BYTES + self._long_bytes * OWED_PER_LONG_BYTE:
            self._prepare()
        return slot

    def checkpoint(self, request_id: str, used: Quantities, retries: int) -> None:
        """Write PROGRESS with the next commit. Left out where space is short: it is a comfort, FINALs are a debt."""
        if self._has_failed or not self._has_space():
            self.metrics.checkpoints_dropped += 1
            return
        self._append(encode(Progress(request_id=request_id, used=used, retries=retries)))
        if self._end - self._written > BUFFER_BYTES_MAX:
            self._flush()

    def final(self, slot: int, final: bytes, done: Done) -> None:
        """Write FINAL; `done` is called when it is durable. See the port for the contract."""
        if self._has_failed:
            done(_unavailable())
            return
        self._waiting.append(done)
        self._append(final)
        admit = self._admits[slot]
        if admit is not None and len(admit) > ADMIT_BYTES_USUAL:
            self._long_bytes -= len(admit) - ADMIT_BYTES_USUAL
        self._admits[slot] = None
        self._freed.append(slot)
        self._open -= 1
        if not self._committing:
            self._start_commit()

    # ---- Appending ---------------------------------------------------------------------------------------------------

    def _has_space(self, long_bytes: int = 0) -> bool:
        """Return whether one more request can be taken on, whose ADMIT exceeds ADMIT_BYTES_USUAL by so many bytes, and every
        FINAL owed still fits into space that is already ours."""
        long_bytes += self._long_bytes
        if long_bytes and (self._open + 1) * 1024 + 2 * long_bytes > self._options.segment_bytes:
            return False
        return self._space >= (self._open + 1) * OWED_BYTES + long_bytes * OWED_PER_LONG_BYTE + SLACK_BYTES

    def _append(self, payload: bytes) -> int:
        """Frame one record into the buffer; returns its seq."""
        size = HEAD_BYTES + len(payload)
        if self._end + size > self._options.segment_bytes:
            self._begin_segment()
        seq = self._next_seq
        self._chain, framed = _extend(self._chain, seq, payload)
        self._buffer.append(framed)
        self._next_seq = seq + 1
        self._end += size
        self._space -= size
        return seq

    def _flush(self) -> None:
        """Hand the buffer to the page cache. After it the slots of the FINALs in it are free."""
        buffer = self._buffer
        if not buffer or self._has_failed:
            return
        data = b"".join(buffer) if len(buffer) > 1 else buffer[0]
        try:
            written = self._disk.pwrite(self._segment.fd, data, self._written)
            if written < len(data):
                write_all(self._segment.fd, data[written:], self._written + written, self._disk)
        except OSError as error:
            self._fail(error)
            return
        self._written += len(data)
        metrics = self.metrics
        metrics.records += len(buffer)
        metrics.bytes_written += len(data)
        self._buffer = []
        if self._freed:
            for slot in self._freed:
                self.progress[slot * SLOT_WORDS] = 0
            self._free += self._freed
            self._freed = []

    def _begin_segment(self) -> None:
        """Go on in the next prepared segment. The one left behind is synced by the next commit, before the new one."""
        self._flush()
        if self._has_failed:
            return
        if not self._ready:
            self._fail(OSError(ENOSPC, "no prepared segment although space is kept back for what is owed"))
            return
        start = SegmentStart(
            format=FORMAT,
            node_id=self.node_id,
            epoch=self.epoch.number,
            number=self._segment.number + 1,
            first_seq=self._next_seq,
            chain=self._chain,
            at=self._clock(),
            open=self._list_open(),
        )
        self._space -= self._options.segment_bytes - self._end
        self._retired.append(self._segment.fd)
        self._segment = self._ready.popleft()
        self.metrics.segments += 1
        header = encode_start(start)
        try:
            write_all(self._segment.fd, header, 0, self._disk)
        except OSError as error:
            self._fail(error)
            return
        self._written = self._end = len(header)
        self._space -= len(header)
        self._prepare()

    def _list_open(self) -> tuple[OpenRequest, ...]:
        return tuple(
            OpenRequest(
                self.progress[slot * SLOT_WORDS],
                read_quantities(self.progress, slot),
                decode_admit(admit),
                self.progress[slot * SLOT_WORDS + RETRIES_WORD],
            )
            for slot, admit in enumerate(self._admits)
            if admit is not None
        )

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(self._options.tick_seconds, self._tick)
        if self._has_failed or self._is_closing or not self._has_space():
            return
        try:
            self._append(encode(Tick(at=self._clock())))
            if not self._committing:
                self._start_commit()
        except Exception as error:
            self._fail(error)

    # ---- Committing --------------------------------------------------------------------------------------------------

    def _start_commit(self) -> None:
        self._committing = True
        if self._options.gather_seconds:
            self._loop.call_later(self._options.gather_seconds, self._commit)
        else:
            self._commit()

    def _commit(self) -> None:
        self._flush()
        if self._has_failed:
            return
        segment = self._segment
        commit = _Commit((*self._retired, segment.fd), self._waiting, Position(segment.number, self._written, self._next_seq))
        self._retired = []
        self._waiting = []
        began = time.perf_counter()
        if self._kernel is None or len(commit.fds) > 1 or not self._kernel.start(segment.fd, partial(self._synced, commit, began)):
            self._writer.put(lambda: self._sync(commit))

    def _synced(self, commit: _Commit, began: float, error: Exception | None) -> None:
        self._finish_commit(commit, time.perf_counter() - began, error)

    def _sync(self, commit: _Commit) -> None:
        """In the writer thread: make a commit durable, and close the segments that it finished."""
        error: Exception | None = None
        began = time.perf_counter()
        try:
            for fd in commit.fds:
                self._disk.fdatasync(fd)
            for fd in commit.fds[:-1]:
                self._disk.close(fd)
        except Exception as caught:
            error = caught
        self._call_loop(self._finish_commit, commit, time.perf_counter() - began, error)

    def _finish_commit(self, commit: _Commit, seconds: float, error: Exception | None) -> None:
        if error is not None or self._has_failed:
            self._waiting += commit.waiting
            self._fail(error or OSError("the spool has failed"))
            return
        metrics = self.metrics
        metrics.commits += 1
        metrics.commit_seconds += seconds
        metrics.commit_seconds_max = max(metrics.commit_seconds_max, seconds)
        self.committed = commit.position
        try:
            if self._waiting:
                self._start_commit()  # first: the disk works while clients are answered
            else:
                self._committing = False
        except Exception as caught:  # no later commit would begin: better no spool than one that keeps all waiting
            self._fail(caught)
        for done in commit.waiting:
            done(None)

    def _fail(self, error: Exception) -> None:
        """The disk cannot be trusted any more: fail every wait, do nothing further."""
        if not self._has_failed:
            self._has_failed = self._is_shut = True
            self.failed.set()
            self.epoch.mark_failed()
            self._alarm("spool_failed", {"epoch": self.epoch.number, "error": str(error)})
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(_unavailable())

    # ---- The writer thread -------------------------------------------------------------------------------------------

    def _call_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            pass  # the loop is closed: no callback is left to call, and what was written stays written

    def _prepare(self) -> None:
        """Have the next segment made, unless one is being made or there is enough."""
        owed = self._open * OWED_BYTES + self._long_bytes * OWED_PER_LONG_BYTE
        if self._preparing or self._is_closing or self._space >= self._options.segment_bytes + owed:
            return
        self._preparing = True
        number = (self._ready[-1].number if self._ready else self._segment.number) + 1
        self._writer.put(lambda: self._make_segment(number))

    def _make_segment(self, number: int) -> None:
        """In the writer thread."""
        try:
            fd = create_segment(self.epoch.segment_path(number), self._options.segment_bytes, self._disk)
        except Exception as error:
            self._call_loop(self._take_segment, number, -1, error)
        else:
            self._call_loop(self._take_segment, number, fd, None)

    def _take_segment(self, number: int, fd: int, error: Exception | None) -> None:
        self._preparing = False
        if error is None:
            self._is_full = False
            self._ready.append(_Segment(number, fd))
            self._space += self._options.segment_bytes - SLACK_BYTES
            self._prepare()
        elif isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            if not self._is_full:
                self._is_full = True
                self._alarm("spool_disk_full", {"epoch": self.epoch.number})
            self._loop.call_later(RETRY_SECONDS, self._prepare)
        else:
            self._fail(error)

    # ---- The end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the epoch: write everything, then CLOSE. Requests still open get the FINAL that recovery would give them.

        Call it after draining; nothing may be admitted or finished from here on. Returns when all is durable. If the
        spool has failed, or the disk does not answer within CLOSE_SECONDS_MAX, it only closes its files: the next start
        recovers.
        """
        self._is_closing = self._is_shut = True
        self._ticker.cancel()
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                while self._committing and not self._has_failed:
                    await asyncio.sleep(CLOSE_POLL_SECONDS)
                if self._kernel is not None:
                    self._kernel.close()
                    self._kernel = None
                if self._open == 0 and not self._has_failed:
                    self._append(encode(Close(at=self._clock())))
                self._committing = True
                self._commit()
                await self._settle()
        except TimeoutError as error:
            self._fail(error)
        self._writer.end()
        try:
            if not self._has_failed:
                await asyncio.to_thread(self._end_epoch)
        finally:
            self._disk.close(self._lock_fd)

    def _end_epoch(self) -> None:
        self._writer.join()
        self.progress.release()
        self._map_memory.close()
        for segment in (self._segment, *self._ready):
            self._disk.close(segment.fd)
        if self._open:
            recover(self.epoch, alarm=self._alarm, counts=self.counts)
        else:
            finish(self.epoch, self._segment.number, self._written, self._next_seq)

    async def _settle(self) -> None:
        """Wait until the writer thread has done all that was asked of it so far, and the loop has received its results."""
        done = asyncio.Event()
        self._writer.put(lambda: self._call_loop(done.set))
        await done.wait()


def _unavailable() -> Fault:
    return Fault(SPOOL_UNAVAILABLE, detail="the spool failed before FINAL was durable")


def _make_epoch(directory: Path, now_us: int, disk: Disk) -> tuple[EpochFiles, int]:
    """A directory for a new epoch and the descriptor that holds its lock. The caller holds the spool's lock.

    Its number is this clock's instant, also below that of the epoch before: a run that began while the clock was far ahead would pass its
    error on to every later run, and control refuses epochs from the future.
    """
    taken = {epoch.number for epoch in list_epochs(directory, disk)}
    number = next(free for free in itertools.count(now_us) if free not in taken)
    epoch = EpochFiles(directory / f"epoch-{number}", number, disk)
    disk.mkdir(epoch.directory, 0o700)
    epoch_lock = lock(epoch.directory / "LOCK", disk, wait=False)
    assert epoch_lock is not None
    sync_directory(directory, disk)
    return epoch, epoch_lock


def _create_map(path: Path, slots: int, disk: Disk) -> mmap.mmap:
    """The progress table: a file of zeros with its blocks allocated (a store into a hole of a full disk would kill
    the process)."""
    size = slots * _SLOT_BYTES + TRAILER_BYTES
    fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        disk.fallocate(fd, 0, size)
        return disk.map(fd, size)
    finally:
        disk.close(fd)
