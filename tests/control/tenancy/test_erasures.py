"""Erasures of people and organizations: two persons, nothing left of what was erased, ledger and audit trail that still verify."""

from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import pytest
import sqlalchemy as sa

from tests.control.browsing import find_user_id, join
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.metering.test_collect import exchanges, take
from tests.control.test_routes import refused
from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION, frames
from tollway.control import publish
from tollway.control.auditing import audit, audit_chains
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.auditing.audit_chains import ChainsReport
from tollway.control.tenancy import erasures, tenants
from tollway.control.verification.verify import verify
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind, RowChange, Target
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.erasures import Erasure, ErasureState
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.people import Invite, User
from tollway.domain.snapshot import Change, OrganizationEntry
from tollway.serve.control import new_id
from tollway.storage import erasures as stored_erasures
from tollway.storage import people as stored_people
from tollway.storage import scim as stored_scim
from tollway.storage import sign_in_connections as stored_connections
from tollway.storage.database import Database, TenantTx
from tollway.storage.keys import Digest
from tollway.storage.record_archive import Archive
from tollway.storage.schema import metadata

ERASURES = "/v1/platform/erasures"

FIRST, SECOND = Operator("key_1", KeyOrigin.FIRST), Operator("key_2", KeyOrigin.SECOND)

CONNECTION = f"conn_{'1' * 32}"


def make_user(number: int) -> User:
    return User(id=f"user_{number:032x}", email=f"ada{number}@example.com", name="Ada Lovelace", added_at=1)


@pytest.fixture(scope="module")
def acme(control: Running) -> TenantSetup:
    return make_tenant(control, "acme of the erasures")


@pytest.fixture
def second(control: Running) -> httpx2.Client:
    """The operator who approves."""
    return control.client(control.second_platform_key)


def carry_out(database: Database, now: int) -> Erasure:
    """Carry out the one erasure that was approved, to its end."""
    (done,) = erasures.carry_out(database, new_id, lambda: now, lambda: False)
    assert done.state is ErasureState.DONE
    return done


def find_texts(database: Database, *texts: str) -> set[str]:
    """Return the tables in which a text stands, whatever its column."""
    found = set()
    with database.platform(write=False) as tx:
        for table in metadata.sorted_tables:
            for row in tx.connection.execute(sa.select(table)):
                if any(text in str(tuple(row)) for text in texts):
                    found.add(table.name)
    return found


def verify_chains(database: Database) -> ChainsReport:
    with database.platform(write=False) as tx:
        return audit_chains.verify(tx, [])


def test_erased_person_is_named_nowhere_and_the_audit_trail_verifies(control: Running, acme: TenantSetup, second: httpx2.Client) -> None:
    admin, database = control.client(acme.admin_key), control.plane.database
    email = 'lovelace"ada@example.com'.replace('"', ".")
    browser = join(control, admin, email, "admin")
    user_id = find_user_id(admin, email)
    with_key = answered(admin.get("/v1/organization/audit_logs", params={"actor_ids": [user_id]}))["data"]
    assert with_key, "the sign-in is recorded"
    asked: dict[str, Any] = {"organization_id": acme.organization_id, "user_id": user_id, "confirm": user_id, "reason": "asked for it"}
    operator = control.operator()
    refused(operator.post(ERASURES, json=asked), 409, "conflict")  # she is not removed yet
    answered(admin.delete(f"/v1/organization/users/{user_id}"))
    browser.open("/account")
    refused(operator.post(ERASURES, json={**asked, "confirm": "acme"}), 400, "invalid_value", "confirm")
    refused(operator.post(ERASURES, json={**asked, "user_id": f"user_{'0' * 32}"}), 404, "not_found")
    refused(operator.post(ERASURES, json={**asked, "organization_id": f"org_{'0' * 32}"}), 404, "not_found")
    erasure = answered(operator.post(ERASURES, json=asked))
    assert erasure["state"] == "pending"
    refused(second.post(ERASURES, json=asked), 409, "conflict")  # somebody asked before
    refused(operator.post(f"{ERASURES}/{erasure['id']}/approve"), 409, "conflict")
    assert find_texts(database, email, "Ada Lovelace") >= {"audit_records", "invites"}
    before = verify_chains(database)
    assert answered(second.post(f"{ERASURES}/{erasure['id']}/approve"))["state"] == "approved"
    carry_out(database, control.plane.now())

    assert find_texts(database, email, "Ada Lovelace") == set()
    shown = answered(operator.get(f"{ERASURES}/{erasure['id']}"))
    assert shown["state"] == "done" and shown["records_erased"] > 0
    report = verify_chains(database)
    assert before.findings == [] and report.findings == [] and report.erased == shown["records_erased"]
    logs = answered(admin.get("/v1/organization/audit_logs", params={"actor_ids": [user_id]}))["data"]
    assert len(logs) >= len(with_key), "what she did is still there, under her id"
    refused(second.post(f"{ERASURES}/{erasure['id']}/reject"), 409, "conflict")


@pytest.fixture
def approved(database: Database, archive: Archive) -> Callable[[], Erasure]:
    """Return what archives the organization of the samples, which has used something, and approves its erasure."""

    def approve() -> Erasure:
        take(database, archive, frames(exchanges([1, 2, 3])))
        operation = AuditedOperation(
            event="project.created", operation="x", actor=Actor(kind=ActorKind.COMMAND, id="x", address="192.0.2.7")
        )
        recording = database.recording(audit.record_in(operation, new_id=new_id, now=1))
        with recording.tenant(ORGANIZATION) as tx:
            for number in (1, 2):
                stored_people.insert_user(tx, make_user(number))
            tenants.archive_organization(tx, 1)
            name = tenants.get_organization(tx).name
        erasure = erasures.ask(
            database, id=new_id(ids.ERASURE), organization_id=ORGANIZATION, user_id=None, confirm=name, reason="x", actor=FIRST, now=2
        )
        with database.platform() as tx:
            for approver in (FIRST, Operator(FIRST.key_id, KeyOrigin.SECOND)):  # whose groups make another origin of them by now
                with pytest.raises(Fault) as caught:
                    erasures.decide(tx, erasure.id, ApprovalDecision.APPROVED, approver=approver, now=3)
                assert caught.value.kind is STATE_CONFLICT
            return erasures.decide(tx, erasure.id, ApprovalDecision.APPROVED, approver=SECOND, now=3)

    return approve


def test_erased_organization_has_no_names_and_its_ledger_verifies(
    database: Database, archive: Archive, approved: Callable[[], Erasure]
) -> None:
    with database.tenant(ORGANIZATION, write=False) as tx:
        name = tenants.get_organization(tx).name
    approved()
    carry_out(database, 4)
    with database.tenant(ORGANIZATION, write=False) as tx:
        assert tenants.get_organization(tx).name == ORGANIZATION != name
    with database.platform(write=False) as tx:  # for gateways that follow, and for those that come back later
        found = publish.find_changes(tx, 0, 10_000)
        erased = OrganizationEntry(id=ORGANIZATION, currency="EUR", is_erased=True)
        assert found is not None and msgspec.json.decode(found[-1][1], type=Change).entry == erased
        lines = b"".join(publish.read_snapshot(tx)).splitlines()
        assert msgspec.json.encode(erased) in lines
        assert sum(ORGANIZATION.encode() in line for line in lines) == 1, "gateways of versions before it find nothing else of it"
    assert find_texts(database, "192.0.2.7") == set()
    assert verify(database, archive).differences == []
    assert verify_chains(database).findings == []


def test_143_record_that_was_changed_and_says_that_it_was_erased_is_found(database: Database, approved: Callable[[], Erasure]) -> None:
    approved()
    table = metadata.tables["audit_records"]
    own = sa.update(table).where(table.c.chain == ORGANIZATION)
    with pytest.raises(sa.exc.DBAPIError, match="never changed"), database.platform() as tx:  # of identities alone
        tx.connection.execute(own.values(target_id="org_1:conn_1:x", salt=None, erasure_id="audit_1"))
    with database.platform() as tx:  # the trigger lets an erasure that is being carried out through
        forged = sa.update(table).where(table.c.chain == ORGANIZATION, table.c.sequence == 1)
        tx.connection.execute(forged.values(changes="[]", salt=None, erasure_id="audit_1"))
    assert [each.sequence for each in verify_chains(database).findings] == [1]


def test_143_record_is_changed_by_nothing_but_an_approved_erasure(database: Database, approved: Callable[[], Erasure]) -> None:
    approved()
    carry_out(database, 4)
    table = metadata.tables["audit_records"]
    forged = sa.update(table).where(table.c.chain == ORGANIZATION, table.c.sequence == 1)
    with pytest.raises(sa.exc.DBAPIError, match="never changed"), database.platform() as tx:
        tx.connection.execute(forged.values(changes="[]", salt=None, erasure_id="audit_1"))


def test_erasure_that_fails_does_not_hold_up_those_after_it(
    database: Database, approved: Callable[[], Erasure], monkeypatch: pytest.MonkeyPatch
) -> None:
    approved()
    ada = make_user(3)
    with database.tenant(OTHER_ORGANIZATION) as tx:
        stored_people.insert_user(tx, ada)
        stored_people.remove_user(tx, ada.id, 2)
    approve_person(database, OTHER_ORGANIZATION, ada.id)
    monkeypatch.setattr(stored_erasures, "erase_organization", lambda _tx: 1 // 0)
    carried_out = erasures.carry_out(database, new_id, lambda: 4, lambda: False)
    assert next(carried_out).user_id == ada.id
    with pytest.raises(ZeroDivisionError):
        next(carried_out)


def approve_person(database: Database, organization_id: str, user_id: str) -> Erasure:
    asked = ask_for_person(database, organization_id, user_id)
    with database.platform() as tx:
        return erasures.decide(tx, asked.id, ApprovalDecision.APPROVED, approver=SECOND, now=3)


def ask_for_person(database: Database, organization_id: str, user_id: str) -> Erasure:
    return erasures.ask(
        database,
        id=new_id(ids.ERASURE),
        organization_id=organization_id,
        user_id=user_id,
        confirm=user_id,
        reason="x",
        actor=FIRST,
        now=2,
    )


def test_person_whom_a_directory_makes_active_again_is_not_erased(database: Database) -> None:
    ada = make_user(1)

    def put(*, is_active: bool) -> None:
        user = stored_scim.ScimUser(
            id=ada.id, email=ada.email, is_active=is_active, values={"userName": ada.email}, created_at=1, updated_at=2
        )
        with database.tenant(ORGANIZATION) as tx:
            stored_scim.put_user(tx, user, ada.name)

    with database.tenant(ORGANIZATION) as tx:
        stored_people.insert_user(tx, ada)
    put(is_active=False)
    asked = ask_for_person(database, ORGANIZATION, ada.id)
    put(is_active=True)
    with pytest.raises(Fault) as caught, database.platform() as platform:
        erasures.decide(platform, asked.id, ApprovalDecision.APPROVED, approver=SECOND, now=3)
    assert caught.value.kind is STATE_CONFLICT
    put(is_active=False)
    with database.platform() as platform:
        erasures.decide(platform, asked.id, ApprovalDecision.APPROVED, approver=SECOND, now=3)
    put(is_active=True)
    (ended,) = erasures.carry_out(database, new_id, lambda: 4, lambda: False)
    assert (ended.state, ended.records_erased) == (ErasureState.REJECTED, 0)
    with database.tenant(ORGANIZATION, write=False) as tx:
        assert stored_people.find_user(tx, ada.id) is not None


def test_person_is_found_by_their_keys_invitation_and_subjects_in_a_chain_of_many_steps(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasures, "READ_RECORDS", 3)
    monkeypatch.setattr(erasures, "STEP_RECORDS_MAX", 2)
    ada, subject, invite_id, key_id = make_user(1), "0|lovelace:" + "s" * 240, f"invite_{'1' * 32}", f"key_{'9' * 32}"
    old_id = f"{ORGANIZATION}:{CONNECTION}:lovelace:old"

    def append(tx: TenantTx, kind: ActorKind, id: str, *changes: RowChange) -> None:
        operation = AuditedOperation(event="x", operation="x", actor=Actor(kind=kind, id=id, address="192.0.2.7"), target=Target())
        audit.append(tx, operation, changes, 0, id=new_id(ids.AUDIT_RECORD), salt=audit.new_salt(new_id), now=1)

    operation = AuditedOperation(event="x", operation="x", actor=Actor(kind=ActorKind.PROVIDER, id=CONNECTION))
    with database.tenant(ORGANIZATION) as tx:
        stored_people.insert_user(tx, ada)
        invite = Invite(id=invite_id, email="lovelace@old.example.com", role_id="reader", created_at=1, expires_at=9)
        stored_people.insert_invite(tx, invite, Digest(1, bytes(32)), "key_1")
        assert stored_people.accept_invite(tx, invite_id, ada.id, 1)
        key = {"id": key_id, "type": "admin", "organization_id": ORGANIZATION, "name": "lovelace", "pepper_version": 1, "digest": bytes(32)}
        key |= {"redacted": "x", "created_at": 1, "user_id": ada.id}
        tx.connection.execute(metadata.tables["api_keys"].insert().values(key))
        connection = {"id": CONNECTION, "organization_id": ORGANIZATION, "name": "x", "issuer": "x", "client_id": "x", "domains": "[]"}
        connection |= {"trusts_addresses": False, "groups_claim": "groups", "groups": "{}", "is_enabled": True, "created_at": 1}
        tx.connection.execute(metadata.tables["sign_in_connections"].insert().values(connection))
        append(tx, ActorKind.INVITE, invite_id)
        for _ in range(7):
            append(tx, ActorKind.ADMIN_KEY, key_id)
        for number in range(8):
            append(tx, ActorKind.ADMIN_KEY, "key_of_somebody_else", RowChange(kind="project", id=str(number)))
        identity = {"connection_id": CONNECTION, "subject": "lovelace:old", "user_id": ada.id}
        append(tx, ActorKind.PROVIDER, CONNECTION, RowChange(kind="user_identity", id=old_id, after=identity))
    with database.recording(audit.record_in(operation, new_id=new_id, now=1)).tenant(ORGANIZATION) as tx:
        stored_connections.insert_identity(tx, CONNECTION, subject, ada.id)
    assert find_texts(database, subject, old_id, invite.email) == {"audit_records", "user_identities", "invites"}
    with database.tenant(ORGANIZATION) as tx:
        stored_people.remove_user(tx, ada.id, 2)
    approve_person(database, ORGANIZATION, ada.id)
    done = carry_out(database, 4)
    assert find_texts(database, "lovelace", ada.email, ada.name) == set()
    report = verify_chains(database)
    assert report.findings == [] and report.erased == done.records_erased == 10
