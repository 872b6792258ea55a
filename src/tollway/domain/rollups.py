"""Rollups: sums of usage events by minute, hour and day, and what can be asked of them."""

from dataclasses import dataclass
from typing import NamedTuple

from tollway.domain.billing_classes import NOTHING, Amounts, Quantities

ROLLUP_WIDTHS_SECONDS = (60, 3_600, 86_400)
"""A minute, an hour, a day (UTC): the bucket widths of the usage API. Each is kept ready, so that a month reads in 31 rows a group."""

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


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Rollups to sum: `start_at` inclusive to `end_at` exclusive (multiples of the width), grouped by the columns `group_by`.

    An empty tuple in a filter means no filter. `test`: requests of test keys, instead of those of live keys.
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


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The sums of one bucket and group; `group` holds the values of the columns grouped by."""

    start_at: int
    group: dict[str, str]
    sums: UsageSums
