"""What the commands that open a database share: which one, and what to say when it cannot be had."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tollway.domain.faults import Fault
from tollway.serve import data_directory
from tollway.settings import OperatorError, Settings
from tollway.storage.database import DatabaseOutdated, DatabaseTooNew

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="postgresql+psycopg://... [TOLLWAY_DATABASE_URL]; put a password into the variable, not here.",
        show_default="SQLite in the data directory",
    ),
]

HINT = "set TOLLWAY_DATABASE_URL to postgresql+psycopg://user@host/name, or leave it out for SQLite in the data directory"


@contextmanager
def chosen(settings: Settings, directory: Path) -> Iterator[str]:
    """The URL of the database to use; the embedded one is locked for as long. Its failures become errors for a person.

    Raises OperatorError: a URL of nothing we know, a database that is newer, older or not there, a lock that is held.
    """
    url = settings.control.database_url
    if url is not None and not url.startswith(("postgresql+psycopg://", "sqlite+pysqlite:///")):
        raise OperatorError("the database URL is of no kind that Tollway can use", hint=HINT, exit_code=2)
    try:
        if url is not None:
            yield url
            return
        with data_directory.locked(directory / "control", "control"):
            yield data_directory.sqlite_url(directory)
    except (DatabaseTooNew, DatabaseOutdated, ValueError) as error:
        raise OperatorError(str(error)) from None
    except Fault as fault:
        raise OperatorError(f"{fault.message} {' '.join(fault.detail.split())}", hint=HINT) from None
