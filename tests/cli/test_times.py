"""Times as people write and read them, in zones with and without summer time."""

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from tollway.cli.metering.usage import BucketWidth, list_edges, split_span
from tollway.cli.times import find_zone, read_instant, read_range, show_day, show_instant, with_times
from tollway.settings import OperatorError

PARIS = ZoneInfo("Europe/Paris")
NOW = int(datetime(2026, 11, 29, 9, 30, tzinfo=UTC).timestamp())


def at(*parts: int, zone: ZoneInfo | None = None) -> int:
    return int(datetime(*parts, tzinfo=zone or UTC).timestamp())  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-01", at(2026, 11, 1, zone=PARIS)),
        ("2026-11", at(2026, 11, 1, zone=PARIS)),
        ("2026", at(2026, 1, 1, zone=PARIS)),
        ("2026-11-01T12:30", at(2026, 11, 1, 12, 30, zone=PARIS)),
        ("2026-11-01 12:30", at(2026, 11, 1, 12, 30, zone=PARIS)),
        ("2026-11-01T12:30Z", at(2026, 11, 1, 12, 30)),
        ("2026-11-01T12:30+03:00", at(2026, 11, 1, 9, 30)),
        ("today", at(2026, 11, 29, zone=PARIS)),
        ("yesterday", at(2026, 11, 28, zone=PARIS)),
        ("tomorrow", at(2026, 11, 30, zone=PARIS)),
        ("now", NOW),
        ("30m", NOW - 30 * 60),
        ("12h", NOW - 12 * 3600),
        ("7d", NOW - 7 * 86_400),
        ("2w", NOW - 14 * 86_400),
        ("1790000000", 1_790_000_000),
        ("0", 0),
    ],
)
def test_read_instant_of_each_form_uses_the_zone(text: str, expected: int) -> None:
    assert read_instant(text, PARIS, NOW, option="--since") == expected


@pytest.mark.parametrize("text", ["", "soon", "2026-13", "2026-02-30", "7 days", "1e9", "0001-01-01", "1969", "9" * 13, "7dd", "-7d"])
def test_read_instant_of_anything_else_names_the_option(text: str) -> None:
    with pytest.raises(OperatorError, match="--since") as caught:
        read_instant(text, UTC, NOW, option="--since")
    assert caught.value.exit_code == 2
    assert "2026-11-01" in caught.value.hint


def test_read_range_that_holds_nothing_is_refused() -> None:
    assert read_range("2026-10", "2026-11", PARIS, NOW) == (at(2026, 10, 1, zone=PARIS), at(2026, 11, 1, zone=PARIS))
    assert read_range("1h", None, PARIS, NOW) == (NOW - 3600, NOW)
    with pytest.raises(OperatorError, match="--until is not after --since"):
        read_range("2026-11", "2026-11", PARIS, NOW)
    with pytest.raises(OperatorError, match="--since is in the future"):
        read_range("tomorrow", None, PARIS, NOW)


def test_instants_are_shown_with_the_offset_of_their_zone() -> None:
    summer, winter = at(2026, 10, 24, 22), at(2026, 10, 25, 23)
    assert show_instant(summer, PARIS) == "2026-10-25 00:00:00+02:00"
    assert show_instant(winter, PARIS) == "2026-10-26 00:00:00+01:00"
    assert show_instant(winter, UTC) == "2026-10-25 23:00:00Z"
    assert show_instant(2**60, UTC) == str(2**60)
    assert (show_day(summer, PARIS), show_day(winter, PARIS)) == ("2026-10-25", "2026-10-26")
    assert show_day(winter, UTC) == "2026-10-25 23:00:00Z"


def test_a_day_that_begins_at_one_oclock_is_still_a_day() -> None:
    """In Beirut clocks go forward over midnight: 2026-03-29 begins at 01:00, and has no instant at 00:00."""
    beirut = find_zone("Asia/Beirut")
    start = read_instant("2026-03-29", beirut, NOW, option="--since")
    assert show_instant(start, beirut) == "2026-03-29 01:00:00+03:00"
    assert show_day(start, beirut) == "2026-03-29"


def test_with_times_leaves_what_has_not_happened_empty() -> None:
    rows = with_times([{"a": 0, "b": None}], UTC, first="a", second="b")
    assert rows == [{"a": 0, "b": None, "first": "1970-01-01 00:00:00Z", "second": None}]


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(OperatorError, match="is not a time zone"):
        find_zone("../etc/passwd")


def test_days_of_a_zone_end_where_its_days_end() -> None:
    edges = list_edges(at(2026, 10, 24, 12), at(2026, 10, 26, 12), BucketWidth.DAY, PARIS)
    assert [show_day(edge, PARIS) for edge in edges] == ["2026-10-24", "2026-10-25", "2026-10-26", "2026-10-27"]
    assert [(late - early) // 3600 for early, late in pairwise(edges)] == [24, 25, 24]


def test_edges_without_a_width_hold_the_whole_span_in_whole_minutes() -> None:
    assert list_edges(61, 119, None, UTC) == [60, 120]
    assert list_edges(60, 120, None, UTC) == [60, 120]


@pytest.mark.parametrize(
    ("start", "end", "expected"), [(61, 119, [0, 3600]), (3600, 7200, [3600, 7200]), (3599, 7201, [0, 3600, 7200, 10800])]
)
def test_edges_of_hours_hold_the_span_and_no_hour_more(start: int, end: int, expected: list[int]) -> None:
    assert list_edges(start, end, BucketWidth.HOUR, UTC) == expected


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris", "Asia/Kolkata", "Australia/Lord_Howe"])
def test_split_span_of_a_year_is_exact_in_five_pieces(zone: str) -> None:
    start, end = (read_instant(text, find_zone(zone), NOW, option="--since") for text in ("2025", "2026"))
    pieces = split_span(start, end)
    assert len(pieces) <= 5
    assert [piece[0] for piece in pieces] == [start, *(piece[1] for piece in pieces[:-1])] and pieces[-1][1] == end
    for first, last, width in pieces:
        size = {"1m": 60, "1h": 3600, "1d": 86_400}[width]
        assert first % size == 0 and last % size == 0
