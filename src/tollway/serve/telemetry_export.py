"""Export of telemetry to an OpenTelemetry collector, from the side of the process that it is about.

A process of its own (`telemetry_exporter`) does the work: it has the OpenTelemetry SDK, which neither a gateway nor control imports, and
waits for the collector. Here spans are only kept until they are written to it, twice a second. What does not fit, because the collector is
away or too slow, is dropped and counted: telemetry never delays what it is about, nor takes more than a bounded memory.
"""

import asyncio
import os
import socket
import sys
import time
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tollway.serve.telemetry_messages import FRAME_BYTES_MAX, LENGTH, Introduction, OtlpOptions, Page, Spans, decode_report, encode_frame
from tollway.spans import Span, TraceBounds

PENDING_SPANS_MAX = 4096
"""Spans that wait for the next write: half a second of a busy gateway with its bound on traces."""
BATCH_SPANS_MAX = 512
"""Spans that are sent in one request, as the SDK's own batches are bounded."""
BUFFER_BYTES_MAX = 4 * 1024 * 1024
"""Bytes that wait for an exporter that is busy with a collector."""
FLUSH_SECONDS = 0.5
"""Interval at which spans are written."""
FINISH_SECONDS = 3.0
"""For the last spans, at the end of the process."""
WARNING_SECONDS = 60.0
"""Interval of the log line while the collector does not take what is sent."""
ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that the exporter is given, besides those that begin with OTEL_, by which OpenTelemetry names headers and certificates."""

Alarm = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """The collector that telemetry is sent to, and the traces that are."""

    otlp: OtlpOptions
    traces: TraceBounds


class ExporterEnded(Exception):
    """The exporter process ended by itself."""


class TelemetryExport:
    """The spans and metrics of one process on their way out. Use it from one event loop, but `take` from any thread.

    `sent`: spans that the collector took; `dropped`: those that it did not, or that there was no place for; `pages_sent`, `pages_failed`:
    pages of metrics."""

    def __init__(
        self,
        options: OtlpOptions,
        resource: Mapping[str, str],
        alarm: Alarm,
        now_us: Callable[[], int],
        read_page: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        """`read_page`: the metrics of the process in the text format of Prometheus."""
        self.dropped = self.sent = 0
        self.pages_failed = self.pages_sent = 0
        self._options = options
        self._resource = dict(resource)
        self._alarm = alarm
        self._now_us = now_us
        self._read_page = read_page if options.metrics_seconds else None
        self._since_us = now_us()
        self._pending: list[Span] = []
        self._warned_at = -WARNING_SECONDS

    def take(self, spans: list[Span]) -> None:
        """Take the spans of a trace, to be sent soon. Never waits."""
        if len(self._pending) + len(spans) > PENDING_SPANS_MAX:
            self.dropped += len(spans)
        else:
            self._pending.extend(spans)

    async def run(self) -> None:
        """Send what is taken until cancelled; then send the rest, within FINISH_SECONDS. Raises OSError or ExporterEnded if the exporter
        process does not run: whoever supervises runs this again."""
        process, incoming, outgoing = await _start()
        try:
            outgoing.write(encode_frame(Introduction(self._options, self._resource)))
            reading = asyncio.ensure_future(self._read_reports(incoming))
            try:
                await self._write(outgoing, reading)
            except asyncio.CancelledError:
                self._flush(outgoing)
                outgoing.write_eof()
                await asyncio.wait({reading}, timeout=FINISH_SECONDS)
                raise
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        finally:
            outgoing.transport.abort()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _write(self, outgoing: StreamWriter, reading: "asyncio.Future[None]") -> None:
        page_at = time.monotonic()
        while True:
            await asyncio.wait({reading}, timeout=FLUSH_SECONDS)
            if reading.done():
                reading.result()
                raise ExporterEnded
            self._flush(outgoing)
            if self._read_page is not None and time.monotonic() >= page_at:
                page_at = time.monotonic() + self._options.metrics_seconds
                if outgoing.transport.get_write_buffer_size() < BUFFER_BYTES_MAX:
                    outgoing.write(encode_frame(Page(await self._read_page(), self._now_us(), self._since_us)))
                else:
                    self.pages_failed += 1

    def _flush(self, outgoing: StreamWriter) -> None:
        pending, self._pending = self._pending, []
        for start in range(0, len(pending), BATCH_SPANS_MAX):
            batch = pending[start : start + BATCH_SPANS_MAX]
            if outgoing.transport.get_write_buffer_size() >= BUFFER_BYTES_MAX:
                self.dropped += len(batch)
            else:
                outgoing.write(encode_frame(Spans(batch)))

    async def _read_reports(self, incoming: StreamReader) -> None:
        with suppress(IncompleteReadError):
            while True:
                (length,) = LENGTH.unpack(await incoming.readexactly(LENGTH.size))
                if length > FRAME_BYTES_MAX:
                    raise ValueError("a report that is too long")
                report = decode_report(await incoming.readexactly(length))
                if report.is_page:
                    self.pages_sent += report.sent
                    self.pages_failed += report.failed
                else:
                    self.sent += report.sent
                    self.dropped += report.failed
                now = time.monotonic()
                if report.failed and now - self._warned_at >= WARNING_SECONDS:
                    self._warned_at = now
                    self._alarm("telemetry_not_sent", {"error": report.error or "it did not take them"})


async def _start() -> tuple[Process, StreamReader, StreamWriter]:
    """Start an exporter process; return it with the streams from and to it. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        environment = {name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith("OTEL_")}
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "tollway.serve.telemetry_exporter",
                str(theirs.fileno()),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        ours.setblocking(False)
        incoming, outgoing = await asyncio.open_unix_connection(sock=ours)
    except BaseException:
        ours.close()
        raise
    return process, incoming, outgoing
