"""`tollway route`: how a gateway chooses deployments; for operators."""

from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from tollway.cli.client import find_internal_url
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.domain.catalog import Endpoint
from tollway.settings import OperatorError

TIMEOUT_SECONDS = 10.0
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def route() -> None:
    """Show how a gateway chooses deployments."""


@app.command("explain")
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=0, max=10**9 - 1, help="Length of the prompt.")] = 1000,
    endpoint: Annotated[Endpoint, typer.Option("--endpoint", help="Endpoint of the request.")] = Endpoint.CHAT_COMPLETIONS,
    test: Annotated[bool, typer.Option("--test", help="Explain requests of test keys.")] = False,
    region: Annotated[
        list[str] | None, typer.Option("--region", help="Region that the residency of the project allows; may be repeated. [any]")
    ] = None,
    internal_url: Annotated[
        str | None,
        typer.Option(
            "--internal-url",
            metavar="URL",
            help="Internal address of the gateway (`gateway.internal`); else that of the data directory, else http://127.0.0.1:9090.",
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Where the gateway runs [./tollway-data].")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what decides between the deployments of a model at this moment, in the order in which one gateway would try them."""
    parameters: dict[str, str | int] = {
        "model": model,
        "prompt_tokens": prompt_tokens,
        "endpoint": endpoint.value,
        "test": "true" if test else "false",
        **({"residency": ",".join(region)} if region else {}),
    }
    url = find_internal_url(internal_url, data_dir).rstrip("/")
    try:
        answer = httpx2.get(f"{url}/route", params=parameters, timeout=TIMEOUT_SECONDS, trust_env=False)
        answered: dict[str, Any] = answer.json() if answer.is_success else {}
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise OperatorError(f"cannot talk to {url}: {error}", hint="name the gateway by --internal-url; its line `ready` has it") from None
    if not answer.is_success:
        raise OperatorError(f"{model}: {answer.text.strip()}", hint="see `tollway models deployments`")
    if output is Output.JSON:
        print_json(answered)
        return
    rows = [
        {**row, "cost_home": row["cost"]["home"], "cost_other": row["cost"]["other"], "running": f"{row['running']}/{row['limit']}"}
        for row in answered["deployments"]
    ]
    print_rows(
        output,
        ["rank", "deployment", "region", "reliability", "tier", "weight", "running", "queued_tokens", "cost_home", "cost_other"],
        rows,
    )
    if answered["fallbacks"]:
        print(f"while {model} cannot serve: {', '.join(answered['fallbacks'])}")
