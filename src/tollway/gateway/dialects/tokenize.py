"""Tokens of a text or a conversation, as vLLM has it: POST /v1/tokenize and /v1/detokenize, also without /v1. Neither uses tokens; a model
that offers the one offers the other too.
"""

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.engine_errors import check_no_error
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.wire.errors import openai_error

_flag = fields.nullable(fields.boolean)

TOKENIZE_FIELDS: dict[str, Check] = {
    "model": fields.text,
    "prompt": fields.text,
    "messages": fields.messages,
    "tools": fields.nullable(fields.any_list),
    "add_generation_prompt": _flag,
    "add_special_tokens": _flag,
    "continue_final_message": _flag,
    "return_token_strs": _flag,
    "user": fields.nullable(fields.text),
}
"""The engine requires either `prompt` or `messages`, and refuses a body without them."""

DETOKENIZE_FIELDS: dict[str, Check] = {
    "model": fields.text,
    "tokens": fields.token_ids,
    "user": fields.nullable(fields.text),
}


class _Answer(msgspec.Struct):
    object: msgspec.Raw = ABSENT
    tokens: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_answer = msgspec.json.Decoder(_Answer)


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200, of either API. Raises Fault if it has neither tokens nor a text."""
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    if is_absent(answer.tokens) and is_absent(answer.prompt):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without tokens")
    return Answer(body, Quantities(), None)


TOKENIZE: Dialect = Dialect(
    endpoint=Endpoint.TOKENIZE,
    aliases=(b"/tokenize",),
    fields=TOKENIZE_FIELDS,
    required=("model",),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
)

DETOKENIZE: Dialect = Dialect(
    endpoint=Endpoint.DETOKENIZE,
    model_endpoint=Endpoint.TOKENIZE,
    aliases=(b"/detokenize",),
    fields=DETOKENIZE_FIELDS,
    required=("model", "tokens"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
