"""Rollups: sums of usage events by minute, hour and day, and what can be asked of them."""

from dataclasses import dataclass
from typing import NamedTuple

from tollway.domain.billing_classes import NOTHING, Amounts, Quantities

ROLLUP_WIDTHS_SECONDS = (60, 3_600, 86_400)
"""A minute, an hour, a day (UTC): the bucket widths of the usage API. Each is kept ready, so that a month reads in 31 rows a group."""


@dataclass(slots=True)
class UsageSums:
    """Quantities and costs of a group of events.

    `requests`: how many events. `billed`: quantities as billed (`request` stays 0: whether requests are billed is in the amounts alone).
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
    """The key of a rollup: the values that its events have in common. `start_at` is the instant at which its bucket begins."""

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

    An empty tuple in a filter means no filter.
    """

    width_seconds: int
    start_at: int
    end_at: int
    group_by: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    key_ids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The sums of one bucket and group; `group` holds the values of the columns grouped by."""

    start_at: int
    group: dict[str, str]
    sums: UsageSums
