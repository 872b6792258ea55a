"""Prices and rating: quantity x unit price, summed. Exact, order-independent, replayable.

A price version is immutable once published and is chosen by the instant of admission, so a price change in the middle of a request
is deterministic and visible. Token classes are disjoint: a token is in exactly one.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.usage import Amounts, Quantities


class BillingClass(StrEnum):
    """What is counted and priced. The four token classes are disjoint."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    REASONING = "reasoning"
    REQUEST = "request"


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Unit prices of one model from `valid_from` (inclusive) until the next version's. Pico-currency per token, or per request.

    Every class has a price: an API that lets one be left out fills it in (cached input costs as input, reasoning as output) before
    the version is published, so that nothing is ever billed at an unstated price.
    """

    id: str
    model: str
    currency: str
    valid_from: int
    input_pico: int
    cached_input_pico: int
    output_pico: int
    reasoning_pico: int
    request_pico: int = 0


class RatedLine(msgspec.Struct, frozen=True):
    """One class of one event: quantity x unit_pico = amount_pico, an integer product that anyone can check."""

    billing_class: BillingClass
    quantity: int
    unit_pico: int
    amount_pico: int


def rate(billed: Quantities, requests: int, price: PriceVersion) -> list[RatedLine]:
    """The rated lines of one event: a line for each class with a quantity above zero. Pure; the sum is the event's cost.

    `billed` is what the outcome policy lets through, `requests` 1 if the request itself is billed, else 0. Raises OverflowError if a
    line does not fit a signed 64-bit column (about 9.2 million currency units), which no bounded request can reach. The amounts are
    those of `amounts`, which is all that an event keeps of its rating: price and quantities never change.
    """
    lines = []
    for billing_class, quantity, unit_pico in (
        (BillingClass.INPUT, billed.input, price.input_pico),
        (BillingClass.CACHED_INPUT, billed.cached_input, price.cached_input_pico),
        (BillingClass.OUTPUT, billed.output, price.output_pico),
        (BillingClass.REASONING, billed.reasoning, price.reasoning_pico),
        (BillingClass.REQUEST, requests if price.request_pico else 0, price.request_pico),
    ):
        if quantity:
            amount_pico = quantity * unit_pico
            if amount_pico > AMOUNT_PICO_MAX:
                raise OverflowError(f"{billing_class} amount exceeds 64 bits")
            lines.append(RatedLine(billing_class, quantity, unit_pico, amount_pico))
    return lines


def amounts(billed: Quantities, requests: int, price: PriceVersion) -> Amounts:
    """What `rate` comes to, class by class, without the lines. Raises OverflowError as it does."""
    found = Amounts(
        billed.input * price.input_pico,
        billed.cached_input * price.cached_input_pico,
        billed.output * price.output_pico,
        billed.reasoning * price.reasoning_pico,
        requests * price.request_pico,
    )
    # No amount is below zero, so the sum is above each: it settles nearly every event in one comparison.
    if found.total > AMOUNT_PICO_MAX and max(msgspec.structs.astuple(found)) > AMOUNT_PICO_MAX:
        raise OverflowError("an amount exceeds 64 bits")
    return found


def cost(billed: Quantities, requests: int, price: PriceVersion) -> int:
    """The event's cost in pico-currency: the sum of `rate`'s amounts, without the lines."""
    return (
        billed.input * price.input_pico
        + billed.cached_input * price.cached_input_pico
        + billed.output * price.output_pico
        + billed.reasoning * price.reasoning_pico
        + requests * price.request_pico
    )


def find_price(versions: Sequence[PriceVersion], at: int) -> PriceVersion | None:
    """The version valid at instant `at`: the last whose valid_from is not later. `versions` must be ordered by valid_from."""
    for version in reversed(versions):
        if version.valid_from <= at:
            return version
    return None
