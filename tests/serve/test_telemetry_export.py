"""The way of spans and metrics to a collector, through the exporter process and the official protocol."""

import asyncio
from typing import Any, Literal

import pytest

from tests.collectors import COLLECTORS, read_attributes
from tests.fakes import PATIENCE_SECONDS
from tests.test_metrics import full_metrics
from tollway.cli.processes import find_telemetry
from tollway.serve import telemetry_export
from tollway.serve.telemetry_export import TelemetryExport
from tollway.serve.telemetry_messages import OtlpOptions
from tollway.settings import OperatorError, TelemetrySection
from tollway.spans import Span, SpanKind

TRACE = "0123456789abcdef0123456789abcdef"
SPANS = [
    Span(TRACE, "00000000000000a1", "", "chat m", SpanKind.SERVER, 1_000_000, 3_000_000, "", {"tollway.attempt": 1, "is": True, "x": 0.5}),
    Span(TRACE, "00000000000000a2", "00000000000000a1", "chat m", SpanKind.CLIENT, 1, 2, "upstream_error", {}, (("first token", 2),)),
]
RESOURCE = {"service.name": "tollway-gateway", "service.instance.id": "node_1"}


def never(*_: object) -> None:
    raise AssertionError("nothing was to be reported")


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "section",
    [
        TelemetrySection(endpoint="collector:4318"),
        TelemetrySection(endpoint="ftp://collector"),
        TelemetrySection(endpoint="http://user:password@collector:4318"),
        TelemetrySection(endpoint="http://collector:4318", traces=False),
    ],
)
def test_a_collector_that_cannot_be_one_is_refused_without_its_address_in_the_message(section: TelemetrySection) -> None:
    with pytest.raises(OperatorError) as refused:
        find_telemetry(section)
    assert "password" not in refused.value.message and find_telemetry(TelemetrySection()) is None


@pytest.mark.parametrize("protocol", COLLECTORS)
async def test_spans_and_metrics_arrive_as_they_are(protocol: Literal["http/protobuf", "grpc"], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret")
    metrics = full_metrics()

    async def read_page() -> bytes:
        return metrics.read_page()

    with COLLECTORS[protocol]() as collected:
        options = OtlpOptions(endpoint=collected.url, protocol=protocol, metrics_seconds=3600)
        export = TelemetryExport(options, RESOURCE, never, lambda: 5_000_000, read_page)
        running = asyncio.create_task(export.run())
        await until(lambda: export.pages_sent)
        export.take(SPANS[:1])
        await until(lambda: export.sent == 1)
        export.take(SPANS[1:])
        running.cancel()  # what was taken last is sent nevertheless
        await asyncio.gather(running, return_exceptions=True)
    assert (export.sent, export.dropped, export.pages_failed) == (2, 0, 0)
    assert collected.headers["x-token"] == "secret"
    (_, first), (_, second) = collected.spans
    assert (first.trace_id.hex(), first.span_id.hex(), first.parent_span_id.hex()) == (TRACE, "00000000000000a1", "")
    assert (first.name, first.kind, first.start_time_unix_nano, first.end_time_unix_nano) == ("chat m", 2, 10**9, 3 * 10**9)
    assert read_attributes(first.attributes) == {"tollway.attempt": 1, "is": True, "x": 0.5} and first.status.code == 0
    assert (second.parent_span_id.hex(), second.kind, second.status.code) == ("00000000000000a1", 3, 2)
    assert read_attributes(second.attributes) == {"error.type": "upstream_error"}
    assert [(event.name, event.time_unix_nano) for event in second.events] == [("first token", 2_000)]
    found = {metric.name: metric for _, metric in collected.metrics}
    duration = found["gen_ai.server.request.duration"]
    (point,) = duration.histogram.data_points
    assert (duration.unit, duration.histogram.aggregation_temporality, point.count, sum(point.bucket_counts)) == ("s", 2, 1, 1)
    assert len(point.explicit_bounds) == len(point.bucket_counts) - 1 and point.bucket_counts[1] == 1
    assert read_attributes(point.attributes) == {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    assert found["tollway_refusals"].sum.is_monotonic and found["tollway_connections"].gauge.data_points[0].as_double == 1
    assert found["tollway_refusals"].sum.data_points[0].start_time_unix_nano == 5 * 10**9


async def test_without_a_collector_spans_are_dropped_and_counted_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_export, "PENDING_SPANS_MAX", 3)
    alarms: list[str] = []
    options = OtlpOptions(endpoint="http://127.0.0.1:1", timeout_seconds=0.2)
    export = TelemetryExport(options, RESOURCE, lambda event, fields: alarms.append(event), lambda: 0)
    for _ in range(2):
        export.take(SPANS)  # the second time there is no place
    assert export.dropped == 2
    running = asyncio.create_task(export.run())
    await until(lambda: export.dropped == 4)
    export.take(SPANS)
    await until(lambda: export.dropped == 6)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (alarms, export.sent) == (["telemetry_not_sent"], 0)


async def test_a_collector_that_accepts_and_never_answers_fills_a_bounded_buffer_and_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry_export, "BUFFER_BYTES_MAX", 64 * 1024)
    monkeypatch.setattr(telemetry_export, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(telemetry_export, "FINISH_SECONDS", 0.01)
    accepted = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as collector:
        port = collector.sockets[0].getsockname()[1]
        options = OtlpOptions(endpoint=f"http://127.0.0.1:{port}", timeout_seconds=3600)
        export = TelemetryExport(options, RESOURCE, never, lambda: 0)
        running = asyncio.create_task(export.run())
        export.take(SPANS)
        await asyncio.wait_for(accepted.wait(), PATIENCE_SECONDS)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not export.dropped:
                export.take(SPANS * 256)
                await asyncio.sleep(0.01)
        running.cancel()  # nor does the end wait for it
        await asyncio.gather(running, return_exceptions=True)
    assert export.sent == 0
