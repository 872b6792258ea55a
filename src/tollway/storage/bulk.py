"""Many rows at once, by each engine's own fast way.

SQLAlchemy looks at every value of every row, which costs several times what storing it does. Here rows go to the driver as they are:
SQLite takes them one by one from a prepared statement, PostgreSQL as a COPY or as one array for each column. Who calls has to hand in
plain values (str, int, bytes, None).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import sqlalchemy as sa

from tollway.storage.database import PlatformTx

COPY_LINES = 256
"""Written at a time: about 100 KB. The server stores one part while the next is made."""

UNIQUE_VIOLATION = "23505"
"""SQLSTATE (PostgreSQL, appendix A)."""


class Duplicate(Exception):
    """A row has a key that is taken. The transaction is at its end."""


def copy_in(tx: PlatformTx, table: str, columns: Sequence[str], lines: Iterable[str]) -> None:
    """COPY lines of text into a table of PostgreSQL: values separated by tabs, an empty one is NULL, none holds a control character.

    It is CSV with a quote character that cannot occur, so that nothing has to be escaped. Raises Duplicate.
    """
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT csv, DELIMITER E'\\t', QUOTE E'\\x01', ESCAPE E'\\x01')"
    if not tx.connection.in_transaction():
        tx.connection.begin()  # it would not notice by itself, and commit nothing
    driver: Any = tx.connection.dialect.loaded_dbapi
    connection: Any = tx.connection.connection.driver_connection
    rest = iter(lines)
    try:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            while part := "".join(islice(rest, COPY_LINES)):
                copy.write(part)
    except driver.IntegrityError as error:
        if error.sqlstate == UNIQUE_VIOLATION:
            raise Duplicate from error
        raise sa.exc.IntegrityError(statement, None, error) from error
    except (driver.OperationalError, driver.InterfaceError) as error:
        raise sa.exc.OperationalError(statement, None, error) from error


@dataclass(frozen=True, slots=True)
class Upsert:
    """INSERT of whole rows of `table`, in the order of its columns; where one with this `key` is there, `changes` happen to it.

    `changes`: SQL by column, which both engines understand, over the table's columns and those of `excluded`, the new row.
    """

    table: sa.Table
    key: Sequence[str]
    changes: Mapping[str, str]
    sqlite: str = field(init=False)
    postgresql: str = field(init=False)

    def __post_init__(self) -> None:
        """Write the statements once."""
        columns = [column.name for column in self.table.columns]
        insert = f"INSERT INTO {self.table.name} ({', '.join(columns)})"
        changes = ", ".join(f"{name} = {change}" for name, change in self.changes.items())
        conflict = f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {changes}"
        object.__setattr__(self, "sqlite", f"{insert} VALUES ({', '.join('?' * len(columns))}) {conflict}")
        arrays = ", ".join(f"%s::{column.type.compile()}[]" for column in self.table.columns)
        doubled = conflict.replace("%", "%%")  # psycopg's mark of a parameter
        object.__setattr__(self, "postgresql", f"{insert} SELECT * FROM unnest({arrays}) {doubled}")


def add_in(tx: PlatformTx, upsert: Upsert, rows: Sequence[Sequence[object]]) -> None:
    """Insert or change these rows, at least one, in this order."""
    if tx.connection.dialect.name == "sqlite":
        tx.connection.exec_driver_sql(upsert.sqlite, [tuple(row) for row in rows])
    else:
        tx.connection.exec_driver_sql(upsert.postgresql, tuple(list(column) for column in zip(*rows, strict=True)))
