"""Bodies of `multipart/form-data` (RFC 7578), read so that no second reading is left.

A form is accepted in the one shape that clients write: no preamble, no epilogue, CR LF everywhere, a delimiter line without padding, and of
header fields `content-disposition` and `content-type` alone. What an engine is sent is written anew around the client's bytes, with a
boundary that the client cannot have known, so that an engine cannot find other parts in it than were checked.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate
from typing import Any, Final

import msgspec

from tollway.domain.faults import FORM_INVALID, KEY_DUPLICATED, MEDIA_TOO_LARGE, PARAMETER_INVALID, Fault
from tollway.wire import bodies
from tollway.wire.media_types import find_parameter

PARTS_MAX: Final = 64
"""Most parts of a form. OpenAI's largest has 16 images, a mask and 20 fields."""
HEADER_BYTES_MAX: Final = 2048
"""Longest header of a part: two lines and a file name."""
TEXT_BYTES_MAX: Final = 128 * 1024
"""Longest value of a part that is no file: a prompt of 32,000 characters of four bytes."""

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}")
"""Boundaries by RFC 2046, section 5.1.1, without the space."""
_DISPOSITION = re.compile(
    rb'form-data; ?name="([^"\\\r\n\0]{1,160})"(?:; ?filename="([^"\\\r\n\0]{0,1024})")?'
    rb"(?:; ?filename\*=[!#$&+.^_`|~0-9A-Za-z'%-]{1,1024})?"
)
_MEDIA_TYPE = re.compile(rb"[!#$&^_.+0-9A-Za-z-]{1,64}/[!#$&^_.+0-9A-Za-z-]{1,64}(?:; ?[!-~ ]{1,128})?")
_NAME = re.compile(r"([A-Za-z0-9_]{1,64})(?:\[([A-Za-z0-9_]{0,64})\])?")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?")


class FormKind(StrEnum):
    """Type of the value of a field: a form itself knows texts and files alone."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    OPEN = "open"  # a number or a boolean where it looks like one, else a text


class File(msgspec.Struct, frozen=True):
    """A file in a form, from `start` to `end` in its `body`. `name`: as the client wrote it."""

    body: bytes
    start: int
    end: int
    name: str = ""

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.end - self.start

    def read(self, at: int, count: int) -> bytes:
        """Return `count` bytes from `at` on; fewer at the end."""
        return self.body[self.start + at : min(self.start + at + count, self.end)]


class Part(msgspec.Struct, frozen=True, gc=False):
    """One part: its name as it stands there, where its header begins, where its content begins and where that ends. `file_name`: None for
    a part that is no file."""

    name: str
    start: int
    content: int
    end: int
    file_name: str | None


def find_boundary(content_type: bytes) -> bytes | None:
    """Return the boundary that a `content-type` names; None if that is not multipart/form-data with one that can be."""
    boundary = find_parameter(content_type, b"multipart/form-data", b"boundary")
    return boundary if boundary is not None and _BOUNDARY.fullmatch(boundary) else None


def read_parts(body: bytes, boundary: bytes) -> list[Part]:
    """Return the parts of a form. Raises Fault invalid_form."""
    opening, delimiter = b"--%b\r\n" % boundary, b"\r\n--%b" % boundary
    if not body.startswith(opening):
        raise _invalid("It does not begin with its boundary.")
    parts: list[Part] = []
    at = len(opening)
    while True:
        if len(parts) == PARTS_MAX:
            raise _invalid(f"It has more than {PARTS_MAX} parts.")
        end_of_header = body.find(b"\r\n\r\n", at, at + HEADER_BYTES_MAX)
        if end_of_header < 0:
            raise _invalid(f"The header of a part does not end within {HEADER_BYTES_MAX} bytes.")
        content = end_of_header + 4
        # The delimiter of an empty part begins with the end of its header.
        end = body.find(delimiter, end_of_header + 2)
        if end < 0:
            raise _invalid("Its last part does not end with the boundary.")
        parts.append(_read_header(body[at:end_of_header], at, content, max(end, content)))
        after = end + len(delimiter)
        if body.startswith(b"\r\n", after):
            at = after + 2
        elif body[after:] in (b"--", b"--\r\n"):
            return parts
        else:
            raise _invalid("Something follows its boundary.")


def _read_header(header: bytes, start: int, content: int, end: int) -> Part:
    name: bytes | None = None
    file_name: bytes | None = None
    has_type = False
    for line in header.split(b"\r\n"):
        field, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        match field.lower() if colon else b"":
            case b"content-disposition" if name is None:
                found = _DISPOSITION.fullmatch(value)
                if found is None:
                    raise _invalid("The content-disposition of a part is not that of a field of a form.")
                name, file_name = found.groups()
            case b"content-type" if not has_type:
                if _MEDIA_TYPE.fullmatch(value) is None:
                    raise _invalid("The content-type of a part cannot be read.")
                has_type = True
            case _:
                raise _invalid("A part may have one content-disposition and one content-type, and no other header fields.")
    if name is None:
        raise _invalid("A part has no content-disposition.")
    try:
        return Part(name.decode(), start, content, end, None if file_name is None else file_name.decode())
    except UnicodeDecodeError:
        raise _invalid("The name of a part is not UTF-8.") from None


def read_fields(body: bytes, parts: Sequence[Part], kinds: Mapping[str, FormKind]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields of a form by name, and the name of the field that each part belongs to.

    `field[]` adds to a list, `field[key]` to an object, as OpenAI's clients write them; a name without brackets stands once. Files are
    `File`. Texts are turned into what `kinds` says where they are written as that; else they stay texts, for the field's check to refuse.
    Raises Fault invalid_form, duplicate_key, invalid_value or media_too_large.
    """
    fields: dict[str, Any] = {}
    names: list[str] = []
    for part in parts:
        found = _NAME.fullmatch(part.name)
        if found is None:
            raise _invalid("The name of a field is none of this API.")
        name, key = found.groups()
        names.append(name)
        value = _read_value(body, part, name, kinds.get(name, FormKind.OPEN))
        if key is None:
            if name in fields:
                raise Fault(KEY_DUPLICATED, param=name)
            fields[name] = value
        elif key == "":
            held = fields.setdefault(name, [])
            if type(held) is not list:
                raise Fault(KEY_DUPLICATED, param=name)
            held.append(value)
        else:
            members = fields.setdefault(name, {})
            if type(members) is not dict or key in members:
                raise Fault(KEY_DUPLICATED, param=name)
            members[key] = value
    return fields, tuple(names)


def _read_value(body: bytes, part: Part, name: str, kind: FormKind) -> Any:
    if part.file_name is not None:
        return File(body, part.content, part.end, part.file_name)
    if part.end - part.content > TEXT_BYTES_MAX:
        message = f"The value of '{name}' may have at most {TEXT_BYTES_MAX} bytes."
        raise Fault(MEDIA_TOO_LARGE, param=name, message=message)
    try:
        text = body[part.content : part.end].decode()
    except UnicodeDecodeError:
        raise Fault(PARAMETER_INVALID, param=name, message=f"The value of '{name}' is not UTF-8.") from None
    if kind in (FormKind.BOOLEAN, FormKind.OPEN) and text in ("true", "false"):
        return text == "true"
    if kind is not FormKind.TEXT and kind is not FormKind.BOOLEAN and _INTEGER.fullmatch(text):
        return int(text)
    if kind in (FormKind.NUMBER, FormKind.OPEN) and _NUMBER.fullmatch(text):
        return float(text)
    return text


def list_spans(parts: Sequence[Part]) -> tuple[int, ...]:
    """Return where the header of each part begins and where its content ends: two numbers for each, in order."""
    return tuple(place for part in parts for place in (part.start, part.end))


def edit_pieces(
    pieces: Sequence[bytes],
    names: Sequence[str],
    spans: Sequence[int],
    injected: Mapping[str, bytes],
    dropped: Collection[str],
    boundary: bytes,
) -> list[bytes]:
    """Return the form in `pieces`, whose parts belong to these fields and have these places, with our fields set and some left out, around
    another boundary. Pieces of which all is kept are not copied. `injected`: texts, numbers and booleans as JSON, by name."""
    left_out = frozenset(injected).union(dropped)
    ends = list(accumulate(map(len, pieces)))
    edited: list[bytes] = []
    for name, value in injected.items():
        read = msgspec.json.decode(value)
        text = read.encode() if isinstance(read, str) else value
        edited.append(b'--%b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary, name.encode(), text))
    for index, name in enumerate(names):
        if name not in left_out:
            edited.append(b"--%b\r\n" % boundary)
            edited += bodies.cut_pieces(pieces, ends, spans[2 * index], spans[2 * index + 1])
            edited.append(b"\r\n")
    edited.append(b"--%b--\r\n" % boundary)
    return edited


def _invalid(message: str) -> Fault:
    return Fault(FORM_INVALID, message=f"The form in the request body cannot be read. {message}")
