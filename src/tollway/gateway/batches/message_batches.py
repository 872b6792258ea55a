"""Anthropic's batches at the gateway: /v1/messages/batches. Their requests come with the submission, and their results are read from the
journal of the batch. Everything else is as for OpenAI's batches."""

import re
from typing import Any, Final

import msgspec

from tollway.domain import faults, ids
from tollway.domain.batches import BATCH_BYTES_MAX, Batch, BatchStatus
from tollway.domain.faults import Fault
from tollway.gateway.batches.batch_requests import invalid, new_batch, read_query
from tollway.gateway.files import StoredContent, StoredRequest, begin_content, to_json
from tollway.gateway.plane import Plane
from tollway.telemetry import timestamp
from tollway.wire.media_types import is_json

TARGET: Final[bytes] = b"/v1/messages/batches"
PATH: Final[re.Pattern[bytes]] = re.compile(rb"/v1/messages/batches/(msgbatch_[0-9a-f]{32})(/cancel|/results)?")
PAGE_MAX: Final = 1_000
PAGE_DEFAULT: Final = 20
_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_RESULTS: Final = b"content-type: application/x-jsonl\r\n"


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    params: dict[str, msgspec.Raw]


class _Submission(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[msgspec.Raw]


_submission: Final = msgspec.json.Decoder(_Submission)
_asked: Final = msgspec.json.Decoder(_Asked)


async def operate(asked: StoredRequest, plane: Plane) -> StoredContent:
    """Do what a request about Anthropic's batches asks for. Raises Fault."""
    store, in_thread, owner = plane.batch_store, plane.file_operations.in_thread, asked.owner
    if store is None:
        raise Fault(faults.ROUTE_UNKNOWN)
    if asked.path == TARGET and asked.method == b"POST":
        return to_json(describe(await in_thread(lambda: _submit(asked, plane))))
    if asked.path == TARGET:
        page = read_query(asked.query, ("after_id", "before_id", "limit"), PAGE_MAX)
        after, before, limit = page.get("after_id", ""), page.get("before_id", ""), int(page.get("limit", PAGE_DEFAULT))
        if after and before:
            raise invalid("before_id", "It cannot be sent with after_id.")
        found, has_more = await in_thread(lambda: store.list_page(owner, ids.MESSAGE_BATCH, after, before, limit))
        shown = [describe(batch) for batch in found]
        first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
        return to_json({"data": shown, "first_id": first, "last_id": last, "has_more": has_more})
    named = PATH.fullmatch(asked.path)
    assert named is not None, "no other path has this handler"
    id = named[1].decode()
    if asked.method == b"DELETE":
        if not await in_thread(lambda: store.delete(owner, id)):
            raise Fault(faults.RESOURCE_UNKNOWN)
        return to_json({"id": id, "type": "message_batch_deleted"})
    batch = await in_thread(lambda: store.cancel(owner, id) if named[2] == b"/cancel" else store.find(owner, id))
    if batch is None:
        raise Fault(faults.RESOURCE_UNKNOWN)
    if named[2] != b"/results":
        return to_json(describe(batch))
    if not batch.has_ended:
        raise Fault(faults.STATE_CONFLICT, message="The batch has no results yet: it has not ended.")
    return await in_thread(lambda: begin_content(_RESULTS, store.read_results(owner, id)))


def _submit(asked: StoredRequest, plane: Plane) -> Batch:
    """Store the batch that a request holds, and return it. Blocks. Raises Fault."""
    store, lines_max = plane.batch_store, plane.batch_lines_max
    assert store is not None
    lines = list_lines(asked, lines_max)
    size = sum(map(len, lines))
    if size > BATCH_BYTES_MAX:
        raise invalid("requests", f"A batch has at most {BATCH_BYTES_MAX} bytes.")
    batch = msgspec.structs.replace(new_batch(asked, ids.MESSAGE_BATCH, plane), total=len(lines))
    store.create(batch, lines, size)
    return batch


def list_lines(asked: StoredRequest, lines_max: int) -> list[bytes]:
    """Return the requests of a submission as the lines of a batch. What their parameters are is checked later, each by itself. Raises
    Fault."""
    if not is_json(asked.request.headers.get(b"content-type", b"")):
        raise Fault(faults.MEDIA_TYPE_UNSUPPORTED)
    try:
        requests = _submission.decode(b"".join(asked.pieces)).requests
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Fault(faults.JSON_INVALID, message="The body must be a JSON object with the list 'requests'.") from None
    if not 0 < len(requests) <= lines_max:
        raise invalid("requests", f"A batch has 1 to {lines_max} requests.")
    lines: list[bytes] = []
    known: set[str] = set()
    for number, raw in enumerate(requests):
        try:
            each = _asked.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise invalid(f"requests.{number}", "It has a 'custom_id' and an object 'params'.") from None
        if _CUSTOM_ID.fullmatch(each.custom_id) is None or each.custom_id in known:
            raise invalid(f"requests.{number}.custom_id", "It has 1 to 64 letters, digits, _ and -, and stands once.")
        known.add(each.custom_id)
        head = b'{"custom_id":%b,"method":"POST","url":"/v1/messages","body":' % msgspec.json.encode(each.custom_id)
        lines.append(head + _find_params(raw) + b"}\n")
    return lines


class _Params(msgspec.Struct):
    params: msgspec.Raw


_params: Final = msgspec.json.Decoder(_Params)


def _find_params(raw: msgspec.Raw) -> bytes:
    """Return the parameters of a request as they were sent, in one line."""
    return msgspec.json.format(bytes(_params.decode(raw).params), indent=-1)


def describe(batch: Batch) -> dict[str, Any]:
    """Return a batch in Anthropic's shape."""
    counts = batch.counts
    state = "ended" if batch.has_ended else "canceling" if batch.status is BatchStatus.CANCELLING else "in_progress"

    def at(seconds: int | None) -> str | None:
        return None if seconds is None else timestamp(seconds * 1_000_000)

    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": state,
        "request_counts": {
            "processing": batch.total - counts.ended,
            "succeeded": counts.completed,
            "errored": counts.errored,
            "canceled": counts.cancelled,
            "expired": counts.expired,
        },
        "created_at": at(batch.created_at),
        "expires_at": at(batch.expires_at),
        "ended_at": at(batch.ended_at),
        "cancel_initiated_at": at(batch.cancelling_at),
        "archived_at": None,
        "results_url": f"{TARGET.decode()}/{batch.id}/results" if batch.has_ended else None,
    }
