"""Refused epochs: runs of gateways that cannot have begun when they say, because a clock was wrong.

The number of an epoch is the instant at which it began, by the gateway's clock. One from the future, or from before its node was made, is
refused, and its gateway keeps the records. The refusal is stored: operators see it among the epochs, and no period can be closed meanwhile,
because nobody knows when these requests were served. It ends in one of three ways: a clock is right again, so the gateway's next attempt is
taken; an operator accepts the epoch; or an operator and a second person declare it lost (`losses`).

An accepted epoch is ingested like any other. Records in it that lie in the future are quarantined one by one (`record_checks`).
"""

from tollway.domain import ids
from tollway.domain.epochs import CLOCK_ERROR_US_MAX, RefusalReason, RefusedEpoch
from tollway.domain.faults import RESOURCE_UNKNOWN, Blame, Fault, FaultKind
from tollway.storage import refused_epochs as stored
from tollway.storage.database import Database, PlatformTx

REFUSED_PER_NODE_MAX = 100
"""Refused epochs of a node that are stored: a gateway that restarts every quarter of an hour for a day. What is beyond is refused all the
same, and stored when the gateway offers it again after others have arrived."""

EPOCH_REFUSED = FaultKind(
    code="epoch_refused",
    status=403,
    blame=Blame.PLATFORM,
    message="This node cannot have begun a run at that instant: a clock is wrong.",
)


def find_reason(node_id: str, epoch: int, now: int) -> RefusalReason | None:
    """Return why a run cannot have begun at `epoch`: in the future, or before its node was made (which the id of a node says), by more than
    CLOCK_ERROR_US_MAX. None if it can."""
    made_at = ids.instant_of(ids.NODE, node_id)
    if epoch > now + CLOCK_ERROR_US_MAX:
        return RefusalReason.FUTURE
    if made_at is not None and epoch < made_at - CLOCK_ERROR_US_MAX:
        return RefusalReason.BEFORE_NODE
    return None


def require_accepted(database: Database, node_id: str, epoch: int, reason: RefusalReason, now: int) -> None:
    """Raise Fault EPOCH_REFUSED, and store the refusal, unless records of this epoch arrived before or an operator has accepted it."""
    with database.platform() as tx:
        if stored.may_arrive(tx, node_id, epoch):
            return
        stored.remove_arrived(tx, node_id)
        stored.note(tx, RefusedEpoch(node_id, epoch, reason, now, now), REFUSED_PER_NODE_MAX)
    raise Fault(EPOCH_REFUSED, detail=f"epoch {epoch} of {node_id}: {reason}")


def list_open(tx: PlatformTx, node_id: str | None = None) -> list[RefusedEpoch]:
    """Return the refused epochs, of all nodes or of one, that have neither arrived since nor been declared lost."""
    return stored.list_open(tx, node_id)


def accept(tx: PlatformTx, node_id: str, epoch: int, *, reason: str, actor: str, now: int) -> RefusedEpoch:
    """Accept a refused epoch: its gateway's next attempt is ingested. Repeating it changes nothing. `actor`: id of the operator's key.

    Raises RESOURCE_UNKNOWN for an epoch that was not refused, or that has arrived since.
    """
    accepted = stored.accept(tx, node_id, epoch, reason=reason, actor=actor, now=now)
    if accepted is None:
        raise Fault(RESOURCE_UNKNOWN, message="No such epoch of this gateway was refused.")
    return accepted
