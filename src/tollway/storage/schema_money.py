"""The tables of usage and money, on the MetaData of `schema`.

Amounts. What one class of one event costs fits a signed 64-bit integer. Sums do not have to: rollups keep them as two integers,
whole currency units and the pico beyond them, which add up column by column on either engine; balances and ledger entries are
`Amount`, which is NUMERIC(38, 0) on PostgreSQL and decimal text on SQLite, whose integers end at 64 bits and would turn into floats
beyond. Nothing computes with an Amount in SQL: the few rows of a batch are read, added in Python and written back under a lock.

Events and ledger entries have no foreign keys: each would cost about as much as the row. Whoever writes them has just read or
written what they name, none of which is ever deleted; an event's place (node, epoch, seq) is unique because the epoch's row is locked
and its records are numbered and chained. `verify` looks at all of it again. The one index of events beside the key is what closing,
proving and exporting a period read by. On PostgreSQL events lie in one partition for each month of their ids (UUIDv7 begins with the
time; see `partitions`), so that old months can go in one step, and the primary key is unique over all months.

Instants are BIGINT UTC microseconds. APPEND_ONLY tables are guarded by triggers against UPDATE and DELETE (see the migrations).
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator, TypeEngine

from tollway.domain.billing_classes import OTHER_CLASSES, QUANTITY_CLASSES, TEXT_CLASSES, BillingClass
from tollway.domain.quarantine import QuarantineState
from tollway.domain.usage import Anomaly, Outcome, ServiceTier, UsageSource
from tollway.storage.schema import metadata, one_of

AMOUNT_DIGITS = 38
"""Decimal digits of an Amount: 10**26 currency units in pico."""


def amount_text(pico: int) -> str:
    """An Amount as both engines take it from a bulk insert. Raises OverflowError beyond its digits."""
    if abs(pico) >= 10**AMOUNT_DIGITS:
        raise OverflowError(f"an amount of more than {AMOUNT_DIGITS} digits")
    return str(pico)


class Amount(TypeDecorator[int]):
    """An integer of pico-currency beyond 64 bits; a Python int on both engines."""

    impl = sa.Numeric(AMOUNT_DIGITS, 0)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """NUMERIC where it is exact, text where numbers end at 64 bits."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.String(AMOUNT_DIGITS + 1))
        return dialect.type_descriptor(sa.Numeric(AMOUNT_DIGITS, 0))

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> Any:
        """To the driver: decimal text or an exact Decimal, never a float."""
        if value is None:
            return None
        text = amount_text(value)
        return text if dialect.name == "sqlite" else Decimal(text)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> int | None:
        """From the driver."""
        return None if value is None else int(value)


def name(length: int) -> sa.String:
    """Visible ASCII in a key: ordered by bytes, whatever the language of the database. PostgreSQL compares it several times faster so,
    and the months of events are cut by it."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


# ---- What gateways sent -----------------------------------------------------------------------------------------------

epochs = sa.Table(  # one run of a gateway: how far its records have been ingested
    "epochs",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("next_seq", sa.BigInteger, nullable=False),  # the watermark: the record that is expected next
    sa.Column("chain", sa.LargeBinary(16), nullable=False),  # of the record before it
    sa.Column("archive_bytes", sa.BigInteger, nullable=False),  # what of the archive file counts
    sa.Column("ticked_at", sa.BigInteger),  # the node's own clock, at its latest TICK
    sa.Column("tick_seen_at", sa.BigInteger),  # control's clock, when that TICK was ingested
    sa.Column("closed_at", sa.BigInteger),  # at its CLOSE
    sa.Column("first_seen_at", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("next_seq >= 1 AND archive_bytes >= 0", name="watermark_in_range"),
)

usage_events = sa.Table(  # append-only
    "usage_events",
    metadata,
    sa.Column("event_id", name(64), primary_key=True),  # the request id, never used again
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("node_id", sa.String(64), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("admitted_at", sa.BigInteger, nullable=False),
    sa.Column("first_token_at", sa.BigInteger),
    sa.Column("ended_at", sa.BigInteger, nullable=False),
    sa.Column("period_at", sa.BigInteger, nullable=False),  # the start of the billing period in which it is booked
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    # Null stands for none of the classes that few requests use.
    *(sa.Column(billing_class, sa.BigInteger, nullable=billing_class in OTHER_CLASSES) for billing_class in QUANTITY_CLASSES),
    sa.Column("price_version", sa.String(64), nullable=False),
    sa.Column("service_tier", sa.String(16), nullable=False),
    sa.Column("outcome_policy", sa.Integer, nullable=False),
    sa.Column("deployment_id", sa.String(64)),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.String(64)),
    sa.Column("anomaly", sa.String(16)),  # what was wrong with the engine's report
    sa.Column("test", sa.Boolean, nullable=False, server_default=sa.false()),  # sent with a test key: not billed
    sa.Column("price_hash", sa.String(64), nullable=False, server_default=""),  # of the price and terms at admission, from the record
    sa.Column("choices", sa.Integer, nullable=False, server_default="1"),  # outputs asked for of each prompt
    # What each class costs: quantity billed (by the outcome policy) x unit price (of the price version), neither of which can change.
    *(sa.Column(f"{billing_class}_pico", sa.BigInteger, nullable=billing_class in OTHER_CLASSES) for billing_class in BillingClass),
    sa.Column("content_hash", sa.LargeBinary(32), nullable=False),
    one_of("outcome", Outcome),
    one_of("source", UsageSource),
    one_of("service_tier", ServiceTier),
    one_of("anomaly", Anomaly),
    sa.CheckConstraint(" AND ".join(f"{billing_class} >= 0" for billing_class in TEXT_CLASSES), name="quantities_not_negative"),
    sa.CheckConstraint(
        " AND ".join(f"{billing_class}_pico >= 0" for billing_class in BillingClass if billing_class not in OTHER_CLASSES),
        name="amounts_not_negative",
    ),
    postgresql_partition_by="RANGE (event_id)",
)
sa.Index(None, usage_events.c.organization_id, usage_events.c.period_at, usage_events.c.event_id)
_ANOMALOUS = usage_events.c.anomaly.is_not(None)  # few, and looked for among very many
sa.Index(None, usage_events.c.event_id, postgresql_where=_ANOMALOUS, sqlite_where=_ANOMALOUS)

removed_months = sa.Table(  # append-only; months of events that retention has dropped (see partitions)
    "removed_months",
    metadata,
    sa.Column("start_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("events", sa.BigInteger, nullable=False),
    sa.Column("removed_at", sa.BigInteger, nullable=False),
)

event_conflicts = sa.Table(  # append-only; the same id with another content: kept for a person, never money
    "event_conflicts",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.String(64), nullable=False),
    sa.Column("content_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
)

quarantined_records = sa.Table(  # append-only; what could not be rated, as it came
    "quarantined_records",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.String(64)),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    # What the record says, where it can be read: whose periods it keeps open, and from which instant on.
    sa.Column("organization_id", sa.String(64)),
    sa.Column("served_at", sa.BigInteger),
)
sa.Index(None, quarantined_records.c.event_id)

quarantine_resolutions = sa.Table(  # append-only; one for each record that was rated after all or written off
    "quarantine_resolutions",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(1024), nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),  # the operator's key
    sa.Column("resolved_at", sa.BigInteger, nullable=False),
    sa.Column("approver", sa.String(64)),  # the key of a second person who agreed to write it off
    sa.ForeignKeyConstraint(
        ["node_id", "epoch", "seq"], ["quarantined_records.node_id", "quarantined_records.epoch", "quarantined_records.seq"]
    ),
    sa.CheckConstraint(f"state IN ('{QuarantineState.RATED}', '{QuarantineState.WRITTEN_OFF}')", name="state_final"),
)

write_off_requests = sa.Table(  # append-only; a record is written off once two operators have asked for it, or one within the limit
    "write_off_requests",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("actor", sa.String(64), primary_key=True),  # the operator's key
    sa.Column("actor_origin", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(1024), nullable=False),
    sa.Column("amount_pico", sa.BigInteger),  # what the record would have cost; null where that cannot be known
    sa.Column("currency", sa.String(3)),
    sa.Column("requested_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(
        ["node_id", "epoch", "seq"], ["quarantined_records.node_id", "quarantined_records.epoch", "quarantined_records.seq"]
    ),
    sa.CheckConstraint("(amount_pico IS NULL) = (currency IS NULL)", name="amount_in_currency"),
)
sa.Index(None, write_off_requests.c.actor_origin, write_off_requests.c.requested_at)

# ---- Sums for reading -------------------------------------------------------------------------------------------------

ROLLUP_KEY = ("organization_id", "width_seconds", "start_at", "project_id", "key_id", "model", "endpoint")
PROJECT_ROLLUP_KEY = tuple(name for name in ROLLUP_KEY if name != "key_id")
ORGANIZATION_ROLLUP_KEY = tuple(name for name in PROJECT_ROLLUP_KEY if name != "project_id")
ROLLUP_TOTAL = ("total_units", "total_pico")
"""Columns of the total of all costs, in rollups of projects and organizations: one addition a row instead of one for each class."""

ROLLUP_QUANTITIES = ("requests", *map(str, QUANTITY_CLASSES))
ROLLUP_COSTS = tuple(f"{billing_class}_cost" for billing_class in BillingClass)
"""Each is two columns, `<name>_units` and `<name>_pico`: the sum is units x 10**12 + pico, with pico below 10**12, so that nine
million rows can be summed before a 64-bit integer ends."""


def _rollup_default(column: str) -> str | None:
    """Return the value of a column in rows from before its class existed; None for the classes that have always been."""
    return "0" if column.removesuffix("_cost") in OTHER_CLASSES else None


def _rollup_columns(key: Sequence[str]) -> Iterator[sa.Column[Any]]:
    """Yield the columns of a table of rollups with this key."""
    lengths = {"organization_id": 64, "project_id": 64, "key_id": 64, "model": 128, "endpoint": 64}
    for column in key:
        type_: Any = name(lengths[column]) if column in lengths else sa.Integer if column == "width_seconds" else sa.BigInteger
        yield sa.Column(column, type_, primary_key=True, autoincrement=False)
    if key != ROLLUP_KEY:
        yield from (sa.Column(total, sa.BigInteger, nullable=False) for total in ROLLUP_TOTAL)
    for quantity in ROLLUP_QUANTITIES:
        default = None if key == ROLLUP_KEY and quantity == BillingClass.PIXELS else _rollup_default(quantity)
        yield sa.Column(quantity, sa.BigInteger, nullable=False, server_default=default)  # see migration 0146
    for cost in ROLLUP_COSTS:
        for part in ("units", "pico"):
            yield sa.Column(f"{cost}_{part}", sa.BigInteger, nullable=False, server_default=_rollup_default(cost))


_FILLFACTOR = {"fillfactor": 45}
"""Space for the next version of every row of a page, so that index entries stay."""

usage_rollups = sa.Table(  # events by the instant at which they ended; tokens as billed
    "usage_rollups", metadata, *_rollup_columns(ROLLUP_KEY), postgresql_with=_FILLFACTOR
)

# Sums of the rollups of hours and days, in the order of their key on the disk: pages and programs read many of them at once.
project_rollups = sa.Table(
    "project_rollups", metadata, *_rollup_columns(PROJECT_ROLLUP_KEY), postgresql_with=_FILLFACTOR, sqlite_with_rowid=False
)
organization_rollups = sa.Table(
    "organization_rollups", metadata, *_rollup_columns(ORGANIZATION_ROLLUP_KEY), postgresql_with=_FILLFACTOR, sqlite_with_rowid=False
)

# ---- Ledger -----------------------------------------------------------------------------------------------------------

ledger_accounts = sa.Table(
    "ledger_accounts",
    metadata,
    sa.Column("id", name(256), primary_key=True),  # owner/kind/currency, see control.money.ledger
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(160), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.UniqueConstraint("owner", "kind", "currency"),
)

ledger_transactions = sa.Table(  # append-only
    "ledger_transactions",
    metadata,
    sa.Column("id", name(64), primary_key=True),  # derived from the cause: a replay cannot book twice
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("period_at", sa.BigInteger, nullable=False),  # the start of the billing period in which it is booked
    sa.Column("cause", sa.String(16), nullable=False),  # usage: events of an epoch; adjustment: a correction
    sa.Column("node_id", sa.String(64)),
    sa.Column("epoch", sa.BigInteger),
    sa.Column("first_seq", sa.BigInteger),
    sa.Column("last_seq", sa.BigInteger),
    sa.Column("events", sa.Integer, nullable=False),
    sa.Column("adjustment_id", sa.String(64), sa.ForeignKey("usage_adjustments.id"), unique=True),
    sa.Column("booked_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "period_at"], ["billing_periods.organization_id", "billing_periods.start_at"]),
    sa.CheckConstraint(
        "CASE cause WHEN 'usage' THEN adjustment_id IS NULL AND node_id IS NOT NULL AND epoch IS NOT NULL"
        " AND first_seq <= last_seq AND events > 0"
        " WHEN 'adjustment' THEN adjustment_id IS NOT NULL AND node_id IS NULL AND epoch IS NULL"
        " AND first_seq IS NULL AND last_seq IS NULL AND events = 0 ELSE 1 = 0 END",
        name="one_cause",
    ),
)

sa.Index(None, ledger_transactions.c.organization_id, ledger_transactions.c.period_at, ledger_transactions.c.id)

ledger_entries = sa.Table(  # append-only; debits above zero, credits below; zero in sum
    "ledger_entries",
    metadata,
    sa.Column("transaction_id", name(64), primary_key=True),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account_id", name(256), nullable=False),
    sa.Column("amount_pico", Amount, nullable=False),
)

balances = sa.Table(
    "balances",
    metadata,
    sa.Column("account_id", name(256), sa.ForeignKey("ledger_accounts.id"), primary_key=True),
    sa.Column("posted_pico", Amount, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),  # one more for each change
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    postgresql_with={"fillfactor": 50},
)

APPEND_ONLY = (
    usage_events,
    removed_months,
    event_conflicts,
    quarantined_records,
    quarantine_resolutions,
    write_off_requests,
    ledger_transactions,
    ledger_entries,
)
"""Tables whose rows, once written, stay as they are."""
