"""`tollway access`: why something is allowed or denied."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OfProject = Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="A project; the organization if left out.")]


@app.callback()
def access() -> None:
    """Show why something is allowed or denied."""


@app.command()
def explain(
    permission: Annotated[
        str, typer.Argument(metavar="PERMISSION", help="Such as api_keys.write; docs/access.md lists the one of each operation.")
    ],
    project: OfProject = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="KEY_ID|USER_ID", help="An admin key or a person. [default: your key]")
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Explain which role allows a permission, or that none does."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        query = {"permission": permission, "subject_id": subject}
        query["project_id"] = None if project is None else control.get_project(project)["id"]
        found = control.get("/organization/access", **query)
    if output is Output.JSON:
        print_json(found)
        return
    where = "the organization" if found["project_id"] is None else found["project_id"]
    print(f"{'allowed' if found['allowed'] else 'denied'}: {permission} in {where}, for {found['subject_id']}")
    for grant in found["considered"]:
        mark = "*" if grant == found["rule"] else " "
        place, holder = grant["project_id"] or "the organization", grant["holder_id"] or "the key"
        print(f"{mark} {grant['role']} ({grant['role_id']}) in {place}, by {holder}")
    if not found["considered"]:
        print("  it holds no role")
