"""Translation of an API to chat completions, for engines that have not got it: what the translated APIs share.

A request becomes one of chat completions, and the answer becomes one of the API that the client called. Usage is read from the engine's
chat answer by the readers of that API and held to the same bounds; the translation only shows it. What a chat completion cannot express
is refused with the name of the field, before anything is recorded.

A translated stream ends only after the engine's own terminator: until then the last events of the client's API are not written at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly, UsageSource
from tollway.gateway.dialects import openai_answers
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.engine_fields import ENGINE_FIELDS
from tollway.gateway.dialects.engine_json import decode
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.native import EventTemplate

_CALLS_MAX = 1024
"""Most calls of tools in one answer; each is an event and a block of its own."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A call of a function in an answer, or a piece of one in a stream, where `index` distinguishes the calls."""

    function: _Function | None = None
    id: str | None = None
    index: int | None = None


class ChatOutput(msgspec.Struct):
    """The message of an answer, or the piece of it that one event of a stream adds. Engines name reasoning in two ways."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(msgspec.Struct):
    """A choice. `stop_reason`: the stop sequence that ended it, an extension of vLLM's; a number is a token."""

    message: ChatOutput | None = None
    delta: ChatOutput | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class ChatAnswer(msgspec.Struct):
    """An answer of chat completions, or an event of a stream."""

    choices: list[ChatChoice]
    id: str | None = None
    created: int | float | None = None


class Finish(NamedTuple):
    """The reason for which an answer ended, in OpenAI's words; and the stop sequence that was met, if the engine says so."""

    reason: str | None
    stop_sequence: str | None


_chat = msgspec.json.Decoder(ChatAnswer)
encode = msgspec.json.encode


class WholeAnswer(NamedTuple):
    """An engine's whole answer.

    `answer`: as chat completions read it. `chat`: what it holds. `message`: its only message. `finish`: how that ended.
    """

    answer: Answer
    chat: ChatAnswer
    message: ChatOutput
    finish: Finish


def refuse(place: str, why: str = "It cannot be expressed as a chat completion.") -> Fault:
    """Return the fault for a part of a request that cannot be translated. `place`: names it, without any text of the client's."""
    message = f"This model is served by translation to chat completions, which does not have '{place}'. {why}"
    return Fault(faults.PARAMETER_INVALID, param=place, message=message)


def read_text(value: Any, place: str) -> str:
    """Return a text of a request. Raises Fault for anything else."""
    if type(value) is not str:
        raise Fault(faults.PARAMETER_INVALID, param=place, message=f"'{place}' must be a text.")
    return value


def read_object(value: Any, place: str) -> dict[str, Any]:
    """Return an object of a request. Raises Fault for anything else."""
    if type(value) is not dict:
        raise Fault(faults.PARAMETER_INVALID, param=place, message=f"'{place}' must be an object.")
    return value


def read_list(value: Any, place: str) -> list[Any]:
    """Return an array of a request. Raises Fault for anything else."""
    if type(value) is not list:
        raise Fault(faults.PARAMETER_INVALID, param=place, message=f"'{place}' must be an array.")
    return value


def check_members(value: Mapping[str, Any], place: str, known: Collection[str]) -> None:
    """Raise Fault unless every member of an object, but for those that are null, is one of `known`."""
    for name, member in value.items():
        if name not in known and member is not None:
            shown = f"{place}.{name}" if name.isascii() and name.replace("_", "").isalnum() and len(name) <= 64 else place
            raise refuse(shown)


def pass_engine_fields(asked: Mapping[str, Any], dropped: Collection[str], own: Collection[str], chat: dict[str, Any]) -> None:
    """Add to `chat` the fields of a request that belong to the engine and not to the API. `own`: the API's. Raises Fault for one that is
    neither."""
    for name, value in asked.items():
        if name in own or name in dropped:
            continue
        if name not in ENGINE_FIELDS:
            shown = name if name.isascii() and name.replace("_", "").isalnum() and len(name) <= 64 else "unknown field"
            raise refuse(shown)
        chat[name] = value


def picture(url: str, detail: Any = None) -> dict[str, Any]:
    """Return the part of a chat message that holds a picture."""
    image: dict[str, Any] = {"url": url}
    if type(detail) is str:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def join_parts(parts: list[dict[str, Any]]) -> Any:
    """Return the content of a chat message: one text where there is nothing else, because not every chat template reads parts."""
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def schema_format(schema: Any, name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `response_format` that asks for JSON of a schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, **more}}


def read_whole(body: bytes, context: AnswerContext) -> WholeAnswer:
    """Return an engine's whole answer. Raises Fault."""
    answer = openai_answers.read_answer(body, context)
    chat = decode(_chat, body, "answer")
    if len(chat.choices) != 1 or chat.choices[0].message is None:
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without exactly one message")
    choice = chat.choices[0]
    return WholeAnswer(answer, chat, choice.message, find_finish(choice))  # type: ignore[arg-type]  # checked above


def find_finish(choice: ChatChoice) -> Finish:
    """Return how a choice ended."""
    return Finish(choice.finish_reason, choice.stop_reason if type(choice.stop_reason) is str else None)


def strip_id(chat: ChatAnswer) -> str:
    """Return the part of an answer's id that can be used under another prefix."""
    id = (chat.id or "").removeprefix("chatcmpl-").removeprefix("chatcmpl")
    return id if id.isascii() and id.replace("-", "").replace("_", "").isalnum() and len(id) <= 128 else "0"


class TranslatedStream(ABC):
    """Reads one stream of chat completions and returns the events of another API. For the attributes see `openai_stream.OpenAIStream`.

    A subclass writes events: the beginning, the pieces of output as they come, and the end. Pieces of one kind that follow each other are
    one part of the answer.
    """

    __slots__ = (
        "_calls",
        "_chat",
        "_context",
        "_finish",
        "_has_begun",
        "anomaly",
        "output",
        "source",
        "template",
        "terminated",
        "terminator",
    )

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._chat = OpenAIStream(context)
        self._has_begun = False
        self._calls = -1
        self._finish = Finish(None, None)
        self.output = 0
        self.source = UsageSource.NONE
        self.anomaly: Anomaly | None = None
        self.terminated = False
        self.terminator = b""
        self.template: EventTemplate | None = None

    @property
    def used(self) -> Quantities | None:
        """The best knowledge of what was used so far, from the engine's own stream."""
        return self._chat.used

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """Return None: every event is translated."""
        return None

    def read(self, event: bytes) -> bytes | None:
        """Read one event of the engine's. Return the events that it becomes, or None. Raises Fault."""
        chat = self._chat
        relayed = chat.read(event)
        self.output, self.source, self.anomaly = chat.output, chat.source, chat.anomaly
        out = b""
        if relayed is not None:
            out = self._translate(decode(_chat, relayed[6:-2], "event"))
        if chat.terminated and not self.terminated:
            if not self._has_begun:
                raise Fault(faults.UPSTREAM_INVALID, detail="a stream without choices")
            self.terminated = True
            self.terminator = self.end(self._finish, chat.used or NOTHING)
        return out or None

    def _translate(self, chat: ChatAnswer) -> bytes:
        out = b""
        if not self._has_begun:
            self._has_begun = True
            out = self.begin(chat, self._chat.used or NOTHING)
        for choice in chat.choices:
            delta = choice.delta
            if delta is not None:
                reasoning = delta.reasoning_content or delta.reasoning
                if reasoning:
                    out += self.add_reasoning(reasoning)
                if delta.content:
                    out += self.add_text(delta.content)
                if delta.refusal:
                    out += self.add_refusal(delta.refusal)
                for call in delta.tool_calls or ():
                    out += self._add_call(call)
            if choice.finish_reason is not None:
                self._finish = find_finish(choice)
        return out

    def _add_call(self, call: ToolCall) -> bytes:
        index = self._calls if call.index is None else call.index
        function = call.function or _Function()
        out = b""
        if index == self._calls + 1 and index < _CALLS_MAX:
            self._calls = index
            if not function.name:
                raise Fault(faults.UPSTREAM_INVALID, detail="a call of a tool without a name")
            out = self.begin_call(call.id or f"call_{index}", function.name)
        elif index != self._calls or index < 0:
            raise Fault(faults.UPSTREAM_INVALID, detail="calls of tools out of order")
        return out + self.add_arguments(function.arguments) if function.arguments else out

    # Written by the API's own subclass.

    @abstractmethod
    def begin(self, chat: ChatAnswer, used: Quantities) -> bytes:
        """Return the events that begin the answer. `used`: what is known of the input already."""

    @abstractmethod
    def add_reasoning(self, text: str) -> bytes:
        """Return the events for more reasoning."""

    @abstractmethod
    def add_text(self, text: str) -> bytes:
        """Return the events for more text."""

    @abstractmethod
    def add_refusal(self, text: str) -> bytes:
        """Return the events for more of a refusal."""

    @abstractmethod
    def begin_call(self, id: str, name: str) -> bytes:
        """Return the events that begin a call of a function."""

    @abstractmethod
    def add_arguments(self, text: str) -> bytes:
        """Return the events for more arguments of the call that was begun last."""

    @abstractmethod
    def end(self, finish: Finish, used: Quantities) -> bytes:
        """Return the events that end the answer."""
