"""Nodes: which gateways may speak to the control plane, each under its own name.

A gateway presents a key that belongs to one node. An operator registers the node and hands out its key, or hands out a join token, with
which a gateway registers itself once under an id and a key that it made. Whatever a gateway sends names no other node than its own.

A revoked node keeps its row: usage names it. Its keys are revoked, nothing waits for it any more, and what its disk still holds is
either declared lost or handed in after the node got a new key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tollway.control.gateways import losses
from tollway.control.identity.access import NODE_MISMATCH
from tollway.control.identity.keys import Ingredients, Pepper
from tollway.domain import ids
from tollway.domain import keys as domain_keys
from tollway.domain.faults import KEY_INVALID, PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import Key, KeyType
from tollway.domain.nodes import JoinToken, RegisteredNode
from tollway.storage import nodes as storage
from tollway.storage.database import PlatformTx
from tollway.storage.keys import Digest

SEEDED = "Node of the settings"
"""Name of the node that the settings hold; no other can be given it."""


@dataclass(frozen=True, slots=True)
class ShownNode:
    """A node at the one moment when the secret of its key is known."""

    node: RegisteredNode
    key: Key
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A join token at the one moment when its secret is known."""

    token: JoinToken
    secret: str = field(repr=False)


def create_node(tx: PlatformTx, *, name: str, node_id: str, key_id: str, ingredients: Ingredients, now: int) -> ShownNode:
    """Register a node and create its key. Raises STATE_CONFLICT if there is a node of this id, PARAMETER_INVALID for a reserved name."""
    _refuse_reserved(name)
    node = RegisteredNode(node_id, name, now)
    if not storage.insert_node(tx, node):
        raise Fault(STATE_CONFLICT, message="There is a node with this id already.")
    return _add_key(tx, node, key_id, ingredients, now)


def rotate_key(tx: PlatformTx, node_id: str, *, grace_us: int, key_id: str, ingredients: Ingredients, now: int) -> ShownNode:
    """Create a new key of a node. The key before stays valid for `grace_us`, older ones end now. A revoked node is admitted again, so that
    it can hand in what its disk still holds. Raises RESOURCE_UNKNOWN."""
    node = storage.lock_node(tx, node_id)
    if node is None:
        raise Fault(RESOURCE_UNKNOWN)
    if node.revoked_at is not None:
        storage.set_revoked(tx, node_id, None)
    shown = _add_key(tx, node, key_id, ingredients, now)
    storage.retire_keys(tx, node_id, key_id, now + grace_us, now)
    return shown


def revoke_node(tx: PlatformTx, node_id: str, *, now: int) -> list[int]:
    """Revoke a node and its keys: it is refused from its next request on, and no revocation waits for it. Returns its unfinished epochs,
    which block the close of their periods until their records have arrived or are declared lost; among them a run that never sent a
    record, by the instant at which the node was heard of last.

    Raises RESOURCE_UNKNOWN, STATE_CONFLICT if it is revoked already.
    """
    node = storage.lock_node(tx, node_id)
    if node is None:
        raise Fault(RESOURCE_UNKNOWN)
    if node.revoked_at is not None:
        raise Fault(STATE_CONFLICT, message="The node is revoked already.")
    storage.set_revoked(tx, node_id, now)
    storage.revoke_keys(tx, node_id, now)
    return losses.list_missing(tx, node_id, now)


def list_nodes(tx: PlatformTx) -> list[RegisteredNode]:
    """Return the nodes, those heard of last first; a thousand at most."""
    return storage.list_nodes(tx)


def seed_node(tx: PlatformTx, node_id: str, secret: str, *, key_id: str, pepper: Pepper, now: int) -> bool:
    """Register the node that the settings hold, if it is new, with the key of the settings in place of the one before. Returns False, and
    admits nothing, if the node or this key was revoked. Doing it again changes nothing."""
    storage.insert_node(tx, RegisteredNode(node_id, SEEDED, now))
    node = storage.lock_node(tx, node_id)
    if node is None or node.revoked_at is not None:
        return False
    digest = pepper.digest(secret)
    key = Key(id=key_id, type=KeyType.NODE, project_id=None, name=SEEDED, redacted=domain_keys.redact(secret), created_at=now)
    if not storage.insert_key(tx, node_id, key, digest):
        return False
    storage.revoke_keys(tx, node_id, now, name=SEEDED, except_digest=digest.value)
    return True


# ---- Join tokens ------------------------------------------------------------------------------------------------------


def create_token(tx: PlatformTx, *, name: str, lifetime_us: int, token_id: str, ingredients: Ingredients, now: int) -> ShownToken:
    """Create a token with which one gateway registers itself. Raises PARAMETER_INVALID for a reserved name."""
    _refuse_reserved(name)
    made = domain_keys.new_join_token(ingredients.random_bytes)
    token = JoinToken(token_id, name, made.redacted, now, now + lifetime_us)
    storage.insert_token(tx, token, ingredients.pepper.digest(made.secret))
    return ShownToken(token, made.secret)


def list_tokens(tx: PlatformTx, now: int) -> list[JoinToken]:
    """Return the join tokens that can still be used, the oldest first."""
    return storage.list_tokens(tx, now)


def delete_token(tx: PlatformTx, token_id: str) -> None:
    """Make a join token unusable. Raises RESOURCE_UNKNOWN, also for one that was used: revoke the node that used it."""
    if not storage.delete_token(tx, token_id):
        raise Fault(RESOURCE_UNKNOWN)


def join(
    tx: PlatformTx, token_id: str, *, node_id: str, secret: str, key_id: str, pepper_version: int, peppers: Mapping[int, bytes], now: int
) -> RegisteredNode:
    """Register the gateway that presents a join token under the id and with the key that it made. A gateway that did not receive the answer
    may repeat the same request: nothing changes then.

    Raises KEY_INVALID for a token that expired or was used by another gateway, PARAMETER_INVALID for an id or a key that is malformed,
    NODE_MISMATCH for an id that is registered.
    """
    token = storage.lock_token(tx, token_id)
    if token is None:
        raise Fault(KEY_INVALID)
    if not ids.is_id(ids.NODE, node_id):
        raise Fault(PARAMETER_INVALID, param="node_id", message="This is not the id of a node.")
    if domain_keys.find_type(secret) is not KeyType.NODE:
        raise Fault(PARAMETER_INVALID, param="key", message="This is not the key of a node.")
    if token.used_at is not None:
        digests = [domain_keys.digest(pepper, secret.encode()) for pepper in peppers.values()]
        node = storage.find_node(tx, node_id) if token.node_id == node_id and storage.has_key(tx, node_id, digests) else None
        if node is None:
            raise Fault(KEY_INVALID, detail="the join token was used before")
        return node
    if token.expires_at <= now:
        raise Fault(KEY_INVALID, detail="the join token has expired")
    node = RegisteredNode(node_id, token.name, now)
    if not storage.insert_node(tx, node):
        raise Fault(NODE_MISMATCH, detail=f"a join token was used to register {node_id}, which is registered")
    digest = Digest(pepper_version, domain_keys.digest(peppers[pepper_version], secret.encode()))
    key = Key(id=key_id, type=KeyType.NODE, project_id=None, name=token.name, redacted=domain_keys.redact(secret), created_at=now)
    if not storage.insert_key(tx, node_id, key, digest):
        raise Fault(PARAMETER_INVALID, param="key", message="This key cannot be used.")
    storage.use_token(tx, token_id, node_id, now)
    return node


def _add_key(tx: PlatformTx, node: RegisteredNode, key_id: str, ingredients: Ingredients, now: int) -> ShownNode:
    made = domain_keys.new_key(KeyType.NODE, ingredients.random_bytes)
    key = Key(id=key_id, type=KeyType.NODE, project_id=None, name=node.name, redacted=made.redacted, created_at=now)
    storage.insert_key(tx, node.id, key, ingredients.pepper.digest(made.secret))
    return ShownNode(node, key, made.secret)


def _refuse_reserved(name: str) -> None:
    if name == SEEDED:
        raise Fault(PARAMETER_INVALID, param="name", message="This name is that of the node of the settings.")
