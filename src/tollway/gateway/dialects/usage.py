"""Usage reports of engines: how much of them can be believed."""

from tollway.domain.billing_classes import Quantities
from tollway.domain.usage import Anomaly


def check_report(
    reported: Quantities | None, output_tokens_max: int | None, anomaly: Anomaly | None = None
) -> tuple[Quantities | None, Anomaly | None]:
    """Return what of a usage report can be believed, and what was wrong with it.

    `reported`: None for a report that made no sense. `output_tokens_max`: most output tokens that the request could produce, None if
    nothing bounds them. An engine that claims more is not paid for the surplus. `anomaly`: what was wrong with the report already.
    """
    if reported is None:
        return None, Anomaly.INVALID
    if output_tokens_max is None or reported.output + reported.reasoning <= output_tokens_max:
        return reported, anomaly
    return cap_output(reported, output_tokens_max), Anomaly.INFLATED


def cap_output(used: Quantities, output_tokens_max: int | None) -> Quantities:
    """Return `used` with no more output, reasoning included, than the request could produce; `used` itself if nothing exceeds it."""
    if output_tokens_max is None or used.output + used.reasoning <= output_tokens_max:
        return used
    reasoning = min(used.reasoning, output_tokens_max)
    return Quantities(used.input, used.cached_input, output_tokens_max - reasoning, reasoning)


def cap_to_delivered(used: Quantities, output_tokens_max: int | None, delivered_bytes: int) -> Quantities:
    """Return `used` with no more output than `delivered_bytes` can hold, where the request itself bounds nothing; `used` itself if nothing
    exceeds it. A token takes at least one byte. Reasoning is not bounded: engines may be told not to show it."""
    if output_tokens_max is not None or used.output <= delivered_bytes:
        return used
    return Quantities(used.input, used.cached_input, delivered_bytes, used.reasoning)
