"""Models and service tiers that requests of a project may use, in the shape of OpenAI's `model_permissions` and `service_tier_settings`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import Depends
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import In, ModelName, Out
from tollway.control.identity.access import Tenant
from tollway.control.tenancy import tenants
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.project_policies import ALL_TIERS, MODELS_NAMED_MAX, ModelMode, ModelPermissions, ServiceTiers
from tollway.domain.roles import Permission
from tollway.domain.usage import ServiceTier

router = routes.router(tags=["projects"])

Reader = Annotated[Tenant, Depends(may(Permission.PROJECTS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.PROJECTS_WRITE))]

TIERS: Mapping[str, ServiceTier] = {"standard": ServiceTier.STANDARD, "flex": ServiceTier.FLEX, "fast": ServiceTier.PRIORITY}
"""Names of service tiers at this resource. `ultrafast` and `scale` are OpenAI's, and no tier here has their meaning."""
NAMES = {tier: name for name, tier in TIERS.items()}


class ModelPermissionsWrite(In):
    """Models that the keys of a project may use."""

    mode: Literal["allow_list", "deny_list"]
    model_ids: Annotated[list[ModelName], Field(max_length=MODELS_NAMED_MAX)]


class ModelPermissionsOut(Out):
    """Models that the keys of a project may use. A project that says nothing denies none."""

    object: Literal["project.model_permissions"] = "project.model_permissions"
    mode: Literal["allow_list", "deny_list"]
    model_ids: list[str]


class ModelPermissionsDeleted(Out):
    """The confirmation that every published model may be used again."""

    object: Literal["project.model_permissions.deleted"] = "project.model_permissions.deleted"
    deleted: Literal[True] = True


class ServiceTiersWrite(In):
    """Service tiers of a project; a field that is left out stays as it is."""

    default: Literal["standard", "fast", "scale"] | None = None
    enabled_tiers: Literal["all"] | Annotated[list[Literal["flex", "fast", "ultrafast"]], Field(max_length=8)] | None = None


class ServiceTiersOut(Out):
    """Service tiers that requests of a project may ask for."""

    object: Literal["project.service_tier_settings"] = "project.service_tier_settings"
    default: Literal["standard", "flex", "fast"]
    enabled_tiers: Literal["all"] | list[Literal["flex", "fast"]]


@router.get("/v1/organization/projects/{project_id}/model_permissions")
def retrieve_model_permissions(caller: Reader, plane: Plane, project_id: str) -> ModelPermissionsOut:
    """Models that the keys of a project may use."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _models_out(tenants.get_model_permissions(tx, project_id))


@router.post("/v1/organization/projects/{project_id}/model_permissions")
def update_model_permissions(caller: Writer, plane: Plane, project_id: str, body: ModelPermissionsWrite) -> ModelPermissionsOut:
    """Say which models the keys of a project may use: the named ones alone, or all but these."""
    wanted = ModelPermissions(mode=ModelMode(body.mode), models=tuple(sorted(set(body.model_ids))))
    with plane.database.tenant(caller.organization_id) as tx:
        return _models_out(tenants.set_model_permissions(tx, project_id, wanted, plane.now()))


@router.delete("/v1/organization/projects/{project_id}/model_permissions")
def delete_model_permissions(caller: Writer, plane: Plane, project_id: str) -> ModelPermissionsDeleted:
    """Let the keys of a project use every published model."""
    with plane.database.tenant(caller.organization_id) as tx:
        tenants.set_model_permissions(tx, project_id, None, plane.now())
    return ModelPermissionsDeleted()


@router.get("/v1/organization/projects/{project_id}/service_tier_settings")
def retrieve_service_tiers(caller: Reader, plane: Plane, project_id: str) -> ServiceTiersOut:
    """Service tiers that requests of a project may ask for, and the one of requests that ask for none."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return _tiers_out(tenants.get_service_tiers(tx, project_id))


@router.post("/v1/organization/projects/{project_id}/service_tier_settings")
def update_service_tiers(caller: Writer, plane: Plane, project_id: str, body: ServiceTiersWrite) -> ServiceTiersOut:
    """Change the service tiers of a project. The standard tier is always there."""
    named = body.enabled_tiers if isinstance(body.enabled_tiers, list) else []
    default = None if body.default is None else _tier(body.default, "default")
    listed = tuple(dict.fromkeys(_tier(name, "enabled_tiers") for name in named))
    with plane.database.tenant(caller.organization_id) as tx:
        before = tenants.get_service_tiers(tx, project_id)
        enabled = before.enabled if body.enabled_tiers is None else ALL_TIERS.enabled if body.enabled_tiers == "all" else listed
        wanted = ServiceTiers(enabled=enabled, default=before.default if default is None else default)
        return _tiers_out(tenants.set_service_tiers(tx, project_id, wanted, plane.now()))


def _tier(name: str, param: str) -> ServiceTier:
    tier = TIERS.get(name)
    if tier is None:
        raise Fault(PARAMETER_INVALID, param=param, message=f"There is no service tier '{name}' here: use {', '.join(TIERS)}.")
    return tier


def _models_out(permissions: ModelPermissions) -> ModelPermissionsOut:
    return ModelPermissionsOut(mode=permissions.mode.value, model_ids=list(permissions.models))


def _tiers_out(tiers: ServiceTiers) -> ServiceTiersOut:
    enabled = "all" if tiers.enabled is None else [NAMES[tier] for tier in tiers.enabled]
    return ServiceTiersOut.model_validate({"default": NAMES[tiers.default], "enabled_tiers": enabled})
