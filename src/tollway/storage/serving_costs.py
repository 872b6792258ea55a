"""Costs of serving at rest: those of deployments, what closed periods and past months cost, and what events come to by deployment."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.billing_classes import QUANTITY_CLASSES, BillingClass, Quantities
from tollway.domain.ledger import Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import INSTANT_MAX, NEVER, Period, PeriodState
from tollway.domain.serving_costs import (
    BookedMargin,
    CapacityCost,
    DeploymentCost,
    PeriodMargin,
    ServedUsage,
    read_costs,
    stated_costs,
)
from tollway.domain.tenants import Status
from tollway.storage import ledger
from tollway.storage.database import PlatformTx
from tollway.storage.pages import fetch_page
from tollway.storage.schema import deployments, organizations
from tollway.storage.schema_money import usage_events
from tollway.storage.schema_periods import billing_periods
from tollway.storage.schema_serving_costs import capacity_costs, deployment_costs, serving_costs

EVENTS_SUMMED = 20_000
"""Events that one statement sums."""

ROWS_FETCHED = 500
"""Rows that are read at once where there may be many."""

# ---- Costs of deployments -----------------------------------------------------------------------------------------------


def insert_cost(tx: PlatformTx, cost: DeploymentCost) -> None:
    """Store a cost of a deployment."""
    values = {each: getattr(cost, each) for each in cost.__struct_fields__}
    tx.connection.execute(deployment_costs.insert().values(**values | {"unit_costs": _encode_units(cost)}))


def _encode_units(cost: DeploymentCost) -> str:
    return json.dumps(stated_costs(cost.unit_costs), sort_keys=True, separators=(",", ":"))


class CostedDeployment(NamedTuple):
    """Facts of a deployment on which costs depend. `until_at`: when it was archived; INSTANT_MAX while it is active."""

    model: str
    is_archived: bool
    until_at: int


def lock_deployment(tx: PlatformTx, deployment_id: str) -> CostedDeployment | None:
    """Keep others from adding costs of a deployment and from booking its time until the transaction ends. Returns None if it does not
    exist."""
    column = deployments.c
    query = sa.select(column.model, column.status, column.archived_at).where(column.id == deployment_id).with_for_update()
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    return CostedDeployment(row.model, row.status != Status.ACTIVE, INSTANT_MAX if row.archived_at is None else row.archived_at)


def find_booked_until(tx: PlatformTx, now: int) -> int:
    """Return the end of the latest billing period that is frozen, and keep all others from being cut or frozen until the transaction ends:
    one that is cut meanwhile for a past month could be frozen, and summed without the cost. NEVER if none is."""
    period = billing_periods.c
    if tx.connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        tx.connection.exec_driver_sql(f"LOCK TABLE {billing_periods.name} IN SHARE MODE")
    latest = tx.connection.execute(sa.select(sa.func.max(period.end_at)).where(period.state != PeriodState.OPEN)).scalar_one()
    return NEVER if latest is None else int(latest)


def find_last_month(tx: PlatformTx, deployment_id: str) -> str | None:
    """Return the latest month for which the time of a deployment is booked."""
    query = sa.select(sa.func.max(capacity_costs.c.month)).where(capacity_costs.c.deployment_id == deployment_id)
    last_month: str | None = tx.connection.execute(query).scalar_one()
    return last_month


def list_costs(tx: PlatformTx, deployment_id: str, window: PageWindow) -> Page[DeploymentCost]:
    """Return a page of the costs of a deployment."""
    query = sa.select(deployment_costs).where(deployment_costs.c.deployment_id == deployment_id)
    return fetch_page(tx, query, deployment_costs.c.id, window, _cost)


def read_series(tx: PlatformTx, deployment_id: str) -> list[DeploymentCost]:
    """Return the costs of a deployment in order of time."""
    query = sa.select(deployment_costs).where(deployment_costs.c.deployment_id == deployment_id)
    return [_cost(row) for row in tx.connection.execute(query.order_by(deployment_costs.c.valid_from))]


def list_archived(tx: PlatformTx) -> dict[str, int]:
    """Return when deployments that have a cost were archived, for those that were."""
    column = deployments.c
    query = sa.select(column.id, column.archived_at).where(column.archived_at.is_not(None))
    rows = tx.connection.execute(query.where(column.id.in_(sa.select(deployment_costs.c.deployment_id))))
    return {row.id: row.archived_at for row in rows}


def read_costs_by_id(tx: PlatformTx, cost_ids: Sequence[str]) -> dict[str, DeploymentCost]:
    """Return costs by id; one that does not exist is left out."""
    query = sa.select(deployment_costs).where(deployment_costs.c.id.in_(cost_ids))
    return {row.id: _cost(row) for row in tx.connection.execute(query)}


def list_deployments_with_costs(tx: PlatformTx) -> list[str]:
    """Return the deployments whose time has ever had a cost, in order."""
    query = sa.select(deployment_costs.c.deployment_id).where(deployment_costs.c.hour_pico > 0).distinct()
    return list(tx.connection.execute(query.order_by(deployment_costs.c.deployment_id)).scalars())


def has_costs_before(tx: PlatformTx, at: int) -> bool:
    """Return whether any deployment has a cost that is valid before an instant."""
    query = sa.select(deployment_costs.c.id).where(deployment_costs.c.valid_from < at).limit(1)
    return tx.connection.execute(query).first() is not None


class StoredCost(NamedTuple):
    """A cost as its row says it; None where it cannot be read."""

    id: str
    cost: DeploymentCost | None


def iterate_costs(tx: PlatformTx) -> Iterator[StoredCost]:
    """Yield every cost by deployment and time: for verification."""
    query = sa.select(deployment_costs).order_by(deployment_costs.c.deployment_id, deployment_costs.c.valid_from)
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        try:
            cost = _cost(row)
        except (ValueError, AttributeError, TypeError):
            yield StoredCost(row.id, None)
        else:
            yield StoredCost(row.id, cost if _encode_units(cost) == row.unit_costs else None)


def _cost(row: Any) -> DeploymentCost:
    return DeploymentCost(
        id=row.id,
        deployment_id=row.deployment_id,
        valid_from=row.valid_from,
        created_at=row.created_at,
        currency=row.currency,
        hour_pico=row.hour_pico,
        unit_costs=read_costs(json.loads(row.unit_costs)),
    )


# ---- Usage --------------------------------------------------------------------------------------------------------------


def sum_events(tx: PlatformTx, period: Period) -> list[ServedUsage]:
    """Return what the events of a period come to by model, deployment and cost. A statement sums EVENTS_SUMMED events, so that none reaches
    its deadline however many there are."""
    event = usage_events.c
    columns = (event.event_id, event.model, event.deployment_id, event.admitted_at, event.ended_at)
    own = sa.select(*columns, *(event[each] for each in QUANTITY_CLASSES)).where(
        event.organization_id == period.organization_id, event.period_at == period.start_at
    )
    sums: dict[tuple[str, str, str], tuple[int, ...]] = {}
    after, events = "", EVENTS_SUMMED
    while events == EVENTS_SUMMED:
        page = own.where(event.event_id > after).order_by(event.event_id).limit(EVENTS_SUMMED).subquery().c
        cost = deployment_costs.c
        valid = (
            sa.select(cost.id)
            .where(cost.deployment_id == page.deployment_id, cost.valid_from <= page.admitted_at)
            .order_by(cost.valid_from.desc())
            .limit(1)
            .scalar_subquery()
        )
        costed = sa.select(*page, valid.label("cost_id")).subquery().c
        busy = sa.case((costed.ended_at > costed.admitted_at, costed.ended_at - costed.admitted_at), else_=0)
        key = (costed.model, costed.deployment_id, costed.cost_id)
        measured = [sa.func.sum(busy).label("busy_us"), *(sa.func.sum(costed[each]).label(str(each)) for each in QUANTITY_CLASSES)]
        counted = (sa.func.count().label("events"), sa.func.max(costed.event_id).label("last"))
        rows = tx.connection.execute(sa.select(*key, *counted, *measured).group_by(*key)).all()
        for row in rows:
            place = (row.model, row.deployment_id or "", row.cost_id or "")
            found = (row.events, int(row.busy_us), *(int(row._mapping[str(each)] or 0) for each in QUANTITY_CLASSES))
            before = sums.get(place)
            sums[place] = found if before is None else tuple(map(sum, zip(before, found, strict=True)))
        events, after = sum(row.events for row in rows), max((row.last for row in rows), default="")
    return [_served(place, found) for place, found in sums.items()]


def _served(place: tuple[str, str, str], found: tuple[int, ...]) -> ServedUsage:
    requests, busy_us, *counts = found
    quantities = dict(zip(QUANTITY_CLASSES, counts, strict=True)) | {BillingClass.REQUEST: requests}
    return ServedUsage(*place, requests, busy_us, Quantities.from_values(quantities[each] for each in BillingClass))


# ---- Bookings -----------------------------------------------------------------------------------------------------------


class ServingCost(msgspec.Struct, frozen=True, kw_only=True):
    """Revenue and cost of a closed billing period. `id`: of its transaction. `month`: as YYYY-MM."""

    id: str
    organization_id: str
    period_at: int
    month: str
    margin: PeriodMargin
    booked_at: int


def post_serving_cost(tx: PlatformTx, made: ServingCost, entries: tuple[Entry, ...]) -> None:
    """Book what serving a period cost. The caller has seen to it that the entries sum to zero in each currency."""
    if entries:
        ledger.post_entries(tx, [(made.id, entries)], made.booked_at)
    values = {each: getattr(made, each) for each in made.__struct_fields__}
    tx.connection.execute(serving_costs.insert().values(**values | {"margin": encode_margin(made.margin)}))


def encode_margin(margin: PeriodMargin) -> str:
    """Return a margin as it is stored, in the one way: integers are text."""
    return json.dumps(_with_text(msgspec.to_builtins(margin)), sort_keys=True, separators=(",", ":"))


def _with_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_text(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text(each) for each in value]
    return str(value) if isinstance(value, int) else value


class BookedServingCost(NamedTuple):
    """Cost of a period, with its entries. `is_canonical`: its margin is stored in the one way."""

    cost: ServingCost
    entries: tuple[Entry, ...]
    is_canonical: bool


def iterate_serving_costs(tx: PlatformTx) -> Iterator[BookedServingCost]:
    """Yield what every closed period cost with its entries, by organization and period: for verification."""
    query = sa.select(serving_costs).order_by(serving_costs.c.organization_id, serving_costs.c.period_at)
    for rows in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)).partitions():
        entries = ledger.list_entries(tx, [row.id for row in rows])
        for row in rows:
            try:
                margin = _margin(row.margin)
            except (msgspec.ValidationError, msgspec.DecodeError):
                margin = PeriodMargin(served=(), revenue=())
            cost = ServingCost(
                id=row.id,
                organization_id=row.organization_id,
                period_at=row.period_at,
                month=row.month,
                margin=margin,
                booked_at=row.booked_at,
            )
            yield BookedServingCost(cost, entries.get(row.id, ()), encode_margin(margin) == row.margin)


def iterate_margins(tx: PlatformTx, months: Sequence[str]) -> Iterator[BookedMargin]:
    """Yield the margins of closed periods of some months."""
    query = sa.select(serving_costs, organizations.c.currency).join(organizations, organizations.c.id == serving_costs.c.organization_id)
    query = query.where(serving_costs.c.month.in_(months))
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        yield BookedMargin(row.month, row.organization_id, row.currency, _margin(row.margin))


def _margin(text: str) -> PeriodMargin:
    return msgspec.json.decode(text, type=PeriodMargin, strict=False)


class PostedCapacity(NamedTuple):
    """Cost of the time of a deployment in a month, as it was booked."""

    id: str
    cost: CapacityCost
    entries: tuple[Entry, ...]


def list_booked_months(tx: PlatformTx, deployment_id: str) -> set[tuple[str, str]]:
    """Return the months and currencies for which the time of a deployment is booked."""
    query = sa.select(capacity_costs.c.month, capacity_costs.c.currency).where(capacity_costs.c.deployment_id == deployment_id)
    return {(row.month, row.currency) for row in tx.connection.execute(query)}


def post_capacity(tx: PlatformTx, posted: PostedCapacity, now: int) -> None:
    """Book what the time of a deployment cost in a month. The caller has seen to it that the entries sum to zero."""
    ledger.post_entries(tx, [(posted.id, posted.entries)], now)
    tx.connection.execute(
        capacity_costs.insert().values(
            id=posted.id,
            deployment_id=posted.cost.deployment_id,
            month=posted.cost.month,
            currency=posted.cost.currency,
            amount_pico=posted.cost.amount_pico,
            booked_at=now,
        )
    )


def list_capacity(tx: PlatformTx, months: Sequence[str]) -> list[CapacityCost]:
    """Return what the time of deployments cost in some months."""
    query = sa.select(capacity_costs, deployments.c.model).join(deployments, deployments.c.id == capacity_costs.c.deployment_id)
    rows = tx.connection.execute(query.where(capacity_costs.c.month.in_(months)))
    return [CapacityCost(row.month, row.deployment_id, row.model, row.currency, row.amount_pico) for row in rows]


def iterate_capacity(tx: PlatformTx) -> Iterator[PostedCapacity]:
    """Yield everything that was booked for the time of deployments: for verification."""
    query = sa.select(capacity_costs, deployments.c.model).join(deployments, deployments.c.id == capacity_costs.c.deployment_id)
    for rows in tx.connection.execute(query.order_by(capacity_costs.c.id).execution_options(yield_per=ROWS_FETCHED)).partitions():
        entries = ledger.list_entries(tx, [row.id for row in rows])
        for row in rows:
            cost = CapacityCost(row.month, row.deployment_id, row.model, row.currency, row.amount_pico)
            yield PostedCapacity(row.id, cost, entries.get(row.id, ()))


def count_open_periods(tx: PlatformTx, start_at: int, end_at: int) -> int:
    """Return how many billing periods that begin in a span are not closed."""
    period = billing_periods.c
    query = sa.select(sa.func.count()).where(period.start_at >= start_at, period.start_at < end_at, period.state != PeriodState.CLOSED)
    return int(tx.connection.execute(query).scalar_one())
