"""What the dialects share about an engine's answers: judging text and errors, holding a report to what is possible."""

from typing import Any, TypeVar

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly, Quantities
from tollway.wire import bodies

ABSENT = msgspec.Raw(b"")
T = TypeVar("T")
NULL = msgspec.Raw(b"null")  # a Raw equals only a Raw, never bytes

USAGE_INVALID, USAGE_INFLATED, USAGE_SHRINKING = Anomaly.INVALID, Anomaly.INFLATED, Anomaly.SHRINKING
"""Anomalies: a report that is nonsense, claims more than was asked for, or takes back what it said before."""


def is_absent(raw: msgspec.Raw) -> bool:
    """Whether a member is missing or null."""
    return not raw or raw == NULL


def check_text(data: bytes) -> None:
    """Raise UnicodeDecodeError unless `data` is UTF-8: msgspec skips the members that nobody asks for without looking inside."""
    if not data.isascii():
        data.decode()


def decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    """What an engine sent, read as its dialect's shape. Raises Fault upstream_invalid if it is anything else, or not UTF-8."""
    try:
        read = decoder.decode(data)
        check_text(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Fault(faults.UPSTREAM_INVALID, detail=f"{what} is not of the API's shape: {type(error).__name__}") from None
    return read


def judge_report(reported: Quantities | None, output_tokens_max: int | None) -> tuple[Quantities | None, Anomaly | None]:
    """What of a usage report can be believed, and what was wrong with it. `reported`: None if it was nonsense."""
    if reported is None:
        return None, USAGE_INVALID
    if output_tokens_max is None or reported.output + reported.reasoning <= output_tokens_max:
        return reported, None
    return hold_to(reported, output_tokens_max), USAGE_INFLATED


def hold_to_delivered(used: Quantities, output_tokens_max: int | None, delivered_bytes: int) -> Quantities:
    """`used`, or as much of its output as can have been delivered in so many bytes, where nothing else bounds it. A token takes a byte at
    least. Reasoning is left alone: engines may be told to keep it to themselves."""
    if output_tokens_max is not None or used.output <= delivered_bytes:
        return used
    return Quantities(used.input, used.cached_input, delivered_bytes, used.reasoning)


def hold_to(used: Quantities, output_tokens_max: int | None) -> Quantities:
    """`used`, or as much of it as the request could have produced: an engine that claims more bills nothing for the surplus."""
    if output_tokens_max is None or used.output + used.reasoning <= output_tokens_max:
        return used
    reasoning = min(used.reasoning, output_tokens_max)
    return Quantities(used.input, used.cached_input, output_tokens_max - reasoning, reasoning)


class Answer(msgspec.Struct, frozen=True):
    """A whole (non-streaming) answer of status 200, judged: what to send, what it used (None: the engine did not say), and what was
    wrong with its report (None: nothing)."""

    body: bytes
    used: Quantities | None
    anomaly: Anomaly | None


def public_name(body: bytes, upstream_model: str, public_model: str) -> bytes:
    """The answer under the model's public name; all else verbatim."""
    if upstream_model == public_model:
        return body
    members: dict[str, Any] = dict(bodies.members(body))
    if "model" not in members:
        return body
    members["model"] = msgspec.json.encode(public_model)
    return bodies.join(members)


class _Error(msgspec.Struct):
    message: str | None = None
    code: int | str | None = None
    type: str | None = None


class _ErrorEnvelope(msgspec.Struct):
    error: msgspec.Raw = ABSENT
    message: str | None = None
    code: int | str | None = None
    type: str | None = None


_envelope = msgspec.json.Decoder(_ErrorEnvelope)
_error = msgspec.json.Decoder(_Error)

_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}
"""What Anthropic's error types say where no number does: in an event of a stream."""


def error_fault(body: bytes, status: int, *, first: bool) -> Fault:
    """The fault that an engine's error stands for. Engines nest it (vLLM), leave it flat (SGLang, Dynamo) or send a string.

    `first`: nothing of an answer came before it, so an overload means that no work was begun. The engine's text is for operators
    only: it names files, hosts and sometimes credentials. A 400 is the exception in kind, not in text: the client must change
    something, so it is told that the engine refused the request.
    """
    error = _read_error(body)
    number = status
    if status == 200 or status >= 500:
        if isinstance(error.code, int) or (isinstance(error.code, str) and error.code.isdigit()):
            number = int(error.code)
        elif status == 200:
            number = _STATUSES.get(error.type or "", 500)
    kind = faults.UPSTREAM_FAILED
    if number in (503, 529):
        kind = faults.UPSTREAM_REFUSED if first else faults.UPSTREAM_FAILED
    elif number == 429:
        kind = faults.UPSTREAM_RATE_LIMITED if first else faults.UPSTREAM_FAILED
    elif number in (401, 403):
        kind = faults.UPSTREAM_CREDENTIAL
    elif number == 404:
        kind = faults.UPSTREAM_REFUSED
    elif 400 <= number < 500:
        kind = faults.UPSTREAM_REQUEST_INVALID
    return Fault(kind, detail=f"engine error {number}, {len(error.message or '')} characters of text")


def error_text(body: bytes) -> str:
    """The engine's own words in an error body, "" if there are none. For operators, and for clients only where the caller checks it."""
    return _read_error(body).message or ""


def _read_error(body: bytes) -> _Error:
    try:
        envelope = _envelope.decode(body)
    except (ValueError, RecursionError):  # msgspec's own errors and those of UTF-8 are values' errors
        return _Error()
    if is_absent(envelope.error):
        return _Error(envelope.message, envelope.code, envelope.type)
    try:
        return _error.decode(envelope.error)
    except ValueError:
        return _Error(code=envelope.code)
