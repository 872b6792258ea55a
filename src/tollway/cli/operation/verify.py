"""`tollway verify`: usage and ledger recomputed from the archive alone, and compared with the database."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.databases import DatabaseUrl, chosen
from tollway.cli.output import Output, OutputOption, print_json
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.control.verification import verify as verification
from tollway.serve import data_directory, garbage
from tollway.settings import OperatorError
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive


def verify(
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    archive: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The archived records.", show_default="control/archive in --data-dir")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Recompute events and what they cost, rollups, periods, corrections, ledger and balances from the archived records; compare.

    Exit code 0 if all agree, 1 with the first difference of each table if not. The database is read as of one instant; control may go on
    running meanwhile.
    """
    settings = read_settings(config, data_dir=data_dir, control__database_url=database_url)
    directory = Path(settings.data_dir).absolute()
    if settings.control.database_url is None:
        data_directory.check_format(directory)
        if not (directory / "control" / "tollway.db").exists():
            raise OperatorError(f"there is no database in {directory}", hint="see --data-dir or --database-url")
    if archive is not None and not archive.is_dir():
        raise OperatorError(f"there is no directory {archive}", hint="--archive is the one with a directory for each gateway", exit_code=2)
    with chosen(settings, directory, reads_only=True) as url, closing(Database.open(url)) as database:
        database.check_schema()
        garbage.settle()
        report = verification.verify(database, Archive(archive or directory / "control" / "archive"))
    if output is Output.JSON:
        print_json({**asdict(report), "is_right": report.is_right})
    else:
        read = {"epochs": report.epochs, "records": report.records, "events": report.events}
        read |= {"transactions": report.transactions, "accounts": report.accounts}
        read |= {"periods": report.periods, "corrections": report.adjustments}
        print("compared: " + ", ".join(f"{count} {name}" for name, count in read.items()))
        print(f"rejected: {report.conflicts} conflicts, {report.quarantined} records in quarantine, {report.written_off} written off")
        for month, events in report.removed.items():
            print(f"removed by retention: {events} events of {month.replace('_', '-')}, taken from the archive instead")
        for difference in report.differences:
            print(f"{difference.table}: {difference.count} differences, the first: {difference.first}")
        if report.missing_records:
            print(
                f"missing: {report.missing_records} archived records of {report.missing_epochs} epochs are not in the database;"
                " if it was restored from a backup, run `tollway replay`"
            )
        if report.is_right:
            print("everything agrees")
        elif report.differences:
            print("the database does not agree with the archive")
        else:
            print("the database agrees with the archive as far as it goes, and is older than the archive")
    raise typer.Exit(0 if report.is_right else 1)
