"""Settings of a project: the regions, models and service tiers of its requests, and what of them is kept."""

from collections.abc import Mapping
from typing import Annotated

from starlette.responses import Response

from tollway.control.api.tenancy import data_retention, project_policies, projects
from tollway.control.api.tenancy.data_retention import ProjectRetentionWrite
from tollway.control.api.tenancy.project_policies import ModelPermissionsWrite, ServiceTiersWrite
from tollway.control.api.tenancy.project_schemas import ProjectUpdate
from tollway.control.console.forms import Form, form, make_body, read_duration, require_typed, split_list
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark
from tollway.domain.data_retention import RetentionType
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/projects/{project_id}/settings"

MODES: Mapping[str, str] = {
    "all": mark("every published model"),
    "allow_list": mark("these alone"),
    "deny_list": mark("all but these"),
}
DEFAULT_TIERS: Mapping[str, str] = {"standard": "standard", "fast": "fast"}
"""Names of service tiers, the same in each language."""
TIERS: Mapping[str, str] = {
    "all": mark("all, those that are added later too"),
    "flex,fast": mark("standard, flex and fast"),
    "flex": mark("standard and flex"),
    "fast": mark("standard and fast"),
    "none": mark("standard alone"),
}
RETENTION_TYPES: Mapping[str, str] = {
    RetentionType.MODIFIED: mark("content is not logged; responses are stored where a request asks for it"),
    RetentionType.ZERO: mark("nothing is kept of any request"),
}
"""Names of what may be kept, by the types of the REST API that an organization can have; a project has two more."""

PROJECT_RETENTION_TYPES: Mapping[str, str] = {
    RetentionType.ORGANIZATION_DEFAULT: mark("as the organization has it"),
    RetentionType.NONE: mark("content can be logged"),
    **RETENTION_TYPES,
}

_SAME: Mapping[str, str] = {
    RetentionType.ENHANCED_ZERO: RetentionType.ZERO,
    RetentionType.ENHANCED_MODIFIED: RetentionType.MODIFIED,
}


def name_retention(type: str) -> str:
    """Return the type that a form offers for a type of retention: those of OpenAI that are called enhanced mean the same."""
    return _SAME.get(type, type)


@router.get(PATH, include_in_schema=False)
def show_settings(page: TenantPage, project_id: str) -> Response:
    """The settings of a project."""
    return _show(page, project_id)


def _show(page: Page, project_id: str, fault: Fault | None = None) -> Response:
    tiers = page.call(project_policies.retrieve_service_tiers, project_id=project_id)
    retention = page.call(data_retention.retrieve_project_retention, project_id=project_id)
    enabled = tiers.enabled_tiers
    return page.show(
        "tenant/project_settings.html",
        fault=fault,
        project=page.call(projects.retrieve_project, project_id=project_id),
        models=page.call(project_policies.retrieve_model_permissions, project_id=project_id),
        modes=MODES,
        tiers=TIERS,
        default_tiers=DEFAULT_TIERS,
        default_tier=tiers.default,
        enabled_tiers=enabled if enabled == "all" else ",".join(sorted(enabled, reverse=True)) or "none",
        retention=retention,
        retention_type=name_retention(retention.type),
        retention_types=PROJECT_RETENTION_TYPES,
        may_write=page.allows(projects.update_project, project_id),
    )


@router.post(f"{PATH}/regions", include_in_schema=False)
def set_regions(page: TenantPage, project_id: str, fields: Annotated[Form, form(projects.update_project, "regions")]) -> Response:
    """Say in which regions requests of a project are served; in any where that is empty."""
    try:
        body = make_body(ProjectUpdate, {"residency": split_list(fields["regions"]) or None}, clearing=["residency"])
        changed = page.call(projects.update_project, project_id=project_id, body=body)
    except Fault as fault:
        return _show(page, project_id, fault)
    return page.lead(f"/projects/{project_id}/settings", "pending" if changed.pending_nodes else "saved")


@router.post(f"{PATH}/models", include_in_schema=False)
def set_models(
    page: TenantPage, project_id: str, fields: Annotated[Form, form(project_policies.update_model_permissions, "mode", "models")]
) -> Response:
    """Say which models the keys of a project may use."""
    try:
        if fields["mode"] == "all":
            page.call(project_policies.delete_model_permissions, project_id=project_id)
        else:
            body = make_body(ModelPermissionsWrite, {"mode": fields["mode"], "model_ids": split_list(fields["models"])})
            page.call(project_policies.update_model_permissions, project_id=project_id, body=body)
    except Fault as fault:
        return _show(page, project_id, fault)
    return page.lead(f"/projects/{project_id}/settings", "saved")


@router.post(f"{PATH}/tiers", include_in_schema=False)
def set_tiers(
    page: TenantPage, project_id: str, fields: Annotated[Form, form(project_policies.update_service_tiers, "enabled_tiers", "default")]
) -> Response:
    """Say which service tiers requests of a project may ask for, and which one those have that ask for none."""
    try:
        chosen = fields["enabled_tiers"]
        enabled = chosen if chosen == "all" else [] if chosen == "none" else split_list(chosen)
        body = make_body(ServiceTiersWrite, {"enabled_tiers": enabled, "default": fields["default"]})
        page.call(project_policies.update_service_tiers, project_id=project_id, body=body)
    except Fault as fault:
        return _show(page, project_id, fault)
    return page.lead(f"/projects/{project_id}/settings", "saved")


@router.post(f"{PATH}/retention", include_in_schema=False)
def set_retention(
    page: TenantPage,
    project_id: str,
    fields: Annotated[Form, form(data_retention.update_project_retention, "retention_type", "content", "content_unit", "confirmation")],
) -> Response:
    """Say what may be kept of the requests of a project, whose name was typed: what may be kept no more is deleted."""
    try:
        require_typed(fields["confirmation"], page.call(projects.retrieve_project, project_id=project_id).name)
        values = {"retention_type": fields["retention_type"], "content_retention_seconds": read_duration(fields, "content")}
        page.call(data_retention.update_project_retention, project_id=project_id, body=make_body(ProjectRetentionWrite, values))
    except Fault as fault:
        return _show(page, project_id, fault)
    return page.lead(f"/projects/{project_id}/settings", "saved")
