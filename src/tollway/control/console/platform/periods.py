"""Billing periods: which are open, what keeps one from being closed, and its close."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import invoices
from tollway.control.api.money import periods
from tollway.control.api.money.periods import OrganizationId
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, require_typed, write_query
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain.faults import Fault
from tollway.domain.periods import PeriodState

router = new_router()

PATH = "/console/platform/periods"
ONE = PATH + "/{period_id}"


@router.get(PATH, include_in_schema=False)
def show_periods(
    page: PlatformPage,
    query: Annotated[PageQuery, Query()],
    organization_id: OrganizationId | None = None,
    state: PeriodState | None = None,
) -> Response:
    """Billing periods, of every organization or of one."""
    found = page.call(periods.list_periods, query=query, organization_id=organization_id, state=state)
    filters = write_query({"organization_id": organization_id, "state": state})
    states = list(PeriodState)
    return page.show("platform/periods.html", periods=found, organization_id=organization_id, state=state, states=states, filters=filters)


@router.get(ONE, include_in_schema=False)
def show_period(page: PlatformPage, period_id: str) -> Response:
    """One billing period, with what keeps it from being closed."""
    return _show(page, period_id)


def _show(page: Page, period_id: str, fault: Fault | None = None) -> Response:
    period = page.call(periods.retrieve_period, period_id=period_id)
    return page.show(
        "platform/period.html",
        fault=fault,
        period=period,
        blockers=[] if period.state == PeriodState.CLOSED else page.call(periods.list_blockers, period_id=period_id).data,
        has_ended=period.end_time <= page.plane.now() // 1_000_000,
        may_preview=page.allows(invoices.preview_invoices),
        may_close=period.state != PeriodState.CLOSED and page.allows(periods.close_period),
    )


@router.post(f"{ONE}/close", include_in_schema=False)
def close_period_by_id(page: PlatformPage, period_id: str, fields: Annotated[Form, form(periods.close_period, "confirmation")]) -> Response:
    """Close a period, whose id was typed."""
    try:
        require_typed(fields["confirmation"], period_id)
        closed = page.call(periods.close_period, period_id=period_id)
    except Fault as fault:
        return _show(page, period_id, fault)
    return page.lead(f"/periods/{period_id}", "period_closed" if closed.state == PeriodState.CLOSED else "period_closing")
