"""The fleet as it lives: what gateways report of themselves and of their deployments."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control.api import routes
from tollway.control.api.gateways.fleet_schemas import FleetDeploymentOut, StatusIn, StatusOut, fleet_deployment_out
from tollway.control.api.routes import Node, Plane, may
from tollway.control.api.schemas import ListOut, ModelName, PageQuery, list_out
from tollway.control.gateways import fleet
from tollway.control.identity import access
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["deployments"])
link_router = routes.router(tags=["link"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_CATALOG_READ))]


@router.get("/v1/platform/fleet")
def list_fleet(
    _caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()], model: ModelName | None = None
) -> ListOut[FleetDeploymentOut]:
    """Active deployments, or those of one model, with the load that the live gateways reported within the last seconds: requests that run
    and wait, by which gateways each is avoided and why, and what a drain of it would do."""
    with plane.database.platform(write=False) as tx:
        page = fleet.list_deployments(tx, query.window(), model=model, now=plane.now())
    return list_out(page, fleet_deployment_out)


@link_router.put("/v1/link/statuses/{node_id}")
def report_status(caller: Node, plane: Plane, node_id: str, body: StatusIn) -> StatusOut:
    """Report how the calling gateway and its deployments are. Replaces its report before."""
    access.require_own(caller, node_id)
    status, deployments = body.to_status()
    with plane.database.platform() as tx:
        fleet.store_status(tx, node_id, status, deployments, plane.now())
    return StatusOut(received=len(deployments))
