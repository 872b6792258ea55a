"""Requests to declare epochs lost at rest, and what a second person decided about each."""

from typing import Any

import sqlalchemy as sa

from tollway.domain.corrections import ApprovalDecision
from tollway.domain.epochs import LostRequest, LostRequestState
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx
from tollway.storage.pages import fetch_page
from tollway.storage.schema_periods import lost_decisions, lost_declarations, lost_requests

_request = lost_requests.c
_decision = lost_decisions.c
_ALL = sa.select(lost_requests, _decision.approver, _decision.decision, _decision.decided_at).join_from(
    lost_requests, lost_decisions, _decision.request_id == _request.id, isouter=True
)
_IS_PENDING = _decision.decision.is_(None)
_IS_IN_STATE = {
    LostRequestState.PENDING: _IS_PENDING,
    LostRequestState.DECLARED: _decision.decision == ApprovalDecision.APPROVED,
    LostRequestState.REJECTED: _decision.decision == ApprovalDecision.REJECTED,
}


def insert_request(tx: PlatformTx, request: LostRequest) -> None:
    """Store a request. Its node must be locked."""
    tx.connection.execute(
        lost_requests.insert().values(
            id=request.id,
            node_id=request.node_id,
            epoch=request.epoch,
            reason=request.reason,
            actor=request.actor.key_id,
            actor_origin=request.actor.origin,
            requested_at=request.requested_at,
        )
    )


def insert_decision(tx: PlatformTx, request: LostRequest, decision: ApprovalDecision, approver: Operator, now: int) -> None:
    """Store what the second person said. The request must be locked."""
    tx.connection.execute(
        lost_decisions.insert().values(
            request_id=request.id,
            approver=approver.key_id,
            approver_origin=approver.origin,
            decision=decision,
            decided_at=now,
        )
    )


def find_request(tx: PlatformTx, request_id: str, *, lock: bool = False) -> LostRequest | None:
    """Return a request. `lock`: nobody else decides it until this transaction ends."""
    if lock:
        tx.connection.execute(sa.select(_request.id).where(_request.id == request_id).with_for_update()).one_or_none()
    row = tx.connection.execute(_ALL.where(_request.id == request_id)).one_or_none()
    return None if row is None else _lost_request(row)


def list_requests(tx: PlatformTx, window: PageWindow, state: LostRequestState | None) -> Page[LostRequest]:
    """Requests in the order in which they were made, in every state or in one."""
    query = _ALL if state is None else _ALL.where(_IS_IN_STATE[state])
    return fetch_page(tx, query, _request.id, window, _lost_request)


def list_pending(tx: PlatformTx, node_id: str | None = None) -> list[LostRequest]:
    """Requests that wait for a second person, of all nodes or of one, by id. An epoch has one at most."""
    query = _ALL.where(_IS_PENDING)
    if node_id is not None:
        query = query.where(_request.node_id == node_id)
    return [_lost_request(row) for row in tx.connection.execute(query.order_by(_request.id))]


def list_unapproved(tx: PlatformTx) -> list[tuple[str, int]]:
    """Return node and epoch of each declaration that does not follow from a request which a key of another origin approved."""
    declared = lost_declarations.c
    approved = (
        sa.select(_request.id)
        .join_from(lost_requests, lost_decisions, _decision.request_id == _request.id)
        .where(
            _request.node_id == declared.node_id,
            _request.epoch == declared.epoch,
            _request.reason == declared.reason,
            _request.actor == declared.actor,
            _decision.decision == ApprovalDecision.APPROVED,
            _decision.approver == declared.approver,
            _decision.approver_origin != _request.actor_origin,
            _decision.decided_at == declared.declared_at,
        )
    )
    query = sa.select(declared.node_id, declared.epoch).where(~approved.exists()).order_by(declared.node_id, declared.epoch)
    return [(row.node_id, row.epoch) for row in tx.connection.execute(query)]


def list_undeclared(tx: PlatformTx) -> list[tuple[str, int]]:
    """Return node and epoch of each request that was approved and of which there is no declaration."""
    declared = lost_declarations.c
    is_declared = sa.select(declared.epoch).where(declared.node_id == _request.node_id, declared.epoch == _request.epoch).exists()
    query = (
        sa.select(_request.node_id, _request.epoch)
        .join_from(lost_requests, lost_decisions, _decision.request_id == _request.id)
        .where(_decision.decision == ApprovalDecision.APPROVED, ~is_declared)
        .order_by(_request.node_id, _request.epoch)
    )
    return [(row.node_id, row.epoch) for row in tx.connection.execute(query)]


def _lost_request(row: Any) -> LostRequest:
    return LostRequest(
        id=row.id,
        node_id=row.node_id,
        epoch=row.epoch,
        reason=row.reason,
        actor=Operator(row.actor, KeyOrigin(row.actor_origin)),
        requested_at=row.requested_at,
        decision=None if row.decision is None else ApprovalDecision(row.decision),
        approver=row.approver,
        decided_at=row.decided_at,
    )
