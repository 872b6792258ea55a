"""Plans that organizations subscribe to, and overrides of their limits that end. For operators."""

from typing import Annotated

from fastapi import Query

from tollway.control.api import routes
from tollway.control.api.bounds.limits import OfModel, OperatorReader, OperatorWriter
from tollway.control.api.routes import Plane
from tollway.control.api.schemas import ListOut, PageQuery, list_out
from tollway.control.api.tenancy.plan_schemas import (
    OrganizationLimitsOut,
    OverrideOut,
    OverrideWrite,
    PlanCreate,
    PlanDeleted,
    PlanOut,
    PlanUpdate,
    organization_limits_out,
    override_out,
    plan_out,
)
from tollway.control.tenancy import plans
from tollway.domain import ids
from tollway.domain.plans import ALL_MODELS, Plan

router = routes.router(tags=["limits"])


@router.get("/v1/platform/plans")
def list_plans(_caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[PlanOut]:
    """All plans."""
    with plane.database.platform(write=False) as tx:
        page = plans.list_plans(tx, query.window())
    return list_out(page, plan_out)


@router.post("/v1/platform/plans")
def create_plan(_caller: OperatorWriter, plane: Plane, body: PlanCreate) -> PlanOut:
    """Create a plan: limits that organizations subscribe to together. Names are unique."""
    plan = Plan(id=plane.new_id(ids.PLAN), name=body.name, limits=body.by_model(), created_at=plane.now(), monthly_budgets=body.budgets())
    with plane.database.platform() as tx:
        return plan_out(plans.create_plan(tx, plan))


@router.get("/v1/platform/plans/{plan_id}")
def retrieve_plan(_caller: OperatorReader, plane: Plane, plan_id: str) -> PlanOut:
    """One plan."""
    with plane.database.platform(write=False) as tx:
        return plan_out(plans.get_plan(tx, plan_id))


@router.post("/v1/platform/plans/{plan_id}")
def update_plan(_caller: OperatorWriter, plane: Plane, plan_id: str, body: PlanUpdate) -> PlanOut:
    """Change a plan, and with it the limits and the monthly budget of every organization that has it. What was used stays used."""
    with plane.database.platform() as tx:
        changed = plans.update_plan(
            tx,
            plan_id,
            name=body.name,
            limits=body.by_model(),
            monthly_budgets=body.budgets(),
            new_budget_id=lambda: plane.new_id(ids.BUDGET),
            now=plane.now(),
        )
        return plan_out(changed)


@router.delete("/v1/platform/plans/{plan_id}")
def delete_plan(_caller: OperatorWriter, plane: Plane, plan_id: str) -> PlanDeleted:
    """Delete a plan. It is refused while organizations have it."""
    with plane.database.platform() as tx:
        plans.delete_plan(tx, plan_id)
    return PlanDeleted(id=plan_id)


@router.get("/v1/platform/organizations/{organization_id}/limit_sources")
def retrieve_limit_sources(_caller: OperatorReader, plane: Plane, organization_id: str) -> OrganizationLimitsOut:
    """The parts that the limits of an organization are made of: its plan, its own limits, and overrides."""
    with plane.database.tenant(routes.organization(organization_id), write=False) as tx:
        return organization_limits_out(plans.get_organization_limits(tx))


@router.put("/v1/platform/organizations/{organization_id}/limit_override")
def put_override(_caller: OperatorWriter, plane: Plane, organization_id: str, body: OverrideWrite, model: OfModel = None) -> OverrideOut:
    """Let other limits of an organization hold until an instant, in place of its own and those of its plan. Replaces the override on the
    same model."""
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        return override_out(plans.put_override(tx, body.override(model), plane.now()))


@router.delete("/v1/platform/organizations/{organization_id}/limit_override")
def end_override(_caller: OperatorWriter, plane: Plane, organization_id: str, model: OfModel = None) -> OrganizationLimitsOut:
    """End an override now. Shows what the limits of the organization are made of without it."""
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        plans.end_override(tx, ALL_MODELS if model is None else model, plane.now())
        return organization_limits_out(plans.get_organization_limits(tx))
