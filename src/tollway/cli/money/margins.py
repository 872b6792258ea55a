"""`tollway margins`: what deployments cost, and the gross margin, for operators."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.class_options import with_unit_cost_options
from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows, written_whole
from tollway.cli.times import ValidFrom, Zone, read_instant, show_instant
from tollway.domain import ids
from tollway.domain.billing_classes import BillingClass
from tollway.domain.serving_costs import MarginGroup

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

DeploymentId = Annotated[str, typer.Argument(metavar="DEPLOYMENT_ID", help="Id, as `tollway models deployments` shows it.")]


class MarginOutput(StrEnum):
    """Form in which margins are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@app.command()
def report(
    month: Annotated[str, typer.Argument(metavar="MONTH", help="The month, such as 2026-11.")],
    until: Annotated[str | None, typer.Option("--last-month", metavar="MONTH", help="The last month, for several of them.")] = None,
    by: Annotated[
        list[MarginGroup] | None, typer.Option("--by", help="Cut by this field (repeatable); one row a currency without any.")
    ] = None,
    organization: Organization = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only this model.")] = None,
    output: Annotated[
        MarginOutput, typer.Option("-o", "--output", help="How to print the result.", show_default=True)
    ] = MarginOutput.TABLE,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File for `-o csv`.")] = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show the gross margin of closed billing periods: revenue, and what serving it cost."""
    query: dict[str, Any] = {"from_month": month, "until_month": until, "group_by": by or None, "model": model}
    with connect(control_url, key, data_dir) as control:
        names = control.list_organizations() if organization is not None or output is MarginOutput.TABLE else {}
        if organization is not None:
            query["organization_id"] = control.get_organization(organization)["id"]
        if output is MarginOutput.CSV:
            with written_whole(file) as writer:
                control.download("/platform/margins", writer, accept="text/csv", **query)
            return
        found = control.get("/platform/margins", **query)
    if output is MarginOutput.JSON:
        print_json(found)
        return
    rows = [
        {
            **row,
            "organization": names.get(row["organization_id"], {}).get("name") or row["organization_id"] or "(nobody)",
            "model": row["model"] or "(whole period)",
            "percent": None if row["margin_bp"] is None else f"{row['margin_bp'] / 100:.2f}",
        }
        for row in found["data"]
    ]
    shown = [str(each) for each in by or ()]
    columns = [*(name for name in ("month", "organization", "model") if name in shown), "currency"]
    columns += ["revenue", "unit_cost", "time_cost", "margin", "percent"]
    print_rows(Output.TABLE, columns, rows, none="no closed period has costs: see `tollway margins set-cost`")
    if found["open_periods"]:
        print(f"{found['open_periods']} billing periods of these months are not closed: they are missing")


@app.command("set-cost")
@with_unit_cost_options
def set_cost(
    deployment_id: DeploymentId,
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="ISO 4217 code of the currency in which it is paid.")],
    costs: dict[BillingClass, str | None],
    per_hour: Annotated[str, typer.Option("--per-hour", help="Cost of each hour, used or not, a decimal.")] = "0",
    valid_from: ValidFrom = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """State what a deployment costs from an instant on: per hour, per unit that its engine counts, or both."""
    check_id(ids.DEPLOYMENT, deployment_id, "deployment", "see `tollway models deployments`")
    stated = {str(billing_class): text for billing_class, text in costs.items() if text is not None}
    body: dict[str, Any] = {"currency": currency, "per_hour": per_hour, "unit_costs": None}
    if stated:
        body["unit_costs"] = {"input": "0", "output": "0", **stated}
    with connect(control_url, key, data_dir) as control:
        if valid_from is not None:
            body["valid_from"] = read_instant(valid_from, control.get_zone(zone), time.time(), option="--valid-from")
        made = control.post(f"/platform/deployments/{deployment_id}/costs", body)
    print_json(made) if output is Output.JSON else print(f"{deployment_id} has a new cost in {made['currency']}")


@app.command("costs")
def list_costs(
    deployment_id: DeploymentId,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List what a deployment costs and has cost, in the order in which it was stated."""
    check_id(ids.DEPLOYMENT, deployment_id, "deployment", "see `tollway models deployments`")
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all(f"/platform/deployments/{deployment_id}/costs"))
        shown_zone = control.get_zone(zone)
    if output is Output.TABLE:
        rows = [{**row, **row["unit_costs"], "from": show_instant(row["valid_from"], shown_zone)} for row in rows]
    columns = ["from", "currency", "per_hour", "input", "cached_input", "output"]
    print_rows(output, columns, rows, none="no cost: see `tollway margins set-cost`")
