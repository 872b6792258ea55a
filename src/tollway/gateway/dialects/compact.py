"""Compaction of a conversation: POST /v1/responses/compact. The model writes a summary, which stands for the conversation in later
requests (`compactions`).

No engine has this API, so it is always translated to a chat completion, and billed as one.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects import chat_completions, responses, responses_as_chat
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.compactions import encode_summary
from tollway.gateway.dialects.dialect import Dialect, Translation
from tollway.gateway.dialects.openai_requests import SERVICE_TIERS
from tollway.gateway.dialects.translation import encode, read_whole, strip_id
from tollway.wire.errors import openai_error

_TASK: Final = (
    "Write a summary of this conversation that can stand in its place. Keep what the user wants and has decided, the facts, names, numbers,"
    " code and results of tools that are still needed, what was done and what is open. Write the summary alone."
)

_UNUSED: Final = frozenset({"parallel_tool_calls", "reasoning", "text", "tool_choice", "tools"})
"""Fields of a response that clients repeat here. A summary needs none of them."""

FIELDS = {
    name: responses.FIELDS[name]
    for name in (
        "model", "input", "conversation", "image", "instructions", "previous_response_id", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "safety_identifier", "service_tier", "user", *sorted(_UNUSED),
    )
}  # fmt: skip


def _translate(asked: Mapping[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """Return the chat completion that writes the summary."""
    chat = responses_as_chat.translate({name: value for name, value in asked.items() if name not in _UNUSED}, dropped)
    chat["messages"].append({"role": "user", "content": _TASK})
    return chat


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a chat completion of status 200. Return the compaction that it is, or the fault of a summary that was cut: the client would
    lose what is missing. Raises Fault as the reader of chat completions does, and upstream_invalid for one without text."""
    answer, chat, message, finish = read_whole(body, context)
    if finish.reason == "length":
        return msgspec.structs.replace(answer, fault=Fault(faults.SUMMARY_CUT))
    if finish.reason == "content_filter":
        return msgspec.structs.replace(answer, fault=Fault(faults.CONTENT_DENIED))
    if not message.content:
        raise Fault(faults.UPSTREAM_INVALID, detail="a summary without text")
    base = strip_id(chat)
    compacted = {
        "id": f"resp_{base}",
        "object": "response.compaction",
        "created_at": int(chat.created or 0),
        "output": [{"type": "compaction", "id": f"cmp_{base}", "encrypted_content": encode_summary(message.content)}],
        "usage": responses_as_chat.describe_usage(answer.used or NOTHING),
    }
    shown = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": message.content}]}
    return msgspec.structs.replace(answer, body=encode(compacted), checked=encode(compacted | {"output": [shown]}))


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.COMPACT,
    model_endpoint=Endpoint.RESPONSES,
    fields=FIELDS,
    required=("model", "input"),
    read_answer=responses.read_answer,
    new_stream=responses.ResponseStream,
    render_error=openai_error,
    output_caps=("max_output_tokens",),
    items_field="input",
    service_tiers=SERVICE_TIERS,
    not_forwarded=responses.NOT_FORWARDED | _UNUSED,
    translation=Translation(
        target=chat_completions.DIALECT,
        translate=_translate,
        read_answer=read_answer,
        new_stream=responses_as_chat.ResponseChatStream,
    ),
)
