"""Answers of OpenAI's chat completions, completions and embeddings, and the usage that they report."""

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX
from tollway.gateway.dialects.answers import ABSENT, Answer, check_text, decode, is_absent, rename_model
from tollway.gateway.dialects.engine_errors import read_fault
from tollway.gateway.dialects.usage import check_report


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    reasoning_tokens: int | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    error: msgspec.Raw = ABSENT
    choices: list[_Choice] | None = None
    data: msgspec.Raw = ABSENT
    object: str | None = None


class _LooseAnswer(msgspec.Struct):
    """An answer whose usage may have any shape."""

    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    choices: list[_Choice] | None = None
    data: msgspec.Raw = ABSENT
    object: str | None = None


_usage = msgspec.json.Decoder(_Usage)
_answer = msgspec.json.Decoder(_Answer)
_loose_answer = msgspec.json.Decoder(_LooseAnswer)


def read_usage(raw: bytes | msgspec.Raw) -> Quantities | None:
    """Return the disjoint quantities of a usage object, or None if it makes no sense: missing or negative counts, parts larger than their
    whole, or more than TOKENS_MAX. OpenAI's prompt_tokens includes cached ones and completion_tokens includes reasoning."""
    try:
        return _split(_usage.decode(raw))
    except msgspec.DecodeError:
        return None


def _split(usage: _Usage) -> Quantities | None:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens or 0
    if prompt is None:
        return None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    completion_details = usage.completion_tokens_details
    reasoning = (completion_details.reasoning_tokens if completion_details is not None else usage.reasoning_tokens) or 0
    if not (0 <= cached <= prompt <= TOKENS_MAX and 0 <= reasoning <= completion <= TOKENS_MAX):
        return None
    return Quantities(prompt - cached, cached, completion - reasoning, reasoning)


def read_answer(body: bytes, upstream_model: str, public_model: str, output_tokens_max: int | None) -> Answer:
    """Read a body of status 200 from any of OpenAI's three endpoints. Raises Fault if it is not an answer: not JSON, an error object, or
    aborted by the engine."""
    answer: _Answer | _LooseAnswer
    try:
        answer = _answer.decode(body)
        check_text(body)
    except (ValueError, RecursionError):  # an answer remains one if only its usage makes no sense
        answer = decode(_loose_answer, body, "answer")
    if not is_absent(answer.error) or answer.object == "error":
        raise read_fault(body, 500, first=True)
    choices, usage = answer.choices, answer.usage
    if choices is not None:
        for choice in choices:
            if choice.finish_reason == "abort":
                raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
    elif is_absent(answer.data):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer has neither choices nor data")
    used, anomaly = None, None
    if isinstance(usage, _Usage):
        used, anomaly = check_report(_split(usage), output_tokens_max)
    elif isinstance(usage, msgspec.Raw) and not is_absent(usage):
        used, anomaly = check_report(read_usage(usage), output_tokens_max)
    return Answer(body if upstream_model == public_model else rename_model(body, upstream_model, public_model), used, anomaly)
