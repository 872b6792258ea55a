"""OpenAI's batches at the gateway: /v1/batches. They belong to the project of the key; a batch itself is not metered, its lines are."""

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from tollway.domain import faults, ids
from tollway.domain.batches import BATCH_BYTES_MAX, BATCH_ENDPOINTS, Batch
from tollway.domain.faults import Fault
from tollway.domain.files import EXPIRY_SECONDS_MAX, EXPIRY_SECONDS_MIN, FilePurpose
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.files import StoredContent, StoredRequest, to_json
from tollway.gateway.plane import Plane
from tollway.wire import bodies
from tollway.wire.media_types import is_json

TARGET: Final[bytes] = b"/v1/batches"
PATH: Final[re.Pattern[bytes]] = re.compile(rb"/v1/batches/(batch_[0-9a-f]{32})(/cancel)?")
PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 20
METADATA_MAX: Final = 16
METADATA_KEY_MAX, METADATA_VALUE_MAX = 64, 512
"""Characters of a name and of a value in the metadata, as OpenAI has them."""
_FIELDS: Final = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
_LIMIT: Final = re.compile("[1-9][0-9]{0,2}")
_FILE: Final = re.compile(r"file_[0-9a-f]{32}")


async def operate(asked: StoredRequest, plane: Plane) -> StoredContent:
    """Do what a request about batches asks for. Raises Fault."""
    store, in_thread, owner = plane.batch_store, plane.file_operations.in_thread, asked.owner
    if store is None:
        raise Fault(faults.ROUTE_UNKNOWN)
    if asked.path == TARGET and asked.method == b"POST":
        return to_json((await in_thread(lambda: _submit(asked, plane))).describe())
    if asked.path == TARGET:
        page = read_query(asked.query, ("after", "limit"), PAGE_MAX)
        limit = int(page.get("limit", PAGE_DEFAULT))
        found, has_more = await in_thread(lambda: store.list_page(owner, ids.BATCH, page.get("after", ""), "", limit))
        shown = [batch.describe() for batch in found]
        first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
        return to_json({"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": has_more})
    named = PATH.fullmatch(asked.path)
    assert named is not None, "no other path has this handler"
    id = named[1].decode()
    batch = await in_thread(lambda: store.find(owner, id) if named[2] is None else store.cancel(owner, id))
    if batch is None:
        raise Fault(faults.RESOURCE_UNKNOWN)
    return to_json(batch.describe())


def _submit(asked: StoredRequest, plane: Plane) -> Batch:
    """Store the batch that a request describes, with the lines of its file, and return it. Blocks. Raises Fault."""
    files, store = plane.file_store, plane.batch_store
    assert files is not None and store is not None
    body = read_json(asked)
    for name in body.keys() - set(_FIELDS):
        raise Fault(faults.PARAMETER_UNKNOWN, param=name if name.isidentifier() else None)
    for name in _FIELDS[:3]:
        if name not in body:
            raise Fault(faults.PARAMETER_MISSING, param=name, message=f"Missing required parameter: '{name}'.")
    endpoint = BATCH_ENDPOINTS.get(body["endpoint"]) if type(body["endpoint"]) is str else None
    if endpoint is None:
        raise invalid("endpoint", f"It is one of: {', '.join(BATCH_ENDPOINTS)}.")
    if body["completion_window"] != "24h":
        raise invalid("completion_window", "It is 24h.")
    metadata = _check_metadata(body.get("metadata"))
    output_seconds = _read_lifetime(body.get("output_expires_after"), plane.file_lifetime_seconds)
    file_id = body["input_file_id"]
    file = files.find(asked.owner, file_id) if type(file_id) is str and _FILE.fullmatch(file_id) else None
    if file is None or file.purpose is not FilePurpose.BATCH:
        raise invalid("input_file_id", "There is no such file with the purpose batch.")
    if file.size > BATCH_BYTES_MAX:
        raise invalid("input_file_id", f"A batch has at most {BATCH_BYTES_MAX} bytes.")
    batch = msgspec.structs.replace(
        new_batch(asked, ids.BATCH, plane),
        endpoint=endpoint,
        input_file_id=file.id,
        metadata=metadata,
        output_seconds=output_seconds,
    )
    store.create(batch, files.read_pieces(asked.owner, file.id), file.size)
    return batch


def new_batch(asked: StoredRequest, kind: str, plane: Plane) -> Batch:
    """Return a batch that a request submits, with an id of this kind."""
    request = asked.request
    now_us = request.received_at

    def new_id(kind: str) -> str:
        return ids.new_id(kind, now_us, plane.random_bits(ids.RANDOM_BITS))

    forwarded = DIALECTS[request.endpoint].forwarded_headers
    return Batch(
        id=new_id(kind),
        owner=asked.owner,
        key_id=asked.caller.principal.id,
        address=request.head.address,
        endpoint=request.endpoint,
        created_at=now_us // 1_000_000,
        output_file_id=new_id(ids.FILE),
        error_file_id=new_id(ids.FILE),
        output_seconds=plane.file_lifetime_seconds,
        snapshot_version=plane.version,
        headers={name.decode(): request.headers[name].decode("latin-1") for name in forwarded if name in request.headers},
    )


def read_json(asked: StoredRequest) -> dict[str, Any]:
    """Return the body of a request. Raises Fault."""
    if not is_json(asked.request.headers.get(b"content-type", b"")):
        raise Fault(faults.MEDIA_TYPE_UNSUPPORTED)
    return bodies.parse(b"".join(asked.pieces))


def read_query(query: bytes, names: Iterable[str], limit_max: int) -> dict[str, str]:
    """Return the parameters of a query, `limit` among them. Raises Fault invalid_value or unknown_parameter."""
    try:
        found = dict(parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8))
    except (ValueError, UnicodeDecodeError):
        raise Fault(faults.PARAMETER_INVALID, message="The query cannot be read.") from None
    if found.keys() - set(names):
        raise Fault(faults.PARAMETER_UNKNOWN, message="Unrecognized query parameter.")
    limit = found.get("limit", "1")
    if not (_LIMIT.fullmatch(limit) or limit == "1000") or int(limit) > limit_max:
        raise invalid("limit", f"It is 1 to {limit_max}.")
    return found


def _check_metadata(value: object) -> dict[str, str] | None:
    """Return the metadata of a batch. Raises Fault invalid_value."""
    if value is None:
        return None
    if isinstance(value, dict) and len(value) <= METADATA_MAX:
        pairs = value.items()
        if all(len(key) <= METADATA_KEY_MAX and type(each) is str and len(each) <= METADATA_VALUE_MAX for key, each in pairs):
            return value
    advice = f"It has at most {METADATA_MAX} texts of at most {METADATA_VALUE_MAX} characters, named in at most {METADATA_KEY_MAX}."
    raise invalid("metadata", advice)


def _read_lifetime(value: object, otherwise: int) -> int:
    """Return for how many seconds the output is kept. Raises Fault invalid_value."""
    if value is None:
        return otherwise
    if isinstance(value, dict) and value.keys() == {"anchor", "seconds"} and value["anchor"] == "created_at":
        seconds = value["seconds"]
        if type(seconds) is int and EXPIRY_SECONDS_MIN <= seconds <= EXPIRY_SECONDS_MAX:
            return seconds
    raise invalid("output_expires_after", f"It has the anchor created_at, and {EXPIRY_SECONDS_MIN} to {EXPIRY_SECONDS_MAX} seconds.")


def invalid(name: str, advice: str) -> Fault:
    """Return the fault of a parameter with a value that it cannot have."""
    return Fault(faults.PARAMETER_INVALID, param=name, message=f"Invalid value for '{name}'. {advice}")
