"""Quotas: how many of each thing one organization may have. One table says what is counted and what to do once it is used up.

What a tenant creates is stored, published to every gateway and kept in its memory, so each kind of it has a bound. Things that have ended
(archived, deleted, revoked) are not counted but keep their rows, because usage names them; `CREATIONS_PER_DAY` bounds how fast these grow.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

DAY_US = 86_400_000_000


class Quota(StrEnum):
    """Kinds of things that are counted for one organization."""

    PROJECTS = "projects"
    SERVICE_ACCOUNTS = "service_accounts"
    API_KEYS = "api_keys"
    ADMIN_KEYS = "admin_api_keys"
    BUDGETS = "budgets"
    BUDGET_RAISES = "budget_raises"
    MODEL_LIMITS = "model_limits"
    ROLES = "roles"
    USERS = "users"
    GROUPS = "groups"
    INVITES = "invites"
    CREATIONS_PER_DAY = "creations_per_day"


class QuotaTerms(msgspec.Struct, frozen=True):
    """Terms of a quota. `counted`: in words that follow a number. `remedy`: what to do once it is used up.
    `default`: size where the settings state none."""

    counted: str
    remedy: str
    default: int


QUOTAS: Mapping[Quota, QuotaTerms] = {
    Quota.PROJECTS: QuotaTerms("active projects", "Archive projects that are not needed any more", 1_000),
    Quota.SERVICE_ACCOUNTS: QuotaTerms(
        "service accounts in active projects", "Delete service accounts that are not needed any more", 1_000
    ),
    Quota.API_KEYS: QuotaTerms("API keys in all projects", "Revoke keys that are not needed any more, expired ones too", 10_000),
    Quota.ADMIN_KEYS: QuotaTerms("admin keys", "Revoke admin keys that are not needed any more, expired ones too", 100),
    Quota.BUDGETS: QuotaTerms("active budgets", "Archive budgets that are not needed any more", 1_000),
    Quota.BUDGET_RAISES: QuotaTerms("raises of active budgets that have not ended", "Wait until some have ended", 1_000),
    Quota.MODEL_LIMITS: QuotaTerms("limits of a level on a single model", "Remove some, or limit all models together", 10_000),
    Quota.ROLES: QuotaTerms("roles of its own, those of projects included", "Delete roles that nobody holds", 1_000),
    Quota.USERS: QuotaTerms("people", "Remove people who have left", 10_000),
    Quota.GROUPS: QuotaTerms("groups", "Delete groups that are not needed any more", 1_000),
    Quota.INVITES: QuotaTerms("invitations that were not accepted", "Delete invitations that nobody will accept", 1_000),
    Quota.CREATIONS_PER_DAY: QuotaTerms(
        "projects, service accounts, keys, budgets, raises, roles, people, groups and invitations created in 24 hours, ended ones too",
        "Wait until some were created more than 24 hours ago",
        20_000,
    ),
}
"""The terms of each quota. The defaults are above what tenants with thousands of customers have, and keep what one organization takes of a
gateway's memory below about 50 MB."""

QuotaSizes = Mapping[Quota, int]
"""The size of every quota, 1 or more."""

DEFAULT_SIZES: QuotaSizes = {quota: terms.default for quota, terms in QUOTAS.items()}


class QuotaStanding(msgspec.Struct, frozen=True):
    """State of a quota of an organization. `used` is above `size` where the size was made smaller afterwards."""

    quota: Quota
    used: int
    size: int


def describe_excess(standing: QuotaStanding) -> str:
    """Return what is said to someone whom a quota keeps from creating one more: its name, its size, what is used and the remedy."""
    terms = QUOTAS[standing.quota]
    return (
        f"Quota `{standing.quota}`: the organization has {standing.used} of at most {standing.size} {terms.counted}. "
        f"{terms.remedy}, or ask the platform's operator for a larger quota (`control.quotas.{standing.quota}`)."
    )
