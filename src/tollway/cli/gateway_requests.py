"""Requests of the command line to a gateway, with the API key of a program: what both are, and how its errors are shown."""

import os
import sys
from typing import Annotated, Any, Final

import httpx2
import typer

from tollway.cli.client import TIMEOUT_SECONDS
from tollway.settings import OperatorError

GatewayUrlOption = Annotated[
    str | None, typer.Option("--gateway-url", metavar="URL", help="The gateway [OPENAI_BASE_URL].", show_default=False)
]
InferenceKeyOption = Annotated[
    str | None,
    typer.Option(
        "--inference-key",
        metavar="KEY",
        help="The API key that would send the request [OPENAI_API_KEY]. - reads it from stdin.",
        show_default=False,
    ),
]
CHUNK_BYTES: Final = 256 * 1024


def open_gateway(gateway_url: str | None, inference_key: str | None) -> httpx2.Client:
    """Return a client of the gateway that options or the environment name. Raises OperatorError where either is missing."""
    url, key = gateway_url or os.environ.get("OPENAI_BASE_URL"), inference_key or os.environ.get("OPENAI_API_KEY")
    if not url or not key:
        raise OperatorError(
            "the gateway or the API key is not known",
            hint="--gateway-url and --inference-key, or OPENAI_BASE_URL and OPENAI_API_KEY",
            exit_code=2,
        )
    if key == "-":
        key = sys.stdin.readline().strip()
    base = url.rstrip("/").removesuffix("/v1")
    try:
        return httpx2.Client(base_url=base, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_SECONDS, trust_env=False)
    except httpx2.InvalidURL as error:
        raise OperatorError(f"cannot talk to {url}: {error}", hint="see --gateway-url") from None


def ask_gateway(gateway: httpx2.Client, method: str, path: str, **request: Any) -> dict[str, Any]:
    """Return the gateway's answer. Raises OperatorError with its words."""
    try:
        answer = gateway.request(method, path, **request)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise OperatorError(f"cannot talk to {gateway.base_url}: {error}", hint="see --gateway-url") from None
    return _read_answer(gateway, answer)


def _read_answer(gateway: httpx2.Client, answer: httpx2.Response) -> dict[str, Any]:
    try:
        answered: dict[str, Any] = answer.json()
        if answer.is_success:
            return answered
        raise OperatorError(answered["error"]["message"], hint=f"request {answer.headers.get('x-request-id', '')}")
    except (ValueError, KeyError, TypeError):
        raise OperatorError(f"{gateway.base_url} answered {answer.status_code}", hint="is this a gateway's address?") from None


def write_content(gateway: httpx2.Client, path: str) -> None:
    """Write what the gateway has at a path to standard output, as it comes. Raises OperatorError."""
    try:
        with gateway.stream("GET", path) as answer:
            if not answer.is_success:
                answer.read()
                _read_answer(gateway, answer)
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                sys.stdout.buffer.write(chunk)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise OperatorError(f"cannot talk to {gateway.base_url}: {error}", hint="see --gateway-url") from None
    sys.stdout.buffer.flush()
