"""OpenAI's files at the gateway: /v1/files. They belong to the project of the key; nothing is metered, and no engine is asked.

A file is uploaded as a form, which is held in pieces within the budget for buffered bytes, and stored in a thread (`file_operations`). The
content of one is sent as it is read, in pieces. Where the operator has named no directory for files, there is nothing at these paths.

`answer` answers every request that stored things are asked for, batches as well; `operate` is what is done for one about files.
"""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from tollway.domain import faults, ids
from tollway.domain.faults import Fault
from tollway.domain.files import (
    EXPIRY_SECONDS_MAX,
    EXPIRY_SECONDS_MIN,
    FILENAME_CHARACTERS_MAX,
    UPLOADED,
    FileOwner,
    FilePurpose,
    StoredFile,
)
from tollway.gateway import pipeline
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.file_operations import wait_for
from tollway.gateway.limit import charge_upload
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client
from tollway.gateway.refusals import refuse
from tollway.gateway.request import Caller, Request
from tollway.gateway.uploads import Upload
from tollway.telemetry import describe_error
from tollway.wire import forms
from tollway.wire.forms import File, FormKind

TARGET: Final[bytes] = b"/v1/files"
PATH: Final[re.Pattern[bytes]] = re.compile(rb"/v1/files/(file_[0-9a-f]{32})(/content)?")
"""Paths of one file, and of its content. Every other path below TARGET is that of no file."""
LIST_MAX: Final = 10_000
"""Most files of one page, as OpenAI has it."""

PIECE_SECONDS_MAX: Final = 30.0
"""Longest time that the disk has for the next piece of content that is sent."""
_READER_SECONDS: Final = 0.05
"""Interval at which it is looked whether a client that reads slowly goes on."""

_JSON = b"content-type: application/json\r\n"
_NOT_STORED = b"cache-control: no-store\r\n"
_CONTENT = b"content-type: application/octet-stream\r\nx-content-type-options: nosniff\r\n"
_KINDS = {"purpose": FormKind.TEXT}


class StoredRequest(NamedTuple):
    """A request about stored things: who asks for what. `target`: its path and query. `pieces`: of its body."""

    request: Request
    caller: Caller
    method: bytes
    target: bytes
    pieces: Sequence[bytes]

    @property
    def path(self) -> bytes:
        """Return the path."""
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """Return the query, empty without one."""
        return self.target.partition(b"?")[2]

    @property
    def owner(self) -> FileOwner:
        """Return the project whose things are asked for."""
        return FileOwner(self.caller.organization.id, self.caller.project.id)


class StoredContent(NamedTuple):
    """The answer to such a request. `headers`: lines that describe its body. `more`: what follows the body, in pieces; None for nothing."""

    headers: bytes
    body: bytes
    more: Iterator[bytes] | None = None


Operate = Callable[[StoredRequest, Plane], Coroutine[Any, Any, StoredContent]]
"""Does what a request asks for, and returns its answer. Raises Fault."""


def to_json(value: object) -> StoredContent:
    """Return an answer in JSON."""
    return StoredContent(_JSON, msgspec.json.encode(value))


async def answer(
    operate: Operate,
    request: Request,
    method: bytes,
    target: bytes,
    pieces: Sequence[bytes],
    upload: Upload | None,
    client: Client,
    plane: Plane,
    driver: CoroutineDriver,
) -> None:
    """Answer a request about stored things. `target`: its path and query. `pieces`: its body. `upload`: of a body that was admitted before
    all of it was there, a large or a slow one; it is released here. None for any other. What was not charged is charged here. `driver` runs
    this coroutine."""
    caller: Caller | None = None
    charged = upload
    try:
        if plane.file_store is None:
            raise Fault(faults.ROUTE_UNKNOWN)
        if method == b"POST" and upload is None:
            caller = pipeline.identify_sender(request.head, plane, is_file=True)
        else:
            caller = pipeline.identify_file_user(request.head, plane)
        organization_id = caller.organization.id
        plane.file_operations.require_place(organization_id)
        if charged is None:
            charged = pipeline.admit_upload(caller, 0, plane)
        elif not charged.is_charged:  # a small one that arrived slowly, from somebody who was not known yet
            charged.charge(charge_upload(caller, plane.counters, time.monotonic_ns(), plane.metrics))
        release, charged = partial(_release, charged), None
        asked = StoredRequest(request, caller, method, target, pieces)
        operation = plane.file_operations.start(organization_id, operate(asked, plane), release)
        content = await driver.in_task(wait_for(operation))
    except Fault as caught:
        caught.forget_frames()
        fault = caught if caller is not None else client.throttle(caught, request.headers)
        _refuse(request, charged, client, plane, fault)
        return
    except Exception as error:  # the last line of defence of one request, as in `pipeline.answer`
        asyncio.get_running_loop().call_exception_handler({"message": "a request about files failed", "exception": error})
        _refuse(request, charged, client, plane, Fault(faults.INTERNAL, detail=describe_error(error)))
        return
    if client.gone:
        return
    headers = content.headers + DIALECTS[request.endpoint].identify(request.id)
    if content.more is None:
        client.answer(200, headers + _NOT_STORED, content.body)
    else:
        await _send(headers, content.body, content.more, client, plane, driver)


class _Pause:
    """A flow that says whether its client reads slower than it is sent (`ports.Flow`)."""

    def __init__(self) -> None:
        self.is_paused = False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False


async def _send(headers: bytes, body: bytes, more: Iterator[bytes], client: Client, plane: Plane, driver: CoroutineDriver) -> None:
    """Send content as it is read. One that cannot be read to its end is broken off, so that nobody takes it for whole."""
    pause = _Pause()
    client.attend(pause)
    client.begin_stream(headers)
    client.send(body)
    try:
        while not client.gone:
            if pause.is_paused:
                await driver.in_task(asyncio.sleep(_READER_SECONDS))
                continue
            reading = asyncio.wait_for(plane.file_operations.in_thread(lambda: next(more, None)), PIECE_SECONDS_MAX)
            piece = await driver.in_task(reading)
            if piece is None:
                break
            client.send(piece)
    except (Fault, TimeoutError):
        client.attend(None)
        client.break_off()
        return
    client.attend(None)
    if not client.gone:
        client.end_stream(b"")


async def operate(asked: StoredRequest, plane: Plane) -> StoredContent:
    """Do what a request about files asks for. Raises Fault."""
    store, in_thread, owner, path = plane.file_store, plane.file_operations.in_thread, asked.owner, asked.path
    assert store is not None
    if path == TARGET and asked.method == b"POST":
        stored, content = await in_thread(lambda: read_upload(asked.request, asked.pieces, plane))
        await in_thread(lambda: store.add(owner, stored, content))
        return to_json(stored.describe())
    if path == TARGET:
        page = read_page(asked.query)
        files = await in_thread(lambda: store.list_files(owner))
        return to_json(list_page(files, page))
    named = PATH.fullmatch(path)
    if named is None:
        raise Fault(faults.RESOURCE_UNKNOWN)
    id = named[1].decode()
    if asked.method == b"DELETE":
        if named[2] is not None:
            raise Fault(faults.METHOD_UNSUPPORTED)
        if not await in_thread(lambda: store.delete(owner, id)):
            raise Fault(faults.RESOURCE_UNKNOWN)
        return to_json({"id": id, "object": "file", "deleted": True})
    file = await in_thread(lambda: store.find(owner, id))
    if file is None:
        raise Fault(faults.RESOURCE_UNKNOWN)
    if named[2] is None:
        return to_json(file.describe())
    return await in_thread(lambda: begin_content(_CONTENT, store.read_pieces(owner, id)))


def begin_content(headers: bytes, pieces: Iterator[bytes]) -> StoredContent:
    """Return content whose begin was read, so that a fault there can still be reported. Blocks. Raises Fault."""
    first, second = next(pieces, b""), next(pieces, None)
    return StoredContent(headers, first, None if second is None else chain((second,), pieces))


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
    if type(purpose) is not str or purpose not in UPLOADED:
        raise _invalid("purpose", f"It is one of: {', '.join(UPLOADED)}.")
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
