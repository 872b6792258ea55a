"""The scheduler: slots, the queue in front of them, and one timer for whatever is due in the same millisecond.

Theory of operation. A `Generation` waits for a slot, then makes chunk after chunk at the times its `Pace` says,
then frees the slot. It knows nothing of sockets: it notifies its `watcher` that it advanced or that it came to its
end. A streamed generation is woken for every chunk, any other only at its end. Timers are never cancelled; a
generation that left in the meantime ignores its wake-up, so the cost of an abort is one dead reference for at most
one gap.

A fault that halts a generation (`halt_at`) ends it early; a stalled one keeps its slot until it is asked to leave,
as in the field.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from functools import partial
from math import ceil
from typing import Protocol

from tollway.simulator.faults import Plan
from tollway.simulator.metrics import Counters
from tollway.simulator.requests import Order
from tollway.simulator.settings import SimulatorSettings
from tollway.simulator.tokens import BLOCK_TOKENS, Answer, Pace, PrefixCache, jitter_sums

# One millisecond is below every pace that a test can distinguish, and groups thousands of streams into few timers.
_TICKS_PER_SECOND = 1000


class Wheel:
    """Calls things at a time, one event loop timer for all that share a millisecond. Nothing can be cancelled."""

    __slots__ = ("_loop", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Callable[[], None]]] = {}

    def at(self, due: float, call: Callable[[], None]) -> None:
        """Calls at the loop time `due`, rounded up to a millisecond; never before this returns."""
        tick = ceil(due * _TICKS_PER_SECOND)
        slot = self._slots.get(tick)
        if slot is None:
            self._slots[tick] = [call]
            self._loop.call_at(tick / _TICKS_PER_SECOND, self._turn, tick)
        else:
            slot.append(call)

    def _turn(self, tick: int) -> None:
        for call in self._slots.pop(tick):
            call()


class State(Enum):
    """State of a generation. It only moves downwards."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


class Watcher(Protocol):
    """Receiver of the events of a generation."""

    def advanced(self) -> None:
        """There are new tokens, and more to come."""

    def ended(self) -> None:
        """All that will be made is made: the whole answer, or as far as the fault lets it."""


class Generation:
    """One answer in the making. `steps` chunks are made of `steps_end`; each is worth `tokens_per_step` tokens of
    every sequence.
    """

    __slots__ = (
        "answer",
        "arrived_at",
        "blocks",
        "cached_tokens",
        "halts",
        "order",
        "pace",
        "plan",
        "running_at",
        "state",
        "steps",
        "steps_end",
        "tokens_per_step",
        "wake",
        "watcher",
    )

    def __init__(self, order: Order, answer: Answer, plan: Plan, watcher: Watcher, tokens_per_step: int) -> None:
        self.order = order
        self.answer = answer
        self.plan = plan
        self.watcher = watcher
        self.tokens_per_step = tokens_per_step
        self.state = State.WAITING
        self.arrived_at = 0.0  # loop time
        self.running_at = 0.0
        self.cached_tokens = 0
        self.blocks = 0
        self.steps = 0
        whole = max(1, -(-max(answer.lengths, default=0) // tokens_per_step))
        self.halts = plan.halt is not None
        self.steps_end = min(plan.halt_at, whole) if self.halts else whole
        self.pace = Pace(0.0, 0.0)
        self.wake: Callable[[], None] | None = None

    @property
    def made_each(self) -> int:
        """Tokens that every sequence has had time for."""
        return self.steps * self.tokens_per_step

    @property
    def made(self) -> int:
        """Tokens made in all."""
        return self.answer.generated(self.made_each)


class Engine:
    """All generations of one simulator. `now` everywhere is the loop's clock."""

    def __init__(self, settings: SimulatorSettings, wheel: Wheel, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._wheel = wheel
        self._clock = clock
        self._jitter = jitter_sums(settings.jitter_fraction, settings.seed)
        self._cache = PrefixCache(settings.cache_blocks_max)
        self._waiting: dict[Generation, None] = {}  # a queue out of which anyone may leave
        self.counters = Counters()
        self.running = 0
        self.blocks_used = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def cache_usage(self) -> float:
        """Part of the KV blocks that running requests hold, 0 to 1."""
        return min(1.0, self.blocks_used / self._settings.cache_blocks_max)

    def admit(self, generation: Generation) -> bool:
        """Gives the generation a slot or a place in the queue. False if there is neither."""
        generation.arrived_at = self._clock()
        if self.running < self._settings.running_max:
            self._start(generation)
            return True
        if self._settings.queued_max is not None and len(self._waiting) >= self._settings.queued_max:
            self.counters.rejections += 1
            return False
        self._waiting[generation] = None
        return True

    def leave(self, generation: Generation) -> None:
        """Takes the generation out, wherever it is, and frees what it held. Doing so twice changes nothing."""
        state, generation.state = generation.state, State.GONE
        if state is State.WAITING:
            self._waiting.pop(generation, None)
        elif state is State.RUNNING:
            if not generation.order.stream:
                # Nobody woke it in between, so what was made so far follows from the time.
                elapsed = self._clock() - generation.running_at
                generation.steps = max(generation.steps, generation.pace.steps_by(elapsed, generation.steps_end))
            self._release(generation)

    def _start(self, generation: Generation) -> None:
        settings, order, plan = self._settings, generation.order, generation.plan
        generation.state = State.RUNNING
        generation.running_at = now = self._clock()
        generation.cached_tokens = sum(self._cache.take(prompt, order.cache_salt) for prompt in order.prompts)
        computed = order.prompt_tokens - generation.cached_tokens
        first = settings.ttft_seconds if plan.ttft_seconds is None else plan.ttft_seconds
        gap = settings.inter_token_seconds if plan.inter_token_seconds is None else plan.inter_token_seconds
        generation.pace = Pace(first + computed * settings.prefill_seconds_per_token, gap * generation.tokens_per_step, self._jitter)
        tokens = order.prompt_tokens + sum(generation.answer.lengths)
        generation.blocks = -(-tokens // BLOCK_TOKENS)
        self.running += 1
        self.blocks_used += generation.blocks
        self.counters.prompt(order.prompt_tokens, generation.cached_tokens)
        generation.wake = partial(self._wake, generation)
        if generation.steps_end == 0:
            self._wheel.at(now, generation.wake)  # halted before the first token
        else:
            self._wheel.at(now + generation.pace.due(1 if order.stream else generation.steps_end), generation.wake)

    def _wake(self, generation: Generation) -> None:
        if generation.state is not State.RUNNING:
            return
        end = generation.steps_end
        if not generation.order.stream:
            generation.steps = end
        elif generation.steps < end:
            elapsed = self._clock() - generation.running_at
            generation.steps += 1
            while generation.steps < end and generation.pace.due(generation.steps + 1) <= elapsed:
                generation.steps += 1  # the loop was late, or the pace is faster than the wheel
        if generation.steps < end:
            assert generation.wake is not None
            self._wheel.at(generation.running_at + generation.pace.due(generation.steps + 1), generation.wake)
            generation.watcher.advanced()
            return
        if generation.plan.halt != "stall":
            generation.state = State.GONE
            self._release(generation)
        generation.watcher.ended()

    def _release(self, generation: Generation) -> None:
        self.running -= 1
        self.blocks_used -= generation.blocks
        self._account(generation)
        while self._waiting and self.running < self._settings.running_max:
            following = next(iter(self._waiting))
            del self._waiting[following]
            self._start(following)

    def _account(self, generation: Generation) -> None:
        now = self._clock()
        pace = generation.pace
        first = pace.due(1) if generation.steps else None
        self.counters.generation(
            tokens=generation.made,
            queue_seconds=generation.running_at - generation.arrived_at,
            first_token_seconds=first,
            decode_seconds=max(0.0, now - generation.running_at - (first or 0.0)),
            total_seconds=now - generation.arrived_at,
            gaps=max(0, generation.steps - 1),
        )
