"""`tollway payments`: payments of invoices, bank statements, and dunning."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.tenancy.organizations import OrganizationName, with_organizations
from tollway.cli.times import Zone, find_zone, with_times
from tollway.domain import ids
from tollway.domain.payments import PaymentKind
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OrganizationFilter = Annotated[str | None, typer.Option("--organization", metavar="NAME|ID", help="Only of this organization.")]
Day = Annotated[str | None, typer.Option("--value-on", metavar="DAY", help="Day of the bank, such as 2026-12-01; today without it.")]
Reference = Annotated[str, typer.Option("--reference", metavar="TEXT", help="What it is known by, such as the text of the transfer.")]
InvoiceId = Annotated[str, typer.Argument(metavar="INVOICE", help="Its id (inv_...), as `tollway invoices list` shows it.")]
PAYMENT_COLUMNS = ["id", "organization", "kind", "amount", "currency", "value_on", "origin", "reference"]


def _day(day: str | None) -> str:
    return day or datetime.now(UTC).date().isoformat()


@app.command("list")
def list_payments(
    organization: OrganizationFilter = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the payments of all organizations, or of one."""
    with connect(control_url, key, data_dir) as control:
        organization_id = None if organization is None else control.get_organization(organization)["id"]
        rows = list(control.list_all("/platform/payments", organization_id=organization_id))
        if output is Output.TABLE:
            rows = with_organizations(control, rows, zone)
    print_rows(output, PAYMENT_COLUMNS, rows, none="no payments: see `tollway payments record` and `tollway payments import`")


@app.command()
def record(
    organization: OrganizationName,
    amount: Annotated[str, typer.Argument(help="Such as 119 or 119.00, in the organization's currency.")],
    kind: Annotated[PaymentKind, typer.Option("--kind", help="What it is: payment, refund or write_off.")] = PaymentKind.PAYMENT,
    invoices: Annotated[
        list[str] | None, typer.Option("--invoice", metavar="INVOICE", help="An invoice that it settles first (repeatable).")
    ] = None,
    day: Day = None,
    reference: Reference = "",
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Record what an organization paid, what was paid back to it, or what is given up of its invoices."""
    body: dict[str, Any] = {"kind": kind, "amount": amount, "value_on": _day(day), "invoice_ids": invoices or []}
    with connect(control_url, key, data_dir) as control:
        path = f"/platform/organizations/{control.get_organization(organization)['id']}/payments"
        made = control.post(path, body | ({"reference": reference} if reference else {}))
    _print_payment(made, output)


@app.command("return")
def return_payment(
    payment: Annotated[str, typer.Argument(metavar="PAYMENT", help="Its id (pay_...), as `tollway payments list` shows it.")],
    day: Day = None,
    reference: Reference = "",
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Record that the bank took a payment back: what it settled is open again."""
    check_id(ids.PAYMENT, payment, "payment", "see `tollway payments list`")
    body = {"value_on": _day(day), **({"reference": reference} if reference else {})}
    with connect(control_url, key, data_dir) as control:
        _print_payment(control.post(f"/platform/payments/{payment}/return", body), output)


@app.command("import")
def import_statement(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bank statement in the format camt.053 (XML).")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Import a bank statement: credits that name the number of an invoice pay it. A file that comes twice changes nothing."""
    try:
        content = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"cannot read {file}: {error}", exit_code=2) from None
    with connect(control_url, key, data_dir) as control:
        found = control.post("/platform/bank_statements", {"content": content})
    if output is Output.JSON:
        print_json(found)
        return
    for each in found["data"]:
        counts = f"{each['unmatched']} without an invoice, {each['known']} known, {each['others']} others"
        print(f"{each['iban']} {each['name']}: {len(each['payments'])} payments, {counts}")


@app.command()
def unmatched(output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None) -> None:
    """List the credits of bank statements for which no invoice was found."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/bank_entries"))
    print_rows(output, ["id", "amount", "currency", "value_on", "debtor", "text"], rows, none="every credit has its invoice")


@app.command()
def match(
    entry: Annotated[str, typer.Argument(metavar="ENTRY", help="Its id, as `tollway payments unmatched` shows it.")],
    invoice: InvoiceId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Record a credit of a bank statement as the payment of an invoice."""
    check_id(ids.INVOICE, invoice, "invoice", "see `tollway invoices list`")
    if not entry.isalnum():
        raise OperatorError(f"{entry!r} names no entry", hint="see `tollway payments unmatched`", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        _print_payment(control.post(f"/platform/bank_entries/{entry}/match", {"invoice_id": invoice}), output)


@app.command()
def hold(
    invoice: InvoiceId,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why it is not dunned, such as a dispute.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Dun it again.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Leave an overdue invoice alone, such as while it is disputed, or dun it again."""
    check_id(ids.INVOICE, invoice, "invoice", "see `tollway invoices list`")
    if off is (reason is not None):
        raise OperatorError("name --reason or --off", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        held = control.put(f"/platform/invoices/{invoice}/dunning_hold", {"reason": reason})
    print_json(held) if output is Output.JSON else print("is dunned again" if off else f"is not dunned: {held['reason']}")


@app.command()
def dunning(
    organization: OrganizationFilter = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the steps of dunning that were taken for open invoices."""
    with connect(control_url, key, data_dir) as control:
        organization_id = None if organization is None else control.get_organization(organization)["id"]
        query = {} if organization_id is None else {"organization_id": organization_id}
        rows = control.get("/platform/dunning_notices", **query)["data"]
    if output is Output.TABLE:
        rows = with_times(rows, find_zone(zone or "UTC"), noticed="noticed_at")
    print_rows(output, ["invoice_id", "step", "action", "noticed"], rows, none="nothing was dunned")


@app.command("connectors")
def list_connectors(
    organization: OrganizationFilter = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the invoices that a connector such as Stripe collects, and what each waits for."""
    with connect(control_url, key, data_dir) as control:
        organization_id = None if organization is None else control.get_organization(organization)["id"]
        rows = list(control.list_all("/platform/invoice_syncs", organization_id=organization_id))
        if output is Output.TABLE:
            rows = with_organizations(control, rows, zone)
    columns = ["id", "organization", "connector", "state", "is_parked", "problem", "external_id"]
    print_rows(output, columns, rows, none="no connector collects an invoice")


@app.command()
def retry(
    invoice: InvoiceId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Have the connector of an invoice asked again, also if it is parked."""
    check_id(ids.INVOICE, invoice, "invoice", "see `tollway invoices list`")
    with connect(control_url, key, data_dir) as control:
        sync = control.post(f"/platform/invoices/{invoice}/sync", {})
    print_json(sync) if output is Output.JSON else print(f"{sync['id']}: {sync['state']}, asked again within a minute")


@app.command()
def account(
    is_own: Annotated[bool, typer.Option("--own", help="As the organization, in place of the operator.")] = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show how an organization stands: its open invoices, and what it has paid that no invoice took."""
    if is_own:
        with connect_tenant(control_url, key, data_dir, organization) as control:
            found = control.get("/organization/statement_of_account")
    else:
        with connect(control_url, key, data_dir) as control:
            found = control.get(f"/platform/organizations/{control.get_organization(organization)['id']}/statement_of_account")
    if output is Output.JSON:
        print_json(found)
        return
    print_rows(output, ["id", "number", "due_on", "gross", "open"], found["open"], none="no open invoices")
    print(f"open {found['total_open']}, balance {found['balance']} {found['currency'].upper()}")


def _print_payment(payment: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print_json(payment)
    else:
        print(f"{payment['id']}  {payment['kind']} of {payment['amount']} {payment['currency'].upper()} on {payment['value_on']}")
