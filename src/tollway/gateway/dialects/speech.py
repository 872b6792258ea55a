"""OpenAI's speech: POST /v1/audio/speech, relayed as it comes, as sound or as events.

A request costs the characters of its text, which the gateway counts, and tokens where the engine reports them (in the last event). A client
that leaves after the first sound pays for the whole text, which the engine was given; an engine that breaks off is paid for nothing.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from tollway.domain import faults
from tollway.domain.billing_classes import OtherClasses, Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly, UsageSource
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import Answer, AnswerContext, Measure, UsageReport
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.engine_json import is_absent
from tollway.gateway.dialects.engine_usage import check_report, read_counts
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.typed_stream import TypedEvent, TypedStream
from tollway.gateway.media.bounds import MediaBounds
from tollway.native import EventTemplate
from tollway.wire.errors import openai_error

CHARACTERS_MAX = 4096
"""Longest text of one request, as OpenAI has it."""
OUTPUT_TOKENS_PER_CHARACTER_MAX = 8
"""Most tokens of sound for a character, at a quarter of the usual speed."""
OUTPUT_TOKENS_PER_CHARACTER_TYPICAL = 2

FIELDS: dict[str, Check] = {
    "model": fields.text,
    "input": Check(
        lambda value: type(value) is str and 0 < len(value) <= CHARACTERS_MAX,
        Annotated[str, Meta(min_length=1, max_length=CHARACTERS_MAX)],
        f"A text has 1 to {CHARACTERS_MAX} characters.",
    ),
    "voice": Check(
        lambda value: (
            (type(value) is str and len(value) <= 128)
            or (type(value) is dict and value.keys() == {"id"} and type(value["id"]) is str and len(value["id"]) <= 128)
        ),
        Annotated[str, Meta(max_length=128)],
    ),
    "instructions": fields.nullable(fields.text_up_to(CHARACTERS_MAX)),
    "response_format": fields.nullable(fields.one_of("mp3", "opus", "aac", "flac", "wav", "pcm")),
    "speed": fields.nullable(fields.number(0.25, 4)),
    "stream_format": fields.nullable(fields.one_of("sse", "audio")),
    "user": fields.nullable(fields.text),
}


def measure(asked: Mapping[str, Any], bounds: MediaBounds) -> Measure:
    """Return what a request can use."""
    characters = len(asked["input"])
    return Measure(
        input_tokens=0,
        output_tokens=characters * OUTPUT_TOKENS_PER_CHARACTER_TYPICAL,
        output_tokens_max=characters * OUTPUT_TOKENS_PER_CHARACTER_MAX,
        characters=characters,
    )


def _spoken(context: AnswerContext) -> OtherClasses:
    return OtherClasses(characters=(context.measure or Measure()).characters)


_SOUND = re.compile(rb"(?:audio/[a-z0-9.+-]{1,64}|application/octet-stream)(?:; ?[a-z0-9.+=-]{1,64}){0,4}", re.IGNORECASE)


def is_sound(content_type: bytes) -> bool:
    """Return whether an answer with this content type is sound. No other type that an engine states goes to the client."""
    return _SOUND.fullmatch(content_type) is not None


class SoundReader:
    """Splits sound as it comes, in place of events."""

    has_rest = False

    def feed(self, data: bytes) -> tuple[bytes, ...]:
        """Return what came."""
        return (data,)


class SpeechSound:
    """Sound that is relayed as it comes; see `openai_stream.OpenAIStream` for the attributes. It has ended where its message ends by
    its own framing, which whoever reads it says by setting `terminated`."""

    __slots__ = ("_context", "_has_begun", "anomaly", "output", "source", "template", "terminated", "terminator")

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._has_begun = False
        self.output = 0
        self.source = UsageSource.COUNTED
        self.anomaly: Anomaly | None = None
        self.terminated = False
        self.terminator = b""
        self.template: EventTemplate | None = None

    @property
    def used(self) -> Quantities | None:
        """The characters that were spoken, once all of them were."""
        return Quantities(other=_spoken(self._context)) if self.terminated else None

    def read(self, event: bytes) -> bytes | None:
        """Return what came."""
        self._has_begun = True
        return event

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """Return None: framing is read by the parser."""
        return None

    def find_used_if_cut(self) -> Quantities:
        """Return the characters of the whole text once sound was delivered."""
        return Quantities(other=_spoken(self._context)) if self._has_begun else Quantities()


class SpeechEvents(TypedStream):
    """Sound in events: `speech.audio.delta`, and `speech.audio.done` with the usage."""

    __slots__ = ()

    last_events: ClassVar[frozenset[bytes]] = frozenset({b"speech.audio.done"})

    def read_event(self, name: bytes, data: bytes, event: TypedEvent) -> bytes:
        """Read an event; the last one has the usage."""
        if name in self.last_events:
            used, self.source = Quantities(), UsageSource.COUNTED
            if not is_absent(event.usage):
                found, self.anomaly = check_report(_read_tokens(event.usage), self._context)
                if found is not None:
                    used, self.source = found, UsageSource.ENGINE_FINAL
            other = msgspec.structs.replace(used.other or OtherClasses(), characters=_spoken(self._context).characters)
            self.used = msgspec.structs.replace(used, other=other)
        return data

    def find_used_if_cut(self) -> Quantities:
        """Return the characters of the whole text once an event was delivered."""
        return Quantities(other=_spoken(self._context)) if self._events else Quantities()


def _read_tokens(raw: msgspec.Raw) -> UsageReport:
    counts = read_counts(raw)
    if counts is None:
        return UsageReport(Quantities(), Anomaly.INVALID, has_input=False, has_output=False)
    input, output = counts.read("input_tokens"), counts.read("output_tokens")
    return UsageReport(
        Quantities(input or 0, other=OtherClasses(audio_output=output) if output else None),
        Anomaly.INVALID if counts.is_odd else None,
        has_input=input is not None,
        has_output=output is not None,
    )


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Refuse a body that is neither sound nor events. Raises Fault."""
    raise Fault(faults.UPSTREAM_INVALID, detail="answer without sound")


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.AUDIO_SPEECH,
    fields=FIELDS,
    required=("model", "input"),
    measure=measure,
    read_answer=read_answer,
    new_stream=SpeechEvents,
    new_media=SpeechSound,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
