"""Identity providers with which the people of an organization sign in: who may say what a provider's people become.

Whoever makes or changes a connection must hold each permission that it can give: of the role with which people join, and of the groups that
the provider's groups stand for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tollway.control import issuer_keys, people, publish, roles
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.roles import Grant
from tollway.storage import roles as stored_roles
from tollway.storage import sign_in_connections as storage
from tollway.storage.database import TenantTx
from tollway.storage.sign_in_connections import SignInConnection as SignInConnection

CONNECTIONS_MAX = 20
"""Identity providers of one organization."""


def create_connection(
    tx: TenantTx, connection: SignInConnection, *, own: Sequence[Grant], private_issuers: frozenset[str]
) -> SignInConnection:
    """Store a new connection. Raises PARAMETER_INVALID (issuer, role, groups), GRANT_EXCEEDS_GRANTOR, STATE_CONFLICT (too many)."""
    publish.lock(tx)  # takes turns with other creations
    window = PageWindow(limit=CONNECTIONS_MAX)
    if len(storage.list_connections(tx, window).items) >= CONNECTIONS_MAX:
        raise Fault(STATE_CONFLICT, message=f"An organization has at most {CONNECTIONS_MAX} connections.")
    checked = _check(tx, connection, own, private_issuers)
    storage.put_connection(tx, checked, is_new=True)
    return checked


def update_connection(
    tx: TenantTx, connection_id: str, changes: Mapping[str, object], *, own: Sequence[Grant], private_issuers: frozenset[str]
) -> SignInConnection:
    """Change fields of a connection. Raises RESOURCE_UNKNOWN, and as `create_connection`, for what it gave before too."""
    publish.lock(tx)
    before = get_connection(tx, connection_id)
    _check(tx, before, own, private_issuers)
    changed = _check(tx, replace(before, **changes), own, private_issuers)  # type: ignore[arg-type]  # fields as the API checked them
    storage.put_connection(tx, changed, is_new=False)
    return changed


def get_connection(tx: TenantTx, connection_id: str) -> SignInConnection:
    """Return a connection. Raises RESOURCE_UNKNOWN."""
    found = storage.find_connection(tx, connection_id) if ids.is_id(ids.SIGN_IN_CONNECTION, connection_id) else None
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def list_connections(tx: TenantTx, window: PageWindow) -> Page[SignInConnection]:
    """Return the connections of the organization."""
    return storage.list_connections(tx, window)


def delete_connection(tx: TenantTx, connection_id: str) -> None:
    """Delete a connection; its people sign in by it no more. Raises RESOURCE_UNKNOWN."""
    get_connection(tx, connection_id)
    storage.delete_connection(tx, connection_id)


def _check(tx: TenantTx, connection: SignInConnection, own: Sequence[Grant], private_issuers: frozenset[str]) -> SignInConnection:
    error = None if connection.issuer in private_issuers else issuer_keys.find_address_error(connection.issuer)
    if error is not None:
        raise Fault(PARAMETER_INVALID, param="issuer", message=f"The issuer cannot be used: {error}.")
    if connection.role_id is not None:
        role = roles.require_role(tx, connection.role_id, None)
        roles.require_covered(own, [Grant(role)])
        connection = replace(connection, role_id=role.id)
    for group_id in connection.groups.values():
        try:
            people.get_group(tx, group_id)
        except Fault:
            raise Fault(PARAMETER_INVALID, param="groups", message="There is no such group.") from None
        roles.require_covered(own, stored_roles.list_grants(tx, tx.organization_id, [group_id]))
    return connection
