"""Price versions at rest: append-only, immutable, ordered by valid_from within their model and currency.

A version knows what gateways still need once it is the last of its series (`carried_from`): itself and what is yet to come, the one
valid now, and the one before that for requests admitted by a gateway that has not heard of the change. Because that is decided when
a version is written, what a gateway is told follows from rows alone, and a snapshot made later equals the changes sent earlier.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.prices import PriceVersion
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import Page, Window, fetch_page
from tollway.storage.schema import prices


def insert_price(tx: PlatformTx, price: PriceVersion, *, carried_from: int, now: int) -> None:
    """Append a version."""
    tx.connection.execute(
        prices.insert().values(
            id=price.id,
            model=price.model,
            currency=price.currency,
            valid_from=price.valid_from,
            input_pico=price.input_pico,
            cached_input_pico=price.cached_input_pico,
            output_pico=price.output_pico,
            reasoning_pico=price.reasoning_pico,
            request_pico=price.request_pico,
            carried_from=carried_from,
            created_at=now,
        )
    )


def list_series(tx: PlatformTx, model: str, currency: str) -> list[PriceVersion]:
    """The versions of one model and currency that gateways know, ordered by valid_from."""
    query = _select_carried().where(prices.c.model == model, prices.c.currency == currency)
    return [_price(row) for row in tx.connection.execute(query)]


def has_price_at(tx: PlatformTx, model: str, at: int) -> bool:
    """Whether any currency's price of the model is valid at instant `at`."""
    query = sa.select(prices.c.id).where(prices.c.model == model, prices.c.valid_from <= at).limit(1)
    return tx.connection.execute(query).first() is not None


def list_prices(tx: PlatformTx, window: Window, *, model: str | None) -> Page[PriceVersion]:
    """All versions ever, or those of one model."""
    query = sa.select(prices)
    if model is not None:
        query = query.where(prices.c.model == model)
    return fetch_page(tx, query, prices.c.id, window, _price)


def find_price(tx: PlatformTx, price_id: str) -> PriceVersion | None:
    """A version by its id."""
    row = tx.connection.execute(sa.select(prices).where(prices.c.id == price_id)).one_or_none()
    return None if row is None else _price(row)


def find_prices(tx: Transaction, price_ids: Iterable[str]) -> dict[str, PriceVersion]:
    """The versions that exist of these, by id."""
    query = sa.select(prices).where(prices.c.id.in_(list(price_ids)))
    return {row.id: _price(row) for row in tx.connection.execute(query)}


def list_carried(tx: Transaction, models: Sequence[str] | None) -> dict[str, tuple[PriceVersion, ...]]:
    """By model (all if None), the versions of every currency that gateways must know, ordered by valid_from."""
    query = _select_carried()
    if models is not None:
        query = query.where(prices.c.model.in_(models))
    by_model: dict[str, list[PriceVersion]] = {}
    for row in tx.connection.execute(query):
        by_model.setdefault(row.model, []).append(_price(row))
    return {model: tuple(versions) for model, versions in by_model.items()}


def _select_carried() -> sa.Select[Any]:
    later = prices.alias()
    carried_from = (
        sa.select(sa.func.max(later.c.carried_from))
        .where(later.c.model == prices.c.model, later.c.currency == prices.c.currency)
        .scalar_subquery()
    )
    return sa.select(prices).where(prices.c.valid_from >= carried_from).order_by(prices.c.valid_from, prices.c.id)


def _price(row: Any) -> PriceVersion:
    return PriceVersion(
        id=row.id,
        model=row.model,
        currency=row.currency,
        valid_from=row.valid_from,
        input_pico=row.input_pico,
        cached_input_pico=row.cached_input_pico,
        output_pico=row.output_pico,
        reasoning_pico=row.reasoning_pico,
        request_pico=row.request_pico,
    )
