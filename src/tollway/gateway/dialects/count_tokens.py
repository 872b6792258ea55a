"""Anthropic's token counting: POST /v1/messages/count_tokens. Counting uses no tokens; a model that offers messages offers it too."""

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects import messages
from tollway.gateway.dialects.answers import Answer, AnswerContext, is_absent
from tollway.gateway.dialects.dialect import Dialect
from tollway.gateway.dialects.prompt_salt import salt_system


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it is not a count."""
    if is_absent(messages.decode_answer(body, context).input_tokens):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without a count")
    return Answer(body, Quantities(), None)


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
)
