"""The commands as typer built them, by their full names."""

import importlib
from collections.abc import Iterator

import typer
from typer.core import TyperCommand

from tollway.cli.app import COMMANDS


def list_commands() -> Iterator[tuple[str, TyperCommand]]:
    """Yield every command that can be run, with its name as it is typed after `tollway`."""
    for name, (place, _) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        found = getattr(importlib.import_module(f"tollway.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer()
            alone.command(name)(found)
            found = alone
        command = typer.main.get_command(found)
        below = getattr(command, "commands", None)
        for full, each in [(name, command)] if below is None else [(f"{name} {sub}", each) for sub, each in below.items()]:
            assert isinstance(each, TyperCommand)
            yield full, each
