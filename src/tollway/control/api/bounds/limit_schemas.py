"""The answers that show how limits stand, and the reports of gateways from which they are made."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from tollway.control.api.money.budget_schemas import BudgetOut, budget_out
from tollway.control.api.schemas import In, Out, seconds_after
from tollway.control.bounds.limit_uses import LimitStandings, UseSource
from tollway.domain.budgets import BudgetStanding, find_least_left
from tollway.domain.limits import USES_REPORTED_MAX, LevelLimits, LimitLevel, LimitUse, Standing, find_binding
from tollway.domain.plans import LimitOrigin, LimitSource, OrganizationLimits
from tollway.domain.quotas import QUOTAS, QuotaStanding
from tollway.domain.shared_limits import list_counters


class BindingLimitOut(Out):
    """One limit that binds a key, a project or the organization, and how it stands."""

    object: Literal["limit"] = "limit"
    level: str
    id: str
    model: str | None
    dimension: str
    limit: int
    used: int | None
    reserved: int | None
    remaining: int | None
    reset_seconds: float | None
    binds: bool
    source: Annotated[
        LimitSource,
        Field(
            description="Where the limit is set: at its level (`own`), in the organization's `plan`, by an `override`.", examples=["own"]
        ),
    ]
    own: Annotated[
        int | None,
        Field(description="What the level itself is set to, 1 or more, also while an override hides it; null for nothing.", examples=[600]),
    ]
    plan: Annotated[str | None, Field(description="Name of the plan that the limit comes from; null for none.", examples=["starter"])]
    until: Annotated[
        int | None, Field(description="When the override ends, in Unix seconds (UTC); null for what does not end.", examples=[1790086400])
    ]


class QuotaOut(Out):
    """Number of one kind of thing that the organization has, and may have."""

    object: Literal["quota"] = "quota"
    name: Annotated[str, Field(description="The name of the quota.", examples=["api_keys"])]
    counts: Annotated[str, Field(description="What is counted.", examples=["API keys in all projects"])]
    used: Annotated[int, Field(description="So many there are, 0 or more.", examples=[12])]
    max: Annotated[int, Field(description="So many there may be, 1 or more; one more is answered 403.", examples=[10_000])]


class BindingLimitsList(Out):
    """Every limit that binds, innermost level first."""

    object: Literal["list"] = "list"
    data: list[BindingLimitOut]
    counted_by: UseSource | None
    gateways: int | None
    budgets: Annotated[list[BudgetOut], Field(description="Every budget that binds, innermost level first, and how it stands now.")]
    binding_budget_id: Annotated[
        str | None, Field(description="The budget with the least left, which ends spending first; null if none binds.", examples=["bud_0"])
    ]
    quotas: Annotated[list[QuotaOut], Field(description="Every quota of the organization, and how it stands now.")]


def binding_limits_out(
    limits: Sequence[LevelLimits],
    found: LimitStandings,
    budgets: Sequence[BudgetStanding],
    quotas: Sequence[QuotaStanding],
    organization: OrganizationLimits,
) -> BindingLimitsList:
    """Return limits, budgets and quotas of several levels as the API shows them. Limits of each end user are shown without use: there
    are many end users. `organization`: what the limits of the organization are made of."""
    binding = {id(each) for each in find_binding(found.standings)}  # there may be 10,000: none is compared with all others
    is_known = found.source is not None
    each_end_user = [
        BindingLimitOut(
            level=owner.level,
            id=owner.id,
            model=owner.model or None,
            dimension=dimension.name,
            limit=size,
            used=None,
            reserved=None,
            remaining=None,
            reset_seconds=None,
            binds=False,
            **_show_origin(LimitOrigin(LimitSource.OWN, size)),
        )
        for owner, dimension, size in list_counters([each for each in limits if each.level is LimitLevel.END_USER])
    ]
    others = [
        BindingLimitOut(
            level=each.owner.level,
            id=each.owner.id,
            model=each.owner.model or None,
            dimension=each.dimension.name,
            limit=each.size,
            used=each.used if is_known else None,
            reserved=each.held if is_known else None,
            remaining=each.remaining if is_known else None,
            reset_seconds=-(-each.reset_ns // 1_000_000) / 1000 if is_known and each.reset_ns is not None else None,
            binds=id(each) in binding,
            **_show_origin(_find_origin(each, organization)),
        )
        for each in found.standings
    ]
    is_reported = found.source is UseSource.GATEWAYS
    least = find_least_left(budgets)
    return BindingLimitsList(
        data=each_end_user + others,
        counted_by=found.source,
        gateways=found.gateways if is_reported else None,
        budgets=[budget_out(each) for each in budgets],
        binding_budget_id=None if least is None else least.budget.id,
        quotas=[QuotaOut(name=each.quota, counts=QUOTAS[each.quota].counted, used=each.used, max=each.size) for each in quotas],
    )


def _find_origin(standing: Standing, organization: OrganizationLimits) -> LimitOrigin:
    if standing.owner.level is LimitLevel.ORGANIZATION:
        return organization.find_origin(standing.owner.model, standing.dimension)
    return LimitOrigin(LimitSource.OWN, standing.size)


def _show_origin(origin: LimitOrigin) -> dict[str, Any]:
    until = None if origin.until_at is None else seconds_after(origin.until_at)
    return {"source": origin.source, "own": origin.own, "plan": origin.plan, "until": until}


class LimitUseIn(In):
    """The use of one limit at the calling gateway."""

    subject_id: Annotated[str, StringConstraints(max_length=64)]
    model: Annotated[str, StringConstraints(max_length=256)]
    dimension: Annotated[str, StringConstraints(max_length=64)]
    used: Annotated[int, Field(ge=0, le=2**63 - 1)]
    held: Annotated[int, Field(ge=0, le=2**63 - 1)]


class LimitUsesIn(In):
    """Uses of limits at the calling gateway."""

    uses: Annotated[list[LimitUseIn], Field(max_length=USES_REPORTED_MAX)]

    def to_uses(self) -> list[LimitUse]:
        """Return the uses as the domain has them."""
        return [LimitUse(**each.model_dump()) for each in self.uses]


class LimitUsesOut(Out):
    """The number of limits in a report that was stored."""

    received: int
