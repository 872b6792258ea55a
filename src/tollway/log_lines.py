"""The fields of a log line about a request.

Their module is never compiled: msgspec omits defaults only of classes that the interpreter made.
"""

import msgspec


class RequestLine(msgspec.Struct, omit_defaults=True, gc=False):
    """The log line of one request; `event` is always "request". Times in milliseconds, cost in pico-currency.

    A field that a request has nothing for is empty or 0, so that every line has the same fields; only those of a fault and those that are
    off by default are left out when empty. `gateway.observe` fills them by position.
    """

    ts: str
    level: str
    event: str
    request_id: str
    trace_id: str
    status: int
    duration_ms: float
    endpoint: str
    organization_id: str
    project_id: str
    key_id: str
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
    error_code: str = ""
    detail: str = ""
    client_request_id: str = ""
    peer: str = ""
