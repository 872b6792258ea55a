"""The style of options, over every command: one name has one meaning, and what belongs together comes together."""

import re
from collections import defaultdict
from collections.abc import Iterator

import pytest
from typer.core import TyperCommand, TyperOption

from scripts.cli_page import PAGE, list_commands, render
from tollway.settings import SHORT_NAMES
from tollway.variables import OTHER_VARIABLES

COMMANDS = dict(list_commands())

DOCUMENTS = {
    *("invoices download", "invoices focus", "invoices books", "audit export", "organizations export"),
    *("periods export", "periods proof", "export", "spool export"),
}
"""Commands whose output is a document with a format of its own; `--file` says where it goes."""

SHORT = {"--output": "-o", "--file": "-f", "--verbose": "-v"}

OWN_MEANING = {
    # The simulator takes the options of the engines that it stands for.
    "simulate": {"--api-key", "--listen", "--output-tokens-max", "--drain-seconds", "--model", "--fd", "--seed"},
    "demo": {"--engine"},  # what serves the demo; elsewhere the kind of an upstream
    "control": {"--listen"},
}
"""Options whose value is of another kind than that of the same name elsewhere, by command."""


def options(command: TyperCommand) -> Iterator[TyperOption]:
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and parameter.name not in {"install_completion", "show_completion", "help"}:
            yield parameter


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command_follow_the_style(name: str) -> None:
    given = {max(option.opts, key=len): option for option in options(COMMANDS[name])}
    for long, option in given.items():
        assert re.fullmatch(r"--[a-z][a-z0-9]*(-[a-z0-9]+)*", long), long
        assert option.help and option.help[0].isupper() and option.help.endswith((".", "]")), f"{long}: {option.help}"
        assert {*option.opts} == ({long, SHORT[long]} if long in SHORT else {long}), option.opts
    if "--key" in given:
        assert {"--control-url", "--data-dir"} <= given.keys()
        assert ("--output" in given) == (name not in DOCUMENTS), "-o is what says how to print"
    assert "--since" not in given or {"--until", "--zone"} <= given.keys()
    assert "--valid-from" not in given or "--zone" in given
    assert not {"--json", "--from", "--to", "--start", "--end"} & given.keys(), "use -o, --since, --until"
    assert "--format" not in given or name in DOCUMENTS, "use -o"
    assert ("--file" in given) or name not in DOCUMENTS


def test_options_of_one_name_take_the_same_value() -> None:
    found: dict[str, dict[tuple[object, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, command in COMMANDS.items():
        for option in options(command):
            if max(option.opts, key=len) not in OWN_MEANING.get(name, ()):
                found[max(option.opts, key=len)][option.metavar, option.is_flag].append(name)
    mixed = {long: dict(kinds) for long, kinds in found.items() if len(kinds) > 1}
    assert not mixed


def test_variables_that_help_names_exist() -> None:
    known = {*OTHER_VARIABLES, *SHORT_NAMES}
    for name, command in COMMANDS.items():
        for option in options(command):
            assert {*re.findall(r"TOLLWAY_\w+", option.help or "")} <= known, (name, option.opts)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_begins_with_a_verb(name: str) -> None:
    """The first line is shown in lists: it says what the command does."""
    text = COMMANDS[name].help or ""
    assert re.match(r"[A-Z][a-z]+e?\b[^.]*\.", text), text
    assert text.split()[0] not in {"The", "A", "All", "Its", "What", "Which", "By", "Billing", "Prices"}, text


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    assert PAGE.read_text() == render(), "run `make docs`"
