"""The database: where transactions begin and end.

Theory of operation. One set of queries runs on SQLite (embedded) and on PostgreSQL (cluster). What differs is here and nowhere else.

A transaction is a value that says whom it may touch: `TenantTx` is bound to one organization, `PlatformTx` to none. Query functions
ask for the one they need, so the type checker sees a query that forgot its tenant. A route opens a transaction, operations use it, the
end of the block commits it; an exception rolls it back.

SQLite: one write connection, handed from thread to thread, begins with BEGIN IMMEDIATE, so that a writer never has to upgrade a
lock; readers are other connections that cannot write and, in WAL mode, neither wait for the writer nor hold it up. PostgreSQL:
writers run READ COMMITTED and take row locks; readers run REPEATABLE READ, so that a snapshot is of one instant on both engines. There a
transaction of an organization runs as a role that sees no other one's rows (see `row_security`), and only a migration as the owner.

Every wait has a bound: for a connection, for a lock, for a statement. A database that cannot be reached in time is a Fault
(DATABASE_UNAVAILABLE), which a client may retry.
"""

import functools
import importlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import sqlalchemy as sa
from pysqlite3 import dbapi2 as pysqlite3
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.storage import row_security
from tollway.storage.schema import metadata
from tollway.storage.statement_spans import trace_statements

SQLITE_VERSION_MIN = (3, 51, 3)
"""Older ones can corrupt a database in WAL mode when a checkpoint races a writer that resets the log."""

CONNECTION_WAIT_SECONDS = 5.0
"""Longest wait of a request for a connection (on SQLite: for the writer before it) before it is refused."""

LOCK_WAIT_SECONDS = 5
"""Longest wait of a statement for a row or file lock, below the deadline of any known client."""

STATEMENT_SECONDS_MAX = 30
"""Limit for one statement. No query takes a second; one that takes thirty has a wrong plan and must release its locks."""

WRITER_CACHE_KIB = 64 * 1024
"""Page cache of SQLite's writer: the pages that a batch of usage changes (with the default of 2 MiB, pages are written out and read
again within one transaction)."""

READERS = 8
"""Reading connections to SQLite. Its readers are threads of this process; more than a few times the cores only queue elsewhere."""

POSTGRES_CONNECTIONS = 20
"""Connections of one process to PostgreSQL: half of the worker threads of the API, well below the server's default of 100."""

MIGRATION_LOCK = 0x746F6C6C776179
"""PostgreSQL advisory lock ("tollway" in ASCII): several control processes may start at once, one migrates."""

MIGRATION_WAIT_SECONDS = 600
"""For the process that migrates. A supervisor gives up on a start before that, and starts again."""

MIGRATION_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses before a migration is tried again that lost a table to processes which work on it. Each attempt begins with nothing done, so a
pause lets them finish what waited for it: half a minute in all, in which a batch of usage, the longest of their transactions, is stored."""

LOST_LOCKS = ("55P03", "40P01")
"""SQLSTATEs of a statement that did not get a lock in time, and of one that was chosen to end a deadlock."""


MIGRATIONS = Path(__file__).parent / "migrations" / "versions"
_REVISIONS = ("revision", "down_revision")

READ_ONLY = "25006"
"""SQLSTATE of a statement that writes where the server only reads: a replica, or a former primary after a failover."""

UNANSWERED_SECONDS_MAX = 15
"""Longest time for which what was sent to PostgreSQL may stay without TCP's acknowledgement: a line that is cut would hold a thread for a
quarter of an hour otherwise."""


class DatabaseTooNew(RuntimeError):
    """The database was migrated by a newer Tollway. Running an older one against it could damage it."""


class DatabaseOutdated(RuntimeError):
    """The database has not been migrated to what this version of Tollway needs."""


@dataclass(slots=True)
class Transaction:
    """An open transaction. `published_version` is set by a publication and passed to listeners once it is committed."""

    connection: sa.Connection
    published_version: int | None = field(default=None, init=False)
    publication_locked: bool = field(default=False, init=False)

    def insert(self, table: sa.Table) -> "postgresql.Insert | sqlite.Insert":
        """An INSERT in the dialect of this database, for its `on_conflict_do_nothing` and `on_conflict_do_update`."""
        if self.connection.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)


@dataclass(slots=True)
class PlatformTx(Transaction):
    """A transaction of the platform itself: operators, gateways, the collector."""

    def lift_deadline(self) -> None:
        """Let statements of this transaction take as long as they need: for whoever reads everything."""
        if self.connection.dialect.name == "postgresql":
            self.connection.execute(sa.text("SET LOCAL statement_timeout = 0"))


@dataclass(slots=True)
class TenantTx(Transaction):
    """A transaction on behalf of one organization: every query in it is for `organization_id`."""

    organization_id: str

    @contextmanager
    def as_platform(self) -> Iterator[PlatformTx]:
        """Let the queries of the block see rows of all organizations, for what must be unique among them."""
        if self.connection.dialect.name == "postgresql":
            row_security.assume_platform(self.connection)
        yield PlatformTx(self.connection)
        if self.connection.dialect.name == "postgresql":
            row_security.assume_tenant(self.connection, self.organization_id)


Recorder = Callable[[Transaction], Callable[[], None] | None]
"""Function that is called at the beginning of a transaction that writes. It returns what is to be called before the commit, if anything."""


class Database:
    """An open database. Thread-safe. Made by `Database.open`, ended by `close`."""

    def __init__(self, writers: sa.Engine, readers: sa.Engine, owners: sa.Engine) -> None:
        """`owners`: connects with all rights of the role of the URL, for the schema; the same as `writers` on SQLite."""
        self._writers = writers
        self._readers = readers
        self._owners = owners
        self._listeners: list[Callable[[int], None]] = []
        self._prepare: Callable[[Transaction], None] | None = None
        self._record: Recorder | None = None

    @classmethod
    def open(cls, url: str, *, connections_max: int = POSTGRES_CONNECTIONS) -> Self:
        """Open `sqlite+pysqlite:///path` or `postgresql+psycopg://...`. Connects lazily; a SQLite file is made when absent.

        `connections_max` bounds the connections to PostgreSQL. Raises ValueError for any other kind of database and RuntimeError
        for a SQLite library that is too old to be trusted.
        """
        parsed = sa.make_url(url)
        match parsed.get_backend_name():
            case "sqlite":
                writers = _sqlite_engine(parsed, write=True)
                return cls(writers, _sqlite_engine(parsed, write=False), writers)
            case "postgresql":
                engine = _postgres_engine(parsed, connections_max, role=row_security.PLATFORM_ROLE)
                return cls(engine, engine, _postgres_engine(parsed, 1, role=None))
            case _:
                raise ValueError("the database must be SQLite (sqlite+pysqlite:///...) or PostgreSQL (postgresql+psycopg://...)")

    @property
    def is_sqlite(self) -> bool:
        """Return whether this is the embedded database, which one process has to itself."""
        return self._writers.dialect.name == "sqlite"

    def close(self) -> None:
        """Close all connections. Transactions that are still open fail."""
        self._writers.dispose()
        self._readers.dispose()
        self._owners.dispose()

    def trace_statements(self) -> None:
        """Let each statement be a span of the trace of its operation. Call it once."""
        for engine in {self._writers, self._readers, self._owners}:
            trace_statements(engine)

    def on_publish(self, listener: Callable[[int], None]) -> None:
        """Call `listener(version)` after each commit of this process that published one; in the committing thread, so: be quick."""
        self._listeners.append(listener)

    # ---- Transactions -------------------------------------------------------------------------------------------------

    def preparing(self, prepare: Callable[[Transaction], None]) -> "Database":
        """Return this database as one request uses it: `prepare` runs at the beginning of its first transaction that writes and commits.
        What `prepare` raises ends that transaction."""
        prepared = self._copy()
        prepared._prepare = prepare
        return prepared

    def recording(self, record: Recorder) -> "Database":
        """Return this database as one request, job or command uses it: each transaction that writes is passed to `record` at its beginning,
        and what that returns is called before the commit. What either raises ends the transaction."""
        recorded = self._copy()
        recorded._record = record
        return recorded

    def _copy(self) -> "Database":
        copy = Database(self._writers, self._readers, self._owners)
        copy._listeners, copy._prepare, copy._record = self._listeners, self._prepare, self._record
        return copy

    @contextmanager
    def platform(self, *, write: bool = True) -> Iterator[PlatformTx]:
        """A transaction of the platform, committed at the end of the block. `write=False` sees one instant and cannot write.

        Raises Fault DATABASE_UNAVAILABLE if the database cannot be reached, now or in the middle; then nothing was written (or, if
        the connection was lost during the commit itself, that is unknown, as with any database).
        """
        with self._connection(write) as connection:
            tx = PlatformTx(connection)
            finish = self._begin(tx, write)
            yield tx
            self._commit(tx, write, finish)
        self._notify_listeners(tx)

    @contextmanager
    def tenant(self, organization_id: str, *, write: bool = True) -> Iterator[TenantTx]:
        """A transaction on behalf of one organization; otherwise as `platform`."""
        with self._connection(write) as connection:
            if not self.is_sqlite:
                row_security.assume_tenant(connection, organization_id)
            tx = TenantTx(connection, organization_id)
            finish = self._begin(tx, write)
            yield tx
            self._commit(tx, write, finish)
        self._notify_listeners(tx)

    def _begin(self, tx: Transaction, write: bool) -> Callable[[], None] | None:
        if not write:
            return None
        if self._prepare is not None:
            self._prepare(tx)
        return None if self._record is None else self._record(tx)

    def _commit(self, tx: Transaction, write: bool, finish: Callable[[], None] | None) -> None:
        if finish is not None:
            finish()
        tx.connection.commit()
        if write:
            self._prepare = None

    @contextmanager
    def _connection(self, write: bool) -> Iterator[sa.Connection]:
        with self._connected(self._writers if write else self._readers, write) as connection:
            yield connection

    @contextmanager
    def _connected(self, engine: sa.Engine, write: bool) -> Iterator[sa.Connection]:
        try:
            with engine.connect() as connection:
                if not write and connection.dialect.name == "postgresql":
                    connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                yield connection
        except IntegrityError:
            raise  # a rule of the schema was broken: our mistake, not the database's
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            raise Fault(DATABASE_UNAVAILABLE, detail=_describe(error)) from error
        except InternalError as error:
            if not write or getattr(error.orig, "sqlstate", None) != READ_ONLY:
                raise
            raise Fault(DATABASE_UNAVAILABLE, detail=_describe(error)) from error

    def _notify_listeners(self, tx: Transaction) -> None:
        if tx.published_version is not None:
            for listener in self._listeners:
                listener(tx.published_version)

    # ---- Schema -------------------------------------------------------------------------------------------------------

    def migrate(self, pause: Callable[[float], object] = time.sleep) -> None:
        """Bring the schema up to date. Safe to call from several processes at once; does nothing when there is nothing to do, or when a
        newer version has migrated the database in a way that leaves this one running.

        All migrations are one transaction, which holds the tables that it has changed until its end. A process that works meanwhile takes
        them in an order of its own, so that the two can wait for each other: one of them gives up then, and if it is this one, it begins
        again after each of MIGRATION_PAUSES_SECONDS. `pause`: waits for so many seconds.

        Raises DatabaseTooNew if this code cannot run over what a newer one made of the database, RoleRefused where PostgreSQL has not
        the roles that row security needs, and Fault DATABASE_UNAVAILABLE if it cannot be reached or the tables cannot be had. Then nothing
        was changed. The role of the URL must own the tables.
        """
        for seconds in MIGRATION_PAUSES_SECONDS:
            try:
                self._migrate()
                return
            except Fault as fault:
                if not _has_lost_lock(fault):
                    raise
            pause(seconds)
        self._migrate()

    def _migrate(self) -> None:
        with self._connected(self._owners, write=True) as connection:
            if connection.dialect.name == "postgresql":
                # A migration may take its time, and whoever came second waits for it; but no table is waited for longer than usual.
                connection.execute(sa.text(f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{MIGRATION_WAIT_SECONDS}s'"))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_SECONDS}s'"))
            if not _is_current(connection):
                if _is_newer(connection):
                    return
                _import_revisions().upgrade(connection)
            if not self.is_sqlite:
                row_security.apply(connection)
            connection.commit()

    def check_schema(self) -> None:
        """Raise DatabaseOutdated or DatabaseTooNew unless the schema is the one that this code was written for, or a newer one over which
        it may run, with the policies and grants of its tables."""
        with self._connected(self._owners, write=False) as connection:
            if not self.is_sqlite and row_security.is_applied(connection):
                connection.execute(sa.text(f"SET LOCAL ROLE {row_security.PLATFORM_ROLE}"))
            is_current = _is_current(connection)
            is_newer = not is_current and _is_newer(connection)
            # The conditions of policies are those of the newer version; what this one needs is that they are there.
            find = row_security.find_unprotected if is_newer else row_security.list_gaps
            gaps = [] if self.is_sqlite else find(connection)
        if is_newer:
            gaps = [name for name in gaps if name in metadata.tables]
        elif not is_current:
            raise DatabaseOutdated("the database has not been migrated: run `tollway migrate`")
        if gaps:
            names = ", ".join(gaps[:5])
            raise DatabaseOutdated(f"the row security of the database is not what this version needs ({names}): run `tollway migrate`")

    def check_role(self) -> None:
        """Raise RoleRefused unless the role of the URL is held to row security (`storage.row_security`). SQLite has no roles."""
        if not self.is_sqlite:
            with self._connected(self._owners, write=False) as connection:
                row_security.refuse_role(connection)

    @contextmanager
    def as_connected(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """A connection with the rights of the role of the URL itself, for copies and restores; committed at the end of the block."""
        with self._connected(self._owners, write) as connection:
            yield connection
            connection.commit()

    def find_version(self) -> str:
        """Return product and version, such as "PostgreSQL 16.4". Raises Fault DATABASE_UNAVAILABLE if the database does not answer."""
        with self._connected(self._owners, write=False) as connection:
            if connection.dialect.name == "sqlite":
                return f"SQLite {connection.scalar(sa.text('SELECT sqlite_version()'))}"
            return f"PostgreSQL {connection.scalar(sa.text('SHOW server_version'))}"

    def ping(self) -> None:
        """Ask the database for a sign of life. Raises Fault DATABASE_UNAVAILABLE if there is none."""
        with self._connection(write=False) as connection:
            connection.execute(sa.select(sa.literal(1)))


def _has_lost_lock(fault: Fault) -> bool:
    """Return whether a statement of PostgreSQL failed because other transactions had what it needed, and not because of the database."""
    cause = fault.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) in LOST_LOCKS


def _describe(error: Exception) -> str:
    """Return what an operator may read of a driver's error: its own words, never the statement's parameters."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(cause).__name__}: {cause}"


def knows_revision(revision: str) -> bool:
    """Return whether this version can bring a database of that schema revision up to date."""
    return revision in _import_revisions().list_known()


@functools.cache
def find_head() -> str:
    """Return the revision of the schema that this code was written for: the one that no other follows."""
    texts = [path.read_text() for path in MIGRATIONS.glob("*.py")]
    found = {name: {match[1] for text in texts for match in re.finditer(rf'^{name} = "(\w+)"', text, re.MULTILINE)} for name in _REVISIONS}
    (head,) = found["revision"] - found["down_revision"]
    return head


def _is_current(connection: sa.Connection) -> bool:
    """Return whether the schema is the one that this code was written for, as it nearly always is."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    return connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [find_head()]


def _is_newer(connection: sa.Connection) -> bool:
    """Return whether a newer version has migrated the database and this one may run over it nevertheless. Raises DatabaseTooNew if it may
    not."""
    revisions = _import_revisions()
    unknown = revisions.list_unknown(connection)
    if not unknown or find_head() in revisions.read_compatible(connection):
        return bool(unknown)
    raise DatabaseTooNew(
        f"the database is at revision {', '.join(unknown)}, over which this version of Tollway cannot run: "
        "run the newer version that migrated it, or restore a backup"
    )


def _import_revisions() -> ModuleType:
    """Import what changes the schema. Alembic takes a tenth of a start and 10 MiB, and hardly any start finds something to change."""
    return importlib.import_module("tollway.storage.revisions")


# ---- Engines ----------------------------------------------------------------------------------------------------------


def _sqlite_engine(url: sa.URL, *, write: bool) -> sa.Engine:
    if pysqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        raise RuntimeError(f"SQLite {pysqlite3.sqlite_version} can corrupt databases in WAL mode; 3.51.3 or later is needed")
    if not url.database or url.database == ":memory:":
        raise ValueError("an embedded database needs a file: sqlite+pysqlite:///path")
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        module=pysqlite3,
        poolclass=sa.QueuePool,
        pool_size=1 if write else READERS,
        max_overflow=0,
        pool_timeout=CONNECTION_WAIT_SECONDS,
        # No isolation level: the driver begins nothing by itself; we do, below. Connections move between worker threads, one at a
        # time, which the pool guarantees.
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": LOCK_WAIT_SECONDS},
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        if write:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA secure_delete = ON")  # what was deleted is overwritten, so that a retention time means the bytes
            cursor.execute("PRAGMA synchronous = FULL")  # a commit that was answered survives a power cut
            cursor.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA trusted_schema = OFF")
        if not write:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgres_engine(url: sa.URL, connections_max: int, *, role: str | None) -> sa.Engine:
    """`role`: the one in which every connection begins; None for the role of the URL."""
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=CONNECTION_WAIT_SECONDS,
        pool_pre_ping=True,  # a server that was restarted meanwhile costs one round trip, not an error
        connect_args={
            "connect_timeout": int(CONNECTION_WAIT_SECONDS),
            "application_name": "tollway",
            "tcp_user_timeout": UNANSWERED_SECONDS_MAX * 1000,
            "keepalives_idle": UNANSWERED_SECONDS_MAX,
            "keepalives_interval": 5,
            "options": f"-c timezone=UTC -c lock_timeout={LOCK_WAIT_SECONDS}s -c statement_timeout={STATEMENT_SECONDS_MAX}s"
            " -c idle_in_transaction_session_timeout=60s" + (f" -c role={role}" if role else ""),
        },
        hide_parameters=True,
    )
