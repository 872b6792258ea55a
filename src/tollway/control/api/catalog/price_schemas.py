"""Request and response schemas of prices. Per million tokens, as decimal strings; `request` is an amount per request.

Where a price is written, cached input costs as input unless it has a price of its own, reasoning as output, and a request nothing.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tollway.control.api.class_schemas import UnitPricesOut, UnitPricesWrite, unit_prices_of, unit_prices_out
from tollway.control.api.schemas import (
    Currency,
    Identified,
    In,
    ModelName,
    Name,
    Out,
    Second,
    find_seconds,
    seconds,
    seconds_after,
)
from tollway.control.catalog.preview import Scope
from tollway.control.publish import Effect
from tollway.domain import money
from tollway.domain.billing_classes import CLASS_TABLE
from tollway.domain.preview import Preview, PreviewComparison
from tollway.domain.price_books import DISCOUNT_BP_MAX, LINES_MAX, DraftFinding, DraftLine, PriceBook, PriceDraft, split_list_id
from tollway.domain.prices import PriceTerms, PriceVersion
from tollway.domain.usage import ServiceTier

Tier = Annotated[ServiceTier, Field(strict=False)]
Id = Annotated[str, StringConstraints(max_length=64, pattern=r"^[\x21-\x7e]+$")]
DiscountBp = Annotated[int, Field(ge=0, le=DISCOUNT_BP_MAX)]


class UnitsWrite(UnitPricesWrite):
    """Unit prices of a model in a service tier."""

    model: ModelName
    tier: Tier = ServiceTier.STANDARD

    def line(self) -> DraftLine:
        """Return the line of a draft, with the unit price of every class."""
        return DraftLine(model=self.model, tier=self.tier, unit_prices=unit_prices_of(self), class_table=CLASS_TABLE)


# ---- Publication ------------------------------------------------------------------------------------------------------


class EffectOut(Out):
    """The gateways that act by what was published, and from when. `holds_from`: from then on every gateway that was alive acts by it; null
    while `pending_nodes`, which were alive, have not confirmed it. `holds_by`: from then on no gateway acts by what was before, because
    one that cannot reach control stops serving by then. Times in Unix seconds."""

    holds_from: int | None
    holds_by: int
    pending_nodes: list[str]


def effect_out(effect: Effect) -> EffectOut:
    return EffectOut(
        holds_from=None if effect.holds_from is None else seconds_after(effect.holds_from),
        holds_by=seconds_after(effect.holds_by),
        pending_nodes=list(effect.pending),
    )


# ---- Versions ---------------------------------------------------------------------------------------------------------


class PriceCreate(UnitsWrite):
    """One price, published at once. `book_id`: the default book of `currency` if left out, which is made on first use. `valid_from` in
    seconds since 1970, now if left out."""

    currency: Currency
    book_id: Id | None = None
    valid_from: Second | None = None


class PriceOut(Identified, UnitPricesOut):
    """A version: what a model costs on a price list in a service tier, from `valid_from` until the next one's. A list is a book
    (`book_…`) or a book at a discount in basis points (`book_…-1500`)."""

    object: Literal["platform.price"] = "platform.price"
    list: str
    model: str
    tier: str
    currency: str
    valid_from: int


def price_out(price: PriceVersion) -> PriceOut:
    return PriceOut(
        id=price.id,
        list=price.list,
        model=price.model,
        tier=price.tier,
        currency=price.currency,
        valid_from=seconds(price.valid_from),
        **unit_prices_out(price.unit_prices),
    )


class PricePublished(PriceOut, EffectOut):
    """A price that was published, and from when it holds on every gateway."""


class OwnPriceOut(UnitPricesOut):
    """Current price of a model for this organization in a service tier. Receipts name the `price_id`."""

    object: Literal["organization.price"] = "organization.price"
    price_id: str
    model: str
    service_tier: str
    currency: str
    valid_from: int


class OwnPricesOut(Out):
    """Every model and tier that is open to the organization; what is not there cannot be used."""

    object: Literal["list"] = "list"
    data: list[OwnPriceOut]


def own_price_out(price: PriceVersion) -> OwnPriceOut:
    return OwnPriceOut(
        price_id=price.id,
        model=price.model,
        service_tier=price.tier,
        currency=price.currency,
        valid_from=seconds(price.valid_from),
        **unit_prices_out(price.unit_prices),
    )


# ---- Books ------------------------------------------------------------------------------------------------------------


class BookCreate(In):
    """An empty book. `organization_id`: whose own it is; general if left out. `default`: who is billed in its currency pays by it, unless
    other terms were set."""

    name: Name
    currency: Currency
    organization_id: Id | None = None
    default: bool = False


class BookOut(Identified):
    object: Literal["platform.price_book"] = "platform.price_book"
    name: str
    currency: str
    organization_id: str | None
    default: bool
    created_at: int


def book_out(book: PriceBook) -> BookOut:
    return BookOut(
        id=book.id,
        name=book.name,
        currency=book.currency,
        organization_id=book.organization_id,
        default=book.is_default,
        created_at=seconds(book.created_at),
    )


# ---- Drafts -----------------------------------------------------------------------------------------------------------

Lines = Annotated[list[UnitsWrite], Field(max_length=LINES_MAX, default_factory=list)]


class DraftCreate(In):
    """A draft for a book. `from_book_id`: begin with what that book asks. `valid_from`: of all lines, in seconds since 1970; from the
    instant of publishing if left out."""

    book_id: Id
    from_book_id: Id | None = None
    valid_from: Second | None = None
    lines: Lines


class LineName(In):
    """Model and tier of a line."""

    model: ModelName
    tier: Tier = ServiceTier.STANDARD


class DraftUpdate(In):
    """Lines to add, in place of those of the same model and tier; lines to take away; `valid_from`, null for the instant of publishing.
    What is left out stays."""

    lines: Lines
    remove: Annotated[list[LineName], Field(max_length=LINES_MAX, default_factory=list)]
    valid_from: Second | None = None


class DraftPublish(In):
    """`accept_warnings`: what the check warns of is meant."""

    accept_warnings: bool = False


class PriceLineOut(UnitPricesOut):
    model: str
    tier: str


class FindingOut(Out):
    """Finding of a check: an `error` keeps the draft from being published, a `warning` must be accepted. `model` and `tier` name the
    line, null for the draft as a whole."""

    severity: str
    code: str
    message: str
    model: str | None
    tier: str | None


class DraftOut(Identified):
    """`findings`: what had been accepted when it was published."""

    object: Literal["platform.price_draft"] = "platform.price_draft"
    book_id: str
    state: str
    valid_from: int | None
    lines: list[PriceLineOut]
    findings: list[FindingOut]
    created_at: int


class DraftPublished(DraftOut, EffectOut):
    """A draft that was published, and from when its prices hold on every gateway."""


class CheckOut(Out):
    object: Literal["platform.price_check"] = "platform.price_check"
    draft_id: str
    publishable: bool
    findings: list[FindingOut]


def finding_out(finding: DraftFinding) -> FindingOut:
    return FindingOut(severity=finding.severity, code=finding.code, message=finding.message, model=finding.model, tier=finding.tier)


def draft_out(draft: PriceDraft) -> DraftOut:
    return DraftOut(
        id=draft.id,
        book_id=draft.book_id,
        state=draft.state,
        valid_from=find_seconds(draft.valid_from),
        lines=[PriceLineOut(model=line.model, tier=line.tier, **unit_prices_out(line.unit_prices)) for line in draft.lines],
        findings=[finding_out(finding) for finding in draft.findings],
        created_at=seconds(draft.created_at),
    )


# ---- Previews ---------------------------------------------------------------------------------------------------------


class PreviewCreate(In):
    """The history to re-rate: requests admitted from `from` (inclusive) to `to` (exclusive), in seconds since 1970. Until now if only
    `to` is left out, the last full calendar month (UTC) if both are. `everybody`: also the organizations of the currency that pay by other
    books."""

    from_second: Annotated[Second | None, Field(alias="from")] = None
    to_second: Annotated[Second | None, Field(alias="to")] = None
    everybody: bool = False


class PreviewProgress(Out):
    """`events` were read, all that were admitted before `at`; `percent` of the time span is done."""

    object: Literal["platform.price_preview.progress"] = "platform.price_preview.progress"
    events: int
    at: int
    percent: int


class PreviewComparisonOut(Out):
    """Amounts in pico-currency, as integer strings. `unpriced_events` could not be priced under the draft: they were billed
    `unpriced_pico`, which is in `current_pico` and in neither `draft_pico` nor `difference_pico`. `difference_percent` is of what the
    others were billed, null if that was nothing."""

    events: int
    current_pico: str
    draft_pico: str
    difference_pico: str
    difference_percent: str | None
    unpriced_events: int
    unpriced_pico: str


class OrganizationComparison(PreviewComparisonOut):
    organization_id: str
    discount_bp: int


class PreviewOut(Out):
    """The last line of a preview. Organizations in order of their difference, the largest rise first; those without any request in the
    span are left out."""

    object: Literal["platform.price_preview"] = "platform.price_preview"
    draft_id: str
    book_id: str
    currency: str
    from_second: Annotated[int, Field(serialization_alias="from")]
    to_second: Annotated[int, Field(serialization_alias="to")]
    organizations: list[OrganizationComparison]
    total: PreviewComparisonOut


def comparison_out(comparison: PreviewComparison) -> PreviewComparisonOut:
    difference_bp = comparison.difference_bp
    return PreviewComparisonOut(
        events=comparison.events,
        current_pico=str(comparison.current_pico),
        draft_pico=str(comparison.draft_pico),
        difference_pico=str(comparison.difference_pico),
        difference_percent=None if difference_bp is None else money.round_amount(difference_bp * 10**10, 2),
        unpriced_events=comparison.unpriced_events,
        unpriced_pico=str(comparison.unpriced_pico),
    )


def preview_out(scope: Scope, found: Preview) -> PreviewOut:
    compared = sorted(found.organizations.items(), key=lambda item: (-item[1].difference_pico, item[0]))
    return PreviewOut(
        draft_id=scope.draft.id,
        book_id=scope.book.id,
        currency=scope.book.currency,
        from_second=seconds(scope.from_at),
        to_second=seconds(scope.to_at),
        organizations=[
            OrganizationComparison(organization_id=id, discount_bp=scope.discounts[id], **comparison_out(comparison).model_dump())
            for id, comparison in compared
        ],
        total=comparison_out(found.total()),
    )


# ---- Terms ------------------------------------------------------------------------------------------------------------


class TermsCreate(In):
    """By which book an organization pays, at which discount (basis points: 1500 is 15 %), from when (now if left out). `book_id`: the
    default book of its currency if left out."""

    book_id: Id | None = None
    discount_bp: DiscountBp = 0
    valid_from: Second | None = None


class TermsOut(Out):
    object: Literal["platform.price_terms"] = "platform.price_terms"
    list: str
    book_id: str
    discount_bp: int
    valid_from: int


class TermsPublished(TermsOut, EffectOut):
    """Terms that were set, and from when they hold on every gateway."""


class AllTermsOut(Out):
    object: Literal["list"] = "list"
    data: list[TermsOut]


def terms_out(terms: PriceTerms) -> TermsOut:
    book_id, discount_bp = split_list_id(terms.list)
    return TermsOut(list=terms.list, book_id=book_id, discount_bp=discount_bp, valid_from=seconds(terms.valid_from))
