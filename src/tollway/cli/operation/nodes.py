"""`tollway nodes`: gateways, the keys with which they connect, and what has arrived of each; for operators."""

from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, check_id, choose_id, connect
from tollway.cli.identity.rotation import GraceSeconds
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids
from tollway.domain.epochs import LostRequestState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Name or id of the gateway, as `tollway nodes list` shows it.")]

REPORTED = ("version", "connections", "running", "waiting", "loop_lag_ms", "records_unshipped")
"""Columns of what a gateway reports of itself; empty for one that has not."""


@app.command("epochs")
def list_epochs(
    lost: Annotated[bool, typer.Option("--lost", help="Show only runs that were declared lost.")] = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the epochs (runs) of all gateways, those heard of last first, and how far the records of each have arrived."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/epochs", only_lost="true" if lost else None)["data"]
        if output is Output.TABLE:
            for row in rows:
                row["last_sign_at"] = row["closed_at"] or row["ticked_at"]
                row["after_lost"] = row["lost"] and row["lost"]["records_after"]
                row["reason"] = row["refused_because"] or (row["lost"] and row["lost"]["reason"])
            rows = with_times(rows, control.get_zone(zone), known_until="last_sign_at", seen="seen_at")
    columns = ["node_id", "epoch", "state", "next_seq", "known_until", "seen", "after_lost", "reason"]
    print_rows(output, columns, rows, none="no gateway has sent anything yet")


@app.command("accept-epoch")
def accept_epoch(
    node: NodeName,
    epoch: Annotated[int, typer.Argument(metavar="EPOCH", help="Number of the epoch, as `tollway nodes epochs` shows it.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stays on record beside your key.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Accept an epoch (run) of a gateway that was refused because its clock was wrong. Its records arrive within a minute or two."""
    with connect(control_url, key, data_dir) as control:
        node_id = control.get_node_id(node)
        accepted = control.post(f"/platform/nodes/{node_id}/epochs/{epoch}/accept", {"reason": reason})
    print_json(accepted) if output is Output.JSON else print(f"{accepted['id']}  {accepted['state']}")


@app.command("list")
def list_nodes(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the gateways: who may connect, the snapshot version that each has confirmed, how far it is behind, and what it last reported of
    itself."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/nodes")["data"]
        if output is Output.TABLE:
            for row in rows:
                reported = row["status"] or {}
                row |= {name: reported.get(name) for name in REPORTED}
            rows = with_times(rows, control.get_zone(zone), seen="seen_at")
    columns = ["id", "name", "state", "acked_version", "behind", "seen", *REPORTED]
    print_rows(output, columns, rows, none="no gateway is registered yet: see `tollway nodes create`")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the gateway, for people.")],
    node_id: Annotated[
        str | None, typer.Option("--id", metavar="NODE", help="Id that the gateway has already, if the database was restored.")
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Register a gateway and print its id and its key, which is shown only now, as an environment file."""
    if node_id is not None:
        check_id(ids.NODE, node_id, "gateway", "see `tollway spool inspect`")
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/nodes", {"name": name, "id": node_id})
    print_json(made) if output is Output.JSON else _print_node(made["id"], made["key"]["value"])


@app.command()
def rotate(
    node: NodeName,
    grace_seconds: GraceSeconds = 3600,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a new key of a gateway and print it. A revoked gateway may connect again with it."""
    with connect(control_url, key, data_dir) as control:
        node_id = control.get_node_id(node)
        made = control.post(f"/platform/nodes/{node_id}/rotate", {"grace_seconds": grace_seconds})
    print_json(made) if output is Output.JSON else _print_node(node_id, made["value"])


@app.command()
def revoke(
    node: NodeName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a gateway: its keys are refused, and nothing waits for it. Stop it as well: it serves from its copy of the snapshot."""
    if not yes:
        typer.confirm("Usage that has not arrived from it cannot be billed until it has a new key. Revoke it?", abort=True, err=True)
    with connect(control_url, key, data_dir) as control:
        node_id = control.get_node_id(node)
        gone = control.delete(f"/platform/nodes/{node_id}")
    if output is Output.JSON:
        print_json(gone)
        return
    print(f"revoked {node_id}")
    if gone["unfinished_epochs"]:
        numbers = ", ".join(map(str, gone["unfinished_epochs"]))
        print(f"unfinished epochs, which block the close of their periods: {numbers}; see `tollway nodes lost` and `tollway nodes rotate`")


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Name that the gateway will have.")],
    lifetime_seconds: Annotated[int, typer.Option("--lifetime-seconds", help="Time for which it can be used, at most 86400.")] = 3600,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a token with which one gateway registers itself at its first start, and print it, as an environment file."""
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/node_join_tokens", {"name": name, "lifetime_seconds": lifetime_seconds})
    print_json(made) if output is Output.JSON else print(f"TOLLWAY_JOIN_TOKEN={made['value']}")


@app.command()
def tokens(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the join tokens that can still be used."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/node_join_tokens")["data"]
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), expires="expires_at")
    print_rows(output, ["id", "name", "redacted_value", "expires"], rows, none="no token can be used: see `tollway nodes token`")


@app.command("revoke-token")
def revoke_token(
    name: Annotated[str, typer.Argument(metavar="TOKEN", help="Name or id, as `tollway nodes tokens` shows it.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Make a join token unusable."""
    with connect(control_url, key, data_dir) as control:
        tokens = control.get("/platform/node_join_tokens")["data"]
        token_id = choose_id(ids.JOIN_TOKEN, name, tokens, "join token", "see `tollway nodes tokens`")
        gone = control.delete(f"/platform/node_join_tokens/{token_id}")
    print_json(gone) if output is Output.JSON else print(f"revoked {token_id}")


@app.command()
def lost(
    node: NodeName,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Reason, which stands in the report of each period that this covers.")
    ],
    epoch: Annotated[int | None, typer.Option(help="One of its epochs; all that are not complete if left out.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Ask that the missing records of a gateway are declared lost, because its disk is gone. A second person has to approve it."""
    if not yes:
        typer.confirm("What has not arrived from this gateway will not be billed. Ask to declare it lost?", abort=True, err=True)
    with connect(control_url, key, data_dir) as control:
        node_id = control.get_node_id(node)
        asked = control.post(f"/platform/nodes/{node_id}/lost", {"epoch": epoch, "reason": reason})
    if output is Output.JSON:
        print_json(asked)
        return
    for row in asked["data"]:
        _print_request(row)


@app.command("lost-requests")
def list_lost_requests(
    state: Annotated[LostRequestState | None, typer.Option("--state", help="Only those in this state.")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the requests to declare records lost, oldest first, and who asked and decided."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/lost_requests", state=state))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), asked="requested_at")
    columns = ["id", "asked", "node_id", "epoch", "state", "actor", "approver", "reason"]
    print_rows(output, columns, rows, none="nobody has asked to declare anything lost")


LostRequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id (lost_...).")]


@app.command("approve-lost")
def approve_lost(
    request: LostRequestId, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Approve that records are declared lost, with a key of another origin than that which asked. This cannot be undone."""
    _decide_lost(request, "approve", output, control_url, key, data_dir)


@app.command("reject-lost")
def reject_lost(
    request: LostRequestId, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Reject a request to declare records lost."""
    _decide_lost(request, "reject", output, control_url, key, data_dir)


def _decide_lost(request: str, verb: str, output: Output, control_url: ControlUrl, key: Key, data_dir: DataDir) -> None:
    check_id(ids.LOST_REQUEST, request, "request to declare records lost", "see `tollway nodes lost-requests`")
    with connect(control_url, key, data_dir) as control:
        decided = control.post(f"/platform/lost_requests/{request}/{verb}")
    print_json(decided) if output is Output.JSON else _print_request(decided)


def _print_request(row: dict[str, Any]) -> None:
    waits = f"waits for a second person: tollway nodes approve-lost {row['id']}"
    print(f"{row['id']}  {row['node_id']}/{row['epoch']}  {waits if row['state'] == 'pending' else row['state']}")


def _print_node(node_id: str, secret: str) -> None:
    print(f"TOLLWAY_NODE_ID={node_id}\nTOLLWAY_NODE_KEY={secret}")
