"""Backups: database, archive of usage records and files of tenants in one directory, with a manifest by which every byte can be checked.

    manifest.json                   what is here, written last: a directory without it is not a backup
    database                        a SQLite file, or a dump of PostgreSQL in its custom format
    archive/<node id>/<epoch>.seg   frames of usage records, as control has archived them
    files/<organization>/<project>/<file id>
    files/batches/<organization>/<project>/<batch id>/<part>
                                    sealed, as tenants' files and the batches that have ended are in their directory
    secrets.json                    only where it was asked for

Theory of operation. The database is copied first, as of one instant, and the archive after it. The archive only grows, and a batch is
durable there before the database has it, so the copy of the archive has everything that the copy of the database counts, and perhaps more:
a restore ends with a replay, which ingests the rest. What gateways have not handed in yet is not in the backup; it is in their spools.
A file of a tenant is never changed once it has its name, so a copy is whole; batches are copied before files, so that those that a batch
names are there. A batch that has not ended is left out: put back, its lines would be sent and billed again that were answered since.

A restore changes nothing until the whole backup was checked. It puts the archive back first and the database last: one that was
interrupted can be run again. Archive files that outlived the database may be longer than the backup's, and are kept.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from tollway.storage import database_dumps
from tollway.storage.batch_directory import BATCHES
from tollway.storage.database import knows_revision
from tollway.storage.record_archive import Archive, make_directory

FORMAT = 2
"""Format of a backup. Raised when an older Tollway could misread what a newer one wrote."""

MANIFEST = "manifest.json"
DATABASE = "database"
ARCHIVE = "archive"
FILES = "files"
SECRETS = "secrets.json"

CHUNK_BYTES = 1 << 20
MANIFEST_BYTES_MAX = 256 << 20
"""Bound on a manifest that is read: a million files of the archive have one of 150 MB."""


class BackupRefused(Exception):
    """A backup cannot be made, is damaged, or does not fit where it should go. The message is for the operator."""


class FileDigest(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256, in hexadecimal, of one file of a backup."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of a backup.

    `format`: see FORMAT. `tollway`: the version that made it. `created_at`: when the copy of the database was begun, RFC 3339 in UTC.
    `database`: sqlite or postgresql. `revision`: of its schema. `secret_digests`: by name, a digest of each secret without which the
    database cannot be read, so that wrong ones are noticed. `files`: all others of the directory, by path.
    """

    format: int
    tollway: str
    created_at: str
    database: str
    revision: str
    secret_digests: dict[str, str]
    files: dict[str, FileDigest]

    @property
    def has_secrets(self) -> bool:
        """Return whether secrets.json is in the backup."""
        return SECRETS in self.files

    @property
    def archived_epochs(self) -> int:
        """Return how many files of the archive it has: one for each epoch."""
        return sum(1 for path in self.files if path.startswith(f"{ARCHIVE}/"))

    @property
    def tenant_files(self) -> int:
        """Return how many files of tenants it has, those of their batches not counted."""
        return sum(1 for path in self.files if path.startswith(f"{FILES}/") and not path.startswith(f"{FILES}/{BATCHES}/"))

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all its files."""
        return sum(each.bytes for each in self.files.values())


def create(
    to: Path,
    *,
    url: str,
    archive: Path,
    secrets: Path | None,
    secret_digests: Mapping[str, str],
    tollway: str,
    now_us: int,
    tenant_files: Path | None = None,
) -> Manifest:
    """Back up the database at `url` and the archive in the directory `archive` into the new directory `to`, beside running processes.

    `tenant_files`: the directory of tenants' files, None to leave them out. `secrets`: the file of secrets to include, None for none.
    `now_us`: UTC microseconds. The directory appears at the end, whole. Raises BackupRefused, DumpFailed, Fault DATABASE_UNAVAILABLE,
    OSError; then nothing is left behind.
    """
    if to.exists():
        raise BackupRefused(f"{to} exists already: each backup needs a directory of its own")
    partial = to.with_name(f".{to.name}.partial-{os.getpid()}")
    make_directory(partial)
    try:
        copied = database_dumps.copy_database(url, partial / DATABASE)
        (partial / DATABASE).chmod(0o600)
        files = {DATABASE: _digest(partial / DATABASE)}
        for node_id, epoch, size in Archive(archive).list_epochs():
            path = f"{ARCHIVE}/{node_id}/{epoch}.seg"
            files[path] = _copy(archive / node_id / f"{epoch}.seg", partial / path, size)
        for (node_id, epoch), ingested in copied.ingested.items():
            found = files.get(f"{ARCHIVE}/{node_id}/{epoch}.seg")
            if ingested and (found is None or found.bytes < ingested):
                raise BackupRefused(f"the archive in {archive} has less of {node_id}/{epoch} than the database: is it this database's?")
        if tenant_files is not None:
            files |= _copy_tenant_files(tenant_files, partial)
        if secrets is not None:
            files[SECRETS] = _copy(secrets, partial / SECRETS, secrets.stat().st_size)
        manifest = Manifest(
            format=FORMAT,
            tollway=tollway,
            created_at=datetime.fromtimestamp(now_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            database=copied.kind,
            revision=copied.revision,
            secret_digests=dict(secret_digests),
            files=files,
        )
        _write(partial / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        _sync_directories(partial)
        os.rename(partial, to)
        _sync(to.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def check(backup: Path) -> Manifest:
    """Read every byte of a backup and compare it with the manifest, which is returned.

    Raises BackupRefused: not a backup, a newer format, a file that is missing, changed, or not in the manifest. Raises OSError.
    """
    manifest = read_manifest(backup)
    present = {str(path.relative_to(backup)) for path in backup.rglob("*") if not path.is_dir()} - {MANIFEST}
    for kind, paths in (("missing", manifest.files.keys() - present), ("not in its manifest", present - manifest.files.keys())):
        if paths:
            raise BackupRefused(f"{backup} is damaged: {len(paths)} files are {kind}, the first: {min(paths)}")
    for path, expected in manifest.files.items():
        if _digest(backup / path) != expected:
            raise BackupRefused(f"{backup} is damaged: {path} is not what was backed up")
    return manifest


def read_manifest(backup: Path) -> Manifest:
    """Return the manifest alone. Raises BackupRefused if there is none that this version reads, OSError."""
    try:
        with (backup / MANIFEST).open("rb") as file:
            manifest = msgspec.json.decode(file.read(MANIFEST_BYTES_MAX), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise BackupRefused(f"{backup} is not a backup: it has no {MANIFEST}") from None
    except msgspec.DecodeError as error:
        raise BackupRefused(f"{backup}/{MANIFEST} is damaged: {error}") from None
    if manifest.format > FORMAT:
        raise BackupRefused(f"{backup} was made by a newer Tollway ({manifest.tollway}): use that one")
    for path in manifest.files:
        if not _is_ours(path):
            raise BackupRefused(f"{backup}/{MANIFEST} is damaged: it names {path!r}")
    return manifest


def _copy_tenant_files(directory: Path, to: Path) -> dict[str, FileDigest]:
    """Copy the files of tenants, and the batches that have ended, and return their digests by path. What is deleted meanwhile is left
    out."""
    digests: dict[str, FileDigest] = {}

    def copy(paths: Iterable[Path]) -> None:
        for path in paths:
            name = f"{FILES}/{path.relative_to(directory)}"
            if name not in digests:
                with suppress(FileNotFoundError):
                    digests[name] = _copy(path, to / name, path.stat().st_size)

    batches = _list_names(directory / BATCHES, depth=3)
    active = _list_active(directory / BATCHES)  # after the batches: one of these that is not active has ended
    for batch in batches:
        if batch.name not in active:
            copy(_list_files(batch))
            copy(_list_files(batch))  # what has taken the place of a part meanwhile: the ids of answers leave the journal for a file
    copy(path for path in _list_names(directory, depth=3) if path.is_file())
    return digests


def _list_active(batches: Path) -> set[str]:
    """Return the ids of the batches that have not ended."""
    return {path.name.rpartition(".")[2] for path in (batches / "active").glob("*")}


def restore(
    backup: Path,
    *,
    url: str,
    archive: Path,
    secrets: Path | None,
    secret_digests: Mapping[str, str] | None,
    tenant_files: Path | None = None,
) -> Manifest:
    """Put a backup back: the database at `url`, where none may be yet, the archive into the directory `archive`, and files of tenants into
    `tenant_files`, where those that are there stay as they are. None: they are not put back.

    `secret_digests`: of the secrets of this installation, which must be those of the backup; None if it has none yet: then those of the
    backup go into the file `secrets`, if they are in it. The database must be migrated and the archive replayed afterwards.
    Raises BackupRefused and DumpFailed before anything was changed, Fault DATABASE_UNAVAILABLE, OSError.
    """
    manifest = check(backup)
    if not knows_revision(manifest.revision):
        raise BackupRefused(f"{backup} was made by a newer Tollway ({manifest.tollway}): its database is at revision {manifest.revision}")
    if secret_digests is None and not manifest.has_secrets:
        raise BackupRefused("the backup has no secrets, and there are none here: put back secrets.json, or set the variables, first")
    if secret_digests is not None:
        different = sorted(name for name, digest in manifest.secret_digests.items() if secret_digests.get(name) != digest)
        if different:
            raise BackupRefused(f"the secrets here are not those of the backup: {', '.join(different)}")
    database_dumps.check_target(url, manifest.database)
    missing = {path: expected for path, expected in manifest.files.items() if path.startswith(f"{ARCHIVE}/")}
    for path, expected in list(missing.items()):
        here = archive / path.removeprefix(f"{ARCHIVE}/")
        if here.exists():
            if _digest(here, expected.bytes) != expected:
                raise BackupRefused(f"{here} does not continue what was backed up: move it away, or name another archive")
            del missing[path]
    for path, expected in missing.items():
        _copy(backup / path, archive / path.removeprefix(f"{ARCHIVE}/"), expected.bytes)
    if archive.is_dir():
        _sync_directories(archive)
    if tenant_files is not None:
        _restore_tenant_files(backup, manifest, tenant_files)
    if secret_digests is None and secrets is not None:
        _copy(backup / SECRETS, secrets, manifest.files[SECRETS].bytes)
        _sync(secrets.parent)
    database_dumps.restore_database(url, backup / DATABASE, manifest.database)
    return manifest


def _restore_tenant_files(backup: Path, manifest: Manifest, directory: Path) -> None:
    """Put files of tenants and their batches back, but for those that are there. The state of a batch comes last: without it there is none,
    and a restore that was interrupted goes on."""
    names = [path for path in manifest.files if path.startswith(f"{FILES}/")]
    has_state = {each.parent for each in (directory / BATCHES).glob("*/*/*/state")}
    for name in sorted(names, key=lambda name: name.endswith("/state")):
        to = directory / name.removeprefix(f"{FILES}/")
        if not to.exists() and to.parent not in has_state:
            _copy(backup / name, to, manifest.files[name].bytes)
    if directory.is_dir():
        _sync_directories(directory)


# ---- files --------------------------------------------------------------------------------------------------------------


_TENANT_FILE: Final = re.compile(
    rf"{FILES}/org_\w+/proj_\w+/file_\w+|{FILES}/{BATCHES}/org_\w+/proj_\w+/(batch|msgbatch|resp)_\w+/[a-z]+", re.ASCII
)


def _list_names(directory: Path, depth: int) -> list[Path]:
    """Return what organizations have and is finished, so many names below a directory."""
    pattern = "/".join(["org_*", *["*"] * (depth - 1)])
    return sorted(path for path in directory.glob(pattern) if "." not in path.name)


def _list_files(directory: Path) -> list[Path]:
    """Return the finished files in a directory, which may be removed meanwhile."""
    return sorted(path for path in directory.glob("*") if path.is_file() and "." not in path.name)


def _is_ours(path: str) -> bool:
    """Return whether a backup has files of this name: a manifest from elsewhere must not name one outside of the directory."""
    parts = path.split("/")
    if len(parts) == 1:
        return path in (DATABASE, SECRETS)
    if parts[0] == FILES:
        return _TENANT_FILE.fullmatch(path) is not None
    return len(parts) == 3 and parts[0] == ARCHIVE and parts[1].replace("_", "").isalnum() and parts[2].removesuffix(".seg").isdecimal()


def _digest(path: Path, limit: int | None = None) -> FileDigest:
    """Digest a file, or its first `limit` bytes."""
    digest, total = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := _read(file, total, limit):
            digest.update(chunk)
            total += len(chunk)
    return FileDigest(total, digest.hexdigest())


def _copy(source: Path, to: Path, size: int) -> FileDigest:
    """Copy the first `size` bytes durably into a file for its owner only, which is there whole or not at all."""
    make_directory(to.parent)
    aside = to.with_name(f".{to.name}.partial")
    digest, total = hashlib.sha256(), 0
    with source.open("rb") as file, _create(aside) as copy:
        while chunk := _read(file, total, size):
            copy.write(chunk)
            digest.update(chunk)
            total += len(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    os.replace(aside, to)
    return FileDigest(total, digest.hexdigest())


def _read(file: BinaryIO, done: int, limit: int | None) -> bytes:
    return file.read(CHUNK_BYTES if limit is None else min(CHUNK_BYTES, limit - done))


def _write(path: Path, data: bytes) -> None:
    with _create(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def _sync_directories(directory: Path) -> None:
    """Make the names of all files below `directory` durable."""
    for at, _, _ in os.walk(directory):
        _sync(Path(at))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
