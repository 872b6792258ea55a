"""`tollway requests`: the requests of an organization, the latest first."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tollway.cli.client import (
    ControlUrl,
    DataDir,
    Key,
    Organization,
    complete_keys,
    complete_models,
    complete_projects,
    connect_tenant,
)
from tollway.cli.output import Output, OutputOption, print_rows
from tollway.cli.times import Since, Until, Zone, read_range, with_times
from tollway.domain.usage import Outcome
from tollway.settings import OperatorError

OfProject = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME|ID", help="Only of this project.", autocompletion=complete_projects),
]
OfKey = Annotated[
    str | None, typer.Option("--api-key", metavar="NAME|ID", help="Only of this key of the project.", autocompletion=complete_keys)
]
OfModel = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only of this model.", autocompletion=complete_models)]

PAGE_ITEMS = 100
COLUMNS = ["id", "at", "model", "endpoint", "outcome", "error", "ms", "first_token_ms", "input", "output", "cost"]


def requests(
    since: Since = "24h",
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most requests to print, the latest ones.")] = 20,
    project: OfProject = None,
    api_key: OfKey = None,
    model: OfModel = None,
    outcome: Annotated[list[Outcome] | None, typer.Option("--outcome", help="Only with this outcome (repeatable).")] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the latest requests: when, of which model, how they ended, how long they took, what they cost. `tollway receipt` has the rest.

    A request appears about a second after its end. A span is at most 31 days.
    """
    if api_key is not None and project is None:
        raise OperatorError("--api-key needs --project, the key's project", exit_code=2)
    rows: list[dict[str, Any]] = []
    with connect_tenant(control_url, key, data_dir, organization) as control:
        shown = control.get_zone(zone)
        start_time, end_time = read_range(since, until, shown, time.time())
        query: dict[str, Any] = {"start_time": start_time, "end_time": end_time, "models": model, "outcomes": outcome}
        if project is not None:
            query["project_ids"] = control.get_project(project)["id"]
            query["api_key_ids"] = None if api_key is None else control.get_key_id(query["project_ids"], api_key)
        after = None
        while len(rows) < limit:
            count = min(limit - len(rows), PAGE_ITEMS)
            page = control.get("/organization/requests", **query, after=after, limit=count)
            rows += page["data"]
            after = page["last_id"]
            if not page["has_more"]:
                break
        if output is Output.TABLE:
            rows = with_times([_flatten(row) for row in rows], shown, at="admitted_at")
    print_rows(output, COLUMNS, rows, none="no request in this span")


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    cost, usage = row["cost"], row["usage"]
    return {
        **row,
        "ms": round(row["duration_ms"]),
        "first_token_ms": None if row["first_token_ms"] is None else round(row["first_token_ms"]),
        "input": usage["input_tokens"],
        "output": usage["output_tokens"],
        "cost": f"{cost['value_decimal']} {cost['currency'].upper()}",
    }
