"""The fleet: gateways and what they report, and the deployments that they send requests to, which can be drained and taken back."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.catalog import deployments
from tollway.control.api.catalog.deployment_schemas import DeploymentCreate, DeploymentUpdate
from tollway.control.api.gateways import fleet, nodes
from tollway.control.api.gateways.node_schemas import NodeCreate
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.control.gateways.fleet import ServingState
from tollway.control.languages.texts import mark
from tollway.domain.catalog import Engine
from tollway.domain.faults import Fault
from tollway.domain.gateway_statuses import STATUS_COUNTED_US

router = new_router()

PATH = "/console/platform/fleet"
DEPLOYMENTS = "/console/platform/deployments"

GATEWAYS_MAX, DEPLOYMENTS_MAX = 20, 20
"""Rows of each table of a page, which has 60 KB at most."""

EJECTIONS_MAX = 3
"""Gateways that are named for each deployment that they avoid; the others are counted."""

STATES = {
    ServingState.SERVING: mark("serving"),
    ServingState.IMPAIRED: mark("impaired"),
    ServingState.EJECTED: mark("avoided"),
    ServingState.DRAINING: mark("draining"),
    ServingState.DRAINED: mark("drained"),
    ServingState.UNREPORTED: mark("not reported"),
}
"""Names of the states of deployments."""


@router.get(PATH, include_in_schema=False)
def show_fleet(page: PlatformPage, after: str | None = None, gateways_from: Annotated[int, Query(ge=0, le=1_000)] = 0) -> Response:
    """Gateways from a place in their list on, and deployments after one of them, as the latest reports have them."""
    return _show(page, after=after, gateways_from=gateways_from)


def _show(
    page: Page, *, after: str | None = None, gateways_from: int = 0, fault: Fault | None = None, secret: str | None = None
) -> Response:
    query = PageQuery(limit=DEPLOYMENTS_MAX, after=after)
    found = page.call(nodes.list_nodes).data
    until = gateways_from + GATEWAYS_MAX
    return page.show(
        "platform/fleet.html",
        fault=fault,
        secret=secret,
        nodes=found[gateways_from:until],
        next_gateways=until if until < len(found) else None,
        names={each.id: each.name for each in found},
        deployments=page.call(fleet.list_fleet, query=query) if page.allows(fleet.list_fleet) else None,
        states=STATES,
        ejections_max=EJECTIONS_MAX,
        now=page.plane.now() // 1_000_000,
        counted_seconds=STATUS_COUNTED_US // 1_000_000,
        engines=list(Engine),
        may_write_nodes=page.allows(nodes.create_node),
        may_write_deployments=page.allows(deployments.create_deployment),
    )


@router.post(f"{PATH}/nodes", include_in_schema=False)
def add_node(page: PlatformPage, fields: Annotated[Form, form(nodes.create_node, "name")]) -> Response:
    """Register a gateway, and show its key this once."""
    try:
        made = page.call(nodes.create_node, body=make_body(NodeCreate, fields))
    except Fault as fault:
        return _show(page, fault=fault)
    return _show(page, secret=made.key.value)


@router.post(f"{PATH}/nodes/{{node_id}}/revoke", include_in_schema=False)
def revoke_gateway(page: PlatformPage, node_id: str, fields: Annotated[Form, form(nodes.revoke_node, "confirmation")]) -> Response:
    """Revoke a gateway, whose id was typed."""
    try:
        require_typed(fields["confirmation"], node_id)
        page.call(nodes.revoke_node, node_id=node_id)
    except Fault as fault:
        return _show(page, fault=fault)
    return page.lead("/fleet", "node_revoked")


@router.post(DEPLOYMENTS, include_in_schema=False)
def add_deployment(
    page: PlatformPage,
    fields: Annotated[Form, form(deployments.create_deployment, "model", "base_url", "engine", "upstream_model", "region", "credential")],
) -> Response:
    """Connect an engine to a model."""
    try:
        page.call(deployments.create_deployment, body=make_body(DeploymentCreate, fields))
    except Fault as fault:
        return _show(page, fault=fault)
    return page.lead("/fleet", "created")


@router.post(f"{DEPLOYMENTS}/{{deployment_id}}/weight", include_in_schema=False)
def set_weight(page: PlatformPage, deployment_id: str, fields: Annotated[Form, form(deployments.update_deployment, "weight")]) -> Response:
    """Give a deployment its share of the requests of its model; 0 drains it."""
    try:
        page.call(deployments.update_deployment, deployment_id=deployment_id, body=make_body(DeploymentUpdate, fields))
    except Fault as fault:
        return _show(page, fault=fault)
    return page.lead("/fleet", "saved")


@router.post(f"{DEPLOYMENTS}/{{deployment_id}}/archive", include_in_schema=False)
def archive_deployment_by_id(
    page: PlatformPage, deployment_id: str, fields: Annotated[Form, form(deployments.archive_deployment, "confirmation")]
) -> Response:
    """Archive a deployment, whose id was typed."""
    try:
        require_typed(fields["confirmation"], deployment_id)
        page.call(deployments.archive_deployment, deployment_id=deployment_id)
    except Fault as fault:
        return _show(page, fault=fault)
    return page.lead("/fleet", "archived")
