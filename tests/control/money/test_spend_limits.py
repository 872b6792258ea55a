"""Spend limits and spend alerts through OpenAI's admin client: budgets of a month, of an organization and of its projects."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.metering.test_collect import take
from tests.link import samples
from tests.link.samples import EPOCH, ORGANIZATION, frames
from tollway.control.money import budgets, spend_limits
from tollway.control.money.budgets import create_budget
from tollway.control.money.spend_limits import SpendAmount
from tollway.control.verification.verify import verify
from tollway.domain import ids
from tollway.domain.budgets import BudgetLevel, BudgetMode, BudgetWindow, LeaseRequest
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.money import AMOUNT_PICO_MAX, CENT_PICO
from tollway.domain.quotas import DEFAULT_SIZES
from tollway.domain.snapshot import BudgetEntry
from tollway.domain.usage import Final, billed
from tollway.storage import platform_queries
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

NOBODY = {"type": "email", "recipients": []}
MONTHLY = {"currency": "USD", "interval": "month"}
NOW = EPOCH + 1_000_000_000
BUDGET = ids.new_id(ids.BUDGET, EPOCH, 8)
CENT = SpendAmount(CENT_PICO, "EUR")
LEVELS = (BudgetLevel.ORGANIZATION, BudgetLevel.PROJECT)


@pytest.fixture(scope="module")
def tenant(control: Running) -> TenantSetup:
    return make_tenant(control, "spending", "USD")


@pytest.fixture(scope="module")
def sdk(control: Running, tenant: TenantSetup) -> Iterator[OpenAI]:
    with OpenAI(api_key="unused", admin_api_key=tenant.admin_key, base_url=f"{control.url}/v1", max_retries=0) as client:
        yield client


def of_level(sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel) -> tuple[Any, Any, dict[str, str]]:
    """Return the client's spend limit and spend alerts of a level, and the arguments that name what they are of."""
    of_organization = sdk.admin.organization
    if level is BudgetLevel.ORGANIZATION:
        return of_organization.spend_limit, of_organization.spend_alerts, {}
    return of_organization.projects.spend_limit, of_organization.projects.spend_alerts, {"project_id": tenant.project_id}


@pytest.mark.parametrize("level", LEVELS)
class TestSpendLimit:
    def test_is_created_read_changed_and_deleted(self, control: Running, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel) -> None:
        spend_limit, _, of = of_level(sdk, tenant, level)
        with pytest.raises(openai.NotFoundError):
            spend_limit.retrieve(**of)
        made = spend_limit.update(**of, **MONTHLY, threshold_amount=10_050)
        assert (made.object, made.threshold_amount, made.currency) == (f"{level}.spend_limit", 10_050, "USD")
        assert (made.interval, made.enforcement.status) == ("month", "enforcing")
        assert spend_limit.retrieve(**of).threshold_amount == 10_050
        changed = spend_limit.update(**of, **MONTHLY, threshold_amount=20_000)
        assert (changed.threshold_amount, changed.budget_id) == (20_000, made.budget_id), "it is one budget, so what was spent stays spent"
        admin = control.client(tenant.admin_key)
        path = f"/v1/organization/budgets/{made.budget_id}"
        budget = answered(admin.get(path))
        assert (budget["name"], budget["level"], budget["mode"], budget["window"]) == ("spend_limit", level, "hard", "month")
        assert (budget["amount"], budget["currency"]) == ("200", "usd")
        with control.plane.database.platform(write=False) as tx:
            assert made.budget_id in platform_queries.list_entries(tx, BudgetEntry, [made.budget_id]), "gateways are told of it"
        answered(admin.post(path, json={"amount": "7.5", "thresholds": [80]}))
        assert spend_limit.retrieve(**of).threshold_amount == 750
        gone = spend_limit.delete(**of)
        assert (gone.object, gone.deleted) == (f"{level}.spend_limit.deleted", True)
        for call in (spend_limit.retrieve, spend_limit.delete):
            with pytest.raises(openai.NotFoundError):
                call(**of)

    @pytest.mark.parametrize(
        "bad",
        [
            {"threshold_amount": 0},
            {"threshold_amount": -1},
            {"threshold_amount": AMOUNT_PICO_MAX // CENT_PICO + 1},
            {"threshold_amount": 10**30},
            {"threshold_amount": 1.5},
            {"threshold_amount": "100"},
            {"currency": "EUR"},
            {"currency": "nothing"},
            {"interval": "day"},
        ],
        ids=str,
    )
    def test_bad_value_is_refused_and_changes_nothing(
        self, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel, bad: dict[str, Any]
    ) -> None:
        spend_limit, spend_alerts, of = of_level(sdk, tenant, level)
        alert = spend_alerts.create(**of, **MONTHLY, threshold_amount=100, notification_channel=NOBODY)
        values: dict[str, Any] = {**of, **MONTHLY, "threshold_amount": 100, **bad}
        for call, arguments in (
            (spend_limit.update, {}),
            (spend_alerts.create, {"notification_channel": NOBODY}),
            (spend_alerts.update, {"alert_id": alert.id, "notification_channel": NOBODY}),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                call(**values, **arguments)
            assert refused.value.param == next(iter(bad))
        with pytest.raises(openai.NotFoundError):
            spend_limit.retrieve(**of)
        assert [each.to_dict() for each in spend_alerts.list(**of)] == [alert.to_dict()]
        spend_alerts.delete(alert.id, **of)

    def test_largest_amount_is_accepted(self, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel) -> None:
        spend_limit, _, of = of_level(sdk, tenant, level)
        most = AMOUNT_PICO_MAX // CENT_PICO
        assert spend_limit.update(**of, **MONTHLY, threshold_amount=most).threshold_amount == most
        spend_limit.delete(**of)

    def test_limit_of_an_operator_cannot_be_changed_by_an_admin(
        self, control: Running, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel
    ) -> None:
        spend_limit, _, of = of_level(sdk, tenant, level)
        operator = control.client(control.platform_key, **{"openai-organization": tenant.organization_id})
        path = "/v1/organization" + (f"/projects/{tenant.project_id}" if of else "") + "/spend_limit"
        answered(operator.post(path, json={**MONTHLY, "threshold_amount": 5}))
        assert spend_limit.retrieve(**of).threshold_amount == 5
        with pytest.raises(openai.PermissionDeniedError):
            spend_limit.update(**of, **MONTHLY, threshold_amount=6)
        with pytest.raises(openai.PermissionDeniedError):
            spend_limit.delete(**of)
        answered(operator.delete(path))


@pytest.mark.parametrize("level", LEVELS)
class TestSpendAlerts:
    def test_are_created_read_changed_and_deleted(self, control: Running, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel) -> None:
        _, spend_alerts, of = of_level(sdk, tenant, level)
        made = spend_alerts.create(**of, **MONTHLY, threshold_amount=5_000, notification_channel=NOBODY)
        assert (made.object, made.threshold_amount, made.currency, made.interval) == (f"{level}.spend_alert", 5_000, "USD", "month")
        assert (made.notification_channel.recipients, made.notification_channel.subject_prefix) == ([], None)
        assert spend_alerts.retrieve(made.id, **of).to_dict() == made.to_dict()
        changed = spend_alerts.update(made.id, **of, **MONTHLY, threshold_amount=6_000, notification_channel=NOBODY)
        assert (changed.id, changed.threshold_amount) == (made.id, 6_000)
        budget = answered(control.client(tenant.admin_key).get(f"/v1/organization/budgets/{made.id}"))
        assert (budget["mode"], budget["amount"], budget["thresholds"]) == ("alert", "60", [100])
        gone = spend_alerts.delete(made.id, **of)
        assert (gone.object, gone.id, gone.deleted) == (f"{level}.spend_alert.deleted", made.id, True)
        for call in (spend_alerts.retrieve, spend_alerts.delete):
            with pytest.raises(openai.NotFoundError):
                call(made.id, **of)

    def test_bind_no_request(self, control: Running, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel) -> None:
        _, spend_alerts, of = of_level(sdk, tenant, level)
        made = spend_alerts.create(**of, **MONTHLY, threshold_amount=1, notification_channel=NOBODY)
        with control.plane.database.platform(write=False) as tx:
            assert not platform_queries.list_entries(tx, BudgetEntry, [made.id])
            assert made.id not in {each.id for each in platform_queries.iterate_entries(tx)}
        binding = control.client(tenant.admin_key).get("/v1/organization/binding_budgets", params=of)
        assert made.id not in [each["id"] for each in answered(binding)["data"]]
        spend_alerts.delete(made.id, **of)

    def test_are_listed_in_pages_forwards_and_backwards(self, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel) -> None:
        _, spend_alerts, of = of_level(sdk, tenant, level)
        made = [spend_alerts.create(**of, **MONTHLY, threshold_amount=n, notification_channel=NOBODY).id for n in range(1, 6)]
        assert [each.id for each in spend_alerts.list(**of, limit=2)] == made
        assert [each.id for each in spend_alerts.list(**of, limit=2, order="desc")] == made[::-1]
        first = spend_alerts.list(**of, limit=2)
        assert ([each.id for each in first.data], first.has_more) == (made[:2], True)
        assert [each.id for each in spend_alerts.list(**of, before=made[3], limit=2).data] == made[1:3]
        assert [each.id for each in spend_alerts.list(**of, before=made[1], limit=2, order="desc").data] == made[3:1:-1]
        assert not spend_alerts.list(**of, after=made[4]).data
        for id in made:
            spend_alerts.delete(id, **of)

    def test_eleventh_is_refused_and_a_limit_beside_ten_is_accepted(self, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel) -> None:
        spend_limit, spend_alerts, of = of_level(sdk, tenant, level)
        made = [spend_alerts.create(**of, **MONTHLY, threshold_amount=n, notification_channel=NOBODY).id for n in range(1, 11)]
        with pytest.raises(openai.ConflictError):
            spend_alerts.create(**of, **MONTHLY, threshold_amount=11, notification_channel=NOBODY)
        spend_limit.update(**of, **MONTHLY, threshold_amount=11)
        spend_limit.delete(**of)
        for id in made:
            spend_alerts.delete(id, **of)

    @pytest.mark.parametrize(
        ("channel", "param"),
        [
            ({"type": "email", "recipients": ["finance@example.com"]}, "notification_channel.recipients"),
            ({"type": "email", "recipients": [], "subject_prefix": "Spend"}, "notification_channel.subject_prefix"),
            ({"type": "webhook", "recipients": []}, "notification_channel.type"),
            ({"type": "email"}, "notification_channel.recipients"),
        ],
    )
    def test_channel_that_would_reach_nobody_is_refused(
        self, sdk: OpenAI, tenant: TenantSetup, level: BudgetLevel, channel: dict[str, Any], param: str
    ) -> None:
        _, spend_alerts, of = of_level(sdk, tenant, level)
        with pytest.raises(openai.BadRequestError) as refused:
            spend_alerts.create(**of, **MONTHLY, threshold_amount=1, notification_channel=channel)
        assert refused.value.param == param
        assert "finance@" not in str(refused.value)
        assert not spend_alerts.list(**of).data


class TestWhatIsNotTheirs:
    def test_project_of_another_organization_answers_as_one_that_does_not_exist(
        self, control: Running, tenant: TenantSetup, alice: TenantSetup
    ) -> None:
        owner, admin = control.client(alice.admin_key), control.client(tenant.admin_key)
        limit = {"currency": "EUR", "interval": "month", "threshold_amount": 5}
        alert = {**limit, "notification_channel": NOBODY}
        theirs = f"/v1/organization/projects/{alice.project_id}"
        answered(owner.post(f"{theirs}/spend_limit", json=limit))
        alert_id = answered(owner.post(f"{theirs}/spend_alerts", json=alert))["id"]
        unknown = f"/v1/organization/projects/{ids.new_id(ids.PROJECT, 1, 1)}"
        for method, below, body in (
            ("GET", "spend_limit", None),
            ("POST", "spend_limit", limit),
            ("DELETE", "spend_limit", None),
            ("GET", "spend_alerts", None),
            ("POST", "spend_alerts", alert),
            ("GET", f"spend_alerts/{alert_id}", None),
            ("POST", f"spend_alerts/{alert_id}", alert),
            ("DELETE", f"spend_alerts/{alert_id}", None),
        ):
            foreign, absent = (admin.request(method, f"{project}/{below}", json=body) for project in (theirs, unknown))
            assert (foreign.status_code, foreign.content) == (404, absent.content), (method, below)
        assert admin.get(f"/v1/organization/spend_alerts/{alert_id}").status_code == 404
        assert owner.get(f"/v1/organization/spend_alerts/{alert_id}").status_code == 404, "it is the project's, not the organization's"
        assert answered(owner.get(f"{theirs}/spend_limit"))["threshold_amount"] == 5


class TestBudgetsOfTheirNames:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"name": "spend_limit", "mode": "soft"}, "mode"),
            ({"name": "spend_limit", "window": "week"}, "window"),
            ({"name": "spend_limit", "amount": "1.001"}, "amount"),
            ({"name": "spend_alert"}, "mode"),
            ({"name": "spend_alert", "mode": "alert"}, "thresholds"),
            ({"name": "spend_alert", "mode": "alert", "thresholds": [50, 100]}, "thresholds"),
            ({"name": "other", "mode": "alert"}, "thresholds"),
        ],
    )
    def test_budget_that_the_shapes_cannot_express_is_refused(
        self, control: Running, tenant: TenantSetup, fields: dict[str, Any], param: str
    ) -> None:
        answer = control.client(tenant.admin_key).post("/v1/organization/budgets", json={"amount": "1", "window": "month", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    def test_second_spend_limit_is_refused(self, control: Running, sdk: OpenAI, tenant: TenantSetup) -> None:
        admin = control.client(tenant.admin_key)
        sdk.admin.organization.spend_limit.update(currency="USD", interval="month", threshold_amount=100)
        other = answered(admin.post("/v1/organization/budgets", json={"name": "other", "amount": "1", "window": "month"}))
        assert admin.post("/v1/organization/budgets", json={"name": "spend_limit", "amount": "1", "window": "month"}).status_code == 409
        assert admin.post(f"/v1/organization/budgets/{other['id']}", json={"name": "spend_limit"}).status_code == 409
        answered(admin.delete(f"/v1/organization/budgets/{other['id']}"))
        sdk.admin.organization.spend_limit.delete()

    @pytest.mark.parametrize(("mode", "other"), [("alert", "hard"), ("hard", "alert"), ("soft", "alert")])
    def test_budget_never_begins_or_ceases_to_only_alert(self, control: Running, tenant: TenantSetup, mode: str, other: str) -> None:
        admin = control.client(tenant.admin_key)
        body = {"name": "b", "amount": "1", "window": "month", "mode": mode, "thresholds": [100]}
        made = answered(admin.post("/v1/organization/budgets", json=body))
        path = f"/v1/organization/budgets/{made['id']}"
        assert admin.post(path, json={"mode": other}).status_code == 400
        assert answered(admin.get(path))["mode"] == mode
        answered(admin.delete(path))


class TestMoney:
    """On each database: what is charged to spend limits and alerts, and when an alert is raised."""

    def test_alert_is_raised_once_for_each_amount_in_a_month(self, database: Database, archive: Archive) -> None:
        exchange = samples.exchanges(range(1, 4 + 1))
        costs = [cost_of(each) for each in exchange if isinstance(each, Final)]
        body = frames(exchange)
        with database.tenant(ORGANIZATION) as tx:
            create_budget(
                tx,
                id=BUDGET,
                project_id=None,
                key_id=None,
                name="b",
                mode=BudgetMode.ALERT,
                window=BudgetWindow.MONTH,
                amount_pico=2 * sum(costs),
                currency=None,
                thresholds=[100],
                is_operators=False,
                sizes=DEFAULT_SIZES,
                now=EPOCH,
            )
        take(database, archive, body)
        assert alerted(database) == []
        first, second = sum(costs) // 2, sum(costs) // 3
        for amount_pico, expected in (
            (first, [first]),  # as much is spent already
            (2 * sum(costs), [first]),
            (second, [first, second]),  # another amount alerts anew in the same month
            (first, [first, second]),
        ):
            with database.tenant(ORGANIZATION) as tx:
                budgets.update_budget(
                    tx, BUDGET, name=None, mode=None, amount_pico=amount_pico, thresholds=None, by_operator=False, now=NOW
                )
            assert sorted(alerted(database), reverse=True) == expected
        take(database, archive, body)
        assert len(alerted(database)) == 2
        assert verify(database, archive).differences == []

    def test_alert_is_raised_by_the_request_that_reaches_its_amount(self, database: Database, archive: Archive) -> None:
        with database.tenant(ORGANIZATION) as tx:
            made = spend_limits.create_spend_alert(tx, None, CENT, id=BUDGET, by_operator=False, sizes=DEFAULT_SIZES, now=EPOCH)
        assert not made.binds
        exchange = samples.exchanges(range(1, 200 + 1))
        costs = [cost_of(each) for each in exchange if isinstance(each, Final)]
        body, before = frames(exchange), 2 * 100
        assert sum(costs[:100]) < CENT.pico < sum(costs)
        take(database, archive, body[:before])
        assert alerted(database) == []
        take(database, archive, body[before:], first_seq=before + 1)
        assert alerted(database) == [CENT.pico]
        assert verify(database, archive).differences == []
        with database.platform(write=False) as tx:
            assert not platform_queries.list_entries(tx, BudgetEntry, [BUDGET])

    def test_nothing_is_leased_of_an_alert(self, database: Database) -> None:
        with database.tenant(ORGANIZATION) as tx:
            spend_limits.create_spend_alert(tx, None, CENT, id=BUDGET, by_operator=False, sizes=DEFAULT_SIZES, now=EPOCH)
        request = LeaseRequest(budget_id=BUDGET, at=NOW, current_pico=0, need_pico=1)
        with database.platform() as tx:
            (granted,) = budgets.renew_leases(tx, node_id=samples.NODE, epoch=EPOCH, sequence=1, requests=[request], now=NOW)
        assert (granted.exists, granted.granted_pico) == (False, 0)

    def test_changed_limit_keeps_what_was_spent(self, database: Database, archive: Archive) -> None:
        exchange = samples.exchanges(range(1, 2 + 1))
        cost = sum(cost_of(each) for each in exchange if isinstance(each, Final))
        with database.tenant(ORGANIZATION) as tx:
            spend_limits.put_spend_limit(tx, None, CENT, id=BUDGET, by_operator=False, sizes=DEFAULT_SIZES, now=EPOCH)
        take(database, archive, frames(exchange))
        more = SpendAmount(900 * CENT_PICO, "EUR")
        with database.tenant(ORGANIZATION) as tx:
            changed = spend_limits.put_spend_limit(
                tx, None, more, id=ids.new_id(ids.BUDGET, EPOCH, 9), by_operator=False, sizes=DEFAULT_SIZES, now=NOW
            )
            (stood,) = budgets.describe(tx, [changed], NOW)
        assert (changed.id, stood.spent_pico, stood.limit.pico) == (BUDGET, cost, more.pico)

    def test_other_currency_than_the_organizations_is_refused(self, database: Database) -> None:
        with database.tenant(ORGANIZATION) as tx:
            spend_limits.put_spend_limit(tx, None, CENT, id=BUDGET, by_operator=False, sizes=DEFAULT_SIZES, now=EPOCH)
        with pytest.raises(Fault) as refused, database.tenant(ORGANIZATION) as tx:
            spend_limits.put_spend_limit(
                tx, None, SpendAmount(CENT_PICO, "USD"), id=BUDGET, by_operator=False, sizes=DEFAULT_SIZES, now=NOW
            )
        assert (refused.value.kind, refused.value.param) == (PARAMETER_INVALID, "currency")


def alerted(database: Database) -> list[int]:
    """Return the limits of the alerts that were raised."""
    with database.tenant(ORGANIZATION, write=False) as tx:
        return [each.limit_pico for each in budgets.list_alerts(tx, BUDGET)]


def cost_of(final: Final) -> int:
    return billed(final).times(samples.PRICE.unit_prices).total
