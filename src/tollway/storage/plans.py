"""Plans at rest, which organizations subscribe to them, and overrides of their limits."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.limits import UNLIMITED, LimitLevel, Limits
from tollway.domain.pages import Page, PageWindow
from tollway.domain.plans import ALL_MODELS, LimitOverride, OrganizationLimits, Plan
from tollway.domain.tenants import Status
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.limits import list_model_limits, read_limits
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.schema import limit_overrides, organizations, plan_limits, plans

# ---- Plans --------------------------------------------------------------------------------------------------------------


def insert_plan(tx: PlatformTx, plan: Plan) -> None:
    """Store a new plan."""
    tx.connection.execute(plans.insert().values(id=plan.id, created_at=plan.created_at, **_columns(plan)))
    _insert_limits(tx, plan)


def update_plan(tx: PlatformTx, plan: Plan) -> None:
    """Store the name, the limits and the monthly budgets of a plan in place of those before."""
    tx.connection.execute(plans.update().where(plans.c.id == plan.id).values(**_columns(plan)))
    tx.connection.execute(plan_limits.delete().where(plan_limits.c.plan_id == plan.id))
    _insert_limits(tx, plan)


def _columns(plan: Plan) -> dict[str, Any]:
    return {"name": plan.name, "monthly_budgets": json.dumps(plan.monthly_budgets)}


def _insert_limits(tx: PlatformTx, plan: Plan) -> None:
    rows = [{"plan_id": plan.id, "model": model, **limits.to_dict()} for model, limits in plan.limits.items() if limits != UNLIMITED]
    if rows:
        tx.connection.execute(plan_limits.insert(), rows)


def delete_plan(tx: PlatformTx, plan_id: str) -> None:
    """Delete a plan that nothing subscribes to."""
    tx.connection.execute(plan_limits.delete().where(plan_limits.c.plan_id == plan_id))
    tx.connection.execute(plans.delete().where(plans.c.id == plan_id))


def find_plan(tx: Transaction, plan_id: str) -> Plan | None:
    """Return a plan."""
    return _find_plans(tx, [plan_id]).get(plan_id)


def is_name_taken(tx: PlatformTx, name: str, *, other_than: str) -> bool:
    """Return whether a plan with another id has the name."""
    query = sa.select(plans.c.id).where(plans.c.name == name, plans.c.id != other_than)
    return tx.connection.execute(query).first() is not None


def list_plans(tx: PlatformTx, window: PageWindow) -> Page[Plan]:
    """Return plans, with their limits."""
    page = fetch_page(tx, sa.select(plans.c.id), plans.c.id, window, lambda row: str(row.id))
    found = _find_plans(tx, page.items)
    return Page([found[id] for id in page.items], page.has_more)


def _find_plans(tx: Transaction, plan_ids: Iterable[str]) -> dict[str, Plan]:
    found: dict[str, Plan] = {}
    for part in split_ids(plan_ids):
        limits: dict[str, dict[str, Limits]] = {}
        query = sa.select(plan_limits).where(plan_limits.c.plan_id.in_(part)).order_by(plan_limits.c.plan_id, plan_limits.c.model)
        for row in tx.connection.execute(query):
            limits.setdefault(row.plan_id, {})[row.model] = read_limits(row)
        for row in tx.connection.execute(sa.select(plans).where(plans.c.id.in_(part))):
            found[row.id] = Plan(
                id=row.id,
                name=row.name,
                limits=limits.get(row.id, {}),
                created_at=row.created_at,
                monthly_budgets=json.loads(row.monthly_budgets),
            )
    return found


# ---- Subscriptions ------------------------------------------------------------------------------------------------------


def put_subscription(tx: TenantTx, plan_id: str | None) -> None:
    """Let the organization have a plan, or none."""
    tx.connection.execute(organizations.update().where(organizations.c.id == tx.organization_id).values(plan_id=plan_id))


def list_subscribers(tx: PlatformTx, plan_id: str) -> dict[str, str]:
    """Return the currencies of the active organizations that have a plan, by their ids in order."""
    columns = organizations.c
    query = sa.select(columns.id, columns.currency).where(columns.plan_id == plan_id, columns.status == Status.ACTIVE)
    return {row.id: row.currency for row in tx.connection.execute(query.order_by(columns.id))}


# ---- Overrides ----------------------------------------------------------------------------------------------------------


def put_override(tx: TenantTx, override: LimitOverride) -> None:
    """Store an override of the organization's limits in place of the one on the same model."""
    delete_override(tx, override.model)
    values = {"organization_id": tx.organization_id, "model": override.model, "until_at": override.until_at, **override.limits.to_dict()}
    tx.connection.execute(limit_overrides.insert().values(values))


def delete_override(tx: TenantTx, model: str) -> bool:
    """Remove an override of the organization's limits. Return whether there was one."""
    columns = limit_overrides.c
    gone = limit_overrides.delete().where(columns.organization_id == tx.organization_id, columns.model == model)
    return tx.connection.execute(gone).rowcount > 0


def list_overrides(tx: Transaction, organization_ids: Iterable[str]) -> dict[str, dict[str, LimitOverride]]:
    """Return overrides that were not removed, by organization and model."""
    found: dict[str, dict[str, LimitOverride]] = {}
    for part in split_ids(organization_ids):
        query = sa.select(limit_overrides).where(limit_overrides.c.organization_id.in_(part)).order_by(limit_overrides.c.model)
        for row in tx.connection.execute(query):
            override = LimitOverride(model=row.model, limits=read_limits(row), until_at=row.until_at)
            found.setdefault(row.organization_id, {})[row.model] = override
    return found


def has_ended_overrides(tx: PlatformTx, now: int) -> bool:
    """Return whether an override has ended by `now` and was not removed."""
    return tx.connection.execute(sa.select(limit_overrides.c.model).where(limit_overrides.c.until_at <= now).limit(1)).first() is not None


def remove_ended_overrides(tx: PlatformTx, now: int) -> list[str]:
    """Remove the overrides that have ended by `now`. Return the organizations that had them."""
    gone = limit_overrides.delete().where(limit_overrides.c.until_at <= now).returning(limit_overrides.c.organization_id)
    return sorted(set(tx.connection.execute(gone).scalars()))


# ---- What holds ---------------------------------------------------------------------------------------------------------


def list_organization_limits(tx: Transaction, rows: Sequence[Any]) -> Mapping[str, OrganizationLimits]:
    """Return all that is said about the limits of organizations, by id. `rows`: those of the organizations."""
    organization_ids = [row.id for row in rows]
    by_model = list_model_limits(tx, LimitLevel.ORGANIZATION, organization_ids)
    overrides = list_overrides(tx, organization_ids)
    subscribed = _find_plans(tx, {row.plan_id for row in rows if row.plan_id is not None})
    return {
        row.id: OrganizationLimits(
            {ALL_MODELS: read_limits(row), **by_model.get(row.id, {})}, subscribed.get(row.plan_id), overrides.get(row.id, {})
        )
        for row in rows
    }


def get_organization_limits(tx: TenantTx) -> OrganizationLimits:
    """Return all that is said about the limits of the organization, which must exist."""
    row = tx.connection.execute(sa.select(organizations).where(organizations.c.id == tx.organization_id)).one()
    return list_organization_limits(tx, [row])[tx.organization_id]
