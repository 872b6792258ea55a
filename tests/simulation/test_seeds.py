"""Histories: whatever befalls a gateway, its disk, its network and control, every record arrives exactly once and costs what it must.

`TOLLWAY_SIMULATION_SEEDS=200000 make test ARGS=tests/simulation` runs more of them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.simulation.history import run_seed
from tests.simulation.planes import Ledger
from tests.simulation.run import explain, kept_seeds

SEEDS = int(os.environ.get("TOLLWAY_SIMULATION_SEEDS", "500"))
BLOCKS = 8
"""Ranges of seeds, so that several processes can share them."""


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    opened = Ledger()
    yield opened
    opened.close()


@pytest.mark.parametrize("seed", kept_seeds())
def test_a_seed_that_failed_once_holds(seed: int, ledger: Ledger) -> None:
    outcome = run_seed(seed, ledger)
    assert not outcome.failures, explain(outcome, 60)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_promise_holds_in_every_history(block: int, ledger: Ledger, tried: Callable[[str, int], None]) -> None:
    seeds = range(block, SEEDS, BLOCKS)
    counts: Counter[str] = Counter()
    for seed in seeds:
        outcome = run_seed(seed, ledger)
        assert not outcome.failures, explain(outcome, 60)
        counts.update(kills=outcome.kills, power_cuts=outcome.power_cuts, faults=outcome.faults, requests=outcome.admitted)
    assert min(counts.values()) >= len(seeds) // 4, "a simulation in which nothing happens proves nothing"
    tried("histories simulated", len(seeds))
    for what, count in counts.items():
        tried(f"{what.replace('_', ' ')} in simulated histories", count)


def test_a_seed_has_one_history(ledger: Ledger) -> None:
    """Else a failure could not be replayed."""
    for seed in range(40):
        first, second = run_seed(seed, ledger), run_seed(seed, ledger)
        assert (first.digest, first.steps, first.virtual_seconds) == (second.digest, second.steps, second.virtual_seconds)
