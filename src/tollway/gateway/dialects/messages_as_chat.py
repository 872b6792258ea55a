"""Anthropic's messages for engines that have chat completions only (see `translation`).

Hints that change nothing but cost or speed are left out (`cache_control`), and so are reasoning of earlier turns and the mark of a tool's
failure, whose text says it. `thinking` has no equal: a model that reasons does so as it was set up. `effort` becomes `reasoning_effort`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING, BillingClass, Quantities
from tollway.domain.faults import Fault
from tollway.gateway.dialects import chat_completions
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.dialect import Translation
from tollway.gateway.dialects.translation import (
    ChatAnswer,
    Finish,
    TranslatedStream,
    check_members,
    encode,
    join_parts,
    pass_engine_fields,
    picture,
    read_list,
    read_object,
    read_text,
    read_whole,
    refuse,
    schema_format,
    strip_id,
)

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_SAME_FIELDS = ("model", "stream", "temperature", "top_p", "top_k")
_OWN_FIELDS = frozenset(_SAME_FIELDS) | {
    "cache_control", "context_management", "max_tokens", "messages", "output_config", "stop_sequences", "system", "thinking", "tool_choice",
    "tools",
}  # fmt: skip
_HINTS = frozenset({"cache_control", "citations", "type"})
_TOOL_MEMBERS = frozenset({"cache_control", "description", "eager_input_streaming", "input_schema", "name", "strict", "type"})
_CLEARED = "clear_thinking_"
"""Edits of the context that remove reasoning of earlier turns, which is not sent anyway."""


def translate(asked: Mapping[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """Return the body of a chat completion for that of a message, whose fields `dropped` do not go up. Raises Fault for what cannot be
    translated."""
    chat: dict[str, Any] = {name: asked[name] for name in _SAME_FIELDS if asked.get(name) is not None}
    pass_engine_fields(asked, dropped, _OWN_FIELDS, chat)
    messages: list[dict[str, Any]] = []
    system = asked.get("system")
    if system is not None:
        messages.append({"role": "system", "content": _read_texts(system, "system")})
    for number, message in enumerate(read_list(asked["messages"], "messages")):
        _add_message(read_object(message, f"messages[{number}]"), f"messages[{number}]", messages)
    chat["messages"] = messages
    if asked["max_tokens"] == 0:
        raise refuse("max_tokens", "It must be at least 1.")
    chat["max_tokens"] = asked["max_tokens"]
    if asked.get("stop_sequences"):
        chat["stop"] = asked["stop_sequences"]
    tools = [_translate_tool(tool, f"tools[{number}]") for number, tool in enumerate(asked.get("tools") or ())]
    if tools:
        chat["tools"] = tools
    if asked.get("tool_choice") is not None:
        _add_choice(asked["tool_choice"], chat)
    _add_output_config(asked.get("output_config") or {}, chat)
    for number, edit in enumerate(read_list((asked.get("context_management") or {}).get("edits") or [], "context_management.edits")):
        place = f"context_management.edits[{number}]"
        if not read_text(read_object(edit, place).get("type"), f"{place}.type").startswith(_CLEARED):
            raise refuse(place)
    return chat


def _add_output_config(config: Mapping[str, Any], chat: dict[str, Any]) -> None:
    check_members(config, "output_config", ("effort", "format"))
    effort, format = config.get("effort"), config.get("format")
    if effort is not None:
        if type(effort) is not str or effort not in _EFFORTS:
            raise refuse("output_config.effort")
        chat["reasoning_effort"] = _EFFORTS[effort]
    if format is not None:
        if read_object(format, "output_config.format").get("type") != "json_schema":
            raise refuse("output_config.format.type")
        check_members(format, "output_config.format", ("type", "schema"))
        chat["response_format"] = schema_format(format.get("schema"), "output", {"strict": True})


def _translate_tool(tool: Any, place: str) -> dict[str, Any]:
    tool = read_object(tool, place)
    if tool.get("type") not in (None, "custom"):
        raise refuse(f"{place}.type", "Only tools that the client defines and runs can be offered.")
    check_members(tool, place, _TOOL_MEMBERS)
    function = {"name": read_text(tool.get("name"), f"{place}.name"), "parameters": tool.get("input_schema")}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _add_choice(choice: Any, chat: dict[str, Any]) -> None:
    check_members(choice, "tool_choice", ("type", "name", "disable_parallel_tool_use"))
    kind = choice.get("type")
    words = {"auto": "auto", "any": "required", "none": "none"}
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": read_text(choice.get("name"), "tool_choice.name")}}
    elif type(kind) is str and kind in words:
        chat["tool_choice"] = words[kind]
    else:
        raise refuse("tool_choice.type")
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False


def _read_texts(content: Any, place: str) -> str:
    """Return the text of a content that may hold nothing else."""
    if type(content) is str:
        return content
    texts = []
    for number, block in enumerate(read_list(content, place)):
        block_place = f"{place}[{number}]"
        if read_object(block, block_place).get("type", "text") != "text":
            raise refuse(f"{block_place}.type")
        texts.append(read_text(block.get("text"), f"{block_place}.text"))
    return "".join(texts)


def _add_message(message: dict[str, Any], place: str, messages: list[dict[str, Any]]) -> None:
    """Add a message; results of tools become messages of their own before the rest of it, and pictures in them stand in that rest."""
    check_members(message, place, ("role", "content"))
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise refuse(f"{place}.role")
    if type(content) is str:
        messages.append({"role": role, "content": content})
        return
    if role == "system":
        messages.append({"role": role, "content": _read_texts(content, f"{place}.content")})
        return
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(read_list(content, f"{place}.content")):
        block_place = f"{place}.content[{number}]"
        block = read_object(block, block_place)
        kind = block.get("type")
        if kind == "text":
            check_members(block, block_place, _HINTS | {"text"})
            parts.append({"type": "text", "text": read_text(block.get("text"), f"{block_place}.text")})
        elif kind == "image" and role == "user":
            parts.append(_translate_image(block, block_place))
        elif kind == "tool_result" and role == "user":
            check_members(block, block_place, _HINTS | {"content", "is_error", "tool_use_id"})
            result = _read_result(block.get("content"), f"{block_place}.content", parts)
            id = read_text(block.get("tool_use_id"), f"{block_place}.tool_use_id")
            messages.append({"role": "tool", "tool_call_id": id, "content": result})
        elif kind == "tool_use" and role == "assistant":
            name = read_text(block.get("name"), f"{block_place}.name")
            function = {"name": name, "arguments": encode(block.get("input") or {}).decode()}
            calls.append({"id": read_text(block.get("id"), f"{block_place}.id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking") or role != "assistant":
            raise refuse(f"{block_place}.type")
    if calls:
        messages.append({"role": role, "content": join_parts(parts) or None, "tool_calls": calls})
    elif parts:
        messages.append({"role": role, "content": join_parts(parts)})


def _translate_image(block: dict[str, Any], place: str) -> dict[str, Any]:
    check_members(block, place, _HINTS | {"source"})
    source = read_object(block.get("source"), f"{place}.source")
    kind = source.get("type")
    if kind == "base64":
        media_type = read_text(source.get("media_type"), f"{place}.source.media_type")
        return picture(f"data:{media_type};base64,{read_text(source.get('data'), f'{place}.source.data')}")
    if kind == "url":
        return picture(read_text(source.get("url"), f"{place}.source.url"))
    raise refuse(f"{place}.source.type")


def _read_result(content: Any, place: str, pictures: list[dict[str, Any]]) -> str:
    """Return the text of a tool's result, and add the pictures in it."""
    if content is None or type(content) is str:
        return content or ""
    texts = []
    for number, block in enumerate(read_list(content, place)):
        block_place = f"{place}[{number}]"
        kind = read_object(block, block_place).get("type")
        if kind == "image":
            pictures.append(_translate_image(block, block_place))
        elif kind == "text":
            texts.append(read_text(block.get("text"), f"{block_place}.text"))
        else:
            raise refuse(f"{block_place}.type")
    return "".join(texts)


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a chat completion of status 200. Return the message that it is. Raises Fault as the reader of chat completions does, and
    upstream_invalid for arguments of a tool that are not an object of JSON."""
    answer, chat, message, finish = read_whole(body, context)
    content: list[dict[str, Any]] = []
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    for text in (message.content, message.refusal):
        if text:
            content.append({"type": "text", "text": text})
    for number, call in enumerate(message.tool_calls or ()):
        if call.function is None or not call.function.name:
            raise Fault(faults.UPSTREAM_INVALID, detail="a call of a tool without a name")
        input = _read_arguments(call.function.arguments or "{}", is_cut=finish.reason == "length")
        content.append({"type": "tool_use", "id": call.id or f"call_{number}", "name": call.function.name, "input": input})
    made = _new_message(chat, context, answer.used or NOTHING)
    made |= {"content": content} | _describe_end(finish, has_refusal=bool(message.refusal))
    return msgspec.structs.replace(answer, body=encode(made))


def _read_arguments(arguments: str, *, is_cut: bool) -> Any:
    """Return the arguments of a call as an object; an empty one where the answer's length cut them."""
    try:
        read = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        read = None
    if type(read) is dict:
        return read
    if is_cut:
        return {}
    raise Fault(faults.UPSTREAM_INVALID, detail="arguments of a tool are not an object")


def _new_message(chat: ChatAnswer, context: AnswerContext, used: Quantities) -> dict[str, Any]:
    return {
        "id": f"msg_{strip_id(chat)}",
        "type": "message",
        "role": "assistant",
        "model": context.public_model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _describe_usage(used),
    }


def _describe_usage(used: Quantities) -> dict[str, int]:
    written = used.get(BillingClass.CACHE_WRITE)
    return {
        "input_tokens": used.input_tokens - used.cached_input - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": used.cached_input,
        "output_tokens": used.output_tokens,
    }


def _describe_end(finish: Finish, *, has_refusal: bool) -> dict[str, str | None]:
    reason = _STOP_REASONS.get(finish.reason or "stop", "end_turn")
    if has_refusal:
        reason = "refusal"
    elif reason == "end_turn" and finish.stop_sequence is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": finish.stop_sequence if reason == "stop_sequence" else None}


class MessageChatStream(TranslatedStream):
    """Writes the events of a message. Each part of the answer is a block, which ends where the next one begins."""

    __slots__ = ("_block", "_has_refusal", "_index")

    def __init__(self, context: AnswerContext) -> None:
        super().__init__(context)
        self._index = -1
        self._block = ""
        self._has_refusal = False

    def begin(self, chat: ChatAnswer, used: Quantities) -> bytes:
        """Return `message_start`."""
        return _event("message_start", {"message": _new_message(chat, self._context, used.with_plain_output(0))})

    def add_reasoning(self, text: str) -> bytes:
        """Return the events for more reasoning."""
        opened = self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        return opened + self._delta({"type": "thinking_delta", "thinking": text})

    def add_text(self, text: str) -> bytes:
        """Return the events for more text."""
        return self._open("text", {"type": "text", "text": ""}) + self._delta({"type": "text_delta", "text": text})

    def add_refusal(self, text: str) -> bytes:
        """Return the events for more of a refusal, which is text here."""
        self._has_refusal = True
        return self.add_text(text)

    def begin_call(self, id: str, name: str) -> bytes:
        """Return the events that begin a call of a function."""
        self._block = self._block and "ended"
        return self._open("tool_use", {"type": "tool_use", "id": id, "name": name, "input": {}})

    def add_arguments(self, text: str) -> bytes:
        """Return the events for more arguments. Raises Fault if something else came between."""
        if self._block != "tool_use":
            raise Fault(faults.UPSTREAM_INVALID, detail="calls of tools out of order")
        return self._delta({"type": "input_json_delta", "partial_json": text})

    def end(self, finish: Finish, used: Quantities) -> bytes:
        """Return the events that end the message."""
        delta = _describe_end(finish, has_refusal=self._has_refusal)
        return self._close() + _event("message_delta", {"delta": delta, "usage": _describe_usage(used)}) + _event("message_stop", {})

    def _open(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._block == kind:
            return b""
        closed = self._close()
        self._block = kind
        self._index += 1
        return closed + _event("content_block_start", {"index": self._index, "content_block": block})

    def _close(self) -> bytes:
        return _event("content_block_stop", {"index": self._index}) if self._block else b""

    def _delta(self, delta: dict[str, str]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})


def _event(type: str, members: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (type.encode(), encode({"type": type, **members}))


TRANSLATION: Translation = Translation(
    target=chat_completions.DIALECT,
    translate=translate,
    read_answer=read_answer,
    new_stream=MessageChatStream,
)
