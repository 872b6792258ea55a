"""Arithmetic of rate limits whose counters several gateways share, in whole microseconds: the same rule as `limits.gcra`, in numbers that
a store with 53-bit integers can hold.

A shared counter holds its debt as whole `units` and a `fraction` of a unit, in parts of one window (a unit is `window_us` parts), beside
the instant at which that was its debt. So the state does not depend on the size of the limit: a limit that changes keeps its units. Units
that are held by requests under way are counted beside it and do not drain.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tollway.domain.limits import DIMENSIONS, Dimension, LevelLimits, Quantity, Standing


class SharedCounter(NamedTuple):
    """One dimension of one level. `owner`: the level with its limits; `size`: the limit."""

    owner: LevelLimits
    dimension: Dimension
    size: int

    @property
    def window_us(self) -> int:
        """The window in microseconds; 0 for concurrent requests."""
        return self.dimension.window_ns // 1000


def list_counters(limits: Sequence[LevelLimits]) -> list[SharedCounter]:
    """Return the counters of these limits, level by level."""
    return [SharedCounter(owner, each, size) for owner in limits for each in DIMENSIONS if (size := owner.limits.get(each)) is not None]


class CounterState(NamedTuple):
    """The state of a shared counter. `units`, `fraction`: what is charged and has not drained; `held`: units of requests under way, at all
    gateways."""

    units: int
    fraction: int
    held: int


class PreparedLimits:
    """The counters of one caller's requests to one model, in the form in which a store uses them: `keys` of what it stores, and `shape`,
    its description of `counters`. Only the store that made it can use it."""

    __slots__ = ("counters", "keys", "shape")

    def __init__(self, counters: tuple[SharedCounter, ...], keys: tuple[bytes, ...], shape: bytes) -> None:
        self.counters = counters
        self.keys = keys
        self.shape = shape

    def find_size_min(self, quantity: Quantity, default: int) -> int:
        """Return the size of the smallest limit on a quantity, `default` if there is none."""
        return min((counter.size for counter in self.counters if counter.dimension.quantity is quantity), default=default)


class StoreAnswer(NamedTuple):
    """A store's decision. `is_lease_known`: the store knew the owner's lease; if it should have and did not, it has lost its contents.
    `numbers`: units, fraction and held units of every counter after the decision, as in `CounterState`: plain numbers, because an object
    for each of a dozen counters costs a gateway more than all else of an answer."""

    is_admitted: bool
    is_lease_known: bool
    numbers: tuple[int, ...]


def list_states(numbers: Sequence[int]) -> list[CounterState]:
    """Return the states of counters from the numbers of a store's answer."""
    return [CounterState(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]


EMPTY = CounterState(0, 0, 0)


def drain(state: CounterState, elapsed_us: int, size: int, window_us: int) -> CounterState:
    """Return the state of a rate of `size` units per window, `elapsed_us` later. A clock that stepped back drains nothing."""
    parts = max(state.units * window_us + state.fraction - max(elapsed_us, 0) * size, 0)
    return CounterState(*divmod(parts, window_us), state.held)


def find_remaining(state: CounterState, size: int) -> int:
    """Return the units that would be admitted now."""
    return max(size - state.units - (state.fraction > 0) - state.held, 0)


def find_wait_us(state: CounterState, counter: SharedCounter, units: int) -> int:
    """Return the microseconds until `units` more would be admitted, if nothing else arrives and no hold ends. 0 or less: now."""
    parts = (state.units + state.held + units - counter.size) * counter.window_us + state.fraction
    return -(-parts // counter.size)


def find_reset_us(state: CounterState, counter: SharedCounter) -> int:
    """Return the microseconds until all that is charged or held now would have drained."""
    return -(-((state.units + state.held) * counter.window_us + state.fraction) // counter.size)


def list_standings(counters: Sequence[SharedCounter], states: Sequence[CounterState]) -> list[Standing]:
    """Return how each shared counter stands."""
    found: list[Standing] = []
    for counter, state in zip(counters, states, strict=True):
        used, reset_ns = state.units + (state.fraction > 0), find_reset_us(state, counter) * 1000 if counter.window_us else None
        remaining = find_remaining(state, counter.size)
        found.append(Standing(counter.owner, counter.dimension, counter.size, used, state.held, remaining, reset_ns))
    return found
