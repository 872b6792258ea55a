"""OpenAI's chat completions: POST /v1/chat/completions."""

from tollway.domain.catalog import Endpoint
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_answers import read_answer
from tollway.gateway.dialects.openai_requests import COMMON_FIELDS, NOT_FORWARDED, SERVICE_TIERS, USAGE_OPTIONS
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.gateway.dialects.prompt_salt import salt_messages
from tollway.wire.errors import openai_error

FIELDS: dict[str, Check] = COMMON_FIELDS | {
    "messages": fields.messages,
    "audio": fields.nullable(fields.mapping),
    "function_call": fields.anything,
    "functions": fields.nullable(fields.any_list),
    "logprobs": fields.nullable(fields.boolean),
    "max_completion_tokens": fields.output_tokens,
    "metadata": fields.nullable(fields.mapping),
    "modalities": fields.nullable(fields.any_list),
    "moderation": fields.nullable(fields.moderation),
    "parallel_tool_calls": fields.nullable(fields.boolean),
    "prediction": fields.nullable(fields.mapping),
    "prompt_cache_key": fields.nullable(fields.text),
    "prompt_cache_options": fields.nullable(fields.mapping),
    "prompt_cache_retention": fields.nullable(fields.text),
    "reasoning_effort": fields.nullable(fields.text),
    "response_format": fields.nullable(fields.mapping),
    "safety_identifier": fields.nullable(fields.text),
    "service_tier": fields.nullable(fields.one_of(*SERVICE_TIERS)),
    "store": fields.nullable(fields.boolean),
    "tool_choice": fields.anything,
    "tools": fields.nullable(fields.client_tools),
    "top_logprobs": fields.nullable(fields.integer(0, 20)),
    "verbosity": fields.nullable(fields.text),
    "web_search_options": fields.nullable(fields.mapping),
}

DIALECT: Dialect = Dialect(
    endpoint=Endpoint.CHAT_COMPLETIONS,
    fields=FIELDS,
    required=("model", "messages"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    output_caps=("max_tokens", "max_completion_tokens"),
    service_tiers=SERVICE_TIERS,
    usage_options=USAGE_OPTIONS,
    salt_prompt=salt_messages,
)
