"""Publication: what gateways receive, in which order, and which of them have applied it.

Theory of operation. An operation that changes what gateways must know begins with `lock`, changes rows, and ends with
`publish(kind, ids)`. `publish` does not take entries from its caller: it reads them back with the very query that makes a full
snapshot, so snapshot and changes cannot disagree. What is no longer there becomes a removal. Version, rows and change commit
together or not at all.

After the commit, `Publications` wakes whoever waits in this process: the streams that gateways follow. `notice` does the same for
commits of other control processes: a job reads the head a few times a second, in every process.

An operation that revokes something or changes a price waits (briefly) until the nodes that were alive have applied the version, and
names those that have not.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from tollway.domain.faults import DRAINING, OVERLOADED, Fault
from tollway.domain.snapshot import FORMAT, SNAPSHOT_AGE_SECONDS_MAX, Change, Entry, SnapshotHead
from tollway.storage import nodes as stored_nodes
from tollway.storage import platform_queries
from tollway.storage import publish as storage
from tollway.storage.database import Database, PlatformTx, Transaction

WATCH_SECONDS = 0.25
"""Interval between reads of the head: with the work of a gateway, a revocation made elsewhere is well below its promised second."""

NODE_ALIVE_US = 5_000_000
"""A node that gave no sign of life for this long is not waited for. It sends one every two seconds."""

NODE_COUNTED_US = 15_000_000
"""A node counts among those that share limits for so long after its last sign of life. Longer than it is waited for: while it cannot
reach control it serves on, and the others must not take its share at once."""

CONFIRM_SECONDS_MAX = 1.0
"""Time for which the answer to a revocation or to a new price waits for nodes to confirm."""

SNAPSHOTS_CONCURRENT_MAX = 2
SNAPSHOT_WAIT_SECONDS = 20.0
"""A snapshot is held in memory while it is sent; two at a time bound that, and a node's own deadline is longer than the queue."""

CHUNK_BYTES = 256 * 1024


def lock(tx: Transaction) -> None:
    """Begin a publishing transaction: call this before anything is read. Publications of all processes take turns from here on."""
    storage.lock_head(tx)


def publish(tx: Transaction, kind: type[Entry], ids: Sequence[str], now: int) -> int:
    """Tell gateways what has become of the things `ids` of `kind` in this transaction. Returns the version that will say so."""
    entries = platform_queries.list_entries(tx, kind, ids)
    tag = str(kind.__struct_config__.tag)
    return storage.append_changes(tx, [Change(version=0, kind=tag, id=id, entry=entries.get(id)) for id in ids], now)


# ---- What is told -----------------------------------------------------------------------------------------------------


def read_snapshot(tx: PlatformTx) -> list[bytes]:
    """All that a gateway must know, at one version: chunks of lines, the head first and then each entry."""
    encode = msgspec.json.Encoder().encode
    chunks, chunk, count = [b""], bytearray(), 0
    for entry in platform_queries.iterate_entries(tx):
        chunk += encode(entry) + b"\n"
        count += 1
        if len(chunk) >= CHUNK_BYTES:
            chunks.append(bytes(chunk))
            chunk.clear()
    chunks.append(bytes(chunk))
    chunks[0] = encode(SnapshotHead(format=FORMAT, version=storage.find_head(tx), entries=count)) + b"\n"
    return chunks


def find_entries(tx: PlatformTx, kind: type[Entry], ids: Sequence[str]) -> list[Entry]:
    """Return what gateways must know now of the things `ids` of one kind."""
    return list(platform_queries.list_entries(tx, kind, ids).values())


def find_changes(tx: PlatformTx, since: int, limit: int) -> list[tuple[int, bytes]] | None:
    """Up to `limit` changes after `since` as (version, encoded Change); None if only a full snapshot can help."""
    return storage.find_changes(tx, since, limit)


def find_head(tx: PlatformTx) -> int:
    """The latest version."""
    return storage.find_head(tx)


def heartbeat(version: int) -> bytes:
    """The line that says: nothing new, the head is `version`."""
    return msgspec.json.encode({"version": version}) + b"\n"


# ---- Who has heard it -------------------------------------------------------------------------------------------------


def acknowledge(tx: PlatformTx, node_id: str, version: int, now: int) -> int | None:
    """Store that a registered node is alive and has applied `version`. Return the number of live nodes, this one included. Return None,
    and store nothing, if `version` was never published here, or the node does not exist or was revoked."""
    if version > storage.find_head(tx) or not stored_nodes.put_ack(tx, node_id, version, now):
        return None
    return len(stored_nodes.list_alive_nodes(tx, now - NODE_COUNTED_US))


def confirm(database: Database, publications: "Publications", version: int | None, now: int) -> list[str]:
    """Wait until every node alive at `now` has applied `version`, or CONFIRM_SECONDS_MAX. Returns the nodes that have not. A node that is
    revoked meanwhile is not waited for, and none is if nothing was published (None)."""
    if version is None:
        return []
    with database.platform(write=False) as tx:
        alive = stored_nodes.list_alive_nodes(tx, now - NODE_ALIVE_US)
    deadline = time.monotonic() + CONFIRM_SECONDS_MAX
    while True:
        with database.platform(write=False) as tx:
            pending = stored_nodes.list_pending_nodes(tx, alive, version)
        left_seconds = deadline - time.monotonic()
        if not pending or left_seconds <= 0:
            return pending
        publications.wait_for_ack(min(WATCH_SECONDS, left_seconds))


@dataclass(frozen=True, slots=True)
class Effect:
    """The instants from which a publication holds, in UTC microseconds.

    `pending`: the nodes that were alive and have not applied it. `holds_from`: from then on every node that was alive acts by it; None
    while some are pending. `holds_by`: from then on no node at all acts by what was before, because one that cannot reach control stops
    serving by then.
    """

    pending: tuple[str, ...]
    holds_from: int | None
    holds_by: int


def find_effect(database: Database, publications: "Publications", version: int | None, valid_from: int, clock: Callable[[], int]) -> Effect:
    """Wait as `confirm` does for what was published as `version` and is valid from `valid_from` on; None for what no node has to know.

    `clock`: the current UTC time in microseconds.
    """
    asked_at = clock()
    pending = () if version is None else tuple(confirm(database, publications, version, asked_at))
    holds_from = None if pending else max(valid_from, clock())
    return Effect(pending, holds_from, max(valid_from, asked_at + SNAPSHOT_AGE_SECONDS_MAX * 1_000_000))


class Publications:
    """The state of publication in one process beside the database: the followers to wake, and whether the process is about to stop.

    Thread-safe. Operations commit in worker threads; followers wait in the event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._acked = threading.Condition()
        self._wakers: set[Callable[[], None]] = set()
        self._snapshots = threading.BoundedSemaphore(SNAPSHOTS_CONCURRENT_MAX)
        self.head = 0
        self.stopping = False

    def advance(self, version: int) -> None:
        """Version `version` is committed: wake the followers."""
        with self._lock:
            if version <= self.head:
                return
            self.head = version
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def stop(self) -> None:
        """End all streams: the process is about to stop."""
        self.stopping = True
        with self._lock:
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def refuse_if_stopping(self) -> None:
        """Raise Fault DRAINING once `stop` was called."""
        if self.stopping:
            raise Fault(DRAINING, message="The control plane is restarting.")

    @contextmanager
    def following(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set at each advance and at the stop."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(event.set)

        with self._lock:
            self._wakers.add(wake)
        try:
            yield event
        finally:
            with self._lock:
                self._wakers.discard(wake)

    @contextmanager
    def snapshot_slot(self) -> Iterator[None]:
        """The right to hold a snapshot in memory. Raises Fault OVERLOADED if none comes free in time."""
        if not self._snapshots.acquire(timeout=SNAPSHOT_WAIT_SECONDS):
            raise Fault(OVERLOADED, message="Too many snapshots are being read.")
        try:
            yield
        finally:
            self._snapshots.release()

    def notice_ack(self) -> None:
        """A node has acknowledged something: whoever waits for it should look."""
        with self._acked:
            self._acked.notify_all()

    def wait_for_ack(self, timeout_seconds: float) -> None:
        """Wait for the next acknowledgement, at most `timeout_seconds`."""
        with self._acked:
            self._acked.wait(timeout_seconds)


async def wait_for(event: asyncio.Event, timeout_seconds: float) -> None:
    """Wait until the event is set, at most `timeout_seconds`."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
    except TimeoutError:
        pass


def notice(database: Database, publications: Publications) -> None:
    """Wake the followers in this process if another control process has published. Raises Fault DATABASE_UNAVAILABLE."""
    with database.platform(write=False) as tx:
        publications.advance(storage.find_head(tx))
