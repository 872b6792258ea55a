"""Groups, identity providers, their rules and directories in the platform file: applied, exported, and refused before anything changes."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.tokens import make_p256
from tollway.cli.app import run
from tollway.cli.catalog.platform_file import read
from tollway.domain.federation import CONNECTIONS_MAX
from tollway.settings import OperatorError

JWKS = {"keys": [msgspec.to_builtins(make_p256("k1").jwk)]}
SECRET = "planted-client-secret"
CONNECTION = {"issuer": "https://login.example.com", "client_id": "tollway"}
PROVIDER = {"issuer": "https://issuer.example", "audience": "https://gateway.example", "jwks": JWKS}


@pytest.fixture(scope="module")
def tenant(control: Running) -> TenantSetup:
    return make_tenant(control, "filed")


def apply(control: Running, directory: Path, organization: str, parts: dict[str, Any], *options: str) -> int:
    """Apply a file with these parts of one organization. JSON is YAML."""
    file = directory / "platform.yaml"
    file.write_text(json.dumps({"organizations": {organization: {"currency": "EUR", **parts}}}))
    return run(["apply", "-f", str(file), *options, "--control-url", control.url, "--key", control.platform_key])


def export(control: Running, directory: Path) -> str:
    file = directory / "exported.yaml"
    assert run(["export", "-f", str(file), "--control-url", control.url, "--key", control.platform_key]) == 0
    return file.read_text()


def parts_of(tenant: TenantSetup) -> dict[str, Any]:
    """Return one of everything, with names and ids mixed."""
    rule = {"project": tenant.project_id, "service_account": "filed account", "claims": {"sub": "repo:acme/*", "admin": True}}
    connection = {**CONNECTION, "client_secret": "${FILED_SECRET}", "domains": ["example.com"], "role": "reader"}
    return {
        "groups": {"engineers": {"roles": ["developer", "role_billing"]}},
        "sign_in_connections": {"company": {**connection, "groups": {"eng": "engineers"}}},
        "identity_providers": {"ci": {**PROVIDER, "rules": {"deploy": {**rule, "endpoints": ["embeddings"]}}}},
        "directories": {"okta": {}},
    }


def test_identity_of_an_organization_is_applied_exported_and_changed_without_its_secrets(
    control: Running, tenant: TenantSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    admin, parts = control.client(tenant.admin_key), parts_of(tenant)
    monkeypatch.setenv("FILED_SECRET", SECRET)
    assert apply(control, tmp_path, tenant.organization_id, parts) == 2, "the token of the directory is not made by a file"
    assert "tollway scim create-token" in capsys.readouterr().err
    assert answered(admin.get("/v1/organization/groups"))["data"] == [], "nothing was changed"
    answered(admin.post("/v1/organization/admin_api_keys", json={"name": "okta", "role": "directory"}))

    assert apply(control, tmp_path, tenant.organization_id, parts, "--dry-run") == 3
    planned = capsys.readouterr().out
    for line in (
        "+ group",
        "+ sign-in connection",
        "+ identity provider",
        "+ federation rule",
        "claims: sub repo:acme/*",
        "${FILED_SECRET}",
    ):
        assert line in planned
    assert apply(control, tmp_path, tenant.organization_id, parts) == 0
    assert apply(control, tmp_path, tenant.organization_id, parts, "--dry-run") == 0, "a second run has nothing to change"
    (connection,) = answered(admin.get("/v1/organization/sign_in_connections"))["data"]
    (group,) = answered(admin.get("/v1/organization/groups"))["data"]
    assert connection["has_client_secret"] and connection["role_id"] == "role_viewer" and connection["groups"] == {"eng": group["id"]}
    (provider,) = answered(admin.get("/v1/organization/workload_identity_providers"))["data"]
    (rule,) = answered(admin.get(f"/v1/organization/workload_identity_providers/{provider['id']}/federation_rules"))["data"]
    assert rule["service_account_id"] == tenant.service_account_id and rule["permissions"]["scopes"] == ["embeddings"]

    exported = export(control, tmp_path)
    assert SECRET not in exported + planned
    of_organization = yaml.safe_load(exported)["organizations"]["filed"]
    assert of_organization["sign_in_connections"]["company"]["client_secret"] == "${TOLLWAY_CLIENT_SECRET_COMPANY}"
    assert of_organization["groups"]["engineers"]["roles"] == ["billing", "developer"] and of_organization["directories"] == {"okta": {}}
    assert apply(control, tmp_path, "filed", of_organization, "--dry-run") == 0, "what was exported is what there is"

    parts["groups"]["engineers"]["roles"] = ["developer"]
    parts["sign_in_connections"]["company"] |= {"enabled": False, "role": None, "client_secret": None}
    parts["identity_providers"]["ci"] |= {"jwks": {"keys": [msgspec.to_builtins(make_p256("k2").jwk)]}, "enabled": False}
    parts["identity_providers"]["ci"]["rules"]["deploy"] |= {"endpoints": None, "claims": {"sub": "repo:acme/shop"}}
    assert apply(control, tmp_path, tenant.organization_id, parts) == 0
    assert apply(control, tmp_path, tenant.organization_id, parts, "--dry-run") == 0
    (connection,) = answered(admin.get("/v1/organization/sign_in_connections"))["data"]
    assert (connection["enabled"], connection["role_id"], connection["has_client_secret"]) == (False, None, False)
    assert [each["name"] for each in answered(admin.get(f"/v1/organization/groups/{group['id']}/roles"))["data"]] == ["developer"]
    (rule,) = answered(admin.get(f"/v1/organization/workload_identity_providers/{provider['id']}/federation_rules"))["data"]
    assert rule["permissions"]["scopes"] is None and rule["attribute_matchers"] == {"sub": "repo:acme/shop"}


def test_a_new_organization_gets_its_identity_in_one_run(control: Running, tmp_path: Path) -> None:
    parts = {
        "groups": {"staff": {"roles": ["viewer"]}},
        "sign_in_connections": {"login": {**CONNECTION, "role": "viewer", "groups": {"all": "staff"}}},
        "identity_providers": {"ci": PROVIDER},
    }
    assert apply(control, tmp_path, "filed anew", parts) == 0
    assert apply(control, tmp_path, "filed anew", parts, "--dry-run") == 0


REFERENCES = {
    "role of a connection": ({"sign_in_connections": {"x": {**CONNECTION, "role": "nobody"}}}, "there is no role nobody"),
    "role of a project": ({"groups": {"x": {"roles": ["role_project_owner"]}}}, "there is no role role_project_owner"),
    "group": ({"sign_in_connections": {"x": {**CONNECTION, "groups": {"a": "nowhere"}}}}, "there is no group nowhere"),
    "secret": ({"sign_in_connections": {"x": {**CONNECTION, "client_secret": "${ABSENT_SECRET}"}}}, "ABSENT_SECRET is empty or missing"),
    "project": (
        {"identity_providers": {"x": {**PROVIDER, "rules": {"r": {"project": "no", "service_account": "s", "claims": {"sub": "abc"}}}}}},
        "there is no project no",
    ),
    "direct": ({"identity_providers": {"x": {**PROVIDER, "is_direct": True}}}, "only with an audience that contains org_"),
    "issuer": ({"identity_providers": {"x": {"issuer": "https://localhost", "audience": "a"}}}, "its host is not public"),
}


def test_references_to_nothing_are_refused_before_anything_is_changed(
    control: Running, tenant: TenantSetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = make_tenant(control, "filed elsewhere")
    rule = {"project": tenant.project_id, "service_account": foreign.service_account_id, "claims": {"sub": "abc"}}
    of_foreign = {"identity_providers": {"x": {**PROVIDER, "audience": "other", "rules": {"r": rule}}}}
    cases = REFERENCES | {"foreign": (of_foreign, f"there is no service account {foreign.service_account_id}")}
    for case, (parts, message) in cases.items():
        changed = {"time_zone": "Europe/Lisbon", **parts}
        assert apply(control, tmp_path, tenant.organization_id, changed) == 2, case
        assert message in capsys.readouterr().err, case
    assert answered(control.client(tenant.admin_key).get("/v1/organization"))["time_zone"] == "UTC"


def test_issuer_of_a_connection_and_account_of_a_rule_cannot_change(
    control: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant = make_tenant(control, "filed fixed")
    rule = {"project": "filed fixed project", "service_account": "filed fixed account", "claims": {"sub": "abc"}}
    parts = {"sign_in_connections": {"x": CONNECTION}, "identity_providers": {"x": {**PROVIDER, "rules": {"r": rule}}}}
    assert apply(control, tmp_path, tenant.organization_id, parts) == 0
    other = {"sign_in_connections": {"x": {**CONNECTION, "issuer": "https://other.example"}}}
    moved = {"identity_providers": {"x": {**PROVIDER, "rules": {"r": {**rule, "service_account": "another"}}}}}
    for changed in (other, moved):
        assert apply(control, tmp_path, tenant.organization_id, changed) == 2
        assert "cannot change" in capsys.readouterr().err


VALUES = {
    "issuer with a space": ({"sign_in_connections": {"x": {**CONNECTION, "issuer": "https://a b"}}}, "issuer: it must be printable ASCII"),
    "written secret": ({"sign_in_connections": {"x": {**CONNECTION, "client_secret": "s3cret"}}}, "client_secret must not stand"),
    "domain": ({"sign_in_connections": {"x": {**CONNECTION, "domains": ["Example.com"]}}}, "domains 'Example.com'"),
    "unknown field": ({"sign_in_connections": {"x": {**CONNECTION, "client_sekret": "a"}}}, "unknown key .*client_sekret"),
    "too many": ({"sign_in_connections": {f"c{n}": CONNECTION for n in range(CONNECTIONS_MAX + 1)}}, "at most 20"),
    "name": ({"sign_in_connections": {"\t": CONNECTION}}, "must be readable text"),
    "keys twice": ({"identity_providers": {"x": {**PROVIDER, "discovery_url": None}}}, "not both"),
    "no keys": ({"identity_providers": {"x": {**PROVIDER, "jwks": {"keys": []}}}}, "jwks: the key set has no key"),
    "private key": ({"identity_providers": {"x": {**PROVIDER, "jwks": {"keys": [{"kty": "oct", "k": "a"}]}}}}, "holds a private key"),
    "claims": (
        {"identity_providers": {"x": {**PROVIDER, "rules": {"r": {"project": "p", "service_account": "s", "claims": {}}}}}},
        "claims: a rule has 1 to 16 matchers",
    ),
    "wide prefix": (
        {"identity_providers": {"x": {**PROVIDER, "rules": {"r": {"project": "p", "service_account": "s", "claims": {"sub": "*"}}}}}},
        "a prefix of the subject",
    ),
    "directory with a secret": ({"directories": {"okta": {"token": "t"}}}, "unknown key .*token"),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_the_api_would_refuse_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    parts, message = VALUES[case]
    (tmp_path / "p.yaml").write_text(json.dumps({"organizations": {"a": {"currency": "EUR", **parts}}}))
    with pytest.raises(OperatorError, match=message) as error:
        read(tmp_path / "p.yaml")
    assert "s3cret" not in str(error.value)
