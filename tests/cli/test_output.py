"""Printed output: tables that line up, JSON that a program reads, and no colour where it is not wanted."""

import io
import json

import pytest

from tollway.cli.output import Output, bold, print_rows, print_table


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_columns_line_up_and_numbers_end_flush(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["model", "tokens"], [["a", 5], ["longer", 12345], ["none", None]], right=frozenset({"tokens"}))
    assert capsys.readouterr().out == "MODEL   TOKENS\na            5\nlonger   12345\nnone         -\n"


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(Output.JSON, ["id"], [{"id": "1", "more": True}])
    assert json.loads(capsys.readouterr().out) == [{"id": "1", "more": True}]


def test_no_rows_say_so_on_standard_error_and_are_an_empty_list_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(Output.TABLE, ["id"], [], none="no keys yet")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no keys yet\n")
    print_rows(Output.JSON, ["id"], [], none="no keys yet")
    assert capsys.readouterr().out == "[]\n"


def test_bold_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert bold("x", Terminal()) == "\x1b[1mx\x1b[0m"
    assert bold("x", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert bold("x", Terminal()) == "x"
