"""Epochs: the runs of gateways whose usage records control ingests, how far it has come, and which are declared lost."""

from dataclasses import dataclass
from enum import StrEnum

from tollway.domain.corrections import ApprovalDecision
from tollway.domain.keys import Operator

CLOCKS_APART_US = 600_000_000
"""Most that the clocks of gateways and of control processes may differ, the begin and end of a transaction included."""


CLOCK_ERROR_US_MAX = 3_600_000_000
"""Largest error of a node's clock that is believed: an hour, because a clock that was stepped is no reason to hold up billing, and a
record that is dated wrongly by an hour changes no month but at its end."""


class RefusalReason(StrEnum):
    """Reason for which an epoch cannot have begun when it says."""

    FUTURE = "future"
    BEFORE_NODE = "before_node"


@dataclass(frozen=True, slots=True)
class RefusedEpoch:
    """A run of a gateway whose records control refuses because of `epoch`, the instant at which it says that it began.

    `first_refused_at`, `refused_at` (the latest refusal) and `accepted_at` are by control's clock. `accepted_by`: id of the key of the
    operator who accepted it; None, as `accepted_at`, before.
    """

    node_id: str
    epoch: int
    reason: RefusalReason
    first_refused_at: int
    refused_at: int
    accepted_at: int | None = None
    accepted_by: str | None = None


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
    """The declaration that the rest of an epoch will never arrive. `next_seq`: the watermark at that moment. `actor` is the id of the key
    that asked for it, `approver` that of the second person's key, who approved it at `declared_at`."""

    node_id: str
    epoch: int
    next_seq: int
    reason: str
    actor: str
    approver: str
    declared_at: int


class LostRequestState(StrEnum):
    """State of a request to declare an epoch lost. Declared and rejected are final."""

    PENDING = "pending"  # no second person has decided yet
    DECLARED = "declared"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class LostRequest:
    """An operator's request to declare the rest of an epoch lost. Instants in UTC microseconds.

    `epoch`: of a run that never sent a record, the instant at which its gateway was heard of last. `decision`, `approver` (id of the key
    that decided) and `decided_at` are None while the request waits.
    """

    id: str
    node_id: str
    epoch: int
    reason: str
    actor: Operator
    requested_at: int
    decision: ApprovalDecision | None = None
    approver: str | None = None
    decided_at: int | None = None

    @property
    def state(self) -> LostRequestState:
        """Return where it stands."""
        if self.decision is None:
            return LostRequestState.PENDING
        return LostRequestState.DECLARED if self.decision is ApprovalDecision.APPROVED else LostRequestState.REJECTED


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
