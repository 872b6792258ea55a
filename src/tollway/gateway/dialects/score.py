"""Scoring of texts against one text, as vLLM has it: POST /v1/score."""

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
    "text_1": fields.text,
    "text_2": fields.prompts,
    "user": fields.nullable(fields.text),
}

DIALECT: Dialect = Dialect(
    endpoint=Endpoint.SCORE,
    fields=FIELDS,
    required=("model", "text_1", "text_2"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompts_field="text_2",
    shared_field="text_1",
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
