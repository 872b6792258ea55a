"""Files of tenants in a directory, one sealed file each: `<organization>/<project>/<id>`.

A file is written under another name and renamed once it is on the disk, so one that is there is whole. It begins with the length of its
sealed description, which the sealed pieces of its content follow; all are sealed for the file's place, so that none can be moved to another
tenant. Directories of other names than an organization's are not looked at: batches are in one (`batch_directory`).
Several gateways can use one directory if they share it and the vault's key: whoever adds a file holds a lock (`flock`) of its organization.

A file that cannot be opened (it was altered, is sealed under another key, or may not be read) stands in no list and can be deleted. It
counts in the quota until it is deleted, or every file of its age has expired.
"""

import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import msgspec

from tollway.domain.faults import FILES_UNAVAILABLE, QUOTA_EXCEEDED, Fault
from tollway.domain.files import EXPIRY_SECONDS_MAX, FileOwner, FilePurpose, StoredFile
from tollway.domain.ids import ORGANIZATION
from tollway.storage.sealed_pieces import ByteSource, read_pieces, seal_pieces
from tollway.storage.vault import LocalVault

_LENGTH = struct.Struct(">I")
DESCRIPTION_BYTES_MAX = 16 * 1024
_UNREADABLE = (ValueError, struct.error, PermissionError)
"""Errors of opening one file while the disk is well."""
_LOCK = ".lock"
_UNFINISHED = ".new"
_ABANDONED_SECONDS = 3_600
"""Age from which a file that was not finished is removed: its process died."""


class FileBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The store and its bounds. `directory`: where it is, None for no store. `bucket`: of an S3-compatible store that holds the files in
    place of the directory (`tenant_objects`), at `bucket_endpoint` (None: Amazon's) in `bucket_region`, under `bucket_prefix`.
    `lifetime_seconds`: of a file for which its client asks for no other. `organization_files_max`, `organization_bytes_max`: of one
    organization. `free_bytes_min`: what stays free of the disk."""

    directory: str | None = None
    bucket: str | None = None
    bucket_endpoint: str | None = None
    bucket_region: str = "us-east-1"
    bucket_prefix: str = ""
    lifetime_seconds: int = 30 * 86_400
    organization_files_max: int = 1_000
    organization_bytes_max: int = 1024 * 1024 * 1024
    free_bytes_min: int = 1024 * 1024 * 1024


class FileDirectory:
    """The store. Its functions block; call them from worker threads, from several at once if need be."""

    def __init__(self, directory: Path, vault: LocalVault, bounds: FileBounds, now_us: Callable[[], int]) -> None:
        """Nothing is read or made before the first call, so that a disk that fails keeps no gateway from its start."""
        self._directory = directory
        self._vault = vault
        self._bounds = bounds
        self._now_us = now_us

    def add(self, owner: FileOwner, file: StoredFile, pieces: Iterable[bytes]) -> None:
        """Store a file durably, in place of one with its id. Raises Fault quota_exceeded, or files_unavailable if the disk fails or is
        full. Output of a batch is bound by no quota: it was paid for."""
        place = self._find_place(owner, file.id)
        with failures_told():
            self._make_directories(owner)
            with self._locked(owner.organization_id):
                if file.purpose is not FilePurpose.BATCH_OUTPUT:
                    self._check_quota(owner.organization_id, file.size)
                self._check_disk(file.size)
                unfinished = place.with_name(place.name + _UNFINISHED)
                try:
                    self._write(unfinished, owner, file, pieces)
                    os.rename(unfinished, place)
                except BaseException:
                    unfinished.unlink(missing_ok=True)
                    raise
                sync_directory(place.parent)

    def _make_directories(self, owner: FileOwner) -> None:
        """Make the directories of a project durably, those that another process has just made too."""
        if not self._directory.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self._directory.parent)
        of_organization = self._directory / owner.organization_id
        for directory in (of_organization, of_organization / owner.project_id):
            directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory.parent)

    def _write(self, path: Path, owner: FileOwner, file: StoredFile, pieces: Iterable[bytes]) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as target:
            for part in seal_file(self._vault, owner, file, pieces):
                target.write(part)
            target.flush()
            os.fsync(target.fileno())

    def _check_quota(self, organization_id: str, size: int) -> None:
        """Raise Fault if an organization may not store so many bytes more."""
        bounds = self._bounds
        sizes: list[int] = []
        for path in self._list_paths(self._directory / organization_id):
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                sizes.append(path.stat().st_size)
        if len(sizes) >= bounds.organization_files_max or sum(sizes) + size > bounds.organization_bytes_max:
            raise quota_fault(bounds)

    def _check_disk(self, size: int) -> None:
        """Raise Fault if the disk has not got so many bytes."""
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize - size < self._bounds.free_bytes_min:
            raise Fault(FILES_UNAVAILABLE, retry_after_seconds=60, detail="the disk is nearly full")

    def list_files(self, owner: FileOwner) -> list[StoredFile]:
        """Return the files of a project that can be opened, oldest first. Raises Fault files_unavailable."""
        found: list[StoredFile] = []
        with failures_told():
            for path in self._list_paths(self._directory / owner.organization_id / owner.project_id):
                with suppress(*_UNREADABLE):
                    file = self._read_description(owner, path)
                    if file is not None:
                        found.append(file)
        return sorted(found, key=lambda file: (file.created_at, file.id))

    def find(self, owner: FileOwner, id: str) -> StoredFile | None:
        """Return a file, None if the project has none with this id. Raises Fault files_unavailable."""
        with failures_told():
            return self._read_description(owner, self._find_place(owner, id))

    def read(self, owner: FileOwner, id: str) -> bytes:
        """Return the content of a file. Raises Fault files_unavailable, also for one that is gone or was altered."""
        return b"".join(self.read_pieces(owner, id))

    def read_pieces(self, owner: FileOwner, id: str) -> Iterator[bytes]:
        """Yield the content of a file. Raises as `read` does."""
        with failures_told(), self._find_place(owner, id).open("rb") as source:
            yield from open_content(self._vault, owner, id, source)

    def delete(self, owner: FileOwner, id: str) -> bool:
        """Delete a file, also one that cannot be opened. Return whether the project had it. Raises Fault files_unavailable."""
        place = self._find_place(owner, id)
        with failures_told():
            with suppress(*_UNREADABLE):
                if self._read_description(owner, place) is None:
                    return False
            place.unlink(missing_ok=True)
            sync_directory(place.parent)
        return True

    def remove_organization(self, organization_id: str) -> None:
        """Remove every file of an organization. Raises OSError."""
        remove_tree(self._directory / organization_id)

    def remove_expired(self) -> None:
        """Remove files that have expired, and what processes that died left unfinished. Raises OSError, of the first that cannot be
        removed, after the others were."""
        if not self._directory.is_dir():
            return
        now, failure = self._now_us() / 1_000_000, None
        for of_organization in self._directory.glob(f"{ORGANIZATION}_*"):
            for of_project in of_organization.iterdir() if of_organization.is_dir() else ():
                for path in of_project.iterdir() if of_project.is_dir() else ():
                    try:
                        if path.name.endswith(_UNFINISHED):
                            if now - path.stat().st_mtime > _ABANDONED_SECONDS:
                                path.unlink()
                        else:
                            owner = FileOwner(of_organization.name, of_project.name)
                            self._remove_if_expired(owner, path)
                    except FileNotFoundError:
                        pass  # it was deleted meanwhile
                    except OSError as error:
                        failure = failure or error
        if failure is not None:
            raise failure

    def _remove_if_expired(self, owner: FileOwner, path: Path) -> None:
        try:
            expires_at: float = self._read_any_description(owner, path).expires_at
        except _UNREADABLE:  # perhaps only with the key that this process has
            expires_at = path.stat().st_mtime + EXPIRY_SECONDS_MAX
        if expires_at <= self._now_us() / 1_000_000:
            path.unlink()

    def _read_description(self, owner: FileOwner, path: Path) -> StoredFile | None:
        """Return what is known of a file; None if there is none, or it has expired."""
        try:
            file = self._read_any_description(owner, path)
        except FileNotFoundError:
            return None
        return file if file.expires_at > self._now_us() // 1_000_000 else None

    def _read_any_description(self, owner: FileOwner, path: Path) -> StoredFile:
        with path.open("rb") as source:
            return open_description(self._vault, owner, path.name, source)

    @contextmanager
    def _locked(self, organization_id: str) -> Iterator[None]:
        descriptor = os.open(self._directory / organization_id / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _find_place(self, owner: FileOwner, id: str) -> Path:
        return self._directory / owner.organization_id / owner.project_id / id

    def _list_paths(self, directory: Path) -> Iterator[Path]:
        """Yield the finished files below a directory."""
        for root, _, names in os.walk(directory):
            yield from (Path(root, name) for name in names if name != _LOCK and not name.endswith(_UNFINISHED))


def seal_file(vault: LocalVault, owner: FileOwner, file: StoredFile, content: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a stored file."""
    description = vault.seal_bytes(msgspec.msgpack.encode(file), context=_find_context(owner, file.id, "description"))
    yield _LENGTH.pack(len(description)) + description
    yield from seal_pieces(vault, _find_context(owner, file.id, "content"), content)


def open_description(vault: LocalVault, owner: FileOwner, id: str, source: ByteSource) -> StoredFile:
    """Return the description at the begin of a stored file. Raises ValueError or struct.error where it cannot be opened."""
    return msgspec.msgpack.decode(
        vault.unseal_bytes(_read_sealed(source), context=_find_context(owner, id, "description")), type=StoredFile
    )


def open_content(vault: LocalVault, owner: FileOwner, id: str, source: ByteSource) -> Iterator[bytes]:
    """Yield the content of a stored file, read from its begin. Raises as `open_description` does."""
    _read_sealed(source)
    yield from read_pieces(source, vault, _find_context(owner, id, "content"))


def _read_sealed(source: ByteSource) -> bytes:
    """Return the sealed description."""
    return source.read(min(_LENGTH.unpack(source.read(_LENGTH.size))[0], DESCRIPTION_BYTES_MAX))


def quota_fault(bounds: FileBounds) -> Fault:
    """Return the fault of an upload to an organization that stores as much as it may."""
    message = (
        f"The organization stores as many files as it may ({bounds.organization_files_max} files,"
        f" {bounds.organization_bytes_max} bytes). Delete some first."
    )
    return Fault(QUOTA_EXCEEDED, message=message)


@contextmanager
def failures_told() -> Iterator[None]:
    """Raise Fault files_unavailable for what a disk, or a file that cannot be opened, raises."""
    try:
        yield
    except OSError as error:
        raise Fault(FILES_UNAVAILABLE, retry_after_seconds=1, detail=f"file store: {error.strerror}") from None
    except (ValueError, struct.error) as error:
        raise Fault(FILES_UNAVAILABLE, detail=f"file store: a file cannot be opened: {type(error).__name__}") from None


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that is in it, durably, also while another process does the same. Raises OSError."""

    def note(_: object, __: object, raised: tuple[type[BaseException], BaseException, TracebackType]) -> None:
        if not isinstance(raised[1], FileNotFoundError):
            raise raised[1]

    if directory.exists():
        shutil.rmtree(directory, onerror=note)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find_context(owner: FileOwner, id: str, part: str) -> str:
    """Return what a part of a file is sealed for, so that it cannot be moved to another place."""
    return f"file:{owner.organization_id}:{owner.project_id}:{id}:{part}"
