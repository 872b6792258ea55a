"""Projects of an organization, and one project with its keys."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.identity import api_keys, service_accounts
from tollway.control.api.schemas import PageQuery
from tollway.control.api.tenancy import data_retention, projects
from tollway.control.api.tenancy.project_schemas import ProjectCreate, ProjectUpdate
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.tenancy import tenants
from tollway.domain.faults import PARAMETER_INVALID, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/projects"
ONE = PATH + "/{project_id}"

LIFETIMES_DAYS = (1, 7, 30, 90, 365)
"""Lifetimes of a key that the form offers, beside none."""


def read_lifetime(days: str) -> int | None:
    """Return the lifetime of a key that a form chose in seconds; None for the latest that is allowed. Raises PARAMETER_INVALID."""
    if not days:
        return None
    if days not in map(str, LIFETIMES_DAYS):
        offered = ", ".join(map(str, LIFETIMES_DAYS))
        raise Fault(PARAMETER_INVALID, param="lifetime_days", message=f"A key ends after {offered} days, or at the latest that is allowed.")
    return int(days) * 86_400


Listing = Annotated[PageQuery, Query()]


@router.get(PATH, include_in_schema=False)
def show_projects(page: TenantPage, query: Listing, include_archived: bool = False) -> Response:
    """The projects of the organization."""
    return _show_list(page, query, include_archived)


@router.post(PATH, include_in_schema=False)
def add_project(page: TenantPage, fields: Annotated[Form, form(projects.create_project, "name")]) -> Response:
    """Create a project."""
    try:
        made = page.call(projects.create_project, body=make_body(ProjectCreate, fields))
    except Fault as fault:
        return _show_list(page, PageQuery(), False, fault)
    return page.lead(f"/projects/{made.id}", "created")


def _show_list(page: Page, query: PageQuery, include_archived: bool, fault: Fault | None = None) -> Response:
    found = page.call(projects.list_projects, query=query, include_archived=include_archived)
    may_create = page.allows(projects.create_project)
    return page.show("tenant/projects.html", fault=fault, projects=found, include_archived=include_archived, may_create=may_create)


def offer_projects(page: Page, chosen: str = "") -> dict[str, str]:
    """Return the names of the projects that a form offers, by id: of the first hundred, and of the one that is chosen. None to whoever may
    not list projects."""
    if not page.allows(projects.list_projects):
        return {}
    first = page.call(projects.list_projects, query=PageQuery(limit=100), include_archived=True).data
    return {**{each.id: each.name for each in first}, **name_projects(page, [chosen] if chosen else [])}


def name_projects(page: Page, ids: Iterable[str | None]) -> dict[str, str]:
    """Return the names of projects by id; none to whoever may not list projects."""
    named = sorted({each for each in ids if each})
    if not named or not page.allows(projects.list_projects):
        return {}
    with page.plane.database.tenant(page.organization_id, write=False) as tx:
        return tenants.name_projects(tx, named)


@router.get(ONE, include_in_schema=False)
def show_project(page: TenantPage, project_id: str, query: Listing) -> Response:
    """One project, and its keys."""
    return show_one_project(page, project_id, query)


def show_one_project(page: Page, project_id: str, query: PageQuery | None = None, fault: Fault | None = None) -> Response:
    """Return the page of a project, with the fault of the form before, if there is one."""
    may_see_keys = page.allows(api_keys.list_project_keys, project_id)
    return page.show(
        "tenant/project.html",
        fault=fault,
        project=page.call(projects.retrieve_project, project_id=project_id),
        keys=page.call(api_keys.list_project_keys, project_id=project_id, query=query or PageQuery()) if may_see_keys else None,
        may_create_key=page.allows(api_keys.create_project_key, project_id),
        may_write=page.allows(projects.update_project, project_id),
        may_see_accounts=page.allows(service_accounts.list_service_accounts, project_id),
        may_read_content=page.allows(data_retention.list_content, project_id),
        lifetimes_days=LIFETIMES_DAYS,
    )


@router.post(f"{ONE}/name", include_in_schema=False)
def rename_project(page: TenantPage, project_id: str, fields: Annotated[Form, form(projects.update_project, "name")]) -> Response:
    """Change the name of a project."""
    try:
        page.call(projects.update_project, project_id=project_id, body=make_body(ProjectUpdate, fields))
    except Fault as fault:
        return show_one_project(page, project_id, fault=fault)
    return page.lead(f"/projects/{project_id}", "saved")


@router.post(f"{ONE}/archive", include_in_schema=False)
def archive_project_by_name(
    page: TenantPage, project_id: str, fields: Annotated[Form, form(projects.archive_project, "confirmation")]
) -> Response:
    """Archive a project, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(projects.retrieve_project, project_id=project_id).name)
        changed = page.call(projects.archive_project, project_id=project_id)
    except Fault as fault:
        return show_one_project(page, project_id, fault=fault)
    return page.lead(f"/projects/{project_id}", "pending" if changed.pending_nodes else "archived")
