"""Faults as answers: one shape for everything that can go wrong in a request, OpenAI's `{"error": {message, type, param, code}}`; below
SCIM_PATH that of SCIM.

What a client sent is never repeated to it, but for the name of the field at fault, and that only while it looks like a name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.places import Place
from tollway.domain.faults import (
    INTERNAL,
    METHOD_UNSUPPORTED,
    PARAMETER_INVALID,
    PARAMETER_MISSING,
    PARAMETER_UNKNOWN,
    REQUEST_INVALID,
    ROUTE_UNKNOWN,
    Fault,
)
from tollway.wire.errors import openai_error, scim_error
from tollway.wire.retry_after import retry_headers

SCIM_PATH = "/scim/v2"
"""Path below which directories provision people and groups."""

_NAME = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,64}")
_ECHOING = {"value_error", "assertion_error", "literal_error", "enum", "string_pattern_mismatch"}
"""Kinds of pydantic error whose text is made of our own words or constants; the text of other kinds is replaced."""

_TEXTS = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be an array",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
    "too_short": "has too few items",
    "too_long": "has too many items",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least {}"),
    "greater_than": ("gt", "must be above {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "less_than": ("lt", "must be below {}"),
}


def response_of(fault: Fault, path: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that a fault of a request for `path` becomes."""
    extra = {**(headers or {}), **retry_headers(fault)}
    if fault.kind.status == 401:
        extra["www-authenticate"] = "Bearer"
    if fault.kind.close:
        extra["connection"] = "close"
    if path.startswith(SCIM_PATH + "/"):
        return Response(scim_error(fault), fault.kind.status, extra, "application/scim+json")
    return Response(openai_error(fault), fault.kind.status, extra, "application/json")


def name_of(key: object) -> str | None:
    """A field name fit to be repeated; None for anything that does not look like one."""
    return key if isinstance(key, str) and _NAME.fullmatch(key) else None


def fault_of(errors: Sequence[Mapping[str, Any]]) -> Fault:
    """The fault that the first of pydantic's errors means. The field's place is its param: "limits.requests_per_minute"."""
    error = errors[0]
    kind, place = error["type"], tuple(error["loc"])[1:]
    names = [name_of(part) if isinstance(part, str) else f"[{part}]" for part in place]
    param = ".".join(name for name in names if name is not None) if names and None not in names else None
    if kind == "extra_forbidden":
        return Fault(PARAMETER_UNKNOWN, param=param)
    if kind == "missing":
        return Fault(PARAMETER_MISSING, param=param)
    if kind in {"model_type", "dict_type", "model_attributes_type"} and not place:
        return Fault(REQUEST_INVALID, message="The request body must be a JSON object.")
    if kind in _BOUNDS:
        key, text = _BOUNDS[kind]
        reason = text.format(error["ctx"][key])
    elif kind in _ECHOING:
        reason = str(error["msg"]).removeprefix("Value error, ")
    else:
        reason = _TEXTS.get(kind, "is not valid")
    return Fault(PARAMETER_INVALID, param=param, message=f"Invalid value for {param or 'a parameter'}: {reason}.")


# Handlers are async although they await nothing: a synchronous one would cost a worker thread.


async def _answer_fault(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, Fault)
    request.scope["tollway.fault"] = fault
    place: Place = request.scope["tollway.place"]
    await place.wait_to_refuse(fault)
    return response_of(fault, request.url.path)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _answer_fault(request, fault_of(error.errors()))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    otherwise = REQUEST_INVALID if error.status_code < 500 else INTERNAL
    fault = Fault({404: ROUTE_UNKNOWN, 405: METHOD_UNSUPPORTED}.get(error.status_code, otherwise))
    request.scope["tollway.fault"] = fault
    place: Place = request.scope["tollway.place"]
    await place.wait_to_refuse(fault)
    return response_of(fault, request.url.path, error.headers)


def install(app: FastAPI) -> None:
    """Make `app` answer every refusal in the one shape, those of the framework included."""
    app.add_exception_handler(Fault, _answer_fault)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
