"""Budgets: windows, the most that a request can cost, and leases that never exceed their budget whatever happens in between."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tollway.domain.billing_classes import Quantities, UnitPrices
from tollway.domain.budgets import (
    Budget,
    BudgetLevel,
    BudgetMode,
    BudgetRaise,
    BudgetWindow,
    Lease,
    check_amount,
    check_thresholds,
    cut_window,
    extend_lease,
    find_affordable_output,
    find_fixed_cost,
    find_limit,
    find_output_price,
)
from tollway.domain.money import PICO
from tollway.domain.periods import Bounds

HOUR = 3_600_000_000
ZONES = ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia", "Asia/Kathmandu"]


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def budget(amount_pico: int = PICO, window: BudgetWindow = BudgetWindow.MONTH) -> Budget:
    return Budget(
        id="bud_1",
        organization_id="org_1",
        level=BudgetLevel.PROJECT,
        subject_id="proj_1",
        name="",
        mode=BudgetMode.HARD,
        window=window,
        amount_pico=amount_pico,
        currency="EUR",
        thresholds=(),
        is_operators=False,
        created_at=0,
        counts_from=0,
    )


class TestWindows:
    @pytest.mark.parametrize(
        ("window", "start", "end"),
        [
            (BudgetWindow.DAY, "2026-10-24T22:00", "2026-10-25T23:00"),
            (BudgetWindow.WEEK, "2026-10-18T22:00", "2026-10-25T23:00"),
            (BudgetWindow.MONTH, "2026-09-30T22:00", "2026-10-31T23:00"),
        ],
    )
    def test_cut_window_on_day_of_time_change_has_calendar_bounds(self, window: BudgetWindow, start: str, end: str) -> None:
        assert cut_window(window, at("2026-10-25T12:00"), "Europe/Berlin", []) == Bounds(at(start), at(end))

    @given(st.sampled_from(list(BudgetWindow)), st.integers(0, 4 * 10**15), st.sampled_from(ZONES))
    def test_cut_window_of_any_instant_contains_it_and_is_the_same_at_both_ends(
        self, window: BudgetWindow, instant: int, zone: str
    ) -> None:
        bounds = cut_window(window, instant, zone, [])
        assert bounds.start_at <= instant < bounds.end_at
        assert cut_window(window, bounds.start_at, zone, []) == bounds == cut_window(window, bounds.end_at - 1, zone, [])

    @given(st.sampled_from(list(BudgetWindow)), st.lists(st.tuples(st.integers(10**15, 2 * 10**15), st.sampled_from(ZONES)), max_size=8))
    def test_cut_window_after_changes_of_the_zone_overlaps_no_other(self, window: BudgetWindow, steps: list[tuple[int, str]]) -> None:
        existing: list[Bounds] = []
        for instant, zone in steps:
            bounds = cut_window(window, instant, zone, existing)
            assert bounds.start_at <= instant < bounds.end_at
            assert all(bounds == each or bounds.end_at <= each.start_at or bounds.start_at >= each.end_at for each in existing)
            existing.append(bounds)

    def test_find_limit_with_raise_in_force_adds_it_until_it_expires(self) -> None:
        window = Bounds(0, 100 * HOUR)
        more = BudgetRaise(id="r", budget_id="bud_1", amount_pico=5, starts_at=10 * HOUR, ends_at=20 * HOUR, created_at=0)
        found = [find_limit(budget(100), [more], window, hour * HOUR) for hour in (9, 10, 19, 20)]
        assert [(each.pico, each.until_at // HOUR) for each in found] == [(100, 100), (105, 20), (105, 20), (100, 100)]


prices = st.builds(UnitPrices, *([st.integers(0, 10**9)] * 5))
tokens = st.integers(0, 10**6)


class TestCosts:
    @given(prices, tokens, tokens, st.data())
    def test_most_that_a_request_can_cost_is_never_below_its_cost(
        self, unit_prices: UnitPrices, input_max: int, output_max: int, data: st.DataObject
    ) -> None:
        cached = data.draw(st.integers(0, input_max))
        reasoning = data.draw(st.integers(0, output_max))
        used = Quantities(input_max - cached, cached, output_max - reasoning, reasoning, 1)
        most = find_fixed_cost(unit_prices, input_max) + output_max * find_output_price(unit_prices)
        assert used.times(unit_prices).total <= most

    @given(prices, tokens, st.integers(0, 10**15), tokens)
    def test_affordable_output_is_the_largest_that_fits(self, unit_prices: UnitPrices, input_max: int, available: int, most: int) -> None:
        fixed, price = find_fixed_cost(unit_prices, input_max), find_output_price(unit_prices)
        found = find_affordable_output(unit_prices, fixed, available, most)
        if found < 0:
            assert fixed > available
        else:
            assert fixed + found * price <= available
            assert found == most or fixed + (found + 1) * price > available


class TestLeases:
    @given(st.integers(-(10**6), 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 50))
    def test_extend_lease_never_grants_more_than_is_free_and_meets_the_need_first(
        self, free: int, need: int, target: int, holders: int
    ) -> None:
        grown = extend_lease(free, need, target, holders)
        assert min(max(free, 0), need) <= grown <= max(free, 0)
        assert grown <= max(need, target)

    def test_shrink_gives_back_only_what_is_neither_used_nor_held(self) -> None:
        lease = Lease()
        lease.granted_pico, lease.used_pico, lease.held_pico = 100, 30, 20
        lease.shrink(10)
        assert (lease.granted_pico, lease.available_pico) == (60, 10)
        lease.shrink(25)
        assert lease.granted_pico == 60

    @pytest.mark.parametrize("pico", [0, -1, 2**63])
    def test_amount_out_of_range_is_refused(self, pico: int) -> None:
        assert check_amount(pico) is not None

    @pytest.mark.parametrize("thresholds", [(0,), (1001,), (80, 50), (50, 50), tuple(range(1, 13))])
    def test_thresholds_out_of_range_or_order_are_refused(self, thresholds: tuple[int, ...]) -> None:
        assert check_thresholds(thresholds) is not None


class Gateway:
    """One run of a gateway as the protocol sees it: its account, its records that control has not ingested, and its requests to control."""

    def __init__(self) -> None:
        self.lease = Lease()
        self.holds: list[int] = []
        self.unshipped: list[int] = []
        self.sequence = 0
        self.waits_for: int | None = None


class Leasing(RuleBasedStateMachine):
    """Control and gateways that exchange leases over a network which loses, repeats and reorders, with crashes and changes of the limit.

    A model of the protocol (`control.money.budgets` implements control's side on a database). It must hold that what is spent never exceeds
    the highest limit of the time, and at rest everything that no lease holds can be spent.
    """

    @initialize(limit=st.integers(0, 1000))
    def start(self, limit: int) -> None:
        self.limit = limit
        self.spent = 0
        self.gateways: list[Gateway] = []
        self.rows: dict[int, dict[str, int]] = {}
        self.requests: list[tuple[int, int, int, int, int]] = []
        self.replies: list[tuple[int, int, int]] = []

    def is_open(self, number: int) -> bool:
        return number in self.rows and not self.rows[number]["closed"]

    def free(self) -> int:
        allowed = sum(max(row["granted"] - row["drawn"], 0) for row in self.rows.values() if not row["closed"])
        return self.limit - self.spent - allowed

    @rule()
    def begin_run(self) -> None:
        if len(self.gateways) < 5:
            self.gateways.append(Gateway())

    @rule(number=st.integers(0, 4), need=st.integers(0, 400), wish=st.integers(0, 400), keep=st.integers(0, 300))
    def ask(self, number: int, need: int, wish: int, keep: int) -> None:
        if number < len(self.gateways):
            gateway = self.gateways[number]
            if self.rows.get(number, {}).get("closed"):
                return
            gateway.lease.shrink(keep)
            gateway.sequence += 1
            gateway.waits_for = gateway.sequence
            self.requests.append((number, gateway.sequence, gateway.lease.granted_pico, need, wish))

    @rule(index=st.integers(0, 30), repeats=st.booleans())
    def deliver_request(self, index: int, repeats: bool) -> None:
        if not self.requests:
            return
        index %= len(self.requests)
        number, sequence, current, need, wish = self.requests[index] if repeats else self.requests.pop(index)
        row = self.rows.setdefault(number, {"granted": 0, "drawn": 0, "sequence": 0, "closed": 0})
        if row["closed"] or sequence <= row["sequence"]:
            return
        row["granted"], row["sequence"] = current, sequence
        row["granted"] += extend_lease(self.free(), need, wish, max(len(self.rows), 1))
        self.replies.append((number, sequence, row["granted"]))

    @rule(index=st.integers(0, 30), repeats=st.booleans())
    def deliver_reply(self, index: int, repeats: bool) -> None:
        if self.replies:
            index %= len(self.replies)
            number, sequence, granted = self.replies[index] if repeats else self.replies.pop(index)
            gateway = self.gateways[number]
            if gateway.waits_for == sequence:
                gateway.waits_for = None
                gateway.lease.granted_pico = granted

    @rule()
    def lose_messages(self) -> None:
        self.requests.clear()
        self.replies.clear()

    @rule(number=st.integers(0, 4), cost=st.integers(1, 300))
    def hold(self, number: int, cost: int) -> None:
        if number < len(self.gateways) and not self.rows.get(number, {}).get("closed"):
            gateway = self.gateways[number]
            if cost <= gateway.lease.available_pico:
                gateway.lease.held_pico += cost
                gateway.holds.append(cost)

    @rule(number=st.integers(0, 4), share=st.integers(0, 100))
    def settle(self, number: int, share: int) -> None:
        if number < len(self.gateways) and self.gateways[number].holds:
            gateway = self.gateways[number]
            held = gateway.holds.pop(0)
            used = held * share // 100
            gateway.lease.held_pico -= held
            gateway.lease.used_pico += used
            gateway.unshipped.append(used)

    @rule(number=st.integers(0, 4))
    def ship(self, number: int) -> None:
        if number < len(self.gateways) and self.gateways[number].unshipped and not self.rows.get(number, {}).get("closed"):
            used = self.gateways[number].unshipped.pop(0)
            self.spent += used
            row = self.rows.setdefault(number, {"granted": 0, "drawn": 0, "sequence": 0, "closed": 0})
            row["drawn"] += used

    @rule(number=st.integers(0, 4), share=st.integers(0, 100))
    def crash_and_recover(self, number: int, share: int) -> None:
        """The run ends: each request under way is billed for what was delivered, all records arrive, the last of them is CLOSE."""
        if number < len(self.gateways) and self.is_open(number):
            gateway = self.gateways[number]
            for held in gateway.holds:
                gateway.unshipped.append(held * share // 100)
            gateway.holds.clear()
            total = sum(gateway.unshipped)
            gateway.unshipped.clear()
            self.spent += total
            self.rows[number]["drawn"] += total
            self.rows[number]["closed"] = 1
            gateway.lease = Lease()
            gateway.waits_for = None

    @invariant()
    def budget_is_never_overspent(self) -> None:
        if not hasattr(self, "limit"):
            return
        assert self.spent <= self.limit
        assert self.free() >= 0
        for number, gateway in enumerate(self.gateways):
            if self.is_open(number):
                assert gateway.lease.granted_pico <= self.rows[number]["granted"]
                assert gateway.lease.available_pico >= 0


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
