"""`tollway admin-keys`: keys that administer one organization."""

from typing import Annotated

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, choose_id, connect_tenant
from tollway.cli.identity.rotation import GraceSeconds, report_rotation
from tollway.cli.output import Output, OutputOption, print_json, print_new_key, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

KeyName = Annotated[str, typer.Argument(metavar="NAME|ID", help="Name or id, as `tollway admin-keys list` shows it.")]


@app.command("list")
def list_keys(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the keys, without their secrets."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all("/organization/admin_api_keys"))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), created="created_at", last_used="last_used_at")
    columns = ["id", "name", "role", "project_id", "redacted_value", "created", "last_used"]
    print_rows(output, columns, rows, none="no keys yet: see `tollway admin-keys create`")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Purpose of the key.")],
    role: Annotated[
        str | None, typer.Option("--role", metavar="ROLE", help="Name or id of its role, such as viewer. [default: that of your key]")
    ] = None,
    project: Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="Hold the role in this project only.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="USER_ID", help="Person whose key it is, and whose roles it has.")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print its secret, which is shown only now."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        wanted = {
            "name": name,
            "role": role,
            "project_id": None if project is None else control.get_project(project)["id"],
            "user_id": user,
        }
        made = control.post("/organization/admin_api_keys", {field: value for field, value in wanted.items() if value is not None})
    print_new_key(output, made, made["value"])


@app.command()
def rotate(
    name: KeyName,
    grace_seconds: GraceSeconds = GRACE_SECONDS_DEFAULT,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a key another secret and print it, this once: on standard output, alone on its line. The old one stays valid for the grace."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        key_id = _get_id(control, name)
        made = control.post(f"/organization/admin_api_keys/{key_id}/rotate", {"grace_seconds": grace_seconds})
        zone = control.get_zone(None)
    if output is Output.JSON:
        print_json(made)
        return
    report_rotation(made, zone, "admin-keys")
    print(made["value"])


@app.command()
def retire(
    name: KeyName,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke the secret that a key had before its rotation, before its grace ends."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        key_id = _get_id(control, name)
        retired = control.post(f"/organization/admin_api_keys/{key_id}/retire", {})
    print_json(retired) if output is Output.JSON else print(f"retired the old secret of {key_id}")


@app.command()
def revoke(
    name: KeyName,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key permanently."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        key_id = _get_id(control, name)
        gone = control.delete(f"/organization/admin_api_keys/{key_id}")
    print_json(gone) if output is Output.JSON else print(f"revoked {key_id}")


def _get_id(control: Control, name_or_id: str) -> str:
    """Return the id of the key of this name or id. Raises OperatorError if there is none or several of the name."""
    return choose_id(ids.KEY, name_or_id, control.list_all("/organization/admin_api_keys"), "key", "see `tollway admin-keys list`")
