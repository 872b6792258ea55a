"""Budgets with real processes: several gateways on the last money of a hard budget, with kills; and what a client sees."""

from pathlib import Path

import pytest

from reliability.budgets import fleet, race

pytestmark = pytest.mark.system


@pytest.mark.parametrize("is_prepaid", [False, True], ids=["budget", "credit"])
def test_money_raced_for_by_gateways_that_are_killed_is_spent_and_never_overspent(tmp_path: Path, is_prepaid: bool) -> None:
    with fleet(tmp_path, 3) as running:
        result = race(running, limit="5", workers=12, kills=(1.5, 3.0), is_prepaid=is_prepaid)
    print(result.describe())
    assert result.overspent_pico == 0
    assert result.spent_percent >= 99
    assert result.statuses["429 insufficient_quota"] and result.statuses["200"]
