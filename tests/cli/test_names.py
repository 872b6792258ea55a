"""Names beside ids on the command line."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from tollway.cli.client import choose_id
from tollway.cli.money.period_exports import find_period
from tollway.domain import ids
from tollway.settings import OperatorError

ONE, OTHER = (f"{ids.BUDGET}_{digit * 32}" for digit in "12")
ROWS = [{"id": ONE, "name": "all"}, {"id": OTHER, "name": "research"}]


def test_choose_id_of_a_name_that_one_row_has_is_its_id() -> None:
    assert choose_id(ids.BUDGET, "research", ROWS, "budget", "see the list") == OTHER


def test_choose_id_of_an_id_is_the_id_although_no_row_is_read() -> None:
    assert choose_id(ids.BUDGET, ONE, iter(()), "budget", "see the list") == ONE


def test_choose_id_of_an_unknown_name_says_where_to_look() -> None:
    with pytest.raises(OperatorError, match="no budget is called nothing") as raised:
        choose_id(ids.BUDGET, "nothing", ROWS, "budget", "see the list")
    assert (raised.value.hint, raised.value.exit_code) == ("see the list", 2)


def test_choose_id_of_a_name_that_several_rows_have_lists_their_ids() -> None:
    with pytest.raises(OperatorError, match="several budgets are called all") as raised:
        choose_id(ids.BUDGET, "all", [*ROWS, {"id": OTHER, "name": "all"}], "budget", "see the list")
    assert ONE in raised.value.hint and OTHER in raised.value.hint


def period(zone: str, number: int) -> dict[str, object]:
    start = datetime(2026, 11, 1, tzinfo=ZoneInfo(zone))
    return {"id": f"{ids.PERIOD}_{number:032x}", "start_time": int(start.astimezone(UTC).timestamp()), "time_zone": zone}


def test_find_period_of_a_month_is_that_of_its_own_time_zone() -> None:
    tokyo = period("Asia/Tokyo", 1)  # begins in October by the clock of UTC
    assert find_period([tokyo], "2026-11") == tokyo["id"]
    with pytest.raises(OperatorError, match="nothing is booked in a billing period 2026-10"):
        find_period([tokyo], "2026-10")


def test_find_period_of_a_month_that_several_organizations_have_asks_for_one() -> None:
    with pytest.raises(OperatorError, match="several organizations have a billing period 2026-11") as raised:
        find_period([period("UTC", 1), period("UTC", 2)], "2026-11")
    assert "--organization" in raised.value.hint
