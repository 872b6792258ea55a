"""Connectors: payment services that collect issued invoices, and the states in which an invoice waits for one.

A draft waits in `draft.sync` until the connector has said that it can collect it; nothing is issued before. An issued invoice waits in
`issuing.sync` until the connector has the same invoice with the same total, and in `payment_processing.pending` until it is paid. What the
connector refuses is parked, with the reason, until an operator has it tried again.
"""

from enum import StrEnum

import msgspec

ATTEMPTS_MAX = 20
"""Failed attempts after which an invoice is parked: more than three days at the pauses of `find_pause`."""

PAUSE_SECONDS_MIN = 60
PAUSE_SECONDS_MAX = 6 * 3600


class Connector(StrEnum):
    """Service that collects the invoices of an organization; `none`: they are paid by bank transfer."""

    NONE = "none"
    STRIPE = "stripe"


class SyncState(StrEnum):
    """State of an invoice at its connector."""

    DRAFT_SYNC = "draft.sync"
    DRAFT_READY = "draft.ready"
    ISSUING_SYNC = "issuing.sync"
    PAYMENT_PENDING = "payment_processing.pending"
    SETTLED = "settled"


class InvoiceSync(msgspec.Struct, frozen=True, kw_only=True):
    """Standing of an invoice at its connector. `external_id`: by which the connector knows it; empty for none yet. `attempts`: failed ones
    since the state began. `next_at`: when the connector is asked again (UTC microseconds); None while nothing is to be asked. `problem`:
    why the last attempt failed, or why it is parked; empty for no problem. `version` counts changes."""

    invoice_id: str
    organization_id: str
    connector: Connector
    state: SyncState
    external_id: str = ""
    attempts: int = 0
    next_at: int | None = None
    problem: str = ""
    changed_at: int
    version: int = 1

    @property
    def is_parked(self) -> bool:
        """Return whether it waits for an operator."""
        return self.next_at is None and bool(self.problem)


def find_pause(attempts: int) -> int:
    """Return the seconds to wait after so many failed attempts, 1 or more: doubled with each, up to PAUSE_SECONDS_MAX."""
    return int(min(PAUSE_SECONDS_MIN * 2 ** min(attempts - 1, 20), PAUSE_SECONDS_MAX))
