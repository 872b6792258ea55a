"""Dimensions of a picture, read from its header without decoding it: PNG, JPEG, GIF, WebP.

A few hundred bytes can expand to gigabytes of pixels in an engine. Its decoder trusts the header, so the header is read here, strictly: a
picture is rejected where decoders disagree on which of two sizes counts, or on what may stand between two pieces. Only the bytes that are
examined are decoded from base64, because the size may follow a long profile or preview.
"""

import struct
from binascii import a2b_base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

PIECES_MAX = 1024
"""Chunks, segments or blocks that may stand before a size is known: cameras write dozens, and each costs a microsecond to step over."""

_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers without a segment."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start of frame (ITU-T T.81, table B.1): the size stands in it."""
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9


class PictureInvalid(Exception):
    """The data begins like a picture, but its size cannot be determined."""


class Data(Protocol):
    """Bytes of a file, in whatever form they are held."""

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes from `at` on; fewer at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """Bytes as base64 that was found valid, `start` characters into `text` (to its end), any few of them to be had without decoding the
    rest."""

    text: str
    start: int = 0

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes from `at` on; fewer at the end."""
        first = self.start + at // 3 * 4
        last = self.start + -(-(at + count) // 3) * 4
        skipped = at % 3
        return a2b_base64(self.text[first:last])[skipped : skipped + count]


def find_size(data: Data) -> tuple[str, int, int] | None:
    """Return format, width and height in pixels of the picture that the data begins with; None if it has another format. Raises
    PictureInvalid."""
    head = data.read(0, 12)
    for magic, (name, read) in _FORMATS.items():
        if head.startswith(magic) and (name != "webp" or head[8:] == b"WEBP"):
            try:
                width, height = read(data)
            except (struct.error, IndexError):  # it ends before its size
                raise PictureInvalid from None
            if not width or not height:
                raise PictureInvalid
            return name, width, height
    return None


def _png(data: Data) -> tuple[int, int]:
    """The first chunk has the size (ISO/IEC 15948, 11.2.2). Some decoders let a second one of its kind overrule it."""
    at, size = 8, (0, 0)
    for number in range(PIECES_MAX):
        length, kind = struct.unpack(">I4s", data.read(at, 8))
        if (kind == b"IHDR") is not (number == 0):
            raise PictureInvalid
        if number == 0:
            size = struct.unpack(">II", data.read(at + 8, 8))
        elif kind == b"IDAT":
            return size[0], size[1]
        at += 12 + length
    raise PictureInvalid


def _jpeg(data: Data) -> tuple[int, int]:
    """Segment after segment up to the first scan; exactly one of them is a frame (ITU-T T.81, B.2)."""
    at, size = 2, None
    for _ in range(PIECES_MAX):
        mark, marker = struct.unpack(">BB", data.read(at, 2))
        if mark != 0xFF or marker in (0x00, _JPEG_END):
            raise PictureInvalid
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _JPEG_SCAN:
            break
        if marker in _JPEG_BARE:
            at += 2
            continue
        (length,) = struct.unpack(">H", data.read(at + 2, 2))
        if length < 2:
            raise PictureInvalid
        if marker in _JPEG_FRAMES:
            if size is not None:
                raise PictureInvalid
            height, width = struct.unpack(">HH", data.read(at + 5, 4))
            size = width, height
        at += 2 + length
    else:
        raise PictureInvalid
    if size is None:
        raise PictureInvalid
    return size


def _gif(data: Data) -> tuple[int, int]:
    """The screen's size, or what its first picture covers if that is more: decoders grow the screen for it (GIF89a, 18 and 20)."""
    screen_width, screen_height, flags = struct.unpack("<HHB", data.read(6, 5))
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(PIECES_MAX):
        kind = data.read(at, 1)
        if kind == b"\x2c":
            left, top, width, height = struct.unpack("<HHHH", data.read(at + 1, 8))
            return max(screen_width, left + width), max(screen_height, top + height)
        if kind == b"\x21":  # an extension: its label, then blocks
            at += 2
        else:
            raise PictureInvalid
        while length := data.read(at, 1)[0]:
            at += 1 + length
            if at > _GIF_EXTENSIONS_BYTES_MAX:
                raise PictureInvalid
        at += 1
    raise PictureInvalid


_GIF_EXTENSIONS_BYTES_MAX = 64 * 1024
"""Before the first picture: they come in blocks of at most 255 bytes, so that they are not stepped over in large strides."""


def _webp(data: Data) -> tuple[int, int]:
    """By the kind of the first chunk (RFC 9649, 2.5 to 2.7)."""
    kind, body = data.read(12, 4), data.read(20, 10)
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(_whole(body)[7:10], "little")
    if kind == b"VP8L" and body[:1] == b"\x2f":
        (bits,) = struct.unpack("<I", body[1:5])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise PictureInvalid


def _whole(body: bytes) -> bytes:
    if len(body) < 10:
        raise PictureInvalid
    return body


_FORMATS: dict[bytes, tuple[str, Callable[[Data], tuple[int, int]]]] = {
    b"\x89PNG\r\n\x1a\n": ("png", _png),
    b"\xff\xd8\xff": ("jpeg", _jpeg),
    b"GIF87a": ("gif", _gif),
    b"GIF89a": ("gif", _gif),
    b"RIFF": ("webp", _webp),
}
"""By their first bytes, which is how engines choose a decoder: the declared media type decides nothing there."""
