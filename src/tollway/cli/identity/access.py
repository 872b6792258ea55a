"""`tollway access`: why something is allowed or denied."""

from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, complete_models, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json
from tollway.domain.catalog import Endpoint

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
            help="Such as api_keys.write, create_project_key, or 'POST /v1/organization/projects'; docs/access.md lists them."
            " Of gateways: a request such as 'POST /v1/chat/completions'.",
        ),
    ],
    project: OfProject = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", metavar="ID", help="An admin key, a person, an API key or a service account. [default: your key]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", autocompletion=complete_models, help="Model of a request to gateways."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--client-address", metavar="IP", help="Address of whoever sends a request to gateways.")
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Explain which rule allows or denies a permission, an operation of the REST API, or a request of an API key to gateways."""
    endpoint = _find_endpoint(what)
    if endpoint is not None:
        if subject is None or project is not None:
            raise typer.BadParameter("A request to gateways needs --subject, an API key or a service account, and no --project.")
        asked: dict[str, str | None] = {"subject_id": subject, "endpoint": endpoint, "model": model, "address": address}
        with connect_tenant(control_url, key, data_dir, organization) as control:
            _print_inference(control.get("/organization/inference_access", **asked), output)
        return
    if model is not None or address is not None:
        raise typer.BadParameter("--model and --client-address are for requests to gateways, such as 'POST /v1/chat/completions'.")
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


def _find_endpoint(what: str) -> Endpoint | None:
    """Return the endpoint of gateways that a request is for; None for anything else."""
    method, _, path = what.strip().partition(" ")
    name = path.strip().partition("?")[0].removeprefix("/v1/")
    if name.startswith("/v2/models/") and name.endswith("/infer"):
        name = Endpoint.INFER
    return Endpoint(name) if method.upper() in ("POST", "GET") and name in set(Endpoint) and name != path.strip() else None


def _print_inference(found: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print_json(found)
        return
    model, address = found["model"], found["address"]
    asked = found["endpoint"] + ("" if model is None else f" with {model}") + ("" if address is None else f" from {address}")
    for each in found["decisions"]:
        print(f"{'allowed' if each['allowed'] else 'denied'}: {asked}, for api_key {each['api_key_id']}")
        for check in each["checks"]:
            held = "" if check["held"] is None else f": {', '.join(check['held'])}"
            print(f"{' ' if check['passes'] else '*'} {INFERENCE_RULES[check['rule']]}{held}")
        if not each["allowed"]:
            print(f"  answered {each['status']} {each['code']}: {each['message']}")
    if not found["decisions"]:
        print("the service account has no keys")


INFERENCE_RULES = {
    "key": "the key is valid, and its project and organization are active",
    "addresses": "the key may be used from the address",
    "endpoints": "the key may be used for the endpoint",
    "key_models": "the key allows the model",
    "project_models": "the project allows the model",
    "project_denied_models": "the project does not deny the model",
    "catalog": "the model exists and has a price for the organization",
    "model_endpoints": "the model is offered at the endpoint",
    "residency": "the model has a deployment in a region that the project allows",
    "deployments": "the model has a deployment that takes requests of such keys",
}
"""The questions of gateways, as what is so if the answer is yes."""
