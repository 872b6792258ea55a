"""Answers about sound and images, whole and at once, without a place in the engine: as long as the file is, or the text. In the truth log
each stands with its units.

Forms are read by their boundary alone. What is not asked for by name has no effect.
"""

import math
from typing import NamedTuple

import msgspec

from tollway.simulator.requests import Refused, bad_request

_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
_SAMPLES_PER_SECOND = 8_000
_CHARACTERS_PER_SECOND = 15
_WAVE = b"audio/wav"
_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"


class _Speech(msgspec.Struct):
    input: str
    model: str | None = None


_SPEECH = msgspec.json.Decoder(_Speech)


class MediaAnswer(NamedTuple):
    """Content type and body of an answer. `units`: its images, seconds or characters."""

    kind: bytes
    body: bytes
    units: int


def answer(path: bytes, body: bytes) -> MediaAnswer | None:
    """The answer to a POST; None for a path of another API. Raises Refused (400)."""
    if path == b"/v1/audio/speech":
        return _speak(body)
    if path in (b"/v1/audio/transcriptions", b"/v1/audio/translations"):
        return _transcribe(_read_form(body))
    if path in (b"/v1/images/edits", b"/v1/images/variations"):
        asked = _read_form(body)
        if not any(name.startswith("image") for name in asked):
            raise bad_request("image is required", "image")
        count = int(asked.get("n", b"1"))
        return MediaAnswer(_JSON, msgspec.json.encode({"created": 0, "data": [{"b64_json": _PICTURE}] * count}), count)
    return None


def _speak(body: bytes) -> MediaAnswer:
    """Silence of the length that the text takes to be spoken, as WAV."""
    try:
        asked = _SPEECH.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "Bad Request", str(error)) from None
    size = math.ceil(len(asked.input) / _CHARACTERS_PER_SECOND * _SAMPLES_PER_SECOND)
    header = b"RIFF%bWAVEfmt \x10\0\0\0\x01\0\x01\0%b%b\x01\0\x08\0data%b"
    rate = _SAMPLES_PER_SECOND.to_bytes(4, "little")
    sound: bytes = header % ((size + 36).to_bytes(4, "little"), rate, rate, size.to_bytes(4, "little")) + b"\x80" * size
    return MediaAnswer(_WAVE, sound, len(asked.input))


def _transcribe(asked: dict[str, bytes]) -> MediaAnswer:
    file = asked.get("file")
    if file is None:
        raise bad_request("file is required", "file")
    rate = int.from_bytes(file[28:32], "little") if file[:4] == b"RIFF" else _SAMPLES_PER_SECOND
    seconds = math.ceil(len(file) / max(rate, 1))
    text = "word " * seconds
    if asked.get("response_format") in (b"text", b"srt", b"vtt"):
        return MediaAnswer(_TEXT, text.encode(), seconds)
    return MediaAnswer(_JSON, msgspec.json.encode({"text": text, "usage": {"type": "duration", "seconds": seconds}}), seconds)


def _read_form(body: bytes) -> dict[str, bytes]:
    """The parts of a form by name."""
    delimiter = body.partition(b"\r\n")[0]
    if not delimiter.startswith(b"--"):
        raise bad_request("the body is not a form")
    found: dict[str, bytes] = {}
    for part in body.split(delimiter)[1:-1]:
        header, _, content = part.partition(b"\r\n\r\n")
        name = header.partition(b'name="')[2].partition(b'"')[0]
        found[name.decode("latin-1")] = content.removesuffix(b"\r\n")
    return found
