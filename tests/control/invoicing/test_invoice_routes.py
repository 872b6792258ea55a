"""Through the API and the command line: a finance person invoices a month, and its organization reads the invoice; nobody else does."""

import hashlib
import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tests.control.browsing import join
from tests.control.harness import Running, answered
from tests.control.invoicing.parties import BUYER, SELLER
from tests.control.invoicing.test_payments import dun, entry, is_restricted, statement
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import SEPTEMBER, close, ended
from tests.control.test_routes import refused
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.cli.app import run
from tollway.domain.billing_classes import Quantities
from tollway.domain.periods import period_id
from tollway.domain.usage import Tick

PERIOD = period_id(ORGANIZATION, SEPTEMBER.start_at)
SELLER_FIELDS = {name: value for name, value in msgspec.to_builtins(SELLER).items() if name not in ("id", "created_at", "automatic_since")}
BUYER_FIELDS = {name: value for name, value in msgspec.to_builtins(BUYER).items() if name != "organization_id"}


@pytest.fixture
def control(fresh_control: Running) -> Running:
    """A control plane with a closed September, in which a request cost eleven hundred euros."""
    database = fresh_control.plane.database
    fill(database)
    dear = final(admit(2), used=Quantities(0, 0, 10**9, 0))
    take(database, fresh_control.plane.archive, frames([*ended(1, EPOCH), dear.admit, dear, Tick(at=SEPTEMBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    return fresh_control


def tenant(control: Running, organization_id: str = ORGANIZATION) -> httpx2.Client:
    return control.client(control.platform_key, **{"openai-organization": organization_id})


def test_158_an_organization_reads_its_own_issued_invoices_and_nobody_elses(control: Running, tmp_path: Path) -> None:
    operator, own, other = control.operator(), tenant(control), tenant(control, OTHER_ORGANIZATION)
    entity = answered(operator.post("/v1/platform/legal_entities", json=SELLER_FIELDS))
    account = f"/v1/platform/organizations/{ORGANIZATION}/billing_account"
    refused(operator.get(account), 404, "not_found")
    wrong = BUYER_FIELDS | {"legal_entity_id": entity["id"], "vat_id": "DE129273399"}
    refused(operator.put(account, json=wrong), 400, "invalid_value", "vat_id")
    checked = BUYER_FIELDS | {"legal_entity_id": entity["id"], "vat_check": {"vat_id": "FR40303265045", "checked_at": 1790000000}}
    refused(operator.put(account, json=checked), 400, "invalid_value", "vat_check")
    refused(operator.post(f"/v1/platform/periods/{PERIOD}/invoices"), 404, "not_found")
    answered(operator.put(account, json=BUYER_FIELDS | {"legal_entity_id": entity["id"]}))
    (previewed,) = answered(operator.get(f"/v1/platform/periods/{PERIOD}/invoice_preview"))["data"]
    (draft,) = answered(operator.post(f"/v1/platform/periods/{PERIOD}/invoices"))["data"]
    assert (draft["state"], draft["number"], draft["net"], draft["tax"]) == ("draft", None, "1100.00", "209.00")
    assert previewed["totals"]["gross_minor"] == 130_900
    files = f"/v1/organization/invoices/{draft['id']}/files"
    assert answered(own.get("/v1/organization/invoices"))["data"] == []
    for hidden in (f"/v1/organization/invoices/{draft['id']}", f"{files}/json", f"{files}/pdf"):
        refused(own.get(hidden), 404, "not_found")
    refused(operator.get(f"/v1/platform/invoices/{draft['id']}/files/ubl"), 404, "not_found")
    assert operator.get(f"/v1/platform/invoices/{draft['id']}/files/pdf").content.startswith(b"%PDF")
    issued = answered(operator.post(f"/v1/platform/invoices/{draft['id']}/issue"))
    assert issued["number"] == "RE-2026-000001" and issued["issued_by"].startswith("key_")
    assert answered(own.get(f"/v1/organization/invoices/{draft['id']}"))["issued_by"] is None
    assert [each["id"] for each in answered(own.get("/v1/organization/invoices"))["data"]] == [draft["id"]]
    assert hashlib.sha256(own.get(f"{files}/json").content).hexdigest() == issued["digest"]
    assert own.get(f"{files}/ubl").content == operator.get(f"/v1/platform/invoices/{draft['id']}/files/ubl").content
    assert b"factur-x.xml" in own.get(f"{files}/pdf").content
    assert answered(own.get("/v1/organization/billing_account"))["account"]["name"] == BUYER.name
    page = join(control, own, "buyer@example.com", "billing").open(f"/console/organizations/{ORGANIZATION}/invoices/{draft['id']}")
    assert page.status_code == 200 and "RE-2026-000001" in page.text and "1,309.00 EUR" in page.text
    assert answered(other.get("/v1/organization/invoices"))["data"] == []
    never = f"/v1/organization/invoices/inv_{'0' * 32}"
    for path in ("", "/files/json", "/files/pdf"):
        seen, unseen = other.get(f"/v1/organization/invoices/{draft['id']}{path}"), other.get(never + path)
        assert refused(seen, 404, "not_found") == refused(unseen, 404, "not_found")
    refused(operator.post(f"/v1/platform/invoices/{draft['id']}/void"), 409, "conflict")
    refused(
        operator.post(f"/v1/platform/invoices/{draft['id']}/credit_notes", json={"amount": "1100.01", "reason": "r"}),
        400,
        "invalid_value",
        "amount",
    )
    for _ in range(2):
        dun(control.plane.database, (issued["issued_at"] + 60 * 86_400) * 1_000_000)
    assert is_restricted(control.plane.database)
    note = answered(operator.post(f"/v1/platform/invoices/{draft['id']}/credit_notes", json={"reason": "r"}))
    answered(operator.post(f"/v1/platform/invoices/{note['id']}/issue"))
    assert not is_restricted(control.plane.database), "the credit note settles what was overdue"


def test_a_finance_person_invoices_a_month_by_the_command_line(
    control: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLWAY_CONTROL_URL", str(control.operator().base_url))
    monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)

    def called(*arguments: str) -> Any:
        code = run(["invoices", *arguments])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    (tmp_path / "seller.yaml").write_text(json.dumps(SELLER_FIELDS))
    entity = json.loads(called("set-seller", str(tmp_path / "seller.yaml"), "-o", "json"))
    (tmp_path / "account.yaml").write_text(json.dumps(BUYER_FIELDS | {"legal_entity_id": entity["id"]}))
    called("set-account", ORGANIZATION, str(tmp_path / "account.yaml"))
    assert entity["id"] in called("account", ORGANIZATION) and "RE-2026" in called("sellers")
    previewed = called("preview", PERIOD)
    assert "invoice: net 1100.00, tax 209.00, gross 1309.00 EUR" in previewed and "1000000030" in previewed
    (draft,) = json.loads(called("draft", PERIOD, "-o", "json"))
    assert "issued RE-2026-000001" in called("issue", draft["id"])
    called("download", draft["id"], "--own", "--organization", ORGANIZATION, "--format", "json", "-f", str(tmp_path / "invoice.json"))
    assert json.loads((tmp_path / "invoice.json").read_text())["number"] == "RE-2026-000001"
    assert "RE-2026-000001 agrees" in called("verify", draft["id"], "--organization", ORGANIZATION)
    note = json.loads(called("credit", draft["id"], "--amount", "100", "--reason", "as agreed", "-o", "json"))
    called("void", note["id"])
    assert "void" in called("list", "--organization", ORGANIZATION) and "RE-2026-000001" in called("show", draft["id"])


def test_the_commands_of_a_month_work_as_the_page_prints_them(
    control: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The month and the organization are those of the fixture, and the words in capitals ids that commands before have printed."""
    monkeypatch.setenv("TOLLWAY_CONTROL_URL", str(control.operator().base_url))
    monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs/invoices.md").read_text("utf-8")
    block = page.partition("## A month in commands\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^    tollway (.*)$", block, re.MULTILINE)
    assert len(lines) > 20
    now = datetime.now(UTC).date()
    names = {"acme": ORGANIZATION, "2026-11": "2026-09", "2026-12": f"{now:%Y-%m}", "2026-12-15": str(now + timedelta(days=7))}
    Path("seller.yaml").write_text(json.dumps(SELLER_FIELDS))
    Path("statement.xml").write_text(statement(entry("1284.00", "invoice 1", "A1"), entry("6.00", "RE-2026-000001", "A2")))
    for line in lines:
        if "set-account" in line:
            Path("account.yaml").write_text(json.dumps(BUYER_FIELDS | {"legal_entity_id": names["ENTITY"]}))
        words = [names.get(word, word) for word in shlex.split(line, comments=True)]
        code = run(words)
        said = capsys.readouterr()
        assert code == 0, (line, said.err)
        printed = {"ENTITY": r"entity_\w{32}", "PAYMENT": r"pay_\w{32}", "ENTRY": r"^[0-9a-f]{40}\b"}
        if line.startswith(("invoices draft", "invoices credit")):
            printed["INVOICE" if "draft" in line else "NOTE"] = r"inv_\w{32}"
        for name, pattern in printed.items():
            found = re.search(pattern, said.out, re.MULTILINE)
            names[name] = names.get(name, name) if found is None else found[0]
    files = ("draft.pdf", "invoice.pdf", "transfers.xml", "costs.csv", "books.zip")
    assert all(Path(name).stat().st_size for name in files)
