"""Top-ups of credit at rest: the rules of organizations, and what they asked for."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from tollway.domain.credits import Topup, TopupInterval, TopupRule
from tollway.domain.events import EventType, new_event
from tollway.domain.pages import Page, PageWindow
from tollway.storage import outbox
from tollway.storage.bulk_statements import any_of
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations
from tollway.storage.schema_credits import credit_topup_rules, credit_topups


def delete_rule(tx: PlatformTx, organization_id: str) -> None:
    """Remove the rule of an organization, if it has one."""
    tx.connection.execute(credit_topup_rules.delete().where(credit_topup_rules.c.organization_id == organization_id))


def put_rule(tx: PlatformTx, organization_id: str, rule: TopupRule, now: int) -> None:
    """Store the rule of an organization in place of the one before."""
    values = {
        "threshold_pico": rule.threshold_pico,
        "amount_pico": rule.amount_pico,
        "cooloff_seconds": rule.cooloff_seconds,
        "every": rule.every,
        "next_at": rule.next_at,
        "changed_at": now,
    }
    insert = tx.insert(credit_topup_rules).values(organization_id=organization_id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["organization_id"], set_=values))


def find_rules(tx: Transaction, organization_ids: Iterable[str]) -> dict[str, TopupRule]:
    """Return the rules of these organizations, by organization."""
    return _read_rules(tx, _select_rules(tx, organization_ids))


def lock_rules(tx: PlatformTx, organization_ids: Iterable[str]) -> dict[str, TopupRule]:
    """Return what `find_rules` does, in order and under a lock, so that one transaction at a time asks for a top-up."""
    return _read_rules(tx, _select_rules(tx, organization_ids).order_by(credit_topup_rules.c.organization_id).with_for_update())


def _select_rules(tx: Transaction, organization_ids: Iterable[str]) -> sa.Select[Any]:
    return sa.select(credit_topup_rules).where(any_of(tx, credit_topup_rules.c.organization_id, sorted(organization_ids)))


def _read_rules(tx: Transaction, query: sa.Select[Any]) -> dict[str, TopupRule]:
    return {
        row.organization_id: TopupRule(
            row.threshold_pico,
            row.amount_pico,
            row.cooloff_seconds,
            None if row.every is None else TopupInterval(row.every),
            row.next_at,
        )
        for row in tx.connection.execute(query)
    }


def find_due(tx: Transaction, now: int) -> str | None:
    """Return the organization that has waited longest for a top-up that its rule asks for at an interval; None if there is none. Archived
    organizations ask for nothing."""
    rule = credit_topup_rules.c
    due = sa.select(rule.organization_id).join(organizations, organizations.c.id == rule.organization_id)
    due = due.where(rule.next_at <= now, organizations.c.archived_at.is_(None)).order_by(rule.next_at, rule.organization_id)
    found: str | None = tx.connection.execute(due.limit(1)).scalar_one_or_none()
    return found


def put_next(tx: PlatformTx, organization_id: str, next_at: int) -> None:
    """Store the start of the next period for which the rule of an organization asks for credit."""
    own = credit_topup_rules.update().where(credit_topup_rules.c.organization_id == organization_id)
    tx.connection.execute(own.values(next_at=next_at))


def insert_topup(tx: PlatformTx, topup: Topup) -> None:
    """Store that a top-up is asked for; one that was asked for already, or for the same period, is left as it is."""
    insert = tx.insert(credit_topups).values(
        id=topup.id,
        organization_id=topup.organization_id,
        amount_pico=topup.amount_pico,
        usable_pico=topup.usable_pico,
        requested_at=topup.requested_at,
        period_at=topup.period_at,
    )
    if tx.connection.execute(insert.on_conflict_do_nothing().returning(credit_topups.c.id)).first() is not None:
        said = {"id": topup.id, "is_low": topup.period_at is None}
        outbox.append(tx, [new_event(EventType.CREDIT_TOPUP_REQUESTED, topup.organization_id, at=topup.requested_at, data=said)])


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
        period_at=row.period_at,
        grant_id=row.grant_id,
    )
