"""`tollway apply` and `tollway export`: the platform as a file."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml
from msgspec import UNSET, UnsetType

from tollway.cli.catalog import identity_state
from tollway.cli.catalog.contract_file import ContractFile
from tollway.cli.catalog.identity_state import IdentityState, resolve_client_secret
from tollway.cli.catalog.plan import DEPLOYMENT_FIELDS, KEY_FIELDS, PlannedChange, list_warnings, make_plan
from tollway.cli.catalog.platform_file import (
    ApiKeyFile,
    BudgetFile,
    PlatformFile,
    ProjectFile,
    ServiceAccountFile,
    read,
    resolve_credential,
)
from tollway.cli.client import Control, ControlUrl, DataDir, Key, connect, segment
from tollway.cli.output import Output, OutputOption, ProgressPrinter, print_json
from tollway.domain import ids
from tollway.domain.billing_classes import BillingClass
from tollway.domain.budgets import SUBJECT_BUDGETS_MAX, BudgetMode
from tollway.domain.catalog import GROUP_PREFIX, find_group
from tollway.domain.limits import DIMENSIONS
from tollway.domain.price_books import format_discount
from tollway.settings import OperatorError

CHANGES_PENDING = 3
"""Exit code of `--dry-run` when there is something to do: neither a failure (1) nor a wrong file or command line (2)."""


def apply(
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The platform file (docs/platform-file.md).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan. Exit code 3 if there are changes to make.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change the platform to match a YAML file, after showing the plan.

    What the file leaves out stays as it is, and nothing is ever deleted. A second run changes nothing. The whole file and everything
    that it refers to are validated before the first change.

    Exit codes: 0 done, or nothing to do; 1 failure; 2 wrong file or command line; 3 changes pending (--dry-run).
    """
    wanted = read(file)
    progress = ProgressPrinter()
    with connect(control_url, key, data_dir) as control:
        platform = Platform(control)
        current = platform.read(wanted)
        changes = make_plan(current, wanted)
        platform.check_references(changes, current)
        _print_plan(changes, output, dry_run)
        for warning in list_warnings(current, wanted):
            typer.echo(f"warning: {warning}", err=True)
        if dry_run:
            raise typer.Exit(CHANGES_PENDING if changes else 0)
        for change in changes:
            _credential(change)
            resolve_client_secret(change)
        for change in changes:
            progress.step(change.describe()[0])
            platform.carry_out(change)


def export(
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write models, prices, deployments, organizations, limits, budgets, bounds of keys and identity as a file that `apply` reads.

    Secrets are not in it: where an upstream or an identity provider asks for one, the file names a variable to set.
    """
    with connect(control_url, key, data_dir) as control:
        platform = Platform(control)
        tree = msgspec.to_builtins(platform.read(None), str_keys=True)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        file.write_text(text)
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from None


def _print_plan(changes: list[PlannedChange], output: Output, dry_run: bool) -> None:
    if output is Output.JSON:
        print_json(
            [
                {
                    "what": change.what,
                    "place": change.place,
                    "action": "create" if change.creates else "update",
                    "fields": {name: {"old": old, "new": new} for name, (old, new) in change.fields.items()},
                }
                for change in changes
            ]
        )
        return
    for change in changes:
        print("\n".join(change.describe()))
    if changes:
        print(f"{len(changes)} change{'s' if len(changes) > 1 else ''}{' (nothing was done)' if dry_run else ''}")
    else:
        print("nothing to change")


class Platform:
    """The platform behind the API in the shape of the file, with the ids that its names stand for."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._deployments: dict[tuple[str, str], str] = {}
        self._organizations: dict[str, str] = {}
        self._projects: dict[tuple[str, str], str] = {}
        self._budgets: dict[tuple[str, ...], str] = {}
        self._budget_counts: Counter[tuple[tuple[str, ...], bool]] = Counter()
        """Budgets by the organization or project, and whether they only alert."""
        self._keys: dict[tuple[str, ...], str] = {}
        self._accounts: dict[tuple[str, ...], str] = {}
        self._contracts: dict[tuple[str, str], str] = {}
        self._plans: dict[str, str] = {}
        self._plan_budgets: dict[str, dict[str, str]] = {}
        self._books: dict[str, str] = {}
        self._default_lists: frozenset[str] = frozenset()
        self._book_currencies: dict[str, str] = {}
        self._identity = IdentityState(control)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, wanted: PlatformFile | None) -> PlatformFile:
        """Return what is there, as far as `wanted` names it; everything if None. Archived things are not there."""
        books = list(self._control.list_all("/platform/price_books"))
        self._default_lists = frozenset(book["id"] for book in books if book["default"])
        self._books = {book["name"]: book["id"] for book in books}
        self._book_currencies = {book["name"]: book["currency"] for book in books}
        models = self._read_models(None if wanted is None else wanted.models)
        plans = self._read_plans(wanted)
        organizations = self._read_organizations(wanted)
        tree = {"models": models, "organizations": organizations, "price_books": self._read_books(books, wanted), "plans": plans}
        return msgspec.convert(tree, PlatformFile)

    def _read_models(self, names: Collection[str] | None) -> dict[str, Any]:
        if names is not None and not names:
            return {}
        settings = (
            "endpoints", "published", "output_tokens_max", "context_length", "unknown_parameters", "retry_started", "share_cache",
            "groups", "fallbacks", "hedge_after_ms", "hedge_percent", "latency_goal_ms",
            "response_cache_seconds", "guardrail", "guardrail_stages",
        )  # fmt: skip
        models: dict[str, Any] = {}
        for model in self._control.list_all("/platform/models"):
            if names is None or model["name"] in names:
                prices = self._control.list_all("/platform/prices", model=model["name"])
                deployments = self._control.list_all("/platform/deployments", model=model["name"])
                models[model["name"]] = {
                    **{name: model[name] for name in settings},
                    "endpoints": sorted(model["endpoints"]),
                    "prices": _current_prices((each for each in prices if each["list"] in self._default_lists), "currency"),
                    "deployments": self._read_deployments(model["name"], deployments),
                }
        return models

    def _read_deployments(self, model: str, deployments: Iterable[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for each in deployments:
            base_url = each["base_url"]
            if base_url in found:
                raise OperatorError(
                    f"model {model} has two deployments at {base_url}, which a file cannot distinguish",
                    hint=f"tollway models undeploy {each['id']}",
                )
            found[base_url] = {name: each[name] for name in DEPLOYMENT_FIELDS}
            if each["has_credential"]:
                found[base_url]["credential"] = f"${{{_variable(model)}}}"
            self._deployments[model, base_url] = each["id"]
        return found

    def _read_plans(self, wanted: PlatformFile | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for each in self._control.list_all("/platform/plans"):
            self._plans[each["name"]] = each["id"]
            self._plan_budgets[each["name"]] = each["monthly_budgets"]
            if wanted is None or each["name"] in wanted.plans:
                by_model = {model: _list_sizes(limits) for model, limits in each["model_limits"].items()}
                found[each["name"]] = {"limits": _list_sizes(each["limits"]), **({"model_limits": by_model} if by_model else {})}
                if each["monthly_budgets"]:
                    found[each["name"]]["monthly_budgets"] = each["monthly_budgets"]
        return found

    def _read_organizations(self, wanted: PlatformFile | None) -> dict[str, Any]:
        if wanted is not None and not wanted.organizations:
            return {}
        found: dict[str, Any] = {}
        there = list(self._control.list_all("/platform/organizations"))
        keys = _file_keys(there, None if wanted is None else wanted.organizations, "organization", ids.ORGANIZATION)
        for each in there:
            if each["id"] not in keys:
                continue
            name = keys[each["id"]]
            self._organizations[name] = each["id"]
            self._control.act_for_id(each["id"])
            projects = None if wanted is None else (wanted.organizations[name].projects or {})
            budgets = list(self._control.list_all("/organization/budgets"))
            found[name] = {
                "currency": each["currency"],
                "time_zone": each["time_zone"],
                "queue_weight": each["queue_weight"],
                **_list_stated(each, ("key_lifetime_seconds_max", "rotation_schedule"), is_export=wanted is None),
                "plan": next((plan for plan, id in self._plans.items() if id == each["plan_id"]), None),
                **self._read_limits("organization", {}),
                **self._read_terms(each["id"]),
                **self._read_contracts(name, None if wanted is None else wanted.organizations[name].contracts),
                **self._read_budgets((name,), each["id"], budgets, None if wanted is None else wanted.organizations[name].budgets),
                "projects": self._read_projects(name, projects, budgets),
                **self._identity.read(name, None if wanted is None else wanted.organizations[name]),
            }
        return found

    def _read_books(self, books: Iterable[dict[str, Any]], wanted: PlatformFile | None) -> dict[str, Any]:
        """Books that are no default: the prices of those stand with the models."""
        found: dict[str, Any] = {}
        if wanted is None:
            chosen = [book for book in books if not book["default"]]
        else:
            chosen = [book for book in books if book["name"] in wanted.price_books]
        owners: dict[str, str] = {}
        if any(book["organization_id"] for book in chosen):
            everybody = self._control.list_all("/platform/organizations", include_archived=True)
            owners = _file_keys(list(everybody), None, "organization", ids.ORGANIZATION)
            if wanted is not None:
                named = {book.organization for book in wanted.price_books.values()}
                owners = {id: id if id in named else name for id, name in owners.items()}
        for book in chosen:
            name, owner = book["name"], book["organization_id"]
            prices = self._control.list_all("/platform/prices", list=book["id"])
            found[name] = {"currency": book["currency"], "prices": _current_prices(prices, "model")}
            if owner is not None:
                found[name]["organization"] = owners[owner]
        return found

    def _read_terms(self, organization_id: str) -> dict[str, Any]:
        """The terms valid now, left out if they are the default book as it stands."""
        now = datetime.now(UTC).timestamp()
        terms = self._control.get(f"/platform/organizations/{organization_id}/price_terms")["data"]
        valid = [each for each in terms if each["valid_from"] <= now]
        found: dict[str, str] = {}
        if valid:
            names = {id: name for name, id in self._books.items() if id not in self._default_lists}
            if valid[-1]["book_id"] in names:
                found["book"] = names[valid[-1]["book_id"]]
            if valid[-1]["discount_bp"]:
                found["discount"] = format_discount(valid[-1]["discount_bp"])
        return {"terms": found} if found else {}

    def _read_contracts(self, organization: str, wanted: Mapping[str, ContractFile] | UnsetType | None) -> dict[str, Any]:
        """Return every contract of an organization by the name that the file uses: those that it leaves out can overlap with others."""
        if wanted is UNSET:
            return {}
        there = [{**each, "name": each["terms"]["name"]} for each in self._control.list_all("/organization/contracts")]
        counts = Counter(each["name"] for each in there)
        named = _file_keys(there, wanted, f"contract of {organization}", ids.CONTRACT)
        found: dict[str, Any] = {}
        for each in there:
            name = named.get(each["id"]) or (each["name"] if counts[each["name"]] == 1 else each["id"])
            self._contracts[organization, name] = each["id"]
            terms = {field: value for field, value in each["terms"].items() if field != "name" and value not in (None, [])}
            found[name] = {**terms, "valid_from": each["valid_from"], "valid_until": each["valid_until"]}
        return {"contracts": found} if found else {}

    def _read_projects(
        self, organization: str, wanted: Mapping[str, ProjectFile] | None, budgets: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        there = list(self._control.list_all("/organization/projects"))
        keys = _file_keys(there, wanted, f"project of {organization}", ids.PROJECT)
        for each in there:
            if each["id"] not in keys:
                continue
            name = keys[each["id"]]
            self._projects[organization, name] = each["id"]
            query = {"project_id": each["id"]}
            found[name] = {} if each["residency"] is None and wanted is None else {"residency": each["residency"]}
            found[name] |= self._read_limits("project", query)
            of_each = self._read_limits("end_user", query)
            if any(size is not None for size in of_each["limits"].values()):
                found[name]["end_user_limits"] = of_each["limits"]
            if "model_limits" in of_each:
                found[name]["end_user_model_limits"] = of_each["model_limits"]
            found[name] |= self._read_budgets((organization, name), each["id"], budgets, None if wanted is None else wanted[name].budgets)
            place, named = (organization, name), None if wanted is None else wanted[name]
            found[name] |= self._read_keys(place, each["id"], None if named is None else named.api_keys)
            found[name] |= self._read_accounts(place, each["id"], None if named is None else named.service_accounts)
        return found

    def _read_keys(self, place: tuple[str, ...], project_id: str, wanted: Mapping[str, ApiKeyFile] | UnsetType | None) -> dict[str, Any]:
        """Return bounds and limits of the keys of a project that the file names; in an export those of every key that has any."""
        if wanted is UNSET or (wanted is not None and not wanted):
            return {}
        there = list(self._control.list_all(f"/organization/projects/{project_id}/api_keys"))
        names = _file_keys(there, wanted, f"API key of {' / '.join(place)}", ids.KEY)
        found: dict[str, Any] = {}
        for each in there:
            if each["id"] not in names:
                continue
            key = {**each, "tags": each["tags"] or None}
            for field in ("models", "endpoints", "addresses"):
                key[field] = None if each[field] is None else sorted(each[field])
            name = names[each["id"]]
            stated = _list_stated(key, KEY_FIELDS, is_export=wanted is None)
            if wanted is None or _has_limits(wanted[name]):
                limits = self._read_limits("api_key", {"project_id": project_id, "api_key_id": each["id"]})
                stated |= _leave_out_unlimited(limits) if wanted is None else limits
            if stated:
                self._keys[*place, name] = f"/organization/projects/{project_id}/api_keys/{each['id']}"
                found[name] = stated
        return {"api_keys": found} if found else {}

    def _read_accounts(
        self, place: tuple[str, ...], project_id: str, wanted: Mapping[str, ServiceAccountFile] | UnsetType | None
    ) -> dict[str, Any]:
        """Return the limits of the service accounts of a project that the file names; in an export those of every one that has any."""
        if wanted is UNSET or (wanted is not None and not wanted):
            return {}
        there = list(self._control.list_all(f"/organization/projects/{project_id}/service_accounts"))
        names = _file_keys(there, wanted, f"service account of {' / '.join(place)}", ids.SERVICE_ACCOUNT)
        found: dict[str, Any] = {}
        for each in there:
            if each["id"] in names:
                name = names[each["id"]]
                limits = self._read_limits("service_account", {"project_id": project_id, "service_account_id": each["id"]})
                stated = _leave_out_unlimited(limits) if wanted is None else limits
                if stated:
                    self._accounts[*place, name] = f"/organization/projects/{project_id}/service_accounts/{each['id']}"
                    found[name] = stated
        return {"service_accounts": found} if found else {}

    def _read_budgets(
        self,
        place: tuple[str, ...],
        subject_id: str,
        budgets: Sequence[dict[str, Any]],
        wanted: Mapping[str, BudgetFile] | UnsetType | None,
    ) -> dict[str, Any]:
        """Return the budgets of an organization or a project that the file names, of the organization's `budgets`."""
        there = [each for each in budgets if each["subject_id"] == subject_id and each["plan_id"] is None and not each["is_prepaid"]]
        for each in there:
            self._budget_counts[place, each["mode"] == BudgetMode.ALERT] += 1
        named = None if wanted is None else {} if wanted is UNSET else wanted
        keys = _file_keys(there, named, f"budget of {' / '.join(place)}", ids.BUDGET)
        found: dict[str, Any] = {}
        for each in there:
            if each["id"] in keys:
                name = keys[each["id"]]
                self._budgets[*place, name] = each["id"]
                fields = ("amount", "window", "mode", "thresholds", "model", "tag", "end_user", "fallback_model")
                found[name] = {field: each[field] for field in (*fields, "throttle_requests_per_minute")}
                if wanted is None:
                    found[name] = {field: value for field, value in found[name].items() if value is not None}
        return {"budgets": found} if found else {}

    def _read_limits(self, level: str, query: dict[str, str]) -> dict[str, Any]:
        """Return the limits that one level itself has, on all models and on single ones."""
        listed = [each for each in self._control.get("/organization/limits", **query)["data"] if each["level"] == level and each["own"]]
        limits: dict[str | None, dict[str, int | None]] = {}
        for each in listed:
            of_model = limits.setdefault(each["model"], dict.fromkeys(dimension.name for dimension in DIMENSIONS))
            of_model[each["dimension"]] = each["own"]
        of_all = limits.pop(None, dict.fromkeys(dimension.name for dimension in DIMENSIONS))
        return {"limits": of_all, **({"model_limits": limits} if limits else {})}

    # ---- validating --------------------------------------------------------------------------------------------------

    def check_references(self, changes: list[PlannedChange], current: PlatformFile) -> None:
        """Raise OperatorError, before anything was done, if a change names something that will not be there when its turn comes."""
        self._identity.check(changes, current, self._organizations)
        planned = {(change.what, change.place[0]): change for change in changes if change.creates}
        needed = {model for change in changes for model in _models_named(change) if ("model", model) not in planned}
        unknown = needed - self._list_scopes(changes) if needed else set()
        for change in changes:
            where = f"{change.what} {' / '.join(change.place)}"
            for model in _models_named(change):
                if model in unknown:
                    group = find_group(model)
                    what = f"model {model}" if group is None else f"model in the group {group}"
                    raise OperatorError(f"{where}: there is no {what}", hint="see `tollway models list`", exit_code=2)
            if change.what == "terms" and (book := change.body["book"]) is not None:
                new = planned.get(("price book", book))
                currency = self._book_currencies.get(book) if new is None else new.body["currency"]
                if currency is None:
                    raise OperatorError(f"{where}: there is no price book {book}", hint="see `tollway prices books`", exit_code=2)
                billed_in = self._currency_of(change.place[0], current, planned)
                if currency != billed_in:
                    raise OperatorError(
                        f"{where}: price book {book} is in {currency}, the organization is billed in {billed_in}", exit_code=2
                    )
            if change.what in ("contract", "end of contract"):
                self._check_closed_time(where, change)
            if change.what == "plan of organization":
                plan = change.body["plan"]
                if plan is not None and plan not in self._plans and ("plan", plan) not in planned:
                    raise OperatorError(f"{where}: there is no plan {plan}", hint="see `tollway plans list`", exit_code=2)
                budgeted = self._list_plan_currencies(plan, changes)
                billed_in = self._currency_of(change.place[0], current, planned)
                if budgeted and billed_in not in budgeted:
                    raise OperatorError(
                        f"{where}: plan {plan} has no monthly budget in {billed_in}, in which the organization is billed", exit_code=2
                    )
            if change.what == "plan budgets" and (plan_id := self._plans.get(change.place[0])) is not None:
                self._check_subscribers(plan_id, change, self._list_plan_currencies(change.place[0], changes))
            if change.what == "budget" and change.creates:
                self._check_budget_count(change.place[:-1], changes, only_alert=change.body["mode"] == BudgetMode.ALERT)
            if change.what == "price book" and (owner := change.body.get("organization")) and ("organization", owner) not in planned:
                self._organization_id(owner)
            if change.what == "publication":
                priced = current.models[change.place[0]].prices if change.place[0] in current.models else {}
                if not priced and not any(each.what == "price" and each.place[0] == change.place[0] for each in changes):
                    raise OperatorError(f"{where}: a published model needs a price", hint="add `prices` to the model", exit_code=2)

    def _check_closed_time(self, where: str, change: PlannedChange) -> None:
        """Raise OperatorError if a contract would begin or end in time that a closed billing period covers."""
        organization_id = self._organizations.get(change.place[0])
        if organization_id is None:
            return
        self._control.act_for_id(organization_id)
        periods = self._control.list_all("/organization/periods")
        frozen_until = max((each["end_time"] for each in periods if each["state"] != "open"), default=0)
        for field in ("valid_from",) if change.creates else ("valid_until",):
            if change.body[field] < frozen_until:
                message = f"{where}: {field} is {change.body[field]}, and billing periods are closed up to {frozen_until}"
                raise OperatorError(message, hint="nothing changes in closed time: name that instant or a later one", exit_code=2)

    def _list_plan_currencies(self, plan: str | None, changes: Sequence[PlannedChange]) -> set[str]:
        """Return the currencies in which a plan will have a monthly budget once the changes are made."""
        amounts: dict[str, str | None] = {**self._plan_budgets.get(plan or "", {})}
        for change in changes:
            if change.what == "plan budgets" and change.place == (plan,):
                amounts |= change.body
        return {code for code, amount in amounts.items() if amount is not None}

    def _check_subscribers(self, plan_id: str, change: PlannedChange, budgeted: Collection[str]) -> None:
        """Raise OperatorError if an organization that has the plan would have none of its monthly budgets."""
        for each in self._control.list_all("/platform/organizations") if budgeted else ():
            if each["plan_id"] == plan_id and each["currency"] not in budgeted:
                raise OperatorError(
                    f"{change.what} {change.place[0]}: organization {each['name']} has the plan and is billed in {each['currency']},"
                    " in which the plan would have no monthly budget",
                    hint=f"add {each['currency']} to `monthly_budgets`, or give the organization another plan first",
                    exit_code=2,
                )

    def _list_scopes(self, changes: Sequence[PlannedChange]) -> set[str]:
        """Return the models that there are, and the groups of models that there will be once the changes are made."""
        groups = {each["name"]: each["groups"] for each in self._control.list_all("/platform/models")}
        names = set(groups)
        for change in changes:
            if change.what == "model" and "groups" in change.body:
                groups[change.place[0]] = change.body["groups"]
        return names | {GROUP_PREFIX + group for of_model in groups.values() for group in of_model}

    def _check_budget_count(self, place: tuple[str, ...], changes: Sequence[PlannedChange], *, only_alert: bool) -> None:
        created = [each for each in changes if each.what == "budget" and each.creates and each.place[:-1] == place]
        planned = sum(1 for each in created if (each.body["mode"] == BudgetMode.ALERT) is only_alert)
        there = self._budget_counts[place, only_alert]
        if there + planned > SUBJECT_BUDGETS_MAX:
            raise OperatorError(
                f"{' / '.join(place)} has {there} budgets that {'only alert' if only_alert else 'bind'}, and the file adds {planned}:"
                f" there may be at most {SUBJECT_BUDGETS_MAX}",
                hint="see `tollway budgets list` and `tollway budgets archive`",
                exit_code=2,
            )

    @staticmethod
    def _currency_of(organization: str, current: PlatformFile, planned: Mapping[tuple[str, str], PlannedChange]) -> str:
        if organization in current.organizations:
            return current.organizations[organization].currency
        return str(planned["organization", organization].body["currency"])

    # ---- doing -------------------------------------------------------------------------------------------------------

    def carry_out(self, change: PlannedChange) -> None:
        """Do one change. Raises OperatorError with the API's words; what was done before it stays done."""
        control, place, body = self._control, change.place, dict(change.body)
        match change.what:
            case "model" if change.creates:
                control.post("/platform/models", {"name": place[0], **body})
            case "model" | "fallbacks of model":
                control.post(f"/platform/models/{segment(place[0])}", body)
            case "price":
                control.post("/platform/prices", body)
            case "price book":
                owner = body.pop("organization", None)
                owned = {} if owner is None else {"organization_id": self._organization_id(owner)}
                self._books[place[0]] = control.post("/platform/price_books", body | owned)["id"]
            case "book price":
                control.post("/platform/prices", body | {"book_id": self._books[place[0]]})
            case "terms":
                book = body.pop("book")
                named = {} if book is None else {"book_id": self._books[book]}
                control.post(f"/platform/organizations/{self._organizations[place[0]]}/price_terms", body | named)
            case "contract":
                control.post(f"/platform/organizations/{self._organizations[place[0]]}/contracts", body)
            case "end of contract":
                contract_id = self._contracts[place[0], place[1]]
                control.post(f"/platform/organizations/{self._organizations[place[0]]}/contracts/{contract_id}/end", body)
            case "publication":
                control.post(f"/platform/models/{segment(place[0])}/publish")
            case "deployment":
                self._deploy(change, body)
            case "plan":
                self._plans[place[0]] = control.post("/platform/plans", body)["id"]
            case "plan limits":
                control.post(f"/platform/plans/{self._plans[place[0]]}", {"limits": body})
            case "plan model limits":
                control.post(f"/platform/plans/{self._plans[place[0]]}", {"model_limits": {place[1]: body}})
            case "plan budgets":
                control.post(f"/platform/plans/{self._plans[place[0]]}", {"monthly_budgets": body})
            case "plan of organization":
                plan_id = None if body["plan"] is None else self._plans[body["plan"]]
                control.post(f"/platform/organizations/{self._organizations[place[0]]}", {"plan_id": plan_id})
            case "organization" if not change.creates:
                control.post(f"/platform/organizations/{self._organizations[place[0]]}", body)
            case "organization":
                # Its first admin key is not kept: who needs one makes one, at a terminal and not in a pipeline's log.
                self._organizations[place[0]] = control.post("/platform/organizations", body)["id"]
            case "project" if not change.creates:
                control.act_for_id(self._organizations[place[0]])
                control.post(f"/organization/projects/{self._projects[place[0], place[1]]}", body)
            case "project":
                control.act_for_id(self._organizations[place[0]])
                self._projects[place[0], place[1]] = control.post("/organization/projects", body)["id"]
            case "limits":
                control.put(self._limits_path(place), body)
            case "end user limits":
                control.put(self._limits_path(place).removesuffix("limits") + "end_user_limits", body)
            case "end user model limits":
                control.put(self._limits_path(place[:-1]).removesuffix("limits") + "end_user_limits", body, model=place[-1])
            case "model limits":
                control.put(self._limits_path(place[:-1]), body, model=place[-1])
            case "API key limits":
                control.act_for_id(self._organizations[place[0]])
                control.put(f"{self._keys[place]}/limits", body)
            case "API key model limits":
                control.act_for_id(self._organizations[place[0]])
                control.put(f"{self._keys[place[:-1]]}/limits", body, model=place[-1])
            case "service account limits":
                control.act_for_id(self._organizations[place[0]])
                control.put(f"{self._accounts[place]}/limits", body)
            case "service account model limits":
                control.act_for_id(self._organizations[place[0]])
                control.put(f"{self._accounts[place[:-1]]}/limits", body, model=place[-1])
            case "API key":
                control.act_for_id(self._organizations[place[0]])
                control.post(self._keys[place], body)
            case "budget" if change.creates:
                control.act_for_id(self._organizations[place[0]])
                of_project = {"project_id": self._projects[place[0], place[1]]} if len(place) == 3 else {}
                control.post("/organization/budgets", body | of_project)
            case "budget":
                control.act_for_id(self._organizations[place[0]])
                control.post(f"/organization/budgets/{self._budgets[place]}", body)
            case what if what in identity_state.KINDS:
                control.act_for_id(self._organizations[place[0]])
                self._identity.carry_out(change)
            case _:
                raise AssertionError(change.what)

    def _limits_path(self, place: tuple[str, ...]) -> str:
        """Return the path of the limits of an organization, or of a project of one."""
        organization_id = self._organizations[place[0]]
        if len(place) == 1:
            return f"/platform/organizations/{organization_id}/limits"
        self._control.act_for_id(organization_id)
        return f"/organization/projects/{self._projects[place[0], place[1]]}/limits"

    def _organization_id(self, name: str) -> str:
        """Return the id of an organization by its name or id, also if it is not among the file's organizations."""
        if name not in self._organizations:
            found = [each["id"] for each in self._control.list_all("/platform/organizations") if name in (each["name"], each["id"])]
            if len(found) != 1:
                what = "more than one organization is" if found else "no organization is"
                raise OperatorError(f"{what} called {name}", hint="see `tollway organizations list`; an id is never ambiguous", exit_code=2)
            self._organizations[name] = found[0]
        return self._organizations[name]

    def _deploy(self, change: PlannedChange, body: dict[str, Any]) -> None:
        model, base_url = change.place
        credential = _credential(change)
        if credential is not None:
            body["credential"] = credential
        if change.creates:
            self._control.post("/platform/deployments", {"model": model, "base_url": base_url, **body})
        else:
            self._control.post(f"/platform/deployments/{self._deployments[model, base_url]}", body)


def _credential(change: PlannedChange) -> str | None:
    """The secret that a deployment's change sends, if it sends one. Raises OperatorError if it cannot be had."""
    reference = change.body.get("credential") if change.what == "deployment" else None
    return reference and resolve_credential(reference, os.environ, f"credential of {' / '.join(change.place)}")


def _models_named(change: PlannedChange) -> tuple[str, ...]:
    """Return the models and groups of models that must exist for a change, other than those that it creates."""
    if change.what == "fallbacks of model":
        return tuple(change.body["fallbacks"])
    if change.what.endswith("model limits"):
        return (change.place[-1],)
    if change.what == "contract":
        return tuple(each["model"] for field in ("tiered_prices", "free_units") for each in change.body.get(field, ()))
    fields = ("model",) if change.what == "book price" else ("model", "fallback_model") if change.what == "budget" else ()
    return tuple(change.body[field] for field in fields if change.body.get(field) is not None)


def _file_keys(there: Sequence[Mapping[str, Any]], wanted: Collection[str] | None, kind: str, prefix: str) -> dict[str, str]:
    """Return, by id, the key in a file of each thing that the file names (of every thing if `wanted` is None): its name, or its id
    where the file says so or where several have the name.

    Raises OperatorError for a name that several have and for an id that nothing has."""
    counts = Counter(each["name"] for each in there)
    if wanted is None:
        return {each["id"]: each["name"] if counts[each["name"]] == 1 else each["id"] for each in there}
    for key in wanted:
        if ids.is_id(prefix, key) and not any(each["id"] == key for each in there):
            raise OperatorError(f"there is no {kind} {key}", hint="a key of the form of an id names something that exists", exit_code=2)
        if counts[key] > 1:
            candidates = ", ".join(each["id"] for each in there if each["name"] == key)
            raise OperatorError(
                f"more than one {kind} is called {key}", hint=f"write the id in place of the name: {candidates}", exit_code=2
            )
    twice = next((each for each in there if each["id"] in wanted and each["name"] in wanted), None)
    if twice is not None:
        raise OperatorError(f"{kind} {twice['name']} is named twice, by name and by id {twice['id']}", exit_code=2)
    return {each["id"]: key for each in there for key in (each["id"], each["name"]) if key in wanted}


def _list_stated(row: Mapping[str, Any], fields: Iterable[str], *, is_export: bool) -> dict[str, Any]:
    """Return fields of what is there; in an export without those that are null."""
    return {name: row[name] for name in fields if not is_export or row[name] is not None}


def _has_limits(key: ApiKeyFile) -> bool:
    return key.limits is not UNSET or key.model_limits is not UNSET


def _leave_out_unlimited(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits of a level as an export writes them: nothing where nothing is limited."""
    return {name: of for name, of in limits.items() if name != "limits" or any(size is not None for size in of.values())}


def _list_sizes(limits: Mapping[str, Any]) -> dict[str, int | None]:
    return {dimension.name: limits[dimension.name] for dimension in DIMENSIONS}


def _current_prices(versions: Iterable[dict[str, Any]], by: str) -> dict[str, Any]:
    """The versions valid now of one list, or of one model: by the field `by`, tiers beside the standard one."""
    now = datetime.now(UTC).timestamp()
    valid = sorted((each for each in versions if each["valid_from"] <= now), key=lambda each: each["valid_from"])
    found: dict[str, Any] = {}
    for each in valid:
        units = {str(name): each[name] for name in BillingClass}
        price = found.setdefault(each[by], {})
        price.update(units) if each["tier"] == "standard" else price.setdefault("tiers", {}).update({each["tier"]: units})
    return found


def _variable(model: str) -> str:
    """The variable that an exported file names for a credential: `TOLLWAY_CREDENTIAL_` and the model in capitals."""
    return "TOLLWAY_CREDENTIAL_" + "".join(each if each.isascii() and each.isalnum() else "_" for each in model.upper())
