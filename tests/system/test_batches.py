"""A batch at a real platform whose gateway is killed while it runs: each line is answered and billed once (figure R23)."""

from pathlib import Path

import pytest

from reliability import batches

pytestmark = pytest.mark.system


def test_lines_of_a_batch_are_answered_and_billed_once_whatever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "VICTIMS", ("gateway",))
    monkeypatch.setattr(batches, "BETWEEN_KILLS_SECONDS", (1.0, 1.0))
    outcome = batches.run(tmp_path, 400, 2, "sqlite", 1)
    assert not outcome.wrong, f"{len(outcome.wrong)} wrong, for example:\n" + "\n".join(outcome.wrong[:5])
    assert outcome.kills.total() >= 1
