"""The follower: brings the snapshot down to a gateway and keeps it current.

Theory of operation. It starts from the copy on disk, if there is one, so that a gateway starts while control is away.
Then it follows the stream of changes from the version it has; without a copy, or when control no longer keeps changes
that far back (410), it reads a whole snapshot first, in slices, beside the one in use. Versions are dense and each
change is applied exactly in order; a gap means that something was missed, and the snapshot is read again. A change
takes effect as soon as it arrives; it is acknowledged once it is on disk too, so that a restart cannot forget a
revocation that control counts as done.

Control sends a heartbeat each second. Silence for SILENCE_SECONDS_MAX ends the stream; then the follower asks once
without following (which works through proxies that hold streams back) and connects again, with growing, jittered
pauses.

Control's word on versions is final in one direction only: a snapshot older than what this gateway has is refused with
an alarm. It would bring revoked keys back. It happens only if the database was restored from a backup; whoever
restores raises the head version, or removes the gateways' copies on purpose.

The copy keeps the lines as control sent them. Fields and kinds of entries that this version does not know are passed over,
and the next version finds them in the copy. A copy by a program that kept less is read anew once control is there.

The age of the snapshot is the time since control last confirmed that nothing was missed. The copy keeps that instant,
so a gateway that starts from it knows how old it is, and can refuse to go by what is too old.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import httpx2
import msgspec

from tollway.domain.keys import SecretUse
from tollway.domain.snapshot import FORMAT, Change, Entry, SnapshotHead, is_known
from tollway.domain.snapshot import decode_entry as decode_line
from tollway.link.authorities import trusted_authorities
from tollway.link.recovery import Alarm
from tollway.link.snapshot_copies import (
    YIELD_ENTRIES,
    ChangeLog,
    Confirmation,
    Copy,
    CopyDamaged,
    SnapshotDraft,
    decode_entry,
    find_confirmation,
    load_copy,
    write_confirmation,
    write_copy,
)
from tollway.worker_threads import run_in_thread

__all__ = ["Follower", "Target", "load_copy", "write_copy"]

SILENCE_SECONDS_MAX = 3.0
"""Three heartbeats missed: the connection is dead, whatever TCP believes."""

ACK_SECONDS = 2.0
"""Longest interval of acknowledgements. Control waits for nodes seen in the last five seconds when it revokes."""

CONFIRMATION_SECONDS = 10.0
"""Interval at which the copy notes that control has confirmed it: the copy counts as older by this much at most."""

BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.1, 2.0
"""Pauses before the next attempt. The upper end keeps a revocation below five seconds where only polling works (P5)."""

FIRST_CONTACT_SECONDS = 30.0
"""Time after a gateway's start in which control may still be starting too."""

SNAPSHOT_SECONDS_MAX = 120.0
"""For a whole snapshot to arrive: 100 MB over a slow link."""

LINE_BYTES_MAX = 1 << 20
"""No entry comes near it; a longer line is not ours, and must not fill memory."""

PENDING_CHANGES_MAX = 10_000
"""Changes applied but not yet on disk. More means that the disk refuses; then the copy is written anew once it does
not."""


class Target(Protocol):
    """The receiver of the snapshot: the gateway's `plane.Plane`."""

    @property
    def version(self) -> int:
        """The snapshot's version; 0 before the first."""
        ...

    def begin_reset(self) -> None:
        """A whole snapshot follows, beside the one in use; drop one that was begun and not finished."""
        ...

    def add(self, entry: Entry) -> None:
        """An entry of it."""
        ...

    def finish_reset(self, version: int) -> None:
        """It is whole: use it from now on."""
        ...

    def release_part(self) -> bool:
        """Give back a part of the memory of the one before. Return whether there is more."""
        ...

    def apply(self, change: Change) -> None:
        """One step, in order."""
        ...


class _Line(msgspec.Struct, frozen=True):
    """A line of the stream: a change, or a heartbeat, which has no kind. `entry`: left unread in one of a kind that this version does not
    know."""

    version: int
    kind: str | None = None
    id: str = ""
    entry: Entry | None = None


class _UnknownLine(msgspec.Struct, frozen=True):
    version: int
    kind: str
    id: str = ""


class AckAnswer(msgspec.Struct, frozen=True):
    """Control's answer to an acknowledgement. `gateways`: how many live, the one that asks included."""

    gateways: int


class _ResyncNeeded(Exception):
    """Only a whole snapshot helps."""


class _Unusable(Exception):
    """Control answered something that cannot be used; try again later."""


_TRANSIENT = (httpx2.HTTPError, httpx2.StreamError, _Unusable, ValueError, RecursionError, OSError)
"""Errors that pass: of a network, a control plane or a disk that does not do its part. Lines that are no JSON, no UTF-8
or not of our shape are ValueErrors, those that are nested too deeply RecursionErrors."""


class Follower:
    """Keeps `target` at control's version. Use: `await start()`, then `run()` and `acknowledge()` as tasks until they are cancelled,
    then `await close()`. Either may be run again after it raised."""

    def __init__(
        self,
        target: Target,
        directory: Path,
        *,
        control_link_url: str,
        node_key: str,
        node_id: str,
        alarm: Alarm,
        clock: Callable[[], int],
        on_gateways: Callable[[int], None] = lambda _: None,
        take_uses: Callable[[], list[SecretUse]] = list,
    ) -> None:
        """`clock`: the current UTC time in microseconds, by which the age of a copy on disk is counted. `on_gateways` is called with the
        number of live gateways whenever control says it. `take_uses` returns the uses of keys that were not reported to control yet."""
        self._on_gateways = on_gateways
        self._take_uses = take_uses
        self._uses: list[SecretUse] = []
        self._target = target
        self._clock = clock
        self._confirmed_on_disk_at: int | None = None
        self._confirmation_due_at = 0.0
        self._directory = directory
        self._node_id = node_id
        self._alarm = alarm
        self._client = httpx2.AsyncClient(
            base_url=control_link_url,
            headers={"authorization": f"Bearer {node_key}"},
            timeout=httpx2.Timeout(5.0, read=SILENCE_SECONDS_MAX),
            limits=httpx2.Limits(max_connections=3),  # stream, acknowledgement, and a poll or snapshot
            trust_env=False,
            verify=trusted_authorities(),
        )
        self._log: ChangeLog | None = None
        self._disk = asyncio.Lock()  # the log is used by one worker thread at a time
        self._is_loaded = False
        self._has_run = False
        self._needs_resync = False
        self._copy_is_behind = False
        self._copy_is_verbatim = True
        self._trouble: str | None = None
        self._pending: list[tuple[int, bytes]] = []
        self._persisted_version = 0
        self._to_acknowledge = asyncio.Event()
        self._heard_at: float | None = None
        self._made_at = time.monotonic()
        self.resyncs = 0
        self.reconnects = 0

    @property
    def snapshot_age_seconds(self) -> float | None:
        """Time since control last confirmed that nothing was missed, to this process or to the one that wrote the copy on disk; None if
        that is not known."""
        if self._heard_at is not None:
            return _uptime() - self._heard_at
        if self._confirmed_on_disk_at is not None:
            return max(0, self._clock() - self._confirmed_on_disk_at) / 1_000_000
        return None

    async def start(self) -> bool:
        """Load the copy on disk. Return False if there is none, or none that can be used (with an alarm): control has the original."""
        try:
            copy = await asyncio.to_thread(load_copy, self._directory)
            if copy is not None:
                await self._take(copy)
                self._to_acknowledge.set()  # so that control soon says how many gateways there are
        except Exception as error:
            self._alarm("snapshot_copy_unusable", {"error": f"{type(error).__name__}: {error}"})
            return False
        return copy is not None

    async def _take(self, copy: Copy) -> None:
        self._target.begin_reset()
        lines = copy.lines()
        while piece := await run_in_thread(_read_piece, lines):
            for count, line in enumerate(piece):
                entry = decode_entry(line)
                if entry is not None:
                    self._target.add(entry)
                if count % YIELD_ENTRIES == 0:
                    await asyncio.sleep(0)
        self._target.finish_reset(copy.version)
        await self._release()
        try:
            self._log = await run_in_thread(ChangeLog, self._directory, copy.version)
        except OSError as error:  # a disk that can only be read: the copy serves, and is written anew once that is possible
            self._alarm("snapshot_copy_failed", {"error": str(error)})
            self._copy_is_behind = True
        self._persisted_version = copy.version
        self._copy_is_verbatim = copy.is_verbatim
        confirmation = await asyncio.to_thread(find_confirmation, self._directory, copy.version)
        self._confirmed_on_disk_at = None if confirmation is None else confirmation.at
        self._is_loaded = True

    async def run(self) -> None:
        """Follow until cancelled. When it is run again, after it raised, it reads a whole snapshot first: a change may have been applied
        in part."""
        if self._has_run:
            self._needs_resync = True
        self._has_run = True
        pause_seconds = BACKOFF_SECONDS_MIN
        while True:
            heard_before = self._heard_at
            try:
                if not self._is_loaded or self._needs_resync or self._copy_is_behind or not self._copy_is_verbatim:
                    await self._resync()
                await self._follow()
            except _ResyncNeeded:
                self._needs_resync = True
            except _TRANSIENT as error:
                self._note_trouble(error)
                await self._poll()
            if self._heard_at != heard_before:
                pause_seconds = BACKOFF_SECONDS_MIN
            self.reconnects += 1
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
            pause_seconds = min(pause_seconds * 2, BACKOFF_SECONDS_MAX)

    async def close(self) -> None:
        """Close the connections and the log of changes. Call it once `run` and `acknowledge` have ended."""
        await self._client.aclose()
        if self._log is not None:
            self._log.close()

    # ---- A whole snapshot --------------------------------------------------------------------------------------------

    async def _resync(self) -> None:
        self.resyncs += 1
        async with asyncio.timeout(SNAPSHOT_SECONDS_MAX), self._client.stream("GET", "/v1/link/snapshot") as response:
            _check(response)
            lines = _lines(response)
            head = msgspec.json.decode(await anext(lines, b""), type=SnapshotHead)
            if head.format > FORMAT:
                raise _Unusable(f"snapshot format {head.format} is newer than this program's {FORMAT}")
            if head.version < self._target.version:
                raise _Unusable(f"control's snapshot {head.version} is older than {self._target.version}, which is here")
            draft = await run_in_thread(SnapshotDraft, self._directory)
            with draft:
                await self._read_entries(lines, head, draft)
                self._heard()
                self._is_loaded = True
                async with self._disk:
                    await run_in_thread(self._put_on_disk, draft, head.version)
        self._needs_resync = self._copy_is_behind = False
        self._copy_is_verbatim = True
        self._persisted_version = head.version
        self._to_acknowledge.set()

    async def _read_entries(self, lines: AsyncIterator[bytes], head: SnapshotHead, draft: SnapshotDraft) -> None:
        self._target.begin_reset()
        slice_lines: list[bytes] = []
        count = 0
        async for line in lines:
            entry = decode_line(line)
            if entry is not None:
                self._target.add(entry)
            slice_lines.append(line)
            count += 1
            if len(slice_lines) == YIELD_ENTRIES:
                await run_in_thread(draft.write, slice_lines)
                slice_lines = []
        if count != head.entries:
            raise _Unusable(f"the snapshot broke off after {count} of {head.entries} entries")
        await run_in_thread(draft.write, slice_lines)
        self._pending.clear()
        self._target.finish_reset(head.version)
        await self._release()

    async def _release(self) -> None:
        while self._target.release_part():
            await asyncio.sleep(0)

    def _put_on_disk(self, draft: SnapshotDraft, version: int) -> None:
        if self._log is None:
            self._log = ChangeLog(self._directory, version)
        else:
            self._log.restart(version)
        draft.publish(version, is_verbatim=True)

    # ---- Changes -----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Follow the stream until it ends."""
        parameters = {"since": str(self._target.version), "follow": "true"}
        async with self._client.stream("GET", "/v1/link/changes", params=parameters) as response:
            _check(response)
            await self._take_lines(response)

    async def _poll(self) -> None:
        """Ask for what is new without following: works where something between holds streams back."""
        if not self._is_loaded or self._needs_resync:
            return
        parameters = {"since": str(self._target.version), "follow": "false"}
        try:
            async with self._client.stream("GET", "/v1/link/changes", params=parameters) as response:
                _check(response)
                await self._take_lines(response)
            self._heard()
        except _ResyncNeeded:
            self._needs_resync = True
        except _TRANSIENT:
            pass  # the same trouble as the stream's, which was noted

    async def _take_lines(self, response: httpx2.Response) -> None:
        count = 0
        async for line in _lines(response):
            step = _decode_change(line)
            if step.kind is None:
                self._heard()
            elif step.version > self._target.version:
                if step.version != self._target.version + 1:
                    raise _ResyncNeeded
                change = Change(version=step.version, kind=step.kind, id=step.id, entry=step.entry)
                self._target.apply(change)
                await self._release()
                self._heard()
                self._keep(change.version, line)
            count += 1
            if count % YIELD_ENTRIES == 0:
                await asyncio.sleep(0)

    def _keep(self, version: int, line: bytes) -> None:
        """Hand the line of a change to whoever writes and acknowledges it."""
        if len(self._pending) >= PENDING_CHANGES_MAX:
            self._pending.clear()
            self._copy_is_behind = True
        if not self._copy_is_behind:
            self._pending.append((version, line))
            self._to_acknowledge.set()

    def _heard(self) -> None:
        self._heard_at = _uptime()
        self._trouble = None

    def _note_trouble(self, error: Exception) -> None:
        """Raise an alarm when trouble begins or becomes another, not at each attempt. A control plane that starts at the same time as this
        gateway has FIRST_CONTACT_SECONDS before its absence is trouble."""
        if self._heard_at is None and time.monotonic() - self._made_at < FIRST_CONTACT_SECONDS:
            return
        text = f"{type(error).__name__}: {error}"
        if text != self._trouble:
            self._trouble = text
            self._alarm("control_unreachable", {"error": text})

    # ---- Disk, then acknowledgement ----------------------------------------------------------------------------------

    async def acknowledge(self) -> None:
        """Write what was applied to the copy and confirm it to control, every ACK_SECONDS at the latest, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACK_SECONDS):  # not wait_for, which before Python 3.12 can swallow a cancellation
                    await self._to_acknowledge.wait()
            self._to_acknowledge.clear()
            if not self._is_loaded:
                continue
            try:
                await self._persist()
                await self._confirm_copy()
            except (OSError, CopyDamaged) as error:
                self._alarm("snapshot_copy_failed", {"error": str(error)})
            self._uses = self._uses or self._take_uses()
            uses = [{"key_id": use.key_id, "digest": use.digest, "used_at": use.used_at} for use in self._uses]
            body = {"node_id": self._node_id, "version": self._persisted_version, "secret_uses": uses}
            try:
                response = await self._client.post("/v1/link/ack", json=body)
                if response.status_code == 200:
                    self._uses = []
                    self._on_gateways(msgspec.json.decode(response.content, type=AckAnswer).gateways)
            except (httpx2.HTTPError, httpx2.StreamError, msgspec.DecodeError):
                pass  # the next acknowledgement says the same and more

    async def _persist(self) -> None:
        pending, log = list(self._pending), self._log
        if not pending or log is None:
            return
        async with self._disk:
            await run_in_thread(log.append, pending)
        # A resync meanwhile empties the list and moves the version on; then there is nothing to take off.
        if self._pending[: len(pending)] == pending:
            del self._pending[: len(pending)]
        self._persisted_version = max(self._persisted_version, pending[-1][0])
        async with self._disk:
            if await run_in_thread(log.is_long):
                await run_in_thread(log.compact, self._persisted_version)

    async def _confirm_copy(self) -> None:
        """Note on disk when control confirmed last, if everything that it published until then is on disk too."""
        heard_at, version = self._heard_at, self._persisted_version
        if heard_at is None or heard_at < self._confirmation_due_at or self._pending or version != self._target.version:
            return
        self._confirmation_due_at = heard_at + CONFIRMATION_SECONDS
        at = self._clock() - int((_uptime() - heard_at) * 1_000_000)
        await run_in_thread(write_confirmation, self._directory, Confirmation(version, at))


def _decode_change(line: bytes) -> _Line:
    """Return what a line of the stream says. A change of a kind that this version does not know is one that nobody applies."""
    try:
        return _decode_line(line)
    except msgspec.ValidationError:
        step = _decode_unknown_line(line)
        if is_known(step.kind):
            raise
        return _Line(step.version, step.kind, step.id)


_decode_line: Callable[[bytes], _Line] = msgspec.json.Decoder(_Line).decode
_decode_unknown_line: Callable[[bytes], _UnknownLine] = msgspec.json.Decoder(_UnknownLine).decode


def _read_piece(lines: Iterator[bytes]) -> list[bytes]:
    """Return the next lines of a copy, from its disk."""
    return list(islice(lines, 20 * YIELD_ENTRIES))


def _uptime() -> float:
    """Return the seconds since the machine started, the time in which it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _check(response: httpx2.Response) -> None:
    if response.status_code == 410:
        raise _ResyncNeeded
    if response.status_code != 200:
        raise _Unusable(f"control answered {response.status_code}")


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The lines of a body as they arrive. A last line without an end is dropped: it is not whole."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise _Unusable("a line is too long")
        for line in whole:
            if line:
                yield line
