"""`tollway quarantine`: records of gateways that could not be rated; for operators."""

from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, connect
from tollway.cli.output import Output, OutputOption, print_fields, print_json, print_rows
from tollway.cli.tenancy.organizations import with_organizations
from tollway.cli.times import Zone
from tollway.domain.quarantine import QuarantineState
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

LISTED = "see `tollway quarantine list`"
Record = Annotated[str | None, typer.Argument(metavar="[RECORD]", help="One record: NODE/EPOCH/SEQ, as the list shows it.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stays on record beside your key.")]
Only = Annotated[
    str | None, typer.Option("--all-with", metavar="REASON_CODE", help="Every open record with this reason code, in place of one record.")
]
State = Annotated[QuarantineState | None, typer.Option("--state", help="Only those in this state.")]


@app.command("list")
def list_records(
    state: State = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the records that could not be rated when they arrived. Open ones are not billed and keep billing periods open."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/quarantine", state=state))
        if output is Output.TABLE:
            rows = with_organizations(control, rows, zone, served="served_at")
    columns = ["id", "state", "reason", "organization", "organization_id", "request_id", "served", "resolution_reason"]
    print_rows(output, columns, rows, none="nothing is in quarantine")


@app.command()
def show(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="NODE/EPOCH/SEQ, as the list shows it.")],
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show one record, with what keeps it from being rated today and the text that the gateway wrote."""
    with connect(control_url, key, data_dir) as control:
        row = control.get(_path(record))
        if output is Output.TABLE:
            (row,) = with_organizations(control, [row], zone, served_at="served_at", received_at="received_at", resolved_at="resolved_at")
    print_fields(output, row)


@app.command()
def rate(
    record: Record = None,
    reason: Reason = "",
    only: Only = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Rate a record after all, once its organization or price exists here: its request is billed."""
    _resolve("rate", record, reason, only, output, control_url, key, data_dir)


@app.command("write-off")
def write_off(
    record: Record = None,
    reason: Reason = "",
    only: Only = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write a record off: its request is never billed. This is final, and the report of its billing period names it. Above the limit for
    corrections, or if what it would have cost is unknown, a second person must ask for the same with a key of another origin."""
    if not yes:
        typer.confirm("What is written off is never billed. Write it off?", abort=True, err=True)
    _resolve("write_off", record, reason, only, output, control_url, key, data_dir)


def _resolve(
    verb: str,
    record: str | None,
    reason: str,
    only: str | None,
    output: Output,
    control_url: ControlUrl,
    key: Key,
    data_dir: DataDir,
) -> None:
    if not reason:
        raise OperatorError("a reason is missing", hint='give one with --reason "..."', exit_code=2)
    if (record is None) == (only is None):
        raise OperatorError("name either one record or --all-with REASON_CODE", hint=LISTED, exit_code=2)
    with connect(control_url, key, data_dir) as control:
        paths = [_path(record)] if record is not None else _open_paths(control, only)
        resolved: list[Any] = [control.post(f"{path}/{verb}", {"reason": reason}) for path in paths]
    if output is Output.JSON:
        print_json(resolved)
        return
    for row in resolved:
        print(f"{row['id']}  {row['state']}" + ("  waits for a second person" if verb == "write_off" and row["state"] == "open" else ""))
    if not resolved:
        typer.echo("no open record has this reason", err=True)


def _open_paths(control: Control, only: str | None) -> list[str]:
    return [_path(row["id"]) for row in control.list_all("/platform/quarantine", state="open", reason=only)]


def _path(record: str) -> str:
    node_id, _, place = record.partition("/")
    epoch, _, seq = place.partition("/")
    if not node_id.replace("_", "").isalnum() or not epoch.isdecimal() or not seq.isdecimal():
        raise OperatorError(f"{record} is not the id of a record: NODE/EPOCH/SEQ", hint=LISTED, exit_code=2)
    return f"/platform/quarantine/{node_id}/{epoch}/{seq}"
