"""History in sums, a page of events at a time: what a preview of prices reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tollway.domain.billing_classes import BILLING_CLASSES, QUANTITY_CLASSES, Direction, Quantities
from tollway.domain.ids import REQUEST, first_id, instant_of
from tollway.domain.money import PICO
from tollway.domain.preview import UsageSum
from tollway.domain.usage import Outcome, ServiceTier
from tollway.storage.database import PlatformTx
from tollway.storage.schema_money import usage_events
from tollway.storage.usage_events import AMOUNT_COLUMNS

PAGE_EVENTS = 50_000
"""Summed by one statement: a fraction of a second on either engine, and no sum of theirs comes near the end of 64 bits."""

COMMON = ("organization_id", "model", "endpoint", "service_tier", "outcome_policy", "outcome", "delivered", "span")
TOKENS = tuple(map(str, QUANTITY_CLASSES))
OUTPUT = tuple(str(row.billing_class) for row in BILLING_CLASSES if row.direction is Direction.OUTPUT)


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Sums of a page of events; `next_id` is where the next one begins, None if there is none."""

    sums: list[UsageSum]
    next_id: str | None


def first_event_id(at: int) -> str:
    """Return where events admitted at an instant or later begin: their ids count time."""
    return first_id(REQUEST, at)


def find_instant(event_id: str) -> int | None:
    """Return when an event of this id was admitted, to the millisecond; None if the id is none that a gateway makes."""
    return instant_of(REQUEST, event_id)


def sum_page(
    tx: PlatformTx, *, from_id: str, from_at: int, to_at: int, changes: Sequence[int], page_events: int = PAGE_EVENTS
) -> UsagePage:
    """Sum up to `page_events` events from `from_id` on that were admitted in [from_at, to_at), apart by the spans into which `changes`
    (ordered, in between) cut it. Those of test keys are left out: no price changes what they cost."""
    events = usage_events.c
    end_id = first_event_id(to_at + 999)  # ids count whole milliseconds
    in_range = sa.and_(events.event_id >= from_id, events.event_id < end_id)
    following = sa.select(events.event_id).where(in_range).order_by(events.event_id).offset(page_events).limit(1)
    next_id: str | None = tx.connection.execute(following).scalar_one_or_none()
    page = (
        sa.select(
            *(events[name] for name in ("organization_id", "model", "endpoint", "service_tier", "outcome_policy", "outcome")),
            *(sa.func.coalesce(events[name], 0).label(name) for name in (*TOKENS, *AMOUNT_COLUMNS)),
            sa.case((sum((sa.func.coalesce(events[name], 0) for name in OUTPUT), sa.literal(0)) > 0, 1), else_=0).label("delivered"),
            _span(changes).label("span"),
        )
        .where(in_range, events.admitted_at >= from_at, events.admitted_at < to_at, ~events.test)
        .where(sa.true() if next_id is None else events.event_id < next_id)
        .subquery()
    )
    amounts = [page.c[name] for name in AMOUNT_COLUMNS]
    query = sa.select(
        *(page.c[name] for name in COMMON),
        sa.func.count().label("events"),
        *(sa.func.sum(page.c[name]).label(name) for name in TOKENS),
        # An amount can fill 64 bits, a sum of whole units and one of the rest cannot.
        *(sa.func.sum(amount // PICO).label(f"units_{at}") for at, amount in enumerate(amounts)),
        *(sa.func.sum(amount % PICO).label(f"rest_{at}") for at, amount in enumerate(amounts)),
    ).group_by(*(page.c[name] for name in COMMON))
    starts = (from_at, *changes)
    return UsagePage([_sum(row, starts, len(amounts)) for row in tx.connection.execute(query)], next_id)


def _span(changes: Sequence[int]) -> sa.ColumnElement[int]:
    """Return which of the spans an event was admitted in, counted from 0."""
    if not changes:
        return sa.literal_column("0", sa.Integer)
    return sa.case(*((usage_events.c.admitted_at < change, at) for at, change in enumerate(changes)), else_=len(changes))


def _sum(row: Any, starts: Sequence[int], classes: int) -> UsageSum:
    cost_pico = sum(int(getattr(row, f"units_{at}")) * PICO + int(getattr(row, f"rest_{at}")) for at in range(classes))
    return UsageSum(
        organization_id=row.organization_id,
        model=row.model,
        endpoint=row.endpoint,
        tier=ServiceTier(row.service_tier),
        at=starts[row.span],
        outcome_policy=row.outcome_policy,
        outcome=Outcome(row.outcome),
        delivered=bool(row.delivered),
        events=row.events,
        used=Quantities.from_values((*(int(getattr(row, name)) for name in TOKENS), 0)),
        cost_pico=cost_pico,
    )
