"""Quarantine: what becomes of records that could not be rated when they arrived.

A record is quarantined when its organization or price is unknown here, when its amount passes the bound of an event, or when no gateway
can have written it. It is billed nowhere, so nothing may pretend that its month is complete: while it is open, it keeps every period
open in which it would be booked, it is counted in a metric, and its receipt says so. An operator ends that, with a reason: by rating it
again once the obstacle is gone, with the collector's own rules, or by writing it off. Both are final, name the operator's key, and can be
repeated without effect: the row of the record is locked, and its resolution, event and posting commit together.

After a restore the database may be behind the archive: records name prices, terms, organizations and keys that are not there yet. Such
records are rated by themselves once these are there (`WaitingRecords`), by the same rules.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tollway.control.approvals import may_approve, sum_moved_today
from tollway.control.metering.batches import Batch
from tollway.control.metering.collect import book_batch, list_billing_accounts, retry_races
from tollway.control.metering.rating import RatedBatch
from tollway.control.metering.record_checks import Owners, reject_foreign
from tollway.domain.faults import RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import Operator
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Calendar
from tollway.domain.quarantine import QuarantinedRecord, QuarantineState, Resolution, WriteOffRequest
from tollway.domain.usage import billed
from tollway.storage import prices as stored_prices
from tollway.storage import publish as stored_publish
from tollway.storage import rejected_records as stored
from tollway.storage import usage_events
from tollway.storage.database import Database, PlatformTx
from tollway.wire.segments import Frame

OBSTACLES = {
    "unreadable": "It is not a record that this version of Tollway can read.",
    "invalid": "It states something that no request can have: a count, an instant or a name out of range.",
    "organization_unknown": "Its organization does not exist here.",
    "not_of_organization": "Its project or key belongs to another organization or project than it says.",
    "instant_impossible": "It lies before the run of its gateway, or in the future, by more than an hour.",
    "price_unknown": "The price version under which it was admitted does not exist here.",
    "price_not_applicable": "Its price is of another model, tier or currency, or on a list that was never in the organization's terms.",
    "price_unproven": "Its record was admitted under another price or other terms than those that are published here under these ids.",
    "price_not_valid": "Its price or terms were not in force when it was admitted, by more than the stated lag.",
    "amount_too_large": "It costs more than one request may.",
    "billed_already": "Its request has been billed from another record.",
}
"""Reasons why a record cannot be rated, in words for operators."""


LIFTED = ("organization_unknown", "not_of_organization", "price_unknown", "price_not_applicable", "price_unproven")
"""Reasons that end when rows of tenants or prices are there that were missing when the record came."""

ACTOR = "automatic"
"""Name in the resolution of a record that was rated without being asked, in the place of an operator's key id."""

PAGE = 100
"""Records that are looked at in one transaction."""

RESCAN_US = 3_600_000_000
"""Interval after which waiting records are looked at again although nothing was published: rows may have been restored."""


@dataclass(slots=True)
class WaitingRecords:
    """Records whose obstacle may end by itself, and when a process looked at all of them last.

    They are looked at again when something was published since, because that alone adds organizations, keys, prices and terms, and every
    RESCAN_US.
    """

    version: int = -1
    looked_at: int = 0

    def rate(self, database: Database, *, now: int, is_stopping: Callable[[], bool]) -> int:
        """Rate the records that can be rated by now; `is_stopping` is asked between two records. Returns how many were rated.

        Raises Fault DATABASE_UNAVAILABLE; what was done until then stays done, and the next call looks at all of them again.
        """
        with database.platform(write=False) as tx:
            version = stored_publish.find_head(tx)
        if version == self.version and now < self.looked_at + RESCAN_US:
            return 0
        rated = 0
        for reason in LIFTED:
            rated += _rate_lifted(database, reason, now, is_stopping)
        if not is_stopping():
            self.version, self.looked_at = version, now
        return rated


def _rate_lifted(database: Database, reason: str, now: int, is_stopping: Callable[[], bool]) -> int:
    """Rate the open records with one reason that can be rated by now. Returns their number."""
    rated, window = 0, PageWindow(limit=PAGE)
    while True:
        with database.platform(write=False) as tx:
            page = stored.list_quarantined(tx, window, state=QuarantineState.OPEN, organization_id=None, reason=reason)
            ready = [record for record in page.items if find_obstacle(tx, record) is None]
        for record in ready:
            if is_stopping():
                return rated
            rated += _rate_ready(database, record, now)
        if not page.has_more:
            return rated
        last = page.items[-1]
        window = PageWindow(after=f"{last.node_id}/{last.epoch}/{last.seq}", limit=PAGE)


def _rate_ready(database: Database, record: QuarantinedRecord, now: int) -> bool:
    """Rate a record; return False if somebody has resolved it meanwhile, or it cannot be rated any more."""

    def book(tx: PlatformTx) -> bool:
        found = rate_record(tx, record.node_id, record.epoch, record.seq, reason=f"{record.reason} no more", actor=ACTOR, now=now)
        return found.resolution is not None and found.resolution.actor == ACTOR

    try:
        return retry_races(database, book)
    except Fault as fault:
        if fault.kind is STATE_CONFLICT:
            return False
        raise


def get_record(tx: PlatformTx, node_id: str, epoch: int, seq: int) -> QuarantinedRecord:
    """Return a quarantined record. Raises RESOURCE_UNKNOWN."""
    record = stored.find_quarantined(tx, node_id, epoch, seq)
    if record is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such record in quarantine.")
    return record


def list_records(
    tx: PlatformTx, window: PageWindow, *, state: QuarantineState | None, organization_id: str | None, reason: str | None
) -> Page[QuarantinedRecord]:
    """Return quarantined records by node, epoch and sequence number."""
    return stored.list_quarantined(tx, window, state=state, organization_id=organization_id, reason=reason)


def find_obstacle(tx: PlatformTx, record: QuarantinedRecord) -> str | None:
    """Return why a record cannot be rated now, as a key of OBSTACLES; None if it can."""
    batch, owners = _batch_of(record), Owners()
    owners.learn(tx, batch)
    reject_foreign(batch, owners)
    organization_ids = {each.group.admit.organization_id for each in batch.finals}
    calendars = {each: Calendar(each, "UTC") for each in organization_ids}  # its period does not matter here
    offers = stored_prices.find_offers(tx, {each.group.admit.price_version for each in batch.finals})
    known = usage_events.find_hashes(tx, [each.event_id for each in batch.finals])
    rated = RatedBatch(list_billing_accounts(tx, organization_ids), offers, calendars, known)
    for _ in rated.rate(batch):
        return None
    return _obstacle_of(rated)


def rate_record(tx: PlatformTx, node_id: str, epoch: int, seq: int, *, reason: str, actor: str, now: int) -> QuarantinedRecord:
    """Rate a quarantined record after all: it becomes an event, in the period in which it was served or the first open one after it.

    Repeating it changes nothing. Raises RESOURCE_UNKNOWN, or STATE_CONFLICT if it was written off or still cannot be rated, and storage's
    EventRace (begin again).
    """
    record = _lock(tx, node_id, epoch, seq)
    if record.state is QuarantineState.RATED:
        return record
    if record.state is QuarantineState.WRITTEN_OFF:
        raise Fault(STATE_CONFLICT, message="The record was written off.")
    rated = book_batch(tx, _batch_of(record), now)
    if rated.events == 0:
        obstacle = _obstacle_of(rated)
        raise Fault(STATE_CONFLICT, message=f"The record cannot be rated ({obstacle}). {OBSTACLES[obstacle]}")
    return _resolve(tx, record, Resolution(QuarantineState.RATED, reason, actor, now))


def write_off(
    tx: PlatformTx, node_id: str, epoch: int, seq: int, *, reason: str, actor: Operator, limit_pico: int, now: int
) -> QuarantinedRecord:
    """Ask that a quarantined record is never billed. It is written off at once if what it would have cost is known and, with everything
    that keys of the actor's origin asked to move on this day, at most `limit_pico`; else when a key of another origin asks for the same.
    Until then it stays open.

    Repeating it changes nothing. Raises RESOURCE_UNKNOWN, or STATE_CONFLICT if it was rated.
    """
    record = _lock(tx, node_id, epoch, seq)
    if record.state is QuarantineState.WRITTEN_OFF:
        return record
    if record.state is QuarantineState.RATED:
        raise Fault(STATE_CONFLICT, message="The record has been rated; correct its request instead.")
    amount_pico, currency = _find_amount(tx, record)
    is_within_limit = (
        amount_pico is not None and currency is not None and amount_pico + sum_moved_today(tx, actor, currency, now) <= limit_pico
    )
    stored.insert_write_off_request(tx, record, WriteOffRequest(actor, reason, amount_pico, currency, now))
    for request in stored.list_write_off_requests(tx, record):
        if may_approve(tx, request.actor, actor):
            agreed = Resolution(QuarantineState.WRITTEN_OFF, request.reason, request.actor.key_id, now, actor.key_id)
            return _resolve(tx, record, agreed)
    if not is_within_limit:
        return get_record(tx, node_id, epoch, seq)
    return _resolve(tx, record, Resolution(QuarantineState.WRITTEN_OFF, reason, actor.key_id, now))


def count_open(tx: PlatformTx) -> dict[str, int]:
    """Return how many records are open, by reason: for the metric."""
    return stored.count_open(tx)


def count_conflicts(tx: PlatformTx) -> int:
    """Return how many records have the id of another event and other content: for the metric."""
    return stored.count_conflicts(tx)


def _lock(tx: PlatformTx, node_id: str, epoch: int, seq: int) -> QuarantinedRecord:
    record = stored.find_quarantined(tx, node_id, epoch, seq, lock=True)
    if record is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such record in quarantine.")
    return record


def _resolve(tx: PlatformTx, record: QuarantinedRecord, resolution: Resolution) -> QuarantinedRecord:
    stored.insert_resolution(tx, record, resolution)
    return get_record(tx, record.node_id, record.epoch, record.seq)


def _batch_of(record: QuarantinedRecord) -> Batch:
    batch = Batch(record.node_id, record.epoch)
    batch.add([Frame(record.seq, b"", record.payload, 0)])
    return batch


def _find_amount(tx: PlatformTx, record: QuarantinedRecord) -> tuple[int | None, str | None]:
    """Return what a record would have cost, in pico, and the currency: by its own price, whoever may pay by it. (None, None) where its
    price does not exist here, or where it cannot be rated at all."""
    batch = _batch_of(record)
    prices = stored_prices.find_prices(tx, {each.group.admit.price_version for each in batch.finals})
    for each in batch.finals:
        price = prices.get(each.group.admit.price_version)
        if price is not None:
            return billed(each.final).cost(price.unit_prices), price.currency
    return None, None


def _obstacle_of(rated: RatedBatch) -> str:
    """Return why the one record of a batch was not rated."""
    return rated.quarantined[0].reason if rated.quarantined else "billed_already"
