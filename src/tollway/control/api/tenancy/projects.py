"""Projects of an organization, in the shape of OpenAI's `/v1/organization/projects`."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    ListOut,
    PageQuery,
    list_out,
)
from tollway.control.api.tenancy.project_schemas import ProjectChanged, ProjectCreate, ProjectOut, ProjectUpdate, project_out
from tollway.control.identity.access import Tenant
from tollway.control.tenancy import tenants
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.roles import Permission

router = routes.router(tags=["projects"])

Reader = Annotated[Tenant, Depends(may(Permission.PROJECTS_READ))]
Creator = Annotated[Tenant, Depends(may(Permission.PROJECTS_CREATE))]
Writer = Annotated[Tenant, Depends(may(Permission.PROJECTS_WRITE))]


@router.get("/v1/organization/projects")
def list_projects(
    caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()], include_archived: bool = False
) -> ListOut[ProjectOut]:
    """The organization's projects."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = tenants.list_projects(tx, query.window(), include_archived=include_archived)
    return list_out(page, project_out)


@router.post("/v1/organization/projects")
def create_project(caller: Creator, plane: Plane, body: ProjectCreate) -> ProjectOut:
    """Create a project."""
    residency = None if body.residency is None else tuple(sorted(set(body.residency)))
    with plane.database.tenant(caller.organization_id) as tx:
        project = tenants.create_project(
            tx, id=plane.new_id(ids.PROJECT), name=body.name, residency=residency, sizes=plane.quotas, now=plane.now()
        )
    return project_out(project)


@router.get("/v1/organization/projects/{project_id}")
def retrieve_project(caller: Reader, plane: Plane, project_id: str) -> ProjectOut:
    """One project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return project_out(tenants.get_project(tx, project_id))


@router.post("/v1/organization/projects/{project_id}")
def update_project(caller: Writer, plane: Plane, project_id: str, body: ProjectUpdate) -> ProjectChanged:
    """Change the name of a project, or the regions that may serve it."""
    changed: dict[str, object] = {name: getattr(body, name) for name in body.model_fields_set}
    if "name" in changed and body.name is None:
        raise Fault(PARAMETER_INVALID, param="name", message="Invalid value for name: it cannot be null.")
    if body.residency is not None:
        changed["residency"] = tuple(sorted(set(body.residency)))
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        project, version = tenants.update_project(tx, project_id, changed, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return ProjectChanged(**project_out(project).model_dump(), pending_nodes=pending)


@router.post("/v1/organization/projects/{project_id}/archive")
def archive_project(caller: Writer, plane: Plane, project_id: str) -> ProjectChanged:
    """Archive a project permanently, and revoke its keys."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        project, version = tenants.archive_project(tx, project_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return ProjectChanged(**project_out(project).model_dump(), pending_nodes=pending)
