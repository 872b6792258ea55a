"""OpenAI's embeddings: POST /v1/embeddings. An answer has no tokens of its own."""

from tollway.domain.catalog import Endpoint
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_answers import read_answer
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.wire.errors import openai_error

FIELDS: dict[str, Check] = {
    "model": fields.text,
    "input": fields.prompts,
    "dimensions": fields.nullable(fields.integer(1, 65536)),
    "encoding_format": fields.nullable(fields.one_of("float", "base64")),
    "user": fields.nullable(fields.text),
}

DIALECT: Dialect = Dialect(
    endpoint=Endpoint.EMBEDDINGS,
    fields=FIELDS,
    required=("model", "input"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompts_field="input",
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
