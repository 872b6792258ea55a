"""Through the API: an operator closes a month and corrects it, a tenant reads, proves and exports it; nobody sees another's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.control.auditing.test_audit import VERIFIER
from tests.control.harness import Running, answered
from tests.control.money.test_periods import OCTOBER, SEPTEMBER, ended
from tests.control.test_routes import refused
from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.cli.app import run
from tollway.domain.billing_classes import Quantities
from tollway.domain.money import PICO
from tollway.domain.periods import period_id

DAY = 86_400
DEAR = 10**9 * 1_100_000 + 5
"""Cost of request 2: eleven hundred euros."""

COST = 100 * 270_000 + 20 * 27_000 + 30 * 1_100_000 + 4 * 1_100_000 + 5
PERIOD = period_id(ORGANIZATION, SEPTEMBER.start_at)


@pytest.fixture
def control(fresh_control: Running) -> Running:
    """A control plane that ingested three requests of September and one of another tenant; their gateway then stopped reporting."""
    fill(fresh_control.plane.database)
    dear = final(admit(2), used=Quantities(0, 0, 10**9, 0))
    other = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}
    body = frames([*ended(1, EPOCH), dear.admit, dear, *ended(3, EPOCH + 9), *ended(4, EPOCH, **other)])
    answered(fresh_control.node(NODE).put(f"/v1/link/records/{NODE}/{EPOCH}/1", content=b"".join(body)))
    return fresh_control


def tenant(control: Running, organization_id: str = ORGANIZATION) -> httpx2.Client:
    return control.client(control.platform_key, **{"openai-organization": organization_id})


def close(control: Running) -> Any:
    operator = control.operator()
    (asked,) = answered(operator.post(f"/v1/platform/nodes/{NODE}/lost", json={"reason": "the disk is gone"}))["data"]
    path = f"/v1/platform/lost_requests/{asked['id']}"
    refused(operator.post(f"{path}/approve"), 409, "conflict")
    refused(operator.post(f"/v1/platform/periods/{PERIOD}/close"), 409, "period_blocked")
    assert answered(operator.get("/v1/platform/lost_requests", params={"state": "pending"}))["data"] == [asked]
    declared = answered(control.client(control.second_platform_key).post(f"{path}/approve"))
    assert (asked["state"], declared["state"], declared["approver"] != asked["actor"]) == ("pending", "declared", True)
    return answered(operator.post(f"/v1/platform/periods/{PERIOD}/close"))


def verified(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-S", str(VERIFIER), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def costs(client: httpx2.Client, **query: Any) -> dict[str, int]:
    """Pico by line item, over all time."""
    sums: dict[str, int] = {}
    query = {"start_time": SEPTEMBER.start_at // 10**6, "group_by": ["line_item"], "limit": 180, **query}
    while True:
        page = answered(client.get("/v1/organization/costs", params=query))
        for bucket in page["data"]:
            for result in bucket["results"]:
                sums[str(result["line_item"])] = sums.get(str(result["line_item"]), 0) + int(result["amount"]["value_pico"])
        if not page["has_more"]:
            return sums
        query["page"] = page["next_page"]


class TestClosing:
    def test_is_refused_with_the_gateways_that_are_missing_until_they_are_declared_lost(self, control: Running) -> None:
        operator, client = control.operator(), tenant(control)
        (listed,) = answered(client.get("/v1/organization/periods"))["data"]
        assert (listed["id"], listed["state"], listed["merkle_root"]) == (PERIOD, "open", None)
        assert int(listed["total_pico"]) == 2 * COST + DEAR, "an open period shows what is booked in it so far"
        assert answered(client.get(f"/v1/organization/periods/{PERIOD}"))["total_pico"] == listed["total_pico"]
        refused(client.get(f"/v1/organization/periods/{PERIOD}/export"), 409, "conflict")
        refused(client.get(f"/v1/organization/periods/{PERIOD}/proofs/{samples.request_id(1)}"), 409, "conflict")
        error = refused(operator.post(f"/v1/platform/periods/{PERIOD}/close"), 409, "period_blocked")
        assert NODE in str(error)
        (blocker,) = answered(operator.get(f"/v1/platform/periods/{PERIOD}/blockers"))["data"]
        assert (blocker["node_id"], blocker["epoch"]) == (NODE, EPOCH)
        closed = close(control)
        assert (closed["state"], closed["events"], closed["currency"]) == ("closed", 3, "EUR")
        assert int(closed["total_pico"]) == 2 * COST + DEAR
        (row,) = closed["report"]["epochs"]
        assert (row["cover"], row["lost"]["reason"]) == ("lost", "the disk is gone")
        assert answered(client.get(f"/v1/organization/periods/{PERIOD}")) == closed
        assert answered(operator.get("/v1/platform/periods", params={"state": "closed"}))["data"][0]["id"] == PERIOD
        (epoch,) = answered(operator.get("/v1/platform/epochs", params={"only_lost": True}))["data"]
        assert (epoch["state"], epoch["lost"]["records_after"]) == ("lost", 0)
        assert "tollway_control_epochs_lost 1.0" in control.node().get("/metrics").text
        assert {"period_closed", "lost_request"} <= {str(line["event"]) for line in control.lines}

    def test_gives_the_tenant_all_that_an_auditor_needs(self, control: Running, tmp_path: Path) -> None:
        root = close(control)["merkle_root"]
        client = tenant(control)
        exported = client.get(f"/v1/organization/periods/{PERIOD}/export")
        assert exported.headers["content-type"].startswith("application/x-ndjson")
        (tmp_path / "export").write_bytes(exported.content)
        assert "everything agrees: 3 events" in verified(str(tmp_path / "export"), "--root", root)
        proof = answered(client.get(f"/v1/organization/periods/{PERIOD}/proofs/{samples.request_id(3)}"))
        (tmp_path / "proof").write_text(json.dumps(proof))
        assert samples.request_id(3) in verified("--proof", str(tmp_path / "proof"), "--root", root)

    def test_is_no_business_of_another_tenant(self, control: Running) -> None:
        close(control)
        client = tenant(control, OTHER_ORGANIZATION)
        for path in ("", "/export", f"/proofs/{samples.request_id(1)}"):
            refused(client.get(f"/v1/organization/periods/{PERIOD}{path}"), 404, "not_found")
        theirs = answered(client.get("/v1/organization/periods"))["data"]
        assert [period["organization_id"] for period in theirs] == [OTHER_ORGANIZATION]
        refused(tenant(control).get(f"/v1/organization/periods/{PERIOD}/proofs/{samples.request_id(4)}"), 404, "not_found")


class TestCosts:
    def test_of_a_period_are_its_totals_and_stay_when_it_is_closed(self, control: Running) -> None:
        """A late request and corrections, of a closed month and of its own, are booked in October; September never changes."""
        operator, client = control.operator(), tenant(control)
        september = period_costs(client, PERIOD)
        assert (september["state"], september["data"][0]["line_item"]) == ("open", "echo, cached_input_tokens")
        closed = close(control)
        final = period_costs(client, PERIOD)
        assert (final["total_pico"], final["data"]) == (closed["total_pico"], september["data"])
        assert int(final["total_pico"]) == sum(int(each["amount"]["value_pico"]) for each in final["data"])
        body = {"request_id": samples.request_id(1), "kind": "credit", "amount": "0.00001", "reason": "it was slow"}
        answered(operator.post("/v1/platform/adjustments", json=body))
        replaced = {
            "request_id": samples.request_id(3),
            "kind": "replace",
            "quantities": {"input": 1, "output": 0, "request": True},
            "reason": "r",
        }
        moved = int(answered(operator.post("/v1/platform/adjustments", json=replaced))["amount_pico"])
        assert period_costs(client, PERIOD) == final
        october = period_costs(client, period_id(ORGANIZATION, OCTOBER.start_at))
        assert [(each["line_item"], each["amount"]["value_pico"]) for each in october["data"]] == [("correction, echo", str(moved - 10**7))]
        by_model = period_costs(client, PERIOD, group_by="model")
        assert [(each["model"], each["amount"]["value_pico"]) for each in by_model["data"]] == [("echo", final["total_pico"])]

    def test_show_what_the_prefix_cache_saved_at_the_price_of_each_request(
        self, control: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = f"/v1/organization/periods/{PERIOD}/cache_savings"
        expected = {"cached_input": "40", "saved": "0.00000972", "cache_write": "0", "surcharge": "0"}  # 40 x (270,000 - 27,000) pico
        found = answered(tenant(control).get(path))
        assert [{name: each[name] for name in expected} for each in found["data"]] == [expected]
        assert (found["total"], found["currency"], found["data"][0]["model"]) == ("0.00000972", "eur", "echo")
        close(control)
        assert answered(tenant(control).get(path)) == found | {"state": "closed"}
        monkeypatch.setenv("TOLLWAY_CONTROL_URL", control.url)
        monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)
        assert run(["periods", "savings", "--period", PERIOD, "--organization", ORGANIZATION]) == 0
        assert "0.00000972" in capsys.readouterr().out

    def test_of_another_organization_are_not_there(self, control: Running) -> None:
        for path in ("costs", "cache_savings"):
            refused(tenant(control, OTHER_ORGANIZATION).get(f"/v1/organization/periods/{PERIOD}/{path}"), 404, "not_found")


def period_costs(client: httpx2.Client, id: str, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = answered(client.get(f"/v1/organization/periods/{id}/costs", params=query))
    return found


class TestCorrections:
    def test_are_on_the_receipt_in_the_costs_and_in_the_next_period(self, control: Running) -> None:
        close(control)
        operator, client = control.operator(), tenant(control)
        body = {"request_id": samples.request_id(1), "kind": "credit", "amount": "0.00001", "reason": "it was slow"}
        made = answered(operator.post("/v1/platform/adjustments", json=body))
        assert (made["state"], made["amount"], made["period_start_time"]) == ("applied", "-0.00001", OCTOBER.start_at // 10**6)
        receipt = answered(client.get(f"/v1/organization/requests/{samples.request_id(1)}"))
        assert (receipt["cost"]["value_pico"], receipt["net_cost"]["value_pico"]) == (str(COST), str(COST - 10**7))
        assert [each["reason"] for each in receipt["adjustments"]] == ["it was slow"]
        assert (receipt["billing_period"]["id"], receipt["billing_period"]["state"], receipt["billing_period"]["late"]) == (
            PERIOD,
            "closed",
            False,
        )
        found = costs(client)
        assert found["correction, echo"] == -(10**7)
        assert costs(client, line_items=["correction, echo"]) == {"correction, echo": -(10**7)}
        assert "correction, echo" not in costs(client, line_items=["echo, output_tokens"])
        assert sum(costs(client, group_by=["project_id"]).values()) == sum(found.values())
        balances = answered(operator.get("/v1/platform/ledger/balances", params={"owner": ORGANIZATION}))["data"]
        assert int(balances[0]["amount_pico"]) == sum(found.values()) == 2 * COST + DEAR - 10**7
        transactions = answered(operator.get("/v1/platform/ledger/transactions", params={"organization_id": ORGANIZATION}))["data"]
        assert [each["adjustment_id"] for each in transactions if each["cause"] == "adjustment"] == [made["id"]]

    def test_above_the_limit_need_a_second_operator(self, control: Running) -> None:
        operator = control.operator()
        assert control.plane.approval_above_pico == 100 * PICO < DEAR
        waiting = answered(
            operator.post("/v1/platform/adjustments", json={"request_id": samples.request_id(2), "kind": "void", "reason": "r"})
        )
        assert (waiting["state"], waiting["needs_approval"], waiting["period_start_time"]) == ("pending", True, None)
        path = f"/v1/platform/adjustments/{waiting['id']}"
        refused(operator.post(f"{path}/approve"), 409, "conflict")
        assert answered(tenant(control).get(f"/v1/organization/requests/{samples.request_id(2)}"))["adjustments"] == []
        own, other = answered(operator.get("/v1/platform/keys"))["data"]
        assert [(each["origin"], each["created_by"]) for each in (own, other)] == [("first", None), ("second", None)]
        minted = answered(operator.post("/v1/platform/keys", json={"name": "second"}))
        assert (minted["origin"], minted["created_by"]) == ("first", own["id"])
        refused(control.client(minted["value"]).post(f"{path}/approve"), 409, "conflict")
        person = control.client(control.second_platform_key)
        second = answered(person.post("/v1/platform/keys", json={"name": "third"}))
        approved = answered(control.client(second["value"]).post(f"{path}/approve"))
        assert (approved["state"], approved["approver"]) == ("applied", second["id"])
        assert answered(operator.get(path)) == approved
        assert answered(operator.get("/v1/platform/adjustments", params={"state": "applied"}))["data"] == [approved]
        assert answered(operator.get("/v1/platform/adjustments", params={"state": "pending"}))["data"] == []
        names = [key["name"] for key in answered(operator.get("/v1/platform/keys"))["data"]]
        assert names == ["Key of the settings", "Second key of the settings", "second", "third"]
        answered(operator.delete(f"/v1/platform/keys/{second['id']}"))
        refused(control.client(second["value"]).get(path), 401, "invalid_api_key")
        for each in (own, other):
            refused(operator.delete(f"/v1/platform/keys/{each['id']}"), 409, "conflict")

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ({"kind": "void", "amount": "1"}, "unknown_parameter"),
            ({"kind": "credit", "quantities": {"input": 1, "output": 1}}, "unknown_parameter"),
            ({"kind": "credit"}, "missing_required_parameter"),
            ({"kind": "credit", "amount": "-1"}, "invalid_value"),
            ({"kind": "credit", "amount": 1}, "invalid_value"),
            ({"kind": "replace", "quantities": {"input": -1, "output": 1}}, "invalid_value"),
            ({"kind": "refund"}, "invalid_value"),
            ({"kind": "void", "reason": ""}, "invalid_value"),
            ({"kind": "void", "request_id": "req_" + "9" * 32}, "not_found"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, control: Running, body: dict[str, Any], code: str) -> None:
        sent = {"request_id": samples.request_id(1), "reason": "r", **body}
        answer = control.operator().post("/v1/platform/adjustments", json=sent)
        assert answer.json()["error"]["code"] == code


class TestTimeZones:
    def test_are_given_and_changed_by_operators(self, control: Running) -> None:
        operator = control.operator()
        body = {"name": "x", "currency": "EUR", "time_zone": "Asia/Kathmandu"}
        made = answered(operator.post("/v1/platform/organizations", json=body))
        assert made["time_zone"] == "Asia/Kathmandu"
        path = f"/v1/platform/organizations/{made['id']}"
        assert answered(operator.post(path, json={"time_zone": "Europe/Berlin"}))["time_zone"] == "Europe/Berlin"
        refused(operator.post(path, json={"time_zone": "Mars/Olympus"}), 400, "invalid_value", "time_zone")
        refused(operator.post("/v1/platform/organizations", json=body | {"time_zone": "../x"}), 400, "invalid_value", "time_zone")


class TestTheCommandLine:
    def test_walks_an_operator_through_a_month(
        self, control: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TOLLWAY_CONTROL_URL", control.url)
        monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)

        def tollway(*arguments: str, code: int = 0) -> str:
            assert run(arguments) == code, capsys.readouterr().err
            said = capsys.readouterr()
            return said.out + said.err

        assert PERIOD in tollway("periods", "list", "--organization", ORGANIZATION)
        assert NODE in tollway("periods", "blockers", PERIOD)
        assert "hint: see `tollway periods blockers`" in tollway("periods", "close", PERIOD, code=1)
        assert "open" in tollway("nodes", "epochs")
        asked = tollway("nodes", "lost", NODE, "--reason", "the disk is gone", "--yes")
        assert str(EPOCH) in asked and "waits for a second person" in asked
        request = asked.split()[0]
        assert "rejected" in tollway("nodes", "reject-lost", request)
        request = tollway("nodes", "lost", NODE, "--reason", "the disk is gone", "--yes").split()[0]
        assert "a second person" in tollway("nodes", "approve-lost", request, code=1)
        assert "declared" in tollway("nodes", "approve-lost", request, "--key", control.second_platform_key)
        assert tollway("nodes", "lost-requests").count("lost_") == 2
        assert "the disk is gone" in tollway("nodes", "epochs", "--lost")
        closed = tollway("periods", "close")
        assert f"{PERIOD}  {ORGANIZATION}  2026-09-01  3 events" in closed
        assert "(1 runs of gateways declared lost)" in closed
        assert "nothing to close" in tollway("periods", "close")
        month = json.loads(tollway("costs", "--period", "2026-09", "-o", "json", "--organization", ORGANIZATION))
        assert (month["period_id"], month["state"]) == (PERIOD, "closed")
        table = tollway("costs", "--period", PERIOD, "--organization", ORGANIZATION)
        assert ["total", "EUR", month["total"]] in [line.split() for line in table.splitlines()]
        assert "so far" not in tollway("costs", "--period", "2026-09", "--by", "model", "--organization", ORGANIZATION)
        assert "nothing is booked" in tollway("costs", "--period", "2026-01", "--organization", ORGANIZATION, code=2)
        assert "applied" in tollway("corrections", "credit", samples.request_id(1), "0.00001", "--reason", "slow")
        waiting = tollway("corrections", "void", samples.request_id(2), "--reason", "r")
        assert "waits for a second person" in waiting
        assert "hint" not in tollway("corrections", "reject", waiting.split()[0])
        replace = ("corrections", "replace", samples.request_id(3), "--input-tokens", "1", "--output-tokens", "2", "--reason", "r")
        assert "applied" in tollway(*replace)
        assert tollway("corrections", "list").count("adj_") == 3
        tollway("periods", "export", "--period", PERIOD, "--file", "september", "--organization", ORGANIZATION)
        tollway("periods", "proof", samples.request_id(1), "--period", PERIOD, "--file", "proof", "--organization", ORGANIZATION)
        assert "everything agrees" in verified("september")
        assert samples.request_id(1) in verified("--proof", "proof")
        refused_export = tollway("periods", "export", "--period", period_id(ORGANIZATION, 0), "--organization", ORGANIZATION, code=1)
        assert "There is no such billing period." in refused_export
