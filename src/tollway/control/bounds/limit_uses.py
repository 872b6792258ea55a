"""Live use of limits, for tenants: from the store where gateways share their counters, else from the reports of the live gateways.

Reports are at most a few seconds old; what drained since is taken off by the rule of the counters themselves.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from tollway.control.publish import NODE_COUNTED_US
from tollway.domain.limits import LevelLimits, LimitLevel, LimitUse, Standing
from tollway.domain.shared_limits import EMPTY, CounterState, SharedCounter, drain, list_counters, list_standings
from tollway.storage import limit_use_reports, nodes
from tollway.storage.database import Database, PlatformTx
from tollway.storage.shared_counters import StoreOptions, read_states


class UseSource(StrEnum):
    """The place where use is counted."""

    STORE = "store"
    GATEWAYS = "gateways"


class LimitStandings(NamedTuple):
    """Standings of limits. `source`: None if it is not known, and the standings are those of unused limits. `gateways`: whose reports
    were added up."""

    source: UseSource | None
    gateways: int
    standings: list[Standing]


def store_report(tx: PlatformTx, node_id: str, uses: Sequence[LimitUse], now: int) -> None:
    """Replace what a gateway reported before."""
    limit_use_reports.put_report(tx, node_id, uses, now)


def find_standings(
    database: Database, store: StoreOptions | None, organization_id: str, limits: Sequence[LevelLimits], now: int
) -> LimitStandings:
    """Return how limits of one organization stand, those of end users left out. `store`: where gateways share their counters; None: each
    counts by itself."""
    limits = [each for each in limits if each.level is not LimitLevel.END_USER]
    counters = list_counters(limits)
    if store is not None:
        states = read_states(store, organization_id, limits)
        source = None if states is None else UseSource.STORE
        return LimitStandings(source, 0, list_standings(counters, [EMPTY] * len(counters) if states is None else states))
    with database.platform(write=False) as tx:
        reports = limit_use_reports.list_reports(tx, nodes.list_alive_nodes(tx, now - NODE_COUNTED_US))
    by_report = [({(use.subject_id, use.model, use.dimension): use for use in each.uses}, now - each.reported_at) for each in reports]
    states = tuple(_add_up(counter, _list_states(counter, by_report)) for counter in counters)
    return LimitStandings(UseSource.GATEWAYS if reports else None, len(reports), list_standings(counters, states))


def _list_states(counter: SharedCounter, reports: Sequence[tuple[dict[tuple[str, str, str], LimitUse], int]]) -> Iterator[CounterState]:
    key = (counter.owner.id, counter.owner.model, counter.dimension.name)
    for uses, age_us in reports:
        use = uses.get(key)
        if use is not None:
            state = CounterState(use.used, 0, use.held)
            yield drain(state, age_us, counter.size, counter.window_us) if counter.window_us else state


def _add_up(counter: SharedCounter, states: Iterator[CounterState]) -> CounterState:
    units = fraction = held = 0
    for state in states:
        units, fraction, held = units + state.units, fraction + state.fraction, held + state.held
    if not counter.window_us:
        return CounterState(0, 0, held)
    whole, fraction = divmod(fraction, counter.window_us)
    return CounterState(units + whole, fraction, held)
