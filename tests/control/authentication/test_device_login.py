"""Logins of the command line: a code that a person approves in their browser, and tokens that replace each other."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.control.browsing import PASSWORD, Browser, find_user_id, join
from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant
from tests.control.test_routes import refused
from tollway.cli import logins
from tollway.control.authentication import sign_in
from tollway.domain import keys
from tollway.domain.audit import HIDDEN
from tollway.settings import OperatorError
from tollway.storage import audit as stored_audit

TOKEN = "/v1/oauth/token"
GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@pytest.fixture
def tenant(control: Running, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, request.node.name)


@pytest.fixture
def admin(control: Running, tenant: TenantSetup) -> httpx2.Client:
    return control.client(tenant.admin_key)


@pytest.fixture
def email() -> str:
    return f"{secrets.token_hex(8)}@example.com"


@pytest.fixture(autouse=True)
def many_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in, "ADDRESS_ATTEMPTS_MAX", 1_000_000)


def begin(control: Running) -> dict[str, Any]:
    made: dict[str, Any] = answered(control.client(None).post("/v1/oauth/device_authorization", data={"client_id": "tollway-cli"}))
    return made


def poll(control: Running, begun: dict[str, Any]) -> httpx2.Response:
    return control.client(None).post(TOKEN, data={"grant_type": GRANT, "device_code": begun["device_code"], "client_id": "tollway-cli"})


def refresh(control: Running, token: str) -> httpx2.Response:
    return control.client(None).post(TOKEN, data={"grant_type": "refresh_token", "refresh_token": token})


def decide(browser: Browser, begun: dict[str, Any], decision: str = "approve") -> None:
    browser.open(begun["verification_uri_complete"])
    browser.send("/device")
    browser.send("/device/decision", decision=decision)


def log_in(control: Running, browser: Browser) -> dict[str, Any]:
    begun = begin(control)
    decide(browser, begun)
    tokens: dict[str, Any] = answered(poll(control, begun))
    return tokens


def denied(answer: httpx2.Response, error: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (400, error), answer.text


@pytest.mark.parametrize("path", ["/v1/oauth/device_authorization", "/v1/oauth/revoke", TOKEN])
@pytest.mark.parametrize(("body", "media_type", "status"), [(b"x", "text/plain", 415), (b"[1", "application/json", 400)])
def test_body_that_cannot_be_read_is_refused_in_the_shape_of_rfc_6749(
    control: Running, path: str, body: bytes, media_type: str, status: int
) -> None:
    answer = control.client(None).post(path, content=body, headers={"content-type": media_type})
    assert (answer.status_code, answer.json()["error"]) == (status, "invalid_request"), answer.text


class TestLogin:
    def test_person_approves_a_code_and_the_device_acts_as_them(
        self, control: Running, tenant: TenantSetup, admin: httpx2.Client, email: str
    ) -> None:
        browser = join(control, admin, email, "owner")
        begun = begin(control)
        assert begun["verification_uri"] == f"{control.url}/device" and (begun["expires_in"], begun["interval"]) == (600, 5)
        denied(poll(control, begun), "authorization_pending")
        decide(browser, begun)
        assert "logged in as you" in browser.page.text
        tokens = answered(poll(control, begun))
        client = control.client(tokens["access_token"])
        me = answered(client.get("/v1/me"))
        assert (me["organization_id"], me["user"]["email"]) == (tenant.organization_id, email)
        assert me["roles"] == [{"name": "owner", "project_id": None}]
        key = answered(client.post(f"/v1/organization/projects/{tenant.project_id}/api_keys", json={"name": "mine"}))
        assert key["value"]
        denied(poll(control, begun), "invalid_grant")  # a code is redeemed once
        with control.plane.database.platform(write=False) as tx:
            made = [each for each in stored_audit.iterate_records(tx, tenant.organization_id) if each.event == "api_key.created"][-1]
        assert (made.actor.kind, made.actor.id) == ("user", me["user"]["id"])

    def test_key_that_is_made_does_not_end_with_the_login(self, control: Running, admin: httpx2.Client, email: str) -> None:
        tokens = log_in(control, join(control, admin, email, "owner"))
        client = control.client(tokens["access_token"])
        key = answered(client.post("/v1/organization/admin_api_keys", json={"name": "x", "role": "viewer"}))
        assert key.get("expires_at") is None
        answered(control.client(None).post("/v1/oauth/revoke", data={"token": tokens["refresh_token"]}))
        refused(client.get("/v1/me"), 401, "invalid_api_key")
        answered(control.client(key["value"]).get("/v1/me"))

    def test_invitation_of_a_person_outlives_their_session_and_ends_with_them(
        self, control: Running, admin: httpx2.Client, email: str
    ) -> None:
        inviter = control.client(log_in(control, join(control, admin, email, "owner"))["access_token"])
        later, never = f"later{email}", f"never{email}"
        join(control, inviter, later)
        answered(inviter.post("/v1/organization/invites", json={"email": never, "role": "reader"}))
        answered(admin.delete(f"/v1/organization/users/{find_user_id(admin, email)}"))
        assert Browser(control).open(f"/join?token={find_token(control, never)}").status_code == 401

    def test_denied_and_expired_logins_get_nothing(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        begun = begin(control)
        decide(browser, begun, "deny")
        denied(poll(control, begun), "access_denied")
        begun = begin(control)
        with control.clock.set_to(control.plane.now() + 600_000_000):
            denied(poll(control, begun), "expired_token")

    def test_50_device_that_asks_too_often_is_slowed_down(self, control: Running) -> None:
        with control.clock.set_to(control.plane.now()):
            begun = begin(control)
            denied(poll(control, begun), "authorization_pending")
            denied(poll(control, begun), "slow_down")
            control.clock.stop_at(control.plane.now() + 9_000_000)
            denied(poll(control, begun), "slow_down")
            control.clock.stop_at(control.plane.now() + 15_000_000)
            denied(poll(control, begun), "authorization_pending")

    @pytest.mark.parametrize("is_reset", [True, False])
    def test_50_approved_login_ends_with_a_reset_and_with_another_password(
        self, control: Running, admin: httpx2.Client, email: str, is_reset: bool
    ) -> None:
        browser, begun = join(control, admin, email), begin(control)
        decide(browser, begun)
        if is_reset:
            answered(admin.delete(f"/v1/organization/users/{find_user_id(admin, email)}/credentials"))
        else:
            browser.open("/account")
            browser.send("/account/password", password="another long password")
        denied(poll(control, begun), "invalid_grant")

    @pytest.mark.parametrize("fields", [{}, {"client_id": "other"}])
    def test_other_client_is_refused(self, control: Running, fields: dict[str, str]) -> None:
        answer = control.client(None).post("/v1/oauth/device_authorization", data=fields or {"x": "y"})
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")

    def test_50_codes_of_others_cannot_be_guessed(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        with control.clock.set_to(control.plane.now()):
            for _ in range(sign_in.CODE_ATTEMPTS_MAX):
                browser.open("/device")
                browser.send("/device", 400, user_code="BBBB-BBBB")
            browser.open("/device")
            browser.send("/device", 429, user_code=begin(control)["user_code"])

    def test_50_right_code_of_ones_own_does_not_buy_more_guesses(self, control: Running, admin: httpx2.Client, email: str) -> None:
        """At the form for the code, and at the decision, to which a code can be sent without the form."""
        browser, own = join(control, admin, email), begin(control)
        with control.clock.set_to(control.plane.now()):
            for _ in range(sign_in.CODE_ATTEMPTS_MAX - 1):
                browser.open(own["verification_uri_complete"])
                browser.send("/device")
                browser.send("/device/decision", 400, user_code="BBBB-BBBB", decision="approve")
            decide(browser, own)
            browser.open("/device")
            browser.send("/device", 400, user_code="BBBB-BBBB")
            browser.open("/device")
            browser.send("/device", 429, user_code=begin(control)["user_code"])

    def test_50_code_in_a_link_approves_nothing_by_itself(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser, begun = join(control, admin, email), begin(control)
        browser.open(begun["verification_uri_complete"])
        assert begun["user_code"] in browser.page.text
        denied(poll(control, begun), "authorization_pending")

    def test_page_asks_whoever_is_not_signed_in_to_sign_in_first(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        browser, begun = Browser(control), begin(control)
        browser.open(begun["verification_uri_complete"])
        browser.send("/sign-in", email=email, password=PASSWORD)
        assert begun["user_code"] in browser.page.text and email in browser.page.text


class TestTokens:
    def test_50_refresh_token_is_replaced_and_the_one_before_ends_the_login(
        self, control: Running, admin: httpx2.Client, email: str
    ) -> None:
        first = log_in(control, join(control, admin, email))
        second = answered(refresh(control, first["refresh_token"]))
        third = answered(refresh(control, second["refresh_token"]))
        refused(control.client(first["access_token"]).get("/v1/me"), 401, "invalid_api_key")
        answered(control.client(third["access_token"]).get("/v1/me"))
        denied(refresh(control, first["refresh_token"]), "invalid_grant")  # a copy, two refreshes old
        denied(refresh(control, third["refresh_token"]), "invalid_grant")
        refused(control.client(third["access_token"]).get("/v1/me"), 401, "invalid_api_key")
        assert any(line["event"] == "refresh_token_reused" for line in control.lines)

    def test_access_token_ends_after_ten_minutes_and_the_login_without_use(
        self, control: Running, admin: httpx2.Client, email: str
    ) -> None:
        tokens = log_in(control, join(control, admin, email))
        now = control.plane.now()
        with control.clock.set_to(now + 600_000_000):
            refused(control.client(tokens["access_token"]).get("/v1/me"), 401, "invalid_api_key")
            tokens = answered(refresh(control, tokens["refresh_token"]))
        with control.clock.set_to(now + 8 * 86_400_000_000):
            denied(refresh(control, tokens["refresh_token"]), "invalid_grant")

    def test_login_is_listed_and_ends_with_its_person(self, control: Running, admin: httpx2.Client, email: str) -> None:
        tokens = log_in(control, join(control, admin, email))
        user_id = find_user_id(admin, email)
        kinds = [each["kind"] for each in answered(admin.get(f"/v1/organization/users/{user_id}/sessions"))["data"]]
        assert sorted(kinds) == ["browser", "command_line"]
        answered(admin.delete(f"/v1/organization/users/{user_id}"))
        refused(control.client(tokens["access_token"]).get("/v1/me"), 401, "invalid_api_key")
        denied(refresh(control, tokens["refresh_token"]), "invalid_grant")

    def test_token_is_of_one_organization_and_no_key_of_operators_or_gateways(
        self, control: Running, admin: httpx2.Client, email: str
    ) -> None:
        tokens = log_in(control, join(control, admin, email, "owner"))
        other = make_tenant(control, "other")
        named = control.client(tokens["access_token"], **{"openai-organization": other.organization_id})
        refused(named.get("/v1/organization/users"), 404, "not_found")
        refused(control.client(tokens["access_token"]).get("/v1/platform/models"), 403, "insufficient_scope")
        refused(control.link(tokens["access_token"]).get("/v1/link/snapshot"), 403, "insufficient_scope")
        refused(control.client(tokens["refresh_token"]).get("/v1/me"), 401, "invalid_api_key")

    @pytest.mark.parametrize("token", ["", "x", "tw_user_" + "a" * 57, "tw_refresh_" + "a" * 57])
    def test_what_is_no_token_is_revoked_without_a_word(self, control: Running, token: str) -> None:
        assert answered(control.client(None).post("/v1/oauth/revoke", data={"token": token, "x": "y"})) == {}
        denied(refresh(control, token), "invalid_grant")

    def test_secrets_are_in_no_log_line(self, control: Running, admin: httpx2.Client, email: str) -> None:
        tokens = log_in(control, join(control, admin, email))
        answered(control.client(tokens["access_token"]).get("/v1/me"))
        everything = str(control.lines)
        assert tokens["access_token"] not in everything and tokens["refresh_token"] not in everything


def tollway(home: Path, control: Running, *words: str) -> subprocess.Popen[str]:
    """Start a command as a person at a machine of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLWAY")}
    environment = {**kept, "XDG_CONFIG_HOME": str(home), "PYTHONPATH": "src"}
    command = [sys.executable, "-m", "tollway", *words, "--control-url", control.url, "--data-dir", str(home / "none")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_commands_act_as_the_person_who_logged_in(control: Running, admin: httpx2.Client, email: str, tmp_path: Path) -> None:
    """`tollway login`, approved in the browser; a command with a token that has ended; `tollway logout`."""
    browser = join(control, admin, email, "owner")
    process = tollway(tmp_path, control, "login")
    assert process.stdout is not None
    address = process.stdout.readline().split()[1]
    decide(browser, {"verification_uri_complete": address})
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "logged in" in errors
    kept = tmp_path / "tollway" / "logins.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    stored = json.loads(kept.read_text())
    stored[control.url]["expires_at"] = time.time()
    kept.write_text(json.dumps(stored))
    shown, _ = tollway(tmp_path, control, "whoami").communicate(timeout=60)
    assert email in shown and "owner in the organization" in shown
    assert json.loads(kept.read_text())[control.url]["refresh_token"] != stored[control.url]["refresh_token"]
    gone, _ = tollway(tmp_path, control, "logout").communicate(timeout=60)
    assert "logged out" in gone and json.loads(kept.read_text()) == {}
    again = tollway(tmp_path, control, "whoami")
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 2 and "no key given" in errors
    user_id = find_user_id(admin, email)
    assert [each["kind"] for each in answered(admin.get(f"/v1/organization/users/{user_id}/sessions"))["data"]] == ["browser"]
    assert re.search(r"tw_(user|refresh)_", str(control.lines)) is None


def test_records_of_a_login_do_not_show_what_its_refresh_tokens_have_in_common(
    control: Running, tenant: TenantSetup, admin: httpx2.Client, email: str
) -> None:
    tokens = log_in(control, join(control, admin, email))
    family = keys.find_family(tokens["refresh_token"])
    with control.plane.database.platform(write=False) as tx:
        records = list(stored_audit.iterate_records(tx, tenant.organization_id))
    changes = [change for each in records for change in json.loads(each.changes)]
    begun = [change["after"] for change in changes if change["kind"] == "session" and change["after"].get("kind") == "command_line"]
    assert [each["refresh_id"] for each in begun] == [HIDDEN]
    assert family is not None and family not in str(records)


@pytest.mark.parametrize(
    ("status", "body", "is_kept"),
    [
        (400, '{"error": "invalid_grant"}', False),
        (408, "timed out", True),
        (429, '{"error": {"message": "Too many requests."}}', True),
        (404, "<html>", True),
        (200, "<html>", True),
        (503, "{}", True),
    ],
)
def test_only_a_login_that_has_ended_is_forgotten(
    status: int, body: str, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://control.example.com"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(logins, "post_form", lambda *_: httpx2.Response(status, text=body))
    logins.store_login(url, logins.Login("tw_user_x", "tw_refresh_x", expires_at=0.0))
    with pytest.raises(OperatorError, match="has ended" if not is_kept else url):
        logins.find_access_token(url)
    assert logins.find_login_url() == (url if is_kept else None)


def test_person_joins_signs_in_and_logs_in_on_each_database(fresh_control: Running, email: str) -> None:
    admin = fresh_control.client(make_tenant(fresh_control, "each").admin_key)
    join(fresh_control, admin, email, "owner").add_app()
    user_id = find_user_id(admin, email)
    answered(admin.delete(f"/v1/organization/users/{user_id}/credentials"))
    browser = Browser(fresh_control)
    browser.open(answered(admin.post(f"/v1/organization/users/{user_id}/sign_in_links"))["url"])
    browser.send("/link")
    browser.send("/account/password", password=PASSWORD)
    Browser(fresh_control).sign_in(email, "wrong password", status=401)
    Browser(fresh_control).sign_in(email)
    tokens = log_in(fresh_control, browser)
    tokens = answered(refresh(fresh_control, tokens["refresh_token"]))
    inviter = fresh_control.client(tokens["access_token"])
    join(fresh_control, inviter, f"next{email}")
    answered(admin.delete(f"/v1/organization/users/{user_id}"))
    denied(refresh(fresh_control, tokens["refresh_token"]), "invalid_grant")
