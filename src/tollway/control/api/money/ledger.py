"""The ledger, for operators: balances and transactions, exact."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import StringConstraints

from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, ListOut, Out, PageQuery, list_out, seconds
from tollway.control.money import ledger
from tollway.domain import money
from tollway.domain.keys import Operator
from tollway.domain.ledger import AdjustmentCause, Balance, Entry, Posting, UsageCause
from tollway.domain.roles import Permission

router = routes.router(tags=["ledger"])

Reader = Annotated[Operator, Depends(may(Permission.PLATFORM_ACCOUNTS_READ))]

Owner = Annotated[str, StringConstraints(max_length=64, pattern=r"^[\x21-\x7e]+$")]


class BalanceQuery(PageQuery):
    """A part of the list of balances; account ids are longer than others, because they name what they are."""

    after: Annotated[str, StringConstraints(max_length=256, pattern=r"^[\x21-\x7e]+$")] | None = None


class BalanceOut(Identified):
    """Balance of an account; above zero it is owed to the platform. `version` counts its changes."""

    object: Literal["platform.ledger.balance"] = "platform.ledger.balance"
    owner: str
    kind: str
    currency: str
    amount: str
    amount_pico: str
    version: int
    changed_at: int


class EntryOut(Out):
    """One line: a debit above zero, a credit below."""

    account_id: str
    amount: str
    amount_pico: str


class TransactionOut(Identified):
    """One transaction and what caused it: `events` of an organization in the records from `first_seq` to `last_seq` of an epoch, or a
    correction. `period_start_time`: the billing period in which it is booked. Its entries sum to zero."""

    object: Literal["platform.ledger.transaction"] = "platform.ledger.transaction"
    organization_id: str
    period_start_time: int
    cause: Literal["usage", "adjustment"]
    node_id: str | None
    epoch: int | None
    first_seq: int | None
    last_seq: int | None
    events: int | None
    adjustment_id: str | None
    booked_at: int
    currency: str
    entries: list[EntryOut]


@router.get("/v1/platform/ledger/balances")
def list_balances(
    _caller: Reader, plane: Plane, query: Annotated[BalanceQuery, Query()], owner: Owner | None = None
) -> ListOut[BalanceOut]:
    """Balances by account, of everyone or of one owner: an organization's id, or "platform"."""
    with plane.database.platform(write=False) as tx:
        page = ledger.list_balances(tx, query.window(), owner=owner)
    return list_out(page, _balance_out)


@router.get("/v1/platform/ledger/transactions")
def list_transactions(
    _caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()], organization_id: Owner | None = None
) -> ListOut[TransactionOut]:
    """Transactions in the order of the usage that they book, of everyone or of one organization."""
    with plane.database.platform(write=False) as tx:
        page = ledger.list_transactions(tx, query.window(), organization_id=organization_id)
    return list_out(page, _transaction_out)


def _balance_out(balance: Balance) -> BalanceOut:
    return BalanceOut(
        id=balance.account.id,
        owner=balance.account.owner,
        kind=balance.account.kind,
        currency=balance.account.currency,
        amount=money.format_amount(balance.posted_pico),
        amount_pico=str(balance.posted_pico),
        version=balance.version,
        changed_at=seconds(balance.changed_at),
    )


def _transaction_out(posting: Posting) -> TransactionOut:
    cause = posting.cause
    records = cause if isinstance(cause, UsageCause) else None
    return TransactionOut(
        id=posting.id,
        organization_id=posting.organization_id,
        period_start_time=seconds(posting.period_at),
        cause="usage" if records else "adjustment",
        node_id=records.node_id if records else None,
        epoch=records.epoch if records else None,
        first_seq=records.first_seq if records else None,
        last_seq=records.last_seq if records else None,
        events=records.events if records else None,
        adjustment_id=cause.adjustment_id if isinstance(cause, AdjustmentCause) else None,
        booked_at=seconds(posting.booked_at),
        currency=posting.entries[0].account.currency,
        entries=[_entry_out(entry) for entry in posting.entries],
    )


def _entry_out(entry: Entry) -> EntryOut:
    return EntryOut(
        account_id=entry.account.id,
        amount=money.format_amount(entry.amount_pico),
        amount_pico=str(entry.amount_pico),
    )
