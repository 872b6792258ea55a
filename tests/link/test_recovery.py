"""Recovery: whatever a process left behind when it died, each request that it admitted ends exactly once, and always the same way."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.link.samples import admit, ended, final
from tests.link.spools import Alarms, DyingDisk, Killed, assert_complete, finals, no_alarm, read_epoch
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.usage import TOKENS_MAX, Close, Final, Outcome, Record, UsageSource, encode
from tollway.link.epochs import EpochFiles, list_epochs, lock, read_start
from tollway.link.recovery import Recovered, recover, recover_dead
from tollway.link.spool import Spool, SpoolOptions
from tollway.wire.progress_slots import FIRST_TOKEN_WORD, OUTPUT_WORD, RETRIES_WORD, SLOT_WORDS, write_quantities

OPTIONS = SpoolOptions(segment_bytes=16_384, slots_max=16, tick_seconds=3600)


ROOMY = SpoolOptions(segment_bytes=65_536, slots_max=16, tick_seconds=3600)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: for tests that recover a thousand times and care for bytes, not for disks."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="tollway-test-", dir=memory) as name:
        yield Path(name)


def image(directory: Path, act: Callable[[Spool], object], options: SpoolOptions = OPTIONS) -> EpochFiles:
    """The epoch that a process leaves behind that dies after `act`: a copy of what the page cache has, taken while it lives."""

    async def live() -> None:
        opened = Spool.open(directory / "life", alarm=no_alarm, options=options)
        result = act(opened)
        if asyncio.iscoroutine(result):
            await result
        shutil.copytree(directory / "life", directory / "image")
        await opened.close()

    asyncio.run(live())
    shutil.rmtree(directory / "life")
    (epoch,) = list_epochs(directory / "image")
    return epoch


async def three_requests(opened: Spool) -> None:
    """One ended, two open: one with a checkpoint, one with progress in shared memory."""
    first, second, third = (opened.admit(encode(admit(number))) for number in (1, 2, 3))
    await ended(opened, first, final(admit(1)))
    opened.checkpoint(admit(2).request_id, Quantities(50, 0, 7), 0)
    write_quantities(opened.progress, third, Quantities(90, 0, 11), NOTHING)
    opened.progress[third * SLOT_WORDS + FIRST_TOKEN_WORD] = admit(3).admitted_at + 5
    write_quantities(opened.progress, second, Quantities(50, 0, 9), NOTHING)
    opened.admit(encode(admit(4)))  # writes the checkpoint along


def content(epoch: EpochFiles) -> dict[str, bytes]:
    """Every file of an epoch."""
    return {name: (epoch.directory / name).read_bytes() for name in os.listdir(epoch.directory)}


def by_id(records: list[Record]) -> dict[str, Final]:
    return {record.admit.request_id: record for record in finals(records)}


class TestOwed:
    def test_each_open_request_gets_the_highest_count_that_is_known(self, tmp_path: Path) -> None:
        epoch = image(tmp_path, three_requests, ROOMY)
        assert recover(epoch, alarm=no_alarm) is Recovered.CLOSED
        records = read_epoch(epoch)
        assert_complete(records)
        found = by_id(records)
        assert found[admit(1).request_id] == final(admit(1))
        second, third, fourth = (found[admit(number).request_id] for number in (2, 3, 4))
        assert {end.outcome for end in (second, third, fourth)} == {Outcome.GATEWAY_CRASH}
        assert {end.source for end in (second, third, fourth)} == {UsageSource.RECOVERED}
        assert second.used == Quantities(50, 0, 9)
        assert third.used == Quantities(90, 0, 11)
        assert third.first_token_at == admit(3).admitted_at + 5
        assert fourth.used == Quantities()
        assert second.ended_at == max(final(admit(1)).ended_at, epoch.number)

    def test_counts_of_the_upstream_that_was_left_are_not_billed_though_they_are_more(self, tmp_path: Path) -> None:
        def act(opened: Spool) -> None:
            slot = opened.admit(encode(admit(1)))
            opened.checkpoint(admit(1).request_id, Quantities(250), 0)
            write_quantities(opened.progress, slot, Quantities(135, 0, 16), NOTHING)
            opened.progress[slot * SLOT_WORDS + RETRIES_WORD] = 1
            opened.admit(encode(admit(2)))  # writes the checkpoint along

        epoch = image(tmp_path, act, ROOMY)
        recover(epoch, alarm=no_alarm)
        assert by_id(read_epoch(epoch))[admit(1).request_id].used == Quantities(135, 0, 16)

    def test_counts_that_moved_to_another_class_are_billed_in_that_class_alone(self, tmp_path: Path) -> None:
        def act(opened: Spool) -> None:
            slot = opened.admit(encode(admit(1)))
            opened.checkpoint(admit(1).request_id, Quantities(100, 0, 30), 0)
            write_quantities(opened.progress, slot, Quantities(80, 20, 25, 6), NOTHING)
            opened.admit(encode(admit(2)))  # writes the checkpoint along

        epoch = image(tmp_path, act, ROOMY)
        recover(epoch, alarm=no_alarm)
        assert by_id(read_epoch(epoch))[admit(1).request_id].used == Quantities(80, 20, 25, 6)

    def test_counts_of_the_upstream_that_was_left_stay_behind_in_the_header_of_a_segment(self, tmp_path: Path) -> None:
        async def act(opened: Spool) -> None:
            slot = opened.admit(encode(admit(0)))
            opened.checkpoint(admit(0).request_id, Quantities(250), 0)
            write_quantities(opened.progress, slot, Quantities(135, 0, 16), NOTHING)
            opened.progress[slot * SLOT_WORDS + RETRIES_WORD] = 1
            for number in range(1, 200):
                while not opened.is_writable():
                    await asyncio.sleep(0.005)
                await ended(opened, opened.admit(encode(admit(number))), final(admit(number)))
            assert opened.metrics.segments > 1

        epoch = image(tmp_path, act, ROOMY)
        (epoch.directory / "progress.map").unlink()
        recover(epoch, alarm=no_alarm)
        assert by_id(read_epoch(epoch))[admit(0).request_id].used == Quantities(135, 0, 16)

    def test_without_the_map_the_checkpoint_counts(self, tmp_path: Path) -> None:
        epoch = image(tmp_path, three_requests, ROOMY)
        (epoch.directory / "progress.map").unlink()
        recover(epoch, alarm=no_alarm)
        assert by_id(read_epoch(epoch))[admit(2).request_id].used == Quantities(50, 0, 7)

    def test_memory_that_no_request_can_have_left_is_cut_to_what_one_can(self, tmp_path: Path) -> None:
        def act(opened: Spool) -> None:
            opened.progress[opened.admit(encode(admit(1))) * SLOT_WORDS + OUTPUT_WORD] = 2**64 - 1

        epoch = image(tmp_path, act)
        recover(epoch, alarm=no_alarm)
        assert finals(read_epoch(epoch))[0].used == Quantities(output=TOKENS_MAX)

    def test_an_open_request_is_found_though_its_admit_is_segments_away(self, tmp_path: Path) -> None:
        async def act(opened: Spool) -> None:
            opened.admit(encode(admit(1)))
            number = 2
            while opened.metrics.segments < 4:
                if opened.is_writable():
                    await ended(opened, opened.admit(encode(admit(number))), final(admit(number)))
                    number += 1
                await asyncio.sleep(0)

        epoch = image(tmp_path, act)
        epoch.segment_path(1).unlink()  # shipped long ago, and removed
        epoch.segment_path(2).unlink()
        recover(epoch, alarm=no_alarm)
        assert finals(read_epoch(epoch))[-1].admit == admit(1)

    def test_many_open_requests_run_on_into_further_segments(self, tmp_path: Path) -> None:
        async def act(opened: Spool) -> None:
            number = 0
            while opened.open_requests < 16:
                if opened.is_writable():
                    opened.admit(encode(admit(number, model="m" * 128)))
                    number += 1
                await asyncio.sleep(0.001)

        epoch = image(tmp_path, act)
        recover(epoch, alarm=no_alarm)
        assert len([number for number in epoch.list_segments() if read_start(epoch.segment_path(number))]) > 1
        assert_complete(read_epoch(epoch))


class TestSameBytes:
    def test_recovering_again_changes_nothing(self, tmp_path: Path) -> None:
        epoch = image(tmp_path, three_requests, ROOMY)
        recover(epoch, alarm=no_alarm)
        before = content(epoch)
        assert recover(epoch, alarm=no_alarm) is Recovered.CLOSED
        (epoch.directory / "closed").unlink()  # as if killed just before it was written
        assert recover(epoch, alarm=no_alarm) is Recovered.CLOSED
        assert content(epoch) == before

    @pytest.mark.parametrize("requests", [3, 16])
    def test_killed_at_any_operation_and_run_again_it_ends_the_same(self, tmp_path: Path, requests: int) -> None:
        async def act(opened: Spool) -> None:
            number = 0
            while opened.open_requests < requests:
                if opened.is_writable():
                    slot = opened.admit(encode(admit(number, model="m" * 128)))
                    opened.progress[slot * SLOT_WORDS + OUTPUT_WORD] = number
                    number += 1
                await asyncio.sleep(0.001)

        epoch = image(tmp_path, act)
        straight = EpochFiles(tmp_path / "image" / "straight", epoch.number)
        shutil.copytree(epoch.directory, straight.directory)
        recover(straight, alarm=no_alarm)
        expected = content(straight)
        operation = 0
        while True:
            attempt = EpochFiles(tmp_path / "image" / f"attempt-{operation}", epoch.number)
            shutil.copytree(epoch.directory, attempt.directory)
            try:
                recover(EpochFiles(attempt.directory, epoch.number, DyingDisk(operation).disk()), alarm=no_alarm)
            except Killed:
                recover(attempt, alarm=no_alarm)
                assert content(attempt) == expected
                operation += 1
            else:
                assert content(attempt) == expected
                break
            finally:
                shutil.rmtree(attempt.directory)
        assert operation > requests


class TestTorn:
    @pytest.mark.parametrize("fill", ["cut", "zeros", "noise"])
    def test_cut_at_every_byte_nothing_before_the_cut_is_lost(self, memory_path: Path, fill: str) -> None:
        async def act(opened: Spool) -> None:
            slot = opened.admit(encode(admit(1)))
            await ended(opened, slot, final(admit(1)))
            opened.admit(encode(admit(2)))

        epoch = image(memory_path, act)
        whole = epoch.segment_path(1).read_bytes()
        header = read_start(epoch.segment_path(1))
        assert header is not None
        end = len(whole.rstrip(b"\0"))
        step = 1 if fill == "cut" else 7
        ends = frame_ends(whole[:end], header[1])
        for cut in range(header[1], end + 1, step):
            torn = EpochFiles(memory_path / "image" / "torn", epoch.number)
            shutil.copytree(epoch.directory, torn.directory)
            if fill == "cut":
                data = whole[:cut]
            else:
                rest = b"\0" if fill == "zeros" else b"\xa5"
                data = whole[:cut] + rest * min(40, end - cut) + bytes(len(whole) - cut - min(40, end - cut))
            torn.segment_path(1).write_bytes(data)
            starts = [header[1], *ends]
            if fill == "noise" and any(start + 4 <= cut < at <= cut + 40 for start, at in zip(starts, ends, strict=False)):
                # A record that is all there and wrong: no crash leaves that behind, so it is reported, not cut.
                assert recover(torn, alarm=Alarms()) is Recovered.DAMAGED
                shutil.rmtree(torn.directory)
                continue
            assert recover(torn, alarm=no_alarm) is Recovered.CLOSED
            records = read_epoch(torn)
            assert_complete(records)
            survived = sum(cut >= frame_end for frame_end in ends)
            assert [type(record).__name__ for record in records[:survived]] == ["Admit", "Final", "Admit"][:survived]
            if survived >= 2:
                assert records[1] == final(admit(1))
            shutil.rmtree(torn.directory)

    def test_a_header_that_was_being_written_begins_no_segment(self, memory_path: Path) -> None:
        async def act(opened: Spool) -> None:
            number = 0
            while opened.metrics.segments < 2:
                if opened.is_writable():
                    await ended(opened, opened.admit(encode(admit(number))), final(admit(number)))
                    number += 1
                await asyncio.sleep(0)

        epoch = image(memory_path, act)
        header = read_start(epoch.segment_path(2))
        assert header is not None
        whole = epoch.segment_path(2).read_bytes()
        for cut in range(0, header[1], 5):
            torn = EpochFiles(memory_path / "image" / "torn", epoch.number)
            shutil.copytree(epoch.directory, torn.directory)
            torn.segment_path(2).write_bytes(whole[:cut] + bytes(len(whole) - cut))
            assert recover(torn, alarm=no_alarm) is Recovered.CLOSED
            assert_complete(read_epoch(torn))
            shutil.rmtree(torn.directory)

    def test_an_epoch_that_never_began_is_taken_away(self, memory_path: Path) -> None:
        epoch = image(memory_path, lambda opened: None)
        whole = epoch.segment_path(1).read_bytes()
        header = read_start(epoch.segment_path(1))
        assert header is not None
        for cut in (0, 1, 17, header[1] - 1):
            torn = EpochFiles(memory_path / "image" / "torn", epoch.number)
            shutil.copytree(epoch.directory, torn.directory)
            torn.segment_path(1).write_bytes(whole[:cut] + bytes(len(whole) - cut))
            recover(torn, alarm=no_alarm)
            assert not torn.directory.exists()


class TestDamaged:
    def test_a_flipped_bit_never_changes_a_record_unseen(self, tmp_path: Path) -> None:
        epoch = image(tmp_path, three_requests, ROOMY)
        whole = epoch.segment_path(1).read_bytes()
        header = read_start(epoch.segment_path(1))
        assert header is not None
        end = len(whole.rstrip(b"\0"))
        originals = read_epoch(epoch)
        for at in range(header[1], end, 13):
            flipped = EpochFiles(tmp_path / "image" / "flipped", epoch.number)
            shutil.copytree(epoch.directory, flipped.directory)
            flipped.segment_path(1).write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            alarms = Alarms()
            before = content(flipped)
            if recover(flipped, alarm=alarms) is Recovered.DAMAGED:
                assert alarms.names() == ["spool_damaged"]
                assert flipped.is_damaged()
                left = content(flipped)
                del left["damaged"]
                assert left == before, "what is damaged stays as it is"
            else:
                kept = read_epoch(flipped)
                assert_complete(kept)
                written_by_it = [record for record in kept if record not in originals]
                assert {type(record) for record in written_by_it} == {Final, Close}
                assert all(end.outcome is Outcome.GATEWAY_CRASH for end in finals(written_by_it))
                assert at >= end - 600, "only the last record may be cut"
            shutil.rmtree(flipped.directory)

    def test_the_others_are_recovered_all_the_same(self, tmp_path: Path) -> None:
        epoch = image(tmp_path, three_requests, ROOMY)
        directory = tmp_path / "image"
        later = EpochFiles(directory / f"epoch-{epoch.number + 5}", epoch.number + 5)

        async def live() -> None:
            opened = Spool.open(tmp_path / "other", alarm=no_alarm, options=ROOMY, clock=lambda: epoch.number + 5)
            opened.admit(encode(admit(7)))
            shutil.copytree(opened.epoch.directory, later.directory)
            await opened.close()

        asyncio.run(live())
        data = epoch.segment_path(1).read_bytes()
        epoch.segment_path(1).write_bytes(data[:700] + b"\xff\xff" + data[702:])
        alarms = Alarms()
        results = recover_dead(directory, alarm=alarms)
        assert results == {epoch.number: Recovered.DAMAGED, later.number: Recovered.CLOSED}
        assert recover_dead(directory, alarm=no_alarm) == {}, "it is not looked at again and again"

    def test_a_damaged_first_header_is_never_taken_for_an_unbegun_epoch(self, tmp_path: Path) -> None:
        epoch = image(tmp_path, three_requests, ROOMY)
        data = epoch.segment_path(1).read_bytes()
        epoch.segment_path(1).write_bytes(data[:30] + b"\xff" + data[31:])
        assert recover(epoch, alarm=Alarms()) is Recovered.DAMAGED
        assert epoch.segment_path(1).exists()


def test_the_living_are_not_recovered(tmp_path: Path) -> None:
    epoch = image(tmp_path, three_requests, ROOMY)
    held = lock(epoch.directory / "LOCK", wait=False)
    assert held is not None
    assert recover_dead(tmp_path / "image", alarm=no_alarm) == {}
    os.close(held)
    assert recover_dead(tmp_path / "image", alarm=no_alarm) == {epoch.number: Recovered.CLOSED}


def frame_ends(data: bytes, offset: int) -> list[int]:
    """Return the offset at which each frame of a segment ends."""
    ends = []
    while offset < len(data):
        offset += 32 + int.from_bytes(data[offset : offset + 4], "little")
        ends.append(offset)
    return ends
