"""Identity providers with which the people of an organization sign in."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.authentication import sign_in_connections as connections
from tollway.control.api.authentication.sign_in_connections import ConnectionCreate, ConnectionUpdate
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed, split_list
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.members import list_organization_roles
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/sign-in"
ONE = PATH + "/{connection_id}"


@router.get(PATH, include_in_schema=False)
def show_connections(page: TenantPage, query: Annotated[PageQuery, Query()]) -> Response:
    """The identity providers."""
    return _show_list(page, query)


def _show_list(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/connections.html",
        fault=fault,
        connections=page.call(connections.list_connections, request=page.request, query=query),
        roles=list_organization_roles(page),
        may_write=page.allows(connections.create_connection),
    )


@router.post(PATH, include_in_schema=False)
def add_connection(
    page: TenantPage,
    fields: Annotated[Form, form(connections.create_connection, "name", "issuer", "client_id", "client_secret", "domains", "role")],
) -> Response:
    """Let people sign in with an identity provider."""
    try:
        body = make_body(ConnectionCreate, {**fields, "domains": split_list(fields["domains"])})
        made = page.call(connections.create_connection, request=page.request, body=body)
    except Fault as fault:
        return _show_list(page, PageQuery(), fault)
    return page.lead(f"/sign-in/{made.id}", "created")


@router.get(ONE, include_in_schema=False)
def show_connection(page: TenantPage, connection_id: str) -> Response:
    """One identity provider."""
    return _show(page, connection_id)


def _show(page: Page, connection_id: str, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/connection.html",
        fault=fault,
        connection=page.call(connections.retrieve_connection, request=page.request, connection_id=connection_id),
        may_write=page.allows(connections.update_connection),
    )


@router.post(ONE + "/change", include_in_schema=False)
def change_connection(
    page: TenantPage,
    connection_id: str,
    fields: Annotated[Form, form(connections.update_connection, "name", "client_id", "client_secret", "enabled")],
) -> Response:
    """Change an identity provider; a client secret that is left empty stays."""
    try:
        body = make_body(ConnectionUpdate, {**fields, "enabled": fields["enabled"] == "yes"})
        page.call(connections.update_connection, request=page.request, connection_id=connection_id, body=body)
    except Fault as fault:
        return _show(page, connection_id, fault)
    return page.lead(f"/sign-in/{connection_id}", "saved")


@router.post(ONE + "/delete", include_in_schema=False)
def delete_connection_by_name(
    page: TenantPage, connection_id: str, fields: Annotated[Form, form(connections.delete_connection, "confirmation")]
) -> Response:
    """Delete an identity provider, whose name was typed."""
    try:
        name = page.call(connections.retrieve_connection, request=page.request, connection_id=connection_id).name
        require_typed(fields["confirmation"], name)
        page.call(connections.delete_connection, connection_id=connection_id)
    except Fault as fault:
        return _show(page, connection_id, fault)
    return page.lead("/sign-in", "deleted")
