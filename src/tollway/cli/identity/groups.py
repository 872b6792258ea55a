"""`tollway groups`: people who hold roles together."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OfProject = Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="A project; the organization if left out.")]


@app.command("list")
def list_groups(
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the groups of the organization, or of a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "" if project is None else f"/projects/{control.get_project(project)['id']}"
        rows = list(control.list_all(f"/organization{place}/groups"))
    print_rows(output, ["id", "name"] if project is None else ["group_id", "group_name"], rows, none="no groups yet")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the group.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a group without members and roles."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post("/organization/groups", {"name": name})
    print_json(made) if output is Output.JSON else print(f"{made['id']}")


@app.command()
def rename(
    group_id: Annotated[str, typer.Argument(metavar="GROUP_ID", help="Id, as `tollway groups list` shows it.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its new name.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Rename a group."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"/organization/groups/{segment(group_id)}", {"name": name})
    print_json(made) if output is Output.JSON else print(f"{group_id} is {name}")


@app.command()
def delete(
    group_id: Annotated[str, typer.Argument(metavar="GROUP_ID", help="Id, as `tollway groups list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a group; its members lose what it held."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"/organization/groups/{segment(group_id)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {group_id}")


@app.command()
def members(
    group_id: Annotated[str, typer.Argument(metavar="GROUP_ID", help="Id, as `tollway groups list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the people in a group."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(f"/organization/groups/{segment(group_id)}/users"))
    print_rows(output, ["id", "email", "name"], rows, none="nobody is in the group")


@app.command()
def add(
    group_id: Annotated[str, typer.Argument(metavar="GROUP_ID", help="Id, as `tollway groups list` shows it.")],
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Add a person to a group, whose roles they hold from then on."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"/organization/groups/{segment(group_id)}/users", {"user_id": user_id})
    print_json(made) if output is Output.JSON else print(f"added {user_id} to {group_id}")


@app.command()
def remove(
    group_id: Annotated[str, typer.Argument(metavar="GROUP_ID", help="Id, as `tollway groups list` shows it.")],
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Take a person out of a group."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"/organization/groups/{segment(group_id)}/users/{segment(user_id)}")
    print_json(gone) if output is Output.JSON else print(f"removed {user_id} from {group_id}")


@app.command()
def join(
    group_id: Annotated[str, typer.Argument(metavar="GROUP_ID", help="Id, as `tollway groups list` shows it.")],
    project: Annotated[str, typer.Option("--project", metavar="NAME|ID", help="The project.")],
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="Name or id of a role, as `tollway roles list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Add a group to a project with a role there."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}/groups"
        made = control.post(path, {"group_id": group_id, "role": role})
    print_json(made) if output is Output.JSON else print(f"{group_id} is {role} of the project")


@app.command()
def leave(
    group_id: Annotated[str, typer.Argument(metavar="GROUP_ID", help="Id, as `tollway groups list` shows it.")],
    project: Annotated[str, typer.Option("--project", metavar="NAME|ID", help="The project.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Take a group out of a project, with every role that it holds there."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"/organization/projects/{control.get_project(project)['id']}/groups/{segment(group_id)}")
    print_json(gone) if output is Output.JSON else print(f"{group_id} left the project")
