"""`tollway keys`: the API keys of a project."""

import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from tollway.cli.client import (
    Control,
    ControlUrl,
    DataDir,
    Key,
    Organization,
    Project,
    choose_id,
    complete_keys,
    connect,
    connect_tenant,
    segment,
)
from tollway.cli.identity.rotation import (
    GraceSeconds,
    RotateEveryDays,
    RotationGraceSeconds,
    make_schedule,
    report_rotation,
    require_unused,
)
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids
from tollway.domain.leaked_keys import REPORTED_MAX
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


KeyName = Annotated[
    str, typer.Argument(metavar="API_KEY", help="Name or id, as `tollway keys list` shows it.", autocompletion=complete_keys)
]


class Purpose(StrEnum):
    """Purpose of an API key."""

    LIVE = "live"
    TEST = "test"


class Bound(StrEnum):
    """Bounds of a key, by the names that the API has for them."""

    MODELS = "models"
    ENDPOINTS = "endpoints"
    ADDRESSES = "addresses"
    OUTPUT_TOKENS_MAX = "output_tokens_max"
    TAGS = "tags"
    ROTATION_SCHEDULE = "rotation_schedule"


@app.command("list")
def list_keys(
    project: Project = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the keys of a project, or of all projects. Secrets are never shown again."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = []
        projects = [control.get_project(project)] if project else list(control.list_all("/organization/projects"))
        for each in projects:
            found = control.list_all(f"/organization/projects/{each['id']}/api_keys")
            rows += [{**row, "project": each["name"]} for row in found]
        if output is Output.TABLE:
            rows = [{**row, "previous_until": ((row["rotation"] or {}).get("previous") or {}).get("expires_at")} for row in rows]
            times = {"created": "created_at", "expires": "expires_at", "last_used": "last_used_at", "old_secret_until": "previous_until"}
            rows = with_times(rows, control.get_zone(zone), **times)
    columns = ["id", "name", "project", "type", "redacted_value", "created", "expires", "last_used", "old_secret_until"]
    print_rows(output, columns, rows, none="no keys yet: see `tollway keys create`")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Purpose of the key.")] = "key",
    project: Project = None,
    type: Annotated[
        Purpose, typer.Option("--type", help="Purpose: test keys reach only deployments for tests, and are not billed.")
    ] = Purpose.LIVE,
    model: Annotated[list[str] | None, typer.Option("--model", metavar="MODEL", help="Only this model (repeatable).")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Limit of this key.")] = None,
    concurrent_requests: Annotated[int | None, typer.Option(help="Limit of this key.")] = None,
    expires_in_days: Annotated[
        float | None,
        typer.Option("--expires-in-days", metavar="DAYS", help="Days until the key expires; if left out as late as it may, or never."),
    ] = None,
    endpoint: Annotated[list[str] | None, typer.Option("--endpoint", help="Only this endpoint, such as embeddings (repeatable).")] = None,
    address: Annotated[
        list[str] | None, typer.Option("--address", metavar="RANGE", help="Only from these addresses, such as 192.0.2.0/24 (repeatable).")
    ] = None,
    output_tokens_max: Annotated[int | None, typer.Option(help="Most output tokens of one sequence.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="NAME=TEXT", help="Label of the key (repeatable).")] = None,
    rotate_every_days: RotateEveryDays = None,
    rotation_grace_seconds: RotationGraceSeconds = GRACE_SECONDS_DEFAULT,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print its secret, this once: on standard output, alone on its line."""
    body: dict[str, Any] = {
        "name": name,
        "type": type,
        "limits": {"requests_per_minute": requests_per_minute, "concurrent_requests": concurrent_requests},
    }
    bounds = {"models": model, "endpoints": endpoint, "addresses": address, "output_tokens_max": output_tokens_max}
    body.update({name: value for name, value in bounds.items() if value})
    if tag:
        body["tags"] = dict(_split_tag(each) for each in tag)
    if expires_in_days is not None:
        body["expires_at"] = int(time.time() + expires_in_days * 86_400)
    if rotate_every_days is not None:
        body["rotation_schedule"] = make_schedule(rotate_every_days, rotation_grace_seconds)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        place = control.get_project(project)
        made = control.post(f"/organization/projects/{place['id']}/api_keys", body)
    if output is Output.JSON:
        print_json(made)
        return
    print(f"{made['id']} in project {place['name']}; the secret is shown this once:", file=sys.stderr)
    print(made["value"])


@app.command()
def update(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `tollway keys list` shows it.")],
    name: Annotated[str | None, typer.Option(help="Purpose of the key; as before if left out.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", metavar="MODEL", help="Only this model (repeatable).")] = None,
    endpoint: Annotated[list[str] | None, typer.Option("--endpoint", help="Only this endpoint, such as embeddings (repeatable).")] = None,
    address: Annotated[
        list[str] | None, typer.Option("--address", metavar="RANGE", help="Only from these addresses, such as 192.0.2.0/24 (repeatable).")
    ] = None,
    output_tokens_max: Annotated[int | None, typer.Option(help="Most output tokens of one sequence.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="NAME=TEXT", help="Label of the key (repeatable).")] = None,
    expires_in_days: Annotated[
        float | None, typer.Option("--expires-in-days", metavar="DAYS", help="Days until the key expires; as before if left out.")
    ] = None,
    rotate_every_days: RotateEveryDays = None,
    rotation_grace_seconds: RotationGraceSeconds = GRACE_SECONDS_DEFAULT,
    unbound: Annotated[list[Bound] | None, typer.Option("--unbound", help="Take this bound away (repeatable).")] = None,
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change the name, the bounds or the expiry of a key. What is not named stays."""
    bounds = {"name": name, "models": model, "endpoints": endpoint, "addresses": address, "output_tokens_max": output_tokens_max}
    body: dict[str, Any] = {field: value for field, value in bounds.items() if value}
    if tag:
        body["tags"] = dict(_split_tag(each) for each in tag)
    if expires_in_days is not None:
        body["expires_in_seconds"] = int(expires_in_days * 86_400)
    if rotate_every_days is not None:
        body["rotation_schedule"] = make_schedule(rotate_every_days, rotation_grace_seconds)
    body.update({each.value: None for each in unbound or ()})
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"/organization/projects/{control.get_project(project)['id']}/api_keys/{segment(key_id)}", body)
    print_json(made) if output is Output.JSON else print(f"changed {key_id}")


@app.command()
def rotate(
    key_id: KeyName,
    grace_seconds: GraceSeconds = GRACE_SECONDS_DEFAULT,
    expires_in_days: Annotated[
        float | None, typer.Option("--expires-in-days", metavar="DAYS", help="Days until the key expires; as before if left out.")
    ] = None,
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a key another secret and print it, this once: on standard output, alone on its line. The old one stays valid for the grace."""
    body: dict[str, Any] = {"grace_seconds": grace_seconds}
    if expires_in_days is not None:
        body["expires_at"] = int(time.time() + expires_in_days * 86_400)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"{_find_path(control, project, key_id)}/rotate", body)
        zone = control.get_zone(None)
    if output is Output.JSON:
        print_json(made)
        return
    report_rotation(made, zone, "keys")
    print(made["value"])


@app.command()
def collect(
    key_id: KeyName,
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Print the secret that the schedule of a key made, this once: on standard output, alone on its line."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        made = control.post(f"{_find_path(control, project, key_id)}/collect", {})
        zone = control.get_zone(None)
    if output is Output.JSON:
        print_json(made)
        return
    report_rotation(made, zone, "keys")
    print(made["value"])


@app.command()
def retire(
    key_id: KeyName,
    force: Annotated[bool, typer.Option("--force", help="Also if the old secret seems to be in use.")] = False,
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke the secret that a key had before its rotation, before its grace ends."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = _find_path(control, project, key_id)
        if not force:
            require_unused(control.get(path), control.get_zone(None))
        retired = control.post(f"{path}/retire", {})
    if output is Output.JSON:
        print_json(retired)
        return
    print(f"retired the old secret of {retired['id']}")
    if retired["pending_nodes"]:
        print(f"not confirmed yet by: {', '.join(retired['pending_nodes'])}", file=sys.stderr)


@app.command()
def revoke(
    key_id: KeyName,
    project: Project = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key permanently, and name the gateways that have not confirmed it yet."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        gone = control.delete(_find_path(control, project, key_id))
    if output is Output.JSON:
        print_json(gone)
        return
    print(f"revoked {gone['id']}")
    if gone["pending_nodes"]:
        print(f"not confirmed yet by: {', '.join(gone['pending_nodes'])}", file=sys.stderr)


@app.command()
def leaked(
    url: Annotated[str, typer.Option("--url", metavar="URL", help="Where the secrets were found.")] = "",
    platform: Annotated[bool, typer.Option("--platform", help="Look at the keys of all organizations, with a platform key.")] = False,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Report secrets that were found where others can read them: one in each line of standard input.

    What is done follows from the policy of the organization (`tollway organizations leaked-keys`).
    """
    secrets = [line.strip() for line in sys.stdin.read().splitlines() if line.strip()]
    if not 1 <= len(secrets) <= REPORTED_MAX:
        raise OperatorError(
            f"1 to {REPORTED_MAX} secrets can be reported at a time", hint="one in each line of standard input", exit_code=2
        )
    if platform and organization is not None:
        raise OperatorError("--platform looks at the keys of all organizations, not at those of one", exit_code=2)
    body = {"secrets": secrets, "url": url}
    if platform:
        with connect(control_url, key, data_dir) as control:
            reported = control.post("/platform/leaked_keys", body)
    else:
        with connect_tenant(control_url, key, data_dir, organization) as control:
            reported = control.post("/organization/leaked_keys", body)
    if output is Output.JSON:
        print_json(reported)
        return
    for number, row in enumerate(reported["secrets"], start=1):
        print(f"line {number}: {_describe_leak(row)}")
    if reported["pending_nodes"]:
        print(f"not confirmed yet by: {', '.join(reported['pending_nodes'])}", file=sys.stderr)


@app.command()
def leaks(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the secrets of an organization that were reported as leaked."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = list(control.list_all("/organization/leaked_keys"))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), reported="reported_at")
    print_rows(output, ["key_id", "redacted_value", "reported", "source", "action", "url"], rows, none="nothing was reported")


def _describe_leak(row: Mapping[str, Any]) -> str:
    if row["key_id"] is None:
        return "a key of the platform or a gateway: replace it by hand" if row["is_known"] else "not the secret of a key"
    done = {"none": "still valid: rotate or revoke it", "inactive": "was not valid any more", "retired": "the old secret was ended"}
    return f"{row['key_id']} {done.get(row['action'], row['action'])}"


def _split_tag(tag: str) -> tuple[str, str]:
    name, separator, text = tag.partition("=")
    if not separator:
        raise OperatorError(f"{tag!r} is not a label", hint="write --tag NAME=TEXT", exit_code=2)
    return name, text


def _find_path(control: Control, project: str | None, name_or_id: str) -> str:
    """Return the path of a key, whose project is looked for if it is not named."""
    keys = list(control.list_keys(project))
    key_id = choose_id(ids.KEY, name_or_id, keys, "key", "see `tollway keys list`")
    place = next((each["project_id"] for each in keys if each["id"] == key_id), None)
    if place is None:
        raise OperatorError(f"no key {key_id} in this organization", hint="`tollway keys list` shows their ids")
    return f"/organization/projects/{place}/api_keys/{key_id}"
