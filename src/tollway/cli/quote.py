"""`tollway quote`: what a request would cost, and what would refuse it now."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from tollway.cli.client import TIMEOUT_SECONDS, segment
from tollway.cli.output import Output, OutputOption, print_json
from tollway.domain.catalog import Endpoint
from tollway.settings import OperatorError

ENDPOINTS = ", ".join(Endpoint)


def quote(
    request: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="File with the JSON body of a request, as it would be sent; - reads it from stdin.")
    ],
    gateway_url: Annotated[
        str | None, typer.Option("--gateway-url", metavar="URL", help="The gateway [OPENAI_BASE_URL].", show_default=False)
    ] = None,
    inference_key: Annotated[
        str | None,
        typer.Option(
            "--inference-key",
            metavar="KEY",
            help="The API key that would send the request [OPENAI_API_KEY]. - reads it from stdin.",
            show_default=False,
        ),
    ] = None,
    endpoint: Annotated[
        str, typer.Option("--endpoint", help=f"Path of the request below /v1: {ENDPOINTS}.")
    ] = Endpoint.CHAT_COMPLETIONS.value,
    output: OutputOption = Output.TABLE,
) -> None:
    """Quote a request: what it would cost at most and is expected to, and which limit or budget would refuse it now. Nothing is sent."""
    if endpoint not in list(Endpoint):
        raise OperatorError(f"there is no endpoint {endpoint}", hint=f"one of: {ENDPOINTS}", exit_code=2)
    url, key = gateway_url or os.environ.get("OPENAI_BASE_URL"), inference_key or os.environ.get("OPENAI_API_KEY")
    if not url or not key:
        raise OperatorError(
            "the gateway or the API key is not known",
            hint="--gateway-url and --inference-key, or OPENAI_BASE_URL and OPENAI_API_KEY",
            exit_code=2,
        )
    if key == "-":
        key = sys.stdin.readline().strip()
    try:
        body = sys.stdin.buffer.read() if request == Path("-") else request.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read {request}: {error.strerror}", exit_code=2) from None
    quoted = _ask(f"{url.rstrip('/').removesuffix('/v1')}/v1/quote/{segment(endpoint)}", key, body)
    if output is Output.JSON:
        print_json(quoted)
        return
    currency, cost = quoted["currency"].upper(), quoted["cost"]
    most = "not bounded" if cost["most"] is None else f"{cost['most']} {currency}"
    print(f"cost: {cost['expected']} {currency} expected, at most {most}")
    for name, tokens in (("input", quoted["input_tokens"]), ("output", quoted["output_tokens"])):
        print(f"{name}: {tokens['expected']} tokens expected, at most {'not bounded' if tokens['most'] is None else tokens['most']}")
    print(f"price: {quoted['price_version']} ({quoted['service_tier']})")
    for refusal in quoted["refusals"]:
        print(f"refused now: {refusal['message']}")


def _ask(url: str, key: str, body: bytes) -> dict[str, Any]:
    """Return the gateway's quote. Raises OperatorError with its words."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        answer = httpx2.post(url, content=body, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise OperatorError(f"cannot talk to {url}: {error}", hint="see --gateway-url") from None
    try:
        answered: dict[str, Any] = answer.json()
        if answer.is_success:
            return answered
        raise OperatorError(answered["error"]["message"], hint=f"request {answer.headers.get('x-request-id', '')}")
    except (ValueError, KeyError, TypeError):
        raise OperatorError(f"{url} answered {answer.status_code}", hint="is this a gateway's address?") from None
