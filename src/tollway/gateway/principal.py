"""Principals: who sends a request, independent of the kind of credential that proved it.

Phases read the principal, never the credential, so that another kind of credential needs a constructor here and no change elsewhere.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from tollway.domain.catalog import Endpoint
from tollway.domain.keys import KeyType
from tollway.domain.limits import UNLIMITED, LevelLimits, LimitLevel, Limits
from tollway.domain.networks import Network, parse_network
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.tokens import VerifiedToken


class PrincipalKind(StrEnum):
    """Kind of credential by which a principal was authenticated."""

    API_KEY = "api_key"
    TOKEN = "token"
    BATCH = "batch"  # no credential: a batch that its key has submitted
    BACKGROUND = "background"  # no credential: a response in the background that its key has asked for
    CERTIFICATE = "certificate"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated sender of requests, with what it may use.

    `id`: of the API key, for which a token or a certificate stands as well. `models`: names of the models that it may use; None allows
    every published model but those of `denied_models`. `limits`: those of each level that has any, innermost level first. `expires_at`: UTC
    microseconds, exclusive; None never expires.
    `is_test`: its requests reach only deployments for tests, and are not billed. `endpoints`: those that it may call; None allows all.
    `networks`: the address ranges from which it may send; None allows any. `output_tokens_max`: most output tokens of one sequence; None
    leaves the model's own bound.
    """

    id: str
    kind: PrincipalKind
    project: ProjectEntry
    organization: OrganizationEntry
    models: frozenset[str] | None
    limits: tuple[LevelLimits, ...]
    expires_at: int | None
    is_test: bool = False
    endpoints: frozenset[Endpoint] | None = None
    networks: tuple[Network, ...] | None = None
    output_tokens_max: int | None = None
    denied_models: frozenset[str] = frozenset()

    def may_use(self, model: str) -> bool:
        """Return whether it may use a published model of this name."""
        return model not in self.denied_models and (self.models is None or model in self.models)


def principal_of_key(key: KeyEntry, project: ProjectEntry, organization: OrganizationEntry) -> Principal:
    """Return the principal that an API key authenticates. It may use a model that both the key and its project allow."""
    allowed = [frozenset(entry.models) for entry in (key, project) if entry.models is not None]
    return Principal(
        id=key.id,
        kind=PrincipalKind.API_KEY,
        project=project,
        organization=organization,
        models=frozenset.intersection(*allowed) if allowed else None,
        limits=tuple(_list_limits(key, project, organization)),
        expires_at=key.expires_at,
        is_test=key.type is KeyType.TEST,
        endpoints=None if key.endpoints is None else _with_implied(key.endpoints),
        networks=None if key.addresses is None else tuple(map(parse_network, key.addresses)),
        output_tokens_max=key.output_tokens_max,
        denied_models=frozenset(project.denied_models),
    )


def principal_of_token(token: VerifiedToken, of_key: Principal, kind: PrincipalKind) -> Principal:
    """Return the principal that a token or a certificate authenticates: that of the key for which it stands, until it ends."""
    key_ends_at = of_key.expires_at
    return msgspec.structs.replace(
        of_key,
        kind=kind,
        expires_at=token.expires_at if key_ends_at is None else min(key_ends_at, token.expires_at),
    )


def principal_of_submission(of_key: Principal, kind: PrincipalKind) -> Principal:
    """Return the principal as which something is sent later that a key has submitted: the lines of a batch (BATCH), or a response in the
    background (BACKGROUND)."""
    return msgspec.structs.replace(of_key, kind=kind)


def _with_implied(endpoints: tuple[Endpoint, ...]) -> frozenset[Endpoint]:
    """Return the endpoints of a key with those that they imply: whoever may use messages may count their tokens."""
    return frozenset(each for each in Endpoint if each in endpoints or DIALECTS[each].model_endpoint in endpoints)


def _list_limits(key: KeyEntry, project: ProjectEntry, organization: OrganizationEntry) -> Iterator[LevelLimits]:
    yield from _list_level(LimitLevel.API_KEY, key.id, key.limits, key.model_limits)
    if key.service_account_id is not None:
        account_limits, by_model = key.service_account_limits, key.service_account_model_limits
        yield from _list_level(LimitLevel.SERVICE_ACCOUNT, key.service_account_id, account_limits, by_model)
    yield from _list_level(LimitLevel.PROJECT, project.id, project.limits, project.model_limits)
    yield from _list_level(LimitLevel.ORGANIZATION, organization.id, organization.limits, organization.model_limits)


def _list_level(level: LimitLevel, id: str, limits: Limits, by_model: Mapping[str, Limits]) -> Iterator[LevelLimits]:
    if limits != UNLIMITED:
        yield LevelLimits(level, id, limits)
    for model, of_model in sorted(by_model.items()):
        yield LevelLimits(level, id, of_model, model)
