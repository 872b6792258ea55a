"""Plans: named sets of limits, and what organizations that have them may spend in a month."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.schemas import PageQuery
from tollway.control.api.tenancy import plans
from tollway.control.api.tenancy.plan_schemas import PlanCreate, PlanUpdate
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.limits import DIMENSION_TEXTS, NAMES
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/platform/plans"
ONE = PATH + "/{plan_id}"


def read_limits(fields: Form) -> dict[str, str]:
    """Return the limits of a form, which are none where a field is empty."""
    return {name: fields[name] for name in NAMES if fields[name]}


@router.get(PATH, include_in_schema=False)
def show_plans(page: PlatformPage, query: Annotated[PageQuery, Query()]) -> Response:
    """All plans."""
    return _show_list(page, query)


def _show_list(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/plans.html",
        fault=fault,
        plans=page.call(plans.list_plans, query=query),
        may_write=page.allows(plans.create_plan),
        names=NAMES,
        dimensions=DIMENSION_TEXTS,
    )


@router.post(PATH, include_in_schema=False)
def add_plan(page: PlatformPage, fields: Annotated[Form, form(plans.create_plan, "name", *NAMES)]) -> Response:
    """Create a plan, which no organization has yet."""
    try:
        made = page.call(plans.create_plan, body=make_body(PlanCreate, {"name": fields["name"], "limits": read_limits(fields)}))
    except Fault as fault:
        return _show_list(page, PageQuery(), fault)
    return page.lead(f"/plans/{made.id}", "created")


@router.get(ONE, include_in_schema=False)
def show_plan(page: PlatformPage, plan_id: str) -> Response:
    """One plan with its limits."""
    return _show(page, plan_id)


def _show(page: Page, plan_id: str, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/plan.html",
        fault=fault,
        plan=page.call(plans.retrieve_plan, plan_id=plan_id),
        may_write=page.allows(plans.update_plan),
        names=NAMES,
        dimensions=DIMENSION_TEXTS,
    )


def _change(page: Page, plan_id: str, changes: Mapping[str, object]) -> Response:
    try:
        page.call(plans.update_plan, plan_id=plan_id, body=make_body(PlanUpdate, changes))
    except Fault as fault:
        return _show(page, plan_id, fault)
    return page.lead(f"/plans/{plan_id}", "saved")


@router.post(f"{ONE}/change", include_in_schema=False)
def change_plan(page: PlatformPage, plan_id: str, fields: Annotated[Form, form(plans.update_plan, "name", *NAMES)]) -> Response:
    """Give a plan another name, and other limits on all models together."""
    return _change(page, plan_id, {"name": fields["name"], "limits": read_limits(fields)})


@router.post(f"{ONE}/budget", include_in_schema=False)
def set_monthly_budget(
    page: PlatformPage, plan_id: str, fields: Annotated[Form, form(plans.update_plan, "currency", "amount")]
) -> Response:
    """Say what organizations that have a plan may spend in a month, in a currency; as much as they like where that is empty."""
    return _change(page, plan_id, {"monthly_budgets": {fields["currency"]: fields["amount"] or None}})


@router.post(f"{ONE}/delete", include_in_schema=False)
def delete_plan_by_name(page: PlatformPage, plan_id: str, fields: Annotated[Form, form(plans.delete_plan, "confirmation")]) -> Response:
    """Delete a plan, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(plans.retrieve_plan, plan_id=plan_id).name)
        page.call(plans.delete_plan, plan_id=plan_id)
    except Fault as fault:
        return _show(page, plan_id, fault)
    return page.lead("/plans", "deleted")
