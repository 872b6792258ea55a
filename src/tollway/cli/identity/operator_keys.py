"""`tollway operator-keys`: keys of operators."""

from typing import Annotated

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, choose_id, connect
from tollway.cli.output import Output, OutputOption, print_json, print_new_key, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

KeyName = Annotated[str, typer.Argument(metavar="NAME|ID", help="Name or id, as `tollway operator-keys list` shows it.")]


@app.command("list")
def list_keys(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the keys, without their secrets."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/keys"))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), created="created_at")
    columns = ["id", "name", "role", "origin", "redacted_value", "created"]
    print_rows(output, columns, rows, none="no keys yet: see `tollway operator-keys create`")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Person or program that the key is for.")],
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="Role of the key: operator, or auditor, which only reads.")
    ] = "operator",
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print its secret, which is shown only now."""
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/keys", {"name": name, "role": role})
    print_new_key(output, made, made["value"])


@app.command()
def revoke(
    name: KeyName,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key permanently."""
    with connect(control_url, key, data_dir) as control:
        key_id = _get_id(control, name)
        gone = control.delete(f"/platform/keys/{key_id}")
    print_json(gone) if output is Output.JSON else print(f"revoked {key_id}")


def _get_id(control: Control, name_or_id: str) -> str:
    """Return the id of the key of this name or id. Raises OperatorError if there is none or several of the name."""
    return choose_id(ids.KEY, name_or_id, control.list_all("/platform/keys"), "key", "see `tollway operator-keys list`")
