"""Reconciliation at rest: readings of engines, what lies between them by hour, and what requests used by hour."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from tollway.domain.catalog import Deployment
from tollway.domain.reconciliation import EngineHour, EngineUsage, Increment, Member, PromptCount, Reading, UsageKey, hour_of
from tollway.domain.tenants import Status
from tollway.storage.bulk_statements import by_bytes
from tollway.storage.catalog import read_deployment
from tollway.storage.database import PlatformTx
from tollway.storage.schema import deployments
from tollway.storage.schema_reconcile import (
    REPEATED_COUNTS,
    USAGE_COUNTS,
    engine_hours,
    engine_members,
    engine_readings,
    engine_usage,
)

USAGE_KEY = ("start_at", "deployment_id", "model")
_COUNTS = (*USAGE_COUNTS, *REPEATED_COUNTS)
"""Names of the counts, in the order of the fields of EngineUsage."""

# ---- The collector's side ---------------------------------------------------------------------------------------------


def add_usage(tx: PlatformTx, sums: Mapping[UsageKey, EngineUsage]) -> None:
    """Add what requests used. Keys are taken in order, so that two collectors that meet wait for each other instead of deadlocking."""
    if not sums:
        return
    insert = tx.insert(engine_usage)
    added = {name: engine_usage.c[name] + insert.excluded[name] for name in _COUNTS}
    rows = [dict(zip(USAGE_KEY, key, strict=True)) | {name: getattr(sums[key], name) for name in _COUNTS} for key in sorted(sums)]
    tx.connection.execute(insert.on_conflict_do_update(index_elements=list(USAGE_KEY), set_=added), rows)


def list_usage(tx: PlatformTx, start_at: int, end_at: int) -> dict[UsageKey, EngineUsage]:
    """Return what requests used in the hours that begin from `start_at` to before `end_at`."""
    query = sa.select(engine_usage).where(engine_usage.c.start_at >= start_at, engine_usage.c.start_at < end_at)
    return {
        (row.start_at, row.deployment_id, row.model): EngineUsage(*(int(getattr(row, name)) for name in _COUNTS))
        for row in tx.connection.execute(query)
    }


def iterate_usage(tx: PlatformTx) -> Iterator[tuple[UsageKey, EngineUsage]]:
    """Every sum of every hour, ordered by key: for verification."""
    query = sa.select(engine_usage).order_by(
        engine_usage.c.start_at, by_bytes(tx, engine_usage.c.deployment_id), by_bytes(tx, engine_usage.c.model)
    )
    for row in tx.connection.execute(query.execution_options(yield_per=1000)):
        yield (row.start_at, row.deployment_id, row.model), EngineUsage(*(int(getattr(row, name)) for name in _COUNTS))


# ---- The engines to read ----------------------------------------------------------------------------------------------


def list_active_deployments(tx: PlatformTx) -> list[Deployment]:
    """Every deployment that gateways may use, ordered by id."""
    query = sa.select(deployments).where(deployments.c.status == Status.ACTIVE).order_by(deployments.c.id)
    return [read_deployment(row) for row in tx.connection.execute(query)]


# ---- The engines' side ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at an engine: what it was read as, or None if it could not be; and the deployments (id, model) it is the engine of."""

    address: str
    counts_cached: bool
    prompt_count: PromptCount
    members: Sequence[tuple[str, str]]
    looked_at: int
    reading: Reading | None


def lock_readings(tx: PlatformTx, addresses: Sequence[str]) -> dict[str, Reading]:
    """The latest reading of each engine that has one, and nobody else's until this transaction ends."""
    query = sa.select(engine_readings).where(engine_readings.c.address.in_(addresses)).order_by(engine_readings.c.address)
    return {
        row.address: Reading(row.read_at, row.prompt_tokens, row.output_tokens) for row in tx.connection.execute(query.with_for_update())
    }


def put_readings(tx: PlatformTx, readings: Mapping[str, Reading]) -> None:
    """Replace the latest readings."""
    if not readings:
        return
    insert = tx.insert(engine_readings)
    names = ("read_at", "prompt_tokens", "output_tokens")
    upsert = insert.on_conflict_do_update(index_elements=["address"], set_={name: insert.excluded[name] for name in names})
    rows = [
        {"address": address, "read_at": reading.at, "prompt_tokens": reading.prompt_tokens, "output_tokens": reading.output_tokens}
        for address, reading in sorted(readings.items())
    ]
    tx.connection.execute(upsert, rows)


def add_hours(tx: PlatformTx, observations: Iterable[Observation], increments: Mapping[str, Sequence[Increment]]) -> None:
    """Note each look in its hour, and add to each hour what the engine did in it."""
    rows: dict[tuple[int, str], dict[str, object]] = {}
    members: dict[tuple[int, str, str], str] = {}
    for observation in observations:
        address, of_engine = observation.address, increments.get(observation.address, ())
        hour = hour_of(observation.looked_at - 1)  # a look at the very edge of an hour belongs to the one that ends
        looked = _row(hour, observation) | {"samples": int(observation.reading is not None), "failures": int(observation.reading is None)}
        rows[hour, address] = looked
        for increment in of_engine:
            row = rows.setdefault((increment.start_at, address), _row(increment.start_at, observation))
            row |= {
                "prompt_tokens": increment.prompt_tokens,
                "output_tokens": increment.output_tokens,
                "covered_us": increment.covered_us,
                "is_estimated": increment.is_estimated,
                "resets": increment.resets,
            }
        for start_at in {hour, *(increment.start_at for increment in of_engine)}:
            members |= {(start_at, address, deployment_id): model for deployment_id, model in observation.members}
    if not rows:
        return
    insert = tx.insert(engine_hours)
    old, new = engine_hours.c, insert.excluded
    summed = ("prompt_tokens", "output_tokens", "covered_us", "resets", "samples", "failures")
    added = {name: old[name] + new[name] for name in summed}
    upsert = insert.on_conflict_do_update(
        index_elements=["start_at", "address"],
        set_=added
        | {
            "is_estimated": sa.or_(old.is_estimated, new.is_estimated),
            "counts_cached": new.counts_cached,
            "prompt_count": new.prompt_count,
        },
    )
    tx.connection.execute(upsert, [rows[key] for key in sorted(rows)])
    tx.connection.execute(
        tx.insert(engine_members).on_conflict_do_nothing(),
        [
            {"start_at": start_at, "address": address, "deployment_id": deployment_id, "model": model}
            for (start_at, address, deployment_id), model in sorted(members.items())
        ],
    )


def _row(start_at: int, observation: Observation) -> dict[str, object]:
    return {
        "start_at": start_at,
        "address": observation.address,
        "prompt_tokens": 0,
        "output_tokens": 0,
        "counts_cached": observation.counts_cached,
        "prompt_count": observation.prompt_count,
        "covered_us": 0,
        "is_estimated": False,
        "resets": 0,
        "samples": 0,
        "failures": 0,
    }


def list_hours(tx: PlatformTx, start_at: int, end_at: int) -> list[EngineHour]:
    """Return what engines did in the hours that begin from `start_at` to before `end_at`."""
    query = sa.select(engine_hours).where(engine_hours.c.start_at >= start_at, engine_hours.c.start_at < end_at)
    return [
        EngineHour(
            start_at=row.start_at,
            address=row.address,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            counts_cached=row.counts_cached,
            covered_us=row.covered_us,
            is_estimated=row.is_estimated,
            resets=row.resets,
            samples=row.samples,
            failures=row.failures,
            prompt_count=PromptCount(row.prompt_count),
        )
        for row in tx.connection.execute(query)
    ]


def list_members(tx: PlatformTx, start_at: int, end_at: int) -> list[Member]:
    """Return which deployments had which address in those hours."""
    query = sa.select(engine_members).where(engine_members.c.start_at >= start_at, engine_members.c.start_at < end_at)
    return [Member(row.start_at, row.address, row.deployment_id, row.model) for row in tx.connection.execute(query)]


def note_warned(tx: PlatformTx, start_at: int, address: str, now: int) -> bool:
    """Note that the drift of an engine's hour is reported. False if it was before."""
    hours = engine_hours.c
    unwarned = sa.and_(hours.start_at == start_at, hours.address == address, hours.warned_at.is_(None))
    return tx.connection.execute(engine_hours.update().where(unwarned).values(warned_at=now)).rowcount == 1
