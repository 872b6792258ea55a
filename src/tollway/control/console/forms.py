"""Forms of the console: their fields, and the bodies of the REST API that they become."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from tollway.control.api import errors
from tollway.control.api.authentication.pages import read_form, read_upload
from tollway.control.api.routes import plane_of
from tollway.control.console.routing import Operation, page_of
from tollway.control.languages.texts import mark
from tollway.control.languages.times import UNITS
from tollway.domain.faults import PARAMETER_INVALID, Fault

M = TypeVar("M", bound=BaseModel)

DURATION_DIGITS_MAX = 10

Form = Mapping[str, str]
"""The fields of a form as they were sent; empty where they were left empty."""


def form(operation: Operation | Sequence[Operation] | None, *names: str) -> Any:
    """Return the dependency that yields the fields `names` of a form of this session (`pages.read_form`), to a viewer who may call what
    it is sent for: nobody else learns what is wrong with a field. The `Page` of the endpoint must come before it.

    `operation`: that of the REST API which the endpoint calls; several where a field chooses one, of which the viewer needs any; None for
    what everybody may do. One of a project is that of the path, or of the field `project`."""
    operations = () if operation is None else tuple(operation) if isinstance(operation, Sequence) else (operation,)

    async def read(request: Request) -> Form:
        fields = await read_form(plane_of(request), request, names)
        if operations:
            page_of(request).require_any(operations, request.path_params.get("project_id") or fields.get("project") or None)
        return fields

    declared: Callable[[Request], Coroutine[Any, Any, Form]] = read
    return Depends(declared)


def upload(operation: Operation, name: str) -> Any:
    """Return the dependency that yields the file in the field `name` of a form, as text, to a viewer who may call `operation` (`form`)."""

    async def read(request: Request) -> str:
        page_of(request).require(operation)
        content = await read_upload(plane_of(request), request, name)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Fault(PARAMETER_INVALID, param=name, message=mark("The file is not text in UTF-8.")) from None

    return Depends(read)


def nest(fields: Form, prefix: str) -> dict[str, str]:
    """Return the fields whose names begin with `prefix` and an underscore, without it: an object within a body. What was left empty is
    left out."""
    start = f"{prefix}_"
    return {name.removeprefix(start): value for name, value in fields.items() if name.startswith(start) and value}


def make_body(model: type[M], values: Mapping[str, object], *, clearing: Iterable[str] = ()) -> M:
    """Return what a form wants as the body that the REST API would take. Fields that were left empty are left out, and are null where they
    are in `clearing`; an empty list stays. Raises the Fault that the API would answer."""
    given = dict.fromkeys(clearing) | {name: value for name, value in values.items() if value not in ("", None)}
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


def read_duration(fields: Form, name: str) -> int | None:
    """Return a time that was given as `name` and `name`_unit, in seconds; None if it is empty. Raises PARAMETER_INVALID."""
    text, unit = fields[name], fields[f"{name}_unit"]
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= DURATION_DIGITS_MAX) or unit not in UNITS:
        raise Fault(PARAMETER_INVALID, param=name, message=mark("A time is a whole number of days, hours or seconds."))
    return int(text) * UNITS[unit]


def require_typed(typed: str, expected: str) -> None:
    """Raise PARAMETER_INVALID unless the viewer typed what is to be confirmed."""
    if typed.strip() != expected.strip():
        raise Fault(
            PARAMETER_INVALID, param="confirmation", message=mark("What you typed is not the name that was asked for. Nothing was changed.")
        )
