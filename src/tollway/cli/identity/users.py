"""`tollway users`: people of an organization and of its projects."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OfProject = Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="A project; the organization if left out.")]
COLUMNS = ["id", "email", "name", "role"]


@app.command("list")
def list_users(
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the people of the organization, or of a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "" if project is None else f"/projects/{control.get_project(project)['id']}"
        rows = list(control.list_all(f"/organization{place}/users"))
    print_rows(output, COLUMNS, rows, none="no people yet: see `tollway invites create`")


@app.command()
def add(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    project: Annotated[str, typer.Option("--project", metavar="NAME|ID", help="The project.")],
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="Name or id of a role, as `tollway roles list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Add a person of the organization to a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}/users"
        made = control.post(path, {"user_id": user_id, "role": role})
    print_json(made) if output is Output.JSON else print(f"added {user_id} to the project")


@app.command()
def update(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="Name or id of a role, as `tollway roles list` shows it.")],
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a person another role in the organization, or in a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "" if project is None else f"/projects/{control.get_project(project)['id']}"
        made = control.post(f"/organization{place}/users/{segment(user_id)}", {"role": role})
    print_json(made) if output is Output.JSON else print(f"{user_id} is {role}")


@app.command()
def remove(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Remove a person and revoke their keys; or take them out of a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = "" if project is None else f"/projects/{control.get_project(project)['id']}"
        gone = control.delete(f"/organization{place}/users/{segment(user_id)}")
    print_json(gone) if output is Output.JSON else print(f"removed {user_id}")


@app.command()
def link(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Print a link that signs a person in once within a day, to set their first password or one that they forgot."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"/organization/users/{segment(user_id)}/sign_in_links")
    print_json(made) if output is Output.JSON else print(made["url"])


@app.command()
def sessions(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List where a person is signed in."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.get(f"/organization/users/{segment(user_id)}/sessions")["data"])
    print_rows(output, ["id", "kind", "method", "address", "agent"], rows, none="not signed in anywhere")


@app.command("end-session")
def end_session(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    session_id: Annotated[str, typer.Argument(metavar="SESSION_ID", help="Id, as `tollway users sessions` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """End a session of a person, from its next request on."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"/organization/users/{segment(user_id)}/sessions/{segment(session_id)}")
    print_json(gone) if output is Output.JSON else print(f"ended {session_id}")


@app.command()
def reset(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Id, as `tollway users list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Remove a person's password, authenticator app and recovery codes, and end their sessions."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"/organization/users/{segment(user_id)}/credentials")
    print_json(gone) if output is Output.JSON else print(f"{user_id} has no password and no session any more: see `tollway users link`")
