"""The delivery of telemetry exports, at least once.

Theory of operation. An export has its positions in two numbered logs (`storage.telemetry_exports`); nothing is queued for it. By the lease
of the job one process at a time reads what lies behind them, of the organization of the export alone, sends it, and moves the positions
once the receiver has taken all of it. Whatever is killed in between, the same records are sent again, with the same ids.

A part is bounded by records, by bytes and by time. A receiver that fails is paused, longer with each failure, and disabled after three
days; it holds up nobody else, as each export is served by a task of its own, and an organization has few. Records of the audit trail are
kept as long as their retention says, usage for a follower that is away for as long as a receiver may fail.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control.eventing import delivery
from tollway.control.eventing.delivery import Outcome
from tollway.control.eventing.receivers import serve_due
from tollway.control.eventing.telemetry_exports import PROTOBUF, find_url, open_headers
from tollway.control.host_names import NamesBusy
from tollway.control.jobs import Turn, describe_failure
from tollway.domain.events import EventType, new_event
from tollway.domain.faults import Fault
from tollway.domain.networks import Network
from tollway.domain.sinks import SinkMessage, count_fitting, of_audit_record, of_usage
from tollway.domain.telemetry_exports import ExportFormat, Signal, TelemetryExport
from tollway.domain.webhooks import GIVEN_UP_SECONDS, DisabledReason, find_pause_end
from tollway.storage import audit, outbox, usage_batches
from tollway.storage import telemetry_exports as storage
from tollway.storage.database import Database, PlatformTx
from tollway.storage.vault import LocalVault
from tollway.telemetry import new_family
from tollway.worker_threads import run_in_thread

SECONDS = 5.0
"""Interval of the job."""

RUN_SECONDS = 300.0
"""Time after which one run begins nothing more."""

SEND_SECONDS_MAX = 30.0
"""Deadline for a receiver to take one part, over all its attempts."""

DEADLINE_SECONDS = RUN_SECONDS + 3 * SEND_SECONDS_MAX
"""Deadline for one run."""

PROCESS_MAX = 32
"""Exports that are served at a time."""

USAGE_MAX = 500
"""Usage events of one part, up to a batch (`usage_batches.EVENTS_MAX`) more: batches are read whole."""

AUDIT_MAX = 100
"""Records of the audit trail of one part."""

BATCHES_MAX = 200
"""Batches of usage that one transaction looks through."""

POST_RECORDS_MAX = 500
"""Records of one POST."""

POST_BYTES_MAX = 1 << 20
"""Bytes of one POST with more than one record, as JSON; the same records in OTLP take less."""

POST_BYTES_MIN = 16 << 10
"""Bytes to which answers 413 reduce it."""

TOO_LARGE = 413

GONE = 410


class ExportCounts(Collector):
    """Attempts of one process, by result."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, result: str) -> None:
        """Count one, in the event loop."""
        self._counts[result] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        family = new_family(CounterMetricFamily, "tollway_control_telemetry_export_attempts")
        for result, count in dict(self._counts).items():
            family.add_metric([result], count)
        yield family


class Part(NamedTuple):
    """Records that are sent next. `usage_position`, `audit_position`: where the export is then; None for a log that it does not follow.
    `oldest_at`: when the first of the records was stored. `has_more`: there may be more behind it. `is_missing`: records before it are
    gone."""

    usage: list[Mapping[str, Any]]
    audit: list[SinkMessage]
    usage_position: int | None
    audit_position: int | None
    oldest_at: int | None
    has_more: bool
    is_missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """The parts of a process with which it sends. `recorded`: the database whose changes the audit trail has as the end of an export.
    `open_vault`: for headers of an organization. `networks`: private ones that exports may reach. `random`: from 0 to 1."""

    database: Database
    recorded: Database
    open_vault: Callable[[str | None], LocalVault]
    networks: tuple[Network, ...]
    now: Callable[[], int]
    random: Callable[[], float]
    log: Callable[[Mapping[str, object]], None]
    counts: ExportCounts = field(default_factory=ExportCounts)

    async def run(self, turn: Turn) -> None:
        """Send what receivers have not got, until they have all or RUN_SECONDS are over. Raises what kept it from finding out what there
        is, once the attempts that had begun are over."""
        left: set[str] = set()  # for the next run

        async def serve(export: TelemetryExport) -> None:
            if not await self._serve(export):
                left.add(export.id)

        def note_interrupted(export: TelemetryExport, raised: BaseException) -> None:
            left.add(export.id)
            said = {"export_id": export.id, "organization_id": export.organization_id}
            self.log({"event": "telemetry_export_interrupted", **said, "detail": describe_failure(raised)})

        await serve_due(turn, RUN_SECONDS, lambda working: self._list_due(left, working), serve, note_interrupted)

    def _list_due(self, left: set[str], working: Sequence[TelemetryExport]) -> list[TelemetryExport]:
        """Number new batches of usage, and return exports to be served now."""
        space = PROCESS_MAX - len(working)
        if space <= 0:
            return []
        while True:
            with self.database.platform(write=False) as tx:
                if not usage_batches.has_unnumbered(tx):
                    return storage.list_due(tx, self.now(), left | {each.id for each in working}, space)
            with self.database.platform() as tx:
                usage_batches.number(tx)

    async def _serve(self, export: TelemetryExport) -> bool:
        """Send one part. Return whether the export may be served again in this run."""
        part = await run_in_thread(self._read, export)
        if part.usage or part.audit:
            try:
                async with asyncio.timeout(SEND_SECONDS_MAX):
                    outcome = await self._send(export, part)
            except TimeoutError:
                outcome = Outcome(error="timeout")
            except NamesBusy:
                return False  # which is no failure of the receiver
            except Exception:
                await run_in_thread(self._fail, export, part, Outcome(error="not sent: a defect"))
                raise
            self.counts.count("succeeded" if outcome.is_success else "failed")
            if not outcome.is_success:
                await run_in_thread(self._fail, export, part, outcome)
                return True  # once its pause is over
        return await run_in_thread(self._move, export, part)

    def _read(self, export: TelemetryExport) -> Part:
        with self.database.platform(write=False) as tx:
            usage = _read_usage(tx, export)
            audited = _read_audit(tx, export)
        oldest = [each for each in (usage.oldest_at, audited.oldest_at) if each is not None]
        return Part(
            usage.usage,
            audited.audit,
            usage.usage_position,
            audited.audit_position,
            min(oldest) if oldest else None,
            usage.has_more or audited.has_more,
            usage.is_missing or audited.is_missing,
        )

    async def _send(self, export: TelemetryExport, part: Part) -> Outcome:
        """Send all signals of a part. Return the first failure, or a success. Raises NamesBusy."""
        try:
            headers = await run_in_thread(lambda: open_headers(export, self.open_vault(export.organization_id)))
        except Fault:  # the key of the organization cannot be had now, or was destroyed
            return Outcome(error="headers unavailable")
        outcome = Outcome(status=200)
        if Signal.AUDIT in export.signals and part.audit:
            outcome = await self._post_parts(export, Signal.AUDIT, headers, part.audit, part.audit)
        if outcome.is_success and part.usage:
            messages = await run_in_thread(lambda: [of_usage(row) for row in part.usage])
            for signal in (Signal.USAGE, Signal.TRACES):
                if signal in export.signals and outcome.is_success:
                    outcome = await self._post_parts(export, signal, headers, messages, part.usage)
            if Signal.METRICS in export.signals and outcome.is_success:  # last, because what is sent twice is counted twice
                body = await run_in_thread(self._encode_metrics, export, part.usage)
                url = find_url(export, Signal.METRICS)
                outcome = await delivery.post(url, export.organization_id, self.networks, {**headers, **PROTOBUF}, body)
        return outcome

    async def _post_parts(
        self,
        export: TelemetryExport,
        signal: Signal,
        headers: Mapping[str, str],
        messages: Sequence[SinkMessage],
        rows: Sequence[Any],
    ) -> Outcome:
        """Send records in POSTs of bounded size. `rows`: the same records, as OTLP is made of them."""
        begin, bytes_max, url = 0, POST_BYTES_MAX, find_url(export, signal)
        while True:
            count = count_fitting(messages[begin:], POST_RECORDS_MAX, bytes_max)
            chosen = messages[begin : begin + count]
            if export.format is ExportFormat.JSON:
                own, body = {}, b"[" + b",".join(each.body for each in chosen) + b"]"
            else:
                own, body = PROTOBUF, await run_in_thread(_encode_traces, export.organization_id, rows[begin : begin + count])
            own = {**own, "idempotency-key": _make_key(chosen)}
            outcome = await delivery.post(url, export.organization_id, self.networks, {**headers, **own}, body)
            if outcome.status == TOO_LARGE and count > 1 and bytes_max > POST_BYTES_MIN:
                bytes_max = max(POST_BYTES_MIN, min(bytes_max, sum(len(each.body) for each in chosen)) // 2)
                continue
            begin += count
            if not outcome.is_success or begin == len(messages):
                return outcome

    def _encode_metrics(self, export: TelemetryExport, rows: Sequence[Mapping[str, Any]]) -> bytes:
        from tollway.control.eventing import otlp

        return otlp.encode_metrics(export.organization_id, rows, export.succeeded_at or export.created_at, self.now())

    def _move(self, export: TelemetryExport, part: Part) -> bool:
        """Store where an export is. Return whether it was where it was read."""
        now = self.now()
        is_sent = bool(part.usage or part.audit)
        after = msgspec.structs.replace(
            export,
            usage_position=part.usage_position,
            audit_position=part.audit_position,
            failures=0,
            failing_since=None,
            paused_until=0,
            succeeded_at=now if is_sent else export.succeeded_at,
            last_error=None,
            waiting_since=None if not part.has_more or not is_sent else part.oldest_at,
            missed_at=now if part.is_missing else export.missed_at,
        )
        with self.database.platform() as tx:
            return storage.move(tx, export, after)

    def _fail(self, export: TelemetryExport, part: Part, outcome: Outcome) -> None:
        """Store a failure, and what follows from it."""
        now = self.now()
        failures, since = export.failures + 1, export.failing_since or now
        after = msgspec.structs.replace(
            export,
            failures=failures,
            failing_since=since,
            paused_until=find_pause_end(failures, now, self.random()),
            last_error=(outcome.error or f"status {outcome.status}")[:64],
            waiting_since=export.waiting_since or part.oldest_at,
        )
        with self.database.platform() as tx:
            if not storage.move(tx, export, after):
                return
        if outcome.status == GONE:
            self._disable(export, DisabledReason.GONE)
        elif now - since >= GIVEN_UP_SECONDS * 1_000_000:
            self._disable(export, DisabledReason.FAILING)

    def _disable(self, export: TelemetryExport, reason: DisabledReason) -> None:
        """Let an export send nothing more, and tell the webhooks of its organization."""
        now = self.now()
        with self.recorded.tenant(export.organization_id) as tx:
            found = storage.find_export(tx, export.id, lock=True)
            if found is None or found.disabled_at is not None or found.url != export.url:
                return
            ended = msgspec.structs.replace(found, disabled_at=now, disabled_reason=reason, usage_position=None, audit_position=None)
            storage.put_export(tx, ended)
            said = {"id": export.id, "reason": str(reason)}
            outbox.append(tx, [new_event(EventType.TELEMETRY_EXPORT_DISABLED, export.organization_id, at=now, data=said)])
        self.log(
            {"event": "telemetry_export_disabled", "export_id": export.id, "organization_id": export.organization_id, "reason": str(reason)}
        )


def _read_usage(tx: PlatformTx, export: TelemetryExport) -> Part:
    """Return the next usage of an export, from batches whole. Those without usage of its organization are passed over."""
    position, rows = export.usage_position, list[Mapping[str, Any]]()
    oldest_at, is_missing = None, False
    if position is None:
        return Part(rows, [], None, None, None, has_more=False, is_missing=False)
    for _ in range(BATCHES_MAX):
        found = usage_batches.find_next(tx, position)
        if found is None:
            return Part(rows, [], position, None, oldest_at, has_more=False, is_missing=is_missing)
        number, batch = found
        is_missing = is_missing or number > position + 1
        own = usage_batches.list_events(tx, batch, export.organization_id)
        if own and oldest_at is None:
            oldest_at = own[0]["ended_at"]
        rows += own
        position = number
        if len(rows) >= USAGE_MAX:
            break
    return Part(rows, [], position, None, oldest_at, has_more=True, is_missing=is_missing)


def _read_audit(tx: PlatformTx, export: TelemetryExport) -> Part:
    """Return the next records of the audit trail for an export."""
    position = export.audit_position
    if position is None:
        return Part([], [], None, None, None, has_more=False, is_missing=False)
    records = audit.list_following(tx, export.organization_id, position, AUDIT_MAX)
    if not records:
        return Part([], [], None, position, None, has_more=False, is_missing=False)
    is_missing = records[0].sequence > position + 1
    messages = [of_audit_record(each) for each in records]
    return Part([], messages, None, records[-1].sequence, records[0].recorded_at, len(records) == AUDIT_MAX, is_missing)


def _encode_traces(organization_id: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    from tollway.control.eventing import otlp  # 3 MB that a process without exports of OTLP does not need

    return otlp.encode_traces(organization_id, rows)


def _make_key(messages: Sequence[SinkMessage]) -> str:
    """Return the id of a POST, which is the same for the same records."""
    return "batch_" + hashlib.sha256("\0".join(each.id for each in messages).encode()).hexdigest()[:32]
