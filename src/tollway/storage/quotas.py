"""Counts of what quotas bound, in the tables that hold it. Each count reads an index of one organization."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.quotas import DAY_US, Quota
from tollway.storage.budgets import IS_BUDGET
from tollway.storage.database import TenantTx
from tollway.storage.schema import api_keys, model_limits, projects, service_accounts
from tollway.storage.schema_budgets import budget_raises, budgets
from tollway.storage.schema_people import custom_roles, invites, user_groups, users

COUNTED: Mapping[Quota, sa.Table] = {
    Quota.PROJECTS: projects,
    Quota.SERVICE_ACCOUNTS: service_accounts,
    Quota.API_KEYS: api_keys,
    Quota.ADMIN_KEYS: api_keys,
    Quota.BUDGETS: budgets,
    Quota.BUDGET_RAISES: budget_raises,
    Quota.MODEL_LIMITS: model_limits,
    Quota.ROLES: custom_roles,
    Quota.USERS: users,
    Quota.GROUPS: user_groups,
    Quota.INVITES: invites,
}
"""The table that each quota counts."""

_ENDS: Mapping[sa.Table, sa.Column[Any]] = {
    projects: projects.c.archived_at,
    service_accounts: service_accounts.c.deleted_at,
    api_keys: api_keys.c.revoked_at,
    budgets: budgets.c.archived_at,
    budget_raises: budget_raises.c.ends_at,
    custom_roles: custom_roles.c.deleted_at,
    users: users.c.removed_at,
    user_groups: user_groups.c.deleted_at,
    invites: invites.c.deleted_at,
}
"""The tables whose rows stay indefinitely, each with the column that says when a row ceases to be in force."""


def count(tx: TenantTx, quota: Quota, now: int) -> int:
    """Return how many of what `quota` counts the organization has at instant `now`."""
    found: int = tx.connection.execute(_select((quota,)), _parameters(tx, now)).scalar_one()
    return found


def count_all(tx: TenantTx, quotas: Sequence[Quota], now: int) -> dict[Quota, int]:
    """Return the counts of several quotas: by one statement, of which a database keeps the plan."""
    row = tx.connection.execute(_select(tuple(quotas)), _parameters(tx, now)).one()
    return dict(zip(quotas, row, strict=True))


def _parameters(tx: TenantTx, now: int) -> dict[str, object]:
    return {"organization_id": tx.organization_id, "now": now, "since": now - DAY_US}


@functools.cache
def _select(quotas: tuple[Quota, ...]) -> sa.Select[Any]:
    """Return the statement of `count_all`, which is written once."""
    columns: list[sa.ColumnElement[Any]] = [_count(each).label(each.value) for each in quotas]
    return sa.select(*columns)


def _count(quota: Quota) -> sa.ColumnElement[int]:
    match quota:
        case Quota.CREATIONS_PER_DAY:
            # What is in force and what has ended are counted apart, so that each count reads one part of an index. Whatever ended before
            # the day began was not created on it.
            parts = [
                part
                for table, end in _ENDS.items()
                for part in (_rows(table, end.is_(None), _made_at(table) > _SINCE), _rows(table, end > _SINCE, _made_at(table) > _SINCE))
            ]
            return functools.reduce(operator.add, parts)
        case Quota.API_KEYS:
            # The index of keys in force has no project: those without one, which are few, are taken off.
            return _rows(api_keys, api_keys.c.revoked_at.is_(None)) - _count(Quota.ADMIN_KEYS)
        case Quota.ADMIN_KEYS:
            return _rows(api_keys, api_keys.c.project_id.is_(None), api_keys.c.revoked_at.is_(None))
        case Quota.MODEL_LIMITS:
            return _rows(model_limits)
        case Quota.INVITES:
            return _rows(invites, invites.c.deleted_at.is_(None), invites.c.accepted_at.is_(None))
        case Quota.BUDGET_RAISES:
            active = sa.select(budgets.c.id).where(budgets.c.id == budget_raises.c.budget_id, budgets.c.archived_at.is_(None))
            return _rows(budget_raises, budget_raises.c.ends_at > _NOW, active.exists())
        case Quota.SERVICE_ACCOUNTS:
            active = sa.select(projects.c.id).where(projects.c.id == service_accounts.c.project_id, projects.c.archived_at.is_(None))
            return _rows(service_accounts, service_accounts.c.deleted_at.is_(None), active.exists())
        case _:
            table = COUNTED[quota]
            return _rows(table, _ENDS[table].is_(None))


def _rows(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    """Return the number of rows of the organization."""
    own = sa.select(sa.func.count()).select_from(table).where(table.c.organization_id == _ORGANIZATION, *conditions)
    return (own.where(IS_BUDGET) if table is budgets else own).scalar_subquery()


def _made_at(table: sa.Table) -> sa.Column[Any]:
    return users.c.added_at if table is users else table.c.created_at


_ORGANIZATION = sa.bindparam("organization_id", type_=sa.String)
_NOW = sa.bindparam("now", type_=sa.BigInteger)
_SINCE = sa.bindparam("since", type_=sa.BigInteger)
