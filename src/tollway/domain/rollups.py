"""Rollups: sums of usage events by minute, hour and day, and what can be asked of them.

They are kept by key, by project and by organization: what nobody asks about by key is read from rows that are fewer by as many keys as
there are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import NamedTuple

from tollway.domain.billing_classes import NOTHING, Amounts, Quantities

ROLLUP_WIDTHS_SECONDS = (60, 3_600, 86_400)
"""A minute, an hour, a day (UTC): the bucket widths of the usage API. Each is kept ready, so that a month reads in 31 rows a group."""

COARSE_WIDTHS_SECONDS = (3_600, 86_400)
"""Widths of the rollups of projects and of organizations. What is asked by minute spans a day at most."""

TEST_PREFIX = "test/"
"""Before the endpoint of rollups of test keys, which are never part of what is billed."""

ENDPOINT_CHARS_MAX = 64
"""Characters of a rollup's endpoint, with the prefix."""


def rollup_endpoint(endpoint: str, *, test: bool) -> str:
    """Return the endpoint under which requests are summed: live and test keys apart."""
    return TEST_PREFIX + endpoint if test else endpoint


@dataclass(slots=True)
class UsageSums:
    """Quantities and costs of a group of events.

    `requests`: how many events. `billed`: quantities as billed, or of test keys as counted (`request` stays 0: whether requests are
    billed is in the amounts alone).
    `amounts`: pico-currency; sums may exceed 64 bits.
    """

    requests: int = 0
    billed: Quantities = NOTHING
    amounts: Amounts = NOTHING

    def add(self, other: "UsageSums") -> None:
        """Add a group that has no event in common with this one."""
        self.requests += other.requests
        self.billed += other.billed
        self.amounts += other.amounts

    def __add__(self, other: "UsageSums") -> "UsageSums":
        return UsageSums(self.requests + other.requests, self.billed + other.billed, self.amounts + other.amounts)


class RollupKey(NamedTuple):
    """The key of a rollup: the values that its events have in common. `start_at` is the instant at which its bucket begins, `endpoint` as
    `rollup_endpoint` makes it."""

    organization_id: str
    width_seconds: int
    start_at: int
    project_id: str
    key_id: str
    model: str
    endpoint: str


class ProjectRollupKey(NamedTuple):
    """The key of a rollup of a project: that of `RollupKey` without the key."""

    organization_id: str
    width_seconds: int
    start_at: int
    project_id: str
    model: str
    endpoint: str


class OrganizationRollupKey(NamedTuple):
    """The key of a rollup of an organization: that of `ProjectRollupKey` without the project."""

    organization_id: str
    width_seconds: int
    start_at: int
    model: str
    endpoint: str


def sum_projects(rollups: Iterable[tuple[RollupKey, UsageSums]]) -> Iterator[tuple[ProjectRollupKey, UsageSums]]:
    """Yield the rollups of projects that rollups by key come to, both in order of their keys. It holds those of one project and bucket."""
    coarse = (each for each in rollups if each[0].width_seconds in COARSE_WIDTHS_SECONDS)
    for (organization_id, width_seconds, start_at, project_id), group in groupby(coarse, key=lambda each: each[0][:4]):
        sums = _add_up(((key.model, key.endpoint), each) for key, each in group)
        for of in sorted(sums):
            yield ProjectRollupKey(organization_id, width_seconds, start_at, project_id, *of), sums[of]


def sum_organizations(rollups: Iterable[tuple[ProjectRollupKey, UsageSums]]) -> Iterator[tuple[OrganizationRollupKey, UsageSums]]:
    """Yield the rollups of organizations that those of projects come to, both in order of their keys. It holds those of one bucket."""
    for (organization_id, width_seconds, start_at), group in groupby(rollups, key=lambda each: each[0][:3]):
        sums = _add_up(((key.model, key.endpoint), each) for key, each in group)
        for of in sorted(sums):
            yield OrganizationRollupKey(organization_id, width_seconds, start_at, *of), sums[of]


def _add_up(parts: Iterable[tuple[tuple[str, str], UsageSums]]) -> dict[tuple[str, str], UsageSums]:
    sums: dict[tuple[str, str], UsageSums] = {}
    for of, each in parts:
        before = sums.get(of)
        sums[of] = each if before is None else before + each
    return sums


class WantedSums(Enum):
    """The sums that a query wants. A group of many rollups is read in half the time without those that it does not want."""

    ALL = "all"
    QUANTITIES = "quantities"
    """Requests and quantities; amounts are 0."""
    TOTAL = "total"
    """The total of the amounts alone (`UsageGroup.total_pico`); everything else is 0."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Rollups to sum: `start_at` inclusive to `end_at` exclusive (multiples of the width), grouped by the columns `group_by`.

    An empty tuple in a filter means no filter. `test`: requests of test keys, instead of those of live keys. `wanted`: which sums.
    `is_whole`: the span is one bucket.
    """

    width_seconds: int
    start_at: int
    end_at: int
    group_by: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    key_ids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    test: bool = False
    wanted: WantedSums = WantedSums.ALL
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The sums of one bucket and group; `group` holds the values of the columns grouped by. `total_pico`: of the amounts of all classes."""

    start_at: int
    group: dict[str, str]
    sums: UsageSums
    total_pico: int


@dataclass(frozen=True, slots=True)
class RankedGroup:
    """A group in a ranking: the values of the columns grouped by, in their order; its value in the span, and in the span before."""

    group: tuple[str, ...]
    value: int
    before: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """The groups with the largest values in a span, the largest first, those of one value in the order of their columns. `count`: how many
    groups there are, also those that were only in the span before."""

    groups: list[RankedGroup]
    count: int
