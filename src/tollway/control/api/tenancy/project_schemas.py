"""Bodies of an organization's projects."""

from typing import Annotated, Literal

from pydantic import Field

from tollway.control.api.schemas import Identified, In, Name, Region, find_seconds, seconds
from tollway.domain.tenants import REGIONS_MAX, Project

Residency = Annotated[list[Region], Field(min_length=1, max_length=REGIONS_MAX)]


class ProjectCreate(In):
    name: Name
    residency: Residency | None = None


class ProjectUpdate(In):
    """Fields to change; a field that is left out stays. A null `residency` allows any region."""

    name: Name | None = None
    residency: Residency | None = None


class ProjectOut(Identified):
    object: Literal["organization.project"] = "organization.project"
    name: str
    status: str
    created_at: int
    archived_at: int | None
    residency: list[str] | None


class ProjectChanged(ProjectOut):
    """`pending_nodes`: gateways that were alive and have not confirmed within a second."""

    pending_nodes: list[str]


def project_out(project: Project) -> ProjectOut:
    return ProjectOut(
        id=project.id,
        name=project.name,
        status=project.status,
        created_at=seconds(project.created_at),
        archived_at=find_seconds(project.archived_at),
        residency=None if project.residency is None else list(project.residency),
    )
