"""Epochs: the runs of gateways whose usage records control ingests, how far it has come, and which are declared lost."""

from dataclasses import dataclass

CLOCKS_APART_US = 600_000_000
"""Most that the clocks of gateways and of control processes may differ, the begin and end of a transaction included."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """The progress of ingesting the records of an epoch: `next_seq` is expected next, `chain` is the chain value of the record before it.

    `archive_bytes`: how many bytes of the epoch's archive file count. `closed_at`: the instant of its CLOSE record, None while it runs.
    `ticked_at`: the instant of its latest TICK record, None before the first.
    """

    node_id: str
    epoch: int
    next_seq: int
    chain: bytes
    archive_bytes: int
    closed_at: int | None
    ticked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """An operator's declaration that the rest of an epoch will never arrive. `next_seq`: the watermark at that moment."""

    node_id: str
    epoch: int
    next_seq: int
    reason: str
    actor: str
    declared_at: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """One run of a gateway, as far as it has been ingested.

    `epoch` is the instant of its start; `epoch`, `ticked_at` and `closed_at` are by the node's own clock, `first_seen_at`, `seen_at` and
    `tick_seen_at` (of the latest TICK) by control's. `lost`: the declaration, if there is one.
    """

    node_id: str
    epoch: int
    next_seq: int
    chain: bytes
    ticked_at: int | None
    tick_seen_at: int | None
    closed_at: int | None
    first_seen_at: int
    seen_at: int
    lost: Lost | None

    @property
    def covered_until(self) -> int | None:
        """The instant up to which its latest TICK proves that everything has arrived; None if there is none.

        It proves nothing of the time after control received it, whatever the node's clock says.
        """
        if self.ticked_at is None:
            return None
        return min(self.ticked_at, self.seen_at if self.tick_seen_at is None else self.tick_seen_at)

    @property
    def records_after_lost(self) -> int:
        """Records that arrived after the epoch was declared lost. They were ingested like any others."""
        return 0 if self.lost is None else self.next_seq - self.lost.next_seq


@dataclass(frozen=True, slots=True)
class SilentNode:
    """A gateway that connected after its last epoch was closed, or that has none: it runs, and has not sent a record of this run."""

    node_id: str
    seen_at: int
