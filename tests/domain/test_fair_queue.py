"""The fair queue: shares follow weights, nobody waits indefinitely, and nothing is lost or grows."""

import random
from collections import defaultdict

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tollway.domain.fair_queue import SWEEP_FLOWS_MIN, FairQueue, Refusal, Ticket

COSTS = st.integers(1, 200_000)
WEIGHTS = st.integers(1, 64)
TURNS_MAX = 5_000
"""Items that one test serves: a cost of 1 beside one of 200,000 would take millions."""


def join(queue: FairQueue[int], key: str, item: int, weight: int = 1, cost: int = 1) -> Ticket[int]:
    ticket = queue.join(key, weight, cost, item)
    assert isinstance(ticket, Ticket)
    return ticket


@given(st.lists(st.tuples(WEIGHTS, st.lists(COSTS, min_size=30, max_size=30)), min_size=2, max_size=5), st.integers(1, 60))
def test_flows_that_wait_throughout_get_their_shares_within_one_largest_request_each(
    flows: list[tuple[int, list[int]]], served: int
) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue(1000)
    for number in range(30):
        for flow, (weight, costs) in enumerate(flows):
            queue.join(flow, weight, costs[number], (flow, costs[number]))
    used: dict[int, int] = defaultdict(int)
    for _ in range(served):
        found = queue.pop()
        assert found is not None
        used[found[0]] += found[1]
        if any(not queue.count(flow) for flow in range(len(flows))):
            break  # from here on one flow does not wait any more
        for one, (weight, costs) in enumerate(flows):
            for other, (other_weight, other_costs) in enumerate(flows):
                bound = max(costs) / weight + max(other_costs) / other_weight
                assert abs(used[one] / weight - used[other] / other_weight) <= bound * (1 + 1e-9)


@given(WEIGHTS, WEIGHTS, COSTS, st.integers(1, 200_000), st.integers(0, 20))
def test_item_is_served_after_a_bounded_cost_of_others_whatever_they_send(
    weight: int, other_weight: int, cost: int, other_cost: int, ahead: int
) -> None:
    bound = other_weight * ((ahead + 1) * cost / weight) + 2 * other_cost
    assume(bound / other_cost <= TURNS_MAX)
    queue: FairQueue[str] = FairQueue(10_000)
    for _ in range(5):
        queue.join("flood", other_weight, other_cost, "flood")
    for _ in range(ahead):
        queue.join("other", weight, cost, "ahead")
    queue.join("other", weight, cost, "mine")
    others = 0
    while (found := queue.pop()) != "mine":
        if found == "flood":
            others += other_cost
            queue.join("flood", other_weight, other_cost, "flood")  # it never ceases to send
        assert others <= bound * (1 + 1e-9)


@given(st.lists(st.tuples(st.sampled_from("jpl"), st.integers(0, 5), COSTS), max_size=200), st.integers(1, 8))
def test_any_history_conserves_items_keeps_order_within_a_flow_and_the_bound(history: list[tuple[str, int, int]], capacity: int) -> None:
    queue: FairQueue[int] = FairQueue(capacity)
    waiting: dict[int, list[tuple[int, Ticket[int]]]] = defaultdict(list)
    for number, (step, key, cost) in enumerate(history):
        if step == "j":
            ticket = queue.join(key, key + 1, cost, number)
            if isinstance(ticket, Ticket):
                waiting[key].append((number, ticket))
            else:
                assert len(queue) >= capacity
        elif step == "p":
            expected, found = queue.peek(), queue.pop()
            assert found == expected
            heads = {items[0][0]: key for key, items in waiting.items() if items}
            if heads:
                assert found in heads
                waiting[heads[found]].pop(0)
            else:
                assert found is None
        elif waiting[key]:
            queue.leave(waiting[key].pop(cost % len(waiting[key]))[1])
        assert len(queue) == sum(map(len, waiting.values())) <= 2 * capacity
        assert all(queue.count(key) == len(items) for key, items in waiting.items())


def test_one_flow_that_fills_the_queue_does_not_keep_others_out() -> None:
    queue: FairQueue[int] = FairQueue(8)
    for number in range(8):
        join(queue, "noisy", number)
    assert queue.join("noisy", 1, 1, 8) is Refusal.OVER_SHARE
    for number in range(4):
        join(queue, "quiet", number)
    assert queue.join("quiet", 1, 1, 4) is Refusal.OVER_SHARE


def test_queue_of_single_items_of_many_flows_is_full_at_twice_its_capacity() -> None:
    queue: FairQueue[int] = FairQueue(4)
    for number in range(8):
        join(queue, f"flow {number}", number)
    assert queue.join("one more", 1, 1, 8) is Refusal.FULL


def test_ticket_that_was_served_cannot_leave() -> None:
    queue: FairQueue[int] = FairQueue(4)
    first = join(queue, "a", 1)
    join(queue, "a", 2)
    assert queue.pop() == 1
    queue.leave(first)
    queue.leave(first)
    assert (len(queue), queue.pop(), queue.pop()) == (1, 2, None)


def test_flow_that_returns_pays_what_it_was_served_before() -> None:
    queue: FairQueue[int] = FairQueue(100)
    join(queue, "large", 0, cost=1000)
    for number in range(1, 6):
        join(queue, "small", number, cost=100)
    assert queue.pop() == 0
    join(queue, "large", 9, cost=1000)
    assert [queue.pop() for _ in range(6)] == [1, 2, 3, 4, 5, 9]


@pytest.mark.parametrize("leaves", [True, False], ids=["leaving", "served"])
def test_idle_flows_are_forgotten_while_others_wait(leaves: bool) -> None:
    queue: FairQueue[int] = FairQueue(100)
    dice = random.Random(1)
    join(queue, "always", 0, cost=1)
    for number in range(5000):
        ticket = join(queue, f"once {number}", number, cost=dice.randint(1, 9))
        if leaves:
            queue.leave(ticket)
        queue.pop()
        join(queue, "always", 0, cost=10)
        while len(queue) > 2:
            queue.pop()
    assert len(queue._flows) <= 2 * SWEEP_FLOWS_MIN
    assert len(queue._heap) <= 2 * SWEEP_FLOWS_MIN


def test_position_counts_what_is_served_before_by_weight() -> None:
    queue: FairQueue[int] = FairQueue(100)
    for number in range(10):
        join(queue, "noisy", number)
    assert queue.position("noisy", 1) == 11
    assert queue.position("quiet", 1) == 2
    assert queue.position("urgent", 4) == 2
    assert queue.is_over_share("noisy", 1) is False
    join(queue, "quiet", 0)
    assert queue.is_over_share("noisy", 1) is True
