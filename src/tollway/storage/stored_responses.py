"""Stored responses of organizations, sealed: conversations never reach the database in clear.

What an organization's responses come to stands in a row of its own, which each transaction changes after the responses themselves, so that
those that wait for each other do so in one order.
"""

from collections import Counter
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.schema_responses import stored_response_totals, stored_responses

REMOVED_MAX = 500
"""Responses that one transaction deletes, so that it locks for milliseconds."""

_C = stored_responses.c
_T = stored_response_totals.c

_SIZE = sa.func.length(_C.content).label("size")


class StoredTotal(NamedTuple):
    """Number and size of the stored responses of an organization."""

    responses: int
    bytes: int


def insert_response(tx: TenantTx, *, project_id: str, id: str, created_at: int, expires_at: int, content: bytes) -> StoredTotal:
    """Store a response of the organization until `expires_at` (UTC microseconds, exclusive), and return what it has stored then. One that
    is stored already stays."""
    values = {
        "organization_id": tx.organization_id,
        "id": id,
        "project_id": project_id,
        "created_at": created_at,
        "expires_at": expires_at,
        "content": content,
    }
    stored = tx.insert(stored_responses).values(values).on_conflict_do_nothing().returning(_C.id)
    is_new = tx.connection.execute(stored).first() is not None
    added = {"responses": int(is_new), "bytes": len(content) if is_new else 0}
    insert = tx.insert(stored_response_totals).values(organization_id=tx.organization_id, **added)
    sums = {name: _T[name] + count for name, count in added.items()}
    kept = insert.on_conflict_do_update(index_elements=["organization_id"], set_=sums).returning(_T.responses, _T.bytes)
    return StoredTotal(*tx.connection.execute(kept).one())


def find_response(tx: TenantTx, project_id: str, id: str, now: int) -> bytes | None:
    """Return a response of a project, sealed; None if there is none, or it has expired at `now`."""
    query = sa.select(_C.content).where(
        _C.organization_id == tx.organization_id, _C.id == id, _C.project_id == project_id, _C.expires_at > now
    )
    content = tx.connection.execute(query).scalar_one_or_none()
    return None if content is None else bytes(content)


class SealedResponse(NamedTuple):
    """A stored response with its place."""

    organization_id: str
    project_id: str
    id: str
    content: bytes


def list_sealed(tx: TenantTx, after: str | None, now: int, count_max: int) -> list[SealedResponse]:
    """Return responses of the organization that have not expired at `now`, by their ids after `after`."""
    query = sa.select(_C.organization_id, _C.project_id, _C.id, _C.content)
    query = query.where(_C.organization_id == tx.organization_id, _C.expires_at > now)
    if after is not None:
        query = query.where(_C.id > after)
    rows = tx.connection.execute(query.order_by(_C.id).limit(count_max))
    return [SealedResponse(row.organization_id, row.project_id, row.id, bytes(row.content)) for row in rows]


def delete_response(tx: TenantTx, project_id: str, id: str, now: int) -> bool:
    """Delete a response of a project. Return False if there is none, or it has expired at `now`."""
    deleted = (
        stored_responses.delete()
        .where(_C.organization_id == tx.organization_id, _C.id == id, _C.project_id == project_id)
        .returning(_C.expires_at, _SIZE)
    )
    row = tx.connection.execute(deleted).one_or_none()
    if row is None:
        return False
    _take_off(tx, tx.organization_id, 1, row.size)
    return bool(row.expires_at > now)


def shorten_retention(tx: TenantTx, lifetime_us: int) -> None:
    """Let no response of the organization be stored for longer than so many microseconds."""
    tx.connection.execute(
        stored_responses.update()
        .where(_C.organization_id == tx.organization_id, _C.expires_at > _C.created_at + lifetime_us)
        .values(expires_at=_C.created_at + lifetime_us)
    )


def delete_all(tx: TenantTx, project_id: str | None = None) -> None:
    """Delete every response of a project, or of the organization (None). What is more than REMOVED_MAX expires, and is left to
    `remove_expired`: all that an organization can store is too much for one statement."""
    own = _C.organization_id == tx.organization_id
    if project_id is not None:
        own = sa.and_(own, _C.project_id == project_id)
    if _remove(tx, own, _C.id) == REMOVED_MAX:
        tx.connection.execute(stored_responses.update().where(own, _C.expires_at > 0).values(expires_at=0))


def remove_expired(tx: PlatformTx, now: int) -> int:
    """Remove at most REMOVED_MAX responses that have expired at `now`; return how many."""
    return _remove(tx, _C.expires_at <= now, _C.expires_at)


def _remove(tx: PlatformTx | TenantTx, condition: sa.ColumnElement[bool], order: sa.Column[Any]) -> int:
    """Remove at most REMOVED_MAX responses, the first of an order that an index has, and return how many."""
    query = sa.select(_C.organization_id, _C.id).where(condition).order_by(order).limit(REMOVED_MAX)
    found = [(row.organization_id, row.id) for row in tx.connection.execute(query)]
    if found:
        delete = stored_responses.delete().where(sa.tuple_(_C.organization_id, _C.id).in_(found))
        responses, sizes = Counter[str](), Counter[str]()
        for row in tx.connection.execute(delete.returning(_C.organization_id, _SIZE)):
            responses[row.organization_id] += 1
            sizes[row.organization_id] += row.size
        for organization_id in sorted(responses):
            _take_off(tx, organization_id, responses[organization_id], sizes[organization_id])
    return len(found)


def _take_off(tx: PlatformTx | TenantTx, organization_id: str, responses: int, size: int) -> None:
    own = stored_response_totals.update().where(_T.organization_id == organization_id)
    tx.connection.execute(own.values(responses=_T.responses - responses, bytes=_T.bytes - size))
