"""Plans and overrides through the API: what gateways are told of them, where a limit comes from, and mistakes that change nothing."""

import time
from typing import Any

import httpx2
import msgspec
import pytest

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tollway.control import publish
from tollway.control.tenancy import plans
from tollway.domain.snapshot import BudgetEntry, OrganizationEntry
from tollway.storage import platform_queries

MODEL = "plans/large"
PLANS = "/v1/platform/plans"
SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def tenant(control: Running) -> TenantSetup:
    operator = control.operator()
    answered(operator.post("/v1/platform/models", json={"name": MODEL, "endpoints": ["chat/completions"]}))
    answered(operator.post("/v1/platform/prices", json={"model": MODEL, "currency": "EUR", "input": "1", "output": "2"}))
    answered(operator.post(f"/v1/platform/models/{MODEL.replace('/', '%2F')}/publish"))
    return make_tenant(control, "subscriber")


@pytest.fixture
def operator(control: Running) -> httpx2.Client:
    return control.operator()


def organization_path(tenant: TenantSetup, below: str = "") -> str:
    return f"/v1/platform/organizations/{tenant.organization_id}{below}"


def told(control: Running, tenant: TenantSetup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the limits of the organization that gateways are told, from the whole snapshot, which the latest change of the organization
    must repeat."""
    with control.plane.database.platform(write=False) as tx:
        whole = platform_queries.list_entries(tx, OrganizationEntry, [tenant.organization_id])[tenant.organization_id]
        found = publish.find_changes(tx, 0, 100_000)
    assert isinstance(whole, OrganizationEntry) and found is not None
    changed = [body for _, body in found if f'"id":"{tenant.organization_id}"'.encode() in body and b'"kind":"organization"' in body]
    assert changed[-1].endswith(msgspec.json.encode(whole) + b"}")
    return (
        {name: size for name, size in whole.limits.to_dict().items() if size is not None},
        {model: {name: size for name, size in each.to_dict().items() if size is not None} for model, each in whole.model_limits.items()},
    )


def head(control: Running) -> int:
    with control.plane.database.platform(write=False) as tx:
        return publish.find_head(tx)


def origins(control: Running, tenant: TenantSetup) -> dict[tuple[str | None, str], tuple[Any, ...]]:
    listed = answered(control.client(tenant.admin_key).get("/v1/organization/limits"))["data"]
    return {
        (each["model"], each["dimension"]): (each["limit"], each["source"], each["own"], each["plan"], each["until"]) for each in listed
    }


def test_limits_of_a_plan_hold_where_organization_and_override_say_nothing(
    control: Running, operator: httpx2.Client, tenant: TenantSetup
) -> None:
    made = answered(
        operator.post(
            PLANS,
            json={
                "name": "starter",
                "limits": {"requests_per_minute": 60, "tokens_per_day": 1000},
                "model_limits": {MODEL: {"requests_per_day": 9}},
            },
        )
    )
    changed = answered(operator.post(organization_path(tenant), json={"plan_id": made["id"]}))
    assert changed["plan_id"] == made["id"]
    assert told(control, tenant) == ({"requests_per_minute": 60, "tokens_per_day": 1000}, {MODEL: {"requests_per_day": 9}})

    answered(operator.put(organization_path(tenant, "/limits"), json={"tokens_per_day": 5000}))
    until = int(time.time()) + 3600
    override = {"limits": {"requests_per_minute": 600}, "until": until}
    answered(operator.put(organization_path(tenant, "/limit_override"), json=override))
    assert told(control, tenant) == ({"requests_per_minute": 600, "tokens_per_day": 5000}, {MODEL: {"requests_per_day": 9}})
    assert origins(control, tenant) == {
        (None, "requests_per_minute"): (600, "override", None, None, until),
        (None, "tokens_per_day"): (5000, "own", 5000, None, None),
        (MODEL, "requests_per_day"): (9, "plan", None, "starter", None),
    }
    shown = answered(operator.get(organization_path(tenant, "/limit_sources")))
    assert (shown["plan"]["name"], shown["own"]["tokens_per_day"]) == ("starter", 5000)
    assert [(each["model"], each["limits"]["requests_per_minute"], each["until"]) for each in shown["overrides"]] == [(None, 600, until)]

    answered(operator.post(f"{PLANS}/{made['id']}", json={"limits": {"requests_per_minute": 70}, "model_limits": {MODEL: {}}}))
    assert told(control, tenant) == ({"requests_per_minute": 600, "tokens_per_day": 5000}, {})
    answered(operator.delete(organization_path(tenant, "/limit_override")))
    assert told(control, tenant) == ({"requests_per_minute": 70, "tokens_per_day": 5000}, {})
    assert operator.delete(organization_path(tenant, "/limit_override")).status_code == 404

    in_use = operator.delete(f"{PLANS}/{made['id']}")
    assert (in_use.status_code, in_use.json()["error"]["message"]) == (
        409,
        "1 organization has the plan 'starter': give them another one first.",
    )
    assert answered(operator.post(organization_path(tenant), json={"time_zone": "UTC"}))["plan_id"] == made["id"]
    assert answered(operator.post(organization_path(tenant), json={"plan_id": None}))["plan_id"] is None
    assert told(control, tenant) == ({"tokens_per_day": 5000}, {})
    answered(operator.put(organization_path(tenant, "/limits"), json={}))
    assert answered(operator.delete(f"{PLANS}/{made['id']}"))["deleted"]
    assert operator.get(f"{PLANS}/{made['id']}").status_code == 404


def test_override_that_ended_is_removed_and_published(control: Running, operator: httpx2.Client, tenant: TenantSetup) -> None:
    start = control.plane.now()
    override = {"limits": {"requests_per_day": 7}, "until": start // SECOND_US + 10}
    answered(operator.put(organization_path(tenant, "/limit_override"), params={"model": MODEL}, json=override))
    assert plans.remove_ended(control.plane.database, start + 8 * SECOND_US) == []
    assert told(control, tenant) == ({}, {MODEL: {"requests_per_day": 7}})
    assert plans.remove_ended(control.plane.database, start + 10 * SECOND_US) == [tenant.organization_id]
    assert told(control, tenant) == ({}, {})
    assert plans.remove_ended(control.plane.database, start + 10 * SECOND_US) == []


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"limits": {"tokens_per_minute": 0}}, 400, "limits.tokens_per_minute"),
        ({"limits": {"tokens_per_minute": -1}}, 400, "limits.tokens_per_minute"),
        ({"limits": {"tokens_per_minute": 10**15}}, 400, "limits.tokens_per_minute"),
        ({"limits": {"requests_per_minute": 2, "requests_per_day": 1}}, 400, "limits.requests_per_minute"),
        ({"model_limits": {"plans/large": {"requests_per_minute": 2, "requests_per_day": 1}}}, 400, "model_limits.plans/large"),
        ({"limits": {"tokens_per_day": 5}, "model_limits": {"plans/large": {"input_tokens_per_day": 6}}}, 400, "model_limits"),
        ({"model_limits": {"nothing": {"requests_per_minute": 2}}}, 404, "model_limits"),
        ({"limit": {}}, 400, "limit"),
    ],
)
def test_plan_with_limits_that_are_mistakes_is_refused_and_changes_nothing(
    control: Running, operator: httpx2.Client, tenant: TenantSetup, body: dict[str, Any], status: int, param: str
) -> None:
    made = answered(operator.post(PLANS, json={"name": "kept", "limits": {"requests_per_day": 5}}))
    answered(operator.post(organization_path(tenant), json={"plan_id": made["id"]}))
    before = head(control)
    for refused in (operator.post(PLANS, json={"name": "wrong", **body}), operator.post(f"{PLANS}/{made['id']}", json=body)):
        assert refused.status_code == status, refused.text
        assert refused.json()["error"]["param"].startswith(param)
    assert head(control) == before
    assert [each["name"] for each in answered(operator.get(PLANS))["data"]] == ["kept"]
    assert told(control, tenant) == ({"requests_per_day": 5}, {})
    assert operator.post(PLANS, json={"name": "kept"}).status_code == 409
    answered(operator.post(organization_path(tenant), json={"plan_id": None}))
    answered(operator.delete(f"{PLANS}/{made['id']}"))


@pytest.mark.parametrize("plan_id", ["plan_" + "0" * 32, "starter", ""])
def test_plan_that_does_not_exist_is_refused(control: Running, operator: httpx2.Client, tenant: TenantSetup, plan_id: str) -> None:
    before = head(control)
    refused = operator.post(organization_path(tenant), json={"plan_id": plan_id, "time_zone": "Europe/Berlin"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "plan_id")
    assert head(control) == before
    assert answered(operator.get(organization_path(tenant)))["time_zone"] == "UTC", "nothing of the request was done"


@pytest.mark.parametrize(
    ("limits", "seconds_ahead", "param"),
    [
        ({"requests_per_day": 1}, -1, "until"),
        ({"requests_per_day": 1}, 367 * 86_400, "until"),
        ({}, 60, None),
        ({"requests_per_day": 0}, 60, "limits.requests_per_day"),
        ({"requests_per_minute": 2, "requests_per_day": 1}, 60, "limits.requests_per_minute"),
    ],
)
def test_override_that_is_a_mistake_is_refused(
    control: Running, operator: httpx2.Client, tenant: TenantSetup, limits: dict[str, int], seconds_ahead: int, param: str | None
) -> None:
    before = head(control)
    body = {"limits": limits, "until": int(time.time()) + seconds_ahead}
    refused = operator.put(organization_path(tenant, "/limit_override"), json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert head(control) == before and told(control, tenant) == ({}, {})


def test_plan_of_an_archived_organization_can_be_deleted(control: Running, operator: httpx2.Client) -> None:
    ended = make_tenant(control, "ended")
    made = answered(operator.post(PLANS, json={"name": "brief", "limits": {"requests_per_day": 5}}))
    answered(operator.post(organization_path(ended), json={"plan_id": made["id"]}))
    body = {"limits": {"requests_per_day": 1}, "until": int(time.time()) + 60}
    answered(operator.put(organization_path(ended, "/limit_override"), json=body))
    answered(operator.post(organization_path(ended, "/archive")))
    assert operator.put(organization_path(ended, "/limit_override"), json=body).status_code == 409
    assert operator.post(organization_path(ended), json={"plan_id": made["id"]}).status_code == 409
    answered(operator.delete(f"{PLANS}/{made['id']}"))


def test_queue_weight_of_an_organization_is_published_and_bounded(control: Running, operator: httpx2.Client, tenant: TenantSetup) -> None:
    assert answered(operator.get(organization_path(tenant)))["queue_weight"] == 1
    assert answered(operator.post(organization_path(tenant), json={"queue_weight": 5}))["queue_weight"] == 5
    with control.plane.database.platform(write=False) as tx:
        entry = platform_queries.list_entries(tx, OrganizationEntry, [tenant.organization_id])[tenant.organization_id]
    assert isinstance(entry, OrganizationEntry) and entry.queue_weight == 5
    for wrong in (0, -1, 1001, "5"):
        refused = operator.post(organization_path(tenant), json={"queue_weight": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "queue_weight")
    answered(operator.post(organization_path(tenant), json={"queue_weight": 1}))


def test_plans_and_overrides_are_for_operators_alone(control: Running, tenant: TenantSetup) -> None:
    admin = control.client(tenant.admin_key)
    assert admin.get(PLANS).status_code == 403 == admin.post(PLANS, json={"name": "free"}).status_code
    body = {"limits": {"requests_per_day": 10**9}, "until": int(time.time()) + 60}
    assert admin.put(organization_path(tenant, "/limit_override"), json=body).status_code == 403


def test_group_of_models_can_be_limited_by_a_plan_an_override_and_a_project(
    control: Running, operator: httpx2.Client, tenant: TenantSetup
) -> None:
    path = f"/v1/platform/models/{MODEL.replace('/', '%2F')}"
    assert answered(operator.post(path, json={"groups": ["slow", "big", "slow"]}))["groups"] == ["big", "slow"]
    made = answered(operator.post(PLANS, json={"name": "grouped", "model_limits": {"group:big": {"requests_per_minute": 9}}}))
    answered(operator.post(organization_path(tenant), json={"plan_id": made["id"]}))
    assert told(control, tenant)[1]["group:big"] == {"requests_per_minute": 9}
    admin = control.client(tenant.admin_key)
    limits = f"/v1/organization/projects/{tenant.project_id}/limits"
    answered(admin.put(limits, params={"model": "group:slow"}, json={"tokens_per_minute": 5}))
    shown = answered(admin.get("/v1/organization/limits", params={"project_id": tenant.project_id}))["data"]
    assert {("project", "group:slow"), ("organization", "group:big")} <= {(each["level"], each["model"]) for each in shown}
    before = head(control)
    for refused in (
        admin.put(limits, params={"model": "group:other"}, json={"tokens_per_minute": 5}),
        operator.post(PLANS, json={"name": "of nothing", "model_limits": {"group:other": {"requests_per_minute": 9}}}),
    ):
        assert refused.status_code == 404
        assert refused.json()["error"]["message"] == "There is no group of models 'other' with a published model."
    for groups in (["a b"], [""], ["x" * 65], [f"g{number}" for number in range(21)], None):
        assert operator.post(path, json={"groups": groups}).status_code == 400
    assert operator.post("/v1/platform/models", json={"name": "group:big", "endpoints": ["chat/completions"]}).status_code == 400
    assert head(control) == before
    answered(operator.post(path, json={"groups": []}))
    answered(operator.post(organization_path(tenant), json={"plan_id": None}))


def plan_budgets(control: Running, tenant: TenantSetup) -> list[tuple[str, str, str]]:
    listed = answered(control.client(tenant.admin_key).get("/v1/organization/budgets", params={"limit": 100}))["data"]
    assert all(
        (each["managed_by"], each["mode"], each["window"], each["level"]) == ("operator", "hard", "month", "organization")
        for each in listed
    )
    return [(each["id"], each["amount"], each["plan_id"]) for each in listed if each["plan_id"] is not None]


def test_monthly_budget_of_a_plan_is_a_budget_of_its_organizations_that_changes_and_ends_with_it(
    control: Running, operator: httpx2.Client, tenant: TenantSetup
) -> None:
    made = answered(operator.post(PLANS, json={"name": "budgeted", "monthly_budgets": {"EUR": "500", "USD": "550"}}))
    assert made["monthly_budgets"] == {"EUR": "500", "USD": "550"}
    answered(operator.post(organization_path(tenant), json={"plan_id": made["id"]}))
    ((budget_id, amount, plan_id),) = plan_budgets(control, tenant)
    assert (amount, plan_id) == ("500", made["id"])
    answered(operator.post(f"{PLANS}/{made['id']}", json={"monthly_budgets": {"EUR": "600"}}))
    assert plan_budgets(control, tenant) == [(budget_id, "600", made["id"])], "the same budget: what was spent stays spent"
    other = answered(operator.post(PLANS, json={"name": "larger", "monthly_budgets": {"EUR": "900"}}))
    answered(operator.post(organization_path(tenant), json={"plan_id": other["id"]}))
    assert plan_budgets(control, tenant) == [(budget_id, "900", other["id"])]
    with control.plane.database.platform(write=False) as tx:
        assert budget_id in platform_queries.list_entries(tx, BudgetEntry, [budget_id])
    as_operator = control.client(control.platform_key, **{"openai-organization": tenant.organization_id})
    path = f"/v1/organization/budgets/{budget_id}"
    assert [as_operator.post(path, json={"amount": "1"}).status_code, as_operator.delete(path).status_code] == [409, 409]
    ends_at = control.plane.now() // SECOND_US + 3600
    answered(as_operator.post(f"{path}/raises", json={"amount": "5", "ends_at": ends_at}))
    assert answered(as_operator.get(path))["limit"] == "905"
    answered(operator.post(f"{PLANS}/{other['id']}", json={"monthly_budgets": {"EUR": None}}))
    assert plan_budgets(control, tenant) == []
    answered(operator.post(organization_path(tenant), json={"plan_id": None}))


def test_monthly_budget_that_cannot_be_is_refused_before_anything_changes(
    control: Running, operator: httpx2.Client, tenant: TenantSetup
) -> None:
    foreign = answered(operator.post(PLANS, json={"name": "in dollars", "monthly_budgets": {"USD": "1"}}))
    empty = answered(operator.post(PLANS, json={"name": "without budget", "limits": {"requests_per_minute": 1}}))
    answered(operator.post(organization_path(tenant), json={"plan_id": empty["id"]}))
    before = head(control)
    refused = operator.post(organization_path(tenant), json={"plan_id": foreign["id"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "plan_id")
    assert "no monthly budget in EUR" in refused.json()["error"]["message"]
    assert operator.post(f"{PLANS}/{empty['id']}", json={"monthly_budgets": {"USD": "1"}}).status_code == 409
    for wrong in ({"EUR": "0"}, {"EUR": "-1"}, {"EUR": "9300000"}, {"EUR": "x"}, {"EUX": "1"}, {"EUR": None}):
        assert operator.post(PLANS, json={"name": "wrong", "monthly_budgets": wrong}).status_code == 400
    assert head(control) == before
    answered(operator.post(organization_path(tenant), json={"plan_id": None}))
