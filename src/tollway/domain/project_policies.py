"""Models and service tiers that requests of a project may use."""

from enum import StrEnum
from typing import Annotated

import msgspec

from tollway.domain.usage import ServiceTier


class ModelMode(StrEnum):
    """Meaning of the models that a project names: its keys may use these alone, or all but these."""

    ALLOW_LIST = "allow_list"
    DENY_LIST = "deny_list"


MODELS_NAMED_MAX = 1_000
"""Most models that a project names. Each is a text in the memory of every gateway."""


class ModelPermissions(msgspec.Struct, frozen=True, kw_only=True):
    """Models that the keys of a project may use. A name need not be that of a published model: one that is published later is allowed, or
    denied, from then on."""

    mode: ModelMode
    models: Annotated[tuple[str, ...], msgspec.Meta(max_length=MODELS_NAMED_MAX)]

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """The only models that may be used; None where the list is of those that may not."""
        return self.models if self.mode is ModelMode.ALLOW_LIST else None

    @property
    def denied(self) -> tuple[str, ...]:
        """The models that may not be used."""
        return self.models if self.mode is ModelMode.DENY_LIST else ()


OPTIONAL_TIERS = (ServiceTier.FLEX, ServiceTier.PRIORITY)
"""Service tiers that requests ask for and a project can do without. The standard one is always there."""


class ServiceTiers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Service tiers that requests of a project may ask for. `enabled`: those beside the standard one; None for all, later ones included.
    `default`: of requests that name none or leave the choice to us, where the model is offered in it."""

    enabled: tuple[ServiceTier, ...] | None = None
    default: ServiceTier = ServiceTier.STANDARD

    def allows(self, tier: ServiceTier) -> bool:
        """Return whether requests may be served in the tier."""
        return self.enabled is None or tier not in OPTIONAL_TIERS or tier in self.enabled


ALL_TIERS = ServiceTiers()
