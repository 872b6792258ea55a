"""`tollway encryption`: the keys that wrap the data keys of organizations."""

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, connect
from tollway.cli.output import Output, OutputOption, ProgressPrinter, print_json, print_rows

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = ["name", "organizations", "is_current", "is_known"]


@app.command("list")
def list_wrapping_keys(
    output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """List the keys that have wrapped data keys, the current one first."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/data_keys")["data"]
    print_rows(output, COLUMNS, rows)


@app.command()
def rewrap(output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None) -> None:
    """Wrap every data key under the current key and its newest version. Afterwards no other key is needed. It is safe to repeat."""
    progress, count, after = ProgressPrinter(), 0, None
    with connect(control_url, key, data_dir) as control:
        while True:
            step = control.post("/platform/data_keys/rewrap", {"after": after})
            count, after = count + step["rewrapped"], step["last_id"]
            if after is None:
                break
            progress.step(f"{count} data keys")
    print_json({"rewrapped": count}) if output is Output.JSON else print(f"wrapped {count} data keys anew")
