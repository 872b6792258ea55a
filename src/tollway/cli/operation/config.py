"""`tollway config`: the settings that a process would have, and what is wrong with them."""

import os
from typing import Annotated, Any

import typer

from tollway.cli.operation.control import find_control_problems
from tollway.cli.operation.gateway import find_gateway_problems
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.processes import Config, find_telemetry
from tollway.settings import NAMES, LoadedSettings, OperatorError, get_setting, load_with_sources, mask_password
from tollway.variables import OTHER_VARIABLES

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SECRET = "(set)"
"""Shown in place of a secret."""

OPEN_VARIABLES = {"TOLLWAY_CONTROL_URL", "TOLLWAY_NODE_ID"}
"""Variables beside the settings that hold no secret."""


@app.command()
def check(config: Config = None, output: OutputOption = Output.TABLE) -> None:
    """Check the file and the environment without starting anything. Exit code 2 if a process could not start with them."""
    loaded = load_with_sources({}, os.environ, config)
    problems = find_problems(loaded)
    if output is Output.JSON:
        print_json({"valid": not problems, "problems": [{"message": each.message, "remedy": each.hint} for each in problems]})
    else:
        for each in problems:
            print(each.message + (f"\n  hint: {each.hint}" if each.hint else ""))
        if not problems:
            print(f"valid: {len(loaded.sources)} settings differ from their defaults")
    raise typer.Exit(2 if problems else 0)


@app.command("print")
def print_settings(
    config: Config = None,
    effective: Annotated[bool, typer.Option("--effective", help="Show every setting, those at their defaults too.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the settings that are set, with the source of each; passwords and secrets are masked.

    Options of a command, such as --listen of `tollway serve`, come on top of them.
    """
    loaded = load_with_sources({}, os.environ, config)
    if loaded.problems:
        raise loaded.problems[0]
    rows: list[dict[str, Any]] = []
    for name in NAMES:
        source = loaded.sources.get(name)
        if effective or source is not None:
            rows.append({"name": name, "value": _mask(get_setting(loaded.settings, name)), "source": source or "default"})
    for name in OTHER_VARIABLES:
        if text := os.environ.get(name):
            rows.append({"name": name, "value": mask_password(text) if name in OPEN_VARIABLES else SECRET, "source": "the environment"})
    if output is Output.TABLE:
        rows = [{**row, "value": _to_text(row["value"])} for row in rows]
    print_rows(output, ["name", "source", "value"], rows, none="everything is at its default: --effective shows it")


def find_problems(loaded: LoadedSettings) -> list[OperatorError]:
    """Return what would keep a gateway or a control process from starting with these settings."""
    problems = list(loaded.problems)
    problems += find_gateway_problems(loaded.settings.gateway)
    problems += find_control_problems(loaded.settings.control)
    try:
        find_telemetry(loaded.settings.telemetry)
    except OperatorError as error:
        problems.append(error)
    return problems


def _to_text(value: Any) -> str | None:
    """Return a setting as it is written in YAML or a variable; None for what has no value."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _mask(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(mask_password, value))
    return mask_password(value) if isinstance(value, str) else value
