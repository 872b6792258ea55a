"""The dialects by endpoint, as one table: what each API's bodies may hold, how its answers are read, how it is told of a fault."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly, Quantities, ServiceTier, UsageSource
from tollway.gateway.dialects import anthropic, openai
from tollway.gateway.dialects.answers import Answer
from tollway.gateway.dialects.fields import Check, Shape, plain_shape
from tollway.wire.errors import anthropic_error, openai_error


class Stream(Protocol):
    """Reads the events of one stream. See `openai.Stream`."""

    output: int
    source: UsageSource
    anomaly: Anomaly | None
    terminated: bool
    terminator: bytes

    @property
    def used(self) -> Quantities | None:
        """The best knowledge of what was used so far."""
        ...

    def read(self, event: bytes) -> bytes | None:
        """What to relay of an event, or None for nothing. Raises Fault."""
        ...

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """What to relay of bytes that are one regular event, or None if `read` must look at them."""
        ...


class NewStream(Protocol):
    """Makes the reader of one stream."""

    def __call__(
        self,
        *,
        hide_usage: bool,
        hide_continuous: bool,
        counting: bool,
        upstream_model: str,
        public_model: str,
        output_tokens_max: int | None,
    ) -> Stream: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What an endpoint's bodies mean.

    `fields`: the dialect's own, with their checks. `plain`: the shape of a body of which none needs a look by itself. `required`,
    `not_forwarded`: by name. `has_output`: whether an answer has tokens of its own, and `output_caps`: fields that bound them.
    `lets_unknown_pass`: its contract asks gateways to forward fields that they do not know. `service_tiers`: what that field's values
    mean, where there is one. `stream_options`: whether usage is asked for in the body. `ends_stream_with_event`: a fault in mid-stream is
    an `event: error`, not bare data.
    """

    fields: dict[str, Check]
    plain: Shape
    required: tuple[str, ...]
    read_answer: Callable[[bytes, str, str, int | None], Answer]
    new_stream: NewStream
    render: Callable[[Fault, str | None], bytes]
    service_tiers: Mapping[str, ServiceTier]
    output_caps: tuple[str, ...]
    has_output: bool = True
    not_forwarded: frozenset[str] = frozenset()
    lets_unknown_pass: bool = False
    stream_options: bool = True
    ends_stream_with_event: bool = False

    def render_event(self, fault: Fault, request_id: str) -> bytes:
        """A fault as the last event of a stream."""
        head = b"event: error\n" if self.ends_stream_with_event else b""
        return head + b"data: " + self.render(fault, request_id) + b"\n\n"


def _find_output_caps(fields: dict[str, Check]) -> tuple[str, ...]:
    return tuple(field for field in ("max_tokens", "max_completion_tokens") if field in fields)


def _openai(fields: dict[str, Check], *required: str, has_output: bool = True) -> Dialect:
    return Dialect(
        fields=fields,
        plain=plain_shape(fields, ("model", *required)),
        required=("model", *required),
        read_answer=openai.read_answer,
        new_stream=openai.Stream,
        render=openai_error,
        service_tiers=openai.SERVICE_TIERS if "service_tier" in fields else {},
        output_caps=_find_output_caps(fields),
        has_output=has_output,
        not_forwarded=openai.NOT_FORWARDED,
    )


def _anthropic(
    fields: dict[str, Check], read_answer: Callable[[bytes, str, str, int | None], Answer], *required: str, has_output: bool = True
) -> Dialect:
    return Dialect(
        fields=fields,
        plain=plain_shape(fields, ("model", *required)),
        required=("model", *required),
        read_answer=read_answer,
        new_stream=anthropic.Stream,
        render=anthropic_error,
        service_tiers=anthropic.SERVICE_TIERS if "service_tier" in fields else {},
        output_caps=_find_output_caps(fields),
        has_output=has_output,
        not_forwarded=anthropic.NOT_FORWARDED,
        lets_unknown_pass=True,
        stream_options=False,
        ends_stream_with_event=True,
    )


DIALECTS: dict[Endpoint, Dialect] = {
    Endpoint.CHAT_COMPLETIONS: _openai(openai.CHAT_FIELDS, "messages"),
    Endpoint.COMPLETIONS: _openai(openai.COMPLETION_FIELDS, "prompt"),
    Endpoint.EMBEDDINGS: _openai(openai.EMBEDDING_FIELDS, "input", has_output=False),
    Endpoint.MESSAGES: _anthropic(anthropic.MESSAGE_FIELDS, anthropic.read_answer, "messages", "max_tokens"),
    Endpoint.COUNT_TOKENS: _anthropic(anthropic.COUNT_FIELDS, anthropic.read_count, "messages", has_output=False),
}
