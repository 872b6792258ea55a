"""Projects of an organization, in the shape of OpenAI's `/v1/organization/projects`."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control import publish, tenants
from tollway.control.access import Tenant
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    ListOut,
    PageQuery,
    ProjectArchived,
    ProjectOut,
    ProjectWrite,
    list_out,
    project_out,
)
from tollway.domain import ids
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
def create_project(caller: Creator, plane: Plane, body: ProjectWrite) -> ProjectOut:
    """Create a project."""
    with plane.database.tenant(caller.organization_id) as tx:
        project = tenants.create_project(tx, id=plane.new_id(ids.PROJECT), name=body.name, sizes=plane.quotas, now=plane.now())
    return project_out(project)


@router.get("/v1/organization/projects/{project_id}")
def retrieve_project(caller: Reader, plane: Plane, project_id: str) -> ProjectOut:
    """One project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return project_out(tenants.get_project(tx, project_id))


@router.post("/v1/organization/projects/{project_id}")
def update_project(caller: Writer, plane: Plane, project_id: str, body: ProjectWrite) -> ProjectOut:
    """Rename a project."""
    with plane.database.tenant(caller.organization_id) as tx:
        project = tenants.rename_project(tx, project_id, body.name)
    return project_out(project)


@router.post("/v1/organization/projects/{project_id}/archive")
def archive_project(caller: Writer, plane: Plane, project_id: str) -> ProjectArchived:
    """Archive a project permanently, and revoke its keys."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        project, version = tenants.archive_project(tx, project_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return ProjectArchived(**project_out(project).model_dump(), pending_nodes=pending)
