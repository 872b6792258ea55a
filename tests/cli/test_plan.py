"""The declarative file and its plan: only what the file names changes, and what is right already changes nothing."""

import json
from pathlib import Path

import msgspec
import pytest
import yaml

from tollway.cli.catalog.plan import list_warnings, make_plan
from tollway.cli.catalog.platform_file import PlatformFile, read, resolve_credential
from tollway.cli.tenancy.limits import parse_limits
from tollway.domain.limits import BY_NAME, DIMENSIONS
from tollway.settings import OperatorError

WHOLE = """
models:
  llama/70b:
    endpoints: [chat/completions, completions]
    published: true
    output_tokens_max: 4096
    prices:
      EUR: {input: 0.27, output: "1.10"}
    deployments:
      http://10.0.0.1:8000/: {engine: vllm, upstream_model: meta/llama, weight: 2, credential: "${VLLM_KEY}"}
organizations:
  acme:
    currency: EUR
    limits: {requests_per_minute: 600}
    budgets:
      all: {amount: 500, window: month, thresholds: [80, 100]}
    projects:
      chat:
        limits: {concurrent_requests: 20}
        budgets: {daily: {amount: "12.50", currency: EUR, window: day, mode: soft}}
      batch: {}
"""


def parse(directory: Path, text: str) -> PlatformFile:
    path = directory / "platform.yaml"
    path.write_text(text)
    return read(path)


def plan(current: PlatformFile, wanted: PlatformFile) -> list[tuple[str, tuple[str, ...], bool]]:
    """Return the changes of a plan in short form."""
    return [(change.what, change.place, change.creates) for change in make_plan(current, wanted)]


@pytest.fixture
def whole(tmp_path: Path) -> PlatformFile:
    """A file with one of everything."""
    return parse(tmp_path, WHOLE)


def test_everything_is_created_in_an_order_in_which_each_step_can_be_done(whole: PlatformFile) -> None:
    assert plan(PlatformFile(), whole) == [
        ("model", ("llama/70b",), True),
        ("price", ("llama/70b", "EUR"), True),
        ("publication", ("llama/70b",), False),
        ("deployment", ("llama/70b", "http://10.0.0.1:8000"), True),
        ("organization", ("acme",), True),
        ("limits", ("acme",), False),
        ("budget", ("acme", "all"), True),
        ("project", ("acme", "chat"), True),
        ("limits", ("acme", "chat"), False),
        ("budget", ("acme", "chat", "daily"), True),
        ("project", ("acme", "batch"), True),
    ]


BOOKS = """
price_books:
  partners:
    currency: EUR
    prices:
      llama/70b: {input: "0.25", output: "1", tiers: {batch: {input: "0.12", output: "0.5"}}}
  own: {currency: EUR, organization: acme}
organizations:
  acme: {currency: EUR, terms: {book: partners, discount: 15%}}
  globex: {currency: EUR, terms: {discount: 2.5%}}
"""


def test_books_come_before_the_terms_that_name_them(tmp_path: Path) -> None:
    changes = make_plan(PlatformFile(), parse(tmp_path, BOOKS))
    assert [(change.what, change.place, change.creates) for change in changes] == [
        ("organization", ("acme",), True),
        ("organization", ("globex",), True),
        ("price book", ("partners",), True),
        ("book price", ("partners", "llama/70b"), True),
        ("book price", ("partners", "llama/70b", "batch"), True),
        ("price book", ("own",), True),
        ("terms", ("acme",), False),
        ("terms", ("globex",), False),
    ]
    assert changes[4].body == {"model": "llama/70b", "currency": "EUR", "tier": "batch", "input": "0.12", "output": "0.5"}
    assert [change.body for change in changes[-2:]] == [{"book": "partners", "discount_bp": 1_500}, {"book": None, "discount_bp": 250}]


def test_books_and_terms_that_are_there_change_nothing(tmp_path: Path) -> None:
    whole = parse(tmp_path, BOOKS)
    assert plan(whole, whole) == []
    assert plan(whole, parse(tmp_path, "price_books: {partners: {currency: EUR}}\norganizations: {acme: {currency: EUR}}")) == []


def test_terms_without_book_and_discount_are_the_default_book_as_it_stands(tmp_path: Path) -> None:
    (change,) = make_plan(parse(tmp_path, BOOKS), parse(tmp_path, "organizations: {acme: {currency: EUR, terms: {}}}"))
    assert change.body == {"book": None, "discount_bp": 0}
    assert change.describe() == ["~ terms acme", "    book: partners -> default", "    discount: 15% -> 0%"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("batch:", "standard:", "stands beside"),
        ("batch:", "instant:", "Invalid enum value"),
        ("15%", "150%", "percentage up to 100%"),
        ("15%", "0.15", "percentage up to 100%"),
        ("book: partners", "bok: partners", "bok"),
    ],
)
def test_a_mistake_in_books_and_terms_is_named(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        parse(tmp_path, BOOKS.replace(before, after, 1))


def test_a_book_keeps_its_currency_and_its_owner(tmp_path: Path) -> None:
    whole = parse(tmp_path, BOOKS)
    for text in ("own: {currency: USD}", "own: {currency: EUR, organization: globex}", "partners: {currency: EUR, organization: acme}"):
        with pytest.raises(OperatorError, match="which cannot change"):
            make_plan(whole, parse(tmp_path, f"price_books: {{{text}}}"))


ZONED = "organizations: {acme: {currency: EUR, time_zone: Europe/Berlin}}"


def test_an_organization_s_time_zone_is_set_kept_and_changed(tmp_path: Path) -> None:
    berlin, silent = parse(tmp_path, ZONED), parse(tmp_path, "organizations: {acme: {currency: EUR}}")
    (made,) = make_plan(PlatformFile(), berlin)
    assert (made.creates, made.body) == (True, {"name": "acme", "currency": "EUR", "time_zone": "Europe/Berlin"})
    assert plan(berlin, berlin) == plan(berlin, silent) == []
    (changed,) = make_plan(berlin, parse(tmp_path, ZONED.replace("Berlin", "Lisbon")))
    assert (changed.creates, changed.body) == (False, {"time_zone": "Europe/Lisbon"})
    assert changed.describe() == ["~ organization acme", "    time_zone: Europe/Berlin -> Europe/Lisbon"]


@pytest.mark.parametrize("name", ["Europe/Berln", "../../etc/passwd", "''", "null", "3"])
def test_a_time_zone_that_nobody_knows_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(OperatorError, match=r"organizations\.acme in .*(IANA|Expected)"):
        parse(tmp_path, ZONED.replace("Europe/Berlin", name))


def test_what_is_there_already_changes_nothing(whole: PlatformFile) -> None:
    assert plan(whole, whole) == []


def test_what_is_left_out_stays_and_nothing_is_deleted(whole: PlatformFile, tmp_path: Path) -> None:
    text = "models: {llama/70b: {endpoints: [completions]}}\norganizations: {acme: {currency: EUR}}"
    (change,) = make_plan(whole, parse(tmp_path, text))
    assert change.body == {"endpoints": ["completions"]}
    assert plan(whole, PlatformFile()) == []


def test_neither_order_nor_repetition_of_endpoints_is_a_difference(whole: PlatformFile, tmp_path: Path) -> None:
    again = parse(tmp_path, WHOLE.replace("[chat/completions, completions]", "[completions, chat/completions, completions]"))
    assert plan(whole, again) == []


def test_null_takes_a_limit_away_and_keeps_the_other(whole: PlatformFile, tmp_path: Path) -> None:
    text = "organizations: {acme: {currency: EUR, limits: {requests_per_minute: null, concurrent_requests: 5}}}"
    (change,) = make_plan(whole, parse(tmp_path, text))
    assert change.body == dict.fromkeys(BY_NAME) | {"concurrent_requests": 5}
    text = "organizations: {acme: {currency: EUR, limits: {concurrent_requests: 5}}}"
    (change,) = make_plan(whole, parse(tmp_path, text))
    assert change.body == dict.fromkeys(BY_NAME) | {"requests_per_minute": 600, "concurrent_requests": 5}


def test_limits_on_single_models_are_planned_beside_those_on_all(whole: PlatformFile, tmp_path: Path) -> None:
    text = (
        "organizations: {acme: {currency: EUR, model_limits: {llama/70b: {tokens_per_minute: 9}}, "
        "projects: {chat: {model_limits: {llama/70b: {requests_per_day: 7}}}}}}"
    )
    first, second = make_plan(whole, parse(tmp_path, text))
    assert (first.what, first.place) == ("model limits", ("acme", "llama/70b"))
    assert first.body == dict.fromkeys(BY_NAME) | {"tokens_per_minute": 9}
    assert (second.what, second.place, second.body["requests_per_day"]) == ("model limits", ("acme", "chat", "llama/70b"), 7)


EVERY = {dimension.name: 1000 + place for place, dimension in enumerate(DIMENSIONS)} | {"tokens_per_minute": 5000, "tokens_per_day": 6000}


@pytest.mark.parametrize("model", [None, "llama/70b", "group:large"])
@pytest.mark.parametrize(
    ("prefix", "what", "place"),
    [
        ("", "limits", ("acme",)),
        ("projects: {chat: {", "limits", ("acme", "chat")),
        ("projects: {chat: {end_user_", "end user limits", ("acme", "chat")),
    ],
)
def test_every_limit_of_a_level_is_planned_on_all_models_on_one_and_on_a_group(
    whole: PlatformFile, tmp_path: Path, prefix: str, what: str, place: tuple[str, ...], model: str | None
) -> None:
    sizes = json.dumps(EVERY)
    stated = f"{prefix}limits: {sizes}" if model is None else f"{prefix}model_limits: {{'{model}': {sizes}}}"
    text = f"organizations: {{acme: {{currency: EUR, {stated}" + "}" * (stated.count("chat") * 2 + 2)
    (change,) = make_plan(whole, parse(tmp_path, text))
    assert change.body == EVERY
    of_model = what.replace("limits", "model limits")
    assert (change.what, change.place) == ((what, place) if model is None else (of_model, (*place, model)))
    assert parse_limits([f"{name}={size}" for name, size in EVERY.items()]) == EVERY, "and so the command line has them"


@pytest.mark.parametrize("scope", ["", "llama/70b", "group:large"])
@pytest.mark.parametrize(("kind", "name", "what"), [("api_keys", "search", "API key"), ("service_accounts", "ci", "service account")])
def test_limits_of_a_key_or_an_account_are_planned_as_those_of_its_project(
    tmp_path: Path, kind: str, name: str, what: str, scope: str
) -> None:
    def state(limits: str) -> PlatformFile:
        stated = f"model_limits: {{'{scope}': {limits}}}" if scope else f"limits: {limits}"
        return parse(tmp_path, f"organizations: {{acme: {{currency: EUR, projects: {{chat: {{{kind}: {{{name}: {{{stated}}}}}}}}}}}}}")

    (change,) = make_plan(state("{requests_per_minute: 9}"), state("{requests_per_minute: null, tokens_per_day: 7}"))
    place = ("acme", "chat", name)
    assert (change.what, change.place) == ((f"{what} model limits", (*place, scope)) if scope else (f"{what} limits", place))
    assert (change.body["requests_per_minute"], change.body["tokens_per_day"]) == (None, 7)
    assert make_plan(state("{requests_per_minute: 9}"), state("{requests_per_minute: 9}")) == []
    for mistake in ("{requests_per_minute: 0}", "{requests_per_minute: 8, requests_per_day: 7}"):
        with pytest.raises(OperatorError):
            make_plan(state("{}"), state(mistake))
    with pytest.raises(OperatorError, match=f"there is no {what} acme / chat / {name}"):
        make_plan(parse(tmp_path, "organizations: {acme: {currency: EUR, projects: {chat: {}}}}"), state("{requests_per_minute: 9}"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("{tokens_per_minute: 0}", r"acme\.limits in .*'tokens_per_minute' must be between 1 and"),
        ("{tokens_per_minute: -1}", "between 1 and"),
        ("{requests_per_day: 99999999999999}", "between 1 and"),
        ("{input_tokens_per_day: 2, tokens_per_day: 1}", r"'input_tokens_per_day' \(2\) can never be reached"),
        ("{requests_per_day: 599}", r"limits of acme: 'requests_per_minute' \(600\) can never be reached"),
    ],
)
def test_limits_that_are_mistakes_are_refused_before_anything_is_done(
    whole: PlatformFile, tmp_path: Path, limits: str, message: str
) -> None:
    with pytest.raises(OperatorError, match=message):
        make_plan(whole, parse(tmp_path, f"organizations: {{acme: {{currency: EUR, limits: {limits}}}}}"))


def test_limits_on_the_command_line_are_numbers_or_none() -> None:
    assert parse_limits(["tokens-per-minute=100_000", "requests_per_day=none"]) == {"tokens_per_minute": 100_000, "requests_per_day": None}
    for text in ("tokens_per_minute", "tokens_per_minute=", "tokens_per_minute=-1", "tokens_per_minute=1.5", "tokens_per_hour=1"):
        with pytest.raises(OperatorError):
            parse_limits([text])
    with pytest.raises(OperatorError, match="twice"):
        parse_limits(["tokens_per_day=1", "tokens-per-day=2"])


@pytest.mark.parametrize(
    ("price", "changes"),
    [
        ('{input: "0.27", output: "1.1"}', 0),
        ('{input: "0.270", output: "1.10", cached_input: "0.27", reasoning: "1.1", request: "0"}', 0),
        ('{input: "0.27", output: "1.10", cached_input: "0.05"}', 1),
        ('{input: "0.28", output: "1.10"}', 1),
    ],
)
def test_prices_are_compared_by_value_with_their_defaults(whole: PlatformFile, tmp_path: Path, price: str, changes: int) -> None:
    text = f"models: {{llama/70b: {{endpoints: [chat/completions, completions], prices: {{EUR: {price}}}}}}}"
    assert len(make_plan(whole, parse(tmp_path, text))) == changes


def test_prices_are_read_as_they_stand_never_as_floats(whole: PlatformFile) -> None:
    prices = whole.models["llama/70b"].prices
    assert isinstance(prices, dict)
    assert (prices["EUR"].input, prices["EUR"].output) == ("0.27", "1.10")


def test_a_new_deployment_sends_its_credential_once(whole: PlatformFile, tmp_path: Path) -> None:
    changed = parse(tmp_path, WHOLE.replace("VLLM_KEY", "OTHER_KEY").replace("weight: 2", "weight: 3"))
    (change,) = make_plan(whole, changed)
    assert change.body == {"weight": 3}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("currency: EUR", "currency: USD", "billed in EUR, which cannot change"),
        ("published: true", "published: false", "cannot become a draft again"),
        ("engine: vllm", "engine: sglang", "is vllm and cannot become sglang"),
        ("window: day", "window: week", "budget acme / chat / daily begins anew each day, which cannot change to week"),
        ('"12.50", currency: EUR', '"12.50", currency: USD', "budget acme / chat / daily is in USD, the organization is billed in EUR"),
    ],
)
def test_what_can_never_change_is_refused_in_the_plan(whole: PlatformFile, tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        make_plan(whole, parse(tmp_path, WHOLE.replace(before, after)))


@pytest.mark.parametrize(
    ("before", "after", "message", "hint"),
    [
        ("models:", "modles:", "'modles'", "did you mean models?"),
        ("output_tokens_max", "output_token_max", r"'models\.llama/70b\.output_token_max'", "output_tokens_max?"),
        ("weight: 2", "wieght: 2", r"wieght", "did you mean weight?"),
        ("requests_per_minute: 600", "requests_per_min: 600", r"acme\.limits\.requests_per_min", "requests_per_minute?"),
        ("vllm", "vlm", r"models\.llama/70b\.deployments.*", ""),
        ("weight: 2", "weight: many", r"deployments\.http://10\.0\.0\.1:8000", ""),
        ("0.27", "1e-1", r"prices\.EUR.*not a plain decimal", ""),
        ("0.27", "0.1234567", r"prices\.EUR.*more than 6 decimals", ""),
        ("batch: {}", "chat: {}", "twice", ""),
        ("batch: {}", "batch: 3", r"projects\.batch.*must be a mapping", ""),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, before: str, after: str, message: str, hint: str) -> None:
    assert before in WHOLE
    with pytest.raises(OperatorError, match=message) as caught:
        parse(tmp_path, WHOLE.replace(before, after, 1))
    assert hint in caught.value.hint


def test_budget_in_the_file_changes_what_differs_and_nothing_else(whole: PlatformFile, tmp_path: Path) -> None:
    assert plan(whole, parse(tmp_path, WHOLE.replace("amount: 500", 'amount: "500.00"'))) == []
    changed = WHOLE.replace("amount: 500", "amount: 600").replace("thresholds: [80, 100]", "mode: hard")
    (change,) = make_plan(whole, parse(tmp_path, changed))
    assert (change.what, change.place, dict(change.body)) == ("budget", ("acme", "all"), {"amount": "600", "mode": "hard"})
    with pytest.raises(OperatorError, match="acme / chat / daily is of mode soft, which cannot change to alert"):
        make_plan(whole, parse(tmp_path, WHOLE.replace("mode: soft", "mode: alert, thresholds: [100]")))


def test_a_credential_comes_from_a_variable_or_a_file_and_never_from_the_page(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from file\n")
    assert resolve_credential("${VLLM_KEY}", {"VLLM_KEY": "from variable"}, "x") == "from variable"
    assert resolve_credential(f"file:{tmp_path}/secret", {}, "x") == "from file"
    for reference in ("${VLLM_KEY}", "file:/nowhere", "sk-written-out"):
        with pytest.raises(OperatorError) as caught:
            resolve_credential(reference, {}, "credential")
        assert "written-out" not in caught.value.message + caught.value.hint


def test_what_export_writes_apply_reads_back(whole: PlatformFile, tmp_path: Path) -> None:
    text = yaml.safe_dump(msgspec.to_builtins(whole), sort_keys=False)
    assert parse(tmp_path, text) == whole


LLAMA_CPP = """
models:
  small:
    endpoints: [chat/completions]
    deployments:
      http://10.0.0.1:8000: {engine: llamacpp, upstream_model: small%s}
"""


def test_apply_warns_of_a_shared_prefix_cache_until_the_file_decides(tmp_path: Path) -> None:
    undecided = parse(tmp_path, LLAMA_CPP % "")
    (warning,) = list_warnings(PlatformFile(), undecided)
    assert "small at http://10.0.0.1:8000" in warning and "cache_isolation" in warning
    for isolation in ("prompt", "dedicated", "accepted"):
        decided = parse(tmp_path, LLAMA_CPP % f", cache_isolation: {isolation}")
        assert list(list_warnings(PlatformFile(), decided)) == []
        assert list(list_warnings(decided, undecided)) == [], "what the file leaves out stays as it is"
        assert plan(undecided, decided) == [("deployment", ("small", "http://10.0.0.1:8000"), False)]
    shared = parse(tmp_path, LLAMA_CPP.replace("    deployments", "    share_cache: true\n    deployments") % "")
    assert list(list_warnings(PlatformFile(), shared)) == []


def test_translated_endpoints_of_a_deployment_are_planned_whatever_their_order(tmp_path: Path) -> None:
    orders = ("responses, messages", "messages, responses")
    one, other = (parse(tmp_path, LLAMA_CPP % f", translated_endpoints: [{order}]") for order in orders)
    assert plan(parse(tmp_path, LLAMA_CPP % ""), one) == [("deployment", ("small", "http://10.0.0.1:8000"), False)]
    assert plan(one, other) == []


def test_pooling_of_a_deployment_is_planned_like_its_other_fields(tmp_path: Path) -> None:
    without = parse(tmp_path, LLAMA_CPP % ", pooling: false")
    assert plan(parse(tmp_path, LLAMA_CPP % ""), without) == [("deployment", ("small", "http://10.0.0.1:8000"), False)]
    assert plan(without, without) == []


def test_costs_and_priorities_of_a_deployment_are_planned_and_refused_where_they_cannot_be(tmp_path: Path) -> None:
    costly = parse(tmp_path, LLAMA_CPP % ", relative_cost: 7")
    assert plan(parse(tmp_path, LLAMA_CPP % ""), costly) == [("deployment", ("small", "http://10.0.0.1:8000"), False)]
    for wrong, told in ((", relative_cost: 0", "relative_cost must be"), (", priorities: true", "no priorities are known")):
        with pytest.raises(OperatorError, match=told):
            parse(tmp_path, LLAMA_CPP % wrong)


def test_hedging_and_goals_of_a_model_are_planned_and_refused_where_they_cannot_be(tmp_path: Path) -> None:
    def of(more: str) -> PlatformFile:
        return parse(tmp_path, f"models: {{m: {{endpoints: [chat/completions], {more}}}}}")

    wanted = of("hedge_after_ms: 900, hedge_percent: 10, latency_goal_ms: 2000")
    assert [change.body for change in make_plan(of("hedge_percent: 10"), wanted)] == [{"hedge_after_ms": 900, "latency_goal_ms": 2000}]
    assert make_plan(wanted, wanted) == []
    for wrong in ("hedge_after_ms: 0", "hedge_percent: 51", "latency_goal_ms: 600001", "hedge_after_ms: soon"):
        with pytest.raises(OperatorError, match=r"hedge|latency"):
            of(wrong)
    with pytest.raises(OperatorError, match="retry_started: false"):
        of("hedge_after_ms: 900, retry_started: false")


PLANS = """
plans:
  starter:
    limits: {requests_per_minute: 60}
    model_limits: {llama: {tokens_per_day: 1000}}
organizations:
  acme: {currency: EUR, plan: starter}
"""


def test_plan_of_an_organization_is_made_before_it_is_given_and_does_not_change_again(tmp_path: Path) -> None:
    wanted = parse(tmp_path, PLANS)
    assert plan(PlatformFile(), wanted) == [
        ("plan", ("starter",), True),
        ("plan limits", ("starter",), False),
        ("plan model limits", ("starter", "llama"), False),
        ("organization", ("acme",), True),
        ("plan of organization", ("acme",), False),
    ]
    assert plan(wanted, wanted) == []
    assert plan(wanted, parse(tmp_path, "organizations: {acme: {currency: EUR}}")) == [], "what is left out stays"
    (taken_away,) = make_plan(wanted, parse(tmp_path, "organizations: {acme: {currency: EUR, plan: null}}"))
    assert (taken_away.what, taken_away.fields) == ("plan of organization", {"plan": ("starter", None)})


def test_groups_of_a_model_are_planned_as_a_set_and_a_budget_cannot_change_its_group(tmp_path: Path) -> None:
    wanted = parse(tmp_path, "models: {llama: {endpoints: [chat/completions], groups: [b, a, b]}}")
    assert wanted.models["llama"].groups == ["a", "b"]
    assert plan(wanted, parse(tmp_path, "models: {llama: {endpoints: [chat/completions], groups: [b, a]}}")) == []
    budget = 'organizations: {acme: {currency: EUR, budgets: {b: {amount: "1", window: month, model: "%s"}}}}'
    of_group, of_model = (parse(tmp_path, budget % scope) for scope in ("group:a", "llama"))
    assert plan(of_group, of_group) == []
    with pytest.raises(OperatorError, match="counts requests for group:a, which cannot change to llama"):
        make_plan(of_group, of_model)
    tagged = budget.replace("model", "tag")
    assert plan(parse(tmp_path, tagged % "team=a"), parse(tmp_path, tagged % "team=a")) == []
    with pytest.raises(OperatorError, match="counts requests for team=a, which cannot change to team=b"):
        make_plan(parse(tmp_path, tagged % "team=a"), parse(tmp_path, tagged % "team=b"))
    of_end_user = budget.replace("model", "end_user")
    assert plan(parse(tmp_path, of_end_user % "*"), parse(tmp_path, of_end_user % "*")) == []
    with pytest.raises(OperatorError, match=r"counts requests of \*, which cannot change to alice"):
        make_plan(parse(tmp_path, of_end_user % "*"), parse(tmp_path, of_end_user % "alice"))
    with pytest.raises(OperatorError, match="throttle_requests_per_minute: requests beyond the amount"):
        parse(tmp_path, budget.replace('model: "%s"', "throttle_requests_per_minute: 6"))
    with pytest.raises(OperatorError, match="no request can carry it"):
        parse(tmp_path, tagged % "team")


@pytest.mark.parametrize("groups", ["[a b]", '[""]', str([f"g{number}" for number in range(21)])])
def test_group_of_models_that_cannot_be_is_refused_with_its_place(tmp_path: Path, groups: str) -> None:
    with pytest.raises(OperatorError, match="llama"):
        parse(tmp_path, f"models: {{llama: {{endpoints: [chat/completions], groups: {groups}}}}}")


def test_monthly_budgets_of_a_plan_are_planned_by_currency_and_null_ends_one(tmp_path: Path) -> None:
    wanted = parse(tmp_path, "plans: {starter: {monthly_budgets: {EUR: 500, USD: '550.50'}}}")
    assert plan(PlatformFile(), wanted) == [("plan", ("starter",), True), ("plan budgets", ("starter",), False)]
    assert plan(wanted, parse(tmp_path, "plans: {starter: {monthly_budgets: {EUR: '500.00'}}}")) == []
    (change,) = make_plan(wanted, parse(tmp_path, "plans: {starter: {monthly_budgets: {EUR: null}}}"))
    assert (change.what, change.body) == ("plan budgets", {"EUR": None})


@pytest.mark.parametrize("amount", ["0", "-1", "x", "9300000", "1.0000000000001"])
def test_monthly_budget_of_a_plan_that_cannot_be_is_refused_with_its_place(tmp_path: Path, amount: str) -> None:
    with pytest.raises(OperatorError, match="starter"):
        parse(tmp_path, f"plans: {{starter: {{monthly_budgets: {{EUR: '{amount}'}}}}}}")
    with pytest.raises(OperatorError, match="EUX"):
        parse(tmp_path, "plans: {starter: {monthly_budgets: {EUX: '1'}}}")


def test_residency_of_a_project_is_planned_once_and_in_any_order_of_its_regions(tmp_path: Path) -> None:
    def of(text: str) -> PlatformFile:
        return parse(tmp_path, f"organizations: {{acme: {{currency: EUR, projects: {{chat: {{{text}}}}}}}}}")

    (made,) = [each for each in make_plan(PlatformFile(), of("residency: [eu, de]")) if each.what == "project"]
    assert (made.creates, made.body) == (True, {"name": "chat", "residency": ["de", "eu"]})
    assert make_plan(of("residency: [de, eu]"), of("residency: [eu, de]")) == []
    assert make_plan(of("residency: [de, eu]"), of("")) == []
    (lifted,) = make_plan(of("residency: [de, eu]"), of("residency: null"))
    assert (lifted.creates, lifted.body) == (False, {"residency": None})
    for wrong in ("[]", "[EU]", "eu"):
        with pytest.raises(OperatorError, match="residency"):
            of(f"residency: {wrong}")


def test_fallbacks_are_planned_after_all_models_and_loops_of_one_are_refused(tmp_path: Path) -> None:
    def of(first: str, second: str = "") -> PlatformFile:
        return parse(tmp_path, f"models: {{a: {{endpoints: [embeddings], {first}}}, b: {{endpoints: [embeddings], {second}}}}}")

    wanted = of("fallbacks: [b]", "fallbacks: [a]")
    assert plan(PlatformFile(), wanted) == [
        ("model", ("a",), True),
        ("model", ("b",), True),
        ("fallbacks of model", ("a",), False),
        ("fallbacks of model", ("b",), False),
    ]
    assert plan(wanted, wanted) == [] == plan(wanted, of(""))
    assert [change.body for change in make_plan(wanted, of("fallbacks: []"))] == [{"fallbacks": []}]
    for wrong in ("fallbacks: [a]", "fallbacks: [b, b]", "fallbacks: [b, c, d, e, f]"):
        with pytest.raises(OperatorError, match="fallback"):
            of(wrong)


AGREED = """organizations:
  acme:
    currency: EUR
    contracts:
      first: {valid_from: 1798761600, valid_until: 1830297600, fees: [{name: Platform, amount: "500.0"}], commitment: {amount: "9"}}
      second: {valid_from: 1830297600, discount_bp: 1000, seats: 2, fees: [{name: Seat, amount: "20", per_seat: true}]}
"""


def test_contracts_are_made_end_earlier_and_never_change(tmp_path: Path) -> None:
    there = parse(tmp_path, AGREED)
    made = [change for change in make_plan(PlatformFile(), there) if change.what == "contract"]
    assert [change.place for change in made] == [("acme", "first"), ("acme", "second")]
    assert made[0].body["name"] == "first" and made[0].body["currency"] == "EUR" and made[0].body["valid_until"] == 1830297600
    assert made[1].body["fees"] == [{"name": "Seat", "amount": "20", "per_seat": True}] and "commitment" not in made[1].body
    assert make_plan(there, parse(tmp_path, AGREED.replace('"500.0"', '"500"'))) == [], "the same amount, written otherwise"
    ending = AGREED.replace("seats: 2,", "seats: 2, valid_until: 1840000000,")
    (end,) = make_plan(there, parse(tmp_path, ending))
    assert (end.what, end.fields) == ("end of contract", {"valid_until": (None, 1840000000)})
    moved = ending.replace("      second", "      third: {valid_from: 1840000000}\n      second")
    assert [each.what for each in make_plan(there, parse(tmp_path, moved))] == ["end of contract", "contract"], "the end first"
    early = moved.replace("1840000000}", "1830297601}")
    for text, said in (
        (early, "overlap"),
        (AGREED.replace('"500.0"', '"501"'), "never changes: fees"),
        (AGREED.replace("discount_bp: 1000", "discount_bp: 1001"), "never changes: discount_bp"),
        (AGREED.replace("valid_from: 1798761600", "valid_from: 1798761601"), "never changes: valid_from"),
        (AGREED.replace("valid_until: 1830297600", "valid_until: 1830297601"), "cannot end later"),
        (AGREED.replace("valid_until: 1830297600", "currency: USD, valid_until: 1830297600"), "billed in EUR"),
        (AGREED.replace("second:", "third: {discount_bp: 1}\n      second:"), "does not say when it begins"),
    ):
        with pytest.raises(OperatorError, match=said):
            make_plan(there, parse(tmp_path, text))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{valid_from: 2, valid_until: 2}", "ends after it begins"),
        ("{valid_from: 2, commitment: {amount: '5'}}", "commitment"),
        ("{valid_from: 2, fees: [{name: Seat, amount: '5', per_seat: true}]}", "seats"),
        ("{valid_from: 2, fees: [{name: Seat, amount: '-5'}]}", "plain decimal"),
        ("{valid_from: 2, discount_bp: 10001}", "discount_bp"),
        ("{valid_from: 2, minimun: '5'}", "minimum"),
        ("{valid_from: 2, fees: [{name: Seat, amont: '5'}]}", "amont"),
        ("{valid_from: 2, service_levels: [{objective: first_token, target_bp: 1, credit_bp: 1}]}", "within_ms"),
        ("{valid_from: 2, tiered_prices: [{model: m, billing_class: output, schedule: volume, tiers: [{up_to: 5, price: '1'}]}]}", "tier"),
    ],
)  # fmt: skip
def test_contract_that_cannot_be_is_refused_before_anything_is_asked(tmp_path: Path, wrong: str, said: str) -> None:
    with pytest.raises(OperatorError) as raised:
        parse(tmp_path, f"organizations: {{acme: {{currency: EUR, contracts: {{first: {wrong}}}}}}}")
    assert said in f"{raised.value.message} {raised.value.hint}"
