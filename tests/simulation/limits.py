"""Limits in a history: the gateways' own counters, in the memory of each or shared in a store that can be cut off and lose its contents.

The counters and the decision are the product's. The store is the model in Python integers against which tests/storage holds the scripts of
a real server; the link to it keeps the order of its calls and has deadlines and a circuit, as `storage.shared_counters` has.

What must hold: over any time, admitted requests and what they used are at most a burst, what drains meanwhile, and for each gateway that
decided without the others, or each loss of the store, one limit more. A refusal changes nothing. A gateway that has ended in good
order holds nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import Any

from tests.storage.test_shared_counters import START_US, Model
from tollway.domain.limits import LevelLimits, LimitLevel, Limits
from tollway.domain.shared_limits import PreparedLimits, SharedCounter, StoreAnswer, list_counters
from tollway.gateway.counters import QUANTITIES, Units
from tollway.gateway.limit import Undecided, limit
from tollway.gateway.memory_counters import MemoryBound, MemoryCounters
from tollway.gateway.request import Call, Permit
from tollway.gateway.shared_counters import SharedCounters
from tollway.storage.shared_counters import prepare
from tollway.telemetry import Metrics

DECISION_SECONDS = 0.005
STRIKES_MAX = 3
PROBE_SECONDS = 0.1
LEASE_US = 2_500_000
"""Short, so that leases of gateways that died end within a history; gateways renew theirs every two seconds."""

GATEWAYS = 2
"""Most gateways that run at once: one that relieves another."""

PROMPT_BYTES = 4_000
"""Bytes of each request's body: at first more tokens than any engine here reports, later what the requests before had."""

SIZES = {
    "requests_per_minute": (3, 24),
    "requests_per_day": (3, 24),
    "tokens_per_minute": (1_500, 9_000),
    "output_tokens_per_day": (500, 3_000),
    "concurrent_requests": (1, 5),
}
LIMITED = (0, 3)
"""Seeds of histories with limits, modulo 7: none that was written down before there were limits, so that those mean what they meant."""


@dataclass(eq=False, slots=True)
class Run:
    """A request that a gateway admitted between two instants of virtual time. `units`: what it reserved. `used`: once it has ended, else
    None."""

    gateway: str
    asked_at: float
    admitted_at: float
    units: Units
    truth: Any
    used: Units | None = None


@dataclass(slots=True)
class Loss:
    """Time in which a gateway decided without the store."""

    began_at: float
    ended_at: float | None = None


class _Model(Model):
    """The model of the scripts with short leases."""

    def renew(self, owner: str, now_us: int) -> None:
        if self.leases.get(owner, 0) <= now_us + LEASE_US * 3 // 4:
            self.leases[owner] = now_us + LEASE_US


class Store:
    """The server that gateways share. `is_up`: it can be reached."""

    def __init__(self, world: Any, levels: list[LevelLimits]) -> None:
        self.world = world
        self.is_up = True
        self.seconds = 0.0004
        self.losses: list[Loss] = []
        """Times at which it lost its contents."""
        self._levels = levels
        self.model = _Model(levels)

    def now_us(self) -> int:
        """Return the time of the server's own clock."""
        return START_US + int(self.world.now * 1e6)

    def forget(self) -> None:
        """Lose everything that is stored."""
        self.model = _Model(self._levels)
        for _, cell in self.model.counters():
            cell.at_us = self.now_us()
        self.losses.append(Loss(self.world.now, self.world.now))
        self.world.note("the store of counters has lost its contents")

    def find_held(self, node: str) -> int:
        """Return what all owners of one gateway's run hold. An owner whose lease has ended holds nothing: the next call drops it."""
        owners = {owner for owner, ends_at in self.model.leases.items() if owner.startswith(f"{node}.") and ends_at > self.now_us()}
        return sum(units for _, cell in self.model.counters() for owner, units in cell.held.items() if owner in owners)


class StoreLink:
    """One gateway's way to the store: `gateway.ports.CounterStore`. `losses`: times in which it could not be used. `is_in_order`: nothing
    that the store was told since the last of them is lost."""

    def __init__(self, process: Any, store: Store, restore: Callable[[], None]) -> None:
        self.is_available = True
        self.is_in_order = True
        self.losses: list[Loss] = []
        self._process = process
        self._store = store
        self._restore = restore
        self._strikes = 0
        self._connection = 0
        self._arrives_at = 0.0
        self._replies_at = 0.0
        self._open: dict[int, Callable[[], None]] = {}
        self._calls = 0

    def prepare(self, organization_id: str, limits: Sequence[LevelLimits]) -> PreparedLimits:
        return prepare(organization_id, limits)

    def reserve(self, prepared: PreparedLimits, owner: str, units: tuple[int, ...], done: Callable[[StoreAnswer | None], None]) -> None:
        def decide() -> StoreAnswer:
            admitted, known, *numbers = self._store.model.reserve(owner, self._store.now_us(), units[1:])
            return StoreAnswer(bool(admitted), bool(known), tuple(numbers))

        self._call(decide, done)

    def read(self, prepared: PreparedLimits, done: Callable[[StoreAnswer | None], None]) -> None:
        raise AssertionError("no history reads the store")

    def settle(self, prepared: PreparedLimits, owner: str, moves: Sequence[int], previous: str = "") -> None:
        def change() -> None:
            model = self._store.model
            for cell in model.cells.values():
                cell.held.pop(previous, None)
            model.leases.pop(previous, None)
            model.settle(owner, self._store.now_us(), list(moves))

        self._call(change, lambda answer: None)

    def renew(self, organization_id: str, owner: str, done: Callable[[bool], None]) -> None:
        def renewed() -> bool:
            model, now_us = self._store.model, self._store.now_us()
            is_known = model.leases.get(owner, 0) > now_us
            model.renew(owner, now_us)
            return is_known

        self._call(renewed, lambda answer: None if answer is None else done(answer))

    def note_alone(self) -> None:
        """A decision was made without the store."""
        if not self.losses or self.losses[-1].ended_at is not None:
            self.losses.append(Loss(self._process.world.now))

    def _call(self, act: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Have the store do something, in the order of the calls; `done` gets the answer, or None at the deadline and perhaps the answer
        after it."""
        world, process = self._process.world, self._process
        if not process.alive:
            return  # what a dead process still unwinds reaches nobody
        self._calls += 1
        number, connection = self._calls, self._connection

        def expire() -> None:
            if self._open.pop(number, None) is not None:
                done(None)
                self._strikes += 1
                if self._strikes >= STRIKES_MAX and connection == self._connection:
                    self._lose()

        def reply(answer: Any) -> None:
            if connection == self._connection:
                self._strikes = 0
                self._open.pop(number, None)
                done(answer)

        def arrive() -> None:
            if not self._store.is_up:
                self.is_in_order = False
                return
            answer = act()
            self._replies_at = max(self._replies_at, world.now + world.latency(self._store.seconds))
            world.at(self._replies_at, lambda: process.loop.call_soon(reply, answer) if process.alive else None)

        self._open[number] = lambda: done(None)
        process.loop.call_later(DECISION_SECONDS, expire)
        self._arrives_at = max(self._arrives_at, world.now + world.latency(self._store.seconds))
        world.at(self._arrives_at, arrive)

    def _lose(self) -> None:
        """Close the connection: nothing that was asked on it is answered any more."""
        self.is_available = self.is_in_order = False
        self._connection += 1
        self.note_alone()
        self._process.world.note(f"{self._process.name} decides without the store")
        unanswered, self._open = list(self._open.values()), {}
        for tell in unanswered:
            tell()
        self._process.loop.call_later(PROBE_SECONDS, self._probe)

    def _probe(self) -> None:
        if not self._store.is_up:
            self._process.loop.call_later(PROBE_SECONDS, self._probe)
            return
        self._strikes = 0
        self.is_available = self.is_in_order = True
        self._restore()
        self._process.world.note(f"{self._process.name} has the store again")

    def end_losses(self) -> None:
        """Note that decisions made without the store have been reported to it."""
        for loss in self.losses:
            if loss.ended_at is None:
                loss.ended_at = self._process.world.now


@dataclass(slots=True)
class HistoryLimits:
    """The limits of one history and what was admitted under them. `store`: None if each gateway counts for itself."""

    world: Any
    dice: Random
    levels: list[LevelLimits]
    store: Store | None
    runs: list[Run] = field(default_factory=list)
    limiters: list["Limiter"] = field(default_factory=list)
    refused: int = 0

    def befall(self) -> None:
        """Draw what happens to the store while a gateway runs: it is slow, cut off, or loses its contents."""
        world, dice, store = self.world, self.dice, self.store
        if store is None:
            return
        store.seconds = dice.choice((0.0004, 0.0004, 0.003))
        store.is_up = dice.random() < 0.9
        for act in dice.choices((self._cut_off, self._reach, store.forget), k=dice.choice((0, 1, 2, 3))):
            world.after(dice.uniform(0, 0.8), act)

    def mend(self) -> None:
        """Let everything work again."""
        if self.store is not None:
            self.store.is_up = True

    def _cut_off(self) -> None:
        assert self.store is not None
        self.store.is_up = False
        self.world.note("the store of counters is cut off")

    def _reach(self) -> None:
        assert self.store is not None
        self.store.is_up = True
        self.world.note("the store of counters can be reached")


def draw_limits(seed: int, world: Any, organization_id: str, project_id: str) -> HistoryLimits | None:
    """Return the limits of a history, drawn apart from everything else, so that histories without them are what they were."""
    if seed % 7 not in LIMITED:
        return None
    dice = Random(f"limits {seed}")
    levels = []
    for level, id in ((LimitLevel.PROJECT, project_id), (LimitLevel.ORGANIZATION, organization_id)):
        names = dice.sample(sorted(SIZES), dice.randint(1, 3))
        levels.append(LevelLimits(level, id, Limits(**{name: dice.randint(*SIZES[name]) for name in names})))
    return HistoryLimits(world, dice, levels, Store(world, levels) if dice.random() < 0.6 else None)


class Limiter:
    """The limits of one gateway."""

    def __init__(self, limits: HistoryLimits, process: Any) -> None:
        self._limits = limits
        self._process = process
        self._metrics = Metrics()
        self.memory = MemoryCounters()
        self.shared: SharedCounters | None = None
        self.link: StoreLink | None = None
        if limits.store is not None:
            shared = self.shared = SharedCounters(process.name, self._clock)
            shared.gateways = GATEWAYS
            self.link = StoreLink(process, limits.store, self._restore)
            shared.use(self.link)
            self.memory = shared._local
        limits.limiters.append(self)

    def _clock(self) -> int:
        return 10**15 + int(self._process.world.now * 1e9)

    def _restore(self) -> None:
        assert self.shared is not None and self.link is not None
        self.shared.restore()
        self.link.end_losses()

    async def admit(self, call: Call, truth: Any) -> Permit:
        """Return the permit of a call. Raises Fault rate_limit_exceeded."""
        world, asked_at = self._limits.world, self._process.world.now
        before = self._read_local()
        try:
            permit = limit(call, self.memory if self.shared is None else self.shared, self._clock, self._metrics)
            if isinstance(permit, Undecided):
                permit = await permit.wait()
        except Exception:
            self._limits.refused += 1
            if self.shared is None and self._read_local() != before:
                world.fail(f"{truth.id} was refused, and counts all the same")
            raise
        hold = getattr(permit, "_hold", None)
        if self.link is not None and hold is not None and not hold.numbers:
            self.link.note_alone()
        units = (1, 0, 0, 0, 0, 0) if hold is None else hold.units
        self._limits.runs.append(Run(self._process.name, asked_at, world.now, units, truth))
        self.check_running()
        return permit

    def note_end(self, truth: Any, used: Units) -> None:
        """Note what a request that this gateway admitted has used at its end."""
        for run in reversed(self._limits.runs):
            if run.truth is truth:
                run.used = used
                return

    def _read_local(self) -> list[tuple[int, int]]:
        """Return what every counter of this process is charged and holds now."""
        now_ns, bound = self._clock(), self._bound()
        found = [(bucket.debt(now_ns), bucket.running) for bucket in bound.buckets]
        return found + [(counter.debt(now_ns), counter.held) for counter in bound.rates]

    def _bound(self) -> MemoryBound:
        if self.shared is None:
            return self.memory.bind("", self._limits.levels, self._clock())
        return self.shared._bind_local(self._limits.levels, self._clock())

    def check_running(self) -> None:
        """Check that no more run at this gateway than it may let run."""
        for bucket in self._bound().buckets if self.shared is None else ():
            if bucket.running > bucket.most:
                self._limits.world.fail(f"{bucket.running} requests run of {bucket.most}")

    def check_ended(self) -> None:
        """Check that a gateway without requests holds nothing, in its memory and in the store."""
        world, store = self._limits.world, self._limits.store
        if any(run.gateway == self._process.name and run.used is None for run in self._limits.runs):
            return  # a request still waits for its budget
        held = sum(held for _, held in self._read_local()) + len(self.memory._holds)
        if self.shared is not None:
            held += len(self.shared._live)
        if held:
            world.fail(f"{self._process.name} has ended and holds {held}")
        if store is not None and self.link is not None and self.link.is_in_order and (kept := store.find_held(self._process.name)):
            world.fail(f"{self._process.name} has ended and holds {kept} in the store")

    async def run(self) -> None:
        """Renew leases in the store while the gateway runs."""
        if self.shared is not None:
            await self.shared.run()
        else:
            await asyncio.Event().wait()


def check_limits(limits: HistoryLimits) -> None:
    """Check what was admitted between any two admissions, at each counter."""
    runs = sorted(limits.runs, key=lambda run: run.admitted_at)
    for run in runs:
        if run.used is None:  # its gateway died: it has used no more than what its engine reported
            totals = run.truth.generated_totals
            run.used = (1, sum(totals), *totals, 0, 0)
    for counter in list_counters(limits.levels):
        if counter.window_us:
            _check_windows(limits, counter, runs)


def _check_windows(limits: HistoryLimits, counter: SharedCounter, runs: list[Run]) -> None:
    quantity = QUANTITIES.index(counter.dimension.quantity)
    losses = [loss for limiter in limits.limiters if limiter.link is not None for loss in limiter.link.losses]
    losses += [] if limits.store is None else limits.store.losses
    for first in range(len(runs)):
        total = beyond = 0
        asked_at, gateways = runs[first].asked_at, set()
        for run in runs[first:]:
            assert run.used is not None
            total += run.used[quantity]
            beyond += max(run.used[quantity] - run.units[quantity], 0) if quantity else 0
            asked_at = min(asked_at, run.asked_at)
            gateways.add(run.gateway)
            if limits.store is None:
                bursts = len(gateways)
            else:
                bursts = 1 + sum(
                    loss.began_at <= run.admitted_at and (loss.ended_at is None or loss.ended_at >= asked_at) for loss in losses
                )
            most = bursts * max(counter.size, GATEWAYS) + beyond
            most += Fraction(counter.size * int((run.admitted_at - asked_at) * 1e9 + 1), counter.dimension.window_ns)
            if total > most:
                limits.world.fail(
                    f"{total} {counter.dimension.words} were admitted of {counter.size} in {run.admitted_at - asked_at:.3f} s at"
                    f" {counter.owner.level}, with {bursts} bursts"
                )
                return
