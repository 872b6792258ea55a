"""`tollway reconcile`: what was billed against what the engines counted themselves."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, connect
from tollway.cli.output import Output, OutputOption, print_json, print_table
from tollway.cli.usage import Since, instant_of

HOURS_MAX = 168
"""Hours in one answer of the API."""

COLUMNS = ["hour", "model", "state", "prompt", "by engine", "drift", "%", "output", "by engine", "drift", "%", "notes"]
NUMBERS = frozenset({"prompt", "by engine", "drift", "%", "output"})


def reconcile(
    since: Since = "24h",
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    engines: Annotated[bool, typer.Option("--engines", help="One line more for each engine, below its model.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Compare tokens in the ledger with the engines' own counters, by model and hour (UTC).

    States: ok; drift (more apart than the settings allow); partial (an engine was not read all the time, or was started anew);
    not_observed (an engine could not be read, or has no counters); open (the hour has not ended, or only just). Exit code 1 if any
    hour drifts.
    """
    rows: list[dict[str, Any]] = []
    now = int(time.time())
    start, end = instant_of(since, now), now
    with connect(control_url, key, data_dir) as control:
        while start < end:
            until = min(end, start - start % 3600 + HOURS_MAX * 3600)
            rows += control.get("/platform/reconciliation", start_time=start, end_time=until, model=model)["data"]
            start = until
    if output is Output.JSON:
        print_json(rows)
    elif rows:
        print_table(COLUMNS, [line for row in rows for line in _lines(row, engines=engines)], right=NUMBERS)
    else:
        typer.echo("nothing yet: hours appear when an engine was read, or a request has ended", err=True)
    raise typer.Exit(1 if any(row["state"] == "drift" for row in rows) else 0)


def _lines(row: Mapping[str, Any], *, engines: bool) -> list[list[object]]:
    """The line of a model's hour, and those of its engines below it."""
    restarts, failures = (sum(each[name] for each in row["engines"]) for name in ("resets", "failures"))
    lines = [_cells(row, row, ",".join(row["models"]), _notes(row, row["unattributed_tokens"], restarts, failures))]
    for each in row["engines"] if engines else ():
        name = "  " + ",".join(each["addresses"] or each["deployments"])
        lines.append(_cells(row, each, name, _notes(each, 0, each["resets"], each["failures"])))
    return lines


def _cells(row: Mapping[str, Any], of: Mapping[str, Any], name: str, notes: str) -> list[object]:
    hour = time.strftime("%Y-%m-%d %H:00", time.gmtime(row["start_time"]))
    numbers = [of[side][part] for side in ("prompt", "output") for part in ("ledger", "engine", "drift", "drift_percent")]
    return [hour, name, of["state"], *numbers, notes]


def _notes(of: Mapping[str, Any], unattributed: int, restarts: int, failures: int) -> str:
    """Return what explains differences, in words."""
    parts = {name: of["requests"][name] for name in ("incomplete", "retried", "anomalous")}
    parts |= {"unattributed tokens": unattributed, "restarts": restarts, "failed readings": failures}
    return ", ".join(f"{count} {name}" for name, count in parts.items() if count)
