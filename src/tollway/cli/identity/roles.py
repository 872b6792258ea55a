"""`tollway roles`: named sets of permissions, and who holds them."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.domain import ids

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OfProject = Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="A project; the organization if left out.")]
Permissions = Annotated[list[str], typer.Option("--permission", metavar="NAME", help="A permission, such as api_keys.read (repeatable).")]


@app.command("list")
def list_roles(
    project: OfProject = None,
    holder: Annotated[
        str | None, typer.Option("--holder", metavar="USER_ID|GROUP_ID", help="Only what this person or group holds.")
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the roles of the organization, or of a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "/organization" if project is None else f"/projects/{control.get_project(project)['id']}"
        held = "" if holder is None else f"/{_kind(holder)}/{segment(holder)}"
        rows = list(control.list_all(f"{place}{held}/roles"))
    print_rows(output, ["id", "name", "description"], rows, none="no roles")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the role.")],
    permission: Permissions,
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a role. It contains no permission that your key does not have."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "/organization" if project is None else f"/projects/{control.get_project(project)['id']}"
        made = control.post(f"{place}/roles", {"role_name": name, "permissions": permission})
    print_json(made) if output is Output.JSON else print(f"{made['id']}")


@app.command()
def update(
    role_id: Annotated[str, typer.Argument(metavar="ROLE_ID", help="Id, as `tollway roles list` shows it.")],
    permission: Permissions,
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a role other permissions: exactly those that are named."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "/organization" if project is None else f"/projects/{control.get_project(project)['id']}"
        made = control.post(f"{place}/roles/{segment(role_id)}", {"permissions": permission})
    print_json(made) if output is Output.JSON else print(f"{role_id} has {', '.join(made['permissions'])}")


@app.command()
def delete(
    role_id: Annotated[str, typer.Argument(metavar="ROLE_ID", help="Id, as `tollway roles list` shows it.")],
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a role that nobody holds."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "/organization" if project is None else f"/projects/{control.get_project(project)['id']}"
        gone = control.delete(f"{place}/roles/{segment(role_id)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {role_id}")


@app.command()
def give(
    role_id: Annotated[str, typer.Argument(metavar="ROLE_ID", help="Id, as `tollway roles list` shows it.")],
    holder_id: Annotated[str, typer.Argument(metavar="USER_ID|GROUP_ID", help="A person or a group.")],
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a role to a person or a group."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "/organization" if project is None else f"/projects/{control.get_project(project)['id']}"
        made = control.post(f"{place}/{_kind(holder_id)}/{segment(holder_id)}/roles", {"role_id": role_id})
    print_json(made) if output is Output.JSON else print(f"{holder_id} has {role_id}")


@app.command()
def take(
    role_id: Annotated[str, typer.Argument(metavar="ROLE_ID", help="Id, as `tollway roles list` shows it.")],
    holder_id: Annotated[str, typer.Argument(metavar="USER_ID|GROUP_ID", help="A person or a group.")],
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Take a role from a person or a group."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "/organization" if project is None else f"/projects/{control.get_project(project)['id']}"
        gone = control.delete(f"{place}/{_kind(holder_id)}/{segment(holder_id)}/roles/{segment(role_id)}")
    print_json(gone) if output is Output.JSON else print(f"{holder_id} no longer has {role_id}")


def _kind(holder_id: str) -> str:
    return "groups" if holder_id.startswith(ids.GROUP + "_") else "users"
