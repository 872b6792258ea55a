"""Verification of audit chains on both databases: a changed, removed, moved or inserted record is found, whichever column it concerns."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from tests.link.samples import ORGANIZATION
from tests.storage.databases import become_owner
from tollway.control.auditing import audit, audit_chains
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.auditing.audit_chains import DAY_US, find_public_key, remove_old, sign_checkpoints, verify
from tollway.domain import ids
from tollway.domain.audit import GENESIS, PLATFORM_CHAIN, SALT_BYTES, Actor, RowChange, Target
from tollway.storage.database import Database, PlatformTx
from tollway.storage.schema_audit import audit_checkpoints, audit_cuts, audit_heads, audit_records

KEY = secrets.token_bytes(audit_chains.KEY_BYTES)
NOW = 1_790_000_000_000_000
RECORDS = 6
SIGNED = 4
"""Records of each chain, and how many of them the checkpoint covers."""


def append(database: Database, number: int, at: int) -> None:
    actor = Actor(kind="operator", id=f"key_{number}", address="192.0.2.1", request_id=f"req_{number}")
    target = Target(kind="project", id=f"proj_{number}", project_id=f"proj_{number}")
    operation = AuditedOperation(event="project.updated", operation="update_project", actor=actor, target=target)
    change = RowChange(kind="project", id=f"proj_{number}", before={"name": "a"}, after={"name": "b"})
    for place in (database.platform, lambda: database.tenant(ORGANIZATION)):
        with place() as tx:
            id = ids.new_id(ids.AUDIT_RECORD, at, secrets.randbits(74))
            audit.append(tx, operation, [change], 0, id=id, salt=secrets.token_bytes(SALT_BYTES), now=at)


@pytest.fixture
def chains(database: Database) -> Database:
    """Two chains of RECORDS records, a day apart; a checkpoint of the first SIGNED of them."""
    for number in range(1, RECORDS + 1):
        append(database, number, NOW + number * DAY_US)
        if number == SIGNED:
            assert len(list(sign_checkpoints(database, KEY, NOW))) == 2
    return database


@contextmanager
def tampered(database: Database) -> Iterator[PlatformTx]:
    """A transaction whose guards are off, and which is rolled back."""

    class _Over(Exception):
        pass

    try:
        with database.platform() as tx:
            if database.is_sqlite:
                names = tx.connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name LIKE 'audit%'"))
                for name in names.scalars().all():
                    tx.connection.execute(sa.text(f"DROP TRIGGER {name}"))
            else:
                become_owner(tx)
                tx.connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            yield tx
            raise _Over
    except _Over:
        pass


def find_places(tx: PlatformTx) -> set[tuple[str, int]]:
    return {(finding.chain, finding.sequence) for finding in verify(tx, [find_public_key(KEY)]).findings}


def test_chains_as_they_were_written_have_no_findings(chains: Database) -> None:
    with chains.platform(write=False) as tx:
        report = verify(tx, [find_public_key(KEY)])
    assert report.findings == []
    assert (report.chains, report.records, report.checkpoints, report.unsigned) == (2, 2 * RECORDS, 2, 2 * (RECORDS - SIGNED))


@pytest.mark.parametrize("table", [audit_records, audit_heads, audit_checkpoints], ids=lambda table: table.name)
def test_change_of_any_column_is_found(chains: Database, table: sa.Table) -> None:
    for column in table.c:
        is_text = isinstance(column.type, sa.String)
        value: object = b"\x07" * 32 if isinstance(column.type, sa.LargeBinary) else "changed" if is_text else 77
        with tampered(chains) as tx:
            own = table.update().where(table.c.chain == PLATFORM_CHAIN)
            if "sequence" in table.primary_key.columns:
                own = own.where(table.c.sequence == SIGNED)
            assert tx.connection.execute(own.values({column.name: value})).rowcount == 1
            assert find_places(tx), f"a change of {table.name}.{column.name} was not found"
    with chains.platform(write=False) as tx:
        assert find_places(tx) == set()


def remove(tx: PlatformTx, condition: sa.ColumnElement[bool]) -> None:
    tx.connection.execute(audit_records.delete().where(audit_records.c.chain == PLATFORM_CHAIN, condition))


def swap(tx: PlatformTx) -> None:
    for old, new in ((2, 99), (3, 2), (99, 3)):
        moved = audit_records.update().where(audit_records.c.chain == PLATFORM_CHAIN, audit_records.c.sequence == old)
        tx.connection.execute(moved.values(sequence=new))


def insert(tx: PlatformTx) -> None:
    column = audit_records.c
    later = audit_records.update().where(column.chain == PLATFORM_CHAIN, column.sequence == RECORDS)
    tx.connection.execute(later.values(sequence=RECORDS + 1))
    row = tx.connection.execute(sa.select(audit_records).where(column.chain == PLATFORM_CHAIN, column.sequence == 1)).mappings().one()
    tx.connection.execute(audit_records.insert().values({**row, "sequence": RECORDS, "id": "audit_inserted"}))


def remove_end(tx: PlatformTx) -> None:
    """Remove the records that were signed, and those after them, and make the head fit."""
    remove(tx, audit_records.c.sequence >= SIGNED)
    last = sa.and_(audit_records.c.chain == PLATFORM_CHAIN, audit_records.c.sequence == SIGNED - 1)
    hash = tx.connection.execute(sa.select(audit_records.c.hash).where(last)).scalar_one()
    tx.connection.execute(audit_heads.update().where(audit_heads.c.chain == PLATFORM_CHAIN).values(sequence=SIGNED - 1, hash=hash))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda tx: remove(tx, audit_records.c.sequence == 2),
        lambda tx: remove(tx, audit_records.c.sequence == RECORDS),
        lambda tx: remove(tx, sa.true()),
        swap,
        insert,
        remove_end,
    ],
    ids=["one removed", "last removed", "all removed", "two swapped", "one inserted", "signed ones removed with a fitting head"],
)
def test_record_that_was_removed_moved_or_inserted_is_found_in_its_chain(chains: Database, tamper: Callable[[PlatformTx], None]) -> None:
    with tampered(chains) as tx:
        tamper(tx)
        assert {chain for chain, _ in find_places(tx)} == {PLATFORM_CHAIN}


def test_chain_that_was_written_anew_and_signed_with_another_key_is_found(database: Database) -> None:
    append(database, 1, NOW)
    list(sign_checkpoints(database, secrets.token_bytes(32), NOW))
    with database.platform(write=False) as tx:
        assert (PLATFORM_CHAIN, 1) in find_places(tx)
        assert verify(tx, []).findings == [], "any key is accepted where none is trusted"


def test_retention_removes_up_to_a_checkpoint_and_the_rest_stays_provable(chains: Database) -> None:
    assert list(remove_old(chains, 30, NOW + 30 * DAY_US)) == []
    assert dict(remove_old(chains, 1, NOW + 40 * DAY_US)) == {PLATFORM_CHAIN: SIGNED, ORGANIZATION: SIGNED}, "the rest is not signed"
    with chains.platform(write=False) as tx:
        report = verify(tx, [find_public_key(KEY)])
    assert (report.findings, report.removed, report.records) == ([], 2 * SIGNED, 2 * (RECORDS - SIGNED))
    append(chains, RECORDS + 1, NOW + 41 * DAY_US)
    with tampered(chains) as tx:
        tx.connection.execute(audit_checkpoints.update().where(audit_checkpoints.c.chain == PLATFORM_CHAIN).values(hash=GENESIS))
        assert find_places(tx)


def test_database_refuses_a_cut_without_a_checkpoint_and_a_removal_beyond_the_cut(chains: Database) -> None:
    for statement in (
        audit_cuts.insert().values(chain=PLATFORM_CHAIN, sequence=SIGNED + 1, cut_at=NOW),
        audit_records.delete().where(audit_records.c.sequence > 1),
        audit_checkpoints.delete(),
        audit_checkpoints.update().values(signed_at=1),
    ):
        with pytest.raises(sa.exc.DBAPIError), chains.platform() as tx:
            tx.connection.execute(statement)
