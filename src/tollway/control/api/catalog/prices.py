"""Price versions, the short way of publishing one, and what organizations pay by: for operators, and for tenants their own."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.catalog.price_schemas import (
    AllTermsOut,
    Id,
    OwnPricesOut,
    PriceCreate,
    PriceOut,
    PricePublished,
    TermsCreate,
    TermsPublished,
    effect_out,
    own_price_out,
    price_out,
    terms_out,
)
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import ListOut, ModelName, PageQuery, list_out
from tollway.control.catalog import prices
from tollway.control.identity.access import Tenant
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["prices"])

OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_PRICES_WRITE))]
Reader = Annotated[Tenant, Depends(may(Permission.PRICES_READ))]


@router.get("/v1/platform/prices")
def list_prices(
    _caller: OperatorReader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    model: ModelName | None = None,
    price_list: Annotated[Id | None, Query(alias="list")] = None,
) -> ListOut[PriceOut]:
    """All price versions ever, or those of one model, or of one price list."""
    with plane.database.platform(write=False) as tx:
        page = prices.list_prices(tx, query.window(), model=model, price_list=price_list)
    return list_out(page, price_out)


@router.post("/v1/platform/prices")
def create_price(_caller: OperatorWriter, plane: Plane, body: PriceCreate) -> PricePublished:
    """Publish one price: it follows the last one of its book, model and tier, and no price is ever retroactive. Answers when every gateway
    that is alive has confirmed it, or names those that have not."""
    now = plane.now()
    with plane.database.platform() as tx:
        book = prices.get_book(tx, body.book_id) if body.book_id else prices.get_default_book(tx, body.currency, plane.new_id, now)
        if book.currency != body.currency:
            raise Fault(PARAMETER_INVALID, param="currency", message=f"The book is in {book.currency}.")
        valid_from = None if body.valid_from is None else body.valid_from * 1_000_000
        price = prices.create_price(tx, book, body.line(), valid_from, new_id=plane.new_id, now=now)
    effect = publish.find_effect(plane.database, plane.publications, tx.published_version, price.valid_from, plane.now)
    return PricePublished(**price_out(price).model_dump(), **effect_out(effect).model_dump())


@router.get("/v1/platform/prices/{price_id}")
def retrieve_price(_caller: OperatorReader, plane: Plane, price_id: str) -> PriceOut:
    """One price version."""
    with plane.database.platform(write=False) as tx:
        return price_out(prices.get_price(tx, price_id))


@router.get("/v1/platform/organizations/{organization_id}/price_terms")
def list_terms(_caller: OperatorReader, plane: Plane, organization_id: str) -> AllTermsOut:
    """By which price list an organization has paid, pays and will pay, in order of time."""
    with plane.database.tenant(routes.organization(organization_id), write=False) as tx:
        return AllTermsOut(data=[terms_out(terms) for terms in prices.list_terms(tx)])


@router.post("/v1/platform/organizations/{organization_id}/price_terms")
def create_terms(_caller: OperatorWriter, plane: Plane, organization_id: str, body: TermsCreate) -> TermsPublished:
    """Let an organization pay by a book at a discount from an instant on. Terms are never retroactive. Answers when every gateway that is
    alive has confirmed them, or names those that have not."""
    valid_from = None if body.valid_from is None else body.valid_from * 1_000_000
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        terms = prices.set_terms(tx, book_id=body.book_id, discount_bp=body.discount_bp, valid_from=valid_from, now=plane.now())
    effect = publish.find_effect(plane.database, plane.publications, tx.published_version, terms.valid_from, plane.now)
    return TermsPublished(**terms_out(terms).model_dump(), **effect_out(effect).model_dump())


@router.get("/v1/organization/prices")
def list_own_prices(caller: Reader, plane: Plane) -> OwnPricesOut:
    """Return what the organization pays now for each model, by service tier, per million tokens."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return OwnPricesOut(data=[own_price_out(price) for price in prices.list_own_prices(tx, plane.now())])
