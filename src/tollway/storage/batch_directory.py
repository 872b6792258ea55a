"""Batches in a directory beside the files of tenants: `batches/<organization>/<project>/<id>/`, and their owners.

A batch has these files. `state`: its description, sealed, replaced as a whole. `lines`: its requests, sealed in pieces. `journal`: the ends
of its lines, one record each, appended. `progress`: their counts, for whoever asks meanwhile. `cancel`: there once somebody has cancelled
it. `forgotten`: there once a response in the background was deleted between its storage and its end.

`batches/active/` has one empty file for each batch that has not ended. Whoever runs a batch holds a lock (`flock`) on it, which the kernel
releases when the process ends; so a batch has one owner among all gateways that share the directory. Whoever submits a batch holds the lock
until the batch is whole; one whose submission died has no directory, and its file is removed by the next that finds it.
`batches/ended/` has one for each batch that is about to end or has ended, until control has its report or the batch is removed.

A record of the journal is the number of its line, the size of its text, the result, the size of what follows, the id of the request that
was answered, and its text, sealed for its place. Whether a request was answered decides on its bill where its gateway died
(`list_answered`), so the ids are kept, in `answered`, when the journal is removed, also where the batch is deleted. `attempts` has the ids
of all requests that were made of a response in the background, because nothing else distinguishes them from those of a client. `append`
returns once the record is on the disk: several that are appended at once share one `fdatasync`. A process that dies leaves at most its last
record cut; that is cut off when the journal is opened again. A record that cannot be opened anywhere else is damage, and the batch
waits."""

import errno
import fcntl
import os
import shutil
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec

from tollway.domain.batches import SHOWN_SECONDS, Batch, BatchEnd, BatchStatus, LineCounts, LineResult
from tollway.domain.faults import FILES_UNAVAILABLE, QUOTA_EXCEEDED, STATE_CONFLICT, Fault
from tollway.domain.files import FileOwner
from tollway.domain.ids import ORGANIZATION, REQUEST
from tollway.storage.sealed_pieces import read_pieces, write_pieces
from tollway.storage.tenant_files import failures_told, remove_tree, sync_directory
from tollway.storage.vault import LocalVault

BATCHES: Final = "batches"
_ACTIVE: Final = "active"
_LOCK: Final = ".lock"
_RECORD: Final = struct.Struct(">IIBI16s")
_ID_BYTES: Final = 16
_ANSWERED: Final = "answered"
_ATTEMPTS: Final = "attempts"
_STATE: Final = "state"
_ENDED: Final = "ended"
_FORGOTTEN: Final = "forgotten"
_COUNTS: Final = struct.Struct(">4I")
_UNFINISHED: Final = ".new"
_ABANDONED_SECONDS: Final = 3_600
"""Age from which a directory that was not finished is removed: its process died."""


class BatchDirectory:
    """The batches. Its functions block; call them from worker threads, from several at once if need be. All raise Fault files_unavailable
    where the disk fails."""

    def __init__(
        self, directory: Path, vault: LocalVault, now_us: Callable[[], int], *, organization_batches_max: int, free_bytes_min: int
    ) -> None:
        """`directory`: of the files. Nothing is read or made before the first call."""
        self._root = directory / BATCHES
        self._active = self._root / _ACTIVE
        self._ended = self._root / _ENDED
        self._vault = vault
        self._now_us = now_us
        self._organization_batches_max = organization_batches_max
        self._free_bytes_min = free_bytes_min

    def create(self, batch: Batch, lines: Iterable[bytes], size: int) -> None:
        """Store a batch durably with its lines, of `size` bytes. Raises Fault quota_exceeded."""
        place = self._find_place(batch.owner, batch.id)
        unfinished = place.with_name(place.name + _UNFINISHED)
        with failures_told():
            self._make_directories(place.parent)
            disk = os.statvfs(self._root)
            if disk.f_bavail * disk.f_frsize - 2 * size < self._free_bytes_min:
                raise Fault(FILES_UNAVAILABLE, retry_after_seconds=60, detail="the disk is nearly full")
            entry = self._add_active(batch)
            try:
                unfinished.mkdir(mode=0o700)
                _write_state(unfinished, self._vault, batch)
                with _open_new(unfinished / "lines") as target:
                    write_pieces(target, self._vault, f"{_find_context(batch)}:lines", lines)
                    _flush(target)
                sync_directory(unfinished)
                os.rename(unfinished, place)
                sync_directory(place.parent)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                self._find_active(batch).unlink(missing_ok=True)
                raise
            finally:
                os.close(entry)

    def _make_directories(self, of_project: Path) -> None:
        for directory in (self._active, self._ended, of_project):
            if not directory.exists():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                for each in (directory.parent, *list(directory.parent.parents)[:3]):
                    sync_directory(each)

    def _add_active(self, batch: Batch) -> int:
        """Return the descriptor of the new entry of a batch, locked."""
        organization_id, kind = batch.owner.organization_id, f".{batch.id.partition('_')[0]}_"
        with self._lock():
            names = (name for name in os.listdir(self._active) if name.startswith(f"{organization_id}."))
            if sum(kind in name for name in names) >= self._organization_batches_max:
                what = "responses in the background" if batch.is_response else "batches"
                message = f"The organization has as many {what} as it may that have not ended ({self._organization_batches_max})."
                raise Fault(QUOTA_EXCEEDED, message=message)
            while True:
                entry = os.open(self._find_active(batch), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(entry, fcntl.LOCK_EX)
                    if os.fstat(entry).st_nlink:  # a claim that locked it before this has removed it
                        sync_directory(self._active)
                        return entry
                except BaseException:
                    os.close(entry)
                    raise
                os.close(entry)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Exclude other submissions and deletions in the block, of any process."""
        descriptor = os.open(self._active / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def find(self, owner: FileOwner, id: str) -> Batch | None:
        """Return a batch as it stands, None if the project has none with this id, or none any more."""
        with failures_told():
            return None if (self._find_place(owner, id) / _FORGOTTEN).exists() else self._read(owner, id)

    def list_page(self, owner: FileOwner, kind: str, after: str, before: str, limit: int) -> tuple[list[Batch], bool]:
        """Return the newest batches of a kind (the prefix of their ids) of a project, and whether there are more. `after`, `before`: ids
        that the page follows, or that follow it; empty for none."""
        found: list[Batch] = []
        with failures_told():
            place = self._root / owner.organization_id / owner.project_id
            names = [name for name in _list_names(place) if name.startswith(f"{kind}_") and not name.endswith(_UNFINISHED)]
            names = sorted(names, reverse=not before)
            for name in names:
                if (after and name >= after) or (before and name <= before):
                    continue
                with suppress(ValueError, struct.error, PermissionError):
                    batch = self._read(owner, name)
                    if batch is not None and len(found) == limit:
                        return (found[::-1] if before else found), True
                    if batch is not None:
                        found.append(batch)
        return (found[::-1] if before else found), False

    def cancel(self, owner: FileOwner, id: str) -> Batch | None:
        """Have no further line of a batch sent, and return the batch; None if the project has none with this id. Raises Fault conflict for
        one that has ended."""
        with failures_told():
            batch = self._read(owner, id)
            if batch is None:
                return None
            if batch.has_ended:
                raise Fault(STATE_CONFLICT, message=f"A batch that is {batch.status} cannot be cancelled.")
            self._mark(owner, id, "cancel")
            return self._read(owner, id)

    def forget(self, owner: FileOwner, id: str) -> bool:
        """Note durably that a response in the background is deleted that was stored and has not ended: whoever ends it deletes what it
        has stored again. Return whether there is one."""
        with failures_told():
            batch = self._read(owner, id)
            if batch is None or batch.has_ended:
                return False
            self._mark(owner, id, _FORGOTTEN)
            return True

    def _mark(self, owner: FileOwner, id: str, name: str) -> None:
        """Make an empty file of a batch durably."""
        place = self._find_place(owner, id)
        with _open_new(place / name, exclusive=False) as target:
            _flush(target)
        sync_directory(place)

    def delete(self, owner: FileOwner, id: str) -> bool:
        """Delete a batch with its results, but for the ids of the requests that answered its lines. Return whether the project had it.
        Raises Fault conflict for one that has not ended."""
        with failures_told():
            batch = self._read(owner, id)
            if batch is None:
                return False
            if not batch.has_ended:
                raise Fault(STATE_CONFLICT, message="A batch that has not ended cannot be deleted. Cancel it first.")
            place = self._find_place(owner, id)
            with self._lock():
                _keep_answered(place)
                for name in sorted(os.listdir(place), key=lambda name: name == _STATE):  # last: a deletion that is cut off can be repeated
                    if name not in (_ANSWERED, _ATTEMPTS):
                        (place / name).unlink(missing_ok=True)
                sync_directory(place)
            return True

    def read_results(self, owner: FileOwner, id: str) -> Iterator[bytes]:
        """Yield the texts of all lines of a batch that has ended, which keeps its journal."""
        with failures_told():
            place = self._find_place(owner, id)
            for record in _read_journal(place / "journal", self._vault, f"batch:{owner.organization_id}:{owner.project_id}:{id}"):
                yield record.text

    def list_active(self) -> list[str]:
        """Return the names of the batches that have not ended, for `claim`, those submitted first before others."""
        with failures_told():
            return sorted((name for name in _list_names(self._active) if name != _LOCK), key=lambda name: name.rpartition("_")[2])

    def claim(self, name: str) -> "ActiveBatch | None":
        """Return an active batch, owned by the caller until `ActiveBatch.release`; None if somebody else has it, or it has ended."""
        with failures_told():
            path = self._active / name
            try:
                entry = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(entry).st_nlink:
                    raise BlockingIOError
                organization_id, project_id, id = name.split(".")
                batch = self._read(FileOwner(organization_id, project_id), id)
                if batch is None or batch.has_ended:  # its submission died, or whoever ended it
                    path.unlink(missing_ok=True)
                    raise BlockingIOError
                return ActiveBatch(self._find_place(batch.owner, id), path, entry, self._vault, batch)
            except BlockingIOError:
                os.close(entry)
                return None
            except BaseException:
                os.close(entry)
                raise

    def list_ends(self, count_max: int) -> list[BatchEnd]:
        """Return batches that have ended and that were not reported to control yet, up to so many. One that cannot be opened holds up no
        other."""
        ends: list[BatchEnd] = []
        with failures_told():
            for name in sorted(_list_names(self._ended)):
                if len(ends) == count_max:
                    break
                with suppress(ValueError, struct.error, PermissionError):
                    organization_id, project_id, id = name.split(".")
                    batch = self._read(FileOwner(organization_id, project_id), id)
                    if batch is None:  # it was deleted
                        (self._ended / name).unlink(missing_ok=True)
                    elif batch.ended_at is not None:
                        ends.append(BatchEnd.of(batch))
        return ends

    def forget_ends(self, ends: Iterable[BatchEnd]) -> None:
        """Note that batches that have ended were reported to control."""
        with failures_told():
            for each in ends:
                (self._ended / f"{each.organization_id}.{each.project_id}.{each.id}").unlink(missing_ok=True)

    def list_answered(self, owner: FileOwner) -> set[str]:
        """Return the ids of the requests that answered lines of a project's batches. Raises OSError, and no Fault: also for a project
        without a directory. Whoever asks knows that it has had a batch: this is not the directory of the batches then."""
        place = self._root / owner.organization_id / owner.project_id
        return {id for name in os.listdir(place) for id in _list_answered(place / name)}

    def list_attempts(self, owner: FileOwner) -> set[str]:
        """Return the ids of the requests that were made of a project's responses in the background. Raises OSError."""
        place = self._root / owner.organization_id / owner.project_id
        found: set[str] = set()
        for name in _list_names(place):
            with suppress(FileNotFoundError):
                found.update(_split_ids((place / name / _ATTEMPTS).read_bytes()))
        return found

    def remove_organization(self, organization_id: str) -> None:
        """Remove every batch of an organization, those that have not ended among them, but for the ids of the requests that answered their
        lines: a gateway that died may still have to bill them. One that a gateway runs is left until that has ended it. Raises OSError,
        struct.error or ValueError."""
        for place in self._root.glob(f"{organization_id}/*/*"):
            entry = self._active / f"{organization_id}.{place.parent.name}.{place.name.removesuffix(_UNFINISHED)}"
            with self._lock(), _removing(entry) as may_remove:
                if not may_remove:
                    continue
                if place.name.endswith(_UNFINISHED):
                    remove_tree(place)
                elif left := [name for name in _list_names(place) if name not in (_ANSWERED, _ATTEMPTS)]:
                    _keep_answered(place)
                    for name in left:
                        (place / name).unlink(missing_ok=True)
                    sync_directory(place)

    def remove_expired(self) -> None:
        """Remove batches that are not shown any more, what submissions that died left, and that batches are to be reported to control that
        are not there: without a control plane nobody takes these. Raises OSError."""
        now = self._now_us() / 1_000_000
        for of_project in self._root.glob(f"{ORGANIZATION}_*/*"):
            for place in of_project.iterdir():
                with suppress(FileNotFoundError):
                    age = now - place.stat().st_mtime
                    if place.name.endswith(_UNFINISHED):
                        is_over = age > _ABANDONED_SECONDS
                    else:
                        active = self._active / f"{of_project.parent.name}.{of_project.name}.{place.name}"
                        is_over = age > SHOWN_SECONDS and not active.exists()
                    if is_over:
                        shutil.rmtree(place)
        for name in _list_names(self._ended):
            if not self._root.joinpath(*name.split("."), _STATE).exists():
                (self._ended / name).unlink(missing_ok=True)

    def _read(self, owner: FileOwner, id: str) -> Batch | None:
        """Return a batch as it stands; None if there is none, or it is not shown any more."""
        place = self._find_place(owner, id)
        try:
            sealed = (place / _STATE).read_bytes()
        except FileNotFoundError:
            return None
        opened = self._vault.unseal_bytes(sealed, context=f"batch:{owner.organization_id}:{owner.project_id}:{id}:state")
        batch = msgspec.msgpack.decode(opened, type=Batch)
        if batch.has_ended:
            return batch if batch.created_at + SHOWN_SECONDS > self._now_us() // 1_000_000 else None
        with suppress(FileNotFoundError, struct.error):
            counts = LineCounts(*_COUNTS.unpack((place / "progress").read_bytes()))
            batch = msgspec.structs.replace(batch, counts=counts)
        with suppress(FileNotFoundError):
            cancelled_at = int((place / "cancel").stat().st_mtime)
            batch = msgspec.structs.replace(batch, cancelling_at=cancelled_at, status=BatchStatus.CANCELLING)
        return batch

    def _find_place(self, owner: FileOwner, id: str) -> Path:
        return self._root / owner.organization_id / owner.project_id / id

    def _find_active(self, batch: Batch) -> Path:
        return self._active / f"{batch.owner.organization_id}.{batch.owner.project_id}.{batch.id}"


class ActiveBatch:
    """A batch that its caller runs. `batch`: its description as it was saved last. `ends`: how each line ended that has, by its number from
    0; `counts` and `sizes`: how many these are, and the bytes of their texts, by result. Its functions block, and raise Fault
    files_unavailable where the disk fails; `append` may be called from several threads."""

    def __init__(self, place: Path, entry: Path, descriptor: int, vault: LocalVault, batch: Batch) -> None:
        self.batch = batch
        self.ends: dict[int, LineResult] = {}
        self.counts = [0] * len(LineResult)
        self.sizes = [0] * len(LineResult)
        self._place = place
        self._entry = entry
        self._descriptor = descriptor
        self._vault = vault
        self._context = _find_context(batch)
        self._journal = -1
        self._progress = -1
        self._written = self._synced = 0
        self._has_failed = False
        self._writing = threading.Lock()
        self._syncing = threading.Lock()

    def open_journal(self) -> None:
        """Read which lines have ended, and cut off a record that a process left unfinished. Call it before the functions below."""
        with failures_told():
            path = self._place / "journal"
            self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._progress = os.open(self._place / "progress", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            for record in _read_journal(path, self._vault, self._context):
                self._note(record.line, record.result, len(record.text))
                self._written = record.end
            os.ftruncate(self._journal, self._written)
            os.fsync(self._journal)
            sync_directory(self._place)
            self._synced = self._written

    def _note(self, line: int, result: LineResult, size: int) -> None:
        self.ends[line] = result
        self.counts[result] += 1
        self.sizes[result] += size

    def save(self, batch: Batch) -> None:
        """Replace the description durably."""
        with failures_told():
            _write_state(self._place, self._vault, batch)
            self.batch = batch

    def read_lines(self) -> bytes:
        """Return the lines."""
        with failures_told(), (self._place / "lines").open("rb") as source:
            return b"".join(read_pieces(source, self._vault, f"{self._context}:lines"))

    def is_cancelled(self) -> bool:
        """Return whether somebody has cancelled the batch."""
        with failures_told():
            return (self._place / "cancel").exists()

    def is_forgotten(self) -> bool:
        """Return whether somebody has deleted the response in the background that this is."""
        with failures_told():
            return (self._place / _FORGOTTEN).exists()

    def note_attempt(self, request_id: str) -> None:
        """Note durably that a request is made of this response in the background, before it is sent."""
        with failures_told():
            path = self._place / _ATTEMPTS
            is_new = not path.exists()
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as target:
                target.truncate(target.tell() // _ID_BYTES * _ID_BYTES)  # a power cut may have left a part of one
                target.write(bytes.fromhex(request_id.removeprefix(f"{REQUEST}_")))
                _flush(target)
            if is_new:
                sync_directory(self._place)

    def append(self, line: int, result: LineResult, text: bytes, request_id: str = "", *, durable: bool) -> None:
        """Append how a line ended, and the request that was answered. Once `durable` it is on the disk, and all that was appended before
        it."""
        id = bytes.fromhex(request_id.removeprefix(f"{REQUEST}_"))
        sealed = self._vault.seal_bytes(text, context=f"{self._context}:{line}:{result:d}:{id.hex()}")
        data = _RECORD.pack(line, len(text), result, len(sealed), id) + sealed
        with failures_told():
            with self._writing:
                if self._has_failed:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                if line not in self.ends:
                    self._write(data)
                    self._written += len(data)
                    self._note(line, result, len(text))
                    with suppress(OSError):  # what is shown meanwhile does not decide whether the line has ended
                        os.pwrite(self._progress, _COUNTS.pack(*self.counts), 0)
                end = self._written
            if durable:
                self.sync(end)

    def _write(self, data: bytes) -> None:
        """Append a whole record, or nothing."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._journal, data[written:])
        except OSError:
            self._fail(self._written)
            raise

    def _fail(self, end: int) -> None:
        """Take nothing more, and take back what is behind the offset `end`: nobody gets the answer that it was appended. The journal is to
        be opened again."""
        self._has_failed = True
        with suppress(OSError):
            os.ftruncate(self._journal, end)

    def sync(self, end: int | None = None) -> None:
        """Have what was appended on the disk, up to the offset `end` at least; None for all."""
        with failures_told(), self._syncing:
            with self._writing:
                written, has_failed = self._written, self._has_failed
            if self._synced < (written if end is None else end):
                if has_failed:  # what was written before may be lost, whatever a later call says
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                try:
                    os.fdatasync(self._journal)
                except OSError:
                    with self._writing:
                        self._fail(self._synced)
                    raise
                self._synced = written

    def read_texts(self, results: Collection[LineResult]) -> Iterator[bytes]:
        """Yield the texts of the lines that ended so."""
        with failures_told():
            for record in _read_journal(self._place / "journal", self._vault, self._context):
                if record.result in results:
                    yield record.text

    def finish(self, batch: Batch) -> None:
        """Save a batch that has ended: nobody runs it any more. What its output files hold is removed."""
        if not batch.is_response:
            with failures_told():  # before it is saved: nobody looks again at a batch whose process died after that
                ended = self._entry.parent.with_name(_ENDED)
                ended.mkdir(mode=0o700, exist_ok=True)  # a version before this one made none
                (ended / self._entry.name).touch(mode=0o600)
                sync_directory(ended)
        self.save(batch)
        with failures_told():
            (self._place / "lines").unlink(missing_ok=True)
            if batch.has_files or batch.is_response:  # its results are elsewhere; others are read from the journal
                _keep_answered(self._place)
                (self._place / "journal").unlink(missing_ok=True)
            self._entry.unlink(missing_ok=True)  # last: what has an entry that is held is left alone
            sync_directory(self._entry.parent)

    def release(self) -> None:
        """Let others run the batch. Call it once."""
        for descriptor in (self._journal, self._progress, self._descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._journal = self._progress = -1


class _Record(NamedTuple):
    """A record of a journal. `end`: the offset behind it."""

    line: int
    result: LineResult
    text: bytes
    end: int


def _read_journal(path: Path, vault: LocalVault, context: str) -> Iterator[_Record]:
    """Yield the records of a journal, up to one that is cut. Raises ValueError for one that cannot be opened and is not the last."""
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return
    with source:
        end, size = 0, os.fstat(source.fileno()).st_size
        while True:
            head = source.read(_RECORD.size)
            if len(head) < _RECORD.size or not any(head):
                return
            line, _, result, length, id = _RECORD.unpack(head)
            end += _RECORD.size + length
            if end > size:
                return
            try:
                text = vault.unseal_bytes(source.read(length), context=f"{context}:{line}:{result:d}:{id.hex() if any(id) else ''}")
            except ValueError:
                if end == size:
                    return
                raise
            yield _Record(line, LineResult(result), text, end)


@contextmanager
def _removing(entry: Path) -> Iterator[bool]:
    """Say whether nobody runs or submits the batch of an active entry; then nobody begins to in the block, and the entry is removed after
    it. A batch that has ended has none."""
    try:
        descriptor = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        entry.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _list_answered(place: Path) -> Iterator[str]:
    """Yield the ids of the requests that answered lines of one batch."""
    try:
        source = (place / "journal").open("rb")
    except FileNotFoundError:  # the batch has ended, was deleted, or never had an answer
        with suppress(FileNotFoundError):
            yield from _split_ids((place / _ANSWERED).read_bytes())
        return
    with source:
        size, end = os.fstat(source.fileno()).st_size, 0
        while len(head := source.read(_RECORD.size)) == _RECORD.size:
            _, _, _, length, id = _RECORD.unpack(head)
            end += _RECORD.size + length
            if end > size:
                return
            if any(id):
                yield f"{REQUEST}_{id.hex()}"
            source.seek(end)


def _split_ids(ids: bytes) -> Iterator[str]:
    """Yield the ids of requests whose bytes follow each other."""
    yield from (f"{REQUEST}_{ids[start : start + _ID_BYTES].hex()}" for start in range(0, len(ids), _ID_BYTES))


def _keep_answered(place: Path) -> None:
    """Keep durably which requests answered lines of a batch, so that its journal can be removed."""
    _replace(place / _ANSWERED, b"".join(bytes.fromhex(id.removeprefix(f"{REQUEST}_")) for id in _list_answered(place)))


def _write_state(place: Path, vault: LocalVault, batch: Batch) -> None:
    _replace(place / _STATE, vault.seal_bytes(msgspec.msgpack.encode(batch), context=f"{_find_context(batch)}:state"))


def _replace(path: Path, content: bytes) -> None:
    """Write a file durably, so that whoever reads it meanwhile, or after a crash, has all of it or what was there before, also where
    another process does the same."""
    unfinished = path.with_name(f"{path.name}.{os.urandom(4).hex()}{_UNFINISHED}")
    try:
        with _open_new(unfinished) as target:
            target.write(content)
            _flush(target)
        os.rename(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _open_new(path: Path, *, exclusive: bool = True) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else os.O_TRUNC)
    return open(os.open(path, flags, 0o600), "wb")


def _flush(target: BinaryIO) -> None:
    target.flush()
    os.fsync(target.fileno())


def _list_names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _find_context(batch: Batch) -> str:
    """Return what the parts of a batch are sealed for, so that none can be moved to another one."""
    return f"batch:{batch.owner.organization_id}:{batch.owner.project_id}:{batch.id}"
