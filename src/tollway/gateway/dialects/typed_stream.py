"""Streams whose events are typed: Anthropic's messages and OpenAI's responses. What the two share stands here, once.

An event names its type on a line of its own and in its data, and is relayed with both. Usage is always shown, nothing is a regular event,
and the last event is the terminator, which is held back until FINAL is durable.
"""

import re
from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import Anomaly, UsageSource
from tollway.gateway.dialects.answers import AnswerContext
from tollway.gateway.dialects.engine_errors import is_error_event, is_named_error, read_fault
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent
from tollway.native import EventTemplate
from tollway.wire import sse


class TypedEvent(msgspec.Struct):
    """The data of an event, with the members that either API gives a meaning."""

    type: msgspec.Raw = ABSENT
    delta: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    message: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT


_ERROR = msgspec.Raw(b'"error"')

_event = msgspec.json.Decoder(TypedEvent)
_type = re.compile(rb'"([\x21\x23-\x5b\x5d-\x7e]{1,64})"')
"""A type of an event that can stand on a line of its own as it is."""


class TypedStream(ABC):
    """Reads one stream's events; see `openai_stream.OpenAIStream` for the attributes. `terminator` is the held last event.

    `last_events`: types of the events that end a stream as it should. A subclass reads what its API says in `read_event`.
    """

    __slots__ = ("_context", "_events", "anomaly", "output", "source", "template", "terminated", "terminator", "used")

    last_events: ClassVar[frozenset[bytes]]

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._events = 0
        self.output = 0
        self.used: Quantities | None = None
        self.source = UsageSource.NONE
        self.anomaly: Anomaly | None = None
        self.terminated = False
        self.terminator = b""
        self.template: EventTemplate | None = None

    @abstractmethod
    def read_event(self, name: bytes, data: bytes, event: TypedEvent) -> bytes:
        """Read an event that is no error, of the type `name` (empty if it has none that can be relayed). Return the data to relay. Raises
        Fault."""

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """Return None: no event of these APIs is worth a way of its own."""
        return None

    def read(self, event: bytes) -> bytes | None:
        """Read one event; returns what to relay, or None for nothing. Raises Fault."""
        if self.terminated:
            return None
        data = sse.find_data(event)
        if data is None or data == b"[DONE]":  # some engines write one, which ends nothing here
            if is_named_error(event):
                raise read_fault(b"", 200, self._context.engine, first=not self._events)
            return None
        if b"\n" in data:
            data = data.replace(b"\n", b" ")
        read = decode(_event, data, "event")
        type = _type.fullmatch(read.type)
        name = b"" if type is None else type[1]
        if read.type == _ERROR or not is_absent(read.error) or (not name and is_error_event(event, data)):
            raise read_fault(data, 200, self._context.engine, first=not self._events)
        self._events += 1
        data = self.read_event(name, data, read)
        relayed = b"event: %b\ndata: %b\n\n" % (name, data) if name else b"data: %b\n\n" % data
        if name not in self.last_events:
            return relayed
        self.terminated = True
        self.terminator = relayed
        return None
