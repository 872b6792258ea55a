"""The money of a month on the pages of the platform: its period is closed, its invoice previewed, drafted, issued and corrected."""

import re

from tests.control.browsing import Browser
from tests.control.harness import Running, answered
from tests.control.invoicing.parties import add_parties
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import SEPTEMBER, ended
from tests.link.samples import EPOCH, ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.domain.billing_classes import Quantities
from tollway.domain.periods import period_id
from tollway.domain.usage import Tick

PLATFORM = "/console/platform"
PERIOD = f"{PLATFORM}/periods/{period_id(ORGANIZATION, SEPTEMBER.start_at)}"


def test_operator_closes_a_month_and_bills_it_with_forms_alone(control: Running, operator: Browser, auditor: Browser) -> None:
    database = control.plane.database
    fill(database)
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
    assert "was voided" in operator.page.text or "voided" in operator.page.text
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
