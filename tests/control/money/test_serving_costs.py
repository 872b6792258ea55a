"""Costs of serving at control: stated, booked when a period closes and when a month is over, computed again, and reported as margin."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from tests.control.harness import Running, answered
from tests.control.metering.test_collect import balances, take
from tests.control.money.test_contracts import agree
from tests.control.money.test_periods import NOVEMBER, NOW, OCTOBER, SEPTEMBER, close, ended
from tests.control.test_routes import refused as refused_request
from tests.link.samples import DEPLOYMENT, EPOCH, ORGANIZATION, OTHER_ORGANIZATION, OTHER_PRICE, admit, final, frames
from tests.storage.databases import PostgresTemplate, fill
from tollway.cli.app import run
from tollway.control.catalog import catalog
from tollway.control.money import serving_costs
from tollway.control.verification.verify import verify
from tollway.domain import ids
from tollway.domain.billing_classes import NOTHING, UnitPrices
from tollway.domain.contracts import Fee
from tollway.domain.faults import Fault
from tollway.domain.serving_costs import HOUR_US, DeploymentCost, Margin, MarginGroup, MarginKey
from tollway.domain.usage import Outcome, Tick
from tollway.storage import schema, schema_serving_costs
from tollway.storage import serving_costs as stored_costs
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

UNITS = UnitPrices(input=10, cached_input=1, output=40, reasoning=40, request=2)
IDLE = "dep_" + "2" * 32
USED = 100 * 10 + 20 * 1 + 30 * 40 + 4 * 40 + 2
"""Cost of the units of one sample request."""


def add_deployments(database: Database) -> None:
    with database.platform() as tx:
        for deployment_id in (DEPLOYMENT, IDLE):
            tx.connection.execute(
                schema.deployments.insert().values(
                    id=deployment_id,
                    model="echo",
                    base_url="http://127.0.0.1:1",
                    engine="openai",
                    upstream_model="echo",
                    tier=0,
                    weight=1,
                    status="active",
                    created_at=0,
                )
            )


def state(
    database: Database,
    valid_from: int,
    hour_pico: int = 0,
    units: UnitPrices = NOTHING,
    *,
    deployment_id: str = DEPLOYMENT,
    number: int = 1,
    now: int = EPOCH,
    currency: str = "EUR",
) -> DeploymentCost:
    cost = DeploymentCost(
        id=ids.new_id(ids.COST, now, number),
        deployment_id=deployment_id,
        valid_from=valid_from,
        created_at=now,
        currency=currency,
        hour_pico=hour_pico,
        unit_costs=units,
    )
    with database.platform() as tx:
        return serving_costs.add_cost(tx, cost, now)


def read(database: Database, first: str, last: str, *groups: MarginGroup, **named: Any) -> dict[MarginKey, Margin]:
    with database.platform(write=False) as tx:
        found = serving_costs.report(tx, first, last, frozenset(groups), **{"organization_id": None, "model": None, **named})
    return dict(found.margins)


def refused(code: str, param: str | None, *arguments: Any, **named: Any) -> None:
    with pytest.raises(Fault) as raised:
        state(*arguments, **named)
    assert (raised.value.kind.code, raised.value.param) == (code, param)


def test_closed_periods_and_past_months_are_booked_once_and_computed_again(database: Database, archive: Archive) -> None:
    add_deployments(database)
    day = 86_400 * 10**6
    state(database, SEPTEMBER.start_at, units=UNITS)
    state(database, OCTOBER.start_at + day, 10**12, UNITS, number=2)
    state(database, OCTOBER.start_at, 24 * 10**9, deployment_id=IDLE, number=3)
    agree(database, OCTOBER.start_at, NOVEMBER.end_at, fees=(Fee(name="Platform", amount_pico=10**12, is_per_seat=False),))
    failed = admit(3, admitted_at=OCTOBER.start_at + 2 * day)
    other = {"organization_id": OTHER_ORGANIZATION, "price_version": OTHER_PRICE.id}
    records = [
        *ended(1, EPOCH),
        *ended(2, OCTOBER.start_at + 2 * day),
        failed,
        final(failed, outcome=Outcome.UPSTREAM_ERROR, ended_at=failed.admitted_at + 2_000, first_token_at=None),
        *ended(4, OCTOBER.start_at + 3 * day, **other),
        Tick(at=NOVEMBER.end_at),
    ]
    take(database, archive, frames(records))
    for _ in range(2):
        for month in (SEPTEMBER, OCTOBER):
            close(database, month.start_at)
        close(database, OCTOBER.start_at, OTHER_ORGANIZATION)
        serving_costs.book_due_capacity(database, NOW, lambda: False)
    assert verify(database, archive).differences == []
    hours = 30 * 24 * 10**12  # of October, without its first day
    november = 30 * 24 * 10**12
    idle = (31 * 24 + 30 * 24) * 24 * 10**9
    held = {name: pico for name, pico in balances(database).items() if "cost" in name}
    assert held == {
        "platform/cost_of_serving:echo/EUR": 4 * USED + hours + november + idle,
        f"platform/accrued_cost:{DEPLOYMENT}/EUR": -(4 * USED + hours + november),
        f"platform/accrued_cost:{IDLE}/EUR": -idle,
    }
    found = read(database, "2026-10", "2026-10", MarginGroup.ORGANIZATION, MarginGroup.MODEL)
    own, foreign = found[MarginKey(None, ORGANIZATION, "echo", "EUR")], found[MarginKey(None, OTHER_ORGANIZATION, "echo", "EUR")]
    assert own.unit_cost_pico == 2 * USED, "a request that failed costs what its engine counted"
    assert own.time_cost_pico == hours * 3_000 // 4_000 and foreign.time_cost_pico == hours - own.time_cost_pico
    assert own.revenue_pico > 0 and foreign.revenue_pico == 0, "revenue in another currency stands in another row"
    assert found[MarginKey(None, OTHER_ORGANIZATION, "echo", "USD")].revenue_pico > 0
    assert found[MarginKey(None, "", "echo", "EUR")].time_cost_pico == 31 * 24 * 24 * 10**9, "nobody used it"
    assert found[MarginKey(None, ORGANIZATION, "", "EUR")].revenue_pico == 10**12, "what the contract adds"
    of_own = read(database, "2026-10", "2026-10", organization_id=ORGANIZATION)
    assert sum(each.margin_pico for each in of_own.values()) == sum(
        margin.margin_pico for key, margin in found.items() if key.organization_id == ORGANIZATION
    )
    whole = read(database, "2026-09", "2026-11")
    assert whole[MarginKey(None, None, None, "EUR")].unit_cost_pico == 4 * USED
    assert whole[MarginKey(None, None, None, "EUR")].time_cost_pico == hours + november + idle
    by_month = read(database, "2026-09", "2026-11", MarginGroup.MONTH)
    assert by_month[MarginKey("2026-09", None, None, "EUR")].unit_cost_pico == USED


def test_cost_begins_in_no_time_that_is_booked(database: Database, archive: Archive) -> None:
    add_deployments(database)
    refused("not_found", None, database, EPOCH, deployment_id="dep_" + "9" * 32)
    refused("invalid_value", "valid_from", database, EPOCH - 401 * 24 * HOUR_US)
    refused("invalid_value", "per_hour", database, EPOCH, 2**63)
    state(database, EPOCH, 1)
    refused("conflict", "valid_from", database, EPOCH, 2, number=2)
    take(database, archive, frames([*ended(1, EPOCH), Tick(at=NOVEMBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    refused("invalid_value", "valid_from", database, SEPTEMBER.end_at - 1, number=3, now=NOW)
    state(database, SEPTEMBER.end_at, 10**9, number=4, now=NOW)
    serving_costs.book_due_capacity(database, NOW, lambda: False)
    refused("invalid_value", "valid_from", database, NOVEMBER.end_at - 1, number=5, now=NOW)
    state(database, NOVEMBER.end_at, number=6, now=NOW)
    with database.platform() as tx:
        catalog.archive_deployment(tx, DEPLOYMENT, NOW)
    refused("conflict", None, database, NOW + 1, number=7, now=NOW)
    assert verify(database, archive).differences == []


def test_time_of_a_deployment_costs_until_it_is_archived(database: Database, archive: Archive) -> None:
    add_deployments(database)
    state(database, OCTOBER.start_at, 10**12)
    with database.platform() as tx:
        catalog.archive_deployment(tx, DEPLOYMENT, OCTOBER.start_at + 36 * HOUR_US)
    serving_costs.book_due_capacity(database, NOW, lambda: False)
    assert balances(database)["platform/cost_of_serving:echo/EUR"] == 36 * 10**12
    assert verify(database, archive).differences == []


def test_180_organizations_see_neither_costs_nor_margins(fresh_control: Running, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    database, operator = fresh_control.plane.database, fresh_control.operator()
    fill(database)
    add_deployments(database)
    path = f"/v1/platform/deployments/{DEPLOYMENT}/costs"
    body = {"currency": "EUR", "valid_from": EPOCH // 10**6, "per_hour": "2.5", "unit_costs": {"input": "0.1", "output": "0.4"}}
    for param, changes in (
        ("currency", {"currency": "XXXX"}),
        ("per_hour", {"per_hour": "-1"}),
        ("unit_costs.output", {"unit_costs": {"input": "0.1"}}),
        ("valid_from", {"valid_from": -1}),
    ):
        assert operator.post(path, json=body | changes).status_code == 400, param
    monkeypatch.setattr(serving_costs, "BACKDATED_US_MAX", 10**16)  # the samples are of another year than the clock of the process
    made = answered(operator.post(path, json=body))
    assert made["per_hour"] == "2.5" and made["unit_costs"]["reasoning"] == "0.4"
    assert answered(operator.get(path))["data"] == [made]
    refused_request(operator.get(path.replace("1" * 32, "9" * 32)), 404, "not_found")
    take(database, fresh_control.plane.archive, frames([*ended(1, EPOCH), Tick(at=OCTOBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    margins = "/v1/platform/margins?from_month=2026-09&group_by=model&group_by=organization"
    found = answered(operator.get(margins))
    assert [(row["model"], row["organization_id"], row["month"]) for row in found["data"]] == [("echo", ORGANIZATION, None)]
    table = operator.get(margins, headers={"accept": "text/csv"})
    assert table.text.splitlines()[1].split(",")[1:4] == [ORGANIZATION, "echo", "EUR"]
    for param, wrong in (
        ("from_month", "from_month=2026-13"),
        ("until_month", "from_month=2026-09&until_month=2026-08"),
        ("until_month", "from_month=2026-09&until_month=2030-01"),
        ("group_by.[0]", "from_month=2026-09&group_by=key"),
    ):
        refused_request(operator.get(f"/v1/platform/margins?{wrong}"), 400, "invalid_value", param)
    tenant = _tenant_of(fresh_control)
    for method, where in (("GET", path), ("POST", path), ("GET", margins)):
        assert tenant.request(method, where, json=body if method == "POST" else None).status_code in (401, 403)
    seen = tenant.get("/v1/organization/audit_logs").text + tenant.get("/v1/organization/costs?start_time=1").text
    seen += tenant.get("/v1/organization/export").text
    assert ORGANIZATION in seen and not re.search("cost_of_serving|deployment_cost|serving_costs|unit_costs|accrued_cost", seen)
    if not database.is_sqlite:
        with database.tenant(ORGANIZATION, write=False) as tx:
            assert tx.connection.execute(sa.select(schema_serving_costs.serving_costs)).all() == []
    monkeypatch.setenv("TOLLWAY_CONTROL_URL", str(operator.base_url))
    monkeypatch.setenv("TOLLWAY_KEY", fresh_control.platform_key)
    for arguments, said in (
        (["report", "2026-09", "--by", "model"], "echo"),
        (["report", "2026-09", "--by", "organization", "-o", "csv"], ORGANIZATION),
        (["set-cost", DEPLOYMENT, "--currency", "EUR", "--input-cost", "0.2"], "new cost"),
        (["costs", DEPLOYMENT], "2.5"),
    ):
        assert run(["margins", *arguments]) == 0
        assert said in capsys.readouterr().out


def _tenant_of(control: Running) -> httpx2.Client:
    """Return a client with an admin key of the organization of the samples."""
    acting = control.client(control.platform_key, **{"openai-organization": ORGANIZATION})
    return control.client(answered(acting.post("/v1/organization/admin_api_keys", json={"name": "k"}))["value"])


@pytest.mark.postgres
def test_no_period_is_cut_or_frozen_while_a_cost_is_added(postgres_template: PostgresTemplate, tmp_path: Path) -> None:
    """A period that was cut meanwhile could be frozen, and summed without the cost."""
    with postgres_template.copied(tmp_path) as url, closing(Database.open(url)) as database, database.platform() as tx:
        stored_costs.find_booked_until(tx, NOW)
        with pytest.raises(Fault, match="database_unavailable"), database.platform() as other:
            other.connection.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            other.connection.execute(sa.text("UPDATE billing_periods SET state = state"))
