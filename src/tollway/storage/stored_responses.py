"""Stored responses of organizations, sealed: conversations never reach the database in clear."""

import sqlalchemy as sa

from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.schema_responses import stored_responses

_C = stored_responses.c


def insert_response(tx: TenantTx, *, project_id: str, id: str, created_at: int, expires_at: int, content: bytes) -> None:
    """Store a response of the organization until `expires_at` (UTC microseconds, exclusive). One that is stored already stays."""
    values = {
        "organization_id": tx.organization_id,
        "id": id,
        "project_id": project_id,
        "created_at": created_at,
        "expires_at": expires_at,
        "content": content,
    }
    tx.connection.execute(tx.insert(stored_responses).values(values).on_conflict_do_nothing())


def has_at_least(tx: TenantTx, count: int) -> bool:
    """Return whether the organization has `count` responses stored, or more."""
    some = sa.select(_C.id).where(_C.organization_id == tx.organization_id).limit(count).subquery()
    return int(tx.connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()) >= count


def find_response(tx: TenantTx, project_id: str, id: str, now: int) -> bytes | None:
    """Return a response of a project, sealed; None if there is none, or it has expired at `now`."""
    query = sa.select(_C.content).where(
        _C.organization_id == tx.organization_id, _C.id == id, _C.project_id == project_id, _C.expires_at > now
    )
    content = tx.connection.execute(query).scalar_one_or_none()
    return None if content is None else bytes(content)


def delete_response(tx: TenantTx, project_id: str, id: str, now: int) -> bool:
    """Delete a response of a project. Return False if there is none, or it has expired at `now`."""
    deleted = (
        stored_responses.delete()
        .where(_C.organization_id == tx.organization_id, _C.id == id, _C.project_id == project_id)
        .returning(_C.expires_at)
    )
    expires_at = tx.connection.execute(deleted).scalar_one_or_none()
    return expires_at is not None and expires_at > now


def shorten_retention(tx: TenantTx, lifetime_us: int) -> None:
    """Let no response of the organization be stored for longer than so many microseconds."""
    tx.connection.execute(
        stored_responses.update()
        .where(_C.organization_id == tx.organization_id, _C.expires_at > _C.created_at + lifetime_us)
        .values(expires_at=_C.created_at + lifetime_us)
    )


def delete_all(tx: TenantTx) -> None:
    """Delete every response of the organization."""
    tx.connection.execute(stored_responses.delete().where(_C.organization_id == tx.organization_id))


def remove_expired(tx: PlatformTx, now: int, count_max: int) -> int:
    """Remove at most `count_max` responses that have expired at `now`; return how many."""
    expired = sa.select(_C.organization_id, _C.id).where(_C.expires_at <= now).order_by(_C.expires_at).limit(count_max)
    found = [(row.organization_id, row.id) for row in tx.connection.execute(expired)]
    if found:
        tx.connection.execute(stored_responses.delete().where(sa.tuple_(_C.organization_id, _C.id).in_(found)))
    return len(found)
