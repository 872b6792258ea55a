"""The evaluation of routing: `python -m bench.routing`, which prints the table of docs/routing.md.

Engines are simulated: each computes the prompts that wait, first come first served, and keeps the blocks that it computed last. The
gateways run the code of the product (`gateway.prefix_routing`), and know what it knows: what they sent themselves, which answers began, and
what engines report to wait there. They do not talk. Two kinds of load: conversations of Mooncake's trace (bench/traces), whose prompts
share prefixes, and prompts that share nothing.
"""

import argparse
import gzip
import heapq
import itertools
import json
import random
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.instruments import build_form, count_instructions
from tollway.gateway.held_prefixes import EngineCache, format_tag
from tollway.gateway.prefix_routing import BOUNDARIES, CHARGE_TOKENS_MIN, HeldPrefixes, Load, Selector, hash_prefixes
from tollway.native import FORM

TRACE = Path(__file__).parent / "traces" / "mooncake-conversation.jsonl.gz"
TRACE_STEP_SECONDS = 3.0
BLOCK_TOKENS = 512
"""Tokens of a block in the trace; an engine's cache is looked up in such blocks."""
BYTES_PER_TOKEN = 4
PREFILL_TOKENS_PER_SECOND = 16_000.0
CACHE_BLOCKS_MAX = 2_000
SECONDS_PER_OUTPUT_TOKEN = 0.02
ENGINES = 8
SPEED = 2.5
"""Factor by which requests arrive faster than in the trace: round robin is then close to what the engines can compute."""
UNIQUE_PER_SECOND = 7.5
UNIQUE_TOKENS_MEAN = 12_000
"""The same utilization, about 0.7, as with the trace: mean of an exponential distribution."""
POLL_SECONDS = (0.25, 3.0)
"""Intervals at which each gateway asks the engines how much waits there, a quarter more or less at random: the product's own, and the one
of a fleet of 200 deployments."""
_MULTIPLIER = 2_654_435_761


class Arrival(NamedTuple):
    """A request. `at`: seconds. `blocks`: of the prompt, equal where the whole prefix up to there is. `prompt`, `output`: tokens."""

    at: float
    blocks: tuple[int, ...]
    prompt: int
    output: int


class Change(NamedTuple):
    """A deployment that leaves or joins. `at`: seconds."""

    at: float
    engine: int
    is_there: bool


@dataclass
class Engine:
    """A simulated engine. `free_at`: when it will have computed all prompts that wait. `first_tokens_at`: when each of them will
    have been."""

    free_at: float = 0.0
    first_tokens_at: deque[float] = field(default_factory=deque)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def count_held(self, blocks: Sequence[int]) -> int:
        """Return how many tokens of a prompt its cache holds."""
        held = 0
        for block in blocks:
            if block not in self.cache:
                break
            held += BLOCK_TOKENS
        return held

    def serve(self, arrival: Arrival) -> "Served":
        """Compute a prompt. The end of a prompt is dropped before its begin, as engines do."""
        held = self.count_held(arrival.blocks)
        self.free_at = max(arrival.at, self.free_at) + (arrival.prompt - min(held, arrival.prompt - 1)) / PREFILL_TOKENS_PER_SECOND
        self.first_tokens_at.append(self.free_at)
        for block in reversed(arrival.blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        dropped: list[int] = []
        while len(self.cache) > CACHE_BLOCKS_MAX:
            dropped.append(self.cache.popitem(last=False)[0])
        return Served(arrival, self.free_at - arrival.at, min(held, arrival.prompt - 1), held // BLOCK_TOKENS, dropped)


class Served(NamedTuple):
    """Outcome of a request at an engine. `seconds`: until the first token. `held`: tokens that were in the cache, `reused` blocks of them.
    `dropped`: blocks that made way."""

    arrival: Arrival
    seconds: float
    held: int
    reused: int
    dropped: list[int]


@dataclass
class Fleet:
    """Engines and what they computed. `up`: indices of those that take requests."""

    engines: list[Engine]
    up: list[int]

    def count_queued(self, engine: int, now: float) -> float:
        """Return how many prompt tokens wait at an engine."""
        return max(self.engines[engine].free_at - now, 0.0) * PREFILL_TOKENS_PER_SECOND

    def count_waiting(self, engine: int, now: float) -> int:
        """Return how many requests wait for their first token at an engine, without the one that it computes."""
        waiting = self.engines[engine].first_tokens_at
        while waiting and waiting[0] <= now:
            waiting.popleft()
        return max(len(waiting) - 1, 0)


class Sent(NamedTuple):
    """A request that was sent. `charged`: what its gateway added to the load."""

    engine: int
    charged: float


class Policy:
    """Choice of one gateway among several. The base class chooses at random."""

    def __init__(self, fleet: Fleet, gateways: int, rng: random.Random) -> None:
        self.fleet = fleet
        self.gateways = gateways
        self.rng = rng

    def poll(self, now: float) -> None:
        """Ask the engines how much waits there."""

    def choose(self, arrival: Arrival) -> Sent:
        """Choose the engine of a request."""
        return Sent(self.rng.choice(self.fleet.up), 0.0)

    def begin_answer(self, sent: Sent) -> None:
        """The first token of a request came."""

    def follow(self, engine: int, served: Served) -> None:
        """An engine says what it stored and dropped for a request, of whichever gateway."""

    def restart(self, engine: int) -> None:
        """An engine left, or came back with an empty cache."""

    def end(self, sent: Sent) -> None:
        """The last token of a request came."""


class RoundRobin(Policy):
    """Each gateway sends to one engine after the other."""

    _turn = 0

    def choose(self, arrival: Arrival) -> Sent:
        """Choose the next one."""
        self._turn += 1
        return Sent(self.fleet.up[self._turn % len(self.fleet.up)], 0.0)


class PowerOfTwo(Policy):
    """Takes the one of two engines at random that has fewer requests of this gateway."""

    def __init__(self, fleet: Fleet, gateways: int, rng: random.Random) -> None:
        super().__init__(fleet, gateways, rng)
        self._running = [0] * len(fleet.engines)

    def choose(self, arrival: Arrival) -> Sent:
        """Choose, and count the request."""
        engine = min(self.rng.sample(self.fleet.up, 2), key=lambda index: self._running[index])
        self._running[engine] += 1
        return Sent(engine, 0.0)

    def end(self, sent: Sent) -> None:
        """Count the request no more."""
        self._running[sent.engine] -= 1


class ExactIndex(Policy):
    """Knows each cache exactly, as from events of the engines, and the load as it was at the last poll and what it sent itself since."""

    def __init__(self, fleet: Fleet, gateways: int, rng: random.Random) -> None:
        super().__init__(fleet, gateways, rng)
        self._queued = [0.0] * len(fleet.engines)

    def poll(self, now: float) -> None:
        """Ask for the queues in tokens."""
        self._queued = [self.fleet.count_queued(engine, now) for engine in range(len(self.fleet.engines))]

    def choose(self, arrival: Arrival) -> Sent:
        """Choose by queue and by what must be computed."""
        fleet = self.fleet
        left = {engine: arrival.prompt - fleet.engines[engine].count_held(arrival.blocks) for engine in fleet.up}
        chosen = min(fleet.up, key=lambda engine: self._queued[engine] + left[engine] + self.rng.random())
        self._queued[chosen] += self.gateways * left[chosen]
        return Sent(chosen, 0.0)


class HomeAndCostUntold(Policy):
    """The code of the product where engines report nothing."""

    def __init__(self, fleet: Fleet, gateways: int, rng: random.Random) -> None:
        super().__init__(fleet, gateways, rng)
        self._selector = Selector()
        self._loads = [Load(f"dep_{engine}") for engine in range(len(fleet.engines))]
        self._faded_at = 0.0

    def choose(self, arrival: Arrival) -> Sent:
        """Choose as `gateway.route` does among equal deployments."""
        self.fade(arrival.at)
        order = self.rng.sample(self.fleet.up, len(self.fleet.up))
        group = [self._loads[engine] for engine in order]
        index, uncached, _ = self._selector.choose(group, _prefixes(arrival), 0, arrival.prompt * BYTES_PER_TOKEN, float(arrival.prompt))
        charged = max(uncached, CHARGE_TOKENS_MIN) * self.gateways
        group[index].send(charged)
        return Sent(order[index], charged)

    def fade(self, now: float) -> None:
        """Let the last reports fade until now."""
        for load in self._loads:
            load.fade(now - self._faded_at)
        self._faded_at = now

    def begin_answer(self, sent: Sent) -> None:
        """Release the charge."""
        self._loads[sent.engine].begin_answer(sent.charged)


class HomeAndCost(HomeAndCostUntold):
    """The code of the product where engines report the tokens that wait, as SGLang and Dynamo do."""

    def poll(self, now: float) -> None:
        """Ask for the queues in tokens."""
        self.fade(now)
        for engine in self.fleet.up:
            self._loads[engine].report_tokens(self.fleet.count_queued(engine, now))


class HomeAndCostByRequests(HomeAndCostUntold):
    """The code of the product where engines report the requests that wait, as vLLM does."""

    def poll(self, now: float) -> None:
        """Ask for the number of waiting requests."""
        self.fade(now)
        for engine in self.fleet.up:
            self._loads[engine].report_requests(self.fleet.count_waiting(engine, now), self.gateways)


class HomeAndCostByEvents(HomeAndCost):
    """The code of the product where engines report tokens and the events of their caches, too."""

    def __init__(self, fleet: Fleet, gateways: int, rng: random.Random) -> None:
        super().__init__(fleet, gateways, rng)
        held = self._selector.held = HeldPrefixes()
        self._caches = [EngineCache(held, load) for load in self._loads]

    def follow(self, engine: int, served: Served) -> None:
        """Take the events."""
        cache, blocks, reused = self._caches[engine], served.arrival.blocks, served.reused
        cache.remove(served.dropped)
        tag = format_tag(_prefixes(served.arrival), 0).decode()
        cache.store(blocks[reused:], blocks[reused - 1] if reused else None, BLOCK_TOKENS, tag, _count_boundary_tokens)

    def restart(self, engine: int) -> None:
        """Forget what it held."""
        self._caches[engine].leave()


def _count_boundary_tokens(levels: int) -> list[int]:
    return [boundary // BYTES_PER_TOKEN for boundary in BOUNDARIES[:levels]]


POLICIES: dict[str, type[Policy]] = {
    "round robin": RoundRobin,
    "random": Policy,
    "power of two": PowerOfTwo,
    "home and cost, no reports": HomeAndCostUntold,
    "home and cost, requests reported": HomeAndCostByRequests,
    "home and cost": HomeAndCost,
    "home and cost, cache events": HomeAndCostByEvents,
    "exact index": ExactIndex,
}


class Result(NamedTuple):
    """Outcome of a run. `hit_rate`: part of the prompt tokens that were in a cache. Times to the first token in seconds."""

    hit_rate: float
    mean: float
    p50: float
    p99: float


def simulate(
    policy: str,
    arrivals: Sequence[Arrival],
    gateways: int,
    seed: int,
    engines: int = ENGINES,
    changes: Sequence[Change] = (),
    poll_seconds: float = POLL_SECONDS[0],
) -> Result:
    """Send these requests, each by a gateway at random. `changes`: in the order of time; an engine that leaves ends what it has, and comes
    back with an empty cache."""
    rng = random.Random(seed)
    fleet = Fleet([Engine() for _ in range(engines)], list(range(engines)))
    policies = [POLICIES[policy](fleet, gateways, rng) for _ in range(gateways)]
    pending: list[tuple[float, int, Policy, Sent | None, Served | None]] = []
    numbers = itertools.count()

    def plan(at: float, gateway: Policy, sent: Sent | None = None, served: Served | None = None) -> None:
        """Plan a poll of a gateway, the end of a request that it sent, or the begin of its answer, if it was `served`."""
        heapq.heappush(pending, (at, next(numbers), gateway, sent, served))

    for gateway in policies:
        plan(rng.random() * poll_seconds, gateway)
    left = list(changes)
    times: list[float] = []
    held = prompts = 0
    for arrival in arrivals:
        while left and left[0].at <= arrival.at:
            change = left.pop(0)
            if change.is_there:
                fleet.engines[change.engine] = Engine()
            fleet.up = sorted({*fleet.up, change.engine} if change.is_there else {*fleet.up} - {change.engine})
            for gateway in policies:
                gateway.restart(change.engine)
        while pending and pending[0][0] <= arrival.at:
            at, _, gateway, sent, begun = heapq.heappop(pending)
            if sent is None:
                gateway.poll(at)
                plan(at + poll_seconds * rng.uniform(0.75, 1.25), gateway)
            elif begun is not None:
                gateway.begin_answer(sent)
                for each in policies:
                    each.follow(sent.engine, begun)
            else:
                gateway.end(sent)
        gateway = rng.choice(policies)
        sent = gateway.choose(arrival)
        served = fleet.engines[sent.engine].serve(arrival)
        plan(arrival.at + served.seconds, gateway, sent, served)
        plan(arrival.at + served.seconds + arrival.output * SECONDS_PER_OUTPUT_TOKEN, gateway, sent)
        times.append(served.seconds)
        held += served.held
        prompts += arrival.prompt
    times.sort()
    count = len(times)
    return Result(held / prompts, sum(times) / count, times[count // 2], times[count * 99 // 100])


def read_trace(seed: int, requests: int, speed: float = SPEED) -> list[Arrival]:
    """Return the first requests of Mooncake's trace; within a step of the trace's clock they arrive at random."""
    rng = random.Random(seed)
    arrivals: list[Arrival] = []
    with gzip.open(TRACE, "rt") as lines:
        for line in lines:
            if len(arrivals) == requests:
                break
            entry = json.loads(line)
            at = (entry["timestamp"] / 1000 + rng.random() * TRACE_STEP_SECONDS) / speed
            arrivals.append(Arrival(at, tuple(entry["hash_ids"]), entry["input_length"], entry["output_length"]))
    arrivals.sort()
    return arrivals


def make_unique(seed: int, requests: int, per_second: float = UNIQUE_PER_SECOND) -> list[Arrival]:
    """Return requests whose prompts share nothing, of very different lengths, at random instants."""
    rng = random.Random(seed)
    arrivals: list[Arrival] = []
    at = 0.0
    for number in range(requests):
        at += rng.expovariate(per_second)
        prompt = 1 + int(rng.expovariate(1 / UNIQUE_TOKENS_MEAN))
        blocks = tuple(number << 16 | block for block in range(-(-prompt // BLOCK_TOKENS)))
        arrivals.append(Arrival(at, blocks, prompt, 300))
    return arrivals


def make_hot(seed: int, requests: int) -> list[Arrival]:
    """Return unique prompts, half of which begin with the same 16,384 tokens."""
    rng = random.Random(seed)
    hot = tuple(range(-32, 0))
    return [
        arrival._replace(blocks=hot + arrival.blocks, prompt=arrival.prompt + BLOCK_TOKENS * len(hot)) if rng.random() < 0.5 else arrival
        for arrival in make_unique(seed, requests)
    ]


def _prefixes(arrival: Arrival) -> list[int]:
    """Return what `hash_prefixes` would of a text with these blocks."""
    prefixes: list[int] = []
    for level, boundary in enumerate(BOUNDARIES):
        if boundary > arrival.prompt * BYTES_PER_TOKEN:
            break
        block = arrival.blocks[min(-(-boundary // (BLOCK_TOKENS * BYTES_PER_TOKEN)), len(arrival.blocks)) - 1]
        prefixes.append((block * _MULTIPLIER + level * 97) & 0xFFFFFFFF)
    return prefixes


def render(requests: int, seeds: int) -> str:
    """Return the table: medians over the seeds."""
    loads: dict[str, Callable[[int], tuple[list[Arrival], list[Change]]]] = {
        "conversations": lambda seed: (read_trace(seed, requests), []),
        "unique prompts": lambda seed: (make_unique(seed, requests), []),
        "one hot prefix": lambda seed: (make_hot(seed, requests), []),
        "conversations, one of eight leaves and joins again": lambda seed: _with_loss(read_trace(seed, requests, SPEED * 0.8)),
    }
    lines = [
        "| load | policy | 1 gateway: hit rate / mean / p50 / p99 s | 8 gateways | 8 gateways, reports every 3 s |",
        "|---|---|---|---|---|",
    ]
    for load, make in loads.items():
        made = [make(seed) for seed in range(seeds)]
        for policy, kind in POLICIES.items():
            cells: list[str] = []
            for gateways, poll_seconds in ((1, POLL_SECONDS[0]), (8, POLL_SECONDS[0]), (8, POLL_SECONDS[1])):
                if poll_seconds == POLL_SECONDS[1] and kind.poll is Policy.poll:
                    cells.append("as before")
                    continue
                results = [
                    simulate(policy, arrivals, gateways, seed, changes=changes, poll_seconds=poll_seconds)
                    for seed, (arrivals, changes) in enumerate(made)
                ]
                hit_rate, mean, p50, p99 = (sorted(values)[seeds // 2] for values in zip(*results, strict=True))
                cells.append(f"{hit_rate:.3f} / {mean:.2f} / {p50:.2f} / {p99:.1f}")
            lines.append(f"| {load} | {policy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_loss(arrivals: list[Arrival]) -> tuple[list[Arrival], list[Change]]:
    end = arrivals[-1].at
    return arrivals, [Change(end / 3, 2, is_there=False), Change(2 * end / 3, 2, is_there=True)]


DEPLOYMENTS = 8
BODY_BYTES = 8192
REQUESTS_COUNTED = 600


def count_cost(form: str) -> str:
    """Return what a request with a prompt of 8 KB costs with one deployment and with eight equal ones, in instructions under callgrind,
    with the package in `form` (`pure` or `compiled`)."""
    with tempfile.TemporaryDirectory(prefix="tollway-bench-") as directory:
        source = build_form(form, Path(directory))
        costs: list[float] = []
        for deployments in (1, DEPLOYMENTS):
            options = ["--deployments", str(deployments), "--body-bytes", str(BODY_BYTES)]
            counted = count_instructions("request", REQUESTS_COUNTED, Path(directory), source, *options)
            costs.append(counted / REQUESTS_COUNTED / 1000)
    one, several = costs
    return f"{form}: {one:.1f} thousand instructions a request with 1 deployment, {several - one:+.1f} with {DEPLOYMENTS}"


DECISIONS_TIMED = 6000
TEXTS = 200


def time_choice() -> str:
    """Return how long hashing the prefixes of a prompt of 8 KB and choosing among eight equal deployments take, with the package as it is
    imported (`PYTHONPATH=build/native` after `make native` for the compiled form)."""
    dice = random.Random(1)
    texts = [dice.randbytes(BODY_BYTES) for _ in range(TEXTS)]
    loads = [Load(f"http://10.0.0.{number}:8000") for number in range(DEPLOYMENTS)]
    selector = Selector()
    hashed: list[int] = []
    chosen: list[int] = []
    for number in range(DECISIONS_TIMED):
        text = dice.choice(texts)
        began = time.perf_counter_ns()
        prefixes = hash_prefixes(text, 0, 7)
        hashed.append(time.perf_counter_ns() - began)
        first = number % DEPLOYMENTS
        group = loads[first:] + loads[:first]
        began = time.perf_counter_ns()
        index, uncached, _ = selector.choose(group, prefixes, 0, BODY_BYTES, BODY_BYTES / BYTES_PER_TOKEN)
        chosen.append(time.perf_counter_ns() - began)
        group[index].send(uncached)
        group[index].begin_answer(uncached)
    both = [first + second for first, second in zip(hashed, chosen, strict=True)]
    parts = (("prefix hashes", hashed), ("choice", chosen), ("both", both))
    return f"{FORM}\n" + "\n".join(
        f"{name}: {min(times) / 1000:.1f} µs at the least, {sorted(times)[len(times) // 2] / 1000:.1f} at the median"
        for name, times in parts
    )


def main() -> None:
    """Print the table; with --cost or --time what the choice costs a request."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=main.__doc__)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cost", choices=["pure", "compiled"], help="count instructions with the package in this form instead")
    parser.add_argument("--time", action="store_true", help="time the choice instead")
    arguments = parser.parse_args()
    if arguments.time:
        print(time_choice())
    else:
        print(count_cost(arguments.cost) if arguments.cost else render(arguments.requests, arguments.seeds))


if __name__ == "__main__":
    main()
