"""Principals made of API keys: models allowed by both levels, limits of all four, the key's own expiry."""

import pytest

from tollway.domain.keys import KeyType
from tollway.domain.limits import LevelLimits, LimitLevel, Limits
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.principal import Principal, PrincipalKind, principal_of_key


def _principal(key_models: tuple[str, ...] | None = None, project_models: tuple[str, ...] | None = None) -> Principal:
    return principal_of_key(
        KeyEntry(
            id="key_1",
            digest=b"",
            type=KeyType.LIVE,
            project_id="proj_1",
            models=key_models,
            limits=Limits(requests_per_minute=1),
            expires_at=7,
            service_account_id="svc_1",
            service_account_limits=Limits(tokens_per_day=5),
        ),
        ProjectEntry(
            id="proj_1",
            organization_id="org_1",
            models=project_models,
            limits=Limits(requests_per_minute=2),
            model_limits={"large": Limits(tokens_per_minute=9)},
        ),
        OrganizationEntry(id="org_1", currency="EUR", limits=Limits(concurrent_requests=3)),
    )


@pytest.mark.parametrize(
    ("key_models", "project_models", "allowed"),
    [
        (None, None, None),
        (("a",), None, {"a"}),
        (None, ("a", "b"), {"a", "b"}),
        (("a", "c"), ("a", "b"), {"a"}),
        (("a",), (), set()),
    ],
)
def test_models_of_key_and_project_allow_only_what_both_do(
    key_models: tuple[str, ...] | None, project_models: tuple[str, ...] | None, allowed: set[str] | None
) -> None:
    assert _principal(key_models, project_models).models == allowed


def test_principal_of_a_key_carries_identity_expiry_and_limits_of_every_level() -> None:
    principal = _principal()
    assert (principal.id, principal.kind, principal.expires_at) == ("key_1", PrincipalKind.API_KEY, 7)
    assert (principal.project.id, principal.organization.id) == ("proj_1", "org_1")
    assert principal.limits == (
        LevelLimits(LimitLevel.API_KEY, "key_1", Limits(requests_per_minute=1)),
        LevelLimits(LimitLevel.SERVICE_ACCOUNT, "svc_1", Limits(tokens_per_day=5)),
        LevelLimits(LimitLevel.PROJECT, "proj_1", Limits(requests_per_minute=2)),
        LevelLimits(LimitLevel.PROJECT, "proj_1", Limits(tokens_per_minute=9), "large"),
        LevelLimits(LimitLevel.ORGANIZATION, "org_1", Limits(concurrent_requests=3)),
    )
