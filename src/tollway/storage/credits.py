"""Credits at rest: grants, what usage has drawn of them in each period, and the transactions of their accounts.

`lock_open` comes before anything is drawn. Its lock lasts to the end of the transaction, so of two that draw on the grants of an
organization the second sees what the first did.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain.billing_classes import BillingClass
from tollway.domain.credits import MINUTE_US, CreditGrant, CreditMove, CreditScope, CreditTransaction, CreditUsage, GrantCategory
from tollway.domain.events import EventType, new_event
from tollway.domain.ledger import Entry
from tollway.domain.pages import Page, PageWindow
from tollway.storage import ledger, outbox
from tollway.storage.bulk_statements import Upsert, any_of, upsert_rows
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.schema_credits import credit_draws, credit_grants, credit_redraw_usage, credit_redraws, credit_transactions
from tollway.storage.schema_money import amount_text, usage_events

ROWS_FETCHED = 1000
"""Rows that are read at once where there may be many."""

EVENTS_SUMMED = 20_000
"""Events that one statement sums."""

# ---- Grants -------------------------------------------------------------------------------------------------------------


def insert_grant(tx: PlatformTx, grant: CreditGrant) -> None:
    """Store a new grant."""
    tx.connection.execute(
        credit_grants.insert().values(
            id=grant.id,
            organization_id=grant.organization_id,
            category=grant.category,
            amount_pico=grant.amount_pico,
            currency=grant.currency,
            cost_basis_bp=grant.cost_basis_bp,
            priority=grant.priority,
            effective_at=grant.effective_at,
            expires_at=grant.expires_at,
            created_at=grant.created_at,
            reference=grant.reference,
            project_id=grant.project_id,
            model=grant.model or None,
            models="\n".join(grant.models) if grant.model else None,
            voided_at=grant.voided_at,
        )
    )
    outbox.append(tx, [new_event(EventType.CREDIT_GRANTED, grant.organization_id, at=grant.created_at, data={"id": grant.id})])


def void_grant(tx: PlatformTx, grant: CreditGrant, at: int) -> None:
    """Store that no request from an instant on can use a grant."""
    tx.connection.execute(credit_grants.update().where(credit_grants.c.id == grant.id).values(voided_at=at))
    outbox.append(tx, [new_event(EventType.CREDIT_VOIDED, grant.organization_id, at=at, data={"id": grant.id})])


def close_grants(tx: PlatformTx, grant_ids: Sequence[str], now: int) -> None:
    """Store that nothing is left of grants, and nothing can be drawn of them any more."""
    tx.connection.execute(credit_grants.update().where(credit_grants.c.id.in_(grant_ids)).values(closed_at=now))


def find_grant(tx: Transaction, organization_id: str, grant_id: str) -> CreditGrant | None:
    """Return a grant of an organization, whatever is left of it."""
    query = sa.select(credit_grants).where(credit_grants.c.organization_id == organization_id, credit_grants.c.id == grant_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _grant(row)


def find_holders(tx: Transaction, organization_ids: Iterable[str]) -> set[str]:
    """Return those of these organizations that have open grants."""
    query = sa.select(credit_grants.c.organization_id).where(
        any_of(tx, credit_grants.c.organization_id, sorted(organization_ids)), credit_grants.c.closed_at.is_(None)
    )
    return set(tx.connection.execute(query.distinct()).scalars())


def list_open(tx: Transaction, organization_id: str) -> list[CreditGrant]:
    """Return the grants of an organization of which something may be left, by id."""
    return [_grant(row) for row in tx.connection.execute(_select_open(organization_id))]


def list_scopes(tx: Transaction, organization_ids: Iterable[str]) -> dict[str, tuple[CreditScope, ...]]:
    """Return what the open grants with a scope are for, by organization, in order."""
    column = credit_grants.c
    query = sa.select(column.organization_id, column.project_id, column.models).where(
        column.organization_id.in_(sorted(organization_ids)),
        column.closed_at.is_(None),
        sa.or_(column.project_id.is_not(None), column.model.is_not(None)),
    )
    found: dict[str, set[CreditScope]] = {}
    for row in tx.connection.execute(query):
        models = tuple(row.models.split("\n")) if row.models else ()
        found.setdefault(row.organization_id, set()).add(CreditScope(row.project_id or "", models))
    return {id: tuple(sorted(scopes)) for id, scopes in found.items()}


def lock_open(tx: PlatformTx, organization_id: str) -> list[CreditGrant]:
    """Return what `list_open` does, under a lock."""
    return [_grant(row) for row in tx.connection.execute(_select_open(organization_id).with_for_update())]


def lock_open_of(tx: PlatformTx, organization_ids: Sequence[str]) -> dict[str, list[CreditGrant]]:
    """Return what `lock_open` does, of several organizations, in an order that everyone follows. Those without open grants are left out."""
    column = credit_grants.c
    query = sa.select(credit_grants).where(any_of(tx, column.organization_id, organization_ids), column.closed_at.is_(None))
    found: dict[str, list[CreditGrant]] = {}
    for row in tx.connection.execute(query.order_by(column.organization_id, column.id).with_for_update()):
        found.setdefault(row.organization_id, []).append(_grant(row))
    return found


def _select_open(organization_id: str) -> sa.Select[Any]:
    own = sa.select(credit_grants).where(credit_grants.c.organization_id == organization_id, credit_grants.c.closed_at.is_(None))
    return own.order_by(credit_grants.c.id)


def list_open_at(tx: Transaction, organization_id: str, before: int, closed_at: int) -> list[CreditGrant]:
    """Return the grants of an organization that begin before an instant, and were open until another one at least, by id."""
    column = credit_grants.c
    query = sa.select(credit_grants).where(
        column.organization_id == organization_id,
        column.effective_at < before,
        sa.or_(column.closed_at.is_(None), column.closed_at >= closed_at),
    )
    return [_grant(row) for row in tx.connection.execute(query.order_by(column.id))]


def iterate_grants(tx: PlatformTx) -> Iterator[CreditGrant]:
    """Yield the grants of all organizations, by organization and id: for verification."""
    query = sa.select(credit_grants).order_by(credit_grants.c.organization_id, credit_grants.c.id)
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        yield _grant(row)


def _grant(row: Any) -> CreditGrant:
    return CreditGrant(
        id=row.id,
        organization_id=row.organization_id,
        category=GrantCategory(row.category),
        amount_pico=row.amount_pico,
        currency=row.currency,
        cost_basis_bp=row.cost_basis_bp,
        priority=row.priority,
        effective_at=row.effective_at,
        expires_at=row.expires_at,
        created_at=row.created_at,
        reference=row.reference,
        project_id=row.project_id,
        model=row.model or "",
        models=tuple(row.models.split("\n")) if row.models else (),
        voided_at=row.voided_at,
    )


# ---- Draws --------------------------------------------------------------------------------------------------------------


def list_draws(tx: Transaction, grant_ids: Sequence[str]) -> dict[tuple[str, int], int]:
    """Return what was drawn of grants, by grant and period."""
    query = sa.select(credit_draws).where(any_of(tx, credit_draws.c.grant_id, grant_ids))
    return {(row.grant_id, row.period_at): row.drawn_pico for row in tx.connection.execute(query)}


def put_draws(tx: PlatformTx, organization_id: str, period_at: int, drawn: Mapping[str, int], *, is_final: bool) -> None:
    """Store what the usage of a period has drawn of grants, by grant, in place of what stood there."""
    put_draw_rows(tx, [DrawRow(organization_id, grant_id, period_at, drawn[grant_id], is_final) for grant_id in sorted(drawn)])


class DrawRow(NamedTuple):
    """A draw of the usage of a period on a grant, final once the period is closed."""

    organization_id: str
    grant_id: str
    period_at: int
    drawn_pico: int
    is_final: bool


_PUT_DRAWS = Upsert(
    credit_draws,
    key=("organization_id", "grant_id", "period_at"),
    changes={name: f"excluded.{name}" for name in ("drawn_pico", "is_final")},
)


def put_draw_rows(tx: PlatformTx, rows: Iterable[DrawRow]) -> None:
    """Store draws, of which no two are of one grant and period, in place of what stood there."""
    drawn = [(*row[:3], amount_text(row.drawn_pico), row.is_final) for row in rows]
    if drawn:
        upsert_rows(tx, _PUT_DRAWS, drawn)


def iterate_draws(tx: PlatformTx) -> Iterator[DrawRow]:
    """Yield what usage has drawn on all grants: for verification."""
    for row in tx.connection.execute(sa.select(credit_draws).execution_options(yield_per=ROWS_FETCHED)):
        yield DrawRow(*row)


def list_provisional(tx: Transaction, organization_id: str, after: int) -> dict[tuple[str, int], int]:
    """Return what was drawn by the usage of periods that begin after an instant and are not closed, by grant and period: also of grants
    that are closed."""
    column = credit_draws.c
    query = sa.select(credit_draws).where(column.organization_id == organization_id, column.period_at > after, column.is_final.is_(False))
    return {(row.grant_id, row.period_at): row.drawn_pico for row in tx.connection.execute(query) if row.drawn_pico}


def sum_usage(tx: Transaction, organization_id: str, period_at: int) -> dict[CreditUsage, int]:
    """Return what the events of an organization that are booked in a period cost, by minute of admission, project and model."""
    usage: dict[CreditUsage, int] = {}
    for part in iterate_usage(tx, organization_id, period_at):
        add_usage(usage, part)
    return usage


def add_usage(usage: dict[CreditUsage, int], more: Mapping[CreditUsage, int]) -> None:
    """Add what other events cost."""
    for place, pico in more.items():
        usage[place] = usage.get(place, 0) + pico


def iterate_usage(tx: Transaction, organization_id: str, period_at: int) -> Iterator[dict[CreditUsage, int]]:
    """Yield what `sum_usage` returns in parts. A statement sums EVENTS_SUMMED events, so that none reaches its deadline however many there
    are."""
    event = usage_events.c
    cost = sum((sa.func.coalesce(event[f"{each}_pico"], 0) for each in BillingClass), start=sa.literal(0))
    columns = (event.event_id, (event.admitted_at // MINUTE_US).label("minute"), event.project_id, event.model, cost.label("cost"))
    own = sa.select(*columns).where(event.organization_id == organization_id, event.period_at == period_at).order_by(event.event_id)
    after, events = "", EVENTS_SUMMED
    while events == EVENTS_SUMMED:
        part = own.where(event.event_id > after).limit(EVENTS_SUMMED).subquery().c
        sums = (sa.func.sum(part.cost).label("pico"), sa.func.count().label("events"), sa.func.max(part.event_id).label("last"))
        query = sa.select(part.minute, part.project_id, part.model, *sums).group_by(part.minute, part.project_id, part.model)
        rows = tx.connection.execute(query).all()
        yield {CreditUsage(int(row.minute) * MINUTE_US, row.project_id, row.model): int(row.pico) for row in rows if row.pico}
        events, after = sum(row.events for row in rows), max((row.last for row in rows), default="")


# ---- Draws that are made anew -------------------------------------------------------------------------------------------


class Redraw(NamedTuple):
    """A period whose draws are to be made anew. `closed_at`: the start of the period whose close is the cause."""

    closed_at: int
    uncovered_pico: int


def put_redraw(tx: PlatformTx, organization_id: str, period_at: int, redraw: Redraw) -> None:
    """Store that the draws of a period are to be made anew."""
    key = {"organization_id": organization_id, "period_at": period_at}
    insert = tx.insert(credit_redraws).values(**key, **redraw._asdict())
    tx.connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=redraw._asdict()))


def delete_redraw(tx: PlatformTx, organization_id: str, period_at: int) -> None:
    """Store that the draws of a period are right, and forget what was booked in it meanwhile."""
    for table in (credit_redraw_usage, credit_redraws):
        tx.connection.execute(table.delete().where(table.c.organization_id == organization_id, table.c.period_at == period_at))


def find_redraw(tx: Transaction) -> str | None:
    """Return an organization of which draws are to be made anew; None if there is none."""
    query = sa.select(credit_redraws.c.organization_id).order_by(credit_redraws.c.organization_id).limit(1)
    found: str | None = tx.connection.execute(query).scalar_one_or_none()
    return found


def list_redraws(tx: Transaction, organization_id: str) -> dict[int, Redraw]:
    """Return the periods of an organization whose draws are to be made anew, by their start and in order."""
    return _read_redraws(tx, _select_redraws(organization_id))


def lock_redraws(tx: PlatformTx, organization_id: str) -> dict[int, Redraw]:
    """Return what `list_redraws` does, under a lock. Where the organization has open grants, they are locked before."""
    return _read_redraws(tx, _select_redraws(organization_id).with_for_update())


def lock_redraws_of(tx: PlatformTx, organization_ids: Sequence[str]) -> dict[str, dict[int, Redraw]]:
    """Return what `lock_redraws` does, of several organizations, in an order that everyone follows. Those without any are left out."""
    column = credit_redraws.c
    query = sa.select(credit_redraws).where(any_of(tx, column.organization_id, organization_ids))
    found: dict[str, dict[int, Redraw]] = {}
    for row in tx.connection.execute(query.order_by(column.organization_id, column.period_at).with_for_update()):
        found.setdefault(row.organization_id, {})[row.period_at] = Redraw(row.closed_at, row.uncovered_pico)
    return found


def _select_redraws(organization_id: str) -> sa.Select[Any]:
    return sa.select(credit_redraws).where(credit_redraws.c.organization_id == organization_id).order_by(credit_redraws.c.period_at)


def _read_redraws(tx: Transaction, query: sa.Select[Any]) -> dict[int, Redraw]:
    return {row.period_at: Redraw(row.closed_at, row.uncovered_pico) for row in tx.connection.execute(query)}


def insert_redraw_usage(tx: PlatformTx, organization_id: str, period_at: int, usage: Mapping[CreditUsage, int]) -> None:
    """Store what a batch costs that is booked in a period whose draws are to be made anew. The redraws must be locked, so that numbers grow
    in the order of commits: an organization with a rule of top-ups may have no open grant whose lock would do."""
    number = 1 + find_last_number(tx, organization_id)
    rows = [[*place, str(pico)] for place, pico in usage.items()]
    values = {"organization_id": organization_id, "number": number, "period_at": period_at, "usage": json.dumps(rows)}
    tx.connection.execute(credit_redraw_usage.insert().values(values))


def list_redraw_usage(tx: Transaction, organization_id: str, after: int) -> dict[int, dict[CreditUsage, int]]:
    """Return what batches cost after the one with a number, by the period that they are booked in."""
    column = credit_redraw_usage.c
    found: dict[int, dict[CreditUsage, int]] = {}
    query = sa.select(column.period_at, column.usage).where(column.organization_id == organization_id, column.number > after)
    for row in tx.connection.execute(query):
        more = {CreditUsage(minute_at, project_id, model): int(pico) for minute_at, project_id, model, pico in json.loads(row.usage)}
        add_usage(found.setdefault(row.period_at, {}), more)
    return found


def find_last_number(tx: Transaction, organization_id: str) -> int:
    """Return the number of the latest batch that `insert_redraw_usage` stored; 0 if there is none."""
    query = sa.select(sa.func.max(credit_redraw_usage.c.number)).where(credit_redraw_usage.c.organization_id == organization_id)
    return tx.connection.execute(query).scalar_one() or 0


# ---- Transactions -------------------------------------------------------------------------------------------------------


def post(tx: PlatformTx, booked: Sequence[tuple[CreditTransaction, tuple[Entry, ...]]], now: int) -> None:
    """Book transactions with their entries, and move the balances. The caller has seen to it that each sums to zero and was not booked
    before."""
    ledger.post_entries(tx, [(each.id, entries) for each, entries in booked], now)
    if booked:
        tx.connection.execute(credit_transactions.insert(), [{**_columns(each)} for each, _ in booked])


def _columns(each: CreditTransaction) -> dict[str, Any]:
    return {
        "id": each.id,
        "organization_id": each.organization_id,
        "grant_id": each.grant_id,
        "move": each.move,
        "period_at": each.period_at,
        "amount_pico": each.amount_pico,
        "booked_at": each.booked_at,
    }


def list_transactions(tx: Transaction, organization_id: str, window: PageWindow) -> Page[CreditTransaction]:
    """Return the transactions of an organization's grants by their ids, which is by the instant of the grant or the start of the period
    that caused them. The close of a period books later than that."""
    query = sa.select(credit_transactions).where(credit_transactions.c.organization_id == organization_id)
    return fetch_page(tx, query, credit_transactions.c.id, window, _transaction)


def list_booked(
    tx: Transaction, organization_id: str, grant_ids: Iterable[str], until_at: int
) -> list[tuple[CreditTransaction, tuple[Entry, ...]]]:
    """Return what closed periods that begin at an instant or before it booked on grants of an organization, with its entries, by id."""
    column = credit_transactions.c
    found: list[tuple[CreditTransaction, tuple[Entry, ...]]] = []
    for part in split_ids(grant_ids):
        query = sa.select(credit_transactions).where(
            column.organization_id == organization_id, column.grant_id.in_(part), column.period_at <= until_at
        )
        rows = tx.connection.execute(query).all()
        entries = ledger.list_entries(tx, [row.id for row in rows])
        found += [(_transaction(row), entries.get(row.id, ())) for row in rows]
    return sorted(found, key=lambda each: each[0].id)


def iterate_transactions(tx: PlatformTx) -> Iterator[tuple[CreditTransaction, tuple[Entry, ...]]]:
    """Yield every transaction of credit with its entries: for verification."""
    query = sa.select(credit_transactions).order_by(credit_transactions.c.id).execution_options(yield_per=500)
    for rows in tx.connection.execute(query).partitions():
        entries = ledger.list_entries(tx, [row.id for row in rows])
        for row in rows:
            yield _transaction(row), entries.get(row.id, ())


def _transaction(row: Any) -> CreditTransaction:
    return CreditTransaction(
        id=row.id,
        organization_id=row.organization_id,
        grant_id=row.grant_id,
        move=CreditMove(row.move),
        period_at=row.period_at,
        amount_pico=row.amount_pico,
        booked_at=row.booked_at,
    )
