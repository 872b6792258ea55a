"""Settings of the organization: lifetimes and rotation of its keys, leaked secrets, stored responses and content."""

from collections.abc import Mapping
from typing import Annotated

from starlette.responses import Response

from tollway.control.api.schemas import OrganizationPolicy
from tollway.control.api.tenancy import data_retention, organizations
from tollway.control.api.tenancy.data_retention import OrganizationRetentionWrite
from tollway.control.console.forms import Form, form, make_body, read_duration, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.keys import GRACE_SECONDS
from tollway.control.console.tenant.project_settings import RETENTION_TYPES, name_retention
from tollway.control.languages.texts import mark
from tollway.domain.faults import Fault
from tollway.domain.leaked_keys import LeakPolicy

router = new_router()

PATH = "/console/organizations/{organization_id}/settings"

LEAK_POLICIES: Mapping[str, str] = {
    LeakPolicy.REVOKE: mark("it ends at once, and the owners are told"),
    LeakPolicy.NOTIFY: mark("the owners are told"),
    LeakPolicy.RECORD: mark("it is recorded"),
}


@router.get(PATH, include_in_schema=False)
def show_settings(page: TenantPage) -> Response:
    """The settings of the organization."""
    return _show(page)


def _show(page: Page, fault: Fault | None = None) -> Response:
    retention = page.call(data_retention.retrieve_organization_retention)
    return page.show(
        "tenant/settings.html",
        fault=fault,
        organization=page.call(organizations.retrieve_own_organization),
        retention_type=name_retention(retention.type),
        retention_types=RETENTION_TYPES,
        leak_policies=LEAK_POLICIES,
        graces=GRACE_SECONDS,
        may_write=page.allows(organizations.update_own_organization),
        may_archive=page.allows(organizations.archive_organization),
    )


@router.post(f"{PATH}/keys", include_in_schema=False)
def set_key_rules(
    page: TenantPage,
    fields: Annotated[
        Form,
        form(
            organizations.update_own_organization,
            "lifetime",
            "lifetime_unit",
            "rotation",
            "rotation_unit",
            "grace_seconds",
            "leaked_key_policy",
        ),
    ],
) -> Response:
    """Bound the lifetime of keys, rotate them by a schedule, and say what is done with secrets that leaked."""
    try:
        interval = read_duration(fields, "rotation")
        schedule = {"interval_seconds": interval, "grace_seconds": fields["grace_seconds"]} if interval is not None else None
        values = {
            "key_lifetime_seconds_max": read_duration(fields, "lifetime"),
            "rotation_schedule": schedule,
            "leaked_key_policy": fields["leaked_key_policy"],
        }
        body = make_body(OrganizationPolicy, values, clearing=("key_lifetime_seconds_max", "rotation_schedule"))
        page.call(organizations.update_own_organization, body=body)
    except Fault as fault:
        return _show(page, fault)
    return page.lead("/settings", "saved")


@router.post(f"{PATH}/responses", include_in_schema=False)
def set_stored_responses(
    page: TenantPage, fields: Annotated[Form, form(organizations.update_own_organization, "responses", "responses_unit", "confirmation")]
) -> Response:
    """Say for how long responses are stored; the name of the organization was typed."""
    try:
        require_typed(fields["confirmation"], page.call(organizations.retrieve_own_organization).name)
        values = {"response_retention_seconds": read_duration(fields, "responses")}
        body = make_body(OrganizationPolicy, values, clearing=["response_retention_seconds"])
        page.call(organizations.update_own_organization, body=body)
    except Fault as fault:
        return _show(page, fault)
    return page.lead("/settings", "saved")


@router.post(f"{PATH}/retention", include_in_schema=False)
def set_retention(
    page: TenantPage, fields: Annotated[Form, form(data_retention.update_organization_retention, "retention_type", "confirmation")]
) -> Response:
    """Say what may be kept of the requests of the organization, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(organizations.retrieve_own_organization).name)
        body = make_body(OrganizationRetentionWrite, {"retention_type": fields["retention_type"]})
        page.call(data_retention.update_organization_retention, body=body)
    except Fault as fault:
        return _show(page, fault)
    return page.lead("/settings", "saved")


@router.post(f"{PATH}/archive", include_in_schema=False)
def archive_by_name(page: TenantPage, fields: Annotated[Form, form(organizations.archive_organization, "confirmation")]) -> Response:
    """Archive the organization, whose name was typed, as an operator."""
    try:
        require_typed(fields["confirmation"], page.call(organizations.retrieve_own_organization).name)
        archived = page.call(organizations.archive_organization, organization_id=page.organization_id)
    except Fault as fault:
        return _show(page, fault)
    return page.lead("/settings", "pending" if archived.pending_nodes else "archived")
