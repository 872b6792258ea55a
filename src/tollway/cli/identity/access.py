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
    what: Annotated[
        str,
        typer.Argument(
            metavar="PERMISSION|OPERATION|REQUEST",
            help="Such as api_keys.write, create_project_key, or 'POST /v1/organization/projects'; docs/access.md lists them.",
        ),
    ],
    project: OfProject = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", metavar="ID", help="An admin key, a person, an API key or a service account. [default: your key]"),
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Explain which rule allows or denies a permission, or an operation of the REST API."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        query: dict[str, str | None] = {"subject_id": subject, **_read_what(what)}
        query["project_id"] = None if project is None else control.get_project(project)["id"]
        found = control.get("/organization/access", **query)
    if output is Output.JSON:
        print_json(found)
        return
    where = "the organization" if found["project_id"] is None else found["project_id"]
    asked = found["operation"] or found["permission"]
    print(f"{'allowed' if found['allowed'] else 'denied'}: {asked} in {where}, for {found['subject_kind']} {found['subject_id']}")
    print(f"  {REASONS[found['reason']].format(permission=found['permission'])}")
    for grant in found["considered"]:
        mark = "*" if grant == found["rule"] else " "
        place, holder = grant["project_id"] or "the organization", grant["holder_id"] or "the key"
        print(f"{mark} {grant['role']} ({grant['role_id']}) in {place}, by {holder}")
    if not found["considered"]:
        print("  it holds no role")


REASONS = {
    "role": "the role with * has the permission {permission}",
    "any_member": "whoever may act in the organization may do it",
    "public": "it asks for no key",
    "key_kind": "it is for keys of another kind",
    "role_elsewhere": "a role with the permission {permission} is held in another place",
    "project_unseen": "no role is held in the project, which is answered as one that does not exist (404)",
    "no_role": "no role that is held has the permission {permission}",
}
"""The meaning of each reason of the API, in words for people."""


def _read_what(what: str) -> dict[str, str | None]:
    """Return the parameters of a question: a request has a space, a permission a point."""
    method, space, path = what.strip().partition(" ")
    if space:
        return {"method": method, "path": path.strip()}
    return {"permission": what} if "." in what else {"operation": what}
