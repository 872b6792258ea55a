"""Fixtures of databases for all tests: templates are migrated once per run, and every test gets a copy.

A test that asks for `database` runs on SQLite and, where there is one, on PostgreSQL. Loaded by the top conftest.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.databases import PostgresTemplate, SqliteTemplate
from tollway.storage.database import Database


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
