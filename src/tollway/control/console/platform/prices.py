"""Price books, and drafts of prices: their lines, what a check finds, who would pay more, and their publication."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.catalog import price_books, prices
from tollway.control.api.catalog.price_schemas import BookCreate, DraftCreate, DraftPublish, DraftUpdate, PreviewCreate
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain.billing_classes import BILLING_CLASSES, PER_MILLION
from tollway.domain.faults import Fault
from tollway.domain.price_books import DraftState
from tollway.domain.usage import ServiceTier

router = new_router()

PATH = "/console/platform/prices"
BOOK = PATH + "/books/{book_id}"
DRAFT = PATH + "/drafts/{draft_id}"

PREVIEW_SECONDS_MAX = 10
"""Time for a preview on a page: some million requests. A longer one is a matter of `tollway prices preview`."""

CLASSES = tuple(str(row.billing_class) for row in BILLING_CLASSES)
REQUIRED = tuple(str(row.billing_class) for row in BILLING_CLASSES if row.required)
PER_MILLION_CLASSES = frozenset(str(row.billing_class) for row in BILLING_CLASSES if row.unit in PER_MILLION)


@router.get(PATH, include_in_schema=False)
def show_prices(page: PlatformPage, query: Annotated[PageQuery, Query()]) -> Response:
    """Books and open drafts."""
    return _show_books(page, query)


def _show_books(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/prices.html",
        fault=fault,
        books=page.call(price_books.list_books, query=query),
        drafts=page.call(price_books.list_drafts, query=PageQuery(limit=100)),
        may_write=page.allows(price_books.create_book),
    )


@router.post(f"{PATH}/books", include_in_schema=False)
def add_book(page: PlatformPage, fields: Annotated[Form, form(price_books.create_book, "name", "currency", "default")]) -> Response:
    """Add an empty book."""
    try:
        made = page.call(price_books.create_book, body=make_body(BookCreate, fields))
    except Fault as fault:
        return _show_books(page, PageQuery(), fault)
    return page.lead(f"/prices/books/{made.id}", "created")


@router.get(BOOK, include_in_schema=False)
def show_book(page: PlatformPage, book_id: str, query: Annotated[PageQuery, Query()]) -> Response:
    """One book with all versions of its prices."""
    return _show_book(page, book_id, query)


def _show_book(page: Page, book_id: str, query: PageQuery, fault: Fault | None = None) -> Response:
    book = page.call(price_books.retrieve_book, book_id=book_id)
    versions = page.call(prices.list_prices, query=query, price_list=book_id)
    return page.show(
        "platform/price_book.html",
        fault=fault,
        book=book,
        versions=versions,
        classes=_list_used_classes(versions.data),
        per_million=PER_MILLION_CLASSES,
        drafts=page.call(price_books.list_drafts, query=PageQuery(limit=100), book_id=book_id),
        may_write=page.allows(price_books.create_draft),
    )


def _list_used_classes(rows: Sequence[object]) -> list[str]:
    """Return the classes of which a row has a price: the columns of its table."""
    return [each for each in CLASSES if each in REQUIRED or any(getattr(row, each) != "0" for row in rows)]


@router.post(f"{BOOK}/drafts", include_in_schema=False)
def begin_draft(page: PlatformPage, book_id: str, fields: Annotated[Form, form(price_books.create_draft, "copied")]) -> Response:
    """Begin a draft of a book, empty or with what the book asks."""
    try:
        body = make_body(DraftCreate, {"book_id": book_id, "from_book_id": book_id if fields["copied"] else ""})
        made = page.call(price_books.create_draft, body=body)
    except Fault as fault:
        return _show_book(page, book_id, PageQuery(), fault)
    return page.lead(f"/prices/drafts/{made.id}", "created")


@router.get(DRAFT, include_in_schema=False)
def show_draft(page: PlatformPage, draft_id: str, preview: bool = False, everybody: bool = False) -> Response:
    """One draft; with `preview` also what organizations would have paid under it in the last month, of other books too with `everybody`."""
    return _show_draft(page, draft_id, preview=preview, everybody=everybody)


def _show_draft(page: Page, draft_id: str, *, preview: bool = False, everybody: bool = False, fault: Fault | None = None) -> Response:
    draft = page.call(price_books.retrieve_draft, draft_id=draft_id)
    is_open = draft.state == DraftState.OPEN
    comparison = None
    if preview and is_open:
        page.require(price_books.preview_draft)
        until = page.plane.now() + PREVIEW_SECONDS_MAX * 1_000_000
        comparison = price_books.preview_until(page.plane, draft_id, PreviewCreate(everybody=everybody), until)
    may_write = is_open and page.allows(price_books.update_draft)
    return page.show(
        "platform/price_draft.html",
        fault=fault,
        draft=draft,
        book=page.call(price_books.retrieve_book, book_id=draft.book_id),
        check=page.call(price_books.check_draft, draft_id=draft_id) if may_write else None,
        classes=_list_used_classes(draft.lines),
        required=REQUIRED,
        others=[each for each in CLASSES if each not in REQUIRED],
        per_million=PER_MILLION_CLASSES,
        tiers=list(ServiceTier),
        is_open=is_open,
        may_write=may_write,
        may_preview=is_open and page.allows(price_books.preview_draft),
        was_previewed=preview and is_open,
        everybody=everybody,
        comparison=comparison,
    )


@router.post(f"{DRAFT}/lines", include_in_schema=False)
def put_line(
    page: PlatformPage, draft_id: str, fields: Annotated[Form, form(price_books.update_draft, "model", "tier", *CLASSES)]
) -> Response:
    """Add a line to a draft, in place of the one of the same model and tier."""
    line = {name: value for name, value in fields.items() if value}
    try:
        page.call(price_books.update_draft, draft_id=draft_id, body=make_body(DraftUpdate, {"lines": [line]}))
    except Fault as fault:
        return _show_draft(page, draft_id, fault=fault)
    return page.lead(f"/prices/drafts/{draft_id}", "saved")


@router.post(f"{DRAFT}/lines/remove", include_in_schema=False)
def remove_line(page: PlatformPage, draft_id: str, fields: Annotated[Form, form(price_books.update_draft, "model", "tier")]) -> Response:
    """Take a line out of a draft."""
    try:
        page.call(price_books.update_draft, draft_id=draft_id, body=make_body(DraftUpdate, {"remove": [dict(fields)]}))
    except Fault as fault:
        return _show_draft(page, draft_id, fault=fault)
    return page.lead(f"/prices/drafts/{draft_id}", "saved")


@router.post(f"{DRAFT}/publish", include_in_schema=False)
def publish_draft_by_name(
    page: PlatformPage, draft_id: str, fields: Annotated[Form, form(price_books.publish_draft, "confirmation", "accept_warnings")]
) -> Response:
    """Publish a draft, after the name of its book was typed."""
    try:
        draft = page.call(price_books.retrieve_draft, draft_id=draft_id)
        require_typed(fields["confirmation"], page.call(price_books.retrieve_book, book_id=draft.book_id).name)
        body = make_body(DraftPublish, {"accept_warnings": fields["accept_warnings"]})
        published = page.call(price_books.publish_draft, draft_id=draft_id, body=body)
    except Fault as fault:
        return _show_draft(page, draft_id, fault=fault)
    return page.lead(f"/prices/drafts/{draft_id}", "pending" if published.pending_nodes else "prices_published")


@router.post(f"{DRAFT}/discard", include_in_schema=False)
def discard_draft_by_id(page: PlatformPage, draft_id: str, _fields: Annotated[Form, form(price_books.discard_draft)]) -> Response:
    """Close a draft without publishing it."""
    try:
        page.call(price_books.discard_draft, draft_id=draft_id)
    except Fault as fault:
        return _show_draft(page, draft_id, fault=fault)
    return page.lead("/prices", "discarded")
