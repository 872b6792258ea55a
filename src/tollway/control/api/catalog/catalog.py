"""Models of the catalog, for operators. A model's name may hold slashes, so it is the rest of the path, before a verb if any."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control.api import routes
from tollway.control.api.catalog.model_schemas import ModelCreate, ModelOut, ModelUpdate, model_out
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import ListOut, PageQuery, list_out
from tollway.control.catalog import catalog
from tollway.domain.catalog import Model
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission
from tollway.domain.tenants import Status

router = routes.router(tags=["models"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_CATALOG_READ))]
Writer = Annotated[Operator, Depends(may(Permission.PLATFORM_CATALOG_WRITE))]


NULLABLE = frozenset({"output_tokens_max", "context_length", "hedge_after_ms", "latency_goal_ms"})


@router.get("/v1/platform/models")
def list_models(_caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()], include_archived: bool = False) -> ListOut[ModelOut]:
    """The catalog, by name."""
    with plane.database.platform(write=False) as tx:
        page = catalog.list_models(tx, query.window(), include_archived=include_archived)
    return list_out(page, model_out)


@router.post("/v1/platform/models")
def create_model(_caller: Writer, plane: Plane, body: ModelCreate) -> ModelOut:
    """Add a draft to the catalog."""
    model = Model(
        name=body.name,
        status=Status.ACTIVE,
        published=False,
        endpoints=tuple(dict.fromkeys(body.endpoints)),
        created_at=plane.now(),
        output_tokens_max=body.output_tokens_max,
        context_length=body.context_length,
        unknown_parameters=body.unknown_parameters,
        retry_started=body.retry_started,
        share_cache=body.share_cache,
        groups=tuple(sorted(set(body.groups))),
        fallbacks=tuple(body.fallbacks),
        hedge_after_ms=body.hedge_after_ms,
        hedge_percent=body.hedge_percent,
        latency_goal_ms=body.latency_goal_ms,
        response_cache_seconds=body.response_cache_seconds,
        guardrail=body.guardrail,
        guardrail_stages=body.guardrail_stages,
    )
    with plane.database.platform() as tx:
        return model_out(catalog.create_model(tx, model))


# The two verbs stand before the routes of a model itself, whose name would swallow them.


@router.post("/v1/platform/models/{model:path}/publish")
def publish_model(_caller: Writer, plane: Plane, model: str) -> ModelOut:
    """Let gateways serve a model. It needs a price that is valid now."""
    with plane.database.platform() as tx:
        return model_out(catalog.publish_model(tx, model, plane.now()))


@router.post("/v1/platform/models/{model:path}/archive")
def archive_model(_caller: Writer, plane: Plane, model: str) -> ModelOut:
    """Archive a model and its deployments permanently."""
    with plane.database.platform() as tx:
        return model_out(catalog.archive_model(tx, model, plane.now()))


@router.get("/v1/platform/models/{model:path}")
def retrieve_model(_caller: Reader, plane: Plane, model: str) -> ModelOut:
    """One model."""
    with plane.database.platform(write=False) as tx:
        return model_out(catalog.get_model(tx, model))


@router.post("/v1/platform/models/{model:path}")
def update_model(_caller: Writer, plane: Plane, model: str, body: ModelUpdate) -> ModelOut:
    """Change what is named in the body; a null `output_tokens_max` or `context_length` lifts that bound, a null `hedge_after_ms` or
    `latency_goal_ms` ends what it is for."""
    changed = {name: getattr(body, name) for name in body.model_fields_set}
    for name, value in changed.items():
        if value is None and name not in NULLABLE:
            raise Fault(PARAMETER_INVALID, param=name, message=f"Invalid value for {name}: it cannot be null.")
    if "endpoints" in changed:
        changed["endpoints"] = tuple(dict.fromkeys(changed["endpoints"]))
    if "groups" in changed:
        changed["groups"] = tuple(sorted(set(changed["groups"])))
    if "fallbacks" in changed:
        changed["fallbacks"] = tuple(changed["fallbacks"])
    with plane.database.platform() as tx:
        return model_out(catalog.update_model(tx, model, changed, plane.now()))
