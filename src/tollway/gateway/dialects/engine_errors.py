"""Errors of engines: reading them, and the fault that each stands for.

Engines nest an error (vLLM), leave it flat (SGLang, Dynamo), send a string (TensorRT-LLM) or FastAPI's `detail`. Their texts are for
operators, because they name files, hosts and sometimes credentials; only where the client must change its request is a text shown to it,
and only if it is harmless.

A status says who must act. 400, 413 and 422 speak of the request, 408, 409, 425, 429 and 503 of the moment, and every other status below
500 of the deployment: its address, its credential, the model that it has loaded. A status of 500 and above is the engine's own fault,
unless its words are those with which this engine rejects a request (`EngineProfile.context_words`, `request_words`).
"""

import math
import re
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.engines.profile import EngineProfile
from tollway.gateway.dialects.engine_json import ABSENT, is_absent

_ERROR = msgspec.Raw(b'"error"')
"""Member `object` of an error."""

_UNSHOWABLE = re.compile(r"[^\x20-\x7e]|https?:|[/\\]\w+[/\\]|[Bb]earer|sk-|tw_|key", re.ASCII)
"""Patterns that a text must not contain to be shown to a client: paths, addresses, anything like a credential."""

_SPACE = re.compile(r"\s+")
_PARAM = re.compile(r"[A-Za-z_][\w.\[\]-]{0,63}", re.ASCII)
"""A field of a request as an engine names it; anything else is not passed on."""

SHOWN_TEXT_MAX = 500
"""Characters of an engine's text that is shown to a client; a longer one quotes the request."""

RETRY_AFTER_SECONDS_MAX = 60
"""Bound on an engine's `retry-after`: more than a minute is not an estimate, and would keep its clients away from all other engines."""

_OF_REQUEST = frozenset({400, 413, 422})
_OF_MOMENT = frozenset({408, 409, 425, 503, 529})


class _Error(msgspec.Struct):
    """An engine's error. `number`: the status that it names itself, None if it names none."""

    message: str = ""
    number: int | None = None
    code: str = ""
    type: str = ""
    param: str | None = None


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])
_scalar = msgspec.json.Decoder(str | int | float | bool | None)

_STATUSES = {
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}
"""Statuses that the error types of Anthropic and llama.cpp stand for, used where no number is given: in an event of a stream."""


def read_fault(body: bytes, status: int, engine: EngineProfile, *, first: bool) -> Fault:
    """Return the fault that an engine's error stands for. `first`: it came before any part of an answer, so an overload means that no work
    was begun."""
    return _classify(_read_error(body), status, engine, first=first)


def check_no_error(body: bytes, error: msgspec.Raw, object: msgspec.Raw, engine: EngineProfile) -> None:
    """Raise the Fault that a body of status 200 stands for if it is an error, as some engines send it: its member `error`, if it has one
    that says something, or `object` says so."""
    if not is_absent(error) or object == _ERROR:
        raise read_fault(body, 500, engine, first=True)


def read_answer_fault(status: int, body: bytes, engine: EngineProfile, retry_after: bytes | None, now_us: int) -> Fault:
    """Return the fault that a whole answer stands for which is not a success, or not the stream that was asked for.

    `retry_after`: the header's value, None without one. `now_us`: UTC microseconds.
    """
    if status == 200 and not body.lstrip().startswith(b"{"):
        return Fault(faults.UPSTREAM_INVALID, detail="200 without JSON")
    if 300 <= status < 400:
        return Fault(faults.UPSTREAM_INVALID, detail=f"status {status}")
    fault = _classify(_read_error(body), status, engine, first=True)
    if retry_after is not None and fault.kind.status == 503:
        fault.retry_after_seconds = read_retry_after(retry_after, now_us)
    return fault


def read_retry_after(value: bytes, now_us: int) -> float | None:
    """Return the seconds that a `retry-after` asks for, at most RETRY_AFTER_SECONDS_MAX; None if it says nothing usable.

    RFC 9110 section 10.2.3 knows whole seconds and a date; engines also write fractions of a second. `now_us`: UTC microseconds.
    """
    try:
        text = value[:64].decode("ascii")
        if text[:1].isdigit():
            seconds = float(text)
        else:
            at = parsedate_to_datetime(text)
            seconds = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() - now_us / 1_000_000
    except (ValueError, OverflowError, IndexError):
        return None
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def is_named_error(event: bytes) -> bool:
    """Return whether an event has the name "error", with data or without."""
    return not event.startswith(b"data:") and any(line.replace(b" ", b"") == b"event:error" for line in event.split(b"\n"))


def is_error_event(event: bytes, data: bytes) -> bool:
    """Return whether an event of a stream, which has no choices, is an error: it is named one, or holds an error object, or is one.

    `event`: with its fields; `data`: its JSON.
    """
    if is_named_error(event):
        return True
    try:
        members = _members.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return False
    if (
        not is_absent(members.get("error", ABSENT))
        or _text(members.get("object", ABSENT)) == "error"
        or _text(members.get("type", ABSENT)) == "error"
    ):
        return True
    return "usage" not in members and bool(_text(members.get("message", ABSENT))) and ("code" in members or "type" in members)


def _classify(error: _Error, status: int, engine: EngineProfile, *, first: bool) -> Fault:
    number = status
    if status == 200 or status >= 500:
        if error.number is not None:
            number = error.number
        elif status == 200:
            number = _STATUSES.get(error.type, 500)
    detail = f"engine error {number}, {len(error.message)} characters of text"
    if number in _OF_REQUEST or (number >= 500 and number not in _OF_MOMENT):
        words = f"{error.message} {error.type} {error.code}"
        is_context = error.code == "context_length_exceeded" or any(part in words for part in engine.context_words)
        if is_context or number in _OF_REQUEST or any(part in words for part in engine.request_words):
            kind = faults.CONTEXT_EXCEEDED if is_context else faults.UPSTREAM_REQUEST_INVALID
            return Fault(kind, param=error.param, message=_show(error.message), detail=detail)
    kind = faults.UPSTREAM_FAILED
    if first and number >= 500 and error.message in engine.drain_messages:
        return Fault(faults.UPSTREAM_CONNECT, detail="the engine shuts down")
    if number in _OF_MOMENT:
        kind = faults.UPSTREAM_REFUSED if first else faults.UPSTREAM_FAILED
    elif number == 429:
        kind = faults.UPSTREAM_RATE_LIMITED if first else faults.UPSTREAM_FAILED
    elif 400 <= number < 499 or number == 501:  # 499: the engine believes that we left
        kind = faults.UPSTREAM_MISCONFIGURED
    return Fault(kind, detail=detail)


def _show(text: str) -> str | None:
    """Return an engine's text as a client may read it; None if it must not be shown."""
    text = _SPACE.sub(" ", text).strip()
    return text if text and len(text) <= SHOWN_TEXT_MAX and not _UNSHOWABLE.search(text) else None


def _read_error(body: bytes) -> _Error:
    """Return what an error says, whatever its members are."""
    try:
        members = _members.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return _Error()
    envelope = members
    nested = members.get("error", ABSENT)
    if not is_absent(nested):
        if not bytes(nested).startswith(b"{"):
            return _Error(_text(nested), _number(envelope))
        try:
            members = _members.decode(nested)
        except (ValueError, RecursionError):
            return _Error(number=_number(envelope))
    param = _text(members.get("param", ABSENT)) or _text(members.get("parameter", ABSENT))
    message = _text(members.get("message", ABSENT))
    if not message and "detail" in members:
        message, param = _read_detail(members["detail"])
    number = _number(members)
    return _Error(
        message,
        _number(envelope) if number is None else number,
        _text(members.get("code", ABSENT)),
        _text(members.get("type", ABSENT)),
        param if _PARAM.fullmatch(param) else None,
    )


def _read_detail(raw: msgspec.Raw) -> tuple[str, str]:
    """Return the text and the field of FastAPI's `detail`: a text, or a list of objects with `msg` and `loc`."""
    text = _text(raw)
    if text:
        return text, ""
    try:
        first = _members.decode(_list.decode(raw)[0])
        path = [_text(part) or bytes(part).decode() for part in _list.decode(first["loc"])]
    except (ValueError, RecursionError, IndexError, KeyError):
        return "", ""
    return _text(first.get("msg", ABSENT)), ".".join(path[1:])  # the first part is "body"


def _text(raw: msgspec.Raw) -> str:
    """Return a member that is a text; "" for anything else."""
    value = _decode_scalar(raw)
    return value if isinstance(value, str) else ""


def _number(members: dict[str, msgspec.Raw]) -> int | None:
    """Return the status that an error names: its `code` or `status`, as a number or in digits."""
    for name in ("code", "status", "status_code"):
        value = _decode_scalar(members.get(name, ABSENT))
        if isinstance(value, str) and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and 400 <= value < 600:
            return int(value)
    return None


def _decode_scalar(raw: msgspec.Raw) -> str | float | bool | None:
    if not raw:
        return None
    try:
        value: str | float | bool | None = _scalar.decode(raw)
    except (ValueError, RecursionError):
        return None
    return value
