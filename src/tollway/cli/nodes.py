"""`tollway nodes`: gateways, what has arrived of each, and what never will; for operators."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, check_id, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.periods import instant
from tollway.cli.times import show_instant
from tollway.domain import ids

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_nodes(
    lost: Annotated[bool, typer.Option("--lost", help="Only lives that were declared lost.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """The lives (epochs) of all gateways, the latest heard of first, and how far the records of each have arrived."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/epochs", only_lost="true" if lost else None)["data"]
    if output is Output.TABLE:
        for row in rows:
            row["known_until"] = None if row["ticked_at"] is None else instant(row["closed_at"] or row["ticked_at"])
            row["heard_of"] = instant(row["seen_at"])
            row["after_lost"] = row["lost"] and row["lost"]["records_after"]
            row["reason"] = row["lost"] and row["lost"]["reason"]
    columns = ["node_id", "epoch", "state", "next_seq", "known_until", "heard_of", "after_lost", "reason"]
    print_rows(output, columns, rows, none="no gateway has sent anything yet")


@app.command()
def versions(
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the snapshot version that each gateway has confirmed, and how far it is behind."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/nodes")["data"]
    if output is Output.TABLE:
        rows = [{**row, "seen": show_instant(row["seen_at"])} for row in rows]
    print_rows(output, ["id", "acked_version", "behind", "seen"], rows, none="no gateway has connected yet")


@app.command()
def lost(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The gateway's id.")],
    reason: Annotated[str, typer.Option(help="What happened; it stands in the report of each period that this covers.")],
    epoch: Annotated[int | None, typer.Option(help="One of its lives; else all that are not complete.")] = None,
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
