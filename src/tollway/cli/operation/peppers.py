"""`tollway peppers`: the rotation of the pepper, without an outage."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, Key, connect
from tollway.cli.client import DataDir as InstallationDir
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.serve import data_directory
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Version, as `tollway peppers list` shows it.")]
COLUMNS = ["version", "is_known", "is_current", "keys", "join_tokens", "invites"]


@app.command("list")
def list_peppers(
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: InstallationDir = None,
) -> None:
    """List the peppers that control knows or that a live key needs, and how many keys need each."""
    with connect(control_url, key, data_dir) as control:
        rows = control.get("/platform/peppers")["data"]
    print_rows(output, COLUMNS, rows)


@app.command()
def add(data_dir: InstallationDir = None) -> None:
    """Add a fresh pepper to secrets.json. New keys stay under the one before until `tollway peppers use`.

    Restart gateways and control afterwards, so that every process knows it.
    """
    version = data_directory.add_pepper(_find_directory(data_dir))
    print(f"added pepper {version}: restart gateways and control, then `tollway peppers use {version}`")


@app.command()
def use(version: Version, data_dir: InstallationDir = None) -> None:
    """Digest new keys under this pepper from the next start of control on. Every gateway must know it."""
    data_directory.use_pepper(_find_directory(data_dir), version)
    print(f"new keys will be under pepper {version} once control is restarted")


@app.command()
def retire(
    version: Version,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: InstallationDir = None,
) -> None:
    """Remove a pepper from secrets.json, if no live key needs it any more. Restart gateways and control afterwards."""
    with connect(control_url, key, data_dir) as control:
        found = [each for each in control.get("/platform/peppers")["data"] if each["version"] == version]
    for state in found:
        if state["is_current"]:
            raise OperatorError(f"pepper {version} is the one of new keys", hint="`tollway peppers use` another one, and restart control")
        if state["keys"] or state["join_tokens"] or state["invites"]:
            raise OperatorError(
                f"{state['keys']} keys, {state['join_tokens']} join tokens and {state['invites']} invitations still need pepper {version}",
                hint="rotate or revoke the keys: `tollway peppers list -o json` names the first hundred",
            )
    data_directory.remove_pepper(_find_directory(data_dir), version)
    if output is Output.JSON:
        print_json({"version": version, "removed": True})
    else:
        print(f"removed pepper {version}: restart gateways and control")


def _find_directory(data_dir: Path | None) -> Path:
    return data_dir or Path(os.environ.get("TOLLWAY__DATA_DIR", "tollway-data"))
