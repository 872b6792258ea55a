"""`tollway simulate`: an inference engine as a client of vLLM sees it, without a GPU and with faults on demand."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tollway.serve.sockets import parse_address
from tollway.settings import OperatorError
from tollway.simulator import server
from tollway.simulator.settings import SimulatorSettings

_DEFAULT = SimulatorSettings()


def simulate(
    listen: Annotated[str, typer.Option(help="Address; port 0 takes a free one.")] = "127.0.0.1:8000",
    grpc_listen: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Address of the Open Inference Protocol by gRPC.")] = None,
    fd: Annotated[int | None, typer.Option(help="An inherited listening socket instead.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", metavar="MODEL", help="Name of a model (repeatable).")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TOLLWAY_SIMULATOR_KEY", help="Ask for this bearer key under /v1.")] = None,
    seed: Annotated[int, typer.Option(help="Of lengths, texts, jitter and faults.")] = _DEFAULT.seed,
    ttft_seconds: Annotated[float, typer.Option(help="To the first token.")] = _DEFAULT.ttft_seconds,
    inter_token_seconds: Annotated[float, typer.Option(help="Between tokens.")] = _DEFAULT.inter_token_seconds,
    jitter_fraction: Annotated[float, typer.Option(help="Of the time between tokens, 0 to 1.")] = 0.0,
    prefill_seconds_per_token: Annotated[float, typer.Option(help="Per uncached prompt token.")] = 0.0,
    tokens_per_chunk: Annotated[int, typer.Option(help="Tokens in one event of a stream.")] = 1,
    output_tokens_min: Annotated[int, typer.Option(help="Shortest natural answer.")] = _DEFAULT.output_tokens_min,
    output_tokens_max: Annotated[int, typer.Option(help="Longest natural answer.")] = _DEFAULT.output_tokens_max,
    reasoning_tokens: Annotated[int, typer.Option(help="Of each answer, at its start.")] = 0,
    context_tokens_max: Annotated[int, typer.Option(help="Prompt plus answer.")] = _DEFAULT.context_tokens_max,
    embedding_dimensions: Annotated[int, typer.Option(help="Of an embedding.")] = _DEFAULT.embedding_dimensions,
    running_max: Annotated[int, typer.Option(help="Requests that run at once.")] = _DEFAULT.running_max,
    queued_max: Annotated[int | None, typer.Option(help="Requests that wait before a 503; unbounded by default.")] = None,
    cache_blocks_max: Annotated[int, typer.Option(help="Prefix cache, blocks of 16.")] = _DEFAULT.cache_blocks_max,
    prompt_tokens_details: Annotated[bool, typer.Option(help="Report cached tokens.")] = True,
    keep_alive_seconds: Annotated[float, typer.Option(help="For idle connections.")] = _DEFAULT.keep_alive_seconds,
    drain_seconds: Annotated[float, typer.Option(help="For what runs at SIGTERM.")] = _DEFAULT.drain_seconds,
    truth_log: Annotated[Path | None, typer.Option(help="Append what was really generated to this file.")] = None,
    fsync_each: Annotated[bool, typer.Option(help="Make each line of it durable by itself.")] = False,
    fault: Annotated[list[str] | None, typer.Option(metavar="SPEC=RATE", help="A fault and its probability; may be repeated.")] = None,
) -> None:
    """Run a simulated engine until SIGTERM. Prints {"event": "ready", "url": ...} when it listens.

    A request asks for a fault by its model's name (`sim-echo!cut@5`) or the header x-sim-fault.
    """
    host, port = parse_address(listen, option="--listen")
    try:
        settings = SimulatorSettings(
            host=host,
            port=port,
            grpc_listen=grpc_listen,
            fd=fd,
            models=tuple(model) if model else _DEFAULT.models,
            api_key=api_key,
            seed=seed,
            ttft_seconds=ttft_seconds,
            inter_token_seconds=inter_token_seconds,
            jitter_fraction=jitter_fraction,
            prefill_seconds_per_token=prefill_seconds_per_token,
            tokens_per_chunk=tokens_per_chunk,
            output_tokens_min=output_tokens_min,
            output_tokens_max=output_tokens_max,
            reasoning_tokens=reasoning_tokens,
            context_tokens_max=context_tokens_max,
            embedding_dimensions=embedding_dimensions,
            running_max=running_max,
            queued_max=queued_max,
            cache_blocks_max=cache_blocks_max,
            prompt_tokens_details=prompt_tokens_details,
            keep_alive_seconds=keep_alive_seconds,
            drain_seconds=drain_seconds,
            truth_log=truth_log,
            fsync_each=fsync_each,
            fault_rates=tuple(_read_rate(text) for text in fault or ()),
        )
    except ValueError as error:
        raise OperatorError(str(error), hint="see tollway simulate --help", exit_code=2) from None
    try:
        sys.exit(server.run(settings))
    except OSError as error:
        raise OperatorError(f"cannot listen on {listen}: {error.strerror}", hint="choose another with --listen") from None


def _read_rate(text: str) -> tuple[str, float]:
    spec, separator, rate = text.rpartition("=")
    if not separator:
        raise ValueError(f"--fault {text} must be SPEC=RATE, for example cut@5=0.01")
    return spec, float(rate)
