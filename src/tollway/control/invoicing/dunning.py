"""Dunning: what is done about invoices that are not paid when they are due.

The steps are data of the seller. The job takes one step at a time for each overdue invoice: a reminder is recorded, and sent where the step
says so (`reminders`); the last step may restrict the organization, by a hard budget of one pico that refuses its requests (429
`insufficient_quota`). The recorded steps decide, and the budget follows them: it is there as long as an invoice for which such a step was
taken is open and not held. So the next run corrects what a crash left undone. Nothing is deleted. An invoice that is held, such as while it
is disputed, is not dunned.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date

from tollway.control.invoicing import parties
from tollway.control.money import budgets
from tollway.domain.billing_parties import DunningChannel
from tollway.domain.budgets import Budget
from tollway.domain.faults import DATABASE_UNAVAILABLE, PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.invoices import InvoiceKind, InvoiceState, day_of, decode_document
from tollway.domain.pages import Page, PageWindow
from tollway.domain.payments import DunningLetter, DunningNotice, find_due_step
from tollway.storage import budgets as stored_budgets
from tollway.storage import invoices as stored_invoices
from tollway.storage import open_items
from tollway.storage import payments as stored
from tollway.storage import periods as stored_periods
from tollway.storage.database import Database, PlatformTx, TenantTx
from tollway.storage.invoices import StoredInvoice

OVERDUE_BUDGET = "overdue invoices"
"""Name of the budget that restricts an organization."""

PAGE = 500
"""Invoices that are looked at in one transaction."""

NOTICE_ID = re.compile(r"[!-~]{1,64}/[0-9]{1,6}")
"""Form of the id of a step that was taken: its invoice and its number."""

NewId = Callable[[], str]
Log = Callable[[Mapping[str, object]], None]


def run(database: Database, *, new_id: NewId, now: Callable[[], int], is_stopping: Callable[[], bool], log: Log) -> None:
    """Release who has paid, take the next step for each invoice for which one is due, and restrict whom such a step restricts.

    `is_stopping` is asked between two invoices or organizations. What fails for one of them is logged, and the others go on. Raises Fault
    DATABASE_UNAVAILABLE.
    """
    with database.platform(write=False) as tx:
        restricted = stored_budgets.list_restricted(tx, OVERDUE_BUDGET)
    for organization_id in restricted:
        if is_stopping():
            return
        try:
            _release(database, organization_id, now())
        except Fault as fault:
            _report(fault, {"event": "restriction_not_lifted", "organization_id": organization_id}, log)
    _take_steps(database, now, is_stopping, log)
    with database.platform(write=False) as tx:
        wanted = stored.list_to_restrict(tx)
    for organization_id in wanted:
        if is_stopping():
            return
        try:
            with database.tenant(organization_id) as tenant:
                restrict(tenant, id=new_id(), now=now())
        except Fault as fault:
            _report(fault, {"event": "organization_not_restricted", "organization_id": organization_id}, log)


def _take_steps(database: Database, now: Callable[[], int], is_stopping: Callable[[], bool], log: Log) -> None:
    after = ""
    while not is_stopping():
        with database.platform(write=False) as tx:
            page = stored.list_overdue_ids(tx, day_of(now(), UTC), after=after, limit=PAGE)
        for invoice_id in page:
            if is_stopping():
                return
            try:
                with database.platform() as tx:
                    notice = take_step(tx, invoice_id, now())
            except Fault as fault:
                _report(fault, {"event": "invoice_not_dunned", "invoice_id": invoice_id}, log)
                continue
            if notice is not None:
                log({"event": "invoice_dunned", "invoice_id": invoice_id, "step": notice.step, "action": str(notice.action)})
        if len(page) < PAGE:
            return
        after = page[-1]


def _report(fault: Fault, line: Mapping[str, object], log: Log) -> None:
    if fault.kind is DATABASE_UNAVAILABLE:
        raise fault
    log({**line, "detail": fault.message})


def take_step(tx: PlatformTx, invoice_id: str, now: int) -> DunningNotice | None:
    """Record the next step of dunning for an invoice, if one is due: it is open, not held, and overdue for long enough (days of UTC)."""
    invoice = stored_invoices.lock_invoice(tx, invoice_id)
    if invoice is None or invoice.state is not InvoiceState.ISSUED or stored.find_hold(tx, invoice_id) is not None:
        return None
    if not open_items.find_open(tx, invoice_id):
        return None
    steps = parties.get_entity(tx, invoice.legal_entity_id).dunning
    taken = len(stored.list_notices_of(tx, invoice_id))
    overdue = date.fromisoformat(day_of(now, UTC)) - date.fromisoformat(decode_document(invoice.document).due_on)
    step = find_due_step(steps, taken, overdue.days)
    if step is None:
        return None
    due = steps[step - 1]
    notice = DunningNotice(invoice_id=invoice_id, step=step, action=due.action, noticed_at=now)
    stored.insert_notice(tx, invoice.organization_id, notice)
    if due.channel is DunningChannel.MAIL:
        letter = DunningLetter(invoice_id=invoice_id, step=step, organization_id=invoice.organization_id, action=due.action)
        stored.insert_letter(tx, letter)
    return notice


def restrict(tx: TenantTx, *, id: str, now: int) -> None:
    """Refuse further requests of an organization, if a step of dunning restricts it and it is not restricted yet."""
    stored_periods.lock_organization(tx, tx.organization_id)  # a payment comes before this, or finds the budget
    if _find_budget(tx) is None and stored.list_to_restrict(tx, tx.organization_id):
        budgets.restrict(tx, id=id, name=OVERDUE_BUDGET, now=now)


def release(database: Database, organization_ids: Iterable[str], now: int, log: Log) -> None:
    """Let the requests of restricted organizations through again that have paid, or whose invoices are held. What fails is logged: what was
    recorded before stays recorded, and the job releases them later."""
    for organization_id in organization_ids:
        try:
            _release(database, organization_id, now)
        except Fault as fault:
            log({"event": "restriction_not_lifted", "organization_id": organization_id, "detail": fault.message})


def _release(database: Database, organization_id: str, now: int) -> None:
    with database.tenant(organization_id, write=False) as tx:
        is_restricted = _find_budget(tx) is not None
    if is_restricted:
        with database.tenant(organization_id) as tx:
            release_paid(tx, now)


def release_paid(tx: TenantTx, now: int) -> bool:
    """Let the requests of a restricted organization through again once no step of dunning restricts it any more. Returns whether it was
    restricted and no longer is."""
    stored_periods.lock_organization(tx, tx.organization_id)
    budget = _find_budget(tx)
    if budget is None or stored.list_to_restrict(tx, tx.organization_id):
        return False
    budgets.archive_budget(tx, budget.id, by_operator=True, now=now)
    return True


def _find_budget(tx: TenantTx) -> Budget | None:
    named = stored_budgets.list_named(tx, tx.organization_id, OVERDUE_BUDGET)
    return next((each for each in named if each.is_operators), None)


def set_hold(tx: PlatformTx, invoice_id: str, reason: str | None, now: int) -> StoredInvoice:
    """Leave an invoice alone, for a reason; None duns it again. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    invoice = stored_invoices.lock_invoice(tx, invoice_id)
    if invoice is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such invoice.")
    if invoice.state is not InvoiceState.ISSUED or invoice.kind is not InvoiceKind.INVOICE:
        raise Fault(STATE_CONFLICT, message="Only issued invoices are dunned.")
    if reason is None:
        stored.delete_hold(tx, invoice_id)
    else:
        stored.put_hold(tx, invoice.organization_id, invoice_id, reason, now)
    return invoice


def list_open_notices(tx: PlatformTx, window: PageWindow, organization_id: str | None) -> Page[DunningNotice]:
    """Return the steps of dunning that were taken for invoices that are open, of one organization or of all, by invoice and step. Raises
    PARAMETER_INVALID for a window that is not behind a step."""
    if window.after is not None and not NOTICE_ID.fullmatch(window.after):
        raise Fault(PARAMETER_INVALID, param="after", message="'after' cannot be used: it must be the id of a step, such as inv_.../1.")
    return stored.list_open_notices(tx, window, organization_id)
