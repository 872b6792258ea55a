"""Bodies of requests that continue a stored response, or whose response is to be stored: what they ask for, and the whole conversation that
each becomes. Functions without I/O, for the gateway and for the processes that read large bodies for it (`body_reader_process`)."""

from typing import Any, Final, NamedTuple

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects import compactions
from tollway.wire import bodies

CONVERSATION_BYTES_MAX: Final = 1024 * 1024
"""Most bytes of a conversation that continues or is stored, and of a response that is stored."""

_list = msgspec.json.Decoder(list[msgspec.Raw])


class StoredResponse(msgspec.Struct, frozen=True):
    """A response as it is stored: itself, and the items of the conversation that it answered, as a JSON array."""

    response: msgspec.Raw
    input: msgspec.Raw


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StoredResponse)


class Wish(msgspec.Struct, frozen=True):
    """The demand of a body on the store of responses. `keeps`: that its response is stored. `previous`: the id, as it stands there, of
    the stored response that it continues; None for none. `in_background`: that its client need not wait for its response. `is_compacted`:
    that a compaction in it is read as the message for which it stands."""

    keeps: bool
    previous: str | None
    in_background: bool = False
    is_compacted: bool = False


class WholeConversation(NamedTuple):
    """A body that holds a whole conversation, in pieces. `start`, `end`: where the JSON array of its items begins and ends."""

    pieces: tuple[bytes, ...]
    start: int
    end: int


def encode_stored(response: bytes, items: bytes) -> bytes:
    """Return what is stored of a response and the items that it answered."""
    return _encoder.encode(StoredResponse(msgspec.Raw(response), msgspec.Raw(items)))


def read_stored(content: bytes) -> StoredResponse:
    """Return what `encode_stored` made. Raises msgspec.DecodeError."""
    return _decoder.decode(content)


def may_wish(content: bytes) -> bool:
    """Return whether a body has to be read to know what it asks for."""
    return b'"store"' in content or b'"previous_response_id"' in content or b'"background"' in content or compactions.MARK in content


def read_wish(content: bytes, endpoint: Endpoint) -> Wish | None:
    """Return what a body asks for; None if nothing, and for one whose input is refused by its check. Raises Fault as `bodies.read` does,
    and invalid_value for a response in the background that is not to be stored, or to be streamed."""
    asked = bodies.read(content)
    in_background = asked.get("background") is True and endpoint is Endpoint.RESPONSES
    if in_background and asked.get("store") is False:
        message = "A response in the background is stored: leave 'store' out, or send true."
        raise Fault(faults.PARAMETER_INVALID, param="store", message=message)
    if in_background and asked.get("stream"):
        message = "A response in the background is not streamed: leave 'stream' out, and ask for it by its id."
        raise Fault(faults.PARAMETER_INVALID, param="stream", message=message)
    keeps = in_background or (asked.get("store") is True and endpoint is Endpoint.RESPONSES)
    previous = asked.get("previous_response_id")
    if type(previous) is not str:
        previous = None
    asked_input = asked.get("input")
    if asked_input is None and endpoint is Endpoint.COMPACT and previous is not None:
        asked_input = []  # the conversation so far is all that is compacted
    is_compacted = type(asked_input) is list and any(type(item) is dict and item.get("type") == "compaction" for item in asked_input)
    if not (keeps or previous is not None or is_compacted) or type(asked_input) not in (str, list):
        return None
    return Wish(keeps, previous, in_background, is_compacted)


def make_whole(content: bytes, wish: Wish, found: bytes | None) -> WholeConversation:
    """Return the body that a strictly read one with this wish becomes: without the fields that say it, and with the items of the stored
    response `found` before its own. Raises Fault invalid_value for a conversation that is too long."""
    members: dict[str, Any] = dict(bodies.members(content))
    raw = bytes(members.get("input", b"[]"))
    items = read_items(b"[]" if raw == b"null" else raw)
    if wish.is_compacted:
        items = list(map(compactions.expand, items))
    if found is not None:
        before = read_stored(found)
        answered = bodies.members(bytes(before.response))["output"]
        items = [*_list.decode(before.input), *_list.decode(answered), *items]
        del members["previous_response_id"]
    if wish.keeps:
        members.pop("store", None)
    if wish.in_background:
        del members["background"]
    encoded = b"[" + b",".join(items) + b"]"
    if len(encoded) > CONVERSATION_BYTES_MAX:
        message = f"A conversation that is stored or continued may have at most {CONVERSATION_BYTES_MAX} bytes."
        raise Fault(faults.PARAMETER_INVALID, param="input" if found is None else "previous_response_id", message=message)
    members.pop("input", None)
    before_items = bodies.join(members)[:-1] + (b',"input":' if members else b'"input":')
    start = len(before_items)
    return WholeConversation((before_items + encoded + b"}",), start, start + len(encoded))


def read_items(value: bytes) -> list[msgspec.Raw]:
    """Return the items of an input (a JSON text or array): a text is one message of the user's."""
    if not value.startswith(b'"'):
        return _list.decode(value)
    return [msgspec.Raw(b'{"type":"message","role":"user","content":[{"type":"input_text","text":%b}]}' % value)]
