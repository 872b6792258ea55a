"""`tollway events`: what happened, and for development how a receiver gets it."""

import os
import sys
import time
from typing import Annotated, Any

import httpx2
import msgspec
import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, connect_tenant
from tollway.cli.output import Output, OutputOption, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain.events import CATALOG, EventType
from tollway.domain.webhooks import SECRET_BYTES, SECRET_PREFIX, format_secret, sign
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

POLL_SECONDS = 1.0
"""Pause between two questions for new events."""

FORWARD_SECONDS_MAX = 10.0
"""Deadline for the answer of a local receiver, as a webhook has it."""

PATH = "/organization/events"
Types = Annotated[list[EventType] | None, typer.Option("--event-type", metavar="TYPE", help="Only events of this type (repeatable).")]


@app.command("list")
def list_events(
    types: Types = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Most events to print, the latest ones.")] = 20,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the latest events of the organization."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = control.get(PATH, limit=limit, types=_names(types))["data"]
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), at="created_at")
    print_rows(output, ["sequence", "at", "type", "data", "id"], rows, none="no events yet")


@app.command("types")
def list_types(output: OutputOption = Output.TABLE) -> None:
    """List the types of events."""
    rows = [
        {"type": str(each), "audience": "operators" if kind.is_of_platform else "organizations", "when": kind.summary}
        for each, kind in CATALOG.items()
    ]
    print_rows(output, ["type", "audience", "when"], rows)


@app.command()
def listen(
    forward_to: Annotated[
        str | None, typer.Option("--forward-to", metavar="URL", help="Send each event there, signed as a webhook is.")
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option("--secret", metavar="SECRET", help="Sign with this secret (whsec_...); - reads it from stdin; a new one otherwise."),
    ] = None,
    types: Types = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many events.")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Follow the events of the organization from now on, one line each. For development: a receiver that is away misses events."""
    if secret == "-":
        secret = sys.stdin.readline().strip()
    chosen = secret or format_secret(os.urandom(SECRET_BYTES))
    try:
        sign([chosen], "", 0, b"")
    except ValueError:
        chosen = ""
    if not chosen.startswith(SECRET_PREFIX):
        raise OperatorError("a secret is whsec_ and base64", exit_code=2)
    if forward_to is not None and secret is None:
        print(f"signing secret: {chosen}", file=sys.stderr)
    with connect_tenant(control_url, key, data_dir, organization) as control, httpx2.Client(trust_env=False) as client:
        after, left = _find_last(control), count
        print(f"waiting for events after number {after}", file=sys.stderr)
        while left is None or left > 0:
            found = control.get(PATH, after_sequence=after, limit=100, types=_names(types))["data"]
            for event in found[:left]:
                line = msgspec.json.encode(event)
                print(line.decode() if output is Output.JSON else f"{event['sequence']}  {event['type']}  {event['data']}", flush=True)
                if forward_to is not None:
                    _forward(client, forward_to, chosen, event["id"], line)
                after, left = event["sequence"], None if left is None else left - 1
            if not found:
                time.sleep(POLL_SECONDS)


def _find_last(control: Control) -> int:
    """Return the number of the latest event that has one; 0 without any."""
    found = control.get(PATH, limit=100)["data"]
    return max((each["sequence"] or 0 for each in found), default=0)


def _forward(client: httpx2.Client, url: str, secret: str, event_id: str, body: bytes) -> None:
    headers = sign([secret], event_id, int(time.time()), body)
    try:
        answer = client.post(url, content=body, headers=headers | {"content-type": "application/json"}, timeout=FORWARD_SECONDS_MAX)
        print(f"{event_id}: it answered {answer.status_code}", file=sys.stderr)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        print(f"{event_id}: not delivered: {type(error).__name__}", file=sys.stderr)


def _names(types: list[EventType] | None) -> Any:
    return [str(each) for each in types] if types else None
