"""Prometheus metrics of vLLM: names, labels and types of 0.32, for the part that a gateway reads."""

from bisect import bisect_left
from collections.abc import Iterable

# Bucket bounds are vLLM's own, so that a dashboard made for it draws the same picture.
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_PER_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip

FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """Counts per bucket, not cumulative until rendered."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts a value in seconds, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Counters:
    """Counts since the start. Plain numbers, turned into text only when somebody asks."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.rejections = 0
        self.ended: dict[str, int] = {}
        self.finished = dict.fromkeys(FINISHED_REASONS, 0)
        self.first_token = Histogram(_FIRST_TOKEN)
        self.inter_token = Histogram(_PER_TOKEN)
        self.per_output_token = Histogram(_PER_TOKEN)
        self.total = Histogram(_REQUEST)
        self.queue = Histogram(_REQUEST)
        self.prefill = Histogram(_REQUEST)
        self.decode = Histogram(_REQUEST)

    def prompt(self, tokens: int, cached_tokens: int) -> None:
        """A prompt got its slot."""
        self.prompt_tokens += tokens
        self.cached_tokens += cached_tokens

    def end(self, ended: str, finish_reason: str | None) -> None:
        """A request is over, as its truth record says. vLLM does not count clients that left as aborted; nor is it
        done here.
        """
        self.ended[ended] = self.ended.get(ended, 0) + 1
        reason = "error" if ended == "error" and finish_reason is None else finish_reason
        if reason is not None:
            self.finished[reason] += 1

    def generation(
        self,
        *,
        tokens: int,
        queue_seconds: float,
        first_token_seconds: float | None,
        decode_seconds: float,
        total_seconds: float,
        gaps: int,
    ) -> None:
        """A generation gave its slot back. `first_token_seconds` is None if it made none; gaps count as their
        mean.
        """
        self.generation_tokens += tokens
        self.queue.observe(queue_seconds)
        self.total.observe(total_seconds)
        if first_token_seconds is not None:
            self.first_token.observe(queue_seconds + first_token_seconds)
            self.prefill.observe(first_token_seconds)
            self.decode.observe(decode_seconds)
        if gaps:
            self.inter_token.observe(decode_seconds / gaps, gaps)
            self.per_output_token.observe(decode_seconds / gaps)


def render(counters: Counters, *, model: str, running: int, waiting: int, cache_usage: float, blocks: int, block_tokens: int) -> bytes:
    """The text of GET /metrics."""
    labels = f'engine="0",model_name="{_escape(model)}"'
    lines: list[str] = []

    def gauge(name: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
        _family(lines, name, text, "gauge", ((name, extra, value) for extra, value in samples), labels)

    def counter(name: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
        _family(lines, name, text, "counter", ((name, extra, value) for extra, value in samples), labels)

    gauge("vllm:num_requests_running", "Number of requests in model execution batches.", [("", running)])
    gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", [("", waiting)])
    gauge(
        "vllm:num_requests_waiting_by_reason",
        "Number of requests waiting, by reason.",
        [(',reason="capacity"', waiting), (',reason="deferred"', 0)],
    )
    gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [("", cache_usage)])
    gauge(
        "vllm:engine_sleep_state",
        "Engine sleep state.",
        [(f',sleep_state="{state}"', state == "awake") for state in ("awake", "weights_offloaded", "discard_all")],
    )
    shape = f',block_size="{block_tokens}",num_gpu_blocks="{blocks}",kv_cache_size_tokens="{blocks * block_tokens}"'
    gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", [(shape, 1)])
    counter("vllm:prefix_cache_queries_total", "Prefix cache queries, in tokens.", [("", counters.prompt_tokens)])
    counter("vllm:prefix_cache_hits_total", "Prefix cache hits, in tokens.", [("", counters.cached_tokens)])
    counter("vllm:prompt_tokens_total", "Number of prefill tokens processed.", [("", counters.prompt_tokens)])
    counter("vllm:prompt_tokens_cached_total", "Number of cached prompt tokens.", [("", counters.cached_tokens)])
    counter(
        "vllm:prompt_tokens_by_source_total",
        "Number of prompt tokens by source.",
        [
            (',source="local_compute"', counters.prompt_tokens - counters.cached_tokens),
            (',source="local_cache_hit"', counters.cached_tokens),
            (',source="external_kv_transfer"', 0),
        ],
    )
    counter("vllm:generation_tokens_total", "Number of generation tokens processed.", [("", counters.generation_tokens)])
    counter("vllm:num_preemptions_total", "Cumulative number of preemptions.", [("", 0)])
    counter(
        "vllm:admission_rejections_total",
        "Requests turned away at admission.",
        [(',reason="queue_requests"', counters.rejections)],
    )
    counter(
        "vllm:request_success_total",
        "Count of successfully processed requests.",
        [(f',finished_reason="{reason}"', value) for reason, value in counters.finished.items()],
    )
    for name, text, histogram in (
        ("vllm:time_to_first_token_seconds", "Time to first token in seconds.", counters.first_token),
        ("vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", counters.inter_token),
        ("vllm:request_time_per_output_token_seconds", "Time per output token per request.", counters.per_output_token),
        ("vllm:e2e_request_latency_seconds", "End to end request latency in seconds.", counters.total),
        ("vllm:request_queue_time_seconds", "Time spent in WAITING phase for request.", counters.queue),
        ("vllm:request_prefill_time_seconds", "Time spent in PREFILL phase for request.", counters.prefill),
        ("vllm:request_decode_time_seconds", "Time spent in DECODE phase for request.", counters.decode),
    ):
        _family(lines, name, text, "histogram", _samples(name, histogram), labels)
    return ("\n".join(lines) + "\n").encode()


def _samples(name: str, histogram: Histogram) -> Iterable[tuple[str, str, float]]:
    total = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        total += count
        yield f"{name}_bucket", f',le="{bound}"', total
    yield f"{name}_count", "", total
    yield f"{name}_sum", "", histogram.sum


def _family(lines: list[str], name: str, text: str, kind: str, samples: Iterable[tuple[str, str, float]], labels: str) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{sample}{{{labels}{extra}}} {float(value)}" for sample, extra, value in samples)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
