"""Counts of what quotas bound, in the tables that hold it. Each count reads an index of one organization."""

from collections.abc import Mapping
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
    tables = list(_ENDS) if quota is Quota.CREATIONS_PER_DAY else [COUNTED[quota]]
    total = sa.union_all(*(_count(tx, quota, table, now) for table in tables)).subquery()
    found: int = tx.connection.execute(sa.select(sa.func.sum(total.c.rows))).scalar_one()
    return found


def _count(tx: TenantTx, quota: Quota, table: sa.Table, now: int) -> sa.Select[Any]:
    own = sa.select(sa.func.count().label("rows")).select_from(table).where(table.c.organization_id == tx.organization_id)
    own = own.where(IS_BUDGET) if table is budgets else own
    return own.where(*_list_conditions(quota, table, now))


def _made_at(table: sa.Table) -> sa.Column[Any]:
    return users.c.added_at if table is users else table.c.created_at


def _list_conditions(quota: Quota, table: sa.Table, now: int) -> list[sa.ColumnElement[bool]]:
    match quota:
        case Quota.CREATIONS_PER_DAY:
            # Whatever ended before that day began was not created on it: with this the index finds the few rows that count.
            since = now - DAY_US
            return [sa.or_(_ENDS[table].is_(None), _ENDS[table] > since), _made_at(table) > since]
        case Quota.MODEL_LIMITS:
            return []
        case Quota.INVITES:
            return [invites.c.deleted_at.is_(None), invites.c.accepted_at.is_(None)]
        case Quota.BUDGET_RAISES:
            active = sa.select(budgets.c.id).where(budgets.c.id == budget_raises.c.budget_id, budgets.c.archived_at.is_(None))
            return [budget_raises.c.ends_at > now, active.exists()]
        case Quota.SERVICE_ACCOUNTS:
            active = sa.select(projects.c.id).where(projects.c.id == service_accounts.c.project_id, projects.c.archived_at.is_(None))
            return [service_accounts.c.deleted_at.is_(None), active.exists()]
        case Quota.API_KEYS:
            return [api_keys.c.revoked_at.is_(None), api_keys.c.project_id.is_not(None)]
        case Quota.ADMIN_KEYS:
            return [api_keys.c.revoked_at.is_(None), api_keys.c.project_id.is_(None)]
        case _:
            return [_ENDS[table].is_(None)]
