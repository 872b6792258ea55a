"""The ledger's rules: how the cost of usage is booked, and what operators read of it.

Double entry. What a batch of events of one organization costs is debited to its account "unbilled" and credited to the platform's
revenue, one account per model and billing class, so each transaction sums to zero. A transaction's id derives from what it books:
the same events of the same batch can never be booked twice.
"""

from collections.abc import Mapping
from functools import lru_cache

from tollway.domain.billing_classes import Amounts, BillingClass
from tollway.domain.ids import TRANSACTION, derive_id
from tollway.domain.ledger import Account, Balance, Entry, Posting, UsageCause
from tollway.domain.pages import Page, PageWindow
from tollway.storage import ledger as stored
from tollway.storage.database import PlatformTx

PLATFORM = "platform"
"""Owner of the accounts that are not an organization's."""

REVENUE = "revenue"
"""Kind of the platform's accounts, by model and billing class, in which what was used is booked: "revenue:<model>:<class>"."""

UNBILLED = "unbilled"
"""Kind of account: used and not yet on an invoice."""


def book_usage(
    organization_id: str,
    period_at: int,
    cause: UsageCause,
    ended_at: int,
    costs: Mapping[str, Amounts],
    currency: str,
    booked_at: int,
) -> Posting | None:
    """The transaction for the events that are its `cause`, of one organization and period in one batch, the last of which ended at
    `ended_at`. They cost `costs`, by model.

    None if they cost nothing. Pure: the id names organization, node, epoch, seqs and period, so that booking again is visible as such.
    """
    total = sum(amounts.total for amounts in costs.values())
    if total == 0:
        return None
    revenue = [
        Entry(_revenue(model, billing_class, currency), -pico)
        for model in sorted(costs)
        for billing_class, pico in sorted(costs[model].items())
    ]
    return Posting(
        id=transaction_id(organization_id, period_at, cause, ended_at),
        organization_id=organization_id,
        period_at=period_at,
        cause=cause,
        booked_at=booked_at,
        entries=(Entry(Account(organization_id, UNBILLED, currency), total), *revenue),
    )


@lru_cache(maxsize=4096)
def _revenue(model: str, billing_class: BillingClass, currency: str) -> Account:
    return Account(PLATFORM, f"{REVENUE}:{model}:{billing_class}", currency)


def transaction_id(organization_id: str, period_at: int, cause: UsageCause, ended_at: int) -> str:
    """The id of the transaction that books these records, of the instant of the last event."""
    text = f"usage/{organization_id}/{cause.node_id}/{cause.epoch}/{cause.first_seq}/{cause.last_seq}/{period_at}"
    return derive_id(TRANSACTION, ended_at, text)


def list_balances(tx: PlatformTx, window: PageWindow, *, owner: str | None) -> Page[Balance]:
    """Balances by account id, of everyone or of one owner."""
    return stored.list_balances(tx, window, owner=owner)


def list_transactions(tx: PlatformTx, window: PageWindow, *, organization_id: str | None) -> Page[Posting]:
    """Transactions in the order of the usage that they book, of everyone or of one organization."""
    return stored.list_transactions(tx, window, organization_id=organization_id)
