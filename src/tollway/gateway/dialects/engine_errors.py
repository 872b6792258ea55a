"""Errors of engines: reading them, and the fault that each stands for.

Engines nest an error (vLLM), leave it flat (SGLang, Dynamo) or send a string. Their texts are for operators, because they name files,
hosts and sometimes credentials; only where the client must change its request is a text shown to it, and only if it is harmless.
"""

import re

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.engines.profile import EngineProfile
from tollway.gateway.dialects.answers import ABSENT, is_absent

_UNSHOWABLE = re.compile(r"[^\x20-\x7e]|https?:|[/\\]\w+[/\\]|[Bb]earer|sk-|tw_|key", re.ASCII)
"""Patterns that a text must not contain to be shown to a client: paths, addresses, anything like a credential."""

SHOWN_TEXT_MAX = 500
"""Characters of an engine's text that is shown to a client; a longer one quotes the request."""

RETRY_AFTER_SECONDS_MAX = 60
"""Bound on an engine's `retry-after`: more than a minute is not an estimate, and would keep its clients away from all other engines."""


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
"""Statuses that Anthropic's error types stand for, used where no number is given: in an event of a stream."""


def read_fault(body: bytes, status: int, *, first: bool) -> Fault:
    """Return the fault that an engine's error stands for. `first`: it came before any part of an answer, so an overload means that no work
    was begun."""
    return _classify(_read_error(body), status, first=first)


def read_answer_fault(status: int, body: bytes, engine: EngineProfile, retry_after: bytes | None = None) -> Fault:
    """Return the fault that a whole answer stands for which is not a success, or not the stream that was asked for.

    `retry_after`: the header's value, which counts if it is in seconds. The client is shown the engine's text if the engine did not accept
    its request and the text is harmless.
    """
    if status == 200 and not body.lstrip().startswith(b"{"):
        return Fault(faults.UPSTREAM_INVALID, detail="200 without JSON")
    if 300 <= status < 400:
        return Fault(faults.UPSTREAM_INVALID, detail=f"status {status}")
    error = _read_error(body)
    fault = _classify(error, status, first=True)
    if retry_after is not None and retry_after.isdigit() and fault.kind.status == 503:
        fault.retry_after_seconds = min(int(retry_after[:9]), RETRY_AFTER_SECONDS_MAX)
    if fault.kind is faults.UPSTREAM_REQUEST_INVALID:
        text = error.message or ""
        if any(words in text for words in engine.context_words):
            fault = Fault(faults.CONTEXT_EXCEEDED, detail=fault.detail)
        if text and len(text) <= SHOWN_TEXT_MAX and not _UNSHOWABLE.search(text):
            fault.message = text
    return fault


def _classify(error: _Error, status: int, *, first: bool) -> Fault:
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


def _read_error(body: bytes) -> _Error:
    try:
        envelope = _envelope.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return _Error()
    if is_absent(envelope.error):
        return _Error(envelope.message, envelope.code, envelope.type)
    try:
        return _error.decode(envelope.error)
    except ValueError:
        return _Error(code=envelope.code)
