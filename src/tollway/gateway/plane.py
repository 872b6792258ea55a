"""State shared by the phases: the snapshot, the upstreams, the counters, the usage sink, the log and the metrics of one gateway process."""

import time
from collections.abc import Callable, Sequence

from tollway.domain.ids import RequestIds
from tollway.domain.keys import digester
from tollway.domain.snapshot import BudgetEntry, Change, DeploymentEntry, Entry
from tollway.gateway.blame import RetryBudget
from tollway.gateway.body_reader_pool import BodyReaders
from tollway.gateway.budgets import Budgets
from tollway.gateway.buffers import BufferBounds, Buffers
from tollway.gateway.counters import Counters
from tollway.gateway.deadlines import Active
from tollway.gateway.directory import Directory
from tollway.gateway.file_operations import FileOperations
from tollway.gateway.guardrails import GuardrailBounds, Guardrails
from tollway.gateway.hedging import HedgeBudgets
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.memory_counters import MemoryCounters
from tollway.gateway.model_listing import ModelListings
from tollway.gateway.ports import AnswerStore, BatchStore, ContentLog, FileStore, ResponseStore, TokenEndpoint, UsageSink, Vault
from tollway.gateway.realtime_sessions import RealtimeBounds, RealtimeSessions
from tollway.gateway.relay import RelayBounds
from tollway.gateway.response_cache import ResponseCache
from tollway.gateway.shedding import STEPS, Shedder, SheddingBounds, read_resident_bytes
from tollway.gateway.tracing import Tracer
from tollway.gateway.upstreams.concurrency import ConcurrencyBounds
from tollway.gateway.upstreams.upstream import Upstreams
from tollway.gateway.waiting import QueueBounds, Queues
from tollway.telemetry import LogWriter, Metrics, new_line

REFUSAL_LINES_PER_SECOND_MAX = 20
"""Log lines of refusals before admission; more are only counted."""


class Plane:
    """Everything the phases share: what this gateway knows, counts and may use. One per process."""

    def __init__(
        self,
        *,
        usage_sink: UsageSink,
        vault: Vault,
        peppers: Sequence[bytes],
        end_user_key: bytes = b"",
        log: LogWriter,
        bounds: RelayBounds,
        media_bounds: MediaBounds | None = None,
        buffer_bounds: BufferBounds | None = None,
        queue_bounds: QueueBounds | None = None,
        shedding_bounds: SheddingBounds | None = None,
        random_bits: Callable[[int], int],
        now_us: Callable[[], int],
    ) -> None:
        self.random_bits = random_bits
        self.directory = Directory(end_user_key)
        self.model_listings = ModelListings(self.directory)
        self.metrics = Metrics()
        self.buffers = Buffers(buffer_bounds or BufferBounds())
        self.body_readers: BodyReaders | None = None
        self.answer_store: AnswerStore | None = None
        self.response_store: ResponseStore | None = None
        self.content_log: ContentLog | None = None
        self.tracer: Tracer | None = None
        self.file_store: FileStore | None = None
        self.batch_store: BatchStore | None = None
        self.batch_lines_max = 0
        self.file_lifetime_seconds = 0
        self.file_operations = FileOperations()
        self.response_cache: ResponseCache | None = None
        self.guardrails = Guardrails(GuardrailBounds())
        self.realtime = RealtimeSessions(RealtimeBounds())
        self.set_guardrails(self.guardrails)
        self.ask_for_token: TokenEndpoint | None = None
        queue_bounds = queue_bounds or QueueBounds()
        concurrency = ConcurrencyBounds(concurrency_min=queue_bounds.concurrency_min, concurrency_max=queue_bounds.concurrency_max)
        self.upstreams = Upstreams(vault, self.metrics, log, self.buffers, concurrency)
        self.metrics.list_upstreams = self.upstreams.list_states
        self.counters = MemoryCounters(end_user_key)
        self.limits: Counters = self.counters
        self.budgets = Budgets(now_us)
        self.usage_sink = usage_sink
        self.digesters = [digester(pepper) for pepper in peppers]
        self.log = log
        self.bounds = bounds
        self.media_bounds = media_bounds or MediaBounds()
        self.active = Active()
        self.queues = Queues(queue_bounds, self.upstreams, self.active, self.metrics, self.random)
        shedder = self.shedder = Shedder(shedding_bounds or SheddingBounds(), read_resident_bytes, self._note_shedding)
        expose = self.metrics.expose
        expose("tollway_queue_waiting", self.queues.count_waiting)
        expose("tollway_queue_waiting_tokens", self.queues.count_waiting_tokens)
        expose("tollway_queue_oldest_wait_seconds", lambda: self.queues.find_oldest_wait_seconds(time.monotonic()))
        expose("tollway_realtime_sessions", lambda: self.realtime.count())
        expose("tollway_shedding_part", lambda: shedder.steps / STEPS)
        expose("tollway_shedding_refused", lambda: shedder.refused)
        self.retries = RetryBudget()
        self.hedges = HedgeBudgets()
        self.request_ids = RequestIds(random_bits)
        self.now_us = now_us
        self.draining = False
        self.refusal_lines = REFUSAL_LINES_PER_SECOND_MAX

    def set_guardrails(self, guardrails: Guardrails) -> None:
        """Have models that ask for it checked by this guardrail, and show what it decides among the metrics."""
        self.guardrails = guardrails
        self.metrics.guardrail_verdicts, self.metrics.guardrail_seconds = guardrails.verdicts, guardrails.seconds

    def _note_shedding(self, event: str, fields: dict[str, object]) -> None:
        self.log.write(new_line(self.now_us(), "warning", event, fields))

    def _forget_idle_counters(self) -> None:
        """Drop idle counters. Call it only when no caller is held."""
        now_ns = time.monotonic_ns()
        self.counters.forget_idle(now_ns)
        if self.limits is not self.counters:
            self.limits.forget_idle(now_ns)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return self.random_bits(53) / (1 << 53)

    def is_ready(self) -> bool:
        """Return whether new requests can be served: a snapshot is there and not too old, usage can be written, no drain has
        begun."""
        return self.directory.obstacle is None and not self.draining and self.usage_sink.is_writable()

    @property
    def version(self) -> int:
        """The snapshot's version; 0 before the first."""
        return self.directory.version

    # The link's follower reports what changed (`link.snapshot_follower.Target`).

    def begin_reset(self) -> None:
        """A whole snapshot follows."""
        self.directory.begin_reset()

    def add(self, entry: Entry) -> None:
        """An entry of it."""
        self.directory.add(entry)

    def finish_reset(self, version: int) -> None:
        """It is whole."""
        self.directory.finish_reset(version)
        self._forget_idle_counters()
        self.upstreams.replace_all(self.directory.list_deployments())
        self.budgets.change_all(self.directory.list_budgets())

    def release_part(self) -> bool:
        """Give back a part of the memory of the one before."""
        return self.directory.release_part()

    def apply(self, change: Change) -> None:
        """One step from a version to the next."""
        if change.version <= self.directory.version:
            return
        self.directory.apply(change)
        self._forget_idle_counters()
        if isinstance(change.entry, DeploymentEntry):
            self.upstreams.put(change.entry)
        elif change.kind == "deployment":
            self.upstreams.remove(change.id)
        elif change.kind == "budget":
            self.budgets.change(change.id, change.entry if isinstance(change.entry, BudgetEntry) else None)
