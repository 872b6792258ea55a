"""The collector's figure: what it costs to take usage in, beside a plain COPY of the same rows.

One gateway's records, made from a seed, are handed to the collector batch by batch as the link does it: on PostgreSQL (a private
server) and on SQLite, chain check, archive, rating, rollups and postings included, each batch committed. The yardstick is what
nobody can beat by much: psycopg's `copy.write_row` of the finished rows of the same events into a table of the same columns, checks
and indexes, committed for each batch too. The three take turns on the same batches.

Events spread over thirty days, as bursts at 10,000 a second: so each batch falls into one minute, as it does in life, and a month
can be asked for at the end. The first hundred thousand are ingested; to a million and to ten, the rows that are there are copied under
ids of their own, each beside its original, because what is asked is what a batch costs beside so many, not how they came.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from bench.targets import Target
from scripts import postgres
from tests.storage.databases import add_price, become_owner
from tollway.control.metering import usage as control_usage
from tollway.control.metering.collect import collect
from tollway.control.metering.retention import keep_months
from tollway.domain import ids
from tollway.domain.billing_classes import Quantities, UnitPrices
from tollway.domain.prices import PriceVersion
from tollway.domain.proofs import hash_price
from tollway.domain.rollups import UsageQuery
from tollway.domain.usage import Admit, Final, Outcome, UsageSource, encode
from tollway.serve import garbage
from tollway.storage.database import Database
from tollway.storage.partitions import list_months
from tollway.storage.record_archive import Archive
from tollway.storage.usage_events import EVENT_COLUMNS
from tollway.wire.segments import extend, first_chain

if TYPE_CHECKING:
    from bench.figures import Rig

BATCH_EVENTS = 3_600
"""Events that fit the 4 MiB of one delivery."""

WINDOW_BATCHES = 10
"""Timed together: about a second."""

ORGANIZATIONS, KEYS, MODELS = 50, 4, 8
"""Each organization has so many keys in one project; each key uses two models. Who asks follows Zipf's law."""

START_AT = 1_793_491_200_000_000  # 2026-11-01
DAYS = 30
DAY_US = 86_400_000_000
NODE, EPOCH = "node_" + "0" * 32, START_AT
NOW = START_AT + (DAYS + 1) * DAY_US
"""After the last event, because a record of the future is quarantined."""

COPY = "COPY"

ROWS_COPIED = 50_000
"""In one transaction of SQLite, when it is filled: half a million rows."""

MARKS = (100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True, slots=True)
class Nibble:
    """A hexadecimal digit of a request id that is one of few in every UUIDv7 (RFC 9562, section 5.7): its place, counted from 1."""

    place: int
    digits: str


VERSION = Nibble(17, "7")
VARIANT = Nibble(21, "89ab")


@dataclass(frozen=True, slots=True)
class Engine:
    """A database that is being filled, and its archive."""

    name: str
    database: Database
    archive: Archive

    def take(self, first_seq: int, body: bytes) -> None:
        """Have the collector take one batch in, and commit."""
        with self.database.platform() as tx:
            taken = collect(tx, self.archive, node_id=NODE, epoch=EPOCH, first_seq=first_seq, body=body, now=NOW)
        assert taken.events == BATCH_EVENTS, taken

    def copy_events(self, copies: int, nibble: Nibble) -> None:
        """Copy every event so many times, at most twelve; each copy has another digit at a place of its id where all have one of a few.

        What is stored for long is on the disk, and no server sorts it out any more when the next batch comes: so it is here. Triggers,
        which have looked at the originals, are left out.
        """
        columns, digits = ", ".join(EVENT_COLUMNS[1:]), [each for each in "0123456789abcdef" if each not in nibble.digits][:copies]
        head, tail = f"substr(event_id, 1, {nibble.place - 1})", f"substr(event_id, {nibble.place + 1})"
        insert = f"INSERT INTO usage_events (event_id, {columns})"
        if self.database.is_sqlite:
            self._copy_by_rows(f"{insert} SELECT {head} || value || {tail}, {columns} FROM usage_events, json_each(?)", digits)
        else:
            with self.database.platform() as tx:
                tx.connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                become_owner(tx)
                tx.connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
                made = f"{head} || unnest(ARRAY[{', '.join(map(repr, digits))}]) || {tail}"
                tx.connection.exec_driver_sql(f"{insert} SELECT {made}, {columns} FROM usage_events")
        self._settle()

    def _settle(self) -> None:
        """Have what was copied lie on the disk: whoever fills a database in a minute leaves more unwritten than a gateway ever does."""
        with self.database.platform() as tx:
            if not self.database.is_sqlite:
                tx.connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                become_owner(tx)
                tx.connection.exec_driver_sql("CHECKPOINT")
        os.sync()

    def _copy_by_rows(self, statement: str, digits: Sequence[str]) -> None:
        """Copy in pieces: SQLite stores aside what it reads from the table that it writes to."""
        trigger = "event_in_open_period"
        with self.database.platform() as tx:
            run = tx.connection.exec_driver_sql
            last: int = run("SELECT max(rowid) FROM usage_events").scalar_one()
            definition: str = run(f"SELECT sql FROM sqlite_master WHERE name = '{trigger}'").scalar_one()
            run(f"DROP TRIGGER {trigger}")
        for first in range(1, last + 1, ROWS_COPIED):
            with self.database.platform() as tx:
                piece = f"{statement} WHERE usage_events.rowid BETWEEN {first} AND {min(first + ROWS_COPIED - 1, last)}"
                tx.connection.exec_driver_sql(piece, (json.dumps(digits),))
        with self.database.platform() as tx:
            tx.connection.exec_driver_sql(definition)


def measure(rig: Rig) -> None:
    """Events per second of the collector, beside a plain COPY of the same rows; as the database fills; and a month's query."""
    marks = [mark for mark in MARKS if mark <= rig.events]
    windows = len(marks) * rig.rounds * WINDOW_BATCHES * BATCH_EVENTS
    batches = make_batches(MARKS[0] + windows)
    garbage.settle()  # as a control process does when it is ready
    with unpinned(), opened(rig.directory) as (on_postgres, on_sqlite, url), contextlib.closing(Copy(url)) as copy:
        engines, stored = (on_postgres, on_sqlite), 0
        while stored < MARKS[0]:
            batch = next(batches)
            for engine in engines:
                engine.take(*batch)
            stored += BATCH_EVENTS
        for mark, nibble in zip(marks, (None, VERSION, VARIANT), strict=False):
            if nibble is not None:
                copies = -(-mark // stored) - 1
                for engine in engines:
                    engine.copy_events(copies, nibble)
                stored *= 1 + copies
            for round_ in range(rig.rounds):
                window = [next(batches) for _ in range(WINDOW_BATCHES)]
                stored += WINDOW_BATCHES * BATCH_EVENTS
                for engine in engines:
                    _sample(rig, mark, round_, engine.name, _time_all(engine.take, window))
                rows = copy.read_rows(window[0][0])
                parts = [(rows[at : at + BATCH_EVENTS],) for at in range(0, len(rows), BATCH_EVENTS)]
                _sample(rig, mark, round_, COPY, _time_all(copy.write, parts))
        for round_ in range(rig.rounds):
            for engine in engines:
                values = query_month(engine) | {"stored": float(stored)}
                rig.sample("collector", "month", Target(engine.name, 0, None), round_, values)


def _time_all(take: Callable[..., None], window: Sequence[tuple[Any, ...]]) -> dict[str, float]:
    """Wall time and CPU of this process for a window of batches."""
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in window:
        take(*batch)
    return {"seconds": time.perf_counter() - wall, "client_cpu_seconds": time.process_time() - cpu}


def _sample(rig: Rig, mark: int, round_: int, name: str, values: dict[str, float]) -> None:
    events = WINDOW_BATCHES * BATCH_EVENTS
    values |= {"events": float(events), "us_per_event": values["seconds"] / events * 1e6}
    rig.sample("collector", f"{mark:,} stored", Target(name, 0, None), round_, values)


def organization_id(number: int) -> str:
    """The organization of that rank in traffic."""
    return f"org_{number:032x}"


def make_price(model: int) -> PriceVersion:
    """The price of a model."""
    return PriceVersion(
        id=f"price_{model:032x}",
        list="book_" + "0" * 32,
        model=f"model-{model}",
        currency="EUR",
        valid_from=0,
        unit_prices=UnitPrices(input=270_000, cached_input=27_000, output=1_100_000, reasoning=1_100_000, request=5),
    )


def make_batches(events: int) -> Iterator[tuple[int, bytes]]:
    """Batches of an epoch that comes to `events` (or a little more): first seq and frames. The same for the same number."""
    chance = random.Random(20261122)
    price_hashes = [hash_price(make_price(model), 0) for model in range(MODELS)]
    groups = [(o, k, (o + k * 2 + m) % MODELS) for o in range(ORGANIZATIONS) for k in range(KEYS) for m in range(2)]
    shares = [1 / (1 + o) / (1 + k) for o, k, _ in groups]
    chain, seq, batches = first_chain(NODE, EPOCH), 1, -(-events // BATCH_EVENTS)
    for batch in range(batches):
        day = batch * DAYS // batches
        at = START_AT + day * DAY_US + (batch - -(-day * batches // DAYS)) * BATCH_EVENTS * 100
        first_seq, framed = seq, []
        for number, (o, k, model) in enumerate(chance.choices(groups, shares, k=BATCH_EVENTS)):
            admitted_at = at + number * 100
            of = Admit(
                request_id=ids.new_id(ids.REQUEST, admitted_at, chance.getrandbits(ids.RANDOM_BITS)),
                admitted_at=admitted_at,
                organization_id=organization_id(o),
                project_id=f"proj_{o:032x}",
                key_id=f"key_{o * KEYS + k:032x}",
                model=f"model-{model}",
                endpoint="chat/completions",
                stream=True,
                price_version=f"price_{model:032x}",
                price_hash=price_hashes[model],
                outcome_policy=1,
            )
            final = Final(
                admit=of,
                outcome=Outcome.COMPLETED,
                used=Quantities(chance.randint(1, 4000), chance.randint(0, 1000), chance.randint(1, 1000), 0),
                source=UsageSource.ENGINE_FINAL,
                ended_at=admitted_at + 2_000_000,
                deployment_id="dep_" + "1" * 32,
                attempts=1,
                first_token_at=admitted_at + 40_000,
            )
            for record in (of, final):
                chain, frame = extend(chain, seq, encode(record))
                framed.append(frame)
                seq += 1
        yield first_seq, b"".join(framed)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[tuple[Engine, Engine, str]]:
    """PostgreSQL and SQLite, migrated, with organizations and prices; and PostgreSQL's URL."""
    with postgres.running() as url:
        engines = []
        for name, its_url in (("tollway", url), ("tollway on SQLite", f"sqlite+pysqlite:///{directory}/collector.db")):
            database = Database.open(its_url)
            database.migrate()
            for _ in keep_months(database, now=START_AT, retention_months=0):
                pass
            if not database.is_sqlite:
                _leave_alone(database)
            fill(database)
            engines.append(Engine(name, database, Archive(directory / name)))
        try:
            yield engines[0], engines[1], url
        finally:
            for engine in engines:
                engine.database.close()


def _leave_alone(database: Database) -> None:
    """No autovacuum of events in the middle of a window: nothing of them is ever dead, and their first vacuum comes as it likes."""
    with database.platform() as tx:
        become_owner(tx)
        for month in list_months(tx):
            tx.connection.exec_driver_sql(f"ALTER TABLE {month.partition} SET (autovacuum_enabled = false)")


class Copy:
    """The yardstick: finished rows, written by psycopg as they are."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        self._connection = self._engine.connect()
        pooled: Any = self._connection.connection
        self.driver = pooled.driver_connection
        self.driver.execute("CREATE TABLE copied (LIKE usage_events INCLUDING ALL) PARTITION BY RANGE (event_id)")
        self.driver.execute("CREATE TABLE copied_default PARTITION OF copied DEFAULT WITH (autovacuum_enabled = false)")
        self.driver.commit()

    def read_rows(self, first_seq: int) -> list[tuple[Any, ...]]:
        """The finished rows from that record on."""
        query = f"SELECT {', '.join(EVENT_COLUMNS)} FROM usage_events WHERE event_id > (SELECT coalesce(max(event_id), '') FROM copied)"
        rows: list[tuple[Any, ...]] = self.driver.execute(f"{query} AND seq >= {first_seq} ORDER BY event_id").fetchall()
        self.driver.commit()
        return rows

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        """Write one batch, and commit."""
        with self.driver.cursor() as cursor, cursor.copy(f"COPY copied ({', '.join(EVENT_COLUMNS)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        self.driver.commit()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._engine.dispose()


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """This process on any CPU at the usual priority, as a control process is; and so do the servers that it starts."""
    cpus, policy, priority = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)
        os.sched_setscheduler(0, policy, priority)


def query_month(engine: Engine) -> dict[str, float]:
    """The busiest organization's month by day and model, once to warm up and then the median of five."""
    query = UsageQuery(width_seconds=86_400, start_at=START_AT, end_at=START_AT + (DAYS + 1) * DAY_US, group_by=("model",))
    durations, groups = [], 0
    for _ in range(6):
        began = time.perf_counter()
        with engine.database.tenant(organization_id(0), write=False) as tx:
            buckets = control_usage.list_buckets(tx, query, DAYS + 1).buckets
        durations.append(time.perf_counter() - began)
        groups = sum(len(bucket.groups) for bucket in buckets)
    return {"month_ms": sorted(durations[1:])[2] * 1000, "groups": groups}


def fill(database: Database) -> None:
    """Add models, prices and organizations."""
    with database.platform() as tx:
        for number in range(MODELS):
            tx.connection.exec_driver_sql(
                "INSERT INTO models (name, status, published, endpoints, unknown_parameters, retry_started, share_cache, created_at)"
                f" VALUES ('model-{number}', 'active', true, '[]', 'refuse', true, false, 0)"
            )
            add_price(tx, make_price(number))
        for number in range(ORGANIZATIONS):
            tx.connection.exec_driver_sql(
                "INSERT INTO organizations (id, name, currency, status, created_at, time_zone)"
                f" VALUES ('{organization_id(number)}', 'o', 'EUR', 'active', 0, 'UTC')"
            )
