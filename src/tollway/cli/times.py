"""Instants as people write and read them: in UTC unless they say otherwise."""

from datetime import UTC, datetime

from tollway.settings import OperatorError


def read_instant(text: str) -> int:
    """Seconds since 1970 of a date, an instant (ISO 8601), or a number of seconds. Raises OperatorError for anything else."""
    if text.isascii() and text.isdecimal():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise OperatorError(f"{text} is no time", hint="for example 2027-01-01 or 2027-01-01T12:00Z", exit_code=2) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def show_instant(seconds: int) -> str:
    """An instant to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def show_day(seconds: int) -> str:
    """An instant as a date, with the time of day if it is not midnight."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d" if seconds % 86_400 == 0 else "%Y-%m-%d %H:%M:%SZ")
