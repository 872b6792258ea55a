"""OpenAI's moderations of texts: POST /v1/moderations. The API reports no usage, so a request costs its own price; the tokens of engines
that report them are billed. Pictures are refused.
"""

from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.gateway.dialects import fields, rerank
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.wire.errors import openai_error

FIELDS: dict[str, Check] = {
    "model": fields.text,
    "input": fields.texts,
    "user": fields.nullable(fields.text),
}


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it has no results."""
    answer = rerank.read_answer(body, context)
    return Answer(answer.body, Quantities(), None) if answer.used is None and answer.anomaly is None else answer


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.MODERATIONS,
    fields=FIELDS,
    required=("model", "input"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompts_field="input",
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
