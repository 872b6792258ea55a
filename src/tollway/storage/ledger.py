"""The ledger at rest: accounts, transactions with their entries, and balances, which are their running sums."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain.ledger import Account, AdjustmentCause, Balance, Entry, Posting, UsageCause
from tollway.domain.pages import Page, PageWindow
from tollway.storage.bulk_statements import Upsert, any_of, by_bytes, insert_rows, upsert_rows
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page, limit_to_window
from tollway.storage.schema_money import Amount, amount_text, balances, ledger_accounts, ledger_entries, ledger_transactions
from tollway.storage.schema_periods import billing_periods


class _EntryRow(NamedTuple):
    """A row of the ledger's entries, by its columns."""

    transaction_id: str
    line: int
    account_id: str
    amount_pico: str


def post(tx: PlatformTx, postings: Sequence[Posting], now: int) -> None:
    """Book transactions and move the balances. The caller has seen to it that each sums to zero and was not booked before."""
    # Entries first: once its transaction is there, the database takes no more of them.
    post_entries(tx, [(posting.id, posting.entries) for posting in postings], now)
    if postings:
        insert_rows(tx, ledger_transactions, TRANSACTION_COLUMNS, map(_transaction_row, postings))


def post_entries(tx: PlatformTx, booked: Sequence[tuple[str, tuple[Entry, ...]]], now: int) -> None:
    """Store the entries of transactions, by their ids, and move the balances. The caller stores the transactions themselves."""
    if not booked:
        return
    changes: dict[str, int] = {}
    accounts: dict[str, Account] = {}
    rows: list[_EntryRow] = []
    for transaction_id, entries in booked:
        for line, entry in enumerate(entries, 1):
            account_id, pico = entry.account.id, entry.amount_pico
            accounts[account_id] = entry.account
            changes[account_id] = changes.get(account_id, 0) + pico
            rows.append(_EntryRow(transaction_id, line, account_id, amount_text(pico)))
    _open_accounts(tx, accounts, now)
    insert_rows(tx, ledger_entries, _EntryRow._fields, rows)
    _move_balances(tx, changes, now)


def _open_accounts(tx: PlatformTx, accounts: Mapping[str, Account], now: int) -> None:
    known_query = sa.select(ledger_accounts.c.id).where(any_of(tx, ledger_accounts.c.id, list(accounts)))
    known = {row.id for row in tx.connection.execute(known_query)}
    # In order of id, here and below: two collectors that meet on the platform's accounts wait, and never deadlock.
    new = [accounts[account_id] for account_id in sorted(accounts) if account_id not in known]
    if new:
        tx.connection.execute(
            tx.insert(ledger_accounts).on_conflict_do_nothing(),
            [{"id": account.id, "owner": account.owner, "kind": account.kind, "currency": account.currency} for account in new],
        )
        tx.connection.execute(
            tx.insert(balances).on_conflict_do_nothing(),
            [{"account_id": account.id, "posted_pico": 0, "version": 0, "changed_at": now} for account in new],
        )


def _move_balances(tx: PlatformTx, changes: Mapping[str, int], now: int) -> None:
    query = sa.select(balances).where(any_of(tx, balances.c.account_id, list(changes))).order_by(balances.c.account_id)
    rows = tx.connection.execute(query.with_for_update()).all()
    moved = [(row.account_id, amount_text(row.posted_pico + changes[row.account_id]), row.version + 1, now) for row in rows]
    upsert_rows(tx, _MOVE_BALANCES, moved)


_MOVE_BALANCES = Upsert(
    balances, key=("account_id",), changes={name: f"excluded.{name}" for name in ("posted_pico", "version", "changed_at")}
)
"""All of them are there, and locked."""

TRANSACTION_COLUMNS = (
    "id",
    "organization_id",
    "period_at",
    "cause",
    "node_id",
    "epoch",
    "first_seq",
    "last_seq",
    "events",
    "adjustment_id",
    "booked_at",
)
"""In the order in which `_transaction_row` writes them."""


def _transaction_row(posting: Posting) -> tuple[object, ...]:
    place, cause = (posting.id, posting.organization_id, posting.period_at), posting.cause
    if isinstance(cause, AdjustmentCause):
        return (*place, "adjustment", None, None, None, None, 0, cause.adjustment_id, posting.booked_at)
    return (*place, "usage", cause.node_id, cause.epoch, cause.first_seq, cause.last_seq, cause.events, None, posting.booked_at)


# ---- Reading ----------------------------------------------------------------------------------------------------------


def list_balances(tx: PlatformTx, window: PageWindow, *, owner: str | None) -> Page[Balance]:
    """Balances by account id, of everyone or of one owner."""
    query = sa.select(balances, ledger_accounts).join_from(balances, ledger_accounts)
    if owner is not None:
        query = query.where(ledger_accounts.c.owner == owner)
    return fetch_page(tx, query, balances.c.account_id, window, _balance)


def list_transactions(tx: PlatformTx, window: PageWindow, *, organization_id: str | None) -> Page[Posting]:
    """Transactions with their entries, of everyone or of one organization, in the order of the usage that they book (that of their ids)."""
    query = sa.select(ledger_transactions)
    if organization_id is not None:
        query = query.where(ledger_transactions.c.id.in_(_ids_in_periods(tx, window, organization_id)))
    page = fetch_page(tx, query, ledger_transactions.c.id, window, lambda row: row)
    return Page(_with_entries(tx, page.items), page.has_more)


def _ids_in_periods(tx: PlatformTx, window: PageWindow, organization_id: str) -> "sa.CompoundSelect[tuple[str]] | list[str]":
    """The ids that the window may show, from each billing period of the organization: each is a walk of an index over one period. Another
    index, over the organization alone, would be one more write for each batch of usage; an organization has twelve periods a year."""
    table, period = ledger_transactions.c, billing_periods.c
    starts = tx.connection.execute(sa.select(period.start_at).where(period.organization_id == organization_id)).scalars()
    parts = []
    for start_at in starts:
        part = sa.select(table.id).where(table.organization_id == organization_id, table.period_at == start_at)
        parts.append(sa.select(limit_to_window(part, table.id, window).subquery().c.id))
    return sa.union_all(*parts) if parts else []


def list_period_transactions(tx: Transaction, window: PageWindow, organization_id: str, period_at: int) -> Page[Posting]:
    """The transactions of an organization that are booked in the period that begins at `period_at`, ordered by id."""
    table = ledger_transactions.c
    query = sa.select(ledger_transactions).where(table.organization_id == organization_id, table.period_at == period_at)
    page = fetch_page(tx, query, table.id, window, lambda row: row)
    return Page(_with_entries(tx, page.items), page.has_more)


@dataclass(frozen=True, slots=True)
class PeriodSum:
    """Sum of the entries of one account in a period, of transactions with the same kind of cause."""

    account: Account
    is_correction: bool
    amount_pico: int


def sum_period(tx: Transaction, organization_id: str, period_at: int, owner: str) -> list[PeriodSum]:
    """Return the sums of an owner's accounts over the transactions of an organization that are booked in the period that begins at
    `period_at`, by account and by whether a correction caused them."""
    table, is_sqlite = ledger_transactions.c, tx.connection.dialect.name == "sqlite"
    account, is_correction, amount = ledger_accounts.c, table.adjustment_id.is_not(None), ledger_entries.c.amount_pico
    key = (account.owner, account.kind, account.currency, is_correction.label("is_correction"))
    query = (
        sa.select(*key, (amount if is_sqlite else sa.type_coerce(sa.func.sum(amount), Amount)).label("amount_pico"))
        .join_from(ledger_transactions, ledger_entries, ledger_entries.c.transaction_id == table.id)
        .join(ledger_accounts, account.id == ledger_entries.c.account_id)
        .where(table.organization_id == organization_id, table.period_at == period_at, account.owner == owner)
    )
    if not is_sqlite:
        query = query.group_by(account.owner, account.kind, account.currency, is_correction)
    sums: dict[tuple[Account, bool], int] = {}
    # SQLite keeps amounts as text, which it cannot add exactly.
    for row in tx.connection.execute(query.execution_options(yield_per=10_000)):
        place = (_account(row), bool(row.is_correction))
        sums[place] = sums.get(place, 0) + row.amount_pico
    return [PeriodSum(account, is_correction, pico) for (account, is_correction), pico in sums.items()]


def sum_account(tx: Transaction, periods: Sequence[tuple[str, int]], kind: str) -> dict[tuple[str, int], int]:
    """Return what is booked on the organizations' own accounts of a kind, by organization and start of the period, for these `periods`;
    one without a booking is left out."""
    table, is_sqlite = ledger_transactions.c, tx.connection.dialect.name == "sqlite"
    amount = ledger_entries.c.amount_pico
    shown = amount if is_sqlite else sa.type_coerce(sa.func.sum(amount), Amount)
    query = (
        sa.select(table.organization_id, table.period_at, shown.label("amount_pico"))
        .join_from(ledger_transactions, ledger_entries, ledger_entries.c.transaction_id == table.id)
        .join(ledger_accounts, ledger_accounts.c.id == ledger_entries.c.account_id)
        .where(
            sa.tuple_(table.organization_id, table.period_at).in_(periods),
            ledger_accounts.c.owner == table.organization_id,
            ledger_accounts.c.kind == kind,
        )
    )
    if not is_sqlite:
        query = query.group_by(table.organization_id, table.period_at)
    sums: dict[tuple[str, int], int] = {}
    # SQLite keeps amounts as text, which it cannot add exactly.
    for row in tx.connection.execute(query.execution_options(yield_per=10_000)) if periods else ():
        place = (row.organization_id, row.period_at)
        sums[place] = sums.get(place, 0) + row.amount_pico
    return sums


def iterate_transactions(tx: PlatformTx, page_rows: int = 500) -> Iterator[Posting]:
    """Every transaction, ordered by id: for verification."""
    window = PageWindow(limit=page_rows)
    while True:
        page = list_transactions(tx, window, organization_id=None)
        yield from page.items
        if not page.has_more:
            return
        window = PageWindow(after=page.items[-1].id, limit=page_rows)


def iterate_usage_transactions(tx: PlatformTx, page_rows: int = 500) -> Iterator[Posting]:
    """Every transaction that books usage, ordered by the first record that it names (node, epoch, seq): for verification."""
    table = ledger_transactions.c
    query = sa.select(ledger_transactions).where(table.cause == "usage")
    ordered = query.order_by(by_bytes(tx, table.node_id), table.epoch, table.first_seq, table.id).execution_options(yield_per=page_rows)
    for rows in tx.connection.execute(ordered).partitions():
        yield from _with_entries(tx, rows)


def iterate_balances(tx: PlatformTx) -> Iterator[Balance]:
    """Every balance, ordered by account id: for verification."""
    query = sa.select(balances, ledger_accounts).join_from(balances, ledger_accounts).order_by(balances.c.account_id)
    for row in tx.connection.execute(query):
        yield _balance(row)


def list_entries(tx: Transaction, transaction_ids: Sequence[str]) -> dict[str, tuple[Entry, ...]]:
    """Return the entries of transactions, by transaction and in order."""
    query = (
        sa.select(ledger_entries, ledger_accounts)
        .join(ledger_accounts, ledger_accounts.c.id == ledger_entries.c.account_id)
        .where(ledger_entries.c.transaction_id.in_(transaction_ids))
        .order_by(ledger_entries.c.transaction_id, ledger_entries.c.line)
    )
    entries: dict[str, list[Entry]] = {}
    accounts: dict[str, Account] = {}
    for row in tx.connection.execute(query).all():
        account_id = row.account_id
        account = accounts.get(account_id)
        if account is None:
            account = accounts[account_id] = _account(row)
        entries.setdefault(row.transaction_id, []).append(Entry(account, row.amount_pico))
    return {id: tuple(listed) for id, listed in entries.items()}


def _with_entries(tx: Transaction, rows: Sequence[Any]) -> list[Posting]:
    entries = list_entries(tx, [row.id for row in rows])
    return [
        Posting(
            id=row.id,
            organization_id=row.organization_id,
            period_at=row.period_at,
            cause=_cause(row),
            booked_at=row.booked_at,
            entries=entries.get(row.id, ()),
        )
        for row in rows
    ]


def _cause(row: Any) -> UsageCause | AdjustmentCause:
    if row.adjustment_id is not None:
        return AdjustmentCause(row.adjustment_id)
    return UsageCause(row.node_id, row.epoch, row.first_seq or 0, row.last_seq or 0, row.events)  # a check lets NULL pass


def _account(row: Any) -> Account:
    return Account(row.owner, row.kind, row.currency)


def _balance(row: Any) -> Balance:
    return Balance(_account(row), row.posted_pico, row.version, row.changed_at)
