"""Bounds on media inside messages: `data:` URLs, and base64 beside its media type.

Engines decode media with decoders that expand little data to much, in memory that all tenants share. Bytes, parts, frames, types and
pixels are therefore bounded before an engine gets the request. Only the first bytes of pictures are decoded here (`pictures`).
"""

import re

import msgspec

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.media.pictures import Encoded, PictureInvalid, find_size

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
"""With a length that is a multiple of four: RFC 4648, section 4, padded. 32 MiB take 30 ms, as long as reading the body as JSON."""
_HEAD_MAX = 128
"""Characters of a data: URL up to its comma; the longest type accepted by default has 15."""
_ENCODING = ";base64"
_MEASURED = frozenset({"image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp"})
"""Types whose data must be a picture in one of these formats, not necessarily the declared one: programs mix them up, and decoders go by
the content."""
TOKENS_MAX = {"image/": 32_768, "audio/": 65_536, "video/": 262_144, "": 262_144}
"""Most input tokens of one part, by how its media type begins: twice what the processors of known models make of the largest input (16,384
for a picture, an hour of sound, a model's whole context for a film or a file). The bytes say little, because a link has none and small
pictures are enlarged."""
_FRAMES = "video/jpeg"
"""Media type of vLLM for a film given as pictures, separated by commas."""


class MediaBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on the media in the messages of one request.

    `parts_max`: pictures, sounds, films and files, links among them. `part_bytes_max`, `request_bytes_max`: decoded bytes of data in one
    part, and in all. `frames_max`: pictures in one `video/...;base64,` list. `pixels_max`, `request_pixels_max`: of one picture or frame
    as its header states, and of all. `types`: media types that are taken.
    """

    parts_max: int = 128
    part_bytes_max: int = 20 * 1024 * 1024
    request_bytes_max: int = 24 * 1024 * 1024
    frames_max: int = 128
    pixels_max: int = 64_000_000
    request_pixels_max: int = 512_000_000
    types: tuple[str, ...] = (
        "image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp",
        "video/jpeg", "video/mp4", "video/webm", "video/quicktime",
        "audio/wav", "audio/x-wav", "audio/mpeg", "audio/mp3", "audio/mp4", "audio/m4a",
        "audio/flac", "audio/ogg", "audio/opus", "audio/webm",
        "application/pdf", "text/plain",
    )  # fmt: skip


class Tally:
    """Counts the media in the messages of one request. `tokens_max`: most tokens that a model can read them as."""

    __slots__ = ("_bounds", "_bytes", "_parts", "_pixels", "tokens_max")

    def __init__(self, bounds: MediaBounds) -> None:
        self._bounds = bounds
        self._parts = self._bytes = self._pixels = 0
        self.tokens_max = 0

    def count_part(self, kind: str, place: str) -> None:
        """Count one more part with media of a type that begins with `kind`. Raises Fault invalid_media."""
        self._parts += 1
        self.tokens_max += TOKENS_MAX[kind]
        if self._parts > self._bounds.parts_max:
            raise refuse(place, f"The messages have more than {self._bounds.parts_max} images, sounds, films and files.")

    def add_url(self, url: str, kind: str, place: str) -> None:
        """Add the data of a `data:` URL (RFC 2397, in base64 and without parameters), of a type that begins with `kind`.

        Raises Fault invalid_media or media_too_large.
        """
        comma = url.find(",", 0, _HEAD_MAX)
        head = url[5:comma].lower()
        if comma < 0 or not head.endswith(_ENCODING):
            raise refuse(place, "A data: URL must be `data:<media type>;base64,<data>`.")
        self.add(url, comma + 1, head.removesuffix(_ENCODING), kind, place)

    def add(self, text: str, start: int, media_type: str, kind: str, place: str) -> None:
        """Add the base64 in `text` from `start` on, declared as `media_type`. Raises as `add_url` does."""
        bounds = self._bounds
        if media_type not in bounds.types or not media_type.startswith(kind):
            accepted = ", ".join(each for each in bounds.types if each.startswith(kind))
            raise refuse(place, f"This media type is not accepted here. Accepted: {accepted or 'none'}.")
        self._add_bytes((len(text) - start) * 3 // 4 - text.endswith("=") - text.endswith("=="), place)
        if media_type == _FRAMES or (media_type.startswith("video/") and text.find(",", start) >= 0):
            if text.count(",", start) >= bounds.frames_max:
                raise refuse(place, f"A film may have at most {bounds.frames_max} frames.")
            for frame in text[start:].split(","):
                self._add_picture(frame, 0, is_picture=True, place=place)
        else:
            self._add_picture(text, start, is_picture=media_type in _MEASURED, place=place)

    def _add_bytes(self, size: int, place: str) -> None:
        bounds = self._bounds
        self._bytes += size
        if size > bounds.part_bytes_max:
            raise Fault(faults.MEDIA_TOO_LARGE, param=place, message=f"The data may have at most {bounds.part_bytes_max} bytes.")
        if self._bytes > bounds.request_bytes_max:
            message = f"The data in all messages may have at most {bounds.request_bytes_max} bytes."
            raise Fault(faults.MEDIA_TOO_LARGE, param=place, message=message)

    def _add_picture(self, text: str, start: int, *, is_picture: bool, place: str) -> None:
        """Measure the data if it is a picture by its content, as decoders do. `is_picture`: it must be one."""
        bounds = self._bounds
        if (len(text) - start) % 4 or _BASE64.fullmatch(text, start) is None:
            raise refuse(place, "The data is not valid base64.")
        try:
            found = find_size(Encoded(text, start))
        except PictureInvalid:
            raise refuse(place, "The image is damaged.") from None
        if found is None:
            if is_picture:
                raise refuse(place, "The image is neither PNG, JPEG, GIF nor WebP.")
            return
        name, width, height = found
        if f"image/{name}" not in bounds.types:
            raise refuse(place, "Images of this format are not accepted.")
        self._pixels += width * height
        if width * height > bounds.pixels_max:
            raise refuse(place, f"An image may have at most {bounds.pixels_max} pixels; this one has {width} × {height}.")
        if self._pixels > bounds.request_pixels_max:
            raise refuse(place, f"All images together may have at most {bounds.request_pixels_max} pixels.")


def refuse(place: str, message: str) -> Fault:
    """Return the fault of media that are not accepted."""
    return Fault(faults.MEDIA_INVALID, param=place, message=message)
