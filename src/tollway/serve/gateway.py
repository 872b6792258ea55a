"""One gateway process, assembled: what the data plane asks for (`gateway.ports`) meets what provides it.

Start: recover and open the spool, take over the copy of the snapshot, then listen; control may be away. End, on
SIGTERM: not ready, drain, close the spool, hand in what is left, exit 0. A spool that failed ends the process with exit
1 at once: what is on disk is recovered at the next start, and nothing that this process could still say about the disk
would be true. A process that finds the disk of its spool full, failing or read-only answers 503 until it is well
(`link/spool_wait.py`), then goes on by itself."""

import asyncio
import itertools
import json
import os
import random
import secrets as randomness
import shutil
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from tollway import __version__
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import SNAPSHOT_OUTDATED
from tollway.domain.files import FileOwner
from tollway.domain.snapshot import SNAPSHOT_AGE_SECONDS_MAX
from tollway.domain.usage import Admit, ServiceTier
from tollway.gateway.background import BackgroundTasks
from tollway.gateway.batches.worker import BatchBounds, BatchWorker
from tollway.gateway.body_reader_pool import BodyReaders
from tollway.gateway.buffers import BufferBounds
from tollway.gateway.directory import Directory
from tollway.gateway.edge import server
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.edge.edge_policy import EdgePolicy
from tollway.gateway.edge.server import DrainBounds
from tollway.gateway.guardrails import GuardrailBounds, Guardrails
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.open_inference.bounds import GrpcBounds
from tollway.gateway.plane import Plane
from tollway.gateway.ports import FileStore
from tollway.gateway.prefix_routing import HeldPrefixes
from tollway.gateway.realtime_sessions import RealtimeBounds, RealtimeSessions
from tollway.gateway.relay import RelayBounds
from tollway.gateway.response_cache import CacheBounds, ResponseCache
from tollway.gateway.shedding import SheddingBounds, find_memory_bound, read_resident_bytes
from tollway.gateway.status import StatusSource
from tollway.gateway.tracing import Tracer
from tollway.gateway.upstreams import cache_events, load_reports, probes
from tollway.gateway.waiting import QueueBounds
from tollway.link.batch_ends import BatchEndReporter
from tollway.link.content_log import ContentSender
from tollway.link.guardrail_requests import GuardrailRequests
from tollway.link.joining import join
from tollway.link.leases import LeaseClient
from tollway.link.limit_use_reports import LimitReporter
from tollway.link.recovery import Alarm, count_all
from tollway.link.response_store import ResponseStorage
from tollway.link.shipper import Shipper
from tollway.link.snapshot_follower import Follower
from tollway.link.spool import Spool, SpoolOptions, needed_bytes
from tollway.link.spool_wait import UnavailableSpool, find_waiting_node, open_when_available
from tollway.link.status_reports import StatusReporter
from tollway.link.token_requests import TokenRequests
from tollway.native import FORM
from tollway.serve import data_directory
from tollway.serve.allocator import return_free_pages, return_large_blocks
from tollway.serve.data_directory import NodeIdentity
from tollway.serve.descriptors import RESERVE, describe_shortage, raise_limit, share_out
from tollway.serve.limit_counters import GatewayCount, LimitsOptions, start_counters
from tollway.serve.sockets import url_of
from tollway.serve.telemetry_export import TelemetryExport, TelemetryOptions
from tollway.serve.tls import ClientTrust
from tollway.settings import OperatorError
from tollway.spans import Sampler
from tollway.storage.answer_files import AnswerBounds, AnswerFiles
from tollway.storage.batch_directory import BatchDirectory
from tollway.storage.tenant_files import FileBounds, FileDirectory
from tollway.storage.vault import LocalVault, derive_end_user_key
from tollway.telemetry import LogWriter, new_line
from tollway.wire.http import HttpBounds
from tollway.worker_threads import run_in_thread

FINISH_SECONDS = 5.0
"""For the last records to reach control after the spool was closed; what does not is shipped by the next process."""


AGE_CHECK_SECONDS = 0.5
"""Interval at which the age of the snapshot is compared with its bound."""

ANSWERS_SECONDS = 60.0
"""Interval at which stored answers that have expired are removed."""

ERASED_SECONDS = 60.0
"""Interval at which files of organizations that were newly erased are looked for, and shortest time before one is looked at again ..."""

ERASED_SECONDS_MAX = 86_400.0
"""... which doubles up to this, so that those that were erased long ago cost next to nothing."""

FILES_TURNS = 10
"""After so many times ERASED_SECONDS files of tenants that have expired are removed; they are not found any more before."""

NOTICE_SECONDS = 2.0
"""Time after which a gateway that is not ready says what it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """Options of a gateway process. `directory` holds `spool/`, `snapshot/` and `answers/`; `control_link_url` None serves from
    the snapshot's copy alone, however old it is. `node`: who this gateway is towards control. `log_descriptor`: where request lines go.
    `rules` and `tls` are for the public socket; `grpc_tls`: private key and certificate chain (PEM) of the gRPC port; `tls_expires_at`:
    when that chain expires, Unix seconds. `remake_tls` makes its context again for each change of the client certificates that are
    trusted, None: it asks for none. The sockets are listening already and belong to the supervisor."""

    directory: Path
    control_link_url: str | None
    listener: socket.socket
    internal: socket.socket
    peppers: Sequence[bytes] = field(repr=False)
    vault_key: bytes = field(repr=False)
    node: NodeIdentity
    log_descriptor: int = 1
    snapshot_age_seconds_max: float = SNAPSHOT_AGE_SECONDS_MAX
    spool: SpoolOptions = field(default_factory=SpoolOptions)
    edge: EdgeBounds = field(default_factory=EdgeBounds)
    http: HttpBounds = field(default_factory=HttpBounds)
    relay: RelayBounds = field(default_factory=RelayBounds)
    media: MediaBounds = field(default_factory=MediaBounds)
    buffers: BufferBounds = field(default_factory=BufferBounds)
    queue: QueueBounds = field(default_factory=QueueBounds)
    shedding: SheddingBounds = field(default_factory=SheddingBounds)
    idempotency: AnswerBounds = field(default_factory=AnswerBounds)
    files: FileBounds = field(default_factory=FileBounds)
    batches: BatchBounds = field(default_factory=BatchBounds)
    response_cache: CacheBounds = field(default_factory=CacheBounds)
    guardrail: GuardrailBounds = field(default_factory=GuardrailBounds)
    realtime: RealtimeBounds = field(default_factory=RealtimeBounds)
    grpc: GrpcBounds = field(default_factory=GrpcBounds)
    grpc_tls: tuple[bytes, bytes] | None = field(default=None, repr=False)
    guardrail_token: str | None = field(default=None, repr=False)
    drain: DrainBounds = field(default_factory=DrainBounds)
    limits: LimitsOptions = field(default_factory=LimitsOptions)
    telemetry: TelemetryOptions | None = None
    log_level: str = "info"
    rules: EdgePolicy | None = None
    tls: ssl.SSLContext | None = None
    tls_expires_at: int | None = None
    remake_tls: Callable[[], ssl.SSLContext | None] | None = None


def run_gateway(options: GatewayOptions) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Prints {"event": "ready", "url": ..., "internal_url": ...}
    when it listens. A limit on open files that is too low for the bound on connections lowers the bound, with a warning.

    Raises OSError if the spool cannot be written, ValueError if it belongs to another node, OperatorError if there are other gateways and
    no store for limit counters that they share.
    """
    return_large_blocks()
    limit = raise_limit()
    share = share_out(limit, options.edge.connections_max, for_each=2, reserve=RESERVE + options.edge.internal_connections_max)
    warning = None
    if share.missing:
        bound = f"{options.edge.connections_max} connections and as many to engines"
        warning = describe_shortage(limit, share, bound, " or lower gateway.edge.connections_max")
        sys.stderr.write(warning + "\n")
        options = replace(options, edge=msgspec.structs.replace(options.edge, connections_max=share.connections))
    return uvloop.run(_run(options, warning))


async def _run(options: GatewayOptions, warning: str | None) -> int:
    log = LogWriter(options.log_descriptor, options.log_level)
    if warning is not None:
        bound = options.edge.connections_max
        log.write(new_line(_now_us(), "warning", "descriptors_low", {"connections_max": bound, "detail": warning}))
        log.flush()

    def alarm(event: str, fields: dict[str, object]) -> None:
        log.write(new_line(_now_us(), "error", event, fields))
        log.flush()

    directory = options.directory / "spool"

    batches = _find_batches(options)
    counts = count_all if batches is None else partial(_count_lines, batches)

    def open_spool(alarm: Alarm) -> Spool:
        return Spool.open(directory, alarm=alarm, node_id=options.node.node_id, clock=_now_us, options=options.spool, counts=counts)

    spool: Spool | None = None
    try:
        spool = open_spool(alarm)
    except OSError as error:
        if find_waiting_node(directory, error) is None:
            raise
        alarm("spool_waits", {"error": str(error.strerror or error)})
    plane = Plane(
        usage_sink=spool or UnavailableSpool(),
        vault=LocalVault(options.vault_key),
        peppers=options.peppers,
        end_user_key=derive_end_user_key(options.vault_key),
        log=log,
        bounds=options.relay,
        media_bounds=options.media,
        buffer_bounds=options.buffers,
        queue_bounds=options.queue,
        shedding_bounds=_complete(options.shedding),
        random_bits=random.Random(randomness.randbits(256)).getrandbits,  # ids, not secrets; a system call each would cost more than both
        now_us=_now_us,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: log.step_level(_now_us()))
    background = BackgroundTasks(plane.metrics, alarm, on_failure=stop.set)
    plane.metrics.expose("tollway_certificate_expires_timestamp_seconds", lambda: options.tls_expires_at or 0)
    plane.metrics.expose("tollway_tasks", lambda: len(asyncio.all_tasks(loop)))
    loop.set_exception_handler(background.report_callback)
    readers = BodyReaders(options.buffers.readers, alarm)
    if options.buffers.readers:
        plane.body_readers = readers
        plane.metrics.expose("tollway_body_reader_failures", lambda: readers.failures)
    if options.idempotency.lifetime_seconds:
        answers = AnswerFiles(options.directory / "answers", LocalVault(options.vault_key), options.idempotency, _now_us)
        plane.answer_store = answers
        erased = ErasedOrganizations(plane.directory, answers.remove_organization)
        background.start("answer files", partial(remove_answers, answers, erased))
    worker: BatchWorker | None = None
    if batches is not None:
        files = _open_files(options)
        plane.file_store, plane.file_lifetime_seconds = files, options.files.lifetime_seconds
        plane.batch_store, plane.batch_lines_max = batches, options.batches.lines_max
        erased = ErasedOrganizations(plane.directory, batches.remove_organization, files.remove_organization)
        background.start("tenants' files", partial(remove_files, files, batches, erased))
        worker = _start_batches(plane, batches, files, options.batches, alarm, background)
    if options.response_cache.total_bytes_max:
        cache = plane.response_cache = ResponseCache(options.response_cache)
        background.start("cached responses", cache.run)
        plane.metrics.expose("tollway_response_cache_hits", lambda: cache.hits)
        plane.metrics.expose("tollway_response_cache_misses", lambda: cache.misses)
        plane.metrics.expose("tollway_response_cache_bytes", lambda: cache.bytes)
    if options.telemetry is not None:
        _start_telemetry(options.telemetry, plane, options.node.node_id, alarm, background)
    background.start("free memory", partial(return_free_pages, read_resident_bytes))
    plane.realtime = RealtimeSessions(options.realtime)
    guardrail: GuardrailRequests | None = None
    if options.guardrail.url is not None:
        bounds = options.guardrail
        guardrail = GuardrailRequests(url=options.guardrail.url, token=options.guardrail_token, timeout_seconds=bounds.timeout_seconds)
        plane.set_guardrails(Guardrails(bounds, guardrail.ask))
    counters = start_counters(options.limits, plane, options.node.node_id, alarm, background)
    count = GatewayCount(options.limits, counters, alarm, stop.set)
    if options.relay.probe_seconds:
        probe = partial(probes.run, plane.upstreams.all, options.relay.probe_seconds, plane.random)
        background.start("upstream probes", probe)
    if options.relay.load_seconds:
        upstreams = plane.upstreams
        report = partial(
            load_reports.run, upstreams.list_alternatives, lambda: upstreams.gateways, options.relay.load_seconds, plane.random
        )
        background.start("load reports", report)
    if options.relay.cache_events:
        held = plane.upstreams.held = HeldPrefixes()
        background.start("cache events", partial(cache_events.run, plane.upstreams.list_alternatives, held, plane.random))
        plane.metrics.expose("tollway_followed_prefixes", lambda: len(held))
    link = await _start_link(options, plane, alarm, background, count)
    if batches is not None:
        link.report_batches(batches)
    ready = asyncio.Event()
    serve = partial(
        server.serve,
        plane,
        listener=options.listener,
        internal=options.internal,
        stop=stop,
        edge_bounds=options.edge,
        http_bounds=options.http,
        drain=options.drain,
        ready=ready,
        background=background,
        rules=options.rules,
        tls=await _find_context(options, plane, background),
    )
    serving = background.start("server", serve, restarts=False, may_return=True)
    port: asyncio.Future[int] | None = loop.create_future() if options.grpc.listen is not None else None
    grpc_serving = None if port is None else _start_grpc(options, plane, stop, port, background)
    background.start("announce", partial(_announce, plane, ready, port, options), may_return=True)
    if spool is None:
        spool = await _wait_for_spool(serving, open_when_available(directory, open_spool, alarm, counts=counts))
    if spool is not None:
        plane.usage_sink = spool
        link.ship(spool)
        failing = loop.create_task(spool.failed.wait())
        await asyncio.wait({serving, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            log.close()
            os._exit(1)  # not even a drain: an answer now would promise a record that cannot be kept
        failing.cancel()
    if grpc_serving is not None:
        await asyncio.wait({grpc_serving})
    if worker is not None:
        await worker.stop(options.drain.grace_seconds)
    if spool is not None:
        await spool.close()
    await background.stop()
    await link.close()
    if guardrail is not None:
        await guardrail.close()
    await readers.close()
    log.close()
    count.raise_if_refused()
    return 1 if background.has_failed else 0


def _start_telemetry(options: TelemetryOptions, plane: Plane, node_id: str, alarm: Alarm, background: BackgroundTasks) -> None:
    """Trace requests, and send their traces and the metrics of the process to the collector."""
    resource = {"service.name": "tollway-gateway", "service.version": __version__, "service.instance.id": node_id}

    async def read_page() -> bytes:
        return plane.metrics.read_page()

    export = TelemetryExport(options.otlp, resource, alarm, _now_us, read_page)
    sampler = Sampler(options.traces)
    if options.otlp.traces:
        plane.tracer = Tracer(sampler, export.take)
    expose = plane.metrics.expose
    expose("tollway_telemetry_spans_sent", lambda: export.sent)
    expose("tollway_telemetry_spans_dropped", lambda: export.dropped)
    expose("tollway_telemetry_traces_suppressed", lambda: sampler.suppressed)
    expose("tollway_telemetry_pages_failed", lambda: export.pages_failed)
    background.start("telemetry", export.run)


def _complete(bounds: SheddingBounds) -> SheddingBounds:
    """Return the bounds with one on memory from the process's control group, where none is set."""
    return bounds if bounds.memory_bytes_max is not None else msgspec.structs.replace(bounds, memory_bytes_max=find_memory_bound())


async def _find_context(options: GatewayOptions, plane: Plane, background: BackgroundTasks) -> Callable[[], ssl.SSLContext] | None:
    """Return what gives the TLS context of a new connection; None without TLS."""
    context = options.tls
    if context is None:
        return None
    if options.remake_tls is None:
        return lambda: context
    trust = ClientTrust(context, options.remake_tls, plane.directory)
    with suppress(ssl.SSLError, OperatorError):  # the task reports it, and tries again
        await trust.follow()
    background.start("client trust", trust.run)
    return trust.find_context


class ErasedOrganizations:
    """Removals of what organizations that were erased left. Each is looked at again, because something failed, or a batch that ran
    when it was erased left its output afterwards: after ERASED_SECONDS first, then ever more rarely."""

    def __init__(self, directory: Directory, *removals: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`removals`: what removes something of an organization. Each blocks, and raises OSError, struct.error or ValueError."""
        self._clock = clock
        self._directory = directory
        self._removals = removals
        self._looks: dict[str, tuple[float, float]] = {}  # when the next one is due, and after which pause

    async def remove(self) -> Exception | None:
        """Look at those that are due. Return the first failure, which keeps nothing else from being removed."""
        failure: Exception | None = None
        for id in self._directory.list_erased():
            due_at, pause = self._looks.get(id, (0.0, ERASED_SECONDS / 2))
            if self._clock() < due_at:
                continue
            pause = min(2 * pause, ERASED_SECONDS_MAX)
            self._looks[id] = (self._clock() + pause, pause)
            for remove in self._removals:
                try:
                    await run_in_thread(remove, id)
                except (OSError, struct.error, ValueError) as error:
                    failure = failure or error
        return failure


async def remove_answers(answers: AnswerFiles, erased: ErasedOrganizations) -> None:
    """Remove stored answers once they have expired, and those of organizations that were erased. Raises what failed of the latter, once
    the former are removed."""
    while True:
        failure = await erased.remove()
        await run_in_thread(answers.remove_expired)
        if failure is not None:
            raise failure
        await asyncio.sleep(ANSWERS_SECONDS)


def _open_files(options: GatewayOptions) -> FileStore:
    """Return the store of files: the bucket where one is named, else the directory."""
    vault, bounds = LocalVault(options.vault_key), options.files
    if bounds.bucket is None:
        return FileDirectory(Path(bounds.directory or ""), vault, bounds, _now_us)
    from tollway.storage.tenant_objects import FileBucket  # takes memory, only where it is on

    return FileBucket(vault, bounds, _now_us)


def _find_batches(options: GatewayOptions) -> BatchDirectory | None:
    """Return the store of batches, None where there is none."""
    if options.files.directory is None:
        if options.files.bucket is not None:
            raise OperatorError(
                "gateway.files.bucket is set without gateway.files.directory",
                hint="name a directory that the gateways share: batches that run are kept there",
                exit_code=2,
            )
        return None
    return BatchDirectory(
        Path(options.files.directory),
        LocalVault(options.vault_key),
        _now_us,
        organization_batches_max=options.batches.organization_batches_max,
        free_bytes_min=options.files.free_bytes_min,
    )


def _count_lines(batches: BatchDirectory) -> Callable[[Admit], bool]:
    """Return what says whether what a request has noted counts that a gateway did not end: the line of a batch, or the response in the
    background, was answered, or it is neither."""
    answered: dict[FileOwner, set[str]] = {}
    attempts: dict[FileOwner, set[str]] = {}

    def is_counted(admit: Admit) -> bool:
        owner = FileOwner(admit.organization_id, admit.project_id)
        if admit.service_tier is not ServiceTier.BATCH:
            if admit.endpoint != Endpoint.RESPONSES:
                return True
            if owner not in attempts:
                attempts[owner] = batches.list_attempts(owner)
            if admit.request_id not in attempts[owner]:
                return True
        if owner not in answered:
            answered[owner] = batches.list_answered(owner)
        return admit.request_id in answered[owner]

    return is_counted


def _start_batches(
    plane: Plane, batches: BatchDirectory, files: FileStore, bounds: BatchBounds, alarm: Alarm, background: BackgroundTasks
) -> BatchWorker:
    """Return the worker of batches, which runs until it is stopped."""
    worker = BatchWorker(plane, batches, files, bounds, alarm)
    background.start("batches", worker.run)
    expose = plane.metrics.expose
    expose("tollway_batches_running", lambda: worker.batches_running)
    expose("tollway_batch_lines_running", lambda: worker.lines_running)
    expose("tollway_batch_lines", lambda: worker.lines_ended)
    return worker


async def remove_files(files: FileStore, batches: BatchDirectory, erased: ErasedOrganizations) -> None:
    """Remove files and batches of tenants once they have expired, and those of organizations that were erased. Raises what failed of the
    latter, once the former are removed."""
    for turn in itertools.count():
        failure = await erased.remove()
        if turn % FILES_TURNS == 0:
            await run_in_thread(files.remove_expired)
            await run_in_thread(batches.remove_expired)
        if failure is not None:
            raise failure
        await asyncio.sleep(ERASED_SECONDS)


async def _wait_for_spool(serving: asyncio.Task[None], opening: Coroutine[None, None, Spool]) -> Spool | None:
    """The spool, once there is one; None if the process was asked to stop before. Raises OSError for what does not pass."""
    task = asyncio.ensure_future(opening)
    await asyncio.wait({serving, task}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    return None


@dataclass(slots=True)
class _Link:
    """The gateway's side of the link: a follower from the start, and a shipper once there is a spool. Without a control plane to be linked
    to, neither runs."""

    options: GatewayOptions
    plane: Plane
    alarm: Alarm
    background: BackgroundTasks
    follower: Follower
    joined: asyncio.Event
    reporter: LimitReporter | None = None
    statuses: StatusReporter | None = None
    shipper: Shipper | None = None
    leases: LeaseClient | None = None
    token_requests: TokenRequests | None = None
    responses: ResponseStorage | None = None
    content: ContentSender | None = None
    batch_ends: BatchEndReporter | None = None

    def report_batches(self, batches: BatchDirectory) -> None:
        """Begin to report batches that have ended to control."""
        url = self.options.control_link_url
        if url is not None:
            node = self.options.node
            self.batch_ends = BatchEndReporter(batches, control_link_url=url, node_key=node.key, node_id=node.node_id)
            self.background.start("batch ends", partial(_run_after, self.joined, self.batch_ends.run))

    def ship(self, spool: Spool) -> None:
        """Begin to ship the records of `spool`, and those of earlier epochs in its directory."""
        expose, url = self.plane.metrics.expose, self.options.control_link_url
        expose("tollway_spool_commits", lambda: spool.metrics.commits)
        expose("tollway_spool_records", lambda: spool.metrics.records)
        expose("tollway_spool_bytes", lambda: spool.metrics.bytes_written)
        expose("tollway_spool_commit_seconds_max", lambda: spool.metrics.commit_seconds_max)
        expose("tollway_spool_refused", lambda: spool.metrics.refused)
        expose("tollway_spool_open_requests", lambda: spool.open_requests)
        if url is None:
            return
        directory, node_key = self.options.directory / "spool", self.options.node.key
        shipper = self.shipper = Shipper(spool, directory, control_link_url=url, node_key=node_key, alarm=self.alarm)
        expose("tollway_shipper_bytes", lambda: shipper.metrics.bytes_shipped)
        expose("tollway_shipper_attempts_failed", lambda: shipper.metrics.attempts_failed)
        expose("tollway_shipper_epochs_refused", lambda: shipper.metrics.epochs_refused)
        expose("tollway_shipper_epochs_unshipped", lambda: shipper.metrics.epochs_unshipped)
        expose("tollway_shipper_records_unshipped", shipper.count_unshipped_records)
        self.background.start("shipper", partial(_run_after, self.joined, shipper.run))
        leases = self.leases = LeaseClient(
            self.plane.budgets,
            control_link_url=url,
            node_key=node_key,
            node_id=spool.node_id,
            epoch=spool.epoch.number,
            alarm=self.alarm,
        )
        expose("tollway_lease_attempts_failed", lambda: leases.attempts_failed)
        self.background.start("leases", partial(_run_after, self.joined, leases.run))

    async def close(self) -> None:
        """Ship what is left and close the connections. Call it once the background tasks have ended."""
        await self.follower.close()
        for client in (self.leases, self.reporter, self.statuses, self.token_requests, self.responses, self.content, self.batch_ends):
            if client is not None:
                await client.close()
        if self.shipper is not None:
            await self.shipper.finish(FINISH_SECONDS)


async def _start_link(options: GatewayOptions, plane: Plane, alarm: Alarm, background: BackgroundTasks, count: GatewayCount) -> _Link:
    url, node, joined = options.control_link_url, options.node, asyncio.Event()

    def note_gateways(gateways: int) -> None:
        count.note(gateways)
        plane.upstreams.gateways = count.gateways

    follower = Follower(
        plane,
        options.directory / "snapshot",
        control_link_url=url or "http://127.0.0.1:1",
        node_key=node.key,
        node_id=node.node_id,
        alarm=alarm,
        clock=_now_us,
        on_gateways=note_gateways,
        take_uses=plane.directory.take_uses,
    )
    await follower.start()
    expose = plane.metrics.expose
    expose("tollway_spool_writable", lambda: float(plane.usage_sink.is_writable()))
    expose("tollway_snapshot_version", lambda: plane.version)
    expose("tollway_snapshot_age_seconds", lambda: -1.0 if follower.snapshot_age_seconds is None else follower.snapshot_age_seconds)
    expose("tollway_upstreams_unsealable", lambda: plane.upstreams.unsealable)
    if url is not None:
        watch = AgeWatch(plane.directory, follower, options.snapshot_age_seconds_max, alarm)
        watch.check()  # before the first request
        background.start("snapshot age", watch.run)
        if node.join_token is not None:

            def keep_registered() -> None:
                data_directory.keep_registered(options.directory.parent, node)
                joined.set()

            joining = partial(
                join, url, token=node.join_token, node_id=node.node_id, node_key=node.key, alarm=alarm, on_joined=keep_registered
            )
            background.start("join", joining, may_return=True)
        else:
            joined.set()
        background.start("follower", partial(_run_after, joined, follower.run))
        background.start("acknowledger", follower.acknowledge)
        token_requests = TokenRequests(control_link_url=url, node_key=node.key)
        plane.ask_for_token = token_requests.ask
        storage = ResponseStorage(control_link_url=url, node_key=node.key, sealer_of=LocalVault(options.vault_key).for_organization)
        plane.response_store = storage
        expose("tollway_stored_response_failures", lambda: storage.failures)
        content = ContentSender(control_link_url=url, node_key=node.key, sealer_of=LocalVault(options.vault_key).for_organization)
        plane.content_log = content
        expose("tollway_content_log_dropped", lambda: content.dropped)
        background.start("content log", partial(_run_after, joined, content.run))
        link = _Link(options, plane, alarm, background, follower, joined, token_requests=token_requests, responses=storage, content=content)
        if plane.limits is plane.counters:
            reporter = LimitReporter(plane.counters, control_link_url=url, node_key=node.key, node_id=node.node_id)
            background.start("limit_reports", partial(_run_after, joined, reporter.run))
            link.reporter = reporter
        link.statuses = StatusReporter(StatusSource(plane), control_link_url=url, node_key=node.key, node_id=node.node_id)
        background.start("status", partial(_run_after, joined, link.statuses.run))
        return link
    return _Link(options, plane, alarm, background, follower, joined)


@dataclass(slots=True)
class AgeWatch:
    """The check that keeps a gateway from pricing by a snapshot that is too old."""

    directory: Directory
    follower: Follower
    age_seconds_max: float
    alarm: Alarm
    is_expired: bool = False

    def check(self) -> None:
        """Stop or resume serving by the age of the snapshot, with an alarm when it stops. A snapshot counts as too old AGE_CHECK_SECONDS
        before it is, so that no request is served by one between two checks."""
        age_seconds = self.follower.snapshot_age_seconds
        is_expired = age_seconds is None or age_seconds + AGE_CHECK_SECONDS >= self.age_seconds_max
        self.directory.set_expired(is_expired)
        if is_expired and not self.is_expired and self.directory.version:
            self.alarm("snapshot_outdated", {"age_seconds": age_seconds, "age_seconds_max": self.age_seconds_max})
        self.is_expired = is_expired

    async def run(self) -> None:
        """Check every AGE_CHECK_SECONDS until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(AGE_CHECK_SECONDS)


async def _run_after(event: asyncio.Event, run: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a background task once `event` is set: control refuses a gateway that has not joined yet."""
    await event.wait()
    await run()


def _start_grpc(
    options: GatewayOptions, plane: Plane, stop: asyncio.Event, port: "asyncio.Future[int]", background: BackgroundTasks
) -> "asyncio.Task[None]":
    """Serve the gRPC port, which `port` gets once it listens."""
    from tollway.gateway.open_inference.server import Listener, make_credentials  # takes 0.3 s and memory, only where it is on

    def listens(at: int) -> None:
        if not port.done():
            port.set_result(at)

    listener = Listener(plane, options.grpc, options.edge.failed_authentications_per_minute, options.rules)
    plane.metrics.expose("tollway_grpc_calls", lambda: listener.running)
    serve = partial(
        listener.serve,
        options.grpc.listen or "",
        stop,
        grace_seconds=options.drain.grace_seconds,
        linger_seconds=options.drain.linger_seconds,
        credentials=None if options.grpc_tls is None else make_credentials(*options.grpc_tls),
        ready=listens,
    )
    return background.start("grpc server", serve, may_return=True)


async def _announce(plane: Plane, ready: asyncio.Event, grpc_port: "asyncio.Future[int] | None", options: GatewayOptions) -> None:
    """Print the ready line once this process listens and knows a snapshot, so that whoever waits can send a request."""
    await ready.wait()
    if grpc_port is not None:
        await asyncio.shield(grpc_port)
    await _wait_until_ready(plane, options)
    url = url_of(options.listener, tls=options.tls is not None)
    fields: dict[str, object] = {"url": url, "internal_url": url_of(options.internal), "pid": os.getpid(), "form": FORM}
    if grpc_port is not None:
        fields["grpc_port"] = grpc_port.result()
    line = new_line(_now_us(), "info", "ready", fields)
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def _wait_until_ready(plane: Plane, options: GatewayOptions) -> None:
    """Return once the gateway can serve. After NOTICE_SECONDS, and whenever the reason changes, print what it waits for: a line
    {"event": "waiting", "reason": ..., "remedy": ...}, which a supervisor shows to the operator."""
    began, told = time.monotonic(), ""
    while not plane.is_ready():
        if time.monotonic() - began >= NOTICE_SECONDS:
            reason, remedy = _find_obstacle(plane, options)
            if reason != told:
                told = reason
                line = new_line(_now_us(), "warning", "waiting", {"reason": reason, "remedy": remedy})
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
        await asyncio.sleep(0.02)


def _find_obstacle(plane: Plane, options: GatewayOptions) -> tuple[str, str]:
    """Return what keeps the gateway from being ready, and the remedy."""
    if plane.usage_sink.is_writable():
        is_outdated = plane.directory.obstacle is SNAPSHOT_OUTDATED
        wanted = "control's confirmation that its snapshot is current, from" if is_outdated else "a snapshot from control at"
        return f"{wanted} {options.control_link_url}", "see that control runs there and accepts this node's key"
    spool, needed = options.directory / "spool", needed_bytes(options.spool)
    free = shutil.disk_usage(options.directory).free
    if free >= needed:
        return f"the spool in {spool}, which cannot be written", "see the log for the disk's error"
    return (
        f"space for the spool in {spool}: it needs {needed >> 20} MiB, {free >> 20} MiB are free",
        "free space there, choose another --data-dir, or lower gateway.spool.segment_bytes",
    )


def _now_us() -> int:
    return time.time_ns() // 1000
