"""Verification of the transactions that book usage, for `verify`: each against the records that it names, as these pass by.

Records of an epoch come in order, and so do its transactions, by the first record that each names. What is held are the transactions
that cover the present place: one or two for an organization.

A record that was rated after its quarantine is booked by a transaction of its own, inside the span of the one for its batch, which
does not count it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tollway.control.metering.rating import BillingAccount
from tollway.control.money.ledger import PLATFORM, UNBILLED, transaction_id
from tollway.domain.billing_classes import NOTHING, Amounts
from tollway.domain.ledger import Account, Posting, UsageCause

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""

Costs = dict[str, Amounts]
"""Pico-currency by model, for each billing class in order."""


@dataclass(frozen=True, slots=True)
class Booked:
    """An event as a transaction should book it. `is_gone`: retention has removed its row, so that the period is that of its end."""

    event_id: str
    seq: int
    organization_id: str
    period_at: int
    ended_at: int
    model: str
    amounts: Amounts
    is_gone: bool


@dataclass(slots=True)
class _Open:
    """A transaction whose records are passing by, and what they have come to so far."""

    posting: Posting
    cause: UsageCause
    events: int = 0
    first_seq: int = 0
    last: Booked | None = None
    costs: Costs = field(default_factory=dict)


class EpochLedger:
    """The transactions of one epoch, in order of their first records, beside its events, in order."""

    def __init__(self, postings: Iterator[Posting], accounts: Mapping[str, BillingAccount], add: Add) -> None:
        self._postings = postings
        self._accounts = accounts
        self._add = add
        self._next = next(postings, None)
        self._open: dict[str, list[_Open]] = {}

    def compare(self, event: Booked) -> None:
        """Compare the next event with the transactions: it must be booked once, if it costs anything."""
        while self._next is not None and _cause(self._next).first_seq <= event.seq:
            self._open_next()
        of_organization, seq, period_at = self._open.get(event.organization_id, []), event.seq, event.period_at
        at = 0
        while at < len(of_organization):
            if of_organization[at].cause.last_seq < seq:
                self._compare_transaction(of_organization.pop(at))
            else:
                at += 1
        if event.is_gone and of_organization and all(each.posting.period_at != period_at for each in of_organization):
            period_at = min(each.posting.period_at for each in of_organization)  # it was late, which only the ledger knows now
        covering = [each for each in of_organization if each.posting.period_at == period_at]
        if len(covering) > 1:
            covering = [each for each in covering if each.cause.first_seq == each.cause.last_seq] or covering
        for each in covering:
            each.first_seq = each.first_seq or seq
            each.events += 1
            each.last = event
            each.costs[event.model] = each.costs.get(event.model, NOTHING) + event.amounts
        if len(covering) != 1 and event.amounts.bits:
            self._add("ledger_entries", f"{event.event_id} is booked {len(covering)} times")

    def finish(self) -> None:
        """Compare the transactions that are left, after the last event."""
        while self._next is not None:
            self._open_next()
        for of_organization in self._open.values():
            for each in of_organization:
                self._compare_transaction(each)

    def _open_next(self) -> None:
        assert self._next is not None
        self._open.setdefault(self._next.organization_id, []).append(_Open(self._next, _cause(self._next)))
        self._next = next(self._postings, None)

    def _compare_transaction(self, found: _Open) -> None:
        """Compare one transaction with the records that it names: id, number of events, entries."""
        posting, cause, last = found.posting, found.cause, found.last
        if last is None or found.events != cause.events:
            self._add("ledger_transactions", f"{posting.id} books {cause.events} events, the archive has {found.events}")
            return
        right_id = transaction_id(posting.organization_id, posting.period_at, cause, last.ended_at)
        if posting.id != right_id or found.first_seq != cause.first_seq or last.seq != cause.last_seq:
            self._add("ledger_transactions", f"{posting.id} does not follow from its records, which give {right_id}")
        right = entries_of(posting.organization_id, found.costs, self._accounts[posting.organization_id].currency)
        if len(posting.entries) != len(right) or {entry.account.id: entry.amount_pico for entry in posting.entries} != right:
            self._add("ledger_entries", f"{posting.id} does not book what its events cost")


def _cause(posting: Posting) -> UsageCause:
    assert isinstance(posting.cause, UsageCause)
    return posting.cause


def entries_of(organization_id: str, costs: Costs, currency: str) -> dict[str, int]:
    """Return what events of one organization must move, by account."""
    entries = {
        Account(PLATFORM, f"revenue:{model}:{billing_class}", currency).id: -pico
        for model, amounts in costs.items()
        for billing_class, pico in amounts.items()
    }
    entries[Account(organization_id, UNBILLED, currency).id] = -sum(entries.values())
    return entries
