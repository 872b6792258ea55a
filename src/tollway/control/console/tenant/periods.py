"""Billing periods of an organization: which month is open, what each came to, by model, and what caches saved in it."""

from decimal import Decimal
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.money import contracts, periods
from tollway.control.api.schemas import PageQuery
from tollway.control.console.routing import TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark
from tollway.domain.contracts import LineKind

router = new_router()

PATH = "/console/organizations/{organization_id}/periods"

LINES: dict[str, str] = {
    LineKind.TIERED_PRICE: mark("prices by quantity"),
    LineKind.FREE_UNITS: mark("free units"),
    LineKind.DISCOUNT: mark("discount"),
    LineKind.SERVICE_CREDIT: mark("credit for a missed service level"),
    LineKind.DRAWDOWN: mark("drawn from the commitment"),
    LineKind.PLATFORM_FEE: mark("fee"),
    LineKind.SEAT_FEE: mark("fee for seats"),
    LineKind.MINIMUM: mark("rest up to the minimum"),
    LineKind.PREPAYMENT: mark("commitment, paid in advance"),
    LineKind.TRUE_UP: mark("rest of the commitment"),
}
"""Names of what contracts add."""


@router.get(PATH, include_in_schema=False)
def show_own_periods(page: TenantPage, query: Annotated[PageQuery, Query()]) -> Response:
    """The periods, in order of their start."""
    return page.show("tenant/periods.html", periods=page.call(periods.list_own_periods, query=query))


@router.get(PATH + "/{period_id}", include_in_schema=False)
def show_own_period(page: TenantPage, period_id: str) -> Response:
    """One period: what it comes to before tax, and its costs and what caches saved, by model."""
    savings = page.call(periods.list_cache_savings, period_id=period_id)
    bill = page.call(contracts.retrieve_bill, period_id=period_id)
    return page.show(
        "tenant/period.html",
        period=page.call(periods.retrieve_own_period, period_id=period_id),
        bill=bill,
        corrections=Decimal(bill.corrections),
        credit=Decimal(bill.credit),
        lines=LINES,
        costs=page.call(periods.list_period_costs, period_id=period_id, group_by="model"),
        savings=savings,
        savings_of={each.model: each for each in savings.data},
        net_of={each.model: str(Decimal(each.saved) - Decimal(each.surcharge)) for each in savings.data},
    )
