"""JSON bodies, read so that no second reading is left: what is authorised is what is sent.

A body is first parsed strictly (duplicate keys refused at every depth, valid UTF-8, finite numbers, bounded depth). Then it goes on as
it is, with our fields spliced in before its last brace; only where a field is replaced or left out is its top level taken apart into
raw slices and joined again. Either way every value that stays goes on verbatim, byte by byte.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import jiter
import msgspec

from tollway.domain.faults import JSON_INVALID, KEY_DUPLICATED, PARAMETER_INVALID, Fault

VALUES_MAX = 500_000
"""Most values in a body, counted by what stands before each of them (in texts too). A body of 32 MiB that is all `[],` would hold the
event loop for seconds; the largest that is meant, a batch of token ids, has 300,000 (OpenAI's bound for embeddings)."""

KEYS_MAX: Final = 24_000
"""Most keys in the objects of a body: 10,000 messages have two each. Reading so many takes 25 ms, and each further key longer than the one
before: 490,000 keys in 5.8 MB took a second."""
CONTAINERS_MAX = 40_000
"""Most arrays and objects in a body: 10,000 messages with an array of two parts each. An empty array costs as much as a hundred bytes of
text."""

_SCALARS = frozenset({str, int, float, bool, type(None)})
"""Types of values that hold no others."""
_INFINITY = float("inf")
_CLOSING: Final = ord("}")
_LONG: Final = 64
"""Values in an array from which on one pass in C is cheaper than a look at each."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode
_KEY = re.compile(r'Detected duplicate key "([A-Za-z0-9_]{1,64})"')


def parse(body: bytes) -> dict[str, Any]:
    """The object that `body` is. Raises Fault invalid_json, duplicate_key or invalid_value; the text of the body is never echoed."""
    value = read(body)
    check_finite(value)
    return value


def read(body: bytes) -> dict[str, Any]:
    """As `parse`, but for one thing that is left to the caller, who may know it more cheaply: `check_finite`."""
    if len(body) > _KEY_BYTES_MIN * KEYS_MAX:
        check_size(body, VALUES_MAX, CONTAINERS_MAX, KEYS_MAX)
    value = read_value(body)
    if type(value) is not dict:
        raise Fault(JSON_INVALID, message="The request body must be a JSON object.")
    return value


_KEY_BYTES_MIN: Final = 4
"""Bytes that a key takes at least, with its quotes and colon."""


def check_size(body: bytes, values_max: int, containers_max: int, keys_max: int) -> None:
    """Raise Fault invalid_value for a body that holds more than it may, before it is parsed."""
    opened = body.count(b"[") + body.count(b"{")
    if body.count(b",") + opened > values_max:
        raise Fault(PARAMETER_INVALID, message="The request body has too many values.")
    if opened > containers_max and _exceeds(_count_containers(body), containers_max):
        raise Fault(PARAMETER_INVALID, message="The request body has too many arrays and objects.")
    if body.count(b":") > keys_max and _exceeds(_count_keys(body), keys_max):
        raise Fault(PARAMETER_INVALID, message="The request body has too many keys.")


def _exceeds(counts: Iterable[int], most: int) -> bool:
    """Return whether a sum exceeds `most`. Counting ends as soon as it does, because each count reads the body once."""
    return any(total > most for total in accumulate(counts))


def _count_keys(body: bytes) -> Iterator[int]:
    """Count the keys of all objects in parts, none of them negative: never too few, and colons after a blank in texts are taken for some.

    A colon follows the quote that ends a key, or white space after it. A quote behind an odd number of backslashes ends nothing, as in a
    text that holds JSON; so the counts for each number of backslashes are alternately added and subtracted. The last one is added, which
    only text with as many backslashes in a row can distinguish from an exact count.
    """
    for backslashes in range(0, _BACKSLASHES_MAX, 2):
        yield body.count(b"\\" * backslashes + b'":') - body.count(b"\\" * (backslashes + 1) + b'":')
    yield body.count(b"\\" * _BACKSLASHES_MAX + b'":')
    for blank in (b" ", b"\t", b"\n", b"\r"):
        yield body.count(blank + b":")


_BACKSLASHES_MAX: Final = 4


def _count_containers(body: bytes) -> Iterator[int]:
    """Count the arrays and objects of a body in parts, none of them negative: never too few, and brackets in texts that stand where a value
    could are taken for some. A value follows a comma, a colon, an opening bracket or white space; a backslash begins none, as in a text
    that holds JSON."""
    for before in (b",", b":", b"[", b" ", b"\t", b"\n", b"\r"):
        for bracket in (b"[", b"{"):
            yield body.count(before + bracket) - body.count(before + bracket + b"\\")


def read_value(body: bytes) -> Any:
    """Return the value that strict JSON holds: UTF-8, no key twice at any depth, no NaN. Raises as `parse` does. Both planes read bodies
    here."""
    try:
        return jiter.from_json(body, catch_duplicate_keys=True, allow_inf_nan=False, cache_mode="keys")
    except ValueError as error:
        text = str(error)
        if text.startswith("Detected duplicate key"):
            match = _KEY.match(text)
            raise Fault(KEY_DUPLICATED, param=match.group(1) if match else None) from None
        if text.startswith("number out of range"):
            raise Fault(PARAMETER_INVALID, message="A number in the request body is out of range.") from None
        raise Fault(JSON_INVALID) from None


def check_finite(value: dict[str, Any]) -> None:
    """Raise Fault invalid_value if a number in an object, at any depth, overflowed to infinity: jiter reads 1e400 as one."""
    if not _is_finite(value.values()):
        raise Fault(PARAMETER_INVALID, message="A number in the request body is out of range.")


def _is_finite(values: Iterable[Any]) -> bool:
    """Return whether no number among `values`, at any depth, is infinite."""
    for value in values:
        kind = type(value)
        if kind is str:
            continue
        if kind is list:
            kinds = set(map(type, value)) if len(value) > _LONG else None
            if kinds is None or not kinds <= _SCALARS:
                if not _is_finite(value):
                    return False
            elif float in kinds and (_INFINITY in value or -_INFINITY in value):
                return False
        elif kind is dict:
            if not _is_finite(value.values()):
                return False
        elif kind is float and not math.isfinite(value):
            return False
    return True


def members(body: bytes) -> dict[str, msgspec.Raw]:
    """The top-level members of a JSON object as raw slices. Raises msgspec.DecodeError if it is not an object."""
    return _members.decode(body)


class InjectedFields:
    """The fields that are ours to set in a body, by name, and what the body ends with where none of them stands in it already."""

    __slots__ = ("ending", "fields", "names")

    def __init__(self, fields: Mapping[str, bytes]) -> None:
        self.fields = fields
        self.names = frozenset(fields)
        self.ending = b"," + join(fields)[1:] if fields else b"}"


def edit(body: bytes, names: Collection[str], injected: InjectedFields, dropped: Collection[str]) -> bytes:
    """The object `body`, whose top level has these `names` (at least one), with our fields set and some left out.

    Where nothing is replaced, our fields follow the client's: for a JSON reader the same as anywhere else.
    """
    if not dropped and injected.names.isdisjoint(names):
        return body[: -1 if body[-1] == _CLOSING else body.rindex(b"}")] + injected.ending
    left_out = frozenset(dropped)
    fields: dict[str, bytes | msgspec.Raw] = {name: value for name, value in members(body).items() if name not in left_out}
    fields.update(injected.fields)
    return join(fields)


SPANS_MAX: Final = 256
"""Most members of a body whose places are looked up and used on the event loop: a microsecond for each."""

_BETWEEN: Final = re.compile(rb"[ \t\r\n{,]*")
_KEY_TEXT: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+:[ \t\r\n]*+')


def find_spans(body: bytes) -> tuple[int, ...]:
    """Return where each top-level member of the object `body` begins and where it ends, its key included: two numbers for each, in order;
    nothing where there are more members than SPANS_MAX. `body` is strict JSON (`read`)."""
    values = members(body).values()
    if len(values) > SPANS_MAX:
        return ()
    spans: list[int] = []
    at = 0
    for value in values:
        start = _end(_BETWEEN, body, at)
        at = _end(_KEY_TEXT, body, start) + len(memoryview(value))
        spans += (start, at)
    return tuple(spans)


def _end(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    """Return where the text at `at` that has this form ends. Raises ValueError if none has."""
    match = pattern.match(body, at)
    if match is None:
        raise ValueError("not a member of an object")
    return match.end()


def edit_pieces(
    pieces: Sequence[bytes], names: Sequence[str], spans: Sequence[int], injected: InjectedFields, dropped: Collection[str]
) -> list[bytes]:
    """As `edit`, of a body in pieces whose members have these `names` and `spans` (`find_spans`). Pieces of which all is kept are not
    copied; our fields follow the client's."""
    left_out = injected.names.union(dropped)
    ranges: list[int] = []
    edited = [b"{"]
    for index, name in enumerate(names):
        if name in left_out:
            continue
        start, end = spans[2 * index], spans[2 * index + 1]
        if ranges and names[index - 1] not in left_out:
            ranges[-1] = end
        else:
            ranges += (start, end)
    ends = list(accumulate(map(len, pieces)))
    for number in range(0, len(ranges), 2):
        if number:
            edited.append(b",")
        edited += cut_pieces(pieces, ends, ranges[number], ranges[number + 1])
    edited.append(injected.ending if ranges or not injected.fields else injected.ending[1:])
    return edited


def cut(pieces: Sequence[bytes], start: int, end: int) -> bytes:
    """Return the bytes of a body in pieces between two places, or those of them that it has."""
    return b"".join(cut_pieces(pieces, list(accumulate(map(len, pieces))), start, end))


def cut_pieces(pieces: Sequence[bytes], ends: list[int], start: int, end: int) -> list[bytes]:
    """Return the pieces between two places. `ends`: where each of `pieces` ends. A piece that is wanted whole is not copied."""
    found: list[bytes] = []
    for index in range(bisect_right(ends, start), len(pieces)):
        piece = pieces[index]
        at = ends[index] - len(piece)
        if at >= end:
            break
        found.append(piece[max(start - at, 0) : end - at])
    return found


def is_within(pieces: Sequence[bytes], text: bytes) -> bool:
    """Return whether a body in pieces has a text of two bytes or more, which may lie across the end of a piece."""
    end = b""
    for piece in pieces:
        if text in piece or text in end + piece[: len(text) - 1]:
            return True
        end = (end + piece[1 - len(text) :])[1 - len(text) :]
    return False


def join(fields: Mapping[str, bytes | msgspec.Raw]) -> bytes:
    """A JSON object of raw values, in order."""
    return b"{" + b",".join([_encode(name) + b":" + value for name, value in fields.items()]) + b"}"
