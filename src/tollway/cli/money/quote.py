"""`tollway quote`: what a request would cost, and what would refuse it now."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tollway.cli.client import segment
from tollway.cli.gateway_requests import GatewayUrlOption, InferenceKeyOption, ask_gateway, open_gateway
from tollway.cli.output import Output, OutputOption, print_json
from tollway.domain.catalog import Endpoint
from tollway.settings import OperatorError

ENDPOINTS = ", ".join(Endpoint)


def quote(
    request: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="File with the JSON body of a request, as it would be sent; - reads it from stdin.")
    ],
    gateway_url: GatewayUrlOption = None,
    inference_key: InferenceKeyOption = None,
    endpoint: Annotated[
        str, typer.Option("--endpoint", help=f"Path of the request below /v1: {ENDPOINTS}.")
    ] = Endpoint.CHAT_COMPLETIONS.value,
    output: OutputOption = Output.TABLE,
) -> None:
    """Quote a request: what it would cost at most and is expected to, and which limit or budget would refuse it now. Nothing is sent."""
    if endpoint not in list(Endpoint):
        raise OperatorError(f"there is no endpoint {endpoint}", hint=f"one of: {ENDPOINTS}", exit_code=2)
    with open_gateway(gateway_url, inference_key) as gateway:
        try:
            body = sys.stdin.buffer.read() if request == Path("-") else request.read_bytes()
        except OSError as error:
            raise OperatorError(f"cannot read {request}: {error.strerror}", exit_code=2) from None
        headers = {"content-type": "application/json"}
        quoted = ask_gateway(gateway, "POST", f"/v1/quote/{segment(endpoint)}", content=body, headers=headers)
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
