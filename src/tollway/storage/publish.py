"""Versions and changes of the snapshot.

One row holds the head; its lock is taken before a publishing transaction reads what it will publish and kept until it commits, so
versions are dense, their order is commit order, and no entry is made from what another transaction is about to change. (On SQLite
there is one writer at a time anyway.)
"""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from tollway.domain.snapshot import Change
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.schema import changes, publish_head

CHANGES_KEPT = 100_000
"""Changes a node may be behind before it must fetch the whole snapshot: some 30 MB, and more than most snapshots are large."""


def lock_head(tx: Transaction) -> None:
    """Make this transaction the only one that publishes, until it ends."""
    tx.connection.execute(sa.select(publish_head.c.version).with_for_update()).one()
    tx.publication_locked = True


def find_head(tx: Transaction) -> int:
    """The latest version."""
    version: int = tx.connection.execute(sa.select(publish_head.c.version)).scalar_one()
    return version


def raise_head(tx: Transaction, by: int) -> int:
    """Leave out `by` versions; returns the new head. Whoever followed before must read the whole snapshot. Needs `lock_head` before."""
    assert tx.publication_locked, "lock_head comes first in a publishing transaction"
    move = publish_head.update().values(version=publish_head.c.version + by).returning(publish_head.c.version)
    head: int = tx.connection.execute(move).scalar_one()
    tx.published_version = head
    return head


def append_changes(tx: Transaction, unnumbered: Sequence[Change], now: int) -> int:
    """Give each of the changes the next version, in order, and store them. Returns the new head. Needs `lock_head` before."""
    assert tx.publication_locked, "lock_head comes first in a publishing transaction"
    move = publish_head.update().values(version=publish_head.c.version + len(unnumbered)).returning(publish_head.c.version)
    head: int = tx.connection.execute(move).scalar_one()
    numbered = [msgspec.structs.replace(change, version=version) for version, change in enumerate(unnumbered, head - len(unnumbered) + 1)]
    rows = [
        {
            "version": change.version,
            "kind": change.kind,
            "entity_id": change.id,
            "body": msgspec.json.encode(change),
            "created_at": now,
        }
        for change in numbered
    ]
    if rows:
        tx.connection.execute(changes.insert(), rows)
        tx.connection.execute(changes.delete().where(changes.c.version <= head - CHANGES_KEPT))
        tx.published_version = head
    return head


def find_changes(tx: PlatformTx, since: int, limit: int) -> list[tuple[int, bytes]] | None:
    """Up to `limit` changes after version `since`, in order, as (version, encoded Change).

    None if they cannot be had: some are no longer kept, or `since` was never reached here (a database restored from a backup).
    """
    query = sa.select(changes.c.version, changes.c.body).where(changes.c.version > since).order_by(changes.c.version).limit(limit)
    rows = [(row.version, row.body) for row in tx.connection.execute(query)]
    if rows:
        return rows if rows[0][0] == since + 1 else None
    return [] if since == find_head(tx) else None
