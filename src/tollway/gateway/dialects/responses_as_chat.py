"""OpenAI's responses for engines that have chat completions only (see `translation`).

Reasoning of earlier turns is not sent, and summaries of reasoning are not made. Items of one turn of the assistant (text, calls) become one
message; instructions and the system messages that follow them become one, because many chat templates read no other.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING, Quantities
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

_SAME_FIELDS = ("model", "stream", "temperature", "top_p")
_UNUSED_FIELDS = frozenset({"max_tool_calls", "stream_options"})
"""Fields about tools that a platform runs, of which there are none; and about padding of events."""
_REFUSED_FIELDS = frozenset(
    {
        "access_programs", "background", "background_options", "context_management", "conversation", "image", "previous_response_id",
        "prompt", "store",
    }
)  # fmt: skip
"""Fields that the API itself refuses, unless they say nothing."""
_OWN_FIELDS = _REFUSED_FIELDS | _UNUSED_FIELDS | set(_SAME_FIELDS) | {
    "include", "input", "instructions", "max_output_tokens", "parallel_tool_calls", "reasoning", "text", "tool_choice", "tools",
    "top_logprobs", "truncation",
}  # fmt: skip
REPEATED_FIELDS = (
    "instructions", "max_output_tokens", "max_tool_calls", "parallel_tool_calls", "reasoning", "temperature", "text", "tool_choice",
    "tools", "top_p", "truncation",
)  # fmt: skip
"""Fields of a request that its response repeats."""
_ENCRYPTED = "reasoning.encrypted_content"
"""A wish of clients that keep the conversation themselves. Reasoning is not encrypted here, so there is nothing to add."""
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def translate(asked: Mapping[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """Return the body of a chat completion for that of a response, whose fields `dropped` do not go up. Raises Fault for what cannot be
    translated."""
    chat: dict[str, Any] = {name: asked[name] for name in _SAME_FIELDS if asked.get(name) is not None}
    pass_engine_fields(asked, dropped, _OWN_FIELDS, chat)
    for number, wish in enumerate(asked.get("include") or ()):
        if wish != _ENCRYPTED:
            raise refuse(f"include[{number}]")
    if asked.get("top_logprobs"):
        raise refuse("top_logprobs")
    if asked.get("truncation") == "auto":
        raise refuse("truncation", "Send a conversation that fits the model's context.")
    chat["messages"] = _translate_input(asked["input"], asked.get("instructions"))
    if asked.get("max_output_tokens") is not None:
        chat["max_tokens"] = asked["max_output_tokens"]
    tools = [_translate_tool(tool, f"tools[{number}]") for number, tool in enumerate(asked.get("tools") or ())]
    if tools:
        chat["tools"] = tools
        if asked.get("parallel_tool_calls") is not None:
            chat["parallel_tool_calls"] = asked["parallel_tool_calls"]
    if asked.get("tool_choice") is not None:
        chat["tool_choice"] = _translate_choice(asked["tool_choice"])
    reasoning = asked.get("reasoning") or {}
    check_members(reasoning, "reasoning", ("effort", "generate_summary", "summary"))
    if reasoning.get("effort") is not None:
        chat["reasoning_effort"] = read_text(reasoning["effort"], "reasoning.effort")
    _add_text_format(asked.get("text") or {}, chat)
    return chat


def _add_text_format(text: Mapping[str, Any], chat: dict[str, Any]) -> None:
    check_members(text, "text", ("format", "verbosity"))
    if text.get("verbosity") is not None:
        chat["verbosity"] = read_text(text["verbosity"], "text.verbosity")
    format = read_object(text.get("format") or {"type": "text"}, "text.format")
    kind = format.get("type")
    if kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        check_members(format, "text.format", ("type", "name", "schema", "strict", "description"))
        more = {name: format[name] for name in ("strict", "description") if format.get(name) is not None}
        chat["response_format"] = schema_format(format.get("schema"), read_text(format.get("name"), "text.format.name"), more)
    elif kind != "text":
        raise refuse("text.format.type")


def _translate_tool(tool: Any, place: str) -> dict[str, Any]:
    tool = read_object(tool, place)
    if tool.get("type", "function") != "function":
        raise refuse(f"{place}.type", "Only functions can be offered.")
    check_members(tool, place, ("type", "name", "description", "parameters", "strict"))
    function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
    read_text(function.get("name"), f"{place}.name")
    return {"type": "function", "function": function}


def _translate_choice(choice: Any) -> Any:
    if type(choice) is str:
        return choice
    if read_object(choice, "tool_choice").get("type") != "function":
        raise refuse("tool_choice.type")
    return {"type": "function", "function": {"name": read_text(choice.get("name"), "tool_choice.name")}}


def _translate_input(items: Any, instructions: Any) -> list[dict[str, Any]]:
    """Return the messages of a conversation."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": read_text(instructions, "instructions")})
    if type(items) is str:
        return [*messages, {"role": "user", "content": items}]
    for number, item in enumerate(read_list(items, "input")):
        place = f"input[{number}]"
        item = read_object(item, place)
        kind = item.get("type", "message")
        if kind == "message":
            _add_message(item, place, messages)
        elif kind == "function_call":
            function = {name: read_text(item.get(name), f"{place}.{name}") for name in ("name", "arguments")}
            call = {"id": read_text(item.get("call_id"), f"{place}.call_id"), "type": "function", "function": function}
            turn = _take_turn(messages)
            turn.setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            pictures: list[dict[str, Any]] = []
            result = _read_output(item.get("output"), f"{place}.output", pictures)
            id = read_text(item.get("call_id"), f"{place}.call_id")
            # Results of one turn stand together; pictures in them follow as a message of the user's.
            at = len(messages) - (bool(messages) and messages[-1]["role"] == "user" and "pictures" in messages[-1])
            messages.insert(at, {"role": "tool", "tool_call_id": id, "content": result})
            if pictures:
                if at + 1 < len(messages):
                    messages[-1]["content"] += pictures
                else:
                    messages.append({"role": "user", "content": pictures, "pictures": True})
        elif kind != "reasoning":
            raise refuse(f"{place}.type")
    for message in messages:
        message.pop("pictures", None)
    return messages


def _take_turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message of the assistant that an item continues, a new one if the last message is not the assistant's."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _add_message(item: dict[str, Any], place: str, messages: list[dict[str, Any]]) -> None:
    check_members(item, place, ("type", "role", "content", "id", "status", "phase"))
    role = item.get("role")
    parts: list[dict[str, Any]] = []
    if type(item.get("content")) is str:
        parts.append({"type": "text", "text": item["content"]})
    else:
        for number, part in enumerate(read_list(item.get("content"), f"{place}.content")):
            parts.append(_translate_part(part, f"{place}.content[{number}]", has_pictures=role == "user"))
    if role in ("system", "developer"):
        if len(messages) == 1 and messages[0]["role"] == "system":
            messages[0]["content"] += "\n\n" + join_parts(parts)
        else:
            messages.append({"role": "system", "content": join_parts(parts)})
    elif role == "assistant":
        turn = _take_turn(messages)
        turn["content"] = (turn["content"] or "") + join_parts(parts)
    elif role == "user":
        messages.append({"role": role, "content": join_parts(parts)})
    else:
        raise refuse(f"{place}.role")


def _translate_part(part: Any, place: str, *, has_pictures: bool) -> dict[str, Any]:
    part = read_object(part, place)
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": read_text(part.get("text"), f"{place}.text")}
    if kind == "refusal":
        return {"type": "text", "text": read_text(part.get("refusal"), f"{place}.refusal")}
    if kind == "input_image" and has_pictures:
        check_members(part, place, ("type", "image_url", "detail"))
        return picture(read_text(part.get("image_url"), f"{place}.image_url"), part.get("detail"))
    raise refuse(f"{place}.type")


def _read_output(output: Any, place: str, pictures: list[dict[str, Any]]) -> str:
    """Return the text of a function's result, and add the pictures in it."""
    if type(output) is str:
        return output
    texts = []
    for number, each in enumerate(read_list(output, place)):
        part = _translate_part(each, f"{place}[{number}]", has_pictures=True)
        if part["type"] == "text":
            texts.append(part["text"])
        else:
            pictures.append(part)
    return "".join(texts)


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a chat completion of status 200. Return the response that it is. Raises Fault as the reader of chat completions does."""
    answer, chat, message, finish = read_whole(body, context)
    base = strip_id(chat)
    output: list[dict[str, Any]] = []
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        output.append(_new_reasoning(f"rs_{base}", reasoning))
    if message.content:
        output.append(_new_message(f"msg_{base}_{len(output)}", [_new_text(message.content)]))
    if message.refusal:
        output.append(_new_message(f"msg_{base}_{len(output)}", [_new_refusal(message.refusal)]))
    for number, call in enumerate(message.tool_calls or ()):
        if call.function is None or not call.function.name:
            raise Fault(faults.UPSTREAM_INVALID, detail="a call of a tool without a name")
        item = _new_call(f"fc_{base}_{len(output)}", call.id or f"call_{number}", call.function.name, call.function.arguments or "")
        output.append(item)
    response = _new_response(chat, context) | _describe_end(finish) | {"output": output, "usage": describe_usage(answer.used or NOTHING)}
    return msgspec.structs.replace(answer, body=encode(response))


def _new_response(chat: ChatAnswer, context: AnswerContext) -> dict[str, Any]:
    """Return a response in progress, with the fields of the request that it repeats."""
    response: dict[str, Any] = {
        "id": f"resp_{strip_id(chat)}",
        "object": "response",
        "created_at": int(chat.created or 0),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": context.public_model,
        "output": [],
        "metadata": {},
        "previous_response_id": None,
        "store": False,
        "usage": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
    }
    if context.conversation is not None:
        response |= context.conversation.list_members()
    return response | {name: value for name, value in (context.repeated or {}).items() if value is not None}


def _describe_end(finish: Finish) -> dict[str, Any]:
    reason = _INCOMPLETE.get(finish.reason or "stop")
    if reason is None:
        return {"status": "completed"}
    return {"status": "incomplete", "incomplete_details": {"reason": reason}}


def describe_usage(used: Quantities) -> dict[str, Any]:
    """Return what was used, in the shape of responses."""
    return {
        "input_tokens": used.input_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_input},
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning},
        "total_tokens": used.input_tokens + used.output_tokens,
    }


def _new_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _new_refusal(text: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}


def _new_message(id: str, parts: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    return {"type": "message", "id": id, "role": "assistant", "status": status, "content": parts}


def _new_reasoning(id: str, text: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": id, "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def _new_call(id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    return {"type": "function_call", "id": id, "call_id": call_id, "name": name, "arguments": arguments, "status": status}


class ResponseChatStream(TranslatedStream):
    """Writes the events of a response. Each part of the answer is an item of the output, which ends where the next one begins."""

    __slots__ = ("_base", "_item", "_kind", "_output", "_response", "_sequence", "_texts")

    def __init__(self, context: AnswerContext) -> None:
        super().__init__(context)
        self._base = ""
        self._response: dict[str, Any] = {}
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._kind = ""
        self._item: dict[str, Any] = {}
        self._texts: list[str] = []

    def begin(self, chat: ChatAnswer, used: Quantities) -> bytes:
        """Return the two events that show the response before its output."""
        self._base = strip_id(chat)
        self._response = _new_response(chat, self._context)
        return b"".join(self._event(type, {"response": self._response}) for type in ("response.created", "response.in_progress"))

    def add_reasoning(self, text: str) -> bytes:
        """Return the events for more reasoning."""
        return self._add("reasoning", "response.reasoning_text.delta", text)

    def add_text(self, text: str) -> bytes:
        """Return the events for more text."""
        return self._add("output_text", "response.output_text.delta", text)

    def add_refusal(self, text: str) -> bytes:
        """Return the events for more of a refusal."""
        return self._add("refusal", "response.refusal.delta", text)

    def begin_call(self, id: str, name: str) -> bytes:
        """Return the events that begin a call of a function."""
        closed = self._close()
        self._open("call", _new_call(f"fc_{self._base}_{len(self._output)}", id, name, "", "in_progress"))
        return closed + self._event("response.output_item.added", {"output_index": len(self._output), "item": self._item})

    def add_arguments(self, text: str) -> bytes:
        """Return the events for more arguments. Raises Fault if something else came between."""
        if self._kind != "call":
            raise Fault(faults.UPSTREAM_INVALID, detail="calls of tools out of order")
        self._texts.append(text)
        return self._event("response.function_call_arguments.delta", self._place() | {"delta": text})

    def end(self, finish: Finish, used: Quantities) -> bytes:
        """Return the events that end the response."""
        closed = self._close()
        response = self._response | _describe_end(finish) | {"output": self._output, "usage": describe_usage(used)}
        return closed + self._event(f"response.{response['status']}", {"response": response})

    def _add(self, kind: str, type: str, text: str) -> bytes:
        out = b""
        if self._kind != kind:
            out = self._close()
            number = len(self._output)
            if kind == "reasoning":
                self._open(kind, {"type": "reasoning", "id": f"rs_{self._base}", "summary": [], "content": []})
            else:
                self._open(kind, _new_message(f"msg_{self._base}_{number}", [], "in_progress"))
            out += self._event("response.output_item.added", {"output_index": number, "item": self._item})
            out += self._event("response.content_part.added", self._place() | {"content_index": 0, "part": self._new_part("")})
        self._texts.append(text)
        more: dict[str, Any] = {"content_index": 0, "delta": text}
        if kind == "output_text":
            more["logprobs"] = []
        return out + self._event(type, self._place() | more)

    def _open(self, kind: str, item: dict[str, Any]) -> None:
        self._kind, self._item = kind, item
        self._texts = []

    def _new_part(self, text: str) -> dict[str, Any]:
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return _new_text(text) if self._kind == "output_text" else _new_refusal(text)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._output)}

    def _close(self) -> bytes:
        """Return the events that end the current item, and add it to the output."""
        kind, text, place = self._kind, "".join(self._texts), {}
        if not kind:
            return b""
        place = self._place()
        if kind == "call":
            item = self._item | {"arguments": text, "status": "completed"}
            out = self._event("response.function_call_arguments.done", place | {"arguments": text, "name": item["name"]})
        else:
            part = self._new_part(text)
            item = self._item | {"content": [part]}
            if kind != "reasoning":
                item["status"] = "completed"
            done: dict[str, Any] = {"content_index": 0}
            done |= {"refusal": text} if kind == "refusal" else {"text": text}
            if kind == "output_text":
                done["logprobs"] = []
            name = "reasoning_text" if kind == "reasoning" else kind
            out = self._event(f"response.{name}.done", place | done)
            out += self._event("response.content_part.done", place | {"content_index": 0, "part": part})
        out += self._event("response.output_item.done", {"output_index": len(self._output), "item": item})
        self._output.append(item)
        self._kind = ""
        return out

    def _event(self, type: str, members: dict[str, Any]) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return b"event: %b\ndata: %b\n\n" % (type.encode(), encode({"type": type, "sequence_number": number, **members}))


TRANSLATION: Translation = Translation(
    target=chat_completions.DIALECT,
    translate=translate,
    read_answer=read_answer,
    new_stream=ResponseChatStream,
    repeated_fields=REPEATED_FIELDS,
)
