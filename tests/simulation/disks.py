"""A file system that forgets and fails as real ones do.

Each file has two contents: what the page cache shows, and what is durable. A process that is killed leaves the first as it
is. A power cut leaves of every sector that was written since the last sync the old or the new content, sector by sector,
and of the changes to a directory since its last sync a first few, or (`reorders`) any. A sync that reports an error has
written some sectors and marked the others clean: nothing later writes them, and the page cache goes on showing them.
"""

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import PurePath
from random import Random
from typing import Any

from tests.simulation.machine import Killed, Process, World, Writer

SECTOR = 512


class File:
    """An inode."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()
        self.lost = False
        """True if a failed sync has dropped a sector that the page cache still shows."""
        self.mapped: object = None
        """The process that has it in its memory."""
        self.owner: object = None
        self.modified_at = 0.0

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data
        if data:
            self.dirty.update(range(offset // SECTOR, (end - 1) // SECTOR + 1))

    def touched(self) -> list[int]:
        """Sectors that may differ from what is durable and would be written by a sync."""
        if self.mapped is not None:
            return list(range((len(self.data) + SECTOR - 1) // SECTOR))
        return sorted(self.dirty)

    def persist(self, sectors: Iterable[int]) -> None:
        """Make sectors durable as the page cache shows them now."""
        durable, data = self.durable, self.data
        if len(durable) < len(data):
            durable.extend(bytes(len(data) - len(durable)))
        for sector in sectors:
            start = sector * SECTOR
            piece = data[start : start + SECTOR]
            durable[start : start + len(piece)] = piece
            self.dirty.discard(sector)

    def sync(self) -> None:
        self.persist(self.touched())
        del self.durable[len(self.data) :]

    def survive(self, chance: Random) -> None:
        """Reduce the disk to what is left after a power cut."""
        keep = chance.choice((0.0, 0.5, 0.9, 1.0))
        old_size = len(self.durable)
        size = len(self.data) if old_size == len(self.data) or chance.random() < 0.5 else old_size
        self.persist([sector for sector in self.touched() if chance.random() < keep])
        del self.durable[size:]
        self.data = bytearray(self.durable)
        self.dirty.clear()
        self.lost = False
        self.mapped = self.owner = None

    def clone(self) -> "File":
        other = File()
        other.data, other.durable, other.dirty = bytearray(self.data), bytearray(self.durable), set(self.dirty)
        other.lost, other.modified_at = self.lost, self.modified_at
        return other


class Directory:
    """Names, as they are seen and as they are durable. `pending`: changes since the last sync, each of one or two names."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.durable: dict[str, Any] = {}
        self.pending: list[tuple[tuple[str, Any], ...]] = []

    def change(self, *names: tuple[str, Any]) -> None:
        self.pending.append(names)
        _apply(self.names, names)

    def sync(self) -> None:
        for names in self.pending:
            _apply(self.durable, names)
        self.pending.clear()

    def survive(self, chance: Random, reorders: bool) -> None:
        if reorders:
            kept = [names for names in self.pending if chance.random() < 0.5]
        else:
            kept = self.pending[: chance.randint(0, len(self.pending))]
        self.pending = kept
        self.sync()
        self.names = dict(self.durable)
        for node in self.names.values():
            if isinstance(node, Directory):
                node.survive(chance, reorders)
            else:
                node.survive(chance)

    def clone(self) -> "Directory":
        other = Directory()
        other.names = {name: node.clone() for name, node in self.names.items()}
        other.durable = dict(other.names)
        return other


def _apply(names: dict[str, Any], changes: tuple[tuple[str, Any], ...]) -> None:
    for name, node in changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Files:
    """The file system, and what is wrong with it at the moment."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.root = Directory()
        self.reorders = False
        self.is_full = False
        self.error_rate = 0.0
        self.short_rate = 0.0
        self.writeback_rate = 0.0
        self.free_bytes = 1 << 40
        self.open: dict[int, tuple[Process, Any]] = {}
        self._next_fd = 1000

    def find(self, path: PurePath | str) -> Any:
        node: Any = self.root
        for part in str(path).split("/"):
            if part:
                node = node.names.get(part) if isinstance(node, Directory) else None
        return node

    def get(self, path: PurePath | str) -> Any:
        node = self.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return node

    def new_fd(self, process: Process, node: Any) -> int:
        self._next_fd += 1
        self.open[self._next_fd] = (process, node)
        return self._next_fd

    def forget(self, process: Process) -> None:
        """A process died: its descriptors, locks and maps are gone; the page cache stays."""
        for fd in [fd for fd, (owner, _) in self.open.items() if owner is process]:
            self.close(fd)
        for file in self.files(self.root):
            if file.mapped is process:
                file.dirty.update(file.touched())
                file.data = bytearray(file.data)  # a dead process' stores reach nothing
                file.mapped = None

    def close(self, fd: int) -> None:
        _, node = self.open.pop(fd)
        if isinstance(node, File) and node.owner == fd:
            node.owner = None

    def files(self, directory: Directory) -> list[File]:
        found = []
        for node in directory.names.values():
            found += self.files(node) if isinstance(node, Directory) else [node]
        return found

    def cut_power(self) -> None:
        """Everything that was not synced is uncertain."""
        self.open = {}
        self.root.survive(self.world.chance, self.reorders)

    def write_back(self) -> None:
        """The kernel writes some dirty sectors, as it does when it likes."""
        chance = self.world.chance
        for file in self.files(self.root):
            if chance.random() < 0.5:
                file.persist([sector for sector in file.touched() if chance.random() < 0.5])

    def clone(self) -> "Files":
        """The same files as everybody sees them now, on a disk without faults."""
        other = Files(self.world)
        other.root = self.root.clone()
        return other


class SimulatedDisk:
    """`link.disk.Disk` for one process."""

    def __init__(self, files: Files, process: Process, *, kernel: bool) -> None:
        self.files = files
        self._process = process
        self._world = files.world
        self._kernel = kernel
        process.on_death.append(lambda: files.forget(process))

    def _call(self, name: str) -> None:
        """Each call may be the last; and others may run before it, if it is made in a thread."""
        process, world = self._process, self._world
        if not process.alive:
            raise Killed
        if world.fiber is not None and world.chance.random() < 0.07:
            world.fiber.pause(world.latency(100e-6))
        if process.fuse is not None and process.burn():
            process.kill(f"at {name}")
            raise Killed
        if self.files.writeback_rate and world.chance.random() < self.files.writeback_rate:
            self.files.write_back()

    def _may_fail(self, name: str) -> None:
        if self.files.error_rate and self._world.chance.random() < self.files.error_rate:
            self._world.faults += 1
            self._world.note(f"{self._process.name} EIO at {name}")
            raise OSError(errno.EIO, f"injected at {name}")

    def _full(self, name: str) -> OSError:
        self._world.faults += 1
        return OSError(errno.ENOSPC, f"injected at {name}")

    # ---- Files -------------------------------------------------------------------------------------------------------

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        _, file = self.files.open[fd] if self._process.alive else (None, None)
        process, chance = self._process, self._world.chance
        if process.alive and process.fuse == 0:  # it dies in the middle of this call
            file.write(bytes(data[: chance.randint(0, len(data))]), offset)
        self._call("pwrite")
        if offset == 0 and process.lives_on_edges and process.fuse is None and chance.random() < 0.3:
            process.fuse = chance.randint(0, 12)
        _, file = self.files.open[fd]
        if self.files.error_rate and chance.random() < self.files.error_rate:
            file.write(bytes(data[: chance.randint(0, len(data))]), offset)
            self._world.faults += 1
            self._world.note(f"{process.name} EIO at pwrite")
            raise OSError(errno.EIO, "injected at pwrite")
        if self.files.is_full and offset + len(data) > len(file.data):
            raise self._full("pwrite")
        if self.files.short_rate and len(data) > 1 and chance.random() < self.files.short_rate:
            self._world.faults += 1
            data = data[: chance.randint(1, len(data) - 1)]
        file.write(bytes(data), offset)
        file.modified_at = self.wall_seconds()
        return len(data)

    def fallocate(self, fd: int, offset: int, size: int) -> None:
        self._call("fallocate")
        _, file = self.files.open[fd]
        self._may_fail("fallocate")
        if self.files.is_full and offset + size > len(file.data):
            raise self._full("fallocate")
        if offset + size > len(file.data):
            file.data.extend(bytes(offset + size - len(file.data)))

    def fdatasync(self, fd: int) -> None:
        self._call("fdatasync")
        _, node = self.files.open[fd]
        self._sync(node, "fdatasync")

    def fsync(self, fd: int) -> None:
        self._call("fsync")
        _, node = self.files.open[fd]
        self._sync(node, "fsync")

    def _sync(self, node: Any, name: str) -> None:
        if self.files.error_rate and self._world.chance.random() < self.files.error_rate:
            self._world.faults += 1
            self._world.note(f"{self._process.name} EIO at {name}")
            if isinstance(node, File):
                self.lose(node, node.touched())
            raise OSError(errno.EIO, f"injected at {name}")
        node.sync()

    def lose(self, file: File, sectors: list[int]) -> None:
        """A sync failed: some sectors are written, all are marked clean."""
        file.persist([sector for sector in sectors if self._world.chance.random() < 0.5])
        if any(file.durable[s * SECTOR : (s + 1) * SECTOR] != file.data[s * SECTOR : (s + 1) * SECTOR] for s in sectors):
            file.lost = True
        file.dirty.difference_update(sectors)

    def open(self, path: PurePath, flags: int, mode: int) -> int:
        self._call("open")
        self._may_fail("open")
        node = self.files.find(path)
        if node is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            if self.files.is_full and self._world.chance.random() < 0.5:
                raise self._full("open")
            node = File()
            node.modified_at = self.wall_seconds()
            self.files.get(path.parent).change((path.name, node))
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "file exists", str(path))
        if flags & os.O_TRUNC:
            node.data.clear()
        return self.files.new_fd(self._process, node)

    def close(self, fd: int) -> None:
        if not self._process.alive:
            raise Killed
        self.files.close(fd)

    def flock(self, fd: int, operation: int) -> None:
        self._call("flock")
        _, file = self.files.open[fd]
        if operation & fcntl.LOCK_NB:
            if file.owner is not None:
                raise BlockingIOError(errno.EWOULDBLOCK, "locked")
        else:
            self._process.wait(lambda: file.owner is None)
        file.owner = fd

    def map(self, fd: int, size: int) -> Any:
        self._call("mmap")
        _, file = self.files.open[fd]
        file.mapped = self._process
        file.data = Map(file.data)
        return file.data

    def size(self, fd: int) -> int:
        self._call("fstat")
        return len(self.files.open[fd][1].data)

    def read(self, path: PurePath, offset: int = 0, size: int = -1) -> bytes:
        self._call("read")
        self._may_fail("read")
        data = self.files.get(path).data
        return bytes(data[offset:] if size < 0 else data[offset : offset + size])

    def truncate(self, path: PurePath, size: int) -> None:
        self._call("truncate")
        del self.files.get(path).data[size:]

    def modified_at(self, path: PurePath) -> float:
        self._call("stat")
        return float(self.files.get(path).modified_at)

    # ---- Directories -------------------------------------------------------------------------------------------------

    def exists(self, path: PurePath) -> bool:
        self._call("exists")
        return self.files.find(path) is not None

    def listdir(self, path: PurePath) -> list[str]:
        self._call("listdir")
        names = list(self.files.get(path).names)
        self._world.chance.shuffle(names)
        return names

    def mkdir(self, path: PurePath, mode: int = 0o700) -> None:
        self._call("mkdir")
        self._may_fail("mkdir")
        if self.files.find(path) is not None:
            raise FileExistsError(errno.EEXIST, "file exists", str(path))
        if self.files.is_full and self._world.chance.random() < 0.5:
            raise self._full("mkdir")
        self.files.get(path.parent).change((path.name, Directory()))

    def rmdir(self, path: PurePath) -> None:
        self._call("rmdir")
        if self.files.get(path).names:
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        self.files.get(path.parent).change((path.name, None))

    def replace(self, source: PurePath, target: PurePath) -> None:
        self._call("rename")
        node = self.files.get(source)
        assert source.parent == target.parent
        self.files.get(source.parent).change((source.name, None), (target.name, node))

    def unlink(self, path: PurePath) -> None:
        self._call("unlink")
        if self.files.find(path) is not None:
            self.files.get(path.parent).change((path.name, None))

    # ---- The rest ----------------------------------------------------------------------------------------------------

    def free_bytes(self, path: PurePath) -> int:
        self._call("statvfs")
        return self.files.free_bytes

    def getpid(self) -> int:
        return 1  # two containers that share a volume: the same in both

    def start_writer(self) -> Writer:
        return Writer(self._process)

    def open_kernel_sync(self, loop: object) -> "KernelSync | None":
        return KernelSync(self, self._process) if self._kernel else None

    def wall_seconds(self) -> float:
        return self._world.true_seconds() + self._process.skew_seconds

    def clock(self) -> int:
        """UTC microseconds as this process sees them."""
        return int(self.wall_seconds() * 1e6)


class Map(bytearray):
    """Memory shared with a file."""

    def close(self) -> None:
        """The kernel keeps the pages."""


class KernelSync:
    """`link.syncing.KernelSync`: the kernel goes on with it, whatever becomes of the process."""

    def __init__(self, disk: SimulatedDisk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._busy = False

    def start(self, fd: int, done: Any) -> bool:
        world = self._process.world
        self._disk._call("io_submit")
        if world.chance.random() < 0.02:
            return False
        assert not self._busy
        self._busy = True
        file, power = self._disk.files.open[fd][1], self._disk.files.open
        sectors = file.touched()

        def finish() -> None:
            if self._disk.files.open is not power:
                return  # the power was cut meanwhile
            error: OSError | None = None
            if self._disk.files.error_rate and world.chance.random() < self._disk.files.error_rate:
                world.faults += 1
                world.note(f"{self._process.name} EIO at kernel fdatasync")
                self._disk.lose(file, sectors)
                error = OSError(errno.EIO, "injected at kernel fdatasync")
            else:
                file.persist(sectors)
            self._busy = False
            if self._process.alive:
                self._process.loop.call_soon_threadsafe(done, error)

        world.after(world.latency(300e-6), finish)
        return True

    def close(self) -> None:
        assert not self._busy
