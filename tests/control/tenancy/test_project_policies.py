"""Models and service tiers that a project narrows: at the API, in the snapshot of gateways, and between tenants."""

import pytest

from tests.control.harness import Running, TenantSetup, answered
from tests.control.test_routes import refused
from tollway.domain.project_policies import ServiceTiers
from tollway.domain.snapshot import ProjectEntry
from tollway.domain.usage import ServiceTier
from tollway.storage import platform_queries


def entry_of(control: Running, tenant: TenantSetup) -> ProjectEntry:
    """Return what gateways are told of the tenant's project."""
    with control.plane.database.platform(write=False) as tx:
        entry = platform_queries.list_entries(tx, ProjectEntry, [tenant.project_id])[tenant.project_id]
    assert isinstance(entry, ProjectEntry)
    return entry


def test_models_of_a_project_reach_the_gateways(control: Running, alice: TenantSetup) -> None:
    client, path = control.client(alice.admin_key), f"/v1/organization/projects/{alice.project_id}/model_permissions"
    assert answered(client.get(path)) == {"object": "project.model_permissions", "mode": "deny_list", "model_ids": []}
    answered(client.post(path, json={"mode": "deny_list", "model_ids": ["b", "a", "a"]}))
    assert (entry_of(control, alice).models, entry_of(control, alice).denied_models) == (None, ("a", "b"))
    answered(client.post(path, json={"mode": "allow_list", "model_ids": ["a"]}))
    assert (entry_of(control, alice).models, entry_of(control, alice).denied_models) == (("a",), ())
    assert answered(client.delete(path)) == {"object": "project.model_permissions.deleted", "deleted": True}
    assert (entry_of(control, alice).models, entry_of(control, alice).denied_models) == (None, ())


def test_service_tiers_of_a_project_reach_the_gateways(control: Running, alice: TenantSetup) -> None:
    client, path = control.client(alice.admin_key), f"/v1/organization/projects/{alice.project_id}/service_tier_settings"
    assert answered(client.get(path))["enabled_tiers"] == "all"
    answered(client.post(path, json={"default": "fast", "enabled_tiers": ["fast"]}))
    assert entry_of(control, alice).service_tiers == ServiceTiers(enabled=(ServiceTier.PRIORITY,), default=ServiceTier.PRIORITY)
    assert answered(client.post(path, json={"enabled_tiers": "all"}))["default"] == "fast", "what is left out stays"
    refused(client.post(path, json={"enabled_tiers": ["flex"]}), 400, "invalid_value", "default")
    answered(client.post(path, json={"default": "standard", "enabled_tiers": []}))
    assert entry_of(control, alice).service_tiers == ServiceTiers(enabled=())


@pytest.mark.parametrize(
    ("resource", "body", "param"),
    [
        ("model_permissions", {"mode": "some", "model_ids": []}, "mode"),
        ("model_permissions", {"mode": "deny_list", "model_ids": ["a b"]}, "model_ids.[0]"),
        ("model_permissions", {"mode": "deny_list", "model_ids": ["a"] * 1001}, "model_ids"),
        ("service_tier_settings", {"default": "scale"}, "default"),
        ("service_tier_settings", {"enabled_tiers": ["ultrafast"]}, "enabled_tiers"),
    ],
)
def test_what_there_is_not_is_refused_by_name(control: Running, alice: TenantSetup, resource: str, body: object, param: str) -> None:
    before = entry_of(control, alice)
    answer = control.client(alice.admin_key).post(f"/v1/organization/projects/{alice.project_id}/{resource}", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert entry_of(control, alice) == before
