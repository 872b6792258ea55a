"""The body of an error in OpenAI's shape, for the gateway and the control plane alike."""

import msgspec

from tollway.domain.faults import Fault


def openai_error(fault: Fault, request_id: str | None = None) -> bytes:
    """Return OpenAI's error object for a fault. All four keys are always there, as clients expect; the request id is part of the message,
    for bug reports."""
    kind = fault.kind
    message = f"{fault.message} (request id: {request_id})" if request_id else fault.message
    return msgspec.json.encode({"error": {"message": message, "type": kind.type, "param": fault.param, "code": kind.code}})
