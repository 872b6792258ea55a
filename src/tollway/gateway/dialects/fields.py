"""Checks of request fields: each takes the parsed value and says whether it may go on. Types are exact: true is not 1, 1.0 is not 1.

Nearly all bodies are plain: each of their fields is the dialect's own, with a value that is allowed and holds neither a link nor an
overflowed number. That is settled in one call into C for the whole body (`plain_shape`, `is_plain`). A body that is not plain may be as
good; it is checked field by field, and only that way says what is wrong. Tests hold the two against each other: whatever is plain passes.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, inspect

from tollway.domain.usage import CHOICES_MAX, TOKENS_MAX
from tollway.native import FORM, PlainReader
from tollway.wire.forms import File


@dataclass(frozen=True, slots=True)
class Check:
    """`allows`: whether a value may go on. `plain`: a type, as msgspec takes it, of which every value may, and holds neither a link nor an
    overflowed number; None if there is none worth the look. `advice`: what a client reads whose value is refused, after "Invalid value"."""

    allows: Callable[[Any], bool]
    plain: Any = None
    advice: str = ""


Shape = type[msgspec.Struct]
"""The type that `plain_shape` returns: every plain body of a dialect can be converted to it."""


_NOTHING = Annotated[str, Meta(min_length=1, max_length=0)]
"""A type that no value has: no body is plain whose dialect requires a field without a plain type."""


def plain_shape(checks: Mapping[str, Check], required: Collection[str]) -> Shape:
    """The shape of a dialect's plain bodies."""
    members: list[tuple[str, Any, Any]] = [
        (name, _NOTHING if check.plain is None else check.plain, msgspec.NODEFAULT if name in required else None)
        for name, check in checks.items()
        if check.plain is not None or name in required
    ]
    return msgspec.defstruct("Plain", members, kw_only=True, forbid_unknown_fields=True, gc=False)


def is_plain(body: dict[str, Any], shape: Shape) -> bool:
    """Return whether a body is plain: checking it field by field costs 18 thousand instructions more (5 %)."""
    try:
        msgspec.convert(body, shape)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


class PlainKind(IntFlag):
    """Kinds of values that the native reader of plain bodies knows."""

    NOTHING = 1
    BOOLEAN = 2
    INTEGER = 4
    NUMBER = 8
    TEXT = 16
    OBJECT = 32  # of values that are neither objects, arrays nor fractions
    LIST = 64  # of such objects


class PlainField(NamedTuple):
    """A field as the native reader takes it: `kinds` of its values, bounds of an integer, of any number, and of the length of a text or
    array, all of them inclusive."""

    name: str
    kinds: int
    least: int
    most: int
    lowest: float
    highest: float
    shortest: int
    longest: int
    required: bool


_INT64_MAX = 2**63 - 1


def list_plain_fields(checks: Mapping[str, Check], required: Collection[str]) -> tuple[PlainField, ...]:
    """Return the fields of a dialect's plain bodies that the native reader knows; none if a required one is not among them."""
    fields = tuple(_describe(name, check.plain, name in required) for name, check in checks.items() if check.plain is not None)
    known = tuple(field for field in fields if field.kinds)
    return known if {field.name for field in known}.issuperset(required) else ()


def new_plain_reader(checks: Mapping[str, Check], required: Collection[str]) -> "PlainReader | None":
    """Return the native reader of a dialect's plain bodies; None without the extension, or if it knows none of them.

    Its `read` returns the fields of a body that `bodies.read` reads and `is_plain` accepts, with `()` in place of each array. It returns
    None for any other body, and for a plain one that holds what few do: arrays of texts, exponents, escapes outside of messages.
    """
    fields = () if FORM == "pure" else list_plain_fields(checks, required)
    return PlainReader(fields) if fields else None


def _describe(name: str, plain: Any, required: bool) -> PlainField:
    """Return a field with those of the values of a plain type that the native reader knows."""
    found = inspect.type_info(plain)
    kinds = 0
    least, most, lowest, highest, shortest, longest = -_INT64_MAX - 1, _INT64_MAX, float("-inf"), float("inf"), 0, _INT64_MAX
    for each in found.types if isinstance(found, inspect.UnionType) else (found,):
        match each:
            case inspect.NoneType():
                kinds |= PlainKind.NOTHING
            case inspect.BoolType():
                kinds |= PlainKind.BOOLEAN
            case inspect.IntType(ge=ge, le=le):
                kinds |= PlainKind.INTEGER
                least, most = least if ge is None else ge, most if le is None else le
            case inspect.FloatType(ge=ge, le=le):
                kinds |= PlainKind.NUMBER
                lowest, highest = lowest if ge is None else ge, highest if le is None else le
            case inspect.DictType() if each == _FLAT_INFO:
                kinds |= PlainKind.OBJECT
            case inspect.StrType(min_length=min_length, max_length=max_length):
                kinds |= PlainKind.TEXT
                shortest, longest = min_length or 0, longest if max_length is None else max_length
            case inspect.ListType(item_type=item, min_length=min_length, max_length=max_length) if item == _FLAT_INFO:
                kinds |= PlainKind.LIST
                shortest, longest = min_length or 0, longest if max_length is None else max_length
    assert not kinds & PlainKind.TEXT or not kinds & PlainKind.LIST, "lengths are those of one of them"
    return PlainField(name, kinds, least, most, lowest, highest, shortest, longest, required)


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
        # whose cache or session, which model or adapter
        "conversation_id", "disagg_prefill_dp_rank", "fallbacks", "id_slot", "lora", "ngram_corpus_id", "session_id", "weight_version",
        # what an engine would run, deserialize or fetch for the client
        "chat_template", "custom_logit_processor", "custom_params", "embed_override_token_id", "embed_overrides", "input_embeds",
        "logits_processors", "mcp_servers", "prompt_embeds",
        # how media are read, beyond the bounds on them, and input that the checks of messages would not see
        "audio_data", "image_data", "images_config", "input_ids", "max_dynamic_patch", "media_io_kwargs", "min_dynamic_patch",
        "mm_hashes", "mm_processor_kwargs", "multi_modal_data", "multi_modal_uuids", "previous_input_messages", "previous_response",
        "prompt_token_ids", "uuid", "video_config", "video_data",
        # lists that engines compare with each token, where the API does not have and bound them itself
        "logit_bias", "stop",
    }
)  # fmt: skip
"""Fields that change who asks, where it runs, in what order, with whose cache, what an engine executes, or how much is read and generated
unseen by the bounds of the request. Refused from clients whatever the model's policy, except by an API that has the field and checks it."""


_NUMBERS = frozenset({float, int})
_FLAT = dict[str, str | int | bool | None]
"""An object that holds no other: most messages, most metadata. Its texts are not looked into (see `links`)."""
_FLAT_INFO = inspect.type_info(_FLAT)

anything = Check(lambda value: True, str | int | bool | None)
"""No check of ours: the engine validates it."""

boolean = Check(lambda value: type(value) is bool, bool)
"""A boolean."""

text = Check(lambda value: type(value) is str, str)
"""A string."""


def text_up_to(characters: int) -> Check:
    """A string of at most so many characters."""
    return Check(lambda value: type(value) is str and len(value) <= characters, Annotated[str, Meta(max_length=characters)])


FILES_MAX = 16
"""Files of one field, as OpenAI has it for images that are edited."""

file = Check(lambda value: type(value) is File and value.size > 0, None, "Send a file that is not empty.")
"""A file of a form."""

files = Check(
    lambda value: file.allows(value) or (type(value) is list and 0 < len(value) <= FILES_MAX and all(map(file.allows, value))),
    None,
    f"Send 1 to {FILES_MAX} files that are not empty.",
)
"""One file of a form, or several."""


def list_of(count: int, item: Check) -> Check:
    """An array of at most `count` items that each pass a check."""
    allows = item.allows
    return Check(lambda value: type(value) is list and len(value) <= count and all(map(allows, value)))


mapping = Check(lambda value: type(value) is dict, _FLAT)
"""An object."""

MESSAGES_MAX = 10_000
"""Messages of one conversation; the longest that agents keep have a few thousand."""
TOOLS_MAX = 512
"""Tools, functions or modalities; OpenAI takes 128 tools."""
PROMPTS_MAX = CHOICES_MAX
"""Prompts in one request, as many as OpenAI takes inputs of embeddings; also outputs of one request, each of which is generated."""
STOPS_MAX = 64
STOP_CHARACTERS_MAX = 1024
"""Stop sequences and their length. Engines compare each of them with the text after every token; OpenAI takes 4."""
BIASES_MAX = 1024
"""Tokens in a bias: engines build a row of the vocabulary from it for each step."""

messages = Check(
    lambda value: type(value) is list and 0 < len(value) <= MESSAGES_MAX,
    Annotated[list[_FLAT], Meta(min_length=1, max_length=MESSAGES_MAX)],
)
"""An array of messages, not empty. What they hold is checked by `media.admission`."""

prompt_parts = Check(
    lambda value: value is None or type(value) is str or type(value) is list,
    str | None,
)
"""A text, or an array of parts, which `media.admission` checks."""

any_list = Check(
    lambda value: type(value) is list and len(value) <= TOOLS_MAX,
    Annotated[list[_FLAT], Meta(max_length=TOOLS_MAX)],
)
"""An array of tools or the like."""

TOOL_TYPES = frozenset({"custom", "function"})
"""Tools that the client runs. Those that a platform runs would have an engine fetch, search or execute for a tenant."""

client_tools = Check(
    lambda value: (
        type(value) is list
        and len(value) <= TOOLS_MAX
        and all(type(tool) is dict and type(kind := tool.get("type", "function")) is str and kind in TOOL_TYPES for tool in value)
    ),
    None,
    f"Tools may be of the types {' and '.join(sorted(TOOL_TYPES))}, run by the client.",
)
"""An array of tools that the client runs. One without a type is a function."""


def _is_biases(value: Any) -> bool:
    return (
        type(value) is dict
        and len(value) <= BIASES_MAX
        and all(len(token) <= 10 and token.isascii() and token.isdigit() for token in value)
        and all(type(bias) in _NUMBERS and -100 <= bias <= 100 for bias in value.values())
    )


biases = Check(_is_biases)
"""A bias between -100 and 100 by token id."""


def _is_moderation(value: Any) -> bool:
    if type(value) is not dict:
        return False
    policy = value.get("policy")
    if policy is None:
        return True
    modes = [side.get("mode") for side in policy.values() if type(side) is dict] if type(policy) is dict else ["block"]
    return "block" not in modes


moderation = Check(_is_moderation)
"""A wish for moderation scores, which are an extra. A wish to block by them is not accepted, because nothing here would block."""


def nullable(check: Check) -> Check:
    """Accept null, or what `check` accepts."""
    allows = check.allows
    return Check(lambda value: value is None or allows(value), None if check.plain is None else check.plain | None, check.advice)


def refused(advice: str) -> Check:
    """Accept null and false alone: the client asks for something that is not offered. `advice`: what it may do instead."""
    return Check(lambda value: value is None or value is False, Literal[False] | None, advice)


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


def _is_stops(value: Any) -> bool:
    if type(value) is str:
        return len(value) <= STOP_CHARACTERS_MAX
    return type(value) is list and len(value) <= STOPS_MAX and all(type(item) is str and len(item) <= STOP_CHARACTERS_MAX for item in value)


_Stop = Annotated[str, Meta(max_length=STOP_CHARACTERS_MAX)]

stops = Check(_is_stops, _Stop | Annotated[list[_Stop], Meta(max_length=STOPS_MAX)])
"""A stop sequence, or an array of them."""


def _is_prompts(value: Any) -> bool:
    if type(value) is str:
        return len(value) > 0
    if type(value) is not list or not value:
        return False
    kinds = set(map(type, value))
    if kinds == {int}:
        return _is_token_ids(value)
    if len(value) > PROMPTS_MAX:
        return False
    return kinds == {str} or (kinds == {list} and all(set(map(type, item)) == {int} and _is_token_ids(item) for item in value))


def _is_token_ids(value: list[int]) -> bool:
    return min(value) >= 0 and max(value) <= TOKENS_MAX


prompts = Check(_is_prompts, Annotated[str, Meta(min_length=1)] | Annotated[list[str], Meta(min_length=1, max_length=PROMPTS_MAX)])
"""A string, an array of strings, an array of token ids, or an array of such arrays; not empty."""


token_ids = Check(
    lambda value: type(value) is list and (not value or (set(map(type, value)) == {int} and _is_token_ids(value))),
    list[Annotated[int, Meta(ge=0, le=TOKENS_MAX)]],
)
"""An array of token ids."""

texts = Check(
    lambda value: type(value) is str or (type(value) is list and 0 < len(value) <= PROMPTS_MAX and set(map(type, value)) == {str}),
    str | Annotated[list[str], Meta(min_length=1, max_length=PROMPTS_MAX)],
)
"""A text, or an array of texts that is not empty."""


def _are_documents(value: Any) -> bool:
    return (
        type(value) is list
        and 0 < len(value) <= PROMPTS_MAX
        and all(type(item) is str or (type(item) is dict and item.keys() == {"text"} and type(item["text"]) is str) for item in value)
    )


documents = Check(_are_documents, Annotated[list[str], Meta(min_length=1, max_length=PROMPTS_MAX)])
"""An array of texts, each a string or an object with nothing but `text`; not empty."""

output_tokens = nullable(integer(1, TOKENS_MAX))
output_tokens_or_none = nullable(integer(0, TOKENS_MAX))
"""A maximum that may be zero, where an API reads the prompt and generates nothing: to score it (`echo`), or to fill a cache."""
