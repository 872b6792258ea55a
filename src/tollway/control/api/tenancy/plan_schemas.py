"""The bodies and answers of plans and of overrides of limits."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from tollway.control.api.schemas import (
    Currency,
    Identified,
    In,
    LimitsOut,
    LimitsWrite,
    ModelName,
    Name,
    Out,
    Second,
    Sum,
    limits_out,
    seconds,
    seconds_after,
)
from tollway.domain import money
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.plans import ALL_MODELS, PLAN_MODELS_MAX, LimitOverride, OrganizationLimits, Plan

_ModelLimits = Annotated[
    dict[ModelName, LimitsWrite],
    Field(
        default_factory=dict,
        max_length=PLAN_MODELS_MAX,
        description="Limits on single models by name, or on groups of models by `group:` and the name, beside those on all models; a model"
        " without any limit is taken out.",
        examples=[{"llama-70b": {"requests_per_minute": 60}}],
    ),
]


_MONTHLY_BUDGETS = (
    "What an organization that has the plan may spend in a calendar month, as decimal strings by currency. It is a hard budget of the"
    " organization, in its own currency."
)


class PlanCreate(In):
    """A new plan."""

    name: Annotated[Name, Field(description="Name of the plan, 1 to 256 characters, which no other plan has.", examples=["starter"])]
    limits: Annotated[
        LimitsWrite,
        Field(default_factory=LimitsWrite, description="Limits on all models together.", examples=[{"requests_per_minute": 600}]),
    ]
    model_limits: _ModelLimits
    monthly_budgets: Annotated[dict[Currency, Sum], Field(default_factory=dict, description=_MONTHLY_BUDGETS, examples=[{"EUR": "500"}])]

    def budgets(self) -> dict[str, int]:
        """Return the monthly budgets in pico-currency, by currency."""
        return {currency: money.parse_sum(amount) for currency, amount in self.monthly_budgets.items()}

    def by_model(self) -> dict[str, Limits]:
        """Return the limits by model."""
        return {ALL_MODELS: self.limits.limits(), **{model: limits.limits() for model, limits in self.model_limits.items()}}


class PlanUpdate(In):
    """Changes of a plan; what is left out or null stays."""

    name: Annotated[Name | None, Field(description="Name of the plan, which no other plan has.", examples=["starter"])] = None
    limits: Annotated[
        LimitsWrite | None,
        Field(description="Limits on all models together, in place of those before.", examples=[{"requests_per_minute": 600}]),
    ] = None
    model_limits: _ModelLimits
    monthly_budgets: Annotated[
        dict[Currency, Sum | None],
        Field(
            default_factory=dict,
            description=_MONTHLY_BUDGETS + " Null ends those in a currency; currencies that are left out stay.",
            examples=[{"EUR": "600"}],
        ),
    ]

    def budgets(self) -> dict[str, int | None]:
        """Return the monthly budgets that change in pico-currency, by currency; None for those that end."""
        return {currency: None if amount is None else money.parse_sum(amount) for currency, amount in self.monthly_budgets.items()}

    def by_model(self) -> dict[str, Limits]:
        """Return the limits that change, by model."""
        of_all = {} if self.limits is None else {ALL_MODELS: self.limits.limits()}
        return of_all | {model: limits.limits() for model, limits in self.model_limits.items()}


class PlanOut(Identified):
    """A named set of limits that organizations subscribe to."""

    object: Literal["platform.plan"] = "platform.plan"
    name: Annotated[str, Field(description="Name of the plan.", examples=["starter"])]
    limits: Annotated[LimitsOut, Field(description="Limits on all models together.", examples=[{"requests_per_minute": 600}])]
    model_limits: Annotated[
        dict[str, LimitsOut],
        Field(description="Limits on single models by name.", examples=[{"llama-70b": {"requests_per_minute": 60}}]),
    ]
    monthly_budgets: Annotated[dict[str, str], Field(description=_MONTHLY_BUDGETS, examples=[{"EUR": "500"}])]
    created_at: int


def plan_out(plan: Plan) -> PlanOut:
    """Return a plan as the API shows it."""
    return PlanOut(
        id=plan.id,
        name=plan.name,
        limits=limits_out(plan.limits.get(ALL_MODELS, UNLIMITED)),
        model_limits={model: limits_out(limits) for model, limits in plan.limits.items() if model != ALL_MODELS},
        monthly_budgets={currency: money.format_amount(pico) for currency, pico in sorted(plan.monthly_budgets.items())},
        created_at=seconds(plan.created_at),
    )


class PlanDeleted(Identified):
    """A plan that was deleted."""

    object: Literal["platform.plan.deleted"] = "platform.plan.deleted"
    deleted: Literal[True] = True


class OverrideWrite(In):
    """Limits that hold until an instant."""

    limits: Annotated[
        LimitsWrite,
        Field(
            description="At least one limit. What is left out, or null, stays as it is without the override.",
            examples=[{"requests_per_minute": 6000}],
        ),
    ]
    until: Annotated[Second, Field(description="When the override ends, in Unix seconds (UTC); within a year.", examples=[1790086400])]

    def override(self, model: str | None) -> LimitOverride:
        """Return the override on a model, or on all models together (None)."""
        named = ALL_MODELS if model is None else model
        return LimitOverride(model=named, limits=self.limits.limits(), until_at=self.until * 1_000_000)


class OverrideOut(Out):
    """Limits of an organization that hold until an instant."""

    object: Literal["limit_override"] = "limit_override"
    model: Annotated[
        str | None,
        Field(
            description="The model or group of models (`group:large`) that is limited; null for all models together.",
            examples=["llama-70b"],
        ),
    ]
    limits: Annotated[
        LimitsOut,
        Field(description="The limits that hold; null: as without the override.", examples=[{"requests_per_minute": 6000}]),
    ]
    until: Annotated[int, Field(description="When the override ends, in Unix seconds (UTC).", examples=[1790086400])]


class OrganizationLimitsOut(Out):
    """The parts that the limits of an organization are made of."""

    object: Literal["organization.limits"] = "organization.limits"
    plan: Annotated[PlanOut | None, Field(description="The plan that the organization has; null for none.", examples=[None])]
    overrides: Annotated[list[OverrideOut], Field(description="The overrides that have not ended, by model.", examples=[[]])]
    own: Annotated[LimitsOut, Field(description="Its own limits on all models together.", examples=[{"requests_per_minute": 600}])]
    own_model_limits: Annotated[
        dict[str, LimitsOut],
        Field(description="Its own limits on single models by name.", examples=[{"llama-70b": {"requests_per_minute": 60}}]),
    ]


def override_out(override: LimitOverride) -> OverrideOut:
    """Return an override as the API shows it."""
    return OverrideOut(model=override.model or None, limits=limits_out(override.limits), until=seconds_after(override.until_at))


def organization_limits_out(found: OrganizationLimits) -> OrganizationLimitsOut:
    """Return what limits of an organization are made of as the API shows it."""
    own: Mapping[str, Limits] = found.own
    return OrganizationLimitsOut(
        plan=None if found.plan is None else plan_out(found.plan),
        overrides=[override_out(each) for each in found.overrides.values()],
        own=limits_out(own.get(ALL_MODELS, UNLIMITED)),
        own_model_limits={model: limits_out(limits) for model, limits in own.items() if model != ALL_MODELS},
    )
