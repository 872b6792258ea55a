"""`tollway budgets`: what an organization, a project, a key or an end user may spend, and what was spent of it."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from tollway.cli.client import (
    Control,
    ControlUrl,
    DataDir,
    Key,
    Organization,
    choose_id,
    complete_keys,
    complete_models,
    complete_projects,
    connect_tenant,
)
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import Zone, read_instant, show_instant
from tollway.domain import ids
from tollway.domain.budgets import BudgetMode, BudgetWindow
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OfProject = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME|ID", help="A project; the organization if left out.", autocompletion=complete_projects),
]
OfKey = Annotated[str | None, typer.Option("--api-key", metavar="NAME|ID", help="A key of the project.", autocompletion=complete_keys)]
BudgetName = Annotated[str, typer.Argument(metavar="BUDGET", help="Name or id, as `tollway budgets list` shows it.")]
Thresholds = Annotated[
    list[int] | None, typer.Option("--threshold", metavar="PERCENT", help="Raise an alert at this part of the limit (repeatable).")
]

COLUMNS = ["id", "name", "level", "subject_id", "model", "tag", "end_user", "mode", "window", "limit", "spent", "left", "currency"]


class WindowOption(StrEnum):
    """The window of a budget, as an option."""

    DAY = BudgetWindow.DAY.value
    WEEK = BudgetWindow.WEEK.value
    MONTH = BudgetWindow.MONTH.value
    TOTAL = BudgetWindow.TOTAL.value


class Mode(StrEnum):
    """The strength of a budget, as an option."""

    HARD = BudgetMode.HARD.value
    SOFT = BudgetMode.SOFT.value
    ALERT = BudgetMode.ALERT.value


@app.command("list")
def list_budgets(
    project: OfProject = None,
    api_key: OfKey = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the budgets of the organization; with --project or --api-key those that bind it, innermost level first."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        if project is None and api_key is None:
            rows = list(control.list_all("/organization/budgets"))
        else:
            query: dict[str, str] = {"project_id": control.get_project(project)["id"]}
            if api_key is not None:
                query["api_key_id"] = control.get_key_id(query["project_id"], api_key)
            rows = control.get("/organization/binding_budgets", **query)["data"]
    print_rows(output, COLUMNS, rows, none="no budgets: see `tollway budgets create`")


@app.command()
def show(
    budget: BudgetName,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show how a budget stands, its raises, and the thresholds that were reached."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/budgets/{_get_id(control, budget)}"
        found = control.get(path)
        shown_zone = control.get_zone(zone)
        raises, alerts = control.get(f"{path}/raises")["data"], control.get(f"{path}/alerts")["data"]
    if output is Output.JSON:
        print_json({**found, "raises": raises, "alerts": alerts})
        return
    shown = ("name", "level", "subject_id", "model", "tag", "end_user", "fallback_model", "throttle_requests_per_minute", "mode", "window")
    for name in (*shown, "managed_by"):
        print(f"{name}: {found[name]}")
    for name in ("amount", "limit", "spent", "leased", "left"):
        print(f"{name}: {found[name]} {found['currency'].upper()}")
    for each in raises:
        print(f"raise: {each['amount']} from {show_instant(each['starts_at'], shown_zone)} to {show_instant(each['ends_at'], shown_zone)}")
    for each in alerts:
        print(f"alert: {each['threshold']} % of {each['limit']} reached at {show_instant(each['crossed_at'], shown_zone)}")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the budget.")],
    amount: Annotated[str, typer.Argument(help="What may be spent in one window, such as 100 or 12.50, in the organization's currency.")],
    window: Annotated[WindowOption, typer.Option("--window", help="When the budget begins anew, in the organization's time zone.")],
    project: OfProject = None,
    api_key: OfKey = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Count requests for this model, or for a group of models (group:NAME), alone.",
            autocompletion=complete_models,
        ),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option("--tag", metavar="NAME=TEXT", help="Count requests that carry this in `metadata` alone, such as team=research."),
    ] = None,
    fallback_model: Annotated[
        str | None,
        typer.Option(
            "--fallback-model", metavar="MODEL", help="Serve what the budget would refuse by this model.", autocompletion=complete_models
        ),
    ] = None,
    end_user: Annotated[
        str | None,
        typer.Option(
            "--end-user", metavar="NAME", help="Count requests of this end user alone; '*' gives each end user the budget by itself."
        ),
    ] = None,
    throttle: Annotated[
        int | None,
        typer.Option("--throttle", metavar="COUNT", help="Requests per minute that each gateway lets pass once a soft budget is spent."),
    ] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="A hard budget is never overspent; alert only raises alerts.")] = Mode.HARD,
    threshold: Thresholds = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a budget of the organization, of a project, of a key or of their end users. It counts requests from now on."""
    if api_key is not None and project is None:
        raise OperatorError("--api-key needs --project, the key's project", exit_code=2)
    body: dict[str, Any] = {"name": name, "amount": amount, "window": window, "mode": mode, "thresholds": sorted(threshold or [])}
    counted = {"model": model, "tag": tag, "end_user": end_user}
    when_spent = {"fallback_model": fallback_model, "throttle_requests_per_minute": throttle}
    body |= {field: value for field, value in (counted | when_spent).items() if value is not None}
    with connect_tenant(control_url, key, data_dir, organization) as control:
        if project is not None:
            body["project_id"] = control.get_project(project)["id"]
        if api_key is not None:
            body["api_key_id"] = control.get_key_id(body["project_id"], api_key)
        made = control.post("/organization/budgets", body)
    _print_changed(made, output, f"created {made['id']}")


@app.command()
def update(
    budget: BudgetName,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    amount: Annotated[str | None, typer.Option("--amount", help="Another amount.")] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="Another strength: hard or soft.")] = None,
    threshold: Thresholds = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change a budget. What is not named stays as it is."""
    named = {"name": name, "amount": amount, "mode": mode, "thresholds": None if threshold is None else sorted(threshold)}
    body = {field: value for field, value in named.items() if value is not None}
    if not body:
        raise OperatorError("name what to change: --name, --amount, --mode or --threshold", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        budget_id = _get_id(control, budget)
        changed = control.post(f"/organization/budgets/{budget_id}", body)
    _print_changed(changed, output, f"changed {budget_id}")


@app.command("raise")
def raise_budget(
    budget: BudgetName,
    amount: Annotated[str, typer.Argument(help="By how much the limit is higher meanwhile.")],
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="When the raise ends, such as 2026-12-31 or 2026-12-31T12:00.")],
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Raise a budget until an instant."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        shown_zone = control.get_zone(zone)
        body = {"amount": amount, "ends_at": read_instant(until, shown_zone, time.time(), option="--until")}
        budget_id = _get_id(control, budget)
        made = control.post(f"/organization/budgets/{budget_id}/raises", body)
    if output is Output.JSON:
        print_json(made)
    else:
        print(f"raised {budget_id} by {made['amount']} until {show_instant(made['ends_at'], shown_zone)}")


@app.command()
def archive(
    budget: BudgetName,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Archive a budget: it binds no request any more."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        budget_id = _get_id(control, budget)
        gone = control.delete(f"/organization/budgets/{budget_id}")
    _print_changed(gone, output, f"archived {budget_id}")


def _get_id(control: Control, name_or_id: str) -> str:
    """Return the id of the budget of this name or id. Raises OperatorError if there is none or several of the name."""
    return choose_id(ids.BUDGET, name_or_id, control.list_all("/organization/budgets"), "budget", "see `tollway budgets list`")


def _print_changed(answer: dict[str, Any], output: Output, text: str) -> None:
    """Print that a budget was changed, and the gateways that have not heard of it."""
    if output is Output.JSON:
        print_json(answer)
        return
    print(text)
    for node in answer["pending_nodes"]:
        print(f"not yet confirmed by {node}")
