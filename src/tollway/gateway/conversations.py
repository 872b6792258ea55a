"""Conversations of OpenAI's responses that continue a stored response, or whose response is to be stored.

Theory of operation. Before a request is authorized, `prepare` takes the fields `store` and `previous_response_id` out of its body, where
the organization stores responses, and puts the items of the previous response before those of its input. What is authorized, limited,
metered and sent is that whole conversation, so it is billed as what it is, and an engine stores nothing. The response has an id of ours,
and `ResponseKeeper` hands it to the store once it is whole, before its last bytes leave. One that cannot be stored is delivered with
`store: false`, so that no client relies on an id that means nothing.

Where an organization stores none, and in a body that is too long to be stored, the fields stay, and `authorize` refuses them by name.
"""

import asyncio
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.ids import REQUEST
from tollway.gateway.dialects.conversation import Conversation
from tollway.gateway.driver import CoroutineDriver, ShieldedWaiter
from tollway.gateway.plane import Plane
from tollway.gateway.ports import ResponseStore
from tollway.gateway.request import Caller, Request
from tollway.wire import bodies

CONVERSATION_BYTES_MAX: Final = 1024 * 1024
"""Most bytes of a conversation that continues or is stored, and of a response that is stored."""

RESPONSE: Final = "resp"

_list = msgspec.json.Decoder(list[msgspec.Raw])


class StoredResponse(msgspec.Struct, frozen=True):
    """A response as it is stored: itself, and the items of the conversation that it answered, as a JSON array."""

    response: msgspec.Raw
    input: msgspec.Raw


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StoredResponse)


def read_stored(content: bytes) -> StoredResponse:
    """Return what `ResponseKeeper` stored. Raises msgspec.DecodeError."""
    return _decoder.decode(content)


def may_continue(caller: Caller, request: Request, plane: Plane) -> bool:
    """Return whether a body that is not large may name a stored response, which `prepare` asks control for."""
    if plane.response_store is None or caller.organization.response_retention_seconds is None or request.conversation is not None:
        return False
    return request.upload is None and b'"previous_response_id"' in request.body


async def prepare(caller: Caller, request: Request, plane: Plane, driver: CoroutineDriver) -> None:
    """Make the body of a request the whole conversation, where it continues a stored response or is to be stored.

    Raises Fault: previous_response_not_found, stored_responses_unavailable, invalid_value for a conversation that is too long, and what
    `bodies.read` raises.
    """
    store = plane.response_store
    if store is None or caller.organization.response_retention_seconds is None or request.conversation is not None:
        return
    if request.body_bytes > CONVERSATION_BYTES_MAX:
        return  # `authorize` refuses what asks for more than `store: false`
    content = request.read_body()
    if b'"store"' not in content and b'"previous_response_id"' not in content:
        return
    asked = bodies.read(content)
    keeps = asked.get("store") is True and request.endpoint is Endpoint.RESPONSES
    previous = asked.get("previous_response_id")
    if type(previous) is not str:
        previous = None
    if not keeps and previous is None:
        return
    if type(asked.get("input")) not in (str, list):
        return  # refused by its check
    members: dict[str, Any] = dict(bodies.members(content))
    items = read_items(bytes(members["input"]))
    if previous is not None:
        found = await driver.in_task(store.find(caller.organization.id, caller.project.id, previous)) if is_id(previous) else None
        if found is None:
            raise Fault(faults.PREVIOUS_RESPONSE_UNKNOWN, param="previous_response_id")
        before = read_stored(found)
        answered = bodies.members(bytes(before.response))["output"]
        items = [*_list.decode(before.input), *_list.decode(answered), *items]
        del members["previous_response_id"]
    if keeps:
        del members["store"]
    members["input"] = encoded = b"[" + b",".join(items) + b"]"
    if len(encoded) > CONVERSATION_BYTES_MAX:
        raise _too_long("previous_response_id" if previous else "input")
    pieces = request.list_pieces()
    request.replace_body(bodies.join(members))
    id = f"{RESPONSE}{request.id.removeprefix(REQUEST)}" if keeps else ""
    request.conversation = Conversation(id, previous, encoded, pieces)


def is_id(text: str) -> bool:
    """Return whether a text can be the id of a stored response."""
    digits = text.removeprefix(f"{RESPONSE}_")
    return len(digits) == 32 and len(text) == 37 and digits.isascii() and all(each in "0123456789abcdef" for each in digits)


def read_items(value: bytes) -> list[msgspec.Raw]:
    """Return the items of an input (a JSON text or array): a text is one message of the user's."""
    if not value.startswith(b'"'):
        return _list.decode(value)
    return [msgspec.Raw(b'{"type":"message","role":"user","content":[{"type":"input_text","text":%b}]}' % value)]


def _too_long(param: str) -> Fault:
    message = f"A conversation that is stored or continued may have at most {CONVERSATION_BYTES_MAX} bytes."
    return Fault(faults.PARAMETER_INVALID, param=param, message=message)


class ResponseKeeper:
    """Stores the response of one request once it is whole."""

    def __init__(self, store: ResponseStore, caller: Caller, conversation: Conversation) -> None:
        self._store = store
        self._caller = caller
        self._conversation = conversation

    async def keep_body(self, body: bytes) -> bytes:
        """Store a whole answer. Return what to send in its place. Await it in a driven coroutine; it is not interrupted."""
        return body if await self._keep(body) else _deny(body)

    async def keep_stream(self, terminator: bytes) -> bytes:
        """Store the response in the last event of `terminator`, the last bytes of a stream. Return what to send in their place. Await it
        as `keep_body`."""
        before, separator, last = terminator.rstrip(b"\n").rpartition(b"\n\n")
        name, _, data = last.partition(b"\ndata: ")
        members: dict[str, Any] = dict(bodies.members(data))
        response = bytes(members["response"])
        if await self._keep(response):
            return terminator
        members["response"] = _deny(response)
        return b"%b%b%b\ndata: %b\n\n" % (before, separator, name, bodies.join(members))

    async def _keep(self, response: bytes) -> bool:
        conversation, caller = self._conversation, self._caller
        if len(response) > CONVERSATION_BYTES_MAX:
            return False
        content = _encoder.encode(StoredResponse(msgspec.Raw(response), msgspec.Raw(conversation.items)))
        stored = self._store.keep(caller.organization.id, caller.project.id, conversation.response_id, content)
        future = asyncio.ensure_future(stored)
        done = ShieldedWaiter()
        future.add_done_callback(lambda _: done.resume())
        await done
        return future.result()


def _deny(response: bytes) -> bytes:
    """Return a response that says it is not stored."""
    members: dict[str, Any] = dict(bodies.members(response))
    members["store"] = b"false"
    return bodies.join(members)
