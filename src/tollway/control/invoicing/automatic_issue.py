"""Drafting closed periods and issuing drafts without being asked, for sellers with a grace period.

It does what an operator would do: every period of an organization with a billing account that ends after its seller got the grace period,
and in which something is to be billed, is drafted once, and every draft whose grace period is over is issued, the oldest first. What cannot
be drafted or issued is left to a person, logged once an hour, and holds nothing else up. It is a job that one control process does at a
time; two at once, or a kill in the middle, do no harm: each document is one transaction.
"""

from collections.abc import Callable, Mapping

from tollway.control.invoicing import documents, dunning
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.invoices import InvoiceKind
from tollway.storage import invoices as stored
from tollway.storage.database import Database
from tollway.storage.invoices import UnbilledPeriod

ACTOR = "automatic"
"""Name of the issuer of a document, in the place of an operator's key id."""

SECONDS = 3600
"""Grace periods are days: an hour more does not matter."""

PAGE = 500
"""Periods or drafts that are read at once."""

DOCUMENTS_PER_RUN = 5_000
"""Periods that are drafted, and drafts that are issued, in one run: minutes of work, and the rest is done in the next one. Those that fail
do not count."""

Log = Callable[[Mapping[str, object]], None]


def run(
    drafting: Database,
    issuing: Database,
    releasing: Database,
    *,
    new_id: Callable[[], str],
    now: Callable[[], int],
    is_stopping: Callable[[], bool],
    log: Log,
) -> None:
    """Draft what is closed and issue what is due; `is_stopping` is asked between two documents. A credit note that settles what an
    organization was restricted for lifts that at once. `drafting`, `issuing`, `releasing`: the database as each of the three is recorded in
    the audit trail. Raises Fault DATABASE_UNAVAILABLE."""
    drafted, last_id = 0, ""
    while drafted < DOCUMENTS_PER_RUN and (periods := _list_unbilled(drafting, last_id)):
        last_id = periods[-1].id
        for period in periods:
            if is_stopping():
                return
            if period.end_at <= period.automatic_since or not (period.usage_pico or period.contracts_pico or period.adjustments):
                continue
            try:
                with drafting.platform() as tx:
                    documents.draft_period(tx, period.id, new_id, now())
                drafted += 1
            except Fault as fault:
                _report(fault, {"event": "invoice_not_drafted", "period_id": period.id}, log)
    issued, last_id = 0, ""
    while issued < DOCUMENTS_PER_RUN and (due := _list_due(issuing, now(), last_id)):
        last_id = due[-1]
        for invoice_id in due:
            if is_stopping():
                return
            try:
                with issuing.platform() as tx:
                    document = documents.issue(tx, invoice_id, actor=ACTOR, now=now())
                issued += 1
                if document.kind is InvoiceKind.CREDIT_NOTE:
                    dunning.release(releasing, [document.organization_id], now(), log)
            except Fault as fault:
                _report(fault, {"event": "invoice_not_issued", "invoice_id": invoice_id}, log)


def _list_unbilled(database: Database, after: str) -> list[UnbilledPeriod]:
    with database.platform(write=False) as tx:
        return stored.list_unbilled_periods(tx, after=after, limit=PAGE)


def _list_due(database: Database, now: int, after: str) -> list[str]:
    with database.platform(write=False) as tx:
        return stored.list_due_drafts(tx, now, after=after, limit=PAGE)


def _report(fault: Fault, line: Mapping[str, object], log: Log) -> None:
    if fault.kind is DATABASE_UNAVAILABLE:
        raise fault
    log({**line, "detail": fault.message})
