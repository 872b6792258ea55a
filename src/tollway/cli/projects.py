"""`tollway projects`: parts of an organization, with keys and limits of their own."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, complete_projects, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json, print_rows

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_projects(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the projects that are not archived."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all("/organization/projects"))
    print_rows(output, ["id", "name", "status"], rows, none="no projects yet")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post("/organization/projects", {"name": name})
    print_json(made) if output is Output.JSON else print(made["id"])


@app.command()
def rename(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.", autocompletion=complete_projects)],
    name: Annotated[str, typer.Argument(help="New name.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Rename a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        changed = control.post(f"/organization/projects/{control.get_project(project)['id']}", {"name": name})
    print_json(changed) if output is Output.JSON else print(f"{changed['id']} is called {changed['name']}")


@app.command()
def archive(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.", autocompletion=complete_projects)],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Archive a project: its keys stop, and its usage stays."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        archived = control.post(f"/organization/projects/{control.get_project(project)['id']}/archive")
    print_json(archived) if output is Output.JSON else print(f"archived {archived['id']} ({archived['name']})")
