"""Logged content of projects, sealed: the database never has it in clear. What an organization's content comes to stands in a row of its
own, which each transaction changes last."""

from collections import Counter
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.catalog import Endpoint
from tollway.domain.content_logs import ContentRecord
from tollway.domain.data_retention import ProjectRetention, RetentionType
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations, projects
from tollway.storage.schema_data_protection import content_deletions, content_log_totals, content_logs

REMOVED_MAX = 100
"""Contents that one transaction deletes: each may have most of a megabyte."""

_C = content_logs.c
_D = content_deletions.c
_T = content_log_totals.c
_SIZE = sa.func.length(_C.content).label("size")
_IS_KEPT = ~sa.exists().where(_D.organization_id == _C.organization_id, _D.project_id == _C.project_id)
_RECORD = [column for column in content_logs.c if column.name not in ("content", "expires_at")]


class SealedContent(NamedTuple):
    """Logged content with what is known of it."""

    record: ContentRecord
    content: bytes


def find_organization_retention(tx: TenantTx) -> RetentionType:
    """Return the data retention of the organization."""
    query = sa.select(organizations.c.data_retention).where(organizations.c.id == tx.organization_id)
    return RetentionType(tx.connection.execute(query).scalar_one())


def set_organization_retention(tx: TenantTx, type: RetentionType) -> None:
    """Store the data retention of the organization."""
    tx.connection.execute(organizations.update().where(organizations.c.id == tx.organization_id).values(data_retention=type))


def find_project_retention(tx: TenantTx, project_id: str) -> ProjectRetention:
    """Return the data retention of a project, which must exist."""
    row = tx.connection.execute(sa.select(projects).where(*_project(tx, project_id))).one()
    return ProjectRetention(type=RetentionType(row.data_retention), content_retention_seconds=row.content_retention_seconds)


def set_project_retention(tx: TenantTx, project_id: str, retention: ProjectRetention) -> None:
    """Store the data retention of a project."""
    values = {"data_retention": retention.type, "content_retention_seconds": retention.content_retention_seconds}
    tx.connection.execute(projects.update().where(*_project(tx, project_id)).values(values))


def end_logging(tx: TenantTx) -> list[str]:
    """Let no project of the organization log content. Return those that did."""
    own = sa.and_(projects.c.organization_id == tx.organization_id, projects.c.content_retention_seconds.is_not(None))
    ended = projects.update().where(own).values(content_retention_seconds=None).returning(projects.c.id)
    return sorted(tx.connection.execute(ended).scalars())


def insert_content(tx: TenantTx, record: ContentRecord, content: bytes, expires_at: int) -> int:
    """Store content until `expires_at` (UTC microseconds, exclusive), and return the bytes that the organization has stored then. Content
    that is stored already stays."""
    values = {**msgspec.to_builtins(record), "organization_id": tx.organization_id, "expires_at": expires_at, "content": content}
    stored = tx.insert(content_logs).values(values).on_conflict_do_nothing().returning(_C.id)
    added = len(content) if tx.connection.execute(stored).first() is not None else 0
    insert = tx.insert(content_log_totals).values(organization_id=tx.organization_id, bytes=added)
    kept = insert.on_conflict_do_update(index_elements=["organization_id"], set_={"bytes": _T.bytes + added}).returning(_T.bytes)
    return int(tx.connection.execute(kept).scalar_one())


def list_records(tx: TenantTx, project_id: str, window: PageWindow, now: int) -> Page[ContentRecord]:
    """Return what is logged of a project and has not expired at `now`, by the id of the request."""
    query = sa.select(*_RECORD).where(_C.organization_id == tx.organization_id, _C.project_id == project_id, _C.expires_at > now, _IS_KEPT)
    return fetch_page(tx, query, _C.id, window, _record)


def find_content(tx: TenantTx, project_id: str, id: str, now: int) -> SealedContent | None:
    """Return the content of a request of a project; None if none is logged, or it has expired at `now`."""
    query = sa.select(content_logs).where(
        _C.organization_id == tx.organization_id, _C.project_id == project_id, _C.id == id, _C.expires_at > now, _IS_KEPT
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else SealedContent(_record(row), bytes(row.content))


def list_sealed(tx: TenantTx, after: str | None, now: int, count_max: int) -> list[SealedContent]:
    """Return content of all projects of the organization that has not expired at `now`, by the id of the request after `after`."""
    query = sa.select(content_logs).where(_C.organization_id == tx.organization_id, _C.expires_at > now, _IS_KEPT)
    if after is not None:
        query = query.where(_C.id > after)
    return [SealedContent(_record(row), bytes(row.content)) for row in tx.connection.execute(query.order_by(_C.id).limit(count_max))]


def shorten_retention(tx: TenantTx, project_id: str, lifetime_us: int) -> None:
    """Let no content of a project be kept for longer than so many microseconds."""
    ends_at = _C.created_at + lifetime_us
    own = sa.and_(_C.organization_id == tx.organization_id, _C.project_id == project_id, _C.expires_at > ends_at)
    tx.connection.execute(content_logs.update().where(own).values(expires_at=ends_at))


def delete_content(tx: TenantTx, project_id: str | None = None) -> None:
    """Delete the content of a project, or of all projects of the organization (None). What is more than REMOVED_MAX is not read any more
    from this transaction on, and left to `remove_ended`: a whole log is too much for one statement. No content of these projects may be
    stored until `is_being_deleted` says no."""
    own = _C.organization_id == tx.organization_id
    if _remove(tx, own if project_id is None else sa.and_(own, _C.project_id == project_id), _C.id) < REMOVED_MAX:
        return
    with_content = sa.select(projects.c.organization_id, projects.c.id).where(
        projects.c.organization_id == tx.organization_id,
        sa.exists().where(_C.organization_id == projects.c.organization_id, _C.project_id == projects.c.id),
    )
    if project_id is not None:
        with_content = with_content.where(projects.c.id == project_id)
    insert = tx.insert(content_deletions).from_select(["organization_id", "project_id"], with_content)
    tx.connection.execute(insert.on_conflict_do_nothing())


def is_being_deleted(tx: TenantTx, project_id: str) -> bool:
    """Return whether content that a project logged before is still being deleted."""
    query = sa.select(_D.project_id).where(_D.organization_id == tx.organization_id, _D.project_id == project_id)
    return tx.connection.execute(query).first() is not None


def remove_expired(tx: PlatformTx, now: int) -> int:
    """Remove at most REMOVED_MAX contents that have expired at `now`; return how many."""
    return _remove(tx, _C.expires_at <= now, _C.expires_at)


def remove_ended(tx: PlatformTx) -> int | None:
    """Remove at most REMOVED_MAX contents of one project whose content is being deleted; return how many, None if there is no such
    project."""
    ended = tx.connection.execute(sa.select(content_deletions).order_by(*content_deletions.primary_key.columns).limit(1)).one_or_none()
    if ended is None:
        return None
    removed = _remove(tx, sa.and_(_C.organization_id == ended.organization_id, _C.project_id == ended.project_id), _C.id)
    if removed < REMOVED_MAX:
        done = sa.and_(_D.organization_id == ended.organization_id, _D.project_id == ended.project_id)
        tx.connection.execute(content_deletions.delete().where(done))
    return removed


def _remove(tx: PlatformTx | TenantTx, condition: sa.ColumnElement[bool], order: sa.Column[Any]) -> int:
    """Remove at most REMOVED_MAX contents, the first of an order that an index has, and return how many."""
    query = sa.select(_C.organization_id, _C.id).where(condition).order_by(order).limit(REMOVED_MAX)
    found = [(row.organization_id, row.id) for row in tx.connection.execute(query)]
    if found:
        delete = content_logs.delete().where(sa.tuple_(_C.organization_id, _C.id).in_(found))
        sizes = Counter[str]()
        for row in tx.connection.execute(delete.returning(_C.organization_id, _SIZE)):
            sizes[row.organization_id] += row.size
        for organization_id in sorted(sizes):
            _take_off(tx, organization_id, sizes[organization_id])
    return len(found)


def _project(tx: TenantTx, project_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return projects.c.organization_id == tx.organization_id, projects.c.id == project_id


def _take_off(tx: PlatformTx | TenantTx, organization_id: str, size: int) -> None:
    tx.connection.execute(content_log_totals.update().where(_T.organization_id == organization_id).values(bytes=_T.bytes - size))


def _record(row: Any) -> ContentRecord:
    return ContentRecord(
        id=row.id,
        organization_id=row.organization_id,
        project_id=row.project_id,
        key_id=row.key_id,
        endpoint=Endpoint(row.endpoint),
        model=row.model,
        created_at=row.created_at,
    )
