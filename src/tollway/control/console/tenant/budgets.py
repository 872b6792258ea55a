"""Budgets of an organization, its projects and keys; one budget with its raises and alerts."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.money import budgets
from tollway.control.api.money.budget_schemas import BudgetCreate, BudgetUpdate, RaiseCreate
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed, split_list
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects, offer_projects
from tollway.control.languages.texts import mark
from tollway.domain.budgets import BudgetMode, BudgetWindow
from tollway.domain.faults import PARAMETER_INVALID, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/budgets"
ONE = PATH + "/{budget_id}"

RAISE_DAYS = (1, 7, 30)
"""Lengths of a raise that the form offers."""

LEVELS = {"organization": mark("organization"), "project": mark("project"), "api_key": mark("key")}
MODES: dict[str, str] = {
    BudgetMode.HARD: mark("hard: never overspent"),
    BudgetMode.SOFT: mark("soft: overspent at most by requests under way"),
    BudgetMode.ALERT: mark("alert: binds no request"),
}
WINDOWS: dict[str, str] = {
    BudgetWindow.DAY: mark("day"),
    BudgetWindow.WEEK: mark("week"),
    BudgetWindow.MONTH: mark("month"),
    BudgetWindow.TOTAL: mark("total: never anew"),
}


@router.get(PATH, include_in_schema=False)
def show_budgets(page: TenantPage, query: Annotated[PageQuery, Query()], include_archived: bool = False) -> Response:
    """The budgets of the organization."""
    return _show_list(page, query, include_archived)


@router.post(PATH, include_in_schema=False)
def add_budget(
    page: TenantPage, fields: Annotated[Form, form(budgets.create_budget, "name", "amount", "window", "mode", "project_id", "thresholds")]
) -> Response:
    """Create a budget of the organization or of one project."""
    try:
        body = make_body(BudgetCreate, {**fields, "thresholds": read_percentages(fields["thresholds"])})
        made = page.call(budgets.create_budget, body=body)
    except Fault as fault:
        return _show_list(page, PageQuery(), False, fault)
    return page.lead(f"/budgets/{made.id}", "pending" if made.pending_nodes else "created")


def read_percentages(text: str) -> list[int]:
    """Return the percentages of a field, which are separated by commas or lines. Raises PARAMETER_INVALID."""
    try:
        return [int(each.removesuffix("%")) for each in split_list(text)]
    except ValueError:
        raise Fault(PARAMETER_INVALID, param="thresholds", message="Thresholds are whole percentages, such as 50, 80, 100.") from None


def _show_list(page: Page, query: PageQuery, include_archived: bool, fault: Fault | None = None) -> Response:
    found = page.call(budgets.list_budgets, query=query, include_archived=include_archived)
    return page.show(
        "tenant/budgets.html",
        fault=fault,
        budgets=found,
        include_archived=include_archived,
        may_create=page.allows(budgets.create_budget),
        projects=offer_projects(page) | name_projects(page, [each.subject_id for each in found.data]),
        levels=LEVELS,
        modes=MODES,
        windows=WINDOWS,
    )


@router.get(ONE, include_in_schema=False)
def show_budget(page: TenantPage, budget_id: str) -> Response:
    """One budget, its raises and its alerts."""
    return _show(page, budget_id)


def _show(page: Page, budget_id: str, fault: Fault | None = None) -> Response:
    budget = page.call(budgets.retrieve_budget, budget_id=budget_id)
    may_change = page.operator is not None or budget.managed_by == "organization"
    return page.show(
        "tenant/budget.html",
        fault=fault,
        budget=budget,
        raises=page.call(budgets.list_raises, budget_id=budget_id).data,
        alerts=page.call(budgets.list_alerts, budget_id=budget_id).data,
        may_write=page.allows(budgets.update_budget) and may_change and budget.archived_at is None,
        projects=name_projects(page, [budget.subject_id]),
        days=RAISE_DAYS,
        levels=LEVELS,
        modes=MODES,
        windows=WINDOWS,
    )


@router.post(f"{ONE}/change", include_in_schema=False)
def change_budget(
    page: TenantPage, budget_id: str, fields: Annotated[Form, form(budgets.update_budget, "name", "amount", "mode", "thresholds")]
) -> Response:
    """Change a budget."""
    try:
        body = make_body(BudgetUpdate, {**fields, "thresholds": read_percentages(fields["thresholds"])})
        changed = page.call(budgets.update_budget, budget_id=budget_id, body=body)
    except Fault as fault:
        return _show(page, budget_id, fault)
    return page.lead(f"/budgets/{budget_id}", "pending" if changed.pending_nodes else "saved")


@router.post(f"{ONE}/raise", include_in_schema=False)
def raise_for_some_days(
    page: TenantPage, budget_id: str, fields: Annotated[Form, form(budgets.create_raise, "amount", "days")]
) -> Response:
    """Raise a budget from now on for some days."""
    days = int(fields["days"]) if fields["days"] in map(str, RAISE_DAYS) else 0
    try:
        body = make_body(RaiseCreate, {"amount": fields["amount"], "ends_at": page.plane.now() // 1_000_000 + days * 86_400})
        page.call(budgets.create_raise, budget_id=budget_id, body=body)
    except Fault as fault:
        return _show(page, budget_id, fault)
    return page.lead(f"/budgets/{budget_id}", "saved")


@router.post(f"{ONE}/archive", include_in_schema=False)
def archive_budget_by_name(
    page: TenantPage, budget_id: str, fields: Annotated[Form, form(budgets.archive_budget, "confirmation")]
) -> Response:
    """Archive a budget, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(budgets.retrieve_budget, budget_id=budget_id).name)
        archived = page.call(budgets.archive_budget, budget_id=budget_id)
    except Fault as fault:
        return _show(page, budget_id, fault)
    return page.lead("/budgets", "pending" if archived.pending_nodes else "archived")
