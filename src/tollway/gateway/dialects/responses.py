"""OpenAI's responses: POST /v1/responses, relayed to engines that speak it themselves (vLLM, SGLang, Dynamo, TensorRT-LLM, llama.cpp).

Engines store nothing: they are asked with `store: false`. Where an organization stores responses, the gateway does
(`gateway.conversations`), and takes the fields about it out of the body; elsewhere they are refused here. Clients run tools themselves.

A stream is a sequence of typed events. Usage stands in the last one only (`response.completed` or `response.incomplete`), which is the
terminator and is held back until FINAL is durable; until then, events that carry output are counted.
"""

from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly, UsageSource
from tollway.gateway.dialects import fields, openai_requests, responses_as_chat
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.conversation import identify_response
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.engine_errors import check_no_error, read_fault
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent, rename_model
from tollway.gateway.dialects.engine_usage import UsageNames, check_report, read_totals
from tollway.gateway.dialects.fields import MESSAGES_MAX, Check
from tollway.gateway.dialects.openai_requests import SERVICE_TIERS
from tollway.gateway.dialects.prompt_salt import salt_instructions
from tollway.gateway.dialects.typed_stream import TypedEvent, TypedStream
from tollway.wire import bodies
from tollway.wire.errors import openai_error


def _is_input(value: Any) -> bool:
    return type(value) is str or (type(value) is list and 0 < len(value) <= MESSAGES_MAX)


_NOT_STORED = "Your organization stores no responses, or this request has more than 1 MiB: send the whole conversation as 'input'."
_NO_BACKGROUND = "Your organization stores no responses, or this request has more than 1 MiB: leave 'background' out, or send false."
_NO_CONVERSATIONS = "Stored conversations are not offered here: send 'previous_response_id', or the whole conversation as 'input'."
_NOT_OFFERED = "This is not offered here."

FIELDS: dict[str, Check] = {
    "model": fields.text,
    "input": Check(_is_input, str),  # what items hold is checked by `media.admission`
    "access_programs": fields.refused(_NOT_OFFERED),
    "background": fields.refused(_NO_BACKGROUND),
    "background_options": fields.refused(_NOT_OFFERED),
    "client_metadata": fields.nullable(fields.mapping),  # Codex says there which installation and session it is
    "context_management": fields.refused(_NOT_OFFERED),
    "conversation": fields.refused(_NO_CONVERSATIONS),
    "image": fields.refused(_NOT_OFFERED),
    "include": fields.nullable(fields.list_of(32, fields.text_up_to(64))),
    "instructions": fields.nullable(fields.text),
    "max_output_tokens": fields.output_tokens,
    "max_tool_calls": fields.nullable(fields.integer(1, TOKENS_MAX)),
    "metadata": fields.nullable(fields.mapping),
    "moderation": fields.nullable(fields.moderation),
    "parallel_tool_calls": fields.nullable(fields.boolean),
    "previous_response_id": fields.refused(_NOT_STORED),
    "prompt": fields.refused("Templates of prompts are not stored here."),
    "prompt_cache_key": fields.nullable(fields.text),
    "prompt_cache_options": fields.nullable(fields.mapping),
    "prompt_cache_retention": fields.nullable(fields.text),
    "reasoning": fields.nullable(fields.mapping),
    "safety_identifier": fields.nullable(fields.text),
    "service_tier": fields.nullable(fields.one_of(*SERVICE_TIERS)),
    "store": fields.refused(
        "Your organization stores no responses, or this request has more than 1 MiB: leave 'store' out, or send false."
    ),
    "stream": fields.nullable(fields.boolean),
    "stream_options": fields.nullable(fields.mapping),
    "temperature": fields.nullable(fields.number(0, 2)),
    "text": fields.nullable(fields.mapping),
    "tool_choice": fields.anything,
    "tools": fields.nullable(fields.client_tools),
    "top_logprobs": fields.nullable(fields.integer(0, 20)),
    "top_p": fields.nullable(fields.number(0, 1)),
    "truncation": fields.nullable(fields.one_of("auto", "disabled")),
    "user": fields.nullable(fields.text),
}

NOT_FORWARDED = openai_requests.NOT_FORWARDED - {"store"} | {"client_metadata", "stream_options"}
"""`stream_options` can only ask to pad events against readers of encrypted traffic, which no engine does."""

ERROR_EVENT = b"event: error\n"

_NAMES = UsageNames("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details")
_FAILED_EVENTS = frozenset({b"response.failed", b"response.cancelled"})
_FAILED_STATUSES = frozenset({b'"failed"', b'"cancelled"'})


class _Answer(msgspec.Struct):
    object: msgspec.Raw = ABSENT
    status: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_EMPTY = msgspec.Raw(b'""')

_answer = msgspec.json.Decoder(_Answer)


def render_error_data(fault: Fault, request_id: str | None = None) -> bytes:
    """Return the data of an `error` event. Clients differ in where they look for its text: in the event itself, as the API's reference
    has it, or in an object `error`, so it stands in both."""
    body = bodies.members(openai_error(fault, request_id))
    error = bodies.members(bytes(body["error"]))
    event: dict[str, bytes | msgspec.Raw] = {"type": b'"error"', "sequence_number": b"0"}
    event |= {name: error[name] for name in ("code", "message", "param")}
    return bodies.join({**event, **body})


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it is not a response, or one that failed."""
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    if bytes(answer.status) in _FAILED_STATUSES:
        raise Fault(faults.UPSTREAM_FAILED, detail="the engine gave the request up")
    if is_absent(answer.output):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without output")
    used, anomaly = _read_usage(answer.usage, context)
    return Answer(identify_response(rename_model(body, context), context.conversation), used, anomaly)


def _read_usage(raw: msgspec.Raw, context: AnswerContext) -> tuple[Quantities | None, Anomaly | None]:
    """Return what of a usage object is billed, None if nothing can be, and what was wrong with it."""
    if is_absent(raw):
        return None, None
    report = read_totals(raw, _NAMES)
    used, anomaly = check_report(report, context)
    if anomaly is None and not report.has_output:
        anomaly = Anomaly.INVALID
    return used, anomaly


class ResponseStream(TypedStream):
    """Reads one stream's events. Deltas are counted until the last event reports usage."""

    __slots__ = ()

    last_events = frozenset({b"response.completed", b"response.incomplete"})

    def read_event(self, name: bytes, data: bytes, event: TypedEvent) -> bytes:
        """Read an event that is no error. Return the data to relay. Raises Fault if the engine gave the request up."""
        response = bytes(event.response)
        if name.endswith(b".delta"):
            if not is_absent(event.delta) and event.delta != _EMPTY:
                self._count()
        elif response.startswith(b"{"):
            if name in _FAILED_EVENTS:
                raise read_fault(response, 500, self._context.engine, first=False)
            if name in self.last_events:
                self._finish(response)
            renamed = identify_response(rename_model(response, self._context), self._context.conversation)
            if renamed is not response:
                members: dict[str, Any] = dict(bodies.members(data))
                members["response"] = renamed
                return bodies.join(members)
        elif name in self.last_events or name in _FAILED_EVENTS:
            raise Fault(faults.UPSTREAM_INVALID, detail="the last event is without a response")
        return data

    def _count(self) -> None:
        self.output += 1
        self.used = Quantities(output=self.output)
        self.source = UsageSource.COUNTED

    def _finish(self, response: bytes) -> None:
        """Take the usage of the finished response. A report that can be believed decides over what was counted."""
        usage = decode(_answer, response, "response").usage
        if is_absent(usage):
            return
        report = read_totals(usage, _NAMES)
        used, self.anomaly = check_report(report, self._context)
        if used is None:
            return
        if not report.has_output:
            used = used.with_plain_output(self.output)
            self.anomaly = self.anomaly or Anomaly.INVALID
        self.used = used
        self.output = used.output_tokens
        self.source = UsageSource.ENGINE_FINAL


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.RESPONSES,
    fields=FIELDS,
    required=("model", "input"),
    read_answer=read_answer,
    new_stream=ResponseStream,
    render_error=openai_error,
    output_caps=("max_output_tokens",),
    items_field="input",
    constants={"store": b"false"},
    service_tiers=SERVICE_TIERS,
    not_forwarded=NOT_FORWARDED,
    error_event=ERROR_EVENT,
    render_error_data=render_error_data,
    salt_prompt=salt_instructions,
    translation=responses_as_chat.TRANSLATION,
)
