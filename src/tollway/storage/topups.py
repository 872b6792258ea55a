"""Top-ups of credit at rest: the rules of organizations, and what they asked for."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from tollway.domain.credits import Topup, TopupRule
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema_credits import credit_topup_rules, credit_topups


def put_rule(tx: PlatformTx, organization_id: str, rule: TopupRule | None, now: int) -> None:
    """Store the rule of an organization in place of the one before; None for no rule."""
    if rule is None:
        tx.connection.execute(credit_topup_rules.delete().where(credit_topup_rules.c.organization_id == organization_id))
        return
    values = {
        "threshold_pico": rule.threshold_pico,
        "amount_pico": rule.amount_pico,
        "cooloff_seconds": rule.cooloff_seconds,
        "changed_at": now,
    }
    insert = tx.insert(credit_topup_rules).values(organization_id=organization_id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["organization_id"], set_=values))


def find_rules(tx: Transaction, organization_ids: Iterable[str]) -> dict[str, TopupRule]:
    """Return the rules of these organizations, by organization."""
    return _read_rules(tx, _select_rules(organization_ids))


def lock_rules(tx: PlatformTx, organization_ids: Iterable[str]) -> dict[str, TopupRule]:
    """Return what `find_rules` does, in order and under a lock, so that one transaction at a time asks for a top-up."""
    return _read_rules(tx, _select_rules(organization_ids).order_by(credit_topup_rules.c.organization_id).with_for_update())


def _select_rules(organization_ids: Iterable[str]) -> sa.Select[Any]:
    return sa.select(credit_topup_rules).where(credit_topup_rules.c.organization_id.in_(sorted(organization_ids)))


def _read_rules(tx: Transaction, query: sa.Select[Any]) -> dict[str, TopupRule]:
    return {
        row.organization_id: TopupRule(row.threshold_pico, row.amount_pico, row.cooloff_seconds) for row in tx.connection.execute(query)
    }


def insert_topup(tx: PlatformTx, topup: Topup) -> None:
    """Store that a top-up is asked for."""
    tx.connection.execute(
        credit_topups.insert().values(
            id=topup.id,
            organization_id=topup.organization_id,
            amount_pico=topup.amount_pico,
            usable_pico=topup.usable_pico,
            requested_at=topup.requested_at,
        )
    )


def find_latest(tx: Transaction, organization_id: str) -> Topup | None:
    """Return the latest top-up of an organization."""
    query = sa.select(credit_topups).where(credit_topups.c.organization_id == organization_id)
    row = tx.connection.execute(query.order_by(credit_topups.c.requested_at.desc()).limit(1)).one_or_none()
    return None if row is None else _topup(row)


def answer_topup(tx: PlatformTx, organization_id: str, topup_id: str, grant_id: str) -> bool:
    """Store the grant that answers a top-up of an organization; False if there is no such top-up, or it was answered before."""
    own = credit_topups.update().where(
        credit_topups.c.organization_id == organization_id, credit_topups.c.id == topup_id, credit_topups.c.grant_id.is_(None)
    )
    return tx.connection.execute(own.values(grant_id=grant_id)).rowcount == 1


def list_topups(tx: PlatformTx, window: PageWindow, *, only_open: bool) -> Page[Topup]:
    """Return the top-ups of all organizations, by id; those alone that no grant has answered, if `only_open`."""
    query = sa.select(credit_topups)
    if only_open:
        query = query.where(credit_topups.c.grant_id.is_(None))
    return fetch_page(tx, query, credit_topups.c.id, window, _topup)


def _topup(row: Any) -> Topup:
    return Topup(
        id=row.id,
        organization_id=row.organization_id,
        amount_pico=row.amount_pico,
        usable_pico=row.usable_pico,
        requested_at=row.requested_at,
        grant_id=row.grant_id,
    )
