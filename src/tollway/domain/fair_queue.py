"""A bounded queue that serves flows in proportion to their weights: start-time fair queueing (Goyal, Vin and Cheng, 1996).

A flow has a start tag, the virtual time at which its next item begins. The flow with the smallest tag is served, and its tag grows by the
cost of what was served over its weight. A flow that was away begins at the virtual time of the moment: it is owed nothing for its absence.

What holds, for any two flows f and g that wait throughout an interval, with costs served C and largest costs M:
|C_f / w_f - C_g / w_g| <= M_f / w_f + M_g / w_g. So nobody waits indefinitely, whatever the others send.

Deficit round robin needs a quantum as large as the largest cost to decide in constant time, and then serves bursts of that size: a hundred
thousand tokens here. Tags serve single items and cost the logarithm of the number of waiting flows.

Not for several threads. Integers throughout; time is not read here.
"""

import heapq
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")

WEIGHT_MAX = 1 << 20
_SCALE = 1 << 32
"""Virtual time of one unit of cost at weight 1. Rounding loses less than one part in 2^32 of a unit for each item."""
SWEEP_FLOWS_MIN = 64
"""Flows that are remembered before idle ones are looked for."""


class Refusal(Enum):
    """Reasons why an item may not wait."""

    OVER_SHARE = "over_share"
    """Its flow has its share of the places already."""
    FULL = "full"
    """All places are taken, those that the shares of further flows allow included."""


class _Flow(Generic[T]):
    """Waiting items of one key. `start`: its tag. `is_listed`: whether the heap has it."""

    __slots__ = ("is_listed", "items", "key", "start", "weight")

    def __init__(self, key: Hashable, weight: int) -> None:
        self.key = key
        self.weight = weight
        self.start = 0
        self.is_listed = False
        self.items: OrderedDict[Ticket[T], None] = OrderedDict()


class Ticket(Generic[T]):
    """One waiting item. `cost`: at least 1."""

    __slots__ = ("_flow", "cost", "item")

    def __init__(self, flow: _Flow[T], cost: int, item: T) -> None:
        self._flow = flow
        self.cost = cost
        self.item = item


class FairQueue(Generic[T]):
    """Items of many flows, first in, first out within a flow.

    At most `capacity` items wait, shared out to the waiting flows by weight once they are that many. A flow below its share may still
    join then, so that whoever came first cannot keep the others out; all together are at most twice `capacity`.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity`: at least 1."""
        self._capacity = capacity
        self._flows: dict[Hashable, _Flow[T]] = {}
        self._heap: list[tuple[int, int, _Flow[T]]] = []
        self._sequence = 0
        self._virtual = 0
        self._waiting = 0
        self._weights = 0

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[T]:
        """Yield all items that wait, flow by flow."""
        return (ticket.item for flow in self._flows.values() for ticket in flow.items)

    def count(self, key: Hashable) -> int:
        """Return how many items of a flow wait."""
        flow = self._flows.get(key)
        return 0 if flow is None else len(flow.items)

    def position(self, key: Hashable, weight: int) -> int:
        """Return about how many items are served until one more of this flow is, itself included, if all cost the same."""
        flow = self._flows.get(key)
        own = 1 if flow is None else len(flow.items) + 1
        weights = self._weights + (weight if own == 1 else 0)
        return min(self._waiting + 1, -(-own * weights // weight))

    def is_over_share(self, key: Hashable, weight: int) -> bool:
        """Return whether a flow has more than its share of what waits."""
        return self.count(key) * self._weights > self._waiting * weight

    def join(self, key: Hashable, weight: int, cost: int, item: T) -> Ticket[T] | Refusal:
        """Let an item wait, or say why it may not. `weight`: of the flow, 1 to WEIGHT_MAX, the same while anything of it waits."""
        flow = self._flows.get(key)
        count = 0 if flow is None else len(flow.items)
        if self._waiting >= self._capacity:
            weights = self._weights + (0 if count else weight)
            if count >= max(1, self._capacity * weight // weights):
                return Refusal.OVER_SHARE
            if self._waiting >= 2 * self._capacity:
                return Refusal.FULL
        if flow is None:
            self._sweep()
            flow = self._flows[key] = _Flow(key, weight)
        if not count:
            flow.weight = weight
            self._weights += weight
            if not flow.is_listed:
                flow.start = max(flow.start, self._virtual)
                self._list(flow)
        ticket = Ticket(flow, cost, item)
        flow.items[ticket] = None
        self._waiting += 1
        return ticket

    def leave(self, ticket: Ticket[T]) -> None:
        """Remove an item that waits no longer; without effect once it was served."""
        flow = ticket._flow
        if ticket in flow.items:
            del flow.items[ticket]
            self._removed(flow)

    def peek(self) -> T | None:
        """Return the item that is served next; None if none waits."""
        flow = self._first()
        return None if flow is None else next(iter(flow.items)).item

    def pop(self) -> T | None:
        """Remove and return the item that is served next; None if none waits."""
        flow = self._first()
        if flow is None:
            return None
        heapq.heappop(self._heap)
        flow.is_listed = False
        self._virtual = flow.start
        ticket, _ = flow.items.popitem(last=False)
        flow.start += ticket.cost * _SCALE // flow.weight
        if flow.items:
            self._list(flow)
        self._removed(flow)
        return ticket.item

    def _first(self) -> _Flow[T] | None:
        """Return the flow that is served next. Flows whose items have all left go from the heap here."""
        heap = self._heap
        while heap:
            flow = heap[0][2]
            if flow.items:
                return flow
            heapq.heappop(heap)
            flow.is_listed = False
        return None

    def _list(self, flow: _Flow[T]) -> None:
        self._sequence += 1  # of two with the same tag the one that was listed first
        flow.is_listed = True
        heapq.heappush(self._heap, (flow.start, self._sequence, flow))

    def _removed(self, flow: _Flow[T]) -> None:
        self._waiting -= 1
        if not flow.items:
            self._weights -= flow.weight
        if not self._waiting:  # nobody competes: the past is of no account
            self._flows.clear()
            self._heap.clear()
            self._virtual = 0

    def _sweep(self) -> None:
        """Forget flows that owe nothing, each time the number of flows has doubled."""
        if len(self._flows) >= max(SWEEP_FLOWS_MIN, 2 * self._waiting):
            idle = [key for key, flow in self._flows.items() if not flow.is_listed and flow.start <= self._virtual]
            for key in idle:
                del self._flows[key]
