"""`tollway webhooks`: where events are sent, and what became of each delivery."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, check_id, connect, connect_tenant
from tollway.cli.output import Output, OutputOption, print_fields, print_json, print_rows
from tollway.cli.times import MaybeSince, Until, Zone, read_range, with_times
from tollway.domain import ids
from tollway.domain.events import EventType
from tollway.domain.webhooks import DeliveryState
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Endpoint = Annotated[str, typer.Argument(metavar="ENDPOINT_ID", help="Id, as `tollway webhooks list` shows it.")]
Platform = Annotated[bool, typer.Option("--platform", help="Take the endpoints of the operators in place of an organization's.")]
Types = Annotated[list[EventType] | None, typer.Option("--event-type", metavar="TYPE", help="A type of events to send (repeatable).")]
COLUMNS = ["id", "name", "url", "event_types", "enabled", "disabled_reason"]


@app.command("list")
def list_endpoints(
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the webhook endpoints."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        rows = list(control.list_all(path))
    print_rows(output, COLUMNS, rows, none="no webhook endpoints yet")


@app.command()
def show(
    endpoint_id: Endpoint,
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show a webhook endpoint."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        found = control.get(_of(path, endpoint_id))
    print_fields(output, found)


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent: an https URL with a public address.")],
    types: Types = None,
    name: Annotated[str, typer.Option("--name", help="A name for people.")] = "webhook",
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a webhook endpoint. Its signing secret is shown this once."""
    if not types:
        raise OperatorError("no --event-type is given", hint="see `tollway events types`", exit_code=2)
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        made = control.post(path, {"name": name, "url": url, "event_types": [str(each) for each in types]})
    _print_secret(output, made)


@app.command()
def update(
    endpoint_id: Endpoint,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Another URL.")] = None,
    types: Types = None,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change a webhook endpoint; what is not named stays."""
    changes = {"url": url, "name": name, "event_types": [str(each) for each in types] if types else None}
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        changed = control.post(_of(path, endpoint_id), {field: value for field, value in changes.items() if value is not None})
    print_fields(output, changed)


@app.command()
def enable(
    endpoint_id: Endpoint,
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Send events to a disabled endpoint again, from now on."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        changed = control.post(_of(path, endpoint_id), {"enabled": True})
    print_fields(output, changed)


@app.command()
def delete(
    endpoint_id: Endpoint,
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a webhook endpoint. What was not delivered to it is not tried any more."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        gone = control.delete(_of(path, endpoint_id))
    print_json(gone) if output is Output.JSON else print(f"deleted {endpoint_id}")


@app.command("rotate-secret")
def rotate_secret(
    endpoint_id: Endpoint,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Sign with the secret before too, for 24 hours.")] = False,
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a webhook endpoint another signing secret, which is shown this once."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        made = control.post(f"{_of(path, endpoint_id)}/rotate_secret", {"keep_old_secret_active_for_24_hours": keep_old})
    _print_secret(output, made)


@app.command()
def test(
    endpoint_id: Endpoint,
    event_type: Annotated[EventType, typer.Option("--event-type", metavar="TYPE", help="Type of the example event.")],
    platform: Platform = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Send an example of an event to a webhook endpoint."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        sent = control.post(f"{_of(path, endpoint_id)}/test", {"event_type": str(event_type)})
    print_json(sent) if output is Output.JSON else print(f"it answered {sent['status_code']}")


@app.command()
def deliveries(
    endpoint_id: Endpoint,
    state: Annotated[DeliveryState | None, typer.Option("--state", help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Most deliveries to print, the latest ones.")] = 20,
    platform: Platform = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the latest deliveries to a webhook endpoint."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        rows = control.get(f"{_of(path, endpoint_id)}/deliveries", limit=limit, state=state and str(state))["data"]
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), attempted="attempted_at", next="next_attempt_at")
    print_rows(output, ["id", "state", "attempts", "attempted", "status_code", "error", "next"], rows, none="no deliveries yet")


@app.command()
def replay(
    endpoint_id: Endpoint,
    event: Annotated[str | None, typer.Option("--event", metavar="EVENT_ID", help="One event; leave out --since then.")] = None,
    since: MaybeSince = None,
    until: Until = None,
    platform: Platform = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Deliver an event, or those of a time, to a webhook endpoint once more."""
    if (event is None) == (since is None):
        raise OperatorError("give either --event or --since", exit_code=2)
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        if event is not None:
            body: dict[str, object] = {"event_id": event}
        else:
            start, end = read_range(since or "", until, control.get_zone(zone), time.time())
            body = {"since": start, "until": end}
        replayed = control.post(f"{_of(path, endpoint_id)}/replay", body)
    print_json(replayed) if output is Output.JSON else print(f"{replayed['deliveries']} events are delivered once more")


@contextmanager
def _connect(
    platform: bool, control_url: str | None, key: str | None, data_dir: DataDir, organization: str | None
) -> Iterator[tuple[Control, str]]:
    """Connect, and yield the path of the endpoints of an organization or of the operators."""
    if platform:
        if organization is not None:
            raise OperatorError("--platform and --organization exclude each other", exit_code=2)
        with connect(control_url, key, data_dir) as control:
            yield control, "/platform/webhook_endpoints"
        return
    with connect_tenant(control_url, key, data_dir, organization) as control:
        yield control, "/webhook_endpoints"


def _of(path: str, endpoint_id: str) -> str:
    return f"{path}/{check_id(ids.WEBHOOK_ENDPOINT, endpoint_id, 'webhook endpoint', 'see `tollway webhooks list`')}"


def _print_secret(output: Output, made: dict[str, str]) -> None:
    print_json(made) if output is Output.JSON else print(f"id      {made['id']}\nsecret  {made['signing_secret']}   (shown only now)")
