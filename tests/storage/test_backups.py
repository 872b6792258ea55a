"""Backups: everything comes back, on both databases; what is damaged, foreign or in the way is refused before anything changes."""

import json
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.control.metering.test_collect import NOW, state, take
from tests.link.samples import EPOCH, NODE, exchanges, frames
from tests.storage.databases import PostgresTemplate, SqliteTemplate, fill
from tollway.control.metering.replay import replay
from tollway.control.verification.verify import verify
from tollway.domain.batches import Batch, BatchStatus, LineResult
from tollway.domain.catalog import Endpoint
from tollway.domain.files import FileOwner, FilePurpose, StoredFile
from tollway.storage import backups
from tollway.storage.backups import BackupRefused, FileDigest, Manifest
from tollway.storage.batch_directory import BatchDirectory
from tollway.storage.database import Database
from tollway.storage.database_dumps import DumpFailed
from tollway.storage.record_archive import Archive
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault

DIGESTS = {"vault_key": "aa", "pepper_1": "bb"}


@dataclass
class Installation:
    """A database with an archive, and where another can be put."""

    url: str
    empty_url: str
    archive: Path
    secrets: Path
    place: Path

    def back_up(self, name: str = "backup", *, secrets: bool = True, tenant_files: Path | None = None) -> Path:
        to = self.place / name
        backups.create(
            to,
            url=self.url,
            archive=self.archive,
            secrets=self.secrets if secrets else None,
            secret_digests=DIGESTS,
            tollway="1.2.3",
            now_us=NOW,
            tenant_files=tenant_files,
        )
        return to

    def restore(
        self,
        backup: Path,
        *,
        archive: Path | None = None,
        digests: dict[str, str] | None = DIGESTS,
        tenant_files: Path | None = None,
    ) -> Manifest:
        return backups.restore(
            backup,
            url=self.empty_url,
            archive=archive or self.place / "restored-archive",
            secrets=self.place / "restored-secrets.json",
            secret_digests=digests,
            tenant_files=tenant_files,
        )

    def take(self, first: int, count: int) -> None:
        with closing(Database.open(self.url)) as database:
            body = frames(exchanges(range(first + count)))
            take(database, Archive(self.archive), body[2 * first :], first_seq=2 * first + 1)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """One with three billed requests."""
    template: SqliteTemplate | PostgresTemplate = request.getfixturevalue(f"{request.param}_template")
    with template.copied(tmp_path) as url, template.empty(tmp_path) as empty_url:
        made = Installation(url, empty_url, tmp_path / "archive", tmp_path / "secrets.json", tmp_path)
        made.secrets.write_text('{"vault_key": "secret"}')
        with closing(Database.open(url)) as database:
            fill(database)
        made.take(0, 3)
        yield made


def test_restored_database_and_archive_are_those_of_the_backup(installation: Installation) -> None:
    backup = installation.back_up()
    installation.take(3, 2)  # after the backup, so it has them not
    manifest = installation.restore(backup)
    assert (manifest.tollway, manifest.archived_epochs, manifest.has_secrets) == ("1.2.3", 1, True)
    with closing(Database.open(installation.empty_url)) as restored:
        restored.check_schema()
        report = verify(restored, Archive(installation.place / "restored-archive"))
        assert report.is_right and report.events == 3


def test_archive_that_outlived_the_database_is_kept_and_its_records_are_ingested(installation: Installation) -> None:
    backup = installation.back_up()
    installation.take(3, 2)
    installation.restore(backup, archive=installation.archive)
    with closing(Database.open(installation.empty_url)) as restored, closing(Database.open(installation.url)) as lost:
        assert replay(restored, Archive(installation.archive), NOW).events == 2
        assert state(restored) == state(lost)


def test_backup_is_for_its_owner_only_and_names_every_file_with_its_digest(installation: Installation) -> None:
    backup = installation.back_up()
    for path in (backup, *backup.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    files = json.loads((backup / "manifest.json").read_bytes())["files"]
    assert set(files) == {"database", f"archive/{NODE}/{EPOCH}.seg", "secrets.json"}
    assert backups.check(backup).size_bytes == sum((backup / path).stat().st_size for path in files)


def test_backup_without_secrets_holds_none_of_them(installation: Installation) -> None:
    backup = installation.back_up(secrets=False)
    assert not (backup / "secrets.json").exists()
    assert installation.restore(backup).has_secrets is False
    assert not (installation.place / "restored-secrets.json").exists()


def test_secrets_of_the_backup_are_put_where_there_are_none_yet(installation: Installation) -> None:
    installation.restore(installation.back_up(), digests=None)
    assert (installation.place / "restored-secrets.json").read_bytes() == installation.secrets.read_bytes()


def test_files_of_tenants_and_ended_batches_come_back_and_those_that_are_there_stay(installation: Installation) -> None:
    directory, restored = installation.place / "files", installation.place / "restored-files"
    owner = FileOwner("org_1", "proj_1")
    files, batches = open_stores(directory)
    for digit in "12":
        file = StoredFile(f"file_{digit * 32}", "a.txt", FilePurpose.USER_DATA, 5, NOW // 1_000_000, NOW // 1_000_000 + 9_000)
        files.add(owner, file, (b"hello",))
    (directory / "org_1" / "proj_1" / f"file_{'3' * 32}.new").write_bytes(b"unfinished")
    for digit in "ab":
        create_batch(batches, owner, f"batch_{digit * 32}", "file_o")
    finish_batch(batches, f"batch_{'a' * 32}", f"req_{'c' * 32}")
    backup = installation.back_up(tenant_files=directory)
    assert backups.check(backup).tenant_files == 2
    kept = restored / "org_1" / "proj_1" / f"file_{'2' * 32}"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"newer")
    installation.restore(backup, tenant_files=restored)
    assert kept.read_bytes() == b"newer"
    files, batches = open_stores(restored)
    assert files.read(owner, f"file_{'1' * 32}") == b"hello" and [file.id for file in files.list_files(owner)] == [f"file_{'1' * 32}"]
    found = batches.find(owner, f"batch_{'a' * 32}")
    assert found is not None and found.has_ended and batches.list_answered(owner) == {f"req_{'c' * 32}"}
    assert batches.find(owner, f"batch_{'b' * 32}") is None and batches.list_active() == [], "it would be sent again"


def test_answers_of_batches_that_end_or_are_deleted_during_a_backup_stay_known(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, restored = installation.place / "files", installation.place / "restored-files"
    owner, ends, goes = FileOwner("org_1", "proj_1"), f"batch_{'a' * 32}", f"msgbatch_{'b' * 32}"
    _, batches = open_stores(directory)
    create_batch(batches, owner, ends, "file_o")
    create_batch(batches, owner, goes, "")
    finish_batch(batches, goes, f"req_{'d' * 32}")
    list_active, copy = backups._list_active, backups._copy

    def end_and_list(directory: Path) -> set[str]:
        finish_batch(batches, ends, f"req_{'c' * 32}")
        return list_active(directory)

    def delete_and_copy(source: Path, to: Path, size: int) -> FileDigest:
        if source.name == "journal":
            batches.delete(owner, goes)
        return copy(source, to, size)

    monkeypatch.setattr(backups, "_list_active", end_and_list)
    monkeypatch.setattr(backups, "_copy", delete_and_copy)
    backup = installation.back_up(tenant_files=directory)
    monkeypatch.undo()
    installation.restore(backup, tenant_files=restored)
    assert open_stores(restored)[1].list_answered(owner) == {f"req_{'c' * 32}", f"req_{'d' * 32}"}


def create_batch(batches: BatchDirectory, owner: FileOwner, id: str, file_id: str) -> None:
    batch = Batch(
        id=id, owner=owner, key_id="key_1", address="", endpoint=Endpoint.CHAT_COMPLETIONS,
        created_at=NOW // 1_000_000, output_file_id=file_id, error_file_id=file_id, output_seconds=1, input_file_id=file_id,
    )  # fmt: skip
    batches.create(batch, (b"{}\n",), 3)


def finish_batch(batches: BatchDirectory, id: str, request_id: str) -> None:
    batch = next(claimed for name in batches.list_active() if name.endswith(id) and (claimed := batches.claim(name)) is not None)
    batch.open_journal()
    batch.append(0, LineResult.COMPLETED, b"answer", request_id, durable=True)
    batch.finish(msgspec.structs.replace(batch.batch, status=BatchStatus.COMPLETED))
    batch.release()


def open_stores(directory: Path) -> tuple[FileDirectory, BatchDirectory]:
    vault = LocalVault(bytes(range(32)))
    batches = BatchDirectory(directory, vault, lambda: NOW, organization_batches_max=9, free_bytes_min=0)
    return FileDirectory(directory, vault, FileBounds(free_bytes_min=0), lambda: NOW), batches


class TestRefusals:
    """Each leaves the target as it was."""

    def refuse(self, installation: Installation, backup: Path, message: str, **options: dict[str, str] | None) -> None:
        with pytest.raises((BackupRefused, DumpFailed), match=message):
            installation.restore(backup, **options)  # type: ignore[arg-type]
        assert not (installation.place / "restored-archive").exists()
        assert not (installation.place / "restored-secrets.json").exists()

    @pytest.mark.parametrize("path", ["database", "secrets.json", f"archive/{NODE}/{EPOCH}.seg"])
    def test_changed_byte_is_found(self, installation: Installation, path: str) -> None:
        backup = installation.back_up()
        data = bytearray((backup / path).read_bytes())
        data[len(data) // 2] ^= 1
        (backup / path).write_bytes(data)
        self.refuse(installation, backup, f"{path} is not what was backed up")

    def test_missing_and_added_files_are_found(self, installation: Installation) -> None:
        backup = installation.back_up()
        (backup / "archive" / NODE / "7.seg").write_bytes(b"")
        self.refuse(installation, backup, "1 files are not in its manifest, the first: archive/")
        (backup / "archive" / NODE / "7.seg").unlink()
        (backup / "database").unlink()
        self.refuse(installation, backup, "1 files are missing, the first: database")

    def test_manifest_that_names_a_file_outside_of_the_backup_is_refused(self, installation: Installation) -> None:
        backup = installation.back_up()
        manifest = json.loads((backup / "manifest.json").read_bytes())
        manifest["files"]["archive/../../secrets.seg"] = {"bytes": 1, "sha256": "00"}
        (backup / "manifest.json").write_text(json.dumps(manifest))
        self.refuse(installation, backup, "it names 'archive/../../secrets.seg'")

    def test_directory_without_a_manifest_is_no_backup(self, installation: Installation, tmp_path: Path) -> None:
        self.refuse(installation, tmp_path / "nothing", "is not a backup")

    @pytest.mark.parametrize(("field", "value"), [("format", 3), ("revision", "9999")])
    def test_backup_of_a_newer_version_is_refused(self, installation: Installation, field: str, value: object) -> None:
        backup = installation.back_up()
        manifest = json.loads((backup / "manifest.json").read_bytes()) | {field: value}
        (backup / "manifest.json").write_text(json.dumps(manifest))
        self.refuse(installation, backup, r"made by a newer Tollway \(1.2.3\)")

    def test_secrets_of_another_installation_are_refused_by_name(self, installation: Installation) -> None:
        self.refuse(installation, installation.back_up(), "not those of the backup: vault_key", digests=DIGESTS | {"vault_key": "cc"})

    def test_backup_without_secrets_is_refused_where_there_are_none(self, installation: Installation) -> None:
        self.refuse(installation, installation.back_up(secrets=False), "has no secrets", digests=None)

    def test_database_that_is_there_is_never_replaced(self, installation: Installation) -> None:
        backup = installation.back_up()
        installation.empty_url = installation.url
        self.refuse(installation, backup, "a database already|not empty")

    def test_other_kind_of_database_is_refused(self, installation: Installation, tmp_path: Path) -> None:
        backup = installation.back_up()
        is_sqlite = installation.url.startswith("sqlite")
        installation.empty_url = "postgresql+psycopg://nobody@127.0.0.1:1/x" if is_sqlite else f"sqlite+pysqlite:///{tmp_path}/x.db"
        self.refuse(installation, backup, "cannot be put into")


def test_archive_that_is_not_a_continuation_is_refused(installation: Installation) -> None:
    backup = installation.back_up()
    path = installation.archive / NODE / f"{EPOCH}.seg"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BackupRefused, match="does not continue"):
        installation.restore(backup, archive=installation.archive)


def test_restore_that_was_interrupted_can_be_run_again(installation: Installation) -> None:
    backup = installation.back_up()
    place = installation.place / "restored-archive" / NODE
    place.mkdir(parents=True)
    (place / f".{EPOCH}.seg.partial").write_bytes(b"half")
    installation.restore(backup)
    assert [path.name for path in place.iterdir()] == [f"{EPOCH}.seg"]


def test_backup_with_the_archive_of_another_database_is_refused_and_leaves_nothing_behind(installation: Installation) -> None:
    (installation.archive / NODE / f"{EPOCH}.seg").write_bytes(b"")
    before = set(installation.place.iterdir())
    with pytest.raises(BackupRefused, match="has less of"):
        installation.back_up()
    assert set(installation.place.iterdir()) == before


def test_backup_of_a_database_that_is_not_there_is_refused_and_leaves_nothing_behind(installation: Installation) -> None:
    installation.url = installation.empty_url
    before = set(installation.place.iterdir())
    with pytest.raises(DumpFailed):
        installation.back_up()
    assert set(installation.place.iterdir()) == before


def test_existing_directory_is_not_overwritten(installation: Installation) -> None:
    backup = installation.back_up()
    with pytest.raises(BackupRefused, match="exists already"):
        installation.back_up()
    backups.check(backup)
