"""Fixtures of databases for all tests: templates are migrated once per run, and every test gets a copy.

A test that asks for `database` runs on SQLite and, where there is one, on PostgreSQL. Loaded by the top conftest.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.storage.databases import PostgresTemplate, SqliteTemplate
from tollway.storage.database import Database

DIALECTS: dict[str, sa.Dialect] = {}
"""The first of each name; all databases of a run are of one SQLite and one PostgreSQL."""

COMPILED: dict[object, object] = {}
"""The statements that were compiled, of all databases."""


@sa.event.listens_for(sa.Engine, "engine_connect")
def share_statements(connection: sa.Connection) -> None:
    """Let the databases of all tests share what they have compiled. Each test has databases of its own, and to compile the same statements
    again for each was a third of its CPU time. Engines without a pool are not the product's, and have options of their own."""
    engine = connection.engine
    shared = DIALECTS.setdefault(engine.dialect.name, engine.dialect) if isinstance(engine.pool, sa.QueuePool) else engine.dialect
    if engine.dialect is not shared:  # the connection at hand keeps its own
        engine.dialect = shared
        engine.update_execution_options(compiled_cache=COMPILED)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> SqliteTemplate:
    return SqliteTemplate(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[PostgresTemplate]:
    template = PostgresTemplate()
    yield template
    template.drop()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a migrated, empty database."""
    with request.getfixturevalue(f"{request.param}_template").copied(tmp_path) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Open a migrated, empty database; `tests/control` fills it."""
    opened = Database.open(database_url)
    yield opened
    opened.close()
