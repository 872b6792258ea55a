"""A lost database comes back from its backup, and from the records that are kept elsewhere (figure R14)."""

from pathlib import Path

import pytest

from reliability import restores

pytestmark = pytest.mark.system


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_archive_or_spools_bring_a_restored_database_up_to_date(tmp_path: Path, database: str) -> None:
    outcome = restores.run(tmp_path, database, 5)
    assert not outcome.wrong, outcome.wrong
    assert outcome.replayed >= restores.REQUESTS * 9 // 10
