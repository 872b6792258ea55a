"""The platform file: its schema, its example, and values that are refused before anything is changed."""

import runpy
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tollway.cli.app import run
from tollway.cli.catalog import identity_file
from tollway.cli.catalog.platform_file import _NUMBERS, read
from tollway.control.api.authentication.sign_in_connections import ConnectionCreate
from tollway.control.api.catalog.deployment_schemas import Tier, Weight
from tollway.control.api.catalog.model_schemas import ModelCreate
from tollway.control.api.identity.federation import ProviderCreate, Restricted, RuleCreate
from tollway.settings import OperatorError

ROOT = Path(__file__).parents[2]


def test_schema_is_current() -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "platform_page.py"))["render"]
    assert (ROOT / "docs" / "platform.schema.json").read_text("utf-8") == render(), "run `make docs`"


def test_example_uses_every_part_of_the_file() -> None:
    example = read(ROOT / "docs" / "platform.example.yaml")
    assert example.models and example.organizations and example.price_books and example.plans


def test_ranges_are_those_of_the_api() -> None:
    for name, type in (("tier", Tier), ("weight", Weight)):
        schema = TypeAdapter(type).json_schema()
        assert (schema["minimum"], schema["maximum"]) == _NUMBERS[name]
    for name in ("output_tokens_max", "context_length"):
        (number, _) = ModelCreate.model_json_schema()["properties"][name]["anyOf"]
        assert (number["minimum"], number["maximum"]) == _NUMBERS[name]


def test_bounds_of_identity_are_those_of_the_api() -> None:
    connection, provider, rule = (each.model_json_schema()["properties"] for each in (ConnectionCreate, ProviderCreate, RuleCreate))
    texts = [connection["issuer"], provider["issuer"], provider["audience"]]
    assert {each["maxLength"] for each in texts} == {identity_file._TEXT_CHARACTERS_MAX}
    assert connection["client_id"]["maxLength"] == identity_file._CLIENT_ID_CHARACTERS_MAX
    assert {connection[name]["maxLength"] for name in ("name", "groups_claim")} == {identity_file._NAME_CHARACTERS_MAX}
    assert connection["domains"]["maxItems"] == identity_file._DOMAINS_MAX
    assert connection["groups"]["maxProperties"] == identity_file._GROUPS_MAX
    assert provider["description"]["anyOf"][0]["maxLength"] == identity_file._DESCRIPTION_CHARACTERS_MAX
    values = rule["attribute_matchers"]["additionalProperties"]["anyOf"]
    assert [each["maxLength"] for each in values if "maxLength" in each] == [identity_file._CLAIM_CHARACTERS_MAX]
    assert Restricted.model_json_schema()["properties"]["scopes"]["maxItems"] == identity_file._ENDPOINTS_MAX


MODEL = "endpoints: [completions]"
DEPLOYMENT = "engine: vllm, upstream_model: m"
BUDGET = "organizations: {a: {currency: EUR, budgets: {all: {%s}}}}"
REFUSED = {
    "currency of an organization": ("organizations: {a: {currency: EURO}}", "a in .*: 'EURO' is not a currency code"),
    "currency of a price": (f"models: {{m: {{{MODEL}, prices: {{ZZZ: {{input: 1, output: 1}}}}}}}}", "'ZZZ' is not a currency code"),
    "price with a leading zero": (f"models: {{m: {{{MODEL}, prices: {{EUR: {{input: 010, output: 1}}}}}}}}", "leading zero"),
    "price in base 60": (f"models: {{m: {{{MODEL}, prices: {{EUR: {{input: 1:30, output: 1}}}}}}}}", r"models\.m\.prices\.EUR in"),
    "price that is negative": (f"models: {{m: {{{MODEL}, prices: {{EUR: {{input: -1, output: 1}}}}}}}}", r"models\.m\.prices\.EUR in"),
    "boolean of YAML 1.1": (f"models: {{m: {{{MODEL}, published: yes}}}}", "published"),
    "tier": (f"models: {{m: {{{MODEL}, deployments: {{'http://e': {{{DEPLOYMENT}, tier: 1001}}}}}}}}", "tier must be from 0 to 1,000"),
    "weight": (f"models: {{m: {{{MODEL}, deployments: {{'http://e': {{{DEPLOYMENT}, weight: -1}}}}}}}}", "weight must be from 0"),
    "address with /v1": (f"models: {{m: {{{MODEL}, deployments: {{'http://e/v1': {{{DEPLOYMENT}}}}}}}}}", "without /v1"),
    "address without a scheme": (f"models: {{m: {{{MODEL}, deployments: {{'e:8000': {{{DEPLOYMENT}}}}}}}}}", "must be http"),
    "bound on output": (f"models: {{m: {{{MODEL}, output_tokens_max: 0}}}}", "output_tokens_max must be from 1"),
    "name of a model": (f"models: {{'m m': {{{MODEL}}}}}", "model 'm m'"),
    "schedule that is too dense": (
        "organizations: {a: {currency: EUR, rotation_schedule: {interval_seconds: 60}}}",
        r"a\.rotation_schedule in .*: interval_seconds must be from 3600",
    ),
    "field of a key": ("organizations: {a: {currency: EUR, projects: {b: {api_keys: {c: {modles: [m]}}}}}}", "unknown key .*modles"),
    "budget of nothing": (BUDGET % 'amount: "0", window: day', "budgets.all in .*: amount '0': it must be more than zero"),
    "budget that is negative": (BUDGET % 'amount: "-1", window: day', "amount '-1': not a plain decimal"),
    "budget that is absurd": (BUDGET % 'amount: "99999999999", window: day', "amount '99999999999': too much"),
    "budget in no currency": (BUDGET % "amount: 1, window: day, currency: ZZZ", "'ZZZ' is not a currency code"),
    "thresholds out of order": (BUDGET % "amount: 1, window: day, thresholds: [90, 80]", "thresholds: they must be different percentages"),
    "alert without a threshold": (
        BUDGET % "amount: 1, window: day, mode: alert",
        "thresholds: a budget of mode 'alert' needs at least one",
    ),
    "spend limit of a week": (
        BUDGET.replace("all: {%s}", "spend_limit: {amount: 1, window: week}"),
        "budgets.spend_limit: window: a budget named 'spend_limit' is of a month",
    ),
    "window of a budget": (BUDGET % "amount: 1, window: year", "window"),
    "budgets without end": (
        BUDGET.replace("all: {%s}", ", ".join(f"b{number}: {{amount: 1, window: day}}" for number in range(11))),
        "a in .*: there may be at most 10 budgets that bind, not 11",
    ),
    "limit of a plan that is zero": (
        "plans: {p: {limits: {requests_per_day: 0}}}",
        r"plans\.p\.limits in .*'requests_per_day' must be between 1",
    ),
    "limit of a plan on a model that its limit on all models makes void": (
        "plans: {p: {limits: {requests_per_day: 5}, model_limits: {m: {requests_per_day: 6}}}}",
        r"plans\.p in .*model_limits: 'requests_per_day' of model m \(6\) can never be reached",
    ),
    "limits of a plan of which one is never reached": (
        "plans: {p: {model_limits: {m: {requests_per_minute: 2, requests_per_day: 1}}}}",
        r"plans\.p\.model_limits\.m in .*can never be reached",
    ),
    "name of a plan": ("plans: {'': {}}", "the name of a plan has 1 to 256 characters"),
    "no endpoints": ("models: {m: {endpoints: []}}", "endpoints must not be empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_value_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    text, message = REFUSED[case]
    path = tmp_path / "platform.yaml"
    path.write_text(text)
    with pytest.raises(OperatorError, match=message) as caught:
        read(path)
    if "YAML" not in caught.value.message:
        assert caught.value.exit_code == 2


def test_wrong_file_ends_apply_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("a: [", "models: 1", "modells: {}", "organizations: {a: {currency: 010}}"):
        (tmp_path / "p.yaml").write_text(text)
        assert run(["apply", "-f", str(tmp_path / "p.yaml"), "--control-url", "http://127.0.0.1:9", "--key", "x"]) == 2, text
        assert capsys.readouterr().err.startswith("tollway: ")
    assert run(["apply", "-f", str(tmp_path / "absent.yaml"), "--control-url", "http://127.0.0.1:9", "--key", "x"]) == 2
