"""Telemetry of a control process: its traces, and the task that exports them and its metrics."""

import asyncio
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway import __version__
from tollway.control.tracing import ControlTracer
from tollway.serve.telemetry_export import TelemetryExport, TelemetryOptions
from tollway.spans import Sampler
from tollway.telemetry import describe_error, new_family
from tollway.worker_threads import run_in_thread

RESTART_SECONDS = 5.0
"""Pause before the exporter is started again, which should never be needed."""


class ControlTelemetry(Collector):
    """The traces and metrics that a control process exports. `tracer`: None if no traces are sent; `registry`: the metrics that are sent,
    once it is known."""

    def __init__(self, options: TelemetryOptions, log: Callable[[Mapping[str, object]], None], now: Callable[[], int]) -> None:
        self.tracer: ControlTracer | None = None
        self.registry: CollectorRegistry | None = None
        self._log = log
        instance = f"{os.uname().nodename}:{os.getpid()}"
        resource = {"service.name": "tollway-control", "service.version": __version__, "service.instance.id": instance}
        self._export = TelemetryExport(options.otlp, resource, self._alarm, now, self._read_page)
        self._sampler = sampler = Sampler(options.traces)
        if options.otlp.traces:
            bits = random.Random(secrets.randbits(256)).getrandbits  # ids, not secrets
            self.tracer = ControlTracer(sampler, self._export.take, bits, now)

    @classmethod
    def of(cls, options: TelemetryOptions, log: Callable[[Mapping[str, object]], None]) -> Self:
        """Return the telemetry of this process by the machine's clock."""
        return cls(options, log, lambda: time.time_ns() // 1000)

    async def run(self) -> None:
        """Export until cancelled. A failure is logged, and the exporter started again."""
        while True:
            try:
                await self._export.run()
            except Exception as error:
                self._log({"event": "telemetry_restarted", "detail": describe_error(error)})
            await asyncio.sleep(RESTART_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """Yield what became of spans and pages of metrics."""
        for name, count in (
            ("tollway_control_telemetry_spans_sent", self._export.sent),
            ("tollway_control_telemetry_spans_dropped", self._export.dropped),
            ("tollway_control_telemetry_traces_suppressed", self._sampler.suppressed),
            ("tollway_control_telemetry_pages_failed", self._export.pages_failed),
        ):
            family = new_family(CounterMetricFamily, name)
            family.add_metric([], count)
            yield family

    def _alarm(self, event: str, fields: dict[str, object]) -> None:
        self._log({"event": event, **fields})

    async def _read_page(self) -> bytes:
        return b"" if self.registry is None else await run_in_thread(generate_latest, self.registry)
