"""Pages of what an organization has beside its use: admin keys, telemetry exports, billing periods, contracts and credit."""

import re
from datetime import UTC, datetime

from tests.control.browsing import Browser
from tests.control.console.pages import find_token, root_of
from tests.control.harness import Running, TenantSetup, answered, make_tenant


def test_telemetry_export_is_made_changed_tested_and_deleted_on_its_page(control: Running, owner: Browser, used: TenantSetup) -> None:
    path = f"{root_of(used)}/telemetry"
    owner.open(path)
    wanted = {"name": "siem", "format": "json", "usage": "yes"}
    for wrong in (
        {"url": "https://127.0.0.1:1/"},
        {"url": "https://1.1.1.1/a", "headers": "no header"},
        {"url": "https://1.1.1.1/a", "headers": "host: s3cret-value"},
        {"url": "https://1.1.1.1/a", "traces": "yes"},
        {"url": "https://1.1.1.1/a", "usage": "no"},
    ):
        refused = owner.send(path, 400, **wanted | {"headers": ""} | wrong)
        assert "That was refused." in refused.text and "s3cret" not in refused.text
    made = owner.send(path, **wanted, url="https://1.1.1.1/a", headers="Authorization: Bearer s3cret\nx-tenant: 7")
    one = made.url.path
    assert one.startswith(f"{path}/telexp_") and "<code>authorization</code>" in made.text and "s3cret" not in made.text
    refused = owner.send(f"{one}/change", 400, name="siem", url="https://1.1.1.1/b", usage="yes", headers="")
    assert "needs the headers" in refused.text
    owner.open(one)
    changed = owner.send(f"{one}/change", name="renamed", url="https://1.1.1.1/b", usage="yes", audit="yes", headers="x-token: n3w")
    assert "<h1>renamed</h1>" in changed.text and "<code>x-token</code>" in changed.text and "n3w" not in changed.text
    found = answered(control.client(used.admin_key).get(f"/v1/organization/telemetry_exports/{one.rpartition('/')[2]}"))
    assert (found["url"], found["signals"]) == ("https://1.1.1.1/b", ["usage", "audit"])
    assert "renamed" in owner.open(path).text and "in use" in owner.page.text
    owner.open(one)
    assert "Nothing was changed" in owner.send(f"{one}/delete", 400, confirmation="siem").text
    assert owner.send(f"{one}/delete", confirmation="renamed").url.path == path and owner.open(one).status_code == 404


def test_admin_key_is_made_rotated_and_revoked_on_its_page(control: Running, owner: Browser, used: TenantSetup) -> None:
    path = f"{root_of(used)}/admin-keys"
    owner.open(path)
    assert "/scim/v2" in owner.page.text
    assert owner.send(path, 400, name="robot", role="role_none").status_code == 400
    owner.open(path)
    (role,) = [each for each in answered(control.client(used.admin_key).get("/v1/organization/roles"))["data"] if each["name"] == "billing"]
    page = owner.send(path, name="robot", role=role["id"], lifetime_days="7")
    secret, one = re.search(r"data-copy>(tw_admin_\w+)<", page.text), re.search(rf"{path}/key_\w+(?=/revoke)", page.text)
    assert secret is not None and one is not None and "<dd>billing</dd>" in page.text
    assert control.client(secret.group(1)).get("/v1/organization/admin_api_keys").status_code == 403
    assert secret.group(1) not in owner.open(one.group()).text
    assert "tw_admin_" in owner.send(f"{one.group()}/rotate", grace_seconds="3600").text
    owner.open(one.group())
    assert "retired" in owner.send(f"{one.group()}/retire", confirmation="robot").text
    assert "Nothing was changed" in owner.send(f"{one.group()}/revoke", 400, confirmation="x").text
    assert owner.send(f"{one.group()}/revoke", confirmation="robot").url.path == path and ">robot<" not in owner.page.text


def test_period_shows_what_it_comes_to_and_its_costs_by_model(owner: Browser, used: TenantSetup, known: dict[str, str]) -> None:
    path = f"{root_of(used)}/periods"
    assert f'href="{path}/{known["period_id"]}"' in owner.open(path).text
    shown = owner.open(f"{path}/{known['period_id']}").text
    assert "<td>echo</td>" in shown and "so far" in shown and "Saved by caches" in shown and "Usage at list prices" in shown
    assert owner.open(f"{path}/period_{'0' * 32}").status_code == 404


def test_operator_agrees_on_a_contract_and_ends_it_and_its_customer_only_reads_it(
    control: Running, operator: Browser, auditor: Browser
) -> None:
    tenant = make_tenant(control, "contracted")
    path = f"{root_of(tenant)}/contracts"
    operator.open(path)
    for wrong in ({"discount": "1000"}, {"discount": "ten"}, {"minimum": "-1"}, {"from_day": "soon"}, {"fee": "10"}):
        assert "That was refused." in operator.send(path, 400, name="wrong", **wrong).text
        operator.open(path)
    now = control.plane.now()
    yesterday = f"{datetime.fromtimestamp(now // 1_000_000 - 86_400, UTC):%Y-%m-%d}"
    times = {"from_day": yesterday, "until_day": "2099-01-01"}
    terms = {"discount": "12.5", "minimum": "100", "commitment": "1200", "prepaid": "yes", "fee_name": "Platform", "fee": "50"}
    made = operator.send(path, name="Enterprise", **times, **terms)
    assert "12.50 %" in made.text and "1,200.00 EUR</data>, billed at the beginning" in made.text and "50.00 EUR" in made.text
    one = made.url.path
    assert "in force" in operator.open(path).text
    assert auditor.open(one).status_code == 200 and "End it now" not in auditor.page.text and "New contract" not in auditor.open(path).text
    token = find_token(auditor)
    assert auditor.post(path, {"name": "mine", "form_token": token}).status_code == 403
    assert auditor.post(f"{one}/end", {"confirmation": "Enterprise", "form_token": token}).status_code == 403
    operator.open(one)
    operator.send(f"{one}/end", confirmation="Enterprise")
    with control.clock.set_to(control.plane.now() + 60_000_000):  # it ends with the second
        assert "End it now" not in operator.open(one).text and "has ended" in operator.open(path).text


def test_operator_grants_credit_holds_requests_to_it_and_ends_a_grant(control: Running, operator: Browser, auditor: Browser) -> None:
    tenant = make_tenant(control, "prepaid")
    path = f"{root_of(tenant)}/credits"
    operator.open(path)
    assert "That was refused." in operator.send(f"{path}/grants", 400, category="paid", amount="-1").text
    operator.open(path)
    page = operator.send(f"{path}/grants", category="paid", amount="25", reference="Order 4711", project_id=tenant.project_id)
    assert "Order 4711" in page.text and "25.00 EUR" in page.text
    assert "<td>paid</td>" in page.text
    operator.send(f"{path}/prepayment", is_prepaid="yes")
    assert "requests are refused once nothing is usable" in operator.open(path).text
    operator.send(f"{path}/prepayment", is_prepaid="no")
    assert "Asked for anew" in operator.send(f"{path}/topup-rule", amount="50", threshold="10", every="month").text
    assert "Asked for anew" not in operator.send(f"{path}/topup-rule", amount="", threshold="", every="").text
    grant = re.search(r"/credits/grants/(grant_\w+)/void", operator.page.text)
    assert grant is not None
    assert "Grant credit" not in auditor.open(path).text
    refused = auditor.post(f"{path}/grants", {"category": "paid", "amount": "1", "form_token": find_token(auditor)})
    assert refused.status_code == 403
    assert "Nothing was changed" in operator.send(f"{path}/grants/{grant[1]}/void", 400, confirmation="grant").text
    operator.open(path)
    operator.send(f"{path}/grants/{grant[1]}/void", confirmation=grant[1])
    assert "/void" not in operator.open(path).text
