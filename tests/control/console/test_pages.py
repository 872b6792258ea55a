"""Pages of the console: who sees which, what a form does, and what is refused."""

import csv
import io
import re
import runpy
from decimal import Decimal
from pathlib import Path

import httpx2
from fastapi.routing import APIRoute

from tests.control.browsing import Browser, find_user_id
from tests.control.console.pages import (
    INVOICE_PAGES,
    PAGES_ELSEWHERE,
    PLATFORM_PAGES,
    TENANT_FILES,
    TENANT_PAGES,
    fill_in,
    fill_in_platform,
    root_of,
)
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tollway.control.console.rendering import HEADERS
from tollway.control.console.routers import ROUTERS


def test_console_leads_whoever_signed_in_to_their_organization(owner: Browser, used: TenantSetup) -> None:
    page = owner.open("/console")
    assert page.status_code == 200 and page.url.path == root_of(used)
    assert "Spend this month" in page.text and "owner@example.com" in page.text


def test_person_creates_rotates_and_revokes_a_key_with_forms_alone(owner: Browser, used: TenantSetup) -> None:
    path = f"{root_of(used)}/projects/{used.project_id}"
    owner.open(path)
    page = owner.send(f"{path}/keys", name="from the console", type="live", lifetime_days="30")
    secret = re.search(r'<code id="secret" data-copy>(tw_live_\w+)</code>', page.text)
    assert secret is not None
    key = re.search(r"/keys/(key_[0-9a-f]{32})/revoke", page.text)
    assert key is not None
    one = f"{path}/keys/{key.group(1)}"
    assert secret.group(1) not in owner.open(one).text
    rotated = owner.send(f"{one}/rotate", grace_seconds="3600")
    assert "safe to retire" in rotated.text or "still in use" in rotated.text
    refused = owner.send(f"{one}/revoke", 400, confirmation="something else")
    assert "Nothing was changed" in refused.text
    done = owner.send(f"{one}/revoke", confirmation="from the console")
    assert done.url.path == path and "was revoked" in done.text
    assert owner.open(one).status_code == 404


def test_every_page_is_in_the_table_of_the_walk() -> None:
    listed = {f"/console/organizations/{{organization_id}}{each}" for each in (*TENANT_PAGES, *INVOICE_PAGES, *TENANT_FILES)} | {
        f"/console/platform{each}" for each in PLATFORM_PAGES
    }
    others = {"/console", "/console/{path:path}", "/console/assets/{name}", *PAGES_ELSEWHERE}
    shown = {route.path for each in ROUTERS for route in each.routes if isinstance(route, APIRoute) and route.methods == {"GET"}}
    assert shown == listed | others


def test_167_every_form_of_another_site_or_without_a_token_is_refused_and_no_page_can_be_framed(
    control: Running, owner: Browser, used: TenantSetup
) -> None:
    own = owner.open(root_of(used))
    assert "frame-ancestors 'none'" in own.headers["content-security-policy"]
    assert own.headers["content-security-policy"] == HEADERS["content-security-policy"] and own.headers["cache-control"] == "no-store"
    tried = 0
    for route in (route for each in ROUTERS for route in each.routes if isinstance(route, APIRoute)):
        path = re.sub(r"\{\w+(:path)?\}", "x", route.path.replace("{organization_id}", used.organization_id))
        with httpx2.Client(base_url=control.url) as nobody:
            answer = nobody.request("POST" if "POST" in route.methods else "GET", path)
        if "POST" in route.methods:
            assert answer.status_code == 403
            assert owner.post(path, {}, origin="https://evil.example").status_code == 403, path
            assert owner.post(path, {}, sec_fetch_site="cross-site").status_code == 403, path
            if not path.startswith("/console/platform"):
                assert owner.post(path, {"form_token": "0" * 64}).status_code == 403, path
            tried += 1
        elif route.path != "/console/assets/{name}":
            assert (answer.status_code, answer.headers["location"][:9]) == (303, "/sign-in?"), path
    assert tried >= 9


def test_52_pages_of_another_organization_answer_like_pages_that_never_were(
    control: Running, owner: Browser, used: TenantSetup, bob: TenantSetup
) -> None:
    for path in (each.replace("{format}", "pdf") for each in (*TENANT_PAGES, *INVOICE_PAGES, *TENANT_FILES)):
        theirs = owner.open(fill_in(path, bob))
        never = owner.open(re.sub(r"[0-9a-f]{32}", "0" * 32, fill_in(path, bob)))
        assert theirs.status_code == never.status_code == 404 and theirs.text == never.text, path
    own_root = root_of(used)
    for path in (
        each.replace("{format}", "pdf") for each in (*TENANT_PAGES, *INVOICE_PAGES, *TENANT_FILES) if "{" in each
    ):  # their ids below one's own root
        foreign = fill_in(path, bob).replace(root_of(bob), own_root)
        theirs, never = owner.open(foreign), owner.open(re.sub(r"(proj|key)_[0-9a-f]{32}", r"\1_" + "0" * 32, foreign))
        assert theirs.status_code == never.status_code == 404 and theirs.text == never.text, path
    assert owner.open("/console/platform").status_code == 404


def test_reader_is_shown_no_form_that_the_api_would_refuse(member: Browser, used: TenantSetup) -> None:
    path = root_of(used) + "/projects"
    assert "New project" not in member.open(path).text
    refused = member.post(path, {"name": "mine", "form_token": find_token(member)})
    assert refused.status_code == 403 and "projects.create" in refused.text


def test_change_leaves_the_record_that_the_api_would_leave(control: Running, owner: Browser, used: TenantSetup) -> None:
    path = fill_in("/projects/{project_id}", used)
    owner.open(path)
    owner.send(f"{path}/name", name="renamed on a page")
    log = control.client(used.admin_key).get("/v1/organization/audit_logs", params={"event_types": ["project.updated"]}).json()
    record = log["data"][0]
    assert record["project"]["id"] == used.project_id and record["actor"]["type"] == "session"


def test_operator_drains_a_deployment_and_takes_it_back_and_an_auditor_cannot(
    control: Running, operator: Browser, auditor: Browser, used: TenantSetup
) -> None:
    (deployment,) = answered(control.operator().get("/v1/platform/deployments"))["data"]
    action = f"/console/platform/deployments/{deployment['id']}/weight"
    assert action not in auditor.open("/console/platform/fleet").text
    token = find_token(auditor)
    assert auditor.post(action, {"weight": "0", "form_token": token}).status_code == 403
    operator.open("/console/platform/fleet")
    assert "drained" in operator.send(action, weight="0").text
    assert "drained" not in operator.send(action, weight="1").text
    bad = operator.send("/console/platform/deployments", 400, model="echo", base_url="ftp://x", engine="vllm", upstream_model="x")
    assert "base_url" in bad.text


def test_operator_drafts_prices_sees_who_pays_more_and_publishes_them(
    control: Running, operator: Browser, auditor: Browser, used: TenantSetup
) -> None:
    book_path = fill_in_platform("/prices/books/{book_id}", control, used)
    operator.open(book_path)
    path = operator.send(f"{book_path}/drafts", copied="yes").url.path
    operator.send(f"{path}/lines", 400, model="echo", tier="standard", input="dear", output="4")
    operator.open(path)
    operator.send(f"{path}/lines", model="echo", tier="standard", input="2", output="4")
    operator.send(f"{path}/lines", model="other", tier="standard", input="2", output="4")
    first = re.search(r'name="model" value="(echo|other)"', operator.page.text)
    assert first is not None
    operator.post(f"{path}/lines/remove", {"model": "other", "tier": "standard", "form_token": find_token(operator)})
    assert ">other<" not in operator.page.text
    shown = operator.open(f"{path}?preview=true&everybody=true").text
    assert used.organization_id in shown or "Under the draft" in shown
    assert "Under the draft" in auditor.open(f"{path}?preview=true").text and "Publish the prices" not in auditor.page.text
    operator.open(path)
    action = f"{path}/publish"
    accepted = {"accept_warnings": "true"} if 'name="accept_warnings"' in operator.page.text else {}
    assert "Nothing was changed" in operator.send(action, 400, confirmation="x", **accepted).text
    (book,) = answered(control.operator().get("/v1/platform/price_books"))["data"]
    published = operator.send(action, confirmation=book["name"], **accepted)
    assert (published.url.path == path and "are published" in published.text) or "not every gateway" in published.text
    assert action not in published.text
    other = operator.open(book_path) and operator.send(f"{book_path}/drafts", copied="").url.path
    assert operator.send(f"{other}/discard").url.path == "/console/platform/prices"


def test_operator_sees_what_keeps_a_period_from_being_closed(control: Running, operator: Browser, used: TenantSetup) -> None:
    path = fill_in_platform("/periods/{period_id}", control, used)
    assert "It has not ended yet." in operator.open(path).text and "<summary>Close" not in operator.page.text
    assert operator.open(re.sub(r"[0-9a-f]{32}", "0" * 32, path)).status_code == 404
    assert path in operator.open("/console/platform/periods").text


def test_operator_reads_who_changed_what_with_each_field_before_and_after(operator: Browser, used: TenantSetup) -> None:
    page = operator.open("/console/platform/audit?event_types=deployment.updated&actor_ids=&resource_ids=")
    assert "deployment.updated" in page.text and '<th scope="row">weight</th>' in page.text
    assert operator.open("/console/platform/audit?limit=0").status_code == 400


def test_operator_signs_in_with_a_key_and_is_out_when_it_is_revoked(control: Running, used: TenantSetup) -> None:
    made = answered(control.operator().post("/v1/platform/keys", json={"name": "k", "role": "auditor"}))
    browser = Browser(control)
    browser.open("/sign-in/operators/key")
    for wrong in ("tw_platform_" + "0" * 40, used.admin_key, used.secret, "x"):
        assert "not a key of operators" in browser.send("/sign-in/operators/key", 401, key=wrong).text
    page = browser.send("/sign-in/operators/key", key=made["value"])
    assert page.url.path == "/console/platform" and "New organization" not in page.text
    assert "audit" in browser.open("/account").text and "Signed out" in browser.send("/sign-out").text
    browser.open("/sign-in/operators/key")
    browser.send("/sign-in/operators/key", key=made["value"])
    answered(control.operator().delete(f"/v1/platform/keys/{made['id']}"))
    assert browser.open("/console/platform").url.path == "/sign-in"


def test_operator_opens_an_organization_as_who_acts_for_it(operator: Browser, used: TenantSetup, bob: TenantSetup) -> None:
    for tenant in (used, bob):
        assert operator.open(root_of(tenant)).status_code == 200
    assert operator.open(re.sub(r"[0-9a-f]{32}", "0" * 32, root_of(bob))).status_code == 404


def test_169_cookies_of_the_look_change_nothing_else_and_no_address_leads_elsewhere(owner: Browser, used: TenantSetup) -> None:
    owner.open(root_of(used))
    page = owner.send("/console/look", language="de", theme="dark", back=root_of(used))
    assert 'lang="de" data-theme="dark"' in page.text and "Ausgaben in diesem Monat" in page.text
    owner.client.cookies.set("tollway_look", "xx.<script>")
    assert '<html lang="en" data-theme="system">' in owner.open(root_of(used)).text
    away = owner.post("/console/look", {"language": "de", "theme": "dark", "back": "//evil.example", "form_token": find_token(owner)})
    assert away.url.host == "127.0.0.1"


def find_token(browser: Browser) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', browser.page.text)
    assert found is not None
    return found.group(1)


def test_every_text_has_its_translation() -> None:
    messages = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "messages.py"))
    wanted = {each.id for each in messages["collect"]() if each.id}
    for path in messages["LANGUAGES"].glob("*.po"):
        catalogue = messages["read_catalogue"](path)
        texts = {each.id: each.string for each in catalogue if each.id}
        assert set(texts) == wanted, "run `make messages`"
        assert [each for each, text in texts.items() if not text or not all(text)] == []


def test_usage_explorer_keeps_its_filters_in_the_address_and_compares_with_the_period_before(owner: Browser, used: TenantSetup) -> None:
    path = root_of(used) + "/usage"
    page = owner.open(f"{path}?metric=requests&group=model&bucket=hour&project={used.project_id}&model=echo&compare=1")
    assert "Period before" in page.text and "<td>echo</td>" in page.text and f'value="{used.project_id}" selected' in page.text
    assert "usage.csv?metric=requests&amp;group=model&amp;bucket=hour" in page.text
    refused = owner.open(f"{path}?start=2026-02-30")
    assert refused.status_code == 400 and "A day is a date" in refused.text
    too_long = owner.open(f"{path}?start=2024-01-01&end=2026-01-01")
    assert too_long.status_code == 400 and "at most 168 buckets" in too_long.text
    assert owner.open(f"{path}?metric=nothing").status_code == 400


def test_168_file_for_a_spreadsheet_runs_no_name_that_somebody_chose(control: Running, owner: Browser, used: TenantSetup) -> None:
    name = answered(control.client(used.admin_key).get(f"/v1/organization/projects/{used.project_id}"))["name"]
    set_name(control, used, '=HYPERLINK("http://evil.example","x")')
    file = owner.open(root_of(used) + "/usage.csv?metric=spend&group=project")
    set_name(control, used, name)
    assert file.headers["content-type"].startswith("text/csv") and "attachment" in file.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(file.text)))
    assert {row["project"] for row in rows} == {'\'=HYPERLINK("http://evil.example","x")'}
    assert {row["project_id"] for row in rows} == {used.project_id} and {row["unit"] for row in rows} == {"EUR"}
    assert sum(Decimal(row["value"]) for row in rows) > 0


def set_name(control: Running, tenant: TenantSetup, name: str) -> None:
    answered(control.client(tenant.admin_key).post(f"/v1/organization/projects/{tenant.project_id}", json={"name": name}))


def test_requests_are_found_by_outcome_and_one_shows_its_times_and_price(owner: Browser, used: TenantSetup, known: dict[str, str]) -> None:
    path = root_of(used) + "/requests"
    failed = owner.open(f"{path}?outcome=upstream_error&day=&model=&key=&project={used.project_id}")
    assert "failed at the engine" in failed.text or "No request meets" in failed.text
    assert "<td>echo</td>" not in owner.open(f"{path}?model=other").text
    assert owner.open(f"{path}?outcome=nothing").status_code == 400
    one = owner.open(f"{path}/{known['request_id']}")
    assert "until the first token" in one.text and "0.000188 EUR" in one.text
    assert "proof" not in one.text and owner.open(f"{path}/{known['request_id']}/proof").status_code == 409


def test_budget_is_made_raised_and_archived_on_its_page(owner: Browser, used: TenantSetup) -> None:
    path = root_of(used) + "/budgets"
    owner.open(path)
    wrong = {"amount": "10", "window": "week", "mode": "hard", "project_id": used.project_id}
    refused = owner.send(path, 400, name="weekly", **wrong, thresholds="half")
    assert "whole percentages" in refused.text
    made = owner.send(path, name="weekly", **wrong, thresholds="50%, 100")
    one = made.url.path
    assert "10.00 EUR" in made.text
    assert "15.00 EUR" in owner.send(f"{one}/raise", amount="5", days="7").text
    assert owner.send(f"{one}/raise", 400, amount="-5", days="7").status_code == 400
    assert "25.00 EUR" in owner.send(f"{one}/change", name="weekly", amount="20", mode="soft", thresholds="").text
    limits = owner.open(f"{root_of(used)}/limits?project={used.project_id}")
    assert "binds first" in limits.text and "weekly" in limits.text
    owner.open(one)
    assert "Nothing was changed" in owner.send(f"{one}/archive", 400, confirmation="other").text
    assert owner.send(f"{one}/archive", confirmation="weekly").url.path == path


def test_limits_of_a_project_are_set_and_taken_away(owner: Browser, used: TenantSetup) -> None:
    path = root_of(used) + "/limits"
    owner.open(f"{path}?project={used.project_id}")
    assert owner.send(path, 400, requests_per_minute="-1").status_code == 400
    assert "requests per minute</td>" in owner.send(path, requests_per_minute="600").text
    assert "requests per minute</td>" not in owner.send(path, requests_per_minute="").text
    assert owner.open(f"{path}?key={used.key_id}").status_code == 400


def test_person_is_invited_put_into_a_group_and_given_another_role(
    control: Running, owner: Browser, member: Browser, used: TenantSetup, known: dict[str, str]
) -> None:
    root = root_of(used)
    owner.open(f"{root}/members")
    assert "on its way" in owner.send(f"{root}/invites", email="new@example.com", role="role_viewer").text
    invite = re.search(r"/invites/(invite_[0-9a-f]{32})/delete", owner.page.text)
    assert invite is not None
    assert "new@example.com" not in owner.send(f"{root}/invites/{invite.group(1)}/delete").text
    user_id = find_user_id(control.client(used.admin_key), "member@example.com")
    group = f"{root}/groups/{known['group_id']}"
    owner.open(group)
    assert f"/users/{user_id}/remove" in owner.send(f"{group}/users", user_id=user_id).text
    assert f"/users/{user_id}/remove" not in owner.send(f"{group}/users/{user_id}/remove").text
    one = f"{root}/members/{user_id}"
    owner.open(one)
    assert "Saved." in owner.send(f"{one}/role", role_id="role_billing").text
    owner.send(f"{one}/role", role_id="role_viewer")
    assert "Nothing was changed" in owner.send(f"{one}/remove", 400, confirmation="somebody").text


def test_identity_provider_is_disabled_and_never_shows_its_secret(owner: Browser, used: TenantSetup) -> None:
    path = root_of(used) + "/sign-in"
    owner.open(path)
    fields = {"issuer": "https://id.example.com", "client_id": "console", "client_secret": "s3cret-of-a-client", "domains": "", "role": ""}
    one = owner.send(path, name="staff", **fields)
    assert one.url.path.startswith(f"{path}/conn_") and "s3cret" not in one.text
    assert "disabled</dd>" in owner.send(f"{one.url.path}/change", enabled="no").text
    assert owner.send(f"{one.url.path}/delete", confirmation="staff").url.path == path


def test_audit_trail_is_filtered_by_fields_that_may_be_empty(owner: Browser, used: TenantSetup) -> None:
    path = root_of(used) + "/audit"
    assert used.project_id in owner.open(f"{path}?event_types=project.created&actor_ids=&resource_ids=").text
    assert owner.open(f"{path}?event_types=no%20event").status_code == 400


def test_models_are_shown_with_the_prices_that_are_no_other_classes(control: Running, operator: Browser, used: TenantSetup) -> None:
    priced = make_tenant(control, "priced")  # made after the price, so it pays by the book
    answered(control.operator().post("/v1/platform/models/echo/publish"))
    page = operator.open(root_of(priced) + "/models").text
    assert "<td>echo</td>" in page and ">2.00 EUR</data> / million" in page
    assert "input: " in page and "output: " in page and "cached_input: " not in page and "image_input: " not in page
