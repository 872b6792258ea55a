"""The money of a month on the pages of the platform: its period is closed, its invoice previewed, drafted, issued and corrected."""

import re

import pytest

from tests.control.browsing import Browser
from tests.control.harness import Running, answered
from tests.control.invoicing.parties import add_parties
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import SEPTEMBER, ended
from tests.control.money.test_serving_costs import add_deployments
from tests.link.samples import DEPLOYMENT, EPOCH, ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.control.money import serving_costs
from tollway.domain.billing_classes import Quantities
from tollway.domain.periods import period_id
from tollway.domain.usage import Tick

PLATFORM = "/console/platform"
PERIOD = f"{PLATFORM}/periods/{period_id(ORGANIZATION, SEPTEMBER.start_at)}"


def test_operator_closes_a_month_and_bills_it_with_forms_alone(
    control: Running, operator: Browser, auditor: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = control.plane.database
    fill(database)
    add_deployments(database)
    monkeypatch.setattr(serving_costs, "BACKDATED_US_MAX", 10**16)  # the samples are of another time than the clock
    cost = {"currency": "EUR", "valid_from": EPOCH // 10**6, "unit_costs": {"input": "0", "output": "1"}}
    answered(control.operator().post(f"/v1/platform/deployments/{DEPLOYMENT}/costs", json=cost))
    dear = final(admit(2), used=Quantities(0, 0, 10**9, 0))
    take(database, control.plane.archive, frames([*ended(1, EPOCH), dear.admit, dear, Tick(at=SEPTEMBER.end_at)]))

    assert "There is no preview:" in operator.open(f"{PERIOD}/invoices").text
    add_parties(database)
    shown = operator.open(f"{PERIOD}/invoices").text
    assert "1,309.00 EUR" in shown and "once the period is closed" in shown
    identifier = PERIOD.rpartition("/")[2]
    operator.open(PERIOD)
    assert "Nothing was changed" in operator.send(f"{PERIOD}/close", 400, confirmation="yes").text
    assert "The period is closed" in operator.send(f"{PERIOD}/close", confirmation=identifier).text

    margins = f"{PLATFORM}/margins?from_month=2026-09&until_month=2026-10"
    assert (
        "1,100.00 EUR" in operator.open(f"{margins}&group=organization").text
        and f"/console/organizations/{ORGANIZATION}" in operator.page.text
    )
    for group in ("model", "month", "none"):
        shown = auditor.open(f"{margins}&group={group}").text
        assert "1,100.00 EUR</data>" in shown and '<svg class="chart"' in shown and "tollway margins set-cost" in shown, group
    for path in (f"{PLATFORM}/margins.csv", f"{PLATFORM}/margins"):
        accepting = {"accept": "text/csv"}  # of a command in a shell
        shown = auditor.client.get(f"{path}?from_month=2026-09&group=organization", headers=accepting).text
        assert (f"\r\n,{ORGANIZATION},," if path.endswith("csv") else "1,100.00 EUR</data>") in shown
    refused = operator.open(f"{PLATFORM}/margins?from_month=2026-10&until_month=2026-09")
    assert refused.status_code == 400 and "before the first one" in refused.text
    assert operator.open(f"{PLATFORM}/margins?from_month=never").status_code == 400

    assert "<form" not in auditor.open(f"{PERIOD}/invoices").text.partition("<main")[2]
    operator.open(f"{PERIOD}/invoices")
    drafted = operator.send(f"{PERIOD}/invoices")
    assert drafted.url.path == f"{PLATFORM}/invoices" and "Drafts were made" in drafted.text
    found = re.search(rf'href="({PLATFORM}/invoices/inv_\w+)"', drafted.text)
    assert found is not None
    path = found.group(1)
    assert auditor.open(path).status_code == 200 and f"{path}/issue" not in auditor.page.text
    operator.open(path)
    operator.send(f"{path}/void")
    assert "The draft was voided." in operator.page.text and "<dd>void</dd>" in operator.page.text
    operator.open(f"{PERIOD}/invoices")
    operator.send(f"{PERIOD}/invoices")
    path = re.findall(rf'href="({PLATFORM}/invoices/inv_\w+)"', operator.page.text)[-1]
    operator.open(path)
    assert "Nothing was changed" in operator.send(f"{path}/issue", 400, confirmation="1").text
    assert "RE-2026-000001" in operator.send(f"{path}/issue", confirmation="1309.00").text
    pdf = operator.client.get(f"{path}/files/pdf")
    assert pdf.content.startswith(b"%PDF") and pdf.headers["content-disposition"].startswith("attachment")
    assert b"<?xml" in operator.client.get(f"{path}/files/ubl").content[:10]
    note = operator.send(f"{path}/credit_notes", amount="100", reason="as agreed")
    assert "Credit note" in note.text and note.url.path != path
    refused = operator.open(path) and operator.send(f"{path}/credit_notes", 400, amount="5000", reason="too much")
    assert "amount" in refused.text
    events = answered(control.operator().get("/v1/platform/audit_logs", params={"event_types": ["invoice.issued"]}))["data"]
    assert len(events) == 1
    assert operator.open(f"{PLATFORM}/payments").status_code == 200
