"""Backups: the database and the archive of usage records in one directory, with a manifest by which every byte can be checked.

    manifest.json                   what is here, written last: a directory without it is not a backup
    database                        a SQLite file, or a dump of PostgreSQL in its custom format
    archive/<node id>/<epoch>.seg   frames of usage records, as control has archived them
    secrets.json                    only where it was asked for

Theory of operation. The database is copied first, as of one instant, and the archive after it. The archive only grows, and a batch is
durable there before the database has it, so the copy of the archive has everything that the copy of the database counts, and perhaps more:
a restore ends with a replay, which ingests the rest. What gateways have not handed in yet is not in the backup; it is in their spools.

A restore changes nothing until the whole backup was checked. It puts the archive back first and the database last: one that was
interrupted can be run again. Archive files that outlived the database may be longer than the backup's, and are kept.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from tollway.storage import database_dumps
from tollway.storage.database import knows_revision
from tollway.storage.record_archive import Archive, make_directory

FORMAT = 1
"""Format of a backup. Raised when an older Tollway could misread what a newer one wrote."""

MANIFEST = "manifest.json"
DATABASE = "database"
ARCHIVE = "archive"
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
    def size_bytes(self) -> int:
        """Return the bytes of all its files."""
        return sum(each.bytes for each in self.files.values())


def create(
    to: Path, *, url: str, archive: Path, secrets: Path | None, secret_digests: Mapping[str, str], tollway: str, now_us: int
) -> Manifest:
    """Back up the database at `url` and the archive in the directory `archive` into the new directory `to`, beside running processes.

    `secrets`: the file of secrets to include, None for none. `now_us`: UTC microseconds. The directory appears at the end, whole.
    Raises BackupRefused, DumpFailed, Fault DATABASE_UNAVAILABLE, OSError; then nothing is left behind.
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


def restore(backup: Path, *, url: str, archive: Path, secrets: Path | None, secret_digests: Mapping[str, str] | None) -> Manifest:
    """Put a backup back: the database at `url`, where none may be yet, and the archive into the directory `archive`.

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
    if secret_digests is None and secrets is not None:
        _copy(backup / SECRETS, secrets, manifest.files[SECRETS].bytes)
        _sync(secrets.parent)
    database_dumps.restore_database(url, backup / DATABASE, manifest.database)
    return manifest


# ---- files --------------------------------------------------------------------------------------------------------------


def _is_ours(path: str) -> bool:
    """Return whether a backup has files of this name: a manifest from elsewhere must not name one outside of the directory."""
    parts = path.split("/")
    if len(parts) == 1:
        return path in (DATABASE, SECRETS)
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
