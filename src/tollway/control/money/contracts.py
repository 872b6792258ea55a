"""Contracts of organizations: what operators agree with them, and what a closed period comes to by it.

Theory of operation. A contract begins and ends only in time that is not frozen yet, so what a period that is being closed comes to is
fixed: its events are summed outside of the closing transaction, and its lines are computed and booked in it, after its credit is settled.
A period with a contract is closed also if nothing was used in it: `open_periods` cuts the months that a contract covers. The rules are in
`domain/contracts.py`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tollway.control.money.ledger import PLATFORM
from tollway.domain.billing_classes import BillingClass
from tollway.domain.contracts import (
    Contract,
    ContractPart,
    ContractTerms,
    LineKind,
    Measure,
    Sku,
    Standing,
    UsageTotal,
    charge_part,
    describe,
    describe_contract,
    find_overlap,
    find_owed,
    find_owed_after,
    find_problem,
    list_movements,
)
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.ids import TRANSACTION, derive_id
from tollway.domain.ledger import Account, Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import INSTANT_MAX, NEVER, Bounds, Calendar, Period, PeriodState
from tollway.storage import contracts as stored
from tollway.storage import corrections as stored_corrections
from tollway.storage import invoices as stored_invoices
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage.contracts import ContractCharge, PartUsage
from tollway.storage.database import Database, PlatformTx, Transaction

UNKNOWN = "The organization has no such contract."

CONTRACTS_MAX = 500
"""Contracts of an organization, ended ones too: one a month for forty years."""

BACKDATED_US_MAX = 400 * 86_400 * 1_000_000
"""Longest time that a contract may begin in the past. It opens every month since then; a year in arrears is covered."""

OPEN_SECONDS = 3600
"""Interval at which the months that contracts cover are opened: they are closed days after their end."""

HOLDERS_PAGE = 500
"""Organizations that are read at once."""


class WantedContract(NamedTuple):
    """A contract as an operator asks for it. Instants in UTC microseconds; None for now, and for no end."""

    valid_from: int | None
    valid_until: int | None
    terms: ContractTerms


# ---- For operators ------------------------------------------------------------------------------------------------------


def make_contract(tx: Transaction, organization_id: str, wanted: WantedContract, *, id: str, now: int) -> Contract:
    """Return a contract as it would be made. Raises RESOURCE_UNKNOWN for an organization that does not exist, and PARAMETER_INVALID for
    terms that it cannot have."""
    pays = stored_prices.read_terms(tx, [organization_id]).get(organization_id)
    if pays is None:
        raise Fault(RESOURCE_UNKNOWN)
    problem = find_problem(wanted.terms, pays.currency, ends=wanted.valid_until is not None)
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param=problem.field, message=problem.text)
    contract = Contract(
        id=id,
        organization_id=organization_id,
        valid_from=_next_second(now) if wanted.valid_from is None else wanted.valid_from,
        valid_until=wanted.valid_until,
        created_at=now,
        terms=wanted.terms,
    )
    if contract.valid_until is not None and contract.valid_until <= contract.valid_from:
        raise Fault(PARAMETER_INVALID, param="valid_until", message="A contract ends after it begins.")
    return contract


def create(tx: PlatformTx, organization_id: str, wanted: WantedContract, *, id: str, now: int, replaces: str | None = None) -> Contract:
    """Store a contract, and cut the months that it covers by now. `replaces`: a contract that ends where this one begins.

    Raises as `make_contract` does, and as `end` does for the one that is replaced, PARAMETER_INVALID for one that begins in closed time or
    longer than BACKDATED_US_MAX ago, and STATE_CONFLICT for one that overlaps another, or for too many.
    """
    contract = make_contract(tx, organization_id, wanted, id=id, now=now)
    stored_periods.lock_organization(tx, organization_id)
    if contract.valid_from < max(_get_calendar(tx, organization_id).frozen_until, now - BACKDATED_US_MAX):
        message = "A contract begins after the last closed billing period, and at most 400 days ago."
        raise Fault(PARAMETER_INVALID, param="valid_from", message=message)
    if replaces is not None:
        end(tx, organization_id, replaces, contract.valid_from, now=now)
    _refuse_overlap(contract, stored.list_valid(tx, organization_id, contract.span))
    if stored.count_contracts(tx, organization_id) >= CONTRACTS_MAX:
        raise Fault(STATE_CONFLICT, message=f"An organization has at most {CONTRACTS_MAX} contracts.")
    stored.insert_contract(tx, contract)
    open_periods(tx, organization_id, now)
    return contract


def _refuse_overlap(contract: Contract, others: Iterable[Contract]) -> None:
    other = find_overlap(others, contract.span)
    if other is not None:
        message = f"The contract overlaps {other.id}: end that one first, at the instant at which this one begins, or replace it."
        raise Fault(STATE_CONFLICT, param="valid_from", message=message)


def end(tx: PlatformTx, organization_id: str, contract_id: str, at: int | None, *, now: int) -> Contract:
    """Let a contract end at an instant, None for now. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID for an instant in time that is closed
    already, before its beginning or after its end."""
    stored_periods.lock_organization(tx, organization_id)
    contract, at = get(tx, organization_id, contract_id), _next_second(now) if at is None else at
    if at <= max(_get_calendar(tx, organization_id).frozen_until, contract.valid_from):
        message = "A contract ends after its beginning, and after the last closed billing period."
        raise Fault(PARAMETER_INVALID, param="valid_until", message=message)
    if contract.valid_until is not None and contract.valid_until <= at:
        raise Fault(PARAMETER_INVALID, param="valid_until", message="The contract ends before that already: make another one.")
    stored.end_contract(tx, contract.id, at)
    return msgspec.structs.replace(contract, valid_until=at)


def _next_second(now: int) -> int:
    """Return an instant, or the whole second after it: contracts begin and end on seconds, as they are shown, so that one can begin where
    another was seen to end."""
    return -(-now // 1_000_000) * 1_000_000


def _get_calendar(tx: PlatformTx, organization_id: str) -> Calendar:
    return stored_periods.open_calendars(tx, [organization_id])[organization_id]


def get(tx: Transaction, organization_id: str, contract_id: str) -> Contract:
    """Return a contract of an organization. Raises RESOURCE_UNKNOWN."""
    contract = stored.find_contract(tx, organization_id, contract_id)
    if contract is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return contract


def list_contracts(tx: Transaction, organization_id: str, window: PageWindow) -> Page[Contract]:
    """Return the contracts of an organization in the order in which they were made."""
    return stored.list_contracts(tx, organization_id, window)


# ---- Periods of contracts -----------------------------------------------------------------------------------------------


def open_periods(tx: PlatformTx, organization_id: str, now: int) -> None:
    """Cut the periods that contracts of an organization cover up to an instant, if nothing was booked in them yet."""
    calendar = _get_calendar(tx, organization_id)
    for contract in stored.list_valid(tx, organization_id, Bounds(calendar.frozen_until, now + 1)):
        covered = contract.covers(Bounds(calendar.frozen_until, now + 1))
        at = INSTANT_MAX if covered is None else covered.start_at
        while covered is not None and at < covered.end_at:
            start_at = calendar.place(at)
            at = next(bounds.end_at for bounds in calendar.open if bounds.start_at == start_at)
    stored_periods.insert_cut(tx, [calendar], now)


def open_due_periods(database: Database, now: int, is_stopping: Callable[[], bool]) -> None:
    """Cut the periods that contracts cover by now, of every organization that has one."""
    after = ""
    while not is_stopping():
        with database.platform(write=False) as tx:
            holders = stored.list_holders(tx, now, after=after, limit=HOLDERS_PAGE)
        if not holders:
            return
        for organization_id in holders:
            with database.platform() as tx:
                open_periods(tx, organization_id, now)
        after = holders[-1]


# ---- Amounts ------------------------------------------------------------------------------------------------------------


class ContractUsage(NamedTuple):
    """A contract with the usage of the part that it covers of a period."""

    contract: Contract
    usage: Mapping[Sku, UsageTotal]
    measures: Sequence[Measure]


def sum_usage(tx: Transaction, period: Period, contracts: Iterable[Contract]) -> list[ContractUsage]:
    """Return what the events of a period come to for each contract that covers a part of it, in order of time."""
    found = []
    for contract in contracts:
        part = contract.covers(Bounds(period.start_at, period.end_at))
        if part is not None:
            summed = stored.sum_events(tx, period, part, contract.terms.service_levels)
            found.append(ContractUsage(contract, _total_usage(tx, summed), summed.measures))
    return found


def sum_valid_usage(tx: Transaction, period: Period) -> list[ContractUsage]:
    """Return what `sum_usage` does for the contracts that the organization has."""
    return sum_usage(tx, period, stored.list_valid(tx, period.organization_id, Bounds(period.start_at, period.end_at)))


def _total_usage(tx: Transaction, summed: PartUsage) -> dict[Sku, UsageTotal]:
    """Return quantities and amounts by SKU. A quantity follows from its amount, which is quantity x unit price."""
    prices = stored_prices.find_prices(tx, {each.price_version for each in summed.amounts})
    totals: dict[Sku, UsageTotal] = {}
    for each, pico in summed.amounts.items():
        unit_pico = prices[each.price_version].unit_prices.get(BillingClass(each.billing_class))
        sku = Sku(each.model, each.service_tier, each.billing_class)
        before = totals.get(sku, UsageTotal(0, 0))
        totals[sku] = UsageTotal(before.quantity + pico // unit_pico, before.amount_pico + pico)
    return totals


def make_parts(
    usages: Iterable[ContractUsage], span: Bounds, standings: Mapping[str, Standing], owed_pico: int
) -> tuple[ContractPart, ...]:
    """Return what contracts come to in a period, in order of time. `standings`: by contract, what earlier periods came to."""
    parts = []
    for each in usages:
        standing = standings.get(each.contract.id, Standing())
        part = charge_part(each.contract, span, each.usage, each.measures, standing, owed_pico)
        owed_pico = find_owed_after(owed_pico, part)
        parts.append(part)
    return tuple(parts)


def sum_burned(tx: Transaction, period: Period) -> int:
    """Return the credit that the usage of a period burned, provisional until it is closed."""
    return sum(pico for _, pico in stored_invoices.list_burned(tx, period.organization_id, period.start_at))


def find_owed_in(tx: Transaction, period: Period, used_pico: int) -> int:
    """Return how much contracts can give back in a period whose events come to `used_pico`."""
    corrections = stored_invoices.iterate_corrections(tx, period)
    corrected_pico = sum(each.amount_pico for each in corrections if each.target_at == period.start_at)
    return find_owed(used_pico, corrected_pico, sum_burned(tx, period))


def charge(tx: PlatformTx, period: Period, usages: Sequence[ContractUsage], used_pico: int, now: int) -> int:
    """Book what contracts add to a period that is closing, whose credit is settled; nothing for one without a contract. Returns what they
    add to its bill. `used_pico`: what its events come to. `usages`: by `sum_valid_usage`."""
    if not usages:
        return 0
    owed_pico = find_owed_in(tx, period, used_pico)
    standings = stored.sum_standings(tx, period.organization_id, period.start_at)
    parts = make_parts(usages, Bounds(period.start_at, period.end_at), standings, owed_pico)
    made = ContractCharge(
        id=transaction_id(period),
        organization_id=period.organization_id,
        period_at=period.start_at,
        parts=parts,
        billed_pico=sum(part.billed_pico for part in parts),
        booked_at=now,
    )
    stored.post_charge(tx, made, entries_of(made, period.currency))
    return made.billed_pico


def transaction_id(period: Period) -> str:
    """Return the id of the transaction of a period's contracts, of the instant of its start."""
    return derive_id(TRANSACTION, max(period.start_at, 0), f"contract/{period.organization_id}/{period.start_at}")


def entries_of(made: ContractCharge, currency: str) -> tuple[Entry, ...]:
    """Return the entries of a charge."""
    return tuple(
        Entry(Account(made.organization_id if each.is_own else PLATFORM, each.account, currency), each.amount_pico)
        for each in list_movements(made.parts)
    )


class BillPreview(NamedTuple):
    """Sums of a period, by what is booked so far and the contracts. Amounts in pico-currency; `burned_pico`: paid by credit."""

    used_pico: int
    corrected_pico: int
    burned_pico: int
    parts: tuple[ContractPart, ...]

    @property
    def total_pico(self) -> int:
        """Amount that is owed before tax."""
        return self.used_pico + self.corrected_pico - self.burned_pico + sum(part.billed_pico for part in self.parts)


def sum_charged(tx: Transaction, period: Period) -> dict[str, int]:
    """Return what contracts added to the bill of a closed period, by kind of line in pico-currency; nothing for one that is not closed."""
    booked = stored.find_charge(tx, period.organization_id, period.start_at)
    return {} if booked is None else {kind: pico for kind, pico in sum_by_kind(booked.charge.parts).items() if kind != LineKind.LAPSE}


def find_bill(tx: Transaction, period: Period) -> BillPreview:
    """Return what a closed period was closed with, and what another one comes to so far."""
    if period.closed is None:
        return preview(tx, period, None)
    booked = stored.find_charge(tx, period.organization_id, period.start_at)
    parts = () if booked is None else booked.charge.parts
    return BillPreview(sum(period.closed.amounts.values()), period.closed.adjustments_pico, sum_burned(tx, period), parts)


def preview_draft(tx: Transaction, period: Period, wanted: WantedContract, *, now: int) -> BillPreview:
    """Return what a period would come to under a contract that covers all of it. Raises as `make_contract` does."""
    draft = make_contract(tx, period.organization_id, wanted, id="", now=now)
    return preview(tx, period, [msgspec.structs.replace(draft, valid_from=period.start_at, valid_until=None)])


def preview_change(tx: Transaction, period: Period, wanted: WantedContract, *, now: int) -> BillPreview:
    """Return what an open period would come to if a contract took the place of the present one when it begins: within the period, which
    then has a part for each of them, or at its end, with which the present one ends. Raises as `make_contract` does, STATE_CONFLICT for a
    period that is closed or where another contract begins later, and PARAMETER_INVALID for a change before the period."""
    draft = make_contract(tx, period.organization_id, wanted, id="", now=now)
    if period.state is not PeriodState.OPEN:
        raise Fault(STATE_CONFLICT, message="The billing period is closed: no contract begins in it any more.")
    if draft.valid_from < period.start_at:
        raise Fault(PARAMETER_INVALID, param="valid_from", message="The contract begins before the billing period.")
    valid = stored.list_valid(tx, period.organization_id, Bounds(period.start_at, draft.span.end_at))
    kept = [msgspec.structs.replace(each, valid_until=draft.valid_from) if each.is_valid_at(draft.valid_from) else each for each in valid]
    _refuse_overlap(draft, kept)
    return preview(tx, period, [*(each for each in kept if each.valid_from < draft.valid_from), draft])


def preview(tx: Transaction, period: Period, drafts: Sequence[Contract] | None) -> BillPreview:
    """Return what a period would come to if it were closed now as it stands. `drafts`: contracts that count for it, in order of time, in
    place of those that the organization has. Fees are those of the whole period."""
    used_pico = sum(stored.sum_events(tx, period, Bounds(NEVER, INSTANT_MAX), ()).amounts.values())
    booked = stored_corrections.iterate_booked(tx, period.organization_id, period.start_at)
    corrected_pico = sum(adjustment.amount_pico for adjustment in booked)
    burned_pico = sum_burned(tx, period)
    usages = sum_valid_usage(tx, period) if drafts is None else sum_usage(tx, period, drafts)
    standings = stored.sum_standings(tx, period.organization_id, period.start_at)
    owed_pico = find_owed_in(tx, period, used_pico)
    parts = make_parts(usages, Bounds(period.start_at, period.end_at), standings, owed_pico)
    return BillPreview(used_pico, corrected_pico, burned_pico, parts)


# ---- Exports ------------------------------------------------------------------------------------------------------------

Line = tuple[str, Mapping[str, Any]]
"""A line of an export: its type, `contract` or `contract_charge`, and its other fields."""


def list_lines(tx: Transaction, period: Period) -> list[Line]:
    """Return the lines about contracts of a period that is charged: contracts in order of time, and what they came to. None without a
    contract. They never change once it is frozen."""
    booked = stored.find_charge(tx, period.organization_id, period.start_at)
    if booked is None:
        return []
    standings = {part.contract_id: Standing(part.consumed_before_pico, part.drawn_before_pico) for part in booked.charge.parts}
    valid = stored.list_valid(tx, period.organization_id, Bounds(period.start_at, period.end_at))
    contracts: list[Line] = [("contract", describe_contract(each, period, standings.get(each.id, Standing()))) for each in valid]
    fields = {
        "id": booked.charge.id,
        "booked_at": booked.charge.booked_at,
        "parts": [describe(part) for part in booked.charge.parts],
        "entries": [{"account": each.account.id, "amount_pico": str(each.amount_pico)} for each in booked.entries],
    }
    return [*contracts, ("contract_charge", fields)]


def digest_lines(lines: Iterable[Line]) -> bytes | None:
    """Return the SHA-256 over lines as an export has them, a newline after each; None if there are none."""
    digest, count = hashlib.sha256(), 0
    for type, fields in lines:
        digest.update(msgspec.json.encode({"type": type, **fields}) + b"\n")
        count += 1
    return digest.digest() if count else None


def sum_by_kind(parts: Iterable[ContractPart]) -> dict[str, int]:
    """Return what lines add to a bill, by their kind, in pico-currency."""
    sums = Counter[str]()
    for part in parts:
        for line in part.lines:
            sums[str(line.kind)] += line.amount_pico
    return dict(sums)
