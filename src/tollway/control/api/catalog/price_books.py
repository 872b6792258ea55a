"""Price books and the drafts that become their prices, for operators."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Query
from msgspec import UNSET
from starlette.responses import Response, StreamingResponse

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.catalog.price_schemas import (
    BookCreate,
    BookOut,
    CheckOut,
    DraftCreate,
    DraftOut,
    DraftPublish,
    DraftPublished,
    DraftUpdate,
    Id,
    PreviewCreate,
    PreviewOut,
    PreviewProgress,
    book_out,
    draft_out,
    effect_out,
    finding_out,
    preview_out,
)
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import ListOut, Out, PageQuery, list_out, seconds
from tollway.control.catalog import preview, price_drafts, prices
from tollway.control.catalog.preview import PreviewPosition, Scope
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.faults import Fault
from tollway.domain.keys import Operator
from tollway.domain.preview import Preview, last_month
from tollway.domain.price_books import DraftState, PriceBook, PriceDraft, Severity
from tollway.domain.roles import Permission
from tollway.wire.errors import openai_error

router = routes.router(tags=["price books"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_WRITE))]

NDJSON = "application/x-ndjson"


@router.get("/v1/platform/price_books")
def list_books(_caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[BookOut]:
    """All price books."""
    with plane.database.platform(write=False) as tx:
        page = prices.list_books(tx, query.window())
    return list_out(page, book_out)


@router.post("/v1/platform/price_books")
def create_book(_caller: Writer, plane: Plane, body: BookCreate) -> BookOut:
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
def retrieve_book(_caller: Reader, plane: Plane, book_id: str) -> BookOut:
    """One book. Its prices are `/v1/platform/prices?list=<id>`."""
    with plane.database.platform(write=False) as tx:
        return book_out(prices.get_book(tx, book_id))


@router.get("/v1/platform/price_drafts")
def list_drafts(
    _caller: Reader,
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
def create_draft(_caller: Writer, plane: Plane, body: DraftCreate) -> DraftOut:
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
def retrieve_draft(_caller: Reader, plane: Plane, draft_id: str) -> DraftOut:
    """One draft."""
    with plane.database.platform(write=False) as tx:
        return draft_out(price_drafts.get_draft(tx, draft_id))


@router.post("/v1/platform/price_drafts/{draft_id}")
def update_draft(_caller: Writer, plane: Plane, draft_id: str, body: DraftUpdate) -> DraftOut:
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
def check_draft(_caller: Writer, plane: Plane, draft_id: str) -> CheckOut:
    """Return what publishing the draft now would meet: errors, which keep it from being published, and warnings. Changes nothing."""
    with plane.database.platform(write=False) as tx:
        findings = price_drafts.check_draft(tx, draft_id, plane.now())
    publishable = all(finding.severity is not Severity.ERROR for finding in findings)
    return CheckOut(draft_id=draft_id, publishable=publishable, findings=[finding_out(finding) for finding in findings])


@router.post("/v1/platform/price_drafts/{draft_id}/publish")
def publish_draft(_caller: Writer, plane: Plane, draft_id: str, body: DraftPublish) -> DraftPublished:
    """Make all lines of the draft prices of its book, at once and permanently. Refused if the check finds an error, or warnings that are
    not accepted. Answers when every gateway that is alive has confirmed the prices, or names those that have not."""
    now = plane.now()
    with plane.database.platform() as tx:
        draft = price_drafts.publish_draft(tx, draft_id, accept_warnings=body.accept_warnings, new_id=plane.new_id, now=now)
    effect = publish.find_effect(plane.database, plane.publications, tx.published_version, draft.valid_from or now, plane.now)
    return DraftPublished(**draft_out(draft).model_dump(), **effect_out(effect).model_dump())


@router.post("/v1/platform/price_drafts/{draft_id}/preview", response_class=StreamingResponse)
def preview_draft(_caller: Reader, plane: Plane, draft_id: str, body: PreviewCreate) -> Response:
    """Return what organizations would have been billed under the draft: lines of progress (`PreviewProgress`), then the comparison
    (`PreviewOut`) as the last line; or, if it broke off, an error as anywhere else. Changes nothing."""
    return StreamingResponse(_preview_lines(plane, _find_scope(plane, draft_id, body)), media_type=NDJSON)


def _find_scope(plane: ControlPlane, draft_id: str, body: PreviewCreate) -> Scope:
    now = plane.now()
    from_at, to_at = last_month(now)
    if body.from_second is not None:
        from_at, to_at = body.from_second * 1_000_000, now
    if body.to_second is not None:
        to_at = body.to_second * 1_000_000
    with plane.database.platform(write=False) as tx:
        return preview.find_scope(tx, draft_id, from_at=from_at, to_at=to_at, everybody=body.everybody, now=now)


def preview_until(plane: ControlPlane, draft_id: str, body: PreviewCreate, until: int) -> PreviewOut | None:
    """Return the comparison that `preview_draft` ends with; None if it takes beyond the instant `until` (UTC microseconds)."""
    scope = _find_scope(plane, draft_id, body)
    for found in preview.preview(plane.database, scope):
        plane.publications.refuse_if_stopping()
        if isinstance(found, Preview):
            return preview_out(scope, found)
        if plane.now() > until:
            break
    return None


def _preview_lines(plane: ControlPlane, scope: Scope) -> Iterator[bytes]:
    try:
        for found in preview.preview(plane.database, scope):
            plane.publications.refuse_if_stopping()
            if isinstance(found, PreviewPosition):
                done = (found.at - scope.from_at) * 100 // (scope.to_at - scope.from_at)
                out: Out = PreviewProgress(events=found.events, at=seconds(found.at), percent=min(max(done, 0), 100))
            else:
                out = preview_out(scope, found)
            yield out.model_dump_json(by_alias=True).encode() + b"\n"
    except Fault as fault:
        yield openai_error(fault, None) + b"\n"


@router.post("/v1/platform/price_drafts/{draft_id}/discard")
def discard_draft(_caller: Writer, plane: Plane, draft_id: str) -> DraftOut:
    """Close an open draft without publishing it."""
    with plane.database.platform() as tx:
        return draft_out(price_drafts.discard_draft(tx, draft_id, plane.now()))
