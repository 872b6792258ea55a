"""Shapes of OpenAI's chat completions, completions and embeddings, as msgspec reads them. Only what is interpreted has a type.

This module is never compiled: msgspec knows defaults only of classes that the interpreter made.
"""

from typing import Literal

import msgspec

from tollway.gateway.dialects.engine_json import ABSENT


class Choice(msgspec.Struct):
    """A choice of which only the end is of interest."""

    finish_reason: str | None = None


class Delta(msgspec.Struct):
    """The members of a delta that carry output."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class CountedChoice(msgspec.Struct):
    """A choice of an event whose output is counted."""

    finish_reason: str | None = None
    text: str | None = None
    delta: Delta | None = None


class Event(msgspec.Struct):
    """An event of a stream whose usage the engine reports."""

    choices: list[Choice] | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class CountedEvent(msgspec.Struct):
    """An event of a stream whose output is counted."""

    choices: list[CountedChoice] | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class RegularChoice(msgspec.Struct, gc=False):
    """A choice that goes on."""

    finish_reason: None = None


class RegularUsage(msgspec.Struct, gc=False):
    """A running usage without reasoning."""

    prompt_tokens: int
    completion_tokens: int
    completion_tokens_details: None = None
    reasoning_tokens: Literal[0] | None = None


class RegularEvent(msgspec.Struct, gc=False):
    """The event that a stream consists of but for its first and last: one choice that goes on, and a running usage."""

    choices: list[RegularChoice]
    usage: RegularUsage
    error: None = None


class PromptDetails(msgspec.Struct):
    """Parts of the tokens of a prompt."""

    cached_tokens: int = 0
    audio_tokens: int = 0
    cache_write_tokens: int = 0
    image_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    """Parts of the tokens of an answer."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0


class UsageObject(msgspec.Struct):
    """A usage object as engines write it. One that has another shape is read member by member."""

    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    reasoning_tokens: int = 0


class AnswerObject(msgspec.Struct):
    """A whole answer of any of the three endpoints."""

    usage: UsageObject | None = None
    error: msgspec.Raw = ABSENT
    choices: list[Choice] | None = None
    data: msgspec.Raw = ABSENT
    object: str | None = None
