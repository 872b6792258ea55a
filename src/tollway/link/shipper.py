"""The shipper: hands the spool's records to control, at least once, until control says that it has them.

Closed epochs go first, oldest first, then the committed tail of the current one. Control's watermark is the only truth
about what has arrived: a batch that control has already is skipped there, a gap is answered with the seq to go on from,
and the file `shipped` is a note for people and for the housekeeping below. Each process asks once for every epoch that
is still here, so that a control that was restored from a backup receives it again. Bytes travel as they lie on disk;
control checks checksums and chain. If it refuses them (400), something between this disk and that program is broken:
that epoch stops, with an alarm, and nothing is skipped. If it refuses an epoch because of the instant at which it began (a clock was
wrong), that epoch alone waits, with an alarm, and is offered again every REFUSED_SECONDS until a clock or an operator has changed that.

Each turn also looks after the directory: epochs whose process died are recovered, and what control has is removed
when it is old or when space is short.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec

from tollway.link.authorities import trusted_authorities
from tollway.link.epochs import (
    ClosedFile,
    EpochFiles,
    Position,
    Shipped,
    SpoolDamaged,
    find_position,
    list_epochs,
    lock,
    read_frames,
    read_start,
    write_file,
)
from tollway.link.recovery import Alarm, recover_dead
from tollway.link.spool import Spool

BATCH_BYTES = 4 << 20
"""Some 3,600 requests: long enough to make control's transaction worth it, short enough to repeat. As much as control takes at once."""

PIECE_BYTES = 256 * 1024
"""Bytes of a batch that are sent at a time: encrypting all of it in one go would hold up the loop for milliseconds."""

PAUSE_SECONDS = 0.25
"""Pause before the next look at the committed tail if there was less than a batch; half of the promised 500 ms."""

CARE_SECONDS = 5.0
"""Interval at which the directory is checked for dead epochs and for space."""

FIRST_CONTACT_SECONDS = 30.0
"""Time after a gateway's start in which control may still be starting too: its absence is no alarm."""

BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.1, 5.0
"""Pauses before the next attempt while control is away."""

EPOCH_REFUSED = "epoch_refused"
"""Code of control's answer for an epoch that cannot have begun when it says (`tollway.control.metering.record_checks`)."""

REFUSED_SECONDS = 60.0
"""Pause before an epoch that control refused is offered again: what ends a refusal, a clock or an operator, takes minutes."""

REQUEST_SECONDS_MAX = 15.0
"""For one batch: a transaction of control takes a tenth of a second, waiting for its turn at the database perhaps
seconds."""


@dataclass(frozen=True, slots=True)
class ShipperOptions:
    """`keep_days`: how long what control has stays here as well. `free_bytes_min`: below this much free space it goes
    at once."""

    keep_days: float = 7.0
    free_bytes_min: int = 1 << 30


@dataclass(slots=True)
class ShipperMetrics:
    """Plain numbers, read at scrape."""

    batches: int = 0
    bytes_shipped: int = 0
    attempts_failed: int = 0
    epochs_stopped: int = 0
    epochs_refused: int = 0
    epochs_unshipped: int = 0


class _NextSeq(msgspec.Struct, frozen=True):
    next_seq: int


def _now_us() -> int:
    return time.time_ns() // 1000


class _ControlAway(Exception):
    """No usable answer; try again later."""


class _EpochRefused(Exception):
    """Control takes no record of this epoch; the others are shipped."""


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


@dataclass(slots=True)
class _Cursor:
    """Progress of an epoch's shipping. `end_seq`: the seq after its CLOSE, None while there is none. `refused_until`: the loop's time
    before which a refused epoch is not offered again."""

    epoch: EpochFiles
    node_id: str
    position: Position
    end_seq: int | None = None
    is_stopped: bool = False
    refused_until: float | None = None
    noted_seq: int = 0

    def is_done(self) -> bool:
        """Return whether control has all of the epoch, and no more will come."""
        return self.end_seq is not None and self.position.seq >= self.end_seq


class Shipper:
    """Ships the spool of one process. Use: `run()` as a task; to end, cancel it, close the spool, then `await
    finish(...)`. `run` may be run again after it raised."""

    def __init__(
        self,
        spool: Spool,
        directory: Path,
        *,
        control_link_url: str,
        node_key: str,
        alarm: Alarm,
        options: ShipperOptions | None = None,
        clock: Callable[[], int] = _now_us,
        transport: httpx2.AsyncBaseTransport | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """`clock` gives UTC microseconds. `transport` carries the requests (None: TCP). `chance` spreads the attempts
        of many gateways while control is away."""
        self.metrics = ShipperMetrics()
        self._spool = spool
        self._directory = directory
        self._alarm = alarm
        self._options = options or ShipperOptions()
        self._disk = spool.epoch.disk
        self._clock = clock
        self._chance = chance or random.Random()
        self._client = httpx2.AsyncClient(
            base_url=control_link_url,
            headers={"authorization": f"Bearer {node_key}", "content-type": "application/octet-stream"},
            timeout=httpx2.Timeout(REQUEST_SECONDS_MAX, connect=5.0),
            limits=httpx2.Limits(max_connections=1),
            trust_env=False,
            verify=trusted_authorities(),
            transport=transport,
        )
        self._cursors: dict[int, _Cursor] = {}
        self._cared_at = 0.0
        self._is_away = False
        self._has_reached_control = False
        self._made_at = asyncio.get_running_loop().time()
        self._told: set[tuple[int, int | None]] = set()

    async def run(self) -> None:
        """Ship until cancelled. It begins by asking control how far each epoch has come."""
        self._cursors = {}
        pause_seconds = BACKOFF_SECONDS_MIN
        while True:
            try:
                await self._look_after()
                await self._ship_all()
            except _ControlAway as error:
                self._note_away(error)
                await asyncio.sleep(pause_seconds * self._chance.uniform(0.5, 1.0))
                pause_seconds = min(pause_seconds * 2, BACKOFF_SECONDS_MAX)
            except OSError as error:  # the directory itself cannot be read
                self._note_waiting(0, error)
                await asyncio.sleep(BACKOFF_SECONDS_MAX)
            else:
                self._is_away = False
                pause_seconds = BACKOFF_SECONDS_MIN
                await asyncio.sleep(PAUSE_SECONDS)

    def count_unshipped_records(self) -> int:
        """Return how many durable records of this process' epoch control does not have yet; all of them before it was first asked."""
        cursor = self._cursors.get(self._spool.epoch.number)
        return max(0, self._spool.committed.seq - (1 if cursor is None else cursor.position.seq))

    async def finish(self, timeout_seconds: float) -> bool:
        """After the spool was closed: ship what is left, within the time. Return True if control has everything of this
        process' epoch. What is left over is shipped by the next process; so is what a spool that failed to close could not
        make durable, because until then recovery may still end it otherwise."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    try:
                        epoch = self._spool.epoch
                        return await self._ship(epoch, None if epoch.is_closed() else self._spool.committed)
                    except _ControlAway as error:
                        self._note_away(error)
                        await asyncio.sleep(BACKOFF_SECONDS_MIN)
        except TimeoutError:
            return False
        finally:
            await self._client.aclose()

    async def _ship_all(self) -> None:
        epochs = await asyncio.to_thread(list_epochs, self._directory, self._disk)
        self._cursors = {epoch.number: self._cursors[epoch.number] for epoch in epochs if epoch.number in self._cursors}
        unshipped = 0
        for epoch in epochs:
            if epoch.number == self._spool.epoch.number:
                await self._ship(epoch, self._spool.committed)
            elif epoch.is_closed() or epoch.is_damaged():
                unshipped += not await self._ship(epoch, None)
        self.metrics.epochs_unshipped = unshipped
        self.metrics.epochs_refused = sum(cursor.refused_until is not None for cursor in self._cursors.values())

    async def _ship(self, epoch: EpochFiles, end: Position | None) -> bool:
        """Ship `epoch` up to `end`, or to the last record there is. True if control has all of it and no more will
        come."""
        try:
            cursor = self._cursors.get(epoch.number) or await self._open_cursor(epoch)
            if cursor is None or cursor.is_stopped or self._is_refused(cursor):
                return False
            if cursor.end_seq is None and epoch.is_closed():
                cursor.end_seq = await asyncio.to_thread(_read_end, epoch)
            while not cursor.is_done() and (end is None or cursor.position.seq < end.seq):
                data, position = await asyncio.to_thread(read_frames, epoch, cursor.position, end, BATCH_BYTES)
                if not data:
                    if cursor.end_seq is not None:
                        raise SpoolDamaged(str(epoch.directory), f"record {position.seq} is missing, {cursor.end_seq - 1} is the last")
                    break
                await self._put(cursor, data, position)
            await self._note_shipped(cursor)
            return cursor.is_done()
        except _EpochRefused as error:
            self._note_refused(self._cursors[epoch.number], error)
            return False
        except OSError as error:
            if self._disk.exists(epoch.directory):  # else another process found it shipped, and removed it
                self._note_waiting(epoch.number, error)
            return False
        except SpoolDamaged as error:
            if self._disk.exists(epoch.directory):  # else another process found it shipped, and removed it
                self._stop(epoch, error)
            return False

    async def _open_cursor(self, epoch: EpochFiles) -> _Cursor | None:
        """Begin with an epoch, where control says that it stands. None if there is nothing in it."""
        start = await asyncio.to_thread(_find_first, epoch)
        if start is None:
            return None
        node_id, position = start
        cursor = _Cursor(epoch, node_id, position)
        if epoch.is_closed() and (end_seq := await asyncio.to_thread(_read_end, epoch)) is not None:
            cursor.end_seq = end_seq
        # Asked even where it is noted that control has everything: control may have been restored from a backup since.
        answer = await self._request("GET", f"/v1/link/records/{node_id}/{epoch.number}")
        if answer.status_code != 200:
            raise _ControlAway(describe_refusal(answer))
        next_seq = _next_seq(answer)
        if cursor.end_seq is not None and next_seq >= cursor.end_seq:
            cursor.position = Position(0, 0, cursor.end_seq)
            cursor.noted_seq = min(await asyncio.to_thread(_read_shipped, epoch), cursor.end_seq)
        else:
            await self._go_to(cursor, next_seq)
        self._cursors[epoch.number] = cursor
        return cursor

    async def _put(self, cursor: _Cursor, data: bytes, position: Position) -> None:
        """Hand over one batch, `position` being what follows it, and move on to where control wants to go on."""
        url = f"/v1/link/records/{cursor.node_id}/{cursor.epoch.number}/{cursor.position.seq}"
        answer = await self._request("PUT", url, data)
        if answer.status_code == 400:
            raise SpoolDamaged(f"epoch {cursor.epoch.number}, record {cursor.position.seq}", "control refused the records")
        if answer.status_code == 403 and _find_code(answer) == EPOCH_REFUSED:
            raise _EpochRefused(describe_refusal(answer))
        if answer.status_code not in (200, 409):
            raise _ControlAway(describe_refusal(answer))
        self.metrics.batches += 1
        cursor.refused_until = None
        self.metrics.bytes_shipped += len(data)
        next_seq = _next_seq(answer)
        if next_seq == position.seq:
            cursor.position = position
        else:
            await self._go_to(cursor, next_seq)

    async def _go_to(self, cursor: _Cursor, seq: int) -> None:
        position = await asyncio.to_thread(find_position, cursor.epoch, seq)
        if position is None:
            raise SpoolDamaged(f"epoch {cursor.epoch.number}", f"control waits for record {seq}, which is not here any more")
        cursor.position = position

    async def _request(self, method: str, url: str, data: bytes | None = None) -> httpx2.Response:
        try:
            if data is None:
                answer = await self._client.request(method, url)
            else:
                answer = await self._client.request(method, url, content=_pieces(data), headers={"content-length": str(len(data))})
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise _ControlAway(f"{type(error).__name__}: {error}") from None
        self._has_reached_control = True
        return answer

    async def _note_shipped(self, cursor: _Cursor) -> None:
        """Leave a note when an epoch is done; for the current one, control is asked at the next start anyway."""
        seq = cursor.position.seq
        if cursor.is_done() and seq > cursor.noted_seq:
            note = msgspec.json.encode(Shipped(seq, self._clock()))
            await asyncio.to_thread(write_file, cursor.epoch.directory / "shipped", note, self._disk)
            cursor.noted_seq = seq

    def _stop(self, epoch: EpochFiles, error: Exception) -> None:
        cursor = self._cursors.get(epoch.number)
        if cursor is None:
            cursor = self._cursors[epoch.number] = _Cursor(epoch, "", Position(0, 0, 0))
        if not cursor.is_stopped:
            cursor.is_stopped = True
            self.metrics.epochs_stopped += 1
            self._alarm("spool_shipping_stopped", {"epoch": epoch.number, "error": str(error)})

    def _is_refused(self, cursor: _Cursor) -> bool:
        return cursor.refused_until is not None and asyncio.get_running_loop().time() < cursor.refused_until

    def _note_refused(self, cursor: _Cursor, error: _EpochRefused) -> None:
        """Let a refused epoch wait; an alarm reports the first refusal only. Its records stay on disk."""
        if cursor.refused_until is None:
            self._alarm("epoch_refused", {"epoch": cursor.epoch.number, "error": str(error)})
        cursor.refused_until = asyncio.get_running_loop().time() + REFUSED_SECONDS

    def _note_waiting(self, epoch: int, error: OSError) -> None:
        """Raise an alarm, once for each epoch and error, because a disk is full or failing. Nothing is lost: the epoch is tried again."""
        if (epoch, error.errno) not in self._told:
            self._told.add((epoch, error.errno))
            self._alarm("spool_shipping_waits", {"epoch": epoch, "error": str(error)})

    def _note_away(self, error: _ControlAway) -> None:
        self.metrics.attempts_failed += 1
        if not self._has_reached_control and asyncio.get_running_loop().time() - self._made_at < FIRST_CONTACT_SECONDS:
            return  # control may be starting too
        if not self._is_away:
            self._is_away = True
            self._alarm("records_not_accepted", {"error": str(error)})

    # ---- Housekeeping ------------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._cared_at < CARE_SECONDS and self._cared_at:
            return
        self._cared_at = now
        try:
            await asyncio.to_thread(recover_dead, self._directory, alarm=self._alarm, disk=self._disk, counts=self._spool.counts)
            await asyncio.to_thread(self._remove_shipped)
        except OSError as error:
            self._alarm("spool_care_failed", {"error": str(error)})

    def _remove_shipped(self) -> None:
        """Remove what control has, if it is old or space is short: whole epochs, and the current one's older
        segments."""
        before = self._clock() / 1e6 - self._options.keep_days * 86_400
        for epoch in list_epochs(self._directory, self._disk):
            is_short = self._disk.free_bytes(self._directory) < self._options.free_bytes_min
            if epoch.number == self._spool.epoch.number:
                self._remove_segments(epoch, before, is_short)
            elif self._is_done(epoch) and (is_short or self._noted_before(epoch, before)):
                _remove_epoch(epoch)

    def _noted_before(self, epoch: EpochFiles, instant: float) -> bool:
        try:
            return self._disk.modified_at(epoch.directory / "shipped") < instant
        except FileNotFoundError:
            return False

    def _is_done(self, epoch: EpochFiles) -> bool:
        """Return whether control has everything of an epoch, and no more will come. What control said counts where a full disk took no
        note."""
        end_seq = _read_end(epoch)
        if end_seq is None:
            return False
        cursor = self._cursors.get(epoch.number)
        return _read_shipped(epoch) >= end_seq or (cursor is not None and not cursor.is_stopped and cursor.position.seq >= end_seq)

    def _remove_segments(self, epoch: EpochFiles, before: float, is_short: bool) -> None:
        cursor = self._cursors.get(epoch.number)
        if cursor is None:
            return
        for number in epoch.list_segments():
            path = epoch.segment_path(number)
            if number >= cursor.position.segment or not (is_short or self._disk.modified_at(path) < before):
                return
            self._disk.unlink(path)


def _remove_epoch(epoch: EpochFiles) -> None:
    """Remove a closed, shipped epoch. `closed` goes last, so that a half-removed one is still no dead one."""
    disk = epoch.disk
    fd = lock(epoch.directory / "LOCK", disk, wait=False)
    if fd is None:
        return
    try:
        names = sorted(disk.listdir(epoch.directory), key=lambda name: name in ("closed", "LOCK"))
        for name in names:
            disk.unlink(epoch.directory / name)
        disk.rmdir(epoch.directory)
    finally:
        disk.close(fd)


def _find_first(epoch: EpochFiles) -> tuple[str, Position] | None:
    """Return whose epoch it is, and its first record that is still here; None if there is nothing any more. Raises SpoolDamaged."""
    numbers = epoch.list_segments()
    if not numbers:
        return None
    header = read_start(epoch.segment_path(numbers[0]), epoch.disk)
    if header is None:
        raise SpoolDamaged(str(epoch.segment_path(numbers[0])), "the segment's header is wrong")
    return header[0].node_id, Position(numbers[0], header[1], header[0].first_seq)


def _read_end(epoch: EpochFiles) -> int | None:
    try:
        return msgspec.json.decode(epoch.disk.read(epoch.directory / "closed"), type=ClosedFile).next_seq
    except (FileNotFoundError, ValueError):
        return None


def _read_shipped(epoch: EpochFiles) -> int:
    try:
        return msgspec.json.decode(epoch.disk.read(epoch.directory / "shipped"), type=Shipped).next_seq
    except (FileNotFoundError, ValueError):
        return 0


class _ErrorCode(msgspec.Struct, frozen=True):
    code: str


class _Error(msgspec.Struct, frozen=True):
    error: _ErrorCode


def describe_refusal(answer: httpx2.Response) -> str:
    """Return the status of an answer and, where it is an error of control's, its code, such as `node_mismatch`: it names the remedy."""
    code = _find_code(answer)
    return f"control answered {answer.status_code}" + ("" if code is None else f" {code[:64]}")


def _find_code(answer: httpx2.Response) -> str | None:
    try:
        return msgspec.json.decode(answer.content, type=_Error).error.code
    except ValueError:
        return None


def _next_seq(answer: httpx2.Response) -> int:
    try:
        return msgspec.json.decode(answer.content, type=_NextSeq).next_seq
    except ValueError:
        raise _ControlAway("control's answer is not one") from None
