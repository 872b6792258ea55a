"""The bodies and answers of models of the catalog."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tollway.control.api.schemas import Endpoints, Identified, In, ModelName, UnknownParametersPolicy, seconds
from tollway.domain.catalog import (
    FALLBACKS_MAX,
    GROUP_NAME,
    GROUP_PREFIX,
    HEDGE_PERCENT_FIRST,
    HEDGE_PERCENT_MAX,
    MODEL_GROUPS_MAX,
    RESPONSE_CACHE_SECONDS_MAX,
    TIME_MS_MAX,
    Guardrail,
    GuardrailStages,
    Model,
    UnknownParameters,
)

ModelGroups = Annotated[list[Annotated[str, StringConstraints(pattern=rf"^{GROUP_NAME.pattern}$")]], Field(max_length=MODEL_GROUPS_MAX)]
Fallbacks = Annotated[list[ModelName], Field(max_length=FALLBACKS_MAX)]
TimeMs = Annotated[int, Field(ge=1, le=TIME_MS_MAX)]
HedgePercent = Annotated[int, Field(ge=1, le=HEDGE_PERCENT_MAX)]
MODEL_GROUPS_TEXT = (
    f"Names of the groups of models that it is in, {MODEL_GROUPS_MAX} at most: 1 to 64 characters of A-Z a-z 0-9 . _ -. Limits and budgets"
    f" on `{GROUP_PREFIX}` and a name hold for all models of a group together."
)


CacheSeconds = Annotated[int, Field(ge=0, le=RESPONSE_CACHE_SECONDS_MAX)]
GuardrailMode = Annotated[Guardrail, Field(strict=False)]
GuardrailPart = Annotated[GuardrailStages, Field(strict=False)]


class ModelCreate(In):
    """A draft. It reaches gateways when it is published, for which it needs a price."""

    name: ModelName
    endpoints: Endpoints
    output_tokens_max: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    context_length: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    unknown_parameters: UnknownParametersPolicy = UnknownParameters.REFUSE
    retry_started: bool = True
    share_cache: bool = False
    groups: ModelGroups = Field(default_factory=list, description=MODEL_GROUPS_TEXT, examples=[["large"]])
    fallbacks: Fallbacks = Field(default_factory=list)
    hedge_after_ms: TimeMs | None = None
    hedge_percent: HedgePercent = HEDGE_PERCENT_FIRST
    latency_goal_ms: TimeMs | None = None
    response_cache_seconds: CacheSeconds = 0
    guardrail: GuardrailMode = Guardrail.OFF
    guardrail_stages: GuardrailPart = GuardrailStages.BOTH


class ModelUpdate(In):
    """Fields to change; a field that is left out stays."""

    endpoints: Endpoints | None = None
    output_tokens_max: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    context_length: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    unknown_parameters: UnknownParametersPolicy | None = None
    retry_started: bool | None = None
    share_cache: bool | None = None
    groups: ModelGroups | None = Field(default=None, description=MODEL_GROUPS_TEXT, examples=[["large"]])
    fallbacks: Fallbacks | None = None
    hedge_after_ms: TimeMs | None = None
    hedge_percent: HedgePercent | None = None
    latency_goal_ms: TimeMs | None = None
    response_cache_seconds: CacheSeconds | None = None
    guardrail: GuardrailMode | None = None
    guardrail_stages: GuardrailPart | None = None


class ModelOut(Identified):
    object: Literal["platform.model"] = "platform.model"
    name: str
    status: str
    published: bool
    endpoints: list[str]
    output_tokens_max: int | None
    context_length: int | None
    unknown_parameters: str
    retry_started: bool
    share_cache: bool
    groups: Annotated[list[str], Field(description=MODEL_GROUPS_TEXT, examples=[["large"]])]
    fallbacks: list[str]
    hedge_after_ms: int | None
    hedge_percent: int
    latency_goal_ms: int | None
    response_cache_seconds: int
    guardrail: str
    guardrail_stages: str
    created_at: int


def model_out(model: Model) -> ModelOut:
    return ModelOut(
        id=model.name,
        name=model.name,
        status=model.status,
        published=model.published,
        endpoints=[str(endpoint) for endpoint in model.endpoints],
        output_tokens_max=model.output_tokens_max,
        context_length=model.context_length,
        unknown_parameters=model.unknown_parameters,
        retry_started=model.retry_started,
        share_cache=model.share_cache,
        groups=list(model.groups),
        fallbacks=list(model.fallbacks),
        hedge_after_ms=model.hedge_after_ms,
        hedge_percent=model.hedge_percent,
        latency_goal_ms=model.latency_goal_ms,
        response_cache_seconds=model.response_cache_seconds,
        guardrail=model.guardrail,
        guardrail_stages=model.guardrail_stages,
        created_at=seconds(model.created_at),
    )
