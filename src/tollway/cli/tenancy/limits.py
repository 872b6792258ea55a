"""`tollway limits`: the limits that bind an organization, a project or a key, and how to set them."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tollway.cli.client import (
    Control,
    ControlUrl,
    DataDir,
    Key,
    Organization,
    Project,
    complete_keys,
    complete_models,
    connect_tenant,
)
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import show_instant
from tollway.domain.limits import BY_NAME, DIMENSIONS
from tollway.settings import OperatorError, unknown_name

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_COLUMNS = ("level", "id", "name", "model", "limit", "size", "used", "reserved", "left", "reset_seconds", "binds", "source", "until")

ApiKey = Annotated[str | None, typer.Option("--api-key", metavar="NAME|ID", help="A key of the project.", autocompletion=complete_keys)]
Account = Annotated[str | None, typer.Option("--service-account", metavar="NAME|ID", help="A service account of the project.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Limits on a model, or on a group of models (group:NAME), beside those on all.",
        autocompletion=complete_models,
    ),
]


@app.command()
def show(
    project: Annotated[str | None, typer.Option("--project", metavar="NAME|ID", help="Limits that bind this project.")] = None,
    api_key: ApiKey = None,
    service_account: Account = None,
    end_user: Annotated[
        str | None, typer.Option("--end-user", metavar="NAME", help="Budgets that bind this end user, as requests name it.")
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show every limit and budget that binds the organization, a project, a service account or a key, innermost level first, with what is
    used and left of it.

    A limit is set at its level (`own`), or for an organization in its plan or by an override that ends (`until`).

    A limit that binds is, of all levels that limit the same thing, the one with the least left; a budget that binds, the one of which
    least is left. Sizes of budgets are amounts in the organization's currency.
    """
    with connect_tenant(control_url, key, data_dir, organization) as control:
        query: dict[str, str] = {}
        if project is not None or api_key is not None or service_account is not None:
            query["project_id"] = control.get_project(project)["id"]
        if api_key is not None:
            query["api_key_id"] = control.get_key_id(query["project_id"], api_key)
        if service_account is not None:
            query["service_account_id"] = control.get_account_id(query["project_id"], service_account)
        if end_user is not None:
            query["end_user"] = end_user
        answer = control.get("/organization/limits", **query)
        names = _list_names(control, query.get("project_id"))
        zone = control.get_zone(None)
    rows = [
        {
            "level": each["level"],
            "id": each["id"],
            "name": names.get(each["id"]),
            "model": each["model"],
            "limit": each["dimension"],
            "size": each["limit"],
            "used": each["used"],
            "reserved": each["reserved"],
            "left": each["remaining"],
            "reset_seconds": each["reset_seconds"],
            "binds": each["binds"],
            "source": each["source"] if each["plan"] is None else f"plan {each['plan']}",
            "until": None if each["until"] is None else show_instant(each["until"], zone),
        }
        for each in answer["data"]
    ]
    rows += [_budget_row(each, names, answer["binding_budget_id"]) for each in answer["budgets"]]
    of_all = "no limits or budgets of the organization as a whole: `--project` shows those of a project; see `tollway limits set`"
    of_one = "nothing is limited: see `tollway limits set` and `tollway budgets create`"
    print_rows(output, list(_COLUMNS), rows, none=of_one if query else of_all)


def _budget_row(budget: dict[str, Any], names: dict[str, str], binding_id: str | None) -> dict[str, Any]:
    end_at = budget["window_end_at"]
    return {
        "level": budget["level"],
        "id": budget["subject_id"],
        "name": names.get(budget["subject_id"]),
        "model": budget["model"],
        "limit": f"budget {budget['name']}" + (f" of {budget['end_user']}" if budget["end_user"] else ""),
        "size": budget["limit"],
        "used": budget["spent"],
        "reserved": budget["leased"],
        "left": budget["left"],
        "reset_seconds": None if end_at is None else max(end_at - int(time.time()), 0),
        "binds": budget["id"] == binding_id,
        "source": "own",
        "until": None,
    }


@app.command()
def quotas(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show how many projects, keys, budgets and so on the organization has, and how many it may have."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.get("/organization/limits")["quotas"]
    rows = [{"quota": each["name"], "used": each["used"], "max": each["max"], "counts": each["counts"]} for each in found]
    print_rows(output, ["quota", "used", "max", "counts"], rows)


@app.command("set")
def set_limits(
    limits: Annotated[list[str], typer.Argument(metavar="NAME=SIZE...", help="Such as tokens_per_minute=100000; none removes it.")],
    project: Project = None,
    api_key: ApiKey = None,
    service_account: Account = None,
    of_organization: Annotated[
        bool, typer.Option("--of-organization", help="Limit the whole organization (needs a platform key).")
    ] = False,
    each_end_user: Annotated[
        bool, typer.Option("--each-end-user", help="Limit each end user of the project, as requests name them.")
    ] = False,
    model: Model = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Set limits of a project, a key, a service account, each end user of a project, or the organization.

    What is not named stays as it is."""
    changes = parse_limits(limits)
    if sum((api_key is not None, service_account is not None, of_organization, each_end_user)) > 1:
        raise OperatorError("name one of --api-key, --service-account, --each-end-user and --of-organization", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = _find_path(control, project, api_key, service_account, of_organization=of_organization, each_end_user=each_end_user)
        before = control.get(path, model=model)
        wanted = {dimension.name: changes.get(dimension.name, before[dimension.name]) for dimension in DIMENSIONS}
        stored = control.put(path, wanted, model=model)
    if output is Output.JSON:
        print_json(stored)
        return
    for name in changes:
        print(f"{name}: {_show(before[name])} -> {_show(stored[name])}")


def _list_names(control: Control, project_id: str | None) -> dict[str, str]:
    """Return the names of the organization, and of a project with its keys and accounts, by id."""
    organization = control.get("/organization")
    names = {organization["id"]: organization["name"]}
    if project_id is not None:
        place = f"/organization/projects/{project_id}"
        names[project_id] = control.get(place)["name"]
        names |= {each["id"]: each["name"] for kind in ("api_keys", "service_accounts") for each in control.list_all(f"{place}/{kind}")}
    return names


def parse_limits(texts: Sequence[str]) -> dict[str, int | None]:
    """Return limits by name from NAME=SIZE. Raises OperatorError for a name that does not exist or a size that is not a number."""
    found: dict[str, int | None] = {}
    for text in texts:
        name, equals, size = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in BY_NAME:
            raise unknown_name(f"limit {name!r}", name, list(BY_NAME), source="the arguments")
        size = size.strip().replace("_", "")
        if not equals or not (size == "none" or (size.isascii() and size.isdecimal())):
            raise OperatorError(f"{text!r}: write NAME=SIZE with a whole number, or none", exit_code=2)
        if name in found:
            raise OperatorError(f"{name} is given twice", exit_code=2)
        found[name] = None if size == "none" else int(size)
    return found


def _find_path(
    control: Control, project: str | None, api_key: str | None, service_account: str | None, *, of_organization: bool, each_end_user: bool
) -> str:
    if of_organization:
        return f"/platform/organizations/{_find_organization(control)}/limits"
    project_id = control.get_project(project)["id"]
    place = f"/organization/projects/{project_id}"
    if each_end_user:
        return f"{place}/end_user_limits"
    if api_key is not None:
        return f"{place}/api_keys/{control.get_key_id(project_id, api_key)}/limits"
    if service_account is not None:
        return f"{place}/service_accounts/{control.get_account_id(project_id, service_account)}/limits"
    return f"{place}/limits"


def _find_organization(control: Control) -> str:
    id = control.organization_id
    if id is None:
        raise OperatorError("limits of an organization are set by operators: use a platform key and --organization", exit_code=2)
    return id


def _show(size: Any) -> str:
    return "none" if size is None else str(size)
