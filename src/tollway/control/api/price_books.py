"""Price books and the drafts that become their prices, for operators."""

from typing import Annotated

from fastapi import Query
from msgspec import UNSET

from tollway.control import price_drafts, prices
from tollway.control.api import doors
from tollway.control.api.doors import Plane, PlatformOperator
from tollway.control.api.price_schemas import (
    BookCreate,
    BookOut,
    CheckOut,
    DraftCreate,
    DraftOut,
    DraftPublish,
    DraftUpdate,
    Id,
    book_out,
    draft_out,
    finding_out,
)
from tollway.control.api.schemas import ListOut, PageQuery, list_out
from tollway.domain import ids
from tollway.domain.price_books import DraftState, PriceBook, PriceDraft, Severity

router = doors.router(tags=["price books"])


@router.get("/v1/platform/price_books")
def list_books(_caller: PlatformOperator, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[BookOut]:
    """All price books."""
    with plane.database.platform(write=False) as tx:
        page = prices.list_books(tx, query.window())
    return list_out(page, book_out)


@router.post("/v1/platform/price_books")
def create_book(_caller: PlatformOperator, plane: Plane, body: BookCreate) -> BookOut:
    """Add an empty book."""
    book = PriceBook(
        id=plane.new_id(ids.PRICE_BOOK),
        name=body.name,
        currency=body.currency,
        organization_id=body.organization_id,
        is_default=body.default,
        created_at=plane.now(),
    )
    with plane.database.platform() as tx:
        return book_out(prices.create_book(tx, book))


@router.get("/v1/platform/price_books/{book_id}")
def retrieve_book(_caller: PlatformOperator, plane: Plane, book_id: str) -> BookOut:
    """One book. Its prices are `/v1/platform/prices?list=<id>`."""
    with plane.database.platform(write=False) as tx:
        return book_out(prices.get_book(tx, book_id))


@router.get("/v1/platform/price_drafts")
def list_drafts(
    _caller: PlatformOperator,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    book_id: Id | None = None,
    include_closed: bool = False,
) -> ListOut[DraftOut]:
    """Open drafts; with `include_closed` those that were published or discarded too."""
    with plane.database.platform(write=False) as tx:
        page = price_drafts.list_drafts(tx, query.window(), book_id=book_id, include_closed=include_closed)
    return list_out(page, draft_out)


@router.post("/v1/platform/price_drafts")
def create_draft(_caller: PlatformOperator, plane: Plane, body: DraftCreate) -> DraftOut:
    """Open a draft. It binds nobody until it is published."""
    now = plane.now()
    draft = PriceDraft(
        id=plane.new_id(ids.PRICE_DRAFT),
        book_id=body.book_id,
        state=DraftState.OPEN,
        valid_from=None if body.valid_from is None else body.valid_from * 1_000_000,
        lines=tuple(line.line() for line in body.lines),
        created_at=now,
        changed_at=now,
    )
    with plane.database.platform() as tx:
        return draft_out(price_drafts.create_draft(tx, draft, from_book_id=body.from_book_id))


@router.get("/v1/platform/price_drafts/{draft_id}")
def retrieve_draft(_caller: PlatformOperator, plane: Plane, draft_id: str) -> DraftOut:
    """One draft."""
    with plane.database.platform(write=False) as tx:
        return draft_out(price_drafts.get_draft(tx, draft_id))


@router.post("/v1/platform/price_drafts/{draft_id}")
def update_draft(_caller: PlatformOperator, plane: Plane, draft_id: str, body: DraftUpdate) -> DraftOut:
    """Change an open draft."""
    valid_from = None if body.valid_from is None else body.valid_from * 1_000_000
    with plane.database.platform() as tx:
        draft = price_drafts.update_draft(
            tx,
            draft_id,
            lines=[line.line() for line in body.lines],
            remove=[(name.model, name.tier) for name in body.remove],
            valid_from=valid_from if "valid_from" in body.model_fields_set else UNSET,
            now=plane.now(),
        )
    return draft_out(draft)


@router.post("/v1/platform/price_drafts/{draft_id}/check")
def check_draft(_caller: PlatformOperator, plane: Plane, draft_id: str) -> CheckOut:
    """What publishing the draft now would meet: errors, which keep it from being published, and warnings. Changes nothing."""
    with plane.database.platform(write=False) as tx:
        findings = price_drafts.check_draft(tx, draft_id, plane.now())
    publishable = all(finding.severity is not Severity.ERROR for finding in findings)
    return CheckOut(draft_id=draft_id, publishable=publishable, findings=[finding_out(finding) for finding in findings])


@router.post("/v1/platform/price_drafts/{draft_id}/publish")
def publish_draft(_caller: PlatformOperator, plane: Plane, draft_id: str, body: DraftPublish) -> DraftOut:
    """Make all lines of the draft prices of its book, at once and for ever. Refused if the check finds an error, or warnings that are
    not accepted."""
    with plane.database.platform() as tx:
        draft = price_drafts.publish_draft(tx, draft_id, accept_warnings=body.accept_warnings, new_id=plane.new_id, now=plane.now())
    return draft_out(draft)


@router.post("/v1/platform/price_drafts/{draft_id}/discard")
def discard_draft(_caller: PlatformOperator, plane: Plane, draft_id: str) -> DraftOut:
    """Close an open draft without publishing it."""
    with plane.database.platform() as tx:
        return draft_out(price_drafts.discard_draft(tx, draft_id, plane.now()))
