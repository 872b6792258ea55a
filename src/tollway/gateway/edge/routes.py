"""Paths of the gateway, and the rules for request targets."""

from urllib.parse import unquote_to_bytes

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import FaultKind
from tollway.gateway.dialects.table import DIALECTS
from tollway.wire.http import HttpRequest

ENDPOINTS: dict[bytes, Endpoint] = {dialect.target: endpoint for endpoint, dialect in DIALECTS.items()}
MODELS_TARGET = b"/v1/models"
LIMITS_TARGET = b"/v1/limits"
HEALTH_TARGETS = frozenset({b"/livez", b"/health", b"/v1/health", b"/readyz"})


def find_path(http: HttpRequest) -> bytes:
    """The path of a target in origin form (or absolute form naming this Host), without its query."""
    target = http.target
    if not target.startswith(b"/"):
        for scheme in (b"http://", b"https://"):
            if target[: len(scheme)].lower() == scheme:
                host, slash, rest = target[len(scheme) :].partition(b"/")
                if host.lower() == http.headers.get(b"host", b"").lower():
                    target = slash + rest or b"/"
    return target.partition(b"?")[0]


def find_target_fault(path: bytes) -> FaultKind | None:
    """Return whether a path is one that two parsers may read differently: dot segments, encoded slashes, backslashes, NUL, bad UTF-8."""
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return faults.TARGET_INVALID
    if not path.startswith(b"/") or b"%2f" in path.lower() or "\\" in decoded or "\0" in decoded:
        return faults.TARGET_INVALID
    return faults.TARGET_INVALID if {".", ".."} & set(decoded.split("/")) else None
