"""`tollway periods export` and `proof`: what an auditor checks with `tollway_verifier.py`, without trusting us."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json, print_rows, written_whole
from tollway.cli.times import find_zone
from tollway.domain import ids
from tollway.settings import OperatorError

LISTED = "see `tollway periods list`"

Period = Annotated[str, typer.Option("--period", metavar="PERIOD", help="The period: its month, such as 2026-11, or its id.")]


def find_period(periods: Iterable[Mapping[str, Any]], text: str) -> str:
    """Return the id of the billing period that an id or a month in its own time zone (2026-11) names. An id is returned as it is, and no
    period is read. Raises OperatorError if there is none, or if several organizations have one."""
    if ids.is_id(ids.PERIOD, text):
        return text
    found = [
        str(each["id"])
        for each in periods
        if datetime.fromtimestamp(each["start_time"], find_zone(each["time_zone"])).strftime("%Y-%m") == text
    ]
    if len(found) > 1:
        raise OperatorError(f"several organizations have a billing period {text}", hint="add --organization, or use an id", exit_code=2)
    if not found:
        raise OperatorError(f"nothing is booked in a billing period {text}", hint=f"a month is written 2026-11; {LISTED}", exit_code=2)
    return found[0]


def export(
    period: Period,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write all of a closed period as lines of JSON: records, prices, corrections, transactions."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        period = find_period(control.list_all("/organization/periods"), period)
        with written_whole(file) as writer:
            control.download(f"/organization/periods/{period}/export", writer)


def savings(
    period: Period,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show what the prefix cache of the engines saved in a billing period, by model."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        period = find_period(control.list_all("/organization/periods"), period)
        found = control.get(f"/organization/periods/{period}/cache_savings")
    if output is Output.JSON:
        print_json(found)
        return
    rows = [*found["data"], {"model": "total", "saved": found["total"]}] if found["data"] else []
    print_rows(output, ["model", "cached_input", "saved", "cache_write", "surcharge"], rows, none="nothing was read from a cache")
    if rows:
        print(f"in {found['currency'].upper()}")


def proof(
    period: Period,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="The id of the request (x-request-id).")],
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write the proof that a request is in a closed period."""
    check_id(ids.REQUEST, request, "request", "every answer has it in x-request-id")
    with connect_tenant(control_url, key, data_dir, organization) as control:
        period = find_period(control.list_all("/organization/periods"), period)
        proven = control.get(f"/organization/periods/{period}/proofs/{request}")
    if file is None:
        print_json(proven)
        return
    try:
        file.write_text(json.dumps(proven, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from None
