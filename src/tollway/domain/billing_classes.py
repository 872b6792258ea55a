"""Billing classes: what is counted, priced and billed, in one table.

Everything that enumerates classes (database columns, rollups, ledger accounts, receipts, API fields, command-line options and columns,
metrics, log lines, the slots of requests in progress) walks over `BILLING_CLASSES`. To add a class:

1. here, add a member to `BillingClass` before the request, a row to the table with a new `CLASS_TABLE` as its `since`, and a field to
   `OtherClasses`, with its term in one of its sums if it is of tokens (tests compare them with the table);
2. read its quantity where an engine reports it (`gateway.dialects`);
3. write a migration for its columns (`make migration`): nullable in tables whose rows never change.

Prices, digests and rows from before a class existed stay as they are: where its price is not stated, it is the default of its row
(docs/decisions/0057).

The stand-alone verifier keeps a list of its own, on purpose.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from operator import add, attrgetter, mul, or_

import msgspec

from tollway.domain.money import format_amount, format_price_per_million, parse_amount, parse_price_per_million


class Unit(StrEnum):
    """The unit of a class, which decides how its price is written."""

    TOKEN = "token"  # priced per 1,000,000
    CHARACTER = "character"  # priced per 1,000,000
    PIXEL = "pixel"  # priced per 1,000,000
    SECOND = "second"  # priced each, as those below
    IMAGE = "image"
    REQUEST = "request"


PER_MILLION = frozenset({Unit.TOKEN, Unit.CHARACTER, Unit.PIXEL})
"""Units whose prices are written per 1,000,000."""


class BillingClass(StrEnum):
    """A class that is counted and priced. The token classes are disjoint: a token is in exactly one."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    REASONING = "reasoning"
    CACHE_WRITE = "cache_write"
    AUDIO_INPUT = "audio_input"
    IMAGE_INPUT = "image_input"
    AUDIO_OUTPUT = "audio_output"
    IMAGE_OUTPUT = "image_output"
    SECONDS = "seconds"
    CHARACTERS = "characters"
    IMAGES = "images"
    PIXELS = "pixels"
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
    not `required`. `description`: for API schemas and option help. `since`: the version of this table in which the class appeared.
    """

    billing_class: BillingClass
    unit: Unit
    line_item: str
    description: str
    direction: Direction | None = None
    price_of: BillingClass | None = None
    required: bool = False
    since: int = 1


CLASS_TABLE = 3
"""Version of the table: one more each time that it gets classes."""

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
        billing_class=BillingClass.CACHE_WRITE,
        unit=Unit.TOKEN,
        line_item="cache_write_tokens",
        description="Tokens of the prompt that the engine computed and wrote to a cache at the client's wish.",
        direction=Direction.INPUT,
        price_of=BillingClass.INPUT,
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.AUDIO_INPUT,
        unit=Unit.TOKEN,
        line_item="audio_input_tokens",
        description="Tokens of audio in the prompt.",
        direction=Direction.INPUT,
        price_of=BillingClass.INPUT,
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.IMAGE_INPUT,
        unit=Unit.TOKEN,
        line_item="image_input_tokens",
        description="Tokens of images in the prompt, where the engine counts them apart.",
        direction=Direction.INPUT,
        price_of=BillingClass.INPUT,
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.AUDIO_OUTPUT,
        unit=Unit.TOKEN,
        line_item="audio_output_tokens",
        description="Tokens of audio in the answer.",
        direction=Direction.OUTPUT,
        price_of=BillingClass.OUTPUT,
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.IMAGE_OUTPUT,
        unit=Unit.TOKEN,
        line_item="image_output_tokens",
        description="Tokens of images in the answer, where the engine counts them apart.",
        direction=Direction.OUTPUT,
        price_of=BillingClass.OUTPUT,
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.SECONDS,
        unit=Unit.SECOND,
        line_item="seconds",
        description="Seconds of audio that were transcribed or translated, begun ones included.",
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.CHARACTERS,
        unit=Unit.CHARACTER,
        line_item="characters",
        description="Characters of text that were made into speech.",
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.IMAGES,
        unit=Unit.IMAGE,
        line_item="images",
        description="Images that were made.",
        since=2,
    ),
    BillingClassRow(
        billing_class=BillingClass.PIXELS,
        unit=Unit.PIXEL,
        line_item="pixels",
        description="Pixels of all images that were made together, at most those of the size that was asked for.",
        since=3,
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

OTHER_CLASSES: tuple[BillingClass, ...] = tuple(row.billing_class for row in BILLING_CLASSES if row.since > 1)
"""Classes that few requests use, and that the first table did not have: left out wherever a record or a row has nothing of them."""

TEXT_CLASSES: tuple[BillingClass, ...] = tuple(name for name in QUANTITY_CLASSES if name not in OTHER_CLASSES)
"""The token classes of text, which nearly all requests use."""

_OF_DIRECTION: Mapping[Direction, tuple[BillingClass, ...]] = {
    direction: tuple(row.billing_class for row in BILLING_CLASSES if row.direction is direction) for direction in Direction
}

assert tuple(ROWS) == tuple(BillingClass), "the table has one row for each class, in the order of the enumeration"
assert tuple(BillingClass)[-1] is BillingClass.REQUEST, "`PerClass.quantities` relies on the request standing last"
assert QUANTITY_CLASSES == TEXT_CLASSES + OTHER_CLASSES, "classes that few requests use stand behind those of all"


class OtherClasses(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One integer for each class of OTHER_CLASSES."""

    cache_write: int = 0
    audio_input: int = 0
    image_input: int = 0
    audio_output: int = 0
    image_output: int = 0
    seconds: int = 0
    characters: int = 0
    images: int = 0
    pixels: int = 0

    @property
    def input_tokens(self) -> int:
        """The tokens of the prompt among them."""
        return self.cache_write + self.audio_input + self.image_input

    @property
    def output_tokens(self) -> int:
        """The tokens that the model made among them."""
        return self.audio_output + self.image_output


_COMMON_CLASSES = (*TEXT_CLASSES, BillingClass.REQUEST)
"""The classes that are fields of `PerClass`, in their order."""

_NO_OTHER = (0,) * len(OTHER_CLASSES)


class PerClass(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One integer for each billing class: quantities, unit prices or amounts, whatever the name of the variable says.

    Quantities are units. Unit prices are pico-currency per unit. Amounts are pico-currency. `other`: None if all of its classes are 0, as
    they are in nearly all quantities and amounts, so that nothing is spent on them there.
    """

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    request: int = 0
    other: OtherClasses | None = None

    @classmethod
    def from_values(cls, values: Iterable[int]) -> "PerClass":
        """Return the vector of the values of every class, in the order of the table."""
        input, cached_input, output, reasoning, *other, request = values
        return cls(input, cached_input, output, reasoning, request, OtherClasses(*other) if any(other) else None)

    @property
    def total(self) -> int:
        """The sum over all classes."""
        total = self.input + self.cached_input + self.output + self.reasoning + self.request
        return total if self.other is None else total + sum(msgspec.structs.astuple(self.other))

    @property
    def bits(self) -> int:
        """The bitwise or of all values: negative if any value is, and at least 2**n if any value is. One test for the range of all."""
        bits = self.input | self.cached_input | self.output | self.reasoning | self.request
        return bits if self.other is None else reduce(or_, msgspec.structs.astuple(self.other), bits)

    def __add__(self, other: "PerClass") -> "PerClass":
        if self.other is not None or other.other is not None:
            return PerClass.from_values(map(add, self.values(), other.values()))
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
        tokens = self.input + self.cached_input
        return tokens if self.other is None else tokens + self.other.input_tokens

    @property
    def output_tokens(self) -> int:
        """The tokens that the model made, whatever class they are in."""
        tokens = self.output + self.reasoning
        return tokens if self.other is None else tokens + self.other.output_tokens

    def times(self, unit_prices: "PerClass", requests: int = 0) -> "PerClass":
        """Return the amounts of these quantities, and of so many requests more, at these unit prices, class by class.

        This and `cost`, its sum, are the only multiplications of money in Tollway.
        """
        other = None
        if self.other is not None and unit_prices.other is not None:
            picos = tuple(map(mul, msgspec.structs.astuple(self.other), msgspec.structs.astuple(unit_prices.other)))
            other = OtherClasses(*picos) if any(picos) else None
        return PerClass(
            self.input * unit_prices.input,
            self.cached_input * unit_prices.cached_input,
            self.output * unit_prices.output,
            self.reasoning * unit_prices.reasoning,
            (self.request + requests) * unit_prices.request,
            other,
        )

    def cost(self, unit_prices: "PerClass", requests: int = 0) -> int:
        """Return `times(unit_prices, requests).total`."""
        pico = (
            self.input * unit_prices.input
            + self.cached_input * unit_prices.cached_input
            + self.output * unit_prices.output
            + self.reasoning * unit_prices.reasoning
            + (self.request + requests) * unit_prices.request
        )
        if self.other is not None and unit_prices.other is not None:
            pico += sum(map(mul, msgspec.structs.astuple(self.other), msgspec.structs.astuple(unit_prices.other)))
        return pico

    def with_input_of(self, other: "PerClass") -> "PerClass":
        """Return these values with the input classes of `other`."""
        if self.other is not None or other.other is not None:
            return self.replace({name: other.get(name) for name in _OF_DIRECTION[Direction.INPUT]})
        return PerClass(other.input, other.cached_input, self.output, self.reasoning, self.request)

    def with_plain_output(self, output: int) -> "PerClass":
        """Return these values with `output` and nothing in the other output classes."""
        if self.other is not None:
            return self.replace(dict.fromkeys(_OF_DIRECTION[Direction.OUTPUT], 0) | {BillingClass.OUTPUT: output})
        return PerClass(self.input, self.cached_input, output, 0, self.request)

    def with_request(self, request: int) -> "PerClass":
        """Return these values with another number of requests."""
        return PerClass(self.input, self.cached_input, self.output, self.reasoning, request, self.other)

    def replace(self, values: Mapping[BillingClass, int]) -> "PerClass":
        """Return these values with others in place of those of some classes."""
        return PerClass.from_values(values.get(name, value) for name, value in zip(BillingClass, self.values(), strict=True))

    def get(self, billing_class: BillingClass) -> int:
        """Return the value of one class."""
        holder = self if billing_class in _COMMON_CLASSES else self.other
        value: int = 0 if holder is None else getattr(holder, billing_class)
        return value

    def items(self) -> Iterator[tuple[BillingClass, int]]:
        """Yield (class, value) for each class whose value is not zero, in the order of the table."""
        classes, values = (BillingClass, self.values()) if self.other is not None else (_COMMON_CLASSES, msgspec.structs.astuple(self))
        for billing_class, value in zip(classes, values, strict=False):  # without others, None ends the second
            if value:
                yield billing_class, value

    def values(self) -> tuple[int, ...]:
        """Return the value of every class, in the order of the table."""
        return (*self.quantities(), self.request)

    def text_quantities(self) -> tuple[int, ...]:
        """Return the values of TEXT_CLASSES, in their order."""
        return msgspec.structs.astuple(self)[: len(TEXT_CLASSES)]

    def quantities(self) -> tuple[int, ...]:
        """Return the values of QUANTITY_CLASSES, in their order."""
        other = _NO_OTHER if self.other is None else msgspec.structs.astuple(self.other)
        return (*self.text_quantities(), *other)

    def sum_of(self, direction: Direction) -> int:
        """Return the sum over the token classes of one direction."""
        return self.input_tokens if direction is Direction.INPUT else self.output_tokens

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

_COMMON = tuple(map(attrgetter, map(str, _COMMON_CLASSES)))


def add_up(parts: Sequence[PerClass]) -> PerClass:
    """Return the sum of some values, at least one: many at once in a fraction of the time that it takes to add one to the other."""
    if len(parts) == 1:
        return parts[0]
    if any(each.other is not None for each in parts):
        return reduce(add, parts)
    return PerClass(*(sum(map(get, parts)) for get in _COMMON))


def parse_unit_price(unit: Unit, text: str) -> int:
    """Return pico-currency per unit of a price as it is written: per 1,000,000 units of PER_MILLION, or per unit. Raises ValueError."""
    return parse_price_per_million(text) if unit in PER_MILLION else parse_amount(text)


def format_unit_price(unit: Unit, unit_pico: int) -> str:
    """Return the decimal string that `parse_unit_price` reads back."""
    return format_price_per_million(unit_pico) if unit in PER_MILLION else format_amount(unit_pico)


def describe_unit_prices(prices: UnitPrices) -> dict[str, str]:
    """Return the price of each class as `format_unit_price` writes it, by the name of the class."""
    return {str(row.billing_class): format_unit_price(row.unit, prices.get(row.billing_class)) for row in BILLING_CLASSES}


def with_default_prices(stated: Mapping[BillingClass, int]) -> UnitPrices:
    """Return the unit prices of every class, given those that are stated.

    A class without a price of its own costs what its row says: cached input as input, reasoning as output, a request nothing. So no token
    is ever billed at an unstated price. Raises KeyError for a required class that is not stated.
    """
    prices = dict(stated)
    for row in BILLING_CLASSES:
        if row.billing_class not in prices:
            if row.required:
                raise KeyError(row.billing_class)
            prices[row.billing_class] = 0 if row.price_of is None else prices[row.price_of]
    return UnitPrices.from_values(prices[billing_class] for billing_class in BillingClass)


def complete_prices(unit_prices: UnitPrices, class_table: int) -> UnitPrices:
    """Return unit prices that were stated by version `class_table` of the table with the default of each class that it did not have."""
    if class_table >= CLASS_TABLE:
        return unit_prices
    return with_default_prices(
        {row.billing_class: unit_prices.get(row.billing_class) for row in BILLING_CLASSES if row.since <= class_table}
    )


def stated_prices(unit_prices: UnitPrices) -> dict[BillingClass, int]:
    """Return the fewest unit prices from which `with_default_prices` makes these: without the later classes that have their default.

    Rows, exports and hashes state this, so those of prices that were published before a class existed stay as they are.
    """
    defaults = with_default_prices({name: unit_prices.get(name) for name in BillingClass if name not in OTHER_CLASSES})
    return {
        name: unit_prices.get(name) for name in BillingClass if name not in OTHER_CLASSES or unit_prices.get(name) != defaults.get(name)
    }


def stated_quantities(quantities: Quantities) -> dict[BillingClass, int]:
    """Return quantities by class without the later classes of which there are none, for digests and exports."""
    return {name: quantities.get(name) for name in BillingClass if name not in OTHER_CLASSES or quantities.get(name)}
