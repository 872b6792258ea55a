"""Service accounts of a project: made with a key or without one, given more keys, renamed, deleted."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.identity import api_keys
from tollway.control.api.identity import service_accounts as accounts
from tollway.control.api.schemas import PageQuery, ServiceAccountCreate, ServiceAccountKeyCreate, ServiceAccountUpdate
from tollway.control.api.tenancy import projects
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import LIFETIMES_DAYS, read_lifetime
from tollway.control.tenancy import tenants
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/projects/{project_id}/service-accounts"
ONE = PATH + "/{service_account_id}"

ROLES: Mapping[str, str] = {"member": "member", "owner": "owner"}
"""Roles in a project, which are called the same in each language."""


def _find_project(page: Page, project_id: str) -> str:
    """Return the name of a project, or its id to whoever may not see it."""
    if not page.allows(projects.retrieve_project, project_id):
        return project_id
    return page.call(projects.retrieve_project, project_id=project_id).name


@router.get(PATH, include_in_schema=False)
def show_accounts(page: TenantPage, project_id: str, query: Annotated[PageQuery, Query()]) -> Response:
    """The service accounts of a project."""
    return _show_list(page, project_id, query)


def _show_list(page: Page, project_id: str, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/service_accounts.html",
        fault=fault,
        accounts=page.call(accounts.list_service_accounts, project_id=project_id, query=query),
        project_id=project_id,
        project=_find_project(page, project_id),
        may_write=page.allows(accounts.create_service_account, project_id),
        lifetimes_days=LIFETIMES_DAYS,
    )


@router.post(PATH, include_in_schema=False)
def add_account(
    page: TenantPage, project_id: str, fields: Annotated[Form, form(accounts.create_service_account, "name", "key", "lifetime_days")]
) -> Response:
    """Create a service account, and show the secret of its key this once if one is made with it."""
    try:
        lifetime = read_lifetime(fields["lifetime_days"]) if fields["key"] == "yes" else None
        values = {"name": fields["name"], "create_service_account_only": fields["key"] != "yes", "expires_in_seconds": lifetime}
        made = page.call(accounts.create_service_account, project_id=project_id, body=make_body(ServiceAccountCreate, values))
    except Fault as fault:
        return _show_list(page, project_id, PageQuery(), fault)
    if made.api_key is None:
        return page.lead(f"/projects/{project_id}/service-accounts/{made.id}", "created")
    return _show(page, project_id, made.id, secret=made.api_key.value)


@router.get(ONE, include_in_schema=False)
def show_account(page: TenantPage, project_id: str, service_account_id: str) -> Response:
    """One service account."""
    return _show(page, project_id, service_account_id)


def _show(page: Page, project_id: str, account_id: str, *, secret: str | None = None, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/service_account.html",
        fault=fault,
        secret=secret,
        account=page.call(accounts.retrieve_service_account, project_id=project_id, service_account_id=account_id),
        keys=_list_keys(page, project_id, account_id),
        project_id=project_id,
        project=_find_project(page, project_id),
        may_write=page.allows(accounts.update_service_account, project_id),
        roles=ROLES,
        lifetimes_days=LIFETIMES_DAYS,
    )


def _list_keys(page: Page, project_id: str, account_id: str) -> list[str] | None:
    """Return the ids of the keys of a service account; None to whoever may not see keys of the project."""
    if not page.allows(api_keys.list_project_keys, project_id):
        return None
    with page.plane.database.tenant(page.organization_id, write=False) as tx:
        return tenants.list_service_account_keys(tx, project_id, account_id)


@router.post(f"{ONE}/change", include_in_schema=False)
def change_account(
    page: TenantPage,
    project_id: str,
    service_account_id: str,
    fields: Annotated[Form, form(accounts.update_service_account, "name", "role")],
) -> Response:
    """Give a service account another name or role."""
    try:
        body = make_body(ServiceAccountUpdate, fields)
        page.call(accounts.update_service_account, project_id=project_id, service_account_id=service_account_id, body=body)
    except Fault as fault:
        return _show(page, project_id, service_account_id, fault=fault)
    return page.lead(f"/projects/{project_id}/service-accounts/{service_account_id}", "saved")


@router.post(f"{ONE}/keys", include_in_schema=False)
def add_account_key(
    page: TenantPage,
    project_id: str,
    service_account_id: str,
    fields: Annotated[Form, form(accounts.create_service_account_key, "name", "lifetime_days")],
) -> Response:
    """Make one more key of a service account, and show its secret this once."""
    try:
        values = {"name": fields["name"], "expires_in_seconds": read_lifetime(fields["lifetime_days"])}
        body = make_body(ServiceAccountKeyCreate, values)
        made = page.call(accounts.create_service_account_key, project_id=project_id, service_account_id=service_account_id, body=body)
    except Fault as fault:
        return _show(page, project_id, service_account_id, fault=fault)
    return _show(page, project_id, service_account_id, secret=made.value)


@router.post(f"{ONE}/delete", include_in_schema=False)
def delete_account_by_name(
    page: TenantPage,
    project_id: str,
    service_account_id: str,
    fields: Annotated[Form, form(accounts.delete_service_account, "confirmation")],
) -> Response:
    """Delete a service account, whose name was typed, and revoke its keys."""
    try:
        named = page.call(accounts.retrieve_service_account, project_id=project_id, service_account_id=service_account_id).name
        require_typed(fields["confirmation"], named)
        deleted = page.call(accounts.delete_service_account, project_id=project_id, service_account_id=service_account_id)
    except Fault as fault:
        return _show(page, project_id, service_account_id, fault=fault)
    return page.lead(f"/projects/{project_id}/service-accounts", "pending" if deleted.pending_nodes else "deleted")
