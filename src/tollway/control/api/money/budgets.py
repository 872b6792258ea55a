"""Budgets of an organization, its projects and keys; and the leases by which gateways spend them.

What an operator creates on behalf of an organization, only operators may change.
"""

from typing import Annotated

from fastapi import Depends, Path, Query

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.money.budget_schemas import (
    AlertList,
    BindingBudgets,
    BudgetChanged,
    BudgetCreate,
    BudgetOut,
    BudgetUpdate,
    LeasesIn,
    LeasesOut,
    RaiseCreate,
    RaiseList,
    RaiseOut,
    alert_out,
    budget_changed,
    budget_out,
    leases_out,
    raise_out,
)
from tollway.control.api.routes import Node, Plane, may
from tollway.control.api.schemas import Deleted, ListOut, PageQuery, list_out
from tollway.control.identity import access
from tollway.control.identity.access import Tenant
from tollway.control.money import budgets
from tollway.control.money.budgets import EndUser
from tollway.control.plane import ControlPlane
from tollway.domain import ids, money
from tollway.domain.budgets import END_USER_CHARACTERS_MAX
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.roles import Permission

router = routes.router(tags=["budgets"])
link_router = routes.router(tags=["link"])

Reader = Annotated[Tenant, Depends(may(Permission.BUDGETS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.BUDGETS_WRITE))]
OfEndUser = Annotated[
    str | None,
    Query(
        max_length=END_USER_CHARACTERS_MAX,
        description="The budgets that bind this end user, as requests name it, with what it has spent of those of each end user.",
    ),
]


def find_bound_end_user(plane: ControlPlane, end_user: str | None) -> EndUser | None:
    """Return the end user that a query names; None for none."""
    return EndUser(end_user, plane.vault.end_user_key) if end_user else None


@router.get("/v1/organization/budgets")
def list_budgets(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()], include_archived: bool = False) -> ListOut[BudgetOut]:
    """The organization's budgets, and how each stands now."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = budgets.list_standings(tx, query.window(), include_archived=include_archived, now=plane.now())
    return list_out(page, budget_out)


def find_tag(stated: str | None) -> str:
    """Return the tag of a budget; empty for none. Raises Fault for one that is empty."""
    if stated == "":
        raise Fault(PARAMETER_INVALID, param="tag", message="'tag' cannot be empty: write KEY=VALUE, or leave it out.")
    return stated or ""


def find_end_user(stated: str | None) -> str:
    """Return the end user of a budget; empty for all requests. Raises Fault for one that is empty."""
    if stated == "":
        raise Fault(PARAMETER_INVALID, param="end_user", message="'end_user' cannot be empty: name one, or leave it out.")
    return stated or ""


@router.post("/v1/organization/budgets")
def create_budget(caller: Writer, plane: Plane, body: BudgetCreate) -> BudgetChanged:
    """Create a budget. It counts requests that are admitted from now on."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        budget = budgets.create_budget(
            tx,
            id=plane.new_id(ids.BUDGET),
            project_id=body.project_id,
            key_id=body.api_key_id,
            name=body.name,
            mode=body.mode,
            window=body.window,
            amount_pico=money.parse_sum(body.amount),
            currency=body.currency,
            thresholds=body.thresholds,
            is_operators=caller.is_operator,
            sizes=plane.quotas,
            now=now,
            model=body.model or "",
            tag=find_tag(body.tag),
            fallback_model=body.fallback_model or "",
            end_user=find_end_user(body.end_user),
            throttle_requests_per_minute=body.throttle_requests_per_minute or 0,
        )
        standing = budgets.describe(tx, [budget], now)[0]
    return budget_changed(standing, publish.confirm(plane.database, plane.publications, tx.published_version, now))


@router.get("/v1/organization/budgets/{budget_id}")
def retrieve_budget(caller: Reader, plane: Plane, budget_id: str) -> BudgetOut:
    """One budget, and how it stands now."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return budget_out(budgets.describe(tx, [budgets.get_budget(tx, budget_id)], plane.now())[0])


@router.post("/v1/organization/budgets/{budget_id}")
def update_budget(caller: Writer, plane: Plane, budget_id: str, body: BudgetUpdate) -> BudgetChanged:
    """Change a budget. What was spent stays spent."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        budget = budgets.update_budget(
            tx,
            budget_id,
            name=body.name,
            mode=body.mode,
            amount_pico=None if body.amount is None else money.parse_sum(body.amount),
            thresholds=body.thresholds,
            by_operator=caller.is_operator,
            now=now,
        )
        standing = budgets.describe(tx, [budget], now)[0]
    return budget_changed(standing, publish.confirm(plane.database, plane.publications, tx.published_version, now))


@router.delete("/v1/organization/budgets/{budget_id}")
def archive_budget(caller: Writer, plane: Plane, budget_id: str) -> Deleted:
    """Archive a budget: it binds no request any more. What was counted stays readable."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        budgets.archive_budget(tx, budget_id, by_operator=caller.is_operator, now=now)
    pending = publish.confirm(plane.database, plane.publications, tx.published_version, now)
    return Deleted(object="organization.budget.deleted", id=budget_id, pending_nodes=pending)


@router.get("/v1/organization/budgets/{budget_id}/raises")
def list_raises(caller: Reader, plane: Plane, budget_id: str) -> RaiseList:
    """Raises of a budget that have not ended."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return RaiseList(data=[raise_out(each) for each in budgets.list_raises(tx, budget_id, plane.now())])


@router.post("/v1/organization/budgets/{budget_id}/raises")
def create_raise(caller: Writer, plane: Plane, budget_id: str, body: RaiseCreate) -> RaiseOut:
    """Raise a budget for some time."""
    with plane.database.tenant(caller.organization_id) as tx:
        more = budgets.raise_budget(
            tx,
            budget_id,
            id=plane.new_id(ids.BUDGET_RAISE),
            amount_pico=money.parse_sum(body.amount),
            starts_at=None if body.starts_at is None else body.starts_at * 1_000_000,
            ends_at=body.ends_at * 1_000_000,
            by_operator=caller.is_operator,
            sizes=plane.quotas,
            now=plane.now(),
        )
    return raise_out(more)


@router.get("/v1/organization/budgets/{budget_id}/alerts")
def list_alerts(caller: Reader, plane: Plane, budget_id: str) -> AlertList:
    """Thresholds of a budget that spending reached, the latest first."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return AlertList(data=[alert_out(each) for each in budgets.list_alerts(tx, budget_id)])


@router.get("/v1/organization/binding_budgets")
def list_binding_budgets(
    caller: Reader,
    plane: Plane,
    project_id: Annotated[str | None, Query(description="Budgets that bind this project.")] = None,
    api_key_id: Annotated[str | None, Query(description="Budgets that bind this key of the project.")] = None,
    end_user: OfEndUser = None,
) -> BindingBudgets:
    """Every budget that binds the organization, a project or a key, innermost level first."""
    if api_key_id is not None and project_id is None:
        raise Fault(PARAMETER_INVALID, param="project_id", message="Name the project of the key.")
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        found = budgets.list_binding(tx, project_id, api_key_id, plane.now(), find_bound_end_user(plane, end_user))
    return BindingBudgets(data=[budget_out(each) for each in found])


@link_router.put("/v1/link/leases/{node_id}/{epoch}")
def renew_leases(
    caller: Node,
    plane: Plane,
    node_id: Annotated[str, Path(max_length=64)],
    epoch: Annotated[int, Path(ge=1, le=2**63 - 1)],
    body: LeasesIn,
) -> LeasesOut:
    """Renew the leases of a run of the calling gateway. 409 if the run has ended, by what control knows."""
    access.require_own(caller, node_id)
    with plane.database.platform() as tx:
        grants = budgets.renew_leases(tx, node_id=node_id, epoch=epoch, sequence=body.sequence, requests=body.requests(), now=plane.now())
    return leases_out(grants)
