"""Declarations that records of a gateway are lost, for operators: one asks, a second person approves."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, NodeIdText, PageQuery, Reason, find_seconds, list_out, seconds
from tollway.control.gateways import losses
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.epochs import LostRequest, LostRequestState
from tollway.domain.keys import Operator
from tollway.domain.pages import Page
from tollway.domain.roles import Permission

router = routes.router(tags=["nodes"])

Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_WRITE))]
Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_READ))]


class LostRequestCreate(In):
    """A declaration to ask for. `epoch`: null for every epoch of the node that is not complete."""

    epoch: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    reason: Reason


class LostRequestOut(Identified):
    """A request to declare the missing records of an epoch lost. `actor` and `approver` are ids of operators' keys."""

    object: Literal["platform.lost_request"] = "platform.lost_request"
    node_id: str
    epoch: int
    state: Literal["pending", "declared", "rejected"]
    reason: str
    actor: str
    requested_at: int
    approver: str | None
    decided_at: int | None


@router.post("/v1/platform/nodes/{node_id}/lost")
def create_lost_requests(caller: Writer, plane: Plane, node_id: NodeIdText, body: LostRequestCreate) -> ListOut[LostRequestOut]:
    """Ask that the missing records of a gateway are declared lost, because its disk is gone: a request for each epoch, which a key of
    another origin has to approve. Until then the epoch blocks the close of its periods."""
    with plane.database.platform() as tx:
        asked = losses.ask(tx, node_id=node_id, epoch=body.epoch, reason=body.reason, actor=caller, new_id=plane.new_id, now=plane.now())
    for request in asked:
        _log(plane, request, caller.key_id)
    return list_out(Page(asked, has_more=False), _lost_request_out)


@router.get("/v1/platform/lost_requests")
def list_lost_requests(
    _caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()], state: LostRequestState | None = None
) -> ListOut[LostRequestOut]:
    """Requests in the order in which they were made."""
    with plane.database.platform(write=False) as tx:
        page = losses.list_requests(tx, query.window(), state)
    return list_out(page, _lost_request_out)


@router.post("/v1/platform/lost_requests/{lost_request_id}/approve")
def approve_lost_request(caller: Writer, plane: Plane, lost_request_id: str) -> LostRequestOut:
    """Approve a request that a key of another origin made. This declares the epoch lost: the declaration is permanent and named in the
    report of each billing period that it covers. Records that arrive after all are ingested."""
    return _decide(caller, plane, lost_request_id, ApprovalDecision.APPROVED)


@router.post("/v1/platform/lost_requests/{lost_request_id}/reject")
def reject_lost_request(caller: Writer, plane: Plane, lost_request_id: str) -> LostRequestOut:
    """Reject a request that waits. The operator who made it may reject it too."""
    return _decide(caller, plane, lost_request_id, ApprovalDecision.REJECTED)


def _decide(caller: Operator, plane: Plane, lost_request_id: str, decision: ApprovalDecision) -> LostRequestOut:
    with plane.database.platform() as tx:
        decided = losses.decide(tx, lost_request_id, decision, approver=caller, now=plane.now())
    _log(plane, decided, caller.key_id)
    return _lost_request_out(decided)


def _log(plane: Plane, request: LostRequest, key_id: str) -> None:
    plane.log(
        {
            "event": "lost_request",
            "lost_request_id": request.id,
            "node_id": request.node_id,
            "epoch": request.epoch,
            "state": str(request.state),
            "reason": request.reason,
            "key_id": key_id,
        }
    )


def _lost_request_out(request: LostRequest) -> LostRequestOut:
    return LostRequestOut(
        id=request.id,
        node_id=request.node_id,
        epoch=request.epoch,
        state=request.state.value,
        reason=request.reason,
        actor=request.actor.key_id,
        requested_at=seconds(request.requested_at),
        approver=request.approver,
        decided_at=find_seconds(request.decided_at),
    )
