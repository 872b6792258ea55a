"""The process that sends spans and metrics to an OpenTelemetry collector, by OTLP over HTTP or gRPC (`telemetry_export` starts it).

It is the only one that imports the OpenTelemetry SDK. It waits for the collector as long as `timeout_seconds` says, then gives up what it
was sending; the process that it serves drops what it cannot take meanwhile. It ends with the end of its socket, and ignores signals, which
are for that process.
"""

import logging
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tollway import __version__
from tollway.serve.telemetry_messages import (
    FRAME_BYTES_MAX,
    LENGTH,
    Introduction,
    Message,
    OtlpOptions,
    Page,
    Report,
    Spans,
    decode_message,
    encode_frame,
)
from tollway.spans import Span

SCOPE = InstrumentationScope("tollway", __version__)
_KINDS = {1: SpanKind.INTERNAL, 2: SpanKind.SERVER, 3: SpanKind.CLIENT}
_CONVENTIONAL = {
    "gen_ai_server_request_duration_seconds": "gen_ai.server.request.duration",
    "gen_ai_server_time_to_first_token_seconds": "gen_ai.server.time_to_first_token",
    "gen_ai_server_time_per_output_token_seconds": "gen_ai.server.time_per_output_token",
    "gen_ai_operation_name": "gen_ai.operation.name",
    "gen_ai_request_model": "gen_ai.request.model",
}
"""Names of the semantic conventions, of metrics and labels that Prometheus cannot name with points."""


def make_span(span: Span, resource: Resource) -> ReadableSpan:
    """Return a span as the SDK has it."""
    trace_id, flags = int(span.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
    context = SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=flags)
    parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote=True, trace_flags=flags) if span.parent_id else None
    attributes = {**span.attributes, "error.type": span.error} if span.error else dict(span.attributes)
    return ReadableSpan(
        span.name,
        context,
        parent,
        resource,
        attributes,
        events=[Event(name, {}, at_us * 1000) for name, at_us in span.events],
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR if span.error else StatusCode.UNSET),
        start_time=span.start_us * 1000,
        end_time=span.end_us * 1000,
        instrumentation_scope=SCOPE,
    )


def make_metrics(page: Page, resource: Resource) -> MetricsData:
    """Return the metrics of a page as the SDK has them. Counters and histograms are cumulative. Raises ValueError for another text."""
    metrics = [metric for family in text_string_to_metric_families(page.text.decode()) for metric in _list_metrics(family, page)]
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(SCOPE, metrics, "")], "")])


def _list_metrics(family: Family, page: Page) -> Iterator[Metric]:
    since, at = page.since_us * 1000, page.at_us * 1000
    name = _CONVENTIONAL.get(family.name, family.name)
    unit = "s" if family.name.endswith("_seconds") else "By" if family.name.endswith("_bytes") else ""
    cumulative = AggregationTemporality.CUMULATIVE
    if family.type == "histogram":
        points = [point for series in _by_labels(family.samples) if (point := _make_histogram_point(series, since, at)) is not None]
        if points:
            yield Metric(name, family.documentation, unit, Histogram(points, cumulative))
        return
    is_counter = family.type == "counter"
    samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    numbers = [NumberDataPoint(_name_labels(sample.labels), since if is_counter else at, at, sample.value) for sample in samples]
    if numbers:
        yield Metric(name, family.documentation, unit, Sum(numbers, cumulative, True) if is_counter else Gauge(numbers))


def _by_labels(samples: Iterable[Sample]) -> Iterable[list[Sample]]:
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        series.setdefault(labels, []).append(sample)
    return series.values()


def _make_histogram_point(samples: Sequence[Sample], since: int, at: int) -> HistogramDataPoint | None:
    """Return one series of a histogram; None if it has no buckets."""
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    if not buckets:
        return None
    labels = {name: value for name, value in buckets[0].labels.items() if name != "le"}
    bounds = [float(sample.labels["le"]) for sample in buckets[:-1]]
    counts = [int(sample.value) for sample in buckets]
    of_each = [count - before for count, before in zip(counts, [0, *counts], strict=False)]
    total = next((sample.value for sample in samples if sample.name.endswith("_sum")), 0.0)
    unknown: Any = None  # least and greatest value, which OTLP may leave out and the SDK's type may not
    return HistogramDataPoint(_name_labels(labels), since, at, counts[-1], total, of_each, bounds, unknown, unknown)


def _name_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {_CONVENTIONAL.get(name, name): value for name, value in labels.items()}


def open_exporters(options: OtlpOptions) -> tuple[SpanExporter, MetricExporter]:
    """Return what sends spans and metrics to the collector of these options."""
    endpoint, seconds = (options.endpoint or "").rstrip("/"), options.timeout_seconds
    if options.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        insecure = not endpoint.startswith("https://")
        return (
            GrpcSpanExporter(endpoint=endpoint, insecure=insecure, timeout=seconds),
            GrpcMetricExporter(endpoint=endpoint, insecure=insecure, timeout=seconds),
        )
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return (
        OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=seconds),
        OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics", timeout=seconds),
    )


class Sends(Protocol):
    """Sends one message. Raises whatever an exporter raises."""

    def __call__(self, message: Spans | Page) -> Report: ...


def make_sender(introduction: Introduction) -> Sends:
    """Return what sends messages to the collector that an introduction names."""
    of_spans, of_metrics = open_exporters(introduction.options)
    resource = Resource.create(dict(introduction.resource))
    timeout_ms = introduction.options.timeout_seconds * 1000

    def send(message: Spans | Page) -> Report:
        if isinstance(message, Page):
            is_sent = of_metrics.export(make_metrics(message, resource), timeout_millis=timeout_ms) is MetricExportResult.SUCCESS
            return Report(int(is_sent), int(not is_sent), True)
        count = len(message.spans)
        is_sent = of_spans.export([make_span(span, resource) for span in message.spans]) is SpanExportResult.SUCCESS
        return Report(count if is_sent else 0, 0 if is_sent else count, False)

    return send


def run(incoming: BinaryIO, outgoing: socket.socket) -> None:
    """Send what arrives until the end of `incoming`, and report of each message."""
    send: Sends | None = None
    while (message := _read(incoming)) is not None:
        if isinstance(message, Introduction):
            send = make_sender(message)
            continue
        if send is None:
            raise ValueError("a message before the introduction")
        try:
            report = send(message)
        except Exception as error:  # one message that cannot be sent must not end the process
            is_page = isinstance(message, Page)
            report = Report(0, 1 if isinstance(message, Page) else len(message.spans), is_page, type(error).__name__)
        outgoing.sendall(encode_frame(report))


def _read(incoming: BinaryIO) -> Message | None:
    head = incoming.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    if length > FRAME_BYTES_MAX:
        raise ValueError("a message that is too long")
    data = incoming.read(length)
    return decode_message(data) if len(data) == length else None


def main() -> None:
    """Serve the socket whose descriptor is the argument."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)  # reports say what failed; nothing that an exporter quotes reaches a log
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rb") as incoming:
        try:
            run(incoming, connection)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever is served has ended


if __name__ == "__main__":
    main()
