"""The link, for stored responses: gateways hand over what they sealed, and fetch it for the tenants that they have authenticated."""

from typing import Annotated

from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api import routes
from tollway.control.api.routes import Node, Plane, plane_of
from tollway.control.plane import ControlPlane
from tollway.control.tenancy import stored_responses

router = routes.router(tags=["link"])

PATH = "/v1/link/stored_responses"

OrganizationId = Annotated[str, Query(alias="organization_id", pattern=r"^org_[0-9a-f]{32}$")]
ProjectId = Annotated[str, Query(alias="project_id", max_length=64)]
ResponseId = Annotated[str, Query(alias="id", pattern=r"^resp_[0-9a-f]{32}$")]


@router.put(PATH, status_code=204)
async def store_response(_caller: Node, request: Request, organization: OrganizationId, project: ProjectId, id: ResponseId) -> Response:
    """Store a response, whose body is sealed. 409 where the organization stores none."""
    content = await request.body()
    await run_in_threadpool(_store, plane_of(request), organization, project, id, content)
    return Response(status_code=204)


@router.get(PATH)
def read_response(_caller: Node, plane: Plane, organization: OrganizationId, project: ProjectId, id: ResponseId) -> Response:
    """Return a stored response, sealed. 404 where the project has none of this id."""
    with plane.database.tenant(organization, write=False) as tx:
        content = stored_responses.read(tx, project, id, plane.now())
    return Response(content, media_type="application/octet-stream")


@router.delete(PATH, status_code=204)
def remove_response(_caller: Node, plane: Plane, organization: OrganizationId, project: ProjectId, id: ResponseId) -> Response:
    """Delete a stored response. 404 where the project has none of this id."""
    with plane.database.tenant(organization) as tx:
        stored_responses.remove(tx, project, id, plane.now())
    return Response(status_code=204)


def _store(plane: ControlPlane, organization: str, project: str, id: str, content: bytes) -> None:
    with plane.database.tenant(organization) as tx:
        stored_responses.store(tx, project_id=project, id=id, content=content, now=plane.now())
