"""Erasures: one operator asks, a second one approves, and a job carries it out. What was erased cannot be had back.

Of a person who was removed, everything that names them is erased; ids stay, as pseudonyms. Of an organization that was archived, its data
key is destroyed, so that whatever was sealed under it cannot be read any more, and all texts are erased. Ledger, usage and periods have ids
and amounts alone and stay as they are.

The audit trail keeps its records. Values in them are erased, and a record is appended that states the hash of what is left of each, in the
same transaction; so the chain is verified as before (`audit_chains`). Each step looks at a part of the chain before it locks anything, and
erases in few records, because one record must hold their hashes. It can be repeated: a process that dies between two steps leaves nothing
half done, and of two that take the same step one does nothing.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from tollway.control import publish
from tollway.control.approvals import SAME_ORIGIN, may_approve
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.auditing.audit_chains import ERASED_RECORDS, ERASURE_EVENT
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind, AuditRecord, RowChange, Target
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.erasures import Erasure, ErasureState
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import Operator
from tollway.domain.pages import Page, PageWindow
from tollway.domain.snapshot import OrganizationEntry
from tollway.storage import audit as stored_audit
from tollway.storage import erasures as storage
from tollway.storage import tenants as stored_tenants
from tollway.storage.data_exports import has_person
from tollway.storage.database import Database, PlatformTx, TenantTx

STEP_RECORDS_MAX = 150
"""Records of the audit trail in which one step erases: their hashes fit into one record (`audit.CHANGES_BYTES_MAX`)."""

READ_RECORDS = 1_000
"""Records of the audit trail that one step reads: a few MiB, whether or not they name whom it looks for."""

REJECTED_EVENT = "erasure.rejected"
"""Event of the record of an erasure that was approved and is not carried out."""

NOT_READY = "It is not removed yet: archive the organization, or remove the person, first."

NewId = Callable[[str], str]


def ask(
    database: Database, *, id: str, organization_id: str, user_id: str | None, confirm: str, reason: str, actor: Operator, now: int
) -> Erasure:
    """Ask for the erasure of a person (`user_id`) or of a whole organization. `confirm`: the name of the organization, or the id of the
    person, so that nobody erases what they did not mean. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID (`confirm`), STATE_CONFLICT if it is
    not archived or removed yet, or somebody asked before."""
    with database.tenant(organization_id, write=False) as tenant:
        organization = stored_tenants.find_organization(tenant)
        if organization is None or (user_id is not None and not has_person(tenant, user_id)):
            raise Fault(RESOURCE_UNKNOWN)
        is_ready = storage.is_ready(tenant, organization_id, user_id)
    if confirm != (organization.name if user_id is None else user_id):
        raise Fault(PARAMETER_INVALID, param="confirm", message="It is not the name of the organization, or the id of the person.")
    if not is_ready:
        raise Fault(STATE_CONFLICT, message=NOT_READY)
    erasure = Erasure(
        id=id,
        organization_id=organization_id,
        user_id=user_id,
        reason=reason,
        state=ErasureState.PENDING,
        actor=actor,
        requested_at=now,
    )
    with database.platform() as tx:
        storage.lock_organization(tx, organization_id)  # two who ask take turns
        before = storage.find_open(tx, organization_id, user_id)
        if before is not None:
            raise Fault(STATE_CONFLICT, message=f"Somebody asked for this before: {before.id}, which is {before.state}.")
        storage.insert_erasure(tx, erasure)
    return erasure


def decide(tx: PlatformTx, erasure_id: str, decision: ApprovalDecision, *, approver: Operator, now: int) -> Erasure:
    """Approve an erasure, which is carried out from then on; or reject it. Whoever asked may take it back, but not approve it. Raises
    RESOURCE_UNKNOWN, STATE_CONFLICT if it does not wait, whoever asked could have made the approver's key, or the person was made active
    again since."""
    erasure = get_erasure(tx, erasure_id, lock=True)
    if erasure.state is not ErasureState.PENDING:
        raise Fault(STATE_CONFLICT, message=f"The erasure does not wait for approval: it is {erasure.state}.")
    is_approved = decision is ApprovalDecision.APPROVED
    if is_approved and not may_approve(tx, erasure.actor, approver):
        raise Fault(STATE_CONFLICT, message=SAME_ORIGIN)
    if is_approved and not storage.is_ready(tx, erasure.organization_id, erasure.user_id):
        raise Fault(STATE_CONFLICT, message=NOT_READY)
    storage.decide(tx, erasure_id, ErasureState.APPROVED if is_approved else ErasureState.REJECTED, approver, now)
    return get_erasure(tx, erasure_id)


def get_erasure(tx: PlatformTx, erasure_id: str, *, lock: bool = False) -> Erasure:
    """Return an erasure. Raises RESOURCE_UNKNOWN."""
    found = storage.find_erasure(tx, erasure_id, lock=lock) if ids.is_id(ids.ERASURE, erasure_id) else None
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def list_erasures(tx: PlatformTx, window: PageWindow) -> Page[Erasure]:
    """Return the erasures in the order in which they were asked for."""
    return storage.list_erasures(tx, window)


# ---- Carrying out -------------------------------------------------------------------------------------------------------


def carry_out(database: Database, new_id: NewId, now: Callable[[], int], is_over: Callable[[], bool]) -> Iterator[Erasure]:
    """Carry out the erasures that are approved, the oldest first, until all are or `is_over` says so. Yield each that is done, or rejected
    because the person was made active again. One that fails does not hold up those after it: the first failure is raised in the end."""
    failure: Exception | None = None
    after = ""
    while not is_over():
        with database.platform(write=False) as tx:
            erasure = storage.find_approved(tx, after)
        if erasure is None:
            break
        try:
            stepped = _take_step(database, erasure, new_id, now())
        except Exception as error:  # whatever it is, the others are carried out
            failure, after = failure or error, erasure.id
        else:
            if stepped.state is not ErasureState.APPROVED:
                yield stepped
    if failure is not None:
        raise failure


def _take_step(database: Database, erasure: Erasure, new_id: NewId, now: int) -> Erasure:
    """Carry out one step of an erasure. Return it as it is then."""
    step = _erase_records if erasure.are_rows_erased else _erase_rows
    step(database, erasure, new_id, now)
    with database.platform(write=False) as tx:
        return get_erasure(tx, erasure.id)


def _erase_rows(database: Database, erasure: Erasure, new_id: NewId, now: int) -> None:
    recorded: list[str] = []
    if erasure.user_id is not None:
        with database.tenant(erasure.organization_id, write=False) as reading:
            recorded = _find_recorded_addresses(reading, erasure.user_id)
    with database.tenant(erasure.organization_id) as tx:
        publish.lock(tx)  # takes turns with a directory that makes the person active again
        if not _is_unchanged(tx, erasure):
            return
        if not storage.is_ready(tx, erasure.organization_id, erasure.user_id):
            with tx.as_platform() as platform:
                storage.end_unready(platform, erasure.id)
            _append(tx, erasure, REJECTED_EVENT, {"state": ErasureState.REJECTED.value}, new_id(ids.AUDIT_RECORD), new_id, now)
            return
        addresses: list[str] = []
        if erasure.user_id is None:
            storage.erase_organization(tx)
        else:
            addresses = list(dict.fromkeys([*storage.list_addresses(tx, erasure.user_id), *recorded]))
            storage.erase_person(tx, erasure.user_id, addresses)
        with tx.as_platform() as platform:
            storage.note_rows_erased(platform, erasure.id, addresses)
        if erasure.user_id is None:  # gateways remove what their directories hold of it
            publish.publish(tx, OrganizationEntry, [erasure.organization_id], now)
        _append(tx, erasure, ERASURE_EVENT, {"rows": True}, new_id(ids.AUDIT_RECORD), new_id, now)


def _erase_records(database: Database, erasure: Erasure, new_id: NewId, now: int) -> None:
    """Erase in the next records of the audit trail, and state what is left of them."""
    with database.tenant(erasure.organization_id, write=False) as reading:
        person = None if erasure.user_id is None else _find_person(reading, erasure.user_id, erasure.addresses)
        read = stored_audit.list_next(reading, erasure.erased_until, READ_RECORDS)
    named = [record for record in read if record.event != ERASURE_EVENT and (person is None or person.is_named_in(record))]
    del named[STEP_RECORDS_MAX:]
    looked_at = named if len(named) == STEP_RECORDS_MAX else read
    until = looked_at[-1].sequence if looked_at else erasure.erased_until
    with database.tenant(erasure.organization_id) as tx:
        if not _is_unchanged(tx, erasure):
            return
        if not named and len(read) == READ_RECORDS:
            with tx.as_platform() as platform:
                storage.note_records_erased(platform, erasure.id, 0, until, finished_at=None)
            return
        end = stored_audit.lock_chain(tx, tx.organization_id)
        step_id = new_id(ids.AUDIT_RECORD)
        erased: dict[str, str] = {}
        for record in stored_audit.find_records(tx, [each.sequence for each in named]):  # another erasure may have been there meanwhile
            left = _erase(record, person, step_id)
            if left is not None:
                stored_audit.put_erased(tx, left)
                erased[str(left.sequence)] = left.compute_hash(stored_audit.find_hash(tx, left.chain, left.sequence - 1)).hex()
        is_done = until >= end.sequence  # what was recorded meanwhile is looked at in the next step
        with tx.as_platform() as platform:
            storage.note_records_erased(platform, erasure.id, len(erased), until, finished_at=now if is_done else None)
        if erased or is_done:
            _append(tx, erasure, ERASURE_EVENT, {ERASED_RECORDS: erased}, step_id, new_id, now)


def _is_unchanged(tx: TenantTx, erasure: Erasure) -> bool:
    """Return whether no other process has taken the step from `erasure`; none does before the transaction ends."""
    with tx.as_platform() as platform:
        return storage.find_erasure(platform, erasure.id, lock=True) == erasure


@dataclass(frozen=True, slots=True)
class _Person:
    """Marks of a person in records of the audit trail. `pseudonyms`: their id, and those of their keys and invitations. `texts`: their id
    and addresses as they stand in JSON."""

    pseudonyms: frozenset[str]
    texts: Sequence[str]

    def is_named_in(self, record: AuditRecord) -> bool:
        """Return whether a record is about the person, or about something that they did."""
        named = (record.actor.id, record.target.id)
        return not self.pseudonyms.isdisjoint(named) or any(text in record.changes for text in (*self.pseudonyms, *self.texts))

    def list_fields(self, change: RowChange) -> Collection[str]:
        """Return the fields of a change that are to be erased."""
        encoded = msgspec.json.encode(change).decode()
        is_named = change.id in self.pseudonyms or any(text in encoded for text in self.texts)
        return storage.PERSONAL_FIELDS.get(change.kind, ()) if is_named else ()


def _find_person(tx: TenantTx, user_id: str, addresses: Sequence[str]) -> _Person:
    return _Person(frozenset(storage.list_pseudonyms(tx, user_id)), [user_id, *map(_encode, addresses)])


def _find_recorded_addresses(tx: TenantTx, user_id: str) -> list[str]:
    """Return the addresses that a person had, as far as the audit trail still says: their row has the last one at most."""
    found: dict[str, None] = {}
    after = 0
    while records := stored_audit.list_next(tx, after, READ_RECORDS, target_id=user_id):
        for change in (change for record in records for change in _read_changes(record)):
            if change.kind == "user" and change.id == user_id:
                for values in (change.before, change.after):
                    email = values.get("email")
                    if isinstance(email, str) and "@" in email:
                        found[email] = None
        after = records[-1].sequence
    return list(found)


def _erase(record: AuditRecord, person: _Person | None, step_id: str) -> AuditRecord | None:
    """Return what is left of a record; None if it has nothing to erase. `person`: None for the organization."""

    def wanted(change: RowChange) -> Collection[str]:
        return {*change.before, *change.after} if person is None else person.list_fields(change)

    left = record.erase(wanted, step_id, hides_address=person is None or record.actor.id in person.pseudonyms)
    is_same = (left.changes, left.actor, left.target) == (record.changes, record.actor, record.target)
    return None if is_same else left


def _encode(text: str) -> str:
    """Return a text as it stands in the JSON of changes, without the quotes."""
    return msgspec.json.encode(text).decode()[1:-1]


def _read_changes(record: AuditRecord) -> list[RowChange]:
    changes: list[RowChange] = msgspec.json.decode(record.changes, type=list[RowChange])
    return changes


def _append(tx: TenantTx, erasure: Erasure, event: str, said: dict[str, object], record_id: str, new_id: NewId, now: int) -> None:
    operation = AuditedOperation(
        event=event,
        operation="erasures",
        actor=Actor(kind=ActorKind.JOB, id="erasures"),
        target=Target(kind="erasure", id=erasure.id),
    )
    changes = [RowChange(kind="erasure", id=erasure.id, before={"state": erasure.state.value}, after=said)]
    audit.append(tx, operation, changes, 0, id=record_id, salt=audit.new_salt(new_id), now=now)
