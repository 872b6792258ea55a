"""Budgets at control: managed through the API, leased to gateway runs, charged with rated events; one contract on each database."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2
import msgspec
import pytest

from tests.control.harness import Running, TenantSetup, answered
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import declare_lost
from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_NODE, frames
from tollway.control.money import budgets
from tollway.control.money.budgets import create_budget, renew_leases
from tollway.domain import ids
from tollway.domain.budgets import (
    Budget,
    BudgetAlert,
    BudgetMode,
    BudgetStanding,
    BudgetWindow,
    LeaseGrant,
    LeaseRequest,
    name_end_user_budget,
)
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.periods import INSTANT_MAX, Bounds
from tollway.domain.quotas import DEFAULT_SIZES
from tollway.domain.snapshot import BudgetEntry
from tollway.domain.usage import Close, Final, billed
from tollway.storage import budgets as stored_budgets
from tollway.storage import platform_queries
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

NOW = EPOCH + 1_000_000_000
T = TypeVar("T")
BUDGET = ids.new_id(ids.BUDGET, NOW, 7)


def add_budget(
    database: Database,
    amount_pico: int,
    *,
    window: BudgetWindow = BudgetWindow.TOTAL,
    thresholds: tuple[int, ...] = (),
    model: str = "",
    end_user: str = "",
) -> Budget:
    with database.tenant(ORGANIZATION) as tx:
        made = create_budget(
            tx,
            id=BUDGET,
            project_id=None,
            key_id=None,
            name="all",
            mode=BudgetMode.HARD,
            window=window,
            amount_pico=amount_pico,
            currency=None,
            thresholds=thresholds,
            is_operators=False,
            sizes=DEFAULT_SIZES,
            now=0,
            model=model,
            end_user=end_user,
        )
    return made


def renew(
    database: Database, sequence: int, current: int | None, need: int, *, node_id: str = NODE, target: int = 0, budget_id: str = BUDGET
) -> list[LeaseGrant]:
    request = LeaseRequest(budget_id=budget_id, at=NOW, current_pico=current, need_pico=need, target_pico=target)
    with database.platform() as tx:
        return renew_leases(tx, node_id=node_id, epoch=EPOCH, sequence=sequence, requests=[request], now=NOW)


def standing(database: Database) -> BudgetStanding:
    with database.tenant(ORGANIZATION, write=False) as tx:
        return budgets.describe(tx, [budgets.get_budget(tx, BUDGET)], NOW)[0]


def patiently(work: Callable[..., T]) -> T:
    """Do `work`, and again while the database has no connection for it, as gateways do."""
    while True:
        try:
            return work()
        except Fault as fault:
            if fault.kind is not DATABASE_UNAVAILABLE:
                raise


def cost_of(final: Final) -> int:
    return billed(final).times(samples.PRICE.unit_prices).total


class TestLeases:
    def test_grants_to_several_runs_never_exceed_the_limit(self, database: Database) -> None:
        add_budget(database, 100)
        assert renew(database, 1, 0, 60)[0].granted_pico == 60
        assert renew(database, 1, 0, 60, node_id=OTHER_NODE)[0].granted_pico == 40
        assert standing(database).leased_pico == 100
        assert renew(database, 2, 40, 60, node_id=OTHER_NODE)[0] == LeaseGrant(
            budget_id=BUDGET,
            start_at=0,
            end_at=standing(database).window.end_at,
            until_at=standing(database).window.end_at,
            granted_pico=40,
            limit_pico=100,
            spent_pico=0,
            free_pico=0,
        )

    def test_repeated_and_overtaken_requests_change_nothing(self, database: Database) -> None:
        add_budget(database, 100)
        renew(database, 2, 0, 30)
        assert renew(database, 2, 0, 30) == renew(database, 1, 0, 50) == []
        assert standing(database).leased_pico == 30

    def test_amount_that_is_given_back_goes_to_the_next_run(self, database: Database) -> None:
        add_budget(database, 100)
        renew(database, 1, 0, 100)
        assert renew(database, 1, 0, 50, node_id=OTHER_NODE)[0].granted_pico == 0
        renew(database, 2, 30, 0)
        assert renew(database, 2, 0, 100, node_id=OTHER_NODE)[0].granted_pico == 70

    def test_events_move_money_from_the_lease_of_their_epoch_to_spent(self, database: Database, archive: Archive) -> None:
        exchange = samples.exchanges(range(1, 3 + 1))
        finals = [each for each in exchange if isinstance(each, Final)]
        cost = sum(map(cost_of, finals))
        assert cost
        add_budget(database, 2 * cost)
        renew(database, 1, 0, 2 * cost)
        take(database, archive, frames(exchange))
        stood = standing(database)
        assert (stood.spent_pico, stood.leased_pico, stood.left_pico) == (cost, cost, cost)
        take(database, archive, frames(exchange))
        assert standing(database) == stood

    def test_budget_on_a_model_counts_the_requests_whose_records_name_it(self, database: Database, archive: Archive) -> None:
        named, unnamed, foreign = (each for each in samples.exchanges(range(1, 3 + 1)) if isinstance(each, Final))
        add_budget(database, 10**15, model=named.admit.model)
        mark = {"budgets": (BUDGET,)}
        records = [
            msgspec.structs.replace(named, admit=msgspec.structs.replace(named.admit, **mark)),
            unnamed,
            msgspec.structs.replace(foreign, admit=msgspec.structs.replace(foreign.admit, budgets=(ids.new_id(ids.BUDGET, 1, 1),))),
        ]
        take(database, archive, frames(records))
        assert standing(database).spent_pico == cost_of(named) > 0

    def test_budget_of_each_end_user_is_leased_and_charged_by_end_user(self, database: Database, archive: Archive) -> None:
        add_budget(database, 100, end_user="*")
        alice, carol = (name_end_user_budget(BUDGET, name, b"") for name in ("alice", "carol"))
        assert renew(database, 1, 0, 60, budget_id=alice)[0].granted_pico == 60
        assert renew(database, 2, 0, 90, budget_id=carol)[0].granted_pico == 90
        assert not renew(database, 3, 0, 10)[0].exists, "nothing is leased of the budget of each itself"
        first, plain = (each for each in samples.exchanges(range(1, 2 + 1)) if isinstance(each, Final))
        named = msgspec.structs.replace(first, admit=msgspec.structs.replace(first.admit, budgets=(alice,)))
        take(database, archive, frames([named, plain]))
        with database.platform(write=False) as tx:
            spent = {each: stored_budgets.find_spent(tx, each, 0) for each in (alice, carol, BUDGET)}
        assert spent == {alice: cost_of(named), carol: 0, BUDGET: 0}
        assert standing(database).spent_pico == cost_of(named)

    def test_run_that_has_forgotten_a_lease_is_told_what_it_had_used(self, database: Database) -> None:
        add_budget(database, 100, end_user="*")
        alice = name_end_user_budget(BUDGET, "alice", b"")
        assert renew(database, 1, 0, 60, budget_id=alice)[0].granted_pico == 60
        assert renew(database, 2, 40, 0, budget_id=alice)[0].granted_pico == 40
        for sequence in (3, 4):
            (recalled,) = renew(database, sequence, None, 60, budget_id=alice)
            assert (recalled.granted_pico, recalled.free_pico, recalled.is_recalled) == (40, 60, True)
        assert renew(database, 5, 40, 90, budget_id=alice)[0].granted_pico == 100

    def test_end_users_beyond_the_bound_are_granted_nothing(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budgets, "END_USERS_MAX", 1)
        add_budget(database, 100, end_user="*")
        alice, carol = (name_end_user_budget(BUDGET, name, b"") for name in ("alice", "carol"))
        assert renew(database, 1, 0, 60, budget_id=alice)[0].granted_pico == 60
        assert (
            renew(database, 2, 0, 60, budget_id=carol)[0].granted_pico,
            renew(database, 3, 60, 10, budget_id=alice)[0].granted_pico,
        ) == (0, 70)

    def test_lease_of_a_run_ends_with_its_close_and_not_before(self, database: Database, archive: Archive) -> None:
        exchange = samples.exchanges(range(1, 1 + 1))
        cost = sum(cost_of(each) for each in exchange if isinstance(each, Final))
        add_budget(database, 10 * cost)
        renew(database, 1, 0, 10 * cost)
        take(database, archive, frames(exchange))
        assert renew(database, 1, 0, 10 * cost, node_id=OTHER_NODE)[0].granted_pico == 0
        take(database, archive, frames([*exchange, Close(at=NOW)]))
        assert standing(database).leased_pico == 0
        assert renew(database, 2, 0, 10 * cost, node_id=OTHER_NODE)[0].granted_pico == 9 * cost
        with pytest.raises(Fault):
            renew(database, 2, 10 * cost, 0)

    def test_lease_of_a_lost_epoch_counts_no_more(self, database: Database, archive: Archive) -> None:
        take(database, archive, frames(samples.exchanges(range(1, 1 + 1))))
        add_budget(database, 100)
        renew(database, 1, 0, 100)
        with database.platform() as tx:
            declare_lost(tx, now=NOW)
        assert standing(database).leased_pico == 0
        with pytest.raises(Fault):
            renew(database, 2, 100, 1)

    def test_stated_total_is_taken_over_after_a_restore_of_the_database(self, database: Database) -> None:
        add_budget(database, 100)
        assert renew(database, 5, 80, 30)[0].granted_pico == 100
        assert renew(database, 1, 0, 10, node_id=OTHER_NODE)[0].granted_pico == 0

    def test_58_concurrent_grants_and_charges_together_never_exceed_the_limit(self, database: Database, archive: Archive) -> None:
        exchange = samples.exchanges(range(1, 9))
        cost = sum(cost_of(each) for each in exchange if isinstance(each, Final))
        add_budget(database, 3 * cost)
        renew(database, 1, 0, cost)
        others = [ids.new_id(ids.NODE, NOW, number) for number in range(1, 5)]
        body = frames(exchange)

        def ask(node_id: str) -> None:
            granted = 0
            for sequence in range(1, 6):
                grant = patiently(lambda number=sequence, held=granted: renew(database, number, held, cost // 3, node_id=node_id)[0])
                granted = grant.granted_pico

        def ship() -> None:
            for place in range(len(body)):
                patiently(lambda at=place: take(database, archive, body[at : at + 1], first_seq=at + 1))

        with ThreadPoolExecutor(5) as pool:
            running = [pool.submit(ship), *(pool.submit(ask, node_id) for node_id in others)]
            for each in running:
                each.result()
        stood = standing(database)
        assert stood.spent_pico == cost
        assert stood.spent_pico + stood.leased_pico == stood.limit.pico, "all of it is spent or leased, and nothing twice"

    def test_gateway_whose_clock_is_behind_gets_a_lease_of_the_window_that_it_is_in(self, database: Database) -> None:
        add_budget(database, 100, window=BudgetWindow.DAY)
        end_at = standing(database).window.end_at
        request = LeaseRequest(budget_id=BUDGET, at=end_at - 1, current_pico=0, need_pico=60)
        with database.platform() as tx:
            (granted,) = renew_leases(tx, node_id=NODE, epoch=EPOCH, sequence=1, requests=[request], now=end_at + 1)
        assert (granted.granted_pico, granted.end_at) == (60, end_at)

    def test_archived_budget_is_answered_as_gone(self, database: Database) -> None:
        add_budget(database, 100)
        with database.tenant(ORGANIZATION) as tx:
            budgets.archive_budget(tx, BUDGET, by_operator=False, now=NOW)
        assert not renew(database, 1, 0, 10)[0].exists

    def test_alert_is_raised_once_when_spending_passes_a_threshold(self, database: Database, archive: Archive) -> None:
        exchange = samples.exchanges(range(1, 4 + 1))
        costs = [cost_of(each) for each in exchange if isinstance(each, Final)]
        add_budget(database, sum(costs), thresholds=(1, 50, 100, 200))
        body = frames(exchange)
        for place in range(len(body)):
            take(database, archive, body[place : place + 1], first_seq=place + 1)
        with database.tenant(ORGANIZATION, write=False) as tx:
            assert sorted(each.threshold for each in budgets.list_alerts(tx, BUDGET)) == [1, 50, 100]

    def test_alerts_of_a_budget_beyond_the_bound_replace_the_oldest(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stored_budgets, "ALERTS_KEPT_MAX", 3)
        add_budget(database, 10)
        renew(database, 1, 0, 1)
        start_at = standing(database).window.start_at
        with database.platform() as tx:
            for number in range(1, 6):  # as if the limit had been changed each time
                alert = BudgetAlert(
                    budget_id=BUDGET, window_start_at=start_at, threshold=50, spent_pico=number, limit_pico=number, crossed_at=NOW + number
                )
                stored_budgets.insert_alerts(tx, [alert, alert])
        with database.tenant(ORGANIZATION, write=False) as tx:
            assert [each.limit_pico for each in budgets.list_alerts(tx, BUDGET)] == [5, 4, 3]

    def test_event_is_charged_to_the_window_of_its_admission(self, database: Database, archive: Archive) -> None:
        add_budget(database, 10**15, window=BudgetWindow.DAY)
        record = next(each for each in samples.exchanges(range(1, 1 + 1)) if isinstance(each, Final))
        day = 86_400_000_000
        midnight = (NOW // day + 1) * day
        late = msgspec.structs.replace(record, admit=msgspec.structs.replace(record.admit, admitted_at=midnight - 1), ended_at=midnight + 1)
        take(database, archive, frames([late]))
        with database.tenant(ORGANIZATION, write=False) as tx:
            before, after = (budgets.describe(tx, [budgets.get_budget(tx, BUDGET)], at)[0] for at in (midnight - 1, midnight))
        assert (before.spent_pico, after.spent_pico) == (cost_of(late), 0)


@pytest.fixture(scope="module")
def large(control: Running) -> str:
    """Return a published model, which is in the group `budgets`."""
    operator, name = control.operator(), "budgets/large"
    answered(operator.post("/v1/platform/models", json={"name": name, "endpoints": ["chat/completions"], "groups": ["budgets"]}))
    answered(operator.post("/v1/platform/prices", json={"model": name, "currency": "EUR", "input": "1", "output": "2"}))
    answered(operator.post(f"/v1/platform/models/{name.replace('/', '%2F')}/publish"))
    return name


def create(client: httpx2.Client, **fields: Any) -> Any:
    return answered(client.post("/v1/organization/budgets", json={"name": "b", "amount": "10", "window": "month"} | fields))


class TestRoutes:
    def test_budget_is_created_changed_raised_and_archived(self, control: Running, alice: TenantSetup) -> None:
        admin = control.client(alice.admin_key)
        made = create(admin, project_id=alice.project_id, currency="EUR", thresholds=[50, 100])
        assert (made["level"], made["limit"], made["spent"], made["managed_by"]) == ("project", "10", "0", "organization")
        path = f"/v1/organization/budgets/{made['id']}"
        assert answered(admin.post(path, json={"amount": "12.5"}))["limit"] == "12.5"
        ends_at = control.plane.now() // 1_000_000 + 3600
        answered(admin.post(f"{path}/raises", json={"amount": "5", "ends_at": ends_at}))
        assert answered(admin.get(path))["limit"] == "17.5"
        assert len(answered(admin.get(f"{path}/raises"))["data"]) == 1
        listed = answered(admin.get("/v1/organization/binding_budgets", params={"project_id": alice.project_id}))["data"]
        assert made["id"] in [each["id"] for each in listed]
        with control.plane.database.platform(write=False) as tx:
            assert made["id"] in platform_queries.list_entries(tx, BudgetEntry, [made["id"]])
        assert answered(admin.delete(path))["deleted"]
        assert admin.post(path, json={"amount": "1"}).status_code == 404
        with control.plane.database.platform(write=False) as tx:
            assert not platform_queries.list_entries(tx, BudgetEntry, [made["id"]])

    def test_limits_of_a_key_list_its_budgets_and_the_one_with_the_least_left(self, control: Running, alice: TenantSetup) -> None:
        admin = control.client(alice.admin_key)
        of_project = create(admin, project_id=alice.project_id, amount="7", window="day")
        of_key = create(admin, project_id=alice.project_id, api_key_id=alice.key_id, amount="8", window="total")
        query = {"project_id": alice.project_id, "api_key_id": alice.key_id}
        answer = answered(admin.get("/v1/organization/limits", params=query))
        listed = [each for each in answer["budgets"] if each["id"] in (of_project["id"], of_key["id"])]
        assert [(each["level"], each["left"], each["window_end_at"] is None) for each in listed] == [
            ("api_key", "8", True),
            ("project", "7", False),
        ]
        assert answer["binding_budget_id"] == of_project["id"], "what is left of the project's is less"
        for made in (of_project, of_key):
            answered(admin.delete(f"/v1/organization/budgets/{made['id']}"))
        gone = answered(admin.get("/v1/organization/limits", params=query))
        assert not {of_project["id"], of_key["id"]} & {each["id"] for each in gone["budgets"]}

    def test_budget_on_a_group_of_models_is_published_also_if_it_only_alerts(
        self, control: Running, alice: TenantSetup, large: str
    ) -> None:
        admin = control.client(alice.admin_key)
        made = create(admin, model="group:budgets", mode="alert", thresholds=[80])
        assert made["model"] == "group:budgets"
        with control.plane.database.platform(write=False) as tx:
            (told,) = platform_queries.list_entries(tx, BudgetEntry, [made["id"]]).values()
        assert isinstance(told, BudgetEntry) and (told.model, told.mode) == ("group:budgets", BudgetMode.ALERT)
        of_tag = create(admin, tag="team=research", mode="alert", thresholds=[100])
        assert of_tag["tag"] == "team=research"
        with control.plane.database.platform(write=False) as tx:
            assert of_tag["id"] in platform_queries.list_entries(tx, BudgetEntry, [of_tag["id"]])
        of_model = create(admin, model=large)
        assert answered(admin.get("/v1/organization/budgets/" + of_model["id"]))["model"] == large
        for each in (made, of_tag, of_model):
            answered(admin.delete("/v1/organization/budgets/" + each["id"]))

    @pytest.mark.parametrize(
        "fields",
        [
            {"amount": "0"},
            {"amount": "-1"},
            {"amount": "1e3"},
            {"amount": "9300000"},
            {"currency": "USD"},
            {"window": "year"},
            {"mode": "firm"},
            {"thresholds": [80, 50]},
            {"thresholds": [0]},
            {"api_key_id": "key_1"},
            {"project_id": "proj_00000000000000000000000000000000"},
            {"name": ""},
            {"model": "nowhere"},
            {"model": "group:nowhere"},
            {"model": "group:"},
            {"model": ""},
            {"name": "spend_limit", "model": "budgets/large"},
            {"name": "spend_limit", "tag": "team=a"},
            {"fallback_model": "nowhere"},
            {"fallback_model": "group:budgets"},
            {"fallback_model": "budgets/large", "model": "budgets/large"},
            {"fallback_model": "budgets/large", "mode": "alert", "thresholds": [50]},
            {"tag": ""},
            {"tag": "team"},
            {"tag": "=a"},
            {"tag": "k" * 65 + "=a"},
            {"tag": "team=" + "v" * 513},
            {"tag": "team=a\nb"},
            {"end_user": ""},
            {"end_user": "a\nb"},
            {"end_user": "u" * 513},
            {"end_user": "*", "mode": "alert", "thresholds": [50]},
            {"name": "spend_limit", "end_user": "*"},
            {"throttle_requests_per_minute": 5},
            {"throttle_requests_per_minute": 0, "mode": "soft"},
            {"throttle_requests_per_minute": 60_001, "mode": "soft"},
            {"throttle_requests_per_minute": 5, "mode": "soft", "fallback_model": "budgets/large"},
        ],
    )
    def test_bad_budget_is_refused_before_anything_changes(
        self, control: Running, alice: TenantSetup, large: str, fields: dict[str, Any]
    ) -> None:
        admin = control.client(alice.admin_key)
        before = answered(admin.get("/v1/organization/budgets", params={"limit": 100}))["data"]
        answer = admin.post("/v1/organization/budgets", json={"name": "b", "amount": "10", "window": "month"} | fields)
        assert answer.status_code in {400, 404}
        assert answered(admin.get("/v1/organization/budgets", params={"limit": 100}))["data"] == before

    def test_tenant_sees_what_an_end_user_has_spent_and_which_budget_binds_it(
        self, control: Running, alice: TenantSetup, bob: TenantSetup
    ) -> None:
        admin = control.client(alice.admin_key)
        of_each = create(admin, amount="3", window="total", end_user="*")
        named = create(
            admin, project_id=alice.project_id, amount="5", window="total", end_user="vip", mode="soft", throttle_requests_per_minute=6
        )
        assert (of_each["end_user"], of_each["left"], named["throttle_requests_per_minute"]) == ("*", "3", 6)
        own = name_end_user_budget(of_each["id"], "vip", control.plane.vault.end_user_key)
        with control.plane.database.platform() as tx:
            (budget,) = stored_budgets.find_active(tx, [own]).values()
            stored_budgets.put_end_user(tx, budget)
            stored_budgets.lock_window(tx, own, Bounds(0, INSTANT_MAX))
            stored_budgets.put_spent(tx, own, 0, 10**12)
        try:
            query = {"project_id": alice.project_id}
            shown = answered(admin.get("/v1/organization/limits", params={**query, "end_user": "vip"}))
            listed = {each["id"]: each["left"] for each in shown["budgets"]}
            assert (listed[named["id"]], listed[own]) == ("5", "2")
            assert shown["binding_budget_id"] == own
            others = answered(admin.get("/v1/organization/limits", params={**query, "end_user": "other"}))["budgets"]
            assert named["id"] not in {each["id"] for each in others}
            assert answered(admin.get(f"/v1/organization/budgets/{of_each['id']}"))["spent"] == "1"
            assert admin.get(f"/v1/organization/budgets/{own}").status_code == 404
            assert own not in {each["id"] for each in answered(admin.get("/v1/organization/budgets", params={"limit": 100}))["data"]}
            foreign = answered(control.client(bob.admin_key).get("/v1/organization/limits", params={"end_user": "vip"}))
            assert foreign["budgets"] == []
            with control.plane.database.platform(write=False) as tx:
                told = platform_queries.list_entries(tx, BudgetEntry, [of_each["id"], own])
            assert set(told) == {of_each["id"]}, "gateways are told of the budget, not of its end users"
        finally:
            with control.plane.database.platform() as tx:
                stored_budgets.put_spent(tx, own, 0, 0)
            for each in (of_each, named):
                answered(admin.delete("/v1/organization/budgets/" + each["id"]))

    def test_budget_of_an_operator_cannot_be_changed_by_an_admin(self, control: Running, alice: TenantSetup) -> None:
        operator = control.client(control.platform_key, **{"openai-organization": alice.organization_id})
        made = create(operator)
        admin = control.client(alice.admin_key)
        path = f"/v1/organization/budgets/{made['id']}"
        assert answered(admin.get(path))["managed_by"] == "operator"
        assert admin.post(path, json={"amount": "11"}).status_code == 403
        assert admin.delete(path).status_code == 403
        assert answered(operator.delete(path))["deleted"]

    def test_budget_of_another_organization_answers_as_one_that_does_not_exist(
        self, control: Running, alice: TenantSetup, bob: TenantSetup
    ) -> None:
        made = create(control.client(alice.admin_key))
        other = control.client(bob.admin_key)
        unknown = ids.new_id(ids.BUDGET, 1, 1)
        for suffix in ("", "/raises", "/alerts"):
            foreign = other.get(f"/v1/organization/budgets/{made['id']}{suffix}")
            absent = other.get(f"/v1/organization/budgets/{unknown}{suffix}")
            assert (foreign.status_code, foreign.content) == (absent.status_code, absent.content) == (404, absent.content)

    def test_link_grants_leases_to_a_node(self, control: Running, alice: TenantSetup) -> None:
        made = create(control.client(alice.admin_key), amount="0.000001")
        now = control.plane.now()
        lease = {"budget_id": made["id"], "at": now, "current_pico": 0, "need_pico": 400_000, "target_pico": 0}
        body = {"sequence": 1, "leases": [lease]}
        granted = answered(control.node(NODE).put(f"/v1/link/leases/{NODE}/1", json=body))["leases"][0]
        assert (granted["granted_pico"], granted["free_pico"], granted["exists"]) == (400_000, 600_000, True)
