"""Invoices at connectors: the port, and the job that takes each invoice from one state to the next.

Theory of operation. The state of an invoice at its connector is a row that changes in the transactions that draft and issue it, and in
those of the job. The job reads what is due, asks the connector outside of any transaction, and stores the outcome if nothing changed
meanwhile: so two of them at once, or a kill in the middle, ask the connector again for what it knows already, and a connector recognizes
what it was asked before. What cannot be reached is asked again after a growing pause; what is refused is parked with the reason, and waits
for an operator. A payment that a connector tells of is recorded once, however often it tells.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec

from tollway.control.invoicing import parties, payments
from tollway.control.invoicing.payments import ExternalPayment
from tollway.domain.billing_parties import BillingAccount
from tollway.domain.connectors import ATTEMPTS_MAX, Connector, InvoiceSync, SyncState, find_pause
from tollway.domain.faults import DATABASE_UNAVAILABLE, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.invoices import Document, InvoiceKind, decode_document
from tollway.domain.pages import Page, PageWindow
from tollway.domain.payments import Payment, PaymentKind, PaymentOrigin
from tollway.storage import invoice_syncs as stored
from tollway.storage import invoices as stored_invoices
from tollway.storage import open_items
from tollway.storage import payments as stored_payments
from tollway.storage import periods as stored_periods
from tollway.storage.database import Database, PlatformTx, Transaction

SECONDS = 60
"""Interval of the job."""

PAGE = 100
"""Invoices that one run asks about: each costs a few requests."""

POLL_SECONDS = 6 * 3600
"""Pause between two questions whether an invoice is paid. Connectors tell of payments themselves; this finds what they could not tell."""

PROBLEM_MAX = 512


class ConnectorUnavailable(Exception):
    """The connector could not be asked, or cannot answer now: it is asked again. The text says why, without secrets."""


class ConnectorRefused(Exception):
    """The connector refuses, or has something else than the invoice: a person has to look. The text says why, without secrets."""


class SinkPayment(NamedTuple):
    """Payment that a connector has collected for an invoice. `id`: by which it calls the payment. `value_on`: YYYY-MM-DD."""

    id: str
    amount_minor: int
    value_on: str


class InvoiceConnector(Protocol):
    """A service that collects invoices. Each method blocks for a bounded time, can be repeated, and raises ConnectorUnavailable and
    ConnectorRefused."""

    def check(self, account: BillingAccount, document: Document) -> None:
        """Return if the invoices of an account can be collected."""

    def open(self, account: BillingAccount, document: Document) -> str:
        """Make the empty counterpart of an issued invoice, and return its id."""

    def issue(self, external_id: str, account: BillingAccount, document: Document, open_minor: int) -> None:
        """Fill the counterpart with the lines, compare its totals with those of the document, and have it collected. `open_minor`: what of
        the document is to be paid."""

    def find_payment(self, external_id: str) -> SinkPayment | None:
        """Return what was collected for an invoice; None if it is not paid."""

    def adjust(self, external_id: str, open_minor: int) -> None:
        """Have no more collected for an invoice than what of it is open."""

    def cancel(self, external_id: str) -> None:
        """Have nothing collected any more for an invoice that was settled otherwise."""


Connectors = Mapping[Connector, InvoiceConnector]
Log = Callable[[Mapping[str, object]], None]


# ---- States that follow from drafts -------------------------------------------------------------------------------------


def begin(tx: PlatformTx, document: Document, now: int) -> None:
    """Store that the draft of an invoice waits for its account's connector, if it has one."""
    if document.kind is not InvoiceKind.INVOICE:
        return
    account = parties.get_account(tx, document.organization_id)
    if account.connector is not Connector.NONE:
        stored.insert_sync(
            tx,
            InvoiceSync(
                invoice_id=document.id,
                organization_id=document.organization_id,
                connector=account.connector,
                state=SyncState.DRAFT_SYNC,
                next_at=now,
                changed_at=now,
            ),
        )


def hand_over(tx: PlatformTx, invoice_id: str, now: int) -> None:
    """Store that an invoice that is about to be issued waits for its connector to have it. Raises STATE_CONFLICT while the connector has
    not said yet that it can collect it."""
    sync = stored.find_sync(tx, invoice_id)
    if sync is None:
        return
    if sync.state is not SyncState.DRAFT_READY:
        raise Fault(
            STATE_CONFLICT,
            message=f"The draft waits for {sync.connector} ({sync.state})" + (f": {sync.problem}." if sync.problem else "."),
        )
    if not stored.replace_sync(tx, sync, _moved(sync, SyncState.ISSUING_SYNC, now, next_at=now)):
        raise Fault(STATE_CONFLICT, message="The state of the draft changed meanwhile.")


def retry(tx: PlatformTx, invoice_id: str, now: int) -> InvoiceSync:
    """Have the connector asked at once, also about what is parked. Raises RESOURCE_UNKNOWN for an invoice without a connector,
    STATE_CONFLICT where nothing is to be asked."""
    sync = stored.find_sync(tx, invoice_id)
    if sync is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such invoice with a connector.")
    if sync.next_at is None and not sync.is_parked:
        raise Fault(STATE_CONFLICT, message="Nothing is to be asked of the connector.")
    asked = msgspec.structs.replace(sync, attempts=0, next_at=now, problem="", changed_at=now, version=sync.version + 1)
    if not stored.replace_sync(tx, sync, asked):
        raise Fault(STATE_CONFLICT, message="The state of the invoice changed meanwhile.")
    return asked


def list_syncs(tx: PlatformTx, window: PageWindow, *, organization_id: str | None) -> Page[InvoiceSync]:
    """Return the invoices that have a connector, with their states."""
    return stored.list_syncs(tx, window, organization_id=organization_id)


def _moved(sync: InvoiceSync, state: SyncState, now: int, *, next_at: int | None) -> InvoiceSync:
    return msgspec.structs.replace(sync, state=state, attempts=0, next_at=next_at, problem="", changed_at=now)


# ---- The job ------------------------------------------------------------------------------------------------------------


def run(
    database: Database,
    connectors: Connectors,
    *,
    new_id: Callable[[], str],
    now: Callable[[], int],
    is_stopping: Callable[[], bool],
    log: Log,
) -> list[str]:
    """Take each invoice that is due one state further. Returns the organizations that were found to have paid.

    `new_id`: makes an id of a payment. `is_stopping` is asked between two invoices. What fails for one of them is logged, and the others go
    on. Raises Fault DATABASE_UNAVAILABLE.
    """
    with database.platform(write=False) as tx:
        due = stored.list_due(tx, now(), limit=PAGE)
    paid: list[str] = []
    for sync in due:
        for _ in SyncState:  # an invoice is taken as far as it goes
            if is_stopping():
                return paid
            moved = _ask(database, connectors, sync, new_id, now())
            with database.platform() as tx:
                is_stored = stored.replace_sync(tx, sync, moved)
            if moved.problem:
                event = "invoice_parked" if moved.is_parked else "invoice_not_synced"
                log({"event": event, "invoice_id": sync.invoice_id, "state": str(sync.state), "detail": moved.problem})
            if moved.state is SyncState.SETTLED:
                paid.append(sync.organization_id)
            if not is_stored or moved.next_at is None or moved.next_at > now():
                break
            sync = msgspec.structs.replace(moved, version=sync.version + 1)
    return paid


def _ask(database: Database, connectors: Connectors, sync: InvoiceSync, new_id: Callable[[], str], now: int) -> InvoiceSync:
    """Return what becomes of an invoice when its connector is asked. Raises Fault DATABASE_UNAVAILABLE."""
    try:
        return _advance(database, connectors, sync, new_id, now)
    except ConnectorRefused as error:
        return msgspec.structs.replace(sync, next_at=None, problem=str(error)[:PROBLEM_MAX], changed_at=now)
    except ConnectorUnavailable as error:
        problem = str(error)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # its answer has another form than it should
        problem = f"the answer of {sync.connector} cannot be read ({type(error).__name__})"
    except Fault as fault:
        if fault.kind is DATABASE_UNAVAILABLE:
            raise
        problem = fault.message
    attempts = sync.attempts + 1
    next_at = None if attempts >= ATTEMPTS_MAX else now + find_pause(attempts) * 1_000_000
    return msgspec.structs.replace(sync, attempts=attempts, next_at=next_at, problem=problem[:PROBLEM_MAX], changed_at=now)


def _advance(database: Database, connectors: Connectors, sync: InvoiceSync, new_id: Callable[[], str], now: int) -> InvoiceSync:
    connector = connectors.get(sync.connector)
    if connector is None:
        raise ConnectorUnavailable(f"{sync.connector} is not set up")
    with database.platform(write=False) as tx:
        account = parties.get_account(tx, sync.organization_id)
        document = _get_document(tx, sync.invoice_id)
        open_minor = open_items.find_open(tx, sync.invoice_id)
    if sync.state is SyncState.DRAFT_SYNC:
        connector.check(account, document)
        return _moved(sync, SyncState.DRAFT_READY, now, next_at=None)
    if sync.state is SyncState.ISSUING_SYNC:
        if not sync.external_id:
            if not open_minor:
                return _moved(sync, SyncState.SETTLED, now, next_at=None)
            opened = connector.open(account, document)
            return msgspec.structs.replace(sync, external_id=opened, attempts=0, next_at=now, problem="", changed_at=now)
        connector.issue(sync.external_id, account, document, open_minor)
        return _moved(sync, SyncState.PAYMENT_PENDING, now, next_at=now + POLL_SECONDS * 1_000_000)
    found = connector.find_payment(sync.external_id)
    if found is not None:
        with database.platform() as tx:
            record_collected(tx, sync, found, document.currency, new_id=new_id, now=now)
    elif open_minor:
        connector.adjust(sync.external_id, open_minor)
        return _moved(sync, SyncState.PAYMENT_PENDING, now, next_at=now + POLL_SECONDS * 1_000_000)
    else:
        connector.cancel(sync.external_id)
    return _moved(sync, SyncState.SETTLED, now, next_at=None)


def record_collected(
    tx: PlatformTx, sync: InvoiceSync, found: SinkPayment, currency: str, *, new_id: Callable[[], str], now: int
) -> Payment | None:
    """Record what a connector has collected for an invoice, and that it is settled there. Returns None if it is recorded already, under
    whatever id of the payment."""
    stored_periods.lock_organization(tx, sync.organization_id)
    current = stored.find_sync(tx, sync.invoice_id)
    if current is not None and current.state is not SyncState.SETTLED:
        stored.replace_sync(tx, current, _moved(current, SyncState.SETTLED, now, next_at=None))
    if stored_payments.find_by_reference(tx, sync.organization_id, PaymentOrigin(sync.connector), sync.external_id) is not None:
        return None
    collected = ExternalPayment(
        kind=PaymentKind.PAYMENT,
        external_id=f"{sync.connector}/{found.id}",
        amount_minor=found.amount_minor,
        currency=currency,
        value_on=found.value_on,
        origin=PaymentOrigin(sync.connector),
        reference=sync.external_id,
    )
    return payments.record_external(tx, sync.organization_id, collected, [sync.invoice_id], id=new_id(), actor=str(sync.connector), now=now)


def _get_document(tx: Transaction, invoice_id: str) -> Document:
    invoice = stored_invoices.find_invoice(tx, invoice_id)
    assert invoice is not None, "documents are never deleted"
    return decode_document(invoice.document)
