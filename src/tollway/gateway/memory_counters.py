"""Limit counters in the memory of this process: exact for one gateway. All levels of a request admit it, or none is charged.

A counter is shared by all callers below its API key, service account, project or organization. A caller's compiled grants hold the counters
that bind them (`Bound`), so that a request looks none up. Counters are therefore dropped only when no grant is held: the directory releases
all callers at each change, and in the same call (`Plane`) counters go that are idle, because a new one would stand the same.

Two forms, one rule (`domain.limits.gcra`; the tests hold both against it). A `Bucket` has requests per minute and concurrent requests,
which nearly every level limits and which cost nothing to settle. A `Counter` is any other rate. Its units are held at admission
(`reserve`), and charged as far as they were used when the request ends (`settle`); what was not used returns at that instant.

A hold does not drain, so it takes up capacity for as long as its request runs. After a minute it is charged in full to the rates per minute
(`_charge_old`): from there on it drains like everything that was used, and streams of many minutes do not shut out their successors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from tollway.domain.limits import (
    BY_NAME,
    CONCURRENT_REQUESTS,
    DIMENSIONS,
    MINUTE_NS,
    Dimension,
    LevelLimits,
    LimitLevel,
    Limits,
    LimitUse,
    Standing,
    make_rate,
)
from tollway.gateway.counters import (
    END_USERS_MAX,
    IMAGES,
    INPUT_TOKENS,
    NO_UNITS,
    OUTPUT_TOKENS,
    QUANTITIES,
    REQUESTS,
    TOKENS,
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
    note_remainder,
)

_PER_MINUTE = BY_NAME["requests_per_minute"]

FORGET_NS = 1_000_000_000
"""Least time between two searches for idle counters."""

FORGET_MAX = 1_000
"""Counters of each kind that one search examines: about a millisecond."""

EVICTIONS_TRIED = 4
"""End users that are examined to free a place for another one: those that were not seen for longest."""


class Bucket:
    """Requests of one level: the TAT of its rate per minute, in ticks of `scale` per nanosecond, and how many of them run now.

    `most`: concurrent requests; `per_minute`: requests per minute, with `scale`, `cost` and `burst` as of a `Rate`. What is not limited has
    a size that no traffic reaches, and requests per minute that are not limited have no cost.
    """

    __slots__ = ("burst", "cost", "most", "owner", "per_minute", "running", "scale", "tat")

    def __init__(self, owner: LevelLimits) -> None:
        self.owner = owner
        self.tat = 0
        self.running = 0
        self.most = self.per_minute = UNLIMITED
        self.scale = 1
        self.cost = self.burst = 0

    def resize(self, owner: LevelLimits, now_ns: int) -> None:
        """Set the limits. The requests that are charged stay charged."""
        self.owner = owner
        most, per_minute = owner.limits.concurrent_requests, owner.limits.requests_per_minute
        self.most = UNLIMITED if most is None else most
        if per_minute is None:
            self.tat, self.per_minute, self.scale, self.cost, self.burst = 0, UNLIMITED, 1, 0, 0
        elif per_minute != self.per_minute:
            rate = make_rate(per_minute, MINUTE_NS)
            self.tat = _rescale(self.tat, self.scale, self.cost, rate.scale, rate.cost, now_ns)
            self.per_minute, self.scale, self.cost, self.burst = rate

    def debt(self, now_ns: int) -> int:
        """Return the ticks that are charged and have not drained yet; 0 without a limit per minute."""
        return max(self.tat - now_ns * self.scale, 0) if self.cost else 0

    def is_idle(self, now_ns: int) -> bool:
        """Return whether the bucket stands as a new one would."""
        return not self.running and not self.debt(now_ns)


class Counter:
    """One rate of one level: its TAT in ticks, and the units that are held by requests under way. `quantity`: their place in `Units`."""

    __slots__ = ("burst", "cost", "dimension", "held", "owner", "quantity", "scale", "size", "tat")

    def __init__(self, owner: LevelLimits, dimension: Dimension) -> None:
        self.owner = owner
        self.dimension = dimension
        self.quantity = QUANTITIES.index(dimension.quantity)
        self.tat = 0
        self.held = 0
        self.size = self.scale = self.cost = self.burst = 0

    def resize(self, owner: LevelLimits, size: int, now_ns: int) -> None:
        """Set the limit. The units that are charged stay charged."""
        self.owner = owner
        if size == self.size:
            return
        rate = make_rate(size, self.dimension.window_ns)
        self.tat = _rescale(self.tat, self.scale, self.cost, rate.scale, rate.cost, now_ns)
        self.size, self.scale, self.cost, self.burst = rate

    def debt(self, now_ns: int) -> int:
        """Return the ticks that are charged and have not drained yet."""
        return max(self.tat - now_ns * self.scale, 0)

    def is_idle(self, now_ns: int) -> bool:
        """Return whether the counter stands as a new one would."""
        return not self.held and not self.debt(now_ns)


class MemoryBound(Bound):
    """The counters of this process that bind one caller's requests to one model. `counts_other_than_tokens`: one of `rates`
    does."""

    __slots__ = ("buckets", "counts_other_than_tokens", "rates")

    def __init__(self, buckets: tuple[Bucket, ...], rates: tuple[Counter, ...]) -> None:
        super().__init__(
            not buckets and not rates,
            bool(rates),
            min((rate.size for rate in rates if rate.quantity == OUTPUT_TOKENS), default=UNLIMITED),
            min((rate.size for rate in rates if rate.quantity == TOKENS), default=UNLIMITED),
        )
        self.buckets = buckets
        self.rates = rates
        self.counts_other_than_tokens = any(rate.quantity not in (TOKENS, INPUT_TOKENS, OUTPUT_TOKENS) for rate in rates)

    def enter(self, now_ns: int) -> tuple[int, int] | None:
        """Charge one request and count it as running; or None, and nothing is changed, if a level refuses. Return what the level with the
        least left says: its limit per minute, and what is left of it (UNLIMITED: there is none).

        Decides as `domain.limits.gcra` does, without its values, because this runs for every level of every request."""
        buckets = self.buckets
        least = least_of = UNLIMITED
        for bucket in buckets:
            running, tat, scale, cost = bucket.running, bucket.tat, bucket.scale, bucket.cost
            now = now_ns if scale == 1 else now_ns * scale
            if tat <= now:  # it was empty, as it mostly is of callers who stay within their limits
                tat = now
                remaining = bucket.per_minute - 1
            else:
                remaining = (bucket.burst + now - tat) // cost - 1 if cost else UNLIMITED
            if remaining < 0 or running >= bucket.most:
                for charged in buckets:
                    if charged is bucket:
                        return None
                    charged.tat -= charged.cost  # back to where it was, or to now, which is the same for whoever comes later
                    charged.running -= 1
            bucket.tat = tat + cost
            bucket.running = running + 1
            if remaining < least:
                least, least_of = remaining, bucket.per_minute
        return least_of, least

    def leave(self) -> None:
        """Count the request of a successful `enter` as running no more."""
        for bucket in self.buckets:
            bucket.running -= 1

    def find_tightest(self, now_ns: int) -> list[Remainder | None]:
        """Return for each of HEADER_KINDS what is left of the limit that has the least left; None where there is none."""
        return find_tightest(self, now_ns)


_EMPTY = MemoryBound((), ())


class MemoryHold(Hold):
    """The units that one request holds, in the counters of `bound`."""

    __slots__ = ("_counters", "bound")

    def __init__(self, counters: "MemoryCounters", bound: MemoryBound, units: Units, started_ns: int) -> None:
        super().__init__(units, started_ns)
        self._counters = counters
        self.bound = bound

    async def wait(self) -> None:
        """Return at once: it is decided when it is made."""

    def find_tightest(self, now_ns: int) -> list[Remainder | None]:
        return find_tightest(self.bound, now_ns)

    def find_refusal(self) -> Refusal:
        return find_refusal(self.bound, self.units, self.started_ns)

    def reduce(self, units: Units) -> None:
        before = self.units
        if self.is_charged:
            return  # what the rates per minute were charged goes by `before`
        for counter in self.bound.rates:
            counter.held -= before[counter.quantity] - units[counter.quantity]
        self.units = units

    def settle(self, used: Units, now_ns: int) -> None:
        self._counters.end(self, used, now_ns)

    def refund(self, now_ns: int) -> None:
        """End it as if its request had never been: its requests per minute are given back too."""
        self._counters.end(self, NO_UNITS, now_ns)
        for bucket in self.bound.buckets:
            bucket.tat -= bucket.cost


class _EndUser:
    """The counters of one end user. `bound`: those that bound its last request, by `limits`."""

    __slots__ = ("bound", "buckets", "counters", "limits")

    def __init__(self) -> None:
        self.limits: tuple[tuple[str, Limits], ...] = ()
        self.bound = _EMPTY
        self.buckets: dict[tuple[str, str], Bucket] = {}
        self.counters: dict[tuple[str, str, str], Counter] = {}

    def is_idle(self, now_ns: int) -> bool:
        """Return whether the counters stand as new ones would."""
        return all(each.is_idle(now_ns) for each in self.buckets.values()) and all(each.is_idle(now_ns) for each in self.counters.values())


def _find_end_user(table: dict[str, _EndUser], id: str) -> _EndUser:
    """Return the counters of an end user, which becomes the last one of `table`: the one that was used last."""
    found = table.pop(id, None) or _EndUser()
    table[id] = found
    return found


def _bind(
    owner: LevelLimits, buckets: dict[tuple[str, str], Bucket], counters: dict[tuple[str, str, str], Counter], now_ns: int
) -> MemoryBound:
    """Return the counters of one level's limits, from those that exist."""
    of = owner.limits
    own: tuple[Bucket, ...] = ()
    if of.requests_per_minute is not None or of.concurrent_requests is not None:
        bucket = buckets.get((owner.id, owner.model))
        if bucket is None:
            bucket = buckets[owner.id, owner.model] = Bucket(owner)
        bucket.resize(owner, now_ns)
        own = (bucket,)
    rates: list[Counter] = []
    for dimension in DIMENSIONS:
        size = of.get(dimension)
        if size is None or dimension is CONCURRENT_REQUESTS or dimension is _PER_MINUTE:
            continue
        key = (owner.id, owner.model, dimension.name)
        counter = counters.get(key)
        if counter is None:
            counter = counters[key] = Counter(owner, dimension)
        counter.resize(owner, size, now_ns)
        rates.append(counter)
    return MemoryBound(own, tuple(rates))


def _join(inner: MemoryBound, outer: MemoryBound) -> MemoryBound:
    """Return the counters of both."""
    return MemoryBound(inner.buckets + outer.buckets, inner.rates + outer.rates)


class MemoryCounters(Counters):
    """All counters of this process, by level, model and dimension; those of end users by organization."""

    def __init__(self, end_user_key: bytes = b"") -> None:
        """`end_user_key`: with which the names of end users are hashed, at most 64 bytes."""
        super().__init__()
        self._end_user_key = end_user_key
        self._end_users: dict[str, dict[str, _EndUser]] = {}
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._counters: dict[tuple[str, str, str], Counter] = {}
        self._holds: dict[MemoryHold, None] = {}
        self._old_at_ns = 0
        self._forgot_at_ns = 0

    def bind(self, organization_id: str, limits: Sequence[LevelLimits], now_ns: int) -> MemoryBound:
        """Return the counters of these limits. A limit that changed takes effect here, with what was used before."""
        bound = _EMPTY
        for owner in limits:
            if owner.level is LimitLevel.END_USER:
                table = self._end_users.setdefault("", {})
                if owner.id not in table:
                    self._has_place(table, now_ns)
                end_user = _find_end_user(table, owner.id)
                own = _bind(owner, end_user.buckets, end_user.counters, now_ns)
            else:
                own = _bind(owner, self._buckets, self._counters, now_ns)
            bound = _join(bound, own)
        return bound

    def bind_end_user(self, bound: Bound, of: EndUserLimits, end_user: str, now_ns: int) -> MemoryBound:
        assert isinstance(bound, MemoryBound)
        table = self._end_users.setdefault(of.organization_id, {})
        id = identify_end_user(of.project_id, end_user, self._end_user_key)
        if id not in table and not self._has_place(table, now_ns):
            id = identify_other_end_users(of.project_id)
            self.end_users_together += 1
        found = _find_end_user(table, id)
        if found.limits != of.limits:
            found.limits, found.bound = of.limits, _EMPTY
            for owner in of.list_levels(id):
                found.bound = _join(found.bound, _bind(owner, found.buckets, found.counters, now_ns))
        return _join(found.bound, bound)

    def _has_place(self, table: "dict[str, _EndUser]", now_ns: int) -> bool:
        """Return whether another end user can be counted. Looks at few end users, so that a table that is full costs little."""
        if len(table) < END_USERS_MAX:
            return True
        for id in list(islice(table, EVICTIONS_TRIED)):
            found = table.pop(id)
            if found.is_idle(now_ns):
                return True
            table[id] = found
        return False

    def reserve(self, bound: Bound, units: Units, now_ns: int) -> MemoryHold:
        """Decide as `domain.limits.gcra` does."""
        assert isinstance(bound, MemoryBound)
        if now_ns >= self._old_at_ns:
            self._charge_old(now_ns)
        hold = MemoryHold(self, bound, units, now_ns)
        rates = bound.rates
        tightest: Counter | None = None
        least = UNLIMITED
        for counter in rates:
            cost, held = counter.cost, counter.held + units[counter.quantity]
            left = counter.burst - held * cost
            scale = counter.scale
            debt = counter.tat - (now_ns if scale == 1 else now_ns * scale)
            if debt > 0:
                left -= debt
            if left < 0 and (units[counter.quantity] or counter.quantity < IMAGES):
                _unhold(rates, counter, units)
                return hold
            counter.held = held
            if left < least * cost and counter.quantity != REQUESTS:
                tightest, least = counter, left // cost
        entered = bound.enter(now_ns)
        if entered is None:
            _unhold(rates, None, units)
            return hold
        hold.is_admitted = True
        if not bound.counts_other_than_tokens:
            hold.is_summarized = True
            hold.requests_per_minute, hold.requests_left = entered
            if tightest is not None:
                hold.tokens_size, hold.tokens_left = tightest.size, least
                hold.tokens_reset_ms = (tightest.size - least) * tightest.cost // tightest.scale // 1_000_000 + 1
        holds = self._holds
        if not holds:
            self._old_at_ns = now_ns + MINUTE_NS
        holds[hold] = None
        return hold

    def end(self, hold: MemoryHold, used: Units, now_ns: int) -> None:
        """Hold nothing more of `hold`, and charge what was `used`."""
        bound = hold.bound
        if hold.is_charged:
            _settle_charged(hold, used, now_ns)
        else:
            del self._holds[hold]
            _charge(bound.rates, hold.units, used, now_ns)
        bound.leave()

    def _charge_old(self, now_ns: int) -> None:
        """Charge holds that are a minute old to the rates per minute, in full."""
        holds = self._holds
        while holds:
            hold = next(iter(holds))
            if hold.started_ns + MINUTE_NS > now_ns:
                self._old_at_ns = hold.started_ns + MINUTE_NS
                return
            del holds[hold]
            hold.is_charged = True
            _charge([rate for rate in hold.bound.rates if rate.dimension.window_ns == MINUTE_NS], hold.units, hold.units, now_ns)

    def read_standings(
        self, organization_id: str, limits: Sequence[LevelLimits], now_ns: int, done: Callable[[list[Standing]], None]
    ) -> None:
        done(self.list_standings(self.bind(organization_id, limits, now_ns), now_ns))

    def list_standings(self, bound: MemoryBound, now_ns: int) -> list[Standing]:
        """Return how each of the limits of `bound` stands now."""
        self._charge_old(now_ns)
        found: list[Standing] = []
        for bucket in bound.buckets:
            owner, cost, most = bucket.owner, bucket.cost, bucket.most
            if cost:
                debt = bucket.debt(now_ns)
                remaining, reset_ns = (bucket.burst - debt) // cost, -(-debt // bucket.scale)
                found.append(Standing(owner, _PER_MINUTE, bucket.per_minute, -(-debt // cost), 0, remaining, reset_ns))
            if most != UNLIMITED:
                found.append(Standing(owner, CONCURRENT_REQUESTS, most, 0, bucket.running, max(most - bucket.running, 0), None))
        for counter in bound.rates:
            debt = counter.debt(now_ns)
            taken = debt + counter.held * counter.cost
            remaining = max((counter.burst - taken) // counter.cost, 0)
            used, reset_ns = -(-debt // counter.cost), -(-taken // counter.scale)
            found.append(Standing(counter.owner, counter.dimension, counter.size, used, counter.held, remaining, reset_ns))
        return found

    def iterate_uses(self, clock: Callable[[], int]) -> Iterator[tuple[float, LimitUse] | None]:
        """Yield what is used of each limit, with the part of it that this is; None for an unused one. Others may count between two steps.
        `clock`: monotonic nanoseconds."""
        for (id, model), bucket in list(self._buckets.items()):
            debt = bucket.debt(clock())
            if debt:
                yield debt / (bucket.scale * MINUTE_NS), LimitUse(id, model, _PER_MINUTE.name, -(-debt // bucket.cost), 0)
            yield (1.0, LimitUse(id, model, CONCURRENT_REQUESTS.name, 0, bucket.running)) if bucket.running else None
        for (id, model, dimension), counter in list(self._counters.items()):
            debt = counter.debt(clock())
            if debt or counter.held:
                part = (debt + counter.held * counter.cost) / counter.burst
                yield part, LimitUse(id, model, dimension, -(-debt // counter.cost), counter.held)
            else:
                yield None

    def forget_idle(self, now_ns: int) -> None:
        """Drop counters that stand as new ones would, with nothing running or held. At most once a second, and each time it examines no
        more than FORGET_MAX of a kind: those that were not examined for longest."""
        if now_ns < self._forgot_at_ns + FORGET_NS:
            return
        self._forgot_at_ns = now_ns
        for id in list(islice(self._buckets, FORGET_MAX)):
            bucket = self._buckets.pop(id)
            if not bucket.is_idle(now_ns):
                self._buckets[id] = bucket
        for key in list(islice(self._counters, FORGET_MAX)):
            counter = self._counters.pop(key)
            if not counter.is_idle(now_ns):
                self._counters[key] = counter


def _rescale(tat: int, scale: int, cost: int, new_scale: int, new_cost: int, now_ns: int) -> int:
    """Return the TAT at which a rate of `new_scale` and `new_cost` has the debt in units that `tat` is, rounded up."""
    debt = tat - now_ns * scale
    if debt <= 0 or not cost:
        return 0
    return now_ns * new_scale - (-debt * new_cost // cost)


def _unhold(rates: tuple[Counter, ...], end: Counter | None, units: Units) -> None:
    """Release what `reserve` holds so far: in all counters before `end`."""
    for counter in rates:
        if counter is end:
            return
        counter.held -= units[counter.quantity]


def _charge(rates: Iterable[Counter], units: Units, used: Units, now_ns: int) -> None:
    """Replace what is held of a reservation by a charge of what was `used`."""
    for counter in rates:
        quantity = counter.quantity
        counter.held -= units[quantity]
        spent = used[quantity]
        if spent:
            now = now_ns if counter.scale == 1 else now_ns * counter.scale
            tat = counter.tat
            counter.tat = (tat if tat > now else now) + spent * counter.cost


def _settle_charged(hold: MemoryHold, used: Units, now_ns: int) -> None:
    """Settle a hold that the rates per minute were charged for: they are charged what was used beyond it, the others all of it."""
    units = hold.units
    beyond = tuple(max(spent - held, 0) for spent, held in zip(used, units, strict=True))
    _charge([rate for rate in hold.bound.rates if rate.dimension.window_ns == MINUTE_NS], NO_UNITS, beyond, now_ns)
    _charge([rate for rate in hold.bound.rates if rate.dimension.window_ns != MINUTE_NS], units, used, now_ns)


def find_tightest(bound: MemoryBound, now_ns: int) -> list[Remainder | None]:
    """Return for each of HEADER_KINDS what is left of the limit that has the least left; None where there is none."""
    tightest: list[Remainder | None] = [None, None, None, None]
    for bucket in bound.buckets:
        if bucket.cost:
            debt = bucket.debt(now_ns)
            note_remainder(tightest, REQUESTS, Remainder(bucket.per_minute, (bucket.burst - debt) // bucket.cost, debt // bucket.scale))
    for counter in bound.rates:
        taken = counter.held * counter.cost + counter.debt(now_ns)
        remaining = max((counter.burst - taken) // counter.cost, 0)
        note_remainder(tightest, counter.quantity, Remainder(counter.size, remaining, taken // counter.scale))
    return tightest


def find_refusal(bound: MemoryBound, units: Units, now_ns: int) -> Refusal:
    """Return the limit that keeps a refused request waiting longest: one that can never admit it, else one that waits for requests to end,
    else the rate with the longest wait, so that whoever comes back after that time meets no second refusal."""
    found: Refusal | None = None
    for bucket in bound.buckets:
        owner, most, cost = bucket.owner, bucket.most, bucket.cost
        if bucket.running >= most:
            running = Refusal(owner, CONCURRENT_REQUESTS.words, REQUESTS, most, bucket.running, 1, None, most, True, False)
            found = find_later(found, running)
        if cost:
            debt = bucket.debt(now_ns)
            wait_ns = -((bucket.burst - debt - cost) // bucket.scale)
            if wait_ns > 0:
                used, size = -(-debt // cost), bucket.per_minute
                found = find_later(found, Refusal(owner, _PER_MINUTE.words, REQUESTS, size, used, 1, wait_ns, 1, False, False))
    for counter in bound.rates:
        requested, debt = units[counter.quantity], counter.debt(now_ns)
        beyond = debt + (counter.held + requested) * counter.cost - counter.burst
        if beyond > 0 and (requested or counter.quantity < IMAGES):
            needs_ends = counter.held + requested > counter.size
            found = find_later(
                found,
                Refusal(
                    counter.owner,
                    counter.dimension.words,
                    counter.quantity,
                    counter.size,
                    counter.held - (-debt // counter.cost),
                    requested,
                    None if needs_ends else -(-beyond // counter.scale),
                    1,
                    False,
                    requested > counter.size,
                ),
            )
    assert found is not None, "a request that no limit refuses"
    return found
