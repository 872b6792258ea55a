"""Quotes: what a request would cost, and what would refuse it now. `POST /v1/quote/...` answers with one (docs/budgets.md).

A quote is made from the call that `authorize` makes of the body, so that it speaks of exactly the request that would be sent. What limits
have left is compared with what the request would reserve; budgets are asked by reserving in them and ending the reservation at once. So
nothing is spent, counted or sent to an engine.
"""

from collections.abc import Sequence

from tollway.domain.billing_classes import OtherClasses, Quantities, describe_unit_prices
from tollway.domain.budgets import find_fixed_cost, find_output_price
from tollway.domain.catalog import covers_model
from tollway.domain.faults import Fault
from tollway.domain.limits import Standing
from tollway.domain.money import format_amount
from tollway.domain.usage import OUTCOME_POLICIES, OUTCOME_POLICY_CURRENT
from tollway.gateway.budgets import OUTPUT_TOKENS_EXPECTED
from tollway.gateway.counters import INPUT_TOKENS, OUTPUT_TOKENS, QUANTITIES, Units
from tollway.gateway.limit import estimate_units
from tollway.gateway.request import Call


class Quote:
    """The quote of a call. Take it before anything lowers the call's output; `describe` it when limits and budgets were asked."""

    __slots__ = ("_call", "_expected", "_expected_pico", "_input_tokens_max", "_most_pico", "_output_tokens_max")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._input_tokens_max, self._output_tokens_max = call.input_tokens_max, call.output_tokens_max
        units = estimate_units(call, ())
        input_tokens, output_tokens = units[INPUT_TOKENS], units[OUTPUT_TOKENS]
        self._expected = (input_tokens, min(output_tokens, OUTPUT_TOKENS_EXPECTED * call.sequences))
        prices, most = call.price.unit_prices, call.output_tokens_max
        images = call.sequences if call.dialect.counts_images else 0
        other = OtherClasses(images=images) if images else None
        media: OtherClasses | None = None
        if call.measure is not None:
            measure = call.measure
            other = OtherClasses(seconds=measure.seconds, characters=measure.characters, images=images, pixels=measure.pixels)
            media = OtherClasses(seconds=measure.seconds_max, characters=measure.characters, pixels=measure.pixels)
        self._expected_pico = Quantities(input_tokens, output=self._expected[1], request=1, other=other).cost(prices)
        fixed_pico = find_fixed_cost(prices, call.input_tokens_max, images, media)
        self._most_pico = None if most is None else fixed_pico + most * find_output_price(prices)
        if call.caller.is_test or call.request.endpoint in OUTCOME_POLICIES[OUTCOME_POLICY_CURRENT].unbilled_endpoints:
            self._expected_pico = self._most_pico = 0

    def describe(self, standings: Sequence[Standing], fault: Fault | None) -> dict[str, object]:
        """Return the quote as the API shows it. `standings`: of the limits that bind the call. `fault`: by which a budget or `x-max-cost`
        would refuse it now, None if none does."""
        call, most = self._call, self._most_pico
        refusals = [_describe_limit(each, units) for each, units in list_exceeded(call, standings)]
        if fault is not None:
            refusals.append({"code": fault.kind.code, "message": fault.message})
        return {
            "object": "quote",
            "endpoint": call.request.endpoint,
            "model": call.model.id,
            "service_tier": call.price.tier,
            "price_version": call.price.id,
            "unit_prices": describe_unit_prices(call.price.unit_prices),
            "currency": call.caller.organization.currency.lower(),
            "input_tokens": {"expected": self._expected[0], "most": self._input_tokens_max},
            "output_tokens": {
                "expected": self._expected[1],
                "most": self._output_tokens_max,
                "allowed": None if refusals else call.output_tokens_max,
            },
            "cost": {"expected": format_amount(self._expected_pico), "most": None if most is None else format_amount(most)},
            "is_admitted": not refusals,
            "refusals": refusals,
        }


def list_exceeded(call: Call, standings: Sequence[Standing]) -> list[tuple[Standing, int]]:
    """Return the limits that would refuse a call now, each with the units that the call would reserve of it."""
    units: Units = estimate_units(call, standings)
    of_call = [each for each in standings if covers_model(each.owner.model, call.model.id, call.model.groups)]
    needs = [(each, units[QUANTITIES.index(each.dimension.quantity)]) for each in of_call]
    return [(each, needed) for each, needed in needs if needed > each.remaining]


def _describe_limit(standing: Standing, needed: int) -> dict[str, object]:
    return {
        "code": "rate_limit_exceeded",
        "message": f"The limit of {standing.size} {standing.dimension.words} has {standing.remaining} left, the request needs {needed}.",
        "level": standing.owner.level,
        "id": standing.owner.id,
        "model": standing.owner.model or None,
        "dimension": standing.dimension.name,
        "limit": standing.size,
        "remaining": standing.remaining,
        "needed": needed,
    }
