"""`tollway ledger` and `tollway anomalies`: the books, for operators."""

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, connect
from tollway.cli.output import Output, OutputOption, print_rows
from tollway.cli.tenancy.organizations import with_organizations
from tollway.cli.times import Zone
from tollway.domain.money import format_amount

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

BALANCE_COLUMNS = ["owner", "organization", "kind", "currency", "amount", "version"]


@app.command()
def balances(
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the balance of every account. Above zero it is owed to the platform."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/ledger/balances"))
        if output is Output.TABLE:
            names = control.list_organizations()
            rows = [{**row, "organization": names.get(row["owner"], {}).get("name")} for row in rows]
    print_rows(output, BALANCE_COLUMNS, rows, none="no postings yet")


@app.command()
def transactions(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List every transaction with the sum of its debits; -o json has its postings."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/ledger/transactions"))
        if output is Output.TABLE:
            debits = [sum(pico for entry in row["entries"] if (pico := int(entry["amount_pico"])) > 0) for row in rows]
            rows = [{**row, "amount": format_amount(pico)} for row, pico in zip(rows, debits, strict=True)]
            rows = with_organizations(control, rows, zone, booked="booked_at")
    columns = ["id", "booked", "organization", "organization_id", "cause", "events", "amount", "currency"]
    print_rows(output, columns, rows, none="no transactions yet")


def anomalies(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the requests whose usage report could not be true, with the reason and what was billed instead."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/anomalies"))
        if output is Output.TABLE:
            rows = with_organizations(control, rows, zone, ended="ended_at")
    columns = ["id", "ended", "anomaly", "organization", "model", "outcome", "usage_source", "input_tokens", "output_tokens"]
    print_rows(output, columns, rows, none="no anomalies")
