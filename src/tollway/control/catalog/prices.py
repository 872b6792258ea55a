"""Price books, their published prices, and the terms by which organizations pay.

A price is never retroactive, and never goes away: a model that has a price keeps having one, on every list that it is on. Where a list
has none, the model is closed to whoever pays by that list; nothing is ever billed at an unstated price. Publishing writes the prices of
a book and compiles them for each of its lists in the same transaction, so what is compiled follows from what is published at any time.
"""

from collections.abc import Callable, Iterable, Sequence

from tollway.control import publish
from tollway.domain import ids
from tollway.domain.currencies import CURRENCIES
from tollway.domain.faults import (
    MODEL_UNKNOWN,
    NAME_TAKEN,
    PARAMETER_INVALID,
    PRICE_INVALID,
    RESOURCE_UNKNOWN,
    STATE_CONFLICT,
    Fault,
)
from tollway.domain.pages import Page, PageWindow
from tollway.domain.price_books import (
    BookPrice,
    DraftLine,
    PriceBook,
    PriceList,
    PublishContext,
    Series,
    StoredTerms,
    carried_start,
    list_id,
)
from tollway.domain.prices import PriceTerms, PriceVersion, find_list, find_price
from tollway.domain.snapshot import ModelEntry, OrganizationEntry
from tollway.domain.tenants import Status
from tollway.domain.usage import ServiceTier
from tollway.storage import catalog as stored_catalog
from tollway.storage import prices as storage
from tollway.storage.database import PlatformTx, TenantTx, Transaction

CLOCK_GRACE_US = 60_000_000
"""A valid_from this far in the past is taken as now: clocks differ, and whole seconds of "now" are already past."""


# ---- Books ------------------------------------------------------------------------------------------------------------


def create_book(tx: PlatformTx, book: PriceBook) -> PriceBook:
    """Add an empty book: no model is open to who pays by it until it has prices. A default book becomes the terms of every organization
    of its currency that has none.

    Raises NAME_TAKEN, PARAMETER_INVALID (a currency's name, or another currency than the organization's), RESOURCE_UNKNOWN (an
    organization that is not there), STATE_CONFLICT (the currency has a default book).
    """
    publish.lock(tx)
    if storage.find_book_named(tx, book.name) is not None:
        raise Fault(NAME_TAKEN, param="name")
    if book.name in CURRENCIES and not (book.is_default and book.name == book.currency):
        raise Fault(PARAMETER_INVALID, param="name", message="The name of a currency is kept for its default book.")
    if book.organization_id is not None:
        currency = storage.find_organization_currency(tx, book.organization_id)
        if currency is None:
            raise Fault(RESOURCE_UNKNOWN, param="organization_id")
        if currency != book.currency:
            raise Fault(PARAMETER_INVALID, param="currency", message=f"The organization is billed in {currency}.")
    if book.is_default and storage.find_default_book(tx, book.currency) is not None:
        raise Fault(STATE_CONFLICT, param="default", message="The currency has a default book.")
    storage.insert_book(tx, book)
    if book.is_default:
        publish.publish(tx, OrganizationEntry, storage.list_organization_ids(tx, book.currency), book.created_at)
    return book


def get_book(tx: Transaction, book_id: str) -> PriceBook:
    """A book. Raises RESOURCE_UNKNOWN."""
    book = storage.find_book(tx, book_id) if ids.is_id(ids.PRICE_BOOK, book_id) else None
    if book is None:
        raise Fault(RESOURCE_UNKNOWN)
    return book


def list_books(tx: PlatformTx, window: PageWindow) -> Page[PriceBook]:
    """All books."""
    return storage.list_books(tx, window)


def get_default_book(tx: PlatformTx, currency: str, new_id: Callable[[str], str], now: int) -> PriceBook:
    """The default book of a currency, made on first use under the currency's own name."""
    publish.lock(tx)
    book = storage.find_default_book(tx, currency)
    if book is None:
        made = PriceBook(id=new_id(ids.PRICE_BOOK), name=currency, currency=currency, organization_id=None, is_default=True, created_at=now)
        book = create_book(tx, made)
    return book


# ---- Publishing -------------------------------------------------------------------------------------------------------


def start_of(valid_from: int | None, now: int) -> int:
    """From when something is valid that shall be from `valid_from` on, None for now. Raises PRICE_INVALID for the past."""
    if valid_from is not None and valid_from < now - CLOCK_GRACE_US:
        raise Fault(PRICE_INVALID, param="valid_from", message="Nothing can be valid from an instant in the past.")
    return now if valid_from is None else max(valid_from, now)


def find_publish_context(tx: PlatformTx, book: PriceBook, models: Iterable[str], valid_from: int, now: int) -> PublishContext:
    """Return what is published in a book of some models, as a check of new lines needs it."""
    names = set(models)
    known = stored_catalog.find_models(tx, names)
    published: dict[Series, list[BookPrice]] = {}
    for price in storage.list_book_prices(tx, book.id, names):
        published.setdefault((price.model, price.tier), []).append(price)
    active = frozenset(model.name for model in known if model.status is Status.ACTIVE)
    return PublishContext(now=now, valid_from=valid_from, models=active, published=published)


def publish_lines(
    tx: PlatformTx,
    book: PriceBook,
    lines: Sequence[DraftLine],
    context: PublishContext,
    *,
    new_id: Callable[[str], str],
    draft_id: str | None,
) -> list[BookPrice]:
    """Append checked lines to a book, compile them for each of its lists, and publish them to gateways. Needs `publish.lock` before
    `context` was found."""
    published = [
        BookPrice(
            id=new_id(ids.PRICE),
            book_id=book.id,
            model=line.model,
            tier=line.tier,
            valid_from=context.valid_from,
            carried_from=context.carried_from(line.series),
            published_at=context.now,
            draft_id=draft_id,
            unit_prices=line.unit_prices,
        )
        for line in lines
    ]
    storage.insert_book_prices(tx, published)
    storage.insert_compiled(tx, published, book.currency, storage.list_lists(tx, book.id))
    _publish_models(tx, {line.model for line in lines}, context.now)
    return published


def create_price(
    tx: PlatformTx, book: PriceBook, line: DraftLine, valid_from: int | None, *, new_id: Callable[[str], str], now: int
) -> PriceVersion:
    """Append one price to a book, as a draft of one line that nobody warns about. Returns its version on the book's own list.

    Raises MODEL_UNKNOWN, STATE_CONFLICT (archived model), PRICE_INVALID (in the past, not after the last version, or a tier without a
    standard price).
    """
    publish.lock(tx)
    model = stored_catalog.find_model(tx, line.model)
    if model is None:
        raise Fault(MODEL_UNKNOWN, param="model")
    if model.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The model is archived.")
    context = find_publish_context(tx, book, [line.model], start_of(valid_from, now), now)
    series = context.published.get(line.series, ())
    if series and context.valid_from <= series[-1].valid_from:
        raise Fault(PRICE_INVALID, param="valid_from", message="A price must become valid after the last one of its model and tier.")
    if line.tier is not ServiceTier.STANDARD and context.find_in_force((line.model, ServiceTier.STANDARD)) is None:
        raise Fault(PRICE_INVALID, param="tier", message="A tier needs a standard price of the model that is valid by then.")
    (published,) = publish_lines(tx, book, [line], context, new_id=new_id, draft_id=None)
    return get_price(tx, published.id)


def _publish_models(tx: Transaction, names: Iterable[str], now: int) -> None:
    published = [model.name for model in stored_catalog.find_models(tx, names) if model.published]
    publish.publish(tx, ModelEntry, published, now)


# ---- Versions ---------------------------------------------------------------------------------------------------------


def get_price(tx: PlatformTx, price_id: str) -> PriceVersion:
    """A version. Raises RESOURCE_UNKNOWN."""
    price = storage.find_price(tx, price_id) if ids.is_id(ids.PRICE, price_id.partition("-")[0]) else None
    if price is None:
        raise Fault(RESOURCE_UNKNOWN)
    return price


def list_prices(tx: PlatformTx, window: PageWindow, *, model: str | None, price_list: str | None) -> Page[PriceVersion]:
    """All versions ever, or those of one model, or of one price list."""
    return storage.list_prices(tx, window, model=model, price_list=price_list)


def list_current_prices(tx: Transaction, price_list: str, now: int) -> list[PriceVersion]:
    """Return what published models cost on a list at instant `now`, by model and tier; a model that is not there is closed."""
    series: dict[Series, list[PriceVersion]] = {}
    for version in storage.list_carried_of_list(tx, price_list):
        series.setdefault((version.model, version.tier), []).append(version)
    current = (find_price(versions, now) for versions in series.values())
    return [price for price in current if price is not None]


# ---- Terms ------------------------------------------------------------------------------------------------------------


def set_terms(tx: TenantTx, *, book_id: str | None, discount_bp: int, valid_from: int | None, now: int) -> PriceTerms:
    """Let the organization pay by a book at a discount (the default book of its currency if `book_id` is None) from `valid_from` on, None
    for now. What it used before stays as it was billed.

    Raises RESOURCE_UNKNOWN (no such organization; no such book, or another organization's), PARAMETER_INVALID (another currency),
    STATE_CONFLICT (no default book), PRICE_INVALID (in the past, or not after the last terms).
    """
    publish.lock(tx)
    currency = storage.find_organization_currency(tx, tx.organization_id)
    if currency is None:
        raise Fault(RESOURCE_UNKNOWN)
    book = _book_for(tx, book_id, currency)
    start = start_of(valid_from, now)
    stored = storage.get_terms(tx)
    if stored.schedule and start <= stored.schedule[-1].valid_from:
        raise Fault(PRICE_INVALID, param="valid_from", message="Terms must become valid after the last ones.")
    price_list = PriceList(list_id(book.id, discount_bp), book.id, discount_bp)
    if storage.find_list(tx, price_list.id) is None:
        storage.insert_list(tx, price_list, now)
        published = storage.list_book_prices(tx, book.id)
        storage.insert_compiled(tx, published, book.currency, [price_list])
        # Before the organization's entry: a gateway never knows terms without the prices that they name.
        _publish_models(tx, {price.model for price in published}, now)
    starts = [0, *(terms.valid_from for terms in stored.stored), start]  # 0: the default book, also one that is yet to come
    storage.insert_terms(tx, StoredTerms(start, price_list.id, carried_start(starts, now)), now)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)
    return PriceTerms(start, price_list.id)


def list_terms(tx: TenantTx) -> tuple[PriceTerms, ...]:
    """All terms of the organization, ordered by valid_from: the default book of its currency first, valid from the beginning. Raises
    RESOURCE_UNKNOWN."""
    found = storage.read_terms(tx, [tx.organization_id]).get(tx.organization_id)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found.schedule


def list_own_prices(tx: TenantTx, now: int) -> list[PriceVersion]:
    """Return what the organization pays now, by model and tier."""
    price_list = find_list(list_terms(tx), now)
    return [] if price_list is None else list_current_prices(tx, price_list, now)


def _book_for(tx: TenantTx, book_id: str | None, currency: str) -> PriceBook:
    """The book that the organization of `tx` is to pay by."""
    if book_id is None:
        book = storage.find_default_book(tx, currency)
        if book is None:
            raise Fault(STATE_CONFLICT, message=f"There is no default book in {currency}.")
        return book
    book = storage.find_book(tx, book_id) if ids.is_id(ids.PRICE_BOOK, book_id) else None
    if book is None or book.organization_id not in (None, tx.organization_id):
        raise Fault(RESOURCE_UNKNOWN, param="book_id")
    if book.currency != currency:
        raise Fault(PARAMETER_INVALID, param="book_id", message=f"The organization is billed in {currency}, not {book.currency}.")
    return book
