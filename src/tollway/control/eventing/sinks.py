"""Sinks: systems of the operator that are sent every event, record of the audit trail and usage event, at least once.

Theory of operation. The database has a log of each stream, numbered after the commit and without a gap for each owner (`domain.sinks`). A
sink has a position for each owner, the number of the latest record that it has; nothing is queued for it. One process at a time serves a
sink, by the lease of its job. A turn reads what lies behind the positions, hands it over, waits until the sink says that it is stored, and
moves the positions. Whatever is killed in between, the same records are sent again, with the same ids, and none is left out.

Records of an owner arrive in the order of their numbers, and usage in the order in which each gateway wrote it. A sink that is away
holds up itself alone: its job fails and is tried again. What it misses because the records were removed meanwhile is counted.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway.control.jobs import Turn
from tollway.domain.sinks import SinkMessage, Stream, of_audit_record, of_event, of_usage
from tollway.storage import audit, outbox, sink_positions, usage_batches
from tollway.storage.database import Database, PlatformTx
from tollway.storage.sink_positions import NO_OWNER, News
from tollway.telemetry import new_family
from tollway.worker_threads import run_in_thread

SECONDS = 2.0
"""Interval of the job of a sink."""

RUN_SECONDS = 60.0
"""Time after which one run reads nothing more."""

SEND_SECONDS_MAX = 30.0
"""Deadline for a sink to store what it was handed."""

DEADLINE_SECONDS = RUN_SECONDS + 2 * SEND_SECONDS_MAX
"""Deadline for one run."""

OWNERS_MAX = 50
"""Owners whose records are read at a time."""

RECORDS_MAX = 100
"""Records of one owner and stream that are read at a time. Of usage it is one batch of a gateway (`usage_batches.EVENTS_MAX`)."""

READ_BYTES = 8 << 20
"""Bytes of records after which one turn reads no further part."""

WAITING_SECONDS_MAX = DEADLINE_SECONDS + 30.0
"""Time for which a process says how much waits for a sink after it last knew: by then the next run began here or in another process, which
says it from then on."""

KEPT_SECONDS = 3 * 86_400
"""Time for which batches of usage are kept for a sink that is away; and after which a sink that nobody serves any more is forgotten."""


class SinkFailure(Exception):
    """A sink could not store records. The text has no content of them."""


class Sink(Protocol):
    """A system that takes records. `name`: of its positions, its job and its metrics."""

    @property
    def name(self) -> str:
        """The name."""
        ...

    async def send(self, messages: Sequence[SinkMessage]) -> None:
        """Return once all these are stored there, those of one owner and stream in this order. Raises SinkFailure; some may be stored
        then."""
        ...

    async def close(self) -> None:
        """End the connections of a turn."""
        ...


class _Part(NamedTuple):
    """Records of one owner to be sent. `position`: where the sink is then."""

    stream: Stream
    owner: str
    position: int
    messages: list[SinkMessage]
    missed: int


@dataclass(slots=True, eq=False)
class SinkCounts(Collector):
    """Counts of what one process sent to sinks. `waiting`: as this process last knew it, at the instant in `known_at` by sink. `clock`:
    seconds of a monotonic clock."""

    sent: Counter[tuple[str, Stream]] = field(default_factory=Counter)
    missed: Counter[tuple[str, Stream]] = field(default_factory=Counter)
    waiting: dict[tuple[str, Stream], int] = field(default_factory=dict)
    known_at: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def put_waiting(self, sink: str, waiting: Mapping[Stream, int]) -> None:
        """Note what waits for a sink now, by stream."""
        self.waiting.update({(sink, stream): count for stream, count in waiting.items()})
        self.known_at[sink] = self.clock()

    def collect(self) -> Iterator[Metric]:
        """Yield the counts."""
        sent = new_family(CounterMetricFamily, "tollway_control_sink_records")
        missed = new_family(CounterMetricFamily, "tollway_control_sink_records_missed")
        waiting = new_family(GaugeMetricFamily, "tollway_control_sink_waiting")
        oldest = self.clock() - WAITING_SECONDS_MAX
        known = {key: count for key, count in dict(self.waiting).items() if self.known_at[key[0]] >= oldest}
        for family, counts in ((sent, self.sent), (missed, self.missed), (waiting, known)):
            for (sink, stream), count in dict(counts).items():
                family.add_metric([sink, stream], count)
        yield sent
        yield missed
        yield waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A sink, and what it is fed from. `streams`: those that it gets."""

    database: Database
    sink: Sink
    streams: tuple[Stream, ...]
    now: Callable[[], int]
    log: Callable[[Mapping[str, object]], None]
    counts: SinkCounts = field(default_factory=SinkCounts)

    async def run(self, turn: Turn) -> None:
        """Send what the sink has not got, until it has all or RUN_SECONDS are over. Raises SinkFailure."""
        ends_at = asyncio.get_running_loop().time() + RUN_SECONDS
        await run_in_thread(self._begin)
        try:
            await self._send_all(turn, ends_at)
        finally:
            await self.sink.close()

    async def _send_all(self, turn: Turn, ends_at: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < ends_at and not turn.is_over():
            parts = await run_in_thread(self._read)
            if not parts:
                break
            messages = [message for part in parts for message in part.messages]
            if messages:
                try:
                    async with asyncio.timeout(SEND_SECONDS_MAX):
                        await self.sink.send(messages)
                except TimeoutError:
                    raise SinkFailure(f"nothing was stored within {SEND_SECONDS_MAX:.0f} s") from None
            await run_in_thread(self._move, parts)

    def _begin(self) -> None:
        with self.database.platform() as tx:
            sink_positions.begin(tx, self.sink.name, self.streams, self.now())
        if Stream.USAGE in self.streams:
            while True:
                with self.database.platform() as tx:
                    if usage_batches.number(tx) < usage_batches.NUMBERED_MAX:
                        break
        with self.database.platform(write=False) as tx:
            waiting = {stream: sink_positions.count_waiting(tx, self.sink.name, stream) for stream in self.streams}
        self.counts.put_waiting(self.sink.name, waiting)

    def _read(self) -> list[_Part]:
        """Return what is sent next, a part of each stream, until READ_BYTES are reached."""
        parts: list[_Part] = []
        size = 0
        with self.database.platform(write=False) as tx:
            for part in self._iterate_parts(tx):
                parts.append(part)
                size += sum(len(each.body) for each in part.messages)
                if size > READ_BYTES:
                    break
        return parts

    def _iterate_parts(self, tx: PlatformTx) -> Iterator[_Part]:
        for stream in self.streams:
            if stream is Stream.USAGE:
                yield from self._read_usage(tx)
            else:
                for each in sink_positions.list_news(tx, self.sink.name, stream, OWNERS_MAX):
                    yield _read_owner(tx, stream, each)

    def _read_usage(self, tx: PlatformTx) -> list[_Part]:
        position = sink_positions.find_position(tx, self.sink.name)
        found = usage_batches.find_next(tx, position)
        if found is None:
            return []
        number, batch = found
        messages = [of_usage(row) for row in usage_batches.list_events(tx, batch)]
        return [_Part(Stream.USAGE, NO_OWNER, number, messages, number - position - 1)]

    def _move(self, parts: Sequence[_Part]) -> None:
        name = self.sink.name
        with self.database.platform() as tx:
            for stream in self.streams:
                moved = {part.owner: part.position for part in parts if part.stream is stream}
                sink_positions.put(tx, name, stream, moved, self.now())
        for part in parts:
            self.counts.sent[name, part.stream] += len(part.messages)
            if part.missed:
                self.counts.missed[name, part.stream] += part.missed
                said = {"sink": name, "stream": str(part.stream), "owner": part.owner, "records": part.missed}
                self.log({"event": "sink_records_missed", **said})
            waiting = self.counts.waiting.get((name, part.stream), 0)
            done = 1 if part.stream is Stream.USAGE else len(part.messages)
            self.counts.put_waiting(name, {part.stream: max(0, waiting - done - part.missed)})


def _read_owner(tx: PlatformTx, stream: Stream, news: News) -> _Part:
    """Return the next records of an owner. Those that were removed before the sink got them are missed."""
    if stream is Stream.AUDIT:
        records = audit.list_following(tx, news.owner, news.position, RECORDS_MAX)
        numbers, messages = [each.sequence for each in records], [of_audit_record(each) for each in records]
    else:
        events = outbox.list_following_of(tx, news.owner, news.position, RECORDS_MAX)
        numbers, messages = [each.sequence or 0 for each in events], [of_event(each) for each in events]
    position = numbers[-1] if numbers else news.last
    return _Part(stream, news.owner, position, messages, position - news.position - len(messages))


def remove_old(database: Database, fed: Collection[tuple[str, Stream]], now: int) -> list[str]:
    """Remove batches of usage that no sink needs any more, and forget sinks that are not served any more. Return their names. `fed`: sinks
    and streams that this process serves, or will once it runs: after a long time without control nothing is forgotten of them."""
    before = now - KEPT_SECONDS * 1_000_000
    with database.platform() as tx:
        names = sink_positions.remove_unserved(tx, fed, before)
        usage_batches.remove(tx, before)
    return names
