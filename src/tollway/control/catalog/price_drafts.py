"""Drafts of prices: written, checked, published as a whole or discarded.

What is published cannot be taken back, so it is written down first where it binds nobody, looked at by `check` (and by whoever runs a
preview), and then becomes the book's prices in one transaction.
"""

from collections.abc import Callable, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from tollway.control import publish
from tollway.control.catalog import prices
from tollway.domain import ids
from tollway.domain.billing_classes import CLASS_TABLE
from tollway.domain.faults import PARAMETER_INVALID, PRICE_DOUBTFUL, PRICE_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.price_books import (
    LINES_MAX,
    DraftFinding,
    DraftLine,
    DraftState,
    PriceBook,
    PriceDraft,
    Series,
    Severity,
    check,
)
from tollway.storage import prices as storage
from tollway.storage.database import PlatformTx


def create_draft(tx: PlatformTx, draft: PriceDraft, *, from_book_id: str | None) -> PriceDraft:
    """Open a draft for a book. It begins with what another book of the currency (or the same one) asks at the draft's instant, if
    `from_book_id` names one; its own lines replace those. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID."""
    publish.lock(tx)
    book = prices.get_book(tx, draft.book_id)
    start = prices.start_of(draft.valid_from, draft.created_at)
    base: list[DraftLine] = []
    if from_book_id is not None:
        source = storage.find_book(tx, from_book_id) if ids.is_id(ids.PRICE_BOOK, from_book_id) else None
        if source is None:
            raise Fault(RESOURCE_UNKNOWN, param="from_book_id")
        if source.currency != book.currency:
            raise Fault(PARAMETER_INVALID, param="from_book_id", message=f"That book is in {source.currency}, this one in {book.currency}.")
        base = _lines_at(tx, source, start)
    draft = msgspec.structs.replace(draft, lines=_merge(base, draft.lines, ()))
    storage.insert_draft(tx, draft)
    return draft


def get_draft(tx: PlatformTx, draft_id: str) -> PriceDraft:
    """A draft, whatever its state. Raises RESOURCE_UNKNOWN."""
    draft = storage.find_draft(tx, draft_id) if ids.is_id(ids.PRICE_DRAFT, draft_id) else None
    if draft is None:
        raise Fault(RESOURCE_UNKNOWN)
    return draft


def list_drafts(tx: PlatformTx, window: PageWindow, *, book_id: str | None, include_closed: bool) -> Page[PriceDraft]:
    """Open drafts, or all of them."""
    return storage.list_drafts(tx, window, book_id=book_id, include_closed=include_closed)


def update_draft(
    tx: PlatformTx,
    draft_id: str,
    *,
    lines: Sequence[DraftLine],
    remove: Sequence[Series],
    valid_from: int | UnsetType | None,
    now: int,
) -> PriceDraft:
    """Add lines to an open draft, in place of those of the same model and tier, take those of `remove` away, and set from when all are
    to be valid (UNSET: as it was). Raises RESOURCE_UNKNOWN, STATE_CONFLICT (not open), PRICE_INVALID (in the past), PARAMETER_INVALID
    (too many lines, or two of one model and tier)."""
    publish.lock(tx)
    draft = get_open_draft(tx, draft_id)
    if valid_from is not UNSET:
        prices.start_of(valid_from, now)
        draft = msgspec.structs.replace(draft, valid_from=valid_from)
    draft = msgspec.structs.replace(draft, lines=_merge(draft.lines, lines, remove), changed_at=now)
    storage.put_draft(tx, draft)
    return draft


def check_draft(tx: PlatformTx, draft_id: str, now: int) -> list[DraftFinding]:
    """Return what would be found if an open draft were published now. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    draft = get_open_draft(tx, draft_id)
    start = now if draft.valid_from is None else draft.valid_from
    if now - prices.CLOCK_GRACE_US <= start < now:
        start = now
    book = prices.get_book(tx, draft.book_id)
    return check(draft.lines, prices.find_publish_context(tx, book, {line.model for line in draft.lines}, start, now))


def publish_draft(tx: PlatformTx, draft_id: str, *, accept_warnings: bool, new_id: Callable[[str], str], now: int) -> PriceDraft:
    """Make the lines of an open draft the prices of its book, all at once. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (not open),
    PRICE_INVALID (the check finds an error), PRICE_DOUBTFUL (it finds warnings that were not accepted)."""
    publish.lock(tx)
    findings = check_draft(tx, draft_id, now)
    for finding in findings:
        if finding.severity is Severity.ERROR:
            raise Fault(PRICE_INVALID, param="valid_from" if finding.model is None else None, message=_sentence(finding))
    if findings and not accept_warnings:
        raise Fault(PRICE_DOUBTFUL, param="accept_warnings")
    draft = get_draft(tx, draft_id)
    book = prices.get_book(tx, draft.book_id)
    context = prices.find_publish_context(tx, book, {line.model for line in draft.lines}, prices.start_of(draft.valid_from, now), now)
    prices.publish_lines(tx, book, draft.lines, context, new_id=new_id, draft_id=draft.id)
    draft = msgspec.structs.replace(
        draft, state=DraftState.PUBLISHED, valid_from=context.valid_from, findings=tuple(findings), changed_at=now
    )
    storage.put_draft(tx, draft)
    return draft


def discard_draft(tx: PlatformTx, draft_id: str, now: int) -> PriceDraft:
    """Close an open draft without publishing it; it stays to be read. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    draft = msgspec.structs.replace(get_open_draft(tx, draft_id), state=DraftState.DISCARDED, changed_at=now)
    storage.put_draft(tx, draft)
    return draft


def get_open_draft(tx: PlatformTx, draft_id: str) -> PriceDraft:
    """A draft that is neither published nor discarded. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    draft = get_draft(tx, draft_id)
    if draft.state is not DraftState.OPEN:
        raise Fault(STATE_CONFLICT, message=f"The draft is {draft.state}.")
    return draft


def _lines_at(tx: PlatformTx, book: PriceBook, at: int) -> list[DraftLine]:
    """Return what a book asks at an instant, as lines."""
    in_force: dict[Series, DraftLine] = {}
    for price in storage.list_book_prices(tx, book.id):
        if price.valid_from <= at:
            in_force[price.model, price.tier] = DraftLine(
                model=price.model, tier=price.tier, unit_prices=price.unit_prices, class_table=CLASS_TABLE
            )
    return list(in_force.values())


def _merge(lines: Sequence[DraftLine], added: Sequence[DraftLine], removed: Sequence[Series]) -> tuple[DraftLine, ...]:
    """Lines by model and tier, `added` in place of those that are there, without `removed`."""
    if len({line.series for line in added}) != len(added):
        raise Fault(PARAMETER_INVALID, param="lines", message="Two lines are of the same model and tier.")
    merged = {line.series: line for line in lines}
    for series in removed:
        merged.pop(series, None)
    merged.update((line.series, line) for line in added)
    if len(merged) > LINES_MAX:
        raise Fault(PARAMETER_INVALID, param="lines", message=f"A draft has at most {LINES_MAX} lines.")
    return tuple(merged[series] for series in sorted(merged))


def _sentence(finding: DraftFinding) -> str:
    """A finding as a message: with the names that it is about, which are known to be models' names."""
    return finding.message if finding.model is None else f"{finding.model}, {finding.tier}: {finding.message}"
