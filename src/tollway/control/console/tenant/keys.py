"""One key of a project: made, rotated, its secret before retired, revoked."""

from typing import Annotated

from starlette.responses import Response

from tollway.control.api.identity import api_keys
from tollway.control.api.schemas import KeyCreate, KeyRotate, KeyUpdate
from tollway.control.api.tenancy import projects
from tollway.control.console.forms import Form, form, make_body, require_typed, split_list
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import read_lifetime, show_one_project
from tollway.domain.faults import Fault
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT

router = new_router()

PATH = "/console/organizations/{organization_id}/projects/{project_id}/keys"
ONE = PATH + "/{key_id}"

GRACE_SECONDS = (0, 3_600, GRACE_SECONDS_DEFAULT, 7 * 86_400)
"""Graces that the form offers: none, an hour, a day, a week."""


@router.post(PATH, include_in_schema=False)
def add_key(
    page: TenantPage, project_id: str, fields: Annotated[Form, form(api_keys.create_project_key, "name", "type", "models", "lifetime_days")]
) -> Response:
    """Create a key, and show its secret this once."""
    try:
        lifetime = read_lifetime(fields["lifetime_days"])
        expires_at = None if lifetime is None else page.plane.now() // 1_000_000 + lifetime
        values = {"name": fields["name"], "type": fields["type"], "models": split_list(fields["models"]) or None, "expires_at": expires_at}
        made = page.call(api_keys.create_project_key, project_id=project_id, body=make_body(KeyCreate, values))
    except Fault as fault:
        return show_one_project(page, project_id, fault=fault)
    return _show(page, project_id, made.id, secret=made.value)


@router.get(ONE, include_in_schema=False)
def show_key(page: TenantPage, project_id: str, key_id: str) -> Response:
    """One key, without its secret."""
    return _show(page, project_id, key_id)


def _show(page: Page, project_id: str, key_id: str, *, secret: str | None = None, fault: Fault | None = None) -> Response:
    may_see_project = page.allows(projects.retrieve_project, project_id)
    return page.show(
        "tenant/key.html",
        fault=fault,
        secret=secret,
        project_id=project_id,
        project=page.call(projects.retrieve_project, project_id=project_id) if may_see_project else None,
        key=page.call(api_keys.retrieve_project_key, project_id=project_id, key_id=key_id),
        may_write=page.allows(api_keys.rotate_project_key, project_id),
        graces=GRACE_SECONDS,
        now=page.plane.now() // 1_000_000,
    )


@router.post(f"{ONE}/name", include_in_schema=False)
def rename_key(
    page: TenantPage, project_id: str, key_id: str, fields: Annotated[Form, form(api_keys.update_project_key, "name")]
) -> Response:
    """Change the name of a key."""
    try:
        page.call(api_keys.update_project_key, project_id=project_id, key_id=key_id, body=make_body(KeyUpdate, fields))
    except Fault as fault:
        return _show(page, project_id, key_id, fault=fault)
    return page.lead(f"/projects/{project_id}/keys/{key_id}", "saved")


@router.post(f"{ONE}/rotate", include_in_schema=False)
def rotate_key(
    page: TenantPage, project_id: str, key_id: str, fields: Annotated[Form, form(api_keys.rotate_project_key, "grace_seconds")]
) -> Response:
    """Give a key another secret, and show it this once."""
    try:
        body = make_body(KeyRotate, fields)
        rotated = page.call(api_keys.rotate_project_key, project_id=project_id, key_id=key_id, body=body)
    except Fault as fault:
        return _show(page, project_id, key_id, fault=fault)
    return _show(page, project_id, key_id, secret=rotated.value)


@router.post(f"{ONE}/retire", include_in_schema=False)
def retire_secret(
    page: TenantPage, project_id: str, key_id: str, fields: Annotated[Form, form(api_keys.retire_project_key_secret, "confirmation")]
) -> Response:
    """Revoke the secret before the latest rotation, before its grace ends."""
    try:
        require_typed(fields["confirmation"], page.call(api_keys.retrieve_project_key, project_id=project_id, key_id=key_id).name)
        retired = page.call(api_keys.retire_project_key_secret, project_id=project_id, key_id=key_id)
    except Fault as fault:
        return _show(page, project_id, key_id, fault=fault)
    return page.lead(f"/projects/{project_id}/keys/{key_id}", "pending" if retired.pending_nodes else "secret_retired")


@router.post(f"{ONE}/collect", include_in_schema=False)
def collect_secret(
    page: TenantPage, project_id: str, key_id: str, _fields: Annotated[Form, form(api_keys.collect_project_key_secret)]
) -> Response:
    """Show the secret that the schedule of a key made, this once."""
    try:
        collected = page.call(api_keys.collect_project_key_secret, project_id=project_id, key_id=key_id)
    except Fault as fault:
        return _show(page, project_id, key_id, fault=fault)
    return _show(page, project_id, key_id, secret=collected.value)


@router.post(f"{ONE}/revoke", include_in_schema=False)
def revoke_key(
    page: TenantPage, project_id: str, key_id: str, fields: Annotated[Form, form(api_keys.delete_project_key, "confirmation")]
) -> Response:
    """Revoke a key, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(api_keys.retrieve_project_key, project_id=project_id, key_id=key_id).name)
        deleted = page.call(api_keys.delete_project_key, project_id=project_id, key_id=key_id)
    except Fault as fault:
        return _show(page, project_id, key_id, fault=fault)
    return page.lead(f"/projects/{project_id}", "pending" if deleted.pending_nodes else "key_revoked")
