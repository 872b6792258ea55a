"""The fields of a log line about a request.

Their module is never compiled: msgspec omits defaults only of classes that the interpreter made.
"""

from collections.abc import Callable
from typing import cast

import msgspec

from tollway.domain.billing_classes import ROWS, TEXT_CLASSES, OtherClasses


class RequestLine(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The fields that few requests have, those of a fault and those that are off by default: left out when empty. `waited_ms`: time in the
    queue of a model whose deployments were full. `replayed`: the answer was stored with its idempotency key, and given again.
    `guardrail_ms`: time that verdicts of the guardrail took. The quantities of billing classes that few requests use are in
    `other_usage`."""

    error_code: str = ""
    detail: str = ""
    client_request_id: str = ""
    peer: str = ""
    waited_ms: float = 0.0
    replayed: bool = False
    guardrail_ms: float = 0.0
    other_usage: OtherClasses | None = None


_FIELDS: list[tuple[str, type]] = [
    ("ts", str),
    ("level", str),
    ("event", str),
    ("request_id", str),
    ("trace_id", str),
    ("status", int),
    ("duration_ms", float),
    ("endpoint", str),
    ("organization_id", str),
    ("project_id", str),
    ("key_id", str),
    ("model", str),
    ("upstream", str),
    ("attempts", int),
    ("outcome", str),
    ("ttft_ms", float),
    *((ROWS[billing_class].line_item, int) for billing_class in TEXT_CLASSES),
    ("cost_pico", int),
    ("stream", bool),
    ("usage_source", str),
]

new_request_line = cast(
    "Callable[..., RequestLine]",
    msgspec.defstruct("CompleteRequestLine", _FIELDS, bases=(RequestLine,), omit_defaults=True, gc=False),
)
"""Make the log line of one request from its fields, by position; `event` is always "request". Times in milliseconds, cost in pico-currency.

A field that a request has nothing for is empty or 0, so that every line has the same fields."""
