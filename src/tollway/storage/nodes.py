"""Nodes, their keys and the tokens with which they join. Of each secret only the digest is stored."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.keys import Key, KeyType
from tollway.domain.nodes import JoinToken, RegisteredNode
from tollway.storage.database import PlatformTx
from tollway.storage.keys import Digest, put_node_key
from tollway.storage.schema import api_keys, join_tokens, nodes

NODES_LISTED_MAX = 1000
"""Bound on the nodes of one answer."""


def insert_node(tx: PlatformTx, node: RegisteredNode) -> bool:
    """Store a new node. Return False, and change nothing, if there is one with its id."""
    insert = tx.insert(nodes).values(id=node.id, name=node.name, created_at=node.created_at, acked_version=0).on_conflict_do_nothing()
    return tx.connection.execute(insert.returning(nodes.c.id)).one_or_none() is not None


def find_node(tx: PlatformTx, node_id: str) -> RegisteredNode | None:
    """Return a node, revoked or not."""
    row = tx.connection.execute(sa.select(nodes).where(nodes.c.id == node_id)).one_or_none()
    return None if row is None else _node(row)


def lock_node(tx: PlatformTx, node_id: str) -> RegisteredNode | None:
    """As `find_node`, and let no other transaction change the node or its keys until this one ends."""
    row = tx.connection.execute(sa.select(nodes).where(nodes.c.id == node_id).with_for_update()).one_or_none()
    return None if row is None else _node(row)


def list_nodes(tx: PlatformTx) -> list[RegisteredNode]:
    """Return the nodes, those heard of last first, then those that never connected; NODES_LISTED_MAX at most."""
    order = sa.func.coalesce(nodes.c.seen_at, 0).desc()
    query = sa.select(nodes).order_by(order, nodes.c.id).limit(NODES_LISTED_MAX)
    return [_node(row) for row in tx.connection.execute(query)]


def list_revoked(tx: PlatformTx) -> frozenset[str]:
    """Return the ids of the revoked nodes."""
    return frozenset(tx.connection.execute(sa.select(nodes.c.id).where(nodes.c.revoked_at.is_not(None))).scalars())


def set_revoked(tx: PlatformTx, node_id: str, at: int | None) -> None:
    """Mark a node as revoked at `at`; None admits it again."""
    tx.connection.execute(nodes.update().where(nodes.c.id == node_id).values(revoked_at=at))


# ---- Acknowledgements -------------------------------------------------------------------------------------------------


def put_ack(tx: PlatformTx, node_id: str, version: int, now: int) -> bool:
    """Store that a node is alive and has applied everything up to `version`. Return False if there is no such node, or it was revoked."""
    seen = {"acked_version": version, "seen_at": now, "first_seen_at": sa.func.coalesce(nodes.c.first_seen_at, now)}
    update = nodes.update().where(nodes.c.id == node_id, nodes.c.revoked_at.is_(None)).values(seen)
    return tx.connection.execute(update.returning(nodes.c.id)).one_or_none() is not None


def list_alive_nodes(tx: PlatformTx, seen_since: int) -> list[str]:
    """Return the ids of the nodes that are not revoked and were heard of at `seen_since` or later."""
    query = sa.select(nodes.c.id).where(nodes.c.seen_at >= seen_since, nodes.c.revoked_at.is_(None)).order_by(nodes.c.id)
    return list(tx.connection.execute(query).scalars())


def list_pending_nodes(tx: PlatformTx, node_ids: Sequence[str], version: int) -> list[str]:
    """Return those of `node_ids` that are not revoked and have not applied everything up to `version`."""
    pending = sa.and_(nodes.c.id.in_(node_ids), nodes.c.acked_version < version, nodes.c.revoked_at.is_(None))
    return list(tx.connection.execute(sa.select(nodes.c.id).where(pending).order_by(nodes.c.id)).scalars())


# ---- Keys -------------------------------------------------------------------------------------------------------------


def insert_key(tx: PlatformTx, node_id: str, key: Key, digest: Digest) -> bool:
    """Store a key of a node. Return whether it is a valid key of this node: not if it was stored before and is revoked, or is another's."""
    put_node_key(tx, key, digest, node_id)
    own = sa.and_(api_keys.c.digest == digest.value, api_keys.c.node_id == node_id, api_keys.c.revoked_at.is_(None))
    return tx.connection.execute(sa.select(api_keys.c.id).where(own)).one_or_none() is not None


def has_key(tx: PlatformTx, node_id: str, digests: Sequence[bytes]) -> bool:
    """Return whether the node has a key with one of `digests` that was not revoked."""
    own = sa.and_(api_keys.c.digest.in_(digests), api_keys.c.node_id == node_id, api_keys.c.revoked_at.is_(None))
    return tx.connection.execute(sa.select(api_keys.c.id).where(own)).first() is not None


def is_key_valid(tx: PlatformTx, key_id: str, now: int) -> bool:
    """Return whether a key of a node may act at instant `now`."""
    valid = sa.and_(_valid(now), api_keys.c.id == key_id)
    return tx.connection.execute(sa.select(api_keys.c.id).where(valid)).one_or_none() is not None


def retire_keys(tx: PlatformTx, node_id: str, except_id: str, expires_at: int, now: int) -> None:
    """Let the key of a node that has no end yet end at `expires_at`, and those that have one end now; `except_id` stays as it is."""
    others = sa.and_(api_keys.c.node_id == node_id, api_keys.c.id != except_id, api_keys.c.revoked_at.is_(None))
    tx.connection.execute(api_keys.update().where(others, api_keys.c.expires_at.is_not(None)).values(revoked_at=now))
    tx.connection.execute(api_keys.update().where(others).values(expires_at=expires_at))


def revoke_keys(tx: PlatformTx, node_id: str, now: int, *, name: str | None = None, except_digest: bytes = b"") -> None:
    """Revoke the keys of a node: all, or those of this `name`; the one with `except_digest` stays valid."""
    which = sa.and_(api_keys.c.node_id == node_id, api_keys.c.digest != except_digest, api_keys.c.revoked_at.is_(None))
    if name is not None:
        which = sa.and_(which, api_keys.c.name == name)
    tx.connection.execute(api_keys.update().where(which).values(revoked_at=now))


def _valid(now: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        api_keys.c.type == KeyType.NODE,
        api_keys.c.revoked_at.is_(None),
        sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
    )


# ---- Join tokens ------------------------------------------------------------------------------------------------------


def insert_token(tx: PlatformTx, token: JoinToken, digest: Digest) -> None:
    """Store a new join token, and remove those that expired a month before it was made."""
    tx.connection.execute(join_tokens.delete().where(join_tokens.c.expires_at < token.created_at - 30 * 86_400_000_000))
    row = {
        "id": token.id,
        "name": token.name,
        "pepper_version": digest.pepper_version,
        "digest": digest.value,
        "redacted": token.redacted,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
    }
    tx.connection.execute(join_tokens.insert().values(row))


def find_token(tx: PlatformTx, digests: Sequence[bytes]) -> JoinToken | None:
    """Return the join token with one of `digests`, used, expired or neither."""
    row = tx.connection.execute(sa.select(join_tokens).where(join_tokens.c.digest.in_(digests))).one_or_none()
    return None if row is None else _token(row)


def lock_token(tx: PlatformTx, token_id: str) -> JoinToken | None:
    """Return a join token, and let no other transaction use it until this one ends."""
    row = tx.connection.execute(sa.select(join_tokens).where(join_tokens.c.id == token_id).with_for_update()).one_or_none()
    return None if row is None else _token(row)


def list_tokens(tx: PlatformTx, now: int) -> list[JoinToken]:
    """Return the join tokens that can still be used at `now`, the oldest first."""
    usable = sa.and_(join_tokens.c.used_at.is_(None), join_tokens.c.expires_at > now)
    return [_token(row) for row in tx.connection.execute(sa.select(join_tokens).where(usable).order_by(join_tokens.c.id))]


def use_token(tx: PlatformTx, token_id: str, node_id: str, now: int) -> None:
    """Store who used a join token."""
    tx.connection.execute(join_tokens.update().where(join_tokens.c.id == token_id).values(used_at=now, node_id=node_id))


def delete_token(tx: PlatformTx, token_id: str) -> bool:
    """Remove a join token that was not used. Return whether there was one."""
    delete = join_tokens.delete().where(join_tokens.c.id == token_id, join_tokens.c.used_at.is_(None))
    return tx.connection.execute(delete.returning(join_tokens.c.id)).one_or_none() is not None


def _node(row: Any) -> RegisteredNode:
    return RegisteredNode(row.id, row.name, row.created_at, row.acked_version, row.first_seen_at, row.seen_at, row.revoked_at)


def _token(row: Any) -> JoinToken:
    return JoinToken(row.id, row.name, row.redacted, row.created_at, row.expires_at, row.used_at, row.node_id)
