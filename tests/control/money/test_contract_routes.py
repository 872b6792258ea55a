"""Through the API and the command line: operators agree on contracts and preview bills; an organization reads its own alone."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.control.harness import Running, answered
from tests.control.invoicing.parties import add_parties
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import NOW, OCTOBER, SEPTEMBER, close, ended
from tests.control.test_routes import refused
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.cli.app import run
from tollway.control.invoicing import documents
from tollway.control.money import contracts
from tollway.domain.billing_classes import Quantities
from tollway.domain.ids import INVOICE, new_id
from tollway.domain.invoices import decode_document
from tollway.domain.periods import period_id
from tollway.domain.usage import Tick

PERIOD = period_id(ORGANIZATION, SEPTEMBER.start_at)
SINCE = OCTOBER.start_at // 1_000_000

TERMS: dict[str, Any] = {
    "name": "Enterprise",
    "currency": "EUR",
    "valid_from": SINCE,
    "valid_until": SINCE + 366 * 86_400,
    "discount_bp": 1_000,
    "tiered_prices": [
        {
            "model": "echo",
            "billing_class": "output",
            "schedule": "volume",
            "tiers": [{"up_to": 1_000_000, "price": "1.10"}, {"up_to": None, "price": "0.9"}],
        }
    ],
    "free_units": [{"model": "echo", "billing_class": "input", "quantity": 100}],
    "fees": [{"name": "Platform", "amount": "500"}, {"name": "Seat", "amount": "20.5", "per_seat": True}],
    "seats": 2,
    "minimum": "10",
    "commitment": {"amount": "1000", "prepaid": True},
    "service_levels": [{"objective": "first_token", "target_bp": 9_500, "credit_bp": 500, "within_ms": 800}],
}


@pytest.fixture
def control(fresh_control: Running) -> Running:
    """A control plane with a closed September, and an October in which contracts can begin."""
    database = fresh_control.plane.database
    fill(database)
    sent = [*ended(1, EPOCH), *ended(2, OCTOBER.start_at + 5), Tick(at=OCTOBER.end_at)]
    take(database, fresh_control.plane.archive, frames(sent))
    close(database, SEPTEMBER.start_at)
    return fresh_control


def tenant(control: Running, organization_id: str = ORGANIZATION) -> httpx2.Client:
    return control.client(control.platform_key, **{"openai-organization": organization_id})


def test_161_tenants_read_their_own_contracts_and_bills_and_nobody_elses(
    control: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contracts, "BACKDATED_US_MAX", 10**16)  # the samples are of another year than the clock of the process
    operator, own, other = control.operator(), tenant(control), tenant(control, OTHER_ORGANIZATION)
    path = f"/v1/platform/organizations/{ORGANIZATION}"
    for param, changes in (
        ("currency", {"currency": "USD"}),
        ("valid_from", {"valid_from": SINCE - 1}),
        ("valid_until", {"valid_until": SINCE}),
        ("seats", {"seats": 0}),
        ("commitment", {"valid_until": None}),
        ("tiered_prices", {"tiered_prices": [TERMS["tiered_prices"][0] | {"tiers": [{"up_to": None, "price": "-1"}]}]}),
        ("tiered_prices", {"tiered_prices": [TERMS["tiered_prices"][0] | {"tiers": [{"up_to": 5, "price": "1"}]}]}),
        ("service_levels", {"service_levels": [{"objective": "availability", "target_bp": 1, "credit_bp": 0}]}),
    ):
        refused(operator.post(f"{path}/contracts", json=TERMS | changes), 400, "invalid_value", param)
    refused(operator.post(f"/v1/platform/organizations/org_{'9' * 32}/contracts", json=TERMS), 404, "not_found")
    assert answered(own.get("/v1/organization/contracts"))["data"] == []
    made = answered(operator.post(f"{path}/contracts", json=TERMS))
    stated = {name: value for name, value in made["terms"].items() if name != "tiered_prices"}
    assert stated.items() >= {name: value for name, value in TERMS.items() if name in ("name", "seats", "commitment", "minimum")}.items()
    assert made["terms"]["tiered_prices"][0]["tiers"] == [{"up_to": 1_000_000, "price": "1.1"}, {"up_to": None, "price": "0.9"}]
    refused(operator.post(f"{path}/contracts", json=TERMS | {"valid_from": SINCE + 9}), 409, "conflict", "valid_from")
    assert [each["id"] for each in answered(own.get("/v1/organization/contracts"))["data"]] == [made["id"]]
    assert answered(other.get("/v1/organization/contracts"))["data"] == []
    end = f"contracts/{made['id']}/end"
    foreign = operator.post(f"/v1/platform/organizations/{OTHER_ORGANIZATION}/{end}", json={"valid_until": SINCE + 9})
    assert refused(foreign, 404, "not_found") == refused(
        operator.post(f"/v1/platform/organizations/{OTHER_ORGANIZATION}/contracts/contract_{'0' * 32}/end", json={}), 404, "not_found"
    )
    october = period_id(ORGANIZATION, OCTOBER.start_at)
    bill = answered(own.get(f"/v1/organization/periods/{october}/bill"))
    kinds = {line["kind"]: line["amount"] for line in bill["contract_lines"]}
    assert kinds["platform_fee"] == "500" and kinds["seat_fee"] == "41" and kinds["prepayment"] == "1000" and not bill["is_final"]
    refused(other.get(f"/v1/organization/periods/{october}/bill"), 404, "not_found")
    drafted = answered(operator.post(f"{path}/bill_preview", json={"period_id": PERIOD, "contract": TERMS | {"commitment": None}}))
    assert {line["kind"] for line in drafted["contract_lines"]} >= {"discount", "platform_fee", "minimum"} and not drafted["is_final"]
    assert drafted["present_total"] == answered(own.get(f"/v1/organization/periods/{PERIOD}/bill"))["total"]
    change = {"period_id": october, "contract": TERMS | {"valid_from": SINCE + 86_400, "commitment": None, "seats": 4}, "as_change": True}
    shown = answered(operator.post(f"{path}/bill_preview", json=change))
    assert Decimal(shown["total"]) - Decimal(shown["present_total"]) == Decimal(shown["difference"]) > 0
    refused(operator.post(f"{path}/bill_preview", json=change | {"contract": None}), 400, "invalid_value", "as_change")
    refused(operator.post(f"{path}/bill_preview", json=change | {"period_id": PERIOD}), 409, "conflict")
    unchanged = answered(operator.post(f"{path}/bill_preview", json={"period_id": PERIOD}))
    assert unchanged["contract_lines"] == [] and unchanged["is_final"]
    refused(operator.post(f"{path}/bill_preview", json={"period_id": "period_1"}), 404, "not_found")
    close(control.plane.database, OCTOBER.start_at, now=NOW)
    closed = answered(own.get(f"/v1/organization/periods/{october}/bill"))
    assert closed["contract_lines"] == bill["contract_lines"] and closed["is_final"]
    period = answered(own.get(f"/v1/organization/periods/{october}"))
    costs = answered(own.get(f"/v1/organization/periods/{october}/costs"))
    assert period["total"] == costs["total"] == closed["total"]
    assert {each["line_item"] for each in costs["data"]} >= {"contract, platform_fee", "contract, prepayment"}

    monkeypatch.setenv("TOLLWAY_CONTROL_URL", str(operator.base_url))
    monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)

    def called(*arguments: str) -> str:
        code = run(["contracts", *arguments])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    assert "Enterprise" in called("list", "--organization", ORGANIZATION)
    assert "total before tax" in called("bill", october, "--organization", ORGANIZATION)
    (tmp_path / "draft.yaml").write_text(json.dumps(TERMS | {"commitment": None}))
    assert "platform fee: Platform" in called("preview", ORGANIZATION, PERIOD, "--contract", str(tmp_path / "draft.yaml"))
    called("end", ORGANIZATION, made["id"], "--at", "2026-12-01")
    (ended_one,) = answered(own.get("/v1/organization/contracts"))["data"]
    following = TERMS | {"name": "Next", "valid_from": ended_one["valid_until"] - 86_400, "valid_until": None, "commitment": None}
    (tmp_path / "next.yaml").write_text(json.dumps(following))
    assert "Next" in called("create", ORGANIZATION, str(tmp_path / "next.yaml"), "--replaces", made["id"])

    file = tmp_path / "platform.yaml"
    assert run(["export", "-f", str(file)]) == 0
    text = yaml.safe_dump({"organizations": yaml.safe_load(file.read_text())["organizations"]})  # the model of the samples has no endpoint
    file.write_text(text)
    assert "Next:" in text and made["id"] not in text
    assert run(["apply", "-f", str(file), "--dry-run"]) == 0 and "nothing to change" in capsys.readouterr().out
    for change, said in (
        (("discount_bp: 1000", "discount_bp: 999"), "never changes: discount_bp"),
        (("Next:", f"Late: {{valid_from: {SEPTEMBER.start_at // 10**6}, valid_until: {SINCE}}}\n      Next:"), "closed up to"),
    ):
        file.write_text(text.replace(*change, 1))
        assert run(["apply", "-f", str(file), "--dry-run"]) == 2
        assert said in capsys.readouterr().err


def test_a_contract_of_the_platform_file_is_applied_billed_as_it_says_and_exported_as_it_was(
    control: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contracts, "BACKDATED_US_MAX", 10**16)  # the samples are of another year than the clock of the process
    monkeypatch.setenv("TOLLWAY_CONTROL_URL", str(control.operator().base_url))
    monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)
    database, file, exported = control.plane.database, tmp_path / "platform.yaml", tmp_path / "exported.yaml"
    agreed = {
        "valid_from": SINCE,
        "discount_bp": 1_000,
        "fees": [{"name": "Platform", "amount": "500"}, {"name": "Seat", "amount": "20.5", "per_seat": True}],
        "seats": 2,
        "free_units": [{"model": "echo", "billing_class": "input", "quantity": 100_000_000}],
    }

    def apply(terms: dict[str, Any], *options: str) -> int:
        file.write_text(json.dumps({"organizations": {ORGANIZATION: {"currency": "EUR", "contracts": {"Enterprise": terms}}}}))
        return run(["apply", "-f", str(file), *options])

    assert apply(agreed, "--dry-run") == 3 and "+ contract" in capsys.readouterr().out
    assert (apply(agreed), apply(agreed, "--dry-run")) == (0, 0)
    assert apply({**agreed, "discount_bp": 2_000}) == 2 and "never changes: discount_bp" in capsys.readouterr().err
    large = final(admit(3, admitted_at=OCTOBER.start_at + 10), used=Quantities(2_000_000_000))
    epoch = OCTOBER.start_at
    take(database, control.plane.archive, frames([large.admit, large, Tick(at=OCTOBER.end_at)], epoch=epoch), epoch=epoch)
    close(database, OCTOBER.start_at)
    add_parties(database)
    with database.platform() as tx:
        (draft,) = documents.draft_period(tx, period_id(ORGANIZATION, OCTOBER.start_at), lambda: new_id(INVOICE, NOW, 1), NOW)
        document = decode_document(documents.issue(tx, draft.id, actor="key_1", now=NOW).document)
    # 2,000 million input tokens at 0.27, a fee and two seats; 100 million tokens are free, and of the rest of the usage a tenth.
    lines = [(str(line.kind), line.net_minor) for line in document.lines if line.net_minor]
    assert lines == [("usage", 54_000), ("contract", 50_000), ("contract", 4_100)]
    assert [(str(each.kind), each.net_minor) for each in document.allowances] == [("discount", 2_700 + 5_130)]
    assert run(["export", "-f", str(exported)]) == 0
    found = yaml.safe_load(exported.read_text())["organizations"][ORGANIZATION]["contracts"]["Enterprise"]
    assert {name: found[name] for name in ("valid_from", "discount_bp", "seats", "free_units")} == {
        name: agreed[name] for name in ("valid_from", "discount_bp", "seats", "free_units")
    }
    assert apply(found, "--dry-run") == 0, "it is the contract that is there"
