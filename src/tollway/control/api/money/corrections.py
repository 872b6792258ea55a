"""Corrections of what was billed, for operators."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.class_schemas import QuantitiesWrite, quantities_of, quantities_out
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, PageQuery, Reason, Sum, find_seconds, list_out, seconds
from tollway.control.money import corrections
from tollway.control.money.corrections import WantedAdjustment
from tollway.domain import money
from tollway.domain.corrections import Adjustment, AdjustmentKind, AdjustmentState, ApprovalDecision
from tollway.domain.faults import PARAMETER_UNKNOWN, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["corrections"])

Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_WRITE))]
Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_READ))]

OrganizationId = Annotated[str, StringConstraints(max_length=64, pattern=r"^org_[0-9a-f]{32}$")]
RequestId = Annotated[str, StringConstraints(max_length=64, pattern=r"^[!-~]+$")]


class AdjustmentCreate(In):
    """A correction of one request: `void` takes all of its cost back, `replace` bills `quantities` instead at the same price, `credit`
    gives `amount` (a decimal string in the organization's currency) back."""

    request_id: RequestId
    kind: Annotated[AdjustmentKind, Field(strict=False)]
    reason: Reason
    quantities: QuantitiesWrite | None = None
    amount: Sum | None = None

    def wanted(self) -> WantedAdjustment:
        """The same, for the operation. Raises PARAMETER_UNKNOWN for what does not belong to the kind."""
        if self.quantities is not None and self.kind is not AdjustmentKind.REPLACE:
            raise Fault(PARAMETER_UNKNOWN, param="quantities")
        if self.amount is not None and self.kind is not AdjustmentKind.CREDIT:
            raise Fault(PARAMETER_UNKNOWN, param="amount")
        new = self.quantities
        return WantedAdjustment(
            event_id=self.request_id,
            kind=self.kind,
            reason=self.reason,
            replacement=None if new is None else quantities_of(new),
            credit_pico=None if self.amount is None else money.parse_sum(self.amount),
        )


class AdjustmentOut(Identified):
    """A correction. `amount` is what it adds to the request's cost; below zero it gives back. `period_start_time`: the billing period in
    which it is booked, null until it is. `actor` and `approver` are ids of operators' keys."""

    object: Literal["platform.adjustment"] = "platform.adjustment"
    organization_id: str
    request_id: str
    model: str
    kind: str
    state: str
    amount: str
    amount_pico: str
    quantities: QuantitiesWrite | None
    reason: str
    actor: str
    created_at: int
    needs_approval: bool
    approver: str | None
    decided_at: int | None
    period_start_time: int | None


@router.post("/v1/platform/adjustments")
def create_adjustment(caller: Writer, plane: Plane, body: AdjustmentCreate) -> AdjustmentOut:
    """Correct what a request was billed. At once, or, above the limit of the settings, when the key of a second person approves it. The
    limit counts for the corrections of a request, and for everything that keys of the caller's origin ask for on a day (UTC)."""
    with plane.database.platform() as tx:
        made = corrections.ask(
            tx,
            body.wanted(),
            random_bits=plane.random_bits(),
            actor=caller,
            limit_pico=plane.approval_above_pico,
            now=plane.now(),
        )
    _log(plane, made, caller.key_id)
    return _adjustment_out(made)


@router.get("/v1/platform/adjustments")
def list_adjustments(
    _caller: Reader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    organization_id: OrganizationId | None = None,
    state: AdjustmentState | None = None,
) -> ListOut[AdjustmentOut]:
    """Corrections in the order in which they were asked for."""
    with plane.database.platform(write=False) as tx:
        page = corrections.list_adjustments(tx, query.window(), organization_id=organization_id, state=state)
    return list_out(page, _adjustment_out)


@router.get("/v1/platform/adjustments/{adjustment_id}")
def retrieve_adjustment(_caller: Reader, plane: Plane, adjustment_id: str) -> AdjustmentOut:
    """One correction."""
    with plane.database.platform(write=False) as tx:
        return _adjustment_out(corrections.get_adjustment(tx, adjustment_id))


@router.post("/v1/platform/adjustments/{adjustment_id}/approve")
def approve_adjustment(caller: Writer, plane: Plane, adjustment_id: str) -> AdjustmentOut:
    """Approve a correction that a key of another origin asked for. This books it."""
    return _decide(caller, plane, adjustment_id, ApprovalDecision.APPROVED)


@router.post("/v1/platform/adjustments/{adjustment_id}/reject")
def reject_adjustment(caller: Writer, plane: Plane, adjustment_id: str) -> AdjustmentOut:
    """Reject a pending correction permanently. The operator who requested it may reject it too."""
    return _decide(caller, plane, adjustment_id, ApprovalDecision.REJECTED)


def _decide(caller: Operator, plane: Plane, adjustment_id: str, decision: ApprovalDecision) -> AdjustmentOut:
    with plane.database.platform() as tx:
        decided = corrections.decide(tx, adjustment_id, decision, approver=caller, now=plane.now())
    _log(plane, decided, caller.key_id)
    return _adjustment_out(decided)


def _log(plane: Plane, adjustment: Adjustment, key_id: str) -> None:
    plane.log(
        {
            "event": "correction",
            "adjustment_id": adjustment.id,
            "organization_id": adjustment.organization_id,
            "state": str(adjustment.state),
            "key_id": key_id,
        }
    )


def _adjustment_out(adjustment: Adjustment) -> AdjustmentOut:
    new = adjustment.replacement
    return AdjustmentOut(
        id=adjustment.id,
        organization_id=adjustment.organization_id,
        request_id=adjustment.event_id,
        model=adjustment.model,
        kind=adjustment.kind,
        state=adjustment.state,
        amount=money.format_amount(adjustment.amount_pico),
        amount_pico=str(adjustment.amount_pico),
        quantities=None if new is None else quantities_out(new),
        reason=adjustment.reason,
        actor=adjustment.actor,
        created_at=seconds(adjustment.created_at),
        needs_approval=adjustment.needs_approval,
        approver=adjustment.approver,
        decided_at=find_seconds(adjustment.decided_at),
        period_start_time=find_seconds(adjustment.period_at),
    )
