"""Prices: versions that follow each other, each immutable from the moment it is written.

A price is never retroactive, and never goes away: a model that has a price keeps having one.
"""

from tollway.control import publish
from tollway.domain import ids
from tollway.domain.faults import MODEL_UNKNOWN, PRICE_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.prices import PriceVersion, find_price
from tollway.domain.snapshot import ModelEntry
from tollway.domain.tenants import Status
from tollway.storage import catalog as stored_catalog
from tollway.storage import prices as storage
from tollway.storage.database import PlatformTx
from tollway.storage.pages import Page, Window

CLOCK_GRACE_US = 60_000_000
"""A valid_from this far in the past is taken as now: clocks differ, and whole seconds of "now" are already past."""


def create_price(tx: PlatformTx, price: PriceVersion, now: int) -> PriceVersion:
    """Append `price` to the versions of its model and currency; gateways hear of it now and use it from its valid_from on.

    Raises MODEL_UNKNOWN, STATE_CONFLICT (archived model), PRICE_INVALID (in the past, or not after the last version).
    """
    publish.lock(tx)
    model = stored_catalog.find_model(tx, price.model)
    if model is None:
        raise Fault(MODEL_UNKNOWN, param="model")
    if model.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The model is archived.")
    if price.valid_from < now - CLOCK_GRACE_US:
        raise Fault(PRICE_INVALID, param="valid_from", message="A price cannot be valid from an instant in the past.")
    valid_from = max(price.valid_from, now)
    series = storage.list_series(tx, price.model, price.currency)
    if series and valid_from <= series[-1].valid_from:
        raise Fault(PRICE_INVALID, param="valid_from", message="A price must become valid after the last one of its currency.")
    price = PriceVersion(
        id=price.id,
        model=price.model,
        currency=price.currency,
        valid_from=valid_from,
        input_pico=price.input_pico,
        cached_input_pico=price.cached_input_pico,
        output_pico=price.output_pico,
        reasoning_pico=price.reasoning_pico,
        request_pico=price.request_pico,
    )
    storage.insert_price(tx, price, carried_from=_carried_from([*series, price], now), now=now)
    if model.published:
        publish.publish(tx, ModelEntry, [model.name], now)
    return price


def get_price(tx: PlatformTx, price_id: str) -> PriceVersion:
    """A version. Raises RESOURCE_UNKNOWN."""
    price = storage.find_price(tx, price_id) if ids.is_id(ids.PRICE, price_id) else None
    if price is None:
        raise Fault(RESOURCE_UNKNOWN)
    return price


def list_prices(tx: PlatformTx, window: Window, *, model: str | None) -> Page[PriceVersion]:
    """All versions ever, or those of one model."""
    return storage.list_prices(tx, window, model=model)


def _carried_from(series: list[PriceVersion], now: int) -> int:
    """The valid_from of the oldest version that gateways still need: the one before the one valid now, if there is one."""
    current = find_price(series, now)
    if current is None:
        return series[0].valid_from
    return series[max(0, series.index(current) - 1)].valid_from
