"""`tollway service-accounts`: accounts of a project that belong to a program."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, Project, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_new_key, print_rows
from tollway.cli.times import Zone, with_times

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_accounts(
    project: Project = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the service accounts of a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(f"/organization/projects/{control.get_project(project)['id']}/service_accounts"))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), created="created_at")
    print_rows(output, ["id", "name", "role", "created"], rows, none="no service accounts yet")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the service account.")],
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a service account and print the secret of its key, which is shown only now."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"/organization/projects/{control.get_project(project)['id']}/service_accounts", {"name": name})
    print_new_key(output, made, made["api_key"]["value"])


@app.command()
def update(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT_ID", help="Id, as `tollway service-accounts list` shows it.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the service account; as before if left out.")] = None,
    role: Annotated[str | None, typer.Option("--role", metavar="ROLE", help="Role in the project: member or owner.")] = None,
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a service account another name or role."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}/service_accounts/{segment(account_id)}"
        made = control.post(path, {"name": name, "role": role})
    print_json(made) if output is Output.JSON else print(f"changed {account_id}")


@app.command("create-key")
def create_key(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT_ID", help="Id, as `tollway service-accounts list` shows it.")],
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Make one more key of a service account and print its secret, which is shown only now."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}/service_accounts/{segment(account_id)}/api_keys"
        made = control.post(path, {})
    print_new_key(output, made, made["value"])


@app.command()
def delete(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Name or id, as `tollway service-accounts list` shows it.")],
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a service account and revoke its keys."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        project_id = control.get_project(project)["id"]
        account_id = control.get_account_id(project_id, account)
        gone = control.delete(f"/organization/projects/{project_id}/service_accounts/{account_id}")
    print_json(gone) if output is Output.JSON else print(f"deleted {account_id}")
