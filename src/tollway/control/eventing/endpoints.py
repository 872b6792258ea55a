"""Webhook endpoints of organizations and of the operators: made, changed, replayed to.

A secret is shown when it is made, and sealed: that of an organization under its data key, that of the operators under the vault key. After
a rotation deliveries can be signed with both secrets for a day.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import msgspec

from tollway.domain import ids
from tollway.domain.events import CATALOG, Event, EventType
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.webhooks import ENDPOINTS_MAX, OLD_SECRET_SECONDS, Delivery, DeliveryState, WebhookEndpoint, format_secret
from tollway.storage import outbox
from tollway.storage import webhooks as storage
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.database import Transaction as Transaction  # of either, for the API
from tollway.storage.outbox import EventFilter
from tollway.storage.vault import LocalVault

SECRET_LOST = "The secret of the endpoint cannot be opened any more: the key that sealed it is gone. Rotate the secret."


class NewSecret(NamedTuple):
    """A secret for an endpoint: as it is shown, sealed, and a hint by which people tell it from others."""

    shown: str
    sealed: bytes
    hint: str


def make_secret(endpoint_id: str, key: bytes, vault: LocalVault) -> NewSecret:
    """Return a secret of `key`, which must be SECRET_BYTES random bytes."""
    shown = format_secret(key)
    return NewSecret(shown, vault.seal(shown, context=_context(endpoint_id)), f"whsec_...{shown[-4:]}")


def open_secrets(endpoint: WebhookEndpoint, vault: LocalVault, now: int) -> list[str]:
    """Return the secrets that sign for an endpoint now, the newest first. Raises STATE_CONFLICT where they were sealed under a key that is
    gone."""
    sealed = [endpoint.sealed]
    if endpoint.sealed_before is not None and (endpoint.before_until or 0) > now:
        sealed.append(endpoint.sealed_before)
    try:
        return [vault.unseal(each, context=_context(endpoint.id)) for each in sealed]
    except ValueError:
        raise Fault(STATE_CONFLICT, message=SECRET_LOST) from None


def _context(endpoint_id: str) -> str:
    return f"webhook endpoint {endpoint_id}"


def check_event_types(event_types: Sequence[EventType], *, is_platform: bool) -> tuple[EventType, ...]:
    """Return event types in the order of the catalogue. Raises PARAMETER_INVALID for one of which only operators are told."""
    refused = next((each for each in event_types if CATALOG[each].is_of_platform and not is_platform), None)
    if refused is not None:
        raise Fault(
            PARAMETER_INVALID, param="event_types", message=f"Invalid value for event_types: operators alone are told of {refused}."
        )
    return tuple(each for each in CATALOG if each in event_types)


def create_endpoint(tx: Transaction, endpoint: WebhookEndpoint) -> None:
    """Store a new endpoint. Raises STATE_CONFLICT if there are too many."""
    owner = endpoint.organization_id
    storage.lock_owner(tx, owner)
    if len(storage.list_endpoints(tx, owner, PageWindow(limit=ENDPOINTS_MAX)).items) >= ENDPOINTS_MAX:
        raise Fault(STATE_CONFLICT, message=f"There are at most {ENDPOINTS_MAX} webhook endpoints.")
    storage.insert_endpoint(tx, endpoint)


def get_endpoint(tx: Transaction, organization_id: str | None, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    """Return an endpoint of an organization, or of the operators (None). Raises RESOURCE_UNKNOWN."""
    known = ids.is_id(ids.WEBHOOK_ENDPOINT, endpoint_id)
    found = storage.find_endpoint(tx, organization_id, endpoint_id, lock=lock) if known else None
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def list_endpoints(tx: Transaction, organization_id: str | None, window: PageWindow) -> Page[WebhookEndpoint]:
    """Return the endpoints of an organization, or of the operators (None)."""
    return storage.list_endpoints(tx, organization_id, window)


class EndpointChanges(NamedTuple):
    """Changes of an endpoint; None leaves it. `enabled`: True lets a disabled one get events again."""

    name: str | None = None
    url: str | None = None
    event_types: tuple[EventType, ...] | None = None
    enabled: bool | None = None


def update_endpoint(tx: Transaction, organization_id: str | None, endpoint_id: str, changes: EndpointChanges, now: int) -> WebhookEndpoint:
    """Change an endpoint. One that is enabled again begins without failures. Raises RESOURCE_UNKNOWN."""
    before = get_endpoint(tx, organization_id, endpoint_id, lock=True)
    changed = msgspec.structs.replace(
        before,
        name=changes.name or before.name,
        url=changes.url or before.url,
        event_types=before.event_types if changes.event_types is None else changes.event_types,
    )
    if changes.enabled and before.disabled_at is not None:
        changed = msgspec.structs.replace(
            changed, disabled_at=None, disabled_reason=None, told_at=None, failures=0, failing_since=None, paused_until=0
        )
    if changed != before:
        changed = msgspec.structs.replace(changed, updated_at=now)
        storage.put_endpoint(tx, changed)
    return changed


def rotate_secret(
    tx: Transaction, organization_id: str | None, endpoint_id: str, secret: NewSecret, *, keep_old: bool, now: int
) -> WebhookEndpoint:
    """Give an endpoint another secret. `keep_old`: sign with the one before too, for a day. Raises RESOURCE_UNKNOWN."""
    before = get_endpoint(tx, organization_id, endpoint_id, lock=True)
    changed = msgspec.structs.replace(
        before,
        sealed=secret.sealed,
        secret_hint=secret.hint,
        sealed_before=before.sealed if keep_old else None,
        before_until=now + OLD_SECRET_SECONDS * 1_000_000 if keep_old else None,
        updated_at=now,
    )
    storage.put_endpoint(tx, changed)
    return changed


def delete_endpoint(tx: Transaction, organization_id: str | None, endpoint_id: str) -> None:
    """Delete an endpoint with its deliveries. Raises RESOURCE_UNKNOWN."""
    get_endpoint(tx, organization_id, endpoint_id, lock=True)
    storage.delete_endpoint(tx, endpoint_id)


# ---- Deliveries ---------------------------------------------------------------------------------------------------------


def list_deliveries(
    tx: Transaction, organization_id: str | None, endpoint_id: str, window: PageWindow, state: DeliveryState | None
) -> Page[Delivery]:
    """Return the deliveries to an endpoint. Raises RESOURCE_UNKNOWN."""
    get_endpoint(tx, organization_id, endpoint_id)
    return storage.list_deliveries(tx, endpoint_id, window, state)


def replay_event(tx: Transaction, organization_id: str | None, endpoint_id: str, event_id: str, now: int) -> int:
    """Deliver an event once more, whether or not the endpoint asks for its type. Return 1. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    endpoint = _get_enabled(tx, organization_id, endpoint_id)
    event = outbox.find_event(tx, event_id) if ids.is_id(ids.EVENT, event_id) else None
    if event is None or event.sequence is None or organization_id not in (None, event.organization_id):
        raise Fault(RESOURCE_UNKNOWN)
    storage.insert_deliveries(tx, [(endpoint, event_id)], now)
    return 1


def replay_range(
    open: Callable[[], AbstractContextManager[Transaction]],
    organization_id: str | None,
    endpoint_id: str,
    since: int,
    until: int,
    now: int,
) -> int:
    """Deliver the events of a time once more, of the types that the endpoint asks for: in transactions that `open` begins, of
    `storage.REPLAY_ROWS` events each. Return how many. Raises RESOURCE_UNKNOWN, STATE_CONFLICT, also where the endpoint was deleted or
    disabled halfway."""
    after, count = ids.first_id(ids.EVENT, since), 0
    while True:
        with open() as tx:
            endpoint = _get_enabled(tx, organization_id, endpoint_id)
            found = storage.list_event_ids(tx, endpoint, EventFilter(endpoint.event_types, since, until), after)
            storage.insert_deliveries(tx, [(endpoint, each) for each in found], now)
        count += len(found)
        if len(found) < storage.REPLAY_ROWS:
            return count
        after = found[-1]


def _get_enabled(tx: Transaction, organization_id: str | None, endpoint_id: str) -> WebhookEndpoint:
    # Shared, not locked: whoever numbers events refers to the endpoint meanwhile, and all organizations wait for that.
    known = ids.is_id(ids.WEBHOOK_ENDPOINT, endpoint_id)
    endpoint = storage.share_endpoint(tx, organization_id, endpoint_id) if known else None
    if endpoint is None:
        raise Fault(RESOURCE_UNKNOWN)
    if endpoint.disabled_at is not None:
        raise Fault(STATE_CONFLICT, message="The endpoint is disabled. Enable it first.")
    return endpoint


# ---- Events -------------------------------------------------------------------------------------------------------------


def list_own_events(tx: TenantTx, window: PageWindow, types: Sequence[EventType]) -> Page[Event]:
    """Return events of the organization."""
    return outbox.list_own_events(tx, window, EventFilter(types))


def list_events(tx: PlatformTx, window: PageWindow, types: Sequence[EventType], organization_id: str | None) -> Page[Event]:
    """Return events of all organizations and of the platform, or of one organization."""
    return outbox.list_events(tx, window, EventFilter(types), organization_id=organization_id)


def follow_events(tx: TenantTx, after_sequence: int, limit: int, types: Sequence[EventType]) -> Page[Event]:
    """Return the next events of the organization after a number, in order: `limit` at most."""
    found = outbox.list_following(tx, after_sequence, limit + 1, types)
    return Page(found[:limit], len(found) > limit)
