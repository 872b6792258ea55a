"""Plans and overrides: named sets of limits that organizations subscribe to, and what holds in their place until an instant.

Gateways see neither. What an organization's limits come to is found when they are published (`storage.plans`), without regard to the time:
an override holds until it is removed, by an operator or by `remove_ended`, which publishes the organization in the same transaction. So a
snapshot and the changes before it cannot disagree about an override that ends between them.
"""

from collections.abc import Mapping

import msgspec

from tollway.control import publish, tenants
from tollway.control.limits import check_limits, check_scopes
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.pages import Page, PageWindow
from tollway.domain.plans import ALL_MODELS, OVERRIDE_US_MAX, PLAN_MODELS_MAX, LimitOverride, OrganizationLimits, Plan
from tollway.domain.snapshot import OrganizationEntry
from tollway.storage import plans as storage
from tollway.storage.database import Database, PlatformTx, TenantTx, Transaction

# ---- Plans --------------------------------------------------------------------------------------------------------------


def create_plan(tx: PlatformTx, plan: Plan) -> Plan:
    """Create a plan, which no organization has yet. Raises PARAMETER_INVALID, MODEL_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    _check(tx, plan)
    storage.insert_plan(tx, plan)
    return plan


def update_plan(tx: PlatformTx, plan_id: str, *, name: str | None, limits: Mapping[str, Limits], now: int) -> Plan:
    """Change a plan, and with it the limits of all organizations that have it. `name`: None leaves it. `limits`: by model, in place of
    those before; what they leave out stays.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID, MODEL_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    before = get_plan(tx, plan_id)
    plan = msgspec.structs.replace(before, name=before.name if name is None else name, limits={**before.limits, **limits})
    _check(tx, plan)
    storage.update_plan(tx, plan)
    publish.publish(tx, OrganizationEntry, storage.list_subscribers(tx, plan_id), now)
    return get_plan(tx, plan_id)


def delete_plan(tx: PlatformTx, plan_id: str) -> None:
    """Delete a plan. Raises RESOURCE_UNKNOWN, and STATE_CONFLICT while organizations have it."""
    publish.lock(tx)
    plan = get_plan(tx, plan_id)
    subscribers = len(storage.list_subscribers(tx, plan_id))
    if subscribers:
        holders = "organization has" if subscribers == 1 else "organizations have"
        raise Fault(STATE_CONFLICT, message=f"{subscribers} {holders} the plan '{plan.name}': give them another one first.")
    storage.delete_plan(tx, plan_id)


def get_plan(tx: Transaction, plan_id: str) -> Plan:
    """Return a plan. Raises RESOURCE_UNKNOWN."""
    plan = storage.find_plan(tx, plan_id) if ids.is_id(ids.PLAN, plan_id) else None
    if plan is None:
        raise Fault(RESOURCE_UNKNOWN)
    return plan


def list_plans(tx: PlatformTx, window: PageWindow) -> Page[Plan]:
    """Return the plans."""
    return storage.list_plans(tx, window)


def _check(tx: PlatformTx, plan: Plan) -> None:
    if storage.is_name_taken(tx, plan.name, other_than=plan.id):
        raise Fault(STATE_CONFLICT, param="name", message="A plan has this name already.")
    for model, limits in plan.limits.items():
        check_limits(limits, "limits." if model == ALL_MODELS else f"model_limits.{model}.")
    limited = {model for model, limits in plan.limits.items() if limits != UNLIMITED}
    if len(limited) > PLAN_MODELS_MAX:
        raise Fault(PARAMETER_INVALID, param="model_limits", message=f"A plan may limit {PLAN_MODELS_MAX} models one by one.")
    check_scopes(tx, limited, "model_limits")


# ---- Plans of organizations ---------------------------------------------------------------------------------------------


def subscribe(tx: TenantTx, plan_id: str | None, now: int) -> None:
    """Let the organization have a plan, or none. Raises STATE_CONFLICT (archived), PARAMETER_INVALID for a plan that does not exist."""
    publish.lock(tx)
    tenants.require_active_organization(tx)
    if plan_id is not None and (not ids.is_id(ids.PLAN, plan_id) or storage.find_plan(tx, plan_id) is None):
        raise Fault(PARAMETER_INVALID, param="plan_id", message=f"There is no plan '{plan_id}'.")
    storage.put_subscription(tx, plan_id)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)


def put_override(tx: TenantTx, override: LimitOverride, now: int) -> LimitOverride:
    """Let other limits hold until an instant, in place of those of the organization and its plan. Replaces the override on the same model.

    Raises STATE_CONFLICT (archived), PARAMETER_INVALID, MODEL_UNKNOWN."""
    check_limits(override.limits, "limits.")
    if override.limits == UNLIMITED:
        raise Fault(PARAMETER_INVALID, message="Name at least one limit.")
    if not now < override.until_at <= now + OVERRIDE_US_MAX:
        raise Fault(PARAMETER_INVALID, param="until", message="'until' must be in the future, and within a year.")
    publish.lock(tx)
    tenants.require_active_organization(tx)
    check_scopes(tx, {override.model}, "model")
    storage.put_override(tx, override)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)
    return override


def end_override(tx: TenantTx, model: str, now: int) -> None:
    """End an override before its time. Raises RESOURCE_UNKNOWN if there is none."""
    publish.lock(tx)
    tenants.require_active_organization(tx)
    if not storage.delete_override(tx, model):
        raise Fault(RESOURCE_UNKNOWN)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)


def get_organization_limits(tx: TenantTx) -> OrganizationLimits:
    """Return all that is said about the limits of the organization. Raises RESOURCE_UNKNOWN."""
    tenants.get_organization(tx)
    return storage.get_organization_limits(tx)


def remove_ended(database: Database, now: int) -> list[str]:
    """Remove the overrides that have ended by `now`, and publish what holds without them. Return the organizations concerned."""
    with database.platform(write=False) as tx:
        if not storage.has_ended_overrides(tx, now):
            return []
    with database.platform() as tx:
        publish.lock(tx)
        concerned = storage.remove_ended_overrides(tx, now)
        publish.publish(tx, OrganizationEntry, concerned, now)
    return concerned
