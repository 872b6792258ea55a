"""Limits and budgets that bind the organization, a project or a key; which of them binds first; and the limits of a level itself."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from tollway.control.api.bounds import limits
from tollway.control.api.money import budgets
from tollway.control.api.schemas import LimitsWrite, OrganizationUpdate, PageQuery
from tollway.control.api.tenancy import organizations, plans
from tollway.control.api.tenancy.plan_schemas import OverrideWrite
from tollway.control.console.forms import Form, form, make_body, write_query
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.budgets import LEVELS
from tollway.control.console.tenant.projects import offer_projects
from tollway.control.languages.texts import mark
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.limits import DIMENSIONS
from tollway.domain.quotas import Quota

router = new_router()

PATH = "/console/organizations/{organization_id}/limits"

DIMENSION_TEXTS = {
    "requests_per_minute": mark("requests per minute"),
    "tokens_per_minute": mark("tokens per minute"),
    "input_tokens_per_minute": mark("input tokens per minute"),
    "output_tokens_per_minute": mark("output tokens per minute"),
    "images_per_minute": mark("images per minute"),
    "audio_seconds_per_minute": mark("seconds of sound per minute"),
    "requests_per_day": mark("requests per day"),
    "tokens_per_day": mark("tokens per day"),
    "input_tokens_per_day": mark("input tokens per day"),
    "output_tokens_per_day": mark("output tokens per day"),
    "images_per_day": mark("images per day"),
    "audio_seconds_per_day": mark("seconds of sound per day"),
    "concurrent_requests": mark("requests at the same time"),
}
"""Names of the dimensions of limits. One that is not here is shown by its name."""

QUOTA_TEXTS = {
    Quota.PROJECTS: mark("active projects"),
    Quota.SERVICE_ACCOUNTS: mark("service accounts in active projects"),
    Quota.API_KEYS: mark("API keys in all projects"),
    Quota.ADMIN_KEYS: mark("admin keys"),
    Quota.BUDGETS: mark("active budgets"),
    Quota.BUDGET_RAISES: mark("raises of active budgets that have not ended"),
    Quota.MODEL_LIMITS: mark("limits of a level on a single model"),
    Quota.ROLES: mark("roles of its own, those of projects included"),
    Quota.USERS: mark("people"),
    Quota.GROUPS: mark("groups"),
    Quota.INVITES: mark("invitations that were not accepted"),
    Quota.CREATIONS_PER_DAY: mark(
        "projects, service accounts, keys, budgets, raises, roles, people, groups and invitations created in 24 hours, ended ones too"
    ),
}
"""Names of what each quota counts."""

NAMES = tuple(each.name for each in DIMENSIONS)

OVERRIDE_DAYS = (1, 7, 30, 90)
"""Days for which a form lets other limits hold."""

PLANS_OFFERED_MAX = 100

ROWS_MAX = 100
"""Limits of a page: a level has thousands on single models."""

ROWS_COUNTED_MAX = 1_000_000
"""Most limits behind which a page can begin."""

OTHER_LEVELS = {"service_account": mark("service account"), "end_user": mark("each end user")}

Id = Annotated[str, StringConstraints(max_length=64)]


class OfLevel(BaseModel):
    """The level whose limits are shown: a key of a project, a project, or, where both are empty, the organization. `first`: how many limits
    are before those of the page."""

    model_config = ConfigDict(extra="forbid")

    project: Id = ""
    key: Id = ""
    first: Annotated[int, Field(ge=0, le=ROWS_COUNTED_MAX)] = 0

    def address(self, first: int = 0) -> str:
        """Return the path of its page below the root, with the limits from `first` on."""
        query = write_query(self.model_dump() | {"first": first})
        return "/limits" + (f"?{query}" if query else "")


@router.get(PATH, include_in_schema=False)
def show_limits(page: TenantPage, level: Annotated[OfLevel, Query()]) -> Response:
    """Everything that binds a level, innermost first."""
    return _show(page, level)


def _show(page: Page, level: OfLevel, fault: Fault | None = None) -> Response:
    shared: dict[str, Any] = {
        "level": level,
        "projects": offer_projects(page, level.project),
        "levels": LEVELS | OTHER_LEVELS,
        "dimensions": DIMENSION_TEXTS,
        "quotas": QUOTA_TEXTS,
        "names": NAMES,
        "sources": None,
        "may_see_budgets": page.allows(budgets.retrieve_budget),
    }
    page.require(limits.list_binding_limits)
    try:
        found = page.call(limits.list_binding_limits, project_id=level.project or None, api_key_id=level.key or None)
        own = _find_own(page, level)
    except Fault as refused:
        return page.show("tenant/limits.html", fault=fault or refused, found=None, **shared)
    until = level.first + ROWS_MAX
    shared |= {"rows": found.data[level.first : until], "next": level.address(until) if until < len(found.data) else None}
    may_write_organization = page.allows(limits.put_organization_limits) and not level.project
    if page.allows(plans.retrieve_limit_sources) and not level.project:
        shared |= {"sources": page.call(plans.retrieve_limit_sources, organization_id=page.organization_id), "days": OVERRIDE_DAYS}
        offered = page.call(plans.list_plans, query=PageQuery(limit=PLANS_OFFERED_MAX)).data
        shared |= {"plans": {each.id: each.name for each in offered}, "may_write_organization": may_write_organization}
    may_write = own is not None and page.allows(limits.put_key_limits if level.key else limits.put_project_limits, level.project)
    return page.show("tenant/limits.html", fault=fault, found=found, own=own, may_write=may_write, **shared)


def _find_own(page: Page, level: OfLevel) -> dict[str, Any] | None:
    """Return what the level itself is set to, by dimension; None for the organization, whose limits are the operator's."""
    if level.key:
        return page.call(limits.retrieve_key_limits, project_id=level.project, key_id=level.key).model_dump()
    return page.call(limits.retrieve_project_limits, project_id=level.project).model_dump() if level.project else None


@router.post(PATH, include_in_schema=False)
def set_limits(page: TenantPage, fields: Annotated[Form, form(limits.put_project_limits, "project", "key", *NAMES)]) -> Response:
    """Replace the limits of a project or a key: what is left empty is not limited there."""
    level = make_body(OfLevel, {"project": fields["project"], "key": fields["key"]})
    try:
        body = make_body(LimitsWrite, {each.name: fields[each.name] for each in DIMENSIONS})
        if level.key:
            page.call(limits.put_key_limits, project_id=level.project, key_id=level.key, body=body)
        else:
            page.call(limits.put_project_limits, project_id=level.project, body=body)
    except Fault as fault:
        return _show(page, level, fault)
    return page.lead(level.address(), "saved")


# ---- Limits of the organization, for operators --------------------------------------------------------------------------


@router.post(f"{PATH}/plan", include_in_schema=False)
def set_plan(page: TenantPage, fields: Annotated[Form, form(organizations.modify_organization, "plan_id")]) -> Response:
    """Give the organization another plan, or none."""
    try:
        body = make_body(OrganizationUpdate, fields, clearing=["plan_id"])
        page.call(organizations.modify_organization, organization_id=page.organization_id, body=body)
    except Fault as fault:
        return _show(page, OfLevel(), fault)
    return page.lead("/limits", "saved")


@router.post(f"{PATH}/organization", include_in_schema=False)
def set_own_limits(page: TenantPage, fields: Annotated[Form, form(limits.put_organization_limits, *NAMES)]) -> Response:
    """Replace the limits of the organization on all models together."""
    try:
        page.call(limits.put_organization_limits, organization_id=page.organization_id, body=make_body(LimitsWrite, fields))
    except Fault as fault:
        return _show(page, OfLevel(), fault)
    return page.lead("/limits", "saved")


@router.post(f"{PATH}/override", include_in_schema=False)
def set_override(page: TenantPage, fields: Annotated[Form, form(plans.put_override, "days", *NAMES)]) -> Response:
    """Let other limits hold for some days."""
    try:
        if fields["days"] not in map(str, OVERRIDE_DAYS):
            offered = ", ".join(map(str, OVERRIDE_DAYS))
            raise Fault(PARAMETER_INVALID, param="days", message=f"Other limits hold for {offered} days.")
        until = page.plane.now() // 1_000_000 + int(fields["days"]) * 86_400
        wanted = {name: fields[name] for name in NAMES if fields[name]}
        page.call(
            plans.put_override, organization_id=page.organization_id, body=make_body(OverrideWrite, {"limits": wanted, "until": until})
        )
    except Fault as fault:
        return _show(page, OfLevel(), fault)
    return page.lead("/limits", "saved")


@router.post(f"{PATH}/override/end", include_in_schema=False)
def end_override_now(page: TenantPage, _fields: Annotated[Form, form(plans.end_override)]) -> Response:
    """End the limits that hold for a time."""
    try:
        page.call(plans.end_override, organization_id=page.organization_id)
    except Fault as fault:
        return _show(page, OfLevel(), fault)
    return page.lead("/limits", "saved")
