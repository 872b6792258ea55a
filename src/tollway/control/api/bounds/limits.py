"""Limits of a project, a service account and a key (for tenants), and of an organization (for operators).

PUT replaces all limits of a level. With `model` a limit is on that model alone, and counts beside those on all models.
"""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control.api import routes
from tollway.control.api.bounds.limit_schemas import BindingLimitsList, LimitUsesIn, LimitUsesOut, binding_limits_out
from tollway.control.api.money.budgets import OfEndUser, find_bound_end_user
from tollway.control.api.routes import Node, Plane, may
from tollway.control.api.schemas import (
    RATE_LIMIT_PREFIX,
    LimitsOut,
    LimitsWrite,
    ListOut,
    ModelName,
    RateLimitOut,
    RateLimitWrite,
    limits_out,
    rate_limit_out,
)
from tollway.control.bounds import limits, quotas
from tollway.control.bounds.limit_uses import find_standings, store_report
from tollway.control.identity import access
from tollway.control.identity.access import Tenant
from tollway.control.money import budgets
from tollway.control.tenancy import plans
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["limits"])
link_router = routes.router(tags=["link"])

Reader = Annotated[Tenant, Depends(may(Permission.LIMITS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.LIMITS_WRITE))]
OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_ORGANIZATIONS_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_ORGANIZATIONS_WRITE))]

OfModel = Annotated[
    ModelName | None,
    Query(description="The model that is limited, or `group:` and the name of a group of models; all models together if left out."),
]


@router.get("/v1/organization/limits")
def list_binding_limits(
    caller: Reader,
    plane: Plane,
    project_id: Annotated[str | None, Query(description="Limits that bind this project.")] = None,
    api_key_id: Annotated[str | None, Query(description="Limits that bind this key of the project.")] = None,
    service_account_id: Annotated[str | None, Query(description="Limits that bind this service account of the project.")] = None,
    end_user: OfEndUser = None,
) -> BindingLimitsList:
    """Every limit that binds the organization, a project, a service account or a key, innermost level first, with what is used and left
    of it, and of which level the limit binds. `counted_by` says where the use comes from: the store that gateways share (`store`), or the
    latest reports of the live gateways (`gateways`), which are added up and at most a few seconds old. Null: neither could be read, and
    use is null. `quotas`: how many projects, keys, budgets and so on the organization has, and may have."""
    if project_id is None and (api_key_id is not None or service_account_id is not None):
        raise Fault(PARAMETER_INVALID, param="project_id", message="Name the project of the key or the service account.")
    if api_key_id is not None and service_account_id is not None:
        raise Fault(PARAMETER_INVALID, param="service_account_id", message="Name a key or a service account, not both.")
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        binding = limits.list_binding_limits(tx, project_id, api_key_id, service_account_id)
        binding_budgets = budgets.list_binding(tx, project_id, api_key_id, plane.now(), find_bound_end_user(plane, end_user))
        standings = quotas.list_standings(tx, plane.quotas, plane.now())
        of_organization = plans.get_organization_limits(tx)
    found = find_standings(plane.database, plane.limits_store, caller.organization_id, binding, plane.now())
    return binding_limits_out(binding, found, binding_budgets, standings, of_organization)


@link_router.put("/v1/link/limit_uses/{node_id}")
def report_limit_uses(caller: Node, plane: Plane, node_id: str, body: LimitUsesIn) -> LimitUsesOut:
    """Report what is used of limits at the calling gateway. Replaces its report before."""
    access.require_own(caller, node_id)
    with plane.database.platform() as tx:
        store_report(tx, node_id, body.to_uses(), plane.now())
    return LimitUsesOut(received=len(body.uses))


@router.get("/v1/organization/projects/{project_id}/limits")
def retrieve_project_limits(caller: Reader, plane: Plane, project_id: str, model: OfModel = None) -> LimitsOut:
    """The limits of a project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return limits_out(limits.get_limits(tx, limits.project(project_id), model))


@router.put("/v1/organization/projects/{project_id}/limits")
def put_project_limits(caller: Writer, plane: Plane, project_id: str, body: LimitsWrite, model: OfModel = None) -> LimitsOut:
    """Replace the limits of a project."""
    with plane.database.tenant(caller.organization_id) as tx:
        return limits_out(limits.put_limits(tx, limits.project(project_id), body.limits(), plane.now(), model, sizes=plane.quotas))


@router.get("/v1/organization/projects/{project_id}/end_user_limits")
def retrieve_end_user_limits(caller: Reader, plane: Plane, project_id: str, model: OfModel = None) -> LimitsOut:
    """The limits of each end user of a project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return limits_out(limits.get_limits(tx, limits.end_users(project_id), model))


@router.put("/v1/organization/projects/{project_id}/end_user_limits")
def put_end_user_limits(caller: Writer, plane: Plane, project_id: str, body: LimitsWrite, model: OfModel = None) -> LimitsOut:
    """Replace the limits of each end user of a project. An end user is what requests name in `safety_identifier` or `user`, or in
    `metadata.user_id` of Anthropic's API; requests that name none are not counted here."""
    with plane.database.tenant(caller.organization_id) as tx:
        return limits_out(limits.put_limits(tx, limits.end_users(project_id), body.limits(), plane.now(), model, sizes=plane.quotas))


@router.get("/v1/organization/projects/{project_id}/service_accounts/{service_account_id}/limits")
def retrieve_service_account_limits(
    caller: Reader, plane: Plane, project_id: str, service_account_id: str, model: OfModel = None
) -> LimitsOut:
    """The limits of a service account: of all of its keys together."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return limits_out(limits.get_limits(tx, limits.service_account(project_id, service_account_id), model))


@router.put("/v1/organization/projects/{project_id}/service_accounts/{service_account_id}/limits")
def put_service_account_limits(
    caller: Writer, plane: Plane, project_id: str, service_account_id: str, body: LimitsWrite, model: OfModel = None
) -> LimitsOut:
    """Replace the limits of a service account."""
    with plane.database.tenant(caller.organization_id) as tx:
        return limits_out(
            limits.put_limits(
                tx, limits.service_account(project_id, service_account_id), body.limits(), plane.now(), model, sizes=plane.quotas
            )
        )


@router.get("/v1/organization/projects/{project_id}/api_keys/{key_id}/limits")
def retrieve_key_limits(caller: Reader, plane: Plane, project_id: str, key_id: str, model: OfModel = None) -> LimitsOut:
    """The limits of a key."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return limits_out(limits.get_limits(tx, limits.api_key(project_id, key_id), model))


@router.put("/v1/organization/projects/{project_id}/api_keys/{key_id}/limits")
def put_key_limits(caller: Writer, plane: Plane, project_id: str, key_id: str, body: LimitsWrite, model: OfModel = None) -> LimitsOut:
    """Replace the limits of a key."""
    with plane.database.tenant(caller.organization_id) as tx:
        return limits_out(limits.put_limits(tx, limits.api_key(project_id, key_id), body.limits(), plane.now(), model, sizes=plane.quotas))


@router.get("/v1/platform/organizations/{organization_id}/limits")
def retrieve_organization_limits(_caller: OperatorReader, plane: Plane, organization_id: str, model: OfModel = None) -> LimitsOut:
    """The limits of an organization."""
    with plane.database.tenant(routes.organization(organization_id), write=False) as tx:
        return limits_out(limits.get_limits(tx, limits.organization(tx), model))


@router.put("/v1/platform/organizations/{organization_id}/limits")
def put_organization_limits(
    _caller: OperatorWriter, plane: Plane, organization_id: str, body: LimitsWrite, model: OfModel = None
) -> LimitsOut:
    """Replace the limits of an organization."""
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        return limits_out(limits.put_limits(tx, limits.organization(tx), body.limits(), plane.now(), model, sizes=plane.quotas))


@router.get("/v1/organization/projects/{project_id}/rate_limits")
def list_rate_limits(
    caller: Reader,
    plane: Plane,
    project_id: str,
    after: Annotated[str | None, Query(description="The id after which to begin.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="At most so many.")] = 100,
) -> ListOut[RateLimitOut]:
    """The limits of a project on each model, by the model's name, in the shape of OpenAI's admin API."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        by_model = limits.list_rate_limits(tx, project_id)
    shown = [rate_limit_out(model, of_model) for model, of_model in by_model.items() if after is None or RATE_LIMIT_PREFIX + model > after]
    page = shown[:limit]
    return ListOut(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(shown) > limit,
    )


@router.post("/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id:path}")
def update_rate_limit(caller: Writer, plane: Plane, project_id: str, rate_limit_id: str, body: RateLimitWrite) -> RateLimitOut:
    """Change limits of a project on one model: what is left out stays."""
    if not rate_limit_id.startswith(RATE_LIMIT_PREFIX):
        raise Fault(RESOURCE_UNKNOWN)
    model = rate_limit_id.removeprefix(RATE_LIMIT_PREFIX)
    with plane.database.tenant(caller.organization_id) as tx:
        changed = limits.update_rate_limit(tx, project_id, model, body.changes(), plane.now(), sizes=plane.quotas)
    return rate_limit_out(model, changed)
