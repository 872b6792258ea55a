"""Answers about sound and images, whole and at once, without a place in the engine: as long as the file is, or the text. In the truth log
each stands with its units.

Forms are read by their boundary alone. What is not asked for by name has no effect.
"""

import base64
import math
import struct
import zlib
from typing import NamedTuple

import msgspec

from tollway.simulator.requests import Refused, bad_request

_SIZE_USUAL, _SIDE_MAX = "1024x1024", 4096
_SAMPLES_PER_SECOND = 8_000
_CHARACTERS_PER_SECOND = 15
_WAVE = b"audio/wav"
_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"


class _Speech(msgspec.Struct):
    input: str
    model: str | None = None


_SPEECH = msgspec.json.Decoder(_Speech)


class _Drawing(msgspec.Struct):
    prompt: str
    model: str | None = None
    n: int = 1
    size: str = _SIZE_USUAL


_DRAWING = msgspec.json.Decoder(_Drawing)


class MediaAnswer(NamedTuple):
    """Content type and body of an answer. `units`: its images, seconds or characters. `pixels`: of all of its images together."""

    kind: bytes
    body: bytes
    units: int
    pixels: int = 0


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
        return _draw(int(asked.get("n", b"1")), asked.get("size", b"").decode("latin-1") or _SIZE_USUAL)
    if path == b"/v1/images/generations":
        try:
            drawing = _DRAWING.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise bad_request(str(error)) from None
        return _draw(drawing.n, drawing.size)
    return None


def _draw(count: int, size: str) -> MediaAnswer:
    """Black pictures of the size that is asked for, as PNG with a bit for each pixel."""
    width, _, height = (_SIZE_USUAL if size == "auto" else size).partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) <= _SIDE_MAX and 0 < int(height) <= _SIDE_MAX):
        raise bad_request(f"a size is WIDTHxHEIGHT, each at most {_SIDE_MAX}", "size")
    rows = bytes(1 + (int(width) + 7) // 8) * int(height)
    head = struct.pack(">IIBBBBB", int(width), int(height), 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    picture = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks
    )
    data = [{"b64_json": base64.b64encode(picture).decode()}] * count
    return MediaAnswer(_JSON, msgspec.json.encode({"created": 0, "data": data}), count, count * int(width) * int(height))


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
