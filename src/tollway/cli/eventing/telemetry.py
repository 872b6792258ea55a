"""`tollway telemetry`: where an organization has its requests, usage and audit trail sent."""

from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect_tenant
from tollway.cli.output import Output, OutputOption, print_fields, print_json, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids
from tollway.domain.telemetry_exports import ExportFormat, Signal
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PATH = "/organization/telemetry_exports"
Export = Annotated[str, typer.Argument(metavar="EXPORT_ID", help="Id, as `tollway telemetry list` shows it.")]
Signals = Annotated[
    list[Signal] | None,
    typer.Option("--signal", help="What is sent (repeatable): traces, metrics (otlp); usage, audit (json)."),
]
Headers = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="NAME=VALUE", help="A header of each request (repeatable); NAME=@FILE reads the value from a file."),
]
COLUMNS = ["id", "name", "url", "signals", "enabled", "last_success", "last_error"]


@app.command("list")
def list_exports(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the telemetry exports."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(PATH))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), last_success="last_success_at")
    print_rows(output, COLUMNS, rows, none="no telemetry exports yet")


@app.command()
def show(
    export_id: Export,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show a telemetry export, with the state of its receiver."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.get(_of(export_id))
    print_fields(output, found)


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="The receiver: an https URL with a public address.")],
    signals: Signals = None,
    encoding: Annotated[
        ExportFormat, typer.Option("--encoding", help="OpenTelemetry over HTTP (otlp), or arrays of records (json).")
    ] = ExportFormat.OTLP,
    headers: Headers = None,
    name: Annotated[str, typer.Option("--name", help="A name for people.")] = "export",
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Have requests, usage or the audit trail sent to a receiver, from now on."""
    if not signals:
        raise OperatorError("no --signal is given", hint="traces and metrics for otlp, usage and audit for json", exit_code=2)
    body = {"name": name, "url": url, "format": str(encoding), "signals": [str(each) for each in signals], "headers": _read(headers)}
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(PATH, body)
    print_fields(output, made)


@app.command()
def update(
    export_id: Export,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Another receiver.")] = None,
    signals: Signals = None,
    headers: Headers = None,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change a telemetry export; what is not named stays. Headers that are given replace all."""
    changes = {
        "url": url,
        "name": name,
        "signals": [str(each) for each in signals] if signals else None,
        "headers": _read(headers) if headers else None,
    }
    with connect_tenant(control_url, key, data_dir, organization) as control:
        changed = control.post(_of(export_id), {field: value for field, value in changes.items() if value is not None})
    print_fields(output, changed)


@app.command()
def enable(
    export_id: Export,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Send to the receiver of a disabled export again, from now on."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        changed = control.post(_of(export_id), {"enabled": True})
    print_fields(output, changed)


@app.command()
def delete(
    export_id: Export,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a telemetry export. What was not sent is not sent any more."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(_of(export_id))
    print_json(gone) if output is Output.JSON else print(f"deleted {export_id}")


@app.command()
def test(
    export_id: Export,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Send a request without records to the receiver of a telemetry export."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        sent = control.post(f"{_of(export_id)}/test", {})
    print_json(sent) if output is Output.JSON else print(f"it answered {sent['status_code']}")


def _of(export_id: str) -> str:
    return f"{PATH}/{check_id(ids.TELEMETRY_EXPORT, export_id, 'telemetry export', 'see `tollway telemetry list`')}"


def _read(headers: list[str] | None) -> dict[str, str]:
    """Return headers by name, with values from files where they are named."""
    read: dict[str, str] = {}
    for each in headers or ():
        name, separator, value = each.partition("=")
        if not separator or not name:
            raise OperatorError("--header is not NAME=VALUE", exit_code=2)
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                raise OperatorError(f"{value[1:]} cannot be read", exit_code=2) from None
        read[name] = value
    return read
