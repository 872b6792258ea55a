"""Logged content: what may be kept of a project's requests, for how long, who reads it, and when it is removed.

A gateway seals content under a key of its organization before it hands it over. Control seals that once more under the organization's data
key, so that whoever destroys that key makes all of it unreadable. Whether and for how long content is kept is decided here, by the
setting of the project in the transaction that stores it; a gateway whose snapshot is older cannot store more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from tollway.control import publish
from tollway.control.tenancy import stored_responses, tenants
from tollway.domain.content_logs import Content, ContentRecord, name_content
from tollway.domain.data_retention import ProjectRetention, RetentionType
from tollway.domain.faults import PARAMETER_INVALID, QUOTA_EXCEEDED, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.snapshot import ProjectEntry
from tollway.domain.tenants import Status
from tollway.storage import content_logs as storage
from tollway.storage import tenants as stored_tenants
from tollway.storage.content_logs import SealedContent
from tollway.storage.database import Database, TenantTx
from tollway.storage.vault import LocalVault

BYTES_MAX = 10 * 1024**3
"""Most bytes of content that one organization has stored at a time, sealed."""

EXPORTED_MAX = 10
"""Contents that are read at a time for an export."""

_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Vaults:
    """Vaults with which content of one organization is sealed: `outer` has its data key, `inner` the key that gateways have."""

    outer: LocalVault
    inner: LocalVault


def get_organization_retention(tx: TenantTx) -> RetentionType:
    """Return the data retention of the organization."""
    return storage.find_organization_retention(tx)


def set_organization_retention(tx: TenantTx, type: RetentionType, now: int) -> RetentionType:
    """Store the data retention of the organization. Where nothing may be kept, no project logs content any more, no responses are stored,
    and what is kept is deleted. Raises STATE_CONFLICT (archived)."""
    publish.lock(tx)
    tenants.require_active_organization(tx)
    storage.set_organization_retention(tx, type)
    if type.is_zero:
        stopped = storage.end_logging(tx)
        storage.delete_content(tx)
        publish.publish(tx, ProjectEntry, stopped, now)
        stored_responses.set_retention(tx, None, now)
    return type


def get_project_retention(tx: TenantTx, project_id: str) -> ProjectRetention:
    """Return the data retention of a project. Raises RESOURCE_UNKNOWN."""
    tenants.get_project(tx, project_id)
    return storage.find_project_retention(tx, project_id)


def set_project_retention(tx: TenantTx, project_id: str, retention: ProjectRetention, now: int) -> ProjectRetention:
    """Store the data retention of a project. Content is kept no longer than it says, what is logged already included; where none is logged
    any more, it is not read from then on and deleted, and where nothing may be kept, stored responses are as well.

    Raises RESOURCE_UNKNOWN; STATE_CONFLICT where the project is archived, its organization lets nothing be kept, or what it logged before
    is still being deleted; PARAMETER_INVALID for a time to keep content with another type than `none`."""
    publish.lock(tx)
    tenants.get_active_project(tx, project_id)
    seconds = retention.content_retention_seconds
    if seconds is not None and retention.type is not RetentionType.NONE:
        raise Fault(PARAMETER_INVALID, param="content_retention_seconds", message="Content can be logged with the type none only.")
    if seconds is not None and storage.find_organization_retention(tx).is_zero:
        raise Fault(STATE_CONFLICT, message="The organization lets nothing be kept of its requests.")
    if seconds is not None and storage.is_being_deleted(tx, project_id):
        raise Fault(STATE_CONFLICT, message="What the project logged before is still being deleted. Try again in a minute.")
    storage.set_project_retention(tx, project_id, retention)
    if seconds is None:
        storage.delete_content(tx, project_id)
    else:
        storage.shorten_retention(tx, project_id, seconds * _SECOND_US)
    if retention.type.is_zero:
        stored_responses.delete_of_project(tx, project_id)
    publish.publish(tx, ProjectEntry, [project_id], now)
    return retention


def store(tx: TenantTx, record: ContentRecord, content: bytes, outer: LocalVault, now: int) -> None:
    """Store the content of a request of a project, which a gateway has sealed. Raises STATE_CONFLICT where the project logs none,
    QUOTA_EXCEEDED where the organization has BYTES_MAX already; roll the transaction back then."""
    stored_tenants.share_organization(tx)  # whoever ends its retention waits, and deletes what is stored here too
    project = stored_tenants.share_project(tx, record.project_id)  # also whoever ends that of the project
    seconds = None
    if project is not None and project.status is Status.ACTIVE:
        seconds = storage.find_project_retention(tx, record.project_id).content_retention_seconds
    if seconds is None:
        raise Fault(STATE_CONFLICT, message="The project logs no content.")
    context = name_content(tx.organization_id, record.project_id, record.id)
    created_at = min(record.created_at, now)
    kept = msgspec.structs.replace(record, created_at=created_at)
    total = storage.insert_content(tx, kept, outer.seal_bytes(content, context=context), created_at + seconds * _SECOND_US)
    if total > BYTES_MAX:
        raise Fault(QUOTA_EXCEEDED, message=f"An organization can store at most {BYTES_MAX} bytes of content.")


def list_records(tx: TenantTx, project_id: str, window: PageWindow, now: int) -> Page[ContentRecord]:
    """Return of which requests of a project content is logged. Raises RESOURCE_UNKNOWN."""
    tenants.get_project(tx, project_id)
    return storage.list_records(tx, project_id, window, now)


def find_sealed(tx: TenantTx, project_id: str, id: str, now: int) -> SealedContent:
    """Return the content of a request of a project, for `unseal`. Raises RESOURCE_UNKNOWN."""
    tenants.get_project(tx, project_id)
    found = storage.find_content(tx, project_id, id, now)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def list_sealed(tx: TenantTx, after: str | None, now: int) -> list[SealedContent]:
    """Return the next EXPORTED_MAX contents of the organization, for `unseal`."""
    return storage.list_sealed(tx, after, now, EXPORTED_MAX)


def unseal(sealed: SealedContent, vaults: Vaults) -> Content:
    """Return what a request said and was answered. Raises ValueError if it was altered, or sealed for another place."""
    record = sealed.record
    context = name_content(record.organization_id, record.project_id, record.id)
    inner = vaults.outer.unseal_bytes(sealed.content, context=context)
    return msgspec.json.decode(vaults.inner.unseal_bytes(inner, context=context), type=Content)


def remove_expired(database: Database, now: int) -> Iterator[int]:
    """Remove the content that has expired at `now`, and that of projects which log none any more, each part as a transaction of its own.
    Yields how much each removed."""
    while True:
        with database.platform() as tx:
            removed = storage.remove_expired(tx, now)
        yield removed
        if removed < storage.REMOVED_MAX:
            break
    while True:
        with database.platform() as tx:
            ended = storage.remove_ended(tx)
        if ended is None:
            return
        yield ended
