"""Numbers of invoices while the processes that issue them are killed: no gap, nothing twice, nothing half done."""

import itertools
import random
import signal
import subprocess
import sys

from tests.control.invoicing.parties import add_parties
from tests.control.invoicing.test_documents import credit, draft, issue
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import NOW, SEPTEMBER, close
from tests.link.samples import admit, final, frames
from tollway.control.invoicing import documents
from tollway.control.verification import invoices as verify_invoices
from tollway.domain.billing_classes import Quantities
from tollway.domain.invoices import InvoiceState
from tollway.domain.money import CENT_PICO
from tollway.domain.pages import PageWindow
from tollway.domain.usage import Tick
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

DRAFTS = 24
KILLS = 4

ISSUE_ALL = f"""
import sys
from tollway.control.invoicing import documents
from tollway.storage.database import Database
database = Database.open(sys.argv[1])
for invoice_id in sys.argv[2:]:
    with database.platform() as tx:
        documents.issue(tx, invoice_id, actor="key_1", now={NOW})
    print(invoice_id, flush=True)
"""


def test_157_numbers_have_no_gaps_while_processes_that_issue_are_killed(database: Database, database_url: str, archive: Archive) -> None:
    large = final(admit(1), used=Quantities(2_000_000_000))
    take(database, archive, frames([large.admit, large, Tick(at=SEPTEMBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    add_parties(database)
    (invoice,) = draft(database)
    issue(database, invoice.id)
    notes = [credit(database, invoice.id, CENT_PICO).id for _ in range(DRAFTS)]
    chance = random.Random(7)
    for number in itertools.count():
        with database.platform(write=False) as tx:
            states = {each: documents.get_invoice(tx, each).state for each in notes}
        left = [each for each, state in states.items() if state is InvoiceState.DRAFT]
        if not left:
            break
        # Two at once, which meet on the same series; all but the last are killed in the middle of whatever they do.
        command = [sys.executable, "-c", ISSUE_ALL, database_url]
        running = [subprocess.Popen([*command, *order], stdout=subprocess.PIPE, text=True) for order in (left, left[::-1])]
        for process in running:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 4) if number < KILLS else len(left)):
                process.stdout.readline()
            if number < KILLS:
                process.send_signal(signal.SIGKILL)
        for process in running:
            process.communicate(timeout=60)
    with database.platform(write=False) as tx:
        found = list(documents.list_invoices(tx, PageWindow(limit=100), organization_id=None, state=InvoiceState.ISSUED).items)
        differences: list[str] = []
        verify_invoices.compare_invoices(tx, lambda table, text: differences.append(f"{table}: {text}"))
    numbers = sorted(each.issue.number for each in found if each.issue is not None and each.issue.series.startswith("GS"))
    assert numbers == list(range(1, DRAFTS + 1)) and differences == []
