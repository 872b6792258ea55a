"""`tollway corrections`: what was billed, corrected; for operators."""

from typing import Annotated, Any

import typer

from tollway.cli.class_options import with_quantity_options
from tollway.cli.client import ControlUrl, DataDir, Key, check_id, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.tenancy.organizations import with_organizations
from tollway.cli.times import Zone
from tollway.domain import ids
from tollway.domain.billing_classes import BillingClass
from tollway.domain.corrections import AdjustmentState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="The id of the request (x-request-id).")]
AdjustmentId = Annotated[str, typer.Argument(metavar="CORRECTION", help="Its id (adj_...).")]
LISTED = "see `tollway corrections list`"
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; the customer reads it on the receipt.")]


@app.command("list")
def list_corrections(
    state: Annotated[AdjustmentState | None, typer.Option("--state", help="Only those in this state.")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List all corrections, oldest first."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/adjustments", state=state))
        if output is Output.TABLE:
            rows = with_organizations(control, rows, zone, asked="created_at")
    columns = ["id", "asked", "kind", "organization", "request_id", "amount", "state", "actor", "approver", "reason"]
    print_rows(output, columns, rows, none="no corrections")


@app.command()
def void(
    request: RequestId,
    reason: Reason,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Take back all that a request cost."""
    _post("", {"request_id": request, "kind": "void", "reason": reason}, output, control_url, key, data_dir)


@app.command()
@with_quantity_options
def replace(
    request: RequestId,
    reason: Reason,
    quantities: dict[BillingClass, int],
    no_request: Annotated[bool, typer.Option("--no-request", help="Do not bill the price per request.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Bill other quantities instead, at the price that the request had."""
    billed = {**quantities, BillingClass.REQUEST: not no_request}
    body = {"request_id": request, "kind": "replace", "reason": reason, "quantities": billed}
    _post("", body, output, control_url, key, data_dir)


@app.command()
def credit(
    request: RequestId,
    amount: Annotated[str, typer.Argument(help="In the organization's currency, exact: 0.25.")],
    reason: Reason,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a part of what a request cost back."""
    _post("", {"request_id": request, "kind": "credit", "reason": reason, "amount": amount}, output, control_url, key, data_dir)


@app.command()
def approve(
    correction: AdjustmentId, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Approve a correction that a key of another origin asked for (see `tollway operator-keys list`)."""
    check_id(ids.ADJUSTMENT, correction, "correction", LISTED)
    _post(f"/{correction}/approve", None, output, control_url, key, data_dir)


@app.command()
def reject(
    correction: AdjustmentId, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Reject a correction that waits."""
    check_id(ids.ADJUSTMENT, correction, "correction", LISTED)
    _post(f"/{correction}/reject", None, output, control_url, key, data_dir)


def _post(path: str, body: dict[str, Any] | None, output: Output, control_url: ControlUrl, key: Key, data_dir: DataDir) -> None:
    if body is not None:
        check_id(ids.REQUEST, body["request_id"], "request", "every answer has it in x-request-id")
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/adjustments{path}", body)
    if output is Output.JSON:
        print_json(made)
    elif made["state"] == "pending":
        print(f"{made['id']}  {made['amount']}  waits for a second person: tollway corrections approve {made['id']}")
    else:
        print(f"{made['id']}  {made['amount']}  {made['state']}")
