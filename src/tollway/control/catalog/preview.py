"""Previews: what organizations would have been billed under a draft of prices, re-rated from history.

History is read a page at a time, each in a read transaction of its own, so a preview of any length holds up nobody: not the collector,
not the removal of old events. Records ingested meanwhile may or may not be counted. Memory is bounded by the number of organizations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tollway.control.catalog import price_drafts, prices
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.preview import Preview, Tariff
from tollway.domain.price_books import PriceBook, PriceDraft, split_list_id
from tollway.domain.prices import find_list
from tollway.storage import preview as stored
from tollway.storage import prices as stored_prices
from tollway.storage.database import Database, PlatformTx
from tollway.storage.preview import PAGE_EVENTS


@dataclass(frozen=True, slots=True)
class Scope:
    """Comparison to make: the draft against what was billed for requests admitted in [from_at, to_at), of the organizations in
    `discounts`, which holds the discount of each in basis points."""

    draft: PriceDraft
    book: PriceBook
    tariff: Tariff
    discounts: Mapping[str, int]
    from_at: int
    to_at: int


@dataclass(frozen=True, slots=True)
class PreviewPosition:
    """State of a preview: `events` were read, all that were admitted before `at`."""

    events: int
    at: int


def find_scope(tx: PlatformTx, draft_id: str, *, from_at: int, to_at: int, everybody: bool, now: int) -> Scope:
    """The scope of a preview. The organizations are those whose terms name the draft's book at the instant from which it would be valid;
    with `everybody`, the others of its currency too, at no discount (unless the book is one organization's own).

    Raises RESOURCE_UNKNOWN, STATE_CONFLICT (not open), PARAMETER_INVALID (no time between the two instants).
    """
    if from_at >= to_at:
        raise Fault(PARAMETER_INVALID, param="to", message="There is no time between the two instants.")
    draft = price_drafts.get_open_draft(tx, draft_id)
    book = prices.get_book(tx, draft.book_id)
    at = now if draft.valid_from is None else max(draft.valid_from, now)
    discounts: dict[str, int] = {}
    organization_ids = stored_prices.list_organization_ids(tx, book.currency)
    for organization_id, terms in stored_prices.read_terms(tx, organization_ids).items():
        price_list = find_list(terms.schedule, at)
        book_id, discount_bp = (None, 0) if price_list is None else split_list_id(price_list)
        if book_id == book.id:
            discounts[organization_id] = discount_bp
        elif everybody and book.organization_id in (None, organization_id):
            discounts[organization_id] = 0
    tariff = Tariff(draft.lines, stored_prices.list_book_prices(tx, book.id))
    return Scope(draft, book, tariff, discounts, from_at, to_at)


def preview(database: Database, scope: Scope, page_events: int = PAGE_EVENTS) -> Iterator[PreviewPosition | Preview]:
    """Re-rate history: progress after each page of events, and the whole comparison at the end."""
    found = Preview(scope.tariff, scope.discounts)
    changes = scope.tariff.list_changes(scope.from_at, scope.to_at)
    next_id: str | None = stored.first_event_id(scope.from_at)
    while next_id is not None:
        with database.platform(write=False) as tx:
            page = stored.sum_page(tx, from_id=next_id, from_at=scope.from_at, to_at=scope.to_at, changes=changes, page_events=page_events)
        found.add(page.sums)
        next_id = page.next_id
        reached = scope.to_at if next_id is None else stored.find_instant(next_id)
        if reached is not None:
            yield PreviewPosition(found.events, reached)
    yield found
