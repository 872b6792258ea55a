"""Pages of the console: who sees which, what a form does, and what is refused."""

import asyncio
import csv
import html
import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request

from bench.console import SPAN_US, fill
from tests.control.browsing import Browser, find_user_id
from tests.control.console.pages import (
    INVOICE_PAGES,
    PAGES_ELSEWHERE,
    PLATFORM_PAGES,
    TENANT_FILES,
    TENANT_PAGES,
    fill_in,
    fill_in_platform,
    find_token,
    root_of,
)
from tests.control.harness import NODE_ID, Running, TenantSetup, answered, make_tenant
from tests.link.samples import NODE, admit, final, frames
from tests.patience import CLIENT_SECONDS
from tollway.control.api.app import create_apps
from tollway.control.api.authentication.pages import find_origin
from tollway.control.api.authentication.scim import find_base
from tollway.control.console.charts import SERIES_MAX, Series, add_others
from tollway.control.console.navigation import PLATFORM, TENANT
from tollway.control.console.rendering import HEADERS
from tollway.control.console.routers import ROUTERS
from tollway.control.console.tenant import limits, usage
from tollway.control.identity import operators
from tollway.domain import ids
from tollway.domain.faults import Fault
from tollway.domain.keys import RANDOM_BYTES, KeyOrigin, Operator
from tollway.domain.preview import last_month
from tollway.domain.usage import OUTCOME_POLICY_CURRENT


def test_console_leads_whoever_signed_in_to_their_organization(owner: Browser, used: TenantSetup) -> None:
    page = owner.open("/console")
    assert page.status_code == 200 and page.url.path == root_of(used)
    assert "Spend this month" in page.text and "owner@example.com" in page.text


def test_person_creates_rotates_and_revokes_a_key_with_forms_alone(owner: Browser, used: TenantSetup) -> None:
    path = f"{root_of(used)}/projects/{used.project_id}"
    owner.open(path)
    page = owner.send(f"{path}/keys", name="from the console", type="live", lifetime_days="30")
    assert "A key ends after 1, 7" in owner.post(f"{path}/keys", {"name": "k", "lifetime_days": "8", "form_token": find_token(owner)}).text
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
        with httpx2.Client(base_url=control.url, timeout=CLIENT_SECONDS) as nobody:
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


def find_offered(viewer: Browser, home: str) -> set[str]:
    """Return the paths that the navigation offers."""
    side = re.search(r'<nav class="side".*?</nav>', viewer.open(home).text, re.DOTALL)
    assert side is not None
    return set(re.findall(r'<a href="([^"]+)"', side.group()))


def test_each_role_is_offered_the_pages_that_it_may_open_and_no_other(
    people: dict[str, Browser], operator: Browser, auditor: Browser, used: TenantSetup
) -> None:
    everybody = [(role, viewer, root_of(used), TENANT) for role, viewer in people.items()]
    everybody += [(role, viewer, "/console/platform", PLATFORM) for role, viewer in (("operator", operator), ("auditor", auditor))]
    seen = set()
    for role, viewer, root, sections in everybody:
        offered = find_offered(viewer, root)
        seen.add(frozenset(offered))
        for entry in (entry for section in sections for entry in section.entries):
            path = root + entry.path
            assert viewer.client.get(path).status_code == (200 if path in offered else 403), (role, path)
    assert len(seen) >= 5, "roles differ in what they are offered"


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
    gateway = {
        **dict.fromkeys(("uptime_seconds", "waiting", "loop_lag_ms", "epochs_unshipped", "deployments_left_out"), 0),
        **{"version": "1.9.7", "is_ready": True, "is_draining": False, "connections": 4321, "running": 2, "records_unshipped": 8765},
        "snapshot_age_ms": None,
    }

    def report(weight: int, running: int, *reasons: str) -> str:
        """Let the gateway report the deployment, and return the page of the fleet."""
        load = {"weight": weight, "running": running, "limit": 9, "waiting": 0, "requests_per_minute": 17, "failures_per_minute": 1}
        avoided = [{"endpoint": "", "reason": reason, "since_ms": 1000, "retry_ms": 0} for reason in reasons]
        body = {"gateway": gateway, "deployments": [{"id": deployment["id"], "is_ready": True, "ejections": avoided, **load}]}
        answered(control.node().post("/v1/link/ack", json={"node_id": NODE_ID, "version": 0}))
        answered(control.node().put(f"/v1/link/statuses/{NODE_ID}", json=body))
        return operator.open("/console/platform/fleet").text

    assert "not reported" in operator.open("/console/platform/fleet").text
    shown = report(1, 2, "upstream_unreachable")
    assert all(
        each in shown for each in ("1.9.7", "4,321", "8,765", ">avoided<", "upstream_unreachable", "No other deployment serves echo")
    )
    assert "2 requests that run here are finished" in shown
    operator.send(action, weight="0")
    assert "0 of 1 gateways send no more" in report(1, 2) and ">draining<" in report(0, 2) and ">drained<" in report(0, 0)
    operator.send(action, weight="1")
    assert ">serving<" in report(1, 0)
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
    price, (_, month_end) = answered(control.operator().get("/v1/platform/prices"))["data"][0], last_month(control.plane.now())
    at = month_end - 60_000_000
    with control.clock.set_to(at - 60_000_000):
        customer = make_tenant(control, "pays by the book")  # made after the price
    control.prove_prices()
    of = admit(
        1000,
        request_id=ids.new_id(ids.REQUEST, at, 1000),
        admitted_at=at,
        organization_id=customer.organization_id,
        project_id=customer.project_id,
        key_id=customer.key_id,
        price_version=price["id"],
        outcome_policy=OUTCOME_POLICY_CURRENT,
    )
    answered(control.node(NODE).put(f"/v1/link/records/{NODE}/{at}/1", content=b"".join(frames([of, final(of)], NODE, at))))
    shown = operator.open(f"{path}?preview=true").text
    row = re.search(rf"<tr><td><a [^>]*><code>{customer.organization_id}</code>.*?</tr>", shown, re.DOTALL)
    assert row is not None
    cells = re.findall(r'<td class="n">(?:<data [^>]*>)?([^<]*)<', row.group())
    assert cells == ["1", "0.000188 EUR", "0.000376 EUR", "0.000188 EUR", "100.00", "0"]
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
    periods = answered(control.operator().get("/v1/platform/periods", params={"organization_id": used.organization_id}))["data"]
    path = (
        f"/console/platform/periods/{max(periods, key=lambda each: each['start_time'])['id']}"  # in the first days of a month there are two
    )
    assert "It has not ended yet." in operator.open(path).text and "<summary>Close" not in operator.page.text
    assert operator.open(re.sub(r"[0-9a-f]{32}", "0" * 32, path)).status_code == 404
    assert path in operator.open("/console/platform/periods").text


def test_operator_reads_who_changed_what_with_each_field_before_and_after(control: Running, operator: Browser, used: TenantSetup) -> None:
    (deployment,) = answered(control.operator().get("/v1/platform/deployments"))["data"]
    path = f"/v1/platform/deployments/{deployment['id']}"
    answered(control.operator().post(path, json={"weight": 7}))
    answered(control.operator().post(path, json={"weight": deployment["weight"]}))
    page = operator.open(f"/console/platform/audit?event_types=deployment.updated&actor_ids=&resource_ids={deployment['id']}")
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


def test_147_link_signs_an_operator_in_once_within_its_time_and_not_after_its_key_ended(control: Running) -> None:
    path = "/v1/platform/operator_sign_in_links"
    made = answered(control.operator().post("/v1/platform/keys", json={"name": "of links", "role": "operator"}))
    client = control.client(made["value"])
    replaced, url = (answered(client.post(path))["url"] for _ in range(2))
    token = url.rpartition("=")[2]
    browser, another = Browser(control), Browser(control)
    assert browser.open(replaced).status_code == browser.open(f"{url}0").status_code == 401
    for _ in range(2):  # programs that look at links do not use them up
        assert "signs in an operator" in browser.open(url).text
    assert browser.send("/sign-in/operators/link").url.path.startswith("/console/platform")
    assert another.post("/sign-in/operators/link", {"token": token}).status_code == another.open(url).status_code == 401
    late = answered(client.post(path))["url"]
    with control.clock.set_to(control.plane.now() + operators.LINK_SECONDS * 1_000_000):
        assert another.open(late).status_code == 401
    with control.plane.database.platform() as tx:
        (session,) = operators.list_sessions(tx, operators.make_operator_id(operators.KEY_ISSUER, made["id"]), control.plane.now())
        signed_in = Operator(session.operator_id, KeyOrigin.FIRST, live=session)
        with pytest.raises(Fault, match="conflict"):
            operators.create_link(tx, signed_in, random_bytes=bytes(RANDOM_BYTES), pepper=control.plane.pepper, now=control.plane.now())
    reading = answered(control.operator().post("/v1/platform/keys", json={"name": "k", "role": "auditor"}))["value"]
    assert control.client(reading).post(path).status_code == 403
    unused = answered(client.post(path))["url"]
    answered(control.operator().delete(f"/v1/platform/keys/{made['id']}"))
    assert another.open(unused).status_code == 401 and browser.open("/console/platform").url.path == "/sign-in"
    created = {"event_types": ["operator.sign_in_link.created"]}
    assert len(answered(control.operator().get("/v1/platform/audit_logs", params=created))["data"]) == 4
    assert all(each not in str(control.lines) for each in (token, late.rpartition("=")[2]))


def test_console_with_a_listener_of_its_own_is_apart_from_the_api(control: Running, owner: Browser, used: TenantSetup) -> None:
    api, _, console = create_apps(control.plane, pages=ROUTERS, has_own_console=True)

    async def ask(app: FastAPI, path: str) -> int:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url=control.url, cookies={"tollway_session": owner.secret}) as client:
            return (await client.get(path)).status_code

    for path in (root_of(used), "/account", "/sign-in", "/assets/pages.css"):
        assert (asyncio.run(ask(console, path)), asyncio.run(ask(api, path))) == (200, 404), path
    path = "/v1/organization/projects"
    assert (asyncio.run(ask(console, path)), asyncio.run(ask(api, path))) == (404, 401)
    assert [asyncio.run(ask(console, path)) for path in ("/readyz", "/metrics", "/openapi.json")] == [200, 404, 404]


@pytest.mark.parametrize(
    ("public_url", "console_url", "host", "page_origin", "scim_base"),
    [
        (
            "https://api.example.com",
            "https://console.example.com",
            "api.example.com",
            "https://console.example.com",
            "https://api.example.com",
        ),
        ("https://api.example.com", None, "evil.example", "https://api.example.com", "https://api.example.com"),
        (
            "https://api.example.com",
            "https://console.example.com",
            "localhost:8083",
            "https://console.example.com",
            "https://api.example.com",
        ),
        (None, "http://127.0.0.1:8083", "localhost:8083", "http://localhost:8083", "http://localhost:8083"),
        (None, "http://127.0.0.1:8083", "127.0.0.1:8081", "http://127.0.0.1:8083", "http://127.0.0.1:8081"),
        (None, "http://127.0.0.1:8083", "evil.example:8083", "http://127.0.0.1:8083", ""),
        (None, None, "evil.example", None, ""),
    ],
)
def test_pages_have_the_address_of_the_console_and_scim_has_that_of_the_api(
    control: Running, public_url: str | None, console_url: str | None, host: str, page_origin: str | None, scim_base: str
) -> None:
    plane = replace(control.plane, public_url=public_url, console_url=console_url)
    request = Request({"type": "http", "headers": [(b"host", host.encode())]})
    assert (find_origin(plane, request), find_base(plane, request)) == (page_origin, scim_base + "/scim/v2")


ROOT, PLATFORM_ROOT = "/console/organizations/{organization_id}", "/console/platform"
KEY_PATH, DRAFT_PATH = ROOT + "/projects/{project_id}/keys/{key_id}", PLATFORM_ROOT + "/prices/drafts/{draft_id}"

ACCOUNT_PATH = ROOT + "/projects/{project_id}/service-accounts/{service_account_id}"
WORKLOAD_PATH, CERTIFICATE_PATH = ROOT + "/workloads/{identity_provider_id}", ROOT + "/certificates/{certificate_id}"

CONFIRMED = {
    f"{KEY_PATH}/retire",
    f"{KEY_PATH}/revoke",
    ROOT + "/projects/{project_id}/archive",
    f"{ACCOUNT_PATH}/delete",
    WORKLOAD_PATH + "/delete",
    WORKLOAD_PATH + "/rules/{federation_rule_id}/delete",
    CERTIFICATE_PATH + "/delete",
    CERTIFICATE_PATH + "/rules/{certificate_rule_id}/delete",
    ROOT + "/projects/{project_id}/settings/retention",
    ROOT + "/settings/responses",
    ROOT + "/settings/retention",
    ROOT + "/settings/archive",
    ROOT + "/budgets/{budget_id}/archive",
    ROOT + "/members/{user_id}/remove",
    ROOT + "/groups/{group_id}/delete",
    ROOT + "/sign-in/{connection_id}/delete",
    ROOT + "/webhooks/{webhook_endpoint_id}/delete",
    ROOT + "/telemetry/{telemetry_export_id}/delete",
    ROOT + "/admin-keys/{admin_key_id}/retire",
    ROOT + "/admin-keys/{admin_key_id}/revoke",
    ROOT + "/contracts/{contract_id}/end",
    ROOT + "/credits/grants/{grant_id}/void",
    PLATFORM_ROOT + "/fleet/nodes/{node_id}/revoke",
    PLATFORM_ROOT + "/deployments/{deployment_id}/archive",
    PLATFORM_ROOT + "/periods/{period_id}/close",
    PLATFORM_ROOT + "/plans/{plan_id}/delete",
    f"{DRAFT_PATH}/publish",
    PLATFORM_ROOT + "/payments",
    PLATFORM_ROOT + "/payments/{payment_id}/return",
}
"""Actions that cannot be undone: each says what will happen, and asks for a name."""

CONFIRMED_ELSEWHERE = {
    PLATFORM_ROOT + "/invoices/{invoice_id}/issue",
    PLATFORM_ROOT + "/direct-debits/{debit_file_id}/cancel",
    PLATFORM_ROOT + "/credit-transfers/{transfer_file_id}/cancel",
}
"""Such actions for which a month has to be closed: test_money_pages and test_bank_pages try them."""

CHANGED_BACK = {
    "/console/look": "another choice",
    ROOT + "/projects": "archive",
    ROOT + "/projects/{project_id}/name": "another name",
    ROOT + "/projects/{project_id}/keys": "revoke",
    f"{KEY_PATH}/name": "another name",
    f"{KEY_PATH}/rotate": "the secret before is valid for the time that was chosen",
    f"{KEY_PATH}/collect": "shows what waits to be collected",
    ROOT + "/projects/{project_id}/service-accounts": "delete",
    f"{ACCOUNT_PATH}/change": "another change",
    f"{ACCOUNT_PATH}/keys": "revoke",
    ROOT + "/projects/{project_id}/settings/models": "another choice",
    ROOT + "/projects/{project_id}/settings/tiers": "another choice",
    ROOT + "/projects/{project_id}/settings/regions": "other regions",
    ROOT + "/workloads": "delete",
    WORKLOAD_PATH + "/change": "another change",
    WORKLOAD_PATH + "/rules": "delete",
    WORKLOAD_PATH + "/rules/{federation_rule_id}/enable": "the other choice",
    ROOT + "/certificates": "delete",
    CERTIFICATE_PATH + "/name": "another name",
    CERTIFICATE_PATH + "/trust": "the other choice",
    CERTIFICATE_PATH + "/rules": "delete",
    ROOT + "/settings/keys": "another choice",
    ROOT + "/playground": "a request",
    ROOT + "/budgets": "archive",
    ROOT + "/budgets/{budget_id}/change": "another change",
    ROOT + "/budgets/{budget_id}/raise": "it ends by itself",
    ROOT + "/limits": "another change",
    ROOT + "/invites": "delete",
    ROOT + "/invites/{invite_id}/delete": "another invitation",
    ROOT + "/members/{user_id}/role": "another role",
    ROOT + "/groups": "delete",
    ROOT + "/groups/{group_id}/users": "remove",
    ROOT + "/groups/{group_id}/users/{user_id}/remove": "add",
    ROOT + "/sign-in": "delete",
    ROOT + "/sign-in/{connection_id}/change": "another change",
    ROOT + "/webhooks": "delete",
    ROOT + "/webhooks/{webhook_endpoint_id}/change": "another change",
    ROOT + "/webhooks/{webhook_endpoint_id}/enable": "delete",
    ROOT + "/webhooks/{webhook_endpoint_id}/secret": "the one before stays valid for a day, if that is chosen",
    ROOT + "/webhooks/{webhook_endpoint_id}/test": "an example",
    ROOT + "/webhooks/{webhook_endpoint_id}/replay": "receivers know events that they had",
    ROOT + "/telemetry": "delete",
    ROOT + "/telemetry/{telemetry_export_id}/change": "another change",
    ROOT + "/telemetry/{telemetry_export_id}/enable": "delete",
    ROOT + "/telemetry/{telemetry_export_id}/test": "a request without records",
    ROOT + "/admin-keys": "revoke",
    ROOT + "/admin-keys/{admin_key_id}/rotate": "the secret before is valid for the time that was chosen",
    ROOT + "/contracts": "end",
    ROOT + "/credits/grants": "void",
    ROOT + "/credits/prepayment": "another choice",
    ROOT + "/credits/topup-rule": "another choice",
    ROOT + "/limits/plan": "the plan before",
    ROOT + "/limits/organization": "another change",
    ROOT + "/limits/override": "end, and it ends by itself",
    ROOT + "/limits/override/end": "another one",
    PLATFORM_ROOT + "/plans": "delete",
    PLATFORM_ROOT + "/plans/{plan_id}/change": "another change",
    PLATFORM_ROOT + "/plans/{plan_id}/budget": "another one",
    PLATFORM_ROOT + "/organizations": "archive",
    PLATFORM_ROOT + "/start/engine": "a look",
    PLATFORM_ROOT + "/start/deployment": "archive",
    PLATFORM_ROOT + "/start/price": "another price",
    PLATFORM_ROOT + "/start/organization": "archive",
    PLATFORM_ROOT + "/fleet/nodes": "revoke",
    PLATFORM_ROOT + "/deployments": "archive",
    PLATFORM_ROOT + "/deployments/{deployment_id}/weight": "drain, and take back",
    PLATFORM_ROOT + "/prices/books": "nobody pays by a book that has no prices",
    PLATFORM_ROOT + "/prices/books/{book_id}/drafts": "discard",
    f"{DRAFT_PATH}/lines": "another line",
    f"{DRAFT_PATH}/lines/remove": "another line",
    f"{DRAFT_PATH}/discard": "another draft",
    ROOT + "/billing-account": "another change",
    PLATFORM_ROOT + "/sellers": "issues nothing until an organization names it",
    PLATFORM_ROOT + "/sellers/{entity_id}": "another change",
    PLATFORM_ROOT + "/bank": "return the payments",
    PLATFORM_ROOT + "/bank/{entry_id}/match": "return the payment",
    PLATFORM_ROOT + "/payments/{payment_id}/payee": "another account, until a file has it",
    PLATFORM_ROOT + "/direct-debits": "cancel",
    PLATFORM_ROOT + "/credit-transfers": "cancel",
    PLATFORM_ROOT + "/periods/{period_id}/invoices": "void",
    PLATFORM_ROOT + "/invoices/{invoice_id}/void": "the period is drafted again",
    PLATFORM_ROOT + "/invoices/{invoice_id}/credit_notes": "void: it is a draft",
}
"""Actions that ask for no name, and what undoes each."""


def test_148_every_action_that_cannot_be_undone_asks_for_a_name(
    control: Running, operator: Browser, used: TenantSetup, known: dict[str, str]
) -> None:
    posted = {route.path for each in ROUTERS for route in each.routes if isinstance(route, APIRoute) and "POST" in route.methods}
    assert posted == CONFIRMED | CONFIRMED_ELSEWHERE | CHANGED_BACK.keys()
    (deployment,) = answered(control.operator().get("/v1/platform/deployments"))["data"]
    ids_of = {**known, "node_id": NODE, "deployment_id": deployment["id"], "payment_id": "pay_" + "0" * 32}
    before = list_changes(control, used)
    for path in CONFIRMED:
        if path.startswith(ROOT):
            action = fill_in(path.removeprefix(ROOT), used, known)
        elif path.startswith((DRAFT_PATH, PLATFORM_ROOT + "/periods", PLATFORM_ROOT + "/plans")):
            action = fill_in_platform(path.removeprefix(PLATFORM_ROOT), control, used)
        else:
            action = path.format(**ids_of)
        operator.open(PLATFORM_ROOT)
        refused = operator.post(action, {"confirmation": "something else", "form_token": find_token(operator)})
        assert refused.status_code == 400 and "Nothing was changed" in refused.text, path
    assert list_changes(control, used) == before


def test_every_form_refuses_whoever_lacks_its_permission_before_it_looks_at_a_field(
    people: dict[str, Browser], auditor: Browser, used: TenantSetup
) -> None:
    """Send each form with no field but the token, to ids of nothing: either would be refused for that otherwise."""
    tried = 0
    for route in (route for each in ROUTERS for route in each.routes if isinstance(route, APIRoute) and "POST" in route.methods):
        if route.path == "/console/look":
            continue
        viewer = people["reader"] if route.path.startswith(ROOT) else auditor
        path = re.sub(
            r"\{\w+\}", "x", route.path.replace("{organization_id}", used.organization_id).replace("{project_id}", used.project_id)
        )
        viewer.open(root_of(used) if viewer is people["reader"] else PLATFORM_ROOT)
        refused = viewer.post(path, {"form_token": find_token(viewer)})
        assert refused.status_code == 403 and re.search("permission|may not do", refused.text), (path, refused.text)
        tried += 1
    assert tried > 100


def list_changes(control: Running, tenant: TenantSetup) -> list[str]:
    """Return the ids of the changes that the audit trails of the platform and of an organization have."""
    found = []
    for client, path in (
        (control.operator(), "/v1/platform/audit_logs"),
        (control.client(tenant.admin_key), "/v1/organization/audit_logs"),
    ):
        page = answered(client.get(path, params={"limit": 100}))
        found += page["data"]
        while page["has_more"]:  # reads are among them, also these
            page = answered(client.get(path, params={"limit": 100, "after": page["last_id"]}))
            found += page["data"]
    return [each["id"] for each in found if not each["type"].endswith(".read")]


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


def test_what_is_not_drawn_is_added_up_and_rows_of_one_name_stay_apart() -> None:
    rows = [Series("same", [Decimal(1), Decimal(2)]), Series("same", [Decimal(3), Decimal(-1)])]
    assert add_others(rows, [Decimal(4), Decimal(1)], "others") == rows
    assert add_others(rows, [Decimal(4), Decimal(0)], "others") == [*rows, Series("others", [Decimal(0), Decimal(-1)])]


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


def test_webhook_endpoint_is_made_changed_and_deleted_on_its_page(owner: Browser, used: TenantSetup) -> None:
    path = f"{root_of(used)}/webhooks"
    owner.open(path)
    refused = owner.send(path, 400, name="inner", url="http://127.0.0.1:1/", event_types="budget.threshold_reached")
    assert "That was refused." in refused.text and ">inner<" not in owner.open(path).text
    made = owner.send(path, name="hooks", url="https://1.1.1.1/a", event_types="budget.threshold_reached\ninvoice.issued")
    secret, one = re.search(r"data-copy>(whsec_[^<]+)<", made.text), re.search(rf"{path}/\w+(?=/change)", made.text)
    assert secret is not None and one is not None
    assert secret.group(1) not in owner.open(one.group()).text
    changed = owner.send(f"{one.group()}/change", name="renamed", url="https://1.1.1.1/b", event_types="budget.threshold_reached")
    assert "https://1.1.1.1/b" in changed.text and "<h1>renamed</h1>" in changed.text
    assert "whsec_" in owner.send(f"{one.group()}/secret", keep="yes").text
    assert "delivered once more" in owner.send(f"{one.group()}/replay", since="2026-01-01T00:00", until="2026-01-02T00:00").text
    for bad in ({"event_id": "evt_1", "since": "2026-01-01T00:00"}, {"since": "yesterday"}, {}):
        assert owner.send(f"{one.group()}/replay", 400, **{"event_id": "", "since": "", "until": ""} | bad).status_code == 400
    owner.open(f"{one.group()}?state=failed")
    assert "was not the name" in owner.send(f"{one.group()}/delete", 400, confirmation="x").text or "is not the name" in owner.page.text
    assert "Deleted." in owner.send(f"{one.group()}/delete", confirmation="renamed").text and ">renamed<" not in owner.page.text


def set_name(control: Running, tenant: TenantSetup, name: str) -> None:
    answered(control.client(tenant.admin_key).post(f"/v1/organization/projects/{tenant.project_id}", json={"name": name}))


def test_requests_are_found_by_outcome_and_one_shows_its_times_and_price(
    control: Running, owner: Browser, used: TenantSetup, known: dict[str, str]
) -> None:
    path = root_of(used) + "/requests"
    query = {"outcomes": "upstream_error", "start_time": control.plane.now() // 1_000_000 - 5 * 86_400}
    failed, *_ = answered(control.client(used.admin_key).get("/v1/organization/requests", params=query))["data"]
    on_its_day = f"{path}?day={datetime.fromtimestamp(failed['admitted_at'], UTC):%Y-%m-%d}&model=&key=&project={used.project_id}&outcome="
    assert failed["id"] in owner.open(on_its_day + "upstream_error").text
    completed = owner.open(on_its_day + "completed").text
    assert failed["id"] not in completed and "<td>echo</td>" in completed
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
    assert 'name="thresholds" maxlength="200" value="50, 100"' in made.text
    changed = owner.send(f"{one}/change", name="weekly", amount="20", mode="soft", thresholds="").text
    assert "25.00 EUR" in changed and 'name="thresholds" maxlength="200" value=""' in changed
    shown = owner.open(f"{root_of(used)}/limits?project={used.project_id}")
    assert "binds first" in shown.text and "weekly" in shown.text
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


def test_limits_that_bind_have_pages(owner: Browser, used: TenantSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root_of(used) + "/limits"
    owner.open(f"{path}?project={used.project_id}")
    owner.send(path, requests_per_minute="600", tokens_per_minute="7000", concurrent_requests="5")
    names = {"requests per minute", "tokens per minute", "requests at the same time"}

    def read_names() -> list[str]:
        return re.findall(r"<td>project</td><td>([a-z ]+)</td>", owner.page.text)

    assert set(read_names()) == names and 'rel="next"' not in owner.page.text
    monkeypatch.setattr(limits, "ROWS_MAX", 2)
    first = read_names() if owner.open(f"{path}?project={used.project_id}") else []
    following = re.search(r'<a href="([^"]*)" rel="next">', owner.page.text)
    assert following is not None
    second = read_names() if owner.open(html.unescape(following.group(1))) else []
    assert len(first) == 2 and {*first, *second} == names and 'rel="next"' not in owner.page.text
    assert owner.open(f"{path}?first=-1").status_code == 400
    owner.open(f"{path}?project={used.project_id}")
    owner.send(path, requests_per_minute="", tokens_per_minute="", concurrent_requests="")


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


def test_projects_and_keys_beyond_those_that_are_shown_are_added_up(
    control: Running, operator: Browser, used: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert used.project_id, "its price is the one of these requests, too"
    wide = make_tenant(control, "wide")
    control.prove_prices()
    fill(control, wide, events=60, project_count=SERIES_MAX + 3, key_count=SERIES_MAX + 3)
    first_day = datetime.fromtimestamp((control.plane.now() - SPAN_US) // 1_000_000, UTC).date()
    path = f"{root_of(wide)}/usage?metric=requests&compare=1&start={first_day}&group="
    names = {"wide project", *(f"project {at}" for at in range(SERIES_MAX + 3))}
    by_project = read_rows(operator.open(path + "project").text)
    assert by_project.keys() == names and sum(by_project.values()) == 60
    by_key = read_rows(operator.open(path + "key").text)
    assert len(by_key) == len(names) and sum(by_key.values()) == 60
    monkeypatch.setattr(usage, "PROJECTS_OF_KEYS", 2)
    monkeypatch.setattr(usage, "ROWS_MAX", 3)
    first = read_rows(operator.open(path + "key").text)
    assert sum(first.values()) == 60 and len(first) == 3 and first.pop("keys of other projects") == 60 - sum(first.values())
    assert first.items() <= by_key.items() and sorted(first.values()) == sorted(by_project.values())[-2:]
    shown = operator.open(path + "project").text
    assert (
        len(read_rows(shown)) == 3 and "7 more are in the CSV file." in shown and '<th scope="row">Total</th><td class="n">60</td>' in shown
    )
    overview = operator.open(root_of(wide)).text
    assert ">others</th>" in overview and sum(f">{name}</th>" in overview for name in names) == SERIES_MAX


def read_rows(page: str) -> dict[str, int]:
    """Return the requests of each group that the table of the explorer shows."""
    found = re.findall(r"<tr><td>(?:<a [^>]*>)?([^<]+)(?:</a>)?</td><td class=\"n\">([0-9,]+)</td>", page)
    return {name: int(value.replace(",", "")) for name, value in found}


def test_every_link_on_a_page_leads_each_role_where_it_may_go(
    people: dict[str, Browser], operator: Browser, auditor: Browser, used: TenantSetup, known: dict[str, str]
) -> None:
    """Links with other filters or another page of a list are followed for one address of each path. The ids in `known` are made first."""
    assert known
    everybody = [*((role, viewer, root_of(used)) for role, viewer in people.items())]
    everybody += [("operator", operator, PLATFORM_ROOT), ("auditor", auditor, PLATFORM_ROOT)]
    followed, refused = {}, set()
    for role, viewer, home in everybody:
        waiting, seen = [home], {home}
        while waiting:
            answer = viewer.client.get(waiting.pop())
            if answer.status_code != 200:
                refused.add((role, answer.url.path, answer.status_code))
            if answer.headers["content-type"].startswith("text/html"):
                links = {html.unescape(each) for each in re.findall(r'<a href="(/console/[^"#]*)"', answer.text)}
                for link in sorted(links):
                    path = link.partition("?")[0]
                    if path not in seen and path != f"{root_of(used)}/requests/live":
                        seen.add(path)
                        waiting.append(link)
        followed[role] = seen
    assert refused == set()
    assert all(len(each) > 8 for each in followed.values()), followed
    assert any("/service-accounts/" in path for path in followed["developer"]) and any("/plans/" in path for path in followed["auditor"])
