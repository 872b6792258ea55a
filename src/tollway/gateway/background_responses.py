"""Responses in the background: POST /v1/responses with `background: true` is answered at once, and served whether or not its client stays.

Such a response is kept as a batch of one line (`domain.batches`) in the directory of batches, which any gateway that shares it runs: so it
is served once, billed if and only if its answer is in the journal, and goes on after whatever process dies. It is a request of its key like
every other one, in its own service tier, and waits for no idle capacity. Once it is answered it is stored with the other responses of its
project, at control; the state of what does not end so is read from the batch.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from tollway.domain import faults
from tollway.domain.batches import Batch, BatchStatus
from tollway.domain.faults import Fault
from tollway.domain.files import FileOwner
from tollway.gateway.file_operations import wait_for
from tollway.gateway.limit import charge_upload
from tollway.gateway.plane import Plane
from tollway.gateway.ports import BatchStore
from tollway.gateway.request import Call

_STATUSES: Final = {
    BatchStatus.VALIDATING: "queued",
    BatchStatus.CANCELLED: "cancelled",
    BatchStatus.FAILED: "failed",
    BatchStatus.EXPIRED: "failed",
}
"""States of a response by those of its batch; every other one is in progress."""

CANCEL_SECONDS: Final = 5.0
"""Longest wait for the end of a response that is cancelled: several times what a gateway takes to notice it."""
_LOOK_SECONDS: Final = 0.1

_T = TypeVar("_T")


async def submit(call: Call, plane: Plane) -> bytes:
    """Store the response in the background that an authorized request asks for, and return it. Await it in a task.

    The request that is charged for it is given back: it counts when it is served. Raises Fault rate_limit_exceeded, quota_exceeded,
    files_unavailable, overloaded, and invalid_value for headers that could not be heeded."""
    store, request, caller = plane.batch_store, call.request, call.caller
    conversation = request.conversation
    assert store is not None and conversation is not None
    for header, value in (("idempotency-key", request.head.idempotency_key), ("x-max-cost", request.head.max_cost)):
        if value is not None:
            message = f"The header '{header}' cannot be sent with 'background': true."
            raise Fault(faults.PARAMETER_INVALID, param=header, message=message)
    batch = Batch(
        id=conversation.response_id,
        owner=FileOwner(caller.organization.id, caller.project.id),
        key_id=caller.principal.id,
        address=request.head.address,
        endpoint=request.endpoint,
        created_at=request.received_at // 1_000_000,
        output_file_id="",
        error_file_id="",
        output_seconds=0,
        snapshot_version=plane.version,
        total=1,
        model=call.model.id,
        previous_response_id=conversation.previous_response_id,
    )
    pieces = request.list_pieces()

    def store_line() -> None:
        body = msgspec.json.format(b"".join(pieces), indent=-1)
        line = b'{"custom_id":"1","method":"POST","url":"/v1/responses","body":%b}\n' % body
        store.create(batch, (line,), len(line))

    operations = plane.file_operations
    operations.require_place(caller.organization.id)
    hold = charge_upload(caller, plane.counters, time.monotonic_ns(), plane.metrics)

    def give_back() -> None:
        if hold is not None:
            hold.refund(time.monotonic_ns())

    await wait_for(operations.start(caller.organization.id, operations.in_thread(store_line), give_back))
    return describe(batch)


async def find(owner: FileOwner, id: str, plane: Plane) -> Batch | None:
    """Return the batch of a response in the background that is not stored at control; None if the project has none of this id. Await it
    in a task. Raises Fault files_unavailable, overloaded, rate_limit_exceeded."""
    store = plane.batch_store
    if store is None:
        return None
    batch = await _operate(owner, plane, lambda: store.find(owner, id))
    return None if batch is None or batch.status is BatchStatus.COMPLETED else batch  # that one was deleted at control


async def cancel(batch: Batch, plane: Plane) -> Batch | None:
    """Have a response in the background end, and return its batch once it has, or as it stands after CANCEL_SECONDS; None if it was
    completed meanwhile. One that has ended is not changed. Await it in a task. Raises Fault as `find` does."""
    store = plane.batch_store
    assert store is not None
    if not batch.has_ended:
        await _operate(batch.owner, plane, lambda: _cancel(store, batch))
    found: Batch | None = batch
    until = time.monotonic() + CANCEL_SECONDS
    while found is not None and not found.has_ended and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        found = await find(batch.owner, batch.id, plane)
    return found


def _cancel(store: BatchStore, batch: Batch) -> None:
    try:
        store.cancel(batch.owner, batch.id)
    except Fault as fault:
        if fault.kind is not faults.STATE_CONFLICT:  # it has ended meanwhile
            raise


async def delete(batch: Batch, plane: Plane) -> None:
    """Delete a response in the background that has ended. Await it in a task. Raises Fault conflict for one that has not, and as `find`
    does."""
    store = plane.batch_store
    assert store is not None
    if not batch.has_ended:
        raise Fault(faults.STATE_CONFLICT, message="A response that is queued or in progress cannot be deleted. Cancel it first.")
    await _operate(batch.owner, plane, lambda: store.delete(batch.owner, batch.id))


async def forget(owner: FileOwner, id: str, plane: Plane) -> bool:
    """Let a response that was just deleted at control not be stored again by whoever ends it. Return whether somebody may have done so
    meanwhile. Await it in a task. Raises Fault as `find` does."""
    store = plane.batch_store
    return store is not None and await _operate(owner, plane, lambda: store.forget(owner, id))


async def _operate(owner: FileOwner, plane: Plane, function: Callable[[], _T]) -> _T:
    """Return what a function that blocks returns, as an operation of the organization (`file_operations`)."""
    operations = plane.file_operations
    operations.require_place(owner.organization_id)
    return await wait_for(operations.start(owner.organization_id, operations.in_thread(function), lambda: None))


def describe(batch: Batch) -> bytes:
    """Return a response in the background without output, in OpenAI's shape."""
    error = batch.errors[0] if batch.errors else None
    shown: dict[str, Any] = {
        "id": batch.id,
        "object": "response",
        "created_at": batch.created_at,
        "status": _STATUSES.get(batch.status, "in_progress"),
        "background": True,
        "error": None if error is None else {"code": error.code, "message": error.message},
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": batch.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": batch.previous_response_id,
        "store": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }
    return msgspec.json.encode(shown)
