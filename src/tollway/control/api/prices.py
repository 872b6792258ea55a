"""Price versions, for operators: appended, listed, never changed."""

from typing import Annotated

from fastapi import Query

from tollway.control import prices
from tollway.control.api import doors
from tollway.control.api.doors import Plane, PlatformOperator
from tollway.control.api.schemas import ListOut, ModelName, PageQuery, PriceCreate, PriceOut, list_out, price_out
from tollway.domain import ids, money
from tollway.domain.prices import PriceVersion

router = doors.router(tags=["prices"])


@router.get("/v1/platform/prices")
def list_prices(
    _caller: PlatformOperator, plane: Plane, query: Annotated[PageQuery, Query()], model: ModelName | None = None
) -> ListOut[PriceOut]:
    """All price versions ever, or those of one model."""
    with plane.database.platform(write=False) as tx:
        page = prices.list_prices(tx, query.window(), model=model)
    return list_out(page, price_out)


@router.post("/v1/platform/prices")
def create_price(_caller: PlatformOperator, plane: Plane, body: PriceCreate) -> PriceOut:
    """Append a version: it follows the last one of its model and currency, and no price is ever retroactive."""
    now = plane.now()
    wanted = PriceVersion(
        id=plane.new_id(ids.PRICE),
        model=body.model,
        currency=body.currency,
        valid_from=now if body.valid_from is None else body.valid_from * 1_000_000,
        input_pico=money.parse_price_per_million(body.input),
        cached_input_pico=money.parse_price_per_million(body.input if body.cached_input is None else body.cached_input),
        output_pico=money.parse_price_per_million(body.output),
        reasoning_pico=money.parse_price_per_million(body.output if body.reasoning is None else body.reasoning),
        request_pico=money.parse_amount(body.request),
    )
    with plane.database.platform() as tx:
        return price_out(prices.create_price(tx, wanted, now))


@router.get("/v1/platform/prices/{price_id}")
def retrieve_price(_caller: PlatformOperator, plane: Plane, price_id: str) -> PriceOut:
    """One price version."""
    with plane.database.platform(write=False) as tx:
        return price_out(prices.get_price(tx, price_id))
