"""Replay: after a database was restored from a backup, ingest again what the archive holds beyond it.

Theory of operation. The archive has every record that was ever ingested, and is stored elsewhere than the database. A restored database
knows, by its watermarks, how far it had come; whatever stands in the archive behind them goes through the collector once more, in
batches as a gateway would send them. The collector writes the same bytes to the same place, so that a replay that is interrupted can be
run again, and one with nothing to do changes nothing. Batches need not be those of the first time: events, rollups and balances are the
same, and transactions book the same sums.

What the archive has not, gateways still have in their spools, and hand in by themselves: they ask for the watermark of every epoch
that they keep when they start.

Changes of tenants, keys and prices that are younger than the backup are lost. Gateways have seen them, though, and refuse a snapshot
older than their own; so the head version is raised far above any that they can know, and they take the restored one.
"""

from dataclasses import dataclass

from tollway.control.metering.batches import BatchRefused
from tollway.control.metering.collect import collect
from tollway.control.metering.quarantine import WaitingRecords
from tollway.storage import publish as stored_publish
from tollway.storage import watermarks as stored_watermarks
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive, ArchiveShort
from tollway.wire.segments import HEAD_BYTES, PAYLOAD_BYTES_MAX, Frame, Reader, Tail, first_chain

VERSIONS_SKIPPED = 1_000_000_000
"""More changes than can have been published since any backup: thirty years of one a second."""


@dataclass(slots=True)
class Replayed:
    """Counts of what was ingested again. `version`: the snapshot's, from now on."""

    epochs: int = 0
    records: int = 0
    events: int = 0
    conflicts: int = 0
    quarantined: int = 0
    rated: int = 0
    """Records of earlier replays that waited in quarantine and could be rated now."""
    version: int = 0


def replay(database: Database, archive: Archive, now: int) -> Replayed:
    """Bring a restored database up to what the archive says, and gateways to what the database says.

    Raises BatchRefused if the archive does not continue what the database has or is damaged (what stands before that is ingested),
    ArchiveShort if it has less than the database says, OSError.
    """
    done = Replayed()
    with database.platform() as tx:
        stored_publish.lock_head(tx)
        done.version = stored_publish.raise_head(tx, VERSIONS_SKIPPED)
    with database.platform(write=False) as tx:
        watermarks = {(each.node_id, each.epoch): each for each in stored_watermarks.list_watermarks(tx)}
    for node_id, epoch, size in archive.list_epochs():
        known = watermarks.get((node_id, epoch))
        start, next_seq, chain = 0, 1, first_chain(node_id, epoch)
        if known is not None:
            start, next_seq, chain = known.archive_bytes, known.next_seq, known.chain
        if size <= start:
            if size < start:
                raise ArchiveShort(f"{node_id}/{epoch} has {size} of the {start} bytes that were ingested")
            continue
        done.epochs += 1
        reader, rest = Reader(next_seq, chain), b""
        for chunk in archive.read(node_id, epoch, size - start, start):
            data = rest + chunk
            frames: list[Frame] = list(reader.read(data))
            end = frames[-1].end if frames else 0  # what follows is torn: it was written, and its batch never committed
            if frames:
                _take(database, archive, node_id, epoch, next_seq, data[:end], now, done)
                next_seq = reader.next_seq
                done.records += len(frames)
            rest = data[end:]
            if reader.tail is Tail.DAMAGED or len(rest) > HEAD_BYTES + PAYLOAD_BYTES_MAX:
                raise BatchRefused(f"{node_id}/{epoch}: record {reader.next_seq} is damaged")
    done.rated = WaitingRecords().rate(database, now=now, is_stopping=lambda: False)
    return done


def _take(database: Database, archive: Archive, node_id: str, epoch: int, first_seq: int, body: bytes, now: int, done: Replayed) -> None:
    with database.platform() as tx:
        taken = collect(tx, archive, node_id=node_id, epoch=epoch, first_seq=first_seq, body=body, now=now)
    done.events += taken.events
    done.conflicts += taken.conflicts
    done.quarantined += taken.quarantined
