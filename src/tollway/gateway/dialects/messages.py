"""Anthropic's messages: POST /v1/messages (API version 2023-06-01 and later), relayed to engines that speak it themselves.

Its contract asks gateways to forward body fields that they do not know, so new features work without a change here. A stream is a
sequence of typed events; usage stands in two of them: the input in `message_start`, the output in `message_delta`. Its terminator is
`message_stop`, which is held back until FINAL is durable.
"""

from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING, OtherClasses, Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly, ServiceTier, UsageSource
from tollway.gateway.dialects import fields, messages_as_chat
from tollway.gateway.dialects.answers import UNBELIEVABLE, Answer, AnswerContext, UsageReport
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.engine_errors import read_fault
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent, rename_model
from tollway.gateway.dialects.engine_usage import cap_input, cap_output, check_report, read_counts
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.prompt_salt import salt_system
from tollway.gateway.dialects.typed_stream import TypedEvent, TypedStream
from tollway.wire import bodies

SERVICE_TIERS = {"auto": ServiceTier.STANDARD, "standard_only": ServiceTier.STANDARD}
"""Anthropic's words: both mean the standard tier, because a client cannot ask for another one."""

PROMPT_FIELDS: dict[str, Check] = {
    "model": fields.text,
    "messages": fields.messages,
    "cache_control": fields.nullable(fields.mapping),
    "context_management": fields.nullable(fields.mapping),
    "output_config": fields.nullable(fields.mapping),
    "speed": fields.nullable(fields.one_of("standard")),
    "system": fields.prompt_parts,
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


class _Answer(msgspec.Struct):
    type: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    stop_reason: msgspec.Raw = ABSENT
    input_tokens: msgspec.Raw = ABSENT


_ERROR = msgspec.Raw(b'"error"')
_ABORTED = (msgspec.Raw(b'"abort"'), msgspec.Raw(b"null"))
"""Reasons of an end that is none: where vLLM aborts, the end of its stream gives the reason null. Every other end has one."""

_answer = msgspec.json.Decoder(_Answer)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def render_error(fault: Fault, request_id: str | None = None) -> bytes:
    """Return Anthropic's error object for a fault."""
    status = fault.kind.status
    type = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    body: dict[str, object] = {"type": "error", "error": {"type": type, "message": fault.message}}
    if request_id:
        body["request_id"] = request_id
    return msgspec.json.encode(body)


def read_usage(raw: bytes | msgspec.Raw) -> UsageReport:
    """Return what of a usage object can be believed, class by class.

    Anthropic's classes are disjoint already: `input_tokens` has neither what was read from the cache nor what was written to it.
    """
    counts = read_counts(raw)
    if counts is None:
        return UNBELIEVABLE
    input, output = counts.read("input_tokens"), counts.read("output_tokens")
    written, cached = counts.read("cache_creation_input_tokens"), counts.read("cache_read_input_tokens")
    is_odd = counts.is_odd
    if (input or 0) + (written or 0) > TOKENS_MAX:
        written, is_odd = 0, True
    return UsageReport(
        Quantities(
            input=input or 0,
            cached_input=cached or 0,
            output=output or 0,
            other=OtherClasses(cache_write=written) if written else None,
        ),
        Anomaly.INVALID if is_odd else None,
        has_input=input is not None or written is not None or cached is not None,
        has_output=output is not None,
    )


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it is not a message."""
    answer = decode_answer(body, context)
    if is_absent(answer.content):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without content")
    if answer.stop_reason in _ABORTED:
        raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
    used, anomaly = None, None
    if not is_absent(answer.usage):
        report = read_usage(answer.usage)
        used, anomaly = check_report(report, context)
        if anomaly is None and not (report.has_input and report.has_output):
            anomaly = Anomaly.INVALID
    return Answer(rename_model(body, context), used, anomaly)


def decode_answer(body: bytes, context: AnswerContext) -> _Answer:
    """Return a body of status 200 as Anthropic's APIs write it. Raises Fault if it is not a JSON object or is an error."""
    answer = decode(_answer, body, "answer")
    if answer.type == _ERROR or not is_absent(answer.error):
        raise read_fault(body, 500, context.engine, first=True)
    return answer


class MessageStream(TypedStream):
    """Reads one stream's events. Deltas are counted until usage is reported."""

    __slots__ = ("_counted",)

    last_events = frozenset({b"message_stop"})

    def __init__(self, context: AnswerContext) -> None:
        super().__init__(context)
        self._counted = 0

    def read_event(self, name: bytes, data: bytes, event: TypedEvent) -> bytes:
        """Read an event that is no error. Return the data to relay. Raises Fault if the engine aborted the request."""
        if name == b"content_block_delta":
            self._count()
        elif name == b"message_start":
            return self._start(data, event)
        elif name == b"message_delta":
            if _members(event.delta).get("stop_reason", ABSENT) in _ABORTED:
                raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
            if not is_absent(event.usage):
                self._take_usage(event.usage)
        return data

    def _start(self, data: bytes, event: TypedEvent) -> bytes:
        usage = _members(event.message).get("usage", ABSENT)
        if not is_absent(usage):
            report = read_usage(usage)
            self.anomaly = report.anomaly
            if report.has_input:
                started = NOTHING.with_input_of(report.used)
                self.used = cap_input(started, self._context.input_tokens_max)
                if self.used is not started:
                    self.anomaly = Anomaly.INFLATED
                self.source = UsageSource.COUNTED
        if self._context.upstream_model == self._context.public_model or not bytes(event.message).startswith(b"{"):
            return data
        members: dict[str, Any] = dict(bodies.members(data))
        members["message"] = rename_model(bytes(event.message), self._context)
        return bodies.join(members)

    def _count(self) -> None:
        self._counted += 1
        before = self.used or NOTHING
        if self.source is not UsageSource.ENGINE_FINAL:
            self.used = before.with_plain_output(self._counted)
            self.source = UsageSource.COUNTED
            self.output = self._counted

    def _take_usage(self, raw: msgspec.Raw) -> None:
        """Merge a later report over what is known. Each class that it leaves out, or that cannot be true, stays as it was."""
        report, before = read_usage(raw), self.used or NOTHING
        if report.anomaly is not None:
            self.anomaly = report.anomaly
        if not (report.has_input or report.has_output):
            return
        used, bound = report.used, self._context.input_tokens_max
        known, reported = before.input_tokens, report.used.input_tokens
        if known and (not 0 < reported <= bound or reported == used.input == known):
            # Left out, absurd, or the same prompt again without the part that came from the cache.
            if reported > bound:
                self.anomaly = Anomaly.INFLATED
            used = used.with_input_of(before)
        if not report.has_output:
            used = before.with_input_of(used)
        held = cap_output(cap_input(used, self._context.input_tokens_max), self._context.output_tokens_max)
        if held is not used:
            self.anomaly = Anomaly.INFLATED
        if self.source is UsageSource.ENGINE_FINAL and held.output < before.output:
            self.anomaly = Anomaly.SHRINKING
            held = held.with_plain_output(max(held.output, min(self._counted, before.output)))
        self.used = held
        self.output = held.output
        if report.has_output:
            self.source = UsageSource.ENGINE_FINAL


def _members(raw: msgspec.Raw) -> dict[str, msgspec.Raw]:
    """Return the members of an object; none for anything else."""
    try:
        return _object.decode(raw) if raw else {}
    except (msgspec.DecodeError, RecursionError):
        return {}


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
    end_user_paths=(("metadata", "user_id"),),
    request_id_headers=REQUEST_ID_HEADERS,
    limit_prefix=b"anthropic-ratelimit-",
    error_event=ERROR_EVENT,
    salt_prompt=salt_system,
    translation=messages_as_chat.TRANSLATION,
)
