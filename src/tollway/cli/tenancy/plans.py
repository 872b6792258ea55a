"""`tollway plans`: limits that organizations subscribe to, and limits that hold until an instant in their place. For operators."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, connect, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.tenancy.limits import parse_limits
from tollway.cli.times import Zone, read_instant, show_instant
from tollway.domain.limits import DIMENSIONS
from tollway.settings import OperatorError, unknown_name

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="Name or id of the plan.")]
Sizes = Annotated[list[str], typer.Argument(metavar="NAME=SIZE...", help="Such as tokens_per_minute=100000; none removes it.")]
PlanSizes = Annotated[list[str] | None, typer.Argument(metavar="[NAME=SIZE]...", help="Such as tokens_per_minute=100000; none removes it.")]
MonthlyBudgets = Annotated[
    list[str] | None,
    typer.Option(
        "--monthly-budget", metavar="CODE=AMOUNT", help="What its organizations may spend in a month, such as EUR=500 (repeatable)."
    ),
]
OfModel = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Limits on this model alone, beside those on all models.")]
OrganizationName = Annotated[str, typer.Argument(metavar="ORGANIZATION", help="Name or id of the organization.")]


@app.command("list")
def list_plans(output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None) -> None:
    """List plans, a row for each limit, with the number of organizations that have the plan."""
    with connect(control_url, key, data_dir) as control:
        found = list(control.list_all("/platform/plans"))
        organizations = list(control.list_all("/platform/organizations"))
    if output is Output.JSON:
        print_json(found)
        return
    rows = []
    for plan in found:
        holders = sum(1 for each in organizations if each["plan_id"] == plan["id"])
        limits = [(None, plan["limits"]), *plan["model_limits"].items()]
        sizes: list[tuple[str | None, str | None, int | None]] = [
            (model, each.name, of_model[each.name]) for model, of_model in limits for each in DIMENSIONS if of_model[each.name]
        ]
        rows += [
            {"id": plan["id"], "name": plan["name"], "model": model, "limit": name, "size": size, "organizations": holders}
            for model, name, size in sizes or [(None, None, None)]
        ]
        rows += [
            {**rows[-1], "model": None, "limit": f"monthly budget {currency}", "size": amount}
            for currency, amount in plan["monthly_budgets"].items()
        ]
    print_rows(output, ["id", "name", "model", "limit", "size", "organizations"], rows, none="no plans: see `tollway plans create`")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name, which no other plan has.")],
    limits: PlanSizes = None,
    monthly_budget: MonthlyBudgets = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a plan with limits on all models together. `tollway plans set --model` adds limits on single ones."""
    body = {"name": name, "limits": parse_limits(limits or []), "monthly_budgets": _parse_budgets(monthly_budget)}
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/plans", body)
    print_json(made) if output is Output.JSON else print(made["id"])


@app.command("set")
def set_limits(
    plan: PlanName,
    limits: PlanSizes = None,
    model: OfModel = None,
    monthly_budget: MonthlyBudgets = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change limits and monthly budgets of a plan, and so of all organizations that have it. What is not named stays as it is."""
    changes, amounts = parse_limits(limits or []), _parse_budgets(monthly_budget)
    if not changes and not amounts:
        raise OperatorError("name what to change: NAME=SIZE or --monthly-budget", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        before = _get_plan(control, plan)
        there = before["limits"] if model is None else before["model_limits"].get(model, {})
        wanted = {each.name: changes.get(each.name, there.get(each.name)) for each in DIMENSIONS}
        sizes: dict[str, Any] = {"limits": wanted} if model is None else {"model_limits": {model: wanted}}
        body = (sizes if changes else {}) | {"monthly_budgets": amounts}
        stored = control.post(f"/platform/plans/{before['id']}", body)
    if output is Output.JSON:
        print_json(stored)
        return
    for name, size in changes.items():
        print(f"{name}: {_show(there.get(name))} -> {_show(size)}")
    for currency, amount in amounts.items():
        print(f"monthly budget {currency}: {_show(before['monthly_budgets'].get(currency))} -> {_show(amount)}")


@app.command()
def delete(
    plan: PlanName, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Delete a plan that no organization has."""
    with connect(control_url, key, data_dir) as control:
        deleted = control.delete(f"/platform/plans/{_get_plan(control, plan)['id']}")
    print_json(deleted) if output is Output.JSON else print(f"deleted {deleted['id']}")


@app.command()
def assign(
    organization: OrganizationName,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="Name or id of the plan; none takes the plan away.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give an organization the limits of a plan. Its own limits, and overrides, hold before those of the plan."""
    with connect(control_url, key, data_dir) as control:
        plan_id = None if plan == "none" else _get_plan(control, plan)["id"]
        changed = control.post(f"/platform/organizations/{control.get_organization(organization)['id']}", {"plan_id": plan_id})
    print_json(changed) if output is Output.JSON else print(f"{changed['name']}: {plan}")


@app.command()
def override(
    organization: OrganizationName,
    limits: Sizes,
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="When they end: a date, an instant; within a year.")],
    model: OfModel = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Let other limits of an organization hold until an instant. They replace an override on the same model that has not ended."""
    with connect(control_url, key, data_dir) as control:
        shown_zone = control.get_zone(zone)
        body = {"limits": parse_limits(limits), "until": read_instant(until, shown_zone, time.time(), option="--until")}
        path = f"/platform/organizations/{control.get_organization(organization)['id']}/limit_override"
        made = control.put(path, body, model=model)
    print_json(made) if output is Output.JSON else print(f"until {show_instant(made['until'], shown_zone)}: {' '.join(limits)}")


@app.command("end-override")
def end_override(
    organization: OrganizationName,
    model: OfModel = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """End an override of an organization's limits before its time."""
    with connect(control_url, key, data_dir) as control:
        path = f"/platform/organizations/{control.get_organization(organization)['id']}/limit_override"
        left = control.delete(path if model is None else f"{path}?model={segment(model)}")
    print_json(left) if output is Output.JSON else print("ended")


def _parse_budgets(texts: list[str] | None) -> dict[str, str | None]:
    """Return amounts by currency from CODE=AMOUNT, None for an amount of `none`. Raises OperatorError."""
    found: dict[str, str | None] = {}
    for text in texts or []:
        currency, equals, amount = text.partition("=")
        if not equals or not amount or currency in found:
            raise OperatorError(f"--monthly-budget {text!r}: write each currency once, as CODE=AMOUNT, such as EUR=500", exit_code=2)
        found[currency] = None if amount == "none" else amount
    return found


def _get_plan(control: Control, name_or_id: str) -> Mapping[str, Any]:
    """Return a plan by its name or id. Raises OperatorError that lists the names."""
    found = list(control.list_all("/platform/plans"))
    named = [each for each in found if name_or_id in (each["id"], each["name"])]
    if not named:
        raise unknown_name(f"plan {name_or_id!r}", name_or_id, [each["name"] for each in found], source="the arguments")
    if len(named) > 1:
        raise OperatorError(f"several plans are called {name_or_id}", hint="name one by its id", exit_code=2)
    return named[0]


def _show(size: Any) -> str:
    return "none" if size is None else str(size)
