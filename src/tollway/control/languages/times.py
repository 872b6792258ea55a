"""Instants and spans as a language writes them: instants in UTC, to which a script adds the viewer's own time."""

from datetime import UTC, datetime

from babel import dates, numbers
from markupsafe import Markup

from tollway.control.languages.formats import DASH


def show_time(language: str, at: int | None, *, with_seconds: bool = False) -> Markup | str:
    """Return an instant (Unix seconds) in UTC for a page; a script adds the viewer's own time to it."""
    if at is None:
        return DASH
    moment = datetime.fromtimestamp(at, UTC)
    day = dates.format_date(moment, "medium", locale=language)
    text = f"{day} {moment:%H:%M:%S}" if with_seconds else f"{day} {moment:%H:%M}"
    return Markup('<time datetime="{}">{} UTC</time>').format(f"{moment:%Y-%m-%dT%H:%M:%SZ}", text)


def show_day(language: str, at: int | None) -> Markup | str:
    """Return the day of an instant (Unix seconds) in UTC for a page."""
    if at is None:
        return DASH
    moment = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}">{}</time>').format(f"{moment:%Y-%m-%d}", dates.format_date(moment, "medium", locale=language))


def format_milliseconds(language: str, value: float | None) -> str:
    """Return a span in milliseconds, in seconds from ten of them on."""
    if value is None:
        return DASH
    if value >= 10_000:
        return f"{numbers.format_decimal(round(value / 1000, 1), locale=language)} s"
    return f"{numbers.format_decimal(round(value), locale=language)} ms"
