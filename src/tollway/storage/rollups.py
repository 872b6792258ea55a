"""Rollups at rest: sums of events by minute, hour and day. The collector adds to them, tenants read them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.billing_classes import QUANTITY_CLASSES, Amounts, Quantities
from tollway.domain.money import PICO
from tollway.domain.rollups import TEST_PREFIX, RollupKey, UsageGroup, UsageQuery, UsageSums, rollup_endpoint
from tollway.storage.bulk_statements import Upsert, upsert_rows
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.schema_money import ROLLUP_COSTS, ROLLUP_KEY, ROLLUP_QUANTITIES, usage_rollups

RollupRow = tuple[str | int, ...]
"""A row of `usage_rollups`, in the order of its columns."""


def rollup_rows(sums: Mapping[RollupKey, UsageSums]) -> list[RollupRow]:
    """Return the rows for `add_rollups`: ordered by key, so that two collectors that meet wait for each other instead of deadlocking."""
    return [(*key, *_values(sums[key])) for key in sorted(sums)]


def add_rollups(tx: PlatformTx, rows: Sequence[RollupRow]) -> None:
    """Add rows to the rollups of the same key, or insert them."""
    if rows:
        upsert_rows(tx, _ADD_ROLLUPS, rows)


def _added() -> Iterator[tuple[str, str]]:
    """Yield each column and what it becomes when the row `excluded` is added; pico beyond a whole unit are carried over."""
    for name in ROLLUP_QUANTITIES:
        yield name, f"usage_rollups.{name} + excluded.{name}"
    for name in ROLLUP_COSTS:
        pico = f"(usage_rollups.{name}_pico + excluded.{name}_pico)"
        yield f"{name}_units", f"usage_rollups.{name}_units + excluded.{name}_units + {pico} / {PICO}"
        yield f"{name}_pico", f"{pico} % {PICO}"


_ADD_ROLLUPS = Upsert(usage_rollups, key=ROLLUP_KEY, changes=dict(_added()))


def _values(sums: UsageSums) -> tuple[int, ...]:
    """Return the values of the columns after the key."""
    costs = (part for pico in sums.amounts.values() for part in divmod(pico, PICO))
    return (sums.requests, *sums.billed.quantities(), *costs)


def list_usage(tx: TenantTx, query: UsageQuery) -> list[UsageGroup]:
    """Return the organization's usage by bucket and group, in that order. Buckets without usage are left out."""
    table = usage_rollups.c
    where = [
        table.organization_id == tx.organization_id,
        table.width_seconds == query.width_seconds,
        table.start_at >= query.start_at,
        table.start_at < query.end_at,
    ]
    is_test = table.endpoint.startswith(TEST_PREFIX, autoescape=True)
    where.append(is_test if query.test else ~is_test)
    endpoints = [rollup_endpoint(endpoint, test=query.test) for endpoint in query.endpoints]
    filters = {"endpoint": endpoints, "project_id": query.project_ids, "key_id": query.key_ids, "model": query.models}
    where += [table[name].in_(values) for name, values in filters.items() if values]
    groups = [table.start_at, *(table[name] for name in query.group_by)]
    statement = sa.select(*groups, *_sum_columns()).where(*where).group_by(*groups).order_by(*groups)
    return [
        UsageGroup(row.start_at, {name: getattr(row, name) for name in query.group_by}, _read_sums(row))
        for row in tx.connection.execute(statement)
    ]


def iterate_rollups(tx: PlatformTx) -> Iterator[tuple[RollupKey, UsageSums]]:
    """Yield every rollup of every organization, ordered by key: for verification."""
    query = sa.select(usage_rollups).order_by(*(usage_rollups.c[name] for name in ROLLUP_KEY))
    for row in tx.connection.execute(query.execution_options(yield_per=1000)):
        yield RollupKey(*row[: len(ROLLUP_KEY)]), _read_sums(row)


def _sum_columns() -> list[sa.Label[Any]]:
    summed = [column for column in usage_rollups.c if column.name not in ROLLUP_KEY]
    return [sa.func.sum(column).label(column.name) for column in summed]


def _read_sums(row: Any) -> UsageSums:
    """Return the sums at the end of a row, which are in the order of the table's columns: by position, because there are many rows."""
    requests, *values = map(int, row[-1 - len(QUANTITY_CLASSES) - 2 * len(ROLLUP_COSTS) :])
    costs = values[len(QUANTITY_CLASSES) :]
    amounts = (units * PICO + pico for units, pico in zip(costs[::2], costs[1::2], strict=True))
    return UsageSums(requests, Quantities.from_values((*values[: len(QUANTITY_CLASSES)], 0)), Amounts.from_values(amounts))
