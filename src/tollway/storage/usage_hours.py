"""Usage events by the hour in which they were admitted, and by the billing period in which they are booked, for copies outside of the
database. The id of an event begins with the instant of its admission, so an hour is a range of the primary key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain import ids
from tollway.domain.billing_classes import QUANTITY_CLASSES, BillingClass
from tollway.domain.periods import Period
from tollway.storage.database import Transaction
from tollway.storage.schema import organizations
from tollway.storage.schema_money import usage_events

HOUR_US = 3_600_000_000

ROWS_READ = 10_000
"""Rows that one statement reads: 20 MiB in memory, and one group of rows in a file."""

TEXTS = (
    "event_id", "organization_id", "currency", "project_id", "key_id", "model", "endpoint", "service_tier", "outcome", "source",
    "price_version", "deployment_id", "error", "anomaly",
)  # fmt: skip
FLAGS = ("stream", "test")
INSTANTS = ("admitted_at", "first_token_at", "ended_at", "period_at")
"""Columns of instants, UTC microseconds."""

NUMBERS = ("attempts", "choices", *QUANTITY_CLASSES, *(f"{each}_pico" for each in BillingClass))
"""Columns of whole numbers: quantities by class, and amounts by class in pico-currency. Null stands for none."""

COLUMNS = (*TEXTS, *FLAGS, *INSTANTS, *NUMBERS)
_E = usage_events.c


def count_events(tx: Transaction, hour_at: int) -> int:
    """Return how many events were admitted in the hour that begins at `hour_at`."""
    return int(tx.connection.execute(sa.select(sa.func.count()).select_from(usage_events).where(*_hour(hour_at))).scalar_one())


def iterate_events(tx: Transaction, hour_at: int) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the events of an hour with COLUMNS, ROWS_READ at a time, by id."""
    return _iterate(tx, _hour(hour_at))


def iterate_period_events(tx: Transaction, period: Period) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the events that are booked in a period with COLUMNS, ROWS_READ at a time, by id."""
    return _iterate(tx, (_E.organization_id == period.organization_id, _E.period_at == period.start_at))


def _iterate(tx: Transaction, condition: Sequence[sa.ColumnElement[bool]]) -> Iterator[list[Mapping[str, Any]]]:
    joined = usage_events.join(organizations, organizations.c.id == _E.organization_id)
    columns = [organizations.c.currency if name == "currency" else _E[name] for name in COLUMNS]
    after = ""
    while True:
        query = sa.select(*columns).select_from(joined).where(*condition, _E.event_id > after)
        rows = tx.connection.execute(query.order_by(_E.event_id).limit(ROWS_READ)).mappings().all()
        if rows:
            yield [dict(row) for row in rows]
            after = rows[-1]["event_id"]
        if len(rows) < ROWS_READ:
            return


def _hour(hour_at: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (_E.event_id >= ids.first_id(ids.REQUEST, hour_at), _E.event_id < ids.first_id(ids.REQUEST, hour_at + HOUR_US))
