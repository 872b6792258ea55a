"""`tollway spool`: a gateway's usage records on disk, read without touching them; also while it runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, tzinfo
from pathlib import Path
from typing import IO, Annotated, Any

import httpx2
import msgspec
import typer

from tollway.cli.output import Output, OutputOption, print_json, print_rows, print_table
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.cli.times import Zone, find_zone, show_instant, with_times
from tollway.link.epochs import EpochFiles, SpoolDamaged, find_node, list_epochs
from tollway.link.inspection import Inspection, find_shipped, inspect, read_records
from tollway.serve.data_directory import find_known_node
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SpoolDir = Annotated[
    Path | None, typer.Option("--spool", metavar="DIR", help="The spool itself.", show_default="gateway/spool in --data-dir")
]

COLUMNS = ["epoch", "began", "state", "segments", "records", "unverified", "admit", "final", "open", "shipped", "control", "problem"]

OPEN_SHOWN_MAX = 20
"""Open requests that one epoch's page names; JSON has them all."""

CONTROL_SECONDS_MAX = 2.0
"""For control to say how far it has come. Whoever inspects a spool may do so because control is away."""


@app.callback()
def spool() -> None:
    """A gateway's usage records on disk."""


@app.command("inspect")
def inspect_spool(
    config: Config = None,
    data_dir: DataDir = None,
    spool: SpoolDir = None,
    epoch: Annotated[int | None, typer.Option(help="Only this one, with every place that is wrong and the requests left open.")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check every record that is still here, and count: by epoch, what was admitted, has ended, and was handed in.

    `open` are requests admitted without an end: running, or of a gateway that died and is not recovered yet. `unverified` records stand
    behind a damaged place: right in themselves, but something before them is missing. `control` is the record that the control plane
    expects next, where it can be asked. A torn tail is what a crash leaves; exit code 1 if anything else is wrong.
    """
    directory, node_id, epochs = _find(config, data_dir, spool)
    if epoch is not None:
        epochs = [_chosen(epochs, epoch)]
    with _control(config, data_dir, is_wanted=spool is None) as control:
        inspections = [(each, inspect(each)) for each in epochs]
        rows = [_row(each, found, _ask(control, node_id, each)) for each, found in inspections]
    if epoch is not None and output is Output.JSON:
        print_json(rows[0] | _details(inspections[0][1]))
    elif output is Output.TABLE:
        print(f"node {node_id}, {directory}")
        shown = UTC if zone is None else find_zone(zone)
        print_rows(
            output, COLUMNS, with_times(rows, shown, began="began_at"), none="no epochs: everything was handed in and its time here is over"
        )
        if epoch is not None:
            _print_details(inspections[0][1], shown)
    else:
        print_rows(output, COLUMNS, rows)
    raise typer.Exit(1 if any(row["problem"] for row in rows) else 0)


@app.command()
def export(
    epoch: Annotated[int, typer.Option(help="Which one; see `tollway spool inspect`.")],
    config: Config = None,
    data_dir: DataDir = None,
    spool: SpoolDir = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    verified: Annotated[bool, typer.Option("--verified", help="Leave out what stands behind a damaged place.")] = False,
) -> None:
    """Write the records of an epoch that can be read as JSON, one a line, with where each stands and whether all before it are there.

    For a person who must decide what a damaged epoch is worth. Exit code 1 if something in it is damaged.
    """
    _, _, epochs = _find(config, data_dir, spool)
    found, written = Inspection(), 0
    with _opened(file) as out:
        for each in read_records(_chosen(epochs, epoch), found):
            if each.is_verified or not verified:
                out.write(msgspec.json.encode(each) + b"\n")
                written += 1
        out.flush()
    print(f"{written} records" + (f"; {found.unverified} behind a damaged place" if found.unverified else ""), file=sys.stderr)
    for problem in found.problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(1 if found.problems else 0)


def _find(config: Path | None, data_dir: str | None, spool: Path | None) -> tuple[Path, str, list[EpochFiles]]:
    directory = spool or Path(read_settings(config, data_dir=data_dir).data_dir) / "gateway" / "spool"
    try:
        node_id = find_node(directory)
    except SpoolDamaged as error:
        raise OperatorError(str(error)) from None
    if node_id is None:
        raise OperatorError(f"no gateway has written in {directory}", hint="see --data-dir or --spool")
    return directory, node_id, list_epochs(directory)


def _chosen(epochs: list[EpochFiles], number: int) -> EpochFiles:
    found = next((each for each in epochs if each.number == number), None)
    if found is None:
        raise OperatorError(f"there is no epoch {number} here", hint="see `tollway spool inspect`")
    return found


def _row(epoch: EpochFiles, found: Inspection, control: int | None) -> dict[str, Any]:
    state = "damaged" if found.problems or epoch.is_damaged() else "closed" if epoch.is_closed() else "open"
    return {
        "epoch": epoch.number,
        "began_at": epoch.number // 1_000_000,
        "state": state,
        "segments": found.segments,
        "records": found.records,
        "unverified": found.unverified,
        **{kind: found.kinds[kind] for kind in ("admit", "progress", "final", "tick", "close")},
        "open": len(found.open),
        "next_seq": found.next_seq,
        "shipped": find_shipped(epoch),
        "control": control,
        "problem": str(found.problems[0]) if found.problems else None,
    }


def _details(found: Inspection) -> dict[str, Any]:
    return {
        "torn_bytes": found.torn_bytes,
        "problems": [{"segment": each.segment, "offset": each.offset, "what": each.what} for each in found.problems],
        "open_requests": [msgspec.to_builtins(admit) for admit in found.open.values()],
    }


def _print_details(found: Inspection, zone: tzinfo) -> None:
    if found.torn_bytes:
        print(f"\ntorn tail of {found.torn_bytes} bytes: what a crash leaves; recovery cuts it off")
    for problem in found.problems:
        print(f"\n{problem}")
    if found.open:
        print()
        admits = list(found.open.values())[:OPEN_SHOWN_MAX]
        rows = [
            (admit.request_id, show_instant(admit.admitted_at // 1_000_000, zone), admit.organization_id, admit.model) for admit in admits
        ]
        print_table(["open request", "admitted", "organization", "model"], rows)
        if len(found.open) > len(admits):
            print(f"... and {len(found.open) - len(admits)} more; -o json has them all")


@contextmanager
def _opened(file: Path | None) -> Iterator[IO[bytes]]:
    if file is None:
        yield sys.stdout.buffer
        return
    try:
        with file.open("xb") as out:
            yield out
    except FileExistsError:
        raise OperatorError(f"{file} exists already") from None
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from None


# ---- The control plane, where it can be asked ---------------------------------------------------------------------------


@contextmanager
def _control(config: Path | None, data_dir: str | None, *, is_wanted: bool) -> Iterator[httpx2.Client | None]:
    """A client of the link with the node's key; None if this machine has none, nothing listens there, or it is not wanted: of a spool
    that lies somewhere, nobody knows whose control plane to ask."""
    if not is_wanted:
        yield None
        return
    try:
        settings = read_settings(config, data_dir=data_dir)
        node = find_known_node(Path(settings.data_dir), os.environ)
    except OperatorError:
        yield None
        return
    if node is None:
        yield None
        return
    url = settings.gateway.control_link_url or f"http://{settings.control.link}"
    headers = {"authorization": f"Bearer {node.key}"}
    with httpx2.Client(base_url=url, headers=headers, timeout=CONTROL_SECONDS_MAX, trust_env=False) as client:
        try:
            client.get("/livez")
        except (httpx2.HTTPError, httpx2.InvalidURL):
            yield None
        else:
            yield client


def _ask(control: httpx2.Client | None, node_id: str, epoch: EpochFiles) -> int | None:
    """The record of `epoch` that control expects next."""
    if control is None:
        return None
    try:
        answer = control.get(f"/v1/link/records/{node_id}/{epoch.number}")
        return int(answer.json()["next_seq"]) if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return None
