"""The credit of an organization with its bookings; operators grant it, end a grant, hold requests to it, and have more asked for."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.money import credits
from tollway.control.api.money.credits import CreditGrantCreate, PrepaymentWrite, TopupRuleWrite
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, read_day, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects, offer_projects
from tollway.control.languages.texts import mark
from tollway.domain.credits import CreditMove, GrantCategory, TopupInterval
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/credits"

MOVES: dict[str, str] = {
    CreditMove.GRANT: mark("granted"),
    CreditMove.BURN: mark("used"),
    CreditMove.EXPIRE: mark("expired"),
    CreditMove.VOID: mark("taken back"),
}
CATEGORIES: dict[str, str] = {
    GrantCategory.PAID: mark("paid"),
    GrantCategory.PROMOTIONAL: mark("promotional"),
    GrantCategory.GOODWILL: mark("goodwill"),
}
INTERVALS: dict[str, str] = {TopupInterval.WEEK: mark("week"), TopupInterval.MONTH: mark("month")}
"""Names of bookings of credit, of reasons for a grant, and of intervals in which more is asked for."""


@router.get(PATH, include_in_schema=False)
def show_credits(page: TenantPage, query: Annotated[PageQuery, Query()]) -> Response:
    """Grants of which something may be left, in the order in which they burn, and what was booked."""
    return _show(page, query)


def _show(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    found, may_write = page.call(credits.retrieve_credits), page.allows(credits.create_credit_grant)
    named = name_projects(page, [each.project_id for each in found.data])
    return page.show(
        "tenant/credits.html",
        fault=fault,
        credits=found,
        transactions=page.call(credits.list_credit_transactions, query=query),
        projects=named | (offer_projects(page) if may_write else {}),
        may_write=may_write,
        moves=MOVES,
        categories=CATEGORIES,
        intervals=INTERVALS,
    )


@router.post(f"{PATH}/grants", include_in_schema=False)
def grant_credit(
    page: TenantPage,
    fields: Annotated[Form, form(credits.create_credit_grant, "category", "amount", "until_day", "project_id", "model", "reference")],
) -> Response:
    """Grant credit to the organization, from now on."""
    try:
        values = {name: fields[name] for name in ("category", "amount", "project_id", "model", "reference")}
        body = make_body(CreditGrantCreate, {**values, "expires_at": read_day("until_day", fields["until_day"])})
        page.call(credits.create_credit_grant, organization_id=page.organization_id, body=body)
    except Fault as fault:
        return _show(page, PageQuery(), fault)
    return page.lead("/credits", "created")


@router.post(f"{PATH}/grants/{{grant_id}}/void", include_in_schema=False)
def void_by_id(page: TenantPage, grant_id: str, fields: Annotated[Form, form(credits.void_credit_grant, "confirmation")]) -> Response:
    """End a grant, whose id was typed."""
    try:
        require_typed(fields["confirmation"], grant_id)
        page.call(credits.void_credit_grant, organization_id=page.organization_id, grant_id=grant_id)
    except Fault as fault:
        return _show(page, PageQuery(), fault)
    return page.lead("/credits", "saved")


@router.post(f"{PATH}/prepayment", include_in_schema=False)
def hold_to_credit(page: TenantPage, fields: Annotated[Form, form(credits.put_prepayment, "is_prepaid")]) -> Response:
    """Hold the organization's requests to its credit, or not any more."""
    try:
        body = PrepaymentWrite(is_prepaid=fields["is_prepaid"] == "yes")
        changed = page.call(credits.put_prepayment, organization_id=page.organization_id, body=body)
    except Fault as fault:
        return _show(page, PageQuery(), fault)
    return page.lead("/credits", "pending" if changed.pending_nodes else "saved")


@router.post(f"{PATH}/topup-rule", include_in_schema=False)
def ask_for_more(page: TenantPage, fields: Annotated[Form, form(credits.put_topup_rule, "amount", "threshold", "every")]) -> Response:
    """Have more credit asked for below a threshold, in each week or month, or both; an empty amount ends that."""
    try:
        if fields["amount"]:
            page.call(credits.put_topup_rule, organization_id=page.organization_id, body=make_body(TopupRuleWrite, fields))
        else:
            page.call(credits.delete_topup_rule, organization_id=page.organization_id)
    except Fault as fault:
        return _show(page, PageQuery(), fault)
    return page.lead("/credits", "saved")
