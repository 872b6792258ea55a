"""Gateways as the control plane knows them: each is a node with an id and keys of its own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RegisteredNode:
    """A gateway that may speak to the control plane, or could before it was revoked.

    `acked_version`: the snapshot version that it has applied. Instants are UTC microseconds; `first_seen_at` and `seen_at` (its first and
    latest messages) are None until it was connected, `revoked_at` is None while it may connect.
    """

    id: str
    name: str
    created_at: int
    acked_version: int = 0
    first_seen_at: int | None = None
    seen_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Permission for one gateway, not registered yet, to register itself. `name`: the name that the node will have.

    `expires_at` (UTC microseconds) is exclusive. `node_id` and `used_at`: the node that used it, and when; None until then.
    """

    id: str
    name: str
    redacted: str
    created_at: int
    expires_at: int
    used_at: int | None = None
    node_id: str | None = None
