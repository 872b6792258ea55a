"""The plan: what must change so that the platform is what the file says. Pure; nothing here talks to anybody.

The current state has the same shape as the file, so a plan is the difference of two values. Only what the file names is
compared; nothing is ever deleted. What cannot be changed once it exists (a currency, an engine's name for a model) is
refused when the plan is made, before anything was done."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tollway.cli.catalog.contract_file import plan_contracts
from tollway.cli.catalog.identity_file import (
    FederationRuleFile,
    GroupFile,
    IdentityProviderFile,
    SignInConnectionFile,
    check_address,
    list_keys,
)
from tollway.cli.catalog.platform_file import (
    BookFile,
    BudgetFile,
    DeploymentFile,
    LevelFile,
    LimitsFile,
    ModelFile,
    OrganizationFile,
    PlanFile,
    PlatformFile,
    PriceFile,
    ProjectFile,
    TermsFile,
    find_limit_problem,
)
from tollway.domain.billing_classes import ROWS, BillingClass, format_unit_price
from tollway.domain.budgets import BudgetMode, BudgetWindow
from tollway.domain.catalog import CacheIsolation, Endpoint, Engine
from tollway.domain.money import format_amount, parse_sum
from tollway.domain.price_books import format_discount, parse_discount
from tollway.domain.usage import ServiceTier
from tollway.engines.table import list_shared_caches
from tollway.settings import OperatorError


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One step. `what`: model, fallbacks of model, price, publication, deployment, plan, plan limits, plan model limits,
    plan budgets, organization, plan of organization, contract, end of contract, project, limits, end user limits, end user model limits,
    model limits, budget, API key, price book, book price, terms, group, roles of group, sign-in connection, identity
    provider or federation rule. `place`: the names that lead to it.

    `fields`: each that changes, old and new; on creation the old ones are None. `body`: what to send.
    """

    what: str
    place: tuple[str, ...]
    creates: bool
    fields: Mapping[str, tuple[Any, Any]]
    body: Mapping[str, Any]

    def describe(self) -> list[str]:
        """Lines for a person: what is added (+) or changed (~), then each field."""
        title = f"{'+' if self.creates else '~'} {self.what} {' / '.join(self.place)}"
        if self.creates:
            return [title, *(f"    {name}: {_show(new)}" for name, (_, new) in self.fields.items())]
        return [title, *(f"    {name}: {_show(old)} -> {_show(new)}" for name, (old, new) in self.fields.items())]


DEPLOYMENT_FIELDS: tuple[str, ...] = (
    "engine", "upstream_model", "tier", "weight", "region", "cache_isolation", "pooling", "translated_endpoints", "test",
    "priorities", "relative_cost", "grpc_port",
)  # fmt: skip
"""Fields of a deployment that are read, compared and changed; a credential is only changed."""


def make_plan(current: PlatformFile, wanted: PlatformFile) -> list[PlannedChange]:
    """The changes that make `current` what `wanted` says, in an order in which each can be done. Raises
    OperatorError."""
    changes: list[PlannedChange] = []
    for name, model in wanted.models.items():
        changes += _plan_model(name, current.models.get(name), model)
    for name, model in wanted.models.items():  # after all models: they may name any of them
        changes += _plan_fallbacks(name, current.models.get(name), model)
    for name, plan in wanted.plans.items():
        changes += _plan_plan(name, current.plans.get(name), plan)
    for name, organization in wanted.organizations.items():
        changes += _plan_organization(name, current.organizations.get(name), organization)
    for name, book in wanted.price_books.items():
        changes += _plan_book(name, current.price_books.get(name), book)
    for name, organization in wanted.organizations.items():  # last: they may name any of the books
        there = current.organizations.get(name)
        changes += _plan_terms(name, UNSET if there is None else there.terms, organization.terms)
        changes += _plan_contracts(name, there, organization)
    return changes


def list_warnings(current: PlatformFile, wanted: PlatformFile) -> Iterator[str]:
    """Yield a warning for each deployment of a file whose prefix cache lets one organization learn of another's prompts."""
    for name, model in wanted.models.items():
        there = current.models.get(name)
        if (model.share_cache is not UNSET and model.share_cache) or (model.share_cache is UNSET and there and there.share_cache is True):
            continue
        deployed = {} if there is None or there.deployments is UNSET else there.deployments
        for base_url, deployment in _items(model.deployments):
            isolation, translated = deployment.cache_isolation, deployment.translated_endpoints
            if base_url in deployed:
                isolation = deployed[base_url].cache_isolation if isolation is UNSET else isolation
                translated = deployed[base_url].translated_endpoints if translated is UNSET else translated
            isolation = CacheIsolation.ENGINE if isolation is UNSET else isolation
            translated = [] if translated is UNSET else translated
            yield from warn_of_shared_caches(name, base_url, deployment.engine, isolation, model.endpoints, translated)


def warn_of_shared_caches(
    model: str, base_url: str, engine: Engine, isolation: CacheIsolation, endpoints: Iterable[Endpoint], translated: Iterable[Endpoint]
) -> Iterator[str]:
    """Yield a warning if the prefix cache of a deployment lets one organization learn of another's prompts and nobody has decided so."""
    shared = list_shared_caches(engine, isolation, endpoints, translated)
    if shared:
        yield (
            f"organizations share the prefix cache of model {model} at {base_url}, because {engine} cannot separate it on"
            f" {', '.join(shared)}: an answer's time and its cached tokens show whether another organization sent the same text."
            " Set the deployment's `cache_isolation` to `prompt`, `dedicated` or `accepted`"
        )


def _plan_model(name: str, current: ModelFile | None, wanted: ModelFile) -> Iterator[PlannedChange]:
    settings = (
        "endpoints", "output_tokens_max", "context_length", "unknown_parameters", "retry_started", "share_cache", "groups",
        "hedge_after_ms", "hedge_percent", "latency_goal_ms",
        "response_cache_seconds", "guardrail", "guardrail_stages",
    )  # fmt: skip
    yield from _difference("model", (name,), current, wanted, settings)
    prices = {} if current is None or current.prices is UNSET else current.prices
    for currency, price in _items(wanted.prices):
        yield from _plan_price("price", (name, currency), {"model": name, "currency": currency}, prices.get(currency), price)
    was_published = current is not None and current.published is True
    if wanted.published is True and not was_published:
        yield PlannedChange("publication", (name,), False, {"published": (False, True)}, {})
    if wanted.published is False and was_published:
        raise OperatorError(f"model {name} is published and cannot become a draft again", hint=f"tollway models archive {name}")
    deployments = {} if current is None or current.deployments is UNSET else current.deployments
    for base_url, deployment in _items(wanted.deployments):
        yield from _plan_deployment((name, base_url), deployments.get(base_url), deployment)


def _plan_fallbacks(name: str, current: ModelFile | None, wanted: ModelFile) -> Iterator[PlannedChange]:
    before = [] if current is None or current.fallbacks is UNSET else current.fallbacks
    if wanted.fallbacks is not UNSET and wanted.fallbacks != before:
        yield PlannedChange(
            "fallbacks of model", (name,), False, {"fallbacks": (before, wanted.fallbacks)}, {"fallbacks": wanted.fallbacks}
        )


def _plan_price(
    what: str, place: tuple[str, ...], body: Mapping[str, Any], current: PriceFile | None, wanted: PriceFile
) -> Iterator[PlannedChange]:
    """A tier's price that differs in any class, left-out ones at their defaults, becomes a new version, valid at once."""
    there = {} if current is None else current.by_tier()
    for tier, units in wanted.by_tier().items():
        before = there.get(tier)
        old, new = {} if before is None else before.to_pico(), units.to_pico()
        if old != new:
            changed = [name for name in new if old.get(name) != new[name] and not _follows(name, old, new)]
            fields = {name: (_price(name, old.get(name)), _price(name, new[name])) for name in changed}
            given = {name: value for name, value in _given(units).items() if name != "tiers"}
            where = place if tier is ServiceTier.STANDARD else (*place, str(tier))
            yield PlannedChange(what, where, before is None, fields, {**body, "tier": str(tier), **given})


def _plan_book(name: str, current: BookFile | None, wanted: BookFile) -> Iterator[PlannedChange]:
    owner = _or_none(wanted.organization)
    if current is None:
        body = {"name": name, "currency": wanted.currency}
        fields = {"currency": (None, wanted.currency)} | ({"organization": (None, owner)} if owner else {})
        yield PlannedChange("price book", (name,), True, fields, body | ({"organization": owner} if owner else {}))
    elif current.currency != wanted.currency or (wanted.organization is not UNSET and _or_none(current.organization) != owner):
        raise OperatorError(
            f"price book {name} is in {current.currency}, of {_or_none(current.organization) or 'everybody'}, which cannot change",
            hint="make another book",
        )
    prices = {} if current is None or current.prices is UNSET else current.prices
    for model, price in _items(wanted.prices):
        body = {"model": model, "currency": wanted.currency}
        yield from _plan_price("book price", (name, model), body, prices.get(model), price)


def _plan_contracts(name: str, current: OrganizationFile | None, wanted: OrganizationFile) -> Iterator[PlannedChange]:
    if wanted.contracts is UNSET:
        return
    there = {} if current is None or current.contracts is UNSET else current.contracts
    for step in plan_contracts(name, wanted.currency, there, wanted.contracts):
        yield PlannedChange("contract" if step.creates else "end of contract", (name, step.name), step.creates, step.fields, step.body)


def _plan_terms(name: str, current: TermsFile | UnsetType, wanted: TermsFile | UnsetType) -> Iterator[PlannedChange]:
    """Terms that differ become new ones, valid at once. Without any, it is the default book as it stands."""
    if wanted is UNSET:
        return
    before = TermsFile() if current is UNSET else current
    books = (_or_none(before.book), _or_none(wanted.book))
    discounts = (parse_discount(before.discount), parse_discount(wanted.discount))
    fields: dict[str, tuple[Any, Any]] = {}
    if books[0] != books[1]:
        fields["book"] = (books[0] or "default", books[1] or "default")
    if discounts[0] != discounts[1]:
        fields["discount"] = (format_discount(discounts[0]), format_discount(discounts[1]))
    if fields:
        yield PlannedChange("terms", (name,), False, fields, {"book": books[1], "discount_bp": discounts[1]})


def _amount(text: str | None) -> str | None:
    """Return a sum of money in its one form."""
    return None if text is None else format_amount(parse_sum(text))


def _follows(name: str, old: Mapping[str, int], new: Mapping[str, int]) -> bool:
    """Return whether a class costs what another one costs, before and after: it need not be shown beside that one."""
    leader = ROWS[BillingClass(name)].price_of
    return leader is not None and bool(old) and all(prices.get(name) == prices.get(leader) for prices in (old, new))


def _price(name: str, pico: int | None) -> str | None:
    return None if pico is None else format_unit_price(ROWS[BillingClass(name)].unit, pico)


def _plan_deployment(place: tuple[str, str], current: DeploymentFile | None, wanted: DeploymentFile) -> Iterator[PlannedChange]:
    if current is not None and current.engine != wanted.engine:
        raise OperatorError(
            f"deployment {' / '.join(place)} is {current.engine} and cannot become {wanted.engine}",
            hint="tollway models undeploy, then apply again",
        )
    fields = DEPLOYMENT_FIELDS
    if current is None or current.credential is UNSET:
        fields += ("credential",)  # a credential that is there cannot be read, so it is never compared
    yield from _difference("deployment", place, current, wanted, fields)


ORGANIZATION_FIELDS = ("time_zone", "queue_weight", "key_lifetime_seconds_max", "rotation_schedule")
"""Fields of an organization that are read, compared and changed by themselves."""

KEY_FIELDS = ("models", "endpoints", "addresses", "output_tokens_max", "tags", "rotation_schedule")
"""Fields of an API key that are read, compared and changed."""


def _plan_organization(name: str, current: OrganizationFile | None, wanted: OrganizationFile) -> Iterator[PlannedChange]:
    if current is None:
        body = {field: value for field, value in _given(wanted).items() if field in ("currency", "time_zone", "queue_weight")}
        fields = {field: (None, value) for field, value in body.items()}
        yield PlannedChange("organization", (name,), True, fields, {"name": name, **body})
        policy = {field: value for field, value in _given(wanted).items() if field in ORGANIZATION_FIELDS and field not in body}
        if any(value is not None for value in policy.values()):
            yield PlannedChange("organization", (name,), False, {field: (None, value) for field, value in policy.items()}, policy)
    elif current.currency != wanted.currency:
        raise OperatorError(
            f"organization {name} is billed in {current.currency}, which cannot change, and not in {wanted.currency}",
            hint="make another organization for another currency",
        )
    else:
        yield from _difference("organization", (name,), current, wanted, ORGANIZATION_FIELDS)
    if wanted.plan is not UNSET:
        before = None if current is None else _or_none(current.plan)
        if before != wanted.plan:
            yield PlannedChange("plan of organization", (name,), False, {"plan": (before, wanted.plan)}, {"plan": wanted.plan})
    yield from _plan_all_limits((name,), current, wanted)
    yield from _plan_budgets((name,), wanted.currency, current, wanted)
    projects = {} if current is None or current.projects is UNSET else current.projects
    for project_name, project in _items(wanted.projects):
        yield from _plan_project((name, project_name), wanted.currency, projects.get(project_name), project)
    yield from _plan_identity(name, current, wanted)


def _plan_identity(name: str, current: OrganizationFile | None, wanted: OrganizationFile) -> Iterator[PlannedChange]:
    """Plan groups first, which connections may name, and then whatever signs in."""
    groups = {} if current is None or current.groups is UNSET else current.groups
    for key, group in _items(wanted.groups):
        yield from _plan_group((name, key), groups.get(key), group)
    connections = {} if current is None or current.sign_in_connections is UNSET else current.sign_in_connections
    for key, connection in _items(wanted.sign_in_connections):
        yield from _plan_connection((name, key), connections.get(key), connection)
    providers = {} if current is None or current.identity_providers is UNSET else current.identity_providers
    for key, provider in _items(wanted.identity_providers):
        yield from _plan_provider((name, key), providers.get(key), provider)
    directories = {} if current is None or current.directories is UNSET else current.directories
    for key, _ in _items(wanted.directories):
        if key not in directories:
            raise OperatorError(
                f"there is no token of a directory {name} / {key}, and a file makes none: its secret would be lost",
                hint="tollway scim create-token",
                exit_code=2,
            )


def _plan_group(place: tuple[str, str], current: GroupFile | None, wanted: GroupFile) -> Iterator[PlannedChange]:
    if current is None:
        yield PlannedChange("group", place, True, {}, {})
    if wanted.roles is UNSET:
        return
    before = [] if current is None or current.roles is UNSET else current.roles
    given, taken = sorted(set(wanted.roles) - set(before)), sorted(set(before) - set(wanted.roles))
    if given or taken:
        yield PlannedChange("roles of group", place, False, {"roles": (before, wanted.roles)}, {"given": given, "taken": taken})


def _plan_connection(place: tuple[str, str], current: SignInConnectionFile | None, wanted: SignInConnectionFile) -> Iterator[PlannedChange]:
    where = f"sign-in connection {' / '.join(place)}"
    if current is not None and current.issuer != wanted.issuer:
        raise OperatorError(
            f"{where} is of {current.issuer}, which cannot change to {wanted.issuer}", hint="make another connection", exit_code=2
        )
    names: tuple[str, ...] = ("client_id", "trusts_addresses", "domains", "role", "groups_claim", "groups", "enabled")
    if current is None:
        names += ("issuer",)
    if current is None or current.client_secret is UNSET or not isinstance(wanted.client_secret, str):
        names += ("client_secret",)  # a secret that is there cannot be read, so it is never compared with another one
    yield from _difference("sign-in connection", place, current, wanted, names)


def _plan_provider(place: tuple[str, str], current: IdentityProviderFile | None, wanted: IdentityProviderFile) -> Iterator[PlannedChange]:
    """Plan a provider, then its rules. An issuer whose keys are fetched must have an address from which control fetches."""
    where = f"identity provider {' / '.join(place)}"
    uploaded = wanted.jwks
    if uploaded is UNSET and wanted.discovery_url is UNSET and current is not None:
        uploaded = current.jwks
    if uploaded is UNSET:
        try:
            check_address("issuer", wanted.issuer)
        except ValueError as error:
            raise OperatorError(f"{where}: {error}", exit_code=2) from None
    names = ("issuer", "audience", "description", "enabled", "is_direct", "is_single_use")
    changes = list(_difference("identity provider", place, current, wanted, names))
    fields, body = (dict(changes[0].fields), dict(changes[0].body)) if changes else ({}, {})
    before, after = (_describe_keys(each) for each in (current, wanted))
    is_stated = wanted.jwks is not UNSET or wanted.discovery_url is not UNSET
    if is_stated and (current is None or before != after):
        fields["keys"] = (None if current is None else before, after)
        jwks, url = wanted.jwks, _or_none(wanted.discovery_url)
        by_url = {"type": "discovery", "discovery_url": url}
        body["verification"] = by_url if jwks is UNSET else {"type": "uploaded_jwks", "jwks": jwks}
    if fields or current is None:
        yield PlannedChange("identity provider", place, current is None, fields, body)
    rules = {} if current is None or current.rules is UNSET else current.rules
    for key, rule in _items(wanted.rules):
        yield from _plan_rule((*place, key), rules.get(key), rule)


def _describe_keys(provider: IdentityProviderFile | None) -> str:
    """Return where the keys of a provider come from, as it is compared and shown."""
    if provider is None or provider.jwks is UNSET:
        url = None if provider is None else _or_none(provider.discovery_url)
        return "fetched from the issuer" if url is None else f"fetched by {url}"
    keys = list_keys(provider.jwks)
    digest = hashlib.sha256(msgspec.json.encode(keys, order="sorted")).hexdigest()[:16]
    return f"{len(keys)} uploaded, digest {digest}"


def _plan_rule(place: tuple[str, str, str], current: FederationRuleFile | None, wanted: FederationRuleFile) -> Iterator[PlannedChange]:
    where = f"federation rule {' / '.join(place)}"
    if current is not None and (current.project, current.service_account) != (wanted.project, wanted.service_account):
        raise OperatorError(
            f"{where} is of service account {current.service_account} in project {current.project}, which cannot change",
            hint="make another rule, and delete this one by `tollway federation delete-rule`",
            exit_code=2,
        )
    names = ("claims", "endpoints", "description", "enabled") + (("project", "service_account") if current is None else ())
    yield from _difference("federation rule", place, current, wanted, names)


def _plan_plan(name: str, current: PlanFile | None, wanted: PlanFile) -> Iterator[PlannedChange]:
    if current is None:
        yield PlannedChange("plan", (name,), True, {}, {"name": name})
    yield from _plan_all_limits((name,), current, wanted, of="plan ")
    there = {} if current is None or current.monthly_budgets is UNSET else current.monthly_budgets
    old, new = ({code: _amount(text) for code, text in of.items()} for of in (there, dict(_items(wanted.monthly_budgets))))
    changed = {code: amount for code, amount in new.items() if old.get(code) != amount}
    if changed:
        yield PlannedChange("plan budgets", (name,), False, {code: (old.get(code), amount) for code, amount in changed.items()}, changed)


def _plan_project(place: tuple[str, str], currency: str, current: ProjectFile | None, wanted: ProjectFile) -> Iterator[PlannedChange]:
    regions = wanted.residency if wanted.residency is UNSET or wanted.residency is None else sorted(set(wanted.residency))
    before = None if current is None else _or_none(current.residency)
    changes = regions is not UNSET and regions != before
    body = {"residency": regions} if changes else {}
    fields = {"residency": (before, regions)} if changes else {}
    if current is None:
        yield PlannedChange("project", place, True, fields, {"name": place[1], **body})
    elif changes:
        yield PlannedChange("project", place, False, fields, body)
    yield from _plan_all_limits(place, current, wanted)
    yield from _plan_limits("end user limits", place, UNSET if current is None else current.end_user_limits, wanted.end_user_limits)
    there = {} if current is None or current.end_user_model_limits is UNSET else current.end_user_model_limits
    for model, limits in _items(wanted.end_user_model_limits):
        yield from _plan_limits("end user model limits", (*place, model), there.get(model, UNSET), limits)
    yield from _plan_budgets(place, currency, current, wanted)
    keys = {} if current is None or current.api_keys is UNSET else current.api_keys
    for name, key in _items(wanted.api_keys):
        if name not in keys:
            raise OperatorError(
                f"there is no API key {' / '.join((*place, name))}, and a file makes none: its secret would be lost",
                hint="tollway keys create",
                exit_code=2,
            )
        yield from _difference("API key", (*place, name), keys[name], key, KEY_FIELDS)
        yield from _plan_all_limits((*place, name), keys[name], key, of="API key ")
    accounts = {} if current is None or current.service_accounts is UNSET else current.service_accounts
    for name, account in _items(wanted.service_accounts):
        if name not in accounts:
            raise OperatorError(
                f"there is no service account {' / '.join((*place, name))}, and a file makes none: the secret of its key would be lost",
                hint="tollway service-accounts create",
                exit_code=2,
            )
        yield from _plan_all_limits((*place, name), accounts[name], account, of="service account ")


def _plan_all_limits(place: tuple[str, ...], current: LevelFile | None, wanted: LevelFile, of: str = "") -> Iterator[PlannedChange]:
    """Plan the limits of a level, or of a plan, a key or an account (`of`: "plan "), on all models together and on single ones."""
    yield from _plan_limits(f"{of}limits", place, UNSET if current is None else current.limits, wanted.limits)
    there = {} if current is None or current.model_limits is UNSET else current.model_limits
    for model, limits in _items(wanted.model_limits):
        yield from _plan_limits(f"{of}model limits", (*place, model), there.get(model, UNSET), limits)


def _plan_budgets(
    place: tuple[str, ...], currency: str, current: OrganizationFile | ProjectFile | None, wanted: OrganizationFile | ProjectFile
) -> Iterator[PlannedChange]:
    """Plan the budgets of an organization, which is billed in `currency`, or of one of its projects."""
    there = {} if current is None or current.budgets is UNSET else current.budgets
    for name, budget in _items(wanted.budgets):
        yield from _plan_budget((*place, name), currency, there.get(name), budget)


def _plan_budget(place: tuple[str, ...], currency: str, current: BudgetFile | None, wanted: BudgetFile) -> Iterator[PlannedChange]:
    where = f"budget {' / '.join(place)}"
    if wanted.currency is not UNSET and wanted.currency != currency:
        raise OperatorError(f"{where} is in {wanted.currency}, the organization is billed in {currency}", exit_code=2)
    new = {name: value for name, value in _given(wanted).items() if name != "currency"}
    new["amount"] = format_amount(parse_sum(wanted.amount))
    if current is None:
        new = {"mode": str(BudgetMode.HARD), **new}
        yield PlannedChange("budget", place, True, {name: (None, value) for name, value in new.items()}, {"name": place[-1], **new})
        return
    if current.window != wanted.window:
        raise OperatorError(
            f"{where} begins anew each {current.window}, which cannot change to {wanted.window}"
            if current.window is not BudgetWindow.TOTAL
            else f"{where} never begins anew, which cannot change to {wanted.window}",
            hint="create another budget, and archive this one by `tollway budgets archive`",
            exit_code=2,
        )
    if (current.mode is BudgetMode.ALERT) is not (wanted.mode is BudgetMode.ALERT) and wanted.mode is not UNSET:
        raise OperatorError(
            f"{where} is of mode {current.mode}, which cannot change to {wanted.mode}",
            hint="create another budget, and archive this one by `tollway budgets archive`",
            exit_code=2,
        )
    for field, does, everything in (
        ("model", "counts requests for", "all models"),
        ("tag", "counts requests for", "any tag"),
        ("end_user", "counts requests of", "all end users together"),
        ("fallback_model", "falls back to", "no model"),
        ("throttle_requests_per_minute", "throttles requests to", "no rate"),
    ):
        stated, before = getattr(wanted, field), _or_none(getattr(current, field))
        if stated is not UNSET and before != stated:
            raise OperatorError(
                f"{where} {does} {before or everything}, which cannot change to {stated or everything}",
                hint="create another budget, and archive this one by `tollway budgets archive`",
                exit_code=2,
            )
    old = {**_given(current), "amount": format_amount(parse_sum(current.amount))}
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    if changed:
        yield PlannedChange("budget", place, False, {name: (old.get(name), value) for name, value in changed.items()}, changed)


def _plan_limits(
    what: str, place: tuple[str, ...], current: LimitsFile | UnsetType, wanted: LimitsFile | UnsetType
) -> Iterator[PlannedChange]:
    """Plan the limits of one level, which are replaced as a whole: those that the file leaves out are sent as they are."""
    if wanted is UNSET:
        return
    names = [field.name for field in msgspec.structs.fields(LimitsFile)]
    old = {name: None if current is UNSET else _or_none(getattr(current, name)) for name in names}
    new = old | _given(wanted)
    if new != old:
        if problem := find_limit_problem(new):
            raise OperatorError(f"{what} of {' / '.join(place)}: {problem}", exit_code=2)
        fields = {name: (old[name], new[name]) for name in names if old[name] != new[name]}
        yield PlannedChange(what, place, False, fields, new)


def _difference(
    what: str,
    place: tuple[str, ...],
    current: msgspec.Struct | None,
    wanted: msgspec.Struct,
    names: tuple[str, ...],
) -> Iterator[PlannedChange]:
    given = {name: value for name, value in _given(wanted).items() if name in names}
    old = {} if current is None else _given(current)
    changed = {name: value for name, value in given.items() if current is None or old.get(name) != value}
    if changed or current is None:
        fields = {name: (old.get(name), value) for name, value in changed.items()}
        yield PlannedChange(what, place, current is None, fields, changed)


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields that are not left out, as plain JSON values."""
    values = {field.name: getattr(struct, field.name) for field in msgspec.structs.fields(type(struct))}
    return {name: msgspec.to_builtins(value) for name, value in values.items() if value is not UNSET}


def _items(mapping: "Mapping[str, Any] | UnsetType") -> Iterator[tuple[str, Any]]:
    return iter(() if mapping is UNSET else mapping.items())


def _or_none(value: Any) -> Any:
    return None if value is UNSET else value


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_show(each)}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
