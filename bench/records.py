"""Records of a run: JSON lines, one `Run`, then a `Subject` for each target and a `Sample` per measurement.

Samples hold plain numbers under names that carry their unit, so that a new figure needs no new schema and an old file
stays readable. A comparison is only ever made between samples of one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

COMPILED = "tollway compiled"
"""Target: the gateway with its hot modules compiled, beside `tollway`, which is plain Python."""


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run", tag_field="type"):
    """The circumstances of all that follows it in the file."""

    started_at: str  # RFC 3339, UTC
    command: str
    rounds: int
    machine: dict[str, str]


class Subject(msgspec.Struct, frozen=True, kw_only=True, tag="subject", tag_field="type"):
    """A target as it was started."""

    name: str
    version: str
    command: str


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag="sample", tag_field="type"):
    """One measurement of one target under one scenario; `round` pairs it with the others of the same minute."""

    figure: str
    scenario: str
    target: str
    round: int
    values: dict[str, float]


Record = Run | Subject | Sample
_decoder = msgspec.json.Decoder(Record)


@dataclass(frozen=True, slots=True)
class Results:
    """One run, in order of time."""

    run: Run
    subjects: list[Subject]
    samples: list[Sample]


def collect(records: list[Record]) -> Results:
    """Sorts a run's records by kind. Raises `ValueError` unless they are one `Run` followed by the rest."""
    if not records or not isinstance(records[0], Run) or any(isinstance(record, Run) for record in records[1:]):
        raise ValueError("not one run followed by its samples")
    subjects = {record.name: record for record in records if isinstance(record, Subject)}
    return Results(records[0], list(subjects.values()), [record for record in records if isinstance(record, Sample)])


def read(path: Path) -> Results:
    """The run in a file. Raises `ValueError` (msgspec's errors are ones) when it is not such a file."""
    return collect([_decoder.decode(line) for line in path.read_bytes().splitlines()])


def append(path: Path, record: Record) -> None:
    """Adds one line. Written at once, so that an interrupted run keeps what it measured."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")
