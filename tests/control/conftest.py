"""One running control plane per module, on SQLite, with two tenants that must never see each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.harness import Running, TenantSetup, make_tenant, running
from tests.storage.databases import PostgresTemplate, SqliteTemplate


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> SqliteTemplate:
    return SqliteTemplate(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[PostgresTemplate]:
    template = PostgresTemplate()
    yield template
    template.drop()


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("control")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive") as started:
        yield started


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def fresh_control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """A control plane that nobody else has used, on each engine."""
    with request.getfixturevalue(f"{request.param}_template").copied(tmp_path) as url, running(url, tmp_path / "archive") as started:
        yield started


@pytest.fixture(scope="module")
def alice(control: Running) -> TenantSetup:
    return make_tenant(control, "alice")


@pytest.fixture(scope="module")
def bob(control: Running) -> TenantSetup:
    return make_tenant(control, "bob")
