"""`tollway federation`: identity providers of an organization, and the rules by which their tokens stand for service accounts."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, Project, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PROVIDERS = "/organization/workload_identity_providers"
Provider = Annotated[str, typer.Argument(metavar="PROVIDER_ID", help="Id, as `tollway federation list` shows it.")]
Rule = Annotated[str, typer.Argument(metavar="RULE_ID", help="Id, as `tollway federation rules` shows it.")]
Claims = Annotated[
    list[str], typer.Option("--claim", metavar="NAME=VALUE", help="What a claim must be (repeatable); sub=PREFIX* is a prefix.")
]
Endpoints = Annotated[list[str] | None, typer.Option("--endpoint", help="Endpoint that tokens may call (repeatable); all if left out.")]
KeysFile = Annotated[
    Path | None, typer.Option("--keys-file", help="A JSON Web Key Set with the issuer's keys; fetched from the issuer if left out.")
]
Enabled = Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is in force.")]
Direct = Annotated[bool | None, typer.Option("--direct/--exchange", help="Whether gateways accept its tokens without an exchange.")]


@app.command("list")
def list_providers(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the identity providers of the organization."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(PROVIDERS))
    print_rows(output, ["id", "name", "issuer", "audience", "enabled", "is_direct"], rows, none="no identity providers yet")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the identity provider.")],
    issuer: Annotated[str, typer.Option("--issuer", metavar="URL", help="The exact `iss` of its tokens.")],
    audience: Annotated[str, typer.Option("--audience", metavar="AUDIENCE", help="The `aud` that its tokens must have.")],
    keys_file: KeysFile = None,
    direct: Direct = None,
    single_use: Annotated[bool, typer.Option("--single-use/--reusable", help="Whether an assertion with a jti is exchanged once.")] = True,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Register an identity provider."""
    body = {"type": "oidc", "name": name, "issuer": issuer, "audience": audience, "is_direct": bool(direct), "is_single_use": single_use}
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(PROVIDERS, body | _read_verification(keys_file))
    print_json(made) if output is Output.JSON else print(f"created {made['id']}")


@app.command()
def update(
    provider: Provider,
    keys_file: KeysFile = None,
    enabled: Enabled = None,
    direct: Direct = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Enable or disable an identity provider, or upload its keys."""
    wanted = {"enabled": enabled, "is_direct": direct}
    body = {name: value for name, value in wanted.items() if value is not None} | _read_verification(keys_file)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"{PROVIDERS}/{segment(provider)}", body)
    print_json(made) if output is Output.JSON else print(f"changed {provider}")


@app.command()
def delete(
    provider: Provider,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete an identity provider, after its rules."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"{PROVIDERS}/{segment(provider)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {provider}")


@app.command()
def rules(
    provider: Provider,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the rules of an identity provider."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(f"{PROVIDERS}/{segment(provider)}/federation_rules"))
    print_rows(output, ["id", "service_account_id", "api_key_id", "attribute_matchers", "enabled"], rows, none="no rules yet")


@app.command("create-rule")
def create_rule(
    provider: Provider,
    account: Annotated[str, typer.Option("--service-account", metavar="NAME|ID", help="Name or id of the account that tokens stand for.")],
    claims: Claims,
    endpoints: Endpoints = None,
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Let tokens with these claims stand for a service account, by a key that is made for the rule."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        project_id = control.get_project(project)["id"]
        body = {
            "project_id": project_id,
            "service_account_id": control.get_account_id(project_id, account),
            "attribute_matchers": _read_claims(claims),
        }
        made = control.post(f"{PROVIDERS}/{segment(provider)}/federation_rules", body | _read_permissions(endpoints))
    print_json(made) if output is Output.JSON else print(f"created {made['id']}, whose tokens stand for {made['api_key_id']}")


@app.command("update-rule")
def update_rule(
    provider: Provider,
    rule: Rule,
    claims: Annotated[list[str] | None, typer.Option("--claim", metavar="NAME=VALUE", help="All claims of the rule (repeatable).")] = None,
    endpoints: Endpoints = None,
    enabled: Enabled = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change the claims or the endpoints of a rule, or enable or disable it."""
    body: dict[str, Any] = {} if enabled is None else {"enabled": enabled}
    if claims:
        body["attribute_matchers"] = _read_claims(claims)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = f"{PROVIDERS}/{segment(provider)}/federation_rules/{segment(rule)}"
        made = control.post(path, body | _read_permissions(endpoints))
    print_json(made) if output is Output.JSON else print(f"changed {rule}")


@app.command("delete-rule")
def delete_rule(
    provider: Provider,
    rule: Rule,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a rule and revoke its key: every token by it ends."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"{PROVIDERS}/{segment(provider)}/federation_rules/{segment(rule)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {rule}")


def _read_verification(keys_file: Path | None) -> dict[str, Any]:
    """Return the member of a body that uploads the keys of a file; nothing without a file. Raises OperatorError."""
    if keys_file is None:
        return {}
    try:
        return {"verification": {"type": "uploaded_jwks", "jwks": msgspec.json.decode(keys_file.read_bytes(), type=dict[str, Any])}}
    except (OSError, msgspec.DecodeError) as error:
        raise OperatorError(f"{keys_file} is not a readable JSON Web Key Set: {error}", exit_code=2) from None


def _read_claims(texts: list[str]) -> dict[str, str]:
    """Return claims by name. Raises OperatorError for one that is not NAME=VALUE."""
    claims = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise OperatorError(f"--claim {text!r} is not NAME=VALUE", exit_code=2)
        claims[name] = value
    return claims


def _read_permissions(endpoints: list[str] | None) -> dict[str, Any]:
    return {"permissions": {"type": "restricted", "scopes": endpoints}} if endpoints else {}
