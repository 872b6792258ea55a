"""`tollway periods`: billing periods, for operators."""

import sys
import time
from collections.abc import Iterator, Mapping
from datetime import tzinfo
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, complete_organizations, connect
from tollway.cli.money.period_exports import export, find_period, proof, savings
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.tenancy.organizations import with_organizations
from tollway.cli.times import Zone, find_zone, show_day, with_times
from tollway.domain import ids
from tollway.domain.periods import PeriodState
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command()(export)
app.command()(proof)
app.command()(savings)

OrganizationFilter = Annotated[
    str | None,
    typer.Option("--organization", metavar="NAME|ID", help="Only of this organization.", autocompletion=complete_organizations),
]
PeriodName = Annotated[str, typer.Argument(metavar="PERIOD", help="Its month, such as 2026-11, or its id.")]


@app.command("list")
def list_periods(
    organization: OrganizationFilter = None,
    state: Annotated[PeriodState | None, typer.Option("--state", help="Only those in this state.")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the billing periods of all organizations, or of one; `to` is exclusive. Each is shown in its own time zone."""
    with connect(control_url, key, data_dir) as control:
        rows = list(_list(control, organization, state))
        if output is Output.TABLE:
            rows = [
                {**row, "from": show_day(row["start_time"], own), "to": show_day(row["end_time"], own)}
                for row in with_organizations(control, rows, zone)
                for own in [_zone_of(row, zone)]
            ]
    columns = ["id", "organization", "organization_id", "from", "to", "time_zone", "state", "events", "total", "currency"]
    print_rows(output, columns, rows, none="no periods yet: the first event makes one")


@app.command()
def blockers(
    period: PeriodName,
    organization: OrganizationFilter = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List what keeps a period from being closed: gateways whose records have not arrived up to its end."""
    with connect(control_url, key, data_dir) as control:
        period_id = find_period(_list(control, organization, None), period)
        rows = control.get(f"/platform/periods/{period_id}/blockers")["data"]
        if output is Output.TABLE:
            shown = _zone_of(control.get(f"/platform/periods/{period_id}"), zone)
            rows = with_times(rows, shown, known_until="known_until")
    print_rows(output, ["node_id", "epoch", "known_until", "message"], rows, none="nothing keeps it from being closed")


@app.command()
def close(
    period: Annotated[
        str | None, typer.Argument(metavar="[PERIOD]", help="One, by its month, such as 2026-11, or its id; else all that have ended.")
    ] = None,
    organization: OrganizationFilter = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Close a billing period permanently, or all that have ended, oldest first. Refused while records are missing."""
    if organization is not None and period is not None and ids.is_id(ids.PERIOD, period):
        raise OperatorError("a period is of one organization already", hint="leave --organization out", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        if period is not None:
            wanted = [find_period(_list(control, organization, None), period)]
        else:
            ended = [row for row in _list(control, organization, None) if row["state"] != "closed" and row["end_time"] <= time.time()]
            wanted = [row["id"] for row in sorted(ended, key=lambda row: row["start_time"])]
        closed = [_close(control, each) for each in wanted]
    if output is Output.JSON:
        print_json(closed)
        return
    for row in closed:
        lost = sum(1 for epoch in row["report"]["epochs"] if epoch["cover"] == "lost")
        start = show_day(row["start_time"], _zone_of(row))
        print(f"{row['id']}  {row['organization_id']}  {start}  {row['events']} events  {row['total']} {row['currency']}")
        print(f"  hash {row['period_hash']}")
        print(f"  root {row['merkle_root']}" + (f"  ({lost} runs of gateways declared lost)" if lost else ""))
    if not closed:
        print("nothing to close", file=sys.stderr)


def _close(control: Control, period: str) -> Any:
    """Call until it is closed: each call computes a part."""
    while True:
        row = control.post(f"/platform/periods/{period}/close")
        if row["state"] == "closed":
            return row
        print(f"{period}: computing digests ...", file=sys.stderr)


def _list(control: Control, organization: str | None, state: PeriodState | None) -> Iterator[dict[str, Any]]:
    if organization is not None:
        organization = control.get_organization(organization)["id"]
    return control.list_all("/platform/periods", organization_id=organization, state=state)


def _zone_of(period: Mapping[str, Any], zone: str | None = None) -> tzinfo:
    return find_zone(zone or period["time_zone"])
