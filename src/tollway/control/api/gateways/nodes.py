"""Nodes, for operators: who may connect, which version of the snapshot each follows, and how far the records of its epochs have arrived."""

from typing import Annotated, Literal

from fastapi import Depends, Path

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.gateways.node_schemas import (
    JoinTokenCreate,
    JoinTokenCreated,
    JoinTokenOut,
    NodeCreate,
    NodeCreated,
    NodeKeyOut,
    NodeOut,
    NodeRevoked,
    NodeRotate,
    join_token_out,
    node_out,
)
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    Deleted,
    Identified,
    In,
    ListOut,
    NodeIdText,
    Out,
    Reason,
    find_seconds,
    seconds,
)
from tollway.control.gateways import epochs, fleet, nodes, refused_epochs
from tollway.control.gateways.nodes import ShownNode
from tollway.domain import ids
from tollway.domain.epochs import Epoch, RefusedEpoch
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["nodes"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_NODES_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_NODES_WRITE))]


@router.get("/v1/platform/nodes")
def list_nodes(_caller: Reader, plane: Plane) -> ListOut[NodeOut]:
    """Return the nodes, those heard of last first, how far each has followed, and what it last reported of itself. At most a thousand."""
    with plane.database.platform(write=False) as tx:
        head, found = publish.find_head(tx), nodes.list_nodes(tx)
        statuses = fleet.find_statuses(tx, [each.id for each in found])
    data = [node_out(node, head, statuses.get(node.id)) for node in found]
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)


@router.post("/v1/platform/nodes")
def create_node(caller: Writer, plane: Plane, body: NodeCreate) -> NodeCreated:
    """Register a gateway and create its key. The secret is in this answer and nowhere else."""
    if body.id is not None and not ids.is_id(ids.NODE, body.id):
        raise Fault(PARAMETER_INVALID, param="id", message="This is not the id of a node.")
    with plane.database.platform() as tx:
        shown = nodes.create_node(
            tx,
            name=body.name,
            node_id=body.id or plane.new_id(ids.NODE),
            key_id=plane.new_id(ids.KEY),
            ingredients=plane.new_ingredients(),
            now=plane.now(),
        )
        head = publish.find_head(tx)
    plane.log({"event": "node_created", "node_id": shown.node.id, "key_id": caller.key_id})
    return NodeCreated(**node_out(shown.node, head).model_dump(), key=_key_out(shown))


@router.post("/v1/platform/node_join_tokens")
def create_join_token(caller: Writer, plane: Plane, body: JoinTokenCreate) -> JoinTokenCreated:
    """Create a token with which one gateway registers itself at its first start. The secret is in this answer and nowhere else."""
    with plane.database.platform() as tx:
        shown = nodes.create_token(
            tx,
            name=body.name,
            lifetime_us=body.lifetime_seconds * 1_000_000,
            token_id=plane.new_id(ids.JOIN_TOKEN),
            ingredients=plane.new_ingredients(),
            now=plane.now(),
        )
    plane.log({"event": "join_token_created", "token_id": shown.token.id, "key_id": caller.key_id})
    return JoinTokenCreated(**join_token_out(shown.token).model_dump(), value=shown.secret)


@router.get("/v1/platform/node_join_tokens")
def list_join_tokens(_caller: Reader, plane: Plane) -> ListOut[JoinTokenOut]:
    """Return the join tokens that can still be used, the oldest first."""
    with plane.database.platform(write=False) as tx:
        data = [join_token_out(token) for token in nodes.list_tokens(tx, plane.now())]
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)


@router.delete("/v1/platform/node_join_tokens/{token_id}")
def delete_join_token(caller: Writer, plane: Plane, token_id: str) -> Deleted:
    """Make a join token unusable."""
    with plane.database.platform() as tx:
        nodes.delete_token(tx, token_id)
    plane.log({"event": "join_token_deleted", "token_id": token_id, "key_id": caller.key_id})
    return Deleted(object="platform.node_join_token.deleted", id=token_id, pending_nodes=[])


@router.post("/v1/platform/nodes/{node_id}/rotate")
def rotate_node_key(caller: Writer, plane: Plane, node_id: NodeIdText, body: NodeRotate) -> NodeKeyOut:
    """Create a new key of a node; the key before stays valid for a time. A revoked node is admitted again."""
    with plane.database.platform() as tx:
        shown = nodes.rotate_key(
            tx,
            node_id,
            grace_us=body.grace_seconds * 1_000_000,
            key_id=plane.new_id(ids.KEY),
            ingredients=plane.new_ingredients(),
            now=plane.now(),
        )
    plane.log({"event": "node_key_rotated", "node_id": node_id, "key_id": caller.key_id})
    return _key_out(shown)


@router.delete("/v1/platform/nodes/{node_id}")
def revoke_node(caller: Writer, plane: Plane, node_id: NodeIdText) -> NodeRevoked:
    """Revoke a node: its keys are refused, and no revocation waits for it. Its unfinished epochs block the close of their periods until
    their records have arrived or are declared lost."""
    with plane.database.platform() as tx:
        unfinished = nodes.revoke_node(tx, node_id, now=plane.now())
    plane.log({"event": "node_revoked", "node_id": node_id, "unfinished_epochs": unfinished, "key_id": caller.key_id})
    plane.publications.notice_ack()
    return NodeRevoked(id=node_id, unfinished_epochs=unfinished)


class LostOut(Out):
    """The declaration that no record from `next_seq` on will arrive, which `actor` asked for and `approver` approved. `records_after`: how
    many arrived nevertheless."""

    next_seq: int
    reason: str
    actor: str
    approver: str
    declared_at: int
    records_after: int


class EpochOut(Identified):
    """One run of a gateway, as far as its records have arrived. `ticked_at` and `closed_at` are by its own clock. One that is `refused` or
    `accepted` has not arrived at all: `refused_because` says what is wrong with the instant of its start."""

    object: Literal["platform.epoch"] = "platform.epoch"
    node_id: str
    epoch: int
    state: Literal["open", "closed", "lost", "refused", "accepted"]
    next_seq: int
    ticked_at: int | None
    closed_at: int | None
    first_seen_at: int
    seen_at: int
    lost: LostOut | None
    refused_because: Literal["future", "before_node"] | None


class EpochAccept(In):
    """The reason for accepting a refused epoch. It is stored beside the operator's key."""

    reason: Reason


@router.get("/v1/platform/epochs")
def list_epochs(_caller: Reader, plane: Plane, node_id: NodeIdText | None = None, only_lost: bool = False) -> ListOut[EpochOut]:
    """Return the epochs of gateways: those that are refused, then those heard of last first; a thousand of these at most."""
    with plane.database.platform(write=False) as tx:
        refused = [] if only_lost else refused_epochs.list_open(tx, node_id)
        found = epochs.list_lost(tx) if only_lost else epochs.list_epochs(tx, node_id)
    data = [_refused_out(each) for each in refused] + [_epoch_out(epoch) for epoch in found if node_id in (None, epoch.node_id)]
    return ListOut(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)


@router.post("/v1/platform/nodes/{node_id}/epochs/{epoch}/accept")
def accept_epoch(
    caller: Writer, plane: Plane, node_id: NodeIdText, epoch: Annotated[int, Path(ge=1, le=2**63 - 1)], body: EpochAccept
) -> EpochOut:
    """Accept a run of a gateway that was refused because of the instant of its start: its records are ingested at the gateway's next
    attempt. Repeating it changes nothing."""
    with plane.database.platform() as tx:
        accepted = refused_epochs.accept(tx, node_id, epoch, reason=body.reason, actor=caller.key_id, now=plane.now())
    plane.log({"event": "epoch_accepted", "node_id": node_id, "epoch": epoch, "reason": body.reason, "key_id": caller.key_id})
    return _refused_out(accepted)


def _key_out(shown: ShownNode) -> NodeKeyOut:
    return NodeKeyOut(id=shown.key.id, node_id=shown.node.id, value=shown.secret, created_at=seconds(shown.key.created_at))


def _epoch_out(epoch: Epoch) -> EpochOut:
    lost = None
    if epoch.lost is not None:
        lost = LostOut(
            next_seq=epoch.lost.next_seq,
            reason=epoch.lost.reason,
            actor=epoch.lost.actor,
            approver=epoch.lost.approver,
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
        refused_because=None,
    )


def _refused_out(refused: RefusedEpoch) -> EpochOut:
    return EpochOut(
        id=f"{refused.node_id}/{refused.epoch}",
        node_id=refused.node_id,
        epoch=refused.epoch,
        state="refused" if refused.accepted_at is None else "accepted",
        next_seq=1,
        ticked_at=None,
        closed_at=None,
        first_seen_at=seconds(refused.first_refused_at),
        seen_at=seconds(refused.refused_at),
        lost=None,
        refused_because=refused.reason.value,
    )
