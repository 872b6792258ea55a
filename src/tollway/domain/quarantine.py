"""Quarantine: records of gateways that cannot be rated wait here for an operator, and keep the periods that they may belong to open.

A quarantined record is resolved once: it is rated after all and becomes an event like any other, or it is written off and never billed.
"""

from dataclasses import dataclass
from enum import StrEnum

from tollway.domain.keys import Operator


class QuarantineState(StrEnum):
    """The state of a quarantined record. The last two are final."""

    OPEN = "open"  # not billed yet; keeps periods from being closed
    RATED = "rated"  # has become an event
    WRITTEN_OFF = "written_off"  # an operator decided that it is never billed


@dataclass(frozen=True, slots=True)
class Resolution:
    """The end of a record's quarantine: rated or written off, why, by which operator's key, and when (UTC microseconds). `approver`: the
    key of the second person who agreed to a write-off, None where one was enough."""

    state: QuarantineState
    reason: str
    actor: str
    resolved_at: int
    approver: str | None = None


@dataclass(frozen=True, slots=True)
class WriteOffRequest:
    """A request of one operator to write a record off. `amount_pico` in `currency`: what it would have cost; both None where that cannot be
    known."""

    actor: Operator
    reason: str
    amount_pico: int | None
    currency: str | None
    requested_at: int


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A record in quarantine, with its bytes as they came.

    `reason` is the obstacle to its rating when it arrived. `event_id`, `organization_id` and `served_at` (the instant at which its
    request ended) are what it says, None where it cannot be read or says something impossible. `resolution`: None while it waits.
    `write_off_requested_by`: the key that asked first to write it off, None if none has.
    """

    node_id: str
    epoch: int
    seq: int
    reason: str
    event_id: str | None
    organization_id: str | None
    served_at: int | None
    received_at: int
    payload: bytes
    resolution: Resolution | None
    write_off_requested_by: str | None = None

    @property
    def state(self) -> QuarantineState:
        """Return its state."""
        return QuarantineState.OPEN if self.resolution is None else self.resolution.state


@dataclass(frozen=True, slots=True)
class QuarantineSummary:
    """The number of quarantined records of one epoch that have the same reason, and the first and last of them."""

    node_id: str
    epoch: int
    reason: str
    records: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class WriteOff:
    """Records of one epoch that one operator wrote off with one reason, and that one approver, if any, agreed to: how many, and the first
    and last of them."""

    node_id: str
    epoch: int
    reason: str
    actor: str
    approver: str | None
    records: int
    first_seq: int
    last_seq: int
