"""The cost of invoicing: `python -m bench.invoicing [INVOICES] [--events EACH] [--database postgres]`.

INVOICES organizations send EACH requests in one month. The records go through the collector, in batches as the link delivers them: no
event is copied or inserted beside it. Then the jobs of control close the months, and draft and issue the invoices, as they do in production
with a grace period of no days. Each of these steps is told with its time, the CPU of this process and the peak of its memory meanwhile; at
last the time in which the PDFs of some invoices are set. The same command with ten times as many invoices says whether all of it is linear.
A tenth of the organizations has a contract, and a tenth burns credit.
"""

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from tollway.domain.prices import PriceVersion
from tollway.domain.proofs import hash_price
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Admit, Close, Final, Outcome, Record, UsageSource, encode
from tollway.serve import garbage
from tollway.storage import schema, schema_invoices
from tollway.storage.database import Database, PlatformTx
from tollway.storage.record_archive import Archive
from tollway.wire.segments import extend, first_chain

INVOICES, EVENTS_EACH = 1_000, 1_000

BATCH_EVENTS = 3_600
"""Events that fit the 4 MiB of one delivery."""

MODELS = 8

PDFS = 60
"""Invoices that are set as PDF."""

START_AT = 1_793_491_200_000_000  # 2026-11-01
DAY_US = 86_400_000_000
DAYS = 30
NOW = START_AT + (DAYS + 2) * DAY_US
NODE = "node_" + "0" * 32


def organization_id(number: int) -> str:
    """Return the id of an organization."""
    return f"org_{number + 1:032x}"


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
    for number in range(organizations):
        with database.platform() as tx:
            parties.put_account(tx, msgspec.structs.replace(BUYER, organization_id=organization_id(number)), now=10)
            if number % 10 == 1:
                wanted = WantedContract(START_AT, START_AT + DAYS * DAY_US, terms)
                contract_id = ids.new_id(ids.CONTRACT, START_AT, number)
                contracts.create(tx, organization_id(number), wanted, id=contract_id, now=START_AT - DAY_US)
            if number % 10 == 2:
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
    credits.create_grant(tx, organization_id(number), wanted, id=ids.new_id(ids.CREDIT_GRANT, START_AT, number), now=START_AT - DAY_US)


def make_batches(organizations: int, events_each: int) -> Iterator[tuple[int, bytes]]:
    """Yield batches of one epoch: the first record of each, and its frames. The same for the same numbers."""
    chance, hashes = random.Random(20261130), [hash_price(make_price(model), 0) for model in range(MODELS)]
    chain, seq, total = first_chain(NODE, START_AT), 0, organizations * events_each
    first_seq, framed = 1, list[bytes]()
    for number in range(total):
        at, organization, model = START_AT + number * DAYS * DAY_US // total, number % organizations, chance.randrange(MODELS)
        of = Admit(
            request_id=ids.new_id(ids.REQUEST, at, chance.getrandbits(ids.RANDOM_BITS)),
            admitted_at=at,
            organization_id=organization_id(organization),
            project_id=f"proj_{organization:032x}",
            key_id=f"key_{organization:032x}",
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


def close_months(database: Database) -> None:
    """Have the job close the month of each organization."""
    waiting = automatic_closing.close_due(database, 1, holder="bench", now=_now, is_stopping=_go_on, log=lambda line: None)
    assert waiting == 0, waiting


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
    parser.add_argument("invoices", nargs="?", type=int, default=INVOICES, help=f"organizations, one invoice each (default {INVOICES})")
    parser.add_argument("--events", type=int, default=EVENTS_EACH, help=f"of each organization (default {EVENTS_EACH})")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    told = parser.parse_args()
    events = told.invoices * told.events
    print(f"{told.invoices:,} invoices from {events:,} events on {told.database}, load of the machine {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tollway-invoicing-") as name, opened(told.database, Path(name)) as database:
        archive = Archive(Path(name) / "archive")
        fill(database, told.invoices)
        garbage.settle()  # as a control process does when it is ready
        measure("collected", events, "event", lambda: take_events(database, archive, told.invoices, told.events))
        measure("closed", told.invoices, "month", lambda: close_months(database))
        measure("drafted and issued", told.invoices, "invoice", lambda: issue_invoices(database, told.invoices))
        taken = set_pdfs(database)
    for what, seconds in (("wall", [each.wall for each in taken]), ("CPU", [each.cpu for each in taken])):
        p95 = sorted(seconds)[-1 - len(seconds) // 20]
        print(f"one PDF, {what}: p50 {1000 * statistics.median(seconds):.0f} ms, p95 {1000 * p95:.0f} ms, of {len(seconds)}")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
