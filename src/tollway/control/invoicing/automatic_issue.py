"""Drafting closed periods and issuing drafts without being asked, for sellers with a grace period.

It does what an operator would do: every closed period of an organization with a billing account is drafted once, and every draft whose
grace period is over is issued, the oldest first. What cannot be drafted or issued is left to a person, and logged once an hour. It is a job
that one control process does at a time; two at once, or a kill in the middle, do no harm: each document is one transaction.
"""

from collections.abc import Callable, Mapping

from tollway.control.invoicing import documents
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.storage import invoices as stored
from tollway.storage.database import Database

ACTOR = "automatic"
"""Name of the issuer of a document, in the place of an operator's key id."""

SECONDS = 3600
"""Grace periods are days: an hour more does not matter."""

DOCUMENTS_PER_RUN = 5_000
"""Periods that are drafted, and drafts that are issued, in one run: minutes of work, and the rest is done in the next one."""

Log = Callable[[Mapping[str, object]], None]


def run(database: Database, *, new_id: Callable[[], str], now: Callable[[], int], is_stopping: Callable[[], bool], log: Log) -> None:
    """Draft what is closed and issue what is due; `is_stopping` is asked between two documents. Raises Fault DATABASE_UNAVAILABLE."""
    with database.platform(write=False) as tx:
        period_ids = stored.list_unbilled_periods(tx, limit=DOCUMENTS_PER_RUN)
    for period_id in period_ids:
        if is_stopping():
            return
        try:
            with database.platform() as tx:
                documents.draft_period(tx, period_id, new_id, now())
        except Fault as fault:
            _report(fault, {"event": "invoice_not_drafted", "period_id": period_id}, log)
    with database.platform(write=False) as tx:
        due = documents.list_due(tx, now(), DOCUMENTS_PER_RUN)
    for invoice_id in due:
        if is_stopping():
            return
        try:
            with database.platform() as tx:
                documents.issue(tx, invoice_id, actor=ACTOR, now=now())
        except Fault as fault:
            _report(fault, {"event": "invoice_not_issued", "invoice_id": invoice_id}, log)


def _report(fault: Fault, line: Mapping[str, object], log: Log) -> None:
    if fault.kind is DATABASE_UNAVAILABLE:
        raise fault
    log({**line, "detail": fault.message})
