"""Counting the tokens of a response's input: POST /v1/responses/input_tokens. Counting uses no tokens; a model that offers responses offers
it too, where its engine has it or can tokenize a conversation.
"""

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects import responses, responses_as_chat
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.counting import count_as_tokenize
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.engine_errors import check_no_error
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.prompt_salt import salt_instructions
from tollway.wire.errors import openai_error

PROMPT_FIELDS = (
    "conversation", "input", "instructions", "model", "parallel_tool_calls", "previous_response_id", "reasoning", "text", "tool_choice",
    "tools", "truncation",
)  # fmt: skip
"""Fields of a response that its prompt is made of."""

FIELDS: dict[str, Check] = {
    **{name: responses.FIELDS[name] for name in PROMPT_FIELDS},
    "personality": responses.FIELDS["context_management"],
    "user": responses.FIELDS["user"],
}


class _Answer(msgspec.Struct):
    object: msgspec.Raw = ABSENT
    input_tokens: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_answer = msgspec.json.Decoder(_Answer)


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it is not a count."""
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    if is_absent(answer.input_tokens):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without a count")
    return Answer(body, Quantities(), None)


def _render_count(count: int) -> bytes:
    return b'{"object":"response.input_tokens","input_tokens":%d}' % count


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.INPUT_TOKENS,
    model_endpoint=Endpoint.RESPONSES,
    fields=FIELDS,
    required=("model", "input"),
    read_answer=read_answer,
    new_stream=responses.ResponseStream,
    render_error=openai_error,
    items_field="input",
    not_forwarded=responses.NOT_FORWARDED,
    salt_prompt=salt_instructions,
    translation=count_as_tokenize(responses_as_chat.translate, _render_count),
)
