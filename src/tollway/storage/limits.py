"""Limits at rest: columns on each level that can be limited, and a table for limits on single models."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.limits import DIMENSIONS, UNLIMITED, LimitLevel, Limits, LimitSubject
from tollway.domain.tenants import Status
from tollway.storage.database import TenantTx, Transaction
from tollway.storage.pages import split_ids
from tollway.storage.schema import END_USER_PREFIX, api_keys, model_limits, organizations, projects, service_accounts

SUBJECTS_MAX = 500
"""Ids named in one query."""


def find_limits(tx: TenantTx, subject: LimitSubject) -> Limits | None:
    """Return the limits of a subject of the organization; None if it does not exist, is archived, deleted or revoked."""
    table, where = _locate(tx, subject)
    prefix = _find_prefix(subject)
    row = tx.connection.execute(sa.select(*(table.c[prefix + each.name] for each in DIMENSIONS)).where(where)).one_or_none()
    return None if row is None else read_limits(row, prefix)


def put_limits(tx: TenantTx, subject: LimitSubject, limits: Limits) -> None:
    """Replace the limits of a subject that `find_limits` finds."""
    table, where = _locate(tx, subject)
    prefix = _find_prefix(subject)
    tx.connection.execute(table.update().where(where).values({prefix + name: size for name, size in limits.to_dict().items()}))


def put_model_limits(tx: TenantTx, subject: LimitSubject, model: str, limits: Limits) -> None:
    """Replace the limits of a subject on one model."""
    own = {"organization_id": tx.organization_id, "level": subject.level, "subject_id": subject.id, "model": model}
    columns = model_limits.c
    where = [columns[name] == value for name, value in own.items()]
    tx.connection.execute(model_limits.delete().where(*where))
    if limits != UNLIMITED:
        tx.connection.execute(model_limits.insert().values(**own, **limits.to_dict()))


def delete_model_limits(tx: TenantTx, subject_ids: Iterable[str]) -> None:
    """Delete the limits on single models of subjects that can no longer act: nothing reads them again, and quotas count the rest."""
    columns = model_limits.c
    for part in split_ids(subject_ids):
        tx.connection.execute(model_limits.delete().where(columns.organization_id == tx.organization_id, columns.subject_id.in_(part)))


def list_model_limits(tx: Transaction, level: LimitLevel, ids: Sequence[str]) -> dict[str, dict[str, Limits]]:
    """Return the limits on single models of these subjects, by subject and model; nothing for those that have none."""
    found: dict[str, dict[str, Limits]] = {}
    columns = model_limits.c
    for start in range(0, len(ids), SUBJECTS_MAX):
        query = sa.select(model_limits).where(columns.level == level, columns.subject_id.in_(ids[start : start + SUBJECTS_MAX]))
        for row in tx.connection.execute(query.order_by(columns.model)):
            found.setdefault(row.subject_id, {})[row.model] = read_limits(row)
    return found


def read_limits(row: Any, prefix: str = "") -> Limits:
    """Return the limits of a row that has their columns, whose names may begin with `prefix`."""
    return Limits(**{each.name: getattr(row, prefix + each.name) for each in DIMENSIONS})


def _find_prefix(subject: LimitSubject) -> str:
    return END_USER_PREFIX if subject.level is LimitLevel.END_USER else ""


def _locate(tx: TenantTx, subject: LimitSubject) -> tuple[sa.Table, sa.ColumnElement[bool]]:
    """Return the table of a subject and the condition that finds it there, as long as it can act."""
    table, conditions = _TABLES[subject.level], _ACTIVE[subject.level]
    owner = table.c.id if subject.level is LimitLevel.ORGANIZATION else table.c.organization_id
    found = [owner == tx.organization_id, table.c.id == subject.id, conditions]
    if subject.project_id:
        found.append(table.c.project_id == subject.project_id)
    return table, sa.and_(*found)


_TABLES: Mapping[LimitLevel, sa.Table] = {
    LimitLevel.END_USER: projects,
    LimitLevel.API_KEY: api_keys,
    LimitLevel.SERVICE_ACCOUNT: service_accounts,
    LimitLevel.PROJECT: projects,
    LimitLevel.ORGANIZATION: organizations,
}
_ACTIVE: Mapping[LimitLevel, sa.ColumnElement[bool]] = {
    LimitLevel.END_USER: projects.c.status == Status.ACTIVE,
    LimitLevel.API_KEY: api_keys.c.revoked_at.is_(None),
    LimitLevel.SERVICE_ACCOUNT: service_accounts.c.deleted_at.is_(None),
    LimitLevel.PROJECT: projects.c.status == Status.ACTIVE,
    LimitLevel.ORGANIZATION: organizations.c.status == Status.ACTIVE,
}
