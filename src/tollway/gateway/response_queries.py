"""Stored responses, read and deleted by their project: GET and DELETE /v1/responses/{id}, its input_items, and cancel. No engine is asked,
and nothing is metered; each counts as a request in the limits of the caller. A response in the background that is not stored (yet) is told
from its batch.

A response of another project or organization is answered as one that never was.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.batches import Batch
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.files import FileOwner
from tollway.gateway import background_responses
from tollway.gateway.authenticate import authenticate, require_endpoint
from tollway.gateway.continuation import StoredResponse, read_items, read_stored
from tollway.gateway.conversations import is_id
from tollway.gateway.counters import ONE_REQUEST
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.limit import charge_upload
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client, ResponseStore
from tollway.gateway.refusals import refuse
from tollway.gateway.request import Caller, Request
from tollway.telemetry import describe_error
from tollway.wire import bodies

PREFIX: Final = b"/v1/responses/"
CANCEL: Final = b"/cancel"
INPUT_ITEMS: Final = b"/input_items"

ITEMS_MAX: Final = 100
ITEMS_DEFAULT: Final = 20
"""Items of one page: most, and where a client does not say."""

_HEADERS: Final = b"content-type: application/json\r\ncache-control: no-store\r\n"
_PLACE = re.compile(r"0|[1-9][0-9]{0,6}")
_LIMIT = re.compile(r"[1-9][0-9]{0,2}")


async def answer(request: Request, client: Client, plane: Plane, driver: CoroutineDriver, method: bytes, query: Mapping[str, str]) -> None:
    """Answer a request about one stored response. `request.body`: what stands in its path behind PREFIX. `query`: of its target."""
    caller: Caller | None = None
    try:
        if plane.directory.obstacle is not None:
            raise Fault(plane.directory.obstacle, retry_after_seconds=1)
        caller = authenticate(request.head, plane.directory, plane.digesters, request.received_at)
        require_endpoint(caller, Endpoint.RESPONSES)
        hold = charge_upload(caller, plane.counters, time.monotonic_ns(), plane.metrics)
        try:
            body = await _answer(request, caller, plane, driver, method, query)
        finally:
            if hold is not None:
                hold.settle(ONE_REQUEST, time.monotonic_ns())
    except Fault as caught:
        caught.forget_frames()
        _refuse(request, client, plane, caught if caller is not None else client.throttle(caught, request.headers))
        return
    except Exception as error:  # the last line of defence of one request, as in `pipeline.answer`
        asyncio.get_running_loop().call_exception_handler({"message": "a request about a stored response failed", "exception": error})
        _refuse(request, client, plane, Fault(faults.INTERNAL, detail=describe_error(error)))
        return
    if not client.gone:
        client.answer(200, _HEADERS + DIALECTS[Endpoint.RESPONSES].identify(request.id), body)


def _refuse(request: Request, client: Client, plane: Plane, fault: Fault) -> None:
    refuse(request, client, fault)
    plane.metrics.count(plane.metrics.refusals, fault.kind.code)


async def _answer(
    request: Request, caller: Caller, plane: Plane, driver: CoroutineDriver, method: bytes, query: Mapping[str, str]
) -> bytes:
    path = request.body
    store = plane.response_store
    id = path.removesuffix(CANCEL).removesuffix(INPUT_ITEMS).decode("latin-1")
    if store is None or not is_id(id):
        raise Fault(faults.RESPONSE_UNKNOWN)
    owner = FileOwner(caller.organization.id, caller.project.id)
    if method == b"DELETE":
        is_deleted = await driver.in_task(store.delete(caller.organization.id, caller.project.id, id))
        if is_deleted and await driver.in_task(background_responses.forget(owner, id, plane)):
            await driver.in_task(store.delete(caller.organization.id, caller.project.id, id))
        batch = None if is_deleted else await _find_batch(caller, owner, id, plane, driver)
        if batch is not None:
            await driver.in_task(background_responses.delete(batch, plane))
        elif not is_deleted:
            raise Fault(faults.RESPONSE_UNKNOWN)
        return msgspec.json.encode({"id": id, "object": "response", "deleted": True})
    if query.get("stream") == "true":
        raise Fault(faults.PARAMETER_INVALID, param="stream", message="Stored responses are not streamed.")
    page = _Page.read(query) if path.endswith(INPUT_ITEMS) else None
    found = await driver.in_task(_find(store, caller, id))
    batch = await _find_batch(caller, owner, id, plane, driver) if found is None else None
    if batch is not None and path.endswith(CANCEL):
        batch = await driver.in_task(background_responses.cancel(batch, plane))
        if batch is None:  # it was completed before it was cancelled
            found = await driver.in_task(_find(store, caller, id))
    if batch is not None:
        if page is not None:
            raise Fault(faults.STATE_CONFLICT, message="The items of a response in the background can be read once it is completed.")
        return background_responses.describe(batch)
    if found is None:
        raise Fault(faults.RESPONSE_UNKNOWN)
    if path.endswith(CANCEL) and not msgspec.json.decode(found.response, type=_Background).background:
        raise Fault(faults.RESPONSE_NOT_CANCELLABLE)
    return bytes(found.response) if page is None else page.show(id, bytes(found.input))


class _Background(msgspec.Struct, frozen=True):
    background: bool | None = False


async def _find(store: ResponseStore, caller: Caller, id: str) -> StoredResponse | None:
    """Return a stored response, None if there is none."""
    content = await store.find(caller.organization.id, caller.project.id, id)
    return None if content is None else read_stored(content)


async def _find_batch(caller: Caller, owner: FileOwner, id: str, plane: Plane, driver: CoroutineDriver) -> Batch | None:
    """Return the batch of a response in the background that is not stored at control, while its organization keeps responses so long."""
    retention_seconds = caller.organization.response_retention_seconds
    if retention_seconds is None:
        return None
    batch = await driver.in_task(background_responses.find(owner, id, plane))
    if batch is None or batch.created_at + retention_seconds <= plane.now_us() // 1_000_000:
        return None
    return batch


class _Named(msgspec.Struct, frozen=True):
    """The id of an item, of whatever type its client gave it."""

    id: Any = None


def _name(item: _Named, stem: str, place: int) -> str:
    """Return the id of an item, or one by its place."""
    return item.id if type(item.id) is str and item.id else f"{stem}{place}"


class _Page(msgspec.Struct, frozen=True):
    """A page of items that a query asks for. `after`: the id of an item, empty for the beginning."""

    limit: int
    is_ascending: bool
    after: str

    @classmethod
    def read(cls, query: Mapping[str, str]) -> "_Page":
        """Return the page that a query asks for. Raises Fault invalid_value."""
        limit, order = query.get("limit", str(ITEMS_DEFAULT)), query.get("order", "desc")
        if _LIMIT.fullmatch(limit) is None or int(limit) > ITEMS_MAX:
            raise Fault(faults.PARAMETER_INVALID, param="limit", message=f"'limit' must be 1 to {ITEMS_MAX}.")
        if order not in ("asc", "desc"):
            raise Fault(faults.PARAMETER_INVALID, param="order", message="'order' must be 'asc' or 'desc'.")
        return cls(int(limit), order == "asc", query.get("after", ""))

    def _find_after(self, items: bytes, stored: Sequence[msgspec.Raw], stem: str) -> int:
        """Return the place of the item that is named `after`. An id that its client wrote with escapes is not found. Raises as `show`."""
        digits = self.after.removeprefix(stem)
        place = int(digits) if len(digits) < len(self.after) and _PLACE.fullmatch(digits) else len(stored)
        if place < len(stored) and _name(msgspec.json.decode(stored[place], type=_Named), stem, place) == self.after:
            return place
        written = msgspec.json.encode(self.after)
        for place, item in enumerate(stored if written in items else ()):
            if written in bytes(item) and msgspec.json.decode(item, type=_Named).id == self.after:
                return place
        raise Fault(faults.PARAMETER_INVALID, param="after", message="'after' is no item of this response.")

    def show(self, response_id: str, items: bytes) -> bytes:
        """Return a page of the items of a response, as a list of OpenAI's shape. An item without an id has one by its place. Raises Fault
        invalid_value for an `after` that is none of them. Only the items of the page are read in full: there may be tens of thousands."""
        stem = f"item_{response_id.removeprefix('resp_')}_"
        stored = read_items(items)
        places: Sequence[int] = range(len(stored)) if self.is_ascending else range(len(stored) - 1, -1, -1)
        start = 0
        if self.after:
            place = self._find_after(items, stored, stem)
            start = (place if self.is_ascending else len(stored) - 1 - place) + 1
        page: list[tuple[str, bytes]] = []
        for place in places[start : start + self.limit]:
            members = dict(bodies.members(bytes(stored[place])))
            id = _name(msgspec.json.decode(stored[place], type=_Named), stem, place)
            members["id"] = msgspec.Raw(msgspec.json.encode(id))
            members.setdefault("type", msgspec.Raw(b'"message"'))
            page.append((id, bodies.join(members)))
        first, last = (page[0][0], page[-1][0]) if page else (None, None)
        return b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}' % (
            b",".join(item for _, item in page),
            msgspec.json.encode(first),
            msgspec.json.encode(last),
            b"true" if start + self.limit < len(stored) else b"false",
        )
