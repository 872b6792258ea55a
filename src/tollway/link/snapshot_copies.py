"""The copy of the snapshot on a gateway's disk: what lets it start while control is away.

    snapshot-<version>.ndjson               head, entries, and a last line with the SHA-256 of all before it
    changes-<base version>-<owner>.log      changes after <base version>, a line each: CRC-32 in hex, a blank, the
    change; <owner> ends with "-v" if they are verbatim
    confirmed                               the latest confirmation by control: version, instant

The copy stands at the newest whole snapshot plus every later change that follows without a gap, from whichever log
has it. Files are named by version and never rewritten, so an older copy cannot take a newer one's place. Two gateway
processes share the directory while one relieves the other: each appends to a log of its own, which it holds locked,
and removes only what nobody holds and what a newer snapshot already contains.

Entries and changes are kept as control sent them, with what this version does not know, so that the next version finds
it. Programs before this one kept what they knew; what they wrote is not marked as verbatim, and whoever reads it should
ask control for the whole once more.

A log's last line may be torn: it was never acknowledged. Anything else that does not check means that the copy cannot
be trusted, and it is as if there were none: a gateway that guessed could bring a revoked key back.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from tollway.domain.snapshot import FORMAT, Entry, SnapshotHead
from tollway.domain.snapshot import decode_entry as decode_line
from tollway.link.epochs import sync_directory

_SNAPSHOT_NAME = re.compile(r"snapshot-([0-9]{20})\.ndjson")
_LOG_NAME = re.compile(r"changes-([0-9]{20})-[0-9a-z-]+\.log")

_VERBATIM = "-v"
"""End of the names of logs whose changes are as control sent them."""

CONFIRMED_NAME = "confirmed"

YIELD_ENTRIES = 200
"""Lines handled between two looks at the clock of others: about 0.2 ms of work, far below the 5 ms that a pause may
last."""

COMPACT_BYTES_MIN = 1 << 20
"""A log is folded into a new snapshot when it is longer than this and than the snapshot: total writing stays below
three times what changed."""


class CopyDamaged(Exception):
    """The copy on disk does not check."""


class _Trailer(msgspec.Struct, frozen=True):
    sha256: str


class _Key(msgspec.Struct, frozen=True):
    """Kind and id of an entry; the rest of its line is left unread."""

    kind: str
    id: str


class _RawChange(msgspec.Struct, frozen=True):
    version: int
    kind: str
    id: str
    entry: msgspec.Raw


class Copy:
    """A snapshot as it lies on disk: its version, and its entries, which are read one by one, because there may be a million. They can be
    read once."""

    def __init__(self, version: int, snapshot: BinaryIO, changed: dict[tuple[str, str], bytes | None], *, is_verbatim: bool) -> None:
        """`snapshot`: the file that was verified, at its first entry. `changed`: what became of entries since, by kind and id; None for one
        that was removed. `is_verbatim`: all lines are as control sent them."""
        self.version = version
        self.is_verbatim = is_verbatim
        self._snapshot = snapshot
        self._changed = changed

    def lines(self) -> Iterator[bytes]:
        """The entries, each as its line. Raises CopyDamaged for a line that is no entry."""
        decode: Callable[[bytes], _Key] = msgspec.json.Decoder(_Key).decode
        with self._snapshot:
            for line in self._snapshot:
                if line.startswith(_TRAILER):
                    break
                if self._changed:
                    try:
                        key = decode(line)
                    except (ValueError, RecursionError) as error:
                        raise CopyDamaged(str(error)) from None
                    if (key.kind, key.id) in self._changed:
                        continue
                yield line.rstrip(b"\n")
        yield from (line for line in self._changed.values() if line is not None)

    def entries(self) -> Iterator[Entry]:
        """The entries of kinds that this version knows, decoded one by one. Raises CopyDamaged for a line that is no entry."""
        return (entry for entry in map(decode_entry, self.lines()) if entry is not None)


def decode_entry(line: bytes) -> Entry | None:
    """Return the entry of a line of a copy; None for one of a kind that this version does not know. Raises CopyDamaged."""
    try:
        return decode_line(line)
    except (ValueError, RecursionError) as error:
        raise CopyDamaged(str(error)) from None


def write_copy(directory: Path, version: int, entries: Iterable[Entry]) -> None:
    """Write a whole snapshot, durably, and remove what it makes superfluous."""
    encode = msgspec.json.Encoder().encode
    with SnapshotDraft(directory) as draft:
        lines = [encode(entry) for entry in entries]
        draft.write(lines)
        draft.publish(version, is_verbatim=True)


def load_copy(directory: Path) -> Copy | None:
    """The newest state that the files in `directory` prove; None if there is no copy. Raises CopyDamaged if it cannot
    be trusted."""
    if not directory.is_dir():
        return None
    snapshots, logs = _list_files(directory)
    if not snapshots:
        return None
    version, path = snapshots[-1]
    snapshot, is_verbatim = _open_snapshot(path, version)
    changes: dict[int, _RawChange] = {}
    try:
        for log in sorted((log for _, log in logs), key=_is_verbatim):  # of a change that is in two logs the verbatim one counts
            for change in _read_log(log):
                changes[change.version] = change
                if not _is_verbatim(log) and change.version > version:
                    is_verbatim = False
    except BaseException:
        snapshot.close()
        raise
    changed: dict[tuple[str, str], bytes | None] = {}
    while (change_or_none := changes.get(version + 1)) is not None:
        change = change_or_none
        version += 1
        entry = bytes(change.entry)  # a Raw never equals bytes
        changed[change.kind, change.id] = None if entry == b"null" else entry
    return Copy(version, snapshot, changed, is_verbatim=is_verbatim)


class Confirmation(msgspec.Struct, frozen=True):
    """A statement that the copy held everything that control had published, up to `version`, at instant `at` (UTC microseconds)."""

    version: int
    at: int


def write_confirmation(directory: Path, confirmation: Confirmation) -> None:
    """Replace the confirmation of the copy. It is not synced: one that is lost makes the copy older than it is, which is safe."""
    draft = directory / f"draft-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        draft.write_bytes(msgspec.json.encode(confirmation))
        draft.replace(directory / CONFIRMED_NAME)
    finally:
        draft.unlink(missing_ok=True)


def find_confirmation(directory: Path, version: int) -> Confirmation | None:
    """Return the latest confirmation of a copy that is at `version`; None if there is none that can be read, or one of a later version,
    which means that changes were lost since."""
    try:
        confirmation = msgspec.json.decode((directory / CONFIRMED_NAME).read_bytes(), type=Confirmation)
    except (OSError, ValueError):
        return None
    return confirmation if confirmation.version <= version else None


class SnapshotDraft:
    """A snapshot being written beside the current one; nothing of it counts until `publish`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._path = directory / f"draft-{os.getpid()}-{os.urandom(4).hex()}"
        self._file = _create(self._path)
        self._entries = 0

    def __enter__(self) -> "SnapshotDraft":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, lines: Iterable[bytes]) -> None:
        """Add entries, each as its JSON without a line end."""
        for line in lines:
            self._file.write(line + b"\n")
            self._entries += 1
            if self._entries % YIELD_ENTRIES == 0:
                time.sleep(0)

    def publish(self, version: int, *, is_verbatim: bool) -> None:
        """Make it the snapshot of `version`, durably, and remove older files that nobody holds."""
        self._file.close()
        head = SnapshotHead(format=FORMAT, version=version, entries=self._entries, is_verbatim=is_verbatim)
        first_line = msgspec.json.encode(head) + b"\n"
        digest = hashlib.sha256(first_line)
        final = self._path.with_suffix(".whole")
        try:
            with self._path.open("rb") as body, _create(final) as file:
                file.write(first_line)
                while chunk := body.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
                file.write(msgspec.json.encode(_Trailer(digest.hexdigest())) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(final, self._directory / f"snapshot-{version:020d}.ndjson")
        finally:
            final.unlink(missing_ok=True)
        sync_directory(self._directory)
        _remove_superseded(self._directory, version)


class ChangeLog:
    """One process' log of changes. Its methods wait for the disk: call them from a worker thread, one at a time."""

    def __init__(self, directory: Path, version: int) -> None:
        """A new log for the changes after `version`."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.bytes_written = 0
        self._is_torn = False
        self._fd = self._open(version)

    def _open(self, version: int) -> int:
        path = self.directory / f"changes-{version:020d}-{os.getpid()}-{os.urandom(4).hex()}{_VERBATIM}.log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        sync_directory(self.directory)
        self.bytes_written = 0
        return fd

    def append(self, changes: list[tuple[int, bytes]]) -> None:
        """Write changes (version, line as control sent it), durably. Raises OSError; then a new log is begun, and the same changes may
        be tried again."""
        if self._is_torn:
            self.restart(changes[0][0] - 1)
        data = b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for _, line in changes)
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError("a change was written in part")
            os.fdatasync(self._fd)
        except OSError:
            self._is_torn = True  # until the file is as it was, nothing may be written behind the torn line
            os.ftruncate(self._fd, self.bytes_written)
            self._is_torn = False
            raise
        self.bytes_written += len(data)

    def restart(self, version: int) -> None:
        """Go on in a new file, for the changes after `version`; the old one is left to whoever removes what is
        superseded."""
        before, self._fd = self._fd, self._open(version)
        self._is_torn = False
        os.close(before)

    def compact(self, version: int) -> None:
        """Fold all logs into a new snapshot of at least `version`, which must be what this log has reached."""
        self.restart(version)
        copy = load_copy(self.directory)
        if copy is not None:
            with SnapshotDraft(self.directory) as draft:
                draft.write(copy.lines())
                draft.publish(copy.version, is_verbatim=copy.is_verbatim)

    def is_long(self) -> bool:
        """Return whether it is time to compact."""
        if self.bytes_written < COMPACT_BYTES_MIN:
            return False
        snapshots, _ = _list_files(self.directory)
        return not snapshots or self.bytes_written > snapshots[-1][1].stat().st_size

    def close(self) -> None:
        """Close the log; its content stays part of the copy."""
        os.close(self._fd)


def _create(path: Path) -> BinaryIO:
    """Create a file that only its owner may read: it holds digests of keys and sealed credentials."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _list_files(directory: Path) -> tuple[list[tuple[int, Path]], list[tuple[int, Path]]]:
    """Snapshots by version and logs by base version, oldest first."""
    snapshots, logs = [], []
    for name in os.listdir(directory):
        if match := _SNAPSHOT_NAME.fullmatch(name):
            snapshots.append((int(match.group(1)), directory / name))
        elif match := _LOG_NAME.fullmatch(name):
            logs.append((int(match.group(1)), directory / name))
    return sorted(snapshots), sorted(logs)


_TRAILER = b'{"sha256":'
"""Beginning of the last line of a snapshot, and of no entry."""

_PIECE_BYTES = 1 << 20


def _is_verbatim(log: Path) -> bool:
    return log.stem.endswith(_VERBATIM)


def _open_snapshot(path: Path, version: int) -> tuple[BinaryIO, bool]:
    """Return the file of a snapshot that is whole, at its first entry, and whether it is verbatim. Raises CopyDamaged."""
    file = path.open("rb", buffering=_PIECE_BYTES)
    try:
        return file, _verify(file, path, version).is_verbatim
    except BaseException:
        file.close()
        raise


def _verify(file: BinaryIO, path: Path, version: int) -> SnapshotHead:
    """Check the digest and the head of a snapshot, leave the file at its first entry, and return the head. Raises CopyDamaged."""
    end = _find_trailer(file)
    file.seek(end)
    last_line = file.read()
    file.seek(0)
    digest, lines = hashlib.sha256(), 0
    for piece in iter(lambda: file.read(min(_PIECE_BYTES, end - file.tell())), b""):
        digest.update(piece)
        lines += piece.count(b"\n")
        time.sleep(0)
    file.seek(0)
    try:
        trailer = msgspec.json.decode(last_line, type=_Trailer)
        if trailer.sha256 != digest.hexdigest():
            raise CopyDamaged(f"{path}: the digest is wrong")
        head = msgspec.json.decode(file.readline(), type=SnapshotHead)
    except (ValueError, RecursionError) as error:
        raise CopyDamaged(f"{path}: {error}") from None
    if head.format > FORMAT:
        raise CopyDamaged(f"{path}: format {head.format} is newer than this program's {FORMAT}")
    if head.version != version or head.entries != lines - 1:
        raise CopyDamaged(f"{path}: the head does not describe the file")
    return head


def _find_trailer(file: BinaryIO) -> int:
    """Return where the last line begins."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - 4096)  # much longer than a trailer
    file.seek(start)
    tail = file.read()
    return start + tail.rfind(b"\n", 0, -1) + 1


def _read_log(path: Path) -> Iterator[_RawChange]:
    try:
        rows = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return  # superseded and removed by another process since it was listed
    decode = msgspec.json.Decoder(_RawChange).decode
    for number, row in enumerate(rows):
        if number % YIELD_ENTRIES == 0:
            time.sleep(0)
        if len(row) < 9 or row[8:9] != b" " or row[:8] != b"%08x" % zlib.crc32(row[9:]):
            if number == len(rows) - 1:
                return  # after the last line end: nothing, or a torn line
            raise CopyDamaged(f"{path}: line {number + 1} is wrong")
        if number == len(rows) - 1:
            return  # whole but for its line end: not yet acknowledged either
        try:
            yield decode(row[9:])
        except (ValueError, RecursionError) as error:
            raise CopyDamaged(f"{path}: line {number + 1}: {error}") from None


def _remove_superseded(directory: Path, version: int) -> None:
    """Remove snapshots older than `version`, and logs that nobody holds and that go no further than it."""
    snapshots, logs = _list_files(directory)
    for older, path in snapshots:
        if older < version:
            path.unlink(missing_ok=True)
    for _, path in logs:
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    latest = max((change.version for change in _read_log(path)), default=0)
                except CopyDamaged:
                    latest = 0
                if latest <= version:
                    path.unlink(missing_ok=True)
            finally:
                os.close(fd)
