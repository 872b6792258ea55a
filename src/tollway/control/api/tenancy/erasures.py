"""Erasures of people and organizations, for operators: one asks, a second person approves."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, PageQuery, Reason, find_seconds, list_out, seconds
from tollway.control.tenancy import erasures
from tollway.domain import ids
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.erasures import Erasure, ErasureState
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["data retention"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_ERASURES_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_ERASURES_WRITE))]

_ERASURE = "erase_0198c5f2a3b47c11a0b1c2d3e4f50617"
_ORGANIZATION = "org_0198c5f2a3b47c11a0b1c2d3e4f50617"
_USER = "user_0198c5f2a3b47c11a0b1c2d3e4f50617"
_KEY = "key_0198c5f2a3b47c11a0b1c2d3e4f50617"

UserId = Annotated[str, StringConstraints(pattern=r"^user_[0-9a-f]{32}$")]
OrganizationId = Annotated[str, StringConstraints(pattern=r"^org_[0-9a-f]{32}$")]


class ErasureCreate(In):
    """An erasure to ask for. It cannot be undone."""

    organization_id: Annotated[OrganizationId, Field(description="The organization.", examples=[_ORGANIZATION])]
    user_id: Annotated[
        UserId | None,
        Field(description="A person who was removed; null for the whole organization, which is archived.", examples=[_USER]),
    ] = None
    confirm: Annotated[
        str,
        StringConstraints(max_length=256),
        Field(description="The name of the organization, or the id of the person: what is to be erased.", examples=[_USER]),
    ]
    reason: Annotated[Reason, Field(description="Why, for the second person.", examples=["request of the person, ticket 12"])]


class ErasureOut(Identified):
    """An erasure. `actor` and `approver` are ids of operators or their keys."""

    object: Annotated[Literal["platform.erasure"], Field(description="Always `platform.erasure`.")] = "platform.erasure"
    id: Annotated[str, Field(description="Id of the erasure.", examples=[_ERASURE])]
    organization_id: Annotated[str, Field(description="The organization.", examples=[_ORGANIZATION])]
    user_id: Annotated[str | None, Field(description="The person; null for the whole organization.", examples=[_USER])]
    state: Annotated[ErasureState, Field(description="What became of it.", examples=[ErasureState.PENDING])]
    reason: Annotated[str, Field(description="Why.", examples=["request of the person, ticket 12"])]
    actor: Annotated[str, Field(description="Who asked.", examples=[_KEY])]
    requested_at: Annotated[int, Field(description="When somebody asked, in Unix seconds.", examples=[1790000000])]
    approver: Annotated[str | None, Field(description="Who decided; null until somebody did.", examples=[_KEY])]
    decided_at: Annotated[int | None, Field(description="When that was, in Unix seconds.", examples=[1790000000])]
    records_erased: Annotated[int, Field(ge=0, description="Records of the audit trail in which values were erased.", examples=[12])]
    finished_at: Annotated[int | None, Field(description="When all was erased, in Unix seconds; null until then.", examples=[1790000060])]


@router.post("/v1/platform/erasures")
def create_erasure(caller: Writer, plane: Plane, body: ErasureCreate) -> ErasureOut:
    """Ask that the personal data of a removed person, or everything about an archived organization, is erased. A key of another origin has
    to approve it; it is carried out then, and cannot be undone."""
    made = erasures.ask(
        plane.database,
        id=plane.new_id(ids.ERASURE),
        organization_id=body.organization_id,
        user_id=body.user_id,
        confirm=body.confirm,
        reason=body.reason,
        actor=caller,
        now=plane.now(),
    )
    return _erasure_out(made)


@router.get("/v1/platform/erasures")
def list_erasures(_caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[ErasureOut]:
    """Erasures in the order in which they were asked for."""
    with plane.database.platform(write=False) as tx:
        page = erasures.list_erasures(tx, query.window())
    return list_out(page, _erasure_out)


@router.get("/v1/platform/erasures/{erasure_id}")
def retrieve_erasure(_caller: Reader, plane: Plane, erasure_id: str) -> ErasureOut:
    """One erasure."""
    with plane.database.platform(write=False) as tx:
        return _erasure_out(erasures.get_erasure(tx, erasure_id))


@router.post("/v1/platform/erasures/{erasure_id}/approve")
def approve_erasure(caller: Writer, plane: Plane, erasure_id: str) -> ErasureOut:
    """Approve an erasure that a key of another origin asked for. It is carried out within minutes, and cannot be undone."""
    return _decide(caller, plane, erasure_id, ApprovalDecision.APPROVED)


@router.post("/v1/platform/erasures/{erasure_id}/reject")
def reject_erasure(caller: Writer, plane: Plane, erasure_id: str) -> ErasureOut:
    """Reject an erasure that waits. The operator who asked for it may reject it too."""
    return _decide(caller, plane, erasure_id, ApprovalDecision.REJECTED)


def _decide(caller: Operator, plane: Plane, erasure_id: str, decision: ApprovalDecision) -> ErasureOut:
    with plane.database.platform() as tx:
        decided = erasures.decide(tx, erasure_id, decision, approver=caller, now=plane.now())
    plane.log({"event": "erasure_decided", "erasure_id": decided.id, "state": str(decided.state), "key_id": caller.key_id})
    return _erasure_out(decided)


def _erasure_out(erasure: Erasure) -> ErasureOut:
    return ErasureOut(
        id=erasure.id,
        organization_id=erasure.organization_id,
        user_id=erasure.user_id,
        state=erasure.state,
        reason=erasure.reason,
        actor=erasure.actor.key_id,
        requested_at=seconds(erasure.requested_at),
        approver=None if erasure.approver is None else erasure.approver.key_id,
        decided_at=find_seconds(erasure.decided_at),
        records_erased=erasure.records_erased,
        finished_at=find_seconds(erasure.finished_at),
    )
