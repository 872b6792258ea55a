"""Verification of contracts, for `verify`: their terms, and what each closed period was charged by them against its events.

Events have been compared with the archive before, and credit with these; here they are taken as the database has them. What a contract came
to in a period whose events retention has removed is taken as it was charged.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import msgspec

from tollway.control.money.contracts import entries_of, find_owed_in, make_parts, sum_usage, transaction_id
from tollway.control.money.periods import is_kept
from tollway.domain.contracts import Contract, ContractPart, Standing, find_problem
from tollway.domain.ledger import Entry
from tollway.domain.periods import INSTANT_MAX, NEVER, Bounds, Period, PeriodState
from tollway.storage import contracts as stored
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage.contracts import BookedCharge, ContractCharge
from tollway.storage.database import PlatformTx

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""

Sums = dict[str, int]
"""Sums of entries by account."""


def compare_contracts(tx: PlatformTx, periods: Mapping[str, Sequence[Period]], add: Add) -> tuple[Sums, Sums]:
    """Compare contracts and charges with what periods and their events say. Returns what the entries come to by account, and what they
    should. `periods`: by organization, in order."""
    contracts = _read_contracts(tx, add)
    booked = {(each.charge.organization_id, each.charge.period_at): each for each in stored.iterate_charges(tx)}
    replayed, owed = Sums(), Sums()
    for each in booked.values():
        for entry in each.entries:
            replayed[entry.account.id] = replayed.get(entry.account.id, 0) + entry.amount_pico
    for organization_id, agreed in contracts.items():
        standings = dict[str, Standing]()
        for gap in _list_gaps(periods.get(organization_id, ())):
            if any(each.covers(gap) is not None for each in agreed):
                add("billing_periods", f"{organization_id} has a contract before {gap.end_at}, where no period charges it")
        for period in periods.get(organization_id, ()):
            valid = [each for each in agreed if each.covers(Bounds(period.start_at, period.end_at)) is not None]
            if period.state is not PeriodState.CLOSED or not valid:
                continue
            found = booked.pop((organization_id, period.start_at), None)
            if found is None:
                add("contract_charges", f"{period.id} was not charged by its contracts")
                continue
            parts = _make_parts(tx, period, valid, standings, found.charge, add)
            standings |= {part.contract_id: part.standing for part in parts}
            for entry in _compare_charge(period, parts, found, add):
                owed[entry.account.id] = owed.get(entry.account.id, 0) + entry.amount_pico
    for each in booked.values():
        add("contract_charges", f"{each.charge.id} charges a period that is not closed, or has no contract")
    return replayed, owed


def _list_gaps(periods: Sequence[Period]) -> list[Bounds]:
    """Return the times before the last closed period that no period covers."""
    closed = [at for at, period in enumerate(periods) if period.state is PeriodState.CLOSED]
    known = periods[: closed[-1] + 1] if closed else ()
    starts = [NEVER, *(period.end_at for period in known)]
    return [Bounds(start, period.start_at) for start, period in zip(starts, known, strict=False) if start < period.start_at]


def _read_contracts(tx: PlatformTx, add: Add) -> dict[str, list[Contract]]:
    """Return the contracts of each organization in order of time, and note those that it cannot have."""
    contracts: dict[str, list[Contract]] = {}
    for id, contract in stored.iterate_contracts(tx):
        if contract is None:
            add("contracts", f"{id} has terms that cannot be read")
        else:
            contracts.setdefault(contract.organization_id, []).append(contract)
    pays = stored_prices.read_terms(tx, list(contracts))
    for organization_id, agreed in contracts.items():
        for contract in agreed:
            currency = pays[organization_id].currency if organization_id in pays else ""
            if find_problem(contract.terms, currency, ends=contract.valid_until is not None) is not None:
                add("contracts", f"{contract.id} has terms that no contract can have")
        for before, after in pairwise(agreed):
            if before.covers(Bounds(after.valid_from, INSTANT_MAX)) is not None:
                add("contracts", f"{before.id} and {after.id} overlap")
    return contracts


def _make_parts(
    tx: PlatformTx, period: Period, valid: Sequence[Contract], standings: Mapping[str, Standing], made: ContractCharge, add: Add
) -> tuple[ContractPart, ...]:
    """Return what contracts come to in a closed period, computed again from its events where they are kept."""
    assert period.closed is not None
    if not is_kept(tx, list(stored_periods.iterate_blocks(tx, period.id))):
        return made.parts
    try:
        usages = sum_usage(tx, period, valid)
    except (KeyError, ZeroDivisionError) as error:
        add("usage_events", f"{period.id}: an event costs what no price explains: {error}")
        return made.parts
    owed_pico = find_owed_in(tx, period, sum(period.closed.amounts.values()))
    return make_parts(usages, Bounds(period.start_at, period.end_at), standings, owed_pico)


def _compare_charge(period: Period, parts: tuple[ContractPart, ...], found: BookedCharge, add: Add) -> Sequence[Entry]:
    """Compare what a closed period was charged with what it should be. Returns the entries that should book it."""
    assert period.closed is not None
    made, right_pico = found.charge, sum(part.billed_pico for part in parts)
    if made.parts != parts or not found.is_canonical:
        add("contract_charges", f"{period.id}: its contracts do not come to what was charged")
    if made.id != transaction_id(period) or made.booked_at != period.closed.closed_at:
        add("contract_charges", f"{made.id} does not follow from {period.id}")
    for what, pico in (("charge", made.billed_pico), ("period", period.closed.contracts_pico)):
        if pico != right_pico:
            add("contract_charges", f"{period.id}: its contracts come to {right_pico}, its {what} says {pico}")
    right = entries_of(msgspec.structs.replace(made, organization_id=period.organization_id, parts=parts), period.currency)
    if found.entries != right:
        add("ledger_entries", f"{made.id} does not book what the contracts of {period.id} come to")
    return right
