"""Messages of a realtime session, as far as the gateway reads them: what a client may not send, and what an engine reports of its
responses."""

import re
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.dialects.engine_json import ABSENT, is_absent
from tollway.gateway.media.admission import check_items
from tollway.gateway.media.bounds import MediaBounds
from tollway.wire import bodies

_TYPE = re.compile(r"[a-z_.]{1,96}")
_WORK: Final = frozenset({"response.create"})
"""Messages by which a client asks for a response."""


class ClientMessage(msgspec.Struct, frozen=True):
    """A message of a client. `content`: what goes to the engine."""

    content: bytes
    type: str
    event_id: str | None
    asks_for_response: bool


class EngineMessage(msgspec.Struct, frozen=True):
    """A message of an engine, as far as it concerns responses. `response_id`: empty if it names none."""

    type: str
    response_id: str
    usage: bytes
    status: str


class _Response(msgspec.Struct):
    id: str = ""
    status: str = ""
    usage: msgspec.Raw = ABSENT


class _Event(msgspec.Struct):
    type: str = ""
    response_id: str = ""
    response: _Response | None = None
    usage: msgspec.Raw = ABSENT


_event = msgspec.json.Decoder(_Event)


SHORT_BYTES_MAX: Final = 16 * 1024
VALUES_MAX: Final = 50_000
CONTAINERS_MAX: Final = 10_000
KEYS_MAX: Final = 4_000
"""Most values, arrays and objects, and keys in a message that is longer than SHORT_BYTES_MAX. It is read on the event loop, in about 5 ms
at most: a long one is text or base64, and a body with as many keys as one may have takes 30 ms."""


def read_client(message: bytes, public_model: str, upstream_model: str, media: MediaBounds) -> ClientMessage:
    """Return a message of a client. Raises Fault: 400 for one that is no JSON object with a type, that names another model, that brings
    links or media which are not accepted, tools that an engine would call by itself, or more values than may be read here."""
    if len(message) > SHORT_BYTES_MAX:
        bodies.check_size(message, VALUES_MAX, CONTAINERS_MAX, KEYS_MAX)
    asked = bodies.parse(message)
    type_ = asked.get("type")
    if not isinstance(type_, str) or _TYPE.fullmatch(type_) is None:
        raise Fault(faults.PARAMETER_INVALID, param="type", message="A message must have a type.")
    event_id = asked.get("event_id")
    is_changed = False
    for place, holder in (("", asked), ("session.", asked.get("session")), ("response.", asked.get("response"))):
        if isinstance(holder, dict):
            if "model" in holder:
                if holder["model"] != public_model:
                    raise Fault(faults.PARAMETER_INVALID, param=f"{place}model", message="A session keeps its model.")
                if public_model != upstream_model:
                    holder["model"] = upstream_model
                    is_changed = True
            _check_tools(holder.get("tools"), f"{place}tools")
            if place == "response." and holder.get("input") is not None:
                _check_items(holder["input"], "response.input", media)
            if "items" in holder:
                _check_items(holder["items"], f"{place}items", media)
    if "item" in asked:
        _check_items([asked["item"]], "item", media)
    content = msgspec.json.encode(asked) if is_changed else message
    shown_id = event_id if isinstance(event_id, str) and len(event_id) <= 512 else None
    return ClientMessage(content, type_, shown_id, type_ in _WORK)


def _check_items(items: Any, place: str, media: MediaBounds) -> None:
    """Raise Fault for items that a response could not have either. Sound in the shape of this API is text to everybody but the engine."""
    if not isinstance(items, list):
        raise Fault(faults.PARAMETER_INVALID, param=place, message="These are a list of items.")
    shown = []
    for item in items:
        if isinstance(item, dict):
            if item.get("type") == "item_reference":
                if not item.keys() <= {"type", "id"}:
                    raise Fault(faults.PARAMETER_INVALID, param=place, message="A reference to an item has a type and an id.")
                continue
            item = {name: value for name, value in item.items() if name != "object"}
            content = item.get("content")
            if isinstance(content, list):
                item["content"] = [part for part in content if not _is_plain(part)]
        shown.append(item)
    check_items(shown, place, media)


def _is_plain(part: Any) -> bool:
    """Return whether a part is text or sound with its transcript, which nothing fetches."""
    return (
        isinstance(part, dict)
        and part.get("type") in ("input_text", "output_text", "text", "input_audio", "output_audio", "audio")
        and part.keys() <= {"type", "text", "audio", "transcript", "id"}
        and all(isinstance(value, str | None) for value in part.values())
    )


def _check_tools(tools: Any, place: str) -> None:
    if tools is None:
        return
    if not isinstance(tools, list) or any(not isinstance(tool, dict) or tool.get("type", "function") != "function" for tool in tools):
        raise Fault(faults.PARAMETER_INVALID, param=place, message="Tools of a session are functions, which the client calls.")


def read_engine(message: bytes) -> EngineMessage:
    """Return what a message of an engine says of responses. Raises Fault upstream_invalid for one that is no JSON object."""
    try:
        event = _event.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Fault(faults.UPSTREAM_INVALID, detail="a message that is no event") from None
    response = event.response
    usage = event.usage
    if response is not None and not is_absent(response.usage):
        usage = response.usage
    id = event.response_id or ("" if response is None else response.id)
    return EngineMessage(event.type, id, b"" if is_absent(usage) else bytes(usage), "" if response is None else response.status)


def rename_model(message: bytes, upstream_model: str, public_model: str) -> bytes:
    """Return a message of an engine that describes the session, with the public name of the model."""
    read = msgspec.json.decode(message)
    session = read.get("session") if isinstance(read, dict) else None
    if not isinstance(session, dict) or session.get("model") != upstream_model:
        return message
    session["model"] = public_model
    return msgspec.json.encode(read)


def render_fault(fault: Fault, request_id: str, event_id: str | None) -> bytes:
    """Return a fault as an event of this API."""
    kind = fault.kind
    error = {
        "type": kind.type,
        "code": kind.code,
        "message": f"{fault.message} (request id: {request_id})",
        "param": fault.param,
        "event_id": event_id,
    }
    return msgspec.json.encode({"type": "error", "event_id": f"event_{request_id}", "error": error})
