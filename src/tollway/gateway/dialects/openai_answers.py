"""Answers of OpenAI's chat completions, completions and embeddings, and the usage that they report."""

from typing import Final

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly, UsageSource
from tollway.gateway.dialects.answers import Answer, AnswerContext, UsageReport
from tollway.gateway.dialects.engine_errors import read_fault
from tollway.gateway.dialects.engine_json import ABSENT, check_text, decode, is_absent, rename_model
from tollway.gateway.dialects.engine_usage import UsageNames, check_report, read_totals, scale_to_answer
from tollway.gateway.dialects.openai_shapes import AnswerObject, Choice, UsageObject

_ENGINE_FINAL: Final = UsageSource.ENGINE_FINAL  # a look-up of the member at each answer costs a call of the enumeration
_NAMES = UsageNames("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details")

_usage: Final = msgspec.json.Decoder(UsageObject)
_answer: Final = msgspec.json.Decoder(AnswerObject)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)


def read_usage(raw: bytes | msgspec.Raw) -> UsageReport:
    """Return what of a usage object can be believed (see `engine_usage.read_totals`). OpenAI's prompt_tokens includes cached tokens and
    completion_tokens includes reasoning."""
    try:
        usage = _usage.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return read_totals(raw, _NAMES)
    return _split(usage) or read_totals(raw, _NAMES)


def _split(usage: UsageObject) -> UsageReport | None:
    """Return the report of a usage object of text of which everything can be true; None for any other."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    details, completion_details = usage.prompt_tokens_details, usage.completion_tokens_details
    if (details is not None and (details.audio_tokens or details.cache_write_tokens or details.image_tokens)) or (
        completion_details is not None and (completion_details.audio_tokens or completion_details.image_tokens)
    ):
        return None  # rare enough to be read member by member
    cached = 0 if details is None else details.cached_tokens
    reasoning = usage.reasoning_tokens if completion_details is None else completion_details.reasoning_tokens
    if not 0 <= cached <= prompt <= TOKENS_MAX:
        return None
    if completion is None:
        return None if reasoning else UsageReport(Quantities(input=prompt - cached, cached_input=cached), has_output=False)
    if 0 <= reasoning <= completion <= TOKENS_MAX:
        return UsageReport(Quantities(input=prompt - cached, cached_input=cached, output=completion - reasoning, reasoning=reasoning))
    return None


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200 from any of OpenAI's three endpoints. Raises Fault if it is not an answer: not JSON, an error object, or
    aborted by the engine. Only what is interpreted must have the type that the API gives it."""
    report: UsageReport | None = None
    try:
        answer = _answer.decode(body)
        check_text(body)
    except (ValueError, RecursionError):
        answer, usage = _read_loosely(body)
        report = None if is_absent(usage) else read_usage(usage)
    else:
        if answer.usage is not None:
            report = _split(answer.usage) or read_usage(_object.decode(body)["usage"])
    if not is_absent(answer.error) or answer.object == "error":
        raise read_fault(body, 500, context.engine, first=True)
    choices = answer.choices
    if choices is not None:
        for choice in choices:
            if choice.finish_reason == "abort":
                raise Fault(faults.UPSTREAM_FAILED, detail="the engine aborted the request")
    elif is_absent(answer.data):
        raise Fault(faults.UPSTREAM_INVALID, detail="answer has neither choices nor data")
    used: Quantities | None = None
    anomaly: Anomaly | None = None
    source = _ENGINE_FINAL
    if report is not None:
        if context.sequences > 1 and choices and len(choices) > 1 and context.engine.reports_one_sequence:
            report = scale_to_answer(report, _list_sizes(body), context)
            source = UsageSource.ESTIMATED
        used, anomaly = check_report(report, context)
        if anomaly is None and not report.has_output and context.output_tokens_max != 0:
            anomaly = Anomaly.INVALID  # only answers without tokens of their own leave them out
    return Answer(rename_model(body, context), used, anomaly, source)


def _list_sizes(body: bytes) -> list[int]:
    """Return the bytes of output of each choice of an answer."""
    sizes = []
    for choice in list_choices(_object.decode(body)["choices"]):
        text = choice.get("text", choice.get("message", ABSENT))
        sizes.append(len(bytes(text)))
    return sizes or [1]


def _read_loosely(body: bytes) -> tuple[AnswerObject, msgspec.Raw]:
    """Return an answer whose members may have any type, and its usage as it came."""
    members = decode(_object, body, "answer")
    choices = members.get("choices", ABSENT)
    return (
        AnswerObject(
            error=members.get("error", ABSENT),
            choices=None if is_absent(choices) else [Choice(read_finish(choice)) for choice in list_choices(choices)],
            data=members.get("data", ABSENT),
            object=read_text(members.get("object", ABSENT)),
        ),
        members.get("usage", ABSENT),
    )


def list_choices(raw: msgspec.Raw) -> list[dict[str, msgspec.Raw]]:
    """Return the members of each object in a list of choices; nothing for what is not one."""
    try:
        return [_object.decode(choice) for choice in _list.decode(raw) if bytes(choice).startswith(b"{")]
    except (msgspec.DecodeError, RecursionError):
        return []


def read_finish(choice: dict[str, msgspec.Raw]) -> str | None:
    """Return the reason for which a choice ended, None if it goes on. A reason that is not a text counts as one."""
    raw = choice.get("finish_reason", ABSENT)
    return None if is_absent(raw) else read_text(raw) or "other"


def read_text(raw: msgspec.Raw) -> str | None:
    """Return a member that is a text; None for anything else."""
    try:
        return _text.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
