"""Fresh, migrated databases for tests: each engine is migrated once per run, and every test gets a copy of the result."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tests.link import samples
from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION
from tollway.domain.price_books import BookPrice, PriceBook
from tollway.domain.prices import PriceVersion
from tollway.storage import prices, schema
from tollway.storage.database import Database, PlatformTx


def add_price(tx: PlatformTx, version: PriceVersion) -> None:
    """Publish what compiles to `version`, whose list is a book without a discount; the book is made the default of its currency.
    Samples are admitted under it from now on."""
    samples.prove(version)
    if prices.find_book(tx, version.list) is None:
        is_default = prices.find_default_book(tx, version.currency) is None
        book = PriceBook(
            id=version.list, name=version.list, currency=version.currency, organization_id=None, is_default=is_default, created_at=0
        )
        prices.insert_book(tx, book)
    published = BookPrice(
        id=version.id,
        book_id=version.list,
        model=version.model,
        tier=version.tier,
        valid_from=version.valid_from,
        carried_from=version.valid_from,
        published_at=0,
        unit_prices=version.unit_prices,
    )
    prices.insert_book_prices(tx, [published])
    prices.insert_compiled(tx, [published], version.currency, prices.list_lists(tx, version.list))


def prove_prices(tx: PlatformTx) -> None:
    """Let the samples be admitted under every price that there is, by the terms of each organization."""
    organization_ids = list(tx.connection.execute(sa.select(schema.organizations.c.id)).scalars())
    compiled = [version for version, _ in prices.iterate_compiled(tx)]
    for organization_id, terms in prices.read_terms(tx, organization_ids).items():
        for each in terms.schedule:
            for version in compiled:
                if each.list == version.list:
                    samples.prove(version, each.valid_from, organization_id)


def become_owner(tx: PlatformTx) -> None:
    """Give the transaction the rights of the role that connected, which is a superuser in tests: to tamper, or to change tables."""
    if tx.connection.dialect.name == "postgresql":
        tx.connection.execute(sa.text("SET LOCAL ROLE NONE"))


def fill(database: Database) -> None:
    """Two organizations in two currencies, a model, a price in each currency."""
    with database.platform() as tx:
        for organization_id, currency in ((ORGANIZATION, "EUR"), (OTHER_ORGANIZATION, "USD")):
            tx.connection.execute(
                schema.organizations.insert().values(id=organization_id, name="o", currency=currency, status="active", created_at=0)
            )
        tx.connection.execute(
            schema.models.insert().values(
                name="echo",
                status="active",
                published=True,
                endpoints="[]",
                unknown_parameters="refuse",
                retry_started=True,
                share_cache=False,
                created_at=0,
            )
        )
        for price in (samples.PRICE, samples.OTHER_PRICE):
            add_price(tx, price)


class SqliteTemplate:
    """A migrated SQLite file to copy."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "template.db"
        database = Database.open(f"sqlite+pysqlite:///{self._file}")
        database.migrate()
        database.close()  # the last connection folds the write-ahead log into the file

    @contextmanager
    def copied(self, directory: Path) -> Iterator[str]:
        """The URL of a copy in `directory`."""
        path = directory / f"tollway-{secrets.token_hex(4)}.db"
        shutil.copyfile(self._file, path)
        yield f"sqlite+pysqlite:///{path}"

    @contextmanager
    def empty(self, directory: Path) -> Iterator[str]:
        """The URL of a database that is not there yet."""
        yield f"sqlite+pysqlite:///{directory / f'tollway-{secrets.token_hex(4)}.db'}"


@contextmanager
def _recorded() -> Iterator[dict[str, list[str]]]:
    """Yield the statements that migrations execute in the block, by their revision: those before it is noted in `alembic_version`."""
    found: dict[str, list[str]] = {}
    pending: list[str] = []

    def take(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        noted = re.match(r"(?:UPDATE|INSERT INTO) alembic_version .*?'(\w+)'", statement, re.DOTALL)
        if noted:
            found[noted[1]] = list(pending)
            pending.clear()
        elif not statement.lstrip().upper().startswith(("SELECT", "SET ", "CREATE TABLE ALEMBIC_VERSION")):
            pending.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", take)
    try:
        yield found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", take)


MIGRATION_LOCK = 7_031
"""Advisory lock of the server, held while a template is migrated."""


class PostgresTemplate:
    """A migrated PostgreSQL database to copy, in the server that TOLLWAY_TEST_POSTGRES names. `statements`: those of each migration, by
    revision."""

    def __init__(self) -> None:
        self._server = sa.make_url(os.environ["TOLLWAY_TEST_POSTGRES"])
        self._admin = sa.create_engine(self._server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        self._template = f"tollway_template_{secrets.token_hex(4)}"
        self._execute(f"CREATE DATABASE {self._template}")
        database = Database.open(self._url(self._template))
        # One worker after the other: roles belong to the server, and who makes one waits for the end of the other's migration.
        with self._admin.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(MIGRATION_LOCK)))
            with _recorded() as self.statements:
                database.migrate()
        database.close()

    @contextmanager
    def copied(self, _directory: Path) -> Iterator[str]:
        """The URL of a copy, dropped afterwards."""
        with self._created(f"TEMPLATE {self._template}") as url:
            yield url

    @contextmanager
    def empty(self, _directory: Path) -> Iterator[str]:
        """The URL of a database without tables, dropped afterwards."""
        with self._created("") as url:
            yield url

    @contextmanager
    def _created(self, options: str) -> Iterator[str]:
        name = f"tollway_test_{secrets.token_hex(4)}"
        self._execute(f"CREATE DATABASE {name} {options}")
        yield self._url(name)
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def drop(self) -> None:
        """Drop the template."""
        self._execute(f"DROP DATABASE {self._template} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(sa.text(statement))

    def _url(self, name: str) -> str:
        return self._server.set(database=name).render_as_string(hide_password=False)
