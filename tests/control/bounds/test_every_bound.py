"""Every limit binds at a gateway, whichever way it was set; bounds that are mistakes are refused by each way before anything changes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tollway.cli.app import run
from tollway.control import publish
from tollway.domain.catalog import covers_model
from tollway.domain.limits import CONCURRENT_REQUESTS, DIMENSIONS, LevelLimits, LimitLevel, Limits
from tollway.domain.snapshot import KeyEntry, ModelEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.counters import ONE_REQUEST, QUANTITIES, REQUESTS, EndUserLimits
from tollway.gateway.memory_counters import MemoryCounters
from tollway.gateway.principal import principal_of_key
from tollway.storage import platform_queries

MODEL, GROUP = "bounds/large", "group:bounded"
TARGETS = (None, MODEL, GROUP)
SIZES = {each.name: 100 + place for place, each in enumerate(DIMENSIONS)} | {"tokens_per_minute": 500, "tokens_per_day": 600}
"""A size for each dimension, other than those of the rest, so that one in the place of another is noticed."""


@pytest.fixture(scope="module")
def tenant(control: Running) -> TenantSetup:
    operator = control.operator()
    answered(operator.post("/v1/platform/models", json={"name": MODEL, "endpoints": ["chat/completions"], "groups": ["bounded"]}))
    answered(operator.post("/v1/platform/prices", json={"model": MODEL, "currency": "EUR", "input": "1", "output": "2"}))
    answered(operator.post(f"/v1/platform/models/{MODEL.replace('/', '%2F')}/publish"))
    return make_tenant(control, "bounded")


def path_of(tenant: TenantSetup, level: LimitLevel) -> str:
    project = f"/v1/organization/projects/{tenant.project_id}"
    return {
        LimitLevel.END_USER: f"{project}/end_user_limits",
        LimitLevel.API_KEY: f"{project}/api_keys/{tenant.key_id}/limits",
        LimitLevel.SERVICE_ACCOUNT: f"{project}/service_accounts/{tenant.service_account_id}/limits",
        LimitLevel.PROJECT: f"{project}/limits",
        LimitLevel.ORGANIZATION: f"/v1/platform/organizations/{tenant.organization_id}/limits",
    }[level]


def put(control: Running, tenant: TenantSetup, level: LimitLevel, target: str | None, sizes: dict[str, int]) -> None:
    client = control.operator() if level is LimitLevel.ORGANIZATION else control.client(tenant.admin_key)
    answered(client.put(path_of(tenant, level), params={} if target is None else {"model": target}, json=sizes))


def set_by_api(control: Running, tenant: TenantSetup, _directory: Path) -> None:
    for level in LimitLevel:
        for target in TARGETS:
            put(control, tenant, level, target, SIZES)


def set_by_command(control: Running, tenant: TenantSetup, _directory: Path) -> None:
    of_level = {
        LimitLevel.END_USER: ["--each-end-user"],
        LimitLevel.API_KEY: ["--api-key", tenant.key_id],
        LimitLevel.SERVICE_ACCOUNT: ["--service-account", tenant.service_account_id],
        LimitLevel.PROJECT: [],
        LimitLevel.ORGANIZATION: ["--of-organization"],
    }
    sizes = [f"{name}={size}" for name, size in SIZES.items()]
    access = ["--organization", tenant.organization_id, "--control-url", control.url, "--key", control.platform_key]
    for level, options in of_level.items():
        place = [] if level is LimitLevel.ORGANIZATION else ["--project", tenant.project_id]
        for target in TARGETS:
            on = [] if target is None else ["--model", target]
            assert run(["limits", "set", *sizes, *place, *options, *on, *access]) == 0
    shown = ["limits", "show", "--project", tenant.project_id, "--service-account", tenant.service_account_id]
    assert run([*shown, *access]) == 0
    assert run([*shown, "--api-key", tenant.key_id, *access]) == 1, "one of both"


def file_of(tenant: TenantSetup, organization: dict[str, Any], project: dict[str, Any], **rest: Any) -> str:
    """Return a platform file about the tenant's organization and project. JSON is YAML."""
    of_organization = {"currency": "EUR", **organization, "projects": {tenant.project_id: project}}
    return json.dumps({"organizations": {tenant.organization_id: of_organization}, **rest})


def apply(control: Running, directory: Path, text: str, *options: str) -> int:
    file = directory / "platform.yaml"
    file.write_text(text)
    return run(["apply", "-f", str(file), *options, "--control-url", control.url, "--key", control.platform_key])


def set_by_file(control: Running, tenant: TenantSetup, directory: Path) -> None:
    limits = {"limits": SIZES, "model_limits": dict.fromkeys(TARGETS[1:], SIZES)}
    project = {
        **limits,
        **{f"end_user_{name}": of for name, of in limits.items()},
        "api_keys": {tenant.key_id: limits},
        "service_accounts": {tenant.service_account_id: limits},
    }
    text = file_of(tenant, limits, project)
    assert apply(control, directory, text) == 0
    assert apply(control, directory, text, "--dry-run") == 0, "a second run has nothing to change"
    exported = directory / "exported.yaml"
    access = ["--control-url", control.url, "--key", control.platform_key]
    assert run(["export", "-f", str(exported), *access]) == 0
    assert "audio_seconds_per_day" in exported.read_text().split("service_accounts:")[1]
    assert apply(control, directory, exported.read_text(), "--dry-run") == 0, "what was exported is what there is"


def list_bound(control: Running, tenant: TenantSetup) -> Iterator[LevelLimits]:
    """Yield the limits that gateways are told of for requests of the key, or of a key of the service account, and of an end user."""
    with control.plane.database.platform(write=False) as tx:
        entries = list(platform_queries.iterate_entries(tx))
    (model,) = [each for each in entries if isinstance(each, ModelEntry) and each.id == MODEL]
    (project,) = [each for each in entries if isinstance(each, ProjectEntry) and each.id == tenant.project_id]
    (organization,) = [each for each in entries if isinstance(each, OrganizationEntry) and each.id == tenant.organization_id]
    for key in entries:
        if isinstance(key, KeyEntry) and key.project_id == tenant.project_id:
            of_key = principal_of_key(key, project, organization).limits
            yield from (each for each in of_key if covers_model(each.model, model.id, model.groups))
    yield from EndUserLimits(organization.id, project.id, project.list_end_user_limits()).list_levels(f"{project.id}:someone")


@pytest.mark.parametrize("set_limits", [set_by_api, set_by_command, set_by_file], ids=["api", "command", "file"])
def test_every_dimension_binds_at_every_level_on_all_models_one_and_a_group(
    control: Running, tenant: TenantSetup, tmp_path: Path, set_limits: Callable[[Running, TenantSetup, Path], None]
) -> None:
    set_limits(control, tenant, tmp_path)
    bound = {(each.level, each.model): each for each in list_bound(control, tenant)}
    assert set(bound) == {(level, target or "") for level in LimitLevel for target in TARGETS}
    for owner in bound.values():
        for dimension in DIMENSIONS:
            counters = MemoryCounters()
            own = owner._replace(limits=Limits(**{dimension.name: owner.limits.get(dimension)}))
            counted = counters.bind(tenant.organization_id, [own], 0)
            quantity, size = QUANTITIES.index(dimension.quantity), SIZES[dimension.name]
            one = tuple(int(at in (REQUESTS, quantity)) for at in range(len(QUANTITIES)))
            most = tuple(size if at == quantity else 1 for at in range(len(QUANTITIES)))
            held = [counters.reserve(counted, ONE_REQUEST if quantity == REQUESTS else most, 0)]
            held += [counters.reserve(counted, ONE_REQUEST, 0) for _ in range(size - 1 if quantity == REQUESTS else 0)]
            assert all(each.is_admitted for each in held), (own, dimension.name)
            refused = counters.reserve(counted, one, 0)
            assert not refused.is_admitted, (own, dimension.name)
            said = refused.find_refusal()
            assert (said.owner.level, said.owner.model, said.size) == (owner.level, owner.model, size)
            assert said.is_concurrency is (dimension is CONCURRENT_REQUESTS)
    for level in LimitLevel:
        for target in TARGETS:
            put(control, tenant, level, target, {})


class Mistake(NamedTuple):
    """A bound that cannot be. `path`, `body`: of an operator's request; `param`: at fault. `organization`, `project`: in the file."""

    path: str
    body: dict[str, Any]
    param: str
    organization: dict[str, Any]
    project: dict[str, Any]
    said: str


def limits_mistake(sizes: dict[str, int], param: str, said: str) -> Mistake:
    return Mistake("/v1/organization/projects/{project}/limits", sizes, param, {}, {"limits": sizes}, said)


def budget_mistake(changed: dict[str, Any], param: str, said: str, **stated: Any) -> Mistake:
    """`stated`: what the file says otherwise."""
    budget = {"amount": "5", "window": "month", **changed}
    body = {"name": "all", "project_id": "{project}", **budget}
    return Mistake("/v1/organization/budgets", body, param, {}, {"budgets": {"all": {**budget, **stated}}}, said)


MISTAKES = {
    "limit below zero": limits_mistake({"requests_per_minute": -1}, "requests_per_minute", "must be between 1 and"),
    "limit of zero": limits_mistake({"concurrent_requests": 0}, "concurrent_requests", "must be between 1 and"),
    "absurd limit": limits_mistake({"tokens_per_day": 10**15}, "tokens_per_day", "must be between 1 and"),
    "limit that another one makes void": limits_mistake(
        {"requests_per_minute": 11, "requests_per_day": 10}, "requests_per_minute", "can never be reached"
    ),
    "limit on a part that the whole makes void": limits_mistake(
        {"input_tokens_per_day": 11, "tokens_per_day": 10}, "input_tokens_per_day", "can never be reached"
    ),
    "plan that does not exist": Mistake(
        "/v1/platform/organizations/{organization}", {"plan_id": "plan_" + "0" * 32}, "plan_id", {"plan": "nowhere"}, {}, "there is no plan"
    ),
    "budget below zero": budget_mistake({"amount": "-5"}, "amount", "not a plain decimal"),
    "budget of zero": budget_mistake({"amount": "0"}, "amount", "more than zero"),
    "absurd budget": budget_mistake({"amount": "99999999999"}, "amount", "too much"),
    "budget in another currency": budget_mistake({"currency": "USD"}, "currency", "the organization is billed in EUR"),
    "tag without a value": budget_mistake({"tag": "team"}, "tag", "tag"),
    "tag with a key that is too long": budget_mistake({"tag": f"{'k' * 65}=v"}, "tag", "tag"),
    "tag with a value that is too long": budget_mistake({"tag": f"team={'v' * 513}"}, "tag", "tag"),
    "tag that no line can hold": budget_mistake({"tag": "team=a\nb"}, "tag", "tag"),
    "budget on a model that does not exist": budget_mistake({"model": "nowhere"}, "model", "there is no model"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistake_is_refused_by_the_api_and_by_apply_before_anything_changes(
    control: Running, tenant: TenantSetup, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    mistake = MISTAKES[what]
    body = json.loads(json.dumps(mistake.body).replace("{project}", tenant.project_id))
    path = mistake.path.format(project=tenant.project_id, organization=tenant.organization_id)
    with control.plane.database.platform(write=False) as tx:
        before = publish.find_head(tx)
    client = control.client(control.platform_key, **{"openai-organization": tenant.organization_id})
    refused = client.request("PUT" if path.endswith("limits") else "POST", path, json=body)
    assert refused.status_code in (400, 404), refused.text
    assert refused.json()["error"]["param"] == mistake.param, refused.text
    # The file has a change beside the mistake that would be made first.
    organization = {"time_zone": "Europe/Paris", "queue_weight": 7, **mistake.organization}
    assert apply(control, tmp_path, file_of(tenant, organization, mistake.project)) == 2
    assert mistake.said in capsys.readouterr().err
    with control.plane.database.platform(write=False) as tx:
        assert publish.find_head(tx) == before
    shown = answered(control.operator().get(f"/v1/platform/organizations/{tenant.organization_id}"))
    assert (shown["time_zone"], shown["queue_weight"]) == ("UTC", 1)
