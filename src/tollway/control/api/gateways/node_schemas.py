"""Bodies of gateways (nodes) and of the tokens with which they join."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tollway.control.api.gateways.fleet_schemas import NodeStatusOut, node_status_out
from tollway.control.api.schemas import Identified, In, Name, Out, find_seconds, seconds
from tollway.control.gateways.fleet import StoredStatus
from tollway.domain.nodes import JoinToken, RegisteredNode

GRACE_SECONDS_MAX = 7 * 86_400
"""Longest time for which a replaced key of a node stays valid."""

JOIN_SECONDS_MAX = 86_400
"""Longest lifetime of a join token."""


class NodeCreate(In):
    """A node to register. `id`: of a node that this database does not have any more, because it was restored; null for a new one."""

    name: Name
    id: Annotated[str, StringConstraints(max_length=64)] | None = None


class NodeOut(Identified):
    object: Literal["platform.node"] = "platform.node"
    name: str
    state: Literal["active", "revoked"]
    acked_version: int
    behind: int
    created_at: int
    first_seen_at: int | None
    seen_at: int | None
    status: Annotated[
        NodeStatusOut | None,
        Field(description="What the gateway last reported of itself; null if it never did, as one of a version before this report."),
    ] = None


class NodeKeyOut(Out):
    """A key of a node, with its secret, shown this once."""

    object: Literal["platform.node.key"] = "platform.node.key"
    id: str
    node_id: str
    value: str
    created_at: int


class NodeCreated(NodeOut):
    """A new node with its key."""

    key: NodeKeyOut


class NodeRotate(In):
    """`grace_seconds`: how long the key before stays valid, so that the gateway can be restarted with the new one."""

    grace_seconds: Annotated[int, Field(ge=0, le=GRACE_SECONDS_MAX)] = 3600


class NodeRevoked(Out):
    """A node that was revoked, and its unfinished epochs: they block the close of their periods."""

    object: Literal["platform.node.revoked"] = "platform.node.revoked"
    id: str
    unfinished_epochs: list[int]


class JoinTokenCreate(In):
    """A join token to create. `name`: of the node that will use it."""

    name: Name
    lifetime_seconds: Annotated[int, Field(ge=60, le=JOIN_SECONDS_MAX)] = 3600


class JoinTokenOut(Identified):
    object: Literal["platform.node_join_token"] = "platform.node_join_token"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int


class JoinTokenCreated(JoinTokenOut):
    """A new join token, with its secret, shown this once."""

    value: str


def node_out(node: RegisteredNode, head: int, status: StoredStatus | None = None) -> NodeOut:
    """Return a node as the API shows it. `head`: the latest version of the snapshot."""
    return NodeOut(
        id=node.id,
        name=node.name,
        state="active" if node.revoked_at is None else "revoked",
        acked_version=node.acked_version,
        behind=max(0, head - node.acked_version),
        created_at=seconds(node.created_at),
        first_seen_at=find_seconds(node.first_seen_at),
        seen_at=find_seconds(node.seen_at),
        status=None if status is None else node_status_out(status),
    )


def join_token_out(token: JoinToken) -> JoinTokenOut:
    """Return a join token as the API shows it, without its secret."""
    return JoinTokenOut(
        id=token.id,
        name=token.name,
        redacted_value=token.redacted,
        created_at=seconds(token.created_at),
        expires_at=seconds(token.expires_at),
    )
