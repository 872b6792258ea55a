"""Instants as people write and read them: in UTC unless they say otherwise."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

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


def report_effect(published: Mapping[str, Any]) -> None:
    """Print on standard error from when on a publication holds on every gateway, or the gateways that have not confirmed it."""
    if published["pending_nodes"]:
        print(f"not confirmed yet by: {', '.join(published['pending_nodes'])}", file=sys.stderr)
        print(f"holds on every gateway by {show_instant(published['holds_by'])} at the latest", file=sys.stderr)
    else:
        print(f"holds on every gateway from {show_instant(published['holds_from'])}", file=sys.stderr)


def show_day(seconds: int) -> str:
    """An instant as a date, with the time of day if it is not midnight."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d" if seconds % 86_400 == 0 else "%Y-%m-%d %H:%M:%SZ")
