"""JSON bodies, read so that no second reading is left: what is authorised is what is sent.

A body is first parsed strictly (duplicate keys refused at every depth, valid UTF-8, finite numbers, bounded depth). Then it goes on as
it is, with our fields spliced in before its last brace; only where a field is replaced or left out is its top level taken apart into
raw slices and joined again. Either way every value that stays goes on verbatim, byte by byte.
"""

import math
import re
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

import jiter
import msgspec

from tollway.domain.faults import JSON_INVALID, KEY_DUPLICATED, PARAMETER_INVALID, Fault

VALUES_MAX = 500_000
"""Most values in a body, counted by what stands before each of them (in texts too). A body of 32 MiB that is all `[],` would hold the
event loop for seconds; the largest that is meant, a batch of token ids, has 300,000 (OpenAI's bound for embeddings)."""

_PLAIN = frozenset({str, int, bool, type(None)})
"""Types that cannot hold an infinite number."""
_OBJECTS = {dict}

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode
_KEY = re.compile(r'Detected duplicate key "([A-Za-z0-9_]{1,64})"')


def parse(body: bytes) -> dict[str, Any]:
    """The object that `body` is. Raises Fault invalid_json, duplicate_key or invalid_value; the text of the body is never echoed."""
    if len(body) > VALUES_MAX and body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES_MAX:
        raise Fault(PARAMETER_INVALID, message="The request body has too many values.")
    try:
        value = jiter.from_json(body, catch_duplicate_keys=True, allow_inf_nan=False, cache_mode="keys")
    except ValueError as error:
        text = str(error)
        if text.startswith("Detected duplicate key"):
            match = _KEY.match(text)
            raise Fault(KEY_DUPLICATED, param=match.group(1) if match else None) from None
        if text.startswith("number out of range"):
            raise Fault(PARAMETER_INVALID, message="A number in the request body is out of range.") from None
        raise Fault(JSON_INVALID) from None
    if type(value) is not dict:
        raise Fault(JSON_INVALID, message="The request body must be a JSON object.")
    if not _is_finite(list(value.values())):
        raise Fault(PARAMETER_INVALID, message="A number in the request body is out of range.")
    return value


def _is_finite(values: list[Any]) -> bool:
    """Whether no number among `values`, at any depth, overflowed to infinity: jiter reads 1e400 as one. A list of plain values (a
    prompt of 100,000 token ids, say) costs one pass in C."""
    kinds = set(map(type, values))
    if kinds <= _PLAIN:
        return True
    if kinds == _OBJECTS:  # messages, tools
        return _is_finite(list(chain.from_iterable(map(dict.values, values))))
    for value in values:
        kind = type(value)
        if kind is dict:
            if not _is_finite(list(value.values())):
                return False
        elif kind is list:
            if not _is_finite(value):
                return False
        elif kind is float and not math.isfinite(value):
            return False
    return True


def members(body: bytes) -> dict[str, msgspec.Raw]:
    """The top-level members of a JSON object as raw slices. Raises msgspec.DecodeError if it is not an object."""
    return _members.decode(body)


def edit(body: bytes, names: Collection[str], ours: Mapping[str, bytes], dropped: Collection[str]) -> bytes:
    """The object `body`, whose top level has these `names` (at least one), with our fields set and some left out.

    Where nothing is replaced, our fields follow the client's: for a JSON reader the same as anywhere else.
    """
    if not dropped and ours.keys().isdisjoint(names):
        if not ours:
            return body
        return body[: body.rindex(b"}")] + b"," + join(ours)[1:]
    fields: dict[str, bytes | msgspec.Raw] = {name: value for name, value in members(body).items() if name not in dropped}
    fields.update(ours)
    return join(fields)


def join(fields: Mapping[str, bytes | msgspec.Raw]) -> bytes:
    """A JSON object of raw values, in order."""
    return b"{" + b",".join([_encode(name) + b":" + value for name, value in fields.items()]) + b"}"
