"""`tollway sign-in`: identity providers with which the people of an organization sign in."""

import os
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

CONNECTIONS = "/organization/sign_in_connections"
Connection = Annotated[str, typer.Argument(metavar="CONNECTION_ID", help="Id, as `tollway sign-in list` shows it.")]
SecretVariable = Annotated[
    str | None, typer.Option("--client-secret-env", metavar="NAME", help="Environment variable that holds the client secret.")
]
Domains = Annotated[
    list[str] | None, typer.Option("--domain", metavar="DOMAIN", help="Domain of addresses whose owners join by signing in (repeatable).")
]
Role = Annotated[str | None, typer.Option("--role", metavar="ROLE", help="Role with which they join.")]
Groups = Annotated[
    list[str] | None, typer.Option("--map-group", metavar="NAME=GROUP_ID", help="Group that the provider's group stands for (repeatable).")
]


@app.command("list")
def list_connections(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the identity providers with which people sign in."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(CONNECTIONS))
    print_rows(output, ["id", "name", "issuer", "enabled", "sign_in_url"], rows, none="people sign in with passwords only")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the identity provider.")],
    issuer: Annotated[str, typer.Option("--issuer", metavar="URL", help="The exact issuer of the provider.")],
    client_id: Annotated[str, typer.Option("--client-id", metavar="ID", help="The client id at the provider.")],
    client_secret_env: SecretVariable = None,
    domain: Domains = None,
    role: Role = None,
    group: Groups = None,
    trust_addresses: Annotated[
        bool, typer.Option("--trust-addresses", help="Take its addresses as verified where it says nothing.")
    ] = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Let people sign in with an identity provider. Prints the redirect address to register there."""
    body: dict[str, Any] = {"name": name, "issuer": issuer, "client_id": client_id, "trusts_addresses": trust_addresses}
    body |= {"domains": domain or [], "role": role, "groups": _read_groups(group or []), "client_secret": _read_secret(client_secret_env)}
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(CONNECTIONS, body)
    if output is Output.JSON:
        print_json(made)
        return
    print(f"created {made['id']}")
    print(f"redirect address  {made['redirect_uri'] or 'not known: set control.public_url'}")
    print(f"people sign in at {made['sign_in_url'] or 'an address that is not known: set control.public_url'}")


@app.command()
def update(
    connection: Connection,
    client_secret_env: SecretVariable = None,
    domain: Domains = None,
    role: Role = None,
    group: Groups = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether people can sign in by it.")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change an identity provider; what is left out stays."""
    wanted: dict[str, Any] = {"domains": domain, "role": role, "enabled": enabled, "client_secret": _read_secret(client_secret_env)}
    wanted["groups"] = None if group is None else _read_groups(group)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"{CONNECTIONS}/{segment(connection)}", {name: value for name, value in wanted.items() if value is not None})
    print_json(made) if output is Output.JSON else print(f"changed {connection}")


@app.command()
def delete(
    connection: Connection,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete an identity provider; sessions that exist go on."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"{CONNECTIONS}/{segment(connection)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {connection}")


def _read_secret(variable: str | None) -> str | None:
    if variable is None:
        return None
    secret = os.environ.get(variable)
    if not secret:
        raise OperatorError(f"the variable {variable} holds no client secret", exit_code=2)
    return secret


def _read_groups(pairs: list[str]) -> dict[str, str]:
    groups = {}
    for pair in pairs:
        name, equals, group_id = pair.rpartition("=")
        if not equals or not name:
            raise OperatorError(f"{pair!r} is no NAME=GROUP_ID", exit_code=2)
        groups[name] = group_id
    return groups
