"""Corrections: what may be done about an event that is already booked. Events stay as they are; a correction is booked beside them.

A **void** takes an event's cost back at the price at which it was billed; a **replace** also bills other quantities at that same
price; a **credit** gives a part of the cost back and leaves the quantities alone. An event has at most one void or replace, and its
credits never exceed what it costs, so the sum of an event and its corrections is never below zero. One correction of an event
may wait for approval at a time: what was asked for is then still right when it is approved.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from tollway.domain.billing_classes import BillingClass, Quantities, stated_quantities
from tollway.domain.keys import KeyOrigin
from tollway.domain.prices import RatedLine


class AdjustmentKind(StrEnum):
    """Effect of a correction on its event."""

    VOID = "void"
    REPLACE = "replace"
    CREDIT = "credit"


class AdjustmentState(StrEnum):
    """State of a correction. Applied and rejected are final."""

    PENDING = "pending"  # above the limit, and no second person has decided yet
    APPLIED = "applied"
    REJECTED = "rejected"


class ApprovalDecision(StrEnum):
    """Decision of the second person."""

    APPROVED = "approved"
    REJECTED = "rejected"


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """A correction of one event. `actor` and `approver` are key ids, `actor_origin` and `approver_origin` the origins of these keys;
    instants in UTC microseconds.

    `amount_pico` is what it adds to the event's cost; below zero it gives back. `replacement`: the quantities that are billed
    instead (replace only), `request` 0 or 1. `needs_approval`: it was above the limit when it was asked for. `period_at`: the start of the
    period in which it is booked; None until it is.
    """

    id: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    event_id: str
    kind: AdjustmentKind
    amount_pico: int
    reason: str
    actor: str
    actor_origin: KeyOrigin
    created_at: int
    needs_approval: bool
    replacement: Quantities | None = None
    decision: ApprovalDecision | None = None
    approver: str | None = None
    approver_origin: KeyOrigin | None = None
    decided_at: int | None = None
    period_at: int | None = None

    @property
    def state(self) -> AdjustmentState:
        """Return where it stands."""
        if self.decision is ApprovalDecision.REJECTED:
            return AdjustmentState.REJECTED
        return AdjustmentState.PENDING if self.needs_approval and self.decision is None else AdjustmentState.APPLIED


def sum_lines(lines: Sequence[RatedLine]) -> int:
    """Return what rated lines come to."""
    return sum(line.amount_pico for line in lines)


def change_by_class(before: Sequence[RatedLine], after: Sequence[RatedLine]) -> dict[BillingClass, int]:
    """Return what it adds to each billing class that an event is billed as `after` instead of `before`; classes that stay are left out."""
    change = {line.billing_class: -line.amount_pico for line in before}
    for line in after:
        change[line.billing_class] = change.get(line.billing_class, 0) + line.amount_pico
    return {billing_class: pico for billing_class, pico in change.items() if pico}


def find_objection(kind: AdjustmentKind, amount_pico: int, cost_pico: int, earlier: Sequence[Adjustment]) -> str | None:
    """Return why an event that cost `cost_pico` and has these corrections cannot have this one too, for a person to read; None if it
    can."""
    standing = [adjustment for adjustment in earlier if adjustment.state is not AdjustmentState.REJECTED]
    if any(adjustment.state is AdjustmentState.PENDING for adjustment in standing):
        return "Another correction of this request waits for approval."
    kinds = {adjustment.kind for adjustment in standing}
    if AdjustmentKind.VOID in kinds:
        return "The request has been voided."
    if kind is AdjustmentKind.CREDIT:
        left_pico = cost_pico + sum(adjustment.amount_pico for adjustment in standing)
        return "The credits of a request cannot exceed what it costs." if -amount_pico > left_pico else None
    if AdjustmentKind.REPLACE in kinds:
        return "The quantities of this request have been replaced before."
    if AdjustmentKind.CREDIT in kinds:
        return "The request has a credit; give the rest of its cost as a credit too."
    return None


def needs_approval(amount_pico: int, earlier: Sequence[Adjustment], moved_today_pico: int, limit_pico: int) -> bool:
    """Return whether a second person must approve: if the corrections of one event together move more than the limit, up or down, or if
    everything together does that keys of the asker's origin asked for on this day (`moved_today_pico`, without this one).
    """
    moved_pico = sum(abs(adjustment.amount_pico) for adjustment in earlier if adjustment.state is not AdjustmentState.REJECTED)
    return abs(amount_pico) + max(moved_pico, moved_today_pico) > limit_pico


def fields_of(adjustment: Adjustment) -> Mapping[str, object]:
    """A correction as text and integers in a fixed order: what digests and exports are made of."""
    new = adjustment.replacement
    return {
        "id": adjustment.id,
        "organization_id": adjustment.organization_id,
        "event_id": adjustment.event_id,
        "kind": str(adjustment.kind),
        "amount_pico": str(adjustment.amount_pico),
        "replacement": None if new is None else stated_quantities(new),
        "reason": adjustment.reason,
        "actor": adjustment.actor,
        "actor_origin": str(adjustment.actor_origin),
        "created_at": adjustment.created_at,
        "approver": adjustment.approver,
        "approver_origin": None if adjustment.approver_origin is None else str(adjustment.approver_origin),
        "decided_at": adjustment.decided_at,
    }
