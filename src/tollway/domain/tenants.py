"""Tenants: organization (billing account and isolation boundary) > project > service account."""

from enum import StrEnum

import msgspec

from tollway.domain.leaked_keys import LeakPolicy
from tollway.domain.rotation_schedules import RotationSchedule


class Status(StrEnum):
    """State of a tenant: may it act? Archived things keep their history and can never act again."""

    ACTIVE = "active"
    ARCHIVED = "archived"


QUEUE_WEIGHT_MAX = 1_000
"""Largest weight of an organization in the queues of models."""


RESPONSE_RETENTION_SECONDS_MAX = 366 * 86_400
"""Longest time for which the responses of an organization are stored."""


class Organization(msgspec.Struct, frozen=True, kw_only=True):
    """Customer that is billed, in one currency (ISO 4217 code), fixed when it is created. `time_zone` (IANA name) cuts its billing
    periods from the next new one on. `key_lifetime_seconds_max`: longest time until a key expires that is made or rotated from now on;
    None for no bound. `plan_id`: the plan whose limits it has; None for none. `queue_weight`: its share in the
    queue of a model whose deployments are full, beside those of other organizations; 1 to QUEUE_WEIGHT_MAX.
    `response_retention_seconds`: how long responses are stored whose requests ask for it, 1 to RESPONSE_RETENTION_SECONDS_MAX; None stores
    none. `rotation_schedule`: of the keys of its projects; None for none.
    `leaked_key_policy`: what is done with its secrets that leaked."""

    id: str
    name: str
    currency: str
    status: Status
    created_at: int
    time_zone: str = "UTC"
    key_lifetime_seconds_max: int | None = None
    plan_id: str | None = None
    queue_weight: int = 1
    response_retention_seconds: int | None = None
    rotation_schedule: RotationSchedule | None = None
    leaked_key_policy: LeakPolicy = LeakPolicy.REVOKE


REGIONS_MAX = 64
"""Most regions that the residency of a project names."""


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an organization with its own keys, limits and usage. `residency`: the regions of deployments that may serve it; None for
    any."""

    id: str
    organization_id: str
    name: str
    status: Status
    created_at: int
    archived_at: int | None = None
    residency: tuple[str, ...] | None = None


class ServiceAccount(msgspec.Struct, frozen=True, kw_only=True):
    """A program that holds keys of one project."""

    id: str
    organization_id: str
    project_id: str
    name: str
    role: str
    created_at: int
