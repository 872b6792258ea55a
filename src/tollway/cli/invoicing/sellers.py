"""`tollway invoices` for sellers and buyers: legal entities, and billing accounts of organizations, from files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, check_id, connect
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.tenancy.organizations import OrganizationName
from tollway.domain import ids
from tollway.settings import OperatorError, read_yaml

FieldsFile = Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON file with its fields; docs/invoices.md has an example.")]
EntityOption = Annotated[str | None, typer.Option("--seller", metavar="ENTITY", help="The seller to change; a new one is made without it.")]


def list_sellers(output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None) -> None:
    """List the legal entities that sell, with their series of numbers."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/legal_entities"))
    if output is Output.TABLE:
        rows = [{**each, "country": each["address"]["country"]} for each in rows]
    columns = ["id", "name", "country", "vat_id", "invoice_series", "credit_note_series", "grace_days"]
    print_rows(output, columns, rows, none="no seller: see `tollway invoices set-seller`")


def set_seller(
    file: FieldsFile,
    entity_id: EntityOption = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Set up a legal entity that sells, or change one. Issued documents keep what they say of it."""
    body = _read_fields(file)
    with connect(control_url, key, data_dir) as control:
        if entity_id is None:
            made = control.post("/platform/legal_entities", body)
        else:
            check_id(ids.LEGAL_ENTITY, entity_id, "seller", "see `tollway invoices sellers`")
            made = control.put(f"/platform/legal_entities/{entity_id}", body)
    print_json(made) if output is Output.JSON else print(f"{made['id']}  {made['name']}")


def show_account(
    organization: OrganizationName,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show how an organization is invoiced: its billing account."""
    with connect(control_url, key, data_dir) as control:
        _print_account(control.get(_path(control, organization)), output)


def set_account(
    organization: OrganizationName,
    file: FieldsFile,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Set how an organization is invoiced: its billing account. Issued documents keep what they say of it."""
    body = _read_fields(file)
    with connect(control_url, key, data_dir) as control:
        _print_account(control.put(_path(control, organization), body), output)


def _path(control: Control, organization: str) -> str:
    return f"/platform/organizations/{control.get_organization(organization)['id']}/billing_account"


def _read_fields(file: Path) -> dict[str, Any]:
    fields = read_yaml(file)
    if not isinstance(fields, dict):
        raise OperatorError(f"{file} has no fields", hint="see docs/invoices.md", exit_code=2)
    return fields


def _print_account(found: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print_json(found)
        return
    account, address = found["account"], found["account"]["address"]
    print(f"{found['organization_id']}  {account['name']}, {address['postal_code']} {address['city']}, {address['country']}")
    print(f"  billed by {account['legal_entity_id']}, payable within {account['payment_days']} days, in language {account['language']}")
