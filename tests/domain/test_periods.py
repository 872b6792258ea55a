"""Billing periods cover time exactly: no instant is in two of them, or in none, whatever a zone's clocks do."""

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.periods import INSTANT_MAX, NEVER, STUB_US_MAX, Bounds, Calendar, cut, find_zone, month_of, period_id

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",  # set back at 00:01, into the day before
    "America/Asuncion",  # set forward over midnight, on the 1st of October in 2017
    "America/Havana",  # two midnights, on the 1st of November in 2026
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # half an hour
    "Pacific/Apia",  # no 30 December 2011
    "Pacific/Kiritimati",
    "Pacific/Kwajalein",
    "Etc/GMT+12",
]
DAY_US = 86_400_000_000

instants = st.integers(0, INSTANT_MAX)
zones = st.sampled_from(ZONES)


def us(*parts: int) -> int:
    """The instant of a date and time in UTC."""
    return (datetime(*parts, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)  # type: ignore[misc]


def local(at: int, zone_name: str) -> datetime:
    zone = find_zone(zone_name)
    assert zone is not None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).astimezone(zone)


@pytest.fixture
def bare_machine() -> Iterator[None]:
    """As with PYTHONTZPATH="": a machine without time zones of its own, such as a slim image."""
    paths = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(())
    find_zone.cache_clear()
    zoneinfo.ZoneInfo.clear_cache()
    yield
    zoneinfo.reset_tzpath(paths)
    find_zone.cache_clear()
    zoneinfo.ZoneInfo.clear_cache()


@pytest.mark.parametrize("name", ZONES)
@pytest.mark.usefixtures("bare_machine")
def test_zones_are_known_on_a_machine_that_has_none(name: str) -> None:
    assert zoneinfo.TZPATH == () and find_zone(name) is not None


class TestMonths:
    @given(instants, zones)
    def test_contain_their_instant_and_touch_their_neighbours(self, at: int, zone: str) -> None:
        month = month_of(at, zone)
        assert month.start_at <= at < month.end_at
        assert month_of(month.start_at, zone) == month
        assert month_of(month.end_at - 1, zone) == month
        assert month_of(month.end_at, zone).start_at == month.end_at
        assert month_of(month.start_at - 1, zone).end_at == month.start_at
        assert 27 * DAY_US < month.end_at - month.start_at < 32 * DAY_US

    @given(instants, zones)
    def test_begin_when_the_local_date_first_reaches_the_first(self, at: int, zone: str) -> None:
        start_at = month_of(at, zone).start_at
        assert local(start_at, zone).day == 1
        assert local(start_at - 1, zone).day != 1

    def test_are_whole_where_a_day_is_left_out(self) -> None:
        month = month_of(us(2011, 12, 31), "Pacific/Apia")
        assert month.end_at - month.start_at == 30 * DAY_US

    @pytest.mark.parametrize(
        ("zone", "at", "start_at"),
        [
            ("Europe/Berlin", us(2026, 3, 31, 22), us(2026, 3, 31, 22)),
            ("Europe/Berlin", us(2026, 3, 31, 21, 59, 59), us(2026, 2, 28, 23)),
            ("America/Asuncion", us(2017, 10, 2), us(2017, 10, 1, 4)),
            ("America/Havana", us(2026, 11, 2), us(2026, 11, 1, 4)),
            ("America/St_Johns", us(2009, 11, 2), us(2009, 11, 1, 2, 30)),
            ("America/St_Johns", us(2009, 11, 1, 3), us(2009, 11, 1, 2, 30)),  # its clocks say 31 October, for the second time
        ],
    )
    def test_begin_at_the_right_instant(self, zone: str, at: int, start_at: int) -> None:
        assert month_of(at, zone).start_at == start_at

    @pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "utc\0", "a" * 300])
    def test_of_an_unknown_zone_are_refused(self, name: str) -> None:
        assert find_zone(name) is None
        with pytest.raises(ValueError, match="time zone"):
            month_of(0, name)


class TestCut:
    @given(st.lists(st.tuples(st.integers(us(2026, 1, 1), us(2027, 1, 1)), zones), min_size=1, max_size=40))
    def test_periods_never_overlap_however_often_the_zone_changes(self, wanted: list[tuple[int, str]]) -> None:
        calendar = Calendar("org_1", "UTC")
        for at, zone in wanted:
            calendar.time_zone = zone
            start_at = calendar.place(at)
            (found,) = [bounds for bounds in calendar.open if bounds.start_at <= at < bounds.end_at]
            assert found.start_at == start_at
        assert calendar.open == sorted(calendar.open)
        assert all(before.end_at <= after.start_at for before, after in zip(calendar.open, calendar.open[1:], strict=False))
        assert sorted(calendar.new) == calendar.open

    @given(st.integers(us(2026, 1, 1), us(2027, 1, 1)), zones, zones, zones, st.data())
    def test_every_instant_of_a_new_period_would_have_cut_the_same(
        self, at: int, old: str, new: str, later: str, data: st.DataObject
    ) -> None:
        """Two collectors that need the same period at once cut the same one, whatever each has seen."""
        before, after = month_of(us(2025, 11, 15), old).end_at, month_of(us(2027, 3, 15), later).start_at
        bounds = cut(at, new, before, after)
        assert before <= bounds.start_at <= at < bounds.end_at <= after
        other = data.draw(st.integers(bounds.start_at, bounds.end_at - 1))
        assert cut(other, new, before, after) == bounds

    def test_a_change_of_zone_leaves_no_stub(self) -> None:
        january = month_of(us(2026, 1, 15), "UTC")
        for at in (us(2026, 2, 1, 3), us(2026, 2, 20)):
            assert cut(at, "America/New_York", january.end_at, None) == Bounds(us(2026, 2, 1), us(2026, 3, 1, 5))
        assert cut(us(2026, 2, 1, 3), "Europe/Berlin", january.end_at, None) == Bounds(us(2026, 2, 1), us(2026, 2, 28, 23))
        assert STUB_US_MAX < 28 * DAY_US


class TestPlaces:
    def test_what_is_late_goes_into_the_first_period_after_the_frozen_time(self) -> None:
        calendar = Calendar("org_1", "UTC", frozen_until=us(2026, 3, 1))
        assert calendar.place(us(2026, 1, 15)) == us(2026, 3, 1)
        assert calendar.place(us(2026, 2, 28, 23, 59, 59)) == us(2026, 3, 1)
        assert calendar.place(us(2026, 4, 2)) == us(2026, 4, 1)
        assert calendar.new == [month_of(us(2026, 3, 1), "UTC"), month_of(us(2026, 4, 1), "UTC")]

    @given(st.lists(instants, max_size=30), zones, st.one_of(st.just(NEVER), instants))
    def test_are_never_frozen_and_do_not_depend_on_the_order(self, served: list[int], zone: str, frozen_until: int) -> None:
        one = Calendar("org_1", zone, frozen_until)
        other = Calendar("org_1", zone, frozen_until)
        placed = {at: one.place(at) for at in served}
        assert placed == {at: other.place(at) for at in reversed(served)} | {}
        assert one.open == other.open
        assert all(start_at >= frozen_until for start_at in placed.values())

    def test_have_ids_that_sort_by_time(self) -> None:
        assert period_id("org_1", us(2026, 1, 1)) < period_id("org_1", us(2026, 2, 1))
        assert period_id("org_1", us(2026, 1, 1)) != period_id("org_2", us(2026, 1, 1))
