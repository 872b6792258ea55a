"""The audit trail in the shape of OpenAI's `/v1/organization/audit_logs`; that of the platform has the same shape, for operators."""

from typing import Annotated, Any, Literal, Self

import msgspec
from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, ListOut, Out, list_out, seconds
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditFilter
from tollway.control.identity.access import Tenant
from tollway.domain.audit import Actor, ActorKind, AuditRecord
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.pages import Page
from tollway.domain.roles import Permission

router = routes.router(tags=["audit"])

Reader = Annotated[Tenant, Depends(may(Permission.AUDIT_READ))]
PlatformReader = Annotated[Operator, Depends(may(Permission.PLATFORM_AUDIT_READ))]

Word = Annotated[str, StringConstraints(max_length=256, pattern=r"^[\x21-\x7e]+$")]
Words = Annotated[list[Word], Field(max_length=100)]
Cursor = Annotated[str, StringConstraints(max_length=128, pattern=r"^[\x21-\x7e]+$")]
Instant = Annotated[int, Field(ge=0, le=2**40)]


class AuditQuery(BaseModel):
    """Conditions on the records of a list, which must meet all. The instants are Unix seconds. `after_sequence`: only records with a
    greater number, the oldest first, for whoever copies the trail: without `after` and `before`."""

    after: Cursor | None = None
    before: Cursor | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    effective_gt: Annotated[Instant | None, Field(alias="effective_at[gt]")] = None
    effective_gte: Annotated[Instant | None, Field(alias="effective_at[gte]")] = None
    effective_lt: Annotated[Instant | None, Field(alias="effective_at[lt]")] = None
    effective_lte: Annotated[Instant | None, Field(alias="effective_at[lte]")] = None
    event_types: Words = []
    actor_ids: Words = []
    actor_emails: Words = []
    project_ids: Words = []
    resource_ids: Words = []
    tenant_only: bool = False
    after_sequence: Annotated[int, Field(ge=0, le=2**62)] | None = None

    def filter(self) -> AuditFilter:
        """The same, for storage. No actor has an email address, so that a condition on one admits no record. Raises PARAMETER_INVALID."""
        if self.after_sequence is not None and (self.after is not None or self.before is not None):
            raise Fault(PARAMETER_INVALID, param="after_sequence", message="after_sequence cannot be combined with after or before.")
        earliest = [each for each in (self.effective_gte, _next(self.effective_gt)) if each is not None]
        latest = [each for each in (self.effective_lt, _next(self.effective_lte)) if each is not None]
        return AuditFilter(
            since=max(earliest) * 1_000_000 if earliest else None,
            until=min(latest) * 1_000_000 if latest else None,
            events=tuple(self.event_types),
            actor_ids=("",) if self.actor_emails else tuple(self.actor_ids),
            project_ids=tuple(self.project_ids),
            target_ids=tuple(self.resource_ids),
            after_sequence=self.after_sequence,
        )


def _next(second: int | None) -> int | None:
    return None if second is None else second + 1


class ActorKeyOut(Out):
    """The credential of an actor."""

    id: str
    type: Literal["user"] = "user"


class ActorUserOut(Out):
    """The person of a session."""

    id: str


class ActorSessionOut(Out):
    """The session of an actor."""

    ip_address: Annotated[str, Field(description="Network address of the person.", examples=["192.0.2.1"])]
    user: ActorUserOut


class ActorOut(Out):
    """The actor of an event: a credential (`api_key`), or a person who signed in (`session`). The other field is null."""

    type: Literal["api_key", "session"]
    api_key: ActorKeyOut | None = None
    session: Annotated[ActorSessionOut | None, Field(description="The session of a person; null for a credential.", examples=[None])] = None

    @classmethod
    def of(cls, actor: Actor) -> Self:
        """Return an actor as OpenAI's clients read it."""
        if actor.kind == ActorKind.USER:
            return cls(type="session", session=ActorSessionOut(ip_address=actor.address, user=ActorUserOut(id=actor.id)))
        return cls(type="api_key", api_key=ActorKeyOut(id=actor.id))


class AuditProjectOut(Out):
    """The project of an event."""

    id: str


class ResourceChangeOut(Out):
    """The fields of one resource that changed. `before` is empty for a resource that was created."""

    kind: str
    id: str
    before: dict[str, Any]
    after: dict[str, Any]


class AuditRecordOut(Out):
    """Record as it is chained: what OpenAI's audit log has no field for."""

    sequence: int
    operation: str
    actor_kind: str
    address: str
    request_id: str
    target_kind: str
    target_id: str
    changes: list[ResourceChangeOut]
    omitted: int
    hash: str


class AuditLogOut(Identified):
    """One event. The id of its resource, and the fields that it was given, stand below a name that equals the type."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    effective_at: int
    actor: ActorOut
    project: AuditProjectOut | None
    record: AuditRecordOut

    @classmethod
    def of(cls, record: AuditRecord) -> Self:
        """Return a record as OpenAI's clients read it."""
        changes = [ResourceChangeOut(**{"before": {}, "after": {}, **each}) for each in msgspec.json.decode(record.changes)]
        own = next((change.after for change in changes if change.id == record.target.id), {})
        return cls(
            id=record.id,
            type=record.event,
            effective_at=seconds(record.recorded_at),
            actor=ActorOut.of(record.actor),
            project=AuditProjectOut(id=record.target.project_id) if record.target.project_id else None,
            record=AuditRecordOut(
                sequence=record.sequence,
                operation=record.operation,
                actor_kind=record.actor.kind,
                address=record.actor.address,
                request_id=record.actor.request_id,
                target_kind=record.target.kind,
                target_id=record.target.id,
                changes=changes,
                omitted=record.omitted,
                hash=record.hash.hex(),
            ),
            **{record.event: {"id": record.target.id, "changes_requested": own}},
        )


@router.get("/v1/organization/audit_logs")
def list_audit_logs(caller: Reader, plane: Plane, query: Annotated[AuditQuery, Query()]) -> ListOut[AuditLogOut]:
    """The organization's audit trail, the latest first. Reading it is recorded in it."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = audit.list_records(tx, query.filter(), after=query.after, before=query.before, limit=query.limit)
    return _list_out(page)


@router.get("/v1/platform/audit_logs")
def list_platform_audit_logs(_caller: PlatformReader, plane: Plane, query: Annotated[AuditQuery, Query()]) -> ListOut[AuditLogOut]:
    """The platform's own audit trail, the latest first: what concerns no single organization. Reading it is recorded in it."""
    with plane.database.platform(write=False) as tx:
        page = audit.list_platform_records(tx, query.filter(), after=query.after, before=query.before, limit=query.limit)
    return _list_out(page)


def _list_out(page: Page[AuditRecord]) -> ListOut[AuditLogOut]:
    return list_out(page, AuditLogOut.of)
