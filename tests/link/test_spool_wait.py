"""Failing disks and how they are outlived: what passes is waited for, what a failed sync left in memory is brought to the disk again."""

import asyncio
import os
from dataclasses import replace
from errno import EACCES, EIO, ENOSPC, EROFS
from pathlib import Path

import pytest

from tests.link.samples import admit, ended, final
from tests.link.spools import Alarms, assert_complete, no_alarm, read_epoch
from tests.patience import PATIENCE_SECONDS
from tollway.domain.faults import SPOOL_UNAVAILABLE, Fault
from tollway.domain.usage import Outcome, encode
from tollway.link import spool_wait
from tollway.link.disk import DISK, Disk
from tollway.link.epochs import list_epochs
from tollway.link.recovery import Alarm
from tollway.link.spool import Spool, SpoolOptions
from tollway.link.spool_wait import UnavailableSpool, find_waiting_node, open_when_available

SMALL = SpoolOptions(segment_bytes=16_384, slots_max=16, tick_seconds=3600)


class Moody:
    """A disk on which nothing can be opened for writing while `error` is set."""

    def __init__(self) -> None:
        self.error: int | None = None
        self.tries = 0

    def disk(self) -> Disk:
        def open_(path: Path, flags: int, mode: int) -> int:
            if self.error is not None and flags & (os.O_WRONLY | os.O_RDWR):
                self.tries += 1
                raise OSError(self.error, os.strerror(self.error))
            return os.open(path, flags, mode)

        return replace(DISK, open=open_)


async def lived(directory: Path) -> str:
    """A node that has served here before, and left a request open when it was killed."""
    spool = Spool.open(directory, alarm=no_alarm, options=SMALL)
    spool.admit(encode(admit(1)))
    node_id = spool.node_id
    os.close(spool._lock_fd)  # what the kernel does when a process dies
    return node_id


class TestWaiting:
    async def test_what_passes_is_waited_for_and_all_is_recovered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spool_wait, "RETRY_SECONDS", 0.01)
        node_id, moody, alarms = await lived(tmp_path), Moody(), Alarms()
        for error in (EROFS, ENOSPC, EIO):
            moody.error = error
            with pytest.raises(OSError) as refusal:
                Spool.open(tmp_path, alarm=alarms, options=SMALL, disk=moody.disk())
            assert find_waiting_node(tmp_path, refusal.value) == node_id

        def open_spool(alarm: Alarm) -> Spool:
            return Spool.open(tmp_path, alarm=alarm, options=SMALL, disk=moody.disk())

        opening = asyncio.create_task(open_when_available(tmp_path, open_spool, alarms, moody.disk()))
        tries = moody.tries
        async with asyncio.timeout(PATIENCE_SECONDS):
            while moody.tries < tries + 5:
                await asyncio.sleep(0.005)
            assert not opening.done()
            moody.error = None
            spool = await opening
        assert alarms.names().count("spool_waits") == 1, "told once, not at every try"
        assert spool.node_id == node_id and spool.is_writable()
        await spool.close()
        first, *_ = list_epochs(tmp_path)
        assert_complete(read_epoch(first))

    async def test_a_disk_that_was_never_ours_or_that_refuses_us_is_not_waited_for(self, tmp_path: Path) -> None:
        assert find_waiting_node(tmp_path / "new", OSError(ENOSPC, "full")) is None
        await lived(tmp_path)
        assert find_waiting_node(tmp_path, OSError(EACCES, "not yours")) is None
        moody = Moody()
        moody.error = EACCES
        with pytest.raises(PermissionError):
            await open_when_available(tmp_path, lambda alarm: Spool.open(tmp_path, alarm=alarm, options=SMALL), no_alarm, moody.disk())

    def test_until_then_every_request_is_refused(self) -> None:
        spool = UnavailableSpool()
        assert not spool.is_writable()
        with pytest.raises(Fault) as refused:
            spool.admit(encode(admit(1)))
        assert refused.value.kind is SPOOL_UNAVAILABLE


class TestFailedSync:
    async def test_the_kernels_own_error_ends_the_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The way without a thread: the error comes with the event of the asynchronous sync."""
        alarms = Alarms()
        spool = Spool.open(tmp_path, alarm=alarms, options=SMALL)
        kernel = spool._kernel
        if kernel is None:
            await spool.close()
            pytest.skip("this system has no asynchronous fdatasync")
        slot = spool.admit(encode(admit(1)))
        real = kernel._syscall

        def failing(number: int, *arguments: object) -> int:
            result: int = real(number, *arguments)
            if number == kernel._numbers["io_getevents"]:
                kernel._event.res = -EIO
            return result

        monkeypatch.setattr(kernel, "_syscall", failing)
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(Fault) as lost:
                await ended(spool, slot, final(admit(1)))
        assert lost.value.kind is SPOOL_UNAVAILABLE
        assert spool.failed.is_set() and not spool.is_writable() and spool.epoch.has_failed()
        assert "Input/output error" in str(alarms.events)
        await spool.close()

    async def test_what_was_in_memory_only_is_copied_before_anything_is_appended(self, tmp_path: Path) -> None:
        spool = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        spool.admit(encode(admit(1)))
        os.close(spool._lock_fd)
        (epoch,) = list_epochs(tmp_path)
        before = epoch.segment_path(1).stat().st_ino
        epoch.mark_failed()
        after = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        assert epoch.segment_path(1).stat().st_ino != before, "blocks that once failed are not to be trusted"
        records = read_epoch(epoch)
        assert_complete(records)
        assert [record.outcome for record in records if hasattr(record, "outcome")] == [Outcome.GATEWAY_CRASH]
        await after.close()

    async def test_a_disk_that_takes_no_note_of_it_does_no_further_harm(self, tmp_path: Path) -> None:
        moody, alarms = Moody(), Alarms()
        spool = Spool.open(tmp_path, alarm=alarms, options=SMALL, disk=moody.disk())
        moody.error = EROFS
        spool._fail(OSError(EROFS, "read-only"))
        assert not spool.epoch.has_failed() and alarms.names() == ["spool_failed"]
        await spool.close()


async def test_a_spool_that_cannot_be_opened_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    await lived(tmp_path)
    fails = replace(DISK, map=lambda fd, size: (_ for _ in ()).throw(OSError(ENOSPC, "no space for the map")))
    for _ in range(5):
        with pytest.raises(OSError, match="no space"):
            Spool.open(tmp_path, alarm=Alarms(), options=SMALL, disk=fails)
    first, *_ = list_epochs(tmp_path)  # of the life before, whose thread may have files open yet
    places = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert [place for place in places if str(tmp_path) in place and str(first.directory) not in place] == []
