"""`tollway invoices`: draft, issue, correct, download and verify invoices."""

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, check_id, connect, connect_tenant
from tollway.cli.invoicing.exports import export_books, export_focus
from tollway.cli.invoicing.sellers import list_sellers, set_account, set_seller, show_account
from tollway.cli.money.period_exports import find_period
from tollway.cli.output import Output, OutputOption, print_fields, print_json, print_rows, written_whole
from tollway.cli.tenancy.organizations import with_organizations
from tollway.cli.times import Zone
from tollway.domain import ids
from tollway.domain.currencies import get_currency
from tollway.domain.invoice_replay import find_differences
from tollway.domain.invoices import InvoiceState, decode_document, digest_document
from tollway.domain.money import format_minor

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command("sellers")(list_sellers)
app.command("set-seller")(set_seller)
app.command("account")(show_account)
app.command("set-account")(set_account)
app.command("focus")(export_focus)
app.command("books")(export_books)

LISTED = "see `tollway invoices list`"
COLUMNS = ["id", "number", "kind", "state", "organization", "net", "tax", "gross", "currency", "due_on"]

InvoiceId = Annotated[str, typer.Argument(metavar="INVOICE", help="Its id (inv_...), as `tollway invoices list` shows it.")]
PeriodName = Annotated[str, typer.Argument(metavar="PERIOD", help="Its month, such as 2026-11, or its id.")]
OrganizationFilter = Annotated[str | None, typer.Option("--organization", metavar="NAME|ID", help="Only of this organization.")]


@app.command("list")
def list_invoices(
    organization: OrganizationFilter = None,
    state: Annotated[InvoiceState | None, typer.Option("--state", help="Only those in this state.")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the invoices and credit notes of all organizations, or of one."""
    with connect(control_url, key, data_dir) as control:
        organization_id = None if organization is None else control.get_organization(organization)["id"]
        rows = list(control.list_all("/platform/invoices", organization_id=organization_id, state=state))
        if output is Output.TABLE:
            rows = with_organizations(control, rows, zone)
    print_rows(output, COLUMNS, rows, none="no invoices: see `tollway invoices draft`")


@app.command()
def own(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the issued invoices and credit notes of the organization, as it sees them itself."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all("/organization/invoices"))
    print_rows(output, [name for name in COLUMNS if name != "organization"], rows, none="no issued invoices")


@app.command()
def show(
    invoice: InvoiceId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show an invoice or credit note."""
    _check(invoice)
    with connect(control_url, key, data_dir) as control:
        print_fields(output, control.get(f"/platform/invoices/{invoice}"))


@app.command()
def preview(
    period: PeriodName,
    organization: OrganizationFilter = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show by which lines a billing period would be billed now. Nothing is stored."""
    with connect(control_url, key, data_dir) as control:
        found = control.get(f"/platform/periods/{_find_period(control, period, organization)}/invoice_preview")
    if output is Output.JSON:
        print_json(found)
        return
    for document in found["data"]:
        units = get_currency(document["currency"]).minor_units
        rows = [{**line, "net": format_minor(line["net_minor"], units)} for line in document["lines"]]
        print_rows(output, ["number", "description", "service_tier", "quantity", "unit", "net"], rows, none="no lines")
        net, tax, gross = (format_minor(document["totals"][f"{name}_minor"], units) for name in ("net", "tax", "gross"))
        print(f"{document['kind']}: net {net}, tax {tax}, gross {gross} {document['currency']}")
    if not found["data"]:
        print("there is nothing to invoice")


@app.command()
def draft(
    period: PeriodName,
    organization: OrganizationFilter = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Draft the documents of a closed billing period, in place of drafts that it has."""
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/periods/{_find_period(control, period, organization)}/invoices")
    print_rows(output, [name for name in COLUMNS if name not in ("organization", "number", "due_on")], made["data"])


@app.command()
def issue(
    invoices: Annotated[list[str], typer.Argument(metavar="INVOICE...", help="Ids of drafts (inv_...), in the order of their numbers.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Issue drafts: each gets the next number of its series and never changes again."""
    for invoice in invoices:
        _check(invoice)
    with connect(control_url, key, data_dir) as control:
        issued = [control.post(f"/platform/invoices/{invoice}/issue") for invoice in invoices]
    if output is Output.JSON:
        print_json(issued)
        return
    for each in issued:
        due = f"due on {each['due_on']}" if each["due_on"] else "nothing is to be paid"
        print(f"issued {each['number']}  {each['gross']} {each['currency'].upper()}, {due}")


@app.command()
def void(
    invoice: InvoiceId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Void a draft: it is never issued. An issued invoice is cancelled by `tollway invoices credit`."""
    _check(invoice)
    with connect(control_url, key, data_dir) as control:
        _print_changed(control.post(f"/platform/invoices/{invoice}/void"), output, f"voided {invoice}")


@app.command()
def credit(
    invoice: InvoiceId,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason, which stands on the document.")],
    amount: Annotated[str | None, typer.Option("--amount", help="What is given back before tax; all of it without this option.")] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Draft a credit note to an issued invoice: about an amount, or about all of it, which cancels the invoice."""
    _check(invoice)
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/invoices/{invoice}/credit_notes", {"amount": amount, "reason": reason})
    _print_changed(made, output, f"drafted {made['id']}: {made['net']} {made['currency'].upper()} before tax")


@app.command()
def download(
    invoice: InvoiceId,
    format: Annotated[
        str, typer.Option("--format", help="Form of the file: pdf, ubl or cii (XRechnung), or json, which can be verified.")
    ] = "pdf",
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    is_own: Annotated[bool, typer.Option("--own", help="As the organization, in place of the operator.")] = False,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Download an invoice or credit note."""
    _check(invoice)
    if is_own:
        with connect_tenant(control_url, key, data_dir, organization) as control, written_whole(file) as writer:
            control.download(f"/organization/invoices/{invoice}/files/{format}", writer)
        return
    with connect(control_url, key, data_dir) as control, written_whole(file) as writer:
        control.download(f"/platform/invoices/{invoice}/files/{format}", writer)


@app.command()
def verify(
    invoice: InvoiceId,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Compute an issued invoice again on this machine, from the export of its period. Exits with 1 if anything differs."""
    _check(invoice)
    with connect_tenant(control_url, key, data_dir, organization) as control, TemporaryFile() as export:
        shown, content = control.get(f"/organization/invoices/{invoice}"), BytesIO()
        control.download(f"/organization/invoices/{invoice}/files/json", content)
        document = decode_document(content.getvalue())
        differences = [] if digest_document(content.getvalue()) == shown["digest"] else ["the document does not have its digest"]
        if shown["period_id"] is not None:
            control.download(f"/organization/periods/{shown['period_id']}/export", export)
            export.seek(0)
        differences += find_differences(document, export)
    if output is Output.JSON:
        print_json({"id": invoice, "number": document.number, "digest": shown["digest"], "differences": differences})
    else:
        print("\n".join(differences) or f"{document.number} agrees with the records of its period: digest {shown['digest']}")
    if differences:
        raise typer.Exit(1)


def _find_period(control: Control, period: str, organization: str | None) -> str:
    organization_id = None if organization is None else control.get_organization(organization)["id"]
    return find_period(control.list_all("/platform/periods", organization_id=organization_id), period)


def _check(invoice: str) -> None:
    check_id(ids.INVOICE, invoice, "invoice", LISTED)


def _print_changed(answer: dict[str, Any], output: Output, text: str) -> None:
    print_json(answer) if output is Output.JSON else print(text)
