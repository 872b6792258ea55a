"""A directory that provisions people and groups: the conformance of SCIM, requests as Entra ID and Okta send them, and who loses what."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.control.browsing import join
from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant
from tests.control.test_routes import refused
from tollway.control.authentication import scim
from tollway.domain.quotas import Quota
from tollway.storage import row_changes

PYTHON = Path(__file__).parents[3] / ".venv-provider" / "bin" / "python"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"


@pytest.fixture
def tenant(control: Running, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, request.node.name[:100])


@pytest.fixture
def admin(control: Running, tenant: TenantSetup) -> httpx2.Client:
    return control.client(tenant.admin_key)


@pytest.fixture
def directory(control: Running, admin: httpx2.Client) -> httpx2.Client:
    return make_directory(control, admin)


def make_directory(control: Running, admin: httpx2.Client) -> httpx2.Client:
    made = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "directory", "role": "directory"}))
    client = control.client(made["value"])
    client.headers["content-type"] = "application/scim+json; charset=utf-8"
    return client


def sent(answer: httpx2.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/scim+json"
    return answer.json()


def failed(answer: httpx2.Response, status: int, kind: str | None) -> None:
    body = sent(answer, status)
    assert body["schemas"] == ["urn:ietf:params:scim:api:messages:2.0:Error"] and body["status"] == str(status)
    assert body.get("scimType") == kind, body


def add_user(directory: httpx2.Client, name: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = sent(directory.post("/scim/v2/Users", json={"schemas": [USER], "userName": name, **more}), 201)
    return found


def add_group(directory: httpx2.Client, name: str, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    body = {"schemas": [GROUP], "displayName": name, "members": [{"value": each["id"]} for each in members]}
    found: dict[str, Any] = sent(directory.post("/scim/v2/Groups", json=body), 201)
    return found


def patch(directory: httpx2.Client, resource: dict[str, Any], *operations: dict[str, Any], **headers: str) -> httpx2.Response:
    path = f"/scim/v2/{resource['meta']['resourceType']}s/{resource['id']}"
    return directory.patch(path, json={"schemas": [PATCH], "Operations": operations}, headers=headers)


def deactivate(directory: httpx2.Client, user: dict[str, Any]) -> None:
    assert sent(patch(directory, user, {"op": "Replace", "path": "active", "value": "False"}))["active"] is False


def test_scim2_tester_finds_nothing(control: Running, directory: httpx2.Client) -> None:
    if not PYTHON.exists():
        pytest.skip("no checks of SCIM: `make provider` installs them")
    token = directory.headers["authorization"].removeprefix("Bearer ")
    command = [str(PYTHON), str(Path(__file__).with_name("scim_client.py")), f"{control.url}/scim/v2"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "SCIM_TOKEN": token})
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)
    assert [each for each in results if each[1] not in ("SUCCESS", "SKIPPED", "COMPLIANT")] == []
    assert len(results) > 40


def test_person_of_a_group_has_its_roles_and_an_entra_id_changes_them(directory: httpx2.Client, admin: httpx2.Client) -> None:
    """The requests are those that Entra ID sends: a search before each creation, changes with a capital letter, texts for booleans."""
    query = {"filter": 'userName eq "ada@example.com"', "aadOptscim062020": ""}
    assert sent(directory.get("/scim/v2/Users", params=query))["totalResults"] == 0
    enterprise = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
    made = {
        "schemas": [USER, enterprise],
        "externalId": "0a21f0f2",
        "userName": "ada@example.com",
        "active": True,
        "emails": [{"primary": True, "type": "work", "value": "Ada@Example.com"}],
        "meta": {"resourceType": "User"},
        "name": {"formatted": "Ada Lovelace", "familyName": "Lovelace", "givenName": "Ada"},
        "title": "Engineer",
        enterprise: {"department": "Engines"},
    }
    ada = sent(directory.post("/scim/v2/Users", json=made), 201)
    assert sent(directory.get("/scim/v2/Users", params=query))["Resources"][0]["id"] == ada["id"]
    shown = answered(admin.get(f"/v1/organization/users/{ada['id']}"))
    assert (shown["email"], shown["name"], shown["role"], shown["is_scim_managed"]) == ("ada@example.com", "Ada Lovelace", "none", True)
    group = sent(directory.post("/scim/v2/Groups", json={"schemas": [GROUP], "externalId": "8aa1a0c0", "displayName": "engineers"}), 201)
    answered(admin.post(f"/v1/organization/groups/{group['id']}/roles", json={"role_id": "role_billing"}))
    sent(patch(directory, group, {"op": "Add", "path": "members", "value": [{"$ref": None, "value": ada["id"]}]}))
    question = {"subject_id": ada["id"], "permission": "costs.read"}
    assert answered(admin.get("/v1/organization/access", params=question))["allowed"] is True
    listed = sent(directory.get("/scim/v2/Groups", params={"filter": 'displayName eq "Engineers"', "excludedAttributes": "members"}))
    assert listed["totalResults"] == 1 and "members" not in listed["Resources"][0]
    deactivate(directory, ada)
    assert answered(admin.get("/v1/organization/users"))["data"] == []
    assert sent(patch(directory, ada, {"op": "Replace", "path": "active", "value": "True"}))["active"] is True
    assert answered(admin.get("/v1/organization/access", params=question))["allowed"] is True, "a directory does not send memberships again"
    sent(patch(directory, group, {"op": "Remove", "path": "members", "value": [{"$ref": None, "value": ada["id"]}]}))
    assert answered(admin.get("/v1/organization/access", params=question))["allowed"] is False
    assert directory.delete(f"/scim/v2/Users/{ada['id']}").status_code == 204
    failed(directory.get(f"/scim/v2/Users/{ada['id']}"), 404, None)
    types = [each["type"] for each in answered(admin.get("/v1/organization/audit_logs", params={"limit": 50}))["data"]]
    assert {"user.provisioned", "user.updated", "user.deprovisioned", "group.created", "group.updated"} <= set(types)


def test_people_and_groups_that_were_there_are_taken_over_as_okta_does(
    control: Running, directory: httpx2.Client, admin: httpx2.Client
) -> None:
    join(control, admin, "grace@example.com", "developer")
    made = answered(admin.post("/v1/organization/groups", json={"name": "compilers"}))
    (grace,) = sent(directory.get("/scim/v2/Users", params={"filter": 'userName eq "grace@example.com"', "startIndex": 1, "count": 100}))[
        "Resources"
    ]
    assert grace["active"] is True and grace["emails"] == [{"value": "grace@example.com", "primary": True}]
    put = {**grace, "externalId": "00u1", "displayName": "Grace Hopper", "groups": [], "password": "x"}
    assert sent(directory.put(f"/scim/v2/Users/{grace['id']}", json=put))["displayName"] == "Grace Hopper"
    shown = answered(admin.get(f"/v1/organization/users/{grace['id']}"))
    assert (shown["name"], shown["role"], shown["is_scim_managed"]) == ("Grace Hopper", "developer", True)
    group = sent(directory.get(f"/scim/v2/Groups/{made['id']}"))
    members = {"op": "replace", "path": "members", "value": [{"value": grace["id"], "display": "Grace"}]}
    renamed = {"op": "replace", "value": {"id": made["id"], "displayName": "compiler team"}}
    assert sent(patch(directory, group, members, renamed))["displayName"] == "compiler team"
    path = f"/v1/organization/groups/{made['id']}"
    assert answered(admin.get(path))["is_scim_managed"] is True
    refused(admin.post(path, json={"name": "x"}), 409, "conflict")
    refused(admin.delete(f"{path}/users/{grace['id']}"), 409, "conflict")
    sent(patch(directory, grace, {"op": "replace", "value": {"active": False}}))
    answered(admin.delete(path))
    failed(directory.get(f"/scim/v2/Groups/{made['id']}"), 404, None)


@pytest.mark.parametrize("how", ["deactivated", "deleted"])
def test_116_person_who_left_loses_keys_and_sessions_and_does_not_come_back(
    control: Running, directory: httpx2.Client, admin: httpx2.Client, tenant: TenantSetup, how: str
) -> None:
    email = f"ada-{how}@example.com"
    browser = join(control, admin, email, "developer")
    (ada,) = sent(directory.get("/scim/v2/Users", params={"filter": f'userName eq "{email}"'}))["Resources"]
    own = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "hers", "user_id": ada["id"]}))["value"]
    keys = f"/v1/organization/projects/{tenant.project_id}/api_keys"
    made = answered(control.client(own).post(keys, json={"name": "made by her"}))["id"]
    accounts = f"/v1/organization/projects/{tenant.project_id}/service_accounts"
    machine = answered(control.client(own).post(accounts, json={"name": "program"}))["api_key"]["id"]
    assert browser.open("/account").status_code == 200
    if how == "deleted":
        assert directory.delete(f"/scim/v2/Users/{ada['id']}").status_code == 204
    else:
        deactivate(directory, ada)
    refused(control.client(own).get("/v1/me"), 401, "invalid_api_key")
    assert "sign-in" in str(browser.open("/account").url)
    left = {each["id"] for each in answered(admin.get(keys, params={"limit": 100}))["data"]}
    assert made not in left and {machine, tenant.key_id} <= left
    if how == "deactivated":
        answered(admin.post("/v1/organization/invites", json={"email": email, "role": "owner"}))
        token = find_token(control, email)
        refused(control.client(token).post("/v1/invites/accept", json={"name": "Ada"}), 409, "conflict", "email")
        refused(admin.post(f"/v1/organization/users/{ada['id']}/sign_in_links", json={}), 404, "not_found")


def test_115_token_of_a_directory_does_nothing_else_and_reaches_no_other_organization(
    control: Running, directory: httpx2.Client, admin: httpx2.Client, tenant: TenantSetup
) -> None:
    other = make_directory(control, control.client(make_tenant(control, "other directory").admin_key))
    theirs = add_user(other, "eve@example.com")
    group = sent(other.post("/scim/v2/Groups", json={"displayName": "theirs"}), 201)
    mine = sent(directory.post("/scim/v2/Groups", json={"displayName": "mine"}), 201)
    for path in (f"/scim/v2/Users/{theirs['id']}", f"/scim/v2/Groups/{group['id']}"):
        never = path[:-1] + ("0" if path[-1] != "0" else "1")
        assert sent(directory.get(path), 404) == sent(directory.get(never), 404)
        assert sent(directory.put(path, json={"userName": "x", "displayName": "x"}), 404) == sent(directory.delete(path), 404)
    failed(patch(directory, mine, {"op": "add", "path": "members", "value": [{"value": theirs["id"]}]}), 400, "invalidValue")
    assert sent(directory.get("/scim/v2/Users"))["totalResults"] == 0
    for path in ("/v1/organization/users", "/v1/organization/admin_api_keys", "/v1/organization/projects"):
        refused(directory.get(path), 403, "insufficient_scope")
    lesser = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "x", "role": "admin"}))["value"]
    refused(
        control.client(lesser).post("/v1/organization/admin_api_keys", json={"name": "x", "role": "directory"}), 403, "insufficient_scope"
    )
    failed(control.client(lesser).get("/scim/v2/Users"), 403, None)
    failed(control.client(tenant.secret).get("/scim/v2/Users"), 403, None)
    failed(control.client(None).get("/scim/v2/Users"), 401, None)


def test_what_is_wrong_is_refused_in_words_of_scim(directory: httpx2.Client) -> None:
    ada = add_user(directory, "ada@example.com")
    users = "/scim/v2/Users"
    for answer, status, kind in (
        (directory.post(users, json={"userName": "ADA@example.com"}), 409, "uniqueness"),
        (directory.post(users, json={"userName": "x", "emails": [{"value": "ada@example.com"}]}), 409, "uniqueness"),
        (directory.post(users, json={"displayName": "x"}), 400, "invalidValue"),
        (directory.post(users, json={"userName": 7}), 400, "invalidValue"),
        (directory.post(users, content=b'{"userName": "x", "userName": "y"}'), 400, "invalidSyntax"),
        (directory.post(users, content=b"{"), 400, "invalidSyntax"),
        (directory.post(users, content=b"[]"), 400, "invalidValue"),
        (directory.post(users, content=b"{}", headers={"content-type": "text/plain"}), 415, None),
        (directory.get(users, params={"filter": "userName is x"}), 400, "invalidFilter"),
        (directory.get(users, params={"startIndex": "x"}), 400, "invalidValue"),
        (patch(directory, ada, {"op": "replace", "path": "what", "value": 1}), 400, "invalidPath"),
        (patch(directory, ada, {"op": "replace", "path": "id", "value": 1}), 400, "mutability"),
        (patch(directory, ada, {"op": "remove"}), 400, "noTarget"),
        (patch(directory, ada, {"op": "remove", "path": "emails"}, **{"if-match": 'W/"x"'}), 412, None),
        (directory.get("/scim/v2/Nothing"), 404, None),
        (directory.post("/scim/v2/Schemas", json={}), 405, None),
    ):
        failed(answer, status, kind)
    assert sent(directory.get(f"{users}/{ada['id']}")) == ada


def test_versions_and_pages(directory: httpx2.Client, admin: httpx2.Client) -> None:
    people = [add_user(directory, f"p{number}@example.com") for number in range(5)]
    page = sent(directory.get("/scim/v2/Users", params={"startIndex": 2, "count": 2}))
    assert (page["totalResults"], page["itemsPerPage"], page["startIndex"]) == (5, 2, 2)
    assert [each["id"] for each in page["Resources"]] == [each["id"] for each in people[1:3]]
    assert sent(directory.get("/scim/v2/Users", params={"count": 0}))["Resources"] == []
    found = sent(directory.post("/scim/v2/Users/.search", json={"filter": 'userName sw "p"', "startIndex": 5, "attributes": ["userName"]}))
    assert found["totalResults"] == 5 and [set(each) for each in found["Resources"]] == [{"schemas", "id", "userName"}]
    first = people[0]
    answer = directory.get(f"/scim/v2/Users/{first['id']}", headers={"if-none-match": first["meta"]["version"]})
    assert answer.status_code == 304 and answer.headers["etag"] == first["meta"]["version"]
    changed = sent(patch(directory, first, {"op": "add", "path": "displayName", "value": "P"}, **{"if-match": first["meta"]["version"]}))
    assert changed["meta"]["version"] != first["meta"]["version"]
    failed(patch(directory, first, {"op": "remove", "path": "displayName"}, **{"if-match": first["meta"]["version"]}), 412, None)
    assert directory.delete(f"/scim/v2/Users/{first['id']}", headers={"if-match": "*"}).status_code == 204


def test_groups_are_found_by_name_or_member_without_reading_the_members_of_others(
    directory: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, grace = (add_user(directory, f"{name}@example.com") for name in ("ada", "grace"))
    groups = [add_group(directory, name, members) for name, members in (("Engines", [ada, grace]), ("Écoles", [grace]), ("Empty", []))]

    def find(filter: str, **more: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = sent(directory.get("/scim/v2/Groups", params={"filter": filter, **more}))["Resources"]
        return found

    assert find('displayName eq "engines"') == [groups[0]] and find('displayName eq "ÉCOLES"') == [groups[1]]
    for filter in (f'members[value eq "{ada["id"]}"]', f'members.value eq "{ada["id"]}"', f'members eq "{ada["id"]}"'):
        assert find(filter) == [groups[0]], filter
    assert find("members pr") == groups[:2]
    assert find(f"meta.version eq {json.dumps(groups[2]['meta']['version'])}") == [groups[2]]
    everything = sent(directory.post("/scim/v2/.search", json={"startIndex": 2, "count": 2}))
    assert everything["totalResults"] == 5 and [each["id"] for each in everything["Resources"]] == [grace["id"], groups[0]["id"]]
    everything = sent(directory.post("/scim/v2/.search", json={"startIndex": 4}))
    assert everything["totalResults"] == 5 and everything["Resources"] == groups[1:]
    monkeypatch.setattr(scim, "MEMBERS_LISTED_MAX", 2)
    failed(directory.get("/scim/v2/Groups"), 400, "tooMany")
    failed(directory.get("/scim/v2/Groups", params={"filter": "members pr"}), 400, "tooMany")
    assert sent(directory.get("/scim/v2/Groups", params={"count": 1}))["Resources"] == groups[:1]
    monkeypatch.setattr(scim.storage, "list_members", None)
    (shown,) = find('displayName eq "Engines"', excludedAttributes="members")
    assert shown["id"] == groups[0]["id"] and not {"members", "version"} & {*shown, *shown["meta"]}


def test_group_that_changes_while_a_change_is_worked_out_has_both(
    control: Running, tenant: TenantSetup, directory: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, grace = (add_user(directory, f"{name}@example.com") for name in ("ada", "grace"))
    group = add_group(directory, "engines", [])
    plan, planned = scim.plan_group_change, list[scim.PlannedChange]()

    def plan_slowly(tx: Any, group_id: str, change: Any, base: str) -> Any:
        planned.append(plan(tx, group_id, change, base))
        if len(planned) == 1:
            with control.plane.database.tenant(tenant.organization_id) as other:
                scim.change_group(other, replace(planned[0], wanted_members=[grace["id"]]), base, control.plane.now())
        return planned[-1]

    monkeypatch.setattr(scim, "plan_group_change", plan_slowly)
    changed = sent(patch(directory, group, {"op": "add", "path": "members", "value": [{"value": ada["id"]}]}))
    assert {each["value"] for each in changed["members"]} == {ada["id"], grace["id"]} and len(planned) == 2


def test_members_beyond_those_that_the_audit_trail_compares_are_counted(
    directory: httpx2.Client, admin: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [add_user(directory, f"p{number}@example.com") for number in range(5)]
    group = add_group(directory, "engines", [])
    monkeypatch.setattr(row_changes, "ROWS_MAX", 3)
    sent(patch(directory, group, {"op": "add", "path": "members", "value": [{"value": each["id"]} for each in people]}))
    record = answered(admin.get("/v1/organization/audit_logs", params={"event_types[]": "group.updated"}))["data"][0]["record"]
    members = [each for each in record["changes"] if each["kind"] == "group_member"]
    assert len(members) == 3 and record["omitted"] >= 2
    kept = [people[0]["id"]]
    changed = sent(patch(directory, group, {"op": "replace", "path": "members", "value": [{"value": each} for each in kept]}))
    assert [each["value"] for each in changed["members"]] == kept


def test_person_who_is_activated_again_counts_in_the_quota(
    control: Running, directory: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = add_user(directory, "ada@example.com")
    deactivate(directory, ada)
    grace = add_user(directory, "grace@example.com")
    monkeypatch.setitem(control.plane.quotas, Quota.USERS, 1)  # type: ignore[misc]
    activation = {"op": "replace", "path": "active", "value": True}
    failed(patch(directory, ada, activation), 403, None)
    sent(patch(directory, grace, activation))
    deactivate(directory, grace)
    assert sent(patch(directory, ada, activation))["active"] is True
