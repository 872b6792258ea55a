"""Explanations of access: which rule decides about an operation, for every kind of subject, and nothing about other tenants."""

import pytest

from tests.control.harness import Running, TenantSetup, answered
from tests.control.identity.test_access import read_page
from tests.control.test_routes import refused
from tollway.cli.app import run
from tollway.control.identity.explanations import Reason, Rule, Subject, SubjectKind, explain, explain_operation
from tollway.domain.roles import BUILT_IN, DEVELOPER, OPERATOR, PROJECT_MEMBER, VIEWER, Grant, Permission, RoleScope

ACCESS = "/v1/organization/access"
PROJECT, OTHER = "proj_" + "0" * 32, "proj_" + "1" * 32
WRITE = Permission.API_KEYS_WRITE


@pytest.mark.parametrize(
    ("kind", "grants", "permission", "project_id", "reason"),
    [
        (SubjectKind.USER, [Grant(DEVELOPER)], WRITE, PROJECT, Reason.ROLE),
        (SubjectKind.USER, [Grant(VIEWER)], WRITE, PROJECT, Reason.NO_ROLE),
        (SubjectKind.USER, [], WRITE, PROJECT, Reason.NO_ROLE),
        (SubjectKind.ADMIN_KEY, [Grant(PROJECT_MEMBER, OTHER)], WRITE, PROJECT, Reason.PROJECT_UNSEEN),
        (SubjectKind.ADMIN_KEY, [Grant(PROJECT_MEMBER, OTHER), Grant(VIEWER)], WRITE, PROJECT, Reason.ELSEWHERE),
        (SubjectKind.ADMIN_KEY, [Grant(PROJECT_MEMBER, OTHER)], WRITE, None, Reason.ELSEWHERE),
        (SubjectKind.API_KEY, [], WRITE, PROJECT, Reason.KEY_KIND),
        (SubjectKind.SERVICE_ACCOUNT, [], WRITE, PROJECT, Reason.KEY_KIND),
        (SubjectKind.USER, [Grant(DEVELOPER)], Permission.PLATFORM_KEYS_WRITE, None, Reason.KEY_KIND),
        (SubjectKind.OPERATOR, [Grant(OPERATOR)], Permission.PLATFORM_KEYS_WRITE, None, Reason.ROLE),
    ],
)
def test_a_permission_is_explained_by_the_rule_that_decides(
    kind: SubjectKind, grants: list[Grant], permission: Permission, project_id: str | None, reason: Reason
) -> None:
    found = explain(Subject("x", kind, tuple(grants)), permission, project_id)
    assert found.reason is reason and found.is_allowed is (reason is Reason.ROLE) is (found.grant is not None)


@pytest.mark.parametrize(
    ("caller", "kind", "reason"),
    [
        ("public", SubjectKind.API_KEY, Reason.PUBLIC),
        ("organization", SubjectKind.USER, Reason.ANY_MEMBER),
        ("organization", SubjectKind.API_KEY, Reason.KEY_KIND),
        ("node", SubjectKind.OPERATOR, Reason.KEY_KIND),
        ("invitation", SubjectKind.ADMIN_KEY, Reason.KEY_KIND),
    ],
)
def test_an_operation_without_a_permission_is_explained_by_its_callers(caller: str, kind: SubjectKind, reason: Reason) -> None:
    assert explain_operation(Subject("x", kind), Rule("x", caller, None), None).reason is reason


def test_explanations_of_requests_are_the_table_of_access(control: Running, alice: TenantSetup) -> None:
    """They say of each built-in role of a tenant what the page says that requests are tried against."""
    admin = control.client(alice.admin_key)
    chosen = ("create_project_key", "list_projects", "create_admin_key", "create_organization")
    page = {name: (method, path, allowed) for name, method, path, allowed in read_page() if name in chosen}
    assert set(page) == set(chosen)
    for role in (each for each in BUILT_IN if each.scope is not RoleScope.PLATFORM):
        place = {"project_id": alice.project_id} if role.scope is RoleScope.PROJECT else {}
        made = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "explained", "role": role.id, **place}))
        title = f"project {role.name}" if role.scope is RoleScope.PROJECT else role.name
        for name, (method, path, allowed) in page.items():
            query = {"method": method, "path": path.replace("{project_id}", alice.project_id), "subject_id": made["id"]}
            found = answered(admin.get(ACCESS, params=query))
            assert (found["operation"], found["allowed"]) == (name, allowed[title]), (role.id, found)
        answered(admin.delete(f"/v1/organization/admin_api_keys/{made['id']}"))


def test_key_of_a_project_and_service_account_are_explained_as_keys_of_another_kind(control: Running, alice: TenantSetup) -> None:
    query = {"operation": "create_project_key", "project_id": alice.project_id}
    for subject, kind in ((alice.key_id, "api_key"), (alice.service_account_id, "service_account")):
        found = answered(control.client(alice.admin_key).get(ACCESS, params={**query, "subject_id": subject}))
        assert (found["subject_kind"], found["allowed"], found["reason"]) == (kind, False, "key_kind")


def test_what_is_of_another_tenant_is_explained_as_what_does_not_exist(control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
    admin = control.client(alice.admin_key)
    random = {"project": "proj_" + "0" * 32, "key": "key_" + "0" * 32, "service_account": "sa_" + "0" * 32}
    foreign = {"project": bob.project_id, "key": bob.key_id, "service_account": bob.service_account_id}
    for ids in (random, foreign):
        for subject in (ids["key"], ids["service_account"]):
            refused(admin.get(ACCESS, params={"permission": "usage.read", "subject_id": subject}), 404, "not_found")
        path = f"/v1/organization/projects/{ids['project']}/api_keys"
        refused(admin.get(ACCESS, params={"method": "POST", "path": path}), 404, "not_found")
    paths = [f"/v1/organization/projects/{alice.project_id}/api_keys/{ids['key']}" for ids in (random, foreign)]
    hidden, shown = (answered(admin.get(ACCESS, params={"method": "DELETE", "path": path})) for path in paths)
    assert hidden == shown


def test_a_question_that_is_none_is_refused_with_its_field(control: Running, alice: TenantSetup) -> None:
    admin, project = control.client(alice.admin_key), {"project_id": alice.project_id}
    for query, field in (
        ({}, "permission"),
        ({"permission": "usage.read", "operation": "list_projects"}, "permission"),
        ({"method": "GET"}, "permission"),
        ({"operation": "nothing"}, "operation"),
        ({"method": "GET", "path": "/v1/nothing"}, "path"),
        ({"method": "PATCH", "path": "/v1/organization/projects"}, "path"),
        ({"operation": "create_project_key"}, "project_id"),
        ({"operation": "list_projects", **project}, "project_id"),
    ):
        assert admin.get(ACCESS, params=query).status_code == 400, query
        assert admin.get(ACCESS, params=query).json()["error"]["param"] == field, query


def test_command_says_which_rule_decides(control: Running, alice: TenantSetup, capsys: pytest.CaptureFixture[str]) -> None:
    access = ["--control-url", control.url, "--key", alice.admin_key]
    for what, said in (
        ("create_project_key", "the role with * has the permission api_keys.write"),
        (f"POST /v1/organization/projects/{alice.project_id}/api_keys", "allowed: create_project_key"),
        ("api_keys.write", "allowed: api_keys.write"),
    ):
        project = [] if what.startswith("POST") else ["--project", alice.project_id]
        assert run(["access", "explain", what, *project, *access]) == 0
        assert said in capsys.readouterr().out
    assert run(["access", "explain", "create_organization", *access]) == 0
    assert "denied: create_organization" in capsys.readouterr().out


INFERENCE = "/v1/organization/inference_access"


def test_request_to_gateways_is_explained_by_the_rule_that_decides(
    control: Running, alice: TenantSetup, bob: TenantSetup, capsys: pytest.CaptureFixture[str]
) -> None:
    operator, admin = control.operator(), control.client(alice.admin_key)
    answered(operator.post("/v1/platform/models", json={"name": "explained", "endpoints": ["chat/completions"]}))
    answered(operator.post("/v1/platform/prices", json={"model": "explained", "currency": "EUR", "input": "1", "output": "2"}))
    answered(operator.post("/v1/platform/models/explained/publish"))
    deployment = {"model": "explained", "base_url": "http://10.0.0.5:8000", "engine": "vllm", "upstream_model": "explained"}
    answered(operator.post("/v1/platform/deployments", json=deployment))
    keys = f"/v1/organization/projects/{alice.project_id}/api_keys"
    narrow = answered(admin.post(keys, json={"name": "narrow", "addresses": ["192.0.2.0/24"], "models": ["explained"]}))["id"]

    def explain(subject: str, model: str, address: str) -> list[tuple[str, int | None, str]]:
        query = {"subject_id": subject, "endpoint": "chat/completions", "model": model, "address": address}
        found = answered(admin.get(INFERENCE, params=query))
        return [(each["api_key_id"], each["status"], each["rule"]) for each in found["decisions"]]

    assert explain(narrow, "explained", "192.0.2.7") == [(narrow, None, "deployments")]
    assert explain(narrow, "explained", "198.51.100.7") == [(narrow, 403, "addresses")]
    assert explain(narrow, "other", "192.0.2.7") == [(narrow, 404, "key_models")]
    assert explain(alice.key_id, "no model", "192.0.2.7") == [(alice.key_id, 404, "catalog")]
    assert [rule for _, _, rule in explain(alice.service_account_id, "nothing", "192.0.2.7")] in ([], ["catalog"])
    for query, status in (
        ({"subject_id": bob.key_id, "endpoint": "rerank"}, 404),
        ({"subject_id": "key_" + "0" * 32, "endpoint": "rerank"}, 404),
        ({"subject_id": narrow, "endpoint": "rerank", "address": "here"}, 400),
        ({"subject_id": narrow, "endpoint": "nothing"}, 400),
    ):
        assert admin.get(INFERENCE, params=query).status_code == status, query
    asked = ["access", "explain", "POST /v1/chat/completions", "--control-url", control.url, "--key", alice.admin_key]
    assert run([*asked, "--subject", narrow, "--model", "explained", "--client-address", "198.51.100.7"]) == 0
    said = capsys.readouterr().out
    assert "denied: chat/completions with explained from 198.51.100.7" in said and "address_not_allowed" in said, said
    assert run(asked) == 2 and run([*asked[:2], "list_projects", *asked[3:], "--model", "explained"]) == 2
