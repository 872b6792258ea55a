"""Commands against a running control plane with usage in it: what they print agrees with what the API says."""

import json
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.control.harness import Running, answered
from tests.control.money.test_periods import ended
from tests.link.samples import EPOCH, NODE, ORGANIZATION, frames, request_id
from tests.storage.databases import fill
from tollway.cli.app import run
from tollway.domain.money import format_amount

PARIS = ZoneInfo("Europe/Paris")
MIDNIGHT = datetime.fromtimestamp(EPOCH // 10**6 + 86_400, PARIS).replace(hour=0, minute=0, second=0)
"""The middle of a night in Paris, which is 22:00 of the day before in UTC."""

MONTH = datetime.fromtimestamp(EPOCH // 10**6, PARIS).replace(day=1, hour=0, minute=0, second=0)
NEXT_MONTH = (MONTH.replace(day=28) + (MONTH.replace(day=28) - MONTH.replace(day=24))).replace(day=1)


@pytest.fixture
def control(fresh_control: Running) -> Running:
    """With an organization in Paris and three of its requests, on two days of Paris that are one day of UTC."""
    fill(fresh_control.plane.database)
    operator = fresh_control.operator()
    answered(operator.post(f"/v1/platform/organizations/{ORGANIZATION}", json={"time_zone": "Europe/Paris"}))
    tenant = fresh_control.client(fresh_control.platform_key, **{"openai-organization": ORGANIZATION})
    project = answered(tenant.post("/v1/organization/projects", json={"name": "chat"}))
    key = answered(tenant.post(f"/v1/organization/projects/{project['id']}/api_keys", json={"name": "laptop"}))
    of = {"project_id": project["id"], "key_id": key["id"]}
    before_midnight = int(MIDNIGHT.timestamp()) * 10**6 - 1
    body = frames([*ended(1, before_midnight - 1, **of), *ended(2, before_midnight, **of), *ended(3, before_midnight + 1, **of)])
    answered(fresh_control.node().put(f"/v1/link/records/{NODE}/{EPOCH}/1", content=b"".join(body)))
    return fresh_control


@pytest.fixture
def printed(control: Running, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command with the platform's key and return what it printed."""

    def do(*arguments: str, code: int = 0) -> str:
        assert run([*arguments, "--control-url", control.url, "--key", control.platform_key]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return do


def test_a_period_is_shown_from_midnight_to_midnight_of_its_own_zone(printed: Any) -> None:
    row = printed("periods", "list").splitlines()[1]
    assert f"  {MONTH:%Y-%m-%d}  {NEXT_MONTH:%Y-%m-%d}  Europe/Paris  open  " in row
    assert f"  {ORGANIZATION}  " in row
    in_utc = printed("periods", "list", "--zone", "UTC")
    assert f"{MONTH.astimezone(ZoneInfo('UTC')):%Y-%m-%d %H:%M:%SZ}" in in_utc
    assert json.loads(printed("periods", "list", "-o", "json"))[0]["start_time"] == int(MONTH.timestamp())


def test_usage_prints_the_same_buckets_as_table_and_as_json(printed: Any) -> None:
    of = ("--organization", ORGANIZATION, "--since", f"{MONTH:%Y-%m}", "--until", f"{NEXT_MONTH:%Y-%m}")
    (bucket,) = json.loads(printed("usage", *of, "-o", "json"))
    assert (bucket["start_time"], bucket["end_time"]) == (int(MONTH.timestamp()), int(NEXT_MONTH.timestamp()))
    (result,) = bucket["results"]
    assert result["num_model_requests"] == 3
    line = printed("usage", *of).splitlines()[1].split()
    assert [int(cell) for cell in line[-4:]] == [
        result[name] for name in ("num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")
    ]

    daily = json.loads(printed("usage", *of, "--bucket", "1d", "-o", "json"))
    assert all(datetime.fromtimestamp(each["start_time"], PARIS).hour == 0 for each in daily)
    assert sum(result["num_model_requests"] for each in daily for result in each["results"]) == 3
    table = [line.split() for line in printed("usage", *of, "--bucket", "1d").splitlines()[1:-1]]
    with_usage = [each for each in daily if each["results"]]
    assert [line[0] for line in table] == [f"{datetime.fromtimestamp(each['start_time'], PARIS):%Y-%m-%d}" for each in with_usage]
    assert [int(line[-4]) for line in table] == [each["results"][0]["num_model_requests"] for each in with_usage] == [2, 1]


def test_costs_of_a_month_are_those_of_its_billing_period(printed: Any) -> None:
    of = ("--organization", ORGANIZATION, "-o", "json")
    month = ("--since", f"{MONTH:%Y-%m}", "--until", f"{NEXT_MONTH:%Y-%m}")
    (bucket,) = json.loads(printed("costs", *of, *month))
    total = sum(int(result["amount"]["value_pico"]) for result in bucket["results"])
    transactions = json.loads(printed("ledger", "transactions", "-o", "json"))
    billed = [int(entry["amount_pico"]) for each in transactions for entry in each["entries"]]
    assert total == sum(pico for pico in billed if pico > 0) > 0
    daily = json.loads(printed("costs", *of, *month, "--daily"))
    by_day = {
        f"{datetime.fromtimestamp(each['start_time'], PARIS):%Y-%m-%d}": sum(
            int(result["amount"]["value_pico"]) for result in each["results"]
        )
        for each in daily
        if each["results"]
    }
    before = MIDNIGHT - timedelta(hours=12)
    assert by_day == {f"{before:%Y-%m-%d}": total // 3 * 2, f"{MIDNIGHT:%Y-%m-%d}": total // 3}
    assert printed("costs", *of[:2], *month).splitlines()[-1].split() == ["total", "EUR", format_amount(total)]


def test_receipt_prints_its_lines_as_a_table(printed: Any) -> None:
    of = ("--organization", ORGANIZATION)
    receipt = json.loads(printed("receipt", request_id(1), *of, "-o", "json"))
    lines = printed("receipt", request_id(1), *of).splitlines()
    assert ["net_cost", receipt["net_cost"]["value_decimal"], "EUR"] in [line.split() for line in lines]
    price = receipt["price"]
    assert price["holds_by"] == price["valid_from"] + price["snapshot_age_seconds_max"]
    shown = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("price_")}
    assert (shown["price_version"], len(shown["price_valid_from"]), len(shown["price_holds_by"])) == ([receipt["price_version"]], 2, 2)
    heading = next(at for at, line in enumerate(lines) if line.startswith("BILLING_CLASS"))
    assert [line.split()[0] for line in lines[heading + 1 :]] == [line["billing_class"] for line in receipt["lines"]]


def test_tables_of_operators_name_the_organization(printed: Any) -> None:
    name = json.loads(printed("organizations", "show", "--organization", ORGANIZATION, "-o", "json"))[0]["name"]
    for command in (("periods", "list"), ("ledger", "balances"), ("ledger", "transactions")):
        assert f"  {name}  " in printed(*command), command


def test_usage_by_project_names_the_project_beside_its_id(printed: Any) -> None:
    table = printed("usage", "--organization", ORGANIZATION, "--since", f"{MONTH:%Y-%m}", "--by", "project", "--by", "key")
    heading, line = table.splitlines()[:2]
    assert heading.split()[:4] == ["PROJECT_ID", "PROJECT", "API_KEY_ID", "API_KEY"]
    assert line.split()[1::2][:2] == ["chat", "laptop"]


def test_an_admin_key_sees_times_in_the_zone_of_its_organization(control: Running, capsys: pytest.CaptureFixture[str]) -> None:
    made = answered(
        control.operator().post("/v1/platform/organizations", json={"name": "sushi", "currency": "JPY", "time_zone": "Asia/Tokyo"})
    )
    admin = ("--control-url", control.url, "--key", made["admin_api_key"]["value"])
    assert run(["admin-keys", "list", *admin]) == 0
    assert capsys.readouterr().out.rstrip().endswith("+09:00")
    assert run(["organizations", "show", *admin]) == 0
    assert "sushi" in (shown := capsys.readouterr().out) and shown.rstrip().endswith("+09:00")
    assert run(["admin-keys", "list", "--zone", "UTC", *admin]) == 0
    assert capsys.readouterr().out.rstrip().endswith("Z")
