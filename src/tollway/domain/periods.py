"""Billing periods: calendar months in an organization's time zone, cut once, kept indefinitely.

Theory of operation. A month is cut where the local date first reaches the 1st, so months are half-open intervals of instants that
follow each other without gap or overlap, whatever the zone does: clocks that are set forward over midnight, or back over it, zones
that leave out a day. A period is cut when something is first booked in it, and then stays as it is. An organization that changes
its zone has periods of the old one and from then on periods of the new one: `cut` fits a new period between those that exist, and
joins to a neighbour what a change of zone would leave over (at most a day and a few hours).

Time before the end of the last period that is being closed, or is, is *frozen*. What is booked has a service instant; it goes into
the period of that instant, or, if that is frozen, into the first one after the frozen time. `Calendar.place` is that rule, and the
only place where it is written.
"""

import re
from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from tollway.domain.ids import PERIOD

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

INSTANT_MAX: Final = 2**53 - 1
"""Microseconds: the year 2255. Later ones are a broken clock, or not an instant."""

NEVER: Final = -(2**62)
"""Before every instant: the frozen time of an organization that has closed nothing."""

STUB_US_MAX: Final = 27 * 3600 * 1_000_000
"""Longest gap between the months of two zones: offsets lie between -12 and +14 hours. A shorter period is not opened."""


class PeriodState(StrEnum):
    """State of a period. It only ever moves forward."""

    OPEN = "open"  # takes bookings
    CLOSING = "closing"  # takes none any more; its digests are being computed
    CLOSED = "closed"  # digests stored; nothing of it will ever change


@dataclass(frozen=True, slots=True)
class Closing:
    """The record of freezing a period: when, by whose key, and how it is known that nothing is missing."""

    frozen_at: int
    closed_by: str
    watermark_digest: bytes
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PeriodClosure:
    """The record of closing a period. `amounts`: pico by billing class, as billed; `adjustments`: how many are booked in it.

    `conditions_digest`: of the prices, terms and outcome policies of what is booked in it (`control.money.conditions`); None if it was
    closed before there was one. `credits_digest`: of the grants that its usage could burn and of what was booked on them
    (`control.money.closed_credits`); None if there are none, or if it was closed before there was one. `contracts_pico`: what contracts
    add to it, `contracts_digest`: of these and of what was booked by them (`control.money.contracts`); None without a contract.
    `period_hash`: of its whole statement (`domain.proofs.hash_statement`); None before it is computed.
    """

    closed_at: int
    events: int
    merkle_root: bytes
    adjustments: int
    adjustments_digest: bytes
    adjustments_pico: int
    amounts: Mapping[str, int]
    conditions_digest: bytes | None
    credits_digest: bytes | None = None
    contracts_pico: int = 0
    contracts_digest: bytes | None = None
    period_hash: bytes | None = None

    @property
    def total_pico(self) -> int:
        """Sum of the period, with corrections and contracts."""
        return sum(self.amounts.values()) + self.adjustments_pico + self.contracts_pico


@dataclass(frozen=True, slots=True)
class Period:
    """A billing period of an organization, in its currency."""

    id: str
    organization_id: str
    currency: str
    start_at: int
    end_at: int
    time_zone: str
    state: PeriodState
    closing: Closing | None = None
    closed: PeriodClosure | None = None


class Bounds(msgspec.Struct, frozen=True, order=True):
    """From `start_at` (inclusive) to `end_at` (exclusive), in UTC microseconds."""

    start_at: int
    end_at: int


def period_id(organization_id: str, start_at: int) -> str:
    """The id of the period of an organization that begins at `start_at`: sorts by time, and follows from what it names."""
    digest = sha256(f"period/{organization_id}/{start_at}".encode()).hexdigest()
    return f"{PERIOD}_{max(start_at, 0) // 1000 & 0xFFFF_FFFF_FFFF:012x}{digest[:20]}"


def is_day(text: str) -> bool:
    """Return whether a text is a day of the calendar (YYYY-MM-DD)."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return _DATE.fullmatch(text) is not None


@lru_cache(maxsize=64)
def find_zone(name: str) -> tzinfo | None:
    """The zone of an IANA name such as Europe/Berlin; None if this machine knows none of that name. UTC is always known."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def month_of(at: int, zone_name: str) -> Bounds:
    """The calendar month that contains instant `at` in a zone. Raises ValueError if the zone is unknown."""
    zone = find_zone(zone_name)
    if zone is None:
        raise ValueError(f"no time zone is called {zone_name!r}")
    local = (_EPOCH + timedelta(microseconds=at)).astimezone(zone)
    month = local.year * 12 + local.month - 1
    # Where a clock is set back over midnight, the local date says the old month again after the new one has begun.
    while at >= _month_start(zone_name, month + 1):
        month += 1
    return Bounds(_month_start(zone_name, month), _month_start(zone_name, month + 1))


def days_of(at: int, zone_name: str, count: int, weekday: int | None = None) -> Bounds:
    """Return the `count` local days that contain instant `at` in a zone, from the latest `weekday` on (Monday is 0; None begins with the
    day itself). Raises ValueError if the zone is unknown."""
    zone = find_zone(zone_name)
    if zone is None:
        raise ValueError(f"no time zone is called {zone_name!r}")
    day = (_EPOCH + timedelta(microseconds=at)).astimezone(zone).date()
    # Where a clock is set back over midnight, the local date says the old day again after the new one has begun.
    while at >= _date_start(zone_name, day + _DAY):
        day += _DAY
    if weekday is not None:
        day -= _DAY * ((day.weekday() - weekday) % 7)
    return Bounds(_date_start(zone_name, day), _date_start(zone_name, day + count * _DAY))


@lru_cache(maxsize=4096)
def _month_start(zone_name: str, month: int) -> int:
    """The first instant at which the local date is in `month` (counted from the year 0)."""
    return _date_start(zone_name, date(month // 12, month % 12 + 1, 1))


def _date_start(zone_name: str, day: date) -> int:
    """Return the first instant at which the local date is `day`."""
    zone = find_zone(zone_name)
    assert zone is not None
    return start_of_day(day, zone)


def start_of_day(day: date, zone: tzinfo) -> int:
    """Return the instant, in microseconds, at which the local date first reaches `day`: midnight, the first of two where clocks are set
    back over it, and the second at which clocks are set forward over it. Raises OverflowError next to the years 1 and 9999."""
    local = datetime(day.year, day.month, day.day, tzinfo=zone)  # fold 0: the first of two midnights
    instant = local.astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
        instant = _first_after_gap(instant, zone, local.replace(tzinfo=None))
    return (instant - _EPOCH) // timedelta(microseconds=1)


def _first_after_gap(within: datetime, zone: tzinfo, midnight: datetime) -> datetime:
    """The clock was set forward over `midnight`: the second at which that happened, at or before `within`."""
    low, high = within - timedelta(hours=27), within
    while high - low > _SECOND:
        middle = low + (high - low) // 2 // _SECOND * _SECOND
        if middle.astimezone(zone).replace(tzinfo=None) >= midnight:
            high = middle
        else:
            low = middle
    return high


def cut(at: int, zone_name: str, before: int | None, after: int | None) -> Bounds:
    """The period for instant `at`, between the end of the period `before` it and the start of the one `after` it (None: there is none).

    It contains `at`, overlaps neither, and is the same for every instant in it. Raises ValueError if the zone is unknown.
    """
    month = month_of(at, zone_name)
    start_at, end_at = _clip(month, before, after)
    if end_at - start_at <= STUB_US_MAX:
        # What is left of a month between two others: a part of its neighbour, unless there are existing ones on both sides.
        if end_at == month.end_at:
            end_at = _clip(month_of(month.end_at, zone_name), before, after)[1]
        elif start_at == month.start_at:
            start_at = _clip(month_of(month.start_at - 1, zone_name), before, after)[0]
    if before is not None and 0 < start_at - before <= STUB_US_MAX:
        start_at = before
    if after is not None and 0 < after - end_at <= STUB_US_MAX:
        end_at = after
    return Bounds(start_at, end_at)


def _clip(month: Bounds, before: int | None, after: int | None) -> tuple[int, int]:
    start_at = month.start_at if before is None else max(month.start_at, before)
    end_at = month.end_at if after is None else min(month.end_at, after)
    return start_at, end_at


@dataclass(slots=True)
class Calendar:
    """The periods of one organization that take bookings, and where the frozen time ends. Cuts new ones as they are needed.

    `open` are bounds in order of time, none before `frozen_until`; `new` are those that were cut here and are not stored yet.
    """

    organization_id: str
    time_zone: str
    frozen_until: int = NEVER
    open: list[Bounds] = field(default_factory=list)
    new: list[Bounds] = field(default_factory=list)
    _last: Bounds = field(default=Bounds(0, 0), init=False)

    def place(self, served_at: int) -> int:
        """The start of the period in which something served at this instant is booked."""
        at = served_at if served_at >= self.frozen_until else self.frozen_until
        last = self._last
        if last.start_at <= at < last.end_at:
            return last.start_at
        self._last = found = self._find(at)
        return found.start_at

    def _find(self, at: int) -> Bounds:
        index = bisect_right(self.open, at, key=lambda bounds: bounds.start_at)
        if index and at < self.open[index - 1].end_at:
            return self.open[index - 1]
        frozen_until = self.frozen_until if self.frozen_until != NEVER else None
        before = self.open[index - 1].end_at if index else frozen_until
        after = self.open[index].start_at if index < len(self.open) else None
        bounds = cut(at, self.time_zone, before, after)
        insort(self.open, bounds)
        self.new.append(bounds)
        return bounds
