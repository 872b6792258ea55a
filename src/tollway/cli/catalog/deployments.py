"""`tollway deployments`: check an engine, drain a deployment, take it back, and follow the sources of a fleet; for operators."""

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tollway.cli.catalog.fleet_sources import follow
from tollway.cli.catalog.platform_file import resolve_credential
from tollway.cli.client import Control, ControlUrl, DataDir, Key, connect, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.domain.catalog import Engine
from tollway.domain.fleets import FleetSource, SourceState, plan_fleet
from tollway.settings import OperatorError, read_yaml
from tollway.telemetry import timestamp

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="DEPLOYMENT_ID", help="Id, as `tollway models deployments` shows it.")]

COMPARE_SECONDS = 30.0
"""Longest time between two comparisons of the sources with the catalog, in which others may have changed something."""
GATHER_SECONDS = 0.2
"""Time in which changes of sources are gathered: a rollout is many events."""
ONCE_SECONDS = 15.0
"""Time in which `--once` waits for the first report of each source."""


DEPLOYMENT_FIELDS = (
    "engine", "upstream_model", "tier", "weight", "region", "cache_isolation", "test", "priorities", "relative_cost", "grpc_port",
)  # fmt: skip
"""Fields that a source gives each deployment that it reports."""


@app.command()
def check(
    base_url: Annotated[str, typer.Option(help="Of the engine, without /v1.")],
    engine: Annotated[Engine, typer.Option(help="What answers there.")],
    credential: Annotated[str | None, typer.Option(help="What the engine asks for: ${VARIABLE} or file:PATH.")] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Ask an engine which models it serves, before it is connected. The control plane asks, and keeps nothing."""
    body = {
        "base_url": base_url,
        "engine": engine,
        "credential": credential and resolve_credential(credential, os.environ, "--credential"),
    }
    with connect(control_url, key, data_dir) as control:
        found = control.post("/platform/engine_checks", body)
    print_json(found) if output is Output.JSON else print("\n".join(found["models"]) or "the engine names no model")


@app.command()
def status(
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only those of this model.")] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show the load of deployments as gateways report it, who avoids them and why, and what a drain of each would do."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/fleet", model=model))
    if output is Output.TABLE:
        for row in rows:
            row["per_minute"], row["failed"] = row["requests_per_minute"], row["failures_per_minute"]
            row["avoided_for"] = ", ".join(sorted({each["reason"] for each in row["ejections"]})) or None
            row["if_drained"] = row["drain"]["effect"]
    columns = ["id", "model", "state", "running", "limit", "waiting", "per_minute", "failed", "gateways", "avoided_for", "if_drained"]
    print_rows(output, columns, rows, none="no deployment is active")


@app.command()
def drain(
    deployment_id: Id,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Send no new request to a deployment. What runs there ends as it would."""
    with connect(control_url, key, data_dir) as control:
        changed = control.post(f"/platform/deployments/{segment(deployment_id)}", {"weight": 0})
        rows = control.list_all("/platform/fleet", model=changed["model"]) if output is Output.TABLE else ()
        found = next((row for row in rows if row["id"] == deployment_id), None)
    if output is Output.JSON:
        print_json(changed)
        return
    print(f"{deployment_id} gets no new requests; back: tollway deployments undrain {deployment_id}")
    if found is not None:
        print(_describe_drain(found))


def _describe_drain(row: Mapping[str, Any]) -> str:
    """Return what a drain does, for people."""
    drain, model = row["drain"], row["model"]
    others = f"{drain['others']} others serve {model}, with {drain['free_places']} free places"
    serve = f"no other deployment serves {model}: its requests are refused" if drain["effect"] == "refused" else others
    return f"{row['running']} requests run there, and are finished; {serve}. Progress: tollway deployments status --model {model}"


@app.command()
def undrain(
    deployment_id: Id,
    weight: Annotated[int, typer.Option(min=1, max=1_000_000, help="Share within its tier.")] = 1,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Send requests to a deployment again that was drained."""
    with connect(control_url, key, data_dir) as control:
        changed = control.post(f"/platform/deployments/{segment(deployment_id)}", {"weight": weight})
    print_json(changed) if output is Output.JSON else print(f"{deployment_id} takes requests again, with weight {changed['weight']}")


@app.command()
def discover(
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The sources of each model (docs/routing.md).")],
    once: Annotated[bool, typer.Option("--once", help="Compare once and end; exit code 1 if a source has a problem.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Follow the sources of a fleet, and keep the deployments of its models as they report them.

    Sources are files, DNS and Kubernetes. While one has a problem, its model keeps the deployments it has. Runs until it is interrupted and
    writes a line for each change and each problem.
    """
    fleet = {model: [SourceState(each) for each in sources] for model, sources in read_fleet(file).items()}
    with connect(control_url, key, data_dir) as control:
        try:
            fine = asyncio.run(_keep(control, fleet, output, once=once))
        except KeyboardInterrupt:
            return
    if not fine:
        raise typer.Exit(1)


def read_fleet(path: Path) -> dict[str, list[FleetSource]]:
    """Return the sources of each model in a file. Raises OperatorError that names what is wrong."""
    try:
        fleet = msgspec.convert(read_yaml(path) or {}, dict[str, list[FleetSource]])
    except msgspec.ValidationError as error:
        raise OperatorError(f"{path}: {error}", exit_code=2) from None
    if not fleet:
        raise OperatorError(f"{path} names no model", exit_code=2)
    for model, sources in fleet.items():
        for source in sources:
            if source.credential is not None:
                resolve_credential(source.credential, os.environ, f"credential of {model}")
    return fleet


async def _keep(control: Control, fleet: Mapping[str, list[SourceState]], output: Output, *, once: bool) -> bool:
    """Follow the sources, and change the catalog after them; indefinitely, or `once`. Return whether all was well then."""
    news = asyncio.Event()
    told: dict[str, str] = {}
    states = [state for of_model in fleet.values() for state in of_model]
    waiting = set(map(id, states))

    def report(state: SourceState) -> None:
        waiting.discard(id(state))
        news.set()

    async with asyncio.TaskGroup() as group:
        following = [group.create_task(follow(state, lambda state=state: report(state))) for state in states]  # type: ignore[misc]
        deadline = time.monotonic() + ONCE_SECONDS
        fine = True
        while True:
            try:
                async with asyncio.timeout(COMPARE_SECONDS if not once else max(deadline - time.monotonic(), 0.0)):
                    await news.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(GATHER_SECONDS)
            news.clear()
            if once and waiting and time.monotonic() < deadline:
                continue
            for model, of_model in fleet.items():
                problem = "; ".join(state.problem for state in of_model if state.problem)
                try:
                    changes = [] if problem else await asyncio.to_thread(_compare, control, model, of_model)
                except OperatorError as error:
                    problem, changes = error.message, []
                for event, detail in changes:
                    _write(output, "info", event, model, detail)
                if problem != told.get(model, ""):
                    level, event = ("error", "fleet_kept") if problem else ("info", "fleet_followed")
                    _write(output, level, event, model, problem)
                told[model] = problem
                fine = fine and not problem
            if once:
                for task in following:
                    task.cancel()
                return fine


def _compare(control: Control, model: str, states: list[SourceState]) -> list[tuple[str, str]]:
    """Make the deployments of a model those that its sources report. Return what was changed. Raises OperatorError."""
    rows = list(control.list_all("/platform/deployments", model=model))
    change = plan_fleet(states, {row["base_url"]: row["id"] for row in rows})
    if change is None:
        return []
    done: list[tuple[str, str]] = []
    for base_url, source in change.added.items():
        body: dict[str, Any] = {
            "model": model,
            "base_url": base_url,
            "credential": source.credential and resolve_credential(source.credential, os.environ, f"credential of {model}"),
            **{name: getattr(source, name) for name in DEPLOYMENT_FIELDS},
        }
        made = control.post("/platform/deployments", body)
        done.append(("deployment_added", f"{made['id']} {base_url}"))
    for id in change.archived:
        control.post(f"/platform/deployments/{segment(id)}/archive")
        done.append(("deployment_archived", id))
    return done


def _write(output: Output, level: str, event: str, model: str, detail: str) -> None:
    at = timestamp(time.time_ns() // 1000)
    if output is Output.JSON:
        print(msgspec.json.encode({"ts": at, "level": level, "event": event, "model": model, "detail": detail}).decode(), flush=True)
    else:
        print(f"{at} {level} {event} {model} {detail}".rstrip(), flush=True)
