"""`tollway nodes`: gateways, what has arrived of each, and what never will; for operators."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, check_id, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_nodes(
    lost: Annotated[bool, typer.Option("--lost", help="Only runs that were declared lost.")] = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the runs (epochs) of all gateways, the latest seen first, and how far the records of each have arrived."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/epochs", only_lost="true" if lost else None)["data"]
        if output is Output.TABLE:
            for row in rows:
                row["last_sign_at"] = row["closed_at"] or row["ticked_at"]
                row["after_lost"] = row["lost"] and row["lost"]["records_after"]
                row["reason"] = row["lost"] and row["lost"]["reason"]
            rows = with_times(rows, control.get_zone(zone), known_until="last_sign_at", seen="seen_at")
    columns = ["node_id", "epoch", "state", "next_seq", "known_until", "seen", "after_lost", "reason"]
    print_rows(output, columns, rows, none="no gateway has sent anything yet")


@app.command()
def versions(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the snapshot version that each gateway has confirmed, and how far it is behind."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/nodes")["data"]
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), seen="seen_at")
    print_rows(output, ["id", "acked_version", "behind", "seen"], rows, none="no gateway has connected yet")


@app.command()
def lost(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The gateway's id.")],
    reason: Annotated[str, typer.Option(help="What happened; it stands in the report of each period that this covers.")],
    epoch: Annotated[int | None, typer.Option(help="One of its runs; else all that are not complete.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Declare that the missing records of a gateway will never come, because its disk is gone. This cannot be undone."""
    check_id(ids.NODE, node, "gateway", "see `tollway nodes list`")
    if not yes:
        typer.confirm("What has not arrived from this gateway will not be billed. Declare it lost?", abort=True, err=True)
    with connect(control_url, key, data_dir) as control:
        declared = control.post(f"/platform/nodes/{node}/lost", {"epoch": epoch, "reason": reason})
    if output is Output.JSON:
        print_json(declared)
    else:
        print(f"declared lost: {', '.join(map(str, declared['epochs']))}")
