"""Roles and permissions: every operation with every role, and what a role can never reach."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.test_routes import refused
from tollway.domain import roles
from tollway.domain.roles import BUILT_IN, PROJECT_PERMISSIONS, TENANT_PERMISSIONS, Grant, Permission, Role, RoleScope
from tollway.storage.schema import api_keys

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "access.md"
script = runpy.run_path(str(ROOT / "scripts" / "access_page.py"))

ADMIN_KEYS = "/v1/organization/admin_api_keys"
PROJECTS = "/v1/organization/projects"


def read_page() -> list[tuple[str, str, str, dict[str, bool]]]:
    """Return operation, method, path, and by role whether it may call it, as the page says."""
    titles = [script["title"](role) for role in BUILT_IN]
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 + len(titles) and cells[1].startswith("`"):
            method, path = cells[1].strip("`").split()
            found.append((cells[0], method, path, dict(zip(titles, [cell == "yes" for cell in cells[3:]], strict=True))))
    return found


def make_key(control: Running, tenant: TenantSetup, role: Role) -> str:
    """Return the secret of a new key with a built-in role."""
    if role.scope is RoleScope.PLATFORM:
        secret: str = answered(control.operator().post("/v1/platform/keys", json={"name": role.name, "role": role.name}))["value"]
        return secret
    project = {"project_id": tenant.project_id} if role.scope is RoleScope.PROJECT else {}
    made = answered(control.client(tenant.admin_key).post(ADMIN_KEYS, json={"name": role.name, "role": role.id, **project}))
    return str(made["value"])


class TestEveryOperation:
    def test_page_is_in_step_with_routes_and_roles(self) -> None:
        assert PAGE.read_text() == script["render"](), "run `make docs`"

    def test_answers_every_role_as_the_page_says(self, control: Running, alice: TenantSetup) -> None:
        page = read_page()
        assert len(page) == len(list(script["list_operations"]())) > 100
        for role in BUILT_IN:
            acting = {"openai-organization": alice.organization_id} if role.scope is RoleScope.PLATFORM else {}
            client = control.client(make_key(control, alice, role), **acting)
            for name, method, path, allowed in page:
                target = re.sub(r"\{(\w+)(:path)?\}", "x", path.replace("{project_id}", alice.project_id))
                answer = client.request(method, f"{target}?never=1")  # refused by its parameter after the access was granted
                if path.startswith("/scim/v2/"):  # where directories may add parameters of their own
                    assert (answer.status_code != 403) == allowed[script["title"](role)], (role.id, name)
                    continue
                expected = (400, "unknown_parameter") if allowed[script["title"](role)] else (403, "insufficient_scope")
                assert (answer.status_code, answer.json()["error"]["code"]) == expected, (role.id, name)

    def test_permission_guards_an_operation(self) -> None:
        assert {each.permission for each in script["list_operations"]()} == set(Permission)

    def test_permission_of_a_project_is_that_of_an_operation_with_a_project(self) -> None:
        assert {each.permission for each in script["list_operations"]() if each.names_project} == PROJECT_PERMISSIONS


class TestRoleInAProject:
    def test_other_projects_answer_like_projects_that_never_were(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        other = answered(control.client(alice.admin_key).post(PROJECTS, json={"name": "another"}))["id"]
        client = control.client(make_key(control, alice, roles.PROJECT_OWNER))
        unseen = refused(client.get(f"{PROJECTS}/proj_{'0' * 32}"), 404, "not_found")
        for project_id in (other, bob.project_id, "x"):
            for path in ("", "/api_keys", "/limits", "/spend_limit"):
                assert refused(client.get(f"{PROJECTS}/{project_id}{path}"), 404, "not_found") == unseen
        assert answered(client.get(f"{PROJECTS}/{alice.project_id}"))["id"] == alice.project_id
        refused(client.get(PROJECTS), 403, "insufficient_scope")

    def test_project_of_another_organization_cannot_be_named(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        admin = control.client(alice.admin_key)
        wanted = {"name": "x", "role": "viewer"}
        unseen = refused(admin.post(ADMIN_KEYS, json={**wanted, "project_id": "proj_" + "0" * 32}), 404, "not_found")
        assert refused(admin.post(ADMIN_KEYS, json={**wanted, "project_id": bob.project_id}), 404, "not_found") == unseen


class TestRolesOfAdminKeys:
    @pytest.mark.parametrize("body", [{"role": "operator"}, {"role": "role_auditor"}, {"role": "member"}, {"role": "nobody"}])
    def test_role_that_cannot_be_held_in_an_organization_is_refused(
        self, control: Running, alice: TenantSetup, body: dict[str, Any]
    ) -> None:
        refused(control.client(alice.admin_key).post(ADMIN_KEYS, json={"name": "x", **body}), 400, "invalid_value", "role")

    def test_project_without_a_role_is_refused(self, control: Running, alice: TenantSetup) -> None:
        body = {"name": "x", "project_id": alice.project_id}
        refused(control.client(alice.admin_key).post(ADMIN_KEYS, json=body), 400, "missing_required_parameter", "role")

    def test_key_without_a_wish_has_the_role_of_its_maker(self, control: Running, alice: TenantSetup) -> None:
        made = answered(control.client(alice.admin_key).post(ADMIN_KEYS, json={"name": "x"}))
        assert (made["role"], made["project_id"]) == ("owner", None)
        acting = control.client(control.platform_key, **{"openai-organization": alice.organization_id})
        assert answered(acting.post(ADMIN_KEYS, json={"name": "x"}))["role"] == "owner"

    @pytest.mark.parametrize("role_id", [None, "role_that_was", "role_viewer_of_nothing"])
    def test_key_of_a_role_that_does_not_exist_may_do_nothing(self, control: Running, role_id: str | None) -> None:
        tenant = make_tenant(control, f"without {role_id}")
        with control.plane.database.platform() as tx:
            tx.connection.execute(sa.update(api_keys).where(api_keys.c.id == tenant.admin_key_id).values(role_id=role_id))
        client = control.client(tenant.admin_key)
        for path in ("/v1/organization", PROJECTS, f"{PROJECTS}/{tenant.project_id}"):
            refused(client.get(path), 403, "insufficient_scope")

    def test_auditor_changes_nothing_in_an_organization(self, control: Running, alice: TenantSetup) -> None:
        secret = make_key(control, alice, roles.AUDITOR)
        client = control.client(secret, **{"openai-organization": alice.organization_id})
        assert answered(client.get(f"{PROJECTS}/{alice.project_id}"))["id"] == alice.project_id
        refused(client.post(PROJECTS, json={"name": "x"}), 403, "insufficient_scope")
        refused(client.post("/v1/platform/keys", json={"name": "x"}), 403, "insufficient_scope")


PLACES = (None, "proj_1", "proj_2")


def _role(permissions: frozenset[Permission]) -> Role:
    return Role(id="role_x", name="x", scope=RoleScope.ORGANIZATION, permissions=permissions)


grants = st.lists(st.builds(Grant, st.builds(_role, st.frozensets(st.sampled_from(sorted(TENANT_PERMISSIONS)))), st.sampled_from(PLACES)))
questions = st.tuples(st.sampled_from(sorted(TENANT_PERMISSIONS)), st.sampled_from(PLACES))


class TestGrants:
    @given(grants, grants, questions)
    def test_what_is_within_a_holder_allows_nothing_that_the_holder_may_not(
        self, holder: list[Grant], given: list[Grant], question: tuple[Permission, str | None]
    ) -> None:
        if roles.find_excess(holder, given) is None and roles.find_grant(given, *question) is not None:
            assert roles.find_grant(holder, *question) is not None

    @given(grants, questions)
    def test_excess_is_found_exactly_where_something_is_missing(self, holder: list[Grant], question: tuple[Permission, str | None]) -> None:
        permission, project_id = question
        wanted = [Grant(_role(frozenset({permission})), project_id)]
        assert (roles.find_excess(holder, wanted) is None) == (roles.find_grant(holder, permission, project_id) is not None)

    @given(grants, grants, questions)
    def test_fewer_grants_never_allow_more(self, some: list[Grant], more: list[Grant], question: tuple[Permission, str | None]) -> None:
        if roles.find_grant(some + more, *question) is None:
            assert roles.find_grant(some, *question) is None

    @given(questions)
    def test_nothing_is_allowed_without_a_grant(self, question: tuple[Permission, str | None]) -> None:
        assert roles.find_grant([], *question) is None

    def test_built_in_roles_hold_only_what_their_scope_can(self) -> None:
        for role in BUILT_IN:
            if role.scope is RoleScope.ORGANIZATION:
                assert role.permissions <= TENANT_PERMISSIONS
            if role.scope is RoleScope.PROJECT:
                assert role.permissions <= PROJECT_PERMISSIONS
