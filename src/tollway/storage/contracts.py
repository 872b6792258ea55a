"""Contracts at rest: what was agreed, what the events of a period come to by it, and what closed periods were charged."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.billing_classes import BillingClass
from tollway.domain.contracts import (
    FAILED_OUTCOMES,
    Contract,
    ContractPart,
    ContractTerms,
    Measure,
    Objective,
    ServiceLevel,
    Standing,
    describe,
)
from tollway.domain.ledger import Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Bounds, Period
from tollway.domain.tenants import Status
from tollway.storage import ledger
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations
from tollway.storage.schema_contracts import contract_charges, contracts
from tollway.storage.schema_money import usage_events

EVENTS_SUMMED = 20_000
"""Events that one statement sums."""

ROWS_FETCHED = 500
"""Rows that are read at once where there may be many."""


# ---- Contracts ----------------------------------------------------------------------------------------------------------


def insert_contract(tx: PlatformTx, contract: Contract) -> None:
    """Store a new contract."""
    tx.connection.execute(
        contracts.insert().values(
            id=contract.id,
            organization_id=contract.organization_id,
            valid_from=contract.valid_from,
            valid_until=contract.valid_until,
            terms=encode_terms(contract.terms),
            created_at=contract.created_at,
        )
    )


def encode_terms(terms: ContractTerms) -> str:
    """Return terms as they are stored, in the one way."""
    return json.dumps(describe(terms), sort_keys=True, separators=(",", ":"))


def end_contract(tx: PlatformTx, contract_id: str, at: int) -> None:
    """Store that a contract ends at an instant."""
    tx.connection.execute(contracts.update().where(contracts.c.id == contract_id).values(valid_until=at))


def find_contract(tx: Transaction, organization_id: str, contract_id: str) -> Contract | None:
    """Return a contract of an organization."""
    query = sa.select(contracts).where(contracts.c.organization_id == organization_id, contracts.c.id == contract_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _contract(row)


def list_contracts(tx: Transaction, organization_id: str, window: PageWindow) -> Page[Contract]:
    """Return the contracts of an organization in the order in which they were made."""
    query = sa.select(contracts).where(contracts.c.organization_id == organization_id)
    return fetch_page(tx, query, contracts.c.id, window, _contract)


def list_valid(tx: Transaction, organization_id: str, span: Bounds) -> list[Contract]:
    """Return the contracts of an organization that are valid at some time of a span, in order of time."""
    column = contracts.c
    query = sa.select(contracts).where(
        column.organization_id == organization_id,
        column.valid_from < span.end_at,
        sa.or_(column.valid_until.is_(None), column.valid_until > span.start_at),
    )
    return [_contract(row) for row in tx.connection.execute(query.order_by(column.valid_from, column.id))]


def count_contracts(tx: Transaction, organization_id: str) -> int:
    """Return the number of contracts of an organization, ended ones too."""
    query = sa.select(sa.func.count()).where(contracts.c.organization_id == organization_id)
    count: int = tx.connection.execute(query).scalar_one()
    return count


def list_holders(tx: Transaction, now: int, *, after: str, limit: int) -> list[str]:
    """Return organizations after an id, in order, that are active and have a contract which has begun."""
    active = sa.select(organizations.c.id).where(organizations.c.status == Status.ACTIVE)
    query = sa.select(contracts.c.organization_id).where(contracts.c.valid_from <= now, contracts.c.organization_id > after)
    query = query.where(contracts.c.organization_id.in_(active))
    return list(tx.connection.execute(query.distinct().order_by(contracts.c.organization_id).limit(limit)).scalars())


class StoredContract(NamedTuple):
    """A contract as its row says it; None where its terms cannot be read."""

    id: str
    contract: Contract | None


def iterate_contracts(tx: PlatformTx) -> Iterator[StoredContract]:
    """Yield every contract by organization and time: for verification."""
    query = sa.select(contracts).order_by(contracts.c.organization_id, contracts.c.valid_from, contracts.c.id)
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        try:
            contract = _contract(row)
        except (msgspec.ValidationError, msgspec.DecodeError):
            contract = None
        yield StoredContract(row.id, contract if contract is not None and encode_terms(contract.terms) == row.terms else None)


def _contract(row: Any) -> Contract:
    return Contract(
        id=row.id,
        organization_id=row.organization_id,
        valid_from=row.valid_from,
        valid_until=row.valid_until,
        created_at=row.created_at,
        terms=msgspec.json.decode(row.terms, type=ContractTerms, strict=False),
    )


# ---- Usage --------------------------------------------------------------------------------------------------------------


class PriceUsage(NamedTuple):
    """Key of the sums of events: what was rated by one price, in one class."""

    model: str
    service_tier: str
    price_version: str
    billing_class: str


class PartUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of the events of a part of a period: amounts in pico-currency, and a measure for each service level."""

    amounts: Mapping[PriceUsage, int]
    measures: Sequence[Measure]


def sum_events(tx: Transaction, period: Period, part: Bounds, levels: Sequence[ServiceLevel]) -> PartUsage:
    """Return what the events of a period come to that ended in a part of it; late ones count at the start of the period. A statement sums
    EVENTS_SUMMED events, so that none reaches its deadline however many there are. Requests of test keys count for no service level."""
    event, is_test = usage_events.c, usage_events.c.test.is_(True)
    served_at = sa.case((event.ended_at < period.start_at, period.start_at), else_=event.ended_at)
    is_in_part = sa.and_(served_at >= part.start_at, served_at < part.end_at)
    counted = [
        sa.case((sa.or_(is_test, ~is_counted), 0), else_=1).label(f"counted_{at}") for at, (is_counted, _) in _list_conditions(levels)
    ]
    met = [sa.case((sa.or_(is_test, ~sa.and_(*both)), 0), else_=1).label(f"met_{at}") for at, both in _list_conditions(levels)]
    costs = [event[f"{each}_pico"].label(f"{each}_pico") for each in BillingClass]
    columns = (event.event_id, event.model, event.service_tier, event.price_version, sa.case((is_in_part, 1), else_=0).label("inside"))
    own = sa.select(*columns, *costs, *counted, *met).where(
        event.organization_id == period.organization_id, event.period_at == period.start_at
    )
    amounts, counts, after, events = Counter[PriceUsage](), Counter[str](), "", EVENTS_SUMMED
    names = [column.name for column in (*counted, *met)]
    while events == EVENTS_SUMMED:
        page = own.where(event.event_id > after).order_by(event.event_id).limit(EVENTS_SUMMED).subquery().c
        key = (page.inside, page.model, page.service_tier, page.price_version)
        sums = [sa.func.sum(page[name]).label(name) for name in (*(f"{each}_pico" for each in BillingClass), *names)]
        rows = tx.connection.execute(
            sa.select(*key, *sums, sa.func.count().label("events"), sa.func.max(page.event_id).label("last")).group_by(*key)
        ).all()
        for row in (row for row in rows if row.inside):
            for each in BillingClass:
                if pico := int(row._mapping[f"{each}_pico"] or 0):
                    amounts[PriceUsage(row.model, row.service_tier, row.price_version, str(each))] += pico
            counts.update({name: int(row._mapping[name]) for name in names})
        events, after = sum(row.events for row in rows), max((row.last for row in rows), default="")
    measures = [Measure(counted=counts[f"counted_{at}"], met=counts[f"met_{at}"]) for at in range(len(levels))]
    return PartUsage(amounts=amounts, measures=measures)


def _list_conditions(
    levels: Sequence[ServiceLevel],
) -> list[tuple[int, tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]]]:
    """Return for each service level, by its index, the conditions of requests that it counts, and of those that meet it."""
    event = usage_events.c
    found: list[tuple[int, tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]]] = []
    for at, level in enumerate(levels):
        if level.objective is Objective.AVAILABILITY:
            found.append((at, (sa.true(), event.outcome.not_in(FAILED_OUTCOMES))))
        else:
            is_in_time = event.first_token_at - event.admitted_at <= level.within_ms * 1000
            found.append((at, (event.first_token_at.is_not(None), is_in_time)))
    return found


# ---- Charges ------------------------------------------------------------------------------------------------------------


class ContractCharge(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts that contracts added to a closed period. `id`: of its transaction."""

    id: str
    organization_id: str
    period_at: int
    parts: tuple[ContractPart, ...]
    billed_pico: int
    booked_at: int


def post_charge(tx: PlatformTx, charge: ContractCharge, entries: tuple[Entry, ...]) -> None:
    """Book what contracts add to a period that is closing. The caller has seen to it that the entries sum to zero."""
    if entries:  # lines may come to nothing
        ledger.post_entries(tx, [(charge.id, entries)], charge.booked_at)
    values = {**{name: getattr(charge, name) for name in charge.__struct_fields__}, "parts": encode_parts(charge.parts)}
    tx.connection.execute(contract_charges.insert(), [values])


def encode_parts(parts: Iterable[ContractPart]) -> str:
    """Return parts as they are stored, in the one way."""
    return json.dumps([describe(part) for part in parts], sort_keys=True, separators=(",", ":"))


class BookedCharge(NamedTuple):
    """A charge with its entries. `is_canonical`: its parts are stored in the one way."""

    charge: ContractCharge
    entries: tuple[Entry, ...]
    is_canonical: bool


def find_charge(tx: Transaction, organization_id: str, period_at: int) -> BookedCharge | None:
    """Return what contracts added to the period of an organization that begins at `period_at`; None if it is not closed or none did."""
    query = sa.select(contract_charges).where(
        contract_charges.c.organization_id == organization_id, contract_charges.c.period_at == period_at
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _booked(row, ledger.list_entries(tx, [row.id]))


def sum_standings(tx: Transaction, organization_id: str, before_at: int) -> dict[str, Standing]:
    """Return what the parts of periods that begin before an instant came to, by contract of an organization."""
    query = sa.select(contract_charges.c.parts).where(
        contract_charges.c.organization_id == organization_id, contract_charges.c.period_at < before_at
    )
    standings = dict[str, Standing]()
    for parts in tx.connection.execute(query.order_by(contract_charges.c.period_at)).scalars():
        for part in _parts(parts):
            standings[part.contract_id] = part.standing
    return standings


def iterate_charges(tx: PlatformTx) -> Iterator[BookedCharge]:
    """Yield every charge with its entries, by organization and period: for verification."""
    query = sa.select(contract_charges).order_by(contract_charges.c.organization_id, contract_charges.c.period_at)
    for rows in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)).partitions():
        entries = ledger.list_entries(tx, [row.id for row in rows])
        for row in rows:
            yield _booked(row, entries)


def _booked(row: Any, entries: Mapping[str, tuple[Entry, ...]]) -> BookedCharge:
    try:
        parts = _parts(row.parts)
    except (msgspec.ValidationError, msgspec.DecodeError):
        parts = ()
    charge = ContractCharge(
        id=row.id,
        organization_id=row.organization_id,
        period_at=row.period_at,
        parts=parts,
        billed_pico=row.billed_pico,
        booked_at=row.booked_at,
    )
    return BookedCharge(charge, entries.get(row.id, ()), encode_parts(parts) == row.parts)


def _parts(text: str) -> tuple[ContractPart, ...]:
    return msgspec.json.decode(text, type=tuple[ContractPart, ...], strict=False)
