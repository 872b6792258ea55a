"""Resources of OpenAI's admin API that are not supported: programs that list them find nothing, and any other use is refused by name."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Out, PageQuery
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.control.tenancy import tenants
from tollway.domain.faults import UNSUPPORTED, Fault
from tollway.domain.roles import Permission

router = routes.router(tags=["unsupported"])

Reader = Annotated[Tenant, Depends(may(Permission.ORGANIZATION_READ))]
ProjectReader = Annotated[Tenant, Depends(may(Permission.PROJECTS_READ))]

OF_ORGANIZATION = ("external_keys", "external_storage")
OF_PROJECT = ("hosted_tool_permissions",)
LISTS = frozenset({"external_keys", "external_storage"})
"""Those that are lists; the others are one object each."""


class NothingOut(Out):
    """A list with nothing in it, in the shape of each of OpenAI's lists."""

    object: Literal["list"] = "list"
    data: Annotated[list[str], Field(max_length=0, description="Always empty.", examples=[[]])]
    first_id: None
    last_id: None
    has_more: Literal[False]
    next: Annotated[None, Field(description="Always null.", examples=[None])]


class ListQuery(PageQuery):
    """A page of a list that is empty."""

    purpose: Annotated[str | None, Field(max_length=64)] = None
    project_id: Annotated[str | None, Field(max_length=64)] = None
    service_account_id: Annotated[str | None, Field(max_length=64)] = None


def list_nothing(_caller: Reader, _query: Annotated[ListQuery, Query()]) -> NothingOut:
    """Always an empty list: this resource is not supported."""
    return NothingOut(data=[], first_id=None, last_id=None, has_more=False, next=None)


def refuse(_caller: Reader) -> None:
    """Always refused with the code `unsupported`."""
    raise Fault(UNSUPPORTED)


def refuse_of_project(caller: ProjectReader, plane: Plane, project_id: str) -> None:
    """Always refused with the code `unsupported`."""
    _require_project(caller, plane, project_id)
    raise Fault(UNSUPPORTED)


def _require_project(caller: Tenant, plane: ControlPlane, project_id: str) -> None:
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        tenants.get_project(tx, project_id)


def _add_routes() -> None:
    """Add the routes of each resource: its list, where it is one, and everything else below it."""
    for prefix, names, refusal in (
        ("/v1/organization", OF_ORGANIZATION, refuse),
        ("/v1/organization/projects/{project_id}", OF_PROJECT, refuse_of_project),
    ):
        for name in names:
            path = f"{prefix}/{name}"
            router.add_api_route(path, list_nothing if name in LISTS else refusal, methods=["GET"], include_in_schema=False)
            router.add_api_route(path, refusal, methods=["POST", "DELETE"], include_in_schema=False)
            router.add_api_route(f"{path}/{{rest:path}}", refusal, methods=["GET", "POST", "DELETE"], include_in_schema=False)


_add_routes()
