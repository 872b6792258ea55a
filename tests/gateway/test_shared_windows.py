"""Limits that several gateways share, on simulated time: no interleaving of requests, deaths of gateways and losses of the store admits
more than docs/limits.md says, and nothing stays held.

The gateways are real. The store is the model in Python integers that tests/storage holds the scripts of a real server against."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import Any

from tests.storage.test_shared_counters import START_US, Model
from tollway.domain.limits import MINUTE_NS, SECOND_NS, LevelLimits, LimitLevel, Limits
from tollway.domain.shared_limits import PreparedLimits, SharedCounter, StoreAnswer
from tollway.gateway.counters import QUANTITIES, Units
from tollway.gateway.shared_counters import SharedBound, SharedCounters, SharedHold
from tollway.storage.shared_counters import prepare

ORGANIZATION = "org_1"


class Store:
    """A store that answers at once, while it `is_available`: `gateway.ports.CounterStore`."""

    def __init__(self, levels: list[LevelLimits], clock: Callable[[], int]) -> None:
        self.is_available = True
        self.model = Model(levels)
        self._levels = levels
        self._clock = clock

    def now_us(self) -> int:
        return START_US + self._clock() // 1000

    def forget(self) -> None:
        """Lose everything that is stored."""
        self.model = Model(self._levels)
        for _, cell in self.model.counters():
            cell.at_us = self.now_us()

    def prepare(self, organization_id: str, limits: Sequence[LevelLimits]) -> PreparedLimits:
        return prepare(organization_id, limits)

    def reserve(self, prepared: PreparedLimits, owner: str, units: tuple[int, ...], done: Callable[[StoreAnswer | None], None]) -> None:
        admitted, known, *numbers = self.model.reserve(owner, self.now_us(), units[1:])
        done(StoreAnswer(bool(admitted), bool(known), tuple(numbers)))

    def read(self, prepared: PreparedLimits, done: Callable[[StoreAnswer | None], None]) -> None:
        raise AssertionError("no history reads the store")

    def settle(self, prepared: PreparedLimits, owner: str, moves: Sequence[int], previous: str = "") -> None:
        for cell in self.model.cells.values():
            cell.held.pop(previous, None)
        self.model.leases.pop(previous, None)
        self.model.settle(owner, self.now_us(), list(moves))

    def renew(self, organization_id: str, owner: str, done: Callable[[bool], None]) -> None:
        done(self.model.leases.get(owner, 0) > self.now_us())
        self.model.renew(owner, self.now_us())

    def held(self) -> list[int]:
        return [sum(cell.held.values()) for _, cell in self.model.counters()]


@dataclass(eq=False)
class Gateway:
    counters: SharedCounters
    bound: SharedBound
    live: list["Run"] = field(default_factory=list)


@dataclass(eq=False)
class Run:
    """A request that was admitted, and what it will have used."""

    at: int
    units: Units
    used: Units
    hold: SharedHold
    ended_at: int | None = None


class World:
    """Gateways, their store and their clock."""

    def __init__(self, levels: list[LevelLimits], count: int) -> None:
        self.now = 7 * 86_400 * SECOND_NS
        self.levels = levels
        self.store = Store(levels, lambda: self.now)
        self.admitted: list[Run] = []
        self.losses: list[tuple[int, int | None]] = []
        self._made = 0
        self.gateways = [self._start(count) for _ in range(count)]

    def _start(self, count: int) -> Gateway:
        self._made += 1
        counters = SharedCounters(f"node_{self._made}", lambda: self.now)
        counters.gateways = count
        counters.use(self.store)
        return Gateway(counters, counters.bind(ORGANIZATION, self.levels, self.now))

    def arrive(self, gateway: Gateway, units: Units, used: Units) -> bool:
        before = self.store.held()
        hold = gateway.counters.reserve(gateway.bound, units, self.now)
        run_at_once(hold.wait())
        if not hold.is_admitted:
            assert not self.store.is_available or self.store.held() == before, "a refusal holds nothing"
            return False
        run = Run(self.now, units, used, hold)
        gateway.live.append(run)
        self.admitted.append(run)
        return True

    def end(self, gateway: Gateway, run: Run) -> None:
        gateway.live.remove(run)
        run.ended_at = self.now
        run.hold.settle(run.used, self.now)

    def kill(self, number: int) -> None:
        """Replace a gateway that dies with its requests: nothing of it is settled, and each counts for what it reserved."""
        dead = self.gateways[number]
        for run in dead.live:
            run.used, run.ended_at = run.units, self.now
        self.gateways[number] = self._start(len(self.gateways))

    def sleep(self, pause_ns: int) -> None:
        end = self.now + pause_ns
        while self.now < end:
            self.now = min(end, self.now + MINUTE_NS)
            for gateway in self.gateways:
                gateway.counters.renew()

    def lose(self) -> None:
        if self.store.is_available:
            self.store.is_available = False
            self.losses.append((self.now, None))

    def find(self, *, is_empty: bool) -> None:
        """Make the store available again, with or without what it had."""
        if self.store.is_available:
            return
        if is_empty:
            self.store.forget()
        self.losses[-1] = (self.losses[-1][0], self.now)
        for gateway in self.gateways:
            gateway.counters.restore()
        self.store.is_available = True

    def finish(self) -> None:
        """End every request, and let the leases of the dead end."""
        self.find(is_empty=False)
        for gateway in self.gateways:
            for run in list(gateway.live):
                self.end(gateway, run)
        self.sleep(11 * MINUTE_NS)
        self.store.model.advance("", self.store.now_us())
        assert not any(self.store.held())


def run_at_once(deciding: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing, as the store answers at once."""
    try:
        deciding.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


NAMES = ("requests_per_minute", "requests_per_day", "tokens_per_minute", "output_tokens_per_day", "concurrent_requests")
HISTORIES = 120
STEPS = 60


def play(dice: Random, acts: Sequence[str]) -> World:
    """Play a history of these acts and return how it ended. Few limits and small requests, so that many are admitted."""
    sizes = [{name: dice.randint(3, 24) for name in dice.sample(NAMES, dice.randint(1, 2))} for _ in range(2)]
    owners = zip((LimitLevel.PROJECT, LimitLevel.ORGANIZATION), sizes, strict=True)
    world = World([LevelLimits(level, f"id_{level}", Limits(**own)) for level, own in owners], 3)
    for _ in range(STEPS):
        number = dice.randrange(3)
        gateway = world.gateways[number]
        match dice.choice(acts):
            case "arrive":
                input_tokens, output_tokens = dice.randint(0, 3), dice.randint(0, 3)
                used = dice.randint(0, output_tokens)
                units = (1, input_tokens + output_tokens, input_tokens, output_tokens, 0, 0)
                world.arrive(gateway, units, (1, input_tokens + used, input_tokens, used, 0, 0))
            case "end" if gateway.live:
                world.end(gateway, dice.choice(gateway.live))
            case "pass":
                world.sleep(dice.choice((SECOND_NS, 10 * SECOND_NS, MINUTE_NS + MINUTE_NS // 3)))
            case "kill":
                world.kill(number)
            case "lose":
                world.lose()
            case "find":
                world.find(is_empty=dice.random() < 0.5)
    return world


def list_counters(world: World) -> list[SharedCounter]:
    return [counter for counter, _ in world.store.model.counters()]


def check_windows(world: World, seed: int) -> None:
    """Check what was admitted between any two admissions: a burst and what drains meanwhile, and for each loss of the store one limit more,
    or one unit of each gateway where that is more."""
    for counter in list_counters(world):
        if not counter.window_us:
            continue
        quantity = QUANTITIES.index(counter.dimension.quantity)
        for first, start in enumerate(world.admitted):
            total = 0
            for run in world.admitted[first:]:
                total += run.used[quantity]
                losses = sum(begun <= run.at and (over is None or over >= start.at) for begun, over in world.losses)
                bursts = counter.size + losses * max(counter.size, len(world.gateways))
                assert total <= bursts + Fraction(counter.size * (run.at - start.at), counter.dimension.window_ns), (seed, counter)


def test_gateways_together_admit_a_burst_and_the_rate_whatever_dies() -> None:
    for seed in range(HISTORIES):
        world = play(Random(seed), ("arrive",) * 6 + ("end",) * 4 + ("pass", "kill"))
        check_windows(world, seed)
        for counter in list_counters(world):
            for run in () if counter.window_us else world.admitted:
                running = sum(other.at <= run.at and (other.ended_at is None or other.ended_at > run.at) for other in world.admitted)
                assert running <= counter.size, (seed, counter)
        world.finish()


def test_each_loss_of_the_store_admits_at_most_one_limit_more() -> None:
    for seed in range(HISTORIES):
        world = play(Random(seed), ("arrive",) * 10 + ("end",) * 5 + ("pass", "lose", "find"))
        check_windows(world, seed)
        world.finish()
