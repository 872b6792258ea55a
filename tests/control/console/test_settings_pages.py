"""Settings of projects and organizations on pages: service accounts and what stands for them, models, tiers, regions, stored content."""

import json
import re
from typing import Any

import msgspec

from tests.control.browsing import Browser
from tests.control.console.pages import find_token, root_of
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.gateway.certificates import make_pem
from tests.tokens import make_p256


def test_person_makes_a_service_account_gives_it_another_key_and_deletes_it_with_both(
    control: Running, owner: Browser, used: TenantSetup
) -> None:
    api = f"/v1/organization/projects/{used.project_id}"
    path, admin = f"{root_of(used)}/projects/{used.project_id}/service-accounts", control.client(used.admin_key)
    owner.open(path)
    refused = owner.post(path, {"name": "nightly", "key": "yes", "lifetime_days": "8", "form_token": find_token(owner)})
    assert refused.status_code == 400 and "A key ends after 1, 7" in refused.text
    made = owner.send(path, name="nightly", key="yes", lifetime_days="7")
    secrets = re.findall(r'<code id="secret" data-copy>(tw_live_\w+)</code>', made.text)
    account = re.search(r"service-accounts/(sa_[0-9a-f]{32})/delete", made.text)
    assert account is not None
    one = f"{path}/{account.group(1)}"
    secrets += re.findall(r"data-copy>(tw_live_\w+)</code>", owner.send(f"{one}/keys", name="second", lifetime_days="").text)
    assert len(set(secrets)) == 2
    shown = owner.open(one).text
    assert not any(each in shown for each in secrets) and "All of its keys (2) are revoked" in shown
    assert 'value="owner" selected' in owner.send(f"{one}/change", name="weekly", role="owner").text
    assert "weekly" in owner.open(f"{root_of(used)}/projects/{used.project_id}").text
    keys = [each for each in answered(admin.get(f"{api}/api_keys"))["data"] if each["owner"]["service_account"]]
    assert {each["owner"]["service_account"]["id"] for each in keys} >= {account.group(1)}
    owner.open(one)
    assert owner.send(f"{one}/delete", confirmation="weekly").url.path == path
    assert owner.open(one).status_code == 404
    left = answered(admin.get(f"{api}/api_keys"))["data"]
    assert not any(each["owner"]["service_account"] and each["owner"]["service_account"]["id"] == account.group(1) for each in left)
    owner.open(path)
    alone = owner.send(path, name="by tokens alone", key="no")
    assert "It has no key." in alone.text and "data-copy" not in alone.text


def test_settings_of_a_project_are_those_of_the_api_and_taken_back(control: Running, owner: Browser, used: TenantSetup) -> None:
    api = f"/v1/organization/projects/{used.project_id}"
    path, admin = f"{root_of(used)}/projects/{used.project_id}/settings", control.client(used.admin_key)
    owner.open(path)
    owner.send(f"{path}/models", mode="allow_list", models="echo\nother")
    assert answered(admin.get(f"{api}/model_permissions")) == {
        "object": "project.model_permissions",
        "mode": "allow_list",
        "model_ids": ["echo", "other"],
    }
    owner.send(f"{path}/models", mode="all", models="echo")
    assert answered(admin.get(f"{api}/model_permissions"))["mode"] == "deny_list"
    owner.send(f"{path}/tiers", enabled_tiers="flex", default="standard")
    assert answered(admin.get(f"{api}/service_tier_settings"))["enabled_tiers"] == ["flex"]
    assert 'value="flex" selected' in owner.page.text
    assert "That was refused" in owner.send(f"{path}/tiers", 400, enabled_tiers="flex", default="fast").text
    for chosen, wanted in (("none", []), ("flex,fast", ["flex", "fast"]), ("all", "all")):
        assert f'value="{chosen}" selected' in owner.send(f"{path}/tiers", enabled_tiers=chosen, default="standard").text
        assert answered(admin.get(f"{api}/service_tier_settings"))["enabled_tiers"] == wanted
    owner.send(f"{path}/regions", regions="eu-central\neu-west")
    assert answered(admin.get(api))["residency"] == ["eu-central", "eu-west"]
    owner.send(f"{path}/regions", 400, regions="not a region")
    owner.open(path)
    owner.send(f"{path}/regions", regions="")
    assert answered(admin.get(api))["residency"] is None


def test_content_is_kept_by_what_was_chosen_and_a_name_that_was_typed(control: Running, owner: Browser, used: TenantSetup) -> None:
    api = f"/v1/organization/projects/{used.project_id}"
    path, admin = f"{root_of(used)}/projects/{used.project_id}/settings", control.client(used.admin_key)
    name = answered(admin.get(api))["name"]
    owner.open(path)
    owner.send(f"{path}/retention", retention_type="none", content="36", content_unit="hours", confirmation=name)
    assert answered(admin.get(f"{api}/data_retention"))["content_retention_seconds"] == 36 * 3600
    assert 'value="36"' in owner.page.text and "for 36 hours" in owner.page.text
    refused = owner.send(f"{path}/retention", 400, retention_type="none", content="1.5", content_unit="days", confirmation=name)
    assert "A time is a whole number" in refused.text
    owner.open(path)
    owner.send(f"{path}/retention", retention_type="organization_default", content="", confirmation=name)
    assert answered(admin.get(f"{api}/data_retention"))["content_retention_seconds"] is None
    organization = answered(admin.get("/v1/organization"))
    root, confirmation = f"{root_of(used)}/settings", organization["name"]
    owner.open(root)
    owner.send(f"{root}/responses", responses="30", responses_unit="days", confirmation=confirmation)
    assert answered(admin.get("/v1/organization"))["response_retention_seconds"] == 30 * 86_400
    owner.send(f"{root}/retention", retention_type="zero_data_retention", confirmation=confirmation)
    assert answered(admin.get("/v1/organization/data_retention"))["type"] == "zero_data_retention"
    assert (
        "lets nothing be kept"
        in owner.send(f"{root}/responses", 409, responses="30", responses_unit="days", confirmation=confirmation).text
    )
    owner.open(root)
    owner.send(f"{root}/retention", retention_type="modified_abuse_monitoring", confirmation=confirmation)
    assert answered(admin.get("/v1/organization/data_retention"))["type"] == "modified_abuse_monitoring"


def test_rules_of_keys_are_set_and_cleared_on_the_page_of_settings(control: Running, owner: Browser, used: TenantSetup) -> None:
    root, admin = f"{root_of(used)}/settings", control.client(used.admin_key)
    owner.open(root)
    owner.send(
        f"{root}/keys",
        lifetime="90",
        lifetime_unit="days",
        rotation="30",
        rotation_unit="days",
        grace_seconds="3600",
        leaked_key_policy="notify",
    )
    found = answered(admin.get("/v1/organization"))
    assert found["key_lifetime_seconds_max"] == 90 * 86_400 and found["leaked_key_policy"] == "notify"
    assert found["rotation_schedule"] == {"interval_seconds": 30 * 86_400, "grace_seconds": 3_600}
    assert 'value="3600" selected' in owner.page.text and "after 1 hour" in owner.page.text
    owner.send(f"{root}/keys", 400, rotation="1", rotation_unit="seconds")
    owner.open(root)
    owner.send(f"{root}/keys", lifetime="", rotation="", leaked_key_policy="revoke", grace_seconds="86400")
    found = answered(admin.get("/v1/organization"))
    assert (found["key_lifetime_seconds_max"], found["rotation_schedule"]) == (None, None)


def test_reader_sees_settings_without_forms_and_is_refused(people: dict[str, Browser], used: TenantSetup) -> None:
    reader, project = people["reader"], f"{root_of(used)}/projects/{used.project_id}"
    for path, form, fields in (
        (f"{project}/settings", "/models", {"mode": "all"}),
        (f"{project}/service-accounts", "", {"name": "mine", "key": "yes"}),
        (f"{root_of(used)}/settings", "/keys", {"leaked_key_policy": "record"}),
    ):
        assert f'action="{path}' not in reader.open(path).text and reader.page.status_code == 200
        assert reader.post(path + form, {**fields, "form_token": find_token(reader)}).status_code == 403, path


def test_person_lets_a_pipeline_stand_for_a_service_account_and_ends_that(control: Running, owner: Browser, used: TenantSetup) -> None:
    path, admin = f"{root_of(used)}/workloads", control.client(used.admin_key)
    keys = json.dumps({"keys": [msgspec.to_builtins(make_p256("k1").jwk)]})
    fields = {"name": "CI", "issuer": "https://ci.example", "audience": "https://gateway.example", "jwks": keys}
    flags = {"is_single_use": "yes", "is_direct": "no"}
    owner.open(path)
    for wrong in ("{", "[" * 2_000, '{"keys": [{}]}'):
        assert "That was refused" in owner.send(path, 400, **{**fields, **flags, "jwks": wrong}).text
    one = owner.send(path, **fields, **flags).url.path
    api = f"/v1/organization/workload_identity_providers/{one.rpartition('/')[2]}"
    assert "stand for nobody" in owner.page.text and "<h3>New rule" in owner.page.text and f'action="{one}/rules"' not in owner.page.text
    assert owner.open(f"{one}?project=proj_{'0' * 32}").status_code == 404
    owner.open(f"{one}?project={used.project_id}")
    assert "That was refused" in owner.send(f"{one}/rules", 400, service_account_id=used.service_account_id, matchers="sub").text
    owner.open(f"{one}?project={used.project_id}")
    matchers = 'sub: repo:acme/*\nprotected: true\nrun: 7\nname: "8"'
    owner.send(f"{one}/rules", service_account_id=used.service_account_id, name="main", matchers=matchers, endpoints="chat/completions")
    (rule,) = answered(admin.get(f"{api}/federation_rules"))["data"]
    assert rule["attribute_matchers"] == {"sub": "repo:acme/*", "protected": True, "run": 7, "name": "8"}
    assert rule["permissions"]["scopes"] == ["chat/completions"]
    assert "name: &#34;8&#34;" in owner.page.text and "protected: true" in owner.page.text
    owner.send(f"{one}/rules/{rule['id']}/enable")
    assert answered(admin.get(f"{api}/federation_rules"))["data"][0]["enabled"] is False
    owner.send(f"{one}/change", name="pipeline", enabled="no", **flags)
    changed = answered(admin.get(api))
    assert (changed["name"], changed["enabled"], changed["verification"]["type"]) == ("pipeline", False, "uploaded_jwks")
    assert "That was refused" in owner.send(f"{one}/delete", 409, confirmation="pipeline").text
    owner.open(one)
    assert owner.send(f"{one}/rules/{rule['id']}/delete", confirmation="main").url.path == one
    assert owner.send(f"{one}/delete", confirmation="pipeline").url.path == path and owner.open(one).status_code == 404


def test_person_trusts_a_certificate_with_a_rule_and_takes_it_back(control: Running, owner: Browser, used: TenantSetup) -> None:
    path, admin = f"{root_of(used)}/certificates", control.client(used.admin_key)
    owner.open(path)
    assert "That was refused" in owner.send(path, 400, name="ours", certificate="no certificate").text
    one = owner.send(path, name="ours", certificate=make_pem("ours")).url.path
    identifier = one.rpartition("/")[2]

    def find() -> dict[str, Any]:
        return next(each for each in answered(admin.get("/v1/organization/certificates"))["data"] if each["id"] == identifier)

    owner.post(f"{one}/trust", {"project": used.project_id, "trusted": "yes", "form_token": find_token(owner)})
    assert find()["project_ids"] == [used.project_id] and "in 1 project" in owner.open(path).text
    owner.open(one)
    owner.post(f"{one}/trust", {"trusted": "yes", "form_token": find_token(owner)})
    assert find()["active"] is True and "Trust it no more in the organization" in owner.page.text
    owner.open(f"{one}?project={used.project_id}")
    owner.send(f"{one}/rules", service_account_id=used.service_account_id, name="ci", matchers="uri: spiffe://example.com/ci/*")
    (rule,) = answered(admin.get(f"/v1/organization/certificates/{identifier}/rules"))["data"]
    assert rule["matchers"] == {"uri": "spiffe://example.com/ci/*"}
    assert owner.send(f"{one}/name", name="theirs").url.path == one
    assert "That was refused" in owner.send(f"{one}/delete", 409, confirmation="theirs").text
    owner.open(one)
    owner.send(f"{one}/rules/{rule['id']}/delete", confirmation="ci")
    for project in ("", used.project_id):
        owner.post(f"{one}/trust", {"project": project, "trusted": "no", "form_token": find_token(owner)})
    assert (find()["active"], find()["project_ids"]) == (False, [])
    owner.open(one)
    assert owner.send(f"{one}/delete", confirmation="theirs").url.path == path and owner.open(one).status_code == 404


def test_operator_archives_an_organization_whose_name_was_typed_and_its_owner_cannot(
    control: Running, operator: Browser, owner: Browser, used: TenantSetup
) -> None:
    assert "/settings/archive" not in owner.open(f"{root_of(used)}/settings").text
    name = answered(control.client(used.admin_key).get("/v1/organization"))["name"]
    theirs = {"confirmation": name, "form_token": find_token(owner)}
    assert owner.post(f"{root_of(used)}/settings/archive", theirs).status_code == 403
    tenant = make_tenant(control, "to be archived")
    path = f"{root_of(tenant)}/settings"
    operator.open(path)
    assert "Nothing was changed" in operator.send(f"{path}/archive", 400, confirmation="another").text
    archived = operator.send(f"{path}/archive", confirmation="to be archived").text
    assert "Archived." in archived and "<form" not in archived.partition("<main")[2]
    assert answered(control.operator().get(f"/v1/platform/organizations/{tenant.organization_id}"))["status"] == "archived"
