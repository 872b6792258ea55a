"""OpenAI's completions (legacy, still used for plain prompts): POST /v1/completions."""

from tollway.domain.catalog import Endpoint
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_answers import read_answer
from tollway.gateway.dialects.openai_requests import COMMON_FIELDS, NOT_FORWARDED, USAGE_OPTIONS
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.wire.errors import openai_error

FIELDS: dict[str, Check] = COMMON_FIELDS | {
    "prompt": fields.prompts,
    "best_of": fields.nullable(fields.integer(1, 20)),
    "echo": fields.nullable(fields.boolean),
    "logprobs": fields.nullable(fields.integer(0, 5)),
    "max_tokens": fields.output_tokens_or_none,
    "suffix": fields.nullable(fields.text),
}

DIALECT: Dialect = Dialect(
    endpoint=Endpoint.COMPLETIONS,
    fields=FIELDS,
    required=("model", "prompt"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    output_caps=("max_tokens",),
    prompts_field="prompt",
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
    usage_options=USAGE_OPTIONS,
)
