"""The spool as the gateway sees it: what returned is written, what is done is durable, and a failing disk never costs a record."""

import asyncio
import os
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.link.samples import admit, ended, final
from tests.link.spools import (
    Alarms,
    SickDisk,
    admits,
    assert_complete,
    finals,
    no_alarm,
    read_epoch,
    read_only_epoch,
)
from tests.patience import PATIENCE_SECONDS
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import OVERLOADED, SPOOL_UNAVAILABLE, Fault
from tollway.domain.usage import BUDGETS_MAX, TOKENS_MAX, Admit, Anomaly, Outcome, Progress, Tick, UsageSource, encode
from tollway.link import spool
from tollway.link.disk import DISK
from tollway.link.epochs import list_epochs
from tollway.link.spool import Spool, SpoolOptions
from tollway.wire.progress_slots import OUTPUT_WORD, SLOT_WORDS
from tollway.wire.segments import HEAD_BYTES

SMALL = SpoolOptions(segment_bytes=16_384, slots_max=16, tick_seconds=3600)
ALL_BUDGETS = tuple(f"bud_{number:032x}.{number:022x}" for number in range(BUDGETS_MAX))


async def settled(opened: Spool) -> None:
    """Wait until nothing is on its way to the disk."""
    for _ in range(2000):
        if not opened._committing and not opened._preparing:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the spool never came to rest")


async def writable(opened: Spool) -> None:
    """Wait until the next segment is there: with segments this small, a busy machine may be slower to make one than we to fill one."""
    for _ in range(2000):
        if opened.is_writable():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the spool never became writable")


class TestWritten:
    async def test_admit_is_in_the_file_when_it_returns(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        opened.admit(encode(admit(1)))
        opened.checkpoint(admit(1).request_id, Quantities(5), 0)
        assert read_only_epoch(tmp_path) == [admit(1)]
        opened.admit(encode(admit(2)))
        assert [type(record) for record in read_only_epoch(tmp_path)] == [type(admit(1)), Progress, type(admit(1))]
        await opened.close()

    async def test_request_may_name_as_many_budgets_as_a_record_holds(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        await settled(opened)
        named = admit(1, model="m" * 128, endpoint="e" * 64, budgets=ALL_BUDGETS)
        await ended(opened, opened.admit(encode(named)), final(named))
        await opened.close()
        assert finals(read_only_epoch(tmp_path)) == [final(named)]

    async def test_final_is_done_only_when_the_disk_has_it(self, tmp_path: Path) -> None:
        disk = SickDisk()
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL, disk=disk.disk())
        await settled(opened)
        slot = opened.admit(encode(admit(1)))
        disk.may_sync.clear()
        done = ended(opened, slot, final(admit(1)))
        for _ in range(20):
            await asyncio.sleep(0.002)
            assert not done.done()
        disk.may_sync.set()
        await done
        assert finals(read_only_epoch(tmp_path)) == [final(admit(1))]
        await opened.close()

    async def test_finals_share_a_commit(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SpoolOptions(segment_bytes=1 << 21, slots_max=512, tick_seconds=3600))
        slots = [opened.admit(encode(admit(number))) for number in range(300)]
        await asyncio.gather(*(ended(opened, slot, final(admit(number))) for number, slot in enumerate(slots)))
        assert opened.metrics.commits <= 3
        assert opened.metrics.records == 600
        await opened.close()

    async def test_records_run_on_unbroken_over_many_segments(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        for number in range(200):
            await writable(opened)
            slot = opened.admit(encode(admit(number)))
            opened.checkpoint(admit(number).request_id, Quantities(number), 0)
            await ended(opened, slot, final(admit(number)))
        await opened.close()
        (epoch,) = list_epochs(tmp_path)
        assert len(epoch.list_segments()) > 5
        records = read_epoch(epoch)
        assert_complete(records)
        assert finals(records) == [final(admit(number)) for number in range(200)]

    async def test_the_disk_is_touched_now_and_then_on_a_quiet_node(self, tmp_path: Path) -> None:
        options = SpoolOptions(segment_bytes=16_384, slots_max=16, tick_seconds=0.01)
        opened = Spool.open(tmp_path, alarm=no_alarm, options=options)
        for _ in range(2000):
            if opened.committed.seq > 3:
                break
            await asyncio.sleep(0.005)
        await opened.close()
        assert isinstance(read_only_epoch(tmp_path)[2], Tick)


class TestSlots:
    async def test_a_slot_comes_zeroed_whatever_was_in_it(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SpoolOptions(segment_bytes=16_384, slots_max=1, tick_seconds=3600))
        for number in range(5):
            slot = opened.admit(encode(admit(number)))
            words = opened.progress[slot * SLOT_WORDS : (slot + 1) * SLOT_WORDS].tolist()
            assert words == [number * 2 + 1] + [0] * (SLOT_WORDS - 1)
            for word in range(1, SLOT_WORDS):
                opened.progress[slot * SLOT_WORDS + word] = 77
            await ended(opened, slot, final(admit(number)))
        await opened.close()

    async def test_when_all_are_taken_the_next_is_refused_and_owes_nothing(self, tmp_path: Path) -> None:
        options = SpoolOptions(segment_bytes=1 << 20, slots_max=2, tick_seconds=3600)
        opened = Spool.open(tmp_path, alarm=no_alarm, options=options)
        slots = [opened.admit(encode(admit(number))) for number in range(2)]
        with pytest.raises(Fault) as refused:
            opened.admit(encode(admit(2)))
        assert refused.value.kind is OVERLOADED
        await ended(opened, slots[0], final(admit(0)))
        opened.admit(encode(admit(3)))
        assert [record.request_id for record in admits(read_only_epoch(tmp_path))] == [admit(n).request_id for n in (0, 1, 3)]
        await opened.close()

    async def test_an_impossible_admit_takes_no_slot(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        with pytest.raises(ValueError, match="ADMIT"):
            opened.admit(encode(admit(1, model="m" * spool.ADMIT_BYTES_MAX)))
        assert opened.open_requests == 0
        await opened.close()
        assert_complete(read_only_epoch(tmp_path))


class TestDiskFull:
    async def test_new_requests_are_refused_and_every_final_owed_is_written(self, tmp_path: Path) -> None:
        alarms, disk = Alarms(), SickDisk()
        opened = Spool.open(tmp_path, alarm=alarms, options=SMALL, disk=disk.disk())
        await settled(opened)
        disk.is_full = True
        admitted: list[tuple[int, int]] = []
        number = 0
        while opened.is_writable() and number < 500:
            try:
                admitted.append((number, opened.admit(encode(admit(number)))))
            except Fault as fault:
                assert fault.kind is OVERLOADED
                done, slot = admitted.pop(0)
                await ended(opened, slot, final(admit(done)))
            number += 1
        with pytest.raises(Fault) as refused:
            opened.admit(encode(admit(number)))
        assert refused.value.kind is SPOOL_UNAVAILABLE
        await asyncio.gather(*(ended(opened, slot, final(admit(done))) for done, slot in admitted))
        assert "spool_disk_full" in alarms.names()
        assert not opened.failed.is_set()
        await opened.close()
        assert_complete(read_only_epoch(tmp_path))

    async def test_it_goes_on_by_itself_when_there_is_space_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spool, "RETRY_SECONDS", 0.01)
        disk = SickDisk()
        opened = Spool.open(tmp_path, alarm=Alarms(), options=SMALL, disk=disk.disk())
        await settled(opened)
        disk.is_full = True
        number = 0
        while opened.is_writable():
            await ended(opened, opened.admit(encode(admit(number))), final(admit(number)))
            number += 1
        disk.is_full = False
        await writable(opened)
        await ended(opened, opened.admit(encode(admit(number))), final(admit(number)))
        await opened.close()
        assert len(finals(read_only_epoch(tmp_path))) == number + 1

    @pytest.mark.parametrize("budgets", [(), ALL_BUDGETS])
    @pytest.mark.parametrize("seed", range(12))
    async def test_whatever_the_order_no_final_ever_lacks_space(self, tmp_path: Path, seed: int, budgets: tuple[str, ...]) -> None:
        chance, disk, alarms = random.Random(seed), SickDisk(), Alarms()
        long = "m" * 128
        opened = Spool.open(tmp_path, alarm=alarms, options=SMALL, disk=disk.disk())
        open_requests: list[tuple[Admit, int]] = []
        waiting = []
        for number in range(400):
            disk.is_full = chance.random() < 0.7
            if open_requests and chance.random() < 0.45:
                done, slot = open_requests.pop(chance.randrange(len(open_requests)))
                record = final(done, error="e" * 60, used=Quantities(2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1))
                waiting.append(ended(opened, slot, record))
            else:
                asked = admit(number, model=long, budgets=budgets[: chance.randrange(BUDGETS_MAX + 1)])
                try:
                    open_requests.append((asked, opened.admit(encode(asked))))
                except Fault:
                    pass
                else:
                    opened.checkpoint(admit(number).request_id, Quantities(number), 0)
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        waiting += [ended(opened, slot, final(done)) for done, slot in open_requests]
        await asyncio.gather(*waiting)
        assert not opened.failed.is_set()
        await opened.close()
        assert_complete(read_only_epoch(tmp_path))


class TestDiskBroken:
    @pytest.mark.parametrize("operation", ["sync", "write"])
    async def test_everyone_is_told_and_nothing_is_tried_again(self, tmp_path: Path, operation: str) -> None:
        alarms, disk = Alarms(), SickDisk()
        opened = Spool.open(tmp_path, alarm=alarms, options=SMALL, disk=disk.disk())
        await settled(opened)
        slots = [opened.admit(encode(admit(number))) for number in range(3)]
        await ended(opened, slots[0], final(admit(0)))
        await settled(opened)
        syncs = disk.syncs
        disk.fails_sync, disk.fails_write = operation == "sync", operation == "write"
        waiting = [ended(opened, slots[1], final(admit(1))), ended(opened, slots[2], final(admit(2)))]
        for waiter in waiting:
            with pytest.raises(Fault) as lost:
                await waiter
            assert lost.value.kind is SPOOL_UNAVAILABLE
        assert opened.failed.is_set()
        assert not opened.is_writable()
        with pytest.raises(Fault) as refused:
            opened.admit(encode(admit(9)))
        assert refused.value.kind is SPOOL_UNAVAILABLE
        await opened.close()
        assert disk.syncs - syncs <= 1
        assert alarms.names() == ["spool_failed"]

    async def test_the_next_start_settles_what_the_failure_left_open(self, tmp_path: Path) -> None:
        disk = SickDisk()
        opened = Spool.open(tmp_path, alarm=Alarms(), options=SMALL, disk=disk.disk())
        slot = opened.admit(encode(admit(1)))
        disk.fails_sync = True
        with pytest.raises(Fault):
            await ended(opened, slot, final(admit(1)))
        await opened.close()
        again = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        assert_complete(read_epoch(list_epochs(tmp_path)[0]))
        await again.close()

    async def test_a_client_that_stopped_waiting_hurts_no_other(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        waiting = [ended(opened, opened.admit(encode(admit(number))), final(admit(number))) for number in range(3)]
        waiting[1].cancel()
        await waiting[0]
        await waiting[2]
        await opened.close()
        assert len(finals(read_only_epoch(tmp_path))) == 3


class TestLives:
    async def test_a_clean_stop_leaves_a_closed_epoch_of_its_true_size(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SpoolOptions(segment_bytes=1 << 20, slots_max=8))
        await ended(opened, opened.admit(encode(admit(1))), final(admit(1)))
        await opened.close()
        (epoch,) = list_epochs(tmp_path)
        assert epoch.is_closed()
        assert sorted(os.listdir(epoch.directory)) == ["0001.seg", "LOCK", "closed"]
        assert epoch.segment_path(1).stat().st_size < 4096
        assert_complete(read_epoch(epoch))

    async def test_what_is_still_open_at_the_stop_ends_as_a_crash_would(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        slot = opened.admit(encode(admit(1)))
        opened.progress[slot * SLOT_WORDS + OUTPUT_WORD] = 12
        await opened.close()
        records = read_only_epoch(tmp_path)
        assert_complete(records)
        assert finals(records)[0].outcome is Outcome.GATEWAY_CRASH
        assert finals(records)[0].used == Quantities(output=12)

    async def test_epochs_have_numbers_of_their_own_and_no_error_of_an_earlier_clock(self, tmp_path: Path) -> None:
        numbers = []
        for clock in (5_000_000, 4_000_000, 4_000_000, 9_000_000):
            opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL, clock=lambda clock=clock: clock)  # type: ignore[misc]
            numbers.append(opened.epoch.number)
            await opened.close()
        assert numbers == [5_000_000, 4_000_000, 4_000_001, 9_000_000]

    async def test_a_successor_leaves_a_living_predecessor_alone(self, tmp_path: Path) -> None:
        old = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        slot = old.admit(encode(admit(1)))
        new = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        assert new.node_id == old.node_id
        await ended(old, slot, final(admit(1)))
        await old.close()
        await new.close()
        for epoch in list_epochs(tmp_path):
            assert_complete(read_epoch(epoch))
        assert finals(read_epoch(list_epochs(tmp_path)[0]))[0].outcome is Outcome.COMPLETED

    async def test_a_spool_belongs_to_one_node(self, tmp_path: Path) -> None:
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL, node_id="node_" + "a" * 32)
        await opened.close()
        with pytest.raises(ValueError, match="belongs to"):
            Spool.open(tmp_path, alarm=no_alarm, options=SMALL, node_id="node_" + "b" * 32)

    async def test_a_full_disk_at_the_start_is_an_error_and_leaves_nothing_in_the_way(self, tmp_path: Path) -> None:
        disk = SickDisk()
        disk.is_full = True
        with pytest.raises(OSError, match="injected"):
            Spool.open(tmp_path, alarm=no_alarm, options=SMALL, disk=disk.disk())
        opened = Spool.open(tmp_path, alarm=no_alarm, options=SMALL)
        assert [epoch.number for epoch in list_epochs(tmp_path)] == [opened.epoch.number]
        await opened.close()


def test_a_final_of_the_longest_admit_fits_what_is_owed() -> None:
    longest_admit = admit(1, endpoint="e" * 64, model="m" * 128, admitted_at=2**53)
    longest_admit = msgspec.structs.replace(longest_admit, model="m" * (128 + spool.ADMIT_BYTES_USUAL - len(encode(longest_admit))))
    longest = final(
        longest_admit,
        outcome=Outcome.CLIENT_CANCELLED,
        used=Quantities(TOKENS_MAX, TOKENS_MAX, TOKENS_MAX, TOKENS_MAX),
        source=UsageSource.ENGINE_CONTINUOUS,
        ended_at=2**53,
        first_token_at=2**53,
        attempts=1000,
        error="e" * 64,
        anomaly=Anomaly.SHRINKING,
    )
    assert len(encode(longest_admit)) == spool.ADMIT_BYTES_USUAL
    assert HEAD_BYTES + len(encode(longest)) <= 1120


@pytest.mark.parametrize("defect", ["sync", "next commit", "tick"])
async def test_defect_behind_a_commit_fails_the_spool_and_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("planted")

    disk = replace(DISK, fdatasync=fail) if defect == "sync" else DISK
    alarms = Alarms()
    opened = Spool.open(tmp_path, alarm=alarms, options=SpoolOptions(segment_bytes=65_536, slots_max=32, tick_seconds=3600))
    opened._disk, opened._kernel = disk, None
    slots = [opened.admit(encode(admit(number))) for number in range(2)]
    waiting = [ended(opened, slot, final(admit(number))) for number, slot in enumerate(slots)]
    if defect == "next commit":
        monkeypatch.setattr(opened, "_start_commit", fail)
    if defect == "tick":
        await asyncio.gather(*waiting)
        monkeypatch.setattr(opened, "_append", fail)
        opened._tick()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await opened.failed.wait()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert alarms.names() == ["spool_failed"] and not opened.is_writable()
    monkeypatch.undo()
    await opened.close()
