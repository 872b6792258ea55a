"""The archive: the frames that gateways sent, byte for byte, one file per epoch. Everything of money can be computed again from it.

    <directory>/<node id>/<epoch>.seg

What of a file counts is said by the database (epochs.archive_bytes), in the transaction that took the frames in. Bytes are durable
before that transaction commits; if it does not, they lie beyond what counts and are overwritten by the same bytes when the frames
come again.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20
"""Read at a time; a frame is at most a sixteenth of it."""


class ArchiveShort(Exception):
    """The archive holds less than the database says."""


class Archive:
    """A directory of epochs. Thread-safe as long as one epoch is written by one at a time, which its row's lock ensures."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, node_id: str, epoch: int) -> Path:
        if not node_id.replace("_", "").isalnum():
            raise ValueError("not a node id")
        return self._directory / node_id / f"{epoch}.seg"

    def write(self, node_id: str, epoch: int, offset: int, data: bytes) -> None:
        """Put `data` at `offset` of the epoch's file, durably. Raises OSError, and ArchiveShort if bytes before it are missing."""
        path = self._path(node_id, epoch)
        is_new = not path.exists()
        if is_new:
            make_directory(path.parent)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < offset:
                raise ArchiveShort(f"{path} has fewer than the {offset} bytes that were ingested")
            while data:
                written = os.pwrite(fd, data, offset)
                data, offset = data[written:], offset + written
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if is_new:
            _sync(path.parent)

    @contextmanager
    def writing(self, node_id: str, epoch: int, offset: int, data: bytes) -> Iterator[None]:
        """As `write`, in a thread of its own while the block runs. Raises at the end of the block, unless that raises itself."""
        with ThreadPoolExecutor(1) as thread:
            written = thread.submit(self.write, node_id, epoch, offset, data)
            yield
            written.result()

    def list_epochs(self) -> list[tuple[str, int, int]]:
        """Node, epoch and size in bytes of every file that is here, in the order in which epochs began."""
        found = [
            (path.parent.name, int(path.stem), path.stat().st_size) for path in self._directory.glob("*/*.seg") if path.stem.isdecimal()
        ]
        return sorted(found, key=lambda each: (each[1], each[0]))

    def read(self, node_id: str, epoch: int, size: int, start: int = 0) -> Iterator[bytes]:
        """`size` bytes of an epoch's file from `start` on, in chunks. Raises ArchiveShort if there are fewer."""
        path = self._path(node_id, epoch)
        try:
            with path.open("rb") as file:
                file.seek(start)
                while size:
                    chunk = file.read(min(size, CHUNK_BYTES))
                    if not chunk:
                        raise ArchiveShort(f"{path} is {size} bytes shorter than what was ingested")
                    size -= len(chunk)
                    yield chunk
        except FileNotFoundError:
            raise ArchiveShort(f"{path} is missing") from None


def make_directory(path: Path) -> None:
    """Make a directory and its parents; each new name is durable in the one above."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync(path.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
