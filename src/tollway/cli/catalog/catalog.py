"""`tollway models`: the catalog, for operators. Create, price, deploy, publish; `tollway apply` does the same from a
file."""

import os
import sys
from typing import Annotated, Any

import typer

from tollway.cli.catalog.plan import warn_of_shared_caches
from tollway.cli.catalog.platform_file import resolve_credential
from tollway.cli.class_options import with_price_options
from tollway.cli.client import ControlUrl, DataDir, Key, complete_models, connect, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows, report_effect
from tollway.cli.times import Zone
from tollway.domain.billing_classes import BillingClass
from tollway.domain.catalog import (
    HEDGE_PERCENT_FIRST,
    HEDGE_PERCENT_MAX,
    RELATIVE_COST_MAX,
    RESPONSE_CACHE_SECONDS_MAX,
    TIME_MS_MAX,
    CacheIsolation,
    Endpoint,
    Engine,
    Guardrail,
    GuardrailStages,
)
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Its public name.", autocompletion=complete_models)]


@app.command("list")
def list_models(output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None) -> None:
    """List the catalog, with what serves each model."""
    with connect(control_url, key, data_dir) as control:
        models = list(control.list_all("/platform/models"))
        deployments = list(control.list_all("/platform/deployments"))
    rows = [
        {
            **model,
            "state": "published" if model["published"] else "draft",
            "deployments": [each for each in deployments if each["model"] == model["name"]],
        }
        for model in models
    ]
    if output is Output.TABLE:
        rows = [
            {
                "model": row["name"],
                "state": row["state"],
                "endpoints": ", ".join(row["endpoints"]),
                "served_by": ", ".join(f"{each['engine']} {each['base_url']}" for each in row["deployments"]) or None,
            }
            for row in rows
        ]
    print_rows(output, ["model", "state", "endpoints", "served_by"], rows, none="no models yet")


@app.command()
def create(
    name: Name,
    endpoint: Annotated[list[Endpoint] | None, typer.Option(help="What it can be asked for; may be repeated. [chat/completions]")] = None,
    output_tokens_max: Annotated[int | None, typer.Option(help="Most that one request may ask for.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Most tokens of one prompt; a report of more input is not billed.")] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME", help="Group of models that it is in (repeatable)."),
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Add a draft to the catalog. Nobody can use it before it has a price and is published."""
    body: dict[str, Any] = {
        "name": name,
        "endpoints": endpoint or [Endpoint.CHAT_COMPLETIONS],
        "output_tokens_max": output_tokens_max,
        "context_length": context_length,
        "groups": group or [],
    }
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/models", body)
    print_json(made) if output is Output.JSON else print(f"{name} is a draft; next: tollway models price, deploy, publish")


@app.command("set-groups")
def set_groups(
    name: Name,
    groups: Annotated[
        list[str] | None, typer.Argument(metavar="[GROUP]...", help="Groups of models that it is in from now on; none if left out.")
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Put a model into groups of models, and take it out of all others. Limits and budgets on a group hold for all of its models."""
    with connect(control_url, key, data_dir) as control:
        changed = control.post(f"/platform/models/{segment(name)}", {"groups": groups or []})
    print_json(changed) if output is Output.JSON else print(f"{name}: {', '.join(changed['groups']) or 'in no group'}")


@app.command("cache")
def set_cache(
    name: Name,
    seconds: Annotated[
        int,
        typer.Option(
            "--seconds",
            min=0,
            max=RESPONSE_CACHE_SECONDS_MAX,
            help="How long an answer can be given again to the same request that asks for it; 0 for never.",
        ),
    ],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Allow answers of a model to be given again, to requests that ask for it (cache-control: max-age)."""
    with connect(control_url, key, data_dir) as control:
        changed = control.post(f"/platform/models/{segment(name)}", {"response_cache_seconds": seconds})
    print_json(changed) if output is Output.JSON else print(f"{name}: answers are given again for {seconds} s")


@app.command("guardrail")
def set_guardrail(
    name: Name,
    mode: Annotated[Guardrail, typer.Option("--mode", help="Without a verdict open passes and closed refuses; off checks nothing.")],
    stages: Annotated[GuardrailStages, typer.Option("--stages", help="The part that is checked.")] = GuardrailStages.BOTH,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Have requests and answers of a model checked by the guardrail of the gateways (docs/guardrails.md)."""
    with connect(control_url, key, data_dir) as control:
        changed = control.post(f"/platform/models/{segment(name)}", {"guardrail": mode, "guardrail_stages": stages})
    checked = "nothing is checked" if mode is Guardrail.OFF else f"checked: {stages}; what cannot be checked: {mode}"
    print_json(changed) if output is Output.JSON else print(f"{name}: {checked}")


@app.command()
def fallbacks(
    name: Name,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="FALLBACK...", help="Models that serve in its place, in their order.", autocompletion=complete_models),
    ] = None,
    no_fallback: Annotated[bool, typer.Option("--none", help="Let no other model serve in its place.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Name the models that serve requests for a model while it cannot. Each is charged by its own prices."""
    if bool(models) is no_fallback:
        raise OperatorError("name models, or --none", hint="tollway models fallbacks MODEL OTHER", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        changed = control.post(f"/platform/models/{segment(name)}", {"fallbacks": models or []})
    print_json(changed) if output is Output.JSON else print(f"{name} falls back to: {', '.join(changed['fallbacks']) or 'none'}")


@app.command()
def hedge(
    name: Name,
    after_ms: Annotated[
        int | None, typer.Option("--after-ms", min=1, max=TIME_MS_MAX, help="Milliseconds without the begin of an answer.")
    ] = None,
    percent: Annotated[
        int, typer.Option("--percent", min=1, max=HEDGE_PERCENT_MAX, help="Share of the requests that are hedged at most.")
    ] = HEDGE_PERCENT_FIRST,
    off: Annotated[bool, typer.Option("--off", help="Hedge no request.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Send a request whose answer has not begun to a second deployment too. The first answer counts, and it alone is charged."""
    if (after_ms is not None) is off:
        raise OperatorError("name a time with --after-ms, or --off", hint="tollway models hedge MODEL --after-ms 2000", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        body = {"hedge_after_ms": None} if off else {"hedge_after_ms": after_ms, "hedge_percent": percent}
        changed = control.post(f"/platform/models/{segment(name)}", body)
    if output is Output.JSON:
        print_json(changed)
    else:
        after = changed["hedge_after_ms"]
        print(
            f"{name}: no hedging" if after is None else f"{name}: hedged after {after} ms, at most {changed['hedge_percent']} % of requests"
        )


@app.command()
def goal(
    name: Name,
    latency_ms: Annotated[int | None, typer.Option("--latency-ms", min=1, max=TIME_MS_MAX, help="Milliseconds to the first token.")] = None,
    no_goal: Annotated[bool, typer.Option("--none", help="Let costs count for nothing.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Choose the cheapest deployments of a model while they are likely to answer within this time."""
    if (latency_ms is not None) is no_goal:
        raise OperatorError("name a time with --latency-ms, or --none", hint="tollway models goal MODEL --latency-ms 2000", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        changed = control.post(f"/platform/models/{segment(name)}", {"latency_goal_ms": latency_ms})
    if output is Output.JSON:
        print_json(changed)
    else:
        print(f"{name}: no goal" if latency_ms is None else f"{name}: first token within {latency_ms} ms, then as cheap as possible")


@app.command()
@with_price_options
def price(
    name: Name,
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="Currency code of ISO 4217.")],
    prices: dict[BillingClass, str | None],
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Give a model a price from now on. The one before stays valid for what was admitted before."""
    stated = {billing_class.value: text for billing_class, text in prices.items() if text is not None}
    body = {"model": name, "currency": currency, **stated}
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/prices", body)
        shown = control.get_zone(zone)
    print_json(made) if output is Output.JSON else print(made["id"])
    report_effect(made, shown)


@app.command()
def deploy(
    name: Name,
    base_url: Annotated[str, typer.Option(help="Of the upstream, without /v1.")],
    engine: Annotated[Engine, typer.Option(help="What serves it.")],
    upstream_model: Annotated[str | None, typer.Option(help="Its name there; the same if left out.")] = None,
    tier: Annotated[int, typer.Option(help="Lower ones are tried first.")] = 0,
    weight: Annotated[int, typer.Option(help="Share within the tier; 0 drains.")] = 1,
    region: Annotated[str | None, typer.Option(help="Where it is.")] = None,
    credential: Annotated[str | None, typer.Option(help="What the upstream asks for: ${VARIABLE} or file:PATH.")] = None,
    cache_isolation: Annotated[
        CacheIsolation, typer.Option(help="How organizations are kept apart in the engine's prefix cache.")
    ] = CacheIsolation.ENGINE,
    pooling: Annotated[bool, typer.Option(help="Use connections to the upstream again; off for one that confuses answers.")] = True,
    translate: Annotated[
        list[Endpoint] | None,
        typer.Option(help="Endpoint that the upstream has not got, translated to chat completions: messages, responses (repeatable)."),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Serve test keys, and only these; their requests are not billed.")] = False,
    priorities: Annotated[bool, typer.Option("--priorities", help="Tell the engine the priority of the service tier.")] = False,
    relative_cost: Annotated[
        int | None, typer.Option(min=1, max=RELATIVE_COST_MAX, help="Cost of the same work beside that at other deployments.")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of gRPC, if it is not the one after that of the URL (engine kserve).")
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Add an upstream that serves a model."""
    body = {
        "model": name,
        "base_url": base_url,
        "engine": engine,
        "upstream_model": upstream_model or name,
        "tier": tier,
        "weight": weight,
        "region": region,
        "credential": credential and resolve_credential(credential, os.environ, "--credential"),
        "cache_isolation": cache_isolation,
        "pooling": pooling,
        "translated_endpoints": translate or [],
        "test": test,
        "priorities": priorities,
        "relative_cost": relative_cost,
        "grpc_port": grpc_port,
    }
    with connect(control_url, key, data_dir) as control:
        made = control.post("/platform/deployments", body)
        model = control.get(f"/platform/models/{segment(name)}")
    print_json(made) if output is Output.JSON else print(made["id"])
    if not model["share_cache"]:
        for warning in warn_of_shared_caches(name, base_url, engine, cache_isolation, map(Endpoint, model["endpoints"]), translate or []):
            print(f"warning: {warning}", file=sys.stderr)


@app.command()
def undeploy(
    deployment_id: Annotated[str, typer.Argument(metavar="DEPLOYMENT_ID", help="Id, as `tollway models deployments` shows it.")],
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Archive a deployment: no new request goes there."""
    with connect(control_url, key, data_dir) as control:
        archived = control.post(f"/platform/deployments/{segment(deployment_id)}/archive")
    print_json(archived) if output is Output.JSON else print(f"archived {deployment_id}")


@app.command()
def deployments(
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Only those of this model.", autocompletion=complete_models)
    ] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the deployments that are not archived."""
    with connect(control_url, key, data_dir) as control:
        rows = [each for each in control.list_all("/platform/deployments") if model in (None, each["model"])]
    columns = ["id", "model", "engine", "base_url", "upstream_model", "tier", "weight", "region"]
    print_rows(output, columns, rows, none="no deployments yet: see `tollway models deploy`")


@app.command()
def publish(
    name: Name, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Let tenants use a model. It needs a price."""
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/models/{segment(name)}/publish")
    print_json(made) if output is Output.JSON else print(f"published {name}")


@app.command()
def archive(
    name: Name, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Archive a model permanently. Its name cannot be used again, because usage refers to it."""
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/models/{segment(name)}/archive")
    print_json(made) if output is Output.JSON else print(f"archived {name}")
