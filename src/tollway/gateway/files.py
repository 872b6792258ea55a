"""OpenAI's files at the gateway: /v1/files. They belong to the project of the key; nothing is metered, and no engine is asked.

A file is uploaded as a form, which is held in pieces within the budget for buffered bytes, and stored in a thread (`file_operations`).
Where the operator has named no directory for files, there is nothing at these paths.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from tollway.domain import faults, ids
from tollway.domain.faults import Fault
from tollway.domain.files import (
    EXPIRY_SECONDS_MAX,
    EXPIRY_SECONDS_MIN,
    FILENAME_CHARACTERS_MAX,
    FileOwner,
    FilePurpose,
    StoredFile,
)
from tollway.gateway import pipeline
from tollway.gateway.buffers import BufferHold
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.file_operations import wait_for
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client, FileStore
from tollway.gateway.refusals import refuse
from tollway.gateway.request import Caller, Request
from tollway.gateway.uploads import Upload
from tollway.telemetry import describe_error
from tollway.wire import forms
from tollway.wire.forms import File, FormKind

TARGET: Final = b"/v1/files"
PATH: Final = re.compile(rb"/v1/files/(file_[0-9a-f]{32})(/content)?")
"""Paths of one file, and of its content. Every other path below TARGET is that of no file."""
LIST_MAX: Final = 10_000
"""Most files of one page, as OpenAI has it."""

_JSON = b"content-type: application/json\r\ncache-control: no-store\r\n"
_CONTENT = b"content-type: application/octet-stream\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n"
_KINDS = {"purpose": FormKind.TEXT}


async def answer(
    request: Request,
    method: bytes,
    target: bytes,
    pieces: Sequence[bytes],
    upload: Upload | None,
    client: Client,
    plane: Plane,
    driver: CoroutineDriver,
) -> None:
    """Answer a request about files. `target`: its path and query. `pieces`: its body. `upload`: of a large body, which was admitted by its
    head and is released here; None for a small one, which is charged here. `driver` runs this coroutine."""
    caller: Caller | None = None
    charged = upload
    try:
        store = plane.file_store
        if store is None:
            raise Fault(faults.ROUTE_UNKNOWN)
        if method == b"POST" and upload is None:
            caller = pipeline.identify_sender(request.head, plane, is_file=True)
        else:
            caller = pipeline.identify_file_user(request.head, plane)
        organization_id = caller.organization.id
        plane.file_operations.require_place(organization_id)
        if charged is None:
            charged = pipeline.admit_upload(caller, 0, plane)
        release, charged = partial(_release, charged), None
        operation = plane.file_operations.start(organization_id, _operate(store, request, caller, method, target, pieces, plane), release)
        headers, body = await driver.in_task(wait_for(operation))
    except Fault as caught:
        caught.forget_frames()
        fault = caught if caller is not None else client.throttle(caught, request.headers)
        _refuse(request, charged, client, plane, fault)
    except Exception as error:  # the last line of defence of one request, as in `pipeline.answer`
        asyncio.get_running_loop().call_exception_handler({"message": "a request about files failed", "exception": error})
        _refuse(request, charged, client, plane, Fault(faults.INTERNAL, detail=describe_error(error)))
    else:
        if not client.gone:
            client.answer(200, headers + b"x-request-id: %b\r\n" % request.id.encode(), body)


async def _operate(
    store: FileStore, request: Request, caller: Caller, method: bytes, target: bytes, pieces: Sequence[bytes], plane: Plane
) -> tuple[bytes, bytes]:
    """Return the header lines and the body of an answer. Raises Fault."""
    in_thread = plane.file_operations.in_thread
    owner = FileOwner(caller.organization.id, caller.project.id)
    path, _, query = target.partition(b"?")
    if path == TARGET and method == b"POST":
        stored, content = await in_thread(lambda: read_upload(request, pieces, plane))
        await in_thread(lambda: store.add(owner, stored, content))
        return _JSON, msgspec.json.encode(stored.describe())
    if path == TARGET:
        page = read_page(query)
        files = await in_thread(lambda: store.list_files(owner))
        return _JSON, msgspec.json.encode(list_page(files, page))
    named = PATH.fullmatch(path)
    if named is None:
        raise Fault(faults.RESOURCE_UNKNOWN)
    id = named[1].decode()
    if method == b"DELETE":
        if named[2] is not None:
            raise Fault(faults.METHOD_UNSUPPORTED)
        if not await in_thread(lambda: store.delete(owner, id)):
            raise Fault(faults.RESOURCE_UNKNOWN)
        return _JSON, msgspec.json.encode({"id": id, "object": "file", "deleted": True})
    file = await in_thread(lambda: store.find(owner, id))
    if file is None:
        raise Fault(faults.RESOURCE_UNKNOWN)
    if named[2] is None:
        return _JSON, msgspec.json.encode(file.describe())
    hold = BufferHold(plane.buffers, plane.buffers.find_key(caller.principal.id))
    kind = hold.grow_to(file.size)
    if kind is not None:
        raise Fault(kind, retry_after_seconds=1, detail="budget for buffered bytes")
    try:
        return _CONTENT, await in_thread(lambda: store.read(owner, id))
    finally:
        hold.release()


def read_upload(request: Request, pieces: Sequence[bytes], plane: Plane) -> tuple[StoredFile, Sequence[bytes]]:
    """Return the file that an upload is, and its content. Blocks. Raises Fault."""
    boundary = forms.find_boundary(request.headers.get(b"content-type", b""))
    if boundary is None:
        raise Fault(faults.FORM_EXPECTED)
    body = b"".join(pieces)
    fields, _ = forms.read_fields(body, forms.read_parts(body, boundary), _KINDS)
    for name in ("file", "purpose"):
        if name not in fields:
            raise Fault(faults.PARAMETER_MISSING, param=name, message=f"Missing required parameter: '{name}'.")
    for name in fields.keys() - {"file", "purpose", "expires_after"}:
        raise Fault(faults.PARAMETER_UNKNOWN, param=name, message=f"Unrecognized request parameter: '{name}'.")
    file, purpose = fields["file"], fields["purpose"]
    if type(file) is not File or not file.size:
        raise _invalid("file", "Send a file that is not empty.")
    if not 0 < len(file.name) <= FILENAME_CHARACTERS_MAX or not file.name.isprintable():
        raise _invalid("file", f"Its name has 1 to {FILENAME_CHARACTERS_MAX} printable characters.")
    if type(purpose) is not str or purpose not in set(FilePurpose):
        raise _invalid("purpose", f"It is one of: {', '.join(FilePurpose)}.")
    now_us = request.received_at
    created_at, id = now_us // 1_000_000, ids.new_id(ids.FILE, now_us, plane.random_bits(ids.RANDOM_BITS))
    expires_at = created_at + _read_lifetime(fields.get("expires_after"), plane.file_lifetime_seconds)
    return StoredFile(id, file.name, FilePurpose(purpose), file.size, created_at, expires_at), (file.read(0, file.size),)


def _read_lifetime(expires_after: object, otherwise: int) -> int:
    """Return for how many seconds a file is kept whose client asks for `expires_after`. Raises Fault invalid_value."""
    if expires_after is None:
        return otherwise
    if isinstance(expires_after, dict) and expires_after.keys() == {"anchor", "seconds"} and expires_after["anchor"] == "created_at":
        seconds = expires_after["seconds"]
        if type(seconds) is int and EXPIRY_SECONDS_MIN <= seconds <= EXPIRY_SECONDS_MAX:
            return seconds
    raise _invalid("expires_after", f"It has the anchor created_at, and {EXPIRY_SECONDS_MIN} to {EXPIRY_SECONDS_MAX} seconds.")


class Page(msgspec.Struct, frozen=True):
    """The part of a list that is asked for, in OpenAI's parameters."""

    purpose: str = ""
    after: str = ""
    order: str = "desc"
    limit: int = LIST_MAX


def read_page(query: bytes) -> Page:
    """Return the page that a query asks for. Raises Fault invalid_value or unknown_parameter."""
    try:
        fields = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8)
    except (ValueError, UnicodeDecodeError):
        raise Fault(faults.PARAMETER_INVALID, message="The query cannot be read.") from None
    page = dict(fields)
    for name, value in page.items():
        if name not in Page.__struct_fields__:
            raise Fault(faults.PARAMETER_UNKNOWN, message="Unrecognized query parameter.")
        if name == "limit" and not (re.fullmatch("[1-9][0-9]{0,4}", value) and int(value) <= LIST_MAX):
            raise _invalid(name, f"It is 1 to {LIST_MAX}.")
        if name == "order" and value not in ("asc", "desc"):
            raise _invalid(name, "It is asc or desc.")
    return msgspec.convert(page, Page, strict=False)


def list_page(files: Sequence[StoredFile], page: Page) -> dict[str, Any]:
    """Return a page of files, which are ordered by their age, oldest first. Raises Fault invalid_value for a cursor that is no file."""
    found = [file for file in files if not page.purpose or file.purpose == page.purpose]
    if page.order == "desc":
        found.reverse()
    if page.after:
        places = [place for place, file in enumerate(found) if file.id == page.after]
        if not places:
            raise _invalid("after", "There is no such file.")
        found = found[places[0] + 1 :]
    shown = found[: page.limit]
    return {
        "object": "list",
        "data": [file.describe() for file in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(found) > len(shown),
    }


def _release(charged: Upload) -> None:
    charged.release(time.monotonic_ns())


def _refuse(request: Request, charged: Upload | None, client: Client, plane: Plane, fault: Fault) -> None:
    """Answer with a fault. `charged`: what no operation will release."""
    if charged is not None:
        _release(charged)
    refuse(request, client, fault)
    plane.metrics.count(plane.metrics.refusals, fault.kind.code)


def _invalid(name: str, advice: str) -> Fault:
    return Fault(faults.PARAMETER_INVALID, param=name, message=f"Invalid value for '{name}'. {advice}")
