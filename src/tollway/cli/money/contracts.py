"""`tollway contracts`: what was agreed with organizations, and what their bills come to by it."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.tenancy.organizations import OrganizationName
from tollway.cli.times import Zone, read_instant, show_instant
from tollway.domain import ids
from tollway.settings import OperatorError, read_yaml

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PeriodId = Annotated[str, typer.Argument(metavar="PERIOD", help="Its id (period_...), as `tollway periods list` shows it.")]
ContractId = Annotated[str, typer.Argument(metavar="CONTRACT", help="Its id (contract_...), as `tollway contracts list` shows it.")]
TermsFile = Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON file with its terms; docs/contracts.md has an example.")]


@app.command("list")
def list_contracts(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the contracts of the organization, in the order in which they were made."""
    with connect_tenant(control_url, key, data_dir, organization) as tenant:
        rows = list(tenant.list_all("/organization/contracts"))
        shown_zone = tenant.get_zone(zone)
    if output is Output.TABLE:
        rows = [
            {
                **each,
                "name": each["terms"]["name"],
                "from": show_instant(each["valid_from"], shown_zone),
                "until": each["valid_until"] and show_instant(each["valid_until"], shown_zone),
            }
            for each in rows
        ]
    print_rows(output, ["id", "name", "from", "until"], rows, none="no contract: see `tollway contracts create`")


@app.command()
def create(
    organization: OrganizationName,
    file: TermsFile,
    replaces: Annotated[
        str | None,
        typer.Option(metavar="CONTRACT", help="A contract that ends where this one begins, as `tollway contracts list` shows it."),
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Agree on a contract with an organization. Its terms never change; another plan is another contract."""
    body = _read_terms(file)
    if replaces is not None:
        check_id(ids.CONTRACT, replaces, "contract", "see `tollway contracts list`")
        body["replaces"] = replaces
    with connect(control_url, key, data_dir) as control:
        organization_id = control.get_organization(organization)["id"]
        made = control.post(f"/platform/organizations/{organization_id}/contracts", body)
    print_json(made) if output is Output.JSON else print(f"{made['id']}  {made['terms']['name']}")


@app.command()
def end(
    organization: OrganizationName,
    contract_id: ContractId,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="When it ends, such as 2027-07-01; now without it.")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """End a contract. What is missing of a commitment is due then."""
    check_id(ids.CONTRACT, contract_id, "contract", "see `tollway contracts list`")
    with connect(control_url, key, data_dir) as control:
        organization_id = control.get_organization(organization)["id"]
    body: dict[str, Any] = {}
    if at is not None:
        with connect_tenant(control_url, key, data_dir, organization_id) as tenant:
            body["valid_until"] = read_instant(at, tenant.get_zone(zone), time.time(), option="--at")
    with connect(control_url, key, data_dir) as control:
        ended = control.post(f"/platform/organizations/{organization_id}/contracts/{contract_id}/end", body)
    print_json(ended) if output is Output.JSON else print(f"ended {contract_id}")


@app.command()
def bill(
    period_id: PeriodId,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show what a billing period comes to before tax, with contracts and credit: so far, if it is not closed."""
    check_id(ids.PERIOD, period_id, "period", "see `tollway periods list`")
    with connect_tenant(control_url, key, data_dir, organization) as tenant:
        _print_bill(tenant.get(f"/organization/periods/{period_id}/bill"), output)


@app.command()
def preview(
    organization: OrganizationName,
    period_id: PeriodId,
    file: Annotated[
        Path | None,
        typer.Option("--contract", metavar="FILE", help="Terms of a draft that counts for the whole period, in place of the contracts."),
    ] = None,
    is_change: Annotated[
        bool,
        typer.Option("--as-change", help="The draft counts from its `valid_from` on (now without it), the present contract until then."),
    ] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show what a period of an organization comes to by its contracts, or would come to under a draft, with the difference. Nothing is
    stored."""
    check_id(ids.PERIOD, period_id, "period", "see `tollway periods list`")
    if is_change and file is None:
        raise OperatorError("--as-change needs the draft", hint="add --contract FILE", exit_code=2)
    body: dict[str, Any] = {"period_id": period_id, "contract": None if file is None else _read_terms(file), "as_change": is_change}
    with connect(control_url, key, data_dir) as control:
        organization_id = control.get_organization(organization)["id"]
        _print_bill(control.post(f"/platform/organizations/{organization_id}/bill_preview", body), output)


def _read_terms(file: Path) -> dict[str, Any]:
    terms = read_yaml(file)
    if not isinstance(terms, dict):
        raise OperatorError(f"{file} has no terms", hint="see docs/contracts.md", exit_code=2)
    return terms


def _print_bill(found: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print_json(found)
        return
    rows = [{"item": name, "amount": found[name]} for name in ("usage", "corrections") if found[name] != "0"]
    for line in found["contract_lines"]:
        about = line["name"] or ", ".join(filter(None, (line["model"], line["billing_class"])))
        rows.append({"item": line["kind"].replace("_", " ") + (f": {about}" if about else ""), "amount": line["amount"]})
    if found["credit"] != "0":
        rows.append({"item": "paid by credit", "amount": f"-{found['credit']}"})
    rows.append({"item": "total before tax" if found["is_final"] else "total so far", "amount": found["total"]})
    if found["present_total"] is not None:
        rows.append({"item": "total without the draft", "amount": found["present_total"]})
        rows.append({"item": "difference", "amount": found["difference"]})
    print_rows(output, ["item", "amount"], rows)
    print(f"in {found['currency'].upper()}")
