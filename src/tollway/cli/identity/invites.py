"""`tollway invites`: how people join an organization."""

import sys
from getpass import getpass
from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_invites(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the invitations, accepted and expired ones too."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all("/organization/invites"))
    print_rows(output, ["id", "email", "role", "status"], rows, none="no invitations yet")


@app.command()
def create(
    email: Annotated[str, typer.Argument(metavar="ADDRESS", help="Address of the person.")],
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="Name or id of a role, as `tollway roles list` shows it.")],
    project: Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="A project to join as a member.")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Invite a person by mail. The token is in the message alone."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        wanted: dict[str, object] = {"email": email, "role": role}
        if project is not None:
            wanted["projects"] = [{"id": control.get_project(project)["id"], "role": "member"}]
        made = control.post("/organization/invites", wanted)
    if output is Output.JSON:
        print_json(made)
        return
    sent = "the message was sent; without a mail server it is a file in control/mail of the data directory"
    print(f"{made['id']}: {sent if made['mail_sent'] else 'the message could not be sent; see the log of control'}")


@app.command()
def delete(
    invite_id: Annotated[str, typer.Argument(metavar="INVITE_ID", help="Id, as `tollway invites list` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete an invitation that was not accepted."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"/organization/invites/{segment(invite_id)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {invite_id}")


@app.command()
def accept(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Your name.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
) -> None:
    """Join an organization. The token of the invitation, as it came by mail, is asked for, or read from stdin if that is no terminal:
    arguments can be read by every user of the machine. Prints your own key, which is shown only now."""
    token = getpass("Token: ") if sys.stdin.isatty() else sys.stdin.readline()
    with connect(control_url, token.strip() or "-", None) as control:
        made = control.post("/invites/accept", {"name": name})
    if output is Output.JSON:
        print_json(made)
        return
    print(f"organization  {made['organization_id']}\nyou           {made['user']['id']}")
    print(f"your key      {made['admin_api_key']['value']}   (shown this once)")
