"""`tollway backup`: database and archive copied together, checked, and put back."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import tollway
from tollway.cli.databases import DatabaseUrl, chosen, find_owner_url
from tollway.cli.output import Output, OutputOption, print_json
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.control.metering.batches import BatchRefused
from tollway.control.metering.replay import replay
from tollway.domain.faults import Fault
from tollway.serve import data_directory
from tollway.serve.control import migrate_database
from tollway.serve.embedded import FILES
from tollway.settings import OperatorError, Settings
from tollway.storage import backups
from tollway.storage.backups import BackupRefused, Manifest
from tollway.storage.database import Database
from tollway.storage.database_dumps import DumpFailed
from tollway.storage.record_archive import Archive, ArchiveShort

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

ArchiveDir = Annotated[
    Path | None, typer.Option("--archive", metavar="DIR", help="The archived records.", show_default="control/archive in --data-dir")
]

FilesDir = Annotated[
    Path | None,
    typer.Option("--files", metavar="DIR", help="The files of tenants.", show_default="gateway.files.directory, or files in --data-dir"),
]


@app.callback()
def backup() -> None:
    """Back up database, archive and files of tenants while they are in use; check a backup; restore it."""


@app.command("create")
def create_backup(
    to: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that is not there yet.", show_default=False)],
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    archive: ArchiveDir = None,
    files: FilesDir = None,
    include_secrets: Annotated[
        bool, typer.Option("--include-secrets", help="Copy secrets.json, too. Whoever reads such a backup can do everything.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Copy the database, as of one instant, the archive of usage records and the files of tenants into DIR, with a manifest. Nothing has to
    be stopped. Batches that have not ended are left out.

    PostgreSQL is copied by pg_dump, which must be installed. What gateways have not handed in yet stays in their own data directories.
    The secrets are not in it unless you ask: keep them in a secret store, for without them no API key and no credential can be read.
    """
    settings = read_settings(config, data_dir=data_dir, control__database_url=database_url)
    directory = Path(settings.data_dir).absolute()
    if settings.control.database_url is None:
        _check_database_file(directory)
    digests = data_directory.read_secrets(directory, os.environ).digests()
    secrets_file = directory / "secrets.json"
    if include_secrets and not secrets_file.exists():
        raise OperatorError(f"there is no {secrets_file} to include: the secrets come from the environment", exit_code=2)
    with _described(to), chosen(settings, directory, reads_only=True) as url:
        manifest = backups.create(
            to.absolute(),
            url=url,
            archive=archive or directory / "control" / "archive",
            secrets=secrets_file if include_secrets else None,
            secret_digests=digests,
            tollway=tollway.__version__,
            now_us=time.time_ns() // 1000,
            tenant_files=_find_files(settings, directory, files),
        )
    _print_manifest(manifest, to, output)
    if output is Output.TABLE and not include_secrets:
        print("the secrets are not in it: keep a copy of secrets.json, or of the variables, elsewhere")


@app.command("check")
def check_backup(
    backup: Annotated[Path, typer.Argument(metavar="DIR", help="The backup.", show_default=False)],
    output: OutputOption = Output.TABLE,
) -> None:
    """Read every byte of a backup and compare it with the manifest. Exit code 1 if anything is missing, changed or added."""
    with _described(backup):
        manifest = backups.check(backup)
    _print_manifest(manifest, backup, output)


@app.command("restore")
def restore_backup(
    backup: Annotated[Path, typer.Argument(metavar="DIR", help="The backup.", show_default=False)],
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    archive: ArchiveDir = None,
    files: FilesDir = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put a backup back where there is no database yet, bring it to this version's schema, and ingest what the archive has beyond it.

    An archive that is there already and has outlived the database is kept and used: nothing that was archived since the backup is lost.
    Run it before anything is started, then `tollway verify`. If it was interrupted, run it again.
    """
    settings = read_settings(config, data_dir=data_dir, control__database_url=database_url)
    directory = Path(settings.data_dir).absolute()
    data_directory.prepare(directory)
    place = archive or directory / "control" / "archive"
    with _described(backup), chosen(settings, directory) as url:
        manifest = backups.restore(
            backup,
            url=find_owner_url(settings) or url,
            archive=place,
            secrets=directory / "secrets.json",
            secret_digests=_find_secret_digests(directory),
            tenant_files=_find_files(settings, directory, files),
        )
        migrate_database(url, find_owner_url(settings))
        with closing(Database.open(url)) as database:
            try:
                done = replay(database, Archive(place), time.time_ns() // 1000)
            except (BatchRefused, ArchiveShort) as error:
                raise OperatorError(
                    f"the database is back; the archive does not continue it: {error}", hint="mend the archive, then run `tollway replay`"
                ) from None
    if output is Output.JSON:
        print_json(_describe(manifest, backup) | {"replayed": asdict(done)})
        return
    print(f"restored: the backup of {manifest.created_at}, {manifest.archived_epochs} epochs in its archive")
    print(f"ingested from the archive: {done.records} records of {done.epochs} epochs, {done.events} events")
    print("run `tollway verify`, then start; gateways hand in what they still have by themselves")


def _check_database_file(directory: Path) -> None:
    data_directory.check_format(directory)
    if not (directory / "control" / "tollway.db").exists():
        raise OperatorError(f"there is no database in {directory}", hint="see --data-dir or --database-url")


def _find_files(settings: Settings, directory: Path, named: Path | None) -> Path:
    """Return the directory of tenants' files. Raises OperatorError for one that was named and is not there."""
    configured = settings.gateway.files.directory
    if named is not None and not named.is_dir():
        raise OperatorError(f"there is no directory {named}", hint="see --files", exit_code=2)
    return named or (directory / FILES if configured is None else Path(configured))


def _find_secret_digests(directory: Path) -> dict[str, str] | None:
    """Return the digests of the secrets that this installation has; None if it has none yet."""
    if not (directory / "secrets.json").exists() and not any(os.environ.get(name) for name in data_directory.SECRETS_ENV):
        return None
    return data_directory.read_secrets(directory, os.environ).digests()


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """Turn what goes wrong into one line for the operator."""
    try:
        yield
    except (BackupRefused, DumpFailed) as error:
        raise OperatorError(str(error)) from None
    except Fault as fault:
        raise OperatorError(f"{fault.message} {' '.join(fault.detail.split())}") from None
    except OSError as error:
        raise OperatorError(f"{error.filename or path}: {error.strerror or error}") from None


def _describe(manifest: Manifest, path: Path) -> dict[str, Any]:
    return {
        "directory": str(path.absolute()),
        "created_at": manifest.created_at,
        "tollway": manifest.tollway,
        "database": manifest.database,
        "revision": manifest.revision,
        "archived_epochs": manifest.archived_epochs,
        "tenant_files": manifest.tenant_files,
        "size_bytes": manifest.size_bytes,
        "has_secrets": manifest.has_secrets,
    }


def _print_manifest(manifest: Manifest, path: Path, output: Output) -> None:
    if output is Output.JSON:
        print_json(_describe(manifest, path))
        return
    what = f"{manifest.database} database, {manifest.archived_epochs} epochs of the archive, {manifest.tenant_files} files of tenants"
    what += ", secrets" if manifest.has_secrets else ""
    print(f"{path}: {what}; {manifest.size_bytes} bytes, of {manifest.created_at}")
