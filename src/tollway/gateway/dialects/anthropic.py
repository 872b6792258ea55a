"""Anthropic's messages: request table, answers, streams (API version 2023-06-01 and later).

Relayed to engines that speak it themselves. Its contract asks gateways to let unknown body fields pass, so new features work without us.
A stream is a sequence of typed events; usage stands in two of them: the input in `message_start`, the output in `message_delta`. Its
terminator is `message_stop`, which is held back until FINAL is durable.
"""

from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly, Quantities, ServiceTier, UsageSource
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import (
    ABSENT,
    Answer,
    decode,
    error_fault,
    is_absent,
    judge_report,
    public_name,
)
from tollway.gateway.dialects.fields import Check
from tollway.wire import bodies, sse

SERVICE_TIERS = {"auto": ServiceTier.STANDARD, "standard_only": ServiceTier.STANDARD}
"""Anthropic's words: both are the standard tier, because a client cannot ask for another one."""

COUNT_FIELDS: dict[str, Check] = {
    "model": fields.text,
    "messages": fields.listing,
    "system": fields.anything,
    "thinking": fields.nullable(fields.mapping),
    "tool_choice": fields.nullable(fields.mapping),
    "tools": fields.nullable(fields.any_list),
}

MESSAGE_FIELDS: dict[str, Check] = COUNT_FIELDS | {
    "max_tokens": fields.integer(1, TOKENS_MAX),
    "metadata": fields.nullable(fields.mapping),
    "service_tier": fields.nullable(fields.one_of(*SERVICE_TIERS)),
    "stop_sequences": fields.nullable(fields.texts),
    "stream": fields.nullable(fields.boolean),
    "temperature": fields.nullable(fields.number(0, 2)),
    "top_k": fields.nullable(fields.integer(-1, TOKENS_MAX)),
    "top_p": fields.nullable(fields.number(0, 1)),
}

NOT_FORWARDED = frozenset({"metadata", "service_tier"})
"""`metadata.user_id` names people, `service_tier` is the platform's business; neither is an engine's."""


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


def read_usage(raw: bytes | msgspec.Raw) -> Quantities | None:
    """The disjoint quantities of a usage object, or None if it is nonsense. Anthropic's classes are disjoint already: `input_tokens` has
    neither what was read from the cache nor what was written to it; what was written was computed, so it counts as input."""
    try:
        usage = _usage.decode(raw)
    except msgspec.DecodeError:
        return None
    counts = (usage.input_tokens or 0, usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0, usage.output_tokens or 0)
    if min(counts) < 0 or max(counts) > TOKENS_MAX or counts[0] + counts[1] > TOKENS_MAX:
        return None
    return Quantities(counts[0] + counts[1], counts[2], counts[3])


def read_answer(body: bytes, upstream_model: str, public_model: str, output_tokens_max: int | None) -> Answer:
    """Judge a 200 body of /v1/messages. Raises Fault if it is no message."""
    answer = _read(body)
    if is_absent(answer.content):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without content")
    if answer.stop_reason == "abort":
        raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
    used, anomaly = None, None
    if not is_absent(answer.usage):
        used, anomaly = judge_report(read_usage(answer.usage), output_tokens_max)
    return Answer(public_name(body, upstream_model, public_model), used, anomaly)


def read_count(body: bytes, upstream_model: str, public_model: str, output_tokens_max: int | None) -> Answer:
    """Judge a 200 body of /v1/messages/count_tokens. Counting uses nothing."""
    if _read(body).input_tokens is None:
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without a count")
    return Answer(body, Quantities(), None)


def _read(body: bytes) -> _Answer:
    answer = decode(_answer, body, "answer")
    if answer.type == "error" or not is_absent(answer.error):
        raise error_fault(body, 500, first=True)
    return answer


class Stream:
    """Reads one stream's events; see `openai.Stream` for the attributes. `terminator` is the held `message_stop`."""

    __slots__ = (
        "_counted",
        "_events",
        "_output_tokens_max",
        "_public_model",
        "_upstream_model",
        "anomaly",
        "output",
        "source",
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
            raise error_fault(data, 200, first=not self._events)
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
        members["message"] = public_name(bytes(read.message), self._upstream_model, self._public_model)
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
        used, self.anomaly = judge_report(reported, self._output_tokens_max)
        if used is None:
            return
        self.used = used
        self.output = used.output
        self.source = UsageSource.ENGINE_FINAL
