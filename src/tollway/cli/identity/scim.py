"""`tollway scim`: the directory that provisions the people and groups of an organization (SCIM 2.0)."""

from typing import Annotated

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect_tenant, find_control_url
from tollway.cli.output import Output, OutputOption, print_json, print_new_key

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

ROLE = "directory"


@app.command()
def show(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show the address for the directory, its tokens, and how many people and groups it manages."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        shown = {
            "url": find_control_url(control_url, data_dir) + "/scim/v2",
            "token_ids": [each["id"] for each in control.list_all("/organization/admin_api_keys") if each["role"] == ROLE],
            "people": sum(each["is_scim_managed"] for each in control.list_all("/organization/users")),
            "groups": sum(each["is_scim_managed"] for each in control.list_all("/organization/groups")),
        }
    if output is Output.JSON:
        print_json(shown)
        return
    print(f"url     {shown['url']}\ntokens  {', '.join(shown['token_ids']) or 'none: see `tollway scim create-token`'}")
    print(f"people  {shown['people']}\ngroups  {shown['groups']}")


@app.command("create-token")
def create_token(
    name: Annotated[str, typer.Argument(help="Name of the directory.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a token for the directory and print it, which is shown only now. Your key is an owner's."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post("/organization/admin_api_keys", {"name": name, "role": ROLE})
    print_new_key(output, made, made["value"])
