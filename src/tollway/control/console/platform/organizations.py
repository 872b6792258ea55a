"""Organizations, as operators see them."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.schemas import OrganizationCreate, PageQuery
from tollway.control.api.tenancy import organizations
from tollway.control.console.forms import Form, form, make_body
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/platform"


@router.get(PATH, include_in_schema=False)
def show_organizations(page: PlatformPage, query: Annotated[PageQuery, Query()], include_archived: bool = False) -> Response:
    """All organizations; on a platform that has none, whoever may set it up is led to the first steps."""
    if page.allows(organizations.create_organization) and not query.after and not include_archived:
        found = page.call(organizations.list_organizations, query=PageQuery(limit=1), include_archived=True)
        if not found.data:
            return page.lead("/start")
    return _show_list(page, query, include_archived)


@router.post(f"{PATH}/organizations", include_in_schema=False)
def add_organization(
    page: PlatformPage, fields: Annotated[Form, form(organizations.create_organization, "name", "currency", "time_zone")]
) -> Response:
    """Create an organization, and show the secret of its first admin key this once."""
    try:
        made = page.call(organizations.create_organization, body=make_body(OrganizationCreate, fields))
    except Fault as fault:
        return _show_list(page, PageQuery(), False, fault=fault)
    return _show_list(page, PageQuery(), False, secret=made.admin_api_key.value, made=made.name)


def _show_list(
    page: Page,
    query: PageQuery,
    include_archived: bool,
    *,
    fault: Fault | None = None,
    secret: str | None = None,
    made: str = "",
) -> Response:
    return page.show(
        "platform/organizations.html",
        fault=fault,
        secret=secret,
        made=made,
        organizations=page.call(organizations.list_organizations, query=query, include_archived=include_archived),
        include_archived=include_archived,
        may_create=page.allows(organizations.create_organization),
    )
