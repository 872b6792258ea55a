"""`tollway batches`: batches of requests, at a gateway, with the API key of a program."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import httpx2
import typer

from tollway.cli.client import segment
from tollway.cli.gateway_requests import GatewayUrlOption, InferenceKeyOption, ask_gateway, open_gateway, write_content
from tollway.cli.output import Output, OutputOption, print_json, print_rows
from tollway.domain.batches import BATCH_ENDPOINTS, ENDED
from tollway.settings import OperatorError

WAIT_SECONDS: Final = 1.0
"""Interval at which `submit --wait` asks how a batch stands."""
ASKED_MAX: Final = 6
"""Failures in a row after which it gives up, about a minute after the first: each pause is twice the one before."""
UPLOAD_SECONDS: Final = 600.0
_COLUMNS: Final = ["id", "endpoint", "status", "lines", "completed", "failed", "output", "errors"]
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch.")]


@app.command("submit")
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File with one request in JSON a line (docs/batches.md).")],
    endpoint: Annotated[str, typer.Option("--endpoint", help=f"Endpoint of all lines: {', '.join(BATCH_ENDPOINTS)}.")] = next(
        iter(BATCH_ENDPOINTS)
    ),
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the batch has ended.")] = False,
    gateway_url: GatewayUrlOption = None,
    inference_key: InferenceKeyOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Submit a file of requests as a batch, which is run within 24 hours."""
    with open_gateway(gateway_url, inference_key) as gateway:
        try:
            with file.open("rb") as content:
                form: dict[str, Any] = {"files": {"file": (file.name, content)}, "data": {"purpose": "batch"}, "timeout": UPLOAD_SECONDS}
                stored = ask_gateway(gateway, "POST", "/v1/files", **form)
        except OSError as error:
            raise OperatorError(f"cannot read {file}: {error.strerror}", exit_code=2) from None
        asked = {"input_file_id": stored["id"], "endpoint": endpoint, "completion_window": "24h"}
        batch = ask_gateway(gateway, "POST", "/v1/batches", json=asked)
        if wait:
            print(f"submitted {batch['id']}", file=sys.stderr, flush=True)
            batch = _wait(gateway, batch)
    _print(batch, output)


@app.command("list")
def list_batches(
    after: Annotated[str | None, typer.Option("--after", metavar="BATCH", help="Batch that the list follows.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Number of batches.")] = 20,
    gateway_url: GatewayUrlOption = None,
    inference_key: InferenceKeyOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the batches of the key's project, newest first."""
    query: dict[str, str | int] = {"limit": limit, **({} if after is None else {"after": after})}
    with open_gateway(gateway_url, inference_key) as gateway:
        page = ask_gateway(gateway, "GET", "/v1/batches", params=query)
    if output is Output.JSON:
        print_json(page)
    else:
        print_rows(output, _COLUMNS, [_to_row(batch) for batch in page["data"]], none="no batches yet")


@app.command("show")
def show(
    batch: BatchArgument,
    gateway_url: GatewayUrlOption = None,
    inference_key: InferenceKeyOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a batch: its state, the counts of its lines, and why it failed if it did."""
    with open_gateway(gateway_url, inference_key) as gateway:
        _print(ask_gateway(gateway, "GET", f"/v1/batches/{segment(batch)}"), output)


@app.command("cancel")
def cancel(
    batch: BatchArgument,
    gateway_url: GatewayUrlOption = None,
    inference_key: InferenceKeyOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Cancel a batch: no further line is sent, and what was answered is kept."""
    with open_gateway(gateway_url, inference_key) as gateway:
        _print(ask_gateway(gateway, "POST", f"/v1/batches/{segment(batch)}/cancel"), output)


@app.command("output")
def write_output(
    batch: BatchArgument,
    errors: Annotated[bool, typer.Option("--errors", help="Write the lines that failed in place of those that were answered.")] = False,
    gateway_url: GatewayUrlOption = None,
    inference_key: InferenceKeyOption = None,
) -> None:
    """Write the output of a batch to standard output, as JSON lines."""
    with open_gateway(gateway_url, inference_key) as gateway:
        found = ask_gateway(gateway, "GET", f"/v1/batches/{segment(batch)}")
        file_id = found["error_file_id" if errors else "output_file_id"]
        if file_id is None:
            raise OperatorError(f"the batch has no {'errors' if errors else 'output'}", hint=f"it is {found['status']}")
        _write_file(gateway, file_id)


def _wait(gateway: httpx2.Client, batch: dict[str, Any]) -> dict[str, Any]:
    """Ask how a batch stands until it has ended, and return it. Raises OperatorError after ASKED_MAX failures in a row."""
    failures = 0
    while batch["status"] not in ENDED:
        time.sleep(WAIT_SECONDS * 2**failures)
        try:
            batch = ask_gateway(gateway, "GET", f"/v1/batches/{segment(batch['id'])}")
            failures = 0
        except OperatorError as error:
            failures += 1
            if failures == ASKED_MAX:
                raise OperatorError(str(error), hint=f"the batch goes on: tollway batches show {batch['id']}") from None
    return batch


def _write_file(gateway: httpx2.Client, file_id: str) -> None:
    write_content(gateway, f"/v1/files/{segment(file_id)}/content")


def _to_row(batch: dict[str, Any]) -> dict[str, Any]:
    counts = batch["request_counts"]
    return {
        "id": batch["id"],
        "endpoint": batch["endpoint"],
        "status": batch["status"],
        "lines": counts["total"],
        "completed": counts["completed"],
        "failed": counts["failed"],
        "output": batch["output_file_id"] or "",
        "errors": batch["error_file_id"] or "",
    }


def _print(batch: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print_json(batch)
        return
    print_rows(output, _COLUMNS, [_to_row(batch)])
    for error in batch["errors"]["data"] if batch["errors"] else ():
        print(f"line {error['line']}: {error['message']}" if error["line"] else error["message"])
