"""Price books at rest: books, lists, drafts, published prices, the versions compiled from them, and organizations' terms.

A published price knows what gateways still need once it is the last of its series (`carried_from`): itself and what is yet to come, the
one valid now, and the one before that for requests admitted by a gateway that has not heard of the change. Because that is decided when
a price is written, what a gateway receives follows from rows alone, and a snapshot made later equals the changes sent earlier. Terms of
organizations are carried by the same rule.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.billing_classes import CLASS_TABLE, BillingClass, UnitPrices, stated_prices, with_default_prices
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import INSTANT_MAX
from tollway.domain.price_books import (
    BookPrice,
    DraftFinding,
    DraftLine,
    DraftState,
    PriceBook,
    PriceDraft,
    PriceList,
    StoredTerms,
    compile_price,
    schedule,
)
from tollway.domain.prices import Offer, PriceTerms, PriceVersion
from tollway.domain.tenants import Status
from tollway.domain.usage import ServiceTier
from tollway.storage.bulk_statements import any_of
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import models, organizations
from tollway.storage.schema_prices import (
    OTHER_UNIT_PRICES,
    UNIT_PRICES,
    book_prices,
    compiled_prices,
    price_books,
    price_drafts,
    price_lists,
    price_terms,
)

# ---- Books and lists --------------------------------------------------------------------------------------------------


def insert_book(tx: PlatformTx, book: PriceBook) -> None:
    """Store a new book, with its own price list: the one without a discount."""
    tx.connection.execute(
        price_books.insert().values(
            id=book.id,
            name=book.name,
            currency=book.currency,
            organization_id=book.organization_id,
            default_of=book.currency if book.is_default else None,
            created_at=book.created_at,
        )
    )
    insert_list(tx, PriceList(book.id, book.id, 0), book.created_at)


def find_book(tx: Transaction, book_id: str) -> PriceBook | None:
    """A book by its id."""
    return _find_book(tx, price_books.c.id == book_id)


def find_book_named(tx: Transaction, name: str) -> PriceBook | None:
    """A book by its name."""
    return _find_book(tx, price_books.c.name == name)


def find_default_book(tx: Transaction, currency: str) -> PriceBook | None:
    """The default book of a currency."""
    return _find_book(tx, price_books.c.default_of == currency)


def list_books(tx: PlatformTx, window: PageWindow) -> Page[PriceBook]:
    """All books."""
    return fetch_page(tx, sa.select(price_books), price_books.c.id, window, _book)


def insert_list(tx: Transaction, price_list: PriceList, now: int) -> None:
    """Take a list of a book into use."""
    tx.connection.execute(
        price_lists.insert().values(id=price_list.id, book_id=price_list.book_id, discount_bp=price_list.discount_bp, created_at=now)
    )


def find_list(tx: Transaction, list_id: str) -> PriceList | None:
    """A list in use."""
    row = tx.connection.execute(sa.select(price_lists).where(price_lists.c.id == list_id)).one_or_none()
    return None if row is None else PriceList(row.id, row.book_id, row.discount_bp)


def list_lists(tx: Transaction, book_id: str) -> list[PriceList]:
    """The lists of a book that are in use, the one without a discount first."""
    query = sa.select(price_lists).where(price_lists.c.book_id == book_id).order_by(price_lists.c.discount_bp)
    return [PriceList(row.id, row.book_id, row.discount_bp) for row in tx.connection.execute(query)]


def _find_book(tx: Transaction, where: sa.ColumnElement[bool]) -> PriceBook | None:
    row = tx.connection.execute(sa.select(price_books).where(where)).one_or_none()
    return None if row is None else _book(row)


def _book(row: Any) -> PriceBook:
    return PriceBook(
        id=row.id,
        name=row.name,
        currency=row.currency,
        organization_id=row.organization_id,
        is_default=row.default_of is not None,
        created_at=row.created_at,
    )


# ---- Drafts -----------------------------------------------------------------------------------------------------------

_lines = msgspec.json.Decoder(tuple[DraftLine, ...])
_findings = msgspec.json.Decoder(tuple[DraftFinding, ...])


def insert_draft(tx: PlatformTx, draft: PriceDraft) -> None:
    """Store a new draft."""
    values = {"id": draft.id, "book_id": draft.book_id, "created_at": draft.created_at}
    tx.connection.execute(price_drafts.insert().values(**values, **_draft_columns(draft)))


def find_draft(tx: PlatformTx, draft_id: str) -> PriceDraft | None:
    """A draft, whatever its state."""
    row = tx.connection.execute(sa.select(price_drafts).where(price_drafts.c.id == draft_id)).one_or_none()
    return None if row is None else _draft(row)


def list_drafts(tx: PlatformTx, window: PageWindow, *, book_id: str | None, include_closed: bool) -> Page[PriceDraft]:
    """Open drafts, or all of them; of one book, or of all."""
    query = sa.select(price_drafts)
    if book_id is not None:
        query = query.where(price_drafts.c.book_id == book_id)
    if not include_closed:
        query = query.where(price_drafts.c.state == DraftState.OPEN)
    return fetch_page(tx, query, price_drafts.c.id, window, _draft)


def put_draft(tx: PlatformTx, draft: PriceDraft) -> None:
    """Replace what may change of an open draft."""
    tx.connection.execute(price_drafts.update().where(price_drafts.c.id == draft.id).values(**_draft_columns(draft)))


def _draft_columns(draft: PriceDraft) -> dict[str, Any]:
    return {
        "state": draft.state,
        "valid_from": draft.valid_from,
        "lines": msgspec.json.encode(draft.lines),
        "findings": msgspec.json.encode(draft.findings),
        "changed_at": draft.changed_at,
    }


def _draft(row: Any) -> PriceDraft:
    return PriceDraft(
        id=row.id,
        book_id=row.book_id,
        state=DraftState(row.state),
        valid_from=row.valid_from,
        lines=_lines.decode(row.lines),
        created_at=row.created_at,
        changed_at=row.changed_at,
        findings=_findings.decode(row.findings),
    )


# ---- Published prices -------------------------------------------------------------------------------------------------


def insert_book_prices(tx: PlatformTx, published: Sequence[BookPrice]) -> None:
    """Append prices to a book. What follows from them is `insert_compiled`'s."""
    tx.connection.execute(book_prices.insert(), [_book_row(price) for price in published])


def _book_row(price: BookPrice) -> dict[str, Any]:
    row = msgspec.structs.asdict(price)
    return row | _unit_columns(row.pop("unit_prices"))


def list_book_prices(tx: Transaction, book_id: str, names: Iterable[str] | None = None) -> list[BookPrice]:
    """Every price ever published in a book (of these models), ordered by valid_from within its model and tier."""
    query = sa.select(book_prices).where(book_prices.c.book_id == book_id)
    if names is not None:
        query = query.where(book_prices.c.model.in_(sorted(names)))
    query = query.order_by(book_prices.c.model, book_prices.c.tier, book_prices.c.valid_from)
    return [_book_price(row) for row in tx.connection.execute(query)]


def _book_price(row: Any) -> BookPrice:
    return BookPrice(
        id=row.id,
        book_id=row.book_id,
        model=row.model,
        tier=ServiceTier(row.tier),
        valid_from=row.valid_from,
        carried_from=row.carried_from,
        published_at=row.published_at,
        draft_id=row.draft_id,
        unit_prices=_unit_prices(row),
    )


# ---- Compiled versions ------------------------------------------------------------------------------------------------


def insert_compiled(tx: Transaction, published: Sequence[BookPrice], currency: str, lists: Sequence[PriceList]) -> None:
    """Compile published prices of a book for lists of it."""
    rows = [_compiled_row(price, currency, each) for each in lists for price in published]
    if rows:
        tx.connection.execute(compiled_prices.insert(), rows)


def find_price(tx: Transaction, price_id: str) -> PriceVersion | None:
    """A version by its id."""
    row = tx.connection.execute(sa.select(compiled_prices).where(compiled_prices.c.id == price_id)).one_or_none()
    return None if row is None else _price(row)


def find_prices(tx: Transaction, price_ids: Iterable[str]) -> dict[str, PriceVersion]:
    """The versions that exist of these, by id."""
    query = sa.select(compiled_prices).where(any_of(tx, compiled_prices.c.id, list(price_ids)))
    return {row.id: _price(row) for row in tx.connection.execute(query)}


def find_offers(tx: Transaction, price_ids: Iterable[str]) -> dict[str, Offer]:
    """Return the versions that exist of these, by id, each with the instant at which the next one of its series follows."""
    later = compiled_prices.alias()
    valid_until = (
        sa.select(sa.func.min(later.c.valid_from))
        .where(
            later.c.model == compiled_prices.c.model,
            later.c.list_id == compiled_prices.c.list_id,
            later.c.tier == compiled_prices.c.tier,
            later.c.valid_from > compiled_prices.c.valid_from,
        )
        .scalar_subquery()
    )
    query = sa.select(compiled_prices, valid_until.label("valid_until")).where(any_of(tx, compiled_prices.c.id, list(price_ids)))
    rows = tx.connection.execute(query)
    return {row.id: Offer(_price(row), INSTANT_MAX if row.valid_until is None else row.valid_until) for row in rows}


def find_published_units(tx: Transaction, price_ids: Iterable[str]) -> dict[str, UnitPrices]:
    """Return, by version, the published unit prices that it is compiled from: those before any discount."""
    query = (
        sa.select(compiled_prices.c.id.label("version"), *(book_prices.c[name] for name in UNIT_PRICES))
        .join_from(compiled_prices, book_prices, compiled_prices.c.source_id == book_prices.c.id)
        .where(any_of(tx, compiled_prices.c.id, list(price_ids)))
    )
    return {row.version: _unit_prices(row) for row in tx.connection.execute(query)}


def has_price_at(tx: Transaction, model: str, at: int) -> bool:
    """Return whether any list's standard price of the model is valid at instant `at`."""
    query = sa.select(compiled_prices.c.id).where(
        compiled_prices.c.model == model, compiled_prices.c.tier == ServiceTier.STANDARD, compiled_prices.c.valid_from <= at
    )
    return tx.connection.execute(query.limit(1)).first() is not None


def list_prices(tx: PlatformTx, window: PageWindow, *, model: str | None, price_list: str | None) -> Page[PriceVersion]:
    """All versions ever, or those of one model, or of one list."""
    query = sa.select(compiled_prices)
    if model is not None:
        query = query.where(compiled_prices.c.model == model)
    if price_list is not None:
        query = query.where(compiled_prices.c.list_id == price_list)
    return fetch_page(tx, query, compiled_prices.c.id, window, _price)


def list_carried(tx: Transaction, names: Sequence[str] | None) -> dict[str, tuple[PriceVersion, ...]]:
    """By model (all if None), the versions of every list that gateways must know, ordered by valid_from."""
    by_model: dict[str, list[PriceVersion]] = {}
    query = _select_carried()
    if names is not None:
        query = query.where(compiled_prices.c.model.in_(names))
    for row in tx.connection.execute(query):
        by_model.setdefault(row.model, []).append(_price(row))
    return {model: tuple(versions) for model, versions in by_model.items()}


def list_carried_of_list(tx: Transaction, price_list: str) -> list[PriceVersion]:
    """The versions of one list that gateways know, of published models, ordered by model, tier and valid_from."""
    query = (
        _select_carried()
        .join(models, models.c.name == compiled_prices.c.model)
        .where(compiled_prices.c.list_id == price_list, models.c.published)
        .order_by(None)
        .order_by(compiled_prices.c.model, compiled_prices.c.tier, compiled_prices.c.valid_from)
    )
    return [_price(row) for row in tx.connection.execute(query)]


def iterate_compiled(tx: PlatformTx) -> Iterator[tuple[PriceVersion, PriceVersion | None]]:
    """Every compiled version, and what its published price compiles to now: for verification. None stands for a version that should be
    there and is not; then the first is what is missing."""
    columns = [
        *(column.label(f"book_{column.name}") for column in book_prices.c),
        price_lists.c.discount_bp,
        price_books.c.currency.label("book_currency"),
        *compiled_prices.c,
    ]
    query = (
        sa.select(*columns)
        .select_from(book_prices)
        .join(price_books, price_books.c.id == book_prices.c.book_id)
        .join(price_lists, price_lists.c.book_id == book_prices.c.book_id)
        .outerjoin(
            compiled_prices,
            sa.and_(compiled_prices.c.source_id == book_prices.c.id, compiled_prices.c.list_id == price_lists.c.id),
        )
        .order_by(book_prices.c.id, price_lists.c.id)
    )
    for row in tx.connection.execute(query.execution_options(yield_per=1000)):
        yield compile_price(_joined_price(row), row.book_currency, row.discount_bp), None if row.id is None else _price(row)


def iterate_miswritten(tx: PlatformTx) -> Iterator[tuple[str, str]]:
    """Yield the table and id of every published price and compiled version that states the default price of a later class, which is
    written as null. Prices that are read do not show it: for verification."""
    for table in (book_prices, compiled_prices):
        query = sa.select(table.c.id, *(table.c[name] for name in UNIT_PRICES))
        query = query.where(sa.or_(*(table.c[name].is_not(None) for name in OTHER_UNIT_PRICES))).order_by(table.c.id)
        for row in tx.connection.execute(query.execution_options(yield_per=1000)):
            if any(getattr(row, name) != pico for name, pico in _unit_columns(_unit_prices(row)).items()):
                yield table.name, row.id


def count_compiled(tx: PlatformTx) -> int:
    """Return how many versions there are."""
    count: int = tx.connection.execute(sa.select(sa.func.count()).select_from(compiled_prices)).scalar_one()
    return count


def _joined_price(row: Any) -> BookPrice:
    columns = [name for name in book_prices.c.keys() if name not in UNIT_PRICES]  # noqa: SIM118 - a collection of columns, no dict
    values = {name: getattr(row, f"book_{name}") for name in columns}
    unit_prices = _read_units(getattr(row, f"book_{name}") for name in UNIT_PRICES)
    return BookPrice(**values | {"tier": ServiceTier(row.book_tier), "unit_prices": unit_prices})


def _select_carried() -> sa.Select[Any]:
    later = compiled_prices.alias()
    carried_from = (
        sa.select(sa.func.max(later.c.carried_from))
        .where(
            later.c.model == compiled_prices.c.model,
            later.c.list_id == compiled_prices.c.list_id,
            later.c.tier == compiled_prices.c.tier,
        )
        .scalar_subquery()
    )
    query = sa.select(compiled_prices).where(compiled_prices.c.valid_from >= carried_from)
    return query.order_by(compiled_prices.c.valid_from, compiled_prices.c.id)


def _compiled_row(price: BookPrice, currency: str, price_list: PriceList) -> dict[str, Any]:
    row = msgspec.structs.asdict(compile_price(price, currency, price_list.discount_bp))
    row["list_id"] = row.pop("list")
    del row["class_table"]
    return row | _unit_columns(row.pop("unit_prices")) | {"source_id": price.id, "carried_from": price.carried_from}


def _price(row: Any) -> PriceVersion:
    return PriceVersion(
        id=row.id,
        list=row.list_id,
        model=row.model,
        tier=ServiceTier(row.tier),
        currency=row.currency,
        valid_from=row.valid_from,
        unit_prices=_unit_prices(row),
        class_table=CLASS_TABLE,
    )


def _unit_prices(row: Any) -> UnitPrices:
    return _read_units(getattr(row, name) for name in UNIT_PRICES)


def _read_units(columns: Iterable[int | None]) -> UnitPrices:
    """Return the unit prices that stand in columns of UNIT_PRICES."""
    return with_default_prices({name: pico for name, pico in zip(BillingClass, columns, strict=True) if pico is not None})


def _unit_columns(units: UnitPrices) -> dict[str, int | None]:
    stated = stated_prices(units)
    return {column: stated.get(billing_class) for column, billing_class in zip(UNIT_PRICES, BillingClass, strict=True)}


# ---- Terms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrganizationTerms:
    """Price terms of an organization: its currency, the default list of that currency (None while there is none), and its own terms, in
    order."""

    currency: str
    default_list: str | None
    stored: tuple[StoredTerms, ...]

    @property
    def schedule(self) -> tuple[PriceTerms, ...]:
        """All of them, ordered by valid_from."""
        return schedule(self.default_list, self.stored)


def insert_terms(tx: TenantTx, terms: StoredTerms, now: int) -> None:
    """Append terms of the organization."""
    tx.connection.execute(
        price_terms.insert().values(
            organization_id=tx.organization_id,
            valid_from=terms.valid_from,
            list_id=terms.list,
            carried_from=terms.carried_from,
            created_at=now,
        )
    )


def get_terms(tx: TenantTx) -> OrganizationTerms:
    """The terms of the organization that `tx` is bound to, which must exist."""
    return read_terms(tx, [tx.organization_id])[tx.organization_id]


def read_terms(tx: Transaction, organization_ids: Sequence[str]) -> dict[str, OrganizationTerms]:
    """The terms of those of the organizations that exist, by id. Not bound to a tenant: for rating and for what gateways receive."""
    defaults = (
        sa.select(organizations.c.id, organizations.c.currency, price_books.c.id.label("book_id"))
        .outerjoin(price_books, price_books.c.default_of == organizations.c.currency)
        .where(any_of(tx, organizations.c.id, organization_ids))
    )
    stored: dict[str, list[StoredTerms]] = {}
    query = sa.select(price_terms).where(any_of(tx, price_terms.c.organization_id, organization_ids))
    for row in tx.connection.execute(query.order_by(price_terms.c.organization_id, price_terms.c.valid_from)):
        stored.setdefault(row.organization_id, []).append(StoredTerms(row.valid_from, row.list_id, row.carried_from))
    return {row.id: OrganizationTerms(row.currency, row.book_id, tuple(stored.get(row.id, ()))) for row in tx.connection.execute(defaults)}


def find_organization_currency(tx: Transaction, organization_id: str) -> str | None:
    """The currency that an active organization is billed in."""
    query = sa.select(organizations.c.currency).where(organizations.c.id == organization_id, organizations.c.status == Status.ACTIVE)
    return tx.connection.execute(query).scalar_one_or_none()


def list_organization_ids(tx: PlatformTx, currency: str) -> list[str]:
    """The active organizations billed in a currency."""
    query = sa.select(organizations.c.id).where(organizations.c.currency == currency, organizations.c.status == Status.ACTIVE)
    return list(tx.connection.execute(query.order_by(organizations.c.id)).scalars())
