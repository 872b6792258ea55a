"""Corrections: asked for with a reason, approved by a second person above a limit, booked in a period that is still open.

The event and its postings stay as they are. A correction is a transaction of its own, whose cause it is, with the same accounts the
other way round: at the event's own price version, in the first period of the organization that is open and not before the event's.
"""

import hashlib
from dataclasses import dataclass

from tollway.control.approvals import SAME_ORIGIN, may_approve, sum_moved_today
from tollway.control.money.ledger import PLATFORM, REVENUE, UNBILLED
from tollway.domain import ids
from tollway.domain.billing_classes import Quantities
from tollway.domain.corrections import (
    Adjustment,
    AdjustmentKind,
    AdjustmentState,
    ApprovalDecision,
    change_by_class,
    find_objection,
    needs_approval,
    sum_lines,
)
from tollway.domain.faults import PARAMETER_INVALID, PARAMETER_MISSING, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import Operator
from tollway.domain.ledger import Account, AdjustmentCause, Entry, Posting
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.pages import Page, PageWindow
from tollway.domain.prices import PriceVersion, RatedLine, rate
from tollway.storage import corrections as stored
from tollway.storage import ledger as stored_ledger
from tollway.storage import periods as stored_periods
from tollway.storage import usage_events as stored_usage
from tollway.storage.database import PlatformTx
from tollway.storage.usage_events import BookedEvent

CREDITS = "credits"
"""Kind of the platform's accounts, by model, that bear what is given back without touching the quantities: "credits:<model>"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedAdjustment:
    """Correction that an operator asks for. `replacement`, whose `request` is 0 or 1, for a replace; `credit_pico` for a credit."""

    event_id: str
    kind: AdjustmentKind
    reason: str
    replacement: Quantities | None = None
    credit_pico: int | None = None


# ---- What may be done -------------------------------------------------------------------------------------------------


def ask(tx: PlatformTx, wanted: WantedAdjustment, *, random_bits: int, actor: Operator, limit_pico: int, now: int) -> Adjustment:
    """Ask for a correction. At most `limit_pico` is moved without a second person, for one event and, in one currency, by all keys of the
    actor's origin on one day (UTC); more waits for `decide` by a key of another origin.

    `random_bits`: ids.RANDOM_BITS fresh ones, for its id. The ids of one event's corrections ascend in the order in which they were
    asked for, whatever the clocks say: verification checks each against those before it.

    Raises RESOURCE_UNKNOWN for an event that was never ingested, PARAMETER_INVALID or PARAMETER_MISSING for what does not fit the
    kind, STATE_CONFLICT where the event's earlier corrections forbid this one.
    """
    event = stored_usage.find_booked_event(tx, wanted.event_id)
    if event is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such request, or its usage has not arrived yet.")
    admit = event.event.final.admit
    stored_periods.lock_organization(tx, admit.organization_id)
    earlier = stored.list_of_event(tx, admit.organization_id, wanted.event_id)
    amount_pico = _amount_of(wanted, event)
    objection = find_objection(wanted.kind, amount_pico, sum_lines(event.lines), earlier)
    if objection is not None:
        raise Fault(STATE_CONFLICT, message=objection)
    asked_at = max(now, earlier[-1].created_at + 1000) if earlier else now  # ids count milliseconds
    adjustment = Adjustment(
        id=ids.new_id(ids.ADJUSTMENT, asked_at, random_bits),
        organization_id=admit.organization_id,
        project_id=admit.project_id,
        key_id=admit.key_id,
        model=admit.model,
        event_id=admit.request_id,
        kind=wanted.kind,
        amount_pico=amount_pico,
        reason=wanted.reason,
        actor=actor.key_id,
        actor_origin=actor.origin,
        created_at=asked_at,
        needs_approval=needs_approval(amount_pico, earlier, sum_moved_today(tx, actor, event.currency, now), limit_pico),
        replacement=wanted.replacement,
    )
    stored.insert_adjustment(tx, adjustment)
    if not adjustment.needs_approval:
        _book(tx, adjustment, event, now)
    return get_adjustment(tx, adjustment.id)


def decide(tx: PlatformTx, adjustment_id: str, decision: ApprovalDecision, *, approver: Operator, now: int) -> Adjustment:
    """Approve a correction that waits, which books it; or reject it. Whoever asked for it may take it back, but not approve it.

    Raises RESOURCE_UNKNOWN, or STATE_CONFLICT if it does not wait, or if whoever asked for it could have made the approver's key.
    """
    adjustment = get_adjustment(tx, adjustment_id)
    stored_periods.lock_organization(tx, adjustment.organization_id)
    adjustment = get_adjustment(tx, adjustment_id)  # as it is now that nobody else can decide
    if adjustment.state is not AdjustmentState.PENDING:
        raise Fault(STATE_CONFLICT, message=f"The correction does not wait for approval: it is {adjustment.state}.")
    if decision is ApprovalDecision.APPROVED and not may_approve(tx, Operator(adjustment.actor, adjustment.actor_origin), approver):
        raise Fault(STATE_CONFLICT, message=SAME_ORIGIN)
    stored.insert_decision(tx, adjustment, decision, approver, now)
    if decision is ApprovalDecision.APPROVED:
        event = stored_usage.find_booked_event(tx, adjustment.event_id)
        if event is None:
            raise Fault(STATE_CONFLICT, message="The request's event is not kept any more.")
        _book(tx, adjustment, event, now)
    return get_adjustment(tx, adjustment_id)


def get_adjustment(tx: PlatformTx, adjustment_id: str) -> Adjustment:
    """A correction. Raises RESOURCE_UNKNOWN."""
    adjustment = stored.find_adjustment(tx, adjustment_id) if ids.is_id(ids.ADJUSTMENT, adjustment_id) else None
    if adjustment is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such correction.")
    return adjustment


def list_adjustments(tx: PlatformTx, window: PageWindow, *, organization_id: str | None, state: AdjustmentState | None) -> Page[Adjustment]:
    """Corrections in the order in which they were asked for."""
    return stored.list_adjustments(tx, window, organization_id=organization_id, state=state)


def _amount_of(wanted: WantedAdjustment, event: BookedEvent) -> int:
    """Return what the correction adds to the event's cost. Raises Faults for what does not fit its kind, or changes nothing."""
    if event.event.final.admit.test:
        raise Fault(STATE_CONFLICT, message="The request was sent with a test key: it is never billed.")
    if wanted.kind is AdjustmentKind.CREDIT:
        if wanted.credit_pico is None:
            raise Fault(PARAMETER_MISSING, param="amount")
        amount_pico, changes = -wanted.credit_pico, wanted.credit_pico > 0
    else:
        after: list[RatedLine] = []
        if wanted.kind is AdjustmentKind.REPLACE:
            if wanted.replacement is None:
                raise Fault(PARAMETER_MISSING, param="quantities")
            after = rerate(wanted.replacement, event.price)
        amount_pico, changes = sum_lines(after) - sum_lines(event.lines), bool(change_by_class(event.lines, after))
    if not changes:
        raise Fault(STATE_CONFLICT, message="This would change nothing.")
    if abs(amount_pico) > AMOUNT_PICO_MAX:
        raise Fault(PARAMETER_INVALID, message="The amount is too large to be corrected at once.")
    return amount_pico


def rerate(quantities: Quantities, price: PriceVersion) -> list[RatedLine]:
    """Return what other quantities cost at an event's price. Raises PARAMETER_INVALID if that is no amount."""
    try:
        return rate(quantities, price.unit_prices)
    except OverflowError:
        raise Fault(PARAMETER_INVALID, param="quantities", message="The quantities cost more than an amount can be.") from None


# ---- Booking ----------------------------------------------------------------------------------------------------------


def entries_of(adjustment: Adjustment, event: BookedEvent) -> tuple[Entry, ...]:
    """Return what a correction moves: the customer's account first, then the platform's. Pure; zero in sum."""
    unbilled = Entry(Account(adjustment.organization_id, UNBILLED, event.currency), adjustment.amount_pico)
    if adjustment.kind is AdjustmentKind.CREDIT:
        return (unbilled, Entry(Account(PLATFORM, f"{CREDITS}:{adjustment.model}", event.currency), -adjustment.amount_pico))
    after: list[RatedLine] = []
    if adjustment.replacement is not None:
        after = rate(adjustment.replacement, event.price.unit_prices)
    change = change_by_class(event.lines, after)
    revenue = tuple(
        Entry(Account(PLATFORM, f"{REVENUE}:{adjustment.model}:{billing_class}", event.currency), -pico)
        for billing_class, pico in sorted(change.items())
    )
    return (unbilled, *revenue)


def transaction_id(adjustment: Adjustment) -> str:
    """The id of the transaction that books a correction: the millisecond in which it was asked for, and its cause."""
    digest = hashlib.sha256(f"adjustment/{adjustment.id}".encode()).hexdigest()
    return f"{ids.TRANSACTION}_{adjustment.created_at // 1000 & 0xFFFF_FFFF_FFFF:012x}{digest[:20]}"


def _book(tx: PlatformTx, adjustment: Adjustment, event: BookedEvent, now: int) -> None:
    calendar = stored_periods.open_calendars(tx, [adjustment.organization_id])[adjustment.organization_id]
    period_at = calendar.place(event.event.period_at)
    stored_periods.insert_cut(tx, [calendar], now)
    posting = Posting(
        id=transaction_id(adjustment),
        organization_id=adjustment.organization_id,
        period_at=period_at,
        cause=AdjustmentCause(adjustment.id),
        booked_at=now,
        entries=entries_of(adjustment, event),
    )
    stored_ledger.post(tx, [posting], now)
