"""The wire format of Protocol Buffers, as far as messages are read without their types: which fields stand where.

Source: <https://protobuf.dev/programming-guides/encoding/>. A message is walked once over its top level; a value is neither copied nor
looked into. Groups, which proto3 does not have, are refused.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

FIELDS_MAX: Final = 4_096
"""Fields of one message, repeated ones each. Reading one takes about a microsecond."""
VARINT_BYTES_MAX: Final = 10
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""


class MessageInvalid(ValueError):
    """Bytes that are no message, or one of more fields than may be read."""


class Field(NamedTuple):
    """A field of a message. `kind`: its wire type. `begin`: where its tag stands; `start`, `end`: its value, without a length. `value`:
    of a varint; 0 for others."""

    number: int
    kind: int
    begin: int
    start: int
    end: int
    value: int


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a varint and where it ends. Raises MessageInvalid."""
    value = shift = 0
    for place in range(at, min(end, at + VARINT_BYTES_MAX)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
        shift += 7
    raise MessageInvalid("a varint that does not end")


def read_fields(data: bytes, at: int = 0, end: int | None = None, *, fields_max: int = FIELDS_MAX) -> Iterator[Field]:
    """Yield the fields of the message in data[at:end], in their order. Raises MessageInvalid."""
    end = len(data) if end is None else end
    count = 0
    while at < end:
        count += 1
        if count > fields_max:
            raise MessageInvalid("too many fields")
        begin = at
        tag, at = read_varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        value = 0
        start = at
        if kind == VARINT:
            value, at = read_varint(data, at, end)
        elif kind == BYTES:
            size, start = read_varint(data, at, end)
            at = start + size
        elif kind == FIXED32:
            at += 4
        elif kind == FIXED64:
            at += 8
        else:
            raise MessageInvalid("a wire type that there is not")
        if at > end or not 0 < number < 1 << 29:
            raise MessageInvalid("a field that does not fit")
        yield Field(number, kind, begin, start, at, value)


def read_text(data: bytes, field: Field) -> str:
    """Return the text that a field holds. Raises MessageInvalid."""
    if field.kind != BYTES:
        raise MessageInvalid("no text")
    try:
        return data[field.start : field.end].decode()
    except UnicodeDecodeError:
        raise MessageInvalid("a text that is not UTF-8") from None


def read_varints(data: bytes, field: Field, count_max: int) -> list[int]:
    """Return the integers of a repeated field: one, or as many as are packed. Raises MessageInvalid for more than `count_max`."""
    if field.kind == VARINT:
        return [field.value]
    if field.kind != BYTES:
        raise MessageInvalid("no integers")
    values: list[int] = []
    at = field.start
    while at < field.end:
        value, at = read_varint(data, at, field.end)
        values.append(value)
        if len(values) > count_max:
            raise MessageInvalid("too many integers")
    return values


def to_signed(value: int) -> int:
    """Return the int64 that a varint stands for."""
    return value - (1 << 64) if value >> 63 else value


def varint(value: int) -> bytes:
    """Return a varint. `value`: not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_bytes(number: int, value: bytes) -> bytes:
    """Return a field of bytes, a text or a message; nothing for an empty one, as proto3 has it."""
    return varint(number << 3 | BYTES) + varint(len(value)) + value if value else b""


def encode_int(number: int, value: int) -> bytes:
    """Return a field of an integer or a boolean; nothing for 0, as proto3 has it."""
    return varint(number << 3 | VARINT) + varint(value & 0xFFFF_FFFF_FFFF_FFFF) if value else b""
