"""`tollway organizations`: billing accounts, for operators."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_organizations(
    output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """All organizations that are not archived."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/organizations"))
    print_rows(output, ["id", "name", "currency", "status"], rows, none="no organizations yet")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name.")],
    currency: Annotated[str, typer.Option(help="ISO 4217, fixed for ever.")] = "EUR",
    time_zone: Annotated[str, typer.Option(help="Whose months are its billing periods (IANA name).")] = "UTC",
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create an organization. Prints its first admin key, this once."""
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/organizations", {"name": name, "currency": currency, "time_zone": time_zone})
    if output is Output.JSON:
        print_json(made)
    else:
        print(f"id         {made['id']}\nadmin key  {made['admin_api_key']['value']}   (shown this once)")
