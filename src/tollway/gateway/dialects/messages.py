"""Anthropic's messages: POST /v1/messages (API version 2023-06-01 and later), relayed to engines that speak it themselves.

Its contract asks gateways to forward body fields that they do not know, so new features work without a change here. A stream is a
sequence of typed events; usage stands in two of them: the input in `message_start`, the output in `message_delta`. Its terminator is
`message_stop`, which is held back until FINAL is durable.
"""

from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly, ServiceTier, UsageSource
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import ABSENT, Answer, decode, is_absent, rename_model
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.engine_errors import read_fault
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.usage import check_report
from tollway.native import EventTemplate
from tollway.wire import bodies, sse

SERVICE_TIERS = {"auto": ServiceTier.STANDARD, "standard_only": ServiceTier.STANDARD}
"""Anthropic's words: both mean the standard tier, because a client cannot ask for another one."""

PROMPT_FIELDS: dict[str, Check] = {
    "model": fields.text,
    "messages": fields.messages,
    "cache_control": fields.nullable(fields.mapping),
    "context_management": fields.nullable(fields.mapping),
    "output_config": fields.nullable(fields.mapping),
    "speed": fields.nullable(fields.one_of("standard")),
    "system": fields.anything,
    "thinking": fields.nullable(fields.mapping),
    "tool_choice": fields.nullable(fields.mapping),
    "tools": fields.nullable(fields.any_list),
}
"""Fields of what a model is to read, shared with `count_tokens`."""

FIELDS: dict[str, Check] = PROMPT_FIELDS | {
    "container": fields.anything,
    "diagnostics": fields.nullable(fields.mapping),
    "inference_geo": fields.nullable(fields.text),
    "max_tokens": fields.integer(0, TOKENS_MAX),
    "metadata": fields.nullable(fields.mapping),
    "service_tier": fields.nullable(fields.one_of(*SERVICE_TIERS)),
    "stop_sequences": fields.nullable(fields.stops),
    "stream": fields.nullable(fields.boolean),
    "temperature": fields.nullable(fields.number(0, 2)),
    "top_k": fields.nullable(fields.integer(-1, TOKENS_MAX)),
    "top_p": fields.nullable(fields.number(0, 1)),
}

NOT_FORWARDED = frozenset({"container", "diagnostics", "inference_geo", "metadata", "service_tier", "speed"})
"""Fields that are withheld from the engine: `metadata.user_id` identifies people, the others concern Anthropic's platform. A wish that it
alone can grant and that changes the price (`speed: "fast"`) is refused instead."""

FORWARDED_HEADERS = (b"anthropic-version", b"anthropic-beta")
REQUEST_ID_HEADERS = b"x-request-id: %b\r\nrequest-id: %b\r\n"
"""Anthropic's SDKs read `request-id`."""
ERROR_EVENT = b"event: error\n"

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's error types by status."""


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Answer(msgspec.Struct):
    type: str | None = None
    content: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    stop_reason: str | None = None
    input_tokens: int | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    message: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    delta: _Delta | None = None
    error: msgspec.Raw = ABSENT


class _Message(msgspec.Struct):
    usage: msgspec.Raw = ABSENT


_usage = msgspec.json.Decoder(_Usage)
_answer = msgspec.json.Decoder(_Answer)
_event = msgspec.json.Decoder(_Event)
_message = msgspec.json.Decoder(_Message)


def render_error(fault: Fault, request_id: str | None = None) -> bytes:
    """Return Anthropic's error object for a fault."""
    status = fault.kind.status
    type = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    body: dict[str, object] = {"type": "error", "error": {"type": type, "message": fault.message}}
    if request_id:
        body["request_id"] = request_id
    return msgspec.json.encode(body)


def read_usage(raw: bytes | msgspec.Raw) -> Quantities | None:
    """Return the disjoint quantities of a usage object, or None if it makes no sense. Anthropic's classes are disjoint already:
    `input_tokens` has neither what was read from the cache nor what was written to it; what was written was computed, so it counts as
    input."""
    try:
        usage = _usage.decode(raw)
    except msgspec.DecodeError:
        return None
    counts = (usage.input_tokens or 0, usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0, usage.output_tokens or 0)
    if min(counts) < 0 or max(counts) > TOKENS_MAX or counts[0] + counts[1] > TOKENS_MAX:
        return None
    return Quantities(counts[0] + counts[1], counts[2], counts[3])


def read_answer(body: bytes, upstream_model: str, public_model: str, output_tokens_max: int | None) -> Answer:
    """Read a body of status 200. Raises Fault if it is not a message."""
    answer = decode_answer(body)
    if is_absent(answer.content):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without content")
    if answer.stop_reason == "abort":
        raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
    used, anomaly = None, None
    if not is_absent(answer.usage):
        used, anomaly = check_report(read_usage(answer.usage), output_tokens_max)
    return Answer(rename_model(body, upstream_model, public_model), used, anomaly)


def decode_answer(body: bytes) -> _Answer:
    """Return a body of status 200 as Anthropic's APIs write it. Raises Fault if it has another shape or is an error."""
    answer = decode(_answer, body, "answer")
    if answer.type == "error" or not is_absent(answer.error):
        raise read_fault(body, 500, first=True)
    return answer


class MessageStream:
    """Reads one stream's events; see `openai_stream.OpenAIStream` for the attributes. `terminator` is the held `message_stop`."""

    __slots__ = (
        "_counted",
        "_events",
        "_output_tokens_max",
        "_public_model",
        "_upstream_model",
        "anomaly",
        "output",
        "source",
        "template",
        "terminated",
        "terminator",
        "used",
    )

    def __init__(
        self,
        *,
        hide_usage: bool,
        hide_continuous: bool,
        counting: bool,
        upstream_model: str,
        public_model: str,
        output_tokens_max: int | None,
    ) -> None:
        """The first three are the OpenAI dialect's: here usage is always shown, and deltas are always counted until it is."""
        self._upstream_model = upstream_model
        self._public_model = public_model
        self._output_tokens_max = output_tokens_max
        self._events = 0
        self._counted = 0
        self.output = 0
        self.used: Quantities | None = None
        self.source = UsageSource.NONE
        self.anomaly: Anomaly | None = None
        self.terminated = False
        self.terminator = b""
        self.template: EventTemplate | None = None

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """No event of this dialect is worth a way of its own."""
        return None

    def read(self, event: bytes) -> bytes | None:
        """Read one event; returns what to relay, or None for nothing. Raises Fault."""
        data = sse.find_data(event)
        if data is None or self.terminated:
            return None
        if b"\n" in data:
            data = data.replace(b"\n", b" ")
        read = decode(_event, data, "event")
        if read.type == "error" or not is_absent(read.error):
            raise read_fault(data, 200, first=not self._events)
        if not read.type.isidentifier() or not read.type.isascii():
            raise Fault(faults.UPSTREAM_INVALID, detail="event of no type")
        self._events += 1
        if read.type == "content_block_delta":
            self._count()
        elif read.type == "message_start":
            data = self._start(data, read)
        elif read.type == "message_delta":
            if read.delta is not None and read.delta.stop_reason == "abort":
                raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
            if not is_absent(read.usage):
                self._take_usage(read.usage)
        relayed = b"event: %b\ndata: %b\n\n" % (read.type.encode(), data)
        if read.type == "message_stop":
            self.terminated = True
            self.terminator = relayed
            return None
        return relayed

    def _start(self, data: bytes, read: _Event) -> bytes:
        if is_absent(read.message):
            return data
        usage = decode(_message, bytes(read.message), "message").usage
        reported = None if is_absent(usage) else read_usage(usage)
        if reported is not None:
            self.used = Quantities(reported.input, reported.cached_input)
            self.source = UsageSource.COUNTED
        if self._upstream_model == self._public_model:
            return data
        members: dict[str, Any] = dict(bodies.members(data))
        members["message"] = rename_model(bytes(read.message), self._upstream_model, self._public_model)
        return bodies.join(members)

    def _count(self) -> None:
        self._counted += 1
        before = self.used or Quantities()
        if self.source is not UsageSource.ENGINE_FINAL:
            self.used = Quantities(before.input, before.cached_input, self._counted)
            self.source = UsageSource.COUNTED
            self.output = self._counted

    def _take_usage(self, raw: msgspec.Raw) -> None:
        reported = read_usage(raw)
        if reported is not None and self.used is not None:  # the closing report may repeat the input or leave it out
            started = self.used
            reported = Quantities(reported.input or started.input, reported.cached_input or started.cached_input, reported.output)
        used, self.anomaly = check_report(reported, self._output_tokens_max)
        if used is None:
            return
        self.used = used
        self.output = used.output
        self.source = UsageSource.ENGINE_FINAL


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.MESSAGES,
    fields=FIELDS,
    required=("model", "messages", "max_tokens"),
    read_answer=read_answer,
    new_stream=MessageStream,
    render_error=render_error,
    output_caps=("max_tokens",),
    service_tiers=SERVICE_TIERS,
    not_forwarded=NOT_FORWARDED,
    allows_unknown_fields=True,
    forwarded_headers=FORWARDED_HEADERS,
    request_id_headers=REQUEST_ID_HEADERS,
    error_event=ERROR_EVENT,
)
