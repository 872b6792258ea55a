"""Responses that organizations have stored: for how long, how many, and when they are removed.

A gateway seals a response under its organization's key before it hands it over, so that control and its database never see a conversation.
Whether and for how long one is stored is decided here, by the organization's own setting in the transaction that stores it; a gateway whose
snapshot is older cannot store more.
"""

from collections.abc import Iterator

from tollway.control import publish
from tollway.control.tenancy import tenants
from tollway.domain.content_logs import name_response
from tollway.domain.faults import QUOTA_EXCEEDED, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.snapshot import OrganizationEntry
from tollway.domain.tenants import Organization, Status
from tollway.storage import content_logs
from tollway.storage import stored_responses as storage
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import Database, TenantTx
from tollway.storage.stored_responses import SealedResponse
from tollway.storage.vault import LocalVault

RESPONSES_MAX = 100_000
"""Most responses that one organization has stored at a time."""

BYTES_MAX = 10 * 1024**3
"""Most bytes that they have, sealed."""

EXPORTED_MAX = 10
"""Responses that are read at a time for an export."""

_SECOND_US = 1_000_000


def set_retention(tx: TenantTx, seconds: int | None, now: int) -> Organization:
    """Store responses of the organization for so many seconds from now on; None stores none. What is stored already is kept no longer than
    that either, and is deleted at once where nothing is to be stored. Raises STATE_CONFLICT (archived, or nothing may be kept)."""
    publish.lock(tx)
    tenants.require_active_organization(tx)
    if seconds is not None and content_logs.find_organization_retention(tx).is_zero:
        raise Fault(STATE_CONFLICT, message="The organization lets nothing be kept of its requests.")
    stored_tenants.set_response_retention(tx, seconds)
    if seconds is None:
        storage.delete_all(tx)
    else:
        storage.shorten_retention(tx, seconds * _SECOND_US)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)
    return tenants.get_organization(tx)


def store(tx: TenantTx, *, project_id: str, id: str, content: bytes, now: int) -> None:
    """Store a sealed response of a project. Raises STATE_CONFLICT where the organization or the project stores none, QUOTA_EXCEEDED where
    it has RESPONSES_MAX or BYTES_MAX already; roll the transaction back then."""
    organization = stored_tenants.share_organization(tx)  # whoever ends its retention waits, and deletes what is stored here too
    project = stored_tenants.share_project(tx, project_id)  # also whoever ends that of the project
    if (
        organization is None
        or organization.status is not Status.ACTIVE
        or organization.response_retention_seconds is None
        or project is None
        or project.status is not Status.ACTIVE
        or content_logs.find_project_retention(tx, project_id).type.is_zero
    ):
        raise Fault(STATE_CONFLICT, message="The organization stores no responses.")
    expires_at = now + organization.response_retention_seconds * _SECOND_US
    total = storage.insert_response(tx, project_id=project_id, id=id, created_at=now, expires_at=expires_at, content=content)
    if total.responses > RESPONSES_MAX or total.bytes > BYTES_MAX:
        raise Fault(QUOTA_EXCEEDED, message=f"An organization can store at most {RESPONSES_MAX} responses, and {BYTES_MAX} bytes of them.")


def delete_of_project(tx: TenantTx, project_id: str) -> None:
    """Delete every response of a project."""
    storage.delete_all(tx, project_id)


def read(tx: TenantTx, project_id: str, id: str, now: int) -> bytes:
    """Return a response of a project, sealed. Raises RESOURCE_UNKNOWN."""
    content = storage.find_response(tx, project_id, id, now)
    if content is None:
        raise Fault(RESOURCE_UNKNOWN)
    return content


def list_sealed(tx: TenantTx, after: str | None, now: int) -> list[SealedResponse]:
    """Return the next EXPORTED_MAX responses of the organization, for `unseal`."""
    return storage.list_sealed(tx, after, now, EXPORTED_MAX)


def unseal(sealed: SealedResponse, vault: LocalVault) -> bytes:
    """Return a stored response and the items that it answered, as JSON. `vault`: that of gateways for the organization. Raises ValueError
    if it was altered, or sealed for another place."""
    return vault.unseal_bytes(sealed.content, context=name_response(sealed.organization_id, sealed.project_id, sealed.id))


def remove(tx: TenantTx, project_id: str, id: str, now: int) -> None:
    """Delete a response of a project. Raises RESOURCE_UNKNOWN."""
    if not storage.delete_response(tx, project_id, id, now):
        raise Fault(RESOURCE_UNKNOWN)


def remove_expired(database: Database, now: int) -> Iterator[int]:
    """Remove the responses that have expired at `now`, each part as a transaction of its own. Yields how many each removed."""
    while True:
        with database.platform() as tx:
            removed = storage.remove_expired(tx, now)
        yield removed
        if removed < storage.REMOVED_MAX:
            return
