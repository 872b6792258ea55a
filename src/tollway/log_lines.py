"""The fields of a log line about a request.

Their module is never compiled: msgspec omits defaults only of classes that the interpreter made.
"""

import msgspec


class RequestLine(msgspec.Struct, omit_defaults=True, gc=False):
    """The log line of one request; `event` is always "request". Times in milliseconds, cost in pico-currency."""

    ts: str
    level: str
    event: str
    request_id: str
    trace_id: str
    status: int
    duration_ms: float
    endpoint: str = ""
    error_code: str = ""
    detail: str = ""
    client_request_id: str = ""
    organization_id: str = ""
    project_id: str = ""
    key_id: str = ""
    model: str = ""
    upstream: str = ""
    attempts: int = 0
    outcome: str = ""
    ttft_ms: float = 0.0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_pico: int = 0
    stream: bool = False
    usage_source: str = ""
    peer: str = ""


class CompletedLine(msgspec.Struct, gc=False):
    """The log line of a request that was answered with 200, as nearly all are. Every field is always present, so encoding is cheap."""

    ts: str
    level: str
    event: str
    request_id: str
    trace_id: str
    status: int
    duration_ms: float
    organization_id: str
    project_id: str
    key_id: str
    endpoint: str
    model: str
    upstream: str
    attempts: int
    outcome: str
    ttft_ms: float
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_pico: int
    stream: bool
    usage_source: str
