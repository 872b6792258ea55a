"""Limits through the API: at four levels, on all models or one, as gateways are told of them, and mistakes that change nothing."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.control.harness import NODE_ID, Running, TenantSetup, answered, make_tenant
from tests.patience import PATIENCE_SECONDS
from tollway.control import publish
from tollway.domain.limits import DIMENSIONS, USES_REPORTED_MAX, LevelLimits, LimitLevel, Limits
from tollway.domain.snapshot import Entry, KeyEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.memory_counters import MemoryCounters
from tollway.gateway.principal import principal_of_key
from tollway.link.limit_use_reports import LimitReporter
from tollway.storage import limit_use_reports, platform_queries

EVERY = {dimension.name: 1000 + place for place, dimension in enumerate(DIMENSIONS)} | {"tokens_per_minute": 5000, "tokens_per_day": 6000}
MODEL = "limits/large"


@pytest.fixture(scope="module")
def tenant(control: Running) -> TenantSetup:
    operator = control.operator()
    answered(operator.post("/v1/platform/models", json={"name": MODEL, "endpoints": ["chat/completions"], "groups": ["limited"]}))
    answered(operator.post("/v1/platform/prices", json={"model": MODEL, "currency": "EUR", "input": "1", "output": "2"}))
    answered(operator.post(f"/v1/platform/models/{MODEL.replace('/', '%2F')}/publish"))
    answered(operator.post("/v1/platform/models", json={"name": "draft", "endpoints": ["chat/completions"]}))
    return make_tenant(control, "limited")


@pytest.fixture
def admin(control: Running, tenant: TenantSetup) -> httpx2.Client:
    return control.client(tenant.admin_key)


@pytest.fixture(scope="module")
def sdk(control: Running, tenant: TenantSetup) -> Iterator[OpenAI]:
    with OpenAI(api_key="unused", admin_api_key=tenant.admin_key, base_url=f"{control.url}/v1", max_retries=0) as client:
        yield client


def paths(tenant: TenantSetup) -> dict[LimitLevel, str]:
    project = f"/v1/organization/projects/{tenant.project_id}"
    return {
        LimitLevel.END_USER: f"{project}/end_user_limits",
        LimitLevel.API_KEY: f"{project}/api_keys/{tenant.key_id}/limits",
        LimitLevel.SERVICE_ACCOUNT: f"{project}/service_accounts/{tenant.service_account_id}/limits",
        LimitLevel.PROJECT: f"{project}/limits",
        LimitLevel.ORGANIZATION: f"/v1/platform/organizations/{tenant.organization_id}/limits",
    }


def entries(control: Running, kind: type[Entry]) -> dict[str, Any]:
    """Return what a gateway is told now, by id: from the whole snapshot, which the last change must repeat."""
    with control.plane.database.platform(write=False) as tx:
        whole = {entry.id: entry for entry in platform_queries.iterate_entries(tx) if isinstance(entry, kind)}
        head = publish.find_head(tx)
        changes = publish.find_changes(tx, head - 1, 10)
    assert changes is not None and len(changes) == 1
    return whole


def client_for(control: Running, tenant: TenantSetup, level: LimitLevel) -> httpx2.Client:
    return control.operator() if level is LimitLevel.ORGANIZATION else control.client(tenant.admin_key)


@pytest.mark.parametrize("level", LimitLevel)
@pytest.mark.parametrize("model", [None, MODEL, "group:limited"])
def test_limits_of_a_level_are_replaced_as_a_whole_and_published(
    control: Running, tenant: TenantSetup, level: LimitLevel, model: str | None
) -> None:
    client, path = client_for(control, tenant, level), paths(tenant)[level]
    query = {} if model is None else {"model": model}
    assert set(answered(client.get(path, params=query)).values()) == {"limits", None}
    assert answered(client.put(path, params=query, json=EVERY)) == {"object": "limits", **EVERY}
    assert answered(client.get(path, params=query)) == {"object": "limits", **EVERY}
    organization = entries(control, OrganizationEntry)[tenant.organization_id]
    project = entries(control, ProjectEntry)[tenant.project_id]
    keys = [key for key in entries(control, KeyEntry).values() if key.project_id == tenant.project_id]
    account_key = next(key for key in keys if key.service_account_id == tenant.service_account_id)
    key = next(key for key in keys if key.id == tenant.key_id)
    principal = principal_of_key(account_key if level is LimitLevel.SERVICE_ACCOUNT else key, project, organization)
    published = [(each.level, each.model, each.limits) for each in principal.limits]
    published += [(LimitLevel.END_USER, of_model, limits) for of_model, limits in project.list_end_user_limits()]
    assert published == [(level, model or "", Limits(**EVERY))]
    assert answered(client.put(path, params=query, json={"tokens_per_day": 9})) == {
        "object": "limits",
        **dict.fromkeys(EVERY),
        "tokens_per_day": 9,
    }
    answered(client.put(path, params=query, json={}))
    assert set(answered(client.get(path, params=query)).values()) == {"limits", None}


def test_limits_of_each_end_user_of_a_project_are_published_and_listed(control: Running, admin: httpx2.Client, tenant: TenantSetup) -> None:
    path = paths(tenant)[LimitLevel.END_USER]
    assert answered(admin.put(path, json=EVERY)) == {"object": "limits", **EVERY} == answered(admin.get(path))
    project = entries(control, ProjectEntry)[tenant.project_id]
    assert (project.end_user_limits, project.limits) == (Limits(**EVERY), Limits())
    listed = answered(admin.get("/v1/organization/limits", params={"project_id": tenant.project_id}))["data"]
    assert {each["dimension"]: each["limit"] for each in listed} == EVERY
    assert {(each["level"], each["id"], each["used"], each["binds"]) for each in listed} == {("end_user", tenant.project_id, None, False)}
    answered(admin.put(path, params={"model": MODEL}, json={"requests_per_day": 7}))
    listed = answered(admin.get("/v1/organization/limits", params={"project_id": tenant.project_id}))["data"]
    assert [(each["limit"], each["dimension"]) for each in listed if each["model"] == MODEL] == [(7, "requests_per_day")]
    answered(admin.put(path, params={"model": MODEL}, json={}))
    answered(admin.put(path, json={}))
    assert entries(control, ProjectEntry)[tenant.project_id].end_user_limits == Limits()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tokens_per_minute": 0}, "tokens_per_minute"),
        ({"tokens_per_minute": -5}, "tokens_per_minute"),
        ({"tokens_per_day": 10**15}, "tokens_per_day"),
        ({"requests_per_day": 10, "requests_per_minute": 11}, "requests_per_minute"),
        ({"input_tokens_per_minute": 11, "tokens_per_minute": 10}, "input_tokens_per_minute"),
        ({"tokens_per_hour": 10}, "tokens_per_hour"),
    ],
)
@pytest.mark.parametrize("level", LimitLevel)
def test_limits_that_are_mistakes_are_refused_and_change_nothing(
    control: Running, tenant: TenantSetup, level: LimitLevel, body: dict[str, int], param: str
) -> None:
    client, path = client_for(control, tenant, level), paths(tenant)[level]
    with control.plane.database.platform(write=False) as tx:
        before = publish.find_head(tx)
    refused = client.put(path, json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param
    with control.plane.database.platform(write=False) as tx:
        assert publish.find_head(tx) == before
    assert set(answered(client.get(path)).values()) == {"limits", None}


def test_limits_of_a_new_key_are_checked_before_it_is_made(admin: httpx2.Client, tenant: TenantSetup) -> None:
    path = f"/v1/organization/projects/{tenant.project_id}/api_keys"
    refused = admin.post(path, json={"name": "void", "limits": {"tokens_per_minute": 2, "tokens_per_day": 1}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limits.tokens_per_minute")
    assert "void" not in [key["name"] for key in answered(admin.get(path))["data"]]


@pytest.mark.parametrize("model", ["nothing", "draft"])
def test_limits_on_a_model_that_tenants_cannot_use_are_refused(admin: httpx2.Client, tenant: TenantSetup, model: str) -> None:
    refused = admin.put(paths(tenant)[LimitLevel.PROJECT], params={"model": model}, json={"tokens_per_day": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_limits_that_bind_a_key_are_listed_with_every_ancestor(control: Running, admin: httpx2.Client, tenant: TenantSetup) -> None:
    by_level = paths(tenant)
    operator = control.operator()
    answered(operator.put(by_level[LimitLevel.ORGANIZATION], json={"tokens_per_day": 5}))
    answered(admin.put(by_level[LimitLevel.PROJECT], json={"tokens_per_day": 7}))
    answered(admin.put(by_level[LimitLevel.PROJECT], params={"model": MODEL}, json={"requests_per_minute": 3}))
    answered(admin.put(by_level[LimitLevel.API_KEY], json={"concurrent_requests": 2}))

    def listed(**query: str) -> list[tuple[Any, ...]]:
        data = answered(admin.get("/v1/organization/limits", params=query))["data"]
        return [(each["level"], each["id"], each["model"], each["dimension"], each["limit"], each["binds"]) for each in data]

    organization = ("organization", tenant.organization_id, None, "tokens_per_day", 5, True)
    project = [
        ("project", tenant.project_id, None, "tokens_per_day", 7, False),
        ("project", tenant.project_id, MODEL, "requests_per_minute", 3, True),
    ]
    assert listed() == [organization]
    assert listed(project_id=tenant.project_id) == [*project, organization]
    key = ("api_key", tenant.key_id, None, "concurrent_requests", 2, True)
    assert listed(project_id=tenant.project_id, api_key_id=tenant.key_id) == [key, *project, organization]
    assert admin.get("/v1/organization/limits", params={"api_key_id": tenant.key_id}).status_code == 400
    assert admin.get("/v1/organization/limits", params={"project_id": "proj_" + "0" * 32}).status_code == 404
    for level, query in ((LimitLevel.PROJECT, {}), (LimitLevel.PROJECT, {"model": MODEL}), (LimitLevel.API_KEY, {})):
        answered(admin.put(by_level[level], params=query, json={}))
    answered(operator.put(by_level[LimitLevel.ORGANIZATION], json={}))


OTHER_NODE = "node_" + "7" * 32


def test_reports_of_live_gateways_are_added_up_and_drain_until_they_are_read(
    control: Running, admin: httpx2.Client, tenant: TenantSetup
) -> None:
    project, organization = paths(tenant)[LimitLevel.PROJECT], paths(tenant)[LimitLevel.ORGANIZATION]
    answered(admin.put(project, json={"tokens_per_day": 86_400_000, "concurrent_requests": 10}))
    answered(control.operator().put(organization, json={"tokens_per_day": 86_400_500}))
    control.node(OTHER_NODE)
    start = control.plane.now()

    def report(node_id: str, *uses: tuple[str, str, int, int]) -> None:
        body = {
            "uses": [
                {"subject_id": id, "model": "", "dimension": dimension, "used": used, "held": held} for id, dimension, used, held in uses
            ]
        }
        node = control.node(node_id)
        answered(node.post("/v1/link/ack", json={"node_id": node_id, "version": 0}))
        assert answered(node.put(f"/v1/link/limit_uses/{node_id}", json=body)) == {"received": len(uses)}

    def listed() -> tuple[Any, ...]:
        answer = answered(admin.get("/v1/organization/limits", params={"project_id": tenant.project_id}))
        shown = [
            (each["level"], each["dimension"], each["used"], each["reserved"], each["remaining"], each["reset_seconds"], each["binds"])
            for each in answer["data"]
        ]
        return answer["counted_by"], answer["gateways"], shown

    with control.clock.set_to(start):
        tokens = "tokens_per_day"
        report(NODE_ID, (tenant.project_id, tokens, 5000, 300), (tenant.project_id, "concurrent_requests", 0, 2))
        report(OTHER_NODE, (tenant.project_id, tokens, 1000, 0), (tenant.organization_id, tokens, 90_000, 0))
    with control.clock.set_to(start + 2_000_000):  # 1,000 tokens a second have drained at each gateway
        assert listed() == (
            "gateways",
            2,
            [
                ("project", tokens, 3000, 300, 86_396_700, 3.3, False),
                ("project", "concurrent_requests", 0, 2, 8, None, True),
                ("organization", tokens, 88_000, 0, 86_312_500, 88.0, True),
            ],
        )
        report(NODE_ID)
        assert listed()[2][1] == ("project", "concurrent_requests", 0, 0, 10, None, True), "a report replaces the one before"
    with control.clock.set_to(start + 3_600_000_000):
        assert listed()[:2] == (None, None), "no gateway lives"
        assert {each[2:6] for each in listed()[2]} == {(None, None, None, None)}
    answered(admin.put(project, json={}))
    answered(control.operator().put(organization, json={}))


def test_reports_of_another_gateway_and_malformed_ones_are_refused(control: Running) -> None:
    node = control.node()
    assert node.put(f"/v1/link/limit_uses/{OTHER_NODE}", json={"uses": []}).status_code in (403, 404)
    path = f"/v1/link/limit_uses/{NODE_ID}"
    use = {"subject_id": "proj_1", "model": "", "dimension": "tokens_per_day", "used": 1, "held": 0}
    assert node.put(path, json={"uses": [use | {"used": -1}]}).status_code == 400
    assert node.put(path, json={"uses": [use] * 1001}).status_code == 400
    answered(node.put(path, json={"uses": [use] * 1000}))


async def test_reporter_of_a_gateway_brings_the_limits_with_the_largest_part_used(control: Running) -> None:
    counters = MemoryCounters()

    def use(id: str, units: int) -> None:
        bound = counters.bind("", [LevelLimits(LimitLevel.PROJECT, id, Limits(tokens_per_day=10_000))], time.monotonic_ns())
        assert counters.reserve(bound, (1, units, 0, 0, 0, 0), time.monotonic_ns()).is_admitted

    use("proj_light", 10)
    for number in range(USES_REPORTED_MAX):
        use(f"proj_{number}", 100 + number)
    reporter = LimitReporter(counters, control_link_url=control.link_url, node_key=control.node_key, node_id=NODE_ID)
    task = asyncio.create_task(reporter.run())

    def read() -> dict[str, int]:
        with control.plane.database.platform(write=False) as tx:
            return {use.subject_id: use.held for each in limit_use_reports.list_reports(tx, [NODE_ID]) for use in each.uses}

    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(read()) < USES_REPORTED_MAX or "proj_0" not in read():
            await asyncio.sleep(0.02)
    assert read() == {f"proj_{number}": 100 + number for number in range(USES_REPORTED_MAX)}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await reporter.close()


def test_rate_limits_of_the_official_sdk_are_the_projects_limits_on_each_model(
    sdk: OpenAI, admin: httpx2.Client, tenant: TenantSetup
) -> None:
    rate_limits = sdk.admin.organization.projects.rate_limits
    listed = {each.model: each for each in rate_limits.list_rate_limits(tenant.project_id)}
    assert listed[MODEL].object == "project.rate_limit" and listed[MODEL].max_tokens_per_1_minute is None
    assert "draft" not in listed
    id = listed[MODEL].id
    changed = rate_limits.update_rate_limit(id, project_id=tenant.project_id, max_requests_per_1_minute=50, max_tokens_per_1_minute=9000)
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute, changed.max_requests_per_1_day) == (50, 9000, None)
    changed = rate_limits.update_rate_limit(id, project_id=tenant.project_id, max_images_per_1_minute=4)
    assert (changed.max_requests_per_1_minute, changed.max_images_per_1_minute) == (50, 4), "what is left out stays"
    changed = rate_limits.update_rate_limit(id, project_id=tenant.project_id, max_requests_per_1_day=100)
    assert (changed.max_requests_per_1_minute, changed.max_requests_per_1_day) == (50, 100), "what is left out stays"
    ours = answered(admin.get(paths(tenant)[LimitLevel.PROJECT], params={"model": MODEL}))
    assert (ours["requests_per_minute"], ours["tokens_per_minute"], ours["requests_per_day"]) == (50, 9000, 100)
    with pytest.raises(openai.BadRequestError):
        rate_limits.update_rate_limit(id, project_id=tenant.project_id, max_requests_per_1_day=10)
    with pytest.raises(openai.BadRequestError):
        rate_limits.update_rate_limit(id, project_id=tenant.project_id, max_audio_megabytes_per_1_minute=10)
    with pytest.raises(openai.NotFoundError):
        rate_limits.update_rate_limit("rl-nothing", project_id=tenant.project_id, max_requests_per_1_day=10)
    answered(admin.put(paths(tenant)[LimitLevel.PROJECT], params={"model": MODEL}, json={}))
