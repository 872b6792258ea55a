"""Legal entities and billing accounts at rest."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.billing_parties import BillingAccount, LegalEntity
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema_invoices import billing_accounts, legal_entities


def put_entity(tx: PlatformTx, entity: LegalEntity) -> None:
    """Store a legal entity, in place of what stood there."""
    details = msgspec.json.encode(entity).decode()
    values = {"name": entity.name, "details": details, "grace_days": entity.grace_days, "created_at": entity.created_at}
    insert = tx.insert(legal_entities).values(id=entity.id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=values))


def find_entity(tx: Transaction, entity_id: str) -> LegalEntity | None:
    """Return a legal entity."""
    row = tx.connection.execute(sa.select(legal_entities).where(legal_entities.c.id == entity_id)).one_or_none()
    return None if row is None else _entity(row)


def list_entities(tx: Transaction, window: PageWindow) -> Page[LegalEntity]:
    """Return legal entities in the order in which they were made."""
    return fetch_page(tx, sa.select(legal_entities), legal_entities.c.id, window, _entity)


def lock_entities(tx: PlatformTx, entity_ids: Sequence[str]) -> None:
    """Have legal entities alone until this transaction ends, among those that lock them too; documents may still name them."""
    query = sa.select(legal_entities.c.id).where(legal_entities.c.id.in_(entity_ids)).order_by(legal_entities.c.id)
    tx.connection.execute(query.with_for_update(key_share=True)).all()


def _entity(row: Any) -> LegalEntity:
    return msgspec.json.decode(row.details, type=LegalEntity)


def put_account(tx: PlatformTx, account: BillingAccount, now: int) -> None:
    """Store the billing account of an organization, in place of what stood there."""
    values = {
        "legal_entity_id": account.legal_entity_id,
        "details": msgspec.json.encode(account).decode(),
        "changed_at": now,
        "mandate_reference": None if account.mandate is None else account.mandate.reference,
    }
    insert = tx.insert(billing_accounts).values(organization_id=account.organization_id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["organization_id"], set_=values))


def has_mandate(tx: PlatformTx, entity_id: str, reference: str, *, but_of: str) -> bool:
    """Return whether another organization than one gave a seller a mandate with this reference."""
    table = billing_accounts.c
    query = sa.select(table.organization_id).where(table.legal_entity_id == entity_id, table.mandate_reference == reference)
    query = query.where(table.organization_id != but_of)
    return tx.connection.execute(query.limit(1)).first() is not None


def find_account(tx: Transaction, organization_id: str, *, lock: bool = False) -> BillingAccount | None:
    """Return the billing account of an organization. `lock`: until the transaction ends."""
    query = sa.select(billing_accounts).where(billing_accounts.c.organization_id == organization_id)
    row = tx.connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else msgspec.json.decode(row.details, type=BillingAccount)


def list_accounts(tx: PlatformTx, *, after: str, limit: int) -> list[BillingAccount]:
    """Return billing accounts of organizations after an id, in order."""
    query = sa.select(billing_accounts.c.details).where(billing_accounts.c.organization_id > after)
    rows = tx.connection.execute(query.order_by(billing_accounts.c.organization_id).limit(limit))
    return [msgspec.json.decode(details, type=BillingAccount) for details in rows.scalars()]
