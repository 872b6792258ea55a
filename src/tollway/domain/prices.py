"""Prices and rating: quantity x unit price, summed. Exact, order-independent, replayable.

What is here is all that a gateway and the collector know of prices: versions, compiled from the books that operators keep (see
`price_books`), by price list, model, service tier and instant. A version is immutable once published and is chosen by the instant of
admission, so a price change in the middle of a request is deterministic and visible. Which list an organization pays by is its
terms, which are versioned in time too. Rating multiplies and adds integers and never divides. Token classes are disjoint: a token is
in exactly one.

A further class of units (audio, images) is a member of BillingClass and one field of `UnitPrices`; all else walks over the classes.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.usage import Amounts, Quantities, ServiceTier


class BillingClass(StrEnum):
    """What is counted and priced. The four token classes are disjoint."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    REASONING = "reasoning"
    REQUEST = "request"


class UnitPrices(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit of each class costs: pico-currency per token, or per request.

    Every class has a price: an API that lets one be left out fills it in (cached input costs as input, reasoning as output) before
    the price is published, so that nothing is ever billed at an unstated price.
    """

    input_pico: int
    cached_input_pico: int
    output_pico: int
    reasoning_pico: int
    request_pico: int = 0

    def units(self) -> "UnitPrices":
        """The unit prices alone, of whatever carries them."""
        return UnitPrices(**{name: getattr(self, name) for name in UNIT_FIELDS.values()})


UNIT_FIELDS = {billing_class: f"{billing_class}_pico" for billing_class in BillingClass}
"""The field of `UnitPrices` for each class."""


class PriceVersion(UnitPrices, frozen=True, kw_only=True):
    """Compiled unit prices of one model in one service tier of one price list, from `valid_from` (inclusive) until the next version's.

    `list`: the id of the price list (see `price_books.list_id`).
    """

    id: str
    list: str
    model: str
    currency: str
    valid_from: int
    tier: ServiceTier = ServiceTier.STANDARD


class PriceTerms(msgspec.Struct, frozen=True):
    """From `valid_from` (inclusive) on, an organization pays by the price list `list`, until its next terms."""

    valid_from: int
    list: str


# ---- Which price ------------------------------------------------------------------------------------------------------


def find_price(versions: Sequence[PriceVersion], at: int) -> PriceVersion | None:
    """The version valid at instant `at`: the last whose valid_from is not later. `versions` must be ordered by valid_from."""
    for version in reversed(versions):
        if version.valid_from <= at:
            return version
    return None


def find_list(terms: Sequence[PriceTerms], at: int) -> str | None:
    """The price list of the terms in force at instant `at`. `terms` must be ordered by valid_from."""
    for each in reversed(terms):
        if each.valid_from <= at:
            return each.list
    return None


# ---- Rating -----------------------------------------------------------------------------------------------------------


class RatedLine(msgspec.Struct, frozen=True):
    """One class of one event: quantity x unit_pico = amount_pico, an integer product that anyone can check."""

    billing_class: BillingClass
    quantity: int
    unit_pico: int
    amount_pico: int


def rate(billed: Quantities, requests: int, price: UnitPrices) -> list[RatedLine]:
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


def amounts(billed: Quantities, requests: int, price: UnitPrices) -> Amounts:
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


def cost(billed: Quantities, requests: int, price: UnitPrices) -> int:
    """The event's cost in pico-currency: the sum of `rate`'s amounts, without the lines."""
    return (
        billed.input * price.input_pico
        + billed.cached_input * price.cached_input_pico
        + billed.output * price.output_pico
        + billed.reasoning * price.reasoning_pico
        + requests * price.request_pico
    )
