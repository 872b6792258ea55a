"""Power cuts at the worst moments: a segment is full, the next has begun, and nothing of either is synced.

Histories meet these moments too, but seldom; here they are the only thing that happens.
"""

from asyncio import events
from pathlib import Path

import msgspec
import pytest

from tests.link.samples import NODE, admit, final
from tests.link.spools import no_alarm
from tests.simulation.disks import Files, SimulatedDisk
from tests.simulation.machine import Process, World
from tests.simulation.planes import SPOOL
from tollway.domain.usage import Admit, Close, Final, decode, encode
from tollway.link.epochs import ClosedFile, EpochFiles, Position, list_epochs, read_frames, read_start
from tollway.link.recovery import recover_dead
from tollway.link.spool import Spool, SpoolOptions
from tollway.wire.segments import Reader

DIRECTORY = Path(SPOOL)
OPTIONS = SpoolOptions(segment_bytes=16_384, slots_max=16, tick_seconds=3600)
SEEDS = range(40)


class Crash:
    """A gateway that was killed when its second segment had just begun. `durable`: requests that had been told to be on disk."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.files = Files(self.world)
        self.durable: list[str] = []
        process = Process(self.world, "gateway")
        disk = SimulatedDisk(self.files, process, kernel=False)
        events._set_running_loop(process.loop)
        try:
            spool = Spool.open(DIRECTORY, alarm=no_alarm, node_id=NODE, clock=disk.clock, options=OPTIONS, disk=disk)
        finally:
            events._set_running_loop(None)
        number = 0
        while spool.metrics.segments < 2:
            if number == 3 or not spool.is_writable():  # the first are synced; then the disk falls behind
                self.world.run(lambda: False, 0.1)
            events._set_running_loop(process.loop)
            slot = spool.admit(encode(admit(number)))
            spool.final(slot, encode(final(admit(number))), lambda fault, number=number: self._told(number, fault))  # type: ignore[misc]
            events._set_running_loop(None)
            number += 1
        spool.admit(encode(admit(number)))  # hands the buffer to the page cache
        process.kill("with its second segment begun")

    def _told(self, number: int, fault: object) -> None:
        assert fault is None
        self.durable.append(admit(number).request_id)

    def disk(self) -> SimulatedDisk:
        return SimulatedDisk(self.files, Process(self.world, "next"), kernel=False)

    def recover(self) -> None:
        recover_dead(DIRECTORY, alarm=no_alarm, disk=self.disk())  # type: ignore[arg-type]

    def records(self) -> list[object]:
        """Every record of the closed epoch, as the shipper reads them."""
        (epoch,) = list_epochs(DIRECTORY, self.disk())  # type: ignore[arg-type]
        return read_closed(epoch)


def read_closed(epoch: EpochFiles) -> list[object]:
    end = msgspec.json.decode(epoch.disk.read(epoch.directory / "closed"), type=ClosedFile).next_seq
    header = read_start(epoch.segment_path(1), epoch.disk)
    assert header is not None
    start, offset = header
    reader, position = Reader(1, start.chain), Position(1, offset, 1)
    records: list[object] = []
    while position.seq < end:
        data, position = read_frames(epoch, position, None, 1 << 20)
        assert data, f"record {position.seq} is missing, {end - 1} is the last"
        records += [decode(frame.payload) for frame in reader.read(data)]
    return records


def assert_whole(crash: Crash, *, at_least: int) -> None:
    records = crash.records()
    assert isinstance(records[-1], Close)
    admitted = [record.request_id for record in records if isinstance(record, Admit)]
    ended = [record.admit.request_id for record in records if isinstance(record, Final)]
    assert sorted(admitted) == sorted(ended)
    assert len(admitted) >= at_least
    assert set(crash.durable) <= set(ended)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_power_cut_leaves_of_two_segments_is_recovered_without_a_gap(seed: int) -> None:
    crash = Crash(seed)
    assert crash.durable
    crash.files.cut_power()
    crash.recover()
    assert_whole(crash, at_least=len(crash.durable))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_closed_epoch_survives_a_power_cut_whole(seed: int) -> None:
    crash = Crash(seed)
    crash.recover()
    before = crash.records()
    crash.files.cut_power()
    assert crash.records() == before
    assert_whole(crash, at_least=10)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_epoch_that_died_between_close_and_its_mark_is_made_durable_all_the_same(seed: int) -> None:
    crash = Crash(seed)
    crash.recover()
    (epoch,) = list_epochs(DIRECTORY, crash.disk())  # type: ignore[arg-type]
    before = crash.records()
    # As if the process itself had written CLOSE, and died before anything of it was synced.
    for name, file in crash.files.find(epoch.directory).names.items():
        if name.endswith(".seg"):
            file.durable[:] = bytes(len(file.durable))
            file.persist([0])
            file.dirty = set(range(1, len(file.data) // 512 + 1))
    epoch.disk.unlink(epoch.directory / "closed")
    crash.recover()
    crash.files.cut_power()
    assert crash.records() == before
