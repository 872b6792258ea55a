"""The audit trail: who changed or read what, and when, in records that are written in the transaction of the change itself.

Theory of operation. `record_in` and `record_changes` return recorders (storage.database.Recorder) for the database of one request, job
or command. A recorder watches which rows a transaction changes, and before the commit appends one record to a chain: that of the
organization that the transaction is bound to, or the platform's. If the record cannot be written, the transaction ends and nothing was
changed. The lock of the chain is taken last and held until the commit, so that concurrent writers take turns, and never wait for each other
in a circle.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from tollway.domain import ids
from tollway.domain.audit import PLATFORM_CHAIN, SALT_BYTES, Actor, AuditRecord, RowChange, Target
from tollway.domain.pages import Page
from tollway.storage import audit as storage
from tollway.storage.audit import AuditFilter as AuditFilter  # of `list_records`, for the API
from tollway.storage.database import Database, Recorder, TenantTx, Transaction
from tollway.storage.row_changes import RowChanges, watch

CHANGES_BYTES_MAX = 16_384
"""Longest `changes` of one record, in bytes. Rows beyond it are counted as omitted."""

NewId = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedOperation:
    """Description of an operation beside its changes, as it is recorded. `target`: the resource that its path names; a resource that the
    operation creates counts more."""

    event: str
    operation: str
    actor: Actor
    target: Target = field(default_factory=Target)


def record_in(operation: AuditedOperation, *, new_id: NewId, now: int) -> Recorder:
    """Return what records an operation in its first transaction that writes and commits, and in each further one that changes a resource.

    `new_id`: makes an id with a prefix. `now`: UTC microseconds."""
    return _Recording(operation, new_id, lambda: now, needs_change=False).begin


def record_changes(operation: AuditedOperation, *, new_id: NewId, now: Callable[[], int]) -> Recorder:
    """Return what records each transaction of a job or a command that changes a resource."""
    return _Recording(operation, new_id, now, needs_change=True).begin


def record_read(database: Database, organization_id: str | None, operation: AuditedOperation, *, new_id: NewId, now: int) -> None:
    """Record a read before it is answered, in the chain of the organization, or of the platform (None). Raises Fault
    DATABASE_UNAVAILABLE, and then nothing may be read."""
    with database.platform() if organization_id is None else database.tenant(organization_id) as tx:
        append(tx, operation, [], 0, id=new_id(ids.AUDIT_RECORD), salt=new_salt(new_id), now=now)


def append(
    tx: Transaction, operation: AuditedOperation, changes: Sequence[RowChange], omitted: int, *, id: str, salt: bytes, now: int
) -> AuditRecord:
    """Append a record to the chain of a transaction. The chain stays locked until the transaction ends: do nothing after it. `salt`: of
    `new_salt`."""
    chain = tx.organization_id if isinstance(tx, TenantTx) else PLATFORM_CHAIN
    kept, left_out = _bound(changes)
    end = storage.lock_chain(tx, chain)
    unhashed = AuditRecord(
        chain=chain,
        sequence=end.sequence + 1,
        id=id,
        recorded_at=now,
        event=operation.event,
        operation=operation.operation,
        actor=operation.actor,
        target=_find_target(operation.target, changes),
        changes=kept,
        omitted=omitted + left_out,
        hash=b"",
        salt=salt,
    )
    record = msgspec.structs.replace(unhashed, hash=unhashed.compute_hash(end.hash))
    storage.append_record(tx, record)
    return record


def new_salt(new_id: NewId) -> bytes:
    """Return a salt from the random bits of an id that nobody sees: 74 of them, too many to guess."""
    return hashlib.sha256(new_id(ids.AUDIT_RECORD).encode()).digest()[:SALT_BYTES]


def list_records(
    tx: TenantTx, wanted: AuditFilter, *, after: str | None = None, before: str | None = None, limit: int = 20
) -> Page[AuditRecord]:
    """Return the records of the organization, the latest first."""
    return storage.list_records(tx, tx.organization_id, wanted, after=after, before=before, limit=limit)


def list_platform_records(
    tx: Transaction, wanted: AuditFilter, *, after: str | None = None, before: str | None = None, limit: int = 20
) -> Page[AuditRecord]:
    """Return the records of the platform's own chain, the latest first."""
    return storage.list_records(tx, PLATFORM_CHAIN, wanted, after=after, before=before, limit=limit)


class _Recording:
    """The recorder of one operation."""

    def __init__(self, operation: AuditedOperation, new_id: NewId, now: Callable[[], int], *, needs_change: bool) -> None:
        self._operation = operation
        self._new_id = new_id
        self._now = now
        self._needs_change = needs_change

    def begin(self, tx: Transaction) -> Callable[[], None]:
        """Watch a transaction. Returns what records it."""
        changes = watch(tx.connection)
        return lambda: self._finish(tx, changes)

    def _finish(self, tx: Transaction, changes: RowChanges) -> None:
        found = changes.list_changes()
        if self._needs_change and not found:
            return
        id, salt = self._new_id(ids.AUDIT_RECORD), new_salt(self._new_id)
        append(tx, self._operation, found, changes.omitted, id=id, salt=salt, now=self._now())
        self._needs_change = True


def _find_target(named: Target, changes: Sequence[RowChange]) -> Target:
    """Return the resource that was created, else the one that the path names, else the first one that changed."""
    created = next((change for change in changes if not change.before), None)
    first = created or (None if named.id else next(iter(changes), None))
    if first is None:
        return named
    project_id = named.project_id or first.after.get("project_id", first.before.get("project_id")) or ""
    return Target(kind=first.kind, id=first.id, project_id=str(project_id))


def _bound(changes: Sequence[RowChange]) -> tuple[str, int]:
    """Return the JSON of as many changes as CHANGES_BYTES_MAX holds, and how many were left out."""
    encoded = [msgspec.json.encode(change).decode() for change in changes]
    kept: list[str] = []
    for each in _within(encoded):
        kept.append(each)
    return f"[{','.join(kept)}]", len(encoded) - len(kept)


def _within(encoded: Sequence[str]) -> Iterator[str]:
    left = CHANGES_BYTES_MAX
    for each in encoded:
        left -= len(each.encode()) + 1
        if left < 0:
            return
        yield each
