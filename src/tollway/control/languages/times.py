"""Instants and spans as a language writes them: instants in UTC, to which a script adds the viewer's own time."""

import functools
from collections.abc import Mapping
from datetime import UTC, date, datetime

from babel import dates, numbers, units
from markupsafe import Markup, escape

from tollway.control.languages.formats import DASH, format_number


def show_time(language: str, at: int | None, *, with_seconds: bool = False) -> Markup | str:
    """Return an instant (Unix seconds) in UTC for a page; a script adds the viewer's own time to it."""
    if at is None:
        return DASH
    moment = datetime.fromtimestamp(at, UTC)
    day = escape(_write_day(language, moment.date()))
    time = f"{moment:%H:%M:%S}" if with_seconds else f"{moment:%H:%M}"
    return Markup(f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{day} {time} UTC</time>')


def show_day(language: str, at: int | None) -> Markup | str:
    """Return the day of an instant (Unix seconds) in UTC for a page."""
    if at is None:
        return DASH
    moment = datetime.fromtimestamp(at, UTC)
    return Markup(f'<time datetime="{moment:%Y-%m-%d}">{escape(_write_day(language, moment.date()))}</time>')


DAYS_KEPT = 1_024
"""Days that are kept as they are written: a page has one of them hundreds of times, and Babel reads its pattern for each."""


@functools.lru_cache(maxsize=DAYS_KEPT)
def _write_day(language: str, day: date) -> str:
    return dates.format_date(day, "medium", locale=language)


def format_milliseconds(language: str, value: float | None) -> str:
    """Return a span in milliseconds, in seconds from ten of them on."""
    if value is None:
        return DASH
    if value >= 10_000:
        return f"{numbers.format_decimal(round(value / 1000, 1), locale=language)} s"
    return f"{format_number(language, round(value))} ms"


UNITS: Mapping[str, int] = {"days": 86_400, "hours": 3_600, "seconds": 1}
"""Units in which pages take and show a time, the longest first, in seconds."""


def split_duration(seconds: int | None) -> tuple[int | str, str]:
    """Return a time as a form shows it: its count, and the longest of UNITS in which that is a whole number. An empty count for none."""
    if seconds is None:
        return "", next(iter(UNITS))
    unit = next(name for name, length in UNITS.items() if seconds % length == 0)
    return seconds // UNITS[unit], unit


def show_duration(language: str, seconds: int) -> str:
    """Return a time in the longest of UNITS in which it is a whole number."""
    count, unit = split_duration(seconds)
    return units.format_unit(count, f"duration-{unit[:-1]}", locale=language)
