"""Billing classes: what is counted, priced and billed, in one table.

Everything that enumerates classes (database columns, rollups, ledger accounts, receipts, API fields, command-line options and columns,
metrics, log lines, the slots of requests in progress) walks over `BILLING_CLASSES`. To add a class:

1. here, add a member to `BillingClass`, a row to the table, and a field to `PerClass` with its term in each of the methods that name
   the fields (tests compare every one of them with the table);
2. read its quantity where an engine reports it (`gateway.dialects`);
3. write a migration for its columns (`make migration`).

The stand-alone verifier keeps a list of its own, on purpose.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from tollway.domain.money import format_amount, format_price_per_million, parse_amount, parse_price_per_million


class Unit(StrEnum):
    """The unit of a class, which decides how its price is written."""

    TOKEN = "token"  # priced per 1,000,000
    REQUEST = "request"  # priced each


class BillingClass(StrEnum):
    """A class that is counted and priced. The token classes are disjoint: a token is in exactly one."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    REASONING = "reasoning"
    REQUEST = "request"


class Direction(StrEnum):
    """The direction of a token class: sent to the model, or made by it."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingClassRow:
    """One class.

    `line_item`: its name in costs, after the model ("<model>, input_tokens"). `direction`: None for what is not a token. `price_of`: the
    class whose unit price applies where none is stated for this one; None where the price must be stated, or is zero for a class that is
    not `required`. `description`: for API schemas and option help.
    """

    billing_class: BillingClass
    unit: Unit
    line_item: str
    description: str
    direction: Direction | None = None
    price_of: BillingClass | None = None
    required: bool = False


BILLING_CLASSES: tuple[BillingClassRow, ...] = (
    BillingClassRow(
        billing_class=BillingClass.INPUT,
        unit=Unit.TOKEN,
        line_item="input_tokens",
        description="Tokens of the prompt that the engine computed.",
        direction=Direction.INPUT,
        required=True,
    ),
    BillingClassRow(
        billing_class=BillingClass.CACHED_INPUT,
        unit=Unit.TOKEN,
        line_item="cached_input_tokens",
        description="Tokens of the prompt that the engine took from its prefix cache.",
        direction=Direction.INPUT,
        price_of=BillingClass.INPUT,
    ),
    BillingClassRow(
        billing_class=BillingClass.OUTPUT,
        unit=Unit.TOKEN,
        line_item="output_tokens",
        description="Tokens of the answer, without reasoning.",
        direction=Direction.OUTPUT,
        required=True,
    ),
    BillingClassRow(
        billing_class=BillingClass.REASONING,
        unit=Unit.TOKEN,
        line_item="reasoning_tokens",
        description="Tokens that the model produced to reason before it answered.",
        direction=Direction.OUTPUT,
        price_of=BillingClass.OUTPUT,
    ),
    BillingClassRow(
        billing_class=BillingClass.REQUEST,
        unit=Unit.REQUEST,
        line_item="requests",
        description="The request itself.",
    ),
)

ROWS: Mapping[BillingClass, BillingClassRow] = {row.billing_class: row for row in BILLING_CLASSES}
"""The same rows by class, in the same order."""

QUANTITY_CLASSES: tuple[BillingClass, ...] = tuple(name for name in BillingClass if name is not BillingClass.REQUEST)
"""Classes whose quantity an engine reports. Whether a request is billed follows from its outcome instead (`usage.billed`)."""

_OF_DIRECTION: Mapping[Direction, tuple[BillingClass, ...]] = {
    direction: tuple(row.billing_class for row in BILLING_CLASSES if row.direction is direction) for direction in Direction
}

assert tuple(ROWS) == tuple(BillingClass), "the table has one row for each class, in the order of the enumeration"
assert tuple(BillingClass)[-1] is BillingClass.REQUEST, "`PerClass.quantities` relies on the request standing last"


class PerClass(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One integer for each billing class: quantities, unit prices or amounts, whatever the name of the variable says.

    Quantities are units. Unit prices are pico-currency per unit. Amounts are pico-currency.
    """

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    request: int = 0

    @property
    def total(self) -> int:
        """The sum over all classes."""
        return self.input + self.cached_input + self.output + self.reasoning + self.request

    @property
    def bits(self) -> int:
        """The bitwise or of all values: negative if any value is, and at least 2**n if any value is. One test for the range of all."""
        return self.input | self.cached_input | self.output | self.reasoning | self.request

    def __add__(self, other: "PerClass") -> "PerClass":
        return PerClass(
            self.input + other.input,
            self.cached_input + other.cached_input,
            self.output + other.output,
            self.reasoning + other.reasoning,
            self.request + other.request,
        )

    @property
    def input_tokens(self) -> int:
        """The tokens of the prompt, whatever class they are in."""
        return self.input + self.cached_input

    @property
    def output_tokens(self) -> int:
        """The tokens that the model made, whatever class they are in."""
        return self.output + self.reasoning

    def times(self, unit_prices: "PerClass", requests: int = 0) -> "PerClass":
        """Return the amounts of these quantities, and of so many requests more, at these unit prices, class by class.

        The only multiplication of money in Tollway.
        """
        return PerClass(
            self.input * unit_prices.input,
            self.cached_input * unit_prices.cached_input,
            self.output * unit_prices.output,
            self.reasoning * unit_prices.reasoning,
            (self.request + requests) * unit_prices.request,
        )

    def with_input_of(self, other: "PerClass") -> "PerClass":
        """Return these values with the input classes of `other`."""
        return PerClass(other.input, other.cached_input, self.output, self.reasoning, self.request)

    def with_plain_output(self, output: int) -> "PerClass":
        """Return these values with `output` and nothing in the other output classes."""
        return PerClass(self.input, self.cached_input, output, 0, self.request)

    def with_request(self, request: int) -> "PerClass":
        """Return these values with another number of requests."""
        return PerClass(self.input, self.cached_input, self.output, self.reasoning, request)

    def get(self, billing_class: BillingClass) -> int:
        """Return the value of one class."""
        value: int = getattr(self, billing_class)
        return value

    def items(self) -> Iterator[tuple[BillingClass, int]]:
        """Yield (class, value) for each class whose value is not zero, in the order of the table."""
        for billing_class, value in zip(BillingClass, msgspec.structs.astuple(self), strict=True):
            if value:
                yield billing_class, value

    def values(self) -> tuple[int, ...]:
        """Return the value of every class, in the order of the table."""
        return msgspec.structs.astuple(self)

    def quantities(self) -> tuple[int, ...]:
        """Return the values of QUANTITY_CLASSES, in their order."""
        return msgspec.structs.astuple(self)[:-1]

    def sum_of(self, direction: Direction) -> int:
        """Return the sum over the token classes of one direction."""
        return sum(map(self.get, _OF_DIRECTION[direction]))

    def highest_of(self, direction: Direction) -> int:
        """Return the highest value of the token classes of one direction."""
        return max(map(self.get, _OF_DIRECTION[direction]))


Quantities = PerClass
"""Units of each class that were used or are billed."""

UnitPrices = PerClass
"""Prices of one unit of each class, in pico-currency."""

Amounts = PerClass
"""Costs of each class of an event, in pico-currency; 0 where nothing is billed."""

NOTHING = PerClass()
"""Zero in every class."""


def parse_unit_price(unit: Unit, text: str) -> int:
    """Return pico-currency per unit of a price as it is written: per 1,000,000 tokens, or per request. Raises ValueError."""
    return parse_price_per_million(text) if unit is Unit.TOKEN else parse_amount(text)


def format_unit_price(unit: Unit, unit_pico: int) -> str:
    """Return the decimal string that `parse_unit_price` reads back."""
    return format_price_per_million(unit_pico) if unit is Unit.TOKEN else format_amount(unit_pico)


def describe_unit_prices(prices: UnitPrices) -> dict[str, str]:
    """Return the price of each class as `format_unit_price` writes it, by the name of the class."""
    return {str(row.billing_class): format_unit_price(row.unit, prices.get(row.billing_class)) for row in BILLING_CLASSES}


def with_default_prices(stated: Mapping[BillingClass, int]) -> UnitPrices:
    """Return the unit prices of every class, given those that are stated.

    A class without a price of its own costs what its row says: cached input as input, reasoning as output, a request nothing. So nothing is
    ever billed at an unstated price. Raises KeyError for a required class that is not stated.
    """
    prices = dict(stated)
    for row in BILLING_CLASSES:
        if row.billing_class not in prices:
            if row.required:
                raise KeyError(row.billing_class)
            prices[row.billing_class] = 0 if row.price_of is None else prices[row.price_of]
    return UnitPrices(**{str(billing_class): unit_pico for billing_class, unit_pico in prices.items()})
