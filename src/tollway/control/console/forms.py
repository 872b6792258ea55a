"""Forms of the console: their fields, and the bodies of the REST API that they become."""

from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, date, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from tollway.control.api import errors
from tollway.control.api.authentication.pages import read_form
from tollway.control.api.routes import plane_of
from tollway.control.languages.texts import mark
from tollway.domain.faults import PARAMETER_INVALID, Fault

M = TypeVar("M", bound=BaseModel)

Form = Mapping[str, str]
"""The fields of a form as they were sent; empty where they were left empty."""


def form(*names: str) -> Any:
    """Return the dependency that yields the fields `names` of a form of this session (`pages.read_form`)."""

    async def read(request: Request) -> Form:
        return await read_form(plane_of(request), request, names)

    declared: Callable[[Request], Coroutine[Any, Any, Form]] = read
    return Depends(declared)


def make_body(model: type[M], values: Mapping[str, object]) -> M:
    """Return what a form wants as the body that the REST API would take. Fields that were left empty are left out; an empty list
    stays. Raises the Fault that the API would answer."""
    given = {name: value for name, value in values.items() if value not in ("", None)}
    try:
        return model.model_validate(given, strict=False)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise errors.fault_of([{**each, "loc": ("body", *each["loc"])} for each in found]) from None


def write_query(values: Mapping[str, object]) -> str:
    """Return the query of an address with the values that are not empty, as a form of filters would send them; a list once for each."""
    return urlencode({name: value for name, value in values.items() if value}, doseq=True)


def split_list(text: str) -> list[str]:
    """Return the entries of a field that takes several, by line or comma."""
    return [each.strip() for line in text.splitlines() for each in line.split(",") if each.strip()]


def read_day(name: str, text: str) -> int | None:
    """Return the beginning of a day of UTC in a field `name` in Unix seconds; None if it is empty. Raises PARAMETER_INVALID."""
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        raise Fault(PARAMETER_INVALID, param=name, message="A day is a date such as 2026-11-30.") from None


def require_typed(typed: str, expected: str) -> None:
    """Raise PARAMETER_INVALID unless the viewer typed what is to be confirmed."""
    if typed.strip() != expected.strip():
        raise Fault(
            PARAMETER_INVALID, param="confirmation", message=mark("What you typed is not the name that was asked for. Nothing was changed.")
        )
