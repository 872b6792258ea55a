"""JSON that engines send, read strictly: of the API's shape, in UTF-8, or a fault. Members stay raw slices until one is needed."""

from typing import Any, Final, TypeVar

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.dialects.answers import AnswerContext
from tollway.wire import bodies

T = TypeVar("T")

ABSENT: Final = msgspec.Raw(b"")
"""A member that is missing."""
NULL: Final = msgspec.Raw(b"null")  # a Raw equals only a Raw, never bytes


def is_absent(raw: msgspec.Raw) -> bool:
    """Return whether a member is missing or null."""
    return not raw or raw == NULL


def check_text(data: bytes) -> None:
    """Raise UnicodeDecodeError unless `data` is UTF-8: msgspec skips the members that no type asks for without looking inside."""
    if not data.isascii():
        data.decode()


def decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    """Return what an engine sent, read as its dialect's shape. Raises Fault upstream_invalid if it has another shape or is not UTF-8."""
    try:
        read = decoder.decode(data)
        check_text(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Fault(faults.UPSTREAM_INVALID, detail=f"{what} is not of the API's shape: {type(error).__name__}") from None
    return read


def rename_model(body: bytes, context: AnswerContext) -> bytes:
    """Return an answer under the model's public name, verbatim in all else."""
    public_model = context.public_model
    if context.upstream_model == public_model:
        return body
    members: dict[str, Any] = dict(bodies.members(body))
    if "model" not in members:
        return body
    members["model"] = msgspec.json.encode(public_model)
    return bodies.join(members)
