"""Billing periods at rest: who may book in them, how they are closed, and the blocks of their Merkle trees.

Locks. Whoever books for organizations shares their locks (`open_calendars`); whoever closes a period, applies a correction or changes
the zone takes one alone (`lock_organization`). So a period cannot be frozen between the moment in which a collector looks at it and
the one in which it commits. They are advisory locks of PostgreSQL, which are fair; on SQLite there is one writer at a time anyway.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tollway.domain.events import EventType, new_event
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Bounds, Calendar, Closing, Period, PeriodClosure, PeriodState, period_id
from tollway.storage import outbox
from tollway.storage.bulk_statements import any_of
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations
from tollway.storage.schema_periods import billing_periods, period_blocks


@dataclass(frozen=True, slots=True)
class Block:
    """A subtree of a period's Merkle tree: consecutive events, the root over them, and what they come to by billing class."""

    number: int
    events: int
    first_event_id: str
    last_event_id: str
    hash: bytes
    amounts: Mapping[str, int]


# ---- Booking ----------------------------------------------------------------------------------------------------------


LOCK_CLASS = 0x70657264
LOCK_BUCKETS = 64
"""Organizations share so many locks, so that a batch of thousands of them stays within PostgreSQL's table of locks."""


def open_calendars(tx: PlatformTx, organization_ids: Iterable[str]) -> dict[str, Calendar]:
    """The calendar of each organization that exists, of which no period can be frozen until this transaction ends."""
    wanted = sorted(set(organization_ids))
    _lock(tx, {_bucket(organization_id) for organization_id in wanted}, sa.func.pg_advisory_xact_lock_shared)
    named = sa.select(organizations.c.id, organizations.c.time_zone).where(any_of(tx, organizations.c.id, wanted))
    calendars = {row.id: Calendar(row.id, row.time_zone) for row in tx.connection.execute(named)}
    is_frozen = billing_periods.c.state != PeriodState.OPEN
    frozen = sa.select(billing_periods.c.organization_id, sa.func.max(billing_periods.c.end_at).label("until")).where(
        any_of(tx, billing_periods.c.organization_id, wanted), is_frozen
    )
    for row in tx.connection.execute(frozen.group_by(billing_periods.c.organization_id)):
        calendars[row.organization_id].frozen_until = row.until
    taking = sa.select(billing_periods).where(any_of(tx, billing_periods.c.organization_id, wanted), ~is_frozen)
    for row in tx.connection.execute(taking.order_by(billing_periods.c.start_at)):
        calendars[row.organization_id].open.append(Bounds(row.start_at, row.end_at))
    return calendars


def insert_cut(tx: PlatformTx, calendars: Iterable[Calendar], now: int) -> None:
    """Store the periods that calendars have cut. One that another transaction stores at this moment is the same one."""
    rows = [
        {
            "id": period_id(calendar.organization_id, bounds.start_at),
            "organization_id": calendar.organization_id,
            "start_at": bounds.start_at,
            "end_at": bounds.end_at,
            "time_zone": calendar.time_zone,
            "state": PeriodState.OPEN,
            "created_at": now,
        }
        for calendar in sorted(calendars, key=lambda calendar: calendar.organization_id)
        for bounds in sorted(calendar.new)
    ]
    if rows:
        tx.connection.execute(tx.insert(billing_periods).on_conflict_do_nothing(), rows)


def lock_organization(tx: PlatformTx | TenantTx, organization_id: str) -> None:
    """Have an organization's periods alone until this transaction ends: nobody books for it meanwhile."""
    lock_organizations(tx, [organization_id])


def lock_organizations(tx: PlatformTx | TenantTx, organization_ids: Iterable[str]) -> None:
    """Have the periods of several organizations alone, as `lock_organization` does, in an order that everyone follows."""
    _lock(tx, {_bucket(each) for each in organization_ids}, sa.func.pg_advisory_xact_lock)


def _bucket(organization_id: str) -> int:
    return zlib.crc32(organization_id.encode()) % LOCK_BUCKETS


def _lock(tx: Transaction, buckets: set[int], take: Callable[..., Any]) -> None:
    # Not the organizations' rows: a shared lock writes to each row, and an exclusive locker may starve among many sharers.
    if tx.connection.dialect.name == "postgresql" and buckets:
        ordered = sa.func.unnest(sa.bindparam("buckets", sorted(buckets), type_=postgresql.ARRAY(sa.Integer))).column_valued("bucket")
        tx.connection.execute(sa.select(take(LOCK_CLASS, ordered)))


# ---- Closing ----------------------------------------------------------------------------------------------------------


def freeze(tx: PlatformTx, period: Period, closing: Closing) -> None:
    """Let an open period take no bookings any more. The organization must be locked."""
    tx.connection.execute(
        billing_periods.update()
        .where(billing_periods.c.id == period.id)
        .values(
            state=PeriodState.CLOSING,
            frozen_at=closing.frozen_at,
            closed_by=closing.closed_by,
            watermark_digest=closing.watermark_digest,
            report=json.dumps(closing.report, sort_keys=True),
        )
    )


def close(tx: PlatformTx, period: Period, closed: PeriodClosure) -> None:
    """Store the digests of a frozen period permanently. A second call with the same result changes nothing."""
    amounts: dict[str, Any] = {"usage": _to_text(closed.amounts), "corrections": str(closed.adjustments_pico)}
    if closed.contracts_digest is not None:
        amounts["contracts"] = str(closed.contracts_pico)
    stored = tx.connection.execute(
        billing_periods.update()
        .where(billing_periods.c.id == period.id, billing_periods.c.state == PeriodState.CLOSING)
        .values(
            state=PeriodState.CLOSED,
            closed_at=closed.closed_at,
            events=closed.events,
            merkle_root=closed.merkle_root,
            adjustments=closed.adjustments,
            adjustments_digest=closed.adjustments_digest,
            amounts=json.dumps(amounts, sort_keys=True),
            conditions_digest=closed.conditions_digest,
            credits_digest=closed.credits_digest,
            contracts_digest=closed.contracts_digest,
            period_hash=closed.period_hash,
        )
    )
    if stored.rowcount:
        closing = new_event(EventType.BILLING_PERIOD_CLOSED, period.organization_id, at=closed.closed_at, data={"id": period.id})
        outbox.append(tx, [closing])


def insert_block(tx: PlatformTx, period: Period, block: Block) -> None:
    """Store the next block; another closer may have stored the same one already."""
    row = {
        "period_id": period.id,
        "number": block.number,
        "events": block.events,
        "first_event_id": block.first_event_id,
        "last_event_id": block.last_event_id,
        "hash": block.hash,
        "amounts": json.dumps(_to_text(block.amounts), sort_keys=True),
    }
    tx.connection.execute(tx.insert(period_blocks).values(row).on_conflict_do_nothing())


def find_last_block(tx: Transaction, period_id: str) -> Block | None:
    """The last block of a period that was stored; None if none was."""
    query = sa.select(period_blocks).where(period_blocks.c.period_id == period_id).order_by(period_blocks.c.number.desc()).limit(1)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _block(row)


def find_block_of(tx: Transaction, period_id: str, event_id: str) -> Block | None:
    """The block in which an event's leaf would stand; None if it stands before or behind all of them, or there is none."""
    query = sa.select(period_blocks).where(
        period_blocks.c.period_id == period_id,
        period_blocks.c.first_event_id <= event_id,
        period_blocks.c.last_event_id >= event_id,
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _block(row)


def iterate_blocks(tx: Transaction, period_id: str) -> Iterator[Block]:
    """All blocks of a period, in order."""
    query = sa.select(period_blocks).where(period_blocks.c.period_id == period_id).order_by(period_blocks.c.number)
    for row in tx.connection.execute(query.execution_options(yield_per=1000)):
        yield _block(row)


# ---- Reading ----------------------------------------------------------------------------------------------------------

_ALL = sa.select(billing_periods, organizations.c.currency).join_from(billing_periods, organizations)


def find_period(tx: PlatformTx, period_id: str) -> Period | None:
    """A period of whatever organization."""
    row = tx.connection.execute(_ALL.where(billing_periods.c.id == period_id)).one_or_none()
    return None if row is None else _period(row)


def find_own_period(tx: TenantTx, period_id: str) -> Period | None:
    """A period of the organization; None for another's."""
    query = _ALL.where(billing_periods.c.id == period_id, billing_periods.c.organization_id == tx.organization_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _period(row)


def find_period_at(tx: Transaction, organization_id: str, start_at: int) -> Period | None:
    """The period of an organization that begins at `start_at`."""
    query = _ALL.where(billing_periods.c.organization_id == organization_id, billing_periods.c.start_at == start_at)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _period(row)


def find_period_with(tx: Transaction, organization_id: str, at: int) -> Period | None:
    """The period of an organization that contains instant `at`, if one was cut there."""
    query = _ALL.where(
        billing_periods.c.organization_id == organization_id, billing_periods.c.start_at <= at, billing_periods.c.end_at > at
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _period(row)


def find_unfinished_before(tx: PlatformTx, period: Period) -> Period | None:
    """The earliest period of the same organization, before this one, that is not closed."""
    query = _ALL.where(
        billing_periods.c.organization_id == period.organization_id,
        billing_periods.c.start_at < period.start_at,
        billing_periods.c.state != PeriodState.CLOSED,
    )
    row = tx.connection.execute(query.order_by(billing_periods.c.start_at).limit(1)).one_or_none()
    return None if row is None else _period(row)


def list_closed_since(tx: PlatformTx, since: int, *, after: tuple[int, str], limit: int) -> list[Period]:
    """Return periods that were closed at an instant or later, in the order in which they were, then by id; those behind one."""
    table = billing_periods.c
    query = _ALL.where(table.state == PeriodState.CLOSED, table.closed_at >= since)
    query = query.where(sa.tuple_(table.closed_at, table.id) > sa.tuple_(*map(sa.literal, after)))
    return [_period(row) for row in tx.connection.execute(query.order_by(table.closed_at, table.id).limit(limit))]


def list_unclosed(tx: PlatformTx, ended_before: int, *, after: str, limit: int) -> list[Period]:
    """Periods of everyone that had ended at that instant and are not closed, by id and so by start; those behind the id `after`."""
    query = _ALL.where(
        billing_periods.c.state != PeriodState.CLOSED, billing_periods.c.end_at <= ended_before, billing_periods.c.id > after
    )
    return [_period(row) for row in tx.connection.execute(query.order_by(billing_periods.c.id).limit(limit))]


def count_unclosed(tx: PlatformTx, ended_before: int) -> int:
    """Count the periods of all organizations that had ended at that instant and are not closed."""
    query = sa.select(sa.func.count()).where(billing_periods.c.state != PeriodState.CLOSED, billing_periods.c.end_at <= ended_before)
    count: int = tx.connection.execute(query).scalar_one()
    return count


def list_periods(tx: PlatformTx, window: PageWindow, *, organization_id: str | None, state: PeriodState | None) -> Page[Period]:
    """Periods in order of their start, of everyone or of one organization."""
    query = _ALL
    if organization_id is not None:
        query = query.where(billing_periods.c.organization_id == organization_id)
    if state is not None:
        query = query.where(billing_periods.c.state == state)
    return fetch_page(tx, query, billing_periods.c.id, window, _period)


def list_own_periods(tx: TenantTx, window: PageWindow) -> Page[Period]:
    """The organization's periods in order of their start."""
    query = _ALL.where(billing_periods.c.organization_id == tx.organization_id)
    return fetch_page(tx, query, billing_periods.c.id, window, _period)


def list_own_starts(tx: TenantTx, *, ended_after: int) -> list[int]:
    """Return the starts of the organization's periods that end after an instant, in order."""
    table = billing_periods.c
    query = sa.select(table.start_at).where(table.organization_id == tx.organization_id, table.end_at > ended_after)
    return list(tx.connection.execute(query.order_by(table.start_at)).scalars())


def list_starts_after(tx: PlatformTx, period: Period) -> list[int]:
    """Return the starts of the periods of the same organization after this one, in order."""
    table = billing_periods.c
    query = sa.select(table.start_at).where(table.organization_id == period.organization_id, table.start_at > period.start_at)
    return list(tx.connection.execute(query.order_by(table.start_at)).scalars())


def count_early_hashes(tx: PlatformTx) -> int:
    """Return the number of periods that have a hash or another digest of what they were closed with and are not closed: for
    verification."""
    column = billing_periods.c
    digests = (column.period_hash, column.conditions_digest, column.credits_digest, column.contracts_digest)
    has_any = sa.or_(*(each.is_not(None) for each in digests))
    query = sa.select(sa.func.count()).where(billing_periods.c.state != PeriodState.CLOSED, has_any)
    return tx.connection.execute(query).scalar_one()


def iterate_periods(tx: PlatformTx) -> Iterator[Period]:
    """Every period, by organization and start: for verification."""
    query = _ALL.order_by(billing_periods.c.organization_id, billing_periods.c.start_at)
    for row in tx.connection.execute(query.execution_options(yield_per=1000)):
        yield _period(row)


def _period(row: Any) -> Period:
    closing = closed = None
    if row.frozen_at is not None:
        closing = Closing(row.frozen_at, row.closed_by, row.watermark_digest, json.loads(row.report))
    if row.closed_at is not None:
        amounts = json.loads(row.amounts)
        closed = PeriodClosure(
            closed_at=row.closed_at,
            events=row.events,
            merkle_root=row.merkle_root,
            adjustments=row.adjustments,
            adjustments_digest=row.adjustments_digest,
            adjustments_pico=int(amounts.get("corrections", 0)),
            amounts=_from_text(amounts.get("usage", {})),
            conditions_digest=row.conditions_digest,
            credits_digest=row.credits_digest,
            contracts_pico=int(amounts.get("contracts", 0)),
            contracts_digest=row.contracts_digest,
            period_hash=row.period_hash,
        )
    return Period(
        id=row.id,
        organization_id=row.organization_id,
        currency=row.currency,
        start_at=row.start_at,
        end_at=row.end_at,
        time_zone=row.time_zone,
        state=PeriodState(row.state),
        closing=closing,
        closed=closed,
    )


def _block(row: Any) -> Block:
    return Block(row.number, row.events, row.first_event_id, row.last_event_id, row.hash, _from_text(json.loads(row.amounts)))


def _to_text(amounts: Mapping[str, int]) -> dict[str, str]:
    """JSON holds no integers beyond 53 bits that every reader takes for what they are."""
    return {str(name): str(pico) for name, pico in amounts.items()}


def _from_text(amounts: Mapping[str, str]) -> dict[str, int]:
    return {name: int(pico) for name, pico in amounts.items()}
