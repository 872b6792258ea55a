"""The lines of a batch: reading and checking them, and the texts that say how they ended."""

from array import array
from typing import Any, Final

import msgspec

from tollway.domain.batches import (
    CUSTOM_ID_CHARACTERS_MAX,
    ERRORS_MAX,
    LINE_BODY_BYTES_MAX,
    Batch,
    BatchError,
    LineResult,
)
from tollway.domain.faults import Fault


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request of a batch. `body`: as the client wrote it."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Named(msgspec.Struct, frozen=True):
    model: str = ""


_line: Final = msgspec.json.Decoder(Line)
_named: Final = msgspec.json.Decoder(_Named)


class Lines:
    """The lines in a text of JSON lines. Empty lines do not count."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._starts, self._ends = array("L"), array("L")
        start = 0
        while start < len(content):
            end = content.find(b"\n", start)
            end = len(content) if end < 0 else end
            if content[start:end].strip():
                self._starts.append(start)
                self._ends.append(end)
            start = end + 1

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, number: int) -> Line:
        """Return a line, by its number from 0. Raises msgspec.DecodeError."""
        return _line.decode(memoryview(self._content)[self._starts[number] : self._ends[number]])


def find_model(line: Line) -> str:
    """Return the model that a line names; an empty text where it names none."""
    try:
        return _named.decode(line.body).model
    except (msgspec.DecodeError, RecursionError):
        return ""


def check_lines(content: bytes, path: str, lines_max: int) -> tuple[Lines, list[BatchError]]:
    """Return the lines of a batch whose endpoint has `path`, and what is wrong with their shape. What their bodies hold is not looked
    at."""
    lines = Lines(content)
    if not len(lines):
        return lines, [BatchError("empty_file", "The file has no lines.")]
    if len(lines) > lines_max:
        return lines, [BatchError("too_many_lines", f"A batch has at most {lines_max} lines.")]
    errors: list[BatchError] = []
    known: set[str] = set()
    for number in range(len(lines)):
        error = _check_line(lines, number, path, known)
        if error is not None:
            errors.append(error)
            if len(errors) == ERRORS_MAX:
                break
    return lines, errors


def _check_line(lines: Lines, number: int, path: str, known: set[str]) -> BatchError | None:
    """Return what is wrong with the shape of a line. `known`: the ids of the lines before."""
    try:
        line = lines.read(number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shape = "a JSON object with the fields 'custom_id', 'method', 'url' and 'body'"
        detail = f" ({error})" if isinstance(error, msgspec.ValidationError) else ""
        return BatchError("invalid_json_line", f"The line is not {shape}{detail}.", line=number + 1)
    if not 0 < len(line.custom_id) <= CUSTOM_ID_CHARACTERS_MAX:
        return _complain("invalid_custom_id", f"It has 1 to {CUSTOM_ID_CHARACTERS_MAX} characters.", "custom_id", number)
    if line.custom_id in known:
        return _complain("duplicate_custom_id", "It is that of an earlier line.", "custom_id", number)
    known.add(line.custom_id)
    if line.method != "POST":
        return _complain("invalid_method", "It must be POST.", "method", number)
    if line.url != path:
        return _complain("mismatched_endpoint", f"It must be the endpoint of the batch, {path}.", "url", number)
    body = memoryview(line.body)
    if len(body) > LINE_BODY_BYTES_MAX:
        return _complain("body_too_large", f"It has at most {LINE_BODY_BYTES_MAX} bytes.", "body", number)
    if bytes(body[:1]) != b"{":
        return _complain("invalid_body", "It must be a JSON object.", "body", number)
    return None


def _complain(code: str, advice: str, param: str, number: int) -> BatchError:
    return BatchError(code, f"Invalid value for '{param}'. {advice}", param, number + 1)


def to_error(fault: Fault, number: int) -> BatchError:
    """Return a fault of the body of a line as an error of its batch."""
    return BatchError(fault.kind.code, fault.message, fault.param, number + 1)


class _Said(msgspec.Struct, frozen=True):
    code: str | None = None
    message: str = ""


class _Refused(msgspec.Struct, frozen=True):
    error: _Said


def read_error(body: bytes) -> BatchError:
    """Return the error that the body of a refused response says."""
    try:
        said = msgspec.json.decode(body, type=_Refused).error
    except msgspec.DecodeError:
        said = _Said()
    return BatchError(said.code or "server_error", said.message or "The response could not be made.")


UNSENT: Final = {
    LineResult.EXPIRED: BatchError("batch_expired", "This request could not be served before the batch expired."),
    LineResult.CANCELLED: BatchError("batch_cancelled", "The batch was cancelled before this request was sent."),
}
"""Errors of lines that were never sent, by their result."""


def is_of_messages(batch: Batch) -> bool:
    """Return whether a batch came as one of Anthropic's, with its requests in its submission."""
    return not batch.has_files and not batch.is_response


def write_answer(batch: Batch, number: int, custom_id: str, request_id: str, status: int, body: bytes) -> bytes:
    """Return the text of a line that was answered. That of a response in the background is the answer as it is."""
    if batch.is_response:
        return body
    content = msgspec.Raw(_compact(body))
    if is_of_messages(batch):
        succeeded: dict[str, Any] = {"type": "succeeded", "message": content}
        return _write({"custom_id": custom_id, "result": succeeded if status == 200 else {"type": "errored", "error": content}})
    response = {"status_code": status, "request_id": request_id, "body": content}
    return _write({"id": _find_line_id(batch, number), "custom_id": custom_id, "response": response, "error": None})


def write_unsent(batch: Batch, number: int, custom_id: str, result: LineResult, error: BatchError) -> bytes:
    """Return the text of a line that was not sent, and why."""
    if batch.is_response:
        return msgspec.json.encode({"error": {"code": error.code, "message": error.message}})
    if is_of_messages(batch):
        found: dict[str, Any] = {"type": {LineResult.EXPIRED: "expired", LineResult.CANCELLED: "canceled"}.get(result, "errored")}
        if result is LineResult.ERRORED:
            found["error"] = {"type": "error", "error": {"type": "authentication_error", "message": error.message}}
        return _write({"custom_id": custom_id, "result": found})
    told = {"code": error.code, "message": error.message}
    return _write({"id": _find_line_id(batch, number), "custom_id": custom_id, "response": None, "error": told})


def _find_line_id(batch: Batch, number: int) -> str:
    return f"batch_req_{batch.id.rpartition('_')[2]}{number:06x}"


def _compact(body: bytes) -> bytes:
    """Return JSON in one line; a text that is not JSON as a JSON text."""
    try:
        return msgspec.json.format(body, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(body.decode("utf-8", "replace"))


def _write(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"
