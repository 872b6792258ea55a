"""`tollway organizations`: billing accounts, for operators."""

from collections.abc import Iterable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, complete_organizations, connect, connect_tenant
from tollway.cli.identity.rotation import RotationGraceSeconds, make_schedule
from tollway.cli.output import Output, OutputOption, print_json, print_rows, written_whole
from tollway.cli.times import Zone, find_zone, with_times
from tollway.domain.leaked_keys import LeakPolicy
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT
from tollway.domain.tenants import QUEUE_WEIGHT_MAX, RESPONSE_RETENTION_SECONDS_MAX
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OrganizationName = Annotated[
    str, typer.Argument(metavar="ORGANIZATION", help="Name or id of the organization.", autocompletion=complete_organizations)
]

COLUMNS = ["id", "name", "currency", "time_zone", "status"]


@app.command("list")
def list_organizations(
    output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """List the organizations that are not archived."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/organizations"))
    print_rows(output, COLUMNS, rows, none="no organizations yet")


@app.command()
def show(
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show one organization: that of an admin key, or the one that is named."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        rows = [control.get("/organization")]
    if output is Output.TABLE:
        rows = with_times(rows, find_zone(zone or rows[0]["time_zone"]), created="created_at")
    print_rows(output, [*COLUMNS, "created"], rows)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name.")],
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="Currency code of ISO 4217; it cannot be changed.")] = "EUR",
    time_zone: Annotated[str, typer.Option("--time-zone", metavar="ZONE", help="Time zone of its billing periods (IANA name).")] = "UTC",
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Create an organization. Prints its first admin key, this once."""
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/organizations", {"name": name, "currency": currency, "time_zone": time_zone})
    if output is Output.JSON:
        print_json(made)
    else:
        print(f"id         {made['id']}\nadmin key  {made['admin_api_key']['value']}   (shown this once)")


@app.command("key-policy")
def set_key_policy(
    lifetime_days: Annotated[
        int | None, typer.Option("--lifetime-days", metavar="DAYS", help="Most days until a key expires; no bound if left out.")
    ] = None,
    rotate_every_days: Annotated[
        float | None,
        typer.Option("--rotate-every-days", metavar="DAYS", help="Rotate the keys of projects by a schedule; no schedule if left out."),
    ] = None,
    rotation_grace_seconds: RotationGraceSeconds = GRACE_SECONDS_DEFAULT,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Bound the lifetime of the keys that an organization makes or rotates from now on, and rotate its keys by a schedule."""
    seconds = None if lifetime_days is None else lifetime_days * 86_400
    schedule = None if rotate_every_days is None else make_schedule(rotate_every_days, rotation_grace_seconds)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        changed = control.post("/organization", {"key_lifetime_seconds_max": seconds, "rotation_schedule": schedule})
    bound = "without bound" if lifetime_days is None else f"{lifetime_days} days at most"
    rotated = "not rotated by a schedule" if rotate_every_days is None else f"rotated every {rotate_every_days:g} days"
    print_json(changed) if output is Output.JSON else print(f"{changed['name']}: keys live {bound}, and are {rotated}")


@app.command("store-responses")
def store_responses(
    days: Annotated[
        int | None,
        typer.Option(
            "--days",
            metavar="DAYS",
            min=1,
            max=RESPONSE_RETENTION_SECONDS_MAX // 86_400,
            help="Days for which responses are stored; without it none are, and what is stored is deleted.",
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Store the responses of an organization whose requests ask for it (`store: true`), or stop storing them."""
    seconds = None if days is None else days * 86_400
    with connect_tenant(control_url, key, data_dir, organization) as control:
        changed = control.post("/organization", {"response_retention_seconds": seconds})
    stored = "stored no longer, and deleted" if days is None else f"stored for {days} days"
    print_json(changed) if output is Output.JSON else print(f"{changed['name']}: responses are {stored}")


@app.command()
def retention(
    type: Annotated[
        str | None,
        typer.Option(
            "--retention-type", metavar="TYPE", help="One of zero_data_retention, modified_abuse_monitoring, and their enhanced_ forms."
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show or set what may be kept of the content of an organization's requests.

    With zero_data_retention logged content and stored responses are deleted, and none are stored any more.
    """
    with connect_tenant(control_url, key, data_dir, organization) as control:
        path = "/organization/data_retention"
        found = control.get(path) if type is None else control.post(path, {"retention_type": type})
    print_json(found) if output is Output.JSON else print(found["type"])


@app.command()
def export(
    user: Annotated[str | None, typer.Option("--user", metavar="USER_ID", help="Only what names this person, by id.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write everything about an organization, or about one person in it, as lines of JSON. Secrets are left out."""
    with connect_tenant(control_url, key, data_dir, organization) as control, written_whole(file) as writer:
        control.download(f"/organization/export{'' if user is None else f'?user_id={user}'}", writer)


@app.command("leaked-keys")
def set_leaked_key_policy(
    policy: Annotated[
        LeakPolicy, typer.Argument(help="End leaked secrets at once and notify the owners, notify the owners, or only record it.")
    ],
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Say what is done with secrets of an organization that are reported as leaked."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        changed = control.post("/organization", {"leaked_key_policy": policy})
    print_json(changed) if output is Output.JSON else print(f"{changed['name']}: leaked keys: {changed['leaked_key_policy']}")


@app.command()
def update(
    organization: OrganizationName,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", metavar="ZONE", help="Time zone of billing periods that do not exist yet (IANA name).")
    ] = None,
    queue_weight: Annotated[
        int | None,
        typer.Option("--queue-weight", min=1, max=QUEUE_WEIGHT_MAX, help="Its share in the queues of models, beside those of others."),
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Change the time zone of an organization, or its weight in the queues of models."""
    given = {"time_zone": time_zone, "queue_weight": queue_weight}
    body = {name: value for name, value in given.items() if value is not None}
    if not body:
        raise OperatorError("name what changes: --time-zone or --queue-weight", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        changed = control.post(f"/platform/organizations/{control.organization_id}", body)
    print_json(changed) if output is Output.JSON else print(f"{changed['name']}: {', '.join(str(changed[name]) for name in body)}")


@app.command()
def archive(
    organization: OrganizationName,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Archive an organization: its keys stop, and its usage and ledger stay."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        archived = control.post(f"/platform/organizations/{control.organization_id}/archive")
    print_json(archived) if output is Output.JSON else print(f"archived {archived['id']} ({archived['name']})")


def with_organizations(control: Control, rows: Iterable[Mapping[str, Any]], zone: str | None, **columns: str) -> list[dict[str, Any]]:
    """Return rows that have an `organization_id` with the name of the organization, and with a column of text for each instant.

    Instants are in `zone`; without one each is in the zone of its own organization, and in UTC where that is not known."""
    organizations = control.list_organizations()
    chosen = None if zone is None else find_zone(zone)
    shown = []
    for row in rows:
        organization = organizations.get(row["organization_id"], {})
        own = find_zone(organization["time_zone"]) if organization else UTC
        shown += with_times([{**row, "organization": organization.get("name")}], chosen or own, **columns)
    return shown
