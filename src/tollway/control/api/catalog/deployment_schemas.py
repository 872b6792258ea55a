"""Bodies of the platform's deployments."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from tollway.control.api.schemas import Identified, In, ModelName, Out, Region, printable, seconds
from tollway.domain.catalog import RELATIVE_COST_MAX, TRANSLATED_ENDPOINTS, CacheIsolation, Deployment, Endpoint, Engine


def _translatable(value: Endpoint) -> Endpoint:
    if value not in TRANSLATED_ENDPOINTS:
        raise ValueError("only messages and responses can be translated")
    return value


Tier = Annotated[int, Field(ge=0, le=1000)]
Weight = Annotated[int, Field(ge=0, le=1_000_000)]
EngineName = Annotated[Engine, Field(strict=False)]
CacheIsolationName = Annotated[CacheIsolation, Field(strict=False)]
TranslatedEndpoints = Annotated[
    list[Annotated[Endpoint, Field(strict=False), AfterValidator(_translatable)]], Field(max_length=len(TRANSLATED_ENDPOINTS))
]
Port = Annotated[int, Field(ge=1, le=65_535)]
RelativeCost = Annotated[int, Field(ge=1, le=RELATIVE_COST_MAX)]
UpstreamText = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(printable)]
BaseUrl = Annotated[str, StringConstraints(min_length=8, max_length=2048)]
Credential = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[\x21-\x7e]+$")]


class DeploymentCreate(In):
    """`credential`: what the upstream asks for as bearer token; sealed when it is stored, never shown again."""

    model: ModelName
    base_url: BaseUrl
    engine: EngineName
    upstream_model: UpstreamText
    tier: Tier = 0
    weight: Weight = 1
    region: Region | None = None
    credential: Credential | None = None
    cache_isolation: CacheIsolationName = CacheIsolation.ENGINE
    pooling: bool = True
    translated_endpoints: TranslatedEndpoints = Field(default_factory=list)
    test: bool = False
    priorities: bool = False
    relative_cost: RelativeCost | None = None
    grpc_port: Port | None = None


class DeploymentUpdate(In):
    """Fields to change; a field that is left out stays. A null `credential` removes it."""

    base_url: BaseUrl | None = None
    upstream_model: UpstreamText | None = None
    tier: Tier | None = None
    weight: Weight | None = None
    region: Region | None = None
    credential: Credential | None = None
    cache_isolation: CacheIsolationName | None = None
    pooling: bool | None = None
    translated_endpoints: TranslatedEndpoints | None = None
    test: bool | None = None
    priorities: bool | None = None
    relative_cost: RelativeCost | None = None
    grpc_port: Port | None = None


class EngineCheck(In):
    """An engine that may be connected. `credential`: is used for this one question, and not kept."""

    base_url: BaseUrl
    engine: EngineName
    credential: Credential | None = None


class EngineCheckOut(Out):
    """An engine that answered."""

    object: Literal["platform.engine_check"] = "platform.engine_check"
    base_url: str
    engine: str
    models: Annotated[
        list[str],
        Field(
            description="Models as the engine names them, at most 500: for `upstream_model` of a deployment.",
            examples=[["meta-llama/Llama-3.1-8B-Instruct"]],
        ),
    ]


class DeploymentOut(Identified):
    object: Literal["platform.deployment"] = "platform.deployment"
    model: str
    base_url: str
    engine: str
    upstream_model: str
    tier: int
    weight: int
    region: str | None
    status: str
    has_credential: bool
    cache_isolation: str
    pooling: bool
    translated_endpoints: list[str]
    test: bool
    priorities: bool
    relative_cost: int | None
    grpc_port: Port | None
    created_at: int


def deployment_out(deployment: Deployment) -> DeploymentOut:
    return DeploymentOut(
        id=deployment.id,
        model=deployment.model,
        base_url=deployment.base_url,
        engine=deployment.engine,
        upstream_model=deployment.upstream_model,
        tier=deployment.tier,
        weight=deployment.weight,
        region=deployment.region,
        status=deployment.status,
        has_credential=deployment.credential is not None,
        cache_isolation=deployment.cache_isolation,
        pooling=deployment.pooling,
        translated_endpoints=[str(endpoint) for endpoint in deployment.translated_endpoints],
        test=deployment.test,
        priorities=deployment.priorities,
        relative_cost=deployment.relative_cost,
        grpc_port=deployment.grpc_port,
        created_at=seconds(deployment.created_at),
    )
