"""The body of an error: in OpenAI's shape, for the gateway and the control plane alike, and in that of SCIM."""

from collections.abc import Mapping

import msgspec

from tollway.domain.faults import Fault


def openai_error(fault: Fault, request_id: str | None = None) -> bytes:
    """Return OpenAI's error object for a fault. All four keys are always there, as clients expect; the request id is part of the message,
    for bug reports."""
    kind = fault.kind
    message = f"{fault.message} (request id: {request_id})" if request_id else fault.message
    return msgspec.json.encode({"error": {"message": message, "type": kind.type, "param": fault.param, "code": kind.code}})


_SCIM_TYPES: Mapping[str, str] = {
    "invalid_filter": "invalidFilter",
    "invalid_path": "invalidPath",
    "no_target": "noTarget",
    "immutable_attribute": "mutability",
    "uniqueness": "uniqueness",
    "invalid_value": "invalidValue",
    "missing_required_parameter": "invalidValue",
    "invalid_json": "invalidSyntax",
    "duplicate_key": "invalidSyntax",
    "too_many": "tooMany",
    "invalid_patch": "invalidSyntax",
}
"""Codes of ours by their name in RFC 7644, section 3.12, which has one for no other."""


def scim_error(fault: Fault) -> bytes:
    """Return the error message of SCIM for a fault (RFC 7644, section 3.12)."""
    detail = fault.message if fault.param is None or fault.param in fault.message else f"{fault.param}: {fault.message}"
    body = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"], "status": str(fault.kind.status), "detail": detail}
    kind = _SCIM_TYPES.get(fault.kind.code)
    return msgspec.json.encode(body if kind is None else {**body, "scimType": kind})
