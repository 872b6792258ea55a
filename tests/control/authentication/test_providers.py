"""People who sign in with a real identity provider (Canaille, of pytest-iam), and what is refused on the way back from it."""

import html
import json
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import msgspec
import pytest

from tests.control.authentication import test_device_login as log_in
from tests.control.browsing import Browser, find_user_id, join
from tests.control.harness import NO_TLS, Running, TenantSetup, answered, find_token, make_tenant, running
from tests.control.test_routes import refused
from tests.storage.databases import SqliteTemplate
from tollway.control.authentication import sign_in
from tollway.control.identity import operators as control_operators
from tollway.control.identity.operators import OperatorSignIn
from tollway.storage import sign_in_connections as stored_connections

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-provider" / "bin" / "python"
CONNECTIONS = "/v1/organization/sign_in_connections"


class Provider:
    """The provider in its process. `issuer`: its address."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.issuer: str = self._read()["issuer"]

    def tell(self, **wanted: Any) -> dict[str, str]:
        """Register a client, or sign a person in at the provider."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return self._read()

    def open(self, url: str) -> str:
        """Return where the provider leads the browser of the person who is signed in there."""
        with httpx2.Client(verify=NO_TLS, timeout=30) as browser:
            answer = browser.get(url)
        assert answer.status_code == 302, answer.text
        location: str = answer.headers["location"]
        return location

    def _read(self) -> dict[str, str]:
        assert self._process.stdout is not None
        found: dict[str, str] = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    if not PYTHON.exists():
        pytest.skip("no identity provider: `make provider` installs it")
    command = [str(PYTHON), str(Path(__file__).with_name("provider_server.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield Provider(process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def control(provider: Provider, sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("providers")
    operators = OperatorSignIn(
        issuer=provider.issuer,
        client_id="tollway-operators",
        client_secret="tollway-operators",
        groups_claim="groups",
        operator_groups=frozenset({"platform"}),
        second_operator_groups=frozenset({"finance"}),
        auditor_groups=frozenset({"audit"}),
    )
    issuers = frozenset({provider.issuer})
    with (
        sqlite_template.copied(directory) as url,
        running(url, directory / "archive", issuers=issuers, operator_sign_in=operators) as started,
    ):
        back = [f"{started.url}/sign-in/operators/callback"]
        provider.tell(client=back, id="tollway-operators", signed_out=f"{started.url}/signed-out")
        yield started


@pytest.fixture(autouse=True)
def many_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in, "ADDRESS_ATTEMPTS_MAX", 1_000_000)


@pytest.fixture
def tenant(control: Running, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, request.node.name)


@pytest.fixture
def admin(control: Running, tenant: TenantSetup) -> httpx2.Client:
    return control.client(tenant.admin_key)


@pytest.fixture
def domain() -> str:
    return f"{secrets.token_hex(6)}.example"


@pytest.fixture
def connect(provider: Provider, admin: httpx2.Client) -> Callable[..., dict[str, Any]]:
    """Return what makes a connection of the tenant to the provider."""

    def make(**wanted: Any) -> dict[str, Any]:
        body = {"name": "Company", "issuer": provider.issuer, "client_id": "none", "trusts_addresses": True, **wanted}
        made = answered(admin.post(CONNECTIONS, json=body))
        signed_out = made["redirect_uri"].partition("/sign-in")[0] + "/signed-out"
        client = provider.tell(client=[made["redirect_uri"]], signed_out=signed_out)
        return dict(answered(admin.post(f"{CONNECTIONS}/{made['id']}", json=client)))

    return make


def go(control: Running, provider: Provider, connection: dict[str, Any], path: str = "") -> tuple[Browser, str]:
    """Begin in a browser. Return it with the address to which the provider leads it back."""
    browser = Browser(control)
    begun = browser.client.get(f"/sign-in/{connection['id']}", params={"next": path} if path else None)
    assert begun.status_code == 303, begun.text
    query = parse_qs(urlsplit(begun.headers["location"]).query)
    assert query["code_challenge_method"] == ["S256"] and query["redirect_uri"] == [connection["redirect_uri"]]
    return browser, provider.open(begun.headers["location"])


def arrive(control: Running, provider: Provider, connection: dict[str, Any], path: str = "") -> Browser:
    browser, back = go(control, provider, connection, path)
    browser.open(back)
    return browser


class TestPeople:
    def test_person_of_a_domain_joins_with_the_role_and_the_groups_of_the_provider(
        self, control: Running, provider: Provider, admin: httpx2.Client, connect: Callable[..., Any], domain: str
    ) -> None:
        group = answered(admin.post("/v1/organization/groups", json={"name": "engineering"}))["id"]
        answered(admin.post(f"/v1/organization/groups/{group}/roles", json={"role_id": "role_billing"}))
        connection = connect(domains=[domain], role="reader", groups={"eng": group})
        email = f"ada@{domain}"
        provider.tell(user={"email": email, "name": "Ada Lovelace", "groups": ["eng", "other"]})
        browser = arrive(control, provider, connection)
        assert browser.page.status_code == 200 and email in browser.page.text and "billing" in browser.page.text
        user_id = find_user_id(admin, email)
        assert answered(admin.get(f"/v1/organization/users/{user_id}"))["role"] == "reader"
        (session,) = answered(admin.get(f"/v1/organization/users/{user_id}/sessions"))["data"]
        assert session["method"] == "provider"
        provider.tell(user={"email": email, "name": "Ada Lovelace", "groups": []})
        assert "billing" not in arrive(control, provider, connection).page.text
        assert find_user_id(admin, email) == user_id
        events = [each["type"] for each in answered(admin.get("/v1/organization/audit_logs", params={"limit": 20}))["data"]]
        assert {"user.provisioned", "login.succeeded", "sign_in_connection.created"} <= set(events)

    def test_person_with_the_address_is_the_one_who_was_there(
        self, control: Running, provider: Provider, admin: httpx2.Client, connect: Callable[..., Any], domain: str
    ) -> None:
        email = f"ada@{domain}"
        join(control, admin, email, "developer")
        before = find_user_id(admin, email)
        connection = connect()
        provider.tell(user={"email": email, "name": "x", "groups": []})
        browser = arrive(control, provider, connection, "/device")
        assert "Log in the command line" in browser.page.text and find_user_id(admin, email) == before

    def test_invited_person_joins_with_what_was_promised(
        self, control: Running, provider: Provider, admin: httpx2.Client, connect: Callable[..., Any], domain: str
    ) -> None:
        email = f"ada@{domain}"
        connection = connect()
        answered(admin.post("/v1/organization/invites", json={"email": email, "role": "billing"}))
        provider.tell(user={"email": email, "name": "Ada", "groups": []})
        assert "billing" in arrive(control, provider, connection).page.text

    def test_person_of_another_domain_is_refused(
        self, control: Running, provider: Provider, admin: httpx2.Client, connect: Callable[..., Any], domain: str
    ) -> None:
        connection = connect(domains=[f"other-{domain}"], role="reader")
        provider.tell(user={"email": f"eve@{domain}", "name": "Eve", "groups": []})
        assert arrive(control, provider, connection).page.status_code == 401
        assert answered(admin.get("/v1/organization/users"))["data"] == []

    def test_address_that_the_provider_did_not_verify_is_nobodys(
        self, control: Running, provider: Provider, admin: httpx2.Client, connect: Callable[..., Any], domain: str
    ) -> None:
        join(control, admin, f"ada@{domain}", "owner")
        connection = connect(trusts_addresses=False)
        provider.tell(user={"email": f"ada@{domain}", "name": "Eve", "groups": []})
        assert arrive(control, provider, connection).page.status_code == 401

    def test_connection_signs_in_to_its_own_organization_only(
        self, control: Running, provider: Provider, admin: httpx2.Client, connect: Callable[..., Any], domain: str
    ) -> None:
        other = make_tenant(control, "other")
        join(control, control.client(other.admin_key), f"ada@{domain}", "owner")
        connection = connect()
        provider.tell(user={"email": f"ada@{domain}", "name": "Ada", "groups": []})
        assert arrive(control, provider, connection).page.status_code == 401


def enter_as_operator(control: Running, provider: Provider, *groups: str, name: str = "olga") -> Browser:
    """Sign in as an operator who is in `groups` at the provider. Return the browser."""
    provider.tell(user={"email": f"{name}@ops.example", "name": name.title(), "groups": list(groups)})
    connection = {"id": "operators", "redirect_uri": f"{control.url}/sign-in/operators/callback"}
    return arrive(control, provider, connection)


def log_in_operator(control: Running, browser: Browser) -> dict[str, Any]:
    """Approve a login of the command line in the browser of an operator. Return its tokens."""
    begun = log_in.begin(control)
    log_in.decide(browser, begun)
    tokens: dict[str, Any] = answered(log_in.poll(control, begun))
    return tokens


class TestOperators:
    def test_groups_of_the_provider_make_operators_and_auditors(self, control: Running, provider: Provider, tenant: TenantSetup) -> None:
        browser = enter_as_operator(control, provider, "platform", "other")
        assert "operator of the platform" in browser.page.text and "olga@ops.example" in browser.page.text
        token = log_in_operator(control, browser)["access_token"]
        assert token.startswith("tw_operator_")
        olga = control.client(token)
        listed = {each["email"]: each for each in answered(olga.get("/v1/platform/operators"))["data"]}
        assert (listed["olga@ops.example"]["role"], listed["olga@ops.example"]["origin"]) == ("operator", "first")
        acting = control.client(token, **{"openai-organization": tenant.organization_id})
        me = answered(acting.get("/v1/me"))
        assert (me["operator_id"], me["api_key_id"], me["user"]) == (listed["olga@ops.example"]["id"], None, None)
        answered(acting.post("/v1/organization/projects", json={"name": "by olga"}))
        (record,) = answered(acting.get("/v1/organization/audit_logs", params={"event_types": ["project.created"], "limit": 1}))["data"]
        assert me["operator_id"] in str(record["actor"])
        answered(acting.post("/v1/organization/invites", json={"email": "invited@ops.example", "role": "owner"}))
        invited = control.client(find_token(control, "invited@ops.example"))
        answered(invited.post("/v1/invites/accept", json={"name": "Ida"}))
        made = answered(olga.post("/v1/platform/keys", json={"name": "by olga"}))
        assert (made["created_by"], made["origin"]) == (me["operator_id"], "first")

        auditor = control.client(log_in_operator(control, enter_as_operator(control, provider, "audit", name="otto"))["access_token"])
        answered(auditor.get("/v1/platform/operators"))
        refused(auditor.post("/v1/platform/keys", json={"name": "x"}), 403, "insufficient_scope")

    def test_whoever_leaves_the_groups_is_out_with_all_sessions(self, control: Running, provider: Provider) -> None:
        browser = enter_as_operator(control, provider, "platform", name="lena")
        client = control.client(log_in_operator(control, browser)["access_token"])
        answered(client.get("/v1/platform/keys"))
        assert enter_as_operator(control, provider, "other", name="lena").page.status_code == 401
        refused(client.get("/v1/platform/keys"), 401, "invalid_api_key")
        assert "Sign in" in browser.open("/account").text
        listed = {each["email"]: each["role"] for each in answered(control.operator().get("/v1/platform/operators"))["data"]}
        assert listed["lena@ops.example"] is None
        assert enter_as_operator(control, provider, name="eve").page.status_code == 401
        assert "eve@ops.example" not in {each["email"] for each in answered(control.operator().get("/v1/platform/operators"))["data"]}

    def test_session_of_an_operator_is_ended_by_another_one(self, control: Running, provider: Provider) -> None:
        browser = enter_as_operator(control, provider, "platform", name="mina")
        operator, operators = control.operator(), "/v1/platform/operators"
        found = next(each["id"] for each in answered(operator.get(operators))["data"] if each["email"] == "mina@ops.example")
        (session,) = answered(operator.get(f"{operators}/{found}/sessions"))["data"]
        assert (session["kind"], session["method"]) == ("browser", "provider")
        answered(operator.delete(f"{operators}/{found}/sessions/{session['id']}"))
        assert "Sign in" in browser.open("/account").text
        refused(operator.delete(f"{operators}/{found}/sessions/{session['id']}"), 404, "not_found")
        refused(operator.get(f"{operators}/operator_{'0' * 32}/sessions"), 404, "not_found")
        client = control.client(log_in_operator(control, enter_as_operator(control, provider, "platform", name="mina"))["access_token"])
        answered(operator.delete(f"{operators}/{found}"))
        refused(client.get(operators), 401, "invalid_api_key")
        events = {each["type"] for each in answered(operator.get("/v1/platform/audit_logs", params={"limit": 50}))["data"]}
        assert {"login.succeeded", "session.ended", "operator.role_removed"} <= events

    def test_login_of_an_operator_is_renewed_until_the_sign_in_ends(self, control: Running, provider: Provider) -> None:
        tokens = log_in_operator(control, enter_as_operator(control, provider, "platform", name="nora"))
        renewed = answered(log_in.refresh(control, tokens["refresh_token"]))
        client = control.client(renewed["access_token"])
        answered(client.get("/v1/platform/keys"))
        refused(control.client(tokens["access_token"]).get("/v1/platform/keys"), 401, "invalid_api_key")
        with control.clock.set_to(control.plane.now() + 12 * 3600 * 1_000_000):
            log_in.denied(log_in.refresh(control, renewed["refresh_token"]), "invalid_grant")
        again = answered(log_in.refresh(control, renewed["refresh_token"]))
        log_in.denied(log_in.refresh(control, renewed["refresh_token"]), "invalid_grant")  # presented again: the login ends
        refused(control.client(again["access_token"]).get("/v1/platform/keys"), 401, "invalid_api_key")

    def test_operator_has_no_pages_of_people_and_no_rights_by_a_cookie(self, control: Running, provider: Provider) -> None:
        browser = enter_as_operator(control, provider, "platform", name="pia")
        assert browser.client.get("/account/authenticator").headers["location"].startswith("/sign-in")
        refused(browser.client.get("/v1/platform/keys"), 401, "invalid_api_key")
        refused(control.client(browser.secret).get("/v1/platform/keys"), 401, "invalid_api_key")

    def test_142_members_of_groups_of_both_origins_have_the_first(self, control: Running, provider: Provider) -> None:
        for groups, origin in ((("platform", "finance"), "first"), (("finance",), "second")):
            token = log_in_operator(control, enter_as_operator(control, provider, *groups, name="rosa"))["access_token"]
            found = answered(control.client(token).get("/v1/platform/operators"))["data"]
            assert next(each["origin"] for each in found if each["email"] == "rosa@ops.example") == origin

    def test_operator_keys_work_while_the_settings_name_no_provider(self, control: Running) -> None:
        answered(control.operator().get("/v1/platform/operators"))
        assert control_operators.map_groups(require_sign_in(control), ["other"]) is None


class TestSignOut:
    def test_sign_out_leads_to_the_provider_and_back(
        self, control: Running, provider: Provider, connect: Callable[..., Any], domain: str
    ) -> None:
        connection = connect(domains=[domain], role="reader")
        provider.tell(user={"email": f"ada@{domain}", "name": "Ada", "groups": []})
        person = arrive(control, provider, connection)
        for browser in (person, enter_as_operator(control, provider, "platform")):
            provider.tell(user={"email": "olga@ops.example" if browser is not person else f"ada@{domain}", "name": "x", "groups": []})
            browser.open("/account")
            page = browser.send("/sign-out")
            (url,) = map(html.unescape, re.findall('<meta http-equiv="refresh" content="0; url=([^"]+)">', page.text))
            assert f'href="{html.escape(url)}"' in page.text and "refresh" not in page.headers, "proxies take headers of 4 KiB"
            assert parse_qs(urlsplit(url).query)["id_token_hint"]
            assert provider.open(url) == f"{control.url}/signed-out"
            assert "You are signed out" in browser.open("/signed-out").text and "Sign in" in browser.open("/account").text

    def test_sign_out_ends_here_where_the_connection_is_gone(
        self, control: Running, provider: Provider, admin: httpx2.Client, connect: Callable[..., Any], domain: str
    ) -> None:
        connection = connect(domains=[domain], role="reader")
        provider.tell(user={"email": f"ada@{domain}", "name": "Ada", "groups": []})
        browser = arrive(control, provider, connection)
        answered(admin.delete(f"{CONNECTIONS}/{connection['id']}"))
        page = browser.send("/sign-out")
        assert "You are signed out" in page.text and "refresh" not in page.text


def require_sign_in(control: Running) -> OperatorSignIn:
    found = control.plane.operator_sign_in
    assert found is not None
    return found


class TestReturns:
    @pytest.fixture
    def begun(self, control: Running, provider: Provider, connect: Callable[..., Any], domain: str) -> tuple[Browser, str, dict[str, Any]]:
        """A browser, the address to which the provider leads it back, and the connection."""
        connection = connect(domains=[domain], role="reader")
        provider.tell(user={"email": f"ada@{domain}", "name": "Ada", "groups": []})
        return (*go(control, provider, connection), connection)

    def test_50_return_counts_once(self, begun: tuple[Browser, str, dict[str, Any]]) -> None:
        browser, back, _ = begun
        flow = browser.client.cookies["tollway_flow"]
        assert browser.open(back).status_code == 200
        browser.client.cookies.set("tollway_flow", flow, domain="127.0.0.1")
        assert browser.open(back).status_code == 401

    def test_return_with_parameters_of_the_provider_is_taken(self, begun: tuple[Browser, str, dict[str, Any]]) -> None:
        """Unknown parameters are ignored (RFC 6749, section 4.1.2); Google adds these."""
        browser, back, _ = begun
        added = "scope=email%20openid&authuser=0&prompt=consent&hd=example.com&error_uri=x&session_state=y"
        assert browser.open(f"{back}&{added}").status_code == 200

    def test_50_return_in_another_browser_signs_nobody_in(self, control: Running, begun: tuple[Browser, str, dict[str, Any]]) -> None:
        assert Browser(control).open(begun[1]).status_code == 401

    @pytest.mark.parametrize(
        "change",
        [
            {"state": "x" * 43},
            {"state": ""},
            {"iss": "https://evil.example"},
            {"iss": None},
            {"code": ""},
            {"code": None, "error": "access_denied"},
        ],
    )
    def test_50_return_that_was_changed_is_refused(self, begun: tuple[Browser, str, dict[str, Any]], change: dict[str, str | None]) -> None:
        browser, back, _ = begun
        query = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()} | change
        path = urlsplit(back).path
        answer = browser.client.get(path, params={name: value for name, value in query.items() if value is not None})
        assert answer.status_code == 401 and "set-cookie" not in answer.headers

    @pytest.mark.parametrize("field", ["nonce", "verifier", "client_id", "ends_at"])
    def test_50_flow_that_is_not_the_one_of_the_code_is_refused(
        self, control: Running, begun: tuple[Browser, str, dict[str, Any]], field: str
    ) -> None:
        browser, back, _ = begun
        vault = control.plane.vault
        opened = msgspec.json.decode(vault.unseal_bytes(bytes.fromhex(browser.client.cookies["tollway_flow"])))
        opened[field] = 1 if field == "ends_at" else "y" * 43
        changed = vault.seal_bytes(msgspec.json.encode(opened), context="provider_sign_in").hex()
        browser.client.cookies.delete("tollway_flow")
        answer = control.client(None, cookie=f"tollway_flow={changed}").get(back.removeprefix(control.url))
        assert answer.status_code == 401 and "set-cookie" not in answer.headers

    def test_50_return_to_another_connection_is_refused(
        self, control: Running, connect: Callable[..., Any], begun: tuple[Browser, str, dict[str, Any]]
    ) -> None:
        browser, back, connection = begun
        other = connect()
        assert browser.open(back.replace(connection["id"], other["id"])).status_code == 401

    def test_114_way_back_from_a_provider_stays_on_this_site(
        self, control: Running, provider: Provider, connect: Callable[..., Any], domain: str
    ) -> None:
        connection = connect(domains=[domain], role="reader")
        provider.tell(user={"email": f"ada@{domain}", "name": "Ada", "groups": []})
        browser, back = go(control, provider, connection, "//evil.example")
        assert browser.client.get(back.removeprefix(control.url)).headers["location"] == "/account"

    def test_disabled_or_deleted_connection_signs_nobody_in(
        self, control: Running, admin: httpx2.Client, begun: tuple[Browser, str, dict[str, Any]]
    ) -> None:
        browser, back, connection = begun
        answered(admin.post(f"{CONNECTIONS}/{connection['id']}", json={"enabled": False}))
        assert browser.open(back).status_code == 401
        answered(admin.delete(f"{CONNECTIONS}/{connection['id']}"))
        assert browser.open(f"/sign-in/{connection['id']}").status_code == 401


class TestConnections:
    @pytest.mark.parametrize(
        ("wanted", "param"),
        [
            ({"issuer": "http://login.example.com"}, "issuer"),
            ({"issuer": "https://127.0.0.1"}, "issuer"),
            ({"issuer": "https://login.corp.internal"}, "issuer"),
            ({"groups": {"eng": "group_" + "0" * 32}}, "groups"),
            ({"role": "nothing"}, "role"),
            ({"domains": ["not a domain"]}, "domains.[0]"),
        ],
    )
    def test_that_cannot_be_are_refused(self, admin: httpx2.Client, wanted: dict[str, Any], param: str) -> None:
        body = {"name": "x", "issuer": "https://login.example.com", "client_id": "x", **wanted}
        refused(admin.post(CONNECTIONS, json=body), 400, "invalid_value", param)

    def test_110_give_no_more_than_whoever_makes_them_holds(self, control: Running, admin: httpx2.Client) -> None:
        role = answered(admin.post("/v1/organization/roles", json={"role_name": "fed", "permissions": ["federation.write"]}))["id"]
        lesser = control.client(answered(admin.post("/v1/organization/admin_api_keys", json={"name": "x", "role": role}))["value"])
        body = {"name": "x", "issuer": "https://login.example.com", "client_id": "x", "domains": ["example.com"]}
        refused(lesser.post(CONNECTIONS, json={**body, "role": "owner"}), 403, "grant_exceeds_grantor", "role")
        made = answered(admin.post(CONNECTIONS, json={**body, "role": "owner"}))
        refused(lesser.post(f"{CONNECTIONS}/{made['id']}", json={"issuer": "x"}), 400, "unknown_parameter", "issuer")
        refused(lesser.post(f"{CONNECTIONS}/{made['id']}", json={"domains": ["evil.example"]}), 403, "grant_exceeds_grantor", "role")

    def test_110_are_made_by_those_alone_who_can_do_what_an_owner_can(self, control: Running, admin: httpx2.Client) -> None:
        """Whoever controls the provider says who its people are, and so could sign in as an owner."""
        key = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "x", "role": "admin"}))["value"]
        lesser = control.client(key)
        body = {"name": "x", "issuer": "https://login.example.com", "client_id": "x"}
        refused(lesser.post(CONNECTIONS, json=body), 403, "grant_exceeds_grantor", "role")
        path = f"{CONNECTIONS}/{answered(admin.post(CONNECTIONS, json=body))['id']}"
        refused(lesser.post(path, json={"client_id": "y"}), 403, "grant_exceeds_grantor", "role")
        refused(lesser.post(path, json={"enabled": False, "trusts_addresses": True}), 403, "grant_exceeds_grantor", "role")
        assert answered(lesser.post(path, json={"enabled": False}))["enabled"] is False
        refused(lesser.post(path, json={"enabled": True}), 403, "grant_exceeds_grantor", "role")
        answered(lesser.delete(path))

    def test_whose_group_and_role_were_deleted_can_be_changed(self, admin: httpx2.Client) -> None:
        role = answered(admin.post("/v1/organization/roles", json={"role_name": "old", "permissions": ["usage.read"]}))["id"]
        group = answered(admin.post("/v1/organization/groups", json={"name": "engineering"}))["id"]
        body = {"name": "x", "issuer": "https://login.example.com", "client_id": "x", "role": role, "groups": {"eng": group}}
        path = f"{CONNECTIONS}/{answered(admin.post(CONNECTIONS, json=body))['id']}"
        answered(admin.delete(f"/v1/organization/groups/{group}"))
        answered(admin.delete(f"/v1/organization/roles/{role}"))
        assert answered(admin.post(path, json={"name": "y"}))["name"] == "y"
        assert answered(admin.post(path, json={"enabled": False}))["enabled"] is False
        refused(admin.post(path, json={"groups": {"eng": group}}), 400, "invalid_value", "groups")
        refused(admin.post(path, json={"role": role}), 400, "invalid_value", "role")
        assert answered(admin.post(path, json={"groups": {}, "role": None}))["groups"] == {}

    def test_secret_is_shown_nowhere(self, control: Running, admin: httpx2.Client) -> None:
        body = {"name": "x", "issuer": "https://login.example.com", "client_id": "x", "client_secret": "a secret of a client"}
        made = answered(admin.post(CONNECTIONS, json=body))
        assert made["has_client_secret"]
        shown = [made, answered(admin.get(f"{CONNECTIONS}/{made['id']}")), answered(admin.get(CONNECTIONS)), control.lines]
        shown.append(answered(admin.get("/v1/organization/audit_logs")))
        assert "a secret of a client" not in str(shown)

    def test_provider_that_is_away_is_said(self, control: Running, admin: httpx2.Client) -> None:
        body = {"name": "x", "issuer": "https://away.example", "client_id": "x"}
        made = answered(admin.post(CONNECTIONS, json=body))
        answer = control.client(None).get(f"/sign-in/{made['id']}")
        assert answer.status_code == 502 and "cannot be reached" in answer.text

    def test_client_secret_is_sealed_for_its_organization(self, control: Running, admin: httpx2.Client, tenant: TenantSetup) -> None:
        body = {"name": "x", "issuer": "https://login.example.com", "client_id": "x", "client_secret": "s3cret"}
        made = answered(admin.post(CONNECTIONS, json=body))
        plane = control.plane
        with plane.database.tenant(tenant.organization_id) as tx:
            found = stored_connections.find_connection(tx, made["id"])
        assert found is not None and found.client_secret is not None
        with pytest.raises(ValueError, match="another key"):
            plane.vault.unseal(found.client_secret)
        assert plane.data_keys.open(tenant.organization_id).unseal(found.client_secret, context=made["id"]) == "s3cret"
        earlier = plane.vault.seal("s3cret", context=made["id"])
        assert plane.open_sign_in_vault(tenant.organization_id).unseal(earlier, context=made["id"]) == "s3cret"
