"""Data keys of organizations at rest: wrapped, each with the name of the key that wrapped it."""

from typing import NamedTuple

import sqlalchemy as sa

from tollway.storage.database import PlatformTx
from tollway.storage.schema import data_keys


class StoredDataKey(NamedTuple):
    """A wrapped data key. `wrapped`: None once it was destroyed."""

    organization_id: str
    kek: str
    wrapped: bytes | None


_STORED = (data_keys.c.organization_id, data_keys.c.kek, data_keys.c.wrapped)


def find(tx: PlatformTx, organization_id: str) -> StoredDataKey | None:
    """Return the data key of an organization; None if it has none yet."""
    row = tx.connection.execute(sa.select(*_STORED).where(data_keys.c.organization_id == organization_id)).one_or_none()
    return None if row is None else StoredDataKey(*row)


def insert(tx: PlatformTx, key: StoredDataKey, now: int) -> None:
    """Store the first data key of an organization, unless it has one already."""
    values = {"organization_id": key.organization_id, "kek": key.kek, "wrapped": key.wrapped, "wrapped_at": now, "created_at": now}
    tx.connection.execute(tx.insert(data_keys).values(values).on_conflict_do_nothing(index_elements=["organization_id"]))


def list_after(tx: PlatformTx, after: str, count_max: int) -> list[StoredDataKey]:
    """Return data keys that were not destroyed, by organization after `after`."""
    query = sa.select(*_STORED).where(data_keys.c.organization_id > after, data_keys.c.wrapped.is_not(None))
    return [StoredDataKey(*row) for row in tx.connection.execute(query.order_by(data_keys.c.organization_id).limit(count_max))]


def rewrap(tx: PlatformTx, before: StoredDataKey, kek: str, wrapped: bytes, now: int) -> bool:
    """Store another wrapping of a data key that is still `before`. Return whether it was."""
    own = sa.and_(data_keys.c.organization_id == before.organization_id, data_keys.c.wrapped == before.wrapped)
    changed = tx.connection.execute(data_keys.update().where(own).values(kek=kek, wrapped=wrapped, wrapped_at=now))
    return changed.rowcount == 1


def count_by_kek(tx: PlatformTx) -> dict[str, int]:
    """Return how many data keys each key has wrapped; those that were destroyed are left out."""
    query = sa.select(data_keys.c.kek, sa.func.count()).where(data_keys.c.wrapped.is_not(None)).group_by(data_keys.c.kek)
    return {row[0]: row[1] for row in tx.connection.execute(query)}
