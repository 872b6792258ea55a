"""Rollups at rest: sums of events by minute, hour and day; by key, and of hours and days also by project and by organization. The collector
adds to them, tenants read them, from the shortest table that has what they ask for."""

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

import sqlalchemy as sa

from tollway.domain.billing_classes import OTHER_CLASSES, QUANTITY_CLASSES, TEXT_CLASSES, Amounts, Quantities
from tollway.domain.money import PICO
from tollway.domain.rollups import (
    COARSE_WIDTHS_SECONDS,
    ROLLUP_WIDTHS_SECONDS,
    TEST_PREFIX,
    OrganizationRollupKey,
    ProjectRollupKey,
    RankedGroup,
    Ranking,
    RollupKey,
    UsageGroup,
    UsageQuery,
    UsageSums,
    WantedSums,
    rollup_endpoint,
    sum_organizations,
    sum_projects,
)
from tollway.storage.bulk_statements import Upsert, upsert_rows
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.schema import organizations
from tollway.storage.schema_money import (
    ROLLUP_COSTS,
    ROLLUP_KEY,
    ROLLUP_QUANTITIES,
    ROLLUP_TOTAL,
    organization_rollups,
    project_rollups,
    usage_rollups,
)

RollupRow = tuple[str | int, ...]
"""A row of a table of rollups, in the order of its columns."""

Key = TypeVar("Key", RollupKey, ProjectRollupKey, OrganizationRollupKey)


@dataclass(frozen=True, slots=True)
class _Level(Generic[Key]):
    """One table of rollups. `widths`: of its buckets, in seconds."""

    table: sa.Table
    key: type[Key]
    widths: Sequence[int]
    upsert: Upsert = field(init=False)
    upsert_of_text: Upsert = field(init=False)
    """For rows that have nothing of OTHER_CLASSES: half as many values, and columns that change."""

    def __post_init__(self) -> None:
        """Write the statements once."""
        changes = dict(_added(self.table))
        object.__setattr__(self, "upsert", Upsert(self.table, key=self.key._fields, changes=changes))
        object.__setattr__(self, "upsert_of_text", Upsert(self.table, key=self.key._fields, changes=changes, zeros=_OTHER_COLUMNS))

    @property
    def has_total(self) -> bool:
        """Return whether rows hold the total of their costs."""
        return ROLLUP_TOTAL[0] in self.table.c

    def row(self, key: Key, values: tuple[int, ...]) -> RollupRow:
        """Return the row of a rollup. `values`: the total of its costs in two parts, and the values of the columns after it."""
        return (*key, *(values if self.has_total else values[len(ROLLUP_TOTAL) :]))


def _added(table: sa.Table) -> Iterator[tuple[str, str]]:
    """Yield each column and what it becomes when the row `excluded` is added; pico beyond a whole unit are carried over."""
    own = f"{table.name}."
    for name in ROLLUP_QUANTITIES:
        yield name, f"{own}{name} + excluded.{name}"
    for name in ("total", *ROLLUP_COSTS):
        if f"{name}_pico" in table.c:
            pico = f"({own}{name}_pico + excluded.{name}_pico)"
            yield f"{name}_units", f"{own}{name}_units + excluded.{name}_units + {pico} / {PICO}"
            yield f"{name}_pico", f"{pico} % {PICO}"


_OTHER_COLUMNS = (*map(str, OTHER_CLASSES), *(f"{each}_cost_{part}" for each in OTHER_CLASSES for part in ("units", "pico")))

_BY_KEY = _Level(usage_rollups, RollupKey, ROLLUP_WIDTHS_SECONDS)
_BY_PROJECT = _Level(project_rollups, ProjectRollupKey, COARSE_WIDTHS_SECONDS)
_BY_ORGANIZATION = _Level(organization_rollups, OrganizationRollupKey, COARSE_WIDTHS_SECONDS)


class RollupRows(NamedTuple):
    """Rows to be added to the rollups: by key, by project, by organization. `is_text`: without columns of OTHER_CLASSES, of which none has
    anything."""

    by_key: Sequence[RollupRow] = ()
    by_project: Sequence[RollupRow] = ()
    by_organization: Sequence[RollupRow] = ()
    is_text: bool = False


def rollup_rows(sums: Mapping[RollupKey, UsageSums]) -> RollupRows:
    """Return the rows for `add_rollups`: ordered by key, so that two collectors that meet wait for each other instead of deadlocking."""
    by_key = sorted(sums.items(), key=itemgetter(0))
    by_project = list(sum_projects(by_key))
    by_organization = list(sum_organizations(by_project))
    is_text = all(each.billed.other is None and each.amounts.other is None for each in sums.values())
    values = _text_values if is_text else _values
    seen: dict[int, tuple[int, ...]] = {}

    def read(sums: UsageSums) -> tuple[int, ...]:
        found = seen.get(id(sums))  # the same sums stand in several buckets and tables where few requests are spread over many
        if found is None:
            found = seen[id(sums)] = values(sums)
        return found

    return RollupRows(
        [_BY_KEY.row(key, read(each)) for key, each in by_key],
        [_BY_PROJECT.row(key, read(each)) for key, each in by_project],
        [_BY_ORGANIZATION.row(key, read(each)) for key, each in by_organization],
        is_text,
    )


def add_rollups(tx: PlatformTx, rows: RollupRows) -> None:
    """Add rows to the rollups of the same key, or insert them."""
    levels: Sequence[_Level[Any]] = (_BY_KEY, _BY_PROJECT, _BY_ORGANIZATION)
    for level, added in zip(levels, (rows.by_key, rows.by_project, rows.by_organization), strict=True):
        if added:
            upsert_rows(tx, level.upsert_of_text if rows.is_text else level.upsert, added)


def _values(sums: UsageSums) -> tuple[int, ...]:
    """Return the total in two parts, and the values of the columns after it."""
    costs = (part for pico in sums.amounts.values() for part in divmod(pico, PICO))
    counts = (sums.requests, *sums.billed.quantities())
    return (*divmod(sums.amounts.total, PICO), *counts, *costs)


def _text_values(sums: UsageSums) -> tuple[int, ...]:
    """Return what `_values` does without the columns of OTHER_CLASSES, of which there is nothing."""
    amounts = sums.amounts
    own = (*amounts.text_quantities(), amounts.request)
    costs = (part for pico in own for part in divmod(pico, PICO))
    counts = (sums.requests, *sums.billed.text_quantities())
    return (*divmod(amounts.total, PICO), *counts, *costs)


def list_usage(tx: TenantTx, query: UsageQuery) -> list[UsageGroup]:
    """Return the organization's usage by bucket and group, in that order. Buckets without usage are left out."""
    level = _find_level(query)
    table = level.table.c
    groups = [*([] if query.is_whole else [table.start_at]), *(table[name] for name in query.group_by)]
    statement = sa.select(*groups, *_sum_columns(level, query.wanted)).where(*_where(tx, table, query)).group_by(*groups).order_by(*groups)
    if not groups:
        statement = statement.having(sa.func.count() > 0)  # a sum over no rows would be a row of nulls
    read = _read_total if query.wanted is WantedSums.TOTAL else _read_group
    return [read(query, row) for row in tx.connection.execute(statement)]


def rank_groups(
    tx: TenantTx, query: UsageQuery, quantities: Sequence[str], *, count: int | None = None, before_at: int | None = None
) -> Ranking:
    """Return the groups of a span that have most, `count` at most (None: all): of the quantities of some columns together, of none: the
    largest total of all amounts. With `before_at`, values of the span from there to the start of the query's are beside them."""
    level = _find_level(query)
    table = level.table.c
    parts = {"value": functools.reduce(operator.add, (table[name] for name in quantities))} if quantities else _total_parts(level)
    sums: dict[str, sa.ColumnElement[Any]] = {name: sa.func.sum(part) for name, part in parts.items()}
    read_from = query.start_at
    if before_at is not None:
        read_from, is_before = before_at, table.start_at < query.start_at
        spans = {"": ~is_before, "_before": is_before}
        sums = {
            name + suffix: sa.func.coalesce(sa.func.sum(part).filter(is_in), 0)
            for suffix, is_in in spans.items()
            for name, part in parts.items()
        }
    groups = [table[name] for name in query.group_by]
    labels = [each.label(name) for name, each in sums.items()]
    inner = sa.select(*groups, *labels).where(*_where(tx, table, replace(query, start_at=read_from))).group_by(*groups)
    every = (inner if groups else inner.having(sa.func.count() > 0)).subquery().c
    # Ordered outside: SQLite computes the sums again for each mention of them where they are computed.
    order = [every.value.desc()] if quantities else _largest_first(every)
    columns = [every[name] for name in query.group_by]
    statement = sa.select(*columns, *(every[name] for name in sums), sa.func.count().over()).order_by(*order, *columns).limit(count)
    rows = tx.connection.execute(statement).all()
    at, width = len(columns), len(parts)
    compose = int if quantities else _compose_pico
    found = [
        RankedGroup(
            tuple(row[:at]),
            compose(*row[at : at + width]),
            0 if before_at is None else compose(*row[at + width : at + 2 * width]),
        )
        for row in rows
    ]
    return Ranking(found, int(rows[0][-1]) if rows else 0)


def _where(tx: TenantTx, table: Any, query: UsageQuery) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of a query on the rows of a table of rollups."""
    where = [table.organization_id == tx.organization_id, table.width_seconds == query.width_seconds, *_span(table, query)]
    is_test = table.endpoint.startswith(TEST_PREFIX, autoescape=True)
    where.append(is_test if query.test else ~is_test)
    endpoints = [rollup_endpoint(endpoint, test=query.test) for endpoint in query.endpoints]
    filters = {"endpoint": endpoints, "project_id": query.project_ids, "key_id": query.key_ids, "model": query.models}
    where += [table[name].in_(values) for name, values in filters.items() if values]
    return where


def _largest_first(sums: Any) -> list[sa.ColumnElement[Any]]:
    """Return the order of totals, largest first, of sums in three parts. The parts below a unit are carried over, so that it is exact."""
    below = sums.upper + sums.lower // _HALF
    return [(sums.units + below // _HALF).desc(), (below % _HALF).desc(), (sums.lower % _HALF).desc()]


def _compose_pico(units: Any, upper: Any, lower: Any) -> int:
    """Return the total of amounts whose sums are in three parts."""
    return int(units) * PICO + int(upper) * _HALF + int(lower)


def _find_level(query: UsageQuery) -> "_Level[Any]":
    """Return the table with the fewest rows that has the columns of a query."""
    named = {*query.group_by, *(["project_id"] if query.project_ids else []), *(["key_id"] if query.key_ids else [])}
    levels: Sequence[_Level[Any]] = (_BY_ORGANIZATION, _BY_PROJECT)
    return next((each for each in levels if query.width_seconds in each.widths and named <= set(each.key._fields)), _BY_KEY)


STARTS_MAX = 1_440
"""Buckets that a query names one by one: those of a page of the REST API."""


def _span(table: Any, query: UsageQuery) -> list[sa.ColumnElement[bool]]:
    """Return the condition of the span. For some projects each bucket is looked up by itself: in the key the project is behind it."""
    width_us = query.width_seconds * 1_000_000
    starts = range(query.start_at, query.end_at, width_us)
    if query.project_ids and query.start_at % width_us == 0 and len(starts) <= STARTS_MAX:
        return [table.start_at.in_(starts)]
    return [table.start_at >= query.start_at, table.start_at < query.end_at]


def _read_group(query: UsageQuery, row: Any) -> UsageGroup:
    sums = _read_sums(row)
    return UsageGroup(_read_start(query, row), {name: getattr(row, name) for name in query.group_by}, sums, sums.amounts.total)


def _read_total(query: UsageQuery, row: Any) -> UsageGroup:
    total_pico = _compose_pico(row.units, row.upper, row.lower)
    return UsageGroup(_read_start(query, row), {name: getattr(row, name) for name in query.group_by}, UsageSums(), total_pico)


def _read_start(query: UsageQuery, row: Any) -> int:
    return query.start_at if query.is_whole else int(row.start_at)


class OrganizationUse(NamedTuple):
    """Usage of an organization in an hour, without test keys. `tokens`: of text, in and out."""

    organization_id: str
    requests: int
    tokens: int


def list_hour(tx: PlatformTx, start_at: int) -> list[OrganizationUse]:
    """Return the usage of each organization in the hour that begins at `start_at`, most tokens first. It reads the rows of that hour alone:
    by organization, as their key has it."""
    table = organization_rollups.c
    tokens = sum((table[name] for name in TEXT_CLASSES[1:]), table[TEXT_CLASSES[0]])
    query = (
        sa.select(organizations.c.id, sa.func.sum(table.requests), sa.func.sum(tokens).label("tokens"))
        .select_from(organizations.join(organization_rollups, table.organization_id == organizations.c.id))
        .where(table.width_seconds == 3600, table.start_at == start_at, ~table.endpoint.startswith(TEST_PREFIX, autoescape=True))
        .group_by(organizations.c.id)
        .order_by(sa.desc("tokens"), organizations.c.id)
    )
    return [OrganizationUse(row[0], int(row[1]), int(row[2])) for row in tx.connection.execute(query)]


def iterate_rollups(tx: PlatformTx) -> Iterator[tuple[RollupKey, UsageSums]]:
    """Yield every rollup of every organization, ordered by key: for verification."""
    return _iterate(tx, _BY_KEY)


class Totalled(NamedTuple):
    """Sums of a rollup, and the total of its costs as its row has it, in pico-currency."""

    sums: UsageSums
    total_pico: int


def iterate_project_rollups(tx: PlatformTx) -> Iterator[tuple[ProjectRollupKey, Totalled]]:
    """Yield every rollup of a project, ordered by key: for verification."""
    return _iterate_totalled(tx, _BY_PROJECT)


def iterate_organization_rollups(tx: PlatformTx) -> Iterator[tuple[OrganizationRollupKey, Totalled]]:
    """Yield every rollup of an organization, ordered by key: for verification."""
    return _iterate_totalled(tx, _BY_ORGANIZATION)


def _iterate_totalled(tx: PlatformTx, level: _Level[Key]) -> Iterator[tuple[Key, Totalled]]:
    at = len(level.key._fields)
    for row in _list_rows(tx, level):
        yield level.key(*row[:at]), Totalled(_read_sums(row), int(row[at]) * PICO + int(row[at + 1]))


def _iterate(tx: PlatformTx, level: _Level[Key]) -> Iterator[tuple[Key, UsageSums]]:
    for row in _list_rows(tx, level):
        yield level.key(*row[: len(level.key._fields)]), _read_sums(row)


def _list_rows(tx: PlatformTx, level: _Level[Any]) -> Iterable[Any]:
    query = sa.select(level.table).order_by(*(level.table.c[name] for name in level.key._fields))
    return tx.connection.execute(query.execution_options(yield_per=1000))


_HALF = 1_000_000
"""Pico of rows are added in two parts, above and below this many, so that no number of rows exceeds 64 bits."""


def _sum_columns(level: _Level[Any], wanted: WantedSums) -> list[sa.Label[Any]]:
    """Return the sums that are wanted: of the columns after the key in their order, 0 for those that are not; or the total of all amounts
    in three parts."""
    table = level.table.c
    if wanted is WantedSums.TOTAL:
        return [sa.func.sum(part).label(name) for name, part in _total_parts(level).items()]
    none: sa.ColumnElement[Any] = sa.literal_column("0")
    is_wanted = ROLLUP_QUANTITIES if wanted is WantedSums.QUANTITIES else table.keys()
    summed = [column for column in table if column.name not in {*ROLLUP_KEY, *ROLLUP_TOTAL}]
    return [(sa.func.sum(column) if column.name in is_wanted else none).label(column.name) for column in summed]


def _total_parts(level: _Level[Any]) -> dict[str, sa.ColumnElement[Any]]:
    """Return the total of all amounts of a row in three parts, which are summed apart."""
    table = level.table.c
    costs = ("total",) if level.has_total else ROLLUP_COSTS
    units = functools.reduce(operator.add, (table[f"{cost}_units"] for cost in costs))
    pico = functools.reduce(operator.add, (table[f"{cost}_pico"] for cost in costs))
    return {"units": units, "upper": pico // _HALF, "lower": pico % _HALF}


def _read_sums(row: Any) -> UsageSums:
    """Return the sums at the end of a row, which are in the order of the table's columns: by position, because there are many rows."""
    requests, *values = map(int, row[-1 - len(QUANTITY_CLASSES) - 2 * len(ROLLUP_COSTS) :])
    costs = values[len(QUANTITY_CLASSES) :]
    amounts = (units * PICO + pico for units, pico in zip(costs[::2], costs[1::2], strict=True))
    return UsageSums(requests, Quantities.from_values((*values[: len(QUANTITY_CLASSES)], 0)), Amounts.from_values(amounts))
