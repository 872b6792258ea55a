"""Data retention in the shape of OpenAI's `data_retention`, and the content that projects log."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api import routes
from tollway.control.api.routes import Node, Plane, may, plane_of
from tollway.control.api.schemas import Identified, In, ListOut, Out, PageQuery, list_out, seconds
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.control.tenancy import content_logs
from tollway.control.tenancy.content_logs import Vaults
from tollway.domain.catalog import Endpoint
from tollway.domain.content_logs import ContentRecord
from tollway.domain.data_retention import CONTENT_RETENTION_SECONDS_MAX, ProjectRetention, RetentionType
from tollway.domain.faults import INTERNAL, Fault
from tollway.domain.roles import Permission

router = routes.router(tags=["data retention"])
link_router = routes.router(tags=["link"])

Reader = Annotated[Tenant, Depends(may(Permission.ORGANIZATION_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.ORGANIZATION_WRITE))]
ProjectReader = Annotated[Tenant, Depends(may(Permission.PROJECTS_READ))]
ProjectWriter = Annotated[Tenant, Depends(may(Permission.PROJECTS_WRITE))]
ContentReader = Annotated[Tenant, Depends(may(Permission.CONTENT_READ))]

_REQUEST = "req_0198c5f2a3b47c11a0b1c2d3e4f50617"

OrganizationTypeName = Literal[
    "zero_data_retention", "modified_abuse_monitoring", "enhanced_zero_data_retention", "enhanced_modified_abuse_monitoring"
]
ProjectTypeName = Literal[
    "organization_default",
    "none",
    "zero_data_retention",
    "modified_abuse_monitoring",
    "enhanced_zero_data_retention",
    "enhanced_modified_abuse_monitoring",
]
_TYPE = Field(description="What may be kept of the content of requests (docs/data-protection.md).", examples=["modified_abuse_monitoring"])
ContentSeconds = Annotated[
    int | None,
    Field(
        ge=1,
        le=CONTENT_RETENTION_SECONDS_MAX,
        description="Seconds for which the content of requests is logged; null logs none. Needs the type `none`.",
        examples=[604_800],
    ),
]


class OrganizationRetentionWrite(In):
    """Data retention of an organization."""

    retention_type: Annotated[OrganizationTypeName, _TYPE]


class OrganizationRetentionOut(Out):
    """Data retention of an organization."""

    object: Literal["organization.data_retention"] = "organization.data_retention"
    type: Annotated[OrganizationTypeName, _TYPE]


class ProjectRetentionWrite(In):
    """Data retention of a project."""

    retention_type: Annotated[ProjectTypeName, _TYPE]
    content_retention_seconds: ContentSeconds = None


class ProjectRetentionOut(Out):
    """Data retention of a project."""

    object: Literal["project.data_retention"] = "project.data_retention"
    type: Annotated[ProjectTypeName, _TYPE]
    content_retention_seconds: ContentSeconds


class ContentRecordOut(Identified):
    """A request whose content is logged, without it."""

    object: Annotated[Literal["project.content"], Field(description="Always `project.content`.")] = "project.content"
    id: Annotated[str, Field(description="Id of the request.", examples=[_REQUEST])]
    api_key_id: str
    endpoint: Annotated[str, Field(description="Endpoint of the request.", examples=["chat/completions"])]
    model: str
    created_at: Annotated[int, Field(description="When the request was received, in Unix seconds (UTC).", examples=[1790000000])]


class ContentOut(ContentRecordOut):
    """The content of a request."""

    request: Annotated[str, Field(description="The body as the client sent it, at most its first 256 KiB.", examples=['{"model": "m"}'])]
    request_truncated: Annotated[bool, Field(description="Whether the body was longer.", examples=[False])]
    answer: Annotated[
        str | None,
        Field(
            description="The body of the answer, or the events of a stream; null if it broke off, was refused or is longer than 256 KiB.",
            examples=['{"id": "chatcmpl-1"}'],
        ),
    ]


@router.get("/v1/organization/data_retention")
def retrieve_organization_retention(caller: Reader, plane: Plane) -> OrganizationRetentionOut:
    """Show what may be kept of the content of the organization's requests."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return OrganizationRetentionOut.model_validate({"type": content_logs.get_organization_retention(tx).value})


@router.post("/v1/organization/data_retention")
def update_organization_retention(caller: Writer, plane: Plane, body: OrganizationRetentionWrite) -> OrganizationRetentionOut:
    """Say what may be kept of the content of the organization's requests. With `zero_data_retention` logged content and stored responses
    are deleted, and none are stored any more."""
    with plane.database.tenant(caller.organization_id) as tx:
        changed = content_logs.set_organization_retention(tx, RetentionType(body.retention_type), plane.now())
    return OrganizationRetentionOut.model_validate({"type": changed.value})


@router.get("/v1/organization/projects/{project_id}/data_retention")
def retrieve_project_retention(caller: ProjectReader, plane: Plane, project_id: str) -> ProjectRetentionOut:
    """Show what may be kept of the content of a project's requests."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _retention_out(content_logs.get_project_retention(tx, project_id))


@router.post("/v1/organization/projects/{project_id}/data_retention")
def update_project_retention(caller: ProjectWriter, plane: Plane, project_id: str, body: ProjectRetentionWrite) -> ProjectRetentionOut:
    """Say what may be kept of the content of a project's requests. Only with the type `none` and `content_retention_seconds` is it logged;
    with any other it is deleted."""
    wanted = ProjectRetention(type=RetentionType(body.retention_type), content_retention_seconds=body.content_retention_seconds)
    with plane.database.tenant(caller.organization_id) as tx:
        return _retention_out(content_logs.set_project_retention(tx, project_id, wanted, plane.now()))


@router.get("/v1/organization/projects/{project_id}/content")
def list_content(caller: ContentReader, plane: Plane, project_id: str, query: Annotated[PageQuery, Query()]) -> ListOut[ContentRecordOut]:
    """Requests of a project whose content is logged, without it. Reading the list is recorded in the audit trail."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = content_logs.list_records(tx, project_id, query.window(), plane.now())
    return list_out(page, lambda record: ContentRecordOut(**_fields(record)))


@router.get("/v1/organization/projects/{project_id}/content/{request_id}")
def retrieve_content(caller: ContentReader, plane: Plane, project_id: str, request_id: str) -> ContentOut:
    """Show what a request of a project said and was answered. Reading it is recorded in the audit trail."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        sealed = content_logs.find_sealed(tx, project_id, request_id, plane.now())
    vaults = Vaults(plane.data_keys.open(caller.organization_id), plane.vault.for_organization(caller.organization_id))
    try:
        content = content_logs.unseal(sealed, vaults)
    except ValueError as error:
        raise Fault(INTERNAL, message="The content cannot be opened.", detail=str(error)) from None
    return ContentOut(
        **_fields(sealed.record),
        request=content.request.decode("utf-8", "replace"),
        request_truncated=content.is_request_cut,
        answer=None if content.answer is None else content.answer.decode("utf-8", "replace"),
    )


def _retention_out(retention: ProjectRetention) -> ProjectRetentionOut:
    return ProjectRetentionOut(type=retention.type.value, content_retention_seconds=retention.content_retention_seconds)


def _fields(record: ContentRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "api_key_id": record.key_id,
        "endpoint": record.endpoint.value,
        "model": record.model,
        "created_at": seconds(record.created_at),
    }


# ---- The link -----------------------------------------------------------------------------------------------------------

Id = StringConstraints(max_length=64, pattern=r"^[a-z]{2,8}_[0-9a-f]{32}$")


class ContentQuery(In):
    """Facts that a gateway states about content that it hands over."""

    id: Annotated[str, Id]
    organization_id: Annotated[str, Id]
    project_id: Annotated[str, Id]
    key_id: Annotated[str, Id]
    endpoint: Annotated[Endpoint, Field(strict=False)]
    model: Annotated[str, StringConstraints(max_length=128)]
    created_at: Annotated[int, Field(ge=0, le=2**63 - 1, strict=False)]


@link_router.put("/v1/link/content", status_code=204)
async def store_content(_caller: Node, request: Request, query: Annotated[ContentQuery, Query()]) -> Response:
    """Store the content of a request, whose body is sealed. 409 where the project logs none."""
    sealed = await request.body()
    record = ContentRecord(**query.model_dump())
    await run_in_threadpool(_store, plane_of(request), record, sealed)
    return Response(status_code=204)


def _store(plane: ControlPlane, record: ContentRecord, sealed: bytes) -> None:
    outer = plane.data_keys.open(record.organization_id)
    with plane.database.tenant(record.organization_id) as tx:
        content_logs.store(tx, record, sealed, outer, plane.now())
