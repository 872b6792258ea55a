"""Identity providers with which the people of an organization sign in: who may say what a provider's people become.

Whoever controls a provider decides who its people are, and so can sign in as anybody in the organization, an owner too. So whoever makes or
changes a connection must hold all that an owner does; that covers each role and group that it can give.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from tollway.control import publish
from tollway.control.identity import issuer_keys, people, roles
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.federation import CONNECTIONS_MAX
from tollway.domain.pages import Page, PageWindow
from tollway.domain.roles import OWNER, Grant
from tollway.storage import sign_in_connections as storage
from tollway.storage.database import TenantTx
from tollway.storage.sign_in_connections import SignInConnection as SignInConnection


def create_connection(
    tx: TenantTx, connection: SignInConnection, *, own: Sequence[Grant], private_issuers: frozenset[str]
) -> SignInConnection:
    """Store a new connection. Raises GRANT_EXCEEDS_GRANTOR unless `own` covers an owner, PARAMETER_INVALID (issuer, role, groups),
    STATE_CONFLICT (too many)."""
    roles.require_covered(own, [Grant(OWNER)])
    publish.lock(tx)  # takes turns with other creations
    window = PageWindow(limit=CONNECTIONS_MAX)
    if len(storage.list_connections(tx, window).items) >= CONNECTIONS_MAX:
        raise Fault(STATE_CONFLICT, message=f"An organization has at most {CONNECTIONS_MAX} connections.")
    if connection.issuer not in private_issuers:
        error = issuer_keys.find_address_error(connection.issuer)
        if error is not None:
            raise Fault(PARAMETER_INVALID, param="issuer", message=f"The issuer cannot be used: {error}.")
    checked = _find_role_and_groups(tx, connection, {"role_id", "groups"})
    storage.put_connection(tx, checked, is_new=True)
    return checked


def update_connection(tx: TenantTx, connection_id: str, changes: Mapping[str, object], *, own: Sequence[Grant]) -> SignInConnection:
    """Change fields of a connection, whose issuer stays. Only a role and groups that `changes` names must exist: what was deleted since
    gives nothing. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID (role, groups), GRANT_EXCEEDS_GRANTOR unless `own` covers an owner, or the
    connection is only disabled."""
    publish.lock(tx)
    before = get_connection(tx, connection_id)
    if changes != {"is_enabled": False}:
        roles.require_covered(own, [Grant(OWNER)])
    changed = _find_role_and_groups(tx, replace(before, **changes), changes.keys())  # type: ignore[arg-type]  # fields as the API checked them
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


def _find_role_and_groups(tx: TenantTx, connection: SignInConnection, fields: Collection[str]) -> SignInConnection:
    """Return a connection with the id of its role. Raises PARAMETER_INVALID if what is in one of `fields` does not exist."""
    if "role_id" in fields and connection.role_id is not None:
        connection = replace(connection, role_id=roles.require_role(tx, connection.role_id, None).id)
    if "groups" in fields:
        for group_id in connection.groups.values():
            try:
                people.get_group(tx, group_id)
            except Fault:
                raise Fault(PARAMETER_INVALID, param="groups", message="There is no such group.") from None
    return connection
