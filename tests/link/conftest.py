"""A real control plane for the way from a gateway's disk to the ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.harness import Running, running
from tests.storage.databases import SqliteTemplate


@pytest.fixture
def control(sqlite_template: SqliteTemplate, tmp_path: Path) -> Iterator[Running]:
    """A control plane that nobody else has used."""
    with sqlite_template.copied(tmp_path) as url, running(url, tmp_path / "archive") as started:
        yield started
