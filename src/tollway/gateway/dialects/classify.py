"""Classification of texts, as vLLM and SGLang have it: POST /v1/classify. An answer has the probability of each class of each text."""

from tollway.domain.catalog import Endpoint
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.gateway.dialects.rerank import read_answer
from tollway.wire.errors import openai_error

FIELDS: dict[str, Check] = {
    "model": fields.text,
    "input": fields.prompts,
    "use_activation": fields.nullable(fields.boolean),
    "user": fields.nullable(fields.text),
}

DIALECT: Dialect = Dialect(
    endpoint=Endpoint.CLASSIFY,
    fields=FIELDS,
    required=("model", "input"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompts_field="input",
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
