"""OpenAI's realtime API: GET /v1/realtime, a WebSocket of events. A session is asked for by a request without a body, of which the model in
the query is made one; each response of a session is a request to whoever counts (`gateway.realtime`).

A response reads the whole conversation of its session, which no request bounds. So it is held to the model's context: by `context_length`,
and by CONTEXT_TOKENS_MAX where the model states none.
"""

from collections.abc import Mapping
from typing import Any

from tollway.domain.catalog import Endpoint
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import Measure, UsageReport
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.engine_usage import UsageNames, read_totals
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.moderations import read_answer
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.gateway.media.bounds import MediaBounds
from tollway.wire.errors import openai_error

CONTEXT_TOKENS_MAX = 131_072
"""Most input tokens of a response where the model states no `context_length`; OpenAI's own models have 32,768."""
OUTPUT_TOKENS_MAX = 16_384
"""Most output tokens of a response; OpenAI's own models have 4,096."""
INPUT_TOKENS_TYPICAL, OUTPUT_TOKENS_TYPICAL = 1_024, 512
"""Tokens that limits and soft budgets expect of a response before it has ended."""

FIELDS: dict[str, Check] = {"model": fields.text}

_NAMES = UsageNames("input_tokens", "output_tokens", "input_token_details", "output_token_details")
_TRANSCRIPT_NAMES = UsageNames("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details")


def measure(asked: Mapping[str, Any], bounds: MediaBounds) -> Measure:
    """Return what one response can use."""
    return Measure(
        input_tokens=INPUT_TOKENS_TYPICAL,
        input_tokens_max=CONTEXT_TOKENS_MAX,
        output_tokens=OUTPUT_TOKENS_TYPICAL,
        output_tokens_max=OUTPUT_TOKENS_MAX,
    )


def read_usage(raw: bytes) -> UsageReport:
    """Return what of the usage of a response can be believed."""
    return read_totals(raw, _NAMES)


def read_transcript_usage(raw: bytes) -> UsageReport:
    """Return what of the usage of vLLM's `transcription.done` can be believed."""
    return read_totals(raw, _TRANSCRIPT_NAMES)


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.REALTIME,
    fields=FIELDS,
    required=("model",),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    measure=measure,
)
