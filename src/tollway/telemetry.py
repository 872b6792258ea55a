"""Metrics and logs for operators: counts are kept as plain integers and rendered only when asked; `metric_table` declares every metric.

Counting a request costs a few integer additions; prometheus-client is used at scrape alone. GenAI histograms follow the OpenTelemetry
semantic conventions v1.41.0 (the last in the main repository). No bill is ever computed from any of this. A log line is one JSON object
without content or secrets, written in batches by a thread, so that a slow disk or a full pipe costs lines (counted), never latency.
"""

import os
import queue
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final, NamedTuple, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as open_metrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Timestamp

from tollway.domain.billing_classes import OTHER_CLASSES, QUANTITY_CLASSES, TEXT_CLASSES, OtherClasses
from tollway.log_lines import RequestLine
from tollway.metric_table import Kind, find_metric

DURATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Buckets of gen_ai.server.request.duration."""
FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Buckets of gen_ai.server.time_to_first_token."""
OUTPUT_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Buckets of gen_ai.server.time_per_output_token."""

OPERATIONS = {"chat/completions": "chat", "completions": "text_completion", "embeddings": "embeddings", "messages": "chat"}
"""Values of gen_ai.operation.name by endpoint."""


class Example(NamedTuple):
    """A value whose trace is kept. `at_us`: UTC microseconds."""

    trace_id: str
    value: float
    at_us: int


class Histogram:
    """Counts by bucket, without locks: one event loop writes, a scrape in the same loop reads."""

    __slots__ = ("bounds", "counts", "examples", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.examples: dict[int, Example] = {}
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def name_example(self, value: float, trace_id: str, at_us: int) -> None:
        """Take the trace of a value that was observed as the example of its bucket."""
        self.examples[bisect_left(self.bounds, value)] = Example(trace_id, value, at_us)

    def buckets(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        """Cumulative counts as Prometheus wants them, with the examples of buckets (exemplars of OpenMetrics)."""
        total = 0
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        for index, (bound, count) in enumerate(zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True)):
            total += count
            example = self.examples.get(index)
            if example is None:
                buckets.append((bound, float(total)))
            else:
                exemplar = Exemplar(
                    {"trace_id": example.trace_id}, example.value, Timestamp(example.at_us // 10**6, example.at_us % 10**6 * 1000)
                )
                buckets.append((bound, float(total), exemplar))
        return buckets


_MILLISECONDS: Final = tuple(f".{millisecond:03d}Z" for millisecond in range(1000))


class _FormattedSecond:
    """The second that was formatted last, in UTC microseconds, and its text: most lines of a busy gateway share it."""

    __slots__ = ("at_us", "text")

    def __init__(self) -> None:
        self.at_us = 0
        self.text = "1970-01-01T00:00:00"


_last: Final = _FormattedSecond()


def timestamp(at_us: int) -> str:
    """RFC 3339 in UTC, to the millisecond, of UTC microseconds."""
    last = _last
    rest = at_us - last.at_us
    if not 0 <= rest < 1_000_000:
        rest = at_us % 1_000_000
        last.at_us = at_us - rest
        last.text = datetime.fromtimestamp(last.at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return last.text + _MILLISECONDS[rest // 1000]


def describe_error(error: BaseException) -> str:
    """Return the type of an error and the file and line where it arose. Never its text, which may quote a body or a secret."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = "?" if traceback is None else f"{traceback.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno}"
    return f"{type(error).__name__} in {place}"


LEVELS: Final = ("info", "warning", "error")
"""Levels of log lines, the least first."""


def new_line(at_us: int, level: str, event: str, fields: Mapping[str, object]) -> dict[str, object]:
    """Return a log line about an event: what every line of every process begins with, and the event's own fields (docs/logs.md)."""
    return {"ts": timestamp(at_us), "level": level, "event": event, **fields}


class LogWriter:
    """Writes JSON lines to a descriptor from a thread of its own; bounded, and what does not fit is counted in `dropped`."""

    PENDING_BATCHES_MAX: ClassVar = 512
    BATCH_LINES_MAX: ClassVar = 256
    """Lines are encoded together, in one call: so many hold the interpreter for a third of a millisecond."""

    def __init__(self, descriptor: int, level: str = "info") -> None:
        """`level`: one of LEVELS; lines below it are left out. ValueError for another one."""
        self.dropped = 0
        self._least = LEVELS.index(level)
        self._descriptor = descriptor
        self._lines: list[RequestLine | msgspec.Raw] = []
        self._batches: queue.Queue[list[RequestLine | msgspec.Raw] | None] = queue.Queue(self.PENDING_BATCHES_MAX)
        self._encode = msgspec.json.Encoder().encode_lines
        self._worker = threading.Thread(target=self._run, name="log", daemon=True)
        self._worker.start()

    def write(self, line: msgspec.Struct | Mapping[str, object]) -> None:
        """Take one line; it is written with the next flush. A line that JSON cannot express is dropped and counted: whoever raises an
        alarm has more to do than to handle the alarm's own failure."""
        if self._least and isinstance(line, Mapping) and line.get("level") in LEVELS[: self._least]:
            return
        try:
            encoded = msgspec.json.encode(line)
        except (TypeError, ValueError):
            self.dropped += 1
            return
        self.take(msgspec.Raw(encoded))

    def take(self, line: RequestLine | msgspec.Raw) -> None:
        """Add a line that is encoded already, or that the thread encodes with its batch."""
        if self._least and getattr(line, "level", "") in LEVELS[: self._least]:
            return
        self._lines.append(line)
        if len(self._lines) >= self.BATCH_LINES_MAX:
            self.flush()

    def step_level(self, at_us: int) -> None:
        """Leave out the lines of one level more, or, of the last one, none again; write a line that reports it, whatever the level is."""
        self._least = (self._least + 1) % len(LEVELS)
        line = new_line(at_us, "info", "log_level_changed", {"log_level": LEVELS[self._least]})
        self.take(msgspec.Raw(msgspec.json.encode(line)))
        self.flush()

    def flush(self) -> None:
        """Hand what was taken so far to the thread."""
        if self._lines:
            lines, self._lines = self._lines, []
            try:
                self._batches.put_nowait(lines)
            except queue.Full:
                self.dropped += len(lines)

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Write what is left and stop; gives up after the time given (a pipe nobody reads)."""
        self.flush()
        try:
            self._batches.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        self._worker.join(timeout_seconds)

    def _run(self) -> None:
        while (lines := self._batches.get()) is not None:
            try:
                data = self._encode_batch(lines)
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except Exception:  # this thread has to outlive whatever a batch holds, and there is nowhere else to log to
                self.dropped += len(lines)

    def _encode_batch(self, lines: list[RequestLine | msgspec.Raw]) -> bytes:
        """Return the lines as JSON; one that JSON cannot express is dropped, and the others of its batch are kept."""
        try:
            return self._encode(lines)
        except (TypeError, ValueError):
            kept = b""
            for line in lines:
                try:
                    kept += self._encode([line])
                except (TypeError, ValueError):
                    self.dropped += 1
            return kept


class ModelMetrics:
    """Counts of one endpoint of one model: found once per request, then plain additions."""

    __slots__ = ("duration", "first_token", "output_token", "statuses", "tokens")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.tokens = [0] * len(QUANTITY_CLASSES)
        """By class: those of TEXT_CLASSES are counted in place (`gateway.observe`), the others by `add_other`."""
        self.duration = Histogram(DURATION_SECONDS)
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.output_token = Histogram(OUTPUT_TOKEN_SECONDS)

    def name_example(self, seconds: float, first_token_seconds: float | None, trace_id: str, at_us: int) -> None:
        """Take a request whose trace is kept, and which was counted, as an example of its duration and time to the first token."""
        self.duration.name_example(seconds, trace_id, at_us)
        if first_token_seconds is not None:
            self.first_token.name_example(first_token_seconds, trace_id, at_us)

    def add_other(self, used: OtherClasses) -> None:
        """Count the classes that few requests use."""
        for index, quantity in enumerate(msgspec.structs.astuple(used), len(TEXT_CLASSES)):
            self.tokens[index] += quantity


class UpstreamState(NamedTuple):
    """State of a deployment at a scrape. `chosen`: how often it was, by kind of candidate. `region`: empty if it is not stated."""

    deployment_id: str
    model: str
    engine: str
    region: str
    running: int
    limit: int
    queued_tokens: float
    chosen: Sequence[tuple[str, int]]


class Metrics:
    """Counts of one gateway process. `list_upstreams`: the deployments' states, read at scrape. `loop_lag_seconds_max`: since the last
    scrape; `status_lag_seconds_max`: since the last report to control."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], ModelMetrics] = {}
        self.refusals: dict[str, int] = {}
        self.outcomes: dict[str, int] = {}
        self.attempts: dict[tuple[str, str], int] = {}
        self.anomalies: dict[str, int] = {}
        self.unsolicited: dict[str, int] = {}
        self.ejections: dict[tuple[str, str], int] = {}
        self.load_reports_failed: dict[str, int] = {}
        self.cache_event_gaps: dict[str, int] = {}
        self.not_ready: dict[str, int] = {}
        self.task_restarts: dict[str, int] = {}
        self.callback_failures: dict[str, int] = {}
        self.queue_results: dict[str, int] = {}
        self.queue_seconds = Histogram(DURATION_SECONDS)
        self.retries = 0
        self.replays = 0
        self.fallbacks: dict[str, int] = {}
        self.hedges: dict[tuple[str, str], int] = {}
        self.guardrail_verdicts: dict[tuple[str, str], int] = {}
        self.guardrail_seconds = Histogram(FIRST_TOKEN_SECONDS)
        self.connections_refused = 0
        self.connections_shed = 0
        self.running = 0
        self.loop_lag_seconds_max = 0.0
        self.status_lag_seconds_max = 0.0
        self.list_upstreams: Callable[[], list[UpstreamState]] = list
        self._readers: dict[str, Callable[[], float]] = {}

    def of_model(self, endpoint: str, model: str) -> ModelMetrics:
        """The counts of requests for a published model at an endpoint."""
        key = (endpoint, model)
        found = self.models.get(key)
        if found is None:
            found = self.models[key] = ModelMetrics()
        return found

    def expose(self, name: str, read: Callable[[], float]) -> None:
        """Show what `read` returns at each scrape as the metric `name`. For values that other packages keep (spool, snapshot, log).

        Raises KeyError if `metric_table` does not declare it."""
        find_metric(name)
        self._readers[name] = read

    def read(self, name: str) -> float:
        """Return the present value of a metric that is read at scrape."""
        return self._readers[name]()

    def find(self, name: str) -> float | None:
        """Return the present value of a metric that is read at scrape, None if this process does not show it."""
        read = self._readers.get(name)
        return None if read is None else read()

    def count(self, table: dict[str, int], key: str) -> None:
        """Add one to a table with one label."""
        table[key] = table.get(key, 0) + 1

    def attempted(self, deployment_id: str, result: str) -> None:
        """One attempt at an upstream ended with `result` ("ok" or a fault code)."""
        key = (deployment_id, result)
        self.attempts[key] = self.attempts.get(key, 0) + 1

    def count_ejection(self, deployment_id: str, reason: str) -> None:
        """An upstream was ejected, or stays so, because of `reason` (a fault code, or "misconfigured")."""
        key = (deployment_id, reason)
        self.ejections[key] = self.ejections.get(key, 0) + 1

    def count_hedge(self, model: str, result: str) -> None:
        """A request for `model` was hedged, or was not for the budget: `won`, `lost`, `failed` or `over_budget`."""
        key = (model, result)
        self.hedges[key] = self.hedges.get(key, 0) + 1

    def render(self, *, is_open_metrics: bool = False) -> bytes:
        """Return everything counted in the text format of Prometheus, or in that of OpenMetrics, which has the examples of histograms as
        well. Resets the lag maximum: each scrape sees its own interval."""
        text = self.read_page(is_open_metrics=is_open_metrics)
        self.loop_lag_seconds_max = 0.0
        return text

    def read_page(self, *, is_open_metrics: bool = False) -> bytes:
        """As `render`, and reset nothing: for a reader beside those that scrape."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(self))
        if is_open_metrics:
            return bytes(open_metrics.generate_latest(registry))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class _Families(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        requests = [((*key, status), count) for key, found in metrics.models.items() for status, count in found.statuses.items()]
        yield _counter("tollway_requests", requests)
        yield _counter("tollway_refusals", metrics.refusals.items())
        yield _counter("tollway_outcomes", metrics.outcomes.items())
        tokens = [
            ((*key, billing_class), count)
            for key, found in metrics.models.items()
            for billing_class, count in zip(QUANTITY_CLASSES, found.tokens, strict=True)
            if count or billing_class not in OTHER_CLASSES
        ]
        yield _counter("tollway_tokens", tokens)
        yield _counter("tollway_upstream_attempts", metrics.attempts.items())
        yield _counter("tollway_usage_anomalies", metrics.anomalies.items())
        yield _counter("tollway_upstream_unsolicited", metrics.unsolicited.items())
        yield _counter("tollway_upstream_ejections", metrics.ejections.items())
        yield _counter("tollway_upstream_not_ready", metrics.not_ready.items())
        yield _counter("tollway_upstream_load_reports_failed", metrics.load_reports_failed.items())
        yield _counter("tollway_upstream_cache_event_gaps", metrics.cache_event_gaps.items())
        yield _counter("tollway_upstream_retries", [((), metrics.retries)])
        yield _counter("tollway_replayed_answers", [((), metrics.replays)])
        yield _counter("tollway_fallbacks", metrics.fallbacks.items())
        yield _counter("tollway_hedges", metrics.hedges.items())
        yield _counter("tollway_guardrail_verdicts", metrics.guardrail_verdicts.items())
        yield _histogram("tollway_guardrail_seconds", [((), metrics.guardrail_seconds)])
        yield _counter("tollway_connections_refused", [((), metrics.connections_refused)])
        yield _counter("tollway_connections_shed", [((), metrics.connections_shed)])
        yield _counter("tollway_task_restarts", metrics.task_restarts.items())
        yield _counter("tollway_callback_failures", metrics.callback_failures.items())
        yield _counter("tollway_queue_requests", metrics.queue_results.items())
        yield _histogram("tollway_queue_seconds", [((), metrics.queue_seconds)])
        yield _single("tollway_requests_running", metrics.running)
        yield _single("tollway_event_loop_lag_seconds_max", metrics.loop_lag_seconds_max)
        yield from _upstream_families(metrics.list_upstreams())
        for name, read in metrics._readers.items():
            yield _single(name, read())
        for name, histograms in (
            ("gen_ai_server_request_duration_seconds", [(key, found.duration) for key, found in metrics.models.items()]),
            ("gen_ai_server_time_to_first_token_seconds", [(key, found.first_token) for key, found in metrics.models.items()]),
            ("gen_ai_server_time_per_output_token_seconds", [(key, found.output_token) for key, found in metrics.models.items()]),
        ):
            yield _histogram(name, [((OPERATIONS.get(endpoint, endpoint), model), each) for (endpoint, model), each in histograms])


Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily)


def new_family(kind: type[Family], name: str) -> Family:
    """Return the metric `name` without samples, as `metric_table` declares it."""
    row = find_metric(name)
    family: Family = kind(row.name, row.text, labels=row.labels)
    return family


def _upstream_families(states: Sequence[UpstreamState]) -> Iterator[Metric]:
    running = new_family(GaugeMetricFamily, "tollway_upstream_running")
    limit = new_family(GaugeMetricFamily, "tollway_upstream_limit")
    queued = new_family(GaugeMetricFamily, "tollway_upstream_queued_tokens")
    described = new_family(GaugeMetricFamily, "tollway_upstream_info")
    for state in states:
        described.add_metric([state.deployment_id, state.model, state.engine, state.region], 1)
        running.add_metric([state.deployment_id], state.running)
        limit.add_metric([state.deployment_id], state.limit)
        queued.add_metric([state.deployment_id], state.queued_tokens)
    yield from (described, running, limit, queued)
    yield _counter("tollway_upstream_chosen", [((state.deployment_id, kind), count) for state in states for kind, count in state.chosen])


def _counter(name: str, items: Iterable[tuple[str | tuple[object, ...], int]]) -> CounterMetricFamily:
    family = new_family(CounterMetricFamily, name)
    for key, value in items:
        family.add_metric([key] if isinstance(key, str) else [str(part) for part in key], value)
    return family


def _single(name: str, value: float) -> CounterMetricFamily | GaugeMetricFamily:
    family = new_family(CounterMetricFamily, name) if find_metric(name).kind is Kind.COUNTER else new_family(GaugeMetricFamily, name)
    family.add_metric([], value)
    return family


def _histogram(name: str, items: Iterable[tuple[tuple[str, ...], Histogram]]) -> HistogramMetricFamily:
    family = new_family(HistogramMetricFamily, name)
    for key, histogram in items:
        family.add_metric(list(key), histogram.buckets(), histogram.sum)
    return family
