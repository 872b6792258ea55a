"""Plans: named sets of limits that organizations subscribe to, and overrides that end.

The limits of an organization come from three places. For each dimension and model the first of these that says something holds: an
override (until it ends), what is set for the organization itself, its plan. In each of them limits are kept by model; ALL_MODELS stands
for those on all models together.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tollway.domain.limits import DIMENSIONS, UNLIMITED, Dimension, Limits

ALL_MODELS = ""
"""The name under which limits on all models together stand among those by model."""

PLAN_MODELS_MAX = 1000
"""Models that one plan may limit one by one."""

OVERRIDE_US_MAX = 366 * 86_400_000_000
"""Longest override; what lasts longer is a limit of the organization."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A set of limits under a name. `limits`: by model. `monthly_budgets`: what an organization that has the plan may spend in a calendar
    month, in pico-currency by currency; empty for no such budget. `created_at`: UTC microseconds."""

    id: str
    name: str
    limits: Mapping[str, Limits]
    created_at: int
    monthly_budgets: Mapping[str, int] = {}


class LimitOverride(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of an organization that hold until an instant (UTC microseconds), on one model or on ALL_MODELS. What it does not limit is
    as it is without it."""

    model: str
    limits: Limits
    until_at: int


class LimitSource(StrEnum):
    """The place where a limit is set: at its level, or for an organization in its plan or by an override."""

    OVERRIDE = "override"
    OWN = "own"
    PLAN = "plan"


class LimitOrigin(NamedTuple):
    """Whence a limit comes. `own`: what the level itself is set to, None for nothing; it may be hidden by an override. `plan`: its name, if
    it comes from one. `until_at`: when it ends, if it comes from an override."""

    source: LimitSource
    own: int | None
    plan: str | None = None
    until_at: int | None = None


class OrganizationLimits(NamedTuple):
    """All that is said about the limits of an organization. `own`: by model. `overrides`: by model, those that have not been ended."""

    own: Mapping[str, Limits]
    plan: Plan | None
    overrides: Mapping[str, LimitOverride]

    def resolve(self) -> dict[str, Limits]:
        """Return the limits that hold, by model, ALL_MODELS first; models without any are left out."""
        by_plan: Mapping[str, Limits] = {} if self.plan is None else self.plan.limits
        resolved = {}
        for model in sorted({*self.own, *by_plan, *self.overrides}):
            override = self.overrides.get(model)
            layers = ([] if override is None else [override.limits]) + [each[model] for each in (self.own, by_plan) if model in each]
            limits = layers[0] if len(layers) == 1 else Limits(**{each.name: _find_first(layers, each) for each in DIMENSIONS})
            if limits != UNLIMITED:
                resolved[model] = limits
        return resolved

    def find_origin(self, model: str, dimension: Dimension) -> LimitOrigin:
        """Return whence the limit on one dimension that `resolve` returns comes."""
        own = self.own.get(model, UNLIMITED).get(dimension)
        override = self.overrides.get(model)
        if override is not None and override.limits.get(dimension) is not None:
            return LimitOrigin(LimitSource.OVERRIDE, own, until_at=override.until_at)
        if own is None and self.plan is not None:
            return LimitOrigin(LimitSource.PLAN, own, plan=self.plan.name)
        return LimitOrigin(LimitSource.OWN, own)


def _find_first(layers: list[Limits], dimension: Dimension) -> int | None:
    return next((size for size in (each.get(dimension) for each in layers) if size is not None), None)
