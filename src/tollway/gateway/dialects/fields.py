"""Checks of request fields: each takes the parsed value and says whether it may go on. Types are exact: true is not 1, 1.0 is not 1.

Nearly all bodies are plain: each of their fields is the dialect's own, with a value that is allowed and holds neither a link nor an
overflowed number. That is settled in one call into C for the whole body (`plain_shape`, `is_plain`). A body that is not plain may be as
good; it is checked field by field, and only that way says what is wrong. Tests hold the two against each other: whatever is plain passes.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tollway.domain.usage import TOKENS_MAX


@dataclass(frozen=True, slots=True)
class Check:
    """`allows`: whether a value may go on. `plain`: a type, as msgspec takes it, of which every value may, and holds neither a link nor an
    overflowed number; None if there is none worth the look."""

    allows: Callable[[Any], bool]
    plain: Any = None


Shape = type[msgspec.Struct]
"""The type that `plain_shape` returns: every plain body of a dialect can be converted to it."""


def plain_shape(checks: Mapping[str, Check], required: Collection[str]) -> Shape:
    """The shape of a dialect's plain bodies."""
    members: list[tuple[str, Any, Any]] = [
        (name, check.plain, msgspec.NODEFAULT if name in required else None) for name, check in checks.items() if check.plain is not None
    ]
    return msgspec.defstruct("Plain", members, kw_only=True, forbid_unknown_fields=True, gc=False)


def is_plain(body: dict[str, Any], shape: Shape) -> bool:
    """Return whether a body is plain."""
    try:
        msgspec.convert(body, shape)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


NEVER_FORWARDED = frozenset(
    {
        # identity, destination and credentials
        "api_base", "api_key", "base_url", "callbacks", "custom_llm_provider", "extra_body", "extra_headers", "extra_query",
        "lora_path", "lora_request", "mock_response", "organization", "request_id", "rid", "session_params", "timeout",
        # rank, order, cache and KV transfer inside the engine
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "cache_salt", "data_parallel_rank", "dp_rank", "extra_key",
        "kv_transfer_params", "nvext", "priority", "routed_dp_rank", "disaggregated_params", "ec_transfer_params", "vllm_xargs",
        "service_tier",
        # how many outputs are generated and how long they may be, in the words of other APIs and engines
        "best_of", "max_completion_tokens", "max_length", "max_new_tokens", "max_output_tokens", "max_tokens", "n", "n_cmpl", "n_predict",
        "num_return_sequences",
    }
)  # fmt: skip
"""Fields that change who asks, where it runs, in what order, with whose cache, or how much output is generated unseen by the bounds of the
request. Refused from clients whatever the model's policy, except by an API that has the field and checks it."""


_NUMBERS = frozenset({float, int})
_FLAT = dict[str, str | int | bool | None]
"""An object that holds no other: most messages, most metadata. Its texts are not looked into (see `links`)."""

anything = Check(lambda value: True, str | int | bool | None)
"""No check of ours: the engine validates it."""

boolean = Check(lambda value: type(value) is bool, bool)
"""A boolean."""

text = Check(lambda value: type(value) is str, str)
"""A string."""

mapping = Check(lambda value: type(value) is dict, _FLAT)
"""An object."""

listing = Check(lambda value: type(value) is list and len(value) > 0, Annotated[list[_FLAT], Meta(min_length=1)])
"""An array with at least one item."""

any_list = Check(lambda value: type(value) is list, list[_FLAT])
"""An array."""


def nullable(check: Check) -> Check:
    """Accept null, or what `check` accepts."""
    allows = check.allows
    return Check(lambda value: value is None or allows(value), None if check.plain is None else check.plain | None)


def integer(least: int, most: int) -> Check:
    """An integer literal in [least, most]; neither a boolean nor a float."""
    return Check(lambda value: type(value) is int and least <= value <= most, Annotated[int, Meta(ge=least, le=most)])


def number(least: float, most: float) -> Check:
    """An integer or float in [least, most]."""
    return Check(lambda value: type(value) in _NUMBERS and least <= value <= most, Annotated[float, Meta(ge=least, le=most)])


def one_of(*choices: str) -> Check:
    """One of the strings."""
    allowed = frozenset(choices)
    return Check(lambda value: type(value) is str and value in allowed, Literal[choices])


def _is_texts(value: Any) -> bool:
    return type(value) is str or (type(value) is list and set(map(type, value)) <= {str})


texts = Check(_is_texts, str | list[str])
"""A string, or an array of strings."""


def _is_prompts(value: Any) -> bool:
    if type(value) is str:
        return len(value) > 0
    if type(value) is not list or not value:
        return False
    kinds = set(map(type, value))
    if kinds == {str}:
        return True
    if kinds == {int}:
        return bool(min(value) >= 0)
    return kinds == {list} and all(set(map(type, item)) == {int} and min(item) >= 0 for item in value)


prompts = Check(_is_prompts, Annotated[str, Meta(min_length=1)] | Annotated[list[str], Meta(min_length=1)])
"""A string, an array of strings, an array of token ids, or an array of such arrays; not empty."""

output_tokens = nullable(integer(1, TOKENS_MAX))
