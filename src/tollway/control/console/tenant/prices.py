"""Models that an organization may use, with what it pays for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from starlette.responses import Response

from tollway.control.api.catalog.price_schemas import OwnPriceOut
from tollway.control.api.catalog.prices import list_own_prices
from tollway.control.console.routing import TenantPage
from tollway.control.console.routing import router as new_router
from tollway.domain.billing_classes import BILLING_CLASSES, PER_MILLION, BillingClassRow

router = new_router()


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """The price of one class, as a decimal string: of each, or of a million."""

    name: str
    amount: str
    is_per_million: bool


@router.get("/console/organizations/{organization_id}/models", include_in_schema=False)
def show_models(page: TenantPage) -> Response:
    """Models, service tiers and prices."""
    found = page.call(list_own_prices).data
    return page.show("tenant/models.html", models=[(each, list_unit_prices(each)) for each in found])


def list_unit_prices(price: OwnPriceOut) -> Sequence[UnitPrice]:
    """Return the prices of a model that are not what another class costs anyway, and not nothing."""
    by_class = {row.billing_class.value: str(getattr(price, row.billing_class)) for row in BILLING_CLASSES}
    return [
        UnitPrice(row.billing_class, by_class[row.billing_class], row.unit in PER_MILLION)
        for row in BILLING_CLASSES
        if row.required or not _is_implied(row, by_class)
    ]


def _is_implied(row: BillingClassRow, by_class: dict[str, str]) -> bool:
    return Decimal(by_class[row.billing_class]) == Decimal(by_class[row.price_of] if row.price_of is not None else 0)
