"""Faults as gRPC statuses, and statuses of engines as faults: one table each way.

Source: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>, and google.rpc.Code for the statuses of HTTP.
"""

import re

import grpc
import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.engines.profile import EngineProfile
from tollway.gateway.dialects.engine_errors import read_fault
from tollway.wire.retry_after import retry_after

_BY_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}
"""Statuses of an engine's own errors; all others are 500."""
_NOT_CONNECTED = ("failed to connect", "DNS resolution failed")
_BROKEN = re.compile(
    r"socket closed|reset by peer|goaway|stream removed|broken pipe|watchdog|transport|rst_stream|recvmsg|sendmsg|endpoint", re.IGNORECASE
)
"""Words of the library for connections that broke while a call was under way. It says UNAVAILABLE then, as an engine that refuses does, and
nothing but the words distinguishes them."""


def find_code(fault: Fault) -> grpc.StatusCode:
    """Return the status that stands for a fault."""
    return _BY_STATUS.get(fault.kind.status, grpc.StatusCode.INVALID_ARGUMENT if fault.kind.status < 500 else grpc.StatusCode.INTERNAL)


def list_trailers(fault: Fault, request_id: str) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata of a fault: its code, the id of the request, and when to try again."""
    hint = retry_after(fault)
    pushback = () if hint is None else (("grpc-retry-pushback-ms", str(hint.milliseconds)),)
    return ("x-error-code", fault.kind.code), ("x-request-id", request_id), *pushback


def read_error(error: grpc.aio.AioRpcError, engine: EngineProfile, *, first: bool) -> Fault:
    """Return the fault that the failure of a call to an engine stands for. `first`: it came before any part of an answer."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOT_CONNECTED):
        return Fault(faults.UPSTREAM_CONNECT, detail="gRPC")
    if code is grpc.StatusCode.CANCELLED or (code is grpc.StatusCode.UNAVAILABLE and _BROKEN.search(details)):
        return Fault(faults.UPSTREAM_CUT, detail=f"gRPC {code.name.lower()}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Fault(faults.UPSTREAM_TIMEOUT_TOTAL)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return Fault(faults.ANSWER_TOO_LARGE, detail="the answer exceeds answer_bytes_max")
    return read_fault(msgspec.json.encode({"error": details}), _STATUSES.get(code, 500), engine, first=first)
