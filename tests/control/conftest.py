"""One running control plane per module, on SQLite, with two tenants that must never see each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.harness import Running, TenantSetup, make_tenant, running
from tests.storage.databases import SqliteTemplate, fill
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive


@pytest.fixture
def database(database: Database) -> Database:
    """Add two organizations, a model and prices to a fresh database."""
    fill(database)
    return database


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("control")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive") as started:
        yield started


@pytest.fixture
def fresh_control(database_url: str, tmp_path: Path) -> Iterator[Running]:
    """A control plane that nobody else has used, on each engine."""
    with running(database_url, tmp_path / "archive") as started:
        yield started


@pytest.fixture(scope="module")
def alice(control: Running) -> TenantSetup:
    return make_tenant(control, "alice")


@pytest.fixture(scope="module")
def bob(control: Running) -> TenantSetup:
    return make_tenant(control, "bob")
