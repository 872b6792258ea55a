"""Principals: who sends a request, independent of the kind of credential that proved it.

Phases read the principal, never the credential, so that another kind of credential needs a constructor here and no change elsewhere.
"""

from enum import StrEnum

import msgspec

from tollway.domain.limits import Limits
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry


class PrincipalKind(StrEnum):
    """Kind of credential by which a principal was authenticated."""

    API_KEY = "api_key"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated sender of requests, with what it may use.

    `id`: of the API key. `models`: names of the models that it may use; None allows every published model. `limits`: the limits of each
    level with the id that they count against, innermost level first. `expires_at`: UTC microseconds, exclusive; None never expires.
    """

    id: str
    kind: PrincipalKind
    project: ProjectEntry
    organization: OrganizationEntry
    models: frozenset[str] | None
    limits: tuple[tuple[str, Limits], ...]
    expires_at: int | None


def principal_of_key(key: KeyEntry, project: ProjectEntry, organization: OrganizationEntry) -> Principal:
    """Return the principal that an API key authenticates. It may use a model that both the key and its project allow."""
    allowed = [frozenset(entry.models) for entry in (key, project) if entry.models is not None]
    return Principal(
        id=key.id,
        kind=PrincipalKind.API_KEY,
        project=project,
        organization=organization,
        models=frozenset.intersection(*allowed) if allowed else None,
        limits=tuple((entry.id, entry.limits) for entry in (key, project, organization)),
        expires_at=key.expires_at,
    )
