"""Plans and overrides: named sets of limits that organizations subscribe to, and what holds in their place until an instant. The
monthly budget of a plan is a budget of each organization that has the plan (`budgets.follow_plan`).

Gateways see neither. What an organization's limits come to is found when they are published (`storage.plans`), without regard to the time:
an override holds until it is removed, by an operator or by `remove_ended`, which publishes the organization in the same transaction. So a
snapshot and the changes before it cannot disagree about an override that ends between them.
"""

from collections.abc import Callable, Mapping

import msgspec

from tollway.control import publish
from tollway.control.bounds.limits import check_limits, check_scopes
from tollway.control.money import budgets
from tollway.control.tenancy import tenants
from tollway.domain import ids
from tollway.domain.budgets import check_amount
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.limits import UNLIMITED, Limits, find_model_problem
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


def update_plan(
    tx: PlatformTx,
    plan_id: str,
    *,
    name: str | None,
    limits: Mapping[str, Limits],
    monthly_budgets: Mapping[str, int | None],
    new_budget_id: Callable[[], str],
    now: int,
) -> Plan:
    """Change a plan, and with it the limits and the monthly budget of all organizations that have it. `name`: None leaves it. `limits`: by
    model, in place of those before; what they leave out stays. `monthly_budgets`: by currency, None to end those in a currency; what they
    leave out stays. `new_budget_id`: makes ids of budgets.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID, MODEL_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    before = get_plan(tx, plan_id)
    budgeted = {currency: pico for currency, pico in {**before.monthly_budgets, **monthly_budgets}.items() if pico is not None}
    plan = msgspec.structs.replace(
        before, name=before.name if name is None else name, limits={**before.limits, **limits}, monthly_budgets=budgeted
    )
    _check(tx, plan)
    subscribers = storage.list_subscribers(tx, plan_id)
    if budgeted and (missing := sorted(set(subscribers.values()) - set(budgeted))):
        message = f"Organizations that are billed in {missing[0]} have the plan: state its monthly budget in {missing[0]} too."
        raise Fault(STATE_CONFLICT, param="monthly_budgets", message=message)
    storage.update_plan(tx, plan)
    publish.publish(tx, OrganizationEntry, list(subscribers), now)
    budgets.follow_plan(tx, subscribers, plan, new_id=new_budget_id, now=now)
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
    by_model = {model: limits for model, limits in plan.limits.items() if model != ALL_MODELS}
    void = find_model_problem(plan.limits.get(ALL_MODELS, UNLIMITED), by_model)
    if void is not None:
        raise Fault(PARAMETER_INVALID, param="model_limits", message=void.message)
    limited = {model for model, limits in plan.limits.items() if limits != UNLIMITED}
    if len(limited) > PLAN_MODELS_MAX:
        raise Fault(PARAMETER_INVALID, param="model_limits", message=f"A plan may limit {PLAN_MODELS_MAX} models one by one.")
    check_scopes(tx, limited, "model_limits")
    for currency, pico in plan.monthly_budgets.items():
        problem = check_amount(pico)
        if problem is not None:
            message = f"The monthly budget in {currency} cannot be used: {problem}."
            raise Fault(PARAMETER_INVALID, param="monthly_budgets", message=message)


# ---- Plans of organizations ---------------------------------------------------------------------------------------------


def subscribe(tx: TenantTx, plan_id: str | None, *, new_budget_id: Callable[[], str], now: int) -> None:
    """Let the organization have a plan, with its limits and its monthly budget, or none. `new_budget_id`: makes ids of budgets.

    Raises STATE_CONFLICT (archived), PARAMETER_INVALID for a plan that does not exist, or that has no budget in the organization's
    currency although it has budgets."""
    publish.lock(tx)
    tenants.require_active_organization(tx)
    plan = storage.find_plan(tx, plan_id) if plan_id is not None and ids.is_id(ids.PLAN, plan_id) else None
    if plan_id is not None and plan is None:
        raise Fault(PARAMETER_INVALID, param="plan_id", message=f"There is no plan '{plan_id}'.")
    currency = tenants.get_organization(tx).currency
    if plan is not None and plan.monthly_budgets and currency not in plan.monthly_budgets:
        message = f"The plan '{plan.name}' has no monthly budget in {currency}, in which the organization is billed."
        raise Fault(PARAMETER_INVALID, param="plan_id", message=message)
    storage.put_subscription(tx, plan_id)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)
    budgets.follow_plan(tx, {tx.organization_id: currency}, plan, new_id=new_budget_id, now=now)


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
