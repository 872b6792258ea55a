"""Erasures: one operator asks, a second one approves, and a job carries it out. What was erased cannot be had back.

Of a person who was removed, everything that names them is erased; ids stay, as pseudonyms. Of an organization that was archived, its data
key is destroyed, so that whatever was sealed under it cannot be read any more, and all texts are erased. Ledger, usage and periods have ids
and amounts alone and stay as they are.

The audit trail keeps its records. Values in them are erased, and a record is appended that states the hash of what is left of each, in the
same transaction; so the chain is verified as before (`audit_chains`). Each step erases in few records, because one record must hold their
hashes, and can be repeated: a process that dies between two steps leaves nothing half done.
"""

from collections.abc import Callable, Collection, Sequence

import msgspec

from tollway.control.approvals import SAME_ORIGIN
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.auditing.audit_chains import ERASED_RECORDS, ERASURE_EVENT
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind, AuditRecord, RowChange, Target
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.erasures import Erasure, ErasureState
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import Operator, may_approve
from tollway.domain.pages import Page, PageWindow
from tollway.domain.tenants import Status
from tollway.storage import audit as stored_audit
from tollway.storage import erasures as storage
from tollway.storage import people as stored_people
from tollway.storage import tenants as stored_tenants
from tollway.storage.data_exports import has_person
from tollway.storage.database import Database, PlatformTx, TenantTx

STEP_RECORDS_MAX = 150
"""Records of the audit trail that one step looks at: their hashes fit into one record (`audit.CHANGES_BYTES_MAX`)."""

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
        is_ready = organization.status is Status.ARCHIVED if user_id is None else stored_people.find_user(tenant, user_id) is None
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
    RESOURCE_UNKNOWN, STATE_CONFLICT if it does not wait, or whoever asked could have made the approver's key."""
    erasure = get_erasure(tx, erasure_id, lock=True)
    if erasure.state is not ErasureState.PENDING:
        raise Fault(STATE_CONFLICT, message=f"The erasure does not wait for approval: it is {erasure.state}.")
    is_approved = decision is ApprovalDecision.APPROVED
    if is_approved and not may_approve(erasure.actor.origin, approver.origin):
        raise Fault(STATE_CONFLICT, message=SAME_ORIGIN)
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


def carry_out_next(database: Database, new_id: NewId, now: int) -> Erasure | None:
    """Carry out one step of an approved erasure. Return it as it is after the step; None if there is none."""
    with database.platform(write=False) as tx:
        erasure = storage.find_approved(tx)
    if erasure is None:
        return None
    with database.tenant(erasure.organization_id) as tenant:
        step = _erase_records if erasure.are_rows_erased else _erase_rows
        step(tenant, erasure, new_id, now)
    with database.platform(write=False) as tx:
        return get_erasure(tx, erasure.id)


def _erase_rows(tx: TenantTx, erasure: Erasure, new_id: NewId, now: int) -> None:
    addresses: list[str] = []
    if erasure.user_id is None:
        storage.erase_organization(tx)
    else:
        addresses = _find_addresses(tx, erasure.user_id)
        storage.erase_person(tx, erasure.user_id, addresses)
    with tx.as_platform() as platform:
        storage.note_rows_erased(platform, erasure.id, addresses)
    _append(tx, erasure, {"rows": True}, new_id(ids.AUDIT_RECORD), new_id, now)


def _erase_records(tx: TenantTx, erasure: Erasure, new_id: NewId, now: int) -> None:
    """Erase in the next records of the audit trail, and state what is left of them."""
    step_id = new_id(ids.AUDIT_RECORD)
    stored_audit.lock_chain(tx, tx.organization_id)
    erased: dict[str, str] = {}
    until = erasure.erased_until
    texts = [] if erasure.user_id is None else [erasure.user_id, *map(_encode, erasure.addresses)]
    found = stored_audit.list_naming(tx, texts, until, STEP_RECORDS_MAX)
    for record in found:
        until = record.sequence
        left = _erase(record, erasure, texts, step_id)
        if left is not None:
            stored_audit.put_erased(tx, left)
            erased[str(left.sequence)] = left.compute_hash(stored_audit.find_hash(tx, left.chain, left.sequence - 1)).hex()
    is_done = len(found) < STEP_RECORDS_MAX
    with tx.as_platform() as platform:
        storage.note_records_erased(platform, erasure.id, len(erased), until, finished_at=now if is_done else None)
    _append(tx, erasure, {ERASED_RECORDS: erased}, step_id, new_id, now)


def _find_addresses(tx: TenantTx, user_id: str) -> list[str]:
    """Return the addresses that a removed person had, as the audit trail says: their row has none any more."""
    found: dict[str, None] = {}
    after = 0
    while True:
        records = stored_audit.list_naming(tx, [user_id], after, STEP_RECORDS_MAX)
        for record in records:
            for change in _read_changes(record):
                if change.kind == "user" and change.id.endswith(user_id):
                    for values in (change.before, change.after):
                        email = values.get("email")
                        if isinstance(email, str) and "@" in email:
                            found[email] = None
        if len(records) < STEP_RECORDS_MAX:
            return list(found)
        after = records[-1].sequence


def _erase(record: AuditRecord, erasure: Erasure, texts: Sequence[str], step_id: str) -> AuditRecord | None:
    """Return what is left of a record; None if it has nothing to erase. `texts`: what names the person; empty for the organization."""
    if record.event == ERASURE_EVENT:
        return None

    def wanted(change: RowChange) -> Collection[str]:
        if erasure.user_id is None:
            return {*change.before, *change.after}
        encoded = msgspec.json.encode(change).decode()
        is_named = any(text in encoded for text in texts)
        return storage.PERSONAL_FIELDS.get(change.kind, ()) if is_named else ()

    left = record.erase(wanted, step_id, hides_address=erasure.user_id in (None, record.actor.id))
    return None if left.changes == record.changes and left.actor == record.actor else left


def _encode(text: str) -> str:
    """Return a text as it stands in the JSON of changes, without the quotes."""
    return msgspec.json.encode(text).decode()[1:-1]


def _read_changes(record: AuditRecord) -> list[RowChange]:
    changes: list[RowChange] = msgspec.json.decode(record.changes, type=list[RowChange])
    return changes


def _append(tx: TenantTx, erasure: Erasure, said: dict[str, object], record_id: str, new_id: NewId, now: int) -> None:
    operation = AuditedOperation(
        event=ERASURE_EVENT,
        operation="erasures",
        actor=Actor(kind=ActorKind.JOB, id="erasures"),
        target=Target(kind="erasure", id=erasure.id),
    )
    changes = [RowChange(kind="erasure", id=erasure.id, before={"state": erasure.state.value}, after=said)]
    audit.append(tx, operation, changes, 0, id=record_id, salt=audit.new_salt(new_id), now=now)
