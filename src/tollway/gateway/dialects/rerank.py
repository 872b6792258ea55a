"""Reranking in the shape that Jina and Cohere made common: POST /v1/rerank. Each document is read together with the query.

vLLM, llama.cpp and Text Embeddings Inference answer in this shape. SGLang answers with an array that has no usage, which is refused.
"""

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.engine_errors import check_no_error
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent, rename_model
from tollway.gateway.dialects.engine_usage import check_report, read_input
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.wire.errors import openai_error

FIELDS: dict[str, Check] = {
    "model": fields.text,
    "query": fields.text,
    "documents": fields.documents,
    "max_tokens_per_doc": fields.nullable(fields.integer(1, TOKENS_MAX)),
    "return_documents": fields.nullable(fields.boolean),
    "top_n": fields.nullable(fields.integer(1, TOKENS_MAX)),
    "user": fields.nullable(fields.text),
}


class _Answer(msgspec.Struct):
    object: msgspec.Raw = ABSENT
    results: msgspec.Raw = ABSENT
    data: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_answer = msgspec.json.Decoder(_Answer)


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200, of this API or of scoring. Raises Fault if it has neither results nor scores."""
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    if is_absent(answer.results) and is_absent(answer.data):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without results")
    if is_absent(answer.usage):
        return Answer(rename_model(body, context), None, None)
    used, anomaly = check_report(read_input(answer.usage), context)
    return Answer(rename_model(body, context), used, anomaly)


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.RERANK,
    fields=FIELDS,
    required=("model", "query", "documents"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompts_field="documents",
    shared_field="query",
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
