"""The database that a command opens, and the errors when it cannot be opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tollway.domain.faults import Fault
from tollway.serve import data_directory
from tollway.settings import OperatorError, Settings
from tollway.storage.database import DatabaseOutdated, DatabaseTooNew
from tollway.storage.row_security import RoleRefused

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="Address of PostgreSQL, postgresql://user@host/name [TOLLWAY_DATABASE_URL]. Put a password into the variable.",
        show_default="SQLite in the data directory",
    ),
]

HINT = "set TOLLWAY_DATABASE_URL to postgresql://user@host/name, or leave it out for SQLite in the data directory"

DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "sqlite": "sqlite+pysqlite",
}
"""Schemes of database URLs, as psql, managed databases and SQLAlchemy write them, with the driver that opens each."""


def parse_database_url(text: str) -> str:
    """Return the URL of a database with our driver. Raises OperatorError for any other database; the message repeats no password."""
    scheme, separator, rest = text.partition("://")
    if separator != "://" or scheme not in DRIVERS or not rest:
        raise OperatorError("unsupported database URL: use postgresql:// or sqlite://", hint=HINT, exit_code=2)
    return f"{DRIVERS[scheme]}://{rest}"


def find_owner_url(settings: Settings) -> str | None:
    """Return the URL of the role that owns the tables, if one is set. Raises OperatorError for an unsupported URL."""
    url = settings.control.owner_database_url
    return None if url is None or settings.control.database_url is None else parse_database_url(url)


@contextmanager
def chosen(settings: Settings, directory: Path, *, reads_only: bool = False) -> Iterator[str]:
    """Yield the URL of the database to use. The embedded one is locked meanwhile, unless the command only reads it: a read transaction sees
    one instant of it, and neither waits for the process that writes nor holds it up.

    Raises OperatorError: an unsupported URL, a database that is newer, older or not there, a lock that is held.
    """
    url = settings.control.database_url
    if url is not None:
        url = parse_database_url(url)
    try:
        if url is not None:
            yield url
            return
        if reads_only:
            yield data_directory.sqlite_url(directory)
            return
        with data_directory.locked(directory / "control", "control"):
            yield data_directory.sqlite_url(directory)
    except (DatabaseTooNew, DatabaseOutdated, RoleRefused, ValueError) as error:
        raise OperatorError(str(error)) from None
    except Fault as fault:
        raise OperatorError(f"{fault.message} {' '.join(fault.detail.split())}", hint=HINT) from None
