"""Stored responses, read and deleted by their project: GET and DELETE /v1/responses/{id}, its input_items, and cancel. No engine is asked,
and nothing is metered; each counts as a request in the limits of the caller.

A response of another project or organization is answered as one that never was.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.authenticate import authenticate, require_endpoint
from tollway.gateway.conversations import StoredResponse, is_id, read_items, read_stored
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.limit import charge_upload
from tollway.gateway.memory_counters import ONE_REQUEST
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
                plane.counters.settle(hold, ONE_REQUEST, time.monotonic_ns())
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
    if method == b"DELETE":
        if not await driver.in_task(store.delete(caller.organization.id, caller.project.id, id)):
            raise Fault(faults.RESPONSE_UNKNOWN)
        return msgspec.json.encode({"id": id, "object": "response", "deleted": True})
    if query.get("stream") == "true":
        raise Fault(faults.PARAMETER_INVALID, param="stream", message="Only a response in the background can be streamed later.")
    page = _Page.read(query) if path.endswith(INPUT_ITEMS) else None
    found = await driver.in_task(_find(store, caller, id))
    if path.endswith(CANCEL):
        raise Fault(faults.RESPONSE_NOT_CANCELLABLE)
    return bytes(found.response) if page is None else page.show(id, bytes(found.input))


async def _find(store: ResponseStore, caller: Caller, id: str) -> StoredResponse:
    """Return a stored response. Raises Fault response_not_found."""
    content = await store.find(caller.organization.id, caller.project.id, id)
    if content is None:
        raise Fault(faults.RESPONSE_UNKNOWN)
    return read_stored(content)


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

    def show(self, response_id: str, items: bytes) -> bytes:
        """Return a page of the items of a response, as a list of OpenAI's shape. An item without an id has one by its place. Raises Fault
        invalid_value for an `after` that is none of them."""
        named: list[tuple[str, bytes]] = []
        for number, item in enumerate(read_items(items)):
            members = dict(bodies.members(bytes(item)))
            id = members.get("id")
            text = msgspec.json.decode(id) if id is not None else None
            if type(text) is not str or not text:
                text = f"item_{response_id.removeprefix('resp_')}_{number}"
                members["id"] = msgspec.Raw(msgspec.json.encode(text))
            members.setdefault("type", msgspec.Raw(b'"message"'))
            named.append((text, bodies.join(members)))
        if not self.is_ascending:
            named.reverse()
        start = 0
        if self.after:
            start = next((place + 1 for place, (id, _) in enumerate(named) if id == self.after), 0)
            if not start:
                raise Fault(faults.PARAMETER_INVALID, param="after", message="'after' is no item of this response.")
        page = named[start : start + self.limit]
        first, last = (page[0][0], page[-1][0]) if page else (None, None)
        return b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}' % (
            b",".join(item for _, item in page),
            msgspec.json.encode(first),
            msgspec.json.encode(last),
            b"true" if start + self.limit < len(named) else b"false",
        )
