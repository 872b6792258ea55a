"""Anthropic's token counting: POST /v1/messages/count_tokens. Counting uses no tokens; a model that offers messages offers it too."""

from collections.abc import Collection, Mapping
from typing import Any

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects import messages, messages_as_chat
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.counting import count_as_tokenize
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.engine_json import is_absent
from tollway.gateway.dialects.prompt_salt import salt_system


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it is not a count."""
    if is_absent(messages.decode_answer(body, context).input_tokens):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without a count")
    return Answer(body, Quantities(), None)


def _translate(asked: Mapping[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """Return the chat completion whose prompt is counted. A message must bound its output, a count has none."""
    return messages_as_chat.translate({**asked, "max_tokens": 1}, dropped)


def _render_count(count: int) -> bytes:
    return b'{"input_tokens":%d}' % count


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.COUNT_TOKENS,
    model_endpoint=Endpoint.MESSAGES,
    fields=messages.PROMPT_FIELDS,
    required=("model", "messages"),
    read_answer=read_answer,
    new_stream=messages.MessageStream,
    render_error=messages.render_error,
    not_forwarded=messages.NOT_FORWARDED,
    allows_unknown_fields=True,
    forwarded_headers=messages.FORWARDED_HEADERS,
    request_id_headers=messages.REQUEST_ID_HEADERS,
    error_event=messages.ERROR_EVENT,
    salt_prompt=salt_system,
    translation=count_as_tokenize(_translate, _render_count),
)
