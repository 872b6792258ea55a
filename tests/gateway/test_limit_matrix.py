"""Every dimension at every level, on all models, on one model and on a group: what each limit counts, and what it leaves alone.

The counters of one process and those that gateways share decide each cell, through the port that the phase `limit` asks. The store of the
latter is the model in Python integers that tests/storage holds the scripts of a real server against. What clients are told of each cell is
tested in `test_limit_refusals`.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from tests.gateway.test_shared_windows import Store, run_at_once
from tests.storage.test_shared_counters import Model
from tollway.domain.catalog import covers_model
from tollway.domain.limits import DAY_NS, DIMENSIONS, Dimension, LevelLimits, LimitLevel, Limits
from tollway.domain.shared_limits import PreparedLimits, StoreAnswer
from tollway.gateway.counters import ONE_REQUEST, QUANTITIES, REQUESTS, Bound, Counters, EndUserLimits, Hold, Units
from tollway.gateway.memory_counters import MemoryCounters
from tollway.gateway.shared_counters import SharedCounters

NOW_NS = 7 * DAY_NS
SIZE = 3
GROUPS = {"large": ("open",), "small": ("open",), "other": ()}
"""Models, and the groups that each is in."""

SCOPES = {"": ("large", "small", "other"), "large": ("large",), "group:open": ("large", "small")}
"""The scopes of a limit, and the models whose requests count towards it."""


class StoreOfKeys(Store):
    """A store of counters that stand apart by the keys under which they are stored."""

    def __init__(self) -> None:
        super().__init__([], lambda: NOW_NS)
        self._models: dict[tuple[bytes, ...], Model] = {}

    def reserve(self, prepared: PreparedLimits, owner: str, units: tuple[int, ...], done: Callable[[StoreAnswer | None], None]) -> None:
        self._choose(prepared)
        super().reserve(prepared, owner, units, done)

    def settle(self, prepared: PreparedLimits, owner: str, moves: Sequence[int], previous: str = "") -> None:
        self._choose(prepared)
        super().settle(prepared, owner, moves, previous)

    def _choose(self, prepared: PreparedLimits) -> None:
        levels = list({each.owner.id: each.owner for each in prepared.counters}.values())
        self.model = self._models.setdefault(tuple(prepared.keys), Model(levels))


class Cell(NamedTuple):
    """One limit of each subject of a level, and the counters that decide by it alone. `scope`: what it is on."""

    dimension: Dimension
    level: LimitLevel
    scope: str
    counters: Counters

    def bind(self, model: str, subject: str) -> Bound:
        """Return what binds the requests of a subject for a model."""
        limits = Limits(**{self.dimension.name: SIZE})
        if not covers_model(self.scope, model, GROUPS[model]):
            return self.counters.bind("org_1", (), NOW_NS)
        if self.level is LimitLevel.END_USER:
            of = EndUserLimits("org_1", "proj_1", ((self.scope, limits),))
            return self.counters.bind_end_user(self.counters.bind("org_1", (), NOW_NS), of, subject, NOW_NS)
        return self.counters.bind("org_1", [LevelLimits(self.level, subject, limits, self.scope)], NOW_NS)

    def ask(self, model: str, subject: str = "one") -> Hold | None:
        """Return the decision on a request that counts 1 in the dimension; None where nothing binds it."""
        bound = self.bind(model, subject)
        if bound.is_empty:
            return None
        hold = self.counters.reserve(bound, self._one(), NOW_NS)
        run_at_once(hold.wait())
        return hold

    def admits(self, model: str, subject: str = "one") -> bool:
        """Return whether a request is admitted."""
        hold = self.ask(model, subject)
        return hold is None or hold.is_admitted

    def _one(self) -> Units:
        place = QUANTITIES.index(self.dimension.quantity)
        return tuple(int(number in (REQUESTS, place)) for number in range(len(QUANTITIES)))


def counted_in_memory() -> Counters:
    return MemoryCounters()


def counted_in_a_store() -> Counters:
    counters = SharedCounters("node_1", lambda: NOW_NS)
    counters.use(StoreOfKeys())
    return counters


@pytest.mark.parametrize("make", [counted_in_memory, counted_in_a_store])
def test_limit_of_each_dimension_level_and_scope_counts_what_it_is_on_and_nothing_else(make: Callable[[], Counters]) -> None:
    for dimension, level, (scope, counted) in itertools.product(DIMENSIONS, LimitLevel, SCOPES.items()):
        cell = Cell(dimension, level, scope, make())
        of = (dimension.name, str(level), scope)
        holds = [cell.ask(counted[number % len(counted)]) for number in range(SIZE)]
        assert all(hold is not None and hold.is_admitted for hold in holds), (of, "up to the size")
        for model in GROUPS:
            assert cell.admits(model) is (model not in counted), (of, model)
        refused, first = cell.ask(counted[-1]), holds[0]
        assert refused is not None and first is not None
        told = refused.find_refusal()
        assert (told.owner.level, told.owner.model, told.words, told.size, told.used) == (level, scope, dimension.words, SIZE, SIZE), of
        assert told.is_concurrency is not bool(dimension.window_ns) and not told.is_permanent, of
        assert cell.admits(counted[0], "another"), (of, "who has counters of their own")
        first.settle(ONE_REQUEST, NOW_NS)  # it ended without a token, an image or a second
        is_returned = not (dimension.window_ns and QUANTITIES[REQUESTS] is dimension.quantity)  # an admitted request stays counted
        assert cell.admits(counted[-1]) is is_returned, (of, "what was reserved and not used")
