"""OpenAI's transcription and translation of speech: POST /v1/audio/transcriptions and /v1/audio/translations, whole and streamed.

A body is a form with a file. What is metered are the seconds of its sound, as the engine reports them, and tokens where it reports those.
Where it reports no seconds, they are an estimate by the file's format (`media.sounds`), and the record says so.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import OtherClasses, Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly, UsageSource
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import Answer, AnswerContext, Measure, UsageReport
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.engine_errors import check_no_error, is_error_event, is_named_error, read_fault
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent, rename_model
from tollway.gateway.dialects.engine_usage import check_report, read_counts
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.media import sounds
from tollway.gateway.media.bounds import MediaBounds
from tollway.native import EventTemplate
from tollway.wire import sse
from tollway.wire.errors import openai_error
from tollway.wire.forms import FormKind

INPUT_TOKENS_PER_SECOND_MAX = 50
"""Most tokens that known models make of a second of sound: Whisper's encoder has 1,500 for 30 seconds."""
OUTPUT_TOKENS_PER_SECOND_MAX = 15
"""Most tokens of a transcript for a second of sound: Whisper writes at most 448 for 30 seconds."""
OUTPUT_TOKENS_LEAST = 448
"""Most tokens of the shortest transcript."""
TOKENS_PER_SECOND_TYPICAL = 5
"""Tokens of speech for a second, with times."""
CHARACTERS_PER_SECOND = 25
"""Characters of a transcript for each second that is billed of a stream that was cut: faster than people speak, so rather too few
seconds."""
LANGUAGES_MAX = 16

_short = fields.nullable(fields.text_up_to(64))

TRANSLATION_FIELDS: dict[str, Check] = {
    "file": fields.file,
    "model": fields.text,
    "prompt": fields.nullable(fields.text_up_to(32_000)),
    "response_format": fields.nullable(fields.one_of("json", "text", "srt", "verbose_json", "vtt")),
    "stream": fields.nullable(fields.boolean),
    "temperature": fields.nullable(fields.number(0, 1)),
}
TRANSCRIPTION_FIELDS: dict[str, Check] = TRANSLATION_FIELDS | {
    "chunking_strategy": Check(lambda value: value == "auto" or type(value) is dict),
    "include": fields.list_of(8, fields.text_up_to(64)),
    "keywords": fields.list_of(1024, fields.text_up_to(256)),
    "known_speaker_names": fields.refused("Samples of voices are not taken."),
    "known_speaker_references": fields.refused("Samples of voices are not taken."),
    "language": _short,
    "languages": fields.list_of(LANGUAGES_MAX, fields.text_up_to(64)),
    "response_format": fields.nullable(fields.one_of("json", "text", "srt", "verbose_json", "vtt", "diarized_json")),
    "timestamp_granularities": fields.list_of(2, fields.one_of("word", "segment")),
}
_TEXT_FORMATS = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}
_KINDS = {"temperature": FormKind.NUMBER, "stream": FormKind.BOOLEAN} | dict.fromkeys(
    ("model", "prompt", "language", "response_format", "languages", "keywords", "include", "chunking_strategy"), FormKind.TEXT
)


def measure(asked: Mapping[str, Any], bounds: MediaBounds) -> Measure:
    """Return what a request can use. Raises Fault for a file that is no sound, or too large."""
    file = asked["file"]
    length = sounds.measure(file, "file", bounds)
    return Measure(
        input_tokens=length.seconds * INPUT_TOKENS_PER_SECOND_MAX,
        input_tokens_max=length.seconds_max * INPUT_TOKENS_PER_SECOND_MAX,
        output_tokens=length.seconds * TOKENS_PER_SECOND_TYPICAL,
        output_tokens_max=length.seconds_max * OUTPUT_TOKENS_PER_SECOND_MAX + OUTPUT_TOKENS_LEAST,
        seconds=length.seconds,
        seconds_max=length.seconds_max,
        file_bytes=file.size,
        answers_text=asked.get("response_format") in _TEXT_FORMATS,
    )


class _Answer(msgspec.Struct):
    object: msgspec.Raw = ABSENT
    text: str | None = None
    usage: msgspec.Raw = ABSENT
    duration: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class _Usage(msgspec.Struct):
    type: str = ""
    seconds: float | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Event(msgspec.Struct):
    """An event of OpenAI's stream (`type`), or of vLLM's, which has the shape of chat completions (`choices`)."""

    type: str = ""
    delta: str = ""
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_answer = msgspec.json.Decoder(_Answer)
_usage = msgspec.json.Decoder(_Usage)
_event = msgspec.json.Decoder(_Event)
_seconds = msgspec.json.Decoder(float)
_text_seconds = msgspec.json.Decoder(str)


def _read_usage(raw: msgspec.Raw, duration: msgspec.Raw, context: AnswerContext) -> tuple[Quantities, Anomaly | None, UsageSource]:
    """Return what an answer with this usage object and this duration used, as far as it can be believed."""
    measured = context.measure or Measure()
    used, anomaly = Quantities(), None
    seconds = _read_duration(duration)
    if not is_absent(raw):
        stated = _read_stated(raw)
        if stated is not None and stated.type == "duration":
            seconds = stated.seconds
        else:
            report = _read_tokens(raw)
            found, anomaly = check_report(report, context)
            used = found or used
    source = UsageSource.ENGINE_FINAL
    if seconds is None or not 0 <= seconds < 1e9:
        anomaly = anomaly if seconds is None else Anomaly.INVALID
        whole, source = measured.seconds, UsageSource.ESTIMATED
    else:
        whole = math.ceil(seconds)
        if whole > measured.seconds_max:
            whole, anomaly = measured.seconds_max, Anomaly.INFLATED
    other = msgspec.structs.replace(used.other or OtherClasses(), seconds=whole)
    return msgspec.structs.replace(used, other=other), anomaly, source


def _read_stated(raw: msgspec.Raw) -> _Usage | None:
    try:
        return _usage.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def _read_duration(raw: msgspec.Raw) -> float | None:
    """Return the length of the sound by a transcript with times, which older engines write as a text."""
    if is_absent(raw):
        return None
    try:
        return float(_text_seconds.decode(raw)) if bytes(raw).startswith(b'"') else _seconds.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _read_tokens(raw: msgspec.Raw) -> UsageReport:
    """Return the tokens of a usage object, in OpenAI's words for audio or those of chat completions."""
    counts = read_counts(raw)
    if counts is None:
        return UsageReport(Quantities(), Anomaly.INVALID, has_input=False, has_output=False)
    names = ("prompt_tokens", "completion_tokens") if counts.has("prompt_tokens") else ("input_tokens", "output_tokens")
    input, output = counts.read(names[0]), counts.read(names[1])
    audio = min(counts.read_detail("input_token_details", "audio_tokens") or 0, input or 0)
    return UsageReport(
        Quantities((input or 0) - audio, output=output or 0, other=OtherClasses(audio_input=audio) if audio else None),
        Anomaly.INVALID if counts.is_odd else None,
        has_input=input is not None,
        has_output=output is not None,
    )


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it is no transcript."""
    measured = context.measure or Measure()
    if measured.answers_text and not _is_object(body):
        try:
            body.decode()
        except UnicodeDecodeError:
            raise Fault(faults.UPSTREAM_INVALID, detail="a transcript that is not UTF-8") from None
        used = Quantities(other=OtherClasses(seconds=measured.seconds))
        return Answer(body, used, None, UsageSource.ESTIMATED, b"text/plain; charset=utf-8")
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    if answer.text is None:
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without a transcript")
    used, anomaly, source = _read_usage(answer.usage, answer.duration, context)
    return Answer(rename_model(body, context), used, anomaly, source)


def _is_object(body: bytes) -> bool:
    """Return whether an answer in place of a plain transcript is an object, as some engines answer whatever was asked."""
    try:
        return body.startswith(b"{") and bool(_answer.decode(body))
    except (msgspec.DecodeError, RecursionError):
        return False


class TranscriptStream:
    """Reads the events of a streamed transcript, OpenAI's or vLLM's; see `openai_stream.OpenAIStream` for the attributes."""

    __slots__ = (
        "_characters",
        "_context",
        "_events",
        "_usage",
        "anomaly",
        "output",
        "source",
        "template",
        "terminated",
        "terminator",
        "used",
    )

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._events = self._characters = 0
        self._usage = ABSENT
        self.output = 0
        self.used: Quantities | None = None
        self.source = UsageSource.NONE
        self.anomaly: Anomaly | None = None
        self.terminated = False
        self.terminator = b""
        self.template: EventTemplate | None = None

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """Return None: no event of these streams is worth a way of its own."""
        return None

    def read(self, event: bytes) -> bytes | None:
        """Read one event; returns what to relay, or None for nothing. Raises Fault."""
        if self.terminated:
            return None
        data = sse.find_data(event)
        if data is None:
            if is_named_error(event):
                raise read_fault(b"", 200, self._context.engine, first=not self._events)
            return None
        if data == b"[DONE]":
            if self._events:
                self._end(b"data: [DONE]\n\n")
            return None
        data = data.replace(b"\n", b" ")
        read = decode(_event, data, "event")
        if not is_absent(read.error) or is_error_event(event, data):
            raise read_fault(data, 200, self._context.engine, first=not self._events)
        self._events += 1
        if not is_absent(read.usage):
            self._usage = read.usage
        self._characters += len(read.delta)
        for choice in read.choices or ():
            if choice.delta is not None and choice.delta.content is not None:
                self._characters += len(choice.delta.content)
        relayed = b"data: %b\n\n" % rename_model(data, self._context)
        if read.type != "transcript.text.done":
            return relayed
        self._end(relayed)
        return None

    def _end(self, terminator: bytes) -> None:
        self.used, self.anomaly, self.source = _read_usage(self._usage, ABSENT, self._context)
        self.terminated, self.terminator = True, terminator

    def find_used_if_cut(self) -> Quantities:
        """Return the seconds that the transcript so far is of, at the speed of a fast speaker."""
        measured = self._context.measure or Measure()
        seconds = min(-(-self._characters // CHARACTERS_PER_SECOND), measured.seconds)
        return Quantities(other=OtherClasses(seconds=seconds)) if seconds else Quantities()


TRANSCRIPTIONS: Dialect = Dialect(
    endpoint=Endpoint.AUDIO_TRANSCRIPTIONS,
    fields=TRANSCRIPTION_FIELDS,
    required=("file", "model"),
    form_kinds=_KINDS,
    measure=measure,
    read_answer=read_answer,
    new_stream=TranscriptStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)

TRANSLATIONS: Dialect = Dialect(
    endpoint=Endpoint.AUDIO_TRANSLATIONS,
    fields=TRANSLATION_FIELDS,
    required=("file", "model"),
    form_kinds=_KINDS,
    measure=measure,
    read_answer=read_answer,
    new_stream=TranscriptStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
