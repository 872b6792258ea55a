"""Prices and rating: quantity x unit price, summed. Exact, order-independent, replayable.

What is here is all that a gateway and the collector know of prices: versions, compiled from the books that operators keep (see
`price_books`), by price list, model, service tier and instant. A version is immutable once published and is chosen by the instant of
admission, so a price change in the middle of a request is deterministic and visible. Which list an organization pays by is its
terms, which are versioned in time too. Rating multiplies and adds integers and never divides. Token classes are disjoint: a token is
in exactly one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import force_setattr

from tollway.domain.billing_classes import CLASS_TABLE, Amounts, BillingClass, Quantities, UnitPrices, complete_prices
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.usage import ServiceTier


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Compiled unit prices of one model in one service tier of one price list, from `valid_from` (inclusive) until the next version's.

    `list`: the id of the price list (see `price_books.list_id`). `class_table`: the version of the table of billing classes by which the
    prices were stated: those that it did not have get their default. It is always the current one of a price that was made.
    """

    id: str
    list: str
    model: str
    currency: str
    valid_from: int
    unit_prices: UnitPrices
    tier: ServiceTier = ServiceTier.STANDARD
    class_table: int = 1

    def __post_init__(self) -> None:
        if self.class_table < CLASS_TABLE:
            force_setattr(self, "unit_prices", complete_prices(self.unit_prices, self.class_table))
            force_setattr(self, "class_table", CLASS_TABLE)


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


class Offer(NamedTuple):
    """A price version, and the instant from which the next one of its series is valid instead; INSTANT_MAX if none follows."""

    price: PriceVersion
    valid_until: int


def find_terms(terms: Sequence[PriceTerms], at: int) -> PriceTerms | None:
    """Return the terms in force at instant `at`. `terms` must be ordered by valid_from."""
    for each in reversed(terms):
        if each.valid_from <= at:
            return each
    return None


def find_list(terms: Sequence[PriceTerms], at: int) -> str | None:
    """The price list of the terms in force at instant `at`. `terms` must be ordered by valid_from."""
    found = find_terms(terms, at)
    return None if found is None else found.list


# ---- Rating -----------------------------------------------------------------------------------------------------------


class RatedLine(msgspec.Struct, frozen=True):
    """One class of one event: quantity x unit_pico = amount_pico, an integer product that anyone can check."""

    billing_class: BillingClass
    quantity: int
    unit_pico: int
    amount_pico: int


def rate(billed: Quantities, unit_prices: UnitPrices) -> list[RatedLine]:
    """Return the rated lines of one event: a line for each class with a quantity and, for the request itself, with a price.

    `billed` is what the outcome policy lets through (`usage.billed`). The sum of the lines is the event's cost. Raises OverflowError if a
    line does not fit a signed 64-bit column (about 9.2 million currency units), which no bounded request can reach.
    """
    found = amounts(billed, unit_prices)
    return [
        RatedLine(billing_class, quantity, unit_prices.get(billing_class), found.get(billing_class))
        for billing_class, quantity in billed.items()
        if billing_class is not BillingClass.REQUEST or found.request
    ]


def amounts(billed: Quantities, unit_prices: UnitPrices) -> Amounts:
    """Return what each class costs: the amounts of `rate` without the lines. Raises OverflowError as `rate` does."""
    found = billed.times(unit_prices)
    if found.bits > AMOUNT_PICO_MAX:  # no amount is below zero, and the bound is one less than a power of two
        raise OverflowError("an amount exceeds 64 bits")
    return found
