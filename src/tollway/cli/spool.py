"""`tollway spool inspect`: a gateway's usage records on disk, read without touching them; also while it runs."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tollway.cli.output import Output, OutputOption, print_rows
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.domain.usage import Admit, Final, decode
from tollway.link.epochs import Epoch, Shipped, SpoolDamaged, find_node, list_epochs, parse_start, read_segment
from tollway.settings import OperatorError
from tollway.wire.segments import Reader, Tail

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

COLUMNS = ["epoch", "began", "state", "segments", "records", "admit", "final", "open", "shipped", "problem"]


@app.callback()
def spool() -> None:
    """A gateway's usage records on disk."""


@app.command()
def inspect(
    config: Config = None,
    data_dir: DataDir = None,
    spool: Annotated[Path | None, typer.Option(metavar="DIR", help="The spool itself.", show_default="gateway/spool in --data-dir")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check every record that is still here, and count: by epoch, what was admitted, has ended, and was handed in.

    `open` are requests admitted without an end: running, or of a gateway that died and is not recovered yet. A torn
    tail is what a crash leaves; exit code 1 if anything else is wrong."""
    directory = spool or Path(read_settings(config, data_dir=data_dir).data_dir) / "gateway" / "spool"
    try:
        node_id = find_node(directory)
    except SpoolDamaged as error:
        raise OperatorError(str(error)) from None
    if node_id is None:
        raise OperatorError(f"no gateway has written in {directory}", hint="see --data-dir or --spool")
    rows = [_read(epoch) for epoch in list_epochs(directory)]
    if output is Output.TABLE:
        print(f"node {node_id}")
    print_rows(output, COLUMNS, rows, none="no epochs: everything was handed in and its time here is over")
    raise typer.Exit(1 if any(row["problem"] for row in rows) else 0)


def _read(epoch: Epoch) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    running: set[str] = set()
    problem = None
    segments, first_seq, next_seq = 0, None, 1
    for number in epoch.list_segments():
        path = epoch.segment_path(number)
        data = read_segment(path)
        try:
            begun = parse_start(data)
            if begun is None:
                continue  # prepared ahead of need, or torn in its header
            start, offset = begun
            if first_seq is not None and start.first_seq != next_seq:
                raise SpoolDamaged(str(path), f"records {next_seq} to {start.first_seq - 1} are missing")
            reader = Reader(start.first_seq, start.chain)
            if first_seq is None:
                first_seq = start.first_seq
                running = {request.admit.request_id for request in start.open}
            for frame in reader.read(data, offset):
                record = decode(frame.payload)
                kinds[type(record).__name__.lower()] += 1
                if isinstance(record, Admit):
                    running.add(record.request_id)
                elif isinstance(record, Final):
                    running.discard(record.admit.request_id)
            segments, next_seq = segments + 1, reader.next_seq
            if reader.tail is Tail.DAMAGED:
                raise SpoolDamaged(str(path), f"record {next_seq} is wrong and readable ones follow")
        except (SpoolDamaged, ValueError) as error:
            problem = str(error)
            break
    state = "damaged" if problem or epoch.is_damaged() else "closed" if epoch.is_closed() else "open"
    return {
        "epoch": epoch.number,
        "began": datetime.fromtimestamp(epoch.number // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "state": state,
        "segments": segments,
        "records": sum(kinds.values()),
        **{kind: kinds[kind] for kind in ("admit", "progress", "final", "tick", "close")},
        "open": len(running),
        "next_seq": next_seq,
        "shipped": _shipped(epoch),
        "problem": problem,
    }


def _shipped(epoch: Epoch) -> int:
    """How many records control has acknowledged, as far as was noted here."""
    try:
        return msgspec.json.decode((epoch.directory / "shipped").read_bytes(), type=Shipped).next_seq - 1
    except (OSError, msgspec.DecodeError):
        return 0
