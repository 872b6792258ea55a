"""The outbox: events, stored in the transaction of the change, and numbered afterwards.

`append` takes no lock that others wait for. Numbers are given by a job, after the commit, to events of each organization without a gap:
a number that a transaction took before its commit could become visible behind a later one, and whoever follows the numbers would miss it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain import ids
from tollway.domain.events import Event, EventType
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import api_keys, organizations
from tollway.storage.schema_credits import credit_grants
from tollway.storage.schema_events import event_counters, event_searches, outbox_events

PLATFORM = "platform"
"""Owner of the platform's own events in `event_counters`."""

_C = outbox_events.c


def append(tx: Transaction, events: Iterable[Event]) -> None:
    """Store events. One that was stored before is left as it is."""
    rows = [
        {
            "id": each.id,
            "organization_id": each.organization_id,
            "type": each.type,
            "created_at": each.created_at,
            "data": json.dumps(each.data, sort_keys=True),
        }
        for each in events
    ]
    if rows:
        tx.connection.execute(tx.insert(outbox_events).on_conflict_do_nothing(), rows)


def list_known_organizations(tx: PlatformTx, organization_ids: Iterable[str]) -> set[str]:
    """Return those of some organizations that exist."""
    query = sa.select(organizations.c.id).where(organizations.c.id.in_(sorted(organization_ids)))
    return set(tx.connection.execute(query).scalars())


def number(tx: PlatformTx, count_max: int) -> list[Event]:
    """Give their numbers to the oldest events without one, and return these. Whoever else numbers waits until the transaction ends."""
    unnumbered = sa.select(outbox_events).where(_C.sequence.is_(None)).order_by(_C.id).limit(count_max)
    if tx.connection.execute(unnumbered.limit(1)).first() is None:
        return []
    _lock_counter(tx, "")
    rows = tx.connection.execute(unnumbered).all()
    numbered = []
    for owner in sorted({_owner(row) for row in rows}):
        last = _lock_counter(tx, owner)
        for row in rows:
            if _owner(row) == owner:
                last += 1
                tx.connection.execute(outbox_events.update().where(_C.id == row.id).values(sequence=last))
                numbered.append(_event(row, last))
        tx.connection.execute(event_counters.update().where(event_counters.c.owner == owner).values(sequence=last))
    return numbered


def _owner(row: Any) -> str:
    return row.organization_id or PLATFORM


def _lock_counter(tx: PlatformTx, owner: str) -> int:
    tx.connection.execute(tx.insert(event_counters).values(owner=owner, sequence=0).on_conflict_do_nothing())
    query = sa.select(event_counters.c.sequence).where(event_counters.c.owner == owner).with_for_update()
    return int(tx.connection.execute(query).scalar_one())


def has_unnumbered(tx: PlatformTx) -> bool:
    """Return whether there are events without a number."""
    return tx.connection.execute(sa.select(_C.id).where(_C.sequence.is_(None)).limit(1)).first() is not None


def find_event(tx: Transaction, event_id: str) -> Event | None:
    """Return an event of whatever organization that the transaction may see."""
    row = tx.connection.execute(sa.select(outbox_events).where(_C.id == event_id)).one_or_none()
    return None if row is None else _event(row, row.sequence)


class EventFilter(NamedTuple):
    """Conditions on events; an empty tuple or None admits all. Instants are UTC microseconds, `until` is exclusive."""

    types: Sequence[EventType] = ()
    since: int | None = None
    until: int | None = None


def list_own_events(tx: TenantTx, window: PageWindow, wanted: EventFilter) -> Page[Event]:
    """Return events of the organization."""
    return fetch_page(tx, select_events(wanted).where(_C.organization_id == tx.organization_id), _C.id, window, _read)


def list_events(tx: PlatformTx, window: PageWindow, wanted: EventFilter, *, organization_id: str | None = None) -> Page[Event]:
    """Return events of all organizations and of the platform, or those of one organization."""
    query = select_events(wanted)
    if organization_id is not None:
        query = query.where(_C.organization_id == organization_id)
    return fetch_page(tx, query, _C.id, window, _read)


def list_following(tx: TenantTx, after_sequence: int, count_max: int, types: Sequence[EventType]) -> list[Event]:
    """Return events of the organization with greater numbers, in order."""
    query = select_events(EventFilter(types)).where(_C.organization_id == tx.organization_id, _C.sequence > after_sequence)
    return [_read(row) for row in tx.connection.execute(query.order_by(_C.sequence).limit(count_max))]


def list_following_of(tx: PlatformTx, owner: str, after_sequence: int, count_max: int) -> list[Event]:
    """Return events of an organization, or of the platform (PLATFORM), with greater numbers, in order."""
    own = _C.organization_id.is_(None) if owner == PLATFORM else _C.organization_id == owner
    query = sa.select(outbox_events).where(own, _C.sequence > after_sequence)
    return [_read(row) for row in tx.connection.execute(query.order_by(_C.sequence).limit(count_max))]


def remove_before(tx: PlatformTx, created_before: int, count_max: int) -> int:
    """Remove old events with their deliveries. Return how many."""
    before = _C.id < ids.first_id(ids.EVENT, created_before)  # an index has the ids, which begin with the instant
    old = sa.select(_C.id).where(before, _C.sequence.is_not(None)).order_by(_C.id).limit(count_max)
    return tx.connection.execute(outbox_events.delete().where(_C.id.in_(old))).rowcount


def select_events(wanted: EventFilter, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return the query of events that meet conditions: of columns, or of all of them if none is named."""
    query = sa.select(*(columns or outbox_events.c))
    if wanted.types:
        query = query.where(_C.type.in_([str(each) for each in wanted.types]))
    if wanted.since is not None:
        query = query.where(_C.created_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(_C.created_at < wanted.until)
    return query


def _read(row: Any) -> Event:
    return _event(row, row.sequence)


def _event(row: Any, sequence: int | None) -> Event:
    return Event(
        id=row.id,
        organization_id=row.organization_id,
        type=EventType(row.type),
        created_at=row.created_at,
        data=json.loads(row.data),
        sequence=sequence,
    )


# ---- What happens by time alone -----------------------------------------------------------------------------------------


class Due(NamedTuple):
    """A thing that happens at an instant. `project_id`: of a key."""

    id: str
    organization_id: str
    at: int
    project_id: str | None = None


def search(tx: PlatformTx, type: EventType, until: int, find: Callable[[PlatformTx, int, int], list[Due]]) -> list[Due]:
    """Return what `find` finds from where the search before ended up to the instant `until`, exclusive; nothing at the first search. The
    search is stored with the transaction, so each thing is found once."""
    column = event_searches.c
    first = tx.insert(event_searches).values(type=type, searched_until=until).on_conflict_do_nothing().returning(column.type)
    if tx.connection.execute(first).first() is not None:
        return []
    since = int(tx.connection.execute(sa.select(column.searched_until).where(column.type == type).with_for_update()).scalar_one())
    if since >= until:
        return []
    tx.connection.execute(event_searches.update().where(column.type == type).values(searched_until=until))
    return find(tx, since, until)


def find_expiring_keys(tx: PlatformTx, since: int, until: int) -> list[Due]:
    """Return keys of organizations that expire in that time and were not revoked."""
    key = api_keys.c
    query = sa.select(key.id, key.organization_id, key.expires_at, key.project_id).where(
        key.organization_id.is_not(None), key.revoked_at.is_(None), key.expires_at >= since, key.expires_at < until
    )
    return [Due(*row) for row in tx.connection.execute(query.order_by(key.id))]


def find_expired_grants(tx: PlatformTx, since: int, until: int) -> list[Due]:
    """Return credit grants that expired in that time and were not voided before."""
    grant = credit_grants.c
    query = sa.select(grant.id, grant.organization_id, grant.expires_at).where(
        grant.voided_at.is_(None), grant.expires_at >= since, grant.expires_at < until
    )
    return [Due(*row) for row in tx.connection.execute(query.order_by(grant.id))]
