"""Gateways as control knows them, for operators: how far each follows, and how far the records of each of its lives have arrived."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tollway.control import epochs, publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, PlatformOperator
from tollway.control.api.schemas import Identified, In, ListOut, NodeOut, Out, Reason, find_seconds, node_out, seconds
from tollway.domain.epochs import Epoch

router = routes.router(tags=["nodes"])


@router.get("/v1/platform/nodes")
def list_nodes(_caller: PlatformOperator, plane: Plane) -> ListOut[NodeOut]:
    """The gateways, the latest heard of first, and how far each has followed. At most a thousand."""
    with plane.database.platform(write=False) as tx:
        head, nodes = publish.find_head(tx), publish.list_nodes(tx)
    data = [node_out(node, head) for node in nodes]
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)


NodeId = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_\-]+$")]


class LostOut(Out):
    """An operator's declaration that no record from `next_seq` on will arrive. `records_after`: how many arrived nevertheless."""

    next_seq: int
    reason: str
    actor: str
    declared_at: int
    records_after: int


class EpochOut(Identified):
    """One run of a gateway, as far as its records have arrived. `ticked_at` and `closed_at` are by its own clock."""

    object: Literal["platform.epoch"] = "platform.epoch"
    node_id: str
    epoch: int
    state: Literal["open", "closed", "lost"]
    next_seq: int
    ticked_at: int | None
    closed_at: int | None
    first_seen_at: int
    seen_at: int
    lost: LostOut | None


class LostDeclare(In):
    """`epoch`: null for every life of the node that is not complete."""

    epoch: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    reason: Reason


class LostDeclared(Out):
    """The epochs that were declared lost."""

    object: Literal["platform.lost"] = "platform.lost"
    node_id: str
    epochs: list[int]


@router.get("/v1/platform/epochs")
def list_epochs(_caller: PlatformOperator, plane: Plane, node_id: NodeId | None = None, only_lost: bool = False) -> ListOut[EpochOut]:
    """Lives of gateways, the latest heard of first; a thousand at most."""
    with plane.database.platform(write=False) as tx:
        found = epochs.list_lost(tx) if only_lost else epochs.list_epochs(tx, node_id)
    data = [_epoch_out(epoch) for epoch in found if node_id in (None, epoch.node_id)]
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)


@router.post("/v1/platform/nodes/{node_id}/lost")
def declare_lost(caller: PlatformOperator, plane: Plane, node_id: NodeId, body: LostDeclare) -> LostDeclared:
    """Declare that the missing records of a gateway will never come, because its disk is gone. The declaration is
    permanent and named in the report of each billing period that it covers. Records that arrive after all are ingested."""
    with plane.database.platform() as tx:
        declared = epochs.declare_lost(tx, node_id=node_id, epoch=body.epoch, reason=body.reason, actor=caller.key_id, now=plane.now())
    numbers = [lost.epoch for lost in declared]
    plane.log({"event": "epochs_lost", "node_id": node_id, "epochs": numbers, "reason": body.reason, "key_id": caller.key_id})
    return LostDeclared(node_id=node_id, epochs=numbers)


def _epoch_out(epoch: Epoch) -> EpochOut:
    lost = None
    if epoch.lost is not None:
        lost = LostOut(
            next_seq=epoch.lost.next_seq,
            reason=epoch.lost.reason,
            actor=epoch.lost.actor,
            declared_at=seconds(epoch.lost.declared_at),
            records_after=epoch.records_after_lost,
        )
    return EpochOut(
        id=f"{epoch.node_id}/{epoch.epoch}",
        node_id=epoch.node_id,
        epoch=epoch.epoch,
        state="closed" if epoch.closed_at is not None else "lost" if lost else "open",
        next_seq=epoch.next_seq,
        ticked_at=find_seconds(epoch.ticked_at),
        closed_at=find_seconds(epoch.closed_at),
        first_seen_at=seconds(epoch.first_seen_at),
        seen_at=seconds(epoch.seen_at),
        lost=lost,
    )
