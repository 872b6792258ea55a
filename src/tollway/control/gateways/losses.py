"""Losses: what a gateway served and will never report is declared lost by an operator and a second person.

Requests of the missing records are billed to nobody, and how many there were is not known, so no limit exempts a declaration: an operator
asks, and a key of another origin approves (`approvals.may_approve`). Only the approval writes the declaration; until then the epoch
blocks the close of its periods.
"""

from collections.abc import Callable

from tollway.control.approvals import SAME_ORIGIN, may_approve
from tollway.control.gateways.epochs import SILENCE_US
from tollway.domain import ids
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.epochs import Lost, LostRequest, LostRequestState
from tollway.domain.faults import RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import Operator
from tollway.domain.pages import Page, PageWindow
from tollway.storage import epochs as stored_epochs
from tollway.storage import lost_requests as stored
from tollway.storage import nodes as stored_nodes
from tollway.storage import refused_epochs as stored_refused
from tollway.storage.database import PlatformTx

COMPLETE = "The epoch is complete: its last record has arrived."
DECLARED_BEFORE = "The epoch has been declared lost before."


def ask(
    tx: PlatformTx, *, node_id: str, epoch: int | None, reason: str, actor: Operator, new_id: Callable[[str], str], now: int
) -> list[LostRequest]:
    """Ask that an epoch is declared lost; if `epoch` is None, all epochs of the node that are not complete, and a run that never sent a
    record, except those for which somebody has asked already. `new_id` makes an id of a kind.

    Raises RESOURCE_UNKNOWN for an epoch that was never heard of, STATE_CONFLICT for one that is complete, lost or asked for already, or
    if there is nothing to ask for.
    """
    stored_nodes.lock_node(tx, node_id)
    waiting = {request.epoch: request for request in stored.list_pending(tx, node_id)}
    if epoch is not None and epoch in waiting:
        raise Fault(STATE_CONFLICT, message=f"This waits for a second person already: {waiting[epoch].id}.")
    missing = list_missing(tx, node_id, now)
    if epoch is not None and epoch not in missing:
        raise _explain(tx, node_id, epoch)
    missing = missing if epoch is None else [epoch]
    asked = [each for each in missing if each not in waiting]
    if not asked:
        names = ", ".join(request.id for request in waiting.values())
        raise Fault(
            STATE_CONFLICT, message=f"All of it waits for a second person: {names}." if missing else "Nothing of this node is missing."
        )
    requests = [LostRequest(new_id(ids.LOST_REQUEST), node_id, each, reason, actor, now) for each in asked]
    for request in requests:
        stored.insert_request(tx, request)
    return requests


def decide(tx: PlatformTx, request_id: str, decision: ApprovalDecision, *, approver: Operator, now: int) -> LostRequest:
    """Approve a request, which declares its epoch lost; or reject it. Whoever asked may take it back, but not approve it.

    Raises RESOURCE_UNKNOWN, or STATE_CONFLICT if it does not wait, if whoever asked could have made the approver's key, or if nothing of
    the epoch is missing any more.
    """
    request = stored.find_request(tx, request_id, lock=True) if ids.is_id(ids.LOST_REQUEST, request_id) else None
    if request is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such request.")
    if request.state is not LostRequestState.PENDING:
        raise Fault(STATE_CONFLICT, message=f"The request does not wait for approval: it is {request.state}.")
    if decision is ApprovalDecision.APPROVED and not may_approve(tx, request.actor, approver):
        raise Fault(STATE_CONFLICT, message=SAME_ORIGIN)
    stored.insert_decision(tx, request, decision, approver, now)
    if decision is ApprovalDecision.APPROVED:
        _declare(tx, request, approver, now)
    found = stored.find_request(tx, request_id)
    assert found is not None, "it is locked"
    return found


def list_requests(tx: PlatformTx, window: PageWindow, state: LostRequestState | None) -> Page[LostRequest]:
    """Requests in the order in which they were made."""
    return stored.list_requests(tx, window, state)


def list_missing(tx: PlatformTx, node_id: str, now: int) -> list[int]:
    """Return the epochs of a node that are neither complete nor declared lost, the latest heard of first, those that were refused, and a
    run that never sent a record, by the instant at which the node was heard of last."""
    open_epochs = [each.epoch for each in stored_epochs.list_epochs(tx, node_id) if each.closed_at is None and each.lost is None]
    silent = stored_epochs.list_silent_nodes(tx, now + 1, SILENCE_US)
    refused = [each.epoch for each in stored_refused.list_open(tx, node_id)]
    return open_epochs + refused + [node.seen_at for node in silent if node.node_id == node_id]


def _explain(tx: PlatformTx, node_id: str, epoch: int) -> Fault:
    """Return why nothing of an epoch is missing."""
    found = stored_epochs.find_epoch(tx, node_id, epoch)
    if found is None:
        return Fault(RESOURCE_UNKNOWN, message="This gateway has no such epoch.")
    return Fault(STATE_CONFLICT, message=DECLARED_BEFORE if found.closed_at is None else COMPLETE)


def _declare(tx: PlatformTx, request: LostRequest, approver: Operator, now: int) -> None:
    """Declare an epoch lost from its present watermark on; a run that never sent a record from its first record on."""
    stored_epochs.lock_epoch(tx, request.node_id, request.epoch)
    found = stored_epochs.find_epoch(tx, request.node_id, request.epoch)
    is_refused = any(each.epoch == request.epoch for each in stored_refused.list_open(tx, request.node_id))
    silent = stored_epochs.list_silent_nodes(tx, now + 1, SILENCE_US)
    if found is None and not is_refused and not any(node.node_id == request.node_id for node in silent):
        raise Fault(STATE_CONFLICT, message="The gateway has reported since: nothing of that run is missing.")
    if found is not None and found.closed_at is not None:
        raise Fault(STATE_CONFLICT, message=COMPLETE)
    next_seq = 1 if found is None else found.next_seq
    lost = Lost(request.node_id, request.epoch, next_seq, request.reason, request.actor.key_id, approver.key_id, now)
    if not stored_epochs.insert_lost(tx, lost):
        raise Fault(STATE_CONFLICT, message=DECLARED_BEFORE)
