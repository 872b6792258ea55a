"""Error bodies in the shape of the API that was called: OpenAI's and Anthropic's."""

import msgspec

from tollway.domain.faults import Fault

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai_error(fault: Fault, request_id: str | None = None) -> bytes:
    """OpenAI's error object: all four keys always there, `param` nullable; the request id stands in the message for bug reports."""
    kind = fault.kind
    message = f"{fault.message} (request id: {request_id})" if request_id else fault.message
    return msgspec.json.encode({"error": {"message": message, "type": kind.type, "param": fault.param, "code": kind.code}})


def anthropic_error(fault: Fault, request_id: str | None = None) -> bytes:
    """Anthropic's error object; its types follow from the status."""
    status = fault.kind.status
    type = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    body: dict[str, object] = {"type": "error", "error": {"type": type, "message": fault.message}}
    if request_id:
        body["request_id"] = request_id
    return msgspec.json.encode(body)
