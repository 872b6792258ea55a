"""Models and deployments at rest. The catalog belongs to the platform: operators write it, gateways receive it."""

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from tollway.domain.catalog import (
    GROUP_PREFIX,
    CacheIsolation,
    Deployment,
    Endpoint,
    Engine,
    Guardrail,
    GuardrailStages,
    Model,
    UnknownParameters,
)
from tollway.domain.pages import Page, PageWindow
from tollway.domain.tenants import Status
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import deployments, models

# ---- Models -----------------------------------------------------------------------------------------------------------


def insert_model(tx: PlatformTx, model: Model) -> None:
    """Store a new model."""
    tx.connection.execute(models.insert().values(name=model.name, created_at=model.created_at, **_model_columns(model)))


def find_model(tx: PlatformTx, name: str) -> Model | None:
    """A model by its exact name, drafts and archived ones included."""
    row = tx.connection.execute(sa.select(models).where(models.c.name == name)).one_or_none()
    return None if row is None else read_model(row)


def find_models(tx: Transaction, names: Iterable[str]) -> list[Model]:
    """Those of the named models that exist, archived ones included, ordered by name."""
    query = sa.select(models).where(models.c.name.in_(sorted(names))).order_by(models.c.name)
    return [read_model(row) for row in tx.connection.execute(query)]


def list_published_names(tx: Transaction) -> list[str]:
    """Return the names of the models that tenants can use, ordered."""
    query = sa.select(models.c.name).where(models.c.status == Status.ACTIVE, models.c.published).order_by(models.c.name)
    return list(tx.connection.execute(query).scalars())


def find_unknown_scopes(tx: Transaction, scopes: Iterable[str]) -> list[str]:
    """Return those of `scopes` (`domain.catalog.covers_model`) that are neither a model that tenants can use nor a group that such a model
    is in, ordered."""
    named = sorted(set(scopes) - {""})
    if not named:
        return []
    query = sa.select(models.c.name, models.c.model_groups).where(models.c.status == Status.ACTIVE, models.c.published)
    known = set()
    for row in tx.connection.execute(query):
        known |= {row.name, *(GROUP_PREFIX + group for group in json.loads(row.model_groups))}
    return [each for each in named if each not in known]


def list_models_of_group(tx: Transaction, group: str) -> list[str]:
    """Return the names of the models that tenants can use and that are in a group, ordered."""
    query = sa.select(models.c.name, models.c.model_groups).where(models.c.status == Status.ACTIVE, models.c.published)
    return [row.name for row in tx.connection.execute(query.order_by(models.c.name)) if group in json.loads(row.model_groups)]


def list_models(tx: PlatformTx, window: PageWindow, *, include_archived: bool) -> Page[Model]:
    """The catalog, ordered by name; the window's cursor is a name."""
    query = sa.select(models)
    if not include_archived:
        query = query.where(models.c.status == Status.ACTIVE)
    return fetch_page(tx, query, models.c.name, window, read_model)


def put_model(tx: PlatformTx, model: Model) -> None:
    """Replace what may change of a stored model."""
    tx.connection.execute(models.update().where(models.c.name == model.name).values(**_model_columns(model)))


def read_model(row: Any) -> Model:
    """The model that a row of `models` holds."""
    return Model(
        name=row.name,
        status=Status(row.status),
        published=row.published,
        endpoints=tuple(Endpoint(endpoint) for endpoint in json.loads(row.endpoints)),
        created_at=row.created_at,
        output_tokens_max=row.output_tokens_max,
        context_length=row.context_length,
        unknown_parameters=UnknownParameters(row.unknown_parameters),
        retry_started=row.retry_started,
        share_cache=row.share_cache,
        groups=tuple(json.loads(row.model_groups)),
        fallbacks=tuple(json.loads(row.fallbacks)),
        hedge_after_ms=row.hedge_after_ms,
        hedge_percent=row.hedge_percent,
        latency_goal_ms=row.latency_goal_ms,
        response_cache_seconds=row.response_cache_seconds,
        guardrail=Guardrail(row.guardrail),
        guardrail_stages=GuardrailStages(row.guardrail_stages),
    )


def _model_columns(model: Model) -> dict[str, Any]:
    return {
        "status": model.status,
        "published": model.published,
        "endpoints": json.dumps(model.endpoints),
        "output_tokens_max": model.output_tokens_max,
        "context_length": model.context_length,
        "unknown_parameters": model.unknown_parameters,
        "retry_started": model.retry_started,
        "share_cache": model.share_cache,
        "model_groups": json.dumps(model.groups),
        "fallbacks": json.dumps(model.fallbacks),
        "hedge_after_ms": model.hedge_after_ms,
        "hedge_percent": model.hedge_percent,
        "latency_goal_ms": model.latency_goal_ms,
        "response_cache_seconds": model.response_cache_seconds,
        "guardrail": model.guardrail,
        "guardrail_stages": model.guardrail_stages,
    }


# ---- Deployments ------------------------------------------------------------------------------------------------------


def insert_deployment(tx: PlatformTx, deployment: Deployment) -> None:
    """Store a new deployment."""
    tx.connection.execute(
        deployments.insert().values(
            id=deployment.id,
            model=deployment.model,
            engine=deployment.engine,
            created_at=deployment.created_at,
            **_deployment_columns(deployment),
        )
    )


def find_deployment(tx: PlatformTx, deployment_id: str) -> Deployment | None:
    """A deployment, archived ones included."""
    row = tx.connection.execute(sa.select(deployments).where(deployments.c.id == deployment_id)).one_or_none()
    return None if row is None else read_deployment(row)


def list_deployments(tx: PlatformTx, window: PageWindow, *, model: str | None, include_archived: bool) -> Page[Deployment]:
    """All deployments, or those of one model."""
    query = sa.select(deployments)
    if model is not None:
        query = query.where(deployments.c.model == model)
    if not include_archived:
        query = query.where(deployments.c.status == Status.ACTIVE)
    return fetch_page(tx, query, deployments.c.id, window, read_deployment)


def find_deployments(tx: PlatformTx, model: str) -> list[Deployment]:
    """Return the deployments of a model that are not archived."""
    rows = tx.connection.execute(sa.select(deployments).where(deployments.c.model == model, deployments.c.status == Status.ACTIVE))
    return [read_deployment(row) for row in rows]


def find_deployments_of(tx: PlatformTx, model_names: Iterable[str]) -> list[Deployment]:
    """Return the active deployments of some models."""
    query = sa.select(deployments).where(deployments.c.model.in_(sorted(model_names)), deployments.c.status == Status.ACTIVE)
    return [read_deployment(row) for row in tx.connection.execute(query)]


def put_deployment(tx: PlatformTx, deployment: Deployment) -> None:
    """Replace what may change of a stored deployment."""
    tx.connection.execute(deployments.update().where(deployments.c.id == deployment.id).values(**_deployment_columns(deployment)))


def archive_deployment(tx: PlatformTx, deployment_id: str, now: int) -> None:
    """Store that a deployment is archived, without its credential; the instant of one that is archived stays."""
    column = deployments.c
    tx.connection.execute(
        deployments.update()
        .where(column.id == deployment_id, column.status == Status.ACTIVE)
        .values(status=Status.ARCHIVED, credential=None, archived_at=now)
    )


def archive_deployments(tx: PlatformTx, model: str, now: int) -> list[str]:
    """Archive all deployments of a model. Returns those that were active until now."""
    archived = (
        deployments.update()
        .where(deployments.c.model == model, deployments.c.status == Status.ACTIVE)
        .values(status=Status.ARCHIVED, credential=None, archived_at=now)
        .returning(deployments.c.id)
    )
    return sorted(tx.connection.execute(archived).scalars())


def read_deployment(row: Any) -> Deployment:
    """The deployment that a row of `deployments` holds."""
    return Deployment(
        id=row.id,
        model=row.model,
        base_url=row.base_url,
        engine=Engine(row.engine),
        upstream_model=row.upstream_model,
        tier=row.tier,
        weight=row.weight,
        region=row.region,
        status=Status(row.status),
        created_at=row.created_at,
        credential=row.credential,
        cache_isolation=CacheIsolation(row.cache_isolation),
        pooling=row.pooling,
        translated_endpoints=tuple(Endpoint(endpoint) for endpoint in json.loads(row.translated_endpoints)),
        test=row.test,
        priorities=row.priorities,
        relative_cost=row.relative_cost,
        grpc_port=row.grpc_port,
    )


def _deployment_columns(deployment: Deployment) -> dict[str, Any]:
    return {
        "base_url": deployment.base_url,
        "upstream_model": deployment.upstream_model,
        "tier": deployment.tier,
        "weight": deployment.weight,
        "region": deployment.region,
        "status": deployment.status,
        "credential": deployment.credential,
        "cache_isolation": deployment.cache_isolation,
        "pooling": deployment.pooling,
        "translated_endpoints": json.dumps(deployment.translated_endpoints),
        "test": deployment.test,
        "priorities": deployment.priorities,
        "relative_cost": deployment.relative_cost,
        "grpc_port": deployment.grpc_port,
    }
