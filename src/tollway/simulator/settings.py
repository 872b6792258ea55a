"""Every knob of the simulator, with its unit and range; one value is handed to `server.serve`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tollway.simulator import faults


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """Settings of one simulated engine. Raises ValueError for a value outside its range."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0 asks the kernel for a free one; the ready line names it
    grpc_listen: str | None = None  # host:port of the Open Inference Protocol by gRPC
    fd: int | None = None  # an inherited listening socket; takes the place of host and port
    models: tuple[str, ...] = ("sim-small", "sim-echo")  # a name that starts with `sim-echo` answers with the last message
    api_key: str | None = None  # asked for as `Authorization: Bearer` under /v1 only, which is all that vLLM guards
    seed: int = 0  # of lengths, texts, jitter and the dice for `fault_rates`

    ttft_seconds: float = 0.020  # from slot to first token, without prefill
    inter_token_seconds: float = 0.005  # between two tokens of one sequence; 0 gives the whole answer at once
    jitter_fraction: float = 0.0  # 0..1: each gap between tokens is drawn from inter_token * (1 ± this)
    prefill_seconds_per_token: float = 0.0  # per prompt token that the prefix cache did not hold
    tokens_per_chunk: int = 1  # >1 is what speculative decoding looks like
    output_tokens_min: int = 8  # natural length of an answer: drawn from the prompt between these two,
    output_tokens_max: int = 64  # and ended by `stop`; `max_tokens` below it ends it by `length`
    reasoning_tokens: int = 0  # the first tokens of each answer are reasoning; >0 acts like `--reasoning-parser`
    context_tokens_max: int = 32_768  # prompt plus answer; vLLM's max_model_len
    embedding_dimensions: int = 32

    running_max: int = 256  # slots; vLLM's --max-num-seqs
    queued_max: int | None = None  # waiting requests before 503; None is vLLM's default: no bound
    cache_blocks_max: int = 65_536  # prefix cache and KV capacity, in blocks of 16 tokens
    prompt_tokens_details: bool = True  # vLLM's --enable-prompt-tokens-details

    keep_alive_seconds: float = 5.0  # vLLM's VLLM_HTTP_TIMEOUT_KEEP_ALIVE
    drain_seconds: float = 15.0  # vLLM's --shutdown-timeout: what runs longer ends with finish_reason "abort"
    body_bytes_max: int = 64 * 1024 * 1024  # larger bodies get 413

    truth_log: Path | None = None
    fsync_each: bool = False  # fdatasync every record before the answer ends, instead of group commit
    fsync_seconds: float = 0.05  # group commit: a record is on disk at most about this much later

    fault_rates: tuple[tuple[str, float], ...] = ()  # (fault spec, probability); at most one of them strikes a request

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: name at least one")
        if any("!" in model for model in self.models):
            raise ValueError("models: `!` separates a model from a fault and cannot be part of its name")
        _check_at_least(
            0,
            ttft_seconds=self.ttft_seconds,
            inter_token_seconds=self.inter_token_seconds,
            prefill_seconds_per_token=self.prefill_seconds_per_token,
            reasoning_tokens=self.reasoning_tokens,
            drain_seconds=self.drain_seconds,
            queued_max=0 if self.queued_max is None else self.queued_max,
            port=self.port,
        )
        _check_at_least(
            1,
            tokens_per_chunk=self.tokens_per_chunk,
            output_tokens_min=self.output_tokens_min,
            context_tokens_max=self.context_tokens_max,
            embedding_dimensions=self.embedding_dimensions,
            running_max=self.running_max,
            cache_blocks_max=self.cache_blocks_max,
            body_bytes_max=self.body_bytes_max,
        )
        if self.output_tokens_max < self.output_tokens_min:
            raise ValueError("output_tokens_max: must not be below output_tokens_min")
        if not 0 <= self.jitter_fraction <= 1:
            raise ValueError("jitter_fraction: must be between 0 and 1")
        if self.keep_alive_seconds <= 0 or self.fsync_seconds <= 0:
            raise ValueError("keep_alive_seconds and fsync_seconds: must be above 0")
        _check_rates(self.fault_rates)


def _check_at_least(minimum: int, **values: float) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name}: must be at least {minimum}")


def _check_rates(rates: Iterable[tuple[str, float]]) -> None:
    total = 0.0
    for spec, rate in rates:
        faults.parse(spec)
        if rate < 0:
            raise ValueError(f"fault_rates: {spec}: a probability cannot be negative")
        total += rate
    if total > 1:
        raise ValueError("fault_rates: the probabilities add up to more than 1")
