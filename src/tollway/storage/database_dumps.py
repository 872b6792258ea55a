"""Copies of a whole database: taken while it runs, as of one instant, and put back where there is none.

SQLite copies itself page by page (its backup API). PostgreSQL's own programs do it, pg_dump and pg_restore, which must be installed and no
older than the server. Passwords reach them in the environment, because arguments can be read by every user of the machine.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from pysqlite3 import dbapi2 as pysqlite3
from sqlalchemy.exc import ProgrammingError

from tollway.storage import row_security
from tollway.storage.database import Database

SQLITE = "sqlite"
POSTGRESQL = "postgresql"

REVISION = "SELECT version_num FROM alembic_version"
WATERMARKS = "SELECT node_id, epoch, archive_bytes FROM epochs"
"""Query for the bytes of each archive file that the database has. It names columns that every schema has, so that a database can be
copied before it is migrated."""


class DumpFailed(Exception):
    """A database could not be copied or put back. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """Contents of a copy. `revision`: of its schema. `ingested`: bytes of the archive file of each (node, epoch) that it has."""

    kind: str
    revision: str
    ingested: Mapping[tuple[str, int], int]


def copy_database(url: str, to: Path) -> DatabaseCopy:
    """Copy the database at `url`, as of one instant, into the new file `to`. Writers go on meanwhile.

    Raises DumpFailed, Fault DATABASE_UNAVAILABLE, OSError.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == SQLITE:
        return _copy_sqlite(Path(str(parsed.database)), to)
    with closing(Database.open(url)) as database, database.as_connected() as connection:
        options = []
        if row_security.is_applied(connection):
            # Without --enable-row-security pg_dump refuses to copy as a role that has policies. This one's let it see every row.
            options = [f"--role={row_security.PLATFORM_ROLE}", "--enable-row-security"]
            connection.execute(sa.text(f"SET LOCAL ROLE {row_security.PLATFORM_ROLE}"))
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        instant = connection.scalar(sa.text("SELECT pg_export_snapshot()"))
        copied = _describe_postgres(connection)
        options += ["--format=custom", "--no-owner", "--no-privileges", f"--snapshot={instant}", f"--file={to}"]
        _run_client("pg_dump", options, parsed)
    return copied


def check_target(url: str, kind: str) -> None:
    """Raise DumpFailed unless a copy of a database of `kind` can be put at `url`, because nothing is there yet; or Fault
    DATABASE_UNAVAILABLE."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != kind:
        raise DumpFailed(f"the backup is of a {kind} database and cannot be put into a {parsed.get_backend_name()} one")
    if kind == SQLITE:
        if Path(str(parsed.database)).exists():
            raise DumpFailed(f"there is a database already, which a backup never replaces: {parsed.database}")
        return
    with closing(Database.open(url)) as database, database.as_connected() as connection:
        tables = connection.scalar(sa.text("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"))
    if tables:
        raise DumpFailed(f"the database is not empty ({tables} tables), and a backup never replaces one: create another")


def restore_database(url: str, copy: Path, kind: str) -> None:
    """Put `copy` where `check_target` found nothing: all of it, or nothing. On PostgreSQL the role of the URL owns the tables then.

    Raises DumpFailed, RoleRefused, OSError.
    """
    parsed = sa.make_url(url)
    if kind == SQLITE:
        _restore_sqlite(copy, Path(str(parsed.database)))
        return
    with closing(Database.open(url)) as database:
        with database.as_connected(write=True) as connection:
            row_security.make_roles(connection)  # which the policies of the copy name
        _run_client("pg_restore", ["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges"], parsed, str(copy))
        with database.as_connected(write=True) as connection:
            row_security.apply(connection)


def _copy_sqlite(source: Path, to: Path) -> DatabaseCopy:
    try:
        with closing(pysqlite3.connect(f"file:{source}?mode=rw", uri=True)) as live, closing(pysqlite3.connect(to)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, which nothing beside it completes
            (state,) = copy.execute("PRAGMA quick_check").fetchone()
            if state != "ok":
                raise DumpFailed(f"{source} is damaged: {state}")
            (revision,) = copy.execute(REVISION).fetchone()
            ingested = {(node_id, epoch): size for node_id, epoch, size in copy.execute(WATERMARKS)}
    except pysqlite3.Error as error:
        raise DumpFailed(f"{source} cannot be copied: {error}") from None
    return DatabaseCopy(SQLITE, revision, ingested)


def _restore_sqlite(copy: Path, to: Path) -> None:
    aside = to.with_name(f".{to.name}.restored")
    shutil.copyfile(copy, aside)
    aside.chmod(0o600)
    descriptor = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(aside, to)  # never over a database
    except FileExistsError:
        raise DumpFailed(f"there is a database already: {to}") from None
    finally:
        aside.unlink()


def _describe_postgres(connection: sa.Connection) -> DatabaseCopy:
    try:
        revision = connection.scalar(sa.text(REVISION))
        ingested = {(node_id, epoch): size for node_id, epoch, size in connection.execute(sa.text(WATERMARKS))}
    except ProgrammingError:
        raise DumpFailed("the database has no tables of Tollway's: is it the right one?") from None
    return DatabaseCopy(POSTGRESQL, str(revision), ingested)


def _run_client(program: str, options: list[str], url: sa.URL, *arguments: str) -> None:
    path = find_program(program)
    if path is None:
        raise DumpFailed(f"{program} is not installed (Debian: apt-get install postgresql-client)")
    address = url.set(drivername="postgresql", password=None).render_as_string()
    environment = {name: value for name, value in os.environ.items() if name != "PGOPTIONS"}
    if url.password is not None:
        environment["PGPASSWORD"] = url.password
    command = [str(path), *options, f"--dbname={address}", *arguments]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise DumpFailed(f"{program}: {' '.join(done.stderr.split())[:500]}")


def find_program(name: str) -> Path | None:
    """Return the newest program of PostgreSQL of that name, or else the one on PATH. Debian keeps each version's own off PATH, and the
    newest clients read all."""
    versions = [path for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}") if path.parts[-3].isdigit()]
    if versions:
        return max(versions, key=lambda path: int(path.parts[-3]))
    found = shutil.which(name)
    return Path(found) if found else None
