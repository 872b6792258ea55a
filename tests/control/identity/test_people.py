"""People, groups and roles of an organization: what each may do, and that nobody can raise themselves."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant, wait_until
from tests.control.test_routes import refused
from tollway.control.identity.mail import MailFailure, MailServer, Message
from tollway.domain import keys

ORGANIZATION = "/v1/organization"
INVITES = f"{ORGANIZATION}/invites"
ROLES = f"{ORGANIZATION}/roles"
USERS = f"{ORGANIZATION}/users"
GROUPS = f"{ORGANIZATION}/groups"
ADMIN_KEYS = f"{ORGANIZATION}/admin_api_keys"


class Person:
    """A person who joined, with a client that presents their key."""

    def __init__(self, control: Running, joined: dict[str, Any]) -> None:
        self.id: str = joined["user"]["id"]
        self.key_id: str = joined["admin_api_key"]["id"]
        self.client = control.client(joined["admin_api_key"]["value"])


def invite(control: Running, admin: httpx2.Client, address: str, role: str, **wanted: Any) -> Person:
    """Invite somebody and accept it for them."""
    answered(admin.post(INVITES, json={"email": address, "role": role, **wanted}))
    token = find_token(control, address)
    return Person(control, answered(control.client(token).post("/v1/invites/accept", json={"name": "Ada"})))


@pytest.fixture
def tenant(control: Running, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, request.node.name)


@pytest.fixture
def admin(control: Running, tenant: TenantSetup) -> httpx2.Client:
    return control.client(tenant.admin_key)


def make_role(admin: httpx2.Client, name: str, *permissions: str) -> str:
    made: str = answered(admin.post(ROLES, json={"role_name": name, "permissions": list(permissions)}))["id"]
    return made


class TestInvitations:
    def test_person_who_accepts_has_what_was_promised(self, control: Running, tenant: TenantSetup, admin: httpx2.Client) -> None:
        promised = [{"id": tenant.project_id, "role": "owner"}]
        person = invite(control, admin, "ada@example.com", "billing", projects=promised)
        assert answered(admin.get(f"{USERS}/{person.id}"))["role"] == "billing"
        assert answered(admin.get(f"{ORGANIZATION}/projects/{tenant.project_id}/users/{person.id}"))["role"] == "owner"
        answered(person.client.get(f"{ORGANIZATION}/budgets"))
        answered(person.client.post(f"{ORGANIZATION}/projects/{tenant.project_id}/api_keys", json={"name": "x"}))
        refused(person.client.post(f"{ORGANIZATION}/projects", json={"name": "x"}), 403, "insufficient_scope")
        assert answered(admin.get(INVITES))["data"][0]["status"] == "accepted"

    def test_90_token_is_accepted_once(self, control: Running, admin: httpx2.Client) -> None:
        invite(control, admin, "once@example.com", "reader")
        again = control.client(find_token(control, "once@example.com")).post("/v1/invites/accept", json={"name": "Eve"})
        unknown = control.client(tenant_token()).post("/v1/invites/accept", json={"name": "Eve"})
        assert refused(again, 401, "invalid_api_key") == refused(unknown, 401, "invalid_api_key")

    def test_90_token_of_a_deleted_or_expired_invitation_is_refused(self, control: Running, admin: httpx2.Client) -> None:
        made = answered(admin.post(INVITES, json={"email": "late@example.com", "role": "reader"}))
        late = control.client(find_token(control, "late@example.com"))
        with control.clock.set_to(made["expires_at"] * 1_000_000 + 1_000_000):
            refused(late.post("/v1/invites/accept", json={"name": "x"}), 401, "invalid_api_key")
        answered(admin.delete(f"{INVITES}/{made['id']}"))
        refused(late.post("/v1/invites/accept", json={"name": "x"}), 401, "invalid_api_key")

    def test_90_token_is_in_the_mail_and_nowhere_else(self, control: Running, admin: httpx2.Client) -> None:
        made = admin.post(INVITES, json={"email": "quiet@example.com", "role": "reader"})
        token = find_token(control, "quiet@example.com")
        assert token not in made.text and token not in admin.get(INVITES).text and token not in str(control.lines)

    def test_90_token_opens_nothing_else(self, control: Running, admin: httpx2.Client) -> None:
        answered(admin.post(INVITES, json={"email": "only@example.com", "role": "owner"}))
        client = control.client(find_token(control, "only@example.com"))
        refused(client.get(f"{ORGANIZATION}/projects"), 401, "invalid_api_key")
        refused(admin.post("/v1/invites/accept", json={"name": "x"}), 401, "invalid_api_key")

    def test_mail_that_is_not_taken_is_said(self, control: Running, admin: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(control.plane.mail), "send", fail)
        assert answered(admin.post(INVITES, json={"email": "lost@example.com", "role": "reader"}))["mail_sent"] is False

    def test_mail_server_that_is_not_there_fails(self) -> None:
        with pytest.raises(MailFailure, match="mail server"):
            MailServer(host="127.0.0.1", port=1, sender="a@b.example", security="none").send(Message("c@d.example", "x", "y"))

    @pytest.mark.parametrize(
        "address",
        [
            "ada@example.com,eve@example.org",
            "ada@example.com;eve@example.org",
            "friends:ada@example.com",
            "<eve@example.org>ada@example.com",
            '"ada\\"@example.com',
            "ada(eve)@example.com",
            "a..da@example.com",
            "ada@-example.com",
            "ada@example",
            "ad\u0430@example.com",
            "\u0130" * 200 + "@example.com",
            "\u212aay@example.com",
            "a" * 65 + "@example.com",
            "ada@" + "a." * 126 + "com",
            "ada@example.com\r\nBcc: eve@example.org",
        ],
    )
    def test_90_address_that_is_not_exactly_one_is_refused(self, admin: httpx2.Client, address: str) -> None:
        refused(admin.post(INVITES, json={"email": address, "role": "reader"}), 400, "invalid_value", "email")

    def test_person_with_the_address_is_not_invited_again(self, control: Running, admin: httpx2.Client) -> None:
        invite(control, admin, "twice@example.com", "reader")
        refused(admin.post(INVITES, json={"email": "Twice@Example.com", "role": "reader"}), 409, "conflict", "email")


def tenant_token() -> str:
    """Return the token of no invitation."""
    return keys.new_invite_token(os.urandom(keys.RANDOM_BYTES)).secret


def fail(_self: object, _message: Message) -> None:
    raise MailFailure("no")


class TestPeople:
    def test_91_removed_person_can_do_nothing_from_the_next_request_on(self, control: Running, admin: httpx2.Client) -> None:
        person = invite(control, admin, "gone@example.com", "reader")
        answered(person.client.get(USERS))
        answered(admin.delete(f"{USERS}/{person.id}"))
        refused(person.client.get(USERS), 401, "invalid_api_key")
        refused(admin.get(f"{USERS}/{person.id}"), 404, "not_found")

    def test_91_person_who_is_removed_while_their_request_is_received_changes_nothing(self, control: Running, admin: httpx2.Client) -> None:
        person = invite(control, admin, "slow@example.com", "owner")
        begun = control.clock()

        def write_slowly() -> Iterator[bytes]:
            yield b'{"name": '
            wait_until(lambda: answered(admin.get(f"{ADMIN_KEYS}/{person.key_id}"))["last_used_at"] is not None)
            answered(admin.delete(f"{USERS}/{person.id}"))
            control.clock.stop_at(begun + 20_000_000)
            yield b'"x"}'

        with control.clock.set_to(begun):
            answer = person.client.post(f"{ORGANIZATION}/projects", content=write_slowly(), headers={"content-type": "application/json"})
        refused(answer, 401, "invalid_api_key")

    def test_91_role_that_is_changed_counts_from_the_next_request_on(self, control: Running, admin: httpx2.Client) -> None:
        person = invite(control, admin, "moved@example.com", "owner")
        answered(person.client.post(f"{ORGANIZATION}/projects", json={"name": "x"}))
        assert answered(admin.post(f"{USERS}/{person.id}", json={"role": "reader"}))["role"] == "reader"
        refused(person.client.post(f"{ORGANIZATION}/projects", json={"name": "y"}), 403, "insufficient_scope")

    def test_group_gives_its_members_what_it_holds(self, control: Running, tenant: TenantSetup, admin: httpx2.Client) -> None:
        person = invite(control, admin, "member@example.com", "reader")
        group = answered(admin.post(GROUPS, json={"name": "engineering"}))["id"]
        answered(admin.post(f"{ORGANIZATION}/projects/{tenant.project_id}/groups", json={"group_id": group, "role": "owner"}))
        path = f"{ORGANIZATION}/projects/{tenant.project_id}/api_keys"
        refused(person.client.post(path, json={"name": "x"}), 403, "insufficient_scope")
        answered(admin.post(f"{GROUPS}/{group}/users", json={"user_id": person.id}))
        answered(person.client.post(path, json={"name": "x"}))
        explained = answered(
            admin.get(f"{ORGANIZATION}/access?permission=api_keys.write&project_id={tenant.project_id}&subject_id={person.id}")
        )
        assert explained["allowed"] and explained["rule"]["holder_id"] == group
        answered(admin.delete(f"{GROUPS}/{group}"))
        refused(person.client.post(path, json={"name": "x"}), 403, "insufficient_scope")


class TestAttenuation:
    """A keeper may administer people and keys and read usage. Nothing that they can do gives anybody more than that."""

    PERMISSIONS = (
        "users.write",
        "users.read",
        "roles.write",
        "roles.read",
        "groups.write",
        "groups.read",
        "admin_keys.write",
        "admin_keys.read",
    )

    @pytest.fixture
    def keeper(self, control: Running, admin: httpx2.Client) -> Person:
        return invite(control, admin, "keeper@example.com", make_role(admin, "keeper", *self.PERMISSIONS))

    def test_89_keeper_gives_nobody_a_role_beyond_their_own(
        self, control: Running, tenant: TenantSetup, admin: httpx2.Client, keeper: Person
    ) -> None:
        owner = invite(control, admin, "owner@example.com", "owner")
        group = answered(admin.post(GROUPS, json={"name": "owners"}))["id"]
        answered(admin.post(f"{GROUPS}/{group}/roles", json={"role_id": "role_owner"}))
        custom = make_role(admin, "spender", "budgets.write")
        grouped = invite(control, admin, "grouped@example.com", make_role(admin, "grouped", "users.read"))
        answered(admin.post(f"{GROUPS}/{group}/users", json={"user_id": grouped.id}))
        mine = answered(keeper.client.post(ROLES, json={"role_name": "mine", "permissions": ["users.read"]}))["id"]
        answered(keeper.client.post(f"{USERS}/{keeper.id}/roles", json={"role_id": mine}))
        project = f"{ORGANIZATION}/projects/{tenant.project_id}"
        for method, path, body in (
            ("POST", ROLES, {"role_name": "more", "permissions": ["users.read", "budgets.write"]}),
            ("POST", f"{ROLES}/{mine}", {"permissions": ["budgets.write"]}),
            ("POST", f"{ROLES}/{custom}", {"permissions": ["users.read"]}),
            ("DELETE", f"{ROLES}/{custom}", None),
            ("POST", f"{USERS}/{keeper.id}", {"role": "owner"}),
            ("POST", f"{USERS}/{keeper.id}", {"role_id": custom}),
            ("POST", f"{USERS}/{owner.id}", {"role": "reader"}),
            ("DELETE", f"{USERS}/{owner.id}", None),
            ("DELETE", f"{USERS}/{grouped.id}", None),
            ("POST", f"{USERS}/{keeper.id}/roles", {"role_id": "role_viewer"}),
            ("DELETE", f"{USERS}/{owner.id}/roles/role_owner", None),
            ("POST", f"/v1/projects/{tenant.project_id}/users/{keeper.id}/roles", {"role_id": "role_project_owner"}),
            ("POST", f"{project}/users", {"user_id": keeper.id, "role": "owner"}),
            ("POST", f"{GROUPS}/{group}/users", {"user_id": keeper.id}),
            ("DELETE", f"{GROUPS}/{group}", None),
            ("POST", INVITES, {"email": "friend@example.com", "role": "owner"}),
            ("POST", INVITES, {"email": "friend@example.com", "role": mine, "projects": [{"id": tenant.project_id, "role": "owner"}]}),
            ("POST", ADMIN_KEYS, {"name": "x", "role": "owner"}),
            ("POST", ADMIN_KEYS, {"name": "x", "user_id": owner.id}),
            ("POST", f"{ADMIN_KEYS}/{tenant.admin_key_id}/rotate", {}),
            ("POST", f"{ADMIN_KEYS}/{owner.key_id}/rotate", {}),
            ("POST", f"{ADMIN_KEYS}/{owner.key_id}/retire", None),
            ("DELETE", f"{ADMIN_KEYS}/{owner.key_id}", None),
            ("DELETE", f"{ADMIN_KEYS}/{tenant.admin_key_id}", None),
        ):
            refused(keeper.client.request(method, path, json=body), 403, "grant_exceeds_grantor", "role")
        explained = answered(keeper.client.get(f"{ORGANIZATION}/access?permission=budgets.write"))
        assert not explained["allowed"] and explained["rule"] is None and len(explained["considered"]) == 2

    def test_keeper_gives_what_they_hold(self, control: Running, keeper: Person) -> None:
        made = answered(keeper.client.post(ADMIN_KEYS, json={"name": "x", "user_id": keeper.id}))
        assert made["role"] is None and made["owner"]["id"] == keeper.id
        other = control.client(made["value"])
        answered(other.get(USERS))
        refused(other.get(f"{ORGANIZATION}/budgets"), 403, "insufficient_scope")
        answered(keeper.client.post(f"{ADMIN_KEYS}/{made['id']}/rotate", json={}))
        answered(keeper.client.delete(f"{ADMIN_KEYS}/{made['id']}"))


def test_text_that_no_database_can_hold_is_refused(fresh_control: Running) -> None:
    admin = fresh_control.client(make_tenant(fresh_control, "texts").admin_key)
    for text in ("a\0b", "a\x1bb"):
        body = {"role_name": "x", "description": text, "permissions": ["usage.read"]}
        refused(admin.post(ROLES, json=body), 400, "invalid_value", "description")
    refused(admin.get(USERS, params={"emails": "a\0b@example.com"}), 400, "invalid_value", "emails")
    refused(
        admin.get(f"{ORGANIZATION}/access", params={"permission": "usage.read", "subject_id": "\0"}), 400, "invalid_value", "subject_id"
    )
    role = answered(admin.post(ROLES, json={"role_name": "x", "description": "", "permissions": ["usage.read"]}))
    assert role["description"] == ""


def test_90_token_that_many_present_at_once_is_accepted_once(fresh_control: Running) -> None:
    admin = fresh_control.client(make_tenant(fresh_control, "race").admin_key)
    answered(admin.post(INVITES, json={"email": "race@example.com", "role": "owner"}))
    token = find_token(fresh_control, "race@example.com")
    clients = [fresh_control.client(token) for _ in range(4)]
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(lambda client: client.post("/v1/invites/accept", json={"name": "Ada"}), clients))
    assert sorted(answer.status_code for answer in answers)[0] == 200
    assert {answer.status_code for answer in answers} <= {200, 401, 404} and len(answered(admin.get(USERS))["data"]) == 1


class TestRoles:
    @pytest.mark.parametrize("name", ["owner", "viewer", "reader", "none"])
    def test_89_name_that_people_are_shown_with_for_another_role_is_refused(self, admin: httpx2.Client, name: str) -> None:
        refused(admin.post(ROLES, json={"role_name": name, "permissions": ["usage.read"]}), 409, "conflict", "role_name")
        role = make_role(admin, f"role beside {name}", "usage.read")
        refused(admin.post(f"{ROLES}/{role}", json={"role_name": name}), 409, "conflict", "role_name")

    def test_built_in_roles_are_listed_and_cannot_be_changed(self, admin: httpx2.Client) -> None:
        assert {"role_owner", "role_viewer"} <= {role["id"] for role in answered(admin.get(ROLES))["data"]}
        refused(admin.post(f"{ROLES}/role_viewer", json={"role_name": "x"}), 409, "conflict")
        refused(admin.delete(f"{ROLES}/role_owner"), 409, "conflict")
        refused(admin.get(f"{ROLES}/role_operator"), 404, "not_found")

    def test_lists_of_roles_page_through_all(self, admin: httpx2.Client) -> None:
        made = {make_role(admin, f"role {number}", "usage.read") for number in range(3)}
        for order in ("asc", "desc"):
            found: list[str] = []
            query: dict[str, Any] = {"limit": 2, "order": order}
            while True:
                page = answered(admin.get(ROLES, params=query))
                found += [role["id"] for role in page["data"]]
                if page["next"] is None:
                    break
                query["after"] = page["next"]
            assert len(found) == len(set(found)) == 9 and made <= set(found)
            assert found == sorted(found, reverse=order == "desc")

    @pytest.mark.parametrize("permissions", [["platform.keys.write"], ["everything"], []])
    def test_89_permission_that_an_organization_cannot_give_is_refused(self, admin: httpx2.Client, permissions: list[str]) -> None:
        refused(admin.post(ROLES, json={"role_name": "x", "permissions": permissions}), 400, "invalid_value", "permissions")

    def test_89_role_of_a_project_is_held_there_alone(self, control: Running, tenant: TenantSetup, admin: httpx2.Client) -> None:
        path = f"/v1/projects/{tenant.project_id}/roles"
        refused(admin.post(path, json={"role_name": "x", "permissions": ["admin_keys.write"]}), 400, "invalid_value", "permissions")
        role = answered(admin.post(path, json={"role_name": "x", "permissions": ["limits.read"]}))["id"]
        other = answered(admin.post(f"{ORGANIZATION}/projects", json={"name": "other"}))["id"]
        person = invite(control, admin, "here@example.com", "reader")
        refused(admin.get(f"/v1/projects/{other}/roles/{role}"), 404, "not_found")
        refused(admin.post(f"/v1/projects/{other}/users/{person.id}/roles", json={"role_id": role}), 400, "invalid_value", "role")
        refused(admin.post(f"{USERS}/{person.id}/roles", json={"role_id": role}), 400, "invalid_value", "role")
        answered(admin.post(f"/v1/projects/{tenant.project_id}/users/{person.id}/roles", json={"role_id": role}))

    def test_role_that_somebody_holds_is_not_deleted(self, control: Running, admin: httpx2.Client) -> None:
        role = make_role(admin, "held", "usage.read")
        person = invite(control, admin, "holder@example.com", role)
        refused(admin.delete(f"{ROLES}/{role}"), 409, "conflict")
        answered(admin.post(f"{USERS}/{person.id}", json={"role": "reader"}))
        answered(admin.delete(f"{ROLES}/{role}"))
        refused(admin.get(f"{ROLES}/{role}"), 404, "not_found")

    def test_91_permissions_that_a_role_loses_are_lost_at_once(self, control: Running, admin: httpx2.Client) -> None:
        role = make_role(admin, "shrinking", "usage.read", "budgets.read")
        client = control.client(answered(admin.post(ADMIN_KEYS, json={"name": "x", "role": role}))["value"])
        answered(client.get(f"{ORGANIZATION}/budgets"))
        answered(admin.post(f"{ROLES}/{role}", json={"permissions": ["usage.read"]}))
        refused(client.get(f"{ORGANIZATION}/budgets"), 403, "insufficient_scope")
