"""The platform file, which `apply` reads and `export` writes (docs/platform-file.md).

    models:
      llama-70b:
        endpoints: [chat/completions, completions]
        published: true
        prices:
          EUR:                                          # per 1,000,000 tokens, exact decimals
            input: "0.27"
            output: "1.10"
            tiers: {batch: {input: "0.13", output: "0.55"}}
        deployments:
          http://10.0.0.1:8000: {engine: vllm, upstream_model: meta/llama-70b, weight: 2, credential: ${VLLM_KEY}}
    organizations:
      acme:
        currency: EUR
        time_zone: Europe/Berlin
        plan: starter
        limits: {requests_per_minute: 600, tokens_per_day: 5000000}
        model_limits:
          llama-70b: {tokens_per_minute: 100000}
        terms: {book: partners, discount: 15%}
        contracts:
          Enterprise 2027: {valid_from: 1798761600, fees: [{name: Platform, amount: "500"}], minimum: "1000"}
        budgets:
          research: {amount: "500", window: month, thresholds: [80, 100]}
        projects:
          chat:
            limits: {concurrent_requests: 20}
            api_keys:
              search: {endpoints: [embeddings], limits: {requests_per_minute: 60}, rotation_schedule: {interval_seconds: 7776000}}
            service_accounts:
              nightly: {limits: {tokens_per_day: 1000000}}
        groups:
          engineers: {roles: [developer]}
        sign_in_connections:
          company: {issuer: https://login.example.com, client_id: tollway, client_secret: ${LOGIN_SECRET}, groups: {eng: engineers}}
        identity_providers:
          github:
            issuer: https://token.actions.githubusercontent.com
            audience: https://gateway.example.com
            rules:
              deploy: {project: chat, service_account: nightly, claims: {sub: "repo:acme/*"}}
        directories:
          okta: {}
    plans:
      starter:
        limits: {requests_per_minute: 60, concurrent_requests: 5}
    price_books:
      partners:
        currency: EUR
        prices:
          llama-70b: {input: "0.25", output: "1.00"}

Everything is a mapping by name, so nothing can stand twice. What is left out stays as it is; null takes a limit or cap
away. An unknown name is an error with the nearest known one. Organizations and projects may be named by id, where several have the same
name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from tollway.cli.catalog import contract_file, identity_file
from tollway.cli.catalog.contract_file import ContractFile
from tollway.cli.catalog.identity_file import (
    DirectoryFile,
    FederationRuleFile,
    GroupFile,
    IdentityFile,
    IdentityProviderFile,
    SignInConnectionFile,
)
from tollway.domain.billing_classes import BILLING_CLASSES, BillingClass, parse_unit_price, with_default_prices
from tollway.domain.budgets import (
    SUBJECT_BUDGETS_MAX,
    BudgetMode,
    BudgetWindow,
    TermsProblem,
    check_amount,
    find_fallback_problem,
    find_terms_problem,
    find_throttle_problem,
)
from tollway.domain.catalog import (
    FALLBACKS_MAX,
    GROUP_NAME,
    GROUP_PREFIX,
    HEDGE_PERCENT_MAX,
    MODEL_GROUPS_MAX,
    MODEL_NAME,
    REGION,
    RELATIVE_COST_MAX,
    RESPONSE_CACHE_SECONDS_MAX,
    TIME_MS_MAX,
    CacheIsolation,
    Endpoint,
    Engine,
    Guardrail,
    GuardrailStages,
    UnknownParameters,
)
from tollway.domain.currencies import CURRENCIES
from tollway.domain.limits import DIMENSIONS, Limits, find_model_problem, find_problem
from tollway.domain.money import parse_sum
from tollway.domain.periods import find_zone
from tollway.domain.price_books import parse_discount
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT, RotationSchedule
from tollway.domain.tenants import QUEUE_WEIGHT_MAX, REGIONS_MAX
from tollway.domain.usage import ServiceTier
from tollway.engines.table import ENGINES
from tollway.settings import OperatorError, read_yaml, unknown_name


def _to_pico(units: "UnitsFile") -> dict[str, int]:
    """Return pico-currency per unit of every class, with the default of those that are left out. Raises ValueError."""
    stated = {row: getattr(units, row.billing_class) for row in BILLING_CLASSES}
    prices = {row.billing_class: parse_unit_price(row.unit, text) for row, text in stated.items() if text is not UNSET}
    return dict(zip(map(str, BillingClass), with_default_prices(prices).values(), strict=True))


if TYPE_CHECKING:

    class UnitsFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
        """Unit prices by billing class: per million tokens, or per request. A class that is left out has its default."""

        def to_pico(self) -> dict[str, int]:
            """Return pico-currency per unit of every class. Raises ValueError."""

else:
    UnitsFile = msgspec.defstruct(
        "UnitsFile",
        [(str(row.billing_class), str) if row.required else (str(row.billing_class), str | UnsetType, UNSET) for row in BILLING_CLASSES],
        namespace={"to_pico": _to_pico},
        module=__name__,
        frozen=True,
        kw_only=True,
        omit_defaults=True,
    )


class PriceFile(UnitsFile, frozen=True, kw_only=True, omit_defaults=True):
    """Prices of a model in a book: the standard tier, and `tiers` beside it (flex, priority, batch)."""

    tiers: dict[ServiceTier, UnitsFile] | UnsetType = UNSET

    def by_tier(self) -> dict[ServiceTier, UnitsFile]:
        """Unit prices by service tier, the standard one first."""
        return {ServiceTier.STANDARD: self, **({} if self.tiers is UNSET else self.tiers)}


class BookFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A price book beside the default ones, whose prices stand with the models. `organization`: whose own it is."""

    currency: str
    organization: str | UnsetType | None = UNSET
    prices: dict[str, PriceFile] | UnsetType = UNSET


class TermsFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """By which book an organization pays, the default one of its currency if left out, and at which discount ("15%")."""

    book: str | UnsetType | None = UNSET
    discount: str = "0%"


class DeploymentFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One upstream of a model, by its base URL. `credential`: ${VARIABLE} or file:PATH, never the secret itself."""

    engine: Engine
    upstream_model: str
    tier: int | UnsetType = UNSET
    weight: int | UnsetType = UNSET
    region: str | UnsetType | None = UNSET
    credential: str | UnsetType = UNSET
    cache_isolation: CacheIsolation | UnsetType = UNSET
    pooling: bool | UnsetType = UNSET
    translated_endpoints: list[Endpoint] | UnsetType = UNSET
    test: bool | UnsetType = UNSET
    priorities: bool | UnsetType = UNSET
    relative_cost: int | UnsetType | None = UNSET
    grpc_port: int | UnsetType | None = UNSET


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model of the catalog. `published: true` publishes it; there is no way back but archiving. `groups`: the groups of models that it
    is in, on which limits and budgets can be set as `group:NAME`. `fallbacks`: the models that serve in its place while it
    cannot, in their order. `hedge_after_ms`: when a request whose answer has not begun is sent to a second deployment too, at most
    `hedge_percent` of them. `latency_goal_ms`: time to the first token within which the cheapest deployments serve.
    `response_cache_seconds`: how long an answer can be given again to the same request that asks for it (docs/apis.md). `guardrail`,
    `guardrail_stages`: whether the guardrail of the gateways checks its traffic, and which part (docs/guardrails.md)."""

    endpoints: list[Endpoint]
    published: bool | UnsetType = UNSET
    output_tokens_max: int | UnsetType | None = UNSET
    context_length: int | UnsetType | None = UNSET
    unknown_parameters: UnknownParameters | UnsetType = UNSET
    retry_started: bool | UnsetType = UNSET
    share_cache: bool | UnsetType = UNSET
    groups: list[str] | UnsetType = UNSET
    fallbacks: list[str] | UnsetType = UNSET
    hedge_after_ms: int | UnsetType | None = UNSET
    hedge_percent: int | UnsetType = UNSET
    latency_goal_ms: int | UnsetType | None = UNSET
    response_cache_seconds: int | UnsetType = UNSET
    guardrail: Guardrail | UnsetType = UNSET
    guardrail_stages: GuardrailStages | UnsetType = UNSET
    prices: dict[str, PriceFile] | UnsetType = UNSET
    deployments: dict[str, DeploymentFile] | UnsetType = UNSET


if TYPE_CHECKING:

    class LimitsFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
        """Limits of one level by dimension; null for none."""

else:
    LimitsFile = msgspec.defstruct(
        "LimitsFile",
        [(dimension.name, int | UnsetType | None, UNSET) for dimension in DIMENSIONS],
        module=__name__,
        frozen=True,
        kw_only=True,
        omit_defaults=True,
    )


def find_limit_problem(sizes: Mapping[str, int | None]) -> str | None:
    """Return what is wrong with limits of one level, None if nothing is."""
    problem = find_problem(Limits(**sizes))
    return None if problem is None else problem.message


def _find_model_problem(level: "LevelFile") -> str | None:
    """Return what is wrong between the limits of a level on all models and those on single ones, as far as the file states both."""
    pairs = [("model_limits", level.limits, level.model_limits)]
    if isinstance(level, ProjectFile):
        pairs.append(("end_user_model_limits", level.end_user_limits, level.end_user_model_limits))
    for field, of_all, of_models in pairs:
        if of_all is not UNSET and of_models is not UNSET:
            by_model = {name: Limits(**msgspec.to_builtins(limits)) for name, limits in of_models.items()}
            problem = find_model_problem(Limits(**msgspec.to_builtins(of_all)), by_model)
            if problem is not None:
                return f"{field}: {problem.message}"
    return None


class BudgetFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A budget of an organization or a project: what may be spent in one window, as an exact decimal in the organization's currency.

    Its window is fixed when it is created, and so is `model`: the model or group of models (`group:NAME`) whose requests alone are counted,
    and `tag`: the key and value (`team=research`) in the `metadata` of requests that alone are counted,
    `end_user`: the end user whose requests alone are counted, or `*` for a budget of each end user by itself,
    and `fallback_model`, which serves requests that the budget would refuse, or `throttle_requests_per_minute`, which each gateway
    lets pass once a soft budget is spent.
    `currency`, if it is given, must be the organization's. A budget that the file leaves out stays.
    """

    amount: str
    window: BudgetWindow
    currency: str | UnsetType = UNSET
    mode: BudgetMode | UnsetType = UNSET
    thresholds: list[int] | UnsetType = UNSET
    model: str | UnsetType | None = UNSET
    tag: str | UnsetType | None = UNSET
    end_user: str | UnsetType | None = UNSET
    fallback_model: str | UnsetType | None = UNSET
    throttle_requests_per_minute: int | UnsetType | None = UNSET


class PlanFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A set of limits that organizations subscribe to. `model_limits`: limits on single models, beside those on all. `monthly_budgets`:
    what an organization that has the plan may spend in a calendar month, by currency; null for no such budget."""

    limits: LimitsFile | UnsetType = UNSET
    model_limits: dict[str, LimitsFile] | UnsetType = UNSET
    monthly_budgets: dict[str, str | None] | UnsetType = UNSET


class ScheduleFile(msgspec.Struct, frozen=True, kw_only=True):
    """Rotation of keys without being asked: every `interval_seconds`, with the old secret valid for `grace_seconds`, a day if left out."""

    interval_seconds: int
    grace_seconds: int = GRACE_SECONDS_DEFAULT


class ApiKeyFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The bounds of one API key of a project, by its name or id. The key must exist: its secret is shown to whoever makes it, never to a
    pipeline. null takes a bound away. `tags` are replaced as a whole. `limits`: how much it may be used, and `model_limits` that of single
    models or groups of models."""

    models: list[str] | UnsetType | None = UNSET
    endpoints: list[Endpoint] | UnsetType | None = UNSET
    addresses: list[str] | UnsetType | None = UNSET
    output_tokens_max: int | UnsetType | None = UNSET
    tags: dict[str, str] | UnsetType | None = UNSET
    rotation_schedule: ScheduleFile | UnsetType | None = UNSET
    limits: LimitsFile | UnsetType = UNSET
    model_limits: dict[str, LimitsFile] | UnsetType = UNSET


class ServiceAccountFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of one service account of a project, by its name or id, which all of its keys share. It must exist, as keys must."""

    limits: LimitsFile | UnsetType = UNSET
    model_limits: dict[str, LimitsFile] | UnsetType = UNSET


class ProjectFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One project of an organization. `model_limits`: its limits on single models, beside those on all. `end_user_limits`: those of each
    end user, as requests name them in `user` or `safety_identifier`, and `end_user_model_limits` those on single models. `residency`: the
    regions of deployments that may serve it; null for any. `budgets`: what it may spend, by name. `api_keys`: bounds and limits of keys
    that exist, by name. `service_accounts`: limits of service accounts that exist, by name."""

    residency: list[str] | UnsetType | None = UNSET
    limits: LimitsFile | UnsetType = UNSET
    end_user_limits: LimitsFile | UnsetType = UNSET
    end_user_model_limits: dict[str, LimitsFile] | UnsetType = UNSET
    model_limits: dict[str, LimitsFile] | UnsetType = UNSET
    budgets: dict[str, BudgetFile] | UnsetType = UNSET
    api_keys: dict[str, ApiKeyFile] | UnsetType = UNSET
    service_accounts: dict[str, ServiceAccountFile] | UnsetType = UNSET


class OrganizationFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One organization, by its name or id. Its currency is fixed when it is created; its time zone (UTC unless given) determines the
    billing periods that do not exist yet. `plan`: the plan whose limits it has where it has none of its own. `queue_weight`: its share in
    the queues of models, beside those of other organizations. `model_limits`: its limits on single models, beside those on all. `budgets`:
    what it may spend, by name. `key_lifetime_seconds_max`: longest time until a key expires that is made or rotated from now on.
    `rotation_schedule`: of the keys of its projects. `groups`: what groups of people may do. `contracts`: what was agreed for whole billing
    periods, by name. `sign_in_connections`, `identity_providers`, `directories`: who says who people and programs are."""

    currency: str
    time_zone: str | UnsetType = UNSET
    plan: str | UnsetType | None = UNSET
    queue_weight: int | UnsetType = UNSET
    limits: LimitsFile | UnsetType = UNSET
    model_limits: dict[str, LimitsFile] | UnsetType = UNSET
    terms: TermsFile | UnsetType = UNSET
    contracts: dict[str, ContractFile] | UnsetType = UNSET
    key_lifetime_seconds_max: int | UnsetType | None = UNSET
    rotation_schedule: ScheduleFile | UnsetType | None = UNSET
    budgets: dict[str, BudgetFile] | UnsetType = UNSET
    projects: dict[str, ProjectFile] | UnsetType = UNSET
    groups: dict[str, GroupFile] | UnsetType = UNSET
    sign_in_connections: dict[str, SignInConnectionFile] | UnsetType = UNSET
    identity_providers: dict[str, IdentityProviderFile] | UnsetType = UNSET
    directories: dict[str, DirectoryFile] | UnsetType = UNSET


LevelFile = PlanFile | OrganizationFile | ProjectFile | ApiKeyFile | ServiceAccountFile
"""Anything in the file that has limits, on all models together and on single ones."""


class PlatformFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole file."""

    models: dict[str, ModelFile] = {}
    organizations: dict[str, OrganizationFile] = {}
    price_books: dict[str, BookFile] = {}
    plans: dict[str, PlanFile] = {}


def read(path: Path) -> PlatformFile:
    """The file at `path`. Raises OperatorError that names the place for anything that is not right."""
    tree = read_yaml(path)
    return PlatformFile() if tree is None else _parse(tree, PlatformFile, "", str(path))


def read_prices(path: Path) -> dict[str, PriceFile]:
    """The prices by model that stand in the file at `path` alone. Raises OperatorError."""
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise OperatorError(f"{path} must be a mapping by model", exit_code=2)
    return {str(model): _parse(body, PriceFile, str(model), str(path)) for model, body in tree.items()}


def resolve_credential(reference: str, environ: Mapping[str, str], where: str) -> str:
    """The secret that ${VARIABLE} or file:PATH points to. Raises OperatorError; a secret written out is refused
    unread."""
    if reference.startswith("${") and reference.endswith("}"):
        secret = environ.get(reference[2:-1], "")
        missing = f"variable {reference[2:-1]}"
    elif reference.startswith("file:"):
        missing = f"file {reference.removeprefix('file:')}"
        try:
            secret = Path(reference.removeprefix("file:")).read_text().strip()
        except (OSError, UnicodeDecodeError):
            secret = ""
    else:
        raise OperatorError(f"{where} must not stand in the file", hint="write ${VARIABLE} or file:PATH", exit_code=2)
    if not secret:
        raise OperatorError(f"{where}: {missing} is empty or missing", exit_code=2)
    return secret


# ---- ranges ----------------------------------------------------------------------------------------------------------

_NUMBERS = {
    "tier": (0, 1_000),
    "weight": (0, 1_000_000),
    "output_tokens_max": (1, 2**31 - 1),
    "context_length": (1, 2**31 - 1),
    "queue_weight": (1, QUEUE_WEIGHT_MAX),
    "key_lifetime_seconds_max": (1, 10**9),
    "response_cache_seconds": (0, RESPONSE_CACHE_SECONDS_MAX),
}
"""Ranges of numbers, as the API has them (a test compares)."""

BUDGET_NAME_CHARACTERS_MAX = 256
"""Longest name of a budget, as the API has it."""

PLAN_NAME_CHARACTERS_MAX = 256
"""Longest name of a plan, as the API has it."""

_BASE_URL = re.compile(r"https?://[^/?#@\s]+(?:/[^?#\s]*)?")


def _check_ranges(parsed: msgspec.Struct) -> None:
    """Raise ValueError for a value that control would refuse, so that it is found before anything is changed."""
    for name, (low, high) in _NUMBERS.items():
        value = getattr(parsed, name, None)
        if isinstance(value, int) and not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high:,}, not {value}")
    if isinstance(parsed, OrganizationFile | BookFile):
        _check_currency(parsed.currency)
    if isinstance(parsed, OrganizationFile):
        identity_file.check_names("group", parsed.groups)
        identity_file.check_names("sign-in connection", parsed.sign_in_connections)
        identity_file.check_names("identity provider", parsed.identity_providers)
    if isinstance(parsed, IdentityFile):
        identity_file.check(parsed)
    if isinstance(parsed, BudgetFile):
        _check_budget(parsed)
    if isinstance(parsed, ContractFile):
        contract_file.check(parsed)
    if isinstance(parsed, ScheduleFile):
        flaw = RotationSchedule(parsed.interval_seconds, parsed.grace_seconds).find_problem()
        if flaw is not None:
            raise ValueError(flaw)
    if isinstance(parsed, PlanFile) and parsed.monthly_budgets is not UNSET:
        for currency, amount in parsed.monthly_budgets.items():
            _check_currency(currency)
            flaw = None if amount is None else check_amount(parse_sum(amount))
            if flaw is not None:
                raise ValueError(f"monthly_budgets.{currency} {amount!r}: {flaw}")
    if isinstance(parsed, OrganizationFile | ProjectFile) and parsed.budgets is not UNSET:
        for kind, of_kind in (("budgets that bind", False), ("budgets that only alert", True)):
            count = sum(1 for each in parsed.budgets.values() if (each.mode is BudgetMode.ALERT) is of_kind)
            if count > SUBJECT_BUDGETS_MAX:
                raise ValueError(f"there may be at most {SUBJECT_BUDGETS_MAX} {kind}, not {count}")
        for name, budget in parsed.budgets.items():
            if not 1 <= len(name) <= BUDGET_NAME_CHARACTERS_MAX:
                raise ValueError(f"the name of a budget has 1 to {BUDGET_NAME_CHARACTERS_MAX} characters")
            problem = _find_terms_problem(name, budget)
            if problem is not None:
                raise ValueError(f"budgets.{name}: {problem.field}: {problem.reason}")
    if isinstance(parsed, ProjectFile) and parsed.residency is not UNSET and parsed.residency is not None:
        if not 1 <= len(parsed.residency) <= REGIONS_MAX:
            raise ValueError(f"residency names 1 to {REGIONS_MAX} regions; null allows any")
        for region in parsed.residency:
            if not REGION.fullmatch(region):
                raise ValueError(f"residency {region!r}: a region is 1 to 64 of the characters a-z 0-9 -")
    if isinstance(parsed, ModelFile):
        for currency, _ in () if parsed.prices is UNSET else parsed.prices.items():
            _check_currency(currency)
        for base_url in () if parsed.deployments is UNSET else parsed.deployments:
            if not _BASE_URL.fullmatch(base_url) or base_url.endswith("/v1"):
                raise ValueError(f"deployment {base_url}: the address must be http(s)://host[:port][/path] without /v1")
        if not parsed.endpoints:
            raise ValueError("endpoints must not be empty")
        for name, most in (("hedge_after_ms", TIME_MS_MAX), ("hedge_percent", HEDGE_PERCENT_MAX), ("latency_goal_ms", TIME_MS_MAX)):
            stated = getattr(parsed, name)
            if stated is not UNSET and stated is not None and not 1 <= stated <= most:
                raise ValueError(f"{name} must be between 1 and {most}")
        if parsed.retry_started is False and parsed.hedge_after_ms is not UNSET and parsed.hedge_after_ms is not None:
            raise ValueError("a request that is hedged is sent to two engines, which retry_started: false forbids")
        for base_url, deployment in () if parsed.deployments is UNSET else parsed.deployments.items():
            cost = deployment.relative_cost
            if cost is not UNSET and cost is not None and not 1 <= cost <= RELATIVE_COST_MAX:
                raise ValueError(f"deployment {base_url}: relative_cost must be between 1 and {RELATIVE_COST_MAX}")
            port = deployment.grpc_port
            if port is not UNSET and port is not None and not 1 <= port <= 65_535:
                raise ValueError(f"deployment {base_url}: grpc_port must be between 1 and 65535")
            if deployment.priorities is True and not ENGINES[deployment.engine].priorities:
                raise ValueError(f"deployment {base_url}: no priorities are known that the engine {deployment.engine} takes")
        for group in () if parsed.groups is UNSET else parsed.groups:
            if not GROUP_NAME.fullmatch(group):
                raise ValueError(f"group {group!r}: a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        if parsed.groups is not UNSET and len(parsed.groups) > MODEL_GROUPS_MAX:
            raise ValueError(f"a model may be in {MODEL_GROUPS_MAX} groups, not {len(parsed.groups)}")
        if parsed.fallbacks is not UNSET and len(set(parsed.fallbacks)) < len(parsed.fallbacks):
            raise ValueError("fallbacks names a model twice")
        if parsed.fallbacks is not UNSET and len(parsed.fallbacks) > FALLBACKS_MAX:
            raise ValueError(f"there may be at most {FALLBACKS_MAX} fallbacks, not {len(parsed.fallbacks)}")
    if isinstance(parsed, PlatformFile):
        for model, of_model in parsed.models.items():
            if not MODEL_NAME.fullmatch(model):
                raise ValueError(f"model {model!r}: a name is 1 to 128 of the characters A-Z a-z 0-9 . _ : / @ -")
            if model.startswith(GROUP_PREFIX):
                raise ValueError(f"model {model!r}: a name cannot begin with {GROUP_PREFIX}, which stands for groups of models")
            if of_model.fallbacks is not UNSET and model in of_model.fallbacks:
                raise ValueError(f"model {model} is its own fallback")
        for plan in parsed.plans:
            if not 1 <= len(plan) <= PLAN_NAME_CHARACTERS_MAX:
                raise ValueError(f"the name of a plan has 1 to {PLAN_NAME_CHARACTERS_MAX} characters")


def _check_budget(parsed: BudgetFile) -> None:
    try:
        problem = _find_terms_problem("", parsed)
    except ValueError as error:
        raise ValueError(f"amount {parsed.amount!r}: {error}") from error
    if problem is not None:
        raise ValueError(
            f"amount {parsed.amount!r}: {problem.reason}" if problem.field == "amount" else f"{problem.field}: {problem.reason}"
        )
    if parsed.currency is not UNSET:
        _check_currency(parsed.currency)


def _find_terms_problem(name: str, parsed: BudgetFile) -> TermsProblem | None:
    """Return what control would refuse of a budget, None if nothing. Raises ValueError if its amount is no sum of money."""
    mode = BudgetMode.HARD if parsed.mode is UNSET else parsed.mode
    thresholds = [] if parsed.thresholds is UNSET else parsed.thresholds
    model = "" if parsed.model is UNSET or parsed.model is None else parsed.model
    if parsed.tag == "":
        return TermsProblem("tag", "it is empty: write KEY=VALUE, or leave it out")
    tag = "" if parsed.tag is UNSET or parsed.tag is None else parsed.tag
    if parsed.end_user == "":
        return TermsProblem("end_user", "it is empty: name an end user, or leave it out")
    end_user = "" if parsed.end_user is UNSET or parsed.end_user is None else parsed.end_user
    problem = find_terms_problem(name, mode, parsed.window, parse_sum(parsed.amount), thresholds, model, tag, end_user)
    fallback = "" if parsed.fallback_model is UNSET or parsed.fallback_model is None else parsed.fallback_model
    given = parsed.throttle_requests_per_minute
    throttle = 0 if given is UNSET or given is None else given
    if throttle == 0 == given:
        return TermsProblem("throttle_requests_per_minute", "it must be at least 1; leave it out to refuse requests")
    return problem or find_fallback_problem(mode, model, fallback) or find_throttle_problem(mode, fallback, throttle)


def _check_currency(code: str) -> None:
    if code not in CURRENCIES:
        raise ValueError(f"{code!r} is not a currency code of ISO 4217; for example EUR")


# ---- reading with places ---------------------------------------------------------------------------------------------

T = TypeVar("T", bound=msgspec.Struct)

_NESTED: dict[tuple[type[msgspec.Struct], str], type[msgspec.Struct]] = {
    (PlatformFile, "models"): ModelFile,
    (PlatformFile, "organizations"): OrganizationFile,
    (PlatformFile, "price_books"): BookFile,
    (PlatformFile, "plans"): PlanFile,
    (PlanFile, "model_limits"): LimitsFile,
    (ModelFile, "prices"): PriceFile,
    (BookFile, "prices"): PriceFile,
    (PriceFile, "tiers"): UnitsFile,
    (ModelFile, "deployments"): DeploymentFile,
    (OrganizationFile, "projects"): ProjectFile,
    (OrganizationFile, "model_limits"): LimitsFile,
    (ProjectFile, "model_limits"): LimitsFile,
    (ProjectFile, "end_user_model_limits"): LimitsFile,
    (OrganizationFile, "budgets"): BudgetFile,
    (OrganizationFile, "contracts"): ContractFile,
    (OrganizationFile, "groups"): GroupFile,
    (OrganizationFile, "sign_in_connections"): SignInConnectionFile,
    (OrganizationFile, "identity_providers"): IdentityProviderFile,
    (OrganizationFile, "directories"): DirectoryFile,
    (IdentityProviderFile, "rules"): FederationRuleFile,
    (ProjectFile, "budgets"): BudgetFile,
    (ProjectFile, "api_keys"): ApiKeyFile,
    (ProjectFile, "service_accounts"): ServiceAccountFile,
    (ApiKeyFile, "model_limits"): LimitsFile,
    (ServiceAccountFile, "model_limits"): LimitsFile,
}
"""Fields that are mappings by name, and what each value is."""

_SINGLE: dict[str, type[msgspec.Struct]] = {
    "limits": LimitsFile,
    "end_user_limits": LimitsFile,
    "terms": TermsFile,
    "rotation_schedule": ScheduleFile,
}
"""Fields that are one of something, wherever they stand."""


_SETS = frozenset({"endpoints", "translated_endpoints", "groups", "models", "addresses", "domains", "roles"})
"""Fields that are sets where they are lists."""


def _parse(tree: object, type: type[T], place: str, source: str) -> T:
    """`tree` as `type`, level by level, so that every error names its place in full."""
    at = f"{place} in {source}" if place else source
    if not isinstance(tree, dict):
        raise OperatorError(f"{at} must be a mapping", exit_code=2)
    known = [field.name for field in msgspec.structs.fields(type)]
    values: dict[str, Any] = {}
    for name, value in tree.items():
        below = f"{place}.{name}" if place else str(name)
        if name not in known:
            raise unknown_name(f"key {below!r}", str(name), known, source=source)
        nested = _NESTED.get((type, name))
        if nested is not None:
            if not isinstance(value, dict):
                raise OperatorError(f"{below} in {source} must be a mapping by name", exit_code=2)
            value = {each: _parse(body, nested, f"{below}.{each}", source) for each, body in value.items()}
            if name == "deployments":
                value = {base_url.rstrip("/"): deployment for base_url, deployment in value.items()}
        elif name in _SINGLE and not (value is None and name == "rotation_schedule"):
            value = _parse(value, _SINGLE[name], below, source)
        elif (issubclass(type, UnitsFile) or (type is BudgetFile and name == "amount")) and isinstance(value, int):
            value = str(value)
        elif type is PlanFile and name == "monthly_budgets" and isinstance(value, dict):
            value = {str(code): str(amount) if isinstance(amount, int) else amount for code, amount in value.items()}
        elif name in _SETS and isinstance(value, list):
            value = sorted({str(each) for each in value})  # a set: neither order nor repetition is a difference
        values[name] = value
    try:
        parsed = msgspec.convert(values, type)
        if isinstance(parsed, UnitsFile):
            parsed.to_pico()
        if isinstance(parsed, PriceFile) and parsed.tiers is not UNSET and ServiceTier.STANDARD in parsed.tiers:
            raise ValueError("the standard tier stands beside `tiers`, not in it")
        if isinstance(parsed, LimitsFile):
            given = msgspec.to_builtins(parsed)
            if problem := find_limit_problem(given):
                raise ValueError(problem)
        if isinstance(parsed, LevelFile) and (problem := _find_model_problem(parsed)):
            raise ValueError(problem)
        if isinstance(parsed, TermsFile):
            parse_discount(parsed.discount)
        if isinstance(parsed, OrganizationFile) and parsed.time_zone is not UNSET and find_zone(parsed.time_zone) is None:
            raise ValueError(f"time_zone {parsed.time_zone!r} is not in the IANA database; for example Europe/Berlin")
        _check_ranges(parsed)
    except (msgspec.ValidationError, ValueError) as error:
        raise OperatorError(f"{at}: {error}", exit_code=2) from None
    return parsed
