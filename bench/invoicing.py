"""The cost of invoicing: `python -m bench.invoicing [ORGANIZATIONS] [--events EACH] [--collected N] [--invoiced N] [--database postgres]`.

ORGANIZATIONS send EACH requests in one month. The records of the first of them go through the collector, in batches as the link delivers
them; the others get copies of what it stored for those, in bulk and under ids of their own: events, ledger, periods and draws on credit,
but not the rollups, which neither closing nor invoicing reads. Then the jobs of control close the months, and draft and issue the invoices,
as they do in production with a grace period of no days. Each of these steps is told with its time, the CPU of this process and the peak of
its memory meanwhile; at last the time in which the PDFs of some invoices are set. The same command with ten times as many organizations
says whether all of it is linear. With --invoiced only so many of them are closed and invoiced, beside the events of all. A tenth of the
organizations has a contract, and a tenth burns credit.
"""

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from scripts import postgres
from tests.control.invoicing.parties import BUYER, SELLER
from tests.storage.databases import add_price
from tollway.control.invoicing import automatic_issue, parties, pdf
from tollway.control.metering.collect import collect
from tollway.control.metering.retention import keep_months
from tollway.control.money import automatic_closing, contracts, credits
from tollway.control.money.contracts import WantedContract
from tollway.control.money.credits import WantedGrant
from tollway.domain import ids
from tollway.domain.billing_classes import Quantities, UnitPrices
from tollway.domain.contracts import ContractTerms, Fee
from tollway.domain.credits import GrantCategory
from tollway.domain.invoices import decode_document
from tollway.domain.ledger import Account, Entry, Posting, UsageCause
from tollway.domain.pages import PageWindow
from tollway.domain.prices import PriceVersion
from tollway.domain.proofs import hash_price
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Admit, Close, Final, Outcome, Record, UsageSource, encode
from tollway.serve import garbage
from tollway.storage import ledger, schema, schema_credits, schema_invoices, schema_money
from tollway.storage import periods as stored_periods
from tollway.storage.database import Database, PlatformTx
from tollway.storage.record_archive import Archive
from tollway.wire.segments import extend, first_chain

ORGANIZATIONS, EVENTS_EACH = 1_000, 1_000

COLLECTED = 100
"""Organizations whose records go through the collector."""

KINDS = 10
"""Every organization with the same last digit has the same contract and credit."""

BATCH_EVENTS = 3_600
"""Events that fit the 4 MiB of one delivery."""

MODELS = 8

FILLED_MAX = 50
"""Organizations that one transaction adds, which has a deadline."""

COPIES_MAX = 100
"""Copies of one organization that one transaction stores."""

PDFS = 60
"""Invoices that are set as PDF."""

MARK_BITS = 16
"""The last bits of each id are 0 where the collector wrote it, and the number of the copy elsewhere."""

START_AT = 1_793_491_200_000_000  # 2026-11-01
DAY_US = 86_400_000_000
DAYS = 30
NOW = START_AT + (DAYS + 2) * DAY_US
NODE = "node_" + "0" * 32


def organization_id(number: int) -> str:
    """Return the id of an organization."""
    return f"org_{number + 1:032x}"


def project_id(number: int) -> str:
    """Return the id of an organization's one project."""
    return f"proj_{number:032x}"


def key_id(number: int) -> str:
    """Return the id of an organization's one key."""
    return f"key_{number:032x}"


def grant_id(number: int) -> str:
    """Return the id of an organization's credit, if it has any."""
    return ids.new_id(ids.CREDIT_GRANT, START_AT, number)


def make_price(model: int) -> PriceVersion:
    """Return the price of a model."""
    return PriceVersion(
        id=f"price_{model:032x}",
        list="book_" + "0" * 32,
        model=f"model-{model}",
        currency="EUR",
        valid_from=0,
        unit_prices=UnitPrices(input=270_000 + model, cached_input=27_000, output=1_100_000, reasoning=1_100_000, request=5),
    )


def fill(database: Database, organizations: int) -> None:
    """Add models, prices, the seller, and the organizations with their billing accounts, contracts and credit."""
    models = [
        {
            "name": f"model-{number}",
            "status": "active",
            "published": True,
            "endpoints": "[]",
            "unknown_parameters": "refuse",
            "retry_started": True,
            "share_cache": False,
            "created_at": 0,
        }
        for number in range(MODELS)
    ]
    rows = [
        {"id": organization_id(number), "name": f"o{number}", "currency": "EUR", "status": "active", "created_at": 0, "time_zone": "UTC"}
        for number in range(organizations)
    ]
    with database.platform() as tx:
        tx.connection.execute(schema.models.insert(), models)
        for number in range(MODELS):
            add_price(tx, make_price(number))
        tx.connection.execute(schema.organizations.insert(), rows)
        parties.put_entity(tx, msgspec.structs.replace(SELLER, grace_days=0), now=10)
    terms = ContractTerms(
        name="Plan", currency="EUR", discount_bp=1_000, fees=(Fee(name="Platform", amount_pico=49 * 10**12, is_per_seat=False),)
    )
    for start in range(0, organizations, FILLED_MAX):
        with database.platform() as tx:
            for number in range(start, min(start + FILLED_MAX, organizations)):
                parties.put_account(tx, msgspec.structs.replace(BUYER, organization_id=organization_id(number)), now=10)
                if number % KINDS == 1:
                    wanted = WantedContract(START_AT, START_AT + DAYS * DAY_US, terms)
                    contract_id = ids.new_id(ids.CONTRACT, START_AT, number)
                    contracts.create(tx, organization_id(number), wanted, id=contract_id, now=START_AT - DAY_US)
                if number % KINDS == 2:
                    _grant(tx, number)


def _grant(tx: PlatformTx, number: int) -> None:
    wanted = WantedGrant(
        category=GrantCategory.PROMOTIONAL,
        amount_pico=10**11,
        currency="EUR",
        cost_basis_bp=None,
        priority=0,
        effective_at=None,
        expires_at=None,
        reference="",
        project_id=None,
        model="",
    )
    credits.create_grant(tx, organization_id(number), wanted, id=grant_id(number), now=START_AT - DAY_US)


def make_batches(organizations: int, events_each: int) -> Iterator[tuple[int, bytes]]:
    """Yield batches of one epoch: the first record of each, and its frames. The same for the same numbers."""
    chance, hashes = random.Random(20261130), [hash_price(make_price(model), 0) for model in range(MODELS)]
    chain, seq, total = first_chain(NODE, START_AT), 0, organizations * events_each
    first_seq, framed = 1, list[bytes]()
    for number in range(total):
        at, organization, model = START_AT + number * DAYS * DAY_US // total, number % organizations, chance.randrange(MODELS)
        of = Admit(
            request_id=ids.new_id(ids.REQUEST, at, chance.getrandbits(ids.RANDOM_BITS - MARK_BITS) << MARK_BITS),
            admitted_at=at,
            organization_id=organization_id(organization),
            project_id=project_id(organization),
            key_id=key_id(organization),
            model=f"model-{model}",
            endpoint="chat/completions",
            stream=True,
            price_version=f"price_{model:032x}",
            price_hash=hashes[model],
            outcome_policy=OUTCOME_POLICY_CURRENT,
        )
        final = Final(
            admit=of,
            outcome=Outcome.COMPLETED,
            used=Quantities(chance.randint(1, 4_000), chance.randint(0, 1_000), chance.randint(1, 1_000), 0),
            source=UsageSource.ENGINE_FINAL,
            ended_at=at + 500_000,
            attempts=1,
            first_token_at=at + 40_000,
        )
        records: list[Record] = [of, final]
        if number == total - 1:
            records.append(Close(at=START_AT + DAYS * DAY_US))
        for record in records:
            seq += 1
            chain, frame = extend(chain, seq, encode(record))
            framed.append(frame)
        if len(framed) >= 2 * BATCH_EVENTS or number == total - 1:
            yield first_seq, b"".join(framed)
            first_seq, framed = seq + 1, []


def take_events(database: Database, archive: Archive, organizations: int, events_each: int) -> None:
    """Have the collector take every record in, a commit for each batch."""
    for first_seq, body in make_batches(organizations, events_each):
        with database.platform() as tx:
            told = collect(tx, archive, node_id=NODE, epoch=START_AT, first_seq=first_seq, body=body, now=NOW)
        assert not told.quarantined, told


def copy_usage(database: Database, organizations: int, collected: int) -> None:
    """Give the other organizations copies of what the collector stored for the first `collected`, which is a multiple of KINDS."""
    for number in range(collected):
        copies = range(number + collected, organizations, collected)
        for start in range(0, len(copies), COPIES_MAX):
            with database.platform() as tx:
                if not database.is_sqlite:
                    tx.connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                _copy_usage(tx, number, copies[start : start + COPIES_MAX], collected)


def _copy_usage(tx: PlatformTx, original: int, copies: Sequence[int], collected: int) -> None:
    """Copy the usage of an organization to others of its kind."""
    periods = stored_periods.open_calendars(tx, map(organization_id, copies))
    for calendar in periods.values():
        calendar.place(START_AT)
    stored_periods.insert_cut(tx, periods.values(), NOW)
    columns = [sa.column(name, sa.String) for name in ("organization_id", "project_id", "key_id", "grant_id", "mark")]
    names = [(organization_id(each), project_id(each), key_id(each), grant_id(each), _mark("0000", each, collected)) for each in copies]
    new = sa.values(*columns, name="copies").data(names).cte("copies").c
    own = organization_id(original)

    def copy(table: sa.Table, condition: sa.ColumnElement[bool], **changes: sa.ColumnElement[str]) -> None:
        values = [changes.get(column.name, column) for column in table.c]
        query = sa.select(*values).select_from(table).join(new.mark.table, sa.true()).where(condition)
        tx.connection.execute(table.insert().from_select(table.c.keys(), query))

    def marked(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        digits = MARK_BITS // 4
        return sa.func.substr(column, 1, sa.func.length(column) - digits).concat(new.mark)

    events, draws = schema_money.usage_events, schema_credits.credit_draws
    place = {"organization_id": new.organization_id, "project_id": new.project_id, "key_id": new.key_id}
    of_month = sa.and_(events.c.organization_id == own, events.c.period_at == START_AT)
    copy(events, of_month, event_id=marked(events.c.event_id), **place)
    copy(draws, draws.c.organization_id == own, organization_id=new.organization_id, grant_id=new.grant_id)
    ledger.post(tx, [_copy_posting(posting, each, collected) for posting in _list_postings(tx, own) for each in copies], NOW)


def _list_postings(tx: PlatformTx, organization: str) -> list[Posting]:
    """Return the transactions that book the usage of an organization."""
    window = PageWindow(after=None, limit=1_000_000)
    postings = ledger.list_period_transactions(tx, window, organization, START_AT).items
    return [posting for posting in postings if isinstance(posting.cause, UsageCause)]


def _copy_posting(posting: Posting, number: int, collected: int) -> Posting:
    """Return the same transaction of another organization."""
    own, name = posting.organization_id, organization_id(number)
    entries = tuple(
        Entry(Account(name, entry.account.kind, entry.account.currency), entry.amount_pico) if entry.account.owner == own else entry
        for entry in posting.entries
    )
    return replace(posting, id=_mark(posting.id, number, collected), organization_id=name, entries=entries)


def _mark(id: str, number: int, collected: int) -> str:
    """Return the id with the number of a copy in place of its last bits."""
    return f"{id[: -MARK_BITS // 4]}{number // collected:0{MARK_BITS // 4}x}"


def close_months(database: Database, count: int) -> None:
    """Have the job close the months of the first so many organizations."""
    closed = list[object]()
    automatic_closing.close_due(database, 1, holder="bench", now=_now, is_stopping=lambda: len(closed) == count, log=closed.append)
    assert len(closed) == count, len(closed)


def issue_invoices(database: Database, count: int) -> None:
    """Have the job draft and issue the invoices, in as many runs as it wants."""
    number = itertools.count()

    def new_id() -> str:
        return ids.new_id(ids.INVOICE, NOW, next(number))

    refused: list[object] = []
    issued = -1
    while (now_issued := _count_issued(database)) != issued:
        issued = now_issued
        automatic_issue.run(database, database, database, new_id=new_id, now=_now, is_stopping=_go_on, log=refused.append)
    assert issued == count and not refused, (issued, refused[:3])


class PdfTime(NamedTuple):
    """Time in which a PDF was set: of the wall, and CPU of this process, in seconds."""

    wall: float
    cpu: float


def set_pdfs(database: Database) -> list[PdfTime]:
    """Return the time in which each of some invoices was set, after one that is not counted."""
    with database.platform(write=False) as tx:
        query = sa.select(schema_invoices.invoices.c.document).order_by(schema_invoices.invoices.c.id).limit(PDFS)
        found = [decode_document(text) for text in tx.connection.execute(query).scalars()]
    pdf.render(found[0])
    taken = []
    for document in found:
        wall, cpu = time.perf_counter(), time.process_time()
        pdf.render(document)
        taken.append(PdfTime(time.perf_counter() - wall, time.process_time() - cpu))
    return taken


def _count_issued(database: Database) -> int:
    with database.platform(write=False) as tx:
        query = sa.select(sa.func.count()).where(schema_invoices.invoices.c.state == "issued")
        return int(tx.connection.execute(query).scalar_one())


def _now() -> int:
    return NOW


def _go_on() -> bool:
    return False


def measure(name: str, count: int, of: str, work: Callable[[], object]) -> None:
    """Do some work, and print what it took for each of `count` things."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew (proc(5))
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(
        f"{name}: {wall:.1f} s, {cpu:.1f} s of CPU; for each {of} {1000 * wall / count:.3f} ms, {1000 * cpu / count:.3f} ms of CPU;"
        f" peak of memory {peak / 1024:.0f} MiB",
        flush=True,
    )


@contextmanager
def opened(kind: str, directory: Path) -> Iterator[Database]:
    """Open a migrated, empty database: a file of SQLite in a directory, or a private PostgreSQL."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.running()) if kind == "postgres" else f"sqlite+pysqlite:///{directory}/invoicing.db"
        database = stack.enter_context(closing(Database.open(url)))
        database.migrate()
        for _ in keep_months(database, now=START_AT, retention_months=0):
            pass
        yield database


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.invoicing", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("organizations", nargs="?", type=int, default=ORGANIZATIONS, help=f"one invoice each (default {ORGANIZATIONS})")
    parser.add_argument("--events", type=int, default=EVENTS_EACH, help=f"of each organization (default {EVENTS_EACH})")
    parser.add_argument("--collected", type=int, default=COLLECTED, help=f"organizations whose records are collected (default {COLLECTED})")
    parser.add_argument("--invoiced", type=int, help="organizations that are invoiced (default all)")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    told = parser.parse_args()
    organizations, collected = told.organizations, min(told.collected, told.organizations)
    if collected < organizations and collected % KINDS:
        parser.error(f"--collected: a multiple of {KINDS}")
    events, invoices = organizations * told.events, min(told.invoiced or organizations, organizations)
    print(f"{organizations:,} organizations, {events:,} events on {told.database}, {invoices:,} of them invoiced;", end=" ")
    print(f"load of the machine {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tollway-invoicing-") as name, opened(told.database, Path(name)) as database:
        archive = Archive(Path(name) / "archive")
        fill(database, organizations)
        garbage.settle()  # as a control process does when it is ready
        measure("collected", collected * told.events, "event", lambda: take_events(database, archive, collected, told.events))
        if collected < organizations:
            copied = events - collected * told.events
            measure("copied", copied, "event", lambda: copy_usage(database, organizations, collected))
        measure("closed", invoices, "month", lambda: close_months(database, invoices))
        measure("drafted and issued", invoices, "invoice", lambda: issue_invoices(database, invoices))
        taken = set_pdfs(database)
    for what, seconds in (("wall", [each.wall for each in taken]), ("CPU", [each.cpu for each in taken])):
        p95 = sorted(seconds)[-1 - len(seconds) // 20]
        print(f"one PDF, {what}: p50 {1000 * statistics.median(seconds):.0f} ms, p95 {1000 * p95:.0f} ms, of {len(seconds)}")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
