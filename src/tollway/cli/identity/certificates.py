"""`tollway certificates`: client certificates that an organization trusts, and for which service accounts they stand."""

from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, Project, connect_tenant, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

CERTIFICATES = "/organization/certificates"
Certificate = Annotated[str, typer.Argument(metavar="CERTIFICATE_ID", help="Id, as `tollway certificates list` shows it.")]
Certificates = Annotated[list[str], typer.Argument(metavar="CERTIFICATE_ID...", help="Ids, as `tollway certificates list` shows them.")]
OfProject = Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="A project; the whole organization if left out.")]


@app.command("list")
def list_certificates(
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the certificates, and whether the organization or a project trusts them."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(_path(control, project)))
    columns = ["id", "name", "active", *(["project_ids"] if project is None else []), "is_authority", "fingerprint"]
    print_rows(output, columns, rows, none="no certificates yet")


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The certificate of an authority, or of one program, as PEM.")],
    name: Annotated[str | None, typer.Option("--name", help="A name for people.")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Upload a certificate. It is trusted where it is activated."""
    try:
        content = file.read_text("ascii")
    except (OSError, ValueError) as error:
        raise OperatorError(f"cannot read {file}: {error}", exit_code=2) from None
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(CERTIFICATES, {"certificate": content} | ({} if name is None else {"name": name}))
    print_json(made) if output is Output.JSON else print(made["id"])


@app.command()
def rename(
    certificate_id: Certificate,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its new name.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Rename a certificate."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"{CERTIFICATES}/{segment(certificate_id)}", {"name": name})
    print_json(made) if output is Output.JSON else print(f"{certificate_id} is {name}")


@app.command()
def activate(
    certificate_ids: Certificates,
    project: OfProject = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Trust certificates in the organization or in a project."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"{_path(control, project)}/activate", {"certificate_ids": certificate_ids})
    print_json(made) if output is Output.JSON else print(f"activated {', '.join(certificate_ids)}")


@app.command()
def deactivate(
    certificate_ids: Certificates,
    project: OfProject = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Deactivate them in the organization and in each project.")] = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Trust certificates no more in the organization or in a project, from the next request on. Projects that activated one by themselves
    still trust it, unless --everywhere is given."""
    if everywhere and project is not None:
        raise OperatorError("--everywhere and --project exclude each other", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        body = {"certificate_ids": certificate_ids} | ({"everywhere": True} if everywhere else {})
        made = control.post(f"{_path(control, project)}/deactivate", body)
    if output is Output.JSON:
        print_json(made)
        return
    print(f"deactivated {', '.join(certificate_ids)}")
    for each in made["data"]:
        if each["project_ids"]:
            print(f"{each['id']} is still trusted in {', '.join(each['project_ids'])}")


@app.command()
def delete(
    certificate_id: Certificate,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a certificate that is active nowhere and has no rules."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"{CERTIFICATES}/{segment(certificate_id)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {certificate_id}")


@app.command()
def rules(
    certificate_id: Certificate,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the rules of a certificate."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all(f"{CERTIFICATES}/{segment(certificate_id)}/rules"))
    print_rows(output, ["id", "name", "service_account_id", "api_key_id", "matchers"], rows, none="no rules yet")


@app.command("create-rule")
def create_rule(
    certificate_id: Certificate,
    service_account: Annotated[
        str, typer.Option("--service-account", metavar="NAME|ID", help="The service account for which certificates stand.")
    ],
    match: Annotated[
        list[str] | None,
        typer.Option("--match", metavar="KIND=VALUE", help="What a certificate must say: dns=ci.example.com (repeatable)."),
    ] = None,
    project: Project = None,
    name: Annotated[str | None, typer.Option("--name", help="A name for people.")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Say for which service account certificates stand."""
    pairs = [each.partition("=") for each in match or ()]
    wrong = next((kind for kind, equals, _ in pairs if not equals), None)
    if wrong is not None:
        raise OperatorError(f"--match {wrong} is not KIND=VALUE", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        project_id = control.get_project(project)["id"]
        accounts = control.list_all(f"/organization/projects/{project_id}/service_accounts")
        found = [each for each in accounts if service_account in (each["id"], each["name"])]
        if len(found) != 1:
            raise OperatorError(f"there is no service account {service_account}", hint="see `tollway service-accounts list`", exit_code=2)
        body = {"project_id": project_id, "service_account_id": found[0]["id"], "matchers": {kind: value for kind, _, value in pairs}}
        made = control.post(f"{CERTIFICATES}/{segment(certificate_id)}/rules", body | ({} if name is None else {"name": name}))
    print_json(made) if output is Output.JSON else print(f"id   {made['id']}\nkey  {made['api_key_id']}")


@app.command("delete-rule")
def delete_rule(
    certificate_id: Certificate,
    rule_id: Annotated[str, typer.Argument(metavar="RULE_ID", help="Id, as `tollway certificates rules` shows it.")],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a rule and revoke its key."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(f"{CERTIFICATES}/{segment(certificate_id)}/rules/{segment(rule_id)}")
    print_json(gone) if output is Output.JSON else print(f"deleted {rule_id}")


def _path(control: Control, project: str | None) -> str:
    return CERTIFICATES if project is None else f"/organization/projects/{control.get_project(project)['id']}/certificates"
