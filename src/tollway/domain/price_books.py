"""Price books: what operators keep, and how the price versions that bills are made with follow from it.

A book holds prices of models in one currency, by service tier and instant; it is general, or one organization's own. A price list is
a book at a discount, and each published price is compiled for every list of its book: the discount is in the unit price, rounded once,
before anybody is billed. A price is written as a line of a draft, checked (`check`), published with the whole draft, and never changes
or goes away after that. All of this is pure: anybody can compile a published price again and compare.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec
from msgspec.structs import force_setattr

from tollway.domain.billing_classes import CLASS_TABLE, BillingClass, UnitPrices, complete_prices
from tollway.domain.money import divide_half_even
from tollway.domain.prices import PriceTerms, PriceVersion
from tollway.domain.usage import ServiceTier

DISCOUNT_BP_MAX = 10_000
"""A discount of 100 %, in basis points: everything for nothing, and said so."""

LINES_MAX = 2_000
"""Lines of a draft: every tier of five hundred models, published in one transaction."""

JUMP_FACTOR = 10
"""A unit price that rises or falls by more than this factor is more often a slipped digit than a decision."""


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """Prices in one currency. `organization_id`: whose own it is, None if it is general. `is_default`: organizations of its currency
    pay by it unless they have terms of their own."""

    id: str
    name: str
    currency: str
    organization_id: str | None
    is_default: bool
    created_at: int


class PriceList(msgspec.Struct, frozen=True):
    """A book at a discount, in basis points."""

    id: str
    book_id: str
    discount_bp: int


class BookPrice(msgspec.Struct, frozen=True, kw_only=True):
    """A published price of a book: immutable, of one model and service tier, from `valid_from` until the next one's.

    `carried_from`: the oldest valid_from that gateways still need of this series once this price is its last (see control.catalog.prices).
    `draft_id`: the draft it was published with, None if it was published by itself.
    """

    id: str
    book_id: str
    model: str
    tier: ServiceTier
    valid_from: int
    carried_from: int
    published_at: int
    unit_prices: UnitPrices
    draft_id: str | None = None


# ---- Price lists ------------------------------------------------------------------------------------------------------


def list_id(book_id: str, discount_bp: int) -> str:
    """The id of the price list that is a book at a discount: `<book id>`, or `<book id>-<basis points>`."""
    return book_id if discount_bp == 0 else f"{book_id}-{discount_bp}"


def split_list_id(price_list: str) -> tuple[str, int]:
    """Book and discount of a price list's id."""
    book_id, _, discount_bp = price_list.partition("-")
    return book_id, int(discount_bp or 0)


def compile_unit(unit_pico: int, discount_bp: int) -> int:
    """A unit price at a discount of `discount_bp` basis points (0..10000), half to even: the one rounding between a book and a bill."""
    return divide_half_even(unit_pico * (DISCOUNT_BP_MAX - discount_bp), DISCOUNT_BP_MAX)


def compile_units(units: UnitPrices, discount_bp: int) -> UnitPrices:
    """All unit prices at a discount."""
    return UnitPrices.from_values(compile_unit(unit_pico, discount_bp) for unit_pico in units.values())


def compile_price(price: BookPrice, currency: str, discount_bp: int) -> PriceVersion:
    """The version of a published price on the list of its book at a discount. Its id is derived like the list's, so that it names its
    source and nothing else can have it."""
    return PriceVersion(
        id=list_id(price.id, discount_bp),
        list=list_id(price.book_id, discount_bp),
        model=price.model,
        tier=price.tier,
        currency=currency,
        valid_from=price.valid_from,
        unit_prices=compile_units(price.unit_prices, discount_bp),
        class_table=CLASS_TABLE,
    )


_DISCOUNT = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?%")


def parse_discount(text: str) -> int:
    """Basis points of a discount as a person writes it: "15%" -> 1500, "12.5%" -> 1250. Raises ValueError for anything else."""
    match = _DISCOUNT.fullmatch(text)
    discount_bp = int(match.group(1)) * 100 + int((match.group(2) or "").ljust(2, "0")) if match else DISCOUNT_BP_MAX + 1
    if discount_bp > DISCOUNT_BP_MAX:
        raise ValueError("a discount is a percentage up to 100% with at most two decimals, such as 15% or 12.5%")
    return discount_bp


def format_discount(discount_bp: int) -> str:
    """The text that `parse_discount` reads back: 1250 -> "12.5%"."""
    whole, rest = divmod(discount_bp, 100)
    return f"{whole}.{rest:02d}".rstrip("0").rstrip(".") + "%"


class StoredTerms(msgspec.Struct, frozen=True):
    """Terms as they were set. `carried_from`: the oldest valid_from that gateways still need once these are the organization's last."""

    valid_from: int
    list: str
    carried_from: int


def schedule(default_list: str | None, stored: Sequence[StoredTerms]) -> tuple[PriceTerms, ...]:
    """The terms of an organization, ordered by valid_from: the default list of its currency from the beginning, then what was set."""
    terms = [] if default_list is None else [PriceTerms(0, default_list)]
    return (*terms, *(PriceTerms(each.valid_from, each.list) for each in stored))


def carried(default_list: str | None, stored: Sequence[StoredTerms]) -> tuple[PriceTerms, ...]:
    """Return the part of the schedule that gateways must know. It follows from rows alone, never from the time of asking."""
    from_at = max((each.carried_from for each in stored), default=0)
    return tuple(each for each in schedule(default_list, stored) if each.valid_from >= from_at)


# ---- Drafts -----------------------------------------------------------------------------------------------------------


class DraftState(StrEnum):
    """A draft is open until it is published or discarded; then it stays as it is."""

    OPEN = "open"
    PUBLISHED = "published"
    DISCARDED = "discarded"


class DraftLine(msgspec.Struct, frozen=True, kw_only=True):
    """Draft price of one model in one service tier. `class_table`: as in `PriceVersion`."""

    model: str
    tier: ServiceTier
    unit_prices: UnitPrices
    class_table: int = 1

    def __post_init__(self) -> None:
        if self.class_table < CLASS_TABLE:
            force_setattr(self, "unit_prices", complete_prices(self.unit_prices, self.class_table))
            force_setattr(self, "class_table", CLASS_TABLE)

    @property
    def series(self) -> "Series":
        """Return what it is the price of."""
        return self.model, self.tier


class Severity(StrEnum):
    """An error keeps a draft from being published; a warning asks for a second look."""

    ERROR = "error"
    WARNING = "warning"


class DraftFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Finding of a check. `code` is for programs, `message` for a person; `model` and `tier` name the line, None for the whole draft."""

    severity: Severity
    code: str
    message: str
    model: str | None = None
    tier: ServiceTier | None = None


class PriceDraft(msgspec.Struct, frozen=True, kw_only=True):
    """Prices to be published together. `valid_from`: from when, None for the instant of publishing. `findings`: what was found, and
    accepted, when it was published."""

    id: str
    book_id: str
    state: DraftState
    valid_from: int | None
    lines: tuple[DraftLine, ...]
    created_at: int
    changed_at: int
    findings: tuple[DraftFinding, ...] = ()


Series = tuple[str, ServiceTier]
"""Model and service tier: what the prices of a book follow each other in."""


class PublishContext(msgspec.Struct, frozen=True, kw_only=True):
    """Context of a publication: at instant `now`, valid from `valid_from` on. `models`: names of those that may have prices.
    `published`: the prices of their series in the book so far, each ordered by valid_from."""

    now: int
    valid_from: int
    models: frozenset[str]
    published: Mapping[Series, Sequence[BookPrice]]

    def find_in_force(self, series: Series) -> BookPrice | None:
        """The published price that will be in force at `valid_from`."""
        return next((price for price in reversed(self.published.get(series, ())) if price.valid_from <= self.valid_from), None)

    def carried_from(self, series: Series) -> int:
        """The valid_from of the oldest price of the series that gateways need after another one, valid from `valid_from`, is its last: the
        one before the one in force now."""
        starts = [*(price.valid_from for price in self.published.get(series, ())), self.valid_from]
        return carried_start(starts, self.now)


def carried_start(starts: Sequence[int], now: int) -> int:
    """Return, of ascending instants of validity, the one before the last that is not later than `now`."""
    current = max((at for at, start in enumerate(starts) if start <= now), default=0)
    return starts[max(0, current - 1)]


def check(lines: Sequence[DraftLine], context: PublishContext) -> list[DraftFinding]:
    """Return what is wrong or doubtful about publishing `lines` there: errors first, each in the order of the lines."""
    found: list[DraftFinding] = []
    if not lines:
        found.append(DraftFinding(severity=Severity.ERROR, code="empty", message="The draft has no lines."))
    if context.valid_from < context.now:
        found.append(
            DraftFinding(severity=Severity.ERROR, code="retroactive", message="A price cannot be valid from an instant in the past.")
        )
    series = {line.series: line for line in lines}
    for line in lines:
        standard = _units_of(series.get((line.model, ServiceTier.STANDARD)) or context.find_in_force((line.model, ServiceTier.STANDARD)))
        found += _errors(line, standard, context)
        found += _warnings(line, standard, _units_of(context.find_in_force(line.series)))
    return sorted(found, key=lambda finding: finding.severity is not Severity.ERROR)


def _units_of(priced: DraftLine | BookPrice | None) -> UnitPrices | None:
    return None if priced is None else priced.unit_prices


def _errors(line: DraftLine, standard: UnitPrices | None, context: PublishContext) -> list[DraftFinding]:
    def error(code: str, message: str) -> DraftFinding:
        return DraftFinding(severity=Severity.ERROR, code=code, message=message, model=line.model, tier=line.tier)

    found = []
    if line.model not in context.models:
        found.append(error("model_unknown", "There is no such model, or it is archived."))
    if standard is None:
        found.append(error("standard_missing", "A tier needs a standard price of the model that is valid by then."))
    published = context.published.get(line.series, ())
    if published and published[-1].valid_from >= context.valid_from:
        found.append(error("not_after_last", "A price must become valid after the last one of its model and tier."))
    return found


_DISCOUNTED = (ServiceTier.FLEX, ServiceTier.BATCH)


def _warnings(line: DraftLine, standard: UnitPrices | None, before: UnitPrices | None) -> list[DraftFinding]:
    def warning(code: str, message: str) -> DraftFinding:
        return DraftFinding(severity=Severity.WARNING, code=code, message=message, model=line.model, tier=line.tier)

    found, units = [], line.unit_prices
    if not any(units.values()):
        found.append(warning("free", "Every class costs nothing."))
    if units.cached_input > units.input:
        found.append(warning("cached_dearer", "Cached input costs more than input."))
    for billing_class in BillingClass:
        new, old = units.get(billing_class), None if before is None else before.get(billing_class)
        if old is not None and (new > old * JUMP_FACTOR or new * JUMP_FACTOR < old):
            found.append(warning("jump", f"The price of {billing_class} changes by more than a factor of {JUMP_FACTOR}."))
        base = None if standard is None else standard.get(billing_class)
        if base is not None and line.tier in _DISCOUNTED and new > base:
            found.append(warning("tier_dearer", f"In tier {line.tier}, {billing_class} costs more than in the standard tier."))
        if base is not None and line.tier is ServiceTier.PRIORITY and new < base:
            found.append(warning("tier_cheaper", f"In tier {line.tier}, {billing_class} costs less than in the standard tier."))
    return found
