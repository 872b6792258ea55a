"""Erasures of people and organizations: two persons, nothing left of what was erased, ledger and audit trail that still verify."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from tests.control.browsing import find_user_id, join
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.metering.test_collect import exchanges, take
from tests.control.test_routes import refused
from tests.link.samples import ORGANIZATION, frames
from tollway.control.auditing import audit, audit_chains
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.auditing.audit_chains import ChainsReport
from tollway.control.tenancy import erasures, tenants
from tollway.control.verification.verify import verify
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.corrections import ApprovalDecision
from tollway.domain.erasures import Erasure, ErasureState
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.keys import KeyOrigin, Operator
from tollway.serve.control import new_id
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive
from tollway.storage.schema import metadata

ERASURES = "/v1/platform/erasures"


@pytest.fixture(scope="module")
def acme(control: Running) -> TenantSetup:
    return make_tenant(control, "acme of the erasures")


@pytest.fixture
def second(control: Running) -> httpx2.Client:
    """The operator who approves."""
    return control.client(control.second_platform_key)


def carry_out(database: Database, now: int) -> Erasure:
    """Carry out the one erasure that was approved, to its end."""
    done = None
    while (step := erasures.carry_out_next(database, new_id, now)) is not None:
        done = step
    assert done is not None and done.state is ErasureState.DONE
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
    first, other = Operator("key_1", KeyOrigin.FIRST), Operator("key_2", KeyOrigin.SECOND)

    def approve() -> Erasure:
        take(database, archive, frames(exchanges([1, 2, 3])))
        operation = AuditedOperation(
            event="project.created", operation="x", actor=Actor(kind=ActorKind.COMMAND, id="x", address="192.0.2.7")
        )
        recording = database.recording(audit.record_in(operation, new_id=new_id, now=1))
        with recording.tenant(ORGANIZATION) as tx:
            tenants.archive_organization(tx, 1)
            name = tenants.get_organization(tx).name
        erasure = erasures.ask(
            database, id=new_id(ids.ERASURE), organization_id=ORGANIZATION, user_id=None, confirm=name, reason="x", actor=first, now=2
        )
        with database.platform() as tx:
            with pytest.raises(Fault) as caught:
                erasures.decide(tx, erasure.id, ApprovalDecision.APPROVED, approver=first, now=3)
            assert caught.value.kind is STATE_CONFLICT
            return erasures.decide(tx, erasure.id, ApprovalDecision.APPROVED, approver=other, now=3)

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
    assert find_texts(database, "192.0.2.7") == set()
    assert verify(database, archive).differences == []
    assert verify_chains(database).findings == []


def test_143_record_that_was_changed_and_says_that_it_was_erased_is_found(database: Database, approved: Callable[[], Erasure]) -> None:
    approved()
    table = metadata.tables["audit_records"]
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
