"""Files of credit transfers and their transfers, at rest."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tollway.domain.credit_transfers import CreditTransfer, TransferFile, TransferOutcome
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.direct_debits import FILES_FETCHED
from tollway.storage.pages import fetch_page
from tollway.storage.payments import ROWS_FETCHED
from tollway.storage.schema_payments import credit_transfer_files, credit_transfers


def put_transfer(tx: PlatformTx, transfer: CreditTransfer) -> None:
    """Store the transfer of a refund, new or changed."""
    values = msgspec.structs.asdict(transfer)
    insert = (sqlite if tx.connection.dialect.name == "sqlite" else postgresql).insert(credit_transfers).values(values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["payment_id"], set_=values))


def find_transfer(tx: Transaction, payment_id: str) -> CreditTransfer | None:
    """Return the transfer of a refund."""
    row = tx.connection.execute(sa.select(credit_transfers).where(credit_transfers.c.payment_id == payment_id)).one_or_none()
    return None if row is None else _transfer(row)


def list_waiting(tx: PlatformTx, entity_id: str, *, limit: int) -> list[CreditTransfer]:
    """Return transfers of a seller that wait for a file, the oldest refund first."""
    table = credit_transfers.c
    query = sa.select(credit_transfers).where(table.legal_entity_id == entity_id, table.outcome == TransferOutcome.WAITING)
    return [_transfer(row) for row in tx.connection.execute(query.order_by(table.payment_id).limit(limit))]


def insert_file(tx: PlatformTx, file: TransferFile, transfers: Sequence[CreditTransfer]) -> None:
    """Store a file, and that it has these transfers."""
    tx.connection.execute(credit_transfer_files.insert().values(msgspec.structs.asdict(file)))
    update = credit_transfers.update().where(credit_transfers.c.payment_id.in_([each.payment_id for each in transfers]))
    tx.connection.execute(update.values(outcome=TransferOutcome.OPEN, file_id=file.id))


def find_file(tx: Transaction, file_id: str) -> TransferFile | None:
    """Return a file."""
    row = tx.connection.execute(sa.select(credit_transfer_files).where(credit_transfer_files.c.id == file_id)).one_or_none()
    return None if row is None else TransferFile(**row._mapping)


def list_files(tx: PlatformTx, window: PageWindow) -> Page[TransferFile]:
    """Return files in the order in which they were made."""
    return fetch_page(tx, sa.select(credit_transfer_files), credit_transfer_files.c.id, window, lambda row: TransferFile(**row._mapping))


def list_transfers(tx: Transaction, file_id: str) -> list[CreditTransfer]:
    """Return the transfers that a file has, by refund; those that were cancelled are left out."""
    query = sa.select(credit_transfers).where(credit_transfers.c.file_id == file_id).order_by(credit_transfers.c.payment_id)
    return [_transfer(row) for row in tx.connection.execute(query)]


def iterate_transfers(tx: PlatformTx) -> Iterator[CreditTransfer]:
    """Yield every transfer: for verification."""
    query = sa.select(credit_transfers).order_by(credit_transfers.c.payment_id).execution_options(yield_per=ROWS_FETCHED)
    for row in tx.connection.execute(query):
        yield _transfer(row)


def iterate_files(tx: PlatformTx) -> Iterator[TransferFile]:
    """Yield every file: for verification."""
    query = sa.select(credit_transfer_files).order_by(credit_transfer_files.c.id).execution_options(yield_per=FILES_FETCHED)
    for row in tx.connection.execute(query):
        yield TransferFile(**row._mapping)


def find_by_reference(tx: Transaction, end_to_end_id: str, amount_minor: int, entity_ids: Collection[str]) -> CreditTransfer | None:
    """Return the transfer of one of some sellers that has a reference and an amount."""
    table = credit_transfers.c
    query = sa.select(credit_transfers).where(table.end_to_end_id == end_to_end_id, table.amount_minor == amount_minor)
    row = tx.connection.execute(query.where(table.legal_entity_id.in_(entity_ids))).one_or_none()
    return None if row is None else _transfer(row)


def put_outcome(tx: PlatformTx, payment_id: str, outcome: TransferOutcome, reason: str = "") -> None:
    """Store what became of a transfer."""
    update = credit_transfers.update().where(credit_transfers.c.payment_id == payment_id)
    tx.connection.execute(update.values(outcome=outcome, reason=reason))


def cancel(tx: PlatformTx, file_id: str, payment_ids: Collection[str]) -> int:
    """Let the open transfers of a file wait again; those of `payment_ids` alone, if any are named. Returns how many."""
    table = credit_transfers.c
    update = credit_transfers.update().where(table.file_id == file_id, table.outcome == TransferOutcome.OPEN)
    if payment_ids:
        update = update.where(table.payment_id.in_(payment_ids))
    return tx.connection.execute(update.values(outcome=TransferOutcome.WAITING, file_id=None)).rowcount


def _transfer(row: Any) -> CreditTransfer:
    return CreditTransfer(**{**row._mapping, "outcome": TransferOutcome(row.outcome)})
