"""`tollway erasures`: erase the personal data of a person, or everything about an organization."""

from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, check_id, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

WHERE = "see `tollway erasures list`"
COLUMNS = ["id", "organization_id", "user_id", "state", "reason", "actor", "approver", "requested", "finished"]
ErasureId = Annotated[str, typer.Argument(metavar="ERASURE_ID", help="Id, as `tollway erasures list` shows it.")]


@app.command()
def request(
    organization: Annotated[
        str, typer.Argument(metavar="ORGANIZATION_ID", help="The organization, archived before unless --user is given.")
    ],
    confirm: Annotated[
        str, typer.Option("--confirm", metavar="TEXT", help="Name of the organization, or with --user the id of the person again.")
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the second person.")],
    user: Annotated[str | None, typer.Option("--user", metavar="USER_ID", help="Erase this person alone, who was removed.")] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Ask for an erasure. A second person approves it; it cannot be undone then."""
    check_id(ids.ORGANIZATION, organization, "organization", "see `tollway organizations list`")
    body: dict[str, Any] = {"organization_id": organization, "user_id": user, "confirm": confirm, "reason": reason}
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/erasures", body)
    print_json(made) if output is Output.JSON else print(f"{made['id']} waits for a second person: tollway erasures approve {made['id']}")


@app.command("list")
def list_erasures(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the erasures, with what became of them."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/erasures"))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), requested="requested_at", finished="finished_at")
    print_rows(output, COLUMNS, rows, none="nobody asked for an erasure")


@app.command()
def show(
    erasure: ErasureId,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show one erasure."""
    check_id(ids.ERASURE, erasure, "erasure", WHERE)
    with connect(control_url, key, data_dir) as control:
        rows = [control.get(f"/platform/erasures/{erasure}")]
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), requested="requested_at", finished="finished_at")
    print_rows(output, COLUMNS, rows)


@app.command()
def approve(
    erasure: ErasureId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Approve an erasure, with a key of another origin than that which asked. This cannot be undone."""
    check_id(ids.ERASURE, erasure, "erasure", WHERE)
    with connect(control_url, key, data_dir) as control:
        decided = control.post(f"/platform/erasures/{erasure}/approve")
    print_json(decided) if output is Output.JSON else print(f"approved {erasure}: it is carried out within minutes")


@app.command()
def reject(
    erasure: ErasureId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Reject an erasure that waits."""
    check_id(ids.ERASURE, erasure, "erasure", WHERE)
    with connect(control_url, key, data_dir) as control:
        decided = control.post(f"/platform/erasures/{erasure}/reject")
    print_json(decided) if output is Output.JSON else print(f"rejected {erasure}")
