"""`tollway credits`: what organizations were given or have paid in advance."""

import time
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, complete_projects, connect, connect_tenant
from tollway.cli.output import Output, OutputOption, print_fields, print_json, print_rows
from tollway.cli.tenancy.organizations import OrganizationName, with_organizations
from tollway.cli.times import Zone, read_instant, show_instant
from tollway.domain import ids
from tollway.domain.credits import GrantCategory, TopupInterval
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

GrantId = Annotated[str, typer.Argument(metavar="GRANT", help="Its id (grant_...), as `tollway credits list` shows it.")]


@app.command("list")
def list_credits(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the organization's credit in the order in which it burns, and what any request can use now."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.get("/organization/credits")
        shown_zone = control.get_zone(zone)
    if output is Output.JSON:
        print_json(found)
        return
    rows = [{**each, "expires": each["expires_at"] and show_instant(each["expires_at"], shown_zone)} for each in found["data"]]
    columns = ["id", "category", "amount", "used", "left", "currency", "priority", "expires", "project_id", "model", "reference"]
    print_rows(output, columns, rows, none="no credit: see `tollway credits grant`")
    held = "requests are refused beyond it" if found["is_prepaid"] else "requests are not held to it"
    print(f"usable now: {found['usable']} {found['currency'].upper()} ({held})")


@app.command()
def statement(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List what was booked on the organization's grants: granted, burned by closed periods, expired, voided."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all("/organization/credits/statement"))
        shown_zone = control.get_zone(zone)
    if output is Output.TABLE:
        rows = [
            {
                **each,
                "booked": show_instant(each["booked_at"], shown_zone),
                "period": each["period_start_time"] and show_instant(each["period_start_time"], shown_zone),
            }
            for each in rows
        ]
    print_rows(output, ["booked", "move", "amount", "grant_id", "period"], rows, none="nothing was booked")


@app.command()
def grant(
    organization: OrganizationName,
    category: Annotated[GrantCategory, typer.Argument(help="paid, promotional or goodwill.")],
    amount: Annotated[str, typer.Argument(help="Such as 100 or 12.50, in the organization's currency.")],
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="When it expires, such as 2027-12-31 or 2027-12-31T12:00.")
    ] = None,
    priority: Annotated[int, typer.Option("--priority", metavar="NUMBER", help="The lowest number burns first.")] = 0,
    cost_basis: Annotated[
        int | None, typer.Option("--cost-basis", metavar="PERCENT", help="What is paid for it; 100 if paid, else 0.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="NAME|ID", help="The project whose requests alone use it.", autocompletion=complete_projects),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="A model or a group of models (group:NAME) whose requests alone use it."),
    ] = None,
    reference: Annotated[str | None, typer.Option("--reference", metavar="TEXT", help="The payment or decision behind it.")] = None,
    topup_id: Annotated[str | None, typer.Option("--topup", metavar="ID", help="The top-up that it answers (topup_...).")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Grant credit to an organization. It pays what is used from now on."""
    named = {"cost_basis_percent": cost_basis, "model": model, "reference": reference, "topup_id": topup_id}
    body: dict[str, Any] = {"category": category, "amount": amount, "priority": priority}
    body |= {field: value for field, value in named.items() if value is not None}
    with connect(control_url, key, data_dir) as control:
        organization_id = control.get_organization(organization)["id"]
    with connect_tenant(control_url, key, data_dir, organization_id) as tenant:
        if expires is not None:
            body["expires_at"] = read_instant(expires, tenant.get_zone(zone), time.time(), option="--expires")
        if project is not None:
            body["project_id"] = tenant.get_project(project)["id"]
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/organizations/{organization_id}/credit_grants", body)
    _print_changed(made, output, f"granted {made['id']}")


@app.command()
def void(
    organization: OrganizationName,
    grant_id: GrantId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """End a grant: no request uses more of it. What was burned of it stays burned."""
    check_id(ids.CREDIT_GRANT, grant_id, "grant", "see `tollway credits list`")
    with connect(control_url, key, data_dir) as control:
        organization_id = control.get_organization(organization)["id"]
        gone = control.post(f"/platform/organizations/{organization_id}/credit_grants/{grant_id}/void")
    _print_changed(gone, output, f"voided {grant_id}")


@app.command()
def topup(
    organization: OrganizationName,
    below: Annotated[str | None, typer.Option("--below", metavar="AMOUNT", help="Ask once less than this is usable.")] = None,
    every: Annotated[
        TopupInterval | None, typer.Option("--every", help="Ask once in each calendar week or month, from the next one on.")
    ] = None,
    amount: Annotated[str | None, typer.Option("--amount", help="How much to ask for.")] = None,
    cooloff_hours: Annotated[int, typer.Option("--cooloff-hours", help="Least time from any top-up to one by --below.")] = 24,
    off: Annotated[bool, typer.Option("--off", help="Ask for no more credit.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Ask for more credit of an organization once less than a threshold is usable, or once in each week or month, or both.

    `tollway credits topups` lists what was asked for."""
    is_rule = amount is not None and not (below is None and every is None)
    if off is is_rule or (off and not (amount is below is every is None)):
        raise OperatorError("name --amount with --below, --every or both; or --off", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        path = f"/platform/organizations/{control.get_organization(organization)['id']}/credit_topup_rule"
        if off:
            answer = control.delete(path)
        else:
            body = {"threshold": below, "every": every, "amount": amount, "cooloff_seconds": 3600 * cooloff_hours}
            answer = control.put(path, body)
    _print_changed(answer, output, "no top-ups" if off else _describe_rule(answer))


def _describe_rule(rule: dict[str, Any]) -> str:
    occasions = [] if rule["threshold"] is None else [f"once less than {rule['threshold']} is usable"]
    if rule["every"] is not None:
        occasions.append(f"once in each {rule['every']}")
    return f"asks for {rule['amount']} {' and '.join(occasions)}"


@app.command()
def topups(
    open_only: Annotated[bool, typer.Option("--open", help="Only those that no grant has answered.")] = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the credit that rules asked for, of all organizations."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/credit_topups", only_open=open_only or None))
        if output is Output.TABLE:
            rows = with_organizations(control, rows, zone, asked="requested_at", period="period_start_time")
    print_rows(output, ["id", "asked", "organization", "amount", "usable", "period", "grant_id"], rows, none="nothing was asked for")


@app.command()
def prepaid(
    organization: OrganizationName,
    is_prepaid: Annotated[bool, typer.Option("--on/--off", help="Whether requests are refused once no credit is usable.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Hold an organization's requests to its credit, or not any more."""
    with connect(control_url, key, data_dir) as control:
        organization_id = control.get_organization(organization)["id"]
        made = control.put(f"/platform/organizations/{organization_id}/prepayment", {"is_prepaid": is_prepaid})
    print_fields(output, made)


def _print_changed(answer: dict[str, Any], output: Output, text: str) -> None:
    if output is Output.JSON:
        print_json(answer)
    else:
        print(text)
