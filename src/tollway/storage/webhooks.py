"""Webhooks at rest: endpoints, and the deliveries of events to them. A process takes an endpoint by pausing it until an instant at which
it will have ended; if the process dies, the deliveries are due again at that instant."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.events import Event, EventType
from tollway.domain.pages import Page, PageWindow
from tollway.domain.webhooks import Delivery, DeliveryState, DisabledReason, WebhookEndpoint
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.outbox import EventFilter, select_events
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations
from tollway.storage.schema_events import outbox_events, webhook_deliveries, webhook_endpoints

_E = webhook_endpoints.c
_D = webhook_deliveries.c

REPLAY_ROWS = 500
"""Events that one statement of a replay reads."""


# ---- Endpoints ----------------------------------------------------------------------------------------------------------


def insert_endpoint(tx: Transaction, endpoint: WebhookEndpoint) -> None:
    """Store a new endpoint."""
    tx.connection.execute(webhook_endpoints.insert().values(_columns(endpoint)))


def put_endpoint(tx: Transaction, endpoint: WebhookEndpoint) -> None:
    """Replace a stored endpoint, which must be locked."""
    tx.connection.execute(webhook_endpoints.update().where(_E.id == endpoint.id).values(_columns(endpoint)))


def find_endpoint(tx: Transaction, organization_id: str | None, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint | None:
    """Return an endpoint of an organization, or of the operators (None). `lock`: until the transaction ends."""
    query = sa.select(webhook_endpoints).where(_E.organization_id.is_not_distinct_from(organization_id), _E.id == endpoint_id)
    row = tx.connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else _endpoint(row)


def share_endpoint(tx: Transaction, organization_id: str | None, endpoint_id: str) -> WebhookEndpoint | None:
    """Return an endpoint of an organization, or of the operators (None), and let nobody change it until the transaction ends."""
    query = sa.select(webhook_endpoints).where(_E.organization_id.is_not_distinct_from(organization_id), _E.id == endpoint_id)
    row = tx.connection.execute(query.with_for_update(read=True)).one_or_none()
    return None if row is None else _endpoint(row)


def lock_owner(tx: Transaction, organization_id: str | None) -> None:
    """Let those who add endpoints of an organization take turns until the transaction ends. Does nothing for the operators (None)."""
    own = sa.select(organizations.c.id).where(organizations.c.id == organization_id)
    tx.connection.execute(own.with_for_update(key_share=True)).all()


def list_endpoints(tx: Transaction, organization_id: str | None, window: PageWindow) -> Page[WebhookEndpoint]:
    """Return the endpoints of an organization, or of the operators (None)."""
    query = sa.select(webhook_endpoints).where(_E.organization_id.is_not_distinct_from(organization_id))
    return fetch_page(tx, query, _E.id, window, _endpoint)


def delete_endpoint(tx: Transaction, endpoint_id: str) -> None:
    """Delete an endpoint with its deliveries."""
    tx.connection.execute(webhook_endpoints.delete().where(_E.id == endpoint_id))


def list_receivers(tx: PlatformTx, organization_ids: Collection[str]) -> list[WebhookEndpoint]:
    """Return the endpoints of these organizations and of the operators that are not disabled. Until the transaction ends they are neither
    changed nor deleted."""
    own = sa.or_(_E.organization_id.is_(None), _E.organization_id.in_(sorted(organization_ids)))
    query = sa.select(webhook_endpoints).where(own, _E.disabled_at.is_(None)).order_by(_E.id)
    return [_endpoint(row) for row in tx.connection.execute(query.with_for_update(read=True))]


def lock_endpoint(tx: PlatformTx, endpoint_id: str) -> WebhookEndpoint | None:
    """Return whosever endpoint under a lock that lasts to the end of the transaction."""
    row = tx.connection.execute(sa.select(webhook_endpoints).where(_E.id == endpoint_id).with_for_update()).one_or_none()
    return None if row is None else _endpoint(row)


def list_untold(tx: PlatformTx, count_max: int) -> list[WebhookEndpoint]:
    """Return endpoints of organizations that were disabled, and whose owners were not written to yet."""
    query = sa.select(webhook_endpoints).where(_E.disabled_at.is_not(None), _E.told_at.is_(None), _E.organization_id.is_not(None))
    return [_endpoint(row) for row in tx.connection.execute(query.order_by(_E.id).limit(count_max))]


def put_told(tx: PlatformTx, endpoint_id: str, now: int) -> None:
    """Store that the owners were written to."""
    tx.connection.execute(webhook_endpoints.update().where(_E.id == endpoint_id).values(told_at=now))


def _columns(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return msgspec.structs.asdict(endpoint) | {"event_types": json.dumps([str(each) for each in endpoint.event_types])}


def _endpoint(row: Any) -> WebhookEndpoint:
    fields = {name: getattr(row, name) for name in WebhookEndpoint.__struct_fields__}
    fields["event_types"] = tuple(EventType(each) for each in json.loads(row.event_types))
    fields["sealed"] = bytes(row.sealed)
    fields["sealed_before"] = None if row.sealed_before is None else bytes(row.sealed_before)
    fields["disabled_reason"] = None if row.disabled_reason is None else DisabledReason(row.disabled_reason)
    return WebhookEndpoint(**fields)


# ---- Deliveries ---------------------------------------------------------------------------------------------------------


def insert_deliveries(tx: Transaction, pairs: Iterable[tuple[WebhookEndpoint, str]], now: int) -> None:
    """Store that events (by id) are to be delivered to endpoints. A delivery that is stored already begins anew."""
    rows = [
        {
            "endpoint_id": endpoint.id,
            "event_id": event_id,
            "organization_id": endpoint.organization_id,
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "since_at": now,
            "next_at": now,
        }
        for endpoint, event_id in pairs
    ]
    if rows:
        anew = {"state": DeliveryState.PENDING, "attempts": 0, "since_at": now, "next_at": now}
        insert = tx.insert(webhook_deliveries)
        tx.connection.execute(insert.on_conflict_do_update(index_elements=["endpoint_id", "event_id"], set_=anew), rows)


def list_event_ids(tx: Transaction, endpoint: WebhookEndpoint, wanted: EventFilter, after: str) -> list[str]:
    """Return ids of events in a time that an endpoint asks for, after an id, in order: REPLAY_ROWS at most."""
    event = outbox_events.c
    query = select_events(wanted, event.id).where(event.id > after, event.sequence.is_not(None))
    if endpoint.organization_id is not None:
        query = query.where(event.organization_id == endpoint.organization_id)
    return list(tx.connection.execute(query.order_by(event.id).limit(REPLAY_ROWS)).scalars())


def list_deliveries(tx: Transaction, endpoint_id: str, window: PageWindow, state: DeliveryState | None) -> Page[Delivery]:
    """Return the deliveries to an endpoint in order of their events."""
    query = sa.select(webhook_deliveries).where(_D.endpoint_id == endpoint_id)
    if state is not None:
        query = query.where(_D.state == state)
    return fetch_page(tx, query, _D.event_id, window, _delivery)


def list_due_endpoints(
    tx: PlatformTx, now: int, without: Collection[str], busy: Mapping[str | None, int], owner_max: int, count_max: int
) -> list[WebhookEndpoint]:
    """Return endpoints that have a delivery to be tried now, those that wait longest first, without some by id: of each owner `owner_max`
    at most, less those that `busy` counts (None: the operators)."""
    due_at = sa.select(sa.func.min(_D.next_at)).where(_D.endpoint_id == _E.id, _D.state == DeliveryState.PENDING).scalar_subquery()
    due = sa.select(webhook_endpoints, due_at.label("due_at")).where(_E.disabled_at.is_(None), _E.paused_until <= now, due_at <= now)
    if without:
        due = due.where(_E.id.not_in(sorted(without)))
    found = due.subquery()
    place = sa.func.row_number().over(partition_by=found.c.organization_id, order_by=(found.c.due_at, found.c.id))
    ranked = sa.select(found, place.label("place")).subquery()
    own = [(ranked.c.organization_id.is_not_distinct_from(owner), owner_max - count) for owner, count in busy.items()]
    allowed = sa.case(*own, else_=owner_max) if own else owner_max
    query = sa.select(ranked).where(ranked.c.place <= allowed).order_by(ranked.c.due_at, ranked.c.id)
    return [_endpoint(row) for row in tx.connection.execute(query.limit(count_max))]


def take_deliveries(tx: PlatformTx, endpoint_id: str, now: int, until: int, count_max: int) -> list[tuple[Delivery, Event]]:
    """Take an endpoint until the instant `until`, and return its deliveries that are due, in order of their events. Of two processes that
    try, one gets nothing."""
    endpoint = lock_endpoint(tx, endpoint_id)
    if endpoint is None or endpoint.disabled_at is not None or endpoint.paused_until > now:
        return []
    query = (
        sa.select(webhook_deliveries, outbox_events.c.organization_id.label("event_owner"), *_EVENT)
        .join(outbox_events, outbox_events.c.id == _D.event_id)
        .where(_D.endpoint_id == endpoint_id, _D.state == DeliveryState.PENDING, _D.next_at <= now)
        .order_by(_D.event_id)
    )
    taken = [(_delivery(row), _event(row)) for row in tx.connection.execute(query.limit(count_max))]
    if taken:
        put_endpoint(tx, msgspec.structs.replace(endpoint, paused_until=until))
    return taken


_EVENT = (outbox_events.c.type, outbox_events.c.created_at, outbox_events.c.data, outbox_events.c.sequence)


def put_delivery(tx: PlatformTx, delivery: Delivery) -> None:
    """Replace a stored delivery."""
    own = sa.and_(_D.endpoint_id == delivery.endpoint_id, _D.event_id == delivery.event_id)
    tx.connection.execute(webhook_deliveries.update().where(own).values(msgspec.structs.asdict(delivery)))


def release_endpoint(tx: PlatformTx, endpoint_id: str, until: int, paused_until: int) -> None:
    """Let the deliveries of an endpoint that was taken until the instant `until` be due from `paused_until`. One that was paused or taken
    anew is left alone."""
    taken = sa.and_(_E.id == endpoint_id, _E.paused_until == until)
    tx.connection.execute(webhook_endpoints.update().where(taken).values(paused_until=paused_until))


def has_pending(tx: PlatformTx, endpoint_id: str) -> bool:
    """Return whether an endpoint has deliveries that have neither succeeded nor failed."""
    query = sa.select(_D.event_id).where(_D.endpoint_id == endpoint_id, _D.state == DeliveryState.PENDING).limit(1)
    return tx.connection.execute(query).first() is not None


def fail_pending(tx: Transaction, endpoint_id: str) -> None:
    """Store that what was not delivered to an endpoint is not tried any more."""
    own = sa.and_(_D.endpoint_id == endpoint_id, _D.state == DeliveryState.PENDING)
    tx.connection.execute(webhook_deliveries.update().where(own).values(state=DeliveryState.FAILED))


def _delivery(row: Any) -> Delivery:
    fields = {name: getattr(row, name) for name in Delivery.__struct_fields__}
    return Delivery(**fields | {"state": DeliveryState(row.state)})


def _event(row: Any) -> Event:
    return Event(
        id=row.event_id,
        organization_id=row.event_owner,
        type=EventType(row.type),
        created_at=row.created_at,
        data=json.loads(row.data),
        sequence=row.sequence,
    )
