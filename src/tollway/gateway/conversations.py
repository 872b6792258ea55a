"""Conversations of OpenAI's responses that continue a stored response, or whose response is to be stored.

Theory of operation. Before a request is authorized, `prepare` takes the fields `store` and `previous_response_id` out of its body, where
the organization stores responses, and puts the items of the previous response before those of its input (`continuation`). What is
authorized, limited, metered and sent is that whole conversation, so it is billed as what it is, and an engine stores nothing. One that is
not short is read and made by the processes for large bodies, and counts in the budget for buffered bytes of its key until the request has
ended. The response has an id of ours, and `ResponseKeeper` hands it to the store once it is whole, before its last bytes leave. One that
cannot be stored is delivered with `store: false`, so that no client relies on an id that means nothing.

Where an organization stores none, and in a body that is too long to be stored, the fields stay, and `authorize` refuses them by name. Only
a compaction of the conversation is read there too (`dialects.compactions`): it needs no store.
"""

import asyncio
from typing import Any, Final

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.domain.ids import REQUEST, RESPONSE
from tollway.gateway import continuation
from tollway.gateway.buffers import BufferHold
from tollway.gateway.continuation import CONVERSATION_BYTES_MAX, WholeConversation, Wish
from tollway.gateway.dialects import compactions
from tollway.gateway.dialects.conversation import Conversation
from tollway.gateway.driver import CoroutineDriver, ShieldedWaiter
from tollway.gateway.plane import Plane
from tollway.gateway.ports import ResponseStore
from tollway.gateway.request import Caller, Request
from tollway.gateway.uploads import Upload
from tollway.wire import bodies

SHORT_BYTES_MAX: Final = 16 * 1024
"""Longest body, with what it continues, that is read and made whole on the event loop. It is read twice there, here and by `authorize`:
together at most 3 ms."""


def may_continue(caller: Caller, request: Request, plane: Plane) -> bool:
    """Return whether a body that is not large may name a stored response, which `prepare` asks control for."""
    if plane.response_store is None or caller.organization.response_retention_seconds is None or request.conversation is not None:
        return False
    return request.upload is None and b'"previous_response_id"' in request.body


async def prepare(caller: Caller, request: Request, plane: Plane, driver: CoroutineDriver) -> None:
    """Make the body of a request the whole conversation, where it continues a stored response or is to be stored. One that is not short
    becomes an upload of its own, which whoever answers the request releases.

    Raises Fault: previous_response_not_found, stored_responses_unavailable, invalid_value for a conversation that is too long and for what
    a response in the background cannot be,
    rate_limit_exceeded or overloaded where the budget for buffered bytes does not suffice, and what `bodies.read` raises.
    """
    store = plane.response_store
    if request.body_bytes > CONVERSATION_BYTES_MAX or request.conversation is not None:
        return  # `authorize` refuses a body that is too long for what it asks for
    stores = store is not None and caller.organization.response_retention_seconds is not None
    if not stores and not bodies.is_within(request.list_pieces(), compactions.MARK):
        return
    content = request.read_body()
    if not continuation.may_wish(content):
        return
    readers = plane.body_readers
    if readers is None or len(content) <= SHORT_BYTES_MAX:
        wish = continuation.read_wish(content, request.endpoint)
    else:
        wish = await driver.in_task(readers.read_wish(caller, request))
    if wish is not None and not stores:  # what asks for more than a compaction is left to `authorize`, which refuses it by name
        wish = Wish(keeps=False, previous=None, is_compacted=True) if wish.is_compacted else None
    if wish is None:
        return
    if wish.in_background and plane.batch_store is None:
        message = "Responses in the background are not offered here: these gateways have no directory for files."
        raise Fault(faults.PARAMETER_INVALID, param="background", message=message)
    found: bytes | None = None
    if wish.previous is not None and store is not None:
        found = await driver.in_task(store.find(caller.organization.id, caller.project.id, wish.previous)) if is_id(wish.previous) else None
        if found is None:
            raise Fault(faults.PREVIOUS_RESPONSE_UNKNOWN, param="previous_response_id")
    size = len(content) + (0 if found is None else len(found))
    if size <= SHORT_BYTES_MAX:
        whole = continuation.make_whole(content, wish, found)
        _take(request, wish, whole)
        request.replace_body(whole.pieces[0])
        return
    upload = Upload(BufferHold(plane.buffers, plane.buffers.find_key(caller.principal.id)), None)
    upload.expect(2 * size)  # the body for the engine, and the items to be stored
    try:
        if readers is None:
            whole = continuation.make_whole(content, wish, found)
        else:
            whole = await driver.in_task(readers.make_whole(caller, request, wish, found))
    except BaseException:
        upload.release(0)
        raise
    _take(request, wish, whole)
    request.take_upload(upload, whole.pieces)


def _take(request: Request, wish: Wish, whole: WholeConversation) -> None:
    """Let a request know the conversation that its body becomes."""
    id = f"{RESPONSE}{request.id.removeprefix(REQUEST)}" if wish.keeps else ""
    items = bodies.cut(whole.pieces, whole.start, whole.end)
    request.conversation = Conversation(id, wish.previous, items, request.list_pieces(), wish.in_background)


def is_id(text: str) -> bool:
    """Return whether a text can be the id of a stored response."""
    digits = text.removeprefix(f"{RESPONSE}_")
    return len(digits) == 32 and len(text) == 37 and digits.isascii() and all(each in "0123456789abcdef" for each in digits)


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
        content = continuation.encode_stored(response, conversation.items)
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
