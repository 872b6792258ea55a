"""Usage reports of engines: how much of them can be believed.

A report is believed member by member. A count that cannot be true costs its own class, never the rest of the report: the answer was given,
and what the engine said of its other classes is as good as before. None of this raises a bill.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from tollway.domain.billing_classes import BILLING_CLASSES, NOTHING, BillingClassRow, Direction, OtherClasses, Quantities
from tollway.domain.usage import TOKENS_MAX, Anomaly
from tollway.gateway.dialects.answers import UNBELIEVABLE, AnswerContext, UsageReport
from tollway.gateway.dialects.engine_json import ABSENT, is_absent

_number = msgspec.json.Decoder(int | float)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Counts:
    """The counts of a usage object whose members may have any type. `is_odd`: whether a member that was read is not a count."""

    __slots__ = ("_members", "is_odd")

    def __init__(self, members: Mapping[str, msgspec.Raw]) -> None:
        self._members = members
        self.is_odd = False

    def read(self, name: str) -> int | None:
        """Return the count `name`; None if it is missing, null, not a whole number, or outside of 0 to TOKENS_MAX."""
        raw = self._members.get(name, ABSENT)
        if is_absent(raw):
            return None
        try:
            number = _number.decode(raw)
        except msgspec.DecodeError:
            number = -1
        if not 0 <= number <= TOKENS_MAX or number != int(number):
            self.is_odd = True
            return None
        return int(number)  # JSON knows one kind of number: 12.0 is 12

    def read_detail(self, object_name: str, name: str) -> int | None:
        """Return the count `name` of the object `object_name`; None if there is none."""
        raw = self._members.get(object_name, ABSENT)
        if is_absent(raw):
            return None
        try:
            details = Counts(_members.decode(raw))
        except (msgspec.DecodeError, RecursionError):
            self.is_odd = True
            return None
        found = details.read(name)
        self.is_odd = self.is_odd or details.is_odd
        return found

    def has(self, name: str) -> bool:
        """Return whether the object has a member `name` other than null."""
        return not is_absent(self._members.get(name, ABSENT))


def read_counts(raw: bytes | msgspec.Raw) -> Counts | None:
    """Return the counts of a usage object; None if it is not an object."""
    try:
        return Counts(_members.decode(raw))
    except (msgspec.DecodeError, RecursionError):
        return None


class UsageNames(NamedTuple):
    """Names in a usage object whose totals include their details. `cached_details`, `reasoning_details`: the objects of the details."""

    input: str
    output: str
    cached_details: str
    reasoning_details: str


def read_totals(raw: bytes | msgspec.Raw, names: UsageNames) -> UsageReport:
    """Return what of a usage object can be believed, member by member.

    The two totals stand for themselves: one that is missing, negative, no whole number or above TOKENS_MAX is unknown, and the other one
    stays. A detail that cannot be true does not discard its total: cached tokens above the input are capped to it, reasoning above the
    output counts as plain output, and a detail that is not a count is ignored. Reasoning may stand outside of its details.

    Engines do not say which of the cached tokens were audio, images or just written. What the parts exceed their whole by is taken from
    these, in this order, so that no token is in two classes.
    """
    counts = read_counts(raw)
    if counts is None:
        return UNBELIEVABLE
    input, output = counts.read(names.input), counts.read(names.output)
    cached = counts.read_detail(names.cached_details, "cached_tokens") or 0
    if counts.has(names.reasoning_details):
        reasoning = counts.read_detail(names.reasoning_details, "reasoning_tokens") or 0
    else:
        reasoning = counts.read("reasoning_tokens") or 0
    is_odd = counts.is_odd or input is None or cached > input or (output is not None and reasoning > output)
    cached = min(cached, input or 0)
    if reasoning > (output or 0):
        reasoning = 0
    computed, made = (input or 0) - cached, (output or 0) - reasoning
    written = min(counts.read_detail(names.cached_details, "cache_write_tokens") or 0, computed)
    images = min(counts.read_detail(names.cached_details, "image_tokens") or 0, computed - written)
    audio = min(counts.read_detail(names.cached_details, "audio_tokens") or 0, computed - written - images)
    images_made = min(counts.read_detail(names.reasoning_details, "image_tokens") or 0, made)
    audio_made = min(counts.read_detail(names.reasoning_details, "audio_tokens") or 0, made - images_made)
    return UsageReport(
        Quantities(
            input=computed - written - images - audio,
            cached_input=cached,
            output=made - images_made - audio_made,
            reasoning=reasoning,
            other=OtherClasses(written, audio, images, audio_made, images_made)
            if written or audio or images or audio_made or images_made
            else None,
        ),
        Anomaly.INVALID if is_odd or counts.is_odd else None,
        has_input=input is not None,
        has_output=output is not None,
    )


def read_input(raw: bytes | msgspec.Raw) -> UsageReport:
    """Return what can be believed of the usage of an answer without tokens of its own. Some engines write only the total, which is the
    input then."""
    counts = read_counts(raw)
    if counts is None:
        return UNBELIEVABLE
    name = "prompt_tokens" if counts.has("prompt_tokens") else "total_tokens"
    input = counts.read(name)
    anomaly = Anomaly.INVALID if counts.is_odd or input is None else None
    return UsageReport(Quantities(input or 0), anomaly, has_input=input is not None, has_output=False)


def check_report(report: UsageReport, context: AnswerContext) -> tuple[Quantities | None, Anomaly | None]:
    """Return what of the only report about an answer is billed, and what was wrong with it; no quantities if nothing can be believed. An
    engine that claims more tokens than the request can have is not paid for the surplus."""
    if not (report.has_input or report.has_output):
        return None, report.anomaly
    used = cap_output(cap_input(report.used, context.input_tokens_max), context.output_tokens_max)
    return used, report.anomaly if used is report.used else Anomaly.INFLATED


def merge_sequences(parts: Sequence[UsageReport], context: AnswerContext) -> UsageReport:
    """Return the report of a whole request from those of its sequences, as many as there are so far. The choices of one prompt each report
    that prompt; the output is known once all have reported."""
    used = sum((part.used for part in parts), NOTHING)
    choices = context.sequences // context.prompts
    anomaly = next((part.anomaly for part in parts if part.anomaly is not None), None)
    return UsageReport(
        # Rounded up in total: what is left of a class that another one stands in for is left of that other class.
        _change(used, Direction.INPUT, lambda row, count: count // choices if row.price_of else -(-count // choices))
        if len(parts) == context.sequences
        else _change(NOTHING, Direction.INPUT, lambda row, _: max(part.used.get(row.billing_class) for part in parts)),
        anomaly,
        has_input=any(part.has_input for part in parts),
        has_output=len(parts) == context.sequences and all(part.has_output for part in parts),
    )


def scale_to_answer(report: UsageReport, sizes: Sequence[int], context: AnswerContext) -> UsageReport:
    """Return the report of a whole answer from that of its first sequence.

    `sizes`: bytes of output of each sequence. Tokens are taken to be as long in all of them. The input of several prompts stays unknown.
    """
    first, whole = max(sizes[0], 1), max(sum(sizes), 1)
    scaled = _change(report.used, Direction.OUTPUT, lambda _, count: count * whole // first)
    is_input_known = context.prompts == 1
    return UsageReport(
        scaled if is_input_known else scaled.with_input_of(NOTHING),
        report.anomaly or Anomaly.MISSING,
        has_input=is_input_known and report.has_input,
        has_output=report.has_output,
    )


def cap_input(used: Quantities, input_tokens_max: int) -> Quantities:
    """Return `used` with no more input, cached input included, than the prompts can have; `used` itself if nothing exceeds it."""
    surplus = used.input_tokens - input_tokens_max
    return used if surplus <= 0 else _remove(used, Direction.INPUT, surplus)


def cap_output(used: Quantities, output_tokens_max: int | None) -> Quantities:
    """Return `used` with no more output, reasoning included, than the request could produce; `used` itself if nothing exceeds it."""
    surplus = 0 if output_tokens_max is None else used.output_tokens - output_tokens_max
    return used if surplus <= 0 else _remove(used, Direction.OUTPUT, surplus)


def cap_to_delivered(used: Quantities, output_tokens_max: int | None, delivered_bytes: int) -> Quantities:
    """Return `used` with no more output than `delivered_bytes` can hold, where the request itself bounds nothing; `used` itself if nothing
    exceeds it. A token takes at least one byte. Reasoning is not bounded: engines may be asked not to show it."""
    if output_tokens_max is not None or used.output <= delivered_bytes:
        return used
    return msgspec.structs.replace(used, output=delivered_bytes)


def _remove(used: Quantities, direction: Direction, surplus: int) -> Quantities:
    """Return `used` with `surplus` tokens less in one direction, taken from its classes in the order of the table."""
    left = surplus

    def remove(_: BillingClassRow, count: int) -> int:
        nonlocal left
        removed = min(count, left)
        left -= removed
        return count - removed

    return _change(used, direction, remove)


def _change(used: Quantities, direction: Direction, change: Callable[[BillingClassRow, int], int]) -> Quantities:
    """Return `used` with the count of each class of one direction replaced by `change(row, count)`."""
    return used.replace(
        {row.billing_class: change(row, used.get(row.billing_class)) for row in BILLING_CLASSES if row.direction is direction}
    )
