"""The simulated machine itself: it must be as unkind as a real one, and no kinder."""

import errno
import os
from pathlib import PurePosixPath

import pytest

from tests.simulation.disks import SECTOR, Files, SimulatedDisk
from tests.simulation.machine import Killed, Process, World

A = PurePosixPath("/a")


class Machine:
    """One process on one disk."""

    def __init__(self, seed: int = 0) -> None:
        self.world = World(seed)
        self.files = Files(self.world)
        self.process = Process(self.world, "p")
        self.disk = SimulatedDisk(self.files, self.process, kernel=True)

    def create(self, size: int = 4 * SECTOR, *, durable: bool = True) -> int:
        fd = self.disk.open(A, os.O_RDWR | os.O_CREAT, 0o600)
        self.disk.fallocate(fd, 0, size)
        if durable:
            self.disk.fsync(fd)
            self.sync_root()
        return fd

    def sync_root(self) -> None:
        fd = self.disk.open(PurePosixPath("/"), os.O_RDONLY, 0)
        self.disk.fsync(fd)

    def after_power_cut(self) -> bytes | None:
        self.files.cut_power()
        found = self.files.find(A)
        return None if found is None else bytes(found.data)


class TestPowerCut:
    def test_keeps_what_was_synced(self) -> None:
        for seed in range(50):
            machine = Machine(seed)
            fd = machine.create()
            machine.disk.pwrite(fd, b"x" * 700, 0)
            machine.disk.fdatasync(fd)
            content = machine.after_power_cut()
            assert content is not None
            assert content[:700] == b"x" * 700

    def test_keeps_or_loses_each_sector_that_was_not(self) -> None:
        seen = set()
        for seed in range(200):
            machine = Machine(seed)
            fd = machine.create()
            machine.disk.pwrite(fd, b"x" * (3 * SECTOR), 0)
            content = machine.after_power_cut()
            assert content is not None
            sectors = [content[at : at + SECTOR] for at in range(0, 3 * SECTOR, SECTOR)]
            assert all(sector in (b"x" * SECTOR, bytes(SECTOR)) for sector in sectors)
            seen.add(tuple(sector[:1] for sector in sectors))
        assert len(seen) == 8

    def test_may_lose_a_name_whose_directory_was_not_synced(self) -> None:
        found = set()
        for seed in range(50):
            machine = Machine(seed)
            machine.disk.fsync(machine.create(durable=False))
            found.add(machine.after_power_cut() is None)
        assert found == {True, False}

    def test_after_a_failed_sync_the_page_cache_lies(self) -> None:
        lies = 0
        for seed in range(50):
            machine = Machine(seed)
            fd = machine.create()
            machine.disk.pwrite(fd, b"x" * 700, 0)
            machine.files.error_rate = 1.0
            with pytest.raises(OSError, match="injected"):
                machine.disk.fdatasync(fd)
            machine.files.error_rate = 0.0
            machine.disk.fdatasync(fd)  # succeeds, and writes nothing
            assert machine.disk.read(A)[:700] == b"x" * 700
            content = machine.after_power_cut()
            lies += content is not None and content[:700] != b"x" * 700
        assert lies > 10


class TestKill:
    def test_leaves_the_page_cache_as_it_is(self) -> None:
        machine = Machine()
        fd = machine.create()
        machine.disk.pwrite(fd, b"x" * 10, 0)
        machine.process.kill("in the test")
        assert machine.files.get(A).data[:10] == b"x" * 10

    def test_the_dead_do_nothing(self) -> None:
        machine = Machine()
        fd = machine.create()
        memory = machine.disk.map(fd, 8)
        machine.process.kill("in the test")
        memory[0] = 7
        assert machine.files.get(A).data[0] == 0
        for call in (lambda: machine.disk.pwrite(fd, b"x", 0), lambda: machine.disk.close(fd), lambda: machine.disk.unlink(A)):
            with pytest.raises(Killed):
                call()
        assert machine.files.get(A).data[0] == 0

    def test_frees_its_locks(self) -> None:
        machine = Machine()
        fd = machine.create()
        machine.disk.flock(fd, 2 | 4)
        other = Process(machine.world, "q")
        disk = SimulatedDisk(machine.files, other, kernel=False)
        theirs = disk.open(A, os.O_RDWR, 0)
        with pytest.raises(BlockingIOError):
            disk.flock(theirs, 2 | 4)
        machine.process.kill("in the test")
        disk.flock(theirs, 2 | 4)

    def test_in_the_middle_of_a_write_leaves_a_part_of_it(self) -> None:
        sizes = set()
        for seed in range(50):
            machine = Machine(seed)
            fd = machine.create()
            machine.process.fuse = 0
            with pytest.raises(Killed):
                machine.disk.pwrite(fd, b"x" * 100, 0)
            sizes.add(bytes(machine.files.get(A).data).count(b"x"))
        assert len(sizes) > 20
        assert max(sizes) <= 100


def test_a_full_disk_refuses_what_is_new_and_takes_what_has_its_place() -> None:
    machine = Machine()
    fd = machine.create()
    machine.files.is_full = True
    assert machine.disk.pwrite(fd, b"x" * SECTOR, 0) == SECTOR
    with pytest.raises(OSError, match="injected") as refused:
        machine.disk.pwrite(fd, b"x", 4 * SECTOR)
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="injected"):
        machine.disk.fallocate(fd, 0, 8 * SECTOR)


def test_callbacks_of_one_process_keep_their_order_and_timers_their_time() -> None:
    machine = Machine()
    order: list[int] = []
    machine.process.loop.call_later(0.5, order.append, 3)
    machine.process.loop.call_soon(order.append, 1)
    machine.process.loop.call_soon(order.append, 2)
    machine.world.run(lambda: len(order) == 3, 1.0)
    assert order == [1, 2, 3]
    assert machine.world.now >= 0.5
