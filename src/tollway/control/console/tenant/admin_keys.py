"""Admin keys of an organization: made, rotated, revoked; and the address at which a directory with such a key manages people (SCIM)."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.authentication.scim import find_base
from tollway.control.api.identity import api_keys
from tollway.control.api.schemas import AdminKeyCreate, KeyRotate, PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.keys import GRACE_SECONDS
from tollway.control.console.tenant.members import list_organization_roles
from tollway.control.console.tenant.projects import LIFETIMES_DAYS, read_lifetime
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/admin-keys"
ONE = PATH + "/{admin_key_id}"


@router.get(PATH, include_in_schema=False)
def show_admin_keys(page: TenantPage, query: Annotated[PageQuery, Query()]) -> Response:
    """The keys by which programs manage the organization."""
    return _show_list(page, query)


def _show_list(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/admin_keys.html",
        fault=fault,
        keys=page.call(api_keys.list_admin_keys, query=query),
        roles=list_organization_roles(page),
        lifetimes_days=LIFETIMES_DAYS,
        scim_url=find_base(page.plane, page.request),
        may_write=page.allows(api_keys.create_admin_key),
    )


@router.post(PATH, include_in_schema=False)
def add_admin_key(page: TenantPage, fields: Annotated[Form, form(api_keys.create_admin_key, "name", "role", "lifetime_days")]) -> Response:
    """Create an admin key, and show its secret this once."""
    try:
        lifetime = read_lifetime(fields["lifetime_days"])
        values = {"name": fields["name"], "role": fields["role"], "expires_in_seconds": lifetime}
        made = page.call(api_keys.create_admin_key, body=make_body(AdminKeyCreate, values))
    except Fault as fault:
        return _show_list(page, PageQuery(), fault)
    return _show(page, made.id, secret=made.value)


@router.get(ONE, include_in_schema=False)
def show_admin_key(page: TenantPage, admin_key_id: str) -> Response:
    """One admin key, without its secret."""
    return _show(page, admin_key_id)


def _show(page: Page, admin_key_id: str, *, secret: str | None = None, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/admin_key.html",
        fault=fault,
        secret=secret,
        key=page.call(api_keys.retrieve_admin_key, key_id=admin_key_id),
        graces=GRACE_SECONDS,
        may_write=page.allows(api_keys.rotate_admin_key),
    )


@router.post(f"{ONE}/rotate", include_in_schema=False)
def rotate_by_form(
    page: TenantPage, admin_key_id: str, fields: Annotated[Form, form(api_keys.rotate_admin_key, "grace_seconds")]
) -> Response:
    """Give an admin key another secret, and show it this once."""
    try:
        rotated = page.call(api_keys.rotate_admin_key, key_id=admin_key_id, body=make_body(KeyRotate, fields))
    except Fault as fault:
        return _show(page, admin_key_id, fault=fault)
    return _show(page, admin_key_id, secret=rotated.value)


@router.post(f"{ONE}/retire", include_in_schema=False)
def retire_by_name(
    page: TenantPage, admin_key_id: str, fields: Annotated[Form, form(api_keys.retire_admin_key_secret, "confirmation")]
) -> Response:
    """Revoke the secret before the latest rotation, before its grace ends; the name of the key was typed."""
    try:
        require_typed(fields["confirmation"], page.call(api_keys.retrieve_admin_key, key_id=admin_key_id).name)
        page.call(api_keys.retire_admin_key_secret, key_id=admin_key_id)
    except Fault as fault:
        return _show(page, admin_key_id, fault=fault)
    return page.lead(f"/admin-keys/{admin_key_id}", "secret_retired")


@router.post(f"{ONE}/revoke", include_in_schema=False)
def revoke_by_name(
    page: TenantPage, admin_key_id: str, fields: Annotated[Form, form(api_keys.delete_admin_key, "confirmation")]
) -> Response:
    """Revoke an admin key, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(api_keys.retrieve_admin_key, key_id=admin_key_id).name)
        page.call(api_keys.delete_admin_key, key_id=admin_key_id)
    except Fault as fault:
        return _show(page, admin_key_id, fault=fault)
    return page.lead("/admin-keys", "key_revoked")
