"""Sellers and billing accounts on their pages, and logged content."""

import html
import re

import httpx2

from tests.control.browsing import Browser
from tests.control.console.pages import root_of
from tests.control.harness import Running, TenantSetup, answered

PLATFORM = "/console/platform"


def list_fields(form: str) -> dict[str, str]:
    """Return what a browser would send of a form as it is shown."""
    fields = {name: html.unescape(value) for name, value in re.findall(r'<input[^>]* name="(\w+)"[^>]* value="([^"]*)"', form)}
    fields |= {name: html.unescape(value) for name, value in re.findall(r'<textarea name="(\w+)"[^>]*>(.*?)</textarea>', form, re.DOTALL)}
    for name, inner in re.findall(r'<select name="(\w+)">(.*?)</select>', form, re.DOTALL):
        chosen = re.search(r'value="([^"]*)" selected', inner) or re.search(r'value="([^"]*)"', inner)
        assert chosen is not None
        fields[name] = chosen.group(1)
    return fields


def send_as_shown(viewer: Browser, path: str, **changes: str) -> httpx2.Response:
    """Send the form of a page, whose action is the address of the page, as it is shown but for `changes`."""
    shown = viewer.open(path).text
    found = re.search(rf'<form method="post" action="{path}">(.*?)</form>', shown, re.DOTALL)
    assert found is not None
    return viewer.post(path, list_fields(found.group(1)) | changes)


def test_seller_and_billing_account_are_set_on_their_pages_and_saved_as_shown_stay_as_they_were(
    control: Running, operator: Browser, owner: Browser, used: TenantSetup
) -> None:
    (seller,) = answered(control.operator().get("/v1/platform/legal_entities"))["data"]
    api, path = f"/v1/platform/legal_entities/{seller['id']}", f"{PLATFORM}/sellers/{seller['id']}"
    assert send_as_shown(operator, path).status_code == 200 and answered(control.operator().get(api)) == seller
    assert "Saved." in send_as_shown(operator, path, name="Inferenz GmbH", dunning="7 remind none\n30 restrict mail").text
    changed = answered(control.operator().get(api))
    assert (changed["name"], [each["after_days"] for each in changed["dunning"]]) == ("Inferenz GmbH", [7, 30])
    refused = send_as_shown(operator, path, dunning="soon")
    assert refused.status_code == 400 and "three words" in refused.text and ">soon</textarea>" in refused.text

    account, api = f"{root_of(used)}/billing-account", f"/v1/platform/organizations/{used.organization_id}/billing_account"
    assert "nothing is invoiced" in owner.open(account).text and "<form" not in owner.page.text.partition("<main")[2]
    buyer = {
        **{"name": "Client SA", "address_street": "Rue 3", "address_postal_code": "75001", "address_city": "Paris"},
        **{"address_country": "FR", "vat_id": "FR40303265045", "electronic_address_address": "buyer@example.com"},
        **{"vat_checked_on": "2026-11-01", "vat_consultation_number": "WAPIAAAA", "payment_days": "10"},
    }
    send_as_shown(operator, account, **{**buyer, "address_country": "F"})
    assert operator.page.status_code == 400
    assert "Saved." in send_as_shown(operator, account, **buyer).text
    made = answered(control.operator().get(api))
    assert made["account"]["vat_check"]["consultation_number"] == "WAPIAAAA" and made["account"]["payment_days"] == 10
    assert "Saved." in send_as_shown(operator, account).text and answered(control.operator().get(api)) == made
    assert "Client SA" in owner.open(account).text and "<form" not in owner.page.text.partition("<main")[2]


def test_logged_content_is_read_by_its_owner_alone_and_each_look_is_recorded(
    control: Running, owner: Browser, people: dict[str, Browser], used: TenantSetup, known: dict[str, str]
) -> None:
    path = f"{root_of(used)}/projects/{used.project_id}/content"
    assert known["request_id"] in owner.open(path).text
    shown = owner.open(f"{path}/{known['request_id']}").text
    assert "&lt;script&gt;alert(1)" in shown and "<script>alert" not in shown and "this is its beginning" in shown
    for role in ("admin", "developer", "reader"):
        assert people[role].open(path).status_code == 403 and path not in people[role].open(path.rpartition("/")[0]).text
    events = answered(control.client(used.admin_key).get("/v1/organization/audit_logs", params={"limit": 100}))["data"]
    assert len([each for each in events if each["type"].startswith("content") and each["type"].endswith(".read")]) >= 2
