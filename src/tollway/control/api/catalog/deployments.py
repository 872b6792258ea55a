"""Deployments of models at upstreams, for operators. Credentials go in, sealed; they never come out."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control.api import routes
from tollway.control.api.catalog.deployment_schemas import (
    DeploymentCreate,
    DeploymentOut,
    DeploymentUpdate,
    EngineCheck,
    EngineCheckOut,
    deployment_out,
)
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    ListOut,
    ModelName,
    PageQuery,
    list_out,
)
from tollway.control.catalog import catalog
from tollway.control.reconciliation.engine_answers import Unreadable, open_client
from tollway.control.reconciliation.engine_model_names import list_served_models
from tollway.domain import ids
from tollway.domain.catalog import Deployment
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission
from tollway.domain.tenants import Status

router = routes.router(tags=["deployments"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_CATALOG_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_CATALOG_WRITE))]

NULLABLE = frozenset({"region", "credential", "relative_cost", "grpc_port"})
"""Fields that an update may take away."""


@router.get("/v1/platform/deployments")
def list_deployments(
    _caller: Reader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    model: ModelName | None = None,
    include_archived: bool = False,
) -> ListOut[DeploymentOut]:
    """All deployments, or those of one model."""
    with plane.database.platform(write=False) as tx:
        page = catalog.list_deployments(tx, query.window(), model=model, include_archived=include_archived)
    return list_out(page, deployment_out)


@router.post("/v1/platform/deployments")
def create_deployment(_caller: Writer, plane: Plane, body: DeploymentCreate) -> DeploymentOut:
    """Add an upstream to a model."""
    now, deployment_id = plane.now(), plane.new_id(ids.DEPLOYMENT)
    deployment = Deployment(
        id=deployment_id,
        model=body.model,
        base_url=body.base_url.rstrip("/"),
        engine=body.engine,
        upstream_model=body.upstream_model,
        tier=body.tier,
        weight=body.weight,
        region=body.region,
        status=Status.ACTIVE,
        created_at=now,
        credential=None if body.credential is None else plane.vault.seal(body.credential, context=deployment_id),
        cache_isolation=body.cache_isolation,
        pooling=body.pooling,
        translated_endpoints=tuple(sorted(set(body.translated_endpoints))),
        test=body.test,
        priorities=body.priorities,
        relative_cost=body.relative_cost,
        grpc_port=body.grpc_port,
    )
    with plane.database.platform() as tx:
        return deployment_out(catalog.create_deployment(tx, deployment, now))


@router.post("/v1/platform/engine_checks")
async def check_engine(_caller: Writer, _plane: Plane, body: EngineCheck) -> EngineCheckOut:
    """Ask an engine which models it serves, as a deployment at this address would reach it. Changes nothing."""
    base_url = body.base_url.rstrip("/")
    catalog.check_base_url(base_url)
    try:
        async with open_client() as client:
            models = await list_served_models(client, body.engine, base_url, body.credential)
    except Unreadable as error:
        raise Fault(PARAMETER_INVALID, param="base_url", message=f"The engine could not be asked for its models: {error}.") from None
    return EngineCheckOut(base_url=base_url, engine=body.engine, models=models)


@router.get("/v1/platform/deployments/{deployment_id}")
def retrieve_deployment(_caller: Reader, plane: Plane, deployment_id: str) -> DeploymentOut:
    """One deployment."""
    with plane.database.platform(write=False) as tx:
        return deployment_out(catalog.get_deployment(tx, deployment_id))


@router.post("/v1/platform/deployments/{deployment_id}")
def update_deployment(_caller: Writer, plane: Plane, deployment_id: str, body: DeploymentUpdate) -> DeploymentOut:
    """Change what is named in the body. Weight 0 drains."""
    changed = {name: getattr(body, name) for name in body.model_fields_set}
    for name, value in changed.items():
        if value is None and name not in NULLABLE:
            raise Fault(PARAMETER_INVALID, param=name, message=f"Invalid value for {name}: it cannot be null.")
    if "base_url" in changed:
        changed["base_url"] = changed["base_url"].rstrip("/")
    if "translated_endpoints" in changed:
        changed["translated_endpoints"] = tuple(sorted(set(changed["translated_endpoints"])))
    if changed.get("credential") is not None:
        changed["credential"] = plane.vault.seal(changed["credential"], context=deployment_id)
    with plane.database.platform() as tx:
        return deployment_out(catalog.update_deployment(tx, deployment_id, changed, plane.now()))


@router.post("/v1/platform/deployments/{deployment_id}/archive")
def archive_deployment(_caller: Writer, plane: Plane, deployment_id: str) -> DeploymentOut:
    """Archive a deployment and delete its credential; it cannot be taken back."""
    with plane.database.platform() as tx:
        return deployment_out(catalog.archive_deployment(tx, deployment_id, plane.now()))
