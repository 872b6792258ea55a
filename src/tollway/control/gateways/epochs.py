"""Epochs: whether all that gateways wrote until some instant has arrived, and what happens when it never will.

An epoch is known to be complete up to an instant if it was closed (nothing follows CLOSE), or if a TICK at or after that instant
was ingested: records are dense in sequence, and a request's FINAL is written at the instant that it names, so whatever ended before
the TICK stands before it. Where a disk is gone, an operator and a second person declare the rest of the epoch LOST (see `losses`): a
permanent entry that is named in the report of every period that it touches, and visible in lists and metrics. Records that arrive after
all are ingested like any others; where their period is closed, they are booked in the next.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tollway.domain.epochs import Epoch, Lost, RefusalReason
from tollway.storage import epochs as stored
from tollway.storage import lost_requests, refused_epochs
from tollway.storage import nodes as stored_nodes
from tollway.storage.database import PlatformTx

SILENCE_US = 60_000_000
"""A running gateway ships a sign of life every few seconds (`gateway.spool.tick_seconds`); after a minute of hearing of it by the
other way only, its records are held up."""


MISSING = "its records have not arrived up to the end of the period"
MISSING_REVOKED = MISSING + ", and its node was revoked: declare it lost, or let the node hand in its records with a new key"
SILENT = "it follows the snapshot, and of its present run not one record has arrived"
SILENT_REVOKED = "it was revoked, and of its last run not one record had arrived"
REFUSED = {
    RefusalReason.FUTURE: "it was refused because it says that it began in the future: a clock is wrong, or accept it",
    RefusalReason.BEFORE_NODE: "it was refused because it says that it began before its node was made: a clock is wrong, or accept it",
}
WAITING = "; its declaration as lost waits for a second person ({})"
"""Addition to the text of a blocker if somebody has asked to declare it lost; takes the id of the request."""


class Cover(StrEnum):
    """Evidence that no record of an epoch is missing."""

    CLOSE = "close"
    TICK = "tick"
    LOST = "lost"


class BlockerKind(StrEnum):
    """Reason for which a period cannot be closed yet."""

    RECORDS_MISSING = "records_missing"
    NODE_SILENT = "node_silent"
    EPOCH_REFUSED = "epoch_refused"
    RECORDS_QUARANTINED = "records_quarantined"


@dataclass(frozen=True, slots=True)
class Blocker:
    """One reason for which records up to an instant may be incomplete. `epoch` is None where a run of the node has not reported at all."""

    kind: BlockerKind
    node_id: str
    epoch: int | None
    known_until: int | None
    """The latest sign of life by the node's own clock (by ours where `epoch` is None); None if there was none."""
    text: str


def list_epochs(tx: PlatformTx, node_id: str | None = None) -> list[Epoch]:
    """Epochs, the latest heard of first, of all nodes or of one; a thousand at most."""
    return stored.list_epochs(tx, node_id)


def list_lost(tx: PlatformTx) -> list[Epoch]:
    """Return the epochs that were declared lost and of which some record had been ingested."""
    return stored.list_epochs(tx, None, only_lost=True)


def find_cover(ticked_at: int | None, closed_at: int | None, lost: Lost | None, end_at: int) -> Cover | None:
    """Return how an epoch is known to be complete up to `end_at`, by its latest TICK, its CLOSE and its declaration; None if it is not."""
    if closed_at is not None:
        return Cover.CLOSE
    if ticked_at is not None and ticked_at >= end_at:
        return Cover.TICK
    return None if lost is None else Cover.LOST


def describe_lost(lost: Lost) -> dict[str, object]:
    """Return a declaration as reports show it."""
    return {
        "declared_at": lost.declared_at,
        "next_seq": lost.next_seq,
        "reason": lost.reason,
        "actor": lost.actor,
        "approver": lost.approver,
    }


def list_blockers(tx: PlatformTx, start_at: int, end_at: int) -> list[Blocker]:
    """Return what keeps the time from `start_at` to `end_at` from being complete; nothing if it is."""
    blockers = []
    waiting = {(request.node_id, request.epoch): WAITING.format(request.id) for request in lost_requests.list_pending(tx)}
    revoked = stored_nodes.list_revoked(tx)
    for epoch in stored.list_overlapping(tx, start_at, end_at):
        if find_cover(epoch.covered_until, epoch.closed_at, epoch.lost, end_at) is None:
            text = MISSING_REVOKED if epoch.node_id in revoked else MISSING
            text += waiting.get((epoch.node_id, epoch.epoch), "")
            blockers.append(Blocker(BlockerKind.RECORDS_MISSING, epoch.node_id, epoch.epoch, epoch.ticked_at, text))
    for node in stored.list_silent_nodes(tx, end_at, SILENCE_US):
        text = (SILENT_REVOKED if node.node_id in revoked else SILENT) + waiting.get((node.node_id, node.seen_at), "")
        blockers.append(Blocker(BlockerKind.NODE_SILENT, node.node_id, None, node.seen_at, text))
    for refused in refused_epochs.list_open(tx):  # whatever the period: when its requests were served, nobody knows
        text = REFUSED[refused.reason] if refused.accepted_at is None else MISSING
        text += waiting.get((refused.node_id, refused.epoch), "")
        blockers.append(Blocker(BlockerKind.EPOCH_REFUSED, refused.node_id, refused.epoch, None, text))
    return blockers


def report_cover(tx: PlatformTx, start_at: int, end_at: int) -> tuple[Mapping[str, Any], bytes]:
    """Return, for a period without blockers, every epoch that touches it, how far it was ingested and how it is covered, as JSON; and
    the digest of those watermarks."""
    epochs = stored.list_overlapping(tx, start_at, end_at)
    rows = []
    for epoch in epochs:
        cover = find_cover(epoch.covered_until, epoch.closed_at, epoch.lost, end_at)
        assert cover is not None, "a period with blockers is not reported"
        row: dict[str, Any] = {
            "node_id": epoch.node_id,
            "epoch": epoch.epoch,
            "next_seq": epoch.next_seq,
            "chain": epoch.chain.hex(),
            "cover": str(cover),
            "known_until": epoch.closed_at if cover is Cover.CLOSE else epoch.covered_until,
        }
        if epoch.lost is not None:
            row["lost"] = describe_lost(epoch.lost)
        rows.append(row)
    return {"epochs": rows}, digest_watermarks(rows)


def digest_watermarks(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """SHA-256 over node, epoch, next_seq and chain of each epoch of a report, in its order: a line each, fields apart by a space."""
    lines = (f"{row['node_id']} {row['epoch']} {row['next_seq']} {row['chain']}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).digest()


def count_lost(tx: PlatformTx) -> int:
    """Return how many epochs were ever declared lost: for the metric."""
    return stored.count_lost(tx)
