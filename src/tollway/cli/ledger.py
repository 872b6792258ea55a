"""`tollway ledger` and `tollway anomalies`: the books, for operators."""

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

BALANCE_COLUMNS = ["owner", "kind", "currency", "amount", "version"]


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
    print_rows(output, BALANCE_COLUMNS, rows, none="no postings yet")


@app.command()
def transactions(
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Print every transaction with its postings as JSON."""
    with connect(control_url, key, data_dir) as control:
        print_json(list(control.list_all("/platform/ledger/transactions")))


def anomalies(
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Print the requests whose usage report could not be true as JSON, with the reason and what was billed instead."""
    with connect(control_url, key, data_dir) as control:
        print_json(list(control.list_all("/platform/anomalies")))
