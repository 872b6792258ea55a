"""Answers of OpenAI's chat completions, completions and embeddings, and the usage that they report."""

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly
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


class _Totals(msgspec.Struct):
    """A usage object whose details may have any shape."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: msgspec.Raw = ABSENT
    completion_tokens_details: msgspec.Raw = ABSENT
    reasoning_tokens: msgspec.Raw = ABSENT


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
_totals = msgspec.json.Decoder(_Totals)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_count = msgspec.json.Decoder(int)
_answer = msgspec.json.Decoder(_Answer)
_loose_answer = msgspec.json.Decoder(_LooseAnswer)


def read_usage(raw: bytes | msgspec.Raw) -> tuple[Quantities | None, Anomaly | None]:
    """Return the disjoint quantities of a usage object, and INVALID if some of it cannot be true.

    The two totals decide: without believable ones (prompt_tokens missing, a negative count, more than TOKENS_MAX) quantities are None. A
    detail that cannot be true does not discard them: cached tokens above the prompt are capped to it, reasoning above the completion
    counts as plain output, and a detail that is not a count is ignored. OpenAI's prompt_tokens includes cached tokens and
    completion_tokens includes reasoning.
    """
    try:
        return _split(_usage.decode(raw))
    except msgspec.DecodeError:
        pass
    try:
        totals = _totals.decode(raw)
    except msgspec.DecodeError:
        return None, Anomaly.INVALID
    cached = _read_detail(totals.prompt_tokens_details, "cached_tokens")
    reasoning = _read_detail(totals.completion_tokens_details, "reasoning_tokens")
    if reasoning is None and is_absent(totals.completion_tokens_details):
        reasoning = _read_count(totals.reasoning_tokens)
    return _divide(totals.prompt_tokens, totals.completion_tokens or 0, cached or 0, reasoning or 0)[0], Anomaly.INVALID


def _split(usage: _Usage) -> tuple[Quantities | None, Anomaly | None]:
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    completion_details = usage.completion_tokens_details
    reasoning = (completion_details.reasoning_tokens if completion_details is not None else usage.reasoning_tokens) or 0
    return _divide(usage.prompt_tokens, usage.completion_tokens or 0, cached, reasoning)


def _divide(prompt: int | None, completion: int, cached: int, reasoning: int) -> tuple[Quantities | None, Anomaly | None]:
    """Return the totals divided into disjoint classes; see `read_usage`."""
    if prompt is None or not (0 <= prompt <= TOKENS_MAX and 0 <= completion <= TOKENS_MAX):
        return None, Anomaly.INVALID
    if 0 <= cached <= prompt and 0 <= reasoning <= completion:
        return Quantities(prompt - cached, cached, completion - reasoning, reasoning), None
    cached = min(max(cached, 0), prompt)
    reasoning = reasoning if 0 <= reasoning <= completion else 0
    return Quantities(prompt - cached, cached, completion - reasoning, reasoning), Anomaly.INVALID


def _read_detail(raw: msgspec.Raw, name: str) -> int | None:
    """Return the count `name` of a details object; None if either is missing or has another type."""
    try:
        return _read_count(_object.decode(raw).get(name, ABSENT))
    except msgspec.DecodeError:
        return None


def _read_count(raw: msgspec.Raw) -> int | None:
    try:
        return _count.decode(raw)
    except msgspec.DecodeError:
        return None


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
    used: Quantities | None = None
    anomaly: Anomaly | None = None
    if isinstance(usage, _Usage):
        used, anomaly = _split(usage)
        used, anomaly = check_report(used, output_tokens_max, anomaly)
    elif isinstance(usage, msgspec.Raw) and not is_absent(usage):
        used, anomaly = read_usage(usage)
        used, anomaly = check_report(used, output_tokens_max, anomaly)
    return Answer(body if upstream_model == public_model else rename_model(body, upstream_model, public_model), used, anomaly)
