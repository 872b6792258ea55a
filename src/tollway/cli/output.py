"""Output for a person: tables that pipe well, JSON for programs, progress that disappears when nobody watches."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import tzinfo
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any, TextIO

import typer

from tollway.cli.times import show_instant
from tollway.settings import OperatorError


class Output(StrEnum):
    """Form in which results are printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to print the result.", show_default=True)]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: frozenset[str] = frozenset()) -> None:
    """Columns under headings, two spaces apart; those in `right` end flush. None is shown as "-"."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[at]) for row in cells)) if cells else len(name) for at, name in enumerate(columns)]

    def line(row: Sequence[str]) -> str:
        padded = (text.rjust(width) if name in right else text.ljust(width) for name, text, width in zip(columns, row, widths, strict=True))
        return "  ".join(padded).rstrip()

    print(bold(line([name.upper() for name in columns]), sys.stdout))
    for row in cells:
        print(line(row))


def print_rows(output: Output, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, none: str = "") -> None:
    """Rows as a table of `columns` (`none` is said on standard error if there are no rows) or as JSON with all their
    fields."""
    if output is Output.JSON:
        print_json(list(rows))
    elif rows:
        numbers = frozenset(name for name in columns if any(isinstance(row.get(name), int) for row in rows))
        print_table(columns, [[row.get(name) for name in columns] for row in rows], right=numbers)
    elif none:
        print(none, file=sys.stderr)


def print_fields(output: Output, row: Mapping[str, Any]) -> None:
    """Print one resource: a line for each field, with lists and mappings as JSON, or the whole as JSON."""
    if output is Output.JSON:
        print_json(row)
        return
    width = max(map(len, row), default=0)
    for name, value in row.items():
        text = "-" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, bool)) else str(value)
        print(f"{name.ljust(width)}  {text}")


def is_pretty(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that may be written to in colour: NO_COLOR (no-color.org) is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def bold(text: str, stream: TextIO) -> str:
    """`text` in bold, if `stream` is a terminal and NO_COLOR is not set."""
    return f"\x1b[1m{text}\x1b[0m" if is_pretty(stream) else text


class ProgressPrinter:
    """Steps with the seconds since the start, on standard error; nothing unless it is a terminal or `always`."""

    def __init__(self, *, always: bool = False) -> None:
        self._started_at = time.monotonic()
        self._shown = always or sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Say what is being done, or was."""
        if self._shown:
            print(f"[{time.monotonic() - self._started_at:5.1f} s] {text}", file=sys.stderr, flush=True)


def print_new_key(output: Output, made: dict[str, Any], secret: str) -> None:
    """Print what was created, with the secret of its key, which is never shown again."""
    print_json(made) if output is Output.JSON else print(f"id   {made['id']}\nkey  {secret}   (shown only now)")


def report_effect(published: Mapping[str, Any], zone: tzinfo) -> None:
    """Print on standard error from when on a publication holds on every gateway, or the gateways that have not confirmed it."""
    if published["pending_nodes"]:
        print(f"not confirmed yet by: {', '.join(published['pending_nodes'])}", file=sys.stderr)
        print(f"holds on every gateway by {show_instant(published['holds_by'], zone)} at the latest", file=sys.stderr)
    else:
        print(f"holds on every gateway from {show_instant(published['holds_from'], zone)}", file=sys.stderr)


@contextmanager
def written_whole(file: Path | None) -> Iterator[IO[bytes]]:
    """Open `file` to be written, or standard output (None). The file appears when the block ends, and stays there if the machine loses
    power then; a block that fails leaves none, and an older one as it was. Raises OperatorError if it cannot be written."""
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    draft = file.with_name(f"{file.name}.draft")
    try:
        with draft.open("wb") as writer:
            yield writer
            writer.flush()
            os.fsync(writer.fileno())
        draft.replace(file)
        _keep_name(file)
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def _keep_name(file: Path) -> None:
    """Write the directory of a file to disk, which has its name."""
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
