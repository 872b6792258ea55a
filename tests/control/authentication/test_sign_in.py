"""People who sign in with a password, an authenticator app, a link or an invitation, and what their sessions may do."""

import re
import secrets
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.control.browsing import PASSWORD, Browser, find_user_id, join, show_code
from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant, running, wait_until
from tests.control.test_routes import refused
from tests.storage.databases import SqliteTemplate
from tollway.control.authentication import sign_in
from tollway.control.identity import access
from tollway.control.identity.mail import MailDirectory
from tollway.control.identity.sessions import Begun
from tollway.domain.sessions import LIFETIMES, SESSIONS_MAX, SessionKind
from tollway.storage import audit as stored_audit

USERS = "/v1/organization/users"


@pytest.fixture
def tenant(control: Running, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, request.node.name)


@pytest.fixture
def admin(control: Running, tenant: TenantSetup) -> httpx2.Client:
    return control.client(tenant.admin_key)


@pytest.fixture
def email() -> str:
    """An address that no other test has."""
    return f"{secrets.token_hex(8)}@example.com"


@pytest.fixture(autouse=True)
def many_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests, which all come from one address, try more often than one address may."""
    monkeypatch.setattr(sign_in, "ADDRESS_ATTEMPTS_MAX", 1_000_000)


@pytest.fixture(scope="module")
def public_control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A control plane that is reached over TLS."""
    directory = tmp_path_factory.mktemp("public")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive", public_url="https://control.example.com") as started:
        yield started


def make_link(admin: httpx2.Client, user_id: str) -> str:
    url: str = answered(admin.post(f"{USERS}/{user_id}/sign_in_links"))["url"]
    return url


def list_events(control: Running, organization_id: str) -> list[tuple[str, str, str]]:
    """Event, kind of actor and actor of each record of an organization."""
    with control.plane.database.platform(write=False) as tx:
        return [(each.event, each.actor.kind, each.actor.id) for each in stored_audit.iterate_records(tx, organization_id)]


class TestPasswords:
    def test_person_joins_and_signs_in_with_a_password(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        browser = Browser(control)
        browser.sign_in(email.upper())
        assert "Your account" in browser.page.text and email in browser.page.text

    def test_refusal_is_the_same_whatever_is_wrong(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        browser, pages = Browser(control), []
        for wrong in (
            {"email": email, "password": "wrong password"},
            {"email": f"no{email}"},
            {"email": email, "organization": "org_" + "0" * 32},
        ):
            page = browser.sign_in(**{"email": "", **wrong}, status=401)
            pages.append(page.text.replace(email, "").replace("no", "").replace("org_" + "0" * 32, ""))
        assert pages[0] == pages[1] == pages[2]

    def test_password_is_hashed_once_whether_the_address_is_known_or_not(
        self, control: Running, admin: httpx2.Client, email: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        join(control, admin, email)
        checked: list[str] = []
        hasher = control.plane.passwords._hasher
        verify = type(hasher).verify
        monkeypatch.setattr(type(hasher), "verify", lambda self, stored, given: checked.append(stored[:28]) or verify(self, stored, given))
        browser = Browser(control)
        browser.sign_in(email, "wrong password", status=401)
        browser.sign_in(f"no{email}", status=401)
        assert len(checked) == 2 and checked[0] == checked[1]
        assert checked[0].startswith("$argon2id$")

    def test_attempts_at_an_account_are_bounded_from_any_address(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        browser = Browser(control)
        with control.clock.set_to(control.plane.now()):
            for _ in range(sign_in.ACCOUNT_ATTEMPTS_MAX):
                browser.sign_in(email, "wrong password", status=401)
            page = browser.sign_in(email, status=429)
            assert page.headers["retry-after"] and "15 minutes" in page.text
            control.clock.stop_at(control.plane.now() + sign_in.WINDOW_US)
            browser.sign_in(email)

    def test_attempts_from_an_address_are_bounded_at_any_account(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sign_in, "ADDRESS_ATTEMPTS_MAX", 1)
        browser = Browser(control)
        with control.clock.set_to(control.plane.now() + 10 * sign_in.WINDOW_US):
            browser.sign_in("one@example.com", status=401)
            browser.sign_in("two@example.com", status=429)

    def test_person_in_two_organizations_names_one(self, control: Running, admin: httpx2.Client, tenant: TenantSetup, email: str) -> None:
        other = make_tenant(control, "another")
        join(control, admin, email)
        join(control, control.client(other.admin_key), email)
        browser = Browser(control)
        browser.sign_in(email, status=401)
        browser.sign_in(email, organization=other.organization_id)
        assert other.organization_id in browser.page.text and tenant.organization_id not in browser.page.text

    def test_person_of_another_organization_with_the_same_address_makes_no_attempt_forgotten(
        self, control: Running, admin: httpx2.Client, tenant: TenantSetup, email: str
    ) -> None:
        other = make_tenant(control, "elsewhere")
        join(control, admin, email)
        join(control, control.client(other.admin_key), email)
        browser = Browser(control)
        with control.clock.set_to(control.plane.now()):
            for _ in range(sign_in.ACCOUNT_ATTEMPTS_MAX):
                browser.sign_in(email, "wrong password", organization=tenant.organization_id, status=401)
            browser.sign_in(email, organization=other.organization_id)
            Browser(control).sign_in(email, organization=tenant.organization_id, status=429)

    def test_password_that_is_reset_while_it_is_verified_begins_no_session(
        self, control: Running, admin: httpx2.Client, email: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        join(control, admin, email)
        user_id = find_user_id(admin, email)
        begin = sign_in.begin

        def begin_late(*arguments: Any, **named: Any) -> Begun:
            answered(admin.delete(f"{USERS}/{user_id}/credentials"))
            return begin(*arguments, **named)

        monkeypatch.setattr(sign_in, "begin", begin_late)
        Browser(control).sign_in(email, status=401)
        assert answered(admin.get(f"{USERS}/{user_id}/sessions"))["data"] == []

    def test_password_is_changed_with_the_one_before_and_ends_other_sessions(
        self, control: Running, admin: httpx2.Client, email: str
    ) -> None:
        other = join(control, admin, email)
        browser = Browser(control)
        browser.sign_in(email)
        before = browser.secret
        browser.send("/account/password", 401, current="wrong password", password="another long password")
        browser.send("/account/password", 400, current=PASSWORD, password="short")
        browser.send("/account/password", current=PASSWORD, password="another long password")
        assert browser.secret != before and "Your account" in browser.page.text
        assert "Sign in" in other.open("/account").text
        Browser(control).sign_in(email, status=401)
        Browser(control).sign_in(email, "another long password")

    @pytest.mark.parametrize("password", ["", "short", "x" * 200])
    def test_invitation_is_not_used_up_by_a_password_that_is_refused(
        self, control: Running, admin: httpx2.Client, email: str, password: str
    ) -> None:
        answered(admin.post("/v1/organization/invites", json={"email": email, "role": "reader"}))
        browser = Browser(control)
        browser.open(f"/join?token={find_token(control, email)}")
        browser.send("/join", 400, name="Ada", password=password)
        browser.send("/join", name="Ada", password=PASSWORD)
        assert "was accepted" in browser.open(f"/join?token={find_token(control, email)}").text


class TestAuthenticatorApps:
    def test_code_is_asked_for_after_the_password_and_counts_once(self, control: Running, admin: httpx2.Client, email: str) -> None:
        with control.clock.set_to(control.plane.now()):
            secret = join(control, admin, email).add_app()
            browser = Browser(control)
            browser.sign_in(email)
            assert "Enter the code" in browser.page.text and "tollway_session" not in browser.client.cookies
            browser.send("/sign-in/code", 401, code=show_code(control, secret))  # it was used to set the app up
            browser.send("/sign-in/code", code=show_code(control, secret, steps=1))
            assert "Your account" in browser.page.text
            again = Browser(control)
            again.sign_in(email)
            again.send("/sign-in/code", 401, code=show_code(control, secret, steps=1))

    def test_recovery_code_stands_for_the_app_once(self, control: Running, admin: httpx2.Client, email: str) -> None:
        owner = join(control, admin, email)
        owner.add_app()
        codes = re.findall(r"<li><code>([a-z0-9-]+)</code>", owner.page.text)
        assert len(codes) == 10
        for status in (200, 401):
            browser = Browser(control)
            browser.sign_in(email)
            browser.send("/sign-in/code", status, code=codes[3].upper() if status == 200 else codes[3])
        assert "9 recovery codes" in owner.open("/account").text

    def test_codes_cannot_be_tried_without_end(self, control: Running, admin: httpx2.Client, email: str) -> None:
        with control.clock.set_to(control.plane.now()):
            secret = join(control, admin, email).add_app()
            browser = Browser(control)
            browser.sign_in(email)
            for _ in range(sign_in.CODE_ATTEMPTS_MAX):
                browser.send("/sign-in/code", 401, code="000000")
            browser.send("/sign-in/code", 429, code=show_code(control, secret, steps=1))

    def test_step_between_password_and_code_ends(self, control: Running, admin: httpx2.Client, email: str) -> None:
        with control.clock.set_to(control.plane.now()):
            secret = join(control, admin, email).add_app()
            browser = Browser(control)
            browser.sign_in(email)
            control.clock.stop_at(control.plane.now() + 300_000_000)
            browser.send("/sign-in/code", 401, code=show_code(control, secret))

    def test_code_after_a_password_that_was_changed_meanwhile_is_refused(self, control: Running, admin: httpx2.Client, email: str) -> None:
        with control.clock.set_to(control.plane.now()):
            owner = join(control, admin, email)
            secret = owner.add_app()
            browser = Browser(control)
            browser.sign_in(email)
            owner.open("/account")
            owner.send("/account/password", password="another long password")
            browser.send("/sign-in/code", 401, code=show_code(control, secret, steps=1))

    def test_app_is_removed_by_a_code(self, control: Running, admin: httpx2.Client, email: str) -> None:
        with control.clock.set_to(control.plane.now()):
            browser = join(control, admin, email)
            secret = browser.add_app()
            browser.open("/account")
            browser.send("/account/authenticator/remove", 401, code="000000")
            browser.send("/account/authenticator/remove", code=show_code(control, secret, steps=1))
            assert "The password alone signs you in" in browser.page.text

    def test_app_is_set_up_soon_after_the_sign_in_only(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        with control.clock.set_to(control.plane.now() + 900_000_000):
            assert browser.open("/account/authenticator").status_code == 409


class TestLinks:
    def test_link_signs_in_once_and_lets_a_password_be_set(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        url = make_link(admin, find_user_id(admin, email))
        browser = Browser(control)
        assert email in browser.open(url).text
        browser.open(url)  # looking at it uses nothing up
        browser.send("/link")
        browser.send("/account/password", password="a forgotten password")
        assert Browser(control).open(url).status_code == 401
        Browser(control).sign_in(email, "a forgotten password")

    def test_link_does_not_stand_for_the_authenticator_app(self, control: Running, admin: httpx2.Client, email: str) -> None:
        with control.clock.set_to(control.plane.now()):
            secret = join(control, admin, email).add_app()
            browser = Browser(control)
            browser.open(make_link(admin, find_user_id(admin, email)))
            browser.send("/link")
            assert "Enter the code" in browser.page.text
            browser.send("/sign-in/code", code=show_code(control, secret, steps=1))
            assert "Your account" in browser.page.text

    def test_link_ends_after_a_day_and_with_its_person(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        user_id = find_user_id(admin, email)
        url = make_link(admin, user_id)
        with control.clock.set_to(control.plane.now() + 86_400_000_000):
            assert Browser(control).open(url).status_code == 401
        answered(admin.delete(f"{USERS}/{user_id}"))
        assert Browser(control).open(url).status_code == 401

    def test_110_link_for_somebody_with_more_permissions_is_refused(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email, "owner")
        lesser = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "x", "role": "admin"}))["value"]
        owner_id = find_user_id(admin, email)
        client = control.client(lesser)
        refused(client.post(f"{USERS}/{owner_id}/sign_in_links"), 403, "grant_exceeds_grantor", "role")
        refused(client.delete(f"{USERS}/{owner_id}/credentials"), 403, "grant_exceeds_grantor", "role")
        session_id = answered(admin.get(f"{USERS}/{owner_id}/sessions"))["data"][0]["id"]
        refused(client.delete(f"{USERS}/{owner_id}/sessions/{session_id}"), 403, "grant_exceeds_grantor", "role")

    def test_reset_removes_password_and_app_and_ends_sessions(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        browser.add_app()
        user_id = find_user_id(admin, email)
        answered(admin.delete(f"{USERS}/{user_id}/credentials"))
        assert "Sign in" in browser.open("/account").text
        Browser(control).sign_in(email, status=401)
        again = Browser(control)
        again.open(make_link(admin, user_id))
        again.send("/link")
        assert "You have no password" in again.page.text


class TestSessions:
    def test_session_is_the_same_principal_as_a_key_of_its_person(self, control: Running, admin: httpx2.Client, email: str) -> None:
        """Whatever roles a person holds: the session, and a key of theirs, may do the same."""
        browser = join(control, admin, email, "billing")
        user_id = find_user_id(admin, email)
        key = answered(admin.post("/v1/organization/admin_api_keys", json={"name": "x", "user_id": user_id}))
        for role in ("billing", "developer", "owner", "reader"):
            answered(admin.post(f"{USERS}/{user_id}", json={"role": role}))
            plane = control.plane
            person = access.identify_person(plane.database, plane.peppers, browser.secret, plane.now())
            identified = access.identify(plane.database, plane.peppers, 1, key["value"].encode(), plane.now())
            holder = access.require_tenant(plane.database, identified, None)
            assert (person.grants, person.organization_id, person.is_operator) == (
                holder.grants,
                holder.organization_id,
                holder.is_operator,
            )
            assert person.key_id == user_id

    def test_113_rest_api_takes_no_cookie(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email, "owner")
        refused(browser.client.get(USERS), 401, "invalid_api_key")
        refused(control.client(browser.secret).get(USERS), 401, "invalid_api_key")

    def test_111_session_that_was_there_before_the_sign_in_is_not_the_one_after(
        self, control: Running, admin: httpx2.Client, email: str
    ) -> None:
        """Session fixation: whoever planted a session in a browser does not share the one that begins."""
        planted = join(control, admin, f"eve{email}")
        join(control, admin, email)
        browser = Browser(control)
        browser.client.cookies.set("tollway_session", planted.secret, domain="127.0.0.1")
        browser.open("/sign-in")
        before = planted.secret
        answer = browser.client.post("/sign-in", data={"email": email, "password": PASSWORD}, headers={"origin": control.url})
        assert answer.status_code == 303
        made = re.search(r"tollway_session=(\w+); Path=/; Max-Age=43200; HttpOnly; SameSite=Lax$", answer.headers["set-cookie"])
        assert made is not None and made.group(1) != before
        assert "Sign in" in planted.open("/account").text  # the planted session has ended
        invented = Browser(control)
        invented.client.cookies.set("tollway_session", "x" * 60, domain="127.0.0.1")
        assert "Sign in" in invented.open("/account").text

    def test_112_two_cookies_of_the_name_are_none(self, control: Running, admin: httpx2.Client, email: str) -> None:
        """Cookie tossing: another site of the domain sets a second cookie."""
        browser, eve = join(control, admin, email), join(control, admin, f"eve{email}")
        both = f"tollway_session={eve.secret}; tollway_session={browser.secret}"
        answer = control.client(None, cookie=both).get("/account")
        assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in")

    @pytest.mark.parametrize(
        "headers",
        [
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
            {"sec_fetch_site": "none"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://127.0.0.1.evil.example"},
        ],
    )
    def test_113_form_of_another_site_is_refused(self, control: Running, admin: httpx2.Client, email: str, headers: dict[str, str]) -> None:
        browser = join(control, admin, email)
        token = re.search(r'name="form_token" value="(\w+)"', browser.page.text)
        assert token is not None
        assert browser.post("/sign-out", {"form_token": token.group(1)}, **headers).status_code == 403
        assert browser.post("/sign-in", {"email": email, "password": PASSWORD}, **headers).status_code == 403
        assert "Your account" in browser.open("/account").text

    def test_113_form_without_the_token_of_its_session_is_refused(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser, eve = join(control, admin, email), join(control, admin, f"eve{email}")
        token = re.search(r'name="form_token" value="(\w+)"', eve.page.text)
        assert token is not None
        for fields in ({}, {"form_token": ""}, {"form_token": token.group(1)}):
            assert browser.post("/sign-out", fields).status_code == 403
        bare = browser.client.post("/sign-out", data={})
        assert bare.status_code == 403
        json = browser.client.post("/sign-out", json={}, headers={"origin": control.url})
        assert json.status_code == 415

    @pytest.mark.parametrize(
        "path",
        [
            "https://evil.example/",
            "//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "javascript:alert(1)",
            "/x\r\nset-cookie: a=b",
            "/@evil.example:80",
            "",
        ],
    )
    def test_114_sign_in_leads_to_this_site_only(self, control: Running, admin: httpx2.Client, email: str, path: str) -> None:
        join(control, admin, email)
        answer = control.client(None).post(
            "/sign-in", data={"email": email, "password": PASSWORD, "next": path}, headers={"origin": control.url}
        )
        assert (answer.status_code, answer.headers["location"]) == (303, "/account")

    def test_sign_in_leads_back_to_the_page_that_was_wanted(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        browser = Browser(control)
        browser.open("/account/authenticator")
        browser.send("/sign-in", email=email, password=PASSWORD)
        assert "Set up an authenticator app" in browser.page.text

    def test_session_ends_without_use_and_in_any_case(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        lifetime, now = LIFETIMES[SessionKind.BROWSER], control.plane.now()
        idle_us = lifetime.idle_seconds * 1_000_000
        with control.clock.set_to(now):
            for _ in range(lifetime.seconds // lifetime.idle_seconds + 1):
                control.clock.stop_at(control.plane.now() + idle_us - 60_000_000)
                if control.plane.now() - now < lifetime.seconds * 1_000_000 - 60_000_000:
                    assert "Your account" in browser.open("/account").text
            assert "Sign in" in browser.open("/account").text
        browser.sign_in(email)
        with control.clock.set_to(control.plane.now() + idle_us):
            assert "Sign in" in browser.open("/account").text

    def test_session_is_listed_and_ended_by_its_person(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        other = Browser(control)
        other.sign_in(email)
        action = re.search(r'action="(/account/sessions/\w+/end)"', browser.open("/account").text)
        assert action is not None
        browser.send(action.group(1))
        assert "Sign in" in other.open("/account").text and "Your account" in browser.open("/account").text
        browser.send("/sign-out")
        assert "Sign in" in browser.open("/account").text

    def test_session_is_listed_and_ended_by_an_owner(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        user_id = find_user_id(admin, email)
        (session,) = answered(admin.get(f"{USERS}/{user_id}/sessions"))["data"]
        assert (session["kind"], session["method"], session["address"]) == ("browser", "invite", "127.0.0.1")
        answered(admin.delete(f"{USERS}/{user_id}/sessions/{session['id']}"))
        assert "Sign in" in browser.open("/account").text
        refused(admin.delete(f"{USERS}/{user_id}/sessions/{session['id']}"), 404, "not_found")

    def test_session_of_a_removed_person_ends_with_the_next_request(self, control: Running, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        answered(admin.delete(f"{USERS}/{find_user_id(admin, email)}"))
        assert "Sign in" in browser.open("/account").text
        Browser(control).sign_in(email, status=401)

    def test_sessions_of_an_archived_organization_end(
        self, control: Running, tenant: TenantSetup, admin: httpx2.Client, email: str
    ) -> None:
        browser = join(control, admin, email)
        answered(control.operator().post(f"/v1/platform/organizations/{tenant.organization_id}/archive"))
        assert "Sign in" in browser.open("/account").text
        Browser(control).sign_in(email, status=401)

    def test_oldest_session_ends_above_the_bound(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        user_id = find_user_id(admin, email)
        for _ in range(SESSIONS_MAX):
            browser = Browser(control)
            browser.open(make_link(admin, user_id))
            browser.send("/link")
        found = answered(admin.get(f"{USERS}/{user_id}/sessions"))["data"]
        assert len(found) == SESSIONS_MAX and all(each["method"] == "link" for each in found)


class TestRecords:
    def test_sign_ins_are_in_the_audit_trail_without_secrets(
        self, control: Running, tenant: TenantSetup, admin: httpx2.Client, email: str
    ) -> None:
        browser = join(control, admin, email)
        user_id = find_user_id(admin, email)
        browser.open("/account")
        browser.send("/sign-out")
        browser.sign_in(email, "wrong password", status=401)
        browser.sign_in(email)
        wait_until(lambda: ("login.failed", "user", user_id) in list_events(control, tenant.organization_id))
        events = [each for each in list_events(control, tenant.organization_id) if each[2] == user_id]
        assert {("login.succeeded", "user", user_id), ("logout.succeeded", "user", user_id)} <= set(events)
        logs = answered(admin.get("/v1/organization/audit_logs", params={"event_types": ["login.succeeded"]}))
        assert logs["data"][0]["actor"]["session"]["user"]["id"] == user_id
        everything = str(logs) + str(control.lines)
        assert browser.secret not in everything and PASSWORD not in everything and "argon2id" not in everything

    def test_what_a_person_changes_names_them(self, control: Running, tenant: TenantSetup, admin: httpx2.Client, email: str) -> None:
        browser = join(control, admin, email)
        browser.send("/account/password", password="another long password")
        assert list_events(control, tenant.organization_id)[-1] == ("user.password.changed", "user", find_user_id(admin, email))

    def test_results_are_counted(self, control: Running, admin: httpx2.Client, email: str) -> None:
        join(control, admin, email)
        Browser(control).sign_in(email)
        Browser(control).sign_in(email, "wrong password", status=401)
        wanted = ('tollway_control_sign_ins_total{method="password",result="succeeded"}', 'method="password",result="refused"}')
        wait_until(lambda: all(each in control.node().get("/metrics").text for each in wanted))


class TestAddresses:
    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8081"])
    def test_unknown_host_signs_nobody_in(self, control: Running, host: str) -> None:
        answer = control.client(None, host=host).post("/sign-in", data={"email": "a@b.c"}, headers={"origin": f"http://{host}"})
        assert answer.status_code == 409 and "control.public_url" in answer.text

    def test_cookie_is_bound_to_the_host_where_the_site_has_tls(self, public_control: Running, email: str) -> None:
        admin = public_control.client(make_tenant(public_control, "tls").admin_key)
        answered(admin.post("/v1/organization/invites", json={"email": email, "role": "reader"}))
        client = public_control.client(None, origin="https://control.example.com")
        joining = {"token": find_token(public_control, email), "name": "Ada", "password": PASSWORD}
        made = client.post("/join", data=joining).headers["set-cookie"]
        assert made.startswith("__Host-tollway_session=tw_session_") and made.endswith("; HttpOnly; SameSite=Lax; Secure")
        secret = made.partition("=")[2].partition(";")[0]
        assert public_control.client(None, cookie=f"__Host-tollway_session={secret}").get("/account").status_code == 200
        assert public_control.client(None, cookie=f"tollway_session={secret}").get("/account").status_code == 303

    def test_mail_of_an_invitation_names_the_page(self, public_control: Running, email: str) -> None:
        admin = public_control.client(make_tenant(public_control, "mail").admin_key)
        answered(admin.post("/v1/organization/invites", json={"email": email, "role": "reader"}))
        mail = public_control.plane.mail
        assert isinstance(mail, MailDirectory)
        text = next(each for each in (path.read_text() for path in mail.directory.glob("*.eml")) if email in each)
        assert f"https://control.example.com/join?token={find_token(public_control, email)}" in text

    def test_pages_run_nothing_and_are_not_kept(self, control: Running) -> None:
        page = control.client(None).get("/sign-in")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy and "script" not in policy
        assert page.headers["cache-control"] == "no-store" and page.headers["x-content-type-options"] == "nosniff"
        assert "<script" not in page.text


def test_68_names_are_shown_as_text(control: Running, admin: httpx2.Client, email: str) -> None:
    answered(admin.post("/v1/organization/invites", json={"email": email, "role": "reader"}))
    browser = Browser(control)
    browser.open(f"/join?token={find_token(control, email)}")
    browser.send("/join", name="<script>alert(1)</script>", password=PASSWORD)
    assert "&lt;script&gt;" in browser.page.text and "<script" not in browser.page.text
