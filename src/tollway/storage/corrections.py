"""Corrections at rest: what was asked for, what was decided, and in which period each is booked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tollway.domain.billing_classes import Quantities
from tollway.domain.corrections import Adjustment, AdjustmentKind, AdjustmentState, ApprovalDecision
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.money import PICO
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations
from tollway.storage.schema_money import ledger_transactions
from tollway.storage.schema_periods import OTHER_REPLACEMENTS, REPLACEMENTS, adjustment_approvals, usage_adjustments

_approval = adjustment_approvals.c
_booking = ledger_transactions.c
_ALL = (
    sa.select(
        usage_adjustments, _approval.approver, _approval.approver_origin, _approval.decision, _approval.decided_at, _booking.period_at
    )
    .join_from(usage_adjustments, adjustment_approvals, adjustment_approvals.c.adjustment_id == usage_adjustments.c.id, isouter=True)
    .join(ledger_transactions, ledger_transactions.c.adjustment_id == usage_adjustments.c.id, isouter=True)
)


def insert_adjustment(tx: PlatformTx, adjustment: Adjustment) -> None:
    """Store a correction that was asked for. The organization must be locked."""
    new = adjustment.replacement
    tx.connection.execute(
        usage_adjustments.insert().values(
            id=adjustment.id,
            organization_id=adjustment.organization_id,
            event_id=adjustment.event_id,
            project_id=adjustment.project_id,
            key_id=adjustment.key_id,
            model=adjustment.model,
            kind=adjustment.kind,
            amount_pico=adjustment.amount_pico,
            **(dict.fromkeys(REPLACEMENTS) if new is None else _replacement_columns(new)),
            reason=adjustment.reason,
            actor=adjustment.actor,
            actor_origin=adjustment.actor_origin,
            needs_approval=adjustment.needs_approval,
            created_at=adjustment.created_at,
        )
    )


def _replacement_columns(new: Quantities) -> dict[str, int | None]:
    return {name: value or (None if name in OTHER_REPLACEMENTS else 0) for name, value in zip(REPLACEMENTS, new.values(), strict=True)}


def insert_decision(tx: PlatformTx, adjustment: Adjustment, decision: ApprovalDecision, approver: Operator, now: int) -> None:
    """Store what the second person said. The organization must be locked."""
    tx.connection.execute(
        adjustment_approvals.insert().values(
            adjustment_id=adjustment.id,
            actor=adjustment.actor,
            approver=approver.key_id,
            approver_origin=approver.origin,
            decision=decision,
            decided_at=now,
        )
    )


def find_adjustment(tx: PlatformTx, adjustment_id: str) -> Adjustment | None:
    """A correction of whatever organization."""
    row = tx.connection.execute(_ALL.where(usage_adjustments.c.id == adjustment_id)).one_or_none()
    return None if row is None else _adjustment(row)


def list_of_event(tx: Transaction, organization_id: str, event_id: str) -> list[Adjustment]:
    """All corrections of one event of an organization, oldest first."""
    query = _ALL.where(usage_adjustments.c.event_id == event_id, usage_adjustments.c.organization_id == organization_id)
    return [_adjustment(row) for row in tx.connection.execute(query.order_by(usage_adjustments.c.id))]


def sum_moved(tx: PlatformTx, origin: KeyOrigin, currency: str, since: int) -> int:
    """Return the amounts of the corrections in a currency, up or down, that keys of an origin asked for since then and that were not
    rejected."""
    amount = sa.func.abs(usage_adjustments.c.amount_pico)
    query = (
        sa.select(sa.func.coalesce(sa.func.sum(amount // PICO), 0), sa.func.coalesce(sa.func.sum(amount % PICO), 0))
        .join_from(usage_adjustments, organizations, organizations.c.id == usage_adjustments.c.organization_id)
        .join(adjustment_approvals, adjustment_approvals.c.adjustment_id == usage_adjustments.c.id, isouter=True)
        .where(
            usage_adjustments.c.actor_origin == origin,
            usage_adjustments.c.created_at >= since,
            organizations.c.currency == currency,
            sa.or_(_approval.decision.is_(None), _approval.decision != ApprovalDecision.REJECTED),
        )
    )
    units, picos = tx.connection.execute(query).one()
    return int(units) * PICO + int(picos)


def list_adjustments(tx: PlatformTx, window: PageWindow, *, organization_id: str | None, state: AdjustmentState | None) -> Page[Adjustment]:
    """Corrections in the order in which they were asked for, of everyone or of one organization, in every state or in one."""
    query = _ALL
    if organization_id is not None:
        query = query.where(usage_adjustments.c.organization_id == organization_id)
    match state:
        case AdjustmentState.REJECTED:
            query = query.where(_approval.decision == ApprovalDecision.REJECTED)
        case AdjustmentState.PENDING:
            query = query.where(usage_adjustments.c.needs_approval, _approval.decision.is_(None))
        case AdjustmentState.APPLIED:
            query = query.where(_booking.period_at.is_not(None))
        case None:
            pass
    return fetch_page(tx, query, usage_adjustments.c.id, window, _adjustment)


def iterate_booked(tx: Transaction, organization_id: str, period_at: int) -> Iterator[Adjustment]:
    """The corrections that are booked in the period of an organization that begins at `period_at`, by id."""
    query = _ALL.where(_booking.organization_id == organization_id, _booking.period_at == period_at)
    for row in tx.connection.execute(query.order_by(usage_adjustments.c.id).execution_options(yield_per=1000)):
        yield _adjustment(row)


def iterate_adjustments(tx: PlatformTx) -> Iterator[Adjustment]:
    """Every correction, by id: for verification."""
    for row in tx.connection.execute(_ALL.order_by(usage_adjustments.c.id).execution_options(yield_per=1000)):
        yield _adjustment(row)


def list_miswritten(tx: PlatformTx) -> list[str]:
    """Return the ids of corrections that have a quantity of a later class where `insert_adjustment` writes null, by id: a 0, or any where
    nothing is replaced. Adjustments that are read do not show it: for verification."""
    columns = [usage_adjustments.c[name] for name in sorted(OTHER_REPLACEMENTS)]
    replaces_nothing = usage_adjustments.c.replacement_input.is_(None)
    query = sa.select(usage_adjustments.c.id).where(
        sa.or_(
            *(column == 0 for column in columns),
            sa.and_(replaces_nothing, sa.or_(*(column.is_not(None) for column in columns))),
        )
    )
    return list(tx.connection.execute(query.order_by(usage_adjustments.c.id)).scalars())


def list_corrected(tx: PlatformTx) -> set[str]:
    """The ids of all events that a correction names: for verification."""
    return set(tx.connection.execute(sa.select(usage_adjustments.c.event_id).distinct()).scalars())


@dataclass(frozen=True, slots=True)
class BookedCost:
    """Amounts that a correction added, when it was booked, to the costs of its event's project, key and model."""

    booked_at: int
    project_id: str
    key_id: str
    model: str
    amount_pico: int


def list_costs(
    tx: TenantTx, start_at: int, end_at: int, *, project_ids: Sequence[str], key_ids: Sequence[str], models: Sequence[str]
) -> list[BookedCost]:
    """The corrections of the organization that were booked from `start_at` to `end_at`. An empty filter filters nothing."""
    table = usage_adjustments.c
    query = (
        sa.select(_booking.booked_at, table.project_id, table.key_id, table.model, table.amount_pico)
        .join_from(usage_adjustments, ledger_transactions, _booking.adjustment_id == table.id)
        .where(table.organization_id == tx.organization_id, _booking.booked_at >= start_at, _booking.booked_at < end_at)
    )
    for column, values in ((table.project_id, project_ids), (table.key_id, key_ids), (table.model, models)):
        if values:
            query = query.where(column.in_(values))
    rows = tx.connection.execute(query.order_by(_booking.booked_at, table.id))
    return [BookedCost(row.booked_at, row.project_id, row.key_id, row.model, row.amount_pico) for row in rows]


def _adjustment(row: Any) -> Adjustment:
    replacement = None
    if row.replacement_input is not None:
        replacement = Quantities.from_values(getattr(row, name) or 0 for name in REPLACEMENTS)
    return Adjustment(
        id=row.id,
        organization_id=row.organization_id,
        project_id=row.project_id,
        key_id=row.key_id,
        model=row.model,
        event_id=row.event_id,
        kind=AdjustmentKind(row.kind),
        amount_pico=row.amount_pico,
        reason=row.reason,
        actor=row.actor,
        actor_origin=KeyOrigin(row.actor_origin),
        created_at=row.created_at,
        needs_approval=row.needs_approval,
        replacement=replacement,
        decision=None if row.decision is None else ApprovalDecision(row.decision),
        approver=row.approver,
        approver_origin=None if row.approver_origin is None else KeyOrigin(row.approver_origin),
        decided_at=row.decided_at,
        period_at=row.period_at,
    )
