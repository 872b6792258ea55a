"""Budgets in the memory of one gateway run: what it was granted, what its requests hold and have used.

Theory of operation. Each budget that requests of this run were bound by has a `BudgetAccount` with the run's lease of the present window.
A request reserves the most that it can cost in all accounts that bind it, or in none, before it is metered; when it ends, the reservation
is replaced by its real cost. That touches memory only. `link.leases` keeps the leases ahead of the need: it takes `next_request` to
control and brings the answer to `apply`. A request that finds too little available waits for the next answer, for LEASE_WAIT_SECONDS at
most; then it gets what there is, as fewer tokens of output, or is refused.

A stream reserves its first tokens of output only, and more of them as it runs (`BudgetHold.extend`), where its engine says on each chunk
how many there are. So many streams can share the last money of a budget. One for which there is no more is ended by `relay`.

While control is away, requests spend what is leased; after that those with a hard budget are refused, those with only soft ones admitted.

A budget of each end user has an account for each end user that was seen (`domain.budgets.name_end_user_budget`), and a prepaid one an
account for each place at which credit with a scope can be used (`BudgetEntry.find_place`), which counts as one. Of END_USER_ACCOUNTS_MAX
those give way in which nothing is left and nothing is held; when such an end user comes again, control is asked first what was used. Where
none gives way, only an organization that has its part of them (the most, divided by the organizations that have some) gets no more.

A lease is kept as large as twice the most that was held lately, which halves with each request to control, so that idle gateways give
everything back. Where control has little left, only what is held is kept, and each request asks for what it needs.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from tollway.domain.billing_classes import OtherClasses
from tollway.domain.budgets import (
    BudgetMode,
    Lease,
    LeaseGrant,
    LeaseRequest,
    find_affordable_output,
    find_budget_of_each,
    find_fixed_cost,
    find_output_price,
)
from tollway.domain.faults import (
    BUDGET_EXCEEDED,
    BUDGET_THROTTLED,
    BUDGET_UNAVAILABLE,
    COST_EXCEEDED,
    OVERLOADED,
    PARAMETER_INVALID,
    Fault,
)
from tollway.domain.money import format_amount, parse_sum
from tollway.domain.request_records import find_cost
from tollway.domain.snapshot import BudgetEntry
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Ended, UsageSource
from tollway.gateway.driver import OVER, Waiter
from tollway.gateway.request import Call, RequestHead

OUTPUT_TOKENS_UNBOUNDED = 16_384
"""Output of each sequence that a request may have under a hard budget if neither it nor its model bounds it."""

OUTPUT_TOKENS_USEFUL = 16
"""Least output of each sequence to which a request is shortened; where not even that much can be paid, it is refused."""

OUTPUT_TOKENS_EXPECTED = 512
"""Output of each sequence that is reserved in a soft budget, as far as the request may have so much."""

INPUT_BYTES_PER_TOKEN = 3
"""Bytes of a body for a token that is reserved in a soft budget."""

OUTPUT_TOKENS_FIRST, OUTPUT_TOKENS_STEP_MAX = 256, 4096
"""Output that a stream reserves at first, and most that it reserves at once later: each step doubles what it has."""

TEMPLATE_TOKENS_LEAST = 64
"""Tokens of input beside a token for each byte that are reserved at least where a hard budget is short."""

LEASE_WAIT_SECONDS = 2.0
"""Longest wait of a request for a larger lease: many times what control needs, below what a client notices as an outage."""

DECAY_US = 500_000
"""Time in which the most that was held counts half."""

WAITING_MAX = 2_000
"""Requests that wait for a larger lease; more are refused."""

END_USER_ACCOUNTS_MAX = 5_000
"""Accounts of single end users from which on one gateway run gives idle ones up, which cost a question more when they come again. With n
organizations that use their parts in the worst order there are as many as 1 + 1/2 + ... + 1/n times so many."""

IDLE_SEARCH_US = 1_000_000
"""Time for which a search for idle accounts that found none holds, unless control answers before: it reads all accounts."""

MINUTE_US = 60_000_000

REQUEST_LEASES_MAX = 256
"""Leases in one request to control."""


class BudgetAccount:
    """The lease of one budget in one window. `entry` is the budget's; `start_at`, `end_at` are the window's, None before the first answer.

    `asked_at`: an instant of the window. `until_at`: from then on nothing may be reserved before control was asked again. `is_scarce`:
    control had little left. `spent_pico`, `limit_pico`, `free_pico`: of the last answer. `peak_pico`: most that was held at once, which
    decays. `need_pico`: of requests that wait. `is_archived`: the budget binds nothing any more. `confirmed_pico`: what the lease was by
    the last answer. `is_forgotten`: it was given up before, and control has not said yet what was used. `is_recalled`: the last answer said
    that alone. `throttled_until`: from then on a request may pass beyond the budget that is spent.
    """

    __slots__ = (
        "asked_at",
        "confirmed_pico",
        "end_at",
        "entry",
        "free_pico",
        "is_archived",
        "is_forgotten",
        "is_recalled",
        "is_scarce",
        "lease",
        "limit_pico",
        "need_pico",
        "peak_pico",
        "spent_pico",
        "start_at",
        "throttled_until",
        "until_at",
    )

    def __init__(self, entry: BudgetEntry, asked_at: int) -> None:
        self.entry = entry
        self.asked_at = asked_at
        self.start_at: int | None = None
        self.end_at: int | None = None
        self.until_at = 0
        self.lease = Lease()
        self.is_archived = False
        self.is_scarce = False
        self.spent_pico = 0
        self.limit_pico = 0
        self.free_pico = 0
        self.peak_pico = 0
        self.need_pico = 0
        self.confirmed_pico = 0
        self.is_forgotten = False
        self.is_recalled = False
        self.throttled_until = 0

    @property
    def is_idle(self) -> bool:
        """Return whether it can be given up: control knows all that was used, and nothing is left or held."""
        lease = self.lease
        return lease.held_pico == self.need_pico == 0 and lease.granted_pico == lease.used_pico == self.confirmed_pico

    def is_over(self, now_us: int) -> bool:
        """Return whether the window has ended."""
        return self.end_at is not None and now_us >= self.end_at

    def find_available(self, now_us: int) -> int:
        """Return what may be reserved at this instant."""
        return self.lease.available_pico if now_us < self.until_at else 0

    def find_extensible(self, now_us: int) -> int:
        """Return by how much reservations of this window may grow at this instant, which may be after its end."""
        return self.lease.available_pico if now_us < self.until_at or self.until_at == self.end_at else 0

    def find_goal(self) -> int:
        """Return what should be available for requests to come."""
        return 0 if self.is_scarce else max(2 * self.peak_pico - self.lease.held_pico, 0)

    def find_throttle_wait(self, now_us: int) -> int:
        """Return for how many microseconds a request must wait to pass beyond the budget that is spent, by GCRA with a burst of one."""
        interval_us = MINUTE_US // self.entry.throttle_requests_per_minute
        return min(max(self.throttled_until - now_us, 0), interval_us)

    def pass_throttled(self, now_us: int) -> None:
        """Let a request pass beyond the budget that is spent."""
        self.throttled_until = now_us + MINUTE_US // self.entry.throttle_requests_per_minute


class BudgetHold:
    """The reservation of one request: in the accounts of `amounts`, from `Budgets.reserve` to `Budgets.settle`.

    `covered_tokens`: output that is reserved in hard budgets. `waiter` is resumed once the reservation was made or refused. `asked_in`: the
    request to control whose answer decides it. While a stream waits for more, `decided` is what to call then, `wanted_tokens` the output
    that it must have, and `goal_tokens` what it should have. `refused_by`: the budget that refused it, None for none. `throttled`: accounts
    of budgets that are spent, which let it pass.
    """

    __slots__ = (
        "_budgets",
        "amounts",
        "asked_in",
        "call",
        "covered_tokens",
        "decided",
        "entries",
        "goal_tokens",
        "is_ended",
        "needs",
        "refused_by",
        "throttled",
        "timer",
        "waiter",
        "wanted_tokens",
    )

    def __init__(self, budgets: "Budgets", call: Call, entries: Sequence[BudgetEntry]) -> None:
        most = _find_output_max(call)
        self.covered_tokens = most
        if _is_extended(call, entries):
            self.covered_tokens = min(most, OUTPUT_TOKENS_FIRST)
            call.output_hold = self
        self._budgets = budgets
        self.decided: Callable[[bool], None] | None = None
        self.wanted_tokens = self.goal_tokens = 0
        self.call = call
        self.entries = entries
        self.amounts: list[tuple[BudgetAccount, int]] = []
        self.needs: list[tuple[BudgetAccount, int]] = []
        self.asked_in = 0
        self.waiter: Waiter = OVER
        self.refused_by: BudgetEntry | None = None
        self.throttled: tuple[BudgetAccount, ...] = ()
        self.timer: asyncio.TimerHandle | None = None
        self.is_ended = False

    def extend(self, tokens: int, decided: Callable[[bool], None]) -> bool:
        """Return whether the first `tokens` of output are reserved now. Where they are not, control is asked, and `decided` is called
        later."""
        return self._budgets.extend(self, tokens, decided)

    def abandon(self) -> None:
        """Wait for nothing any more."""
        self._budgets.abandon(self)


class Budgets:
    """All accounts of one gateway run. Used from one event loop. `wake` is called when control should be asked."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self.wake: Callable[[], None] = _do_nothing
        self.is_linked = False
        self._accounts: dict[str, BudgetAccount] = {}
        self._ended: list[BudgetAccount] = []
        self._waiting: deque[BudgetHold] = deque()
        self._sequence = 0
        self._asked: list[BudgetAccount] = []
        self._decayed_at = 0
        self._end_user_accounts = 0
        self._organizations: dict[str, int] = {}  # how many of these accounts each has
        self._none_idle_until = 0
        self._has_forgotten = False
        self._template_tokens: dict[str, int] = {}  # by model: most tokens of input beyond a token for each byte that were seen

    # ---- Requests ------------------------------------------------------------------------------------------------------

    def reserve(self, call: Call, entries: Sequence[BudgetEntry], max_cost_pico: int | None) -> BudgetHold:
        """Return the reservation of a call, in the budgets `entries` that bind it. Await its `waiter`; end it by `settle` in any case.

        The call's output is lowered to what `max_cost_pico` and the budgets buy. Raises Fault: insufficient_quota, budget_unavailable,
        max_cost_exceeded or overloaded; here, or from the waiter.
        """
        if max_cost_pico is not None and not call.caller.is_test:
            _hold_to_max_cost(call, max_cost_pico)
        if self._end_user_accounts >= END_USER_ACCOUNTS_MAX and any(
            each.id not in self._accounts and find_budget_of_each(each.id) is not None for each in entries
        ):
            self._make_place(call.caller.organization.id)
        hold = BudgetHold(self, call, entries)
        if not entries or self._try_full(hold):
            return hold
        if len(self._waiting) >= WAITING_MAX:
            raise Fault(OVERLOADED)
        if not self.is_linked:
            self._decide(hold, is_answered=False)
            return hold
        hold.waiter = Waiter()
        self._wait(hold, self._list_needs(hold))
        return hold

    def _wait(self, hold: BudgetHold, needs: list[tuple[BudgetAccount, int]]) -> None:
        hold.asked_in = self._sequence + 1
        hold.timer = asyncio.get_running_loop().call_later(LEASE_WAIT_SECONDS, self._give_up, hold)
        hold.needs = needs
        for account, pico in needs:
            account.need_pico += pico
        self._waiting.append(hold)
        self.wake()

    def extend(self, hold: BudgetHold, tokens: int, decided: Callable[[bool], None]) -> bool:
        """Return whether the first `tokens` of a stream's output are reserved now, with as much again for what follows as can be had. Where
        they are not, `decided` is called later, from a callback of the loop, with whether they are then."""
        most = hold.call.output_tokens_max
        goal = tokens + min(max(hold.covered_tokens, OUTPUT_TOKENS_FIRST), OUTPUT_TOKENS_STEP_MAX)
        goal = goal if most is None else max(min(goal, most), tokens)
        if self._try_extend(hold, tokens, goal):
            return True
        if not self.is_linked or len(self._waiting) >= WAITING_MAX or hold.is_ended:
            asyncio.get_running_loop().call_soon(decided, False)
            return False
        hold.wanted_tokens, hold.goal_tokens, hold.decided = tokens, goal, decided
        more = (goal - hold.covered_tokens) * find_output_price(hold.call.price.unit_prices)
        self._wait(hold, [(account, more) for account, _ in _list_extended(hold)])
        return False

    def abandon(self, hold: BudgetHold) -> None:
        """Let a request wait for nothing any more."""
        if hold.timer is not None:
            hold.timer.cancel()
            hold.timer = None
        if hold.needs:
            self._forget_needs(hold)
            self._waiting.remove(hold)
        hold.decided = None

    def _try_extend(self, hold: BudgetHold, tokens: int, goal_tokens: int) -> bool:
        """Reserve what there is of a stream's output up to `goal_tokens`; nothing, if that is not the first `tokens` of it."""
        now_us = self._now_us()
        price = find_output_price(hold.call.price.unit_prices)
        extended = _list_extended(hold)
        available = min((account.find_extensible(now_us) for account, _ in extended), default=0)
        covered = min(hold.covered_tokens + max(available, 0) // price, goal_tokens) if extended else goal_tokens
        if covered < tokens:
            return False
        more = (covered - hold.covered_tokens) * price
        amounts, hold.amounts = hold.amounts, []
        grown = [account for account, _ in extended]
        hold.covered_tokens = covered
        self._take(hold, [(account, more) for account in grown])
        hold.amounts = [(account, held + more if account in grown else held) for account, held in amounts]
        return True

    def settle(self, hold: BudgetHold, final: Ended | None) -> None:
        """End a reservation: nothing of it is held any more, and what the request costs, by its FINAL (None: nothing), is used."""
        if hold.is_ended:
            return
        hold.is_ended = True
        self.abandon(hold)
        if not hold.amounts:
            return
        if final is None:
            for account in hold.throttled:
                account.throttled_until = 0  # it did not pass after all
        call = hold.call
        pico = 0
        if final is not None:
            if final.source is UsageSource.ENGINE_FINAL and call.prompt_bytes:
                self._learn_template(call, final.used.input_tokens)
            pico = find_cost(OUTCOME_POLICY_CURRENT, call.request.endpoint, final, call.price.unit_prices)
        is_short = False
        for account, held in hold.amounts:
            account.lease.held_pico -= held
            account.lease.used_pico += pico
            is_short = is_short or account.is_scarce
        hold.amounts = []
        if self._waiting:
            self._serve_waiting(self._sequence, is_answered=None)
        if is_short:
            self.wake()

    def _learn_template(self, call: Call, input_tokens: int) -> None:
        """Learn how many tokens of input a model may have beyond a token for each byte of a request."""
        most = self._template_tokens.get(call.model.id, 0)
        self._template_tokens[call.model.id] = max(most, input_tokens - call.prompt_bytes)

    def _lower_input(self, call: Call) -> None:
        """Lower the bound on a call's input, which allows for the longest chat templates, to what its model has shown.

        Where the model needs more, the surplus is not billed: a budget must not be unspendable because of what hardly any request needs.
        """
        if call.prompt_bytes and call.prompts == 1:
            template_tokens = max(2 * self._template_tokens.get(call.model.id, 0), TEMPLATE_TOKENS_LEAST)
            call.input_tokens_max = min(call.input_tokens_max, call.prompt_bytes + template_tokens)

    def _find_account(self, entry: BudgetEntry, now_us: int) -> BudgetAccount:
        account = self._accounts.get(entry.id)
        if account is None or account.is_over(now_us):
            if account is not None:
                self._ended.append(account)
            elif find_budget_of_each(entry.id) is not None:
                self._count_end_user(entry, 1)
            account = self._accounts[entry.id] = BudgetAccount(entry, now_us)
            account.is_forgotten = self._has_forgotten and find_budget_of_each(entry.id) is not None
        elif account.start_at is not None and now_us < account.start_at:  # it waited over the end of its window
            return next((each for each in self._ended if each.entry.id == entry.id and each.end_at == account.start_at), account)
        return account

    def _count_end_user(self, entry: BudgetEntry, more: int) -> None:
        """Count an account of an end user that was made (1) or given up (-1)."""
        self._end_user_accounts += more
        left = self._organizations.get(entry.organization_id, 0) + more
        if left:
            self._organizations[entry.organization_id] = left
        else:
            del self._organizations[entry.organization_id]

    def _make_place(self, organization_id: str) -> None:
        """Give up accounts of end users. Raises OVERLOADED if none can be, and the organization has its part of them."""
        if self._release_idle():
            return
        held = self._organizations.get(organization_id, 0)
        sharing = len(self._organizations) + (0 if held else 1)
        if held and held >= END_USER_ACCOUNTS_MAX // sharing:
            raise Fault(OVERLOADED, retry_after_seconds=1, detail="accounts of end users")

    def _release_idle(self) -> bool:
        """Give up the idle accounts of end users. Return whether there were any."""
        now_us = self._now_us()
        if now_us < self._none_idle_until:
            return False
        idle = [
            each for id, each in self._accounts.items() if each.is_idle and each not in self._asked and find_budget_of_each(id) is not None
        ]
        if not idle:
            self._none_idle_until = now_us + IDLE_SEARCH_US
            return False
        for account in idle:
            del self._accounts[account.entry.id]
            self._count_end_user(account.entry, -1)
        self._has_forgotten = True
        return True

    def _remove(self, account: BudgetAccount) -> None:
        account.is_archived = True
        if self._accounts.get(account.entry.id) is account:
            del self._accounts[account.entry.id]
            if find_budget_of_each(account.entry.id) is not None:
                self._count_end_user(account.entry, -1)

    def _try_full(self, hold: BudgetHold) -> bool:
        """Reserve the most that the call can cost, or nothing."""
        now_us = hold.call.request.received_at
        amounts = [(self._find_account(each, now_us), _find_cost(hold, each)) for each in hold.entries]
        for account, pico in amounts:
            if account.find_available(now_us) < pico:
                return False
        self._take(hold, amounts)
        return True

    def _take(self, hold: BudgetHold, amounts: list[tuple[BudgetAccount, int]]) -> None:
        """Reserve amounts, for which there is enough."""
        hold.amounts = amounts
        for account, pico in amounts:
            lease = account.lease
            lease.held_pico += pico
            if lease.held_pico > account.peak_pico:
                account.peak_pico = lease.held_pico
            if 2 * lease.available_pico < account.find_goal():
                self.wake()

    def _list_needs(self, hold: BudgetHold) -> list[tuple[BudgetAccount, int]]:
        now_us = hold.call.request.received_at
        return [(self._find_account(each, now_us), _find_cost(hold, each)) for each in hold.entries]

    def _forget_needs(self, hold: BudgetHold) -> None:
        for account, pico in hold.needs:
            account.need_pico -= pico
        hold.needs = []

    def _give_up(self, hold: BudgetHold) -> None:
        """Decide a request that has waited for too long."""
        if hold.needs:
            self._waiting.remove(hold)
            self._finish(hold, is_answered=False)

    def _serve_waiting(self, sequence: int, *, is_answered: bool | None) -> None:
        """Decide requests that wait for the answer to request `sequence` or an earlier one; those for which there is enough, in any case.

        `is_answered`: whether control has answered; None if it was not asked, so that no request is refused yet.
        """
        waiting, self._waiting = self._waiting, deque()
        left: deque[BudgetHold] = deque()
        ready: list[tuple[BudgetHold, bool]] = []
        for hold in waiting:
            if self._try_waiting(hold):
                self._forget_needs(hold)
                ready.append((hold, True))
            elif is_answered is None or hold.asked_in > sequence or (is_answered and not self._was_asked(hold)):
                left.append(hold)
            else:
                ready.append((hold, False))
        left.extend(self._waiting)
        self._waiting = left
        for hold, is_reserved in ready:
            if is_reserved:
                self._resume(hold, None)
            else:
                self._finish(hold, is_answered=is_answered is True)

    def _try_waiting(self, hold: BudgetHold) -> bool:
        """Reserve all that a request waits for, or nothing."""
        if hold.decided is None:
            return self._try_full(hold)
        return self._try_extend(hold, hold.goal_tokens, hold.goal_tokens)

    def _was_asked(self, hold: BudgetHold) -> bool:
        """Return whether the latest request to control asked for all that `hold` needs."""
        if any(account.is_recalled for account, _ in hold.needs):
            return False
        return len(self._asked) < REQUEST_LEASES_MAX or all(account in self._asked for account, _ in hold.needs)

    def _finish(self, hold: BudgetHold, *, is_answered: bool) -> None:
        """Decide a request that no longer waits."""
        self._forget_needs(hold)
        if hold.decided is not None:
            is_reserved = self._try_extend(hold, hold.wanted_tokens, hold.goal_tokens)
            self._resume(hold, None if is_reserved else Fault(BUDGET_EXCEEDED))
            return
        try:
            self._decide(hold, is_answered=is_answered)
        except Fault as fault:
            self._resume(hold, fault)
        else:
            self._resume(hold, None)

    def _resume(self, hold: BudgetHold, fault: Fault | None) -> None:
        if hold.timer is not None:
            hold.timer.cancel()
            hold.timer = None
        decided, hold.decided = hold.decided, None
        if decided is None:
            hold.waiter.resume(fault)
        else:
            decided(fault is None)

    def _decide(self, hold: BudgetHold, *, is_answered: bool) -> None:
        """Reserve what there is, with the call's output lowered to it. Raises Fault if that is too little."""
        call = hold.call
        now_us = call.request.received_at
        accounts = [self._find_account(each, now_us) for each in hold.entries]
        throttled: list[BudgetAccount] = []
        for account in accounts:
            available = account.find_available(now_us)
            if account.entry.mode is BudgetMode.SOFT:
                if is_answered and available < _find_cost(hold, account.entry):
                    if not account.entry.throttle_requests_per_minute:
                        raise _refuse(hold, account, available)
                    throttled.append(account)
                continue
            if available < _find_cost(hold, account.entry):
                self._lower_input(call)
            if not _lower_hold(hold, available):
                raise _refuse(hold, account, available) if is_answered else Fault(BUDGET_UNAVAILABLE, retry_after_seconds=1)
        wait_us = max((each.find_throttle_wait(now_us) for each in throttled), default=0)
        if wait_us:
            raise _throttle(max(throttled, key=lambda each: each.find_throttle_wait(now_us)), wait_us)
        for account in throttled:
            account.pass_throttled(now_us)
        hold.throttled = tuple(throttled)
        self._take(hold, [(account, _find_cost(hold, account.entry)) for account in accounts])

    # ---- Leases --------------------------------------------------------------------------------------------------------

    def next_request(self) -> tuple[int, list[LeaseRequest]]:
        """Return what to ask control, with its number; an empty list if there is nothing to ask. What is stated as given back is no longer
        reserved by anyone, whatever becomes of the message."""
        now_us = self._now_us()
        asked: list[BudgetAccount] = []
        requests: list[LeaseRequest] = []
        if now_us - self._decayed_at >= DECAY_US:
            self._decayed_at = now_us
            for account in self._accounts.values():
                account.peak_pico = max(account.peak_pico // 2, account.lease.held_pico)
        accounts = sorted([*self._ended, *self._accounts.values()], key=lambda each: each.need_pico == 0)
        for account in accounts:
            if len(asked) >= REQUEST_LEASES_MAX:
                break
            request = _find_request(account, now_us)
            if request is not None:
                account.is_recalled = False
                asked.append(account)
                requests.append(request)
        self._ended = [each for each in self._ended if each.lease.held_pico or each in asked]
        self._sequence += 1
        self._asked = asked
        return self._sequence, requests

    def apply(self, sequence: int, grants: Sequence[LeaseGrant]) -> None:
        """Take over control's answer to request `sequence`, which must be the latest."""
        if sequence != self._sequence:
            return
        self.is_linked = True
        self._none_idle_until = 0
        for grant in grants:
            account = next((each for each in self._asked if _is_of(each, grant)), None)
            if account is None:
                continue
            if not grant.exists:
                self._remove(account)
                continue
            account.start_at, account.end_at, account.until_at = grant.start_at, grant.end_at, grant.until_at
            account.lease.granted_pico = account.confirmed_pico = grant.granted_pico
            account.is_recalled = grant.is_recalled
            if grant.is_recalled:
                account.lease.used_pico += grant.granted_pico
                account.is_forgotten = False
            account.limit_pico, account.spent_pico, account.free_pico = grant.limit_pico, grant.spent_pico, grant.free_pico
            account.is_scarce = grant.free_pico <= account.lease.held_pico + 2 * account.peak_pico
        self._serve_waiting(sequence, is_answered=True)
        if any(account.is_recalled for account in self._asked):
            self.wake()

    def fail(self, sequence: int) -> None:
        """Control did not answer request `sequence`."""
        if sequence == self._sequence:
            self.is_linked = False
            self._serve_waiting(sequence, is_answered=False)

    # ---- The snapshot --------------------------------------------------------------------------------------------------

    def change(self, budget_id: str, entry: BudgetEntry | None) -> None:
        """Take note that a budget changed or ended (None): nothing more is reserved before control was asked again."""
        account = self._accounts.get(budget_id)
        if account is not None:
            self._change(account, entry)
        if self._end_user_accounts:
            for each in [each for id, each in self._accounts.items() if find_budget_of_each(id) == budget_id]:
                self._change(each, entry)

    def change_all(self, entries: Mapping[str, BudgetEntry]) -> None:
        """Take note of a whole snapshot."""
        for id, account in list(self._accounts.items()):
            self._change(account, entries.get(find_budget_of_each(id) or id))

    def _change(self, account: BudgetAccount, entry: BudgetEntry | None) -> None:
        if entry is None:
            self._remove(account)
        else:
            old = account.entry
            if entry.id != old.id:
                entry = msgspec.structs.replace(entry, id=old.id, model=old.model, place_project_id=old.place_project_id)
            account.entry = entry
            account.until_at = 0
            self.wake()

    def list_accounts(self, entries: Sequence[BudgetEntry]) -> list[BudgetAccount]:
        """Return the accounts of these budgets, as far as this run has them."""
        return [self._accounts[each.id] for each in entries if each.id in self._accounts]


def _do_nothing() -> None: ...


def _is_of(account: BudgetAccount, grant: LeaseGrant) -> bool:
    if account.entry.id != grant.budget_id:
        return False
    if account.start_at is None:
        return not grant.exists or grant.start_at <= account.asked_at < grant.end_at
    return account.start_at == grant.start_at


def _find_request(account: BudgetAccount, now_us: int) -> LeaseRequest | None:
    """Return what to say of an account, None if nothing changes. It gives back what it does not keep."""
    lease = account.lease
    is_over = account.is_over(now_us)
    must_ask = account.until_at <= now_us and not is_over and (account.need_pico > 0 or lease.granted_pico > lease.used_pico)
    keep = 0 if is_over or account.until_at <= now_us else account.find_goal()
    before = lease.granted_pico
    lease.shrink(keep)
    wanted = 0 if is_over else max(keep - lease.available_pico, 0)
    need = max(account.need_pico - max(lease.available_pico, 0), 0)
    if lease.available_pico < 0:
        need += -lease.available_pico
    is_confirmed = lease.granted_pico == before == account.confirmed_pico
    if is_confirmed and not (must_ask or need or wanted):
        return None
    at = account.asked_at if account.start_at is None else account.start_at
    entry = account.entry
    return LeaseRequest(
        budget_id=account.entry.id,
        at=at,
        current_pico=None if account.is_forgotten else lease.granted_pico,
        need_pico=need,
        target_pico=need + wanted,
        project_id=entry.place_project_id,
        model=entry.model if entry.place_project_id else "",
    )


# ---- Costs -------------------------------------------------------------------------------------------------------------


def _find_fixed_cost(call: Call, input_tokens: int) -> int:
    """Return the most that a call can cost before its first token of output, with so many tokens of input."""
    images, measure = call.sequences if call.dialect.counts_images else 0, call.measure
    media = None if measure is None else OtherClasses(seconds=measure.seconds_max, characters=measure.characters, pixels=measure.pixels)
    return find_fixed_cost(call.price.unit_prices, input_tokens, images, media)


def _find_output_max(call: Call) -> int:
    """Return the most output that the call can have, of all sequences together."""
    most = call.output_tokens_max
    return OUTPUT_TOKENS_UNBOUNDED * call.sequences if most is None else most


def _is_extended(call: Call, entries: Sequence[BudgetEntry]) -> bool:
    """Return whether a call reserves its output while it runs: a stream with one output, of engines that say on each chunk how much it is,
    bound by a hard budget."""
    return (
        call.stream
        and call.sequences == call.prompts == 1
        and call.dialect.usage_options is not None
        and call.grant.has_running_usage
        and find_output_price(call.price.unit_prices) > 0
        and any(each.mode is BudgetMode.HARD for each in entries)
    )


def _list_extended(hold: BudgetHold) -> list[tuple[BudgetAccount, int]]:
    """Return what of a hold grows with the output of its stream."""
    return [each for each in hold.amounts if each[0].entry.mode is BudgetMode.HARD and not each[0].is_archived]


def _find_cost(hold: BudgetHold, entry: BudgetEntry) -> int:
    """Return what a call reserves in a budget: the most that it can cost in a hard one, as far as it does not reserve more while it runs;
    what is to be expected in a soft one."""
    call = hold.call
    prices = call.price.unit_prices
    input_tokens, output_tokens = call.input_tokens_max, hold.covered_tokens
    if entry.mode is BudgetMode.SOFT and call.measure is not None:
        input_tokens, output_tokens = min(input_tokens, call.measure.input_tokens), min(output_tokens, call.measure.output_tokens)
    elif entry.mode is BudgetMode.SOFT:
        input_tokens = min(input_tokens, call.prompt_bytes // INPUT_BYTES_PER_TOKEN + 1)
        output_tokens = min(_find_output_max(call), OUTPUT_TOKENS_EXPECTED * call.sequences)
    return _find_fixed_cost(call, input_tokens) + output_tokens * find_output_price(prices)


def _lower_hold(hold: BudgetHold, available_pico: int) -> bool:
    """Lower the output that a call reserves to what `available_pico` buys; False, and nothing is changed, if that is too little to be
    useful."""
    call = hold.call
    if call.output_hold is None:
        if not _lower_output(call, available_pico):
            return False
        hold.covered_tokens = _find_output_max(call)
        return True
    affordable = find_affordable_output(
        call.price.unit_prices, _find_fixed_cost(call, call.input_tokens_max), available_pico, hold.covered_tokens
    )
    if affordable < min(OUTPUT_TOKENS_USEFUL, _find_output_max(call)):
        return False
    hold.covered_tokens = affordable
    return True


def _lower_output(call: Call, available_pico: int) -> bool:
    """Lower the output of a call to what `available_pico` buys; False, and nothing is changed, if that is too little to be useful."""
    most = _find_output_max(call)
    fixed_pico = _find_fixed_cost(call, call.input_tokens_max)
    affordable = find_affordable_output(call.price.unit_prices, fixed_pico, available_pico, most)
    if affordable == most:
        if call.output_tokens_max is None:
            call.lower_output(OUTPUT_TOKENS_UNBOUNDED)
        return True
    each = affordable // call.sequences
    if not call.dialect.has_output:
        return False  # nothing in the request would bound it
    if each < min(OUTPUT_TOKENS_USEFUL, most // call.sequences):
        return False
    call.lower_output(each)
    return True


def _hold_to_max_cost(call: Call, max_cost_pico: int) -> None:
    if not _lower_output(call, max_cost_pico):
        least = _find_least_cost(call)
        currency = call.caller.organization.currency
        raise Fault(
            COST_EXCEEDED,
            message=f"The request can cost {format_amount(least)} {currency} or more, above the most that it allows"
            f" ({format_amount(max_cost_pico)} {currency}).",
        )


def _find_least_cost(call: Call) -> int:
    """Return what the call must be able to cost to be admitted: its input, and a useful part of its output, or all of it where nothing in
    the request would bound it."""
    prices = call.price.unit_prices
    useful = _find_output_max(call)
    if call.dialect.has_output:
        useful = min(OUTPUT_TOKENS_USEFUL * call.sequences, useful)
    return _find_fixed_cost(call, call.input_tokens_max) + useful * find_output_price(prices)


def _refuse(hold: BudgetHold, account: BudgetAccount, available_pico: int) -> Fault:
    """Return the refusal of a call by a budget: which one, what is left of it, and what is missing."""
    entry, call = account.entry, hold.call
    hold.refused_by = entry
    currency = call.caller.organization.currency
    available = max(available_pico, 0)
    least = _find_least_cost(call) if entry.mode is BudgetMode.HARD else _find_cost(hold, entry)
    level = entry.level.value.replace("api_key", "API key")
    message = (
        f"You exceeded your current quota: the budget {entry.id} of {level} {entry.subject_id} is"
        f" {format_amount(account.limit_pico)} {currency}, of which {format_amount(available)} can be used now;"
        f" this request may cost {format_amount(least)} {currency}, {format_amount(max(least - available, 0))} more."
    )
    is_spent = account.limit_pico - account.spent_pico < least
    return Fault(BUDGET_EXCEEDED, message=message, headers=b"x-should-retry: false\r\n" if is_spent else b"")


def _throttle(account: BudgetAccount, wait_us: int) -> Fault:
    """Return the refusal of a call by a spent budget that lets requests pass at its rate, for `wait_us` more."""
    entry = account.entry
    message = (
        f"The budget {entry.id} of {entry.level.value.replace('api_key', 'API key')} {entry.subject_id} is spent: it lets"
        f" {entry.throttle_requests_per_minute} requests per minute pass at each gateway."
    )
    return Fault(BUDGET_THROTTLED, message=message, retry_after_seconds=-(-wait_us // 1_000_000))


def read_max_cost(head: RequestHead) -> int | None:
    """Return the most that a request may cost, in pico of the organization's currency; None if it says nothing. Raises Fault."""
    if head.max_cost is None:
        return None
    try:
        return parse_sum(head.max_cost.decode("ascii"))
    except ValueError:
        message = "The header 'x-max-cost' must be an amount in the organization's currency, such as 0.05."
        raise Fault(PARAMETER_INVALID, param="x-max-cost", message=message) from None
