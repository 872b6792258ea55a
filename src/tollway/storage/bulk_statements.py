"""Many rows at once, by each engine's own fast way.

SQLAlchemy looks at every value of every row, which costs several times what storing it does. Here rows go to the driver as they are:
SQLite takes them one by one from a prepared statement, PostgreSQL as a COPY (into a table without row security), or as one array for each
column. Values are int, str, bytes or None. All text is visible ASCII (the collector lets nothing else through), so only a backslash has to
be escaped in a COPY. Rows may be made while the database stores those before them: whoever hands in an iterator has them drawn that way.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.schema_money import Amount

COPY_LINES = 256
"""Written at a time: about 100 KB. The server stores one part while the next is made."""

UNIQUE_VIOLATION = "23505"
"""SQLSTATE of a key that is taken (PostgreSQL, appendix A)."""

UNIQUE_FAILED = "UNIQUE constraint failed:"
"""Start of SQLite's message for a violated unique constraint. Its Python driver does not expose the result code."""

NULL = r"\N"
"""A value that is not there, in a COPY as text: PostgreSQL's own format, and the one that it reads fastest."""


class Duplicate(Exception):
    """A row has a key that is taken. Nothing was inserted, and the transaction goes on."""


def any_of(tx: Transaction, column: sa.Column[str], values: Sequence[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a column has one of `values`, which are one parameter, however many they are."""
    if tx.connection.dialect.name == "sqlite":
        listed = sa.func.json_each(json.dumps(values)).table_valued("value")
        return column.in_(sa.select(listed.c.value))
    return column == sa.any_(sa.bindparam(None, values, type_=postgresql.ARRAY(sa.String), unique=True))


def by_bytes(tx: Transaction, column: sa.Column[str]) -> sa.ColumnElement[str]:
    """A column of text to order by, in the order that Python has, whatever the language of the database."""
    return column if tx.connection.dialect.name == "sqlite" else sa.collate(column, "C")


def insert_rows(tx: PlatformTx, table: sa.Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows of these columns. Raises Duplicate."""
    if tx.connection.dialect.name == "sqlite":
        insert_prepared(tx, table, columns, rows)
    else:
        insert_arrays(tx, table, columns, list(rows))


def insert_prepared(tx: PlatformTx, table: sa.Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Insert into a table of SQLite by a prepared statement, row by row. Raises Duplicate."""
    # OR FAIL: a row that is refused ends the statement, and the savepoint undoes the rows before it. Otherwise SQLite copies what each row
    # changes beforehand, to undo that row alone, and keeps the copies until the savepoint ends.
    statement = f"INSERT OR FAIL INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    driver: Any = tx.connection.dialect.loaded_dbapi
    connection: Any = tx.connection.connection.driver_connection
    try:
        with tx.connection.begin_nested():
            connection.executemany(statement, rows)
    except driver.IntegrityError as error:
        if str(error).startswith(UNIQUE_FAILED):
            raise Duplicate from error
        raise sa.exc.IntegrityError(statement, None, error) from error
    except driver.OperationalError as error:
        raise sa.exc.OperationalError(statement, None, error) from error


def insert_arrays(tx: PlatformTx, table: sa.Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert into a table of PostgreSQL, which refuses a COPY where row security is on. Raises Duplicate."""
    types = [_array_type(table.c[name]) for name in columns]
    values = ", ".join(f"{name}::numeric" if isinstance(table.c[name].type, Amount) else name for name in columns)
    arrays = ", ".join(f"%s::{type}[]" for type in types)
    named = ", ".join(columns)
    statement = f"INSERT INTO {table.name} ({named}) SELECT {values} FROM unnest({arrays}) AS row ({named})"
    try:
        with tx.connection.begin_nested():
            tx.connection.exec_driver_sql(statement, tuple(map(array_literal, zip(*rows, strict=True))))
    except sa.exc.IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) == UNIQUE_VIOLATION:
            raise Duplicate from error
        raise


def _array_type(column: sa.Column[Any]) -> str:
    return "bigint" if isinstance(column.type, sa.Integer) else "boolean" if isinstance(column.type, sa.Boolean) else "text"


def copy_line(values: Iterable[int | str | bytes | None]) -> str:
    """Values as a line for `copy_lines`."""
    return "\t".join(map(_text, values)) + "\n"


def _text(value: int | str | bytes | None) -> str:
    if isinstance(value, str):
        return value.replace("\\", r"\\")
    if value is None:
        return NULL
    return rf"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


def copy_lines(
    tx: PlatformTx, table: str, columns: Sequence[str], lines: Iterable[str], meanwhile: Callable[[], None] | None = None
) -> None:
    """Insert into a table of PostgreSQL by COPY. Lines hold the values between tabs, and end with a newline. `meanwhile` is called
    once all are sent, while the server is still busy with them. Raises Duplicate."""
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
    driver: Any = tx.connection.dialect.loaded_dbapi
    connection: Any = tx.connection.connection.driver_connection
    rest = iter(lines)
    try:
        with tx.connection.begin_nested(), connection.cursor() as cursor, cursor.copy(statement) as copy:
            while part := "".join(islice(rest, COPY_LINES)):
                copy.write(part)
            if meanwhile is not None:
                meanwhile()
    except driver.IntegrityError as error:
        if error.sqlstate == UNIQUE_VIOLATION:
            raise Duplicate from error
        raise sa.exc.IntegrityError(statement, None, error) from error
    except (driver.OperationalError, driver.InterfaceError) as error:
        raise sa.exc.OperationalError(statement, None, error) from error


@dataclass(frozen=True, slots=True)
class Upsert:
    """INSERT of rows of `table`, in the order of its columns; where one with this `key` is there, `changes` happen to it.

    `changes`: SQL by column, which both engines understand, over the table's columns and those of `excluded`, the new row. `zeros`: columns
    that are 0 in every new row, which has no value for them, and that do not change in one that is there.
    """

    table: sa.Table
    key: Sequence[str]
    changes: Mapping[str, str]
    zeros: Sequence[str] = ()
    sqlite: str = field(init=False)
    postgresql: str = field(init=False)

    def __post_init__(self) -> None:
        """Write the statements once."""
        given = [column for column in self.table.columns if column.name not in self.zeros]
        names = [column.name for column in given]
        insert = f"INSERT INTO {self.table.name} ({', '.join([*names, *self.zeros])})"
        changes = ", ".join(f"{name} = {change}" for name, change in self.changes.items() if name not in self.zeros)
        conflict = f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {changes}"
        zeros = ["0"] * len(self.zeros)
        object.__setattr__(self, "sqlite", f"{insert} VALUES ({', '.join([*'?' * len(given), *zeros])}) {conflict}")
        arrays = ", ".join(f"%s::{_array_type(column)}[]" for column in given)
        values = ", ".join([*(f"{each.name}::numeric" if isinstance(each.type, Amount) else each.name for each in given), *zeros])
        doubled = conflict.replace("%", "%%")  # psycopg's mark of a parameter
        object.__setattr__(self, "postgresql", f"{insert} SELECT {values} FROM unnest({arrays}) AS row ({', '.join(names)}) {doubled}")


def upsert_rows(tx: PlatformTx, upsert: Upsert, rows: Sequence[Sequence[Any]]) -> None:
    """Insert or change these rows, at least one, in this order."""
    if tx.connection.dialect.name == "sqlite":
        tx.connection.exec_driver_sql(upsert.sqlite, [tuple(row) for row in rows])
    else:
        tx.connection.exec_driver_sql(upsert.postgresql, tuple(map(array_literal, zip(*rows, strict=True))))


def array_literal(values: Sequence[int | None] | Sequence[str | None]) -> str:
    """A one-dimensional array of PostgreSQL as text: the driver's own way looks at each value with a regular expression."""
    if None in values:
        return "{" + ",".join(map(_element, values)) + "}"
    if not values or not isinstance(values[0], str):
        return "{" + ",".join(map(str, values)) + "}"
    joined = "\0".join(map(str, values))
    if "\\" in joined or '"' in joined:
        joined = joined.replace("\\", r"\\").replace('"', r"\"")
    return '{"' + joined.replace("\0", '","') + '"}'


def _element(value: int | str | None) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else array_literal([value])[1:-1]
