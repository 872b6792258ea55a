"""Spend limits and spend alerts of an organization and its projects, in the shapes of OpenAI's admin API.

They are budgets: what is spent of them, and the alerts that were raised, stand below `/v1/organization/budgets`. What an operator creates
on behalf of an organization, only operators may change.
"""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.money.spend_schemas import (
    SpendAlertOut,
    SpendAlertQuery,
    SpendAlertWrite,
    SpendLimitChanged,
    SpendLimitDeleted,
    SpendLimitOut,
    SpendLimitWrite,
    spend_alert_out,
    spend_limit_changed,
    spend_limit_out,
)
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Deleted, ListOut, list_out
from tollway.control.identity.access import Tenant
from tollway.control.money import spend_limits
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.roles import Permission

router = routes.router(tags=["budgets"])

Reader = Annotated[Tenant, Depends(may(Permission.BUDGETS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.BUDGETS_WRITE))]

Part = Annotated[SpendAlertQuery, Query()]


@router.get("/v1/organization/spend_limit")
def retrieve_spend_limit(caller: Reader, plane: Plane) -> SpendLimitOut:
    """The spend limit of the organization; 404 if it has none."""
    return _retrieve_limit(caller, plane, None)


@router.post("/v1/organization/spend_limit")
def update_spend_limit(caller: Writer, plane: Plane, body: SpendLimitWrite) -> SpendLimitChanged:
    """Create or change the spend limit of the organization. What was spent this month stays spent."""
    return _update_limit(caller, plane, None, body)


@router.delete("/v1/organization/spend_limit")
def delete_spend_limit(caller: Writer, plane: Plane) -> SpendLimitDeleted:
    """End the spend limit of the organization."""
    return _delete_limit(caller, plane, None)


@router.get("/v1/organization/spend_alerts")
def list_spend_alerts(caller: Reader, plane: Plane, query: Part) -> ListOut[SpendAlertOut]:
    """The spend alerts of the organization."""
    return _list_alerts(caller, plane, None, query)


@router.post("/v1/organization/spend_alerts")
def create_spend_alert(caller: Writer, plane: Plane, body: SpendAlertWrite) -> SpendAlertOut:
    """Create a spend alert of the organization. It counts requests that are admitted from now on."""
    return _create_alert(caller, plane, None, body)


@router.get("/v1/organization/spend_alerts/{alert_id}")
def retrieve_spend_alert(caller: Reader, plane: Plane, alert_id: str) -> SpendAlertOut:
    """One spend alert of the organization."""
    return _retrieve_alert(caller, plane, None, alert_id)


@router.post("/v1/organization/spend_alerts/{alert_id}")
def update_spend_alert(caller: Writer, plane: Plane, alert_id: str, body: SpendAlertWrite) -> SpendAlertOut:
    """Change the amount of a spend alert of the organization."""
    return _update_alert(caller, plane, None, alert_id, body)


@router.delete("/v1/organization/spend_alerts/{alert_id}")
def delete_spend_alert(caller: Writer, plane: Plane, alert_id: str) -> Deleted:
    """End a spend alert of the organization."""
    return _delete_alert(caller, plane, None, alert_id)


@router.get("/v1/organization/projects/{project_id}/spend_limit")
def retrieve_project_spend_limit(caller: Reader, plane: Plane, project_id: str) -> SpendLimitOut:
    """The spend limit of a project; 404 if it has none."""
    return _retrieve_limit(caller, plane, project_id)


@router.post("/v1/organization/projects/{project_id}/spend_limit")
def update_project_spend_limit(caller: Writer, plane: Plane, project_id: str, body: SpendLimitWrite) -> SpendLimitChanged:
    """Create or change the spend limit of a project. What was spent this month stays spent."""
    return _update_limit(caller, plane, project_id, body)


@router.delete("/v1/organization/projects/{project_id}/spend_limit")
def delete_project_spend_limit(caller: Writer, plane: Plane, project_id: str) -> SpendLimitDeleted:
    """End the spend limit of a project."""
    return _delete_limit(caller, plane, project_id)


@router.get("/v1/organization/projects/{project_id}/spend_alerts")
def list_project_spend_alerts(caller: Reader, plane: Plane, project_id: str, query: Part) -> ListOut[SpendAlertOut]:
    """The spend alerts of a project."""
    return _list_alerts(caller, plane, project_id, query)


@router.post("/v1/organization/projects/{project_id}/spend_alerts")
def create_project_spend_alert(caller: Writer, plane: Plane, project_id: str, body: SpendAlertWrite) -> SpendAlertOut:
    """Create a spend alert of a project. It counts requests that are admitted from now on."""
    return _create_alert(caller, plane, project_id, body)


@router.get("/v1/organization/projects/{project_id}/spend_alerts/{alert_id}")
def retrieve_project_spend_alert(caller: Reader, plane: Plane, project_id: str, alert_id: str) -> SpendAlertOut:
    """One spend alert of a project."""
    return _retrieve_alert(caller, plane, project_id, alert_id)


@router.post("/v1/organization/projects/{project_id}/spend_alerts/{alert_id}")
def update_project_spend_alert(caller: Writer, plane: Plane, project_id: str, alert_id: str, body: SpendAlertWrite) -> SpendAlertOut:
    """Change the amount of a spend alert of a project."""
    return _update_alert(caller, plane, project_id, alert_id, body)


@router.delete("/v1/organization/projects/{project_id}/spend_alerts/{alert_id}")
def delete_project_spend_alert(caller: Writer, plane: Plane, project_id: str, alert_id: str) -> Deleted:
    """End a spend alert of a project."""
    return _delete_alert(caller, plane, project_id, alert_id)


# ---- The same for both levels: `project_id` is None for the organization ------------------------------------------------


def _retrieve_limit(caller: Tenant, plane: ControlPlane, project_id: str | None) -> SpendLimitOut:
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return spend_limit_out(spend_limits.get_spend_limit(tx, project_id))


def _update_limit(caller: Tenant, plane: ControlPlane, project_id: str | None, body: SpendLimitWrite) -> SpendLimitChanged:
    now, id = plane.now(), plane.new_id(ids.BUDGET)
    with plane.database.tenant(caller.organization_id) as tx:
        budget = spend_limits.put_spend_limit(
            tx, project_id, body.amount(), id=id, by_operator=caller.is_operator, sizes=plane.quotas, now=now
        )
    return spend_limit_changed(budget, publish.confirm(plane.database, plane.publications, tx.published_version, now))


def _delete_limit(caller: Tenant, plane: ControlPlane, project_id: str | None) -> SpendLimitDeleted:
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        spend_limits.delete_spend_limit(tx, project_id, by_operator=caller.is_operator, now=now)
    pending = publish.confirm(plane.database, plane.publications, tx.published_version, now)
    if project_id is None:
        return SpendLimitDeleted(object="organization.spend_limit.deleted", pending_nodes=pending)
    return SpendLimitDeleted(object="project.spend_limit.deleted", pending_nodes=pending)


def _list_alerts(caller: Tenant, plane: ControlPlane, project_id: str | None, query: SpendAlertQuery) -> ListOut[SpendAlertOut]:
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return list_out(spend_limits.list_spend_alerts(tx, project_id, query.window()), spend_alert_out)


def _create_alert(caller: Tenant, plane: ControlPlane, project_id: str | None, body: SpendAlertWrite) -> SpendAlertOut:
    now, id = plane.now(), plane.new_id(ids.BUDGET)
    with plane.database.tenant(caller.organization_id) as tx:
        return spend_alert_out(
            spend_limits.create_spend_alert(
                tx, project_id, body.amount(), id=id, by_operator=caller.is_operator, sizes=plane.quotas, now=now
            )
        )


def _retrieve_alert(caller: Tenant, plane: ControlPlane, project_id: str | None, alert_id: str) -> SpendAlertOut:
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return spend_alert_out(spend_limits.get_spend_alert(tx, project_id, alert_id))


def _update_alert(caller: Tenant, plane: ControlPlane, project_id: str | None, alert_id: str, body: SpendAlertWrite) -> SpendAlertOut:
    now, by_operator = plane.now(), caller.is_operator
    with plane.database.tenant(caller.organization_id) as tx:
        return spend_alert_out(spend_limits.update_spend_alert(tx, project_id, alert_id, body.amount(), by_operator=by_operator, now=now))


def _delete_alert(caller: Tenant, plane: ControlPlane, project_id: str | None, alert_id: str) -> Deleted:
    with plane.database.tenant(caller.organization_id) as tx:
        spend_limits.delete_spend_alert(tx, project_id, alert_id, by_operator=caller.is_operator, now=plane.now())
    level = "organization" if project_id is None else "project"
    return Deleted(object=f"{level}.spend_alert.deleted", id=alert_id, pending_nodes=[])
