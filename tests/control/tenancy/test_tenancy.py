"""Two tenants: each sees its own, and of the other not even that it exists."""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.control.authentication.test_federation import make_federation
from tests.control.browsing import Browser
from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant
from tests.control.test_routes import refused
from tests.gateway.authorities import issue
from tollway.control.api.app import create_apps
from tollway.domain.periods import Calendar, period_id
from tollway.storage import periods as stored_periods

SPENDING: dict[str, Any] = {"threshold_amount": 100, "currency": "EUR", "interval": "month"}
PROVIDER = {"name": "x", "issuer": "https://login.example.com", "client_id": "x"}
NOBODY: dict[str, Any] = {"notification_channel": {"type": "email", "recipients": []}}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/organization/projects": {"name": "x"},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": {"event_type": "invoice.issued"},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/replay": {"since": 1, "until": 2},
    "/v1/organization/projects/{project_id}": {"name": "x"},
    "/v1/organization/projects/{project_id}/api_keys": {"name": "x"},
    "/v1/organization/projects/{project_id}/service_accounts": {"name": "x"},
    "/v1/organization/admin_api_keys": {"name": "x"},
    "/v1/organization/projects/{project_id}/model_permissions": {"mode": "deny_list", "model_ids": []},
    "/v1/organization/budgets/{budget_id}/raises": {"amount": "1", "ends_at": int(time.time()) + 86_400},
    "/v1/organization/workload_identity_providers/{workload_identity_provider_id}/federation_rules": {
        "project_id": "proj_" + "0" * 32,
        "service_account_id": "sa_" + "0" * 32,
        "attribute_matchers": {"sub": "x"},
    },
    "/v1/organization/certificates/{certificate_id}": {"name": "x"},
    "/v1/organization/certificates/{certificate_id}/rules": {"project_id": "proj_" + "0" * 32, "service_account_id": "sa_" + "0" * 32},
    "/v1/organization/projects/{project_id}/certificates/activate": {"certificate_ids": ["cert_" + "0" * 32]},
    "/v1/organization/projects/{project_id}/certificates/deactivate": {"certificate_ids": ["cert_" + "0" * 32]},
    "/v1/organization/projects/{project_id}/data_retention": {"retention_type": "organization_default"},
    "/v1/organization/users/{user_id}": {"role": "reader"},
    "/v1/organization/users/{user_id}/roles": {"role_id": "role_viewer"},
    "/v1/organization/projects/{project_id}/users": {"user_id": "user_" + "0" * 32, "role": "member"},
    "/v1/organization/projects/{project_id}/users/{user_id}": {"role": "member"},
    "/v1/projects/{project_id}/users/{user_id}/roles": {"role_id": "role_project_viewer"},
    "/v1/organization/groups/{group_id}": {"name": "x"},
    "/v1/organization/groups/{group_id}/users": {"user_id": "user_" + "0" * 32},
    "/v1/organization/groups/{group_id}/roles": {"role_id": "role_viewer"},
    "/v1/organization/projects/{project_id}/groups": {"group_id": "group_" + "0" * 32, "role": "member"},
    "/v1/projects/{project_id}/groups/{group_id}/roles": {"role_id": "role_project_viewer"},
    "/v1/projects/{project_id}/roles": {"role_name": "x", "permissions": ["limits.read"]},
    "/v1/organization/projects/{project_id}/spend_limit": SPENDING,
    "/v1/organization/spend_alerts/{alert_id}": SPENDING | NOBODY,
    "/v1/organization/projects/{project_id}/spend_alerts": SPENDING | NOBODY,
    "/v1/organization/projects/{project_id}/spend_alerts/{alert_id}": SPENDING | NOBODY,
}
"""A right body for each route that wants one; limits want an empty object."""


class TestAnotherTenantsIds:
    def test_52_answer_exactly_like_ids_that_never_were(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        """The closure over the route table: every tenant route, with each id in its path taken from the other tenant."""
        client = control.client(alice.admin_key)
        theirs = {
            "project_id": bob.project_id,
            "service_account_id": bob.service_account_id,
            "key_id": bob.key_id,
            "request_id": "req_" + "1" * 32,
            "contract_id": "contract_" + "1" * 32,  # a contract that there is not; test_161_tenants asks for one that there is
            "invoice_id": "inv_" + "1" * 32,  # test_158 asks for an invoice that there is
            "format": "pdf",
            "period_id": add_period(control, bob),
            "budget_id": add_budget(control, bob),
            "alert_id": add_spend_alert(control, bob),
            **add_people(control, bob),
            **add_federation(control, bob),
            **add_certificate(control, bob),
            "webhook_endpoint_id": add_webhook(control, bob),
            "telemetry_export_id": add_telemetry_export(control, bob),
        }
        assert answered(control.client(bob.admin_key).get(f"/v1/organization/periods/{theirs['period_id']}"))["state"] == "open"
        hers = add_people(control, alice) | add_federation(control, alice) | add_certificate(control, alice)
        tried = 0
        for route in create_apps(control.plane)[0].routes:
            path: str = getattr(route, "path", "")
            names = re.findall(r"\{(\w+)\}", path)
            if not path.startswith(("/v1/organization/", "/v1/projects/", "/v1/webhook_endpoints/")) or not names:
                continue
            foreign = dict(theirs, key_id=bob.admin_key_id) if "admin_api_keys" in path else theirs
            own = {"project_id": alice.project_id, "key_id": alice.key_id, "service_account_id": alice.service_account_id, **hers}
            for method in getattr(route, "methods", ()):
                for name in names:
                    ids = {other: own.get(other, foreign[other]) for other in names} | {name: foreign[name]}
                    never = ids | {name: re.sub(r"[0-9a-f]{32}", "0" * 32, foreign[name])}
                    body = BODIES.get(path, {}) if method in {"POST", "PUT"} else None
                    seen = client.request(method, fill(path, ids), json=body)
                    unseen = client.request(method, fill(path, never), json=body)
                    assert refused(seen, 404, "not_found") == refused(unseen, 404, "not_found")
                    tried += 1
        assert tried >= 15

    def test_52_in_bodies_answer_exactly_like_ids_that_never_were(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        client, hers, theirs = control.client(alice.admin_key), add_people(control, alice), add_people(control, bob)
        project = f"/v1/organization/projects/{alice.project_id}"
        tried = 0
        for path, body in (
            (f"{project}/users", {"user_id": theirs["user_id"], "role": "member"}),
            (f"{project}/users", {"user_id": hers["user_id"], "role": theirs["role_id"]}),
            (f"{project}/groups", {"group_id": theirs["group_id"], "role": "member"}),
            (f"/v1/organization/groups/{hers['group_id']}/users", {"user_id": theirs["user_id"]}),
            (f"/v1/organization/groups/{hers['group_id']}/roles", {"role_id": theirs["role_id"]}),
            (f"/v1/organization/users/{hers['user_id']}/roles", {"role_id": theirs["role_id"]}),
            (f"/v1/organization/users/{hers['user_id']}", {"role_id": theirs["role_id"]}),
            ("/v1/organization/admin_api_keys", {"name": "x", "user_id": theirs["user_id"]}),
            ("/v1/organization/admin_api_keys", {"name": "x", "role": theirs["role_id"]}),
            ("/v1/organization/admin_api_keys", {"name": "x", "role": "viewer", "project_id": bob.project_id}),
            ("/v1/organization/invites", {"email": "x@example.com", "role": theirs["role_id"]}),
            (
                "/v1/organization/invites",
                {"email": "x@example.com", "role": "reader", "projects": [{"id": bob.project_id, "role": "member"}]},
            ),
        ):
            unseen_body = json.loads(re.sub(r"(role|user|group|proj)_[0-9a-f]{32}", foreign_to_none(theirs, bob), json.dumps(body)))
            assert unseen_body != body
            seen, unseen = client.post(path, json=body), client.post(path, json=unseen_body)
            assert seen.status_code in (400, 404) and (seen.status_code, seen.json()) == (unseen.status_code, unseen.json()), path
            tried += 1
        assert tried == 12

    def test_do_no_harm(self, control: Running, alice: TenantSetup) -> None:
        victim = make_tenant(control, "victim")
        before = snapshot_of(control, victim.organization_id)
        client = control.client(alice.admin_key)
        path = f"/v1/organization/projects/{victim.project_id}"
        for method, target, body in (
            ("POST", path, {"name": "mine"}),
            ("POST", f"{path}/archive", None),
            ("POST", f"{path}/api_keys", {"name": "mine"}),
            ("DELETE", f"{path}/api_keys/{victim.key_id}", None),
            ("DELETE", f"/v1/organization/projects/{alice.project_id}/api_keys/{victim.key_id}", None),
            ("PUT", f"{path}/limits", {"requests_per_minute": 1}),
            ("PUT", f"{path}/api_keys/{victim.key_id}/limits", {"requests_per_minute": 1}),
            ("DELETE", f"{path}/service_accounts/{victim.service_account_id}", None),
            ("DELETE", f"/v1/organization/admin_api_keys/{victim.admin_key_id}", None),
        ):
            refused(client.request(method, target, json=body), 404, "not_found")
        assert snapshot_of(control, victim.organization_id) == before

    def test_52_in_the_header_are_not_found(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        acting = control.client(alice.admin_key, **{"openai-organization": bob.organization_id})
        refused(acting.get("/v1/organization/projects"), 404, "not_found")

    def test_are_in_no_list(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        client = control.client(alice.admin_key)
        for path in (
            "/v1/organization/projects?limit=100&include_archived=true",
            "/v1/organization/admin_api_keys?limit=100",
            f"/v1/organization/projects/{alice.project_id}/api_keys?limit=100",
            f"/v1/organization/projects/{alice.project_id}/service_accounts?limit=100",
        ):
            text = json.dumps(answered(client.get(path)))
            for foreign in (bob.organization_id, bob.project_id, bob.key_id, bob.service_account_id, bob.admin_key_id):
                assert foreign not in text


def add_budget(control: Running, tenant: TenantSetup) -> str:
    body = {"name": "all", "amount": "10", "window": "month"}
    made: str = answered(control.client(tenant.admin_key).post("/v1/organization/budgets", json=body))["id"]
    return made


def add_spend_alert(control: Running, tenant: TenantSetup) -> str:
    made: str = answered(control.client(tenant.admin_key).post("/v1/organization/spend_alerts", json=SPENDING | NOBODY))["id"]
    return made


def add_period(control: Running, tenant: TenantSetup) -> str:
    """The id of a billing period of a tenant, as the collector cuts it."""
    calendar = Calendar(tenant.organization_id, "UTC")
    start_at = calendar.place(control.plane.now())
    with control.plane.database.platform() as tx:
        stored_periods.insert_cut(tx, [calendar], control.plane.now())
    return period_id(tenant.organization_id, start_at)


def fill(path: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def snapshot_of(control: Running, organization_id: str) -> list[Any]:
    """Everything that an operator, acting for the organization, can see of it."""
    acting = control.client(control.platform_key, **{"openai-organization": organization_id})
    seen = []
    for project in answered(acting.get("/v1/organization/projects?limit=100&include_archived=true"))["data"]:
        path = f"/v1/organization/projects/{project['id']}"
        seen += [project, answered(acting.get(f"{path}/api_keys"))["data"], answered(acting.get(f"{path}/service_accounts"))["data"]]
    return [*seen, answered(acting.get("/v1/organization/admin_api_keys"))["data"]]


class TestSecretsAtRest:
    def test_are_not_in_the_database(self, control: Running, alice: TenantSetup) -> None:
        """Nor anything of a key but its public part and last four characters; nor an upstream's credential."""
        credential = "upstream-credential-0123456789"
        operator = control.operator()
        answered(operator.post("/v1/platform/models", json={"name": "sealed", "endpoints": ["embeddings"]}))
        made = operator.post(
            "/v1/platform/deployments",
            json={
                "model": "sealed",
                "base_url": "http://10.0.0.1:8000",
                "engine": "vllm",
                "upstream_model": "m",
                "credential": credential,
            },
        )
        assert credential not in made.text
        assert answered(made)["has_credential"]
        with control.plane.database.platform(write=False) as tx:
            path = tx.connection.engine.url.database
        assert path is not None
        stored = Path(path).read_bytes() + Path(f"{path}-wal").read_bytes()
        assert alice.key_id.encode() in stored
        for secret in (credential, alice.secret, alice.admin_key, control.platform_key, control.node_key):
            assert secret[-20:].encode() not in stored
            assert secret[-20:].encode().hex().encode() not in stored

    def test_are_shown_once(self, control: Running, alice: TenantSetup) -> None:
        text = json.dumps(snapshot_of(control, alice.organization_id))
        assert alice.key_id in text
        for secret in (alice.secret, alice.admin_key):
            assert secret not in text


class TestArchivedProject:
    def test_keeps_its_history_and_takes_nothing_new(self, control: Running) -> None:
        tenant = make_tenant(control, "closing")
        client = control.client(tenant.admin_key)
        path = f"/v1/organization/projects/{tenant.project_id}"
        archived = answered(client.post(f"{path}/archive"))
        assert archived["status"] == "archived"
        assert answered(client.get(path))["archived_at"] is not None
        assert answered(client.get(f"{path}/api_keys"))["data"] == []
        refused(client.post(f"{path}/api_keys", json={"name": "x"}), 409, "conflict")
        refused(client.post(f"{path}/service_accounts", json={"name": "x"}), 409, "conflict")
        refused(client.post(path, json={"name": "x"}), 409, "conflict")
        refused(client.put(f"{path}/limits", json={}), 404, "not_found")
        assert answered(client.post(f"{path}/archive"))["archived_at"] == archived["archived_at"]


class TestArchivedOrganization:
    def test_has_no_valid_key_left_and_takes_nothing_new(self, control: Running) -> None:
        tenant = make_tenant(control, "gone")
        operator = control.operator()
        archived = answered(operator.post(f"/v1/platform/organizations/{tenant.organization_id}/archive"))
        assert archived["status"] == "archived"
        refused(control.client(tenant.admin_key).get("/v1/organization/projects"), 401, "invalid_api_key")
        acting = control.client(control.platform_key, **{"openai-organization": tenant.organization_id})
        assert answered(acting.get("/v1/organization/projects?include_archived=true"))["data"][0]["status"] == "archived"
        refused(acting.post("/v1/organization/projects", json={"name": "x"}), 409, "conflict")
        refused(acting.post("/v1/organization/admin_api_keys", json={"name": "x"}), 409, "conflict")
        listed = answered(operator.get("/v1/platform/organizations?limit=100"))["data"]
        assert tenant.organization_id not in [organization["id"] for organization in listed]


class TestOrganizationNames:
    def test_of_an_active_organization_are_refused_to_another_until_it_is_archived(self, fresh_control: Running) -> None:
        operator, body = fresh_control.operator(), {"name": "twice", "currency": "EUR"}
        made = answered(operator.post("/v1/platform/organizations", json=body))
        error = refused(operator.post("/v1/platform/organizations", json=body), 409, "conflict", "name")
        assert error["message"] == "An active organization has this name already."
        answered(operator.post(f"/v1/platform/organizations/{made['id']}/archive"))
        again = answered(operator.post("/v1/platform/organizations", json=body))
        page = answered(operator.get("/v1/platform/organizations", params={"include_archived": "true"}))
        assert {each["id"] for each in page["data"]} == {made["id"], again["id"]}

    def test_asked_for_twice_at_once_are_given_once(self, fresh_control: Running) -> None:
        clients = [fresh_control.operator() for _ in range(8)]
        with ThreadPoolExecutor(len(clients)) as pool:
            body = {"name": "at once", "currency": "EUR"}
            statuses = list(pool.map(lambda client: client.post("/v1/platform/organizations", json=body).status_code, clients))
        assert sorted(statuses) == [200] + [409] * 7


class TestKeys:
    def test_are_made_as_asked(self, control: Running, alice: TenantSetup) -> None:
        client = control.client(alice.admin_key)
        path = f"/v1/organization/projects/{alice.project_id}/api_keys"
        body = {
            "name": "narrow",
            "type": "test",
            "models": ["a/b", "c"],
            "expires_at": 4_000_000_000,
            "limits": {"requests_per_minute": 60, "concurrent_requests": 4},
        }
        made = answered(client.post(path, json=body))
        assert made["value"].startswith("tw_test_")
        read = answered(client.get(f"{path}/{made['id']}"))
        assert {name: read[name] for name in ("name", "type", "models", "expires_at")} == {
            name: body[name] for name in ("name", "type", "models", "expires_at")
        }
        limits = {name: size for name, size in read["limits"].items() if size is not None}
        assert limits == {"object": "limits", "requests_per_minute": 60, "concurrent_requests": 4}
        answered(client.put(f"{path}/{made['id']}/limits", json={"requests_per_minute": 5}))
        assert answered(client.get(f"{path}/{made['id']}"))["limits"]["concurrent_requests"] is None

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"name": "x", "expires_at": 1}, "expires_at"),
            ({"name": "x", "expires_at": 10**15}, "expires_at"),
            ({"name": "x", "type": "admin"}, "type"),
            ({"name": "x", "models": ["gpt-4\u043e"]}, "models.[0]"),
            ({"name": "x", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
            ({"name": "x", "limits": {"requests_per_minute": True}}, "limits.requests_per_minute"),
            ({"name": "x", "limits": {"requests_per_minute": 1.0}}, "limits.requests_per_minute"),
            ({"name": "x", "limits": {"requests_per_minute": 2**63}}, "limits.requests_per_minute"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, control: Running, alice: TenantSetup, body: dict[str, Any], param: str) -> None:
        response = control.client(alice.admin_key).post(f"/v1/organization/projects/{alice.project_id}/api_keys", json=body)
        refused(response, 400, "invalid_value", param)

    def test_page_by_their_place_not_by_their_number(self, control: Running) -> None:
        tenant = make_tenant(control, "many")
        client = control.client(tenant.admin_key)
        path = f"/v1/organization/projects/{tenant.project_id}/api_keys"
        ids = [tenant.key_id, *answered_ids(client, path, 9)]
        first = answered(client.get(path, params={"limit": 4}))
        assert first["has_more"]
        assert first["first_id"] == ids[0]
        answered(client.delete(f"{path}/{first['last_id']}"))  # the cursor itself goes away
        second = answered(client.get(path, params={"limit": 100, "after": first["last_id"]}))
        assert not second["has_more"]
        page = [key["id"] for key in first["data"]] + [key["id"] for key in second["data"]]
        assert [id for id in page if id in ids] == sorted(ids)
        backwards = answered(client.get(path, params={"limit": 100, "order": "desc"}))["data"]
        assert [key["id"] for key in backwards] == sorted((key["id"] for key in backwards), reverse=True)


def answered_ids(client: httpx2.Client, path: str, count: int) -> list[str]:
    return [answered(client.post(path, json={"name": f"key {number}"}))["id"] for number in range(count)]


def foreign_to_none(theirs: dict[str, str], tenant: TenantSetup) -> Callable[[re.Match[str]], str]:
    """Return what replaces each id of another tenant by one that never was."""
    foreign = {*theirs.values(), tenant.project_id}
    return lambda found: f"{found.group(1)}_{'0' * 32}" if found.group(0) in foreign else found.group(0)


def add_federation(control: Running, tenant: TenantSetup) -> dict[str, str]:
    """Return ids of an identity provider and of a rule of an organization."""
    made = make_federation(control, tenant, issuer=f"https://issuer-{time.monotonic_ns()}.example")
    return {"workload_identity_provider_id": made.provider["id"], "workload_identity_federation_rule_id": made.rule["id"]}


def add_certificate(control: Running, tenant: TenantSetup) -> dict[str, str]:
    """Return ids of a certificate and of a rule of an organization."""
    admin = control.client(tenant.admin_key)
    content = issue("an authority", is_authority=True).pem
    certificate = answered(admin.post("/v1/organization/certificates", json={"certificate": content}))["id"]
    account = {"project_id": tenant.project_id, "service_account_id": tenant.service_account_id, "matchers": {"dns": "x"}}
    rule = answered(admin.post(f"/v1/organization/certificates/{certificate}/rules", json=account))["id"]
    return {"certificate_id": certificate, "certificate_rule_id": rule}


def add_webhook(control: Running, tenant: TenantSetup) -> str:
    """Return the id of a webhook endpoint of an organization, which gets nothing."""
    # An address that needs no name server, and is public: of relays for multicast (RFC 7450), which serve no HTTPS.
    body = {"name": "x", "url": "https://192.52.193.1/", "event_types": ["invoice.issued"]}
    made: str = answered(control.client(tenant.admin_key).post("/v1/webhook_endpoints", json=body))["id"]
    return made


def add_telemetry_export(control: Running, tenant: TenantSetup) -> str:
    """Return the id of a telemetry export of an organization, whose receiver gets nothing."""
    body = {"name": "x", "url": "https://192.52.193.1", "format": "json", "signals": ["audit"]}
    made: str = answered(control.client(tenant.admin_key).post("/v1/organization/telemetry_exports", json=body))["id"]
    return made


def sign_in(control: Running, admin: httpx2.Client, user_id: str) -> str:
    """Sign a person in by a link. Return the id of their session."""
    browser = Browser(control)
    browser.open(answered(admin.post(f"/v1/organization/users/{user_id}/sign_in_links"))["url"])
    browser.send("/link")
    session_id: str = answered(admin.get(f"/v1/organization/users/{user_id}/sessions"))["data"][0]["id"]
    return session_id


def add_people(control: Running, tenant: TenantSetup) -> dict[str, str]:
    """Return ids of a person, a group, a role and an invitation of an organization."""
    admin, number = control.client(tenant.admin_key), str(time.monotonic_ns())
    address = f"person-{number}@example.com"
    invite = answered(admin.post("/v1/organization/invites", json={"email": address, "role": "reader"}))
    joined = answered(control.client(find_token(control, address)).post("/v1/invites/accept", json={"name": "x"}))
    role = {"role_name": f"role {number}", "permissions": ["usage.read"]}
    return {
        "user_id": joined["user"]["id"],
        "connection_id": answered(admin.post("/v1/organization/sign_in_connections", json=PROVIDER))["id"],
        "session_id": sign_in(control, admin, joined["user"]["id"]),
        "group_id": answered(admin.post("/v1/organization/groups", json={"name": f"group {number}"}))["id"],
        "role_id": answered(admin.post("/v1/organization/roles", json=role))["id"],
        "invite_id": invite["id"],
    }
