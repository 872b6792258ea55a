"""The ledger's values: accounts, entries, transactions with their cause, and balances. Double entry: each transaction sums to zero."""

from dataclasses import dataclass

import msgspec


class Account(msgspec.Struct, frozen=True, gc=False):
    """An account of one owner, kind and currency. `owner` is an organization's id or "platform"."""

    owner: str
    kind: str
    currency: str

    @property
    def id(self) -> str:
        """The account's name, unique because it is made of all three."""
        return f"{self.owner}/{self.kind}/{self.currency}"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One line of a transaction: above zero a debit, below zero a credit."""

    account: Account
    amount_pico: int


@dataclass(frozen=True, slots=True)
class UsageCause:
    """The usage events that a transaction books: those of one organization and period, from one batch of records.

    `events` is how many of the records from `first_seq` to `last_seq` of the epoch they are.
    """

    node_id: str
    epoch: int
    first_seq: int
    last_seq: int
    events: int


@dataclass(frozen=True, slots=True)
class AdjustmentCause:
    """The correction that a transaction books."""

    adjustment_id: str


@dataclass(frozen=True, slots=True)
class Posting:
    """One transaction: its cause, the billing period in which it is booked (by the period's start), and its entries."""

    id: str
    organization_id: str
    period_at: int
    cause: UsageCause | AdjustmentCause
    booked_at: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Balance:
    """The sum of an account's entries, and after how many changes."""

    account: Account
    posted_pico: int
    version: int
    changed_at: int
