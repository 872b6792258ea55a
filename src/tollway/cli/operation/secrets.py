"""`tollway secrets`: the secrets of an installation whose processes do not share a data directory."""

import typer

from tollway.cli.output import Output, OutputOption, print_json
from tollway.serve import data_directory

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def secrets() -> None:
    """Secrets of a cluster's processes."""


@app.command("new")
def new_secrets(output: OutputOption = Output.TABLE) -> None:
    """Print fresh secrets, one variable a line, as an environment file. Nothing is stored.

    Gateways need TOLLWAY_PEPPER and TOLLWAY_VAULT_KEY, and each a key of its own (see `tollway nodes create`); control needs
    TOLLWAY_PLATFORM_KEY as well. TOLLWAY_SECOND_PLATFORM_KEY is for a second person, who approves large corrections; leave it out if there
    is none. TOLLWAY_AUDIT_KEY signs the audit trail, for control only. Keep them in a secret store and in the backup: without the
    pepper no API key is valid, and without the vault key no upstream credential can be opened.
    """
    fresh = data_directory.new_secrets()
    print_json(fresh) if output is Output.JSON else print("\n".join(f"{name}={value}" for name, value in fresh.items()))
