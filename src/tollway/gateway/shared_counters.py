"""Limit counters that several gateways share. The store decides (`ports.CounterStore`); while it cannot, this gateway decides alone.

Theory of operation. A request asks the store once, for all levels, and waits for the answer. If there is none within the store's deadline,
or if the store is known to be unavailable, the counters in the memory of this process decide, each with the gateway's share: the limit
divided by the number of gateways. They begin with the gateway's share of what the store last said was used, so that the loss of the store
alone admits nothing more.

When the store can be used again, `restore` brings it up to date before the next request asks it. All holds of requests under way go over to
a new owner, those that were admitted alone included, and what was admitted alone and has not drained yet is charged. The same happens when
the store turns out to have lost its contents: it no longer knows the lease of an owner that holds something.

Nothing is reported to the store while it is unavailable. What was held there ends with the owner's lease, or when the next owner takes
over.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tollway.domain.limits import CONCURRENT_REQUESTS, DIMENSIONS, MINUTE_NS, LevelLimits, Limits, Quantity, Standing
from tollway.domain.shared_limits import (
    CounterState,
    PreparedLimits,
    SharedCounter,
    StoreAnswer,
    drain,
    find_reset_us,
    find_wait_us,
    list_standings,
    list_states,
)
from tollway.gateway.counters import (
    END_USERS_MAX,
    HEADER_KINDS_OF,
    IMAGES,
    NO_UNITS,
    QUANTITIES,
    REQUESTS,
    UNLIMITED,
    Bound,
    Counters,
    EndUserLimits,
    Hold,
    Refusal,
    Remainder,
    Units,
    find_later,
    identify_end_user,
    identify_other_end_users,
)
from tollway.gateway.driver import Waiter
from tollway.gateway.memory_counters import Bucket, Counter, MemoryBound, MemoryCounters, MemoryHold
from tollway.gateway.ports import CounterStore

RENEW_SECONDS = 2.0
"""Interval in which leases are renewed: a fifth of a lease, so that some pauses of this process and of the store do no harm."""


END_USER_BOUNDS_MAX = 4_000
"""End users whose counters are kept in the form of the store between requests; others are prepared anew."""

ALONE_WAIT_NS = 1_000_000_000
"""Time after which to try again what exceeds a gateway's share, while it decides alone: the store is tried twice in it."""


def _forget_oldest(seen: dict[str, int], of: EndUserLimits, now_ns: int) -> bool:
    """Forget the end user that was not seen for longest, if that is a window of its limits or more."""
    windows = [dimension.window_ns for _, limits in of.limits for dimension in DIMENSIONS if limits.get(dimension) is not None]
    oldest = next(iter(seen))
    if seen[oldest] + max(windows, default=0) > now_ns:
        return False
    del seen[oldest]
    return True


def divide(limits: Limits, gateways: int) -> Limits:
    """Return one gateway's share of limits: rounded down, and at least 1, so that no limit becomes a ban."""
    return Limits(**{name: None if size is None else max(size // gateways, 1) for name, size in limits.to_dict().items()})


class SharedRow(NamedTuple):
    """Facts of one shared counter that the end of each request needs. `is_rate`: False for concurrent requests. `quantity`: the place in
    QUANTITIES. `is_minute`: its window is a minute."""

    is_rate: bool
    quantity: int
    is_minute: bool


class SharedRate(NamedTuple):
    """Facts of one shared rate that the headers of each answer need. `number`: its place among the counters; `kind`: in HEADER_KINDS."""

    number: int
    size: int
    kind: int


def _describe(counter: SharedCounter) -> SharedRow:
    quantity = QUANTITIES.index(counter.dimension.quantity)
    return SharedRow(counter.window_us > 0, quantity, counter.dimension.window_ns == MINUTE_NS)


def _list_rates(counters: Sequence[SharedCounter]) -> tuple[SharedRate, ...]:
    kinds = [HEADER_KINDS_OF[QUANTITIES.index(counter.dimension.quantity)] for counter in counters]
    return tuple(SharedRate(number, each.size, kinds[number]) for number, each in enumerate(counters) if each.window_us)


class SharedBound(Bound):
    """The counters that bind one caller's requests to one model, where several gateways share them.

    `prepared`: the shared counters, in the form of their store; `numbers`: how they stood at `seen_ns`, the store's last answer. `local`:
    the same counters of this process, each with this gateway's share of `gateways` of the limit; they decide while the store cannot.
    `rows`: facts of the counters, in their order; `rates`: of those that are rates. `is_settled`: a request's end must be reported to the
    store.
    """

    __slots__ = ("gateways", "is_settled", "limits", "local", "numbers", "organization_id", "prepared", "rates", "rows", "seen_ns")

    def __init__(
        self, organization_id: str, limits: Sequence[LevelLimits], prepared: PreparedLimits, local: MemoryBound, gateways: int
    ) -> None:
        super().__init__(
            not prepared.counters,
            bool(prepared.counters),
            prepared.find_size_min(Quantity.OUTPUT_TOKENS, UNLIMITED),
            prepared.find_size_min(Quantity.TOKENS, UNLIMITED),
        )
        self.organization_id = organization_id
        self.limits = limits
        self.prepared = prepared
        self.local = local
        self.gateways = gateways
        self.numbers: tuple[int, ...] = ()
        self.seen_ns = 0
        self.rows = tuple(_describe(each) for each in prepared.counters)
        self.rates = _list_rates(prepared.counters)
        quantities = {each.dimension.quantity for each in prepared.counters}
        has_holds = not quantities <= {Quantity.REQUESTS}
        self.is_settled = has_holds or any(each.dimension is CONCURRENT_REQUESTS for each in prepared.counters)


class SharedHold(Hold):
    """The decision on one request, and what the request holds if it was admitted.

    `numbers`: of the shared counters after the store's decision; empty if this gateway decided alone. `owner`: whose hold it is in the
    store; empty if the store does not know it. `local`: the hold in this process's counters, if this gateway decided alone. `buckets`:
    where it counts as running in this process beside the store. `loss`: number of the store's losses before the decision. `question`: what
    the store was asked.
    """

    __slots__ = ("_counters", "bound", "buckets", "local", "loss", "numbers", "owner", "question")

    def __init__(self, counters: "SharedCounters", bound: SharedBound, units: Units, started_ns: int, loss: int) -> None:
        super().__init__(units, started_ns)
        self.is_decided = False
        self._counters = counters
        self.bound = bound
        self.loss = loss
        self.numbers: tuple[int, ...] = ()
        self.owner = ""
        self.local: MemoryHold | None = None
        self.buckets: tuple[Bucket, ...] = ()
        self.question: _Question | None = None

    async def wait(self) -> None:
        question = self.question
        if question is not None:
            try:
                await question.waiter
            except BaseException:
                question.is_abandoned = True
                if question.answer is not None and question.answer.is_admitted:
                    question.release()
                raise
        self._counters.decide(self)
        self.is_decided = True

    def find_tightest(self, now_ns: int) -> list[Remainder | None]:
        if self.numbers:
            return find_shared_tightest(self.bound, self.numbers)
        return self.bound.local.find_tightest(now_ns)

    def find_refusal(self) -> Refusal:
        if self.numbers:
            return find_shared_refusal(self.bound.prepared.counters, list_states(self.numbers), self.units)
        assert self.local is not None
        refusal = self.local.find_refusal()
        if refusal.is_permanent:  # more than this gateway's share, though perhaps not more than the limit
            refusal = refusal._replace(is_permanent=False, wait_ns=ALONE_WAIT_NS)
        return refusal

    def reduce(self, units: Units) -> None:
        self._counters.reduce(self, units)

    def settle(self, used: Units, now_ns: int) -> None:
        self._counters.end(self, used, now_ns)


class _Question:
    """A request's question to the store, asked as `owner`."""

    __slots__ = ("answer", "hold", "is_abandoned", "is_answered", "owner", "store", "waiter")

    def __init__(self, hold: SharedHold, owner: str, store: CounterStore) -> None:
        self.hold = hold
        self.owner = owner
        self.store = store
        self.waiter = Waiter()
        self.answer: StoreAnswer | None = None
        self.is_answered = False
        self.is_abandoned = False

    def receive(self, answer: StoreAnswer | None) -> None:
        """Take the answer, or None at the deadline. An admission that comes too late is released."""
        if not self.is_answered and not self.is_abandoned:
            self.is_answered = True
            self.answer = answer
            self.waiter.resume()
        elif answer is not None and answer.is_admitted:
            self.release()

    def release(self) -> None:
        """Give back what the store holds for a request that does not use it."""
        if self.hold.bound.is_settled:
            self.store.settle(self.hold.bound.prepared, self.owner, list_moves(self.hold, NO_UNITS))


class SharedCounters(Counters):
    """The counters of one gateway process among several. Use it from one event loop, with `run` as a background task.

    `gateways`: how many gateways share the limits, as far as this one knows. `by_store`, `alone`: decisions so far. `losses`: how often the
    store was lost or had lost its contents.
    """

    def __init__(self, node: str, clock: Callable[[], int], end_user_key: bytes = b"") -> None:
        """`node`: names this run of this gateway among all. `clock`: monotonic nanoseconds. `end_user_key`: with which the names of end
        users are hashed, the same at all gateways, at most 64 bytes."""
        super().__init__()
        self._end_user_key = end_user_key
        self._end_users: dict[str, dict[str, int]] = {}
        self._end_user_bounds: dict[tuple[SharedBound, str], SharedBound] = {}
        self.gateways = 1
        self.by_store = 0
        self.alone = 0
        self.losses = 0
        self._local = MemoryCounters()
        self._node = node
        self._clock = clock
        self._store: CounterStore | None = None
        self._runs = 0
        self._owner = f"{node}.0"
        self._live: dict[SharedHold, None] = {}
        self._young: dict[SharedHold, None] = {}
        self._held: dict[str, int] = {}
        self._alone_bounds: dict[SharedBound, None] = {}
        self._seeds: dict[tuple[str, str, str], tuple[int, int]] = {}

    def use(self, store: CounterStore) -> None:
        """Decide by this store from now on."""
        self._store = store

    def read_standings(
        self, organization_id: str, limits: Sequence[LevelLimits], now_ns: int, done: Callable[[list[Standing]], None]
    ) -> None:
        """Call `done` with how these limits stand for all gateways; for this gateway alone if the store does not answer."""
        bound = self.bind(organization_id, limits, now_ns)
        store, is_over = self._store, False

        def receive(answer: StoreAnswer | None) -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            if answer is not None:
                done(list_standings(bound.prepared.counters, list_states(answer.numbers)))
            else:
                read_at_ns = self._clock()
                self._prepare_share(bound, read_at_ns)
                done(self._local.list_standings(bound.local, read_at_ns))

        if store is None or not store.is_available:
            receive(None)
        else:
            store.read(bound.prepared, receive)

    def bind(self, organization_id: str, limits: Sequence[LevelLimits], now_ns: int) -> SharedBound:
        assert self._store is not None
        prepared = self._store.prepare(organization_id, limits)
        return SharedBound(organization_id, limits, prepared, self._bind_local(limits, now_ns), self.gateways)

    def bind_end_user(self, bound: Bound, of: EndUserLimits, end_user: str, now_ns: int) -> SharedBound:
        assert isinstance(bound, SharedBound)
        seen = self._end_users.setdefault(of.organization_id, {})
        id = identify_end_user(of.project_id, end_user, self._end_user_key)
        if seen.pop(id, None) is not None or len(seen) < END_USERS_MAX or _forget_oldest(seen, of, now_ns):
            seen[id] = now_ns
        else:
            id = identify_other_end_users(of.project_id)
            self.end_users_together += 1
        key = (bound, id)
        found = self._end_user_bounds.pop(key, None)
        if found is None:
            found = self.bind(of.organization_id, [*of.list_levels(id), *bound.limits], now_ns)
            if len(self._end_user_bounds) >= END_USER_BOUNDS_MAX:
                del self._end_user_bounds[next(iter(self._end_user_bounds))]
        self._end_user_bounds[key] = found
        return found

    def _bind_local(self, limits: Sequence[LevelLimits], now_ns: int) -> MemoryBound:
        return self._local.bind("", [owner._replace(limits=divide(owner.limits, self.gateways)) for owner in limits], now_ns)

    # ---- One request -------------------------------------------------------------------------------------------------

    def reserve(self, bound: Bound, units: Units, now_ns: int) -> SharedHold:
        """Ask the store for a request of `units`, if it is there. The hold is decided once its `wait` returns."""
        assert isinstance(bound, SharedBound)
        hold = SharedHold(self, bound, units, now_ns, self.losses)
        store = self._store
        if store is not None and store.is_available:
            question = hold.question = _Question(hold, self._owner, store)
            store.reserve(bound.prepared, self._owner, units, question.receive)
        return hold

    def decide(self, hold: SharedHold) -> None:
        """Decide by what the store has answered, or alone if it has not."""
        question = hold.question
        if question is not None and question.answer is not None:
            self._take(hold, question.owner, question.answer)
        else:
            self._decide_alone(hold)

    def _take(self, hold: SharedHold, owner: str, answer: StoreAnswer) -> None:
        """Take the store's answer for a request."""
        bound = hold.bound
        bound.numbers, bound.seen_ns = answer.numbers, self._clock()
        self.by_store += 1
        hold.numbers = answer.numbers
        hold.is_admitted = answer.is_admitted
        has_lost = not answer.is_lease_known and owner == self._owner and self._held.get(bound.organization_id)
        if hold.is_admitted and bound.is_settled:
            hold.owner = owner
            hold.buckets = bound.local.buckets
            for bucket in hold.buckets:
                bucket.running += 1
            self._live[hold] = None
            self._young[hold] = None
            self._held[bound.organization_id] = self._held.get(bound.organization_id, 0) + 1
            if owner != self._owner and self._store is not None:  # `restore` came in between and ended what `owner` held
                hold.owner = self._owner
                moves = [number for counter in bound.prepared.counters for number in (-_find_held(hold, counter), 0)]
                self._store.settle(bound.prepared, self._owner, moves)
        if has_lost:
            self.restore()

    def _decide_alone(self, hold: SharedHold) -> None:
        """Decide by this gateway's share."""
        bound = hold.bound
        self._prepare_share(bound, hold.started_ns)
        self.alone += 1
        hold.loss = self.losses
        hold.local = self._local.reserve(bound.local, hold.units, hold.started_ns)
        if hold.local.is_admitted:
            hold.is_admitted = True
            self._live[hold] = None

    def reduce(self, hold: SharedHold, units: Units) -> None:
        """Hold no more than `units`, none of which is more than the hold has. What was charged already stays charged."""
        if hold.is_charged or (hold.local is not None and hold.local.is_charged):
            return
        counters = hold.bound.prepared.counters
        before = [_find_held(hold, counter) for counter in counters]
        hold.units = units
        if hold.local is not None:
            hold.local.reduce(units)
        store = self._store
        if hold.owner and store is not None and store.is_available:
            moves = [number for held, counter in zip(before, counters, strict=True) for number in (held - _find_held(hold, counter), 0)]
            store.settle(hold.bound.prepared, hold.owner, moves)

    def end(self, hold: SharedHold, used: Units, now_ns: int) -> None:
        """Hold nothing more of `hold`, and charge what was `used`."""
        self._live.pop(hold, None)
        self._young.pop(hold, None)
        if hold.local is not None:
            hold.local.settle(used, now_ns)
        for bucket in hold.buckets:
            bucket.running -= 1
        bound, store = hold.bound, self._store
        if hold.owner:
            self._held[bound.organization_id] -= 1
        if store is None or not store.is_available:
            return
        if hold.owner:
            store.settle(bound.prepared, hold.owner, list_moves(hold, used))
        elif hold.local is not None and hold.loss == self.losses:
            moves = [number for counter in bound.prepared.counters for number in (0, _charge_of(counter, used))]
            store.settle(bound.prepared, self._owner, moves)

    # ---- Alone -------------------------------------------------------------------------------------------------------

    def _prepare_share(self, bound: SharedBound, now_ns: int) -> None:
        """Bring this gateway's share in line with what the store said last, once for each loss of the store."""
        if bound.gateways != self.gateways:
            bound.gateways = self.gateways
            bound.local = self._bind_local(bound.limits, now_ns)
        if bound in self._alone_bounds:
            return
        self._alone_bounds[bound] = None
        elapsed_us = (now_ns - bound.seen_ns) // 1000
        states = list_states(bound.numbers)
        for number, (counter, cell) in enumerate(_list_cells(bound)):
            if not counter.window_us:
                continue
            before = max(cell.tat, now_ns * cell.scale)
            after = before
            if states:
                state = drain(states[number], elapsed_us, counter.size, counter.window_us)
                used = -(-(state.units + (state.fraction > 0) + state.held) // self.gateways)
                after = max(before, now_ns * cell.scale + used * cell.cost)
            cell.tat = after
            key = (counter.owner.id, counter.owner.model, counter.dimension.name)
            tat, scale = self._seeds.get(key, (before, cell.scale))
            if scale == cell.scale:
                self._seeds[key] = tat + after - before, scale

    def _list_carried(self, bound: SharedBound, now_ns: int) -> list[int]:
        """Return for each counter the units that were admitted alone and have not drained yet, and forget them."""
        carried: list[int] = []
        for counter, cell in _list_cells(bound):
            tat, scale = self._seeds.pop((counter.owner.id, counter.owner.model, counter.dimension.name), (0, 0))
            now = now_ns * cell.scale
            ticks = max(cell.tat, now) - max(tat, now) if scale == cell.scale and counter.window_us else 0
            units = -(-ticks // cell.cost) if ticks > 0 else 0
            if isinstance(cell, Counter) and cell.quantity == REQUESTS:
                units += cell.held  # requests that still run: the store charges requests at admission
            carried.append(units)
        return carried

    def restore(self) -> None:
        """Tell the store what is held here, under a new owner, and what was admitted without it. Called before requests use it again."""
        store, now_ns = self._store, self._clock()
        assert store is not None
        previous = self._owner
        self._runs += 1
        self._owner = f"{self._node}.{self._runs}"
        self.losses += 1
        totals: dict[SharedBound, list[int]] = {bound: [0] * len(bound.prepared.counters) for bound in self._alone_bounds}
        self._held.clear()
        for hold in self._live:
            bound = hold.bound
            if not bound.is_settled:
                continue
            hold.owner = self._owner
            if hold.local is not None:
                hold.is_charged = hold.local.is_charged
            held = totals.setdefault(bound, [0] * len(bound.prepared.counters))
            for number, counter in enumerate(bound.prepared.counters):
                held[number] += _find_held(hold, counter)
            self._held[bound.organization_id] = self._held.get(bound.organization_id, 0) + 1
        for bound, held in totals.items():
            charges = self._list_carried(bound, now_ns)
            moves = [number for units, charge in zip(held, charges, strict=True) for number in (-units, charge)]
            store.settle(bound.prepared, self._owner, moves, previous)
        self._alone_bounds.clear()
        self._seeds.clear()
        old_first = sorted(self._live, key=lambda hold: hold.started_ns)
        self._young = {hold: None for hold in old_first if hold.owner == self._owner and not hold.is_charged}

    # ---- As time passes ----------------------------------------------------------------------------------------------

    def forget_idle(self, now_ns: int) -> None:
        self._local.forget_idle(now_ns)

    async def run(self) -> None:
        """Renew leases, and charge holds that became a minute old, until cancelled."""
        while True:
            self.renew()
            await asyncio.sleep(RENEW_SECONDS)

    def renew(self) -> None:
        """Renew the lease in every organization where something is held. Charge holds that are a minute old to the limits per minute."""
        store = self._store
        if store is None or not store.is_available:
            return
        self._charge_old(store)
        owner = self._owner
        for organization_id in [id for id, holds in self._held.items() if not holds]:
            del self._held[organization_id]
        for organization_id in list(self._held):
            store.renew(organization_id, owner, self._make_receiver(organization_id, owner))

    def _make_receiver(self, organization_id: str, owner: str) -> Callable[[bool], None]:
        def receive(is_known: bool) -> None:
            if not is_known and owner == self._owner and self._held.get(organization_id):
                self.restore()

        return receive

    def _charge_old(self, store: CounterStore) -> None:
        started_before = self._clock() - MINUTE_NS
        while self._young:
            hold = next(iter(self._young))
            if hold.started_ns > started_before:
                return
            del self._young[hold]
            moves = [number for counter in hold.bound.prepared.counters for number in _charge_minute(hold, counter)]
            hold.is_charged = True
            if any(moves):
                store.settle(hold.bound.prepared, hold.owner, moves)


def list_moves(hold: SharedHold, used: Units) -> list[int]:
    """Return what the end of a hold changes in the store: for each counter the units that are no longer held, and those to charge."""
    moves: list[int] = []
    units, is_charged = hold.units, hold.is_charged
    for row in hold.bound.rows:
        quantity = row.quantity
        if quantity == REQUESTS:  # charged at admission
            moves += (0 if row.is_rate else 1, 0)
        elif is_charged and row.is_minute:
            moves += (0, max(used[quantity] - units[quantity], 0))
        else:
            moves += (units[quantity], used[quantity])
    return moves


def _find_held(hold: SharedHold, counter: SharedCounter) -> int:
    """Return the units that a hold holds in one counter of the store."""
    if counter.dimension is CONCURRENT_REQUESTS:
        return 1
    quantity = QUANTITIES.index(counter.dimension.quantity)
    if quantity == REQUESTS or (hold.is_charged and counter.dimension.window_ns == MINUTE_NS):
        return 0
    return hold.units[quantity]


def _charge_minute(hold: SharedHold, counter: SharedCounter) -> tuple[int, int]:
    """Return the move that charges what a hold holds in a limit per minute."""
    quantity = QUANTITIES.index(counter.dimension.quantity)
    if quantity == REQUESTS or counter.dimension.window_ns != MINUTE_NS:
        return 0, 0
    return hold.units[quantity], hold.units[quantity]


def _charge_of(counter: SharedCounter, used: Units) -> int:
    return used[QUANTITIES.index(counter.dimension.quantity)] if counter.window_us else 0


def find_shared_tightest(bound: SharedBound, numbers: Sequence[int]) -> list[Remainder | None]:
    """Return for each of HEADER_KINDS what is left of the limit that has the least left; None where there is none. `numbers`: as in
    `StoreAnswer`."""
    least, tightest = [0, 0, 0, 0], [-1, -1, -1, -1]
    for number, size, kind in bound.rates:
        at = number * 3
        remaining = size - numbers[at] - numbers[at + 2]
        if numbers[at + 1]:
            remaining -= 1
        if remaining < 0:
            remaining = 0
        if tightest[kind] < 0 or remaining < least[kind]:
            least[kind], tightest[kind] = remaining, number
    counters = bound.prepared.counters
    found: list[Remainder | None] = []
    for left, number in zip(least, tightest, strict=True):
        if number < 0:
            found.append(None)
        else:
            state = CounterState(*numbers[number * 3 : number * 3 + 3])
            found.append(Remainder(counters[number].size, left, find_reset_us(state, counters[number]) * 1000))
    return found


def find_shared_refusal(counters: Sequence[SharedCounter], states: Sequence[CounterState], units: Units) -> Refusal:
    """Return the shared limit that keeps a refused request waiting longest."""
    found: Refusal | None = None
    for counter, state in zip(counters, states, strict=True):
        dimension, size = counter.dimension, counter.size
        quantity = QUANTITIES.index(dimension.quantity)
        requested = units[quantity]
        if state.units + (state.fraction > 0) + state.held + requested <= size or (quantity >= IMAGES and not requested):
            continue
        if dimension is CONCURRENT_REQUESTS:
            refusal = Refusal(counter.owner, dimension.words, REQUESTS, size, state.held, 1, None, max(state.held, 1), True, False)
        else:
            used = state.units + (state.fraction > 0) + state.held
            wait_ns = None if state.held + requested > size else find_wait_us(state, counter, requested) * 1000
            refusal = Refusal(counter.owner, dimension.words, quantity, size, used, requested, wait_ns, 1, False, requested > size)
        found = find_later(found, refusal)
    assert found is not None, "a request that no limit refuses"
    return found


def _list_cells(bound: SharedBound) -> Iterator[tuple[SharedCounter, Bucket | Counter]]:
    """Yield each shared counter with the counter of this process that has its share."""
    local = bound.local
    buckets = {(bucket.owner.id, bucket.owner.model): bucket for bucket in local.buckets}
    rates = {(rate.owner.id, rate.owner.model, rate.dimension.name): rate for rate in local.rates}
    for counter in bound.prepared.counters:
        owner = counter.owner
        rate = rates.get((owner.id, owner.model, counter.dimension.name))
        yield counter, buckets[owner.id, owner.model] if rate is None else rate
