"""Renders docs/cli.md from the commands as they are declared: `python scripts/cli_page.py`.

The text of a command and of its options is that of its help; a test holds the page in step.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, EnumType
from pathlib import Path

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from tollway.cli.app import COMMANDS

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

OPENING = """# Commands

Made by `make docs` from `src/tollway/cli`; change it there. `tollway COMMAND -h` shows the same.

Commands that administer a running installation find the control plane and a key in the data directory of the demo or of `tollway serve`,
in `TOLLWAY_CONTROL_URL` and `TOLLWAY_KEY`, or in `--control-url` and `--key` (`-` reads it from standard input). Tenants' commands take an
admin key, or a platform key with `--organization`.

- Results go to standard output, everything else to standard error. `-o json` prints what the API answers, with times in Unix seconds.
- Exit codes: 0 done, 1 failed, 2 wrong use or a wrong file, 3 changes pending (`apply --dry-run`) or warnings only (`doctor`). An error is
  one line, and a hint that says what to do.
- Times are shown in the zone of their organization or billing period, else in UTC, with the offset. `--since`, `--until` (exclusive) and
  `--valid-from` read `2026-11-01`, `2026-11`, `2026`, `2026-11-01T12:00`, `yesterday`, `today`, `tomorrow`, `now`, `7d`, `12h` or `30m`
  ago, and Unix seconds; without an offset they are in that zone, or in the one of `--zone`.
- `tollway --install-completion` teaches the shell to complete commands, options, choices, and names that the control plane knows.
"""

SHARED = {"--control-url", "--key", "--data-dir", "--organization", "--output", "--zone"}
"""Options that the opening explains; they are listed by name alone."""


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


def render() -> str:
    """Return the page."""
    parts = [OPENING]
    group = ""
    for name, command in list_commands():
        first = name.partition(" ")[0]
        if first != group:
            parts.append(f"## {first}\n" if name == first else f"## {first}\n\n{COMMANDS[first][1]}\n")
            group = first
        parts.append(_section(name, command))
    return "\n".join(parts)


def _section(name: str, command: TyperCommand) -> str:
    arguments = [each for each in command.params if isinstance(each, TyperArgument)]
    options = [
        each for each in command.params if isinstance(each, TyperOption) and each.name not in {"install_completion", "show_completion"}
    ]
    usage = " ".join(["tollway", name, *map(_name_argument, arguments), *(["[OPTIONS]"] if options else [])])
    paragraphs = [" ".join(each.split()) for each in inspect.cleandoc(command.help or "").split("\n\n")]
    paragraphs[0] = f"**`{usage}`**: {paragraphs[0]}"
    lines = [line for paragraph in paragraphs for line in (paragraph, "")]
    lines += [f"- `{_name_argument(each)}`: {each.help or ''}".rstrip() for each in arguments]
    lines += [_entry(each) for each in options if max(each.opts, key=len) not in SHARED]
    shared = [f"`{max(each.opts, key=len)}`" for each in options if max(each.opts, key=len) in SHARED]
    if shared:
        lines.append(f"- {', '.join(shared)}")
    return "\n".join(lines) + "\n"


def _name_argument(argument: TyperArgument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _entry(option: TyperOption) -> str:
    names = ", ".join(f"`{each}`" for each in sorted([*option.opts, *option.secondary_opts], key=len))
    default = _default(option)
    return f"- {names}{_value(option)}: {' '.join((option.help or '').split())}{default}"


def _value(option: TyperOption) -> str:
    if option.is_flag:
        return ""
    choices = _choices(option)
    return f" `{'|'.join(choices)}`" if choices else f" {option.metavar}" if option.metavar else ""


def _choices(option: TyperOption) -> Sequence[str]:
    """Return the values of an option that is a choice."""
    annotation = option.type_descriptor.annotation
    if not isinstance(annotation, EnumType):
        return []
    members: Mapping[str, Enum] = annotation.__members__
    return [str(member.value) for member in members.values()]


def _default(option: TyperOption) -> str:
    if option.required:
        return " Required."
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    if shown is None or shown is False or shown is True or callable(shown) or not str(shown):
        return ""
    return f" Default: {getattr(shown, 'value', shown)}."


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"==> {PAGE}")
