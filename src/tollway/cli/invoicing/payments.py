"""`tollway payments`: payments of invoices, bank statements, and dunning."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, check_id, connect, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.tenancy.organizations import OrganizationName, with_organizations
from tollway.cli.times import Zone, find_zone, with_times
from tollway.domain import ids
from tollway.domain.payments import PaymentKind
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OrganizationFilter = Annotated[str | None, typer.Option("--organization", metavar="NAME|ID", help="Only of this organization.")]


def _value_day(text: str | None) -> str | None:
    """Return a day as the API reads it. Raises typer.BadParameter for any other form, such as 01.12.2026."""
    try:
        return None if text is None else datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date().isoformat()
    except ValueError:
        raise typer.BadParameter(f"{text} is no day: write it as 2026-12-01.") from None


Day = Annotated[
    str | None,
    typer.Option("--value-on", metavar="DAY", help="Day of the bank, such as 2026-12-01; today without it.", callback=_value_day),
]
Reference = Annotated[str, typer.Option("--reference", metavar="TEXT", help="What it is known by, such as the text of the transfer.")]
InvoiceId = Annotated[str, typer.Argument(metavar="INVOICE", help="Its id (inv_...), as `tollway invoices list` shows it.")]
TransferFileId = Annotated[str, typer.Argument(metavar="FILE", help="Its id (ctfile_...), as `tollway payments transfers` shows it.")]
CollectionId = Annotated[str, typer.Argument(metavar="FILE", help="Its id (ddfile_...), as `tollway payments collections` shows it.")]
PAYMENT_COLUMNS = ["id", "organization", "kind", "amount", "currency", "value_on", "origin", "reference"]


AMOUNT = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")


def _day(day: str | None) -> str:
    return day or datetime.now(UTC).date().isoformat()


def _amount(text: str) -> str:
    """Return an amount as the API reads it. Raises typer.BadParameter for any other form, such as a comma for a point."""
    if AMOUNT.fullmatch(text) is None:
        raise typer.BadParameter(f"{text} is no amount: write it as 1234.56, without a sign and without separators of thousands.")
    return text


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
    amount: Annotated[str, typer.Argument(help="Such as 119 or 119.00, in the organization's currency.", callback=_amount)],
    kind: Annotated[PaymentKind, typer.Option("--kind", help="What it is: payment, refund or write_off.")] = PaymentKind.PAYMENT,
    invoices: Annotated[
        list[str] | None,
        typer.Option(
            "--invoice",
            metavar="INVOICE",
            help="An invoice that it settles first (repeatable). A refund takes from these invoices what the balance lacks.",
        ),
    ] = None,
    day: Day = None,
    reference: Reference = "",
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Record what an organization paid, what was paid back to it, or what is given up of its invoices."""
    for invoice in invoices or []:
        check_id(ids.INVOICE, invoice, "invoice", "see `tollway invoices list`")
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
    """Record that the bank took a payment back, or take a write-off back: what it settled is open again."""
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
        for payment in each["returned"]:
            print(f"returned {payment['amount']} {payment['currency'].upper()}: {payment['reference']}")
        counts = f"{each['unmatched']} without an invoice, {each['known']} known, {each['others']} others"
        returns = f"{len(each['returned'])} returned debits, {each['unmatched_returns']} of unknown payments"
        returns += f"; {each['executed']} refunds transferred"
        returns += "; a statement before it is missing" if each["is_gap"] else ""
        print(f"{each['iban']} {each['name']}: {len(each['payments'])} payments, {counts}; {returns}")
        if each["unmatched"]:
            print("see `tollway payments unmatched`, and give each its invoice with `tollway payments match`")


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
        rows = list(control.list_all("/platform/dunning_notices", organization_id=organization_id))
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
def collect(
    seller: Annotated[str, typer.Argument(metavar="ENTITY", help="Its id (entity_...), as `tollway invoices sellers` shows it.")],
    date: Annotated[str, typer.Option("--date", metavar="DAY", help="Day of collection, such as 2026-12-15.")],
    file: Annotated[
        Path, typer.Option("-f", "--file", metavar="FILE", help="Where the file is written; one that is there is not replaced.")
    ],
    invoices: Annotated[
        list[str] | None,
        typer.Option("--invoice", metavar="INVOICE", help="Only this invoice (repeatable), also if it was returned before."),
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Make a file of SEPA direct debits (pain.008) for the bank of a seller: of open invoices that are due by a day and name a mandate."""
    check_id(ids.LEGAL_ENTITY, seller, "seller", "see `tollway invoices sellers`")
    _check_new(file)
    with connect(control_url, key, data_dir) as control:
        path = f"/platform/legal_entities/{seller}/direct_debit_files"
        made = control.post(path, {"collect_on": date, "invoice_ids": invoices or []})
    _write_collection(made, file, output)


@app.command("collections")
def list_collections(
    output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """List the files of direct debits, and what became of their debits."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/direct_debit_files"))
    if output is Output.TABLE:
        rows = [{**each, "outcomes": ", ".join(f"{count} {name}" for name, count in each["outcomes"].items())} for each in rows]
    columns = ["id", "legal_entity_id", "collect_on", "debits", "total", "outcomes"]
    print_rows(output, columns, rows, none="no file was made: see `tollway payments collect`")


@app.command()
def collection(
    collection_id: CollectionId,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Write the file for the bank again.")] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show the debits of a file and what became of each, with the reason of the bank where it returned one."""
    check_id(ids.DIRECT_DEBIT_FILE, collection_id, "file", "see `tollway payments collections`")
    if file is not None:
        _check_new(file)
    with connect(control_url, key, data_dir) as control:
        found = control.get(f"/platform/direct_debit_files/{collection_id}")
    _write_collection(found, file, output)


@app.command()
def cancel(
    collection_id: CollectionId,
    invoices: Annotated[
        list[str] | None, typer.Option("--invoice", metavar="INVOICE", help="Only the debit of this invoice (repeatable).")
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Cancel the debits of a file that the bank does not collect, as it did not get or refused them: the next file can have them."""
    check_id(ids.DIRECT_DEBIT_FILE, collection_id, "file", "see `tollway payments collections`")
    with connect(control_url, key, data_dir) as control:
        found = control.post(f"/platform/direct_debit_files/{collection_id}/cancel", {"invoice_ids": invoices or []})
    _write_collection(found, None, output)


@app.command()
def payee(
    payment: Annotated[str, typer.Argument(metavar="PAYMENT", help="The refund (pay_...), as `tollway payments list` shows it.")],
    iban: Annotated[str, typer.Option("--iban", metavar="IBAN", help="The account.")],
    bic: Annotated[str, typer.Option("--bic", metavar="BIC", help="BIC of its bank, where it is needed.")] = "",
    holder: Annotated[str, typer.Option("--account-holder", metavar="NAME", help="Holder of the account; the buyer without it.")] = "",
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Say to which account a recorded refund is paid: the next file of `tollway payments transfer` has it."""
    check_id(ids.PAYMENT, payment, "payment", "see `tollway payments list`")
    with connect(control_url, key, data_dir) as control:
        found = control.put(f"/platform/payments/{payment}/payee", {"iban": iban, "bic": bic, "holder": holder})
    print_json(found) if output is Output.JSON else print(f"{payment}: {found['amount']} EUR to {found['iban']}, {found['outcome']}")


@app.command()
def transfer(
    seller: Annotated[str, typer.Argument(metavar="ENTITY", help="Its id (entity_...), as `tollway invoices sellers` shows it.")],
    date: Annotated[str, typer.Option("--date", metavar="DAY", help="Day of execution, such as 2026-12-15.")],
    file: Annotated[
        Path, typer.Option("-f", "--file", metavar="FILE", help="Where the file is written; one that is there is not replaced.")
    ],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Make a file of SEPA credit transfers (pain.001) for the bank of a seller: of refunds whose account is known."""
    check_id(ids.LEGAL_ENTITY, seller, "seller", "see `tollway invoices sellers`")
    _check_new(file)
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/legal_entities/{seller}/credit_transfer_files", {"execute_on": date})
    _write_transfers(made, file, output)


@app.command("transfers")
def list_transfers(output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None) -> None:
    """List the files of credit transfers."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/credit_transfer_files"))
    columns = ["id", "legal_entity_id", "execute_on", "transfers", "total"]
    print_rows(output, columns, rows, none="no file was made: see `tollway payments transfer`")


@app.command("transfer-file")
def transfer_file(
    file_id: TransferFileId,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Write the file for the bank again.")] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show the transfers of a file and what became of each."""
    check_id(ids.CREDIT_TRANSFER_FILE, file_id, "file", "see `tollway payments transfers`")
    if file is not None:
        _check_new(file)
    with connect(control_url, key, data_dir) as control:
        found = control.get(f"/platform/credit_transfer_files/{file_id}")
    _write_transfers(found, file, output)


@app.command("cancel-transfers")
def cancel_transfers(
    file_id: TransferFileId,
    payments: Annotated[
        list[str] | None, typer.Option("--payment", metavar="PAYMENT", help="Only the transfer of this refund (repeatable).")
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Cancel the transfers of a file that the bank does not execute, as it did not get or refused them: the next file has them."""
    check_id(ids.CREDIT_TRANSFER_FILE, file_id, "file", "see `tollway payments transfers`")
    with connect(control_url, key, data_dir) as control:
        found = control.post(f"/platform/credit_transfer_files/{file_id}/cancel", {"payment_ids": payments or []})
    _write_transfers(found, None, output)


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
            found = _get_account(control, "/organization/statement_of_account")
    else:
        with connect(control_url, key, data_dir) as control:
            found = _get_account(control, f"/platform/organizations/{control.get_organization(organization)['id']}/statement_of_account")
    if output is Output.JSON:
        print_json(found)
        return
    print_rows(output, ["id", "number", "due_on", "gross", "open"], found["open"], none="no open invoices")
    print(f"open {found['total_open']}, balance {found['balance']} {found['currency'].upper()}")


def _get_account(control: Control, path: str) -> dict[str, Any]:
    """Return how an organization stands, with all of its open invoices."""
    page: dict[str, Any] = control.get(path)
    shown = list(page["open"])
    while page["has_more"]:
        page = control.get(path, after=shown[-1]["id"])
        shown += page["open"]
    return {**page, "open": shown}


def _check_new(file: Path) -> None:
    """Refuse to replace a file, before anything is collected."""
    if file.exists() or not file.parent.is_dir():
        raise OperatorError(f"cannot write {file}: it is there already, or its folder is not", exit_code=2)


def _write_content(found: dict[str, Any], file: Path, command: str) -> None:
    try:
        file.write_text(found["content"], "utf-8")
    except OSError as error:
        hint = f"it is kept: `tollway payments {command} {found['id']} -f FILE`"
        raise OperatorError(f"cannot write {file}: {error}", hint=hint) from None


def _write_transfers(found: dict[str, Any], file: Path | None, output: Output) -> None:
    if file is not None:
        _write_content(found, file, "transfer-file")
    if output is Output.JSON:
        print_json(found)
        return
    print_rows(output, ["payment_id", "amount", "iban", "holder", "outcome", "reason"], found["data"], none="no transfers")
    print(f"{found['id']}: {found['total']} EUR on {found['execute_on']}")


def _write_collection(found: dict[str, Any], file: Path | None, output: Output) -> None:
    if file is not None:
        _write_content(found, file, "collection")
    if output is Output.JSON:
        print_json(found)
        return
    print_rows(output, ["end_to_end_id", "amount", "sequence", "mandate_reference", "outcome", "reason"], found["data"], none="no debits")
    for each in found["skipped"]:
        print(f"{each['number']} is not collected: {each['reason']}")
    print(f"{found['id']}: {found['total']} EUR on {found['collect_on']}")


def _print_payment(payment: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print_json(payment)
    else:
        print(f"{payment['id']}  {payment['kind']} of {payment['amount']} {payment['currency'].upper()} on {payment['value_on']}")
