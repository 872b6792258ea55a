"""Checks of request fields: each takes the parsed value and says whether it may go on. Types are exact: true is not 1, 1.0 is not 1."""

from collections.abc import Callable
from typing import Any

from tollway.domain.usage import TOKENS_MAX

Check = Callable[[Any], bool]

NEVER_FORWARDED = frozenset(
    {
        # identity, destination and credentials
        "api_base", "api_key", "base_url", "callbacks", "custom_llm_provider", "extra_body", "extra_headers", "extra_query",
        "lora_path", "lora_request", "mock_response", "organization", "request_id", "rid", "session_params", "timeout",
        # rank, order, cache and KV transfer inside the engine
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "cache_salt", "data_parallel_rank", "dp_rank", "extra_key",
        "kv_transfer_params", "nvext", "priority", "routed_dp_rank", "disaggregated_params", "ec_transfer_params", "vllm_xargs",
        "service_tier",
    }
)  # fmt: skip
"""Fields that change who asks, where it runs, in what order or with whose cache. Refused from clients whatever the model's policy."""


_NUMBERS = frozenset({float, int})


def anything(value: Any) -> bool:
    """No check of ours: the engine judges it."""
    return True


def boolean(value: Any) -> bool:
    """true or false."""
    return type(value) is bool


def text(value: Any) -> bool:
    """A string."""
    return type(value) is str


def mapping(value: Any) -> bool:
    """An object."""
    return type(value) is dict


def listing(value: Any) -> bool:
    """An array with at least one item."""
    return type(value) is list and len(value) > 0


def any_list(value: Any) -> bool:
    """An array."""
    return type(value) is list


def nullable(check: Check) -> Check:
    """null, or what `check` takes."""

    def checked(value: Any) -> bool:
        return value is None or check(value)

    return checked


def integer(least: int, most: int) -> Check:
    """An integer literal in [least, most]; neither a boolean nor a float."""

    def checked(value: Any) -> bool:
        return type(value) is int and least <= value <= most

    return checked


def integer_or_null(least: int, most: int) -> Check:
    """null, or an integer literal in [least, most]. Not `nullable(integer(...))`: nearly every request has one, and a call is a call."""

    def checked(value: Any) -> bool:
        return value is None or (type(value) is int and least <= value <= most)

    return checked


def number_or_null(least: float, most: float) -> Check:
    """null, or an integer or float in [least, most]."""

    def checked(value: Any) -> bool:
        return value is None or bool(type(value) in _NUMBERS and least <= value <= most)

    return checked


def one_of(*choices: str) -> Check:
    """One of the strings."""
    allowed = frozenset(choices)

    def checked(value: Any) -> bool:
        return type(value) is str and value in allowed

    return checked


def texts(value: Any) -> bool:
    """A string, or an array of strings."""
    return type(value) is str or (type(value) is list and set(map(type, value)) <= {str})


def prompts(value: Any) -> bool:
    """A string, an array of strings, an array of token ids, or an array of such arrays; not empty."""
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


output_tokens = integer_or_null(1, TOKENS_MAX)
