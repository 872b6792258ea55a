"""`tollway reconcile`: what was billed against what the engines counted themselves."""

import time
from collections.abc import Mapping
from datetime import tzinfo
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, connect
from tollway.cli.output import Output, OutputOption, print_json, print_table
from tollway.cli.times import Since, Until, Zone, read_range, show_minute

HOURS_MAX = 168
"""Hours in one answer of the API."""

COLUMNS = ["hour", "model", "state", "prompt", "by engine", "drift", "%", "output", "by engine", "drift", "%", "notes"]
NUMBERS = frozenset({"prompt", "by engine", "drift", "%", "output"})


def reconcile(
    since: Since = "24h",
    until: Until = None,
    zone: Zone = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only those of this model.")] = None,
    engines: Annotated[bool, typer.Option("--engines", help="One line more for each engine, below its model.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Compare tokens in the ledger with the engines' own counters, by model and hour.

    States: ok; drift (more apart than the settings allow); partial (an engine was not read all the time, or was started anew);
    not_observed (an engine could not be read, or has no counters); open (the hour has not ended, or only just). Exit code 1 if any
    hour drifts.
    """
    rows: list[dict[str, Any]] = []
    with connect(control_url, key, data_dir) as control:
        shown = control.get_zone(zone)
        start, end = read_range(since, until, shown, time.time())
        while start < end:
            page_end = min(end, start - start % 3600 + HOURS_MAX * 3600)
            rows += control.get("/platform/reconciliation", start_time=start, end_time=page_end, model=model)["data"]
            start = page_end
    if output is Output.JSON:
        print_json(rows)
    elif rows:
        print_table(COLUMNS, [line for row in rows for line in _lines(row, shown, engines=engines)], right=NUMBERS)
    else:
        typer.echo("nothing yet: hours appear when an engine was read, or a request has ended", err=True)
    raise typer.Exit(1 if any(row["state"] == "drift" for row in rows) else 0)


def _lines(row: Mapping[str, Any], zone: tzinfo, *, engines: bool) -> list[list[object]]:
    """The line of a model's hour, and those of its engines below it."""
    restarts, failures = (sum(each[name] for each in row["engines"]) for name in ("resets", "failures"))
    hour = show_minute(row["start_time"], zone)
    lines = [_cells(hour, row, ",".join(row["models"]), _notes(row, row["unattributed_tokens"], restarts, failures))]
    for each in row["engines"] if engines else ():
        name = "  " + ",".join(each["addresses"] or each["deployments"])
        lines.append(_cells(hour, each, name, _notes(each, 0, each["resets"], each["failures"])))
    return lines


def _cells(hour: str, of: Mapping[str, Any], name: str, notes: str) -> list[object]:
    numbers = [of[side][part] for side in ("prompt", "output") for part in ("ledger", "engine", "drift", "drift_percent")]
    return [hour, name, of["state"], *numbers, notes]


def _notes(of: Mapping[str, Any], unattributed: int, restarts: int, failures: int) -> str:
    """Return what explains differences, in words."""
    parts = {name: of["requests"][name] for name in ("incomplete", "retried", "anomalous")}
    parts |= {"unattributed tokens": unattributed, "restarts": restarts, "failed readings": failures}
    return ", ".join(f"{count} {name}" for name, count in parts.items() if count)
