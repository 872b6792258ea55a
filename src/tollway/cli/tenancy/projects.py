"""`tollway projects`: parts of an organization, with keys and limits of their own."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, complete_models, complete_projects, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain.data_retention import CONTENT_RETENTION_SECONDS_MAX
from tollway.domain.project_policies import ModelMode
from tollway.settings import OperatorError

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
    shown = rows if output is Output.JSON else [{**row, "residency": ", ".join(row["residency"] or ()) or None} for row in rows]
    print_rows(output, ["id", "name", "status", "residency"], shown, none="no projects yet")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name.")],
    region: Annotated[
        list[str] | None, typer.Option("--region", help="Region of deployments that may serve it; may be repeated. [any]")
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post("/organization/projects", {"name": name, "residency": region or None})
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
def residency(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.", autocompletion=complete_projects)],
    regions: Annotated[list[str] | None, typer.Argument(metavar="REGION...", help="Regions of deployments that may serve it.")] = None,
    any_region: Annotated[bool, typer.Option("--any", help="Let deployments of any region serve it.")] = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Restrict a project to deployments in these regions. One whose region is not stated serves no restricted project."""
    if bool(regions) is any_region:
        raise OperatorError("name regions, or --any", hint="tollway projects residency PROJECT eu-central-1", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}"
        changed = control.post(path, {"residency": None if any_region else regions})
    allowed = ", ".join(changed["residency"] or ["any region"])
    print_json(changed) if output is Output.JSON else print(f"{changed['id']} ({changed['name']}) may be served in: {allowed}")
    if changed["pending_nodes"]:
        print(f"not confirmed yet by: {', '.join(changed['pending_nodes'])}", file=sys.stderr)


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


ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.", autocompletion=complete_projects)]
Models = Annotated[list[str] | None, typer.Option("--model", metavar="MODEL", help="Repeatable.", autocompletion=complete_models)]


@app.command("show-models")
def show_models(
    project: ProjectArgument,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show which models the keys of a project may use."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.get(f"/organization/projects/{control.get_project(project)['id']}/model_permissions")
    print_json(found) if output is Output.JSON else print(_describe_models(found))


@app.command("set-models")
def set_models(
    project: ProjectArgument,
    mode: Annotated[ModelMode, typer.Argument(help="allow_list: only these models; deny_list: all but these.")],
    models: Models = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Say which models the keys of a project may use."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}/model_permissions"
        found = control.post(path, {"mode": mode, "model_ids": models or []})
    print_json(found) if output is Output.JSON else print(_describe_models(found))


@app.command("reset-models")
def reset_models(
    project: ProjectArgument,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Let the keys of a project use every published model."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        done = control.delete(f"/organization/projects/{control.get_project(project)['id']}/model_permissions")
    print_json(done) if output is Output.JSON else print("every published model")


@app.command("show-tiers")
def show_tiers(
    project: ProjectArgument,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show the service tiers of a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.get(f"/organization/projects/{control.get_project(project)['id']}/service_tier_settings")
    print_json(found) if output is Output.JSON else print(_describe_tiers(found))


@app.command("set-tiers")
def set_tiers(
    project: ProjectArgument,
    default: Annotated[
        str | None, typer.Option("--default-tier", metavar="TIER", help="Tier of requests that ask for none: standard or fast.")
    ] = None,
    enable: Annotated[
        list[str] | None,
        typer.Option("--enable-tier", metavar="TIER", help="Tier beside the standard one: flex or fast, all or none. Repeatable."),
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change the service tiers of a project; what is left out stays."""
    body: dict[str, object] = {} if default is None else {"default": default}
    if enable:
        body["enabled_tiers"] = "all" if enable == ["all"] else [] if enable == ["none"] else enable
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.post(f"/organization/projects/{control.get_project(project)['id']}/service_tier_settings", body)
    print_json(found) if output is Output.JSON else print(_describe_tiers(found))


@app.command()
def retention(
    project: ProjectArgument,
    type: Annotated[
        str | None,
        typer.Option(
            "--retention-type",
            metavar="TYPE",
            help="One of organization_default, none, zero_data_retention, modified_abuse_monitoring, and their enhanced_ forms.",
        ),
    ] = None,
    content_days: Annotated[
        int | None,
        typer.Option(
            "--content-days",
            metavar="DAYS",
            min=1,
            max=CONTENT_RETENTION_SECONDS_MAX // 86_400,
            help="Log the content of requests, and keep it for so many days; with --retention-type none only.",
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show or set what may be kept of the content of a project's requests. Content that is logged no longer is deleted."""
    if content_days is not None and type != "none":
        raise OperatorError("--content-days needs --retention-type none", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}/data_retention"
        seconds = None if content_days is None else content_days * 86_400
        body = {"retention_type": type, "content_retention_seconds": seconds}
        found = control.get(path) if type is None else control.post(path, body)
    if output is Output.JSON:
        print_json(found)
        return
    kept = found["content_retention_seconds"]
    print(f"{found['type']}; content is {'not logged' if kept is None else f'logged for {kept / 86_400:g} days'}")


@app.command()
def content(
    project: ProjectArgument,
    request: Annotated[str | None, typer.Argument(metavar="REQUEST", help="Id of one request, whose content is printed as JSON.")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the requests of a project whose content is logged, or print the content of one. Both are recorded in the audit trail."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"/organization/projects/{control.get_project(project)['id']}/content"
        if request is not None:
            print_json(control.get(f"{path}/{segment(request)}"))
            return
        rows = list(control.list_all(path))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), at="created_at")
    print_rows(output, ["id", "at", "api_key_id", "endpoint", "model"], rows, none="no content is logged")


def _describe_models(found: Mapping[str, Any]) -> str:
    names = ", ".join(found["model_ids"]) or "none"
    if found["mode"] == ModelMode.ALLOW_LIST:
        return f"only: {names}"
    return f"every published model but: {names}" if found["model_ids"] else "every published model"


def _describe_tiers(found: Mapping[str, Any]) -> str:
    enabled = found["enabled_tiers"]
    return f"default: {found['default']}; enabled: {enabled if enabled == 'all' else ', '.join(['standard', *enabled])}"
