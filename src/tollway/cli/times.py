"""Instants as people write and read them, in a time zone that each command chooses.

What belongs to one organization is read and shown in that organization's zone, because its billing periods are months there; the rest in
UTC. `--zone` chooses another. What is shown carries its offset from UTC, so that no table can be misread; a bare date is a midnight. The
REST API and `-o json` keep Unix seconds."""

import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Annotated, Any

import typer

from tollway.domain import periods
from tollway.settings import OperatorError

AGO = re.compile(r"(\d{1,6})(m|min|h|d|w)")
PART_OF_CALENDAR = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?")
AGO_SECONDS = {"m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
FORMS = "write 2026-11-01, 2026-11, 2026-11-01T12:00, yesterday, today, 7d or 12h (ago), or seconds since 1970"


def find_zone(name: str) -> tzinfo:
    """Return the time zone of an IANA name. Raises OperatorError for a name that is unknown."""
    zone = periods.find_zone(name)
    if zone is None:
        raise OperatorError(f"{name!r} is not a time zone", hint="use an IANA name, for example Europe/Paris or UTC", exit_code=2)
    return zone


def read_instant(text: str, zone: tzinfo, now_seconds: float, *, option: str) -> int:
    """Return the instant, in seconds since 1970, that a person wrote.

    A year, month or date is its first midnight in `zone`; a time of day without an offset is in `zone`; `7d` is that long before
    `now_seconds`; five digits or more are seconds since 1970. Raises OperatorError, which names `option`, for anything else."""
    text = text.strip()
    if text == "now":
        return int(now_seconds)
    if found := AGO.fullmatch(text):
        return max(0, int(now_seconds) - int(found[1]) * AGO_SECONDS[found[2]])
    if re.fullmatch(r"[0-9]{5,12}|0", text):
        return int(text)
    try:
        if text in DAYS:
            seconds = start_of_day(datetime.fromtimestamp(now_seconds, zone).date() + timedelta(days=DAYS[text]), zone)
        elif found := PART_OF_CALENDAR.fullmatch(text):
            year, month, day = (int(part or 1) for part in found.groups())
            seconds = start_of_day(date(year, month, day), zone)
        else:
            at = datetime.fromisoformat(text)
            seconds = int((at if at.tzinfo else at.replace(tzinfo=zone)).timestamp())
    except (ValueError, OverflowError):
        raise OperatorError(f"{option} {text} is not a time", hint=FORMS, exit_code=2) from None
    if seconds < 0:
        raise OperatorError(f"{option} {text} is before 1970", hint=FORMS, exit_code=2)
    return seconds


def read_range(since: str, until: str | None, zone: tzinfo, now_seconds: float) -> tuple[int, int]:
    """Return the instants of `--since` and `--until` (exclusive; now if None). Raises OperatorError if nothing is between them."""
    start = read_instant(since, zone, now_seconds, option="--since")
    end = int(now_seconds) if until is None else read_instant(until, zone, now_seconds, option="--until")
    if end <= start:
        what = "--until is not after --since" if until is not None else "--since is in the future"
        raise OperatorError(
            f"{what}: nothing is between {show_instant(start, zone)} and {show_instant(end, zone)}",
            hint="--until is exclusive: all of November 2026 is --since 2026-11 --until 2026-12",
            exit_code=2,
        )
    return start, end


def show_instant(seconds: int, zone: tzinfo) -> str:
    """Return an instant to the second with its offset from UTC; its number if no calendar has it."""
    try:
        return _with_offset(datetime.fromtimestamp(seconds, zone), "seconds")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def show_minute(seconds: int, zone: tzinfo) -> str:
    """Return an instant to the minute with its offset from UTC."""
    return _with_offset(datetime.fromtimestamp(seconds, zone), "minutes")


def show_day(seconds: int, zone: tzinfo) -> str:
    """Return an instant as a date, with the time of day unless it is where a day of `zone` begins."""
    day = datetime.fromtimestamp(seconds, zone).date()
    return day.isoformat() if seconds == start_of_day(day, zone) else show_instant(seconds, zone)


def start_of_day(day: date, zone: tzinfo) -> int:
    """Return the instant, in seconds since 1970, at which a day of `zone` begins."""
    return periods.start_of_day(day, zone) // 1_000_000


def _with_offset(at: datetime, precision: str) -> str:
    text = at.isoformat(sep=" ", timespec=precision)
    return text.removesuffix("+00:00") + "Z" if at.tzinfo is UTC else text


def with_times(rows: Iterable[Mapping[str, Any]], zone: tzinfo, **columns: str) -> list[dict[str, Any]]:
    """Return `rows` with a column of text for each field that holds an instant: `created="created_at"`. None stays None."""
    return [
        {**row, **{column: None if row[field] is None else show_instant(row[field], zone) for column, field in columns.items()}}
        for row in rows
    ]


def _check_zone(text: str | None) -> str | None:
    if text is not None:
        find_zone(text)
    return text


def _check_time(parameter: typer.CallbackParam, text: str | None) -> str | None:
    """Refuse what is no time before anything is asked, because only the control plane knows an organization's zone."""
    if text is not None:
        read_instant(text, UTC, time.time(), option=parameter.opts[0])
    return text


Zone = Annotated[
    str | None,
    typer.Option(
        "--zone",
        metavar="ZONE",
        help="Time zone (IANA name) in which times are read and shown.",
        show_default="the organization's; UTC where none is concerned",
        callback=_check_zone,
    ),
]
_SINCE: Any = typer.Option(
    "--since",
    metavar="TIME",
    help="From this time on: 2026-11-01, 2026-11, yesterday, 7d or 12h (ago), or with a time of day.",
    callback=_check_time,
)
Since = Annotated[str, _SINCE]
MaybeSince = Annotated[str | None, _SINCE]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", help="Before this time, written as for --since.", show_default="now", callback=_check_time),
]
ValidFrom = Annotated[
    str | None,
    typer.Option(
        "--valid-from",
        metavar="TIME",
        help="From when: 2027-01-01, 2027-01-01T12:00, tomorrow, ...",
        show_default="now",
        callback=_check_time,
    ),
]
