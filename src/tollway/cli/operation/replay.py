"""`tollway replay`: after a database was restored, ingest again what the archive holds beyond it."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.databases import DatabaseUrl, chosen
from tollway.cli.output import Output, OutputOption, print_json
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.metering import replay as replaying
from tollway.control.metering.batches import BatchRefused
from tollway.domain.audit import Actor, ActorKind
from tollway.serve import data_directory
from tollway.serve.control import new_id, now
from tollway.settings import OperatorError
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive, ArchiveShort


def replay(
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    archive: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The archived records.", show_default="control/archive in --data-dir")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """After the database was restored from a backup: ingest again what was archived since, and renew what gateways know.

    Run it before anything is started, then `tollway verify`. What gateways still have in their spools they hand in by themselves
    when they start. May be run again.
    """
    settings = read_settings(config, data_dir=data_dir, control__database_url=database_url)
    directory = Path(settings.data_dir).absolute()
    if settings.control.database_url is None:
        data_directory.check_format(directory)
        if not (directory / "control" / "tollway.db").exists():
            raise OperatorError(f"there is no database in {directory}", hint="put the backup to control/tollway.db there first")
    place = archive or directory / "control" / "archive"
    if not place.is_dir():
        raise OperatorError(f"there is no archive in {place}", hint="see --archive")
    with chosen(settings, directory) as url, closing(Database.open(url)) as database:
        database.check_schema()
        operation = AuditedOperation(event="usage.replayed", operation="replay", actor=Actor(kind=ActorKind.COMMAND, id="replay"))
        audit.record_read(database, None, operation, new_id=new_id, now=now())
        try:
            done = replaying.replay(database, Archive(place), now())
        except (BatchRefused, ArchiveShort, OSError) as error:
            raise OperatorError(
                f"the archive does not continue this database: {error}", hint="restore the backup of the archive, too"
            ) from None
    if output is Output.JSON:
        print_json(asdict(done))
    else:
        print(f"ingested: {done.records} records of {done.epochs} epochs, {done.events} events")
        print(f"rejected: {done.conflicts} conflicts, {done.quarantined} records that could not be rated and are in quarantine")
        if done.rated:
            print(f"rated: {done.rated} records that had waited in quarantine")
        print(f"gateways will read the whole snapshot, version {done.version}")
